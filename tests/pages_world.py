"A site that lives now: visitors with text ids open pages; will one of them not come back within three days?"

import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import snapshot
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.features import (
    Events,
    FeatureSet,
    count,
    count_distinct,
    last,
    sum,
    time_since_last,
)
from mlsys_nb.features.store_sync import open_online, sync
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.criterion import Criterion
from mlsys_nb.problem.dataset import build_dataset, load_events
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.population import Everyone
from mlsys_nb.release.package import build
from mlsys_nb.release.registry import promote, register
from mlsys_nb.system.clock import SystemClock, instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.settings import Settings, load_settings

DAY, HERE = timedelta(days=1), Path(__file__).resolve().parent
TODAY = instant(os.environ.setdefault("TEST_PAGES_DAY", f"{SystemClock().now():%Y-%m-%d}"))
START = TODAY - 40 * DAY

contract = Contract(
    "views",
    (
        Column("view", "text", meaning="Id of the event"),
        Column("visitor", "text"),
        Column("page", "text", pattern="^/"),
        Column("at", "time"),
        Column("ms", "int", minimum=0, maximum=3_600_000, nullable=True),
        Column("paid", "decimal", unit="EUR", nullable=True),
    ),
    id="view",
    claims="at",
)


def with_tool(views: pl.DataFrame) -> pl.DataFrame:
    "The first part of a page is the tool that it belongs to."
    return views.with_columns(tool=pl.col("page").str.split("/").list.get(1, null_on_oob=True))


source = FilesSource("views", contract, "views", derive=with_tool)
views = Events(
    "views",
    keys={"visitor": "text"},
    time="at",
    columns={"page": "text", "tool": "text", "ms": "int", "paid": "int"},
)
features = FeatureSet(
    "pages",
    (
        time_since_last(views).named("days_since"),
        count(views, "7d").named("views_7d"),
        count(views, "lifetime").named("views"),
        count_distinct(views, "tool", "30d").named("tools_30d"),
        sum(views, "ms", "lifetime").named("ms"),
        last(views, "page").named("last_page"),
    ),
)
problem = Problem(
    name="pages",
    title="Visitors about to leave",
    question="Will a visitor not come back within three days?",
    sources=(source,),
    features=features,
    population=Everyone(DAY, START + 10 * DAY, Criterion("views_7d", ">=", 1)),
    target=Happens(count(views, "3d").named("views_next_3d"), "==", 0, "no view within three days"),
    horizon=3 * DAY,
    rule=Rule.feature("days_since", "likelier", "the longer ago, the likelier"),
    costs=Costs("EUR", false_positive=1.0, false_negative=3.0, action="write", otherwise="none"),
    lookback=20 * DAY,
)


def history(n: int = 80, seed: int = 0) -> pl.DataFrame:
    "What happened before today."
    rng = np.random.default_rng(seed)
    often = rng.gamma(2, 0.4, n)
    rows = []
    for visitor in range(n):
        for day in np.flatnonzero(rng.random(40) < 1 - np.exp(-often[visitor])):
            at = START + int(day) * DAY + timedelta(seconds=int(rng.integers(86_000)))
            page = f"/tool{rng.integers(8)}/{'héllo' if rng.random() < 0.2 else 'use'}"
            rows.append(
                (f"h{len(rows)}", f"v-{visitor}", page, at.isoformat(), int(rng.integers(60_000)), None)
            )
    return pl.DataFrame(rows, schema=[c.name for c in contract.columns], orient="row")


def settings_of(folder: Path, **more: str) -> Settings:
    "A team's folder with its raw files, and a root in it."
    (folder / "raw" / "views").mkdir(parents=True, exist_ok=True)
    told = "".join(f"{k} = {v}\n" for k, v in more.items())
    text = f"[system]\nraw = raw\ntracking_uri = off\n{told}[problems]\npages = pages_world:problem\n"
    (folder / "settings.ini").write_text(text)
    return load_settings(root=folder / "root", home=folder)


def make(folder: Path, **more: str) -> Settings:
    "A system with its history, and a champion that serves."
    here = settings_of(folder, **more)
    history().write_csv(here.raw / "views" / "before.csv")
    now = SystemClock().now()
    ingest(here, source, now)
    with open_online(here.online_url) as store:
        store.keep(features)
        sync(store, here, views, snapshot(here, "views"))
    moments = [START + i * DAY for i in range(12, 34)]
    data = build_dataset(problem, load_events(problem, here, now), moments, now)
    fitted = fit("linear", data.frame, features.names, rule=problem.rule, params={})
    control = open_control(here)
    register(control, here, build(fitted, data), "test", now)
    promote(control, problem.name, 1, expected_epoch=0, at=now, actor="test", reason="test")
    return here
