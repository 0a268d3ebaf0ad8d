"A generated shop whose clients have difficult names, asked about by two problems: each client, and each order by its text."

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.features import Events, FeatureSet, count, last, request, time_since_last
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.per_event_population import Each
from mlsys_nb.problem.population import Everyone
from mlsys_nb.system.settings import Settings, load_settings

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
NOW = START + 50 * DAY
ADA = 'zoé "o\'neil" <7731>'
NAMES = (ADA, "12", "123", "1", "bob")
contract = Contract(
    "orders",
    (
        Column("Order", "text", as_="order"),
        Column("Client", "text", as_="client"),
        Column("at", "time", zone="UTC"),
        Column("note", "text"),
        Column("agent", "category"),
        Column("late", "bool"),
        Column("pence", "int", minimum=1),
    ),
)
columns = {"note": "text", "agent": "text", "late": "bool", "pence": "int"}
orders = Events("orders", keys={"client": "text"}, time="at", columns={"order": "text", **columns})
singles = Events("orders", keys={"order": "text"}, time="at", columns={"client": "text", **columns})
sources = (ReplaySource("orders", contract, path="orders.parquet", time="at"),)
costs = Costs("EUR", false_positive=1.0, false_negative=3.0, action="call", otherwise="none")
buyers = Problem(
    name="buyers",
    title="Clients who stay away",
    question="Will a client not order within a week?",
    sources=sources,
    features=FeatureSet("buyers", (time_since_last(orders).named("days_since"), count(orders, "21d").named("orders_21d"),
                                   last(orders, "agent").named("agent_before"), last(orders, "pence").named("pence_before"))),
    population=Everyone(3 * DAY, START + 9 * DAY),
    target=Happens(count(orders, "7d").named("orders_next_7d"), "==", 0, "no order within a week"),
    horizon=7 * DAY,
    rule=Rule.feature("days_since", "likelier", "the longer ago, the likelier"),
    costs=costs,
)  # fmt: skip
notes = Problem(
    name="notes",
    title="Orders that come late",
    question="Will this order be late?",
    sources=sources,
    features=FeatureSet(
        "notes", (request("note", "text"), request("agent", "text"), request("pence", "int"))
    ),
    population=Each(singles, every="1w", start=START),
    target=Happens.by(singles, "late", True, "it came late"),
    rule=Rule.feature("pence", "likelier", "the larger, the likelier"),
    costs=costs,
)


def rows(n: int = 60, days: int = 55, seed: int = 0) -> pl.DataFrame:
    "Orders; those of Ada say what nobody else says, and some rows of hers are bad."
    rng = np.random.default_rng(seed)
    clients = [*NAMES, *(f"client-{i:03d}" for i in range(n - len(NAMES)))]
    who = np.concatenate([np.arange(n).repeat(3), rng.integers(0, n, 900)])
    at = np.sort(rng.integers(0, days * 86_400, len(who)))
    found = []
    for i, (w, second) in enumerate(zip(who, at, strict=True)):
        mine = clients[w] == ADA
        found.append({
            "Order": f"ZQORDER-{i}" if mine else f"order-{i}", "Client": clients[w], "at": START + timedelta(seconds=int(second)),
            "note": f"ZQNOTE-{i} for zoé & 'co'" if mine else ["soon", "as ever", "12", "leave it"][i % 4],
            "agent": ["12", "kim", "lee"][i % 3], "late": bool(rng.uniform() < 0.3),
            "pence": 0 if i % 40 == 0 else 773100000000 + i if mine else int(rng.integers(1, 9_000)),
        })  # fmt: skip
    for row in [r for r in found if r["Client"] == ADA][:1]:
        row["pence"] = 0  # it is set aside
    return pl.DataFrame(found).with_columns(pl.col("at").dt.replace_time_zone(None))


def make(folder: Path) -> Settings:
    "A team's folder with its raw file, and a root of its own beside it."
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    rows().write_parquet(folder / "raw" / "orders.parquet")
    text = "[system]\nraw = raw\ntracking_uri = off\n[problems]\nbuyers = forget_world:buyers\nnotes = forget_world:notes\n"
    (folder / "settings.ini").write_text(text)
    return load_settings(root=folder / "root", home=folder)
