"""A generated world of decisions about events, whose truth is known: a help desk asks at each call whether the client
will have to call again. Two problems: with the client's history, and with nothing but what the call itself says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.features import Events, FeatureSet, count, last, of
from mlsys_nb.features.transforms import request, size
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.multiclass_target import OneOf
from mlsys_nb.problem.per_event_population import Each
from mlsys_nb.problem.regression_target import Amount
from mlsys_nb.system.settings import Settings, load_settings

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
calls_contract = Contract(
    "calls",
    (
        Column("call", "text"),
        Column("client", "int"),
        Column("at", "time", zone="UTC"),
        Column("topic", "category", nullable=True),
        Column("minutes", "int"),
        Column("parts", "list", nullable=True),
    ),
    id="call",
)
faults_contract = Contract(
    "faults", (Column("fault", "int"), Column("device", "int"), Column("at", "time", zone="UTC")), id="fault"
)
answers_contract = Contract(
    "answers",
    (
        Column("call", "text"),
        Column("at", "time", zone="UTC"),
        Column("again", "bool"),
        Column("hours", "int"),
        Column("desk", "category"),
    ),
    id="call",
)
calls = Events(
    "calls",
    keys={"client": "int"},
    time="at",
    columns={"call": "text", "topic": "text", "minutes": "int", "parts": "list"},
)
faults = Events("faults", keys={"device": "int"}, time="at")
singles = Events("calls", keys={"call": "text"}, time="at", columns={"topic": "text", "minutes": "int"})
answers = Events(
    "answers", keys={"call": "text"}, time="at", columns={"again": "bool", "hours": "int", "desk": "text"}
)
sources = (
    ReplaySource("calls", calls_contract, path="calls.parquet", time="at"),
    ReplaySource("answers", answers_contract, path="answers.parquet", time="at"),
    ReplaySource("faults", faults_contract, path="faults.parquet", time="at"),
)
parts = request("parts", "list[int]")
of_parts = (
    of({"device": parts}, count(faults, "14d"), "max").named("worst_part"),
    of({"device": parts}, count(faults, "14d"), "mean").named("usual_part"),
    size(parts).named("n_parts"),
)
asked = (request("topic", "text"), request("minutes", "int"))
target = Happens.by(answers, "again", True, "the client has to call again")
costs = Costs("EUR", false_positive=2.0, false_negative=5.0, action="visit", otherwise="none")
rule = Rule.feature("minutes", "likelier", "the longer a call, the harder the trouble")

history = Problem(
    name="calls",
    title="Clients who will call again",
    question="Will the client have to call again about this?",
    sources=sources,
    features=FeatureSet(
        "calls",
        (*asked, count(calls, "7d").named("calls_7d"), last(calls, "topic").named("topic_before"), *of_parts),
    ),
    population=Each(calls, every="1w", start=START, id="call"),
    target=target,
    maturity="3d",
    rule=rule,
    costs=costs,
)
bare = Problem(
    name="bare",
    title="Calls that come again, by what the call says",
    question="Will there be another call about this?",
    sources=sources,
    features=FeatureSet("bare", asked),
    population=Each(singles, every="1w", start=START),
    target=target,
    maturity="3d",
    rule=rule,
    costs=costs,
)
hours = replace(
    history,
    name="hours",
    question="How many hours of work will it take?",
    target=Amount.by(answers, "hours", "hours of work", "h"),
    rule=Rule.feature("minutes", "more", "the longer a call, the more work"),
    costs=OverUnder("EUR", over=1.0, under=3.0),
)
desk = replace(
    history,
    name="desk",
    question="Which desk will solve it?",
    target=OneOf.by(
        answers, "desk", ("office", "field", "store"), "the desk that solved it", {"fax": "office"}
    ),
    rule=Rule.majority(),
    costs=CostMatrix("EUR", uniform=10.0, abstain=4.0),
)


def rows(n: int = 6_000, days: int = 90, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    "Calls, and the answers that came up to two days later; one in ten never comes."
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, days * 86_400, n)).astype("int64")
    topic = rng.choice(["bill", "line", "router"], n)
    minutes = rng.integers(1, 60, n)
    client = rng.integers(0, n // 8, n)
    week = pl.DataFrame({"client": client, "at": at}).with_row_index("i")
    earlier = (
        week.join(week, on="client").filter(pl.col("at_right") < pl.col("at"), pl.col("at_right") >= pl.col("at") - 7 * 86_400)
        .group_by("i").len()
    )  # fmt: skip
    before = week.join(earlier, on="i", how="left").sort("i")["len"].fill_null(0).to_numpy()
    odds = -1.5 + 1.4 * (topic == "router") + 0.8 * before + 0.03 * (minutes - 30)
    again = rng.uniform(size=n) < 1 / (1 + np.exp(-odds))
    stamp = np.datetime64("2024-01-01T00:00:00", "us") + at * np.timedelta64(1, "s")
    ids = [f"c{i:06d}" for i in range(n)]
    told = pl.DataFrame({"call": ids, "client": client, "at": stamp, "topic": topic, "minutes": minutes})
    told = told.with_columns(topic=pl.when(pl.int_range(n) % 50 > 0).then("topic"))
    far = minutes * (0.2 + 0.3 * (topic == "router")) * rng.gamma(4.0, 0.25, n)
    took = np.maximum(1, far + 1).astype("int64")
    usual = np.array([{"bill": "office", "line": "field", "router": "store"}[t] for t in topic])
    solved = np.where(rng.uniform(size=n) < 0.7, usual, rng.choice(["office", "field", "store", "fax"], n))
    later = stamp + rng.integers(3_600, 2 * 86_400, n) * np.timedelta64(1, "s")
    known = pl.DataFrame({"call": ids, "at": later, "again": again, "hours": took, "desk": solved}).filter(
        pl.int_range(n) % 10 > 0
    )
    few = np.random.default_rng(seed + 1).integers(0, 30, (n, 4))
    lists = [None if i % 40 == 0 else few[i, : i % 4].tolist() for i in range(n)]
    return told.with_columns(parts=pl.Series(lists, dtype=pl.List(pl.Int64))), known.sort("at")


def broken(days: int = 90, seed: int = 2) -> pl.DataFrame:
    "Faults of thirty parts."
    rng = np.random.default_rng(seed)
    at = np.datetime64("2024-01-01T00:00:00", "us") + np.sort(
        rng.integers(0, days * 86_400, 400)
    ) * np.timedelta64(1, "s")
    return pl.DataFrame({"fault": range(400), "device": rng.integers(0, 30, 400) ** 2 // 30, "at": at})


def make(folder: Path, n: int = 6_000) -> Settings:
    "A team's folder with its raw files, and a root of its own in it."
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    told, known = rows(n)
    told.write_parquet(folder / "raw" / "calls.parquet")
    known.write_parquet(folder / "raw" / "answers.parquet")
    broken().write_parquet(folder / "raw" / "faults.parquet")
    text = (
        "[system]\nraw = raw\ntracking_uri = off\n[problems]\ncalls = calls_world:history\nbare = calls_world:bare\n"
        "hours = calls_world:hours\ndesk = calls_world:desk\n"
    )
    (folder / "settings.ini").write_text(text)
    return load_settings(root=folder / "root", home=folder)
