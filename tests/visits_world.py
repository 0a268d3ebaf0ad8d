"A generated world with periods of its own: members of a gym, asked every three days about the next seven."

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.features import (
    Events,
    Feature,
    FeatureSet,
    Measure,
    count,
    last,
    time_since_last,
)
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.criterion import Criterion
from mlsys_nb.problem.dataset import Lake
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.population import Everyone
from mlsys_nb.system.settings import Settings, load_settings

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
FILE = "visits.parquet"

contract = Contract(
    "visits",
    (
        Column("member", "int"),
        Column("at", "time", zone="UTC"),
        Column("minutes", "int"),
        Column("branch", "category"),
    ),
)
visits = Events(
    "visits",
    keys={"member": "int"},
    time="at",
    columns={"minutes": Measure("int", unit="min"), "branch": "text"},
)
recency = time_since_last(visits).named("days_since")
active = count(visits, "21d").named("visits_21d")
weekly = count(visits, "7d").named("visits_7d")
branch = last(visits, "branch").named("branch")
features = FeatureSet("visits", (recency, active, weekly, branch))
problem = Problem(
    name="visits",
    title="Members who stay away",
    question="Will a member not come within a week?",
    sources=(ReplaySource("visits", contract, path=FILE, time="at"),),
    features=features,
    population=Everyone(3 * DAY, START + 21 * DAY, Criterion("visits_21d", ">=", 1)),
    target=Happens(count(visits, "7d").named("visits_next_7d"), "==", 0, "no visit within seven days"),
    horizon=7 * DAY,
    rule=Rule.feature("days_since", "likelier", "the longer ago, the likelier"),
    costs=Costs("EUR", false_positive=1.0, false_negative=3.0, action="call", otherwise="none"),
    lookback=30 * DAY,
    slices=("branch",),
    maturity="2d",
)


def with_features(*chosen: Feature) -> Problem:
    "The same question, asked with other features."
    return replace(problem, features=FeatureSet("visits", chosen))


def rows(n: int = 600, days: int = 120, seed: int = 0) -> pl.DataFrame:
    "Visits of members who differ in how often they come; some are steady, some leave, all come less often later."
    rng = np.random.default_rng(seed)
    member, day = np.arange(1, n + 1), np.arange(days)
    joined = rng.integers(0, 20, n)
    keen = np.where(day < 60, 1.0, 0.7)
    odd = rng.uniform(size=(n, days))
    often = odd < 1 - np.exp(
        -(rng.gamma(4, 0.05, n) * np.array([0.35, 1.0, 2.2])[member % 3])[:, None] * keen[None, :]
    )
    steady = (
        day[None, :] + rng.integers(0, 9, n)[:, None]
    ) % 9 == 0  # Every ninth day, whatever the last visit says
    steady &= odd < 0.9
    leaving = rng.integers(10, 2 * days, n)
    came = np.where((member % 4 == 0)[:, None], steady, often) & (day[None, :] >= joined[:, None])
    came &= day[None, :] < leaving[:, None]
    who, on = np.nonzero(came)
    second = rng.integers(7 * 3600, 22 * 3600, len(who))
    at = (
        np.datetime64("2024-01-01T00:00:00", "us")
        + on * np.timedelta64(86_400, "s")
        + second * np.timedelta64(1, "s")
    )
    frame = pl.DataFrame(
        {
            "member": member[who],
            "at": at,
            "minutes": rng.integers(20, 120, len(who)),
            "branch": np.array(["north", "south", "west"])[member[who] % 3],
        }
    )
    return frame.sort("at", "member")


def lake(delay: int = 0, n: int = 600, seed: int = 0) -> Lake:
    "The visits as events; news of every second branch's travels `delay` days."
    frame = (
        rows(n, seed=seed).with_row_index("event_id").with_columns(pl.col("at").dt.replace_time_zone("UTC"))
    )
    late = pl.when(pl.col("branch") == "south").then(pl.col("at") + delay * DAY).otherwise("at")
    return Lake({"visits": frame.with_columns(known_at=late)}, ())


def make(folder: Path, visits: pl.DataFrame | None = None) -> Settings:
    "A team's folder with its raw file, and a root of its own in it."
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (rows() if visits is None else visits).write_parquet(folder / "raw" / FILE)
    text = "[system]\nraw = raw\ntracking_uri = off\n[problems]\nvisits = visits_world:problem\n"
    (folder / "settings.ini").write_text(text)
    return load_settings(root=folder / "root", home=folder)
