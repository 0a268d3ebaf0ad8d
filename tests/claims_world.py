"""A generated world whose truth is known: claims of which some are fraud, and a history in which three things happen.

A clerk's mark tells half of the truth until the source stops delivering it (a leak that is removed); for a quarter fraud is
three times as frequent; then everything is as before. Outcomes come 3 to 25 days after a claim. Nothing here is real.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.transforms import request
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.dataset import Lake
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.per_event_population import Each
from mlsys_nb.problem.replay_plan import ReplayPlan

START, DAY, PERIOD = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1), timedelta(days=28)
INSTANT = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Plan:
    "What happens when, in periods of 28 days."

    periods: int = 24
    a_period: int = 600  # Claims
    begins: int = 7  # The first look
    unmarked: int = 11  # From here on the mark is not delivered any longer
    tripled: int = 16  # From here on fraud is three times as frequent ...
    recovered: int = 19  # ... until here
    seed: int = 0


claims_contract = Contract(
    "claims",
    (
        Column("claim", "text"),
        Column("client", "int"),
        Column("at", "time", zone="UTC"),
        Column("size", "float"),
        Column("haste", "float"),
        Column("region", "category"),
        Column("mark", "int", nullable=True),
    ),
    id="claim",
)
answers_contract = Contract(
    "answers",
    (Column("claim", "text"), Column("at", "time", zone="UTC"), Column("fraud", "bool")),
    id="claim",
)
claims = Events(
    "claims",
    keys={"claim": "text"},
    time="at",
    columns={"client": "int", "size": "float", "haste": "float", "region": "text", "mark": "int"},
)
answers = Events("answers", keys={"claim": "text"}, time="at", columns={"fraud": "bool"})
asked = (
    request("size", "float"),
    request("haste", "float"),
    request("region", "text"),
    request("mark", "int"),
)
problem = Problem(
    name="claims",
    title="Claims that are fraud",
    question="Will this claim turn out to be fraud?",
    sources=(
        ReplaySource("claims", claims_contract, path="claims.parquet", time="at"),
        ReplaySource("answers", answers_contract, path="answers.parquet", time="at"),
    ),
    features=FeatureSet("claims", asked),
    population=Each(claims, every=PERIOD, start=START),
    target=Happens.by(answers, "fraud", True, "the claim turns out to be fraud"),
    maturity="27d",
    rule=Rule.feature("haste", "likelier", "the hastier, the likelier"),
    costs=Costs("EUR", false_positive=1.0, false_negative=4.0, action="look", otherwise="pay"),
    limits=Limits(rows=200, entities=100, outcomes=15),
    accepted={"mark": "a clerk sets it before anybody decides"},
    replay=ReplayPlan(START + 7 * PERIOD, START + 24 * PERIOD, "28d"),
    simulated=True,
)


def odds(share: np.ndarray) -> np.ndarray:
    return np.log(share / (1 - share))


def generated(plan: Plan) -> tuple[pl.DataFrame, pl.DataFrame, np.ndarray]:
    "Claims, answers, and the true probability of each claim."
    rng, n = np.random.default_rng(plan.seed), plan.periods * plan.a_period
    at = np.sort(rng.integers(60, plan.periods * 28 * 1440, n))
    period = at // (28 * 1440)
    size, haste = rng.normal(size=n), rng.normal(size=n)
    region = rng.choice(["north", "south", "west"], n, p=[0.5, 0.3, 0.2])
    base = np.where((period >= plan.tripled) & (period < plan.recovered), 0.24, 0.08)
    truth = 1 / (1 + np.exp(-(odds(base) - 0.5 + 0.8 * size + 0.6 * haste + 0.7 * (region == "west"))))
    fraud = rng.random(n) < truth
    seen = np.where(rng.random(n) < 0.5, fraud, rng.random(n) < 0.08)
    told = np.where(period < plan.unmarked, seen.astype(float), np.nan)
    times = pl.Series([START + timedelta(minutes=int(m)) for m in at], dtype=INSTANT)
    late = times + pl.Series([timedelta(minutes=int(m)) for m in rng.integers(3 * 1440, 25 * 1440, n)])
    name = pl.Series([f"c{i:06d}" for i in range(n)])
    made = pl.DataFrame({
        "claim": name, "client": rng.integers(0, 4000, n), "at": times, "size": size, "haste": haste, "region": region,
        "mark": pl.Series(told, nan_to_null=True).cast(pl.Int64),
    })  # fmt: skip
    return made, pl.DataFrame({"claim": name, "at": late, "fraud": fraud}), truth


def lake_of(plan: Plan) -> tuple[Lake, dict[str, float]]:
    "The history as it stands in a lake, and the true probability of each claim."
    made, told, truth = generated(plan)
    known = pl.lit(None, dtype=INSTANT).alias("retracted_at")
    frames = {
        name: frame.with_columns(event_id=pl.col("claim"), known_at=pl.col("at")).with_columns(known).sort("known_at")
        for name, frame in (("claims", made), ("answers", told))
    }  # fmt: skip
    return Lake(frames, ()), dict(zip(made["claim"].to_list(), truth.tolist(), strict=True))


def declared(plan: Plan) -> Problem:
    "The problem with the looks of a plan."
    looks = ReplayPlan(START + plan.begins * PERIOD, START + plan.periods * PERIOD, "28d")
    return replace(problem, replay=looks)


def write(folder: Path, plan: Plan = Plan()) -> None:
    "The raw files of a plan, for a system that ingests them."
    made, told, _ = generated(plan)
    made.write_parquet(folder / "claims.parquet")
    told.write_parquet(folder / "answers.parquet")
