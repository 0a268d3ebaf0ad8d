"From the lake to the serving store: each batch once, corrections and withdrawals included, the same bits as history."

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from shutil import rmtree

import polars as pl
import pytest

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.ingest import ingest, read, snapshot
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.features.feature_set import Events, FeatureSet, count, last, mean, total
from mlsys_nb.features.history import as_of
from mlsys_nb.features.online import StoreMismatch, open_online, sync
from mlsys_nb.features.parity import bits
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import load_settings

HOME = Path(__file__).resolve().parents[1]
columns = (Column("shop", "int"), Column("price", "decimal"), Column("at", "time"))
till = Events("till", keys={"shop": "int"}, time="at", columns={"price": "int"})
features = FeatureSet(
    "till",
    (
        count(till, "3d").named("n"),
        total(till, "price", "lifetime").named("spent"),
        mean(till, "price", "3d").named("mean"),
        last(till, "price").named("last"),
    ),
)


def deliver(shop, seed):
    "Twelve daily files; sales are corrected (even to another shop), withdrawn, and known late."
    draw = Random(seed)
    (shop.raw / "till").mkdir(parents=True)
    for day in range(1, 13):
        lines = {}
        for _ in range(draw.randint(1, 12)):
            sale, gone = draw.randint(1, 40), draw.random() < 0.2
            price = "" if gone else f"{draw.randint(1, 9)}.{draw.randint(10, 99)}"
            at = instant("2010-04-01") + timedelta(days=draw.randint(0, day - 1), hours=draw.randint(0, 23))
            lines[sale] = f"{sale},{draw.randint(1, 3)},{price},{at.strftime('%Y-%m-%dT%H:%M:%S')},{gone}"
        text = "\n".join(["sale,shop,price,at,retracted", *lines.values()]) + "\n"
        (shop.raw / "till" / f"2010-04-{day:02}.csv").write_text(text)


@pytest.mark.parametrize("seed", range(6))
def test_batch_by_batch_is_what_history_says(tmp_path, seed):
    shop = replace(load_settings(root=tmp_path / "root", home=HOME), raw=tmp_path / "raw")
    source = FilesSource(
        "till",
        Contract("till", (Column("sale", "int"), *columns), id="sale"),
        "till",
        known=lambda p: instant(p.stem),
    )
    deliver(shop, seed)
    draw = Random(seed)
    with open_online(tmp_path / "store", features) as store:
        for day in sorted(draw.sample(range(1, 13), 5)) + [12]:
            now = instant(f"2010-04-{day:02}")
            ingest(shop, source, now)
            taken = snapshot(shop, "till")
            sync(store, shop, taken)
            assert sync(store, shop, taken) == 0
            assert set(store.batches()) == {f"till/{b}" for b in taken.batches}
            moments = [now + timedelta(hours=draw.randint(-300, 30)) for _ in range(12)]
            asked = pl.DataFrame([{"shop": s, "moment": m} for m in moments for s in (1, 2, 3, 4)])
            asked = asked.cast({"moment": pl.Datetime("us", "UTC")})
            truth = as_of(features, asked, {"till": read(shop, taken)})
            for row in truth.to_dicts():
                mine = store.read(row, row["moment"])
                assert {k: bits(v) for k, v in mine.items()} == {k: bits(row[k]) for k in mine}


def test_a_store_refuses_what_the_lake_does_not_hold(tmp_path):
    "A batch that was taken out of the lake, or replaced: the store says so, and is right again when it is rebuilt."
    shop = replace(load_settings(root=tmp_path / "root", home=HOME), raw=tmp_path / "raw")
    contract = Contract("till", (Column("sale", "int"), *columns), id="sale")
    source = FilesSource("till", contract, "till", known=lambda p: instant(p.stem))
    deliver(shop, 0)
    now, second = instant("2010-04-03"), shop.raw / "till" / "2010-04-02.csv"
    ingest(shop, source, now)
    before, taken = snapshot(shop, "till", instant("2010-04-01")), snapshot(shop, "till", now)
    with open_online(tmp_path / "store", features) as store:
        sync(store, shop, taken)
        assert (
            sync(store, shop, before) == 0
        )  # an older snapshot does not know the later batches, and need not
        second.write_text(
            f"sale,shop,price,at,retracted\n99,1,5.00,{instant('2010-04-01').isoformat()},False\n"
        )
        rmtree(shop.lake / "till" / second.name)
        ingest(shop, source, now)
        with pytest.raises(StoreMismatch, match="2010-04-02.csv of 'till' has other content in the lake now"):
            sync(store, shop, snapshot(shop, "till", now))
        second.unlink()
        rmtree(shop.lake / "till")
        ingest(shop, source, now)
        with pytest.raises(StoreMismatch, match="2010-04-02.csv of 'till' is not in the lake any more"):
            sync(store, shop, snapshot(shop, "till", now))
        assert sync(store, shop, before) == 0
    rmtree(tmp_path / "store")
    with open_online(tmp_path / "store", features) as store:
        today = snapshot(shop, "till", now)
        sync(store, shop, today)
        asked = pl.DataFrame({"shop": [1, 2, 3], "moment": [now] * 3}).cast(
            {"moment": pl.Datetime("us", "UTC")}
        )
        for row in as_of(features, asked, {"till": read(shop, today)}).to_dicts():
            mine = store.read(row, now)
            assert {k: bits(v) for k, v in mine.items()} == {k: bits(row[k]) for k in mine}
