"""A generated world of shops whose customers behave alike, or differently: the truth is known, and so what tenants should get.

In `north` who has bought lately buys again, in `south` who has not; in `middle` nobody's past says anything. `alike` gives all of them the
same customers. Some shops are hard: three customers, one outcome only, a measure that is missing, a name that is a path.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.features import Events, FeatureSet, count, last, time_since_last
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.training_options import Learning
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.population import Everyone
from mlsys_nb.system.settings import Settings, load_settings

START, WEEK = datetime(2025, 1, 2, tzinfo=UTC), timedelta(days=7)
FILE, WEEKS = "orders.parquet", 26
END = START + WEEKS * WEEK
SHOPS = {"north": 1.8, "south": -1.8, "middle": 0.0}  # How much a recent order says
HARD = {"tiny": 3, "always": 120, "blind": 120, "../../etc/passwd": 120, "Großhandel ☃": 120}

orders = Events("orders", keys={"shop": "text", "customer": "int"}, time="at", columns={"basket": "float"})
contract = Contract(
    "orders",
    (
        Column("shop", "text"),
        Column("customer", "int"),
        Column("at", "time", zone="UTC"),
        Column("basket", "float", nullable=True),
    ),
)
problem = Problem(
    name="orders",
    title="Customers who order again",
    question="Will a customer order within a week?",
    sources=(ReplaySource("orders", contract, path=FILE, time="at", every="7d"),),
    features=FeatureSet(
        "orders",
        (
            count(orders, "7d").named("orders_7d"),
            count(orders, "28d").named("orders_28d"),
            time_since_last(orders).named("days_since"),
            last(orders, "basket").named("basket"),
        ),
    ),
    population=Everyone(WEEK, START + 4 * WEEK),
    target=Happens(count(orders, "7d"), ">=", 1, "an order within a week"),
    horizon=WEEK,
    rule=Rule.feature("days_since", "unlikelier", "the longer ago, the less likely"),
    costs=Costs("EUR", false_positive=1.0, false_negative=3.0, action="write"),
    learning=Learning(families=("linear",), curve=False),
    per="shop",
)


def written(shops: dict[str, float], people: int = 150, hard: bool = False, seed: int = 0) -> pl.DataFrame:
    "Orders of some shops, week by week."
    rng, parts = np.random.default_rng(seed), []
    sizes = dict.fromkeys(shops, people) | (HARD if hard else {})
    for i, (shop, n) in enumerate(sizes.items()):
        bought = np.ones(n, dtype=bool)
        for week in range(WEEKS):
            at = START + week * WEEK
            who = np.flatnonzero(bought)
            hours = rng.integers(0, 7 * 24, len(who))
            baskets = [None if shop == "blind" else float(b) for b in rng.integers(5, 90, len(who))]
            parts.append(
                pl.DataFrame(
                    {
                        "shop": [shop] * len(who),
                        "customer": (who + 1000 * i).tolist(),
                        "at": [at + timedelta(hours=int(h)) for h in hours],
                        "basket": baskets,
                    },
                    schema={
                        "shop": pl.String,
                        "customer": pl.Int64,
                        "at": pl.Datetime("us", "UTC"),
                        "basket": pl.Float64,
                    },
                )
            )
            says = shops.get(shop, 0.0)
            p = 1 / (1 + np.exp(-(-0.3 + says * (bought - 0.5) * 2)))
            bought = (rng.random(n) < p) | (shop == "always")
    return pl.concat(parts).sort("at", "shop", "customer")


def folder(place: Path, frame: pl.DataFrame) -> Path:
    "A folder of one's own with the declaration and its data: `mlsys` works in it."
    place.mkdir(parents=True, exist_ok=True)
    here = load_settings(root=place, home=place)
    here.raw.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(here.raw / FILE)
    (place / "tenants_world.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    (place / "settings.ini").write_text("[problems]\norders = tenants_world:problem\n", encoding="utf-8")
    return place


def settings_of(place: Path, **more: object) -> Settings:
    "The settings of such a folder, for what is done in this process."
    return replace(load_settings(root=place, home=place), **more)  # type: ignore[arg-type]
