"""A generated world of choices whose truth is known: visitors of a site pick a tool. What a tool is worth to a visitor is
the logarithm of its popularity this week times one weight, and of how often the visitor took it before times another."""

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb import features as f
from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import PerHit
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem.dataset import Lake
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.item_candidates import Candidates
from mlsys_nb.problem.per_event_population import Each
from mlsys_nb.problem.ranking_target import Chosen
from mlsys_nb.problem.target import by_id
from mlsys_nb.system.settings import Settings, load_settings

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
who = Column("visitor", "int")
visits_contract = Contract(
    "visits", (Column("visit", "text"), who, Column("at", "time", zone="UTC")), id="visit"
)
picks_contract = Contract(
    "picks",
    (Column("visit", "text"), who, Column("tool", "text"), Column("at", "time", zone="UTC")),
    id="visit",
)
visits = Events("visits", keys={"visitor": "int"}, time="at", columns={"visit": "text"})
picks = Events("picks", keys={"visitor": "int", "tool": "text"}, time="at", columns={})
answers = Events("picks", keys={"visit": "text"}, time="at", columns={"tool": "text"})
among = Candidates(
    items=FeatureSet("tool", (f.log1p(f.count(picks, "7d", by="tool")).named("popular"),)),
    pairs=FeatureSet("visitor_tool", (f.log1p(f.count(picks, "lifetime")).named("times"),)),
    events=picks,
    most="popular",
    every="1d",
    start=START,
    top=60,
    own=30,
)
problem = Problem(
    name="tools",
    title="The next tool",
    question="Which tool will this visitor pick?",
    sources=(
        ReplaySource("visits", visits_contract, path="visits.parquet", time="at"),
        ReplaySource("picks", picks_contract, path="picks.parquet", time="at"),
    ),
    features=FeatureSet("tools", (f.count(visits, "7d").named("visits_7d"),)),
    population=Each(visits, every="4d", start=START + 7 * DAY, id="visit"),
    target=Chosen(by_id(answers, "tool").named("picked"), among, "the tool that is picked", shown=3),
    maturity="2d",
    rule=Rule.feature("popular", "likelier", "what many pick"),
    costs=PerHit("EUR", 1.0),
    limits=Limits(latency_ms=50.0),
    slices=("visits_7d",),
)  # fmt: skip


@cache
def rows(
    weights: tuple[float, float] = (0.8, 1.5), n: int = 4_000, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    "Visits over fifty days and what was picked a minute later; one pick in thirty is of a tool that nobody knew."
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, 50 * 86_400, n))
    visitor = rng.integers(0, 150, n)
    taken: list[tuple[int, int, str]] = []
    for i in range(n):
        today = at[i] // 86_400 * 86_400
        week: dict[str, int] = {}
        mine: dict[str, int] = {}
        for when, by, tool in reversed(taken):
            if today - 7 * 86_400 < when < today:
                week[tool] = week.get(tool, 0) + 1
            if by == visitor[i]:
                mine[tool] = mine.get(tool, 0) + 1
            if when < today - 7 * 86_400 and len(mine) > 200:
                break
        known = sorted({*week, *mine})
        if at[i] < 3 * 86_400 or not known or rng.random() < 1 / 30:
            tool = f"t{rng.integers(0, 25):02d}" if at[i] < 3 * 86_400 else f"new{i}"
        else:
            worth = [
                weights[0] * np.log1p(week.get(t, 0)) + weights[1] * np.log1p(mine.get(t, 0)) for t in known
            ]
            tool = known[int(np.argmax(np.array(worth) + rng.gumbel(size=len(known))))]
        taken.append((int(at[i]) + 60, int(visitor[i]), tool))
    stamp = lambda seconds: (
        np.datetime64("2024-01-01T00:00:00", "us") + np.array(seconds) * np.timedelta64(1, "s")
    )
    came = pl.DataFrame({"visit": [f"v{i:05d}" for i in range(n)], "visitor": visitor, "at": stamp(at)})
    picked = pl.DataFrame({"visit": [f"v{i:05d}" for i in range(n)], "visitor": visitor,
                           "tool": [t for _, _, t in taken], "at": stamp([w for w, _, _ in taken])})  # fmt: skip
    return came, picked


def lake(weights: tuple[float, float] = (0.8, 1.5), n: int = 4_000, seed: int = 0) -> Lake:
    "The same as events of a lake."
    told = dict(zip(("visits", "picks"), rows(weights, n, seed), strict=True))
    return Lake(
        {
            name: frame.with_columns(pl.col("at").dt.replace_time_zone("UTC")).with_columns(known_at="at", event_id="visit")
            for name, frame in told.items()
        },
        (),
    )  # fmt: skip


def make(folder: Path) -> Settings:
    "A team's folder with its raw files, and a root of its own in it."
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    for name, frame in zip(("visits", "picks"), rows(), strict=True):
        frame.write_parquet(folder / "raw" / f"{name}.parquet")
    text = "[system]\nraw = raw\ntracking_uri = off\n[problems]\ntools = tools_world:problem\n"
    (folder / "settings.ini").write_text(text)
    return load_settings(root=folder / "root", home=folder)
