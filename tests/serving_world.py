"A small world for the tests of package, registry and service: a twentieth of the wholesaler's customers."

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import polars as pl

from mlsys_nb.cases.churn import problem
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.dataset import Dataset, Lake
from mlsys_nb.problem.dataset import build_dataset as rows_of
from mlsys_nb.release.package import Package, build
from mlsys_nb.release.registry import promote, register
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
JUNE = datetime(2010, 6, 1, tzinfo=UTC)
MOMENTS = [datetime(2010, 1, 10, tzinfo=UTC) + timedelta(days=14 * i) for i in range(8)]


@cache
def lines() -> pl.DataFrame:
    raw = pl.read_parquet(load_settings(home=HOME).raw / "online_retail_year1_lines.parquet").with_row_index(
        "event_id"
    )
    few = raw.filter(pl.col("customer_id") % 20 == 0)
    return few.select(
        "event_id", "invoice", "stock_code", "country",
        customer_id=pl.col("customer_id").cast(pl.Int64),
        invoice_ts=pl.col("invoice_ts").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        cancelled=pl.col("invoice").str.starts_with("C"),
        amount=(pl.col("price").cast(pl.Float64) * 100).round().cast(pl.Int64) * pl.col("quantity"),
    ).with_columns(known_at=pl.col("invoice_ts"))  # fmt: skip


@cache
def lake() -> Lake:
    return Lake({"lines": lines()}, ())


@cache
def dataset() -> Dataset:
    return rows_of(problem, lake(), MOMENTS, JUNE)


@cache
def package(family: str = "linear", **params: float) -> Package:
    fitted = fit(family, dataset().frame, problem.features.names, rule=problem.rule, params=dict(params))
    return build(fitted, dataset())


def make(
    root: Path, families: tuple[str, ...] = ("linear", "boosting"), champion: int | None = 1
) -> Settings:
    "A system with an online store, registered versions and a champion, on 1 June 2010."
    here = load_settings(root=root, home=HOME)
    write_json(here.clock_file, {"now": JUNE.isoformat()})
    with open_online(here.online) as store:
        store.keep(problem.features)
        store.write(problem.features.events[0], lines())
    control = open_control(here)
    for family in families:
        register(control, here, package(family), "test", JUNE)
    if champion is not None:
        promote(control, problem.name, champion, expected_epoch=0, at=JUNE, actor="test", reason="test")
    return here
