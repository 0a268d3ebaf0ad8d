"From the lake to the serving store: each batch once, corrections and withdrawals included, the same bits as history."

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from shutil import rmtree

import polars as pl
import pytest

from mlsys_nb import features as f
from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.parity import bits
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_sync import StoreMismatch, open_online, sync
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import load_settings

HOME = Path(__file__).resolve().parents[1]
columns = (Column("shop", "int"), Column("price", "decimal"), Column("at", "time"))
till = Events("till", keys={"shop": "int"}, time="at", columns={"price": "int"})
features = FeatureSet(
    "till",
    (
        f.count(till, "3d").named("n"),
        f.sum(till, "price", "lifetime").named("spent"),
        f.mean(till, "price", "3d").named("mean"),
        f.last(till, "price").named("last"),
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
    with open_online(tmp_path / "store") as store:
        store.keep(features)
        reader = store.reader(features)
        for day in sorted(draw.sample(range(1, 13), 5)) + [12]:
            now = instant(f"2010-04-{day:02}")
            ingest(shop, source, now)
            taken = snapshot(shop, "till")
            sync(store, shop, till, taken)
            assert sync(store, shop, till, taken) == 0
            assert set(store.batches()) == {f"till/{b}" for b in taken.batches}
            moments = [now + timedelta(hours=draw.randint(-300, 30)) for _ in range(12)]
            asked = pl.DataFrame([{"shop": s, "moment": m} for m in moments for s in (1, 2, 3, 4)])
            asked = asked.cast({"moment": pl.Datetime("us", "UTC")})
            truth = as_of(features, asked, {"till": read(shop, taken)})
            for row in truth.to_dicts():
                mine = reader.read_many([row], row["moment"]).frame.select(features.names).to_dicts()[0]
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
    with open_online(tmp_path / "store") as store:
        store.keep(features)
        sync(store, shop, till, taken)
        assert (
            sync(store, shop, till, before) == 0
        )  # an older snapshot does not know the later batches, and need not
        second.write_text(
            f"sale,shop,price,at,retracted\n99,1,5.00,{instant('2010-04-01').isoformat()},False\n"
        )
        rmtree(shop.lake / "till" / second.name)
        ingest(shop, source, now)
        with pytest.raises(StoreMismatch, match="2010-04-02.csv of 'till' has other content in the lake now"):
            sync(store, shop, till, snapshot(shop, "till", now))
        second.unlink()
        rmtree(shop.lake / "till")
        ingest(shop, source, now)
        with pytest.raises(StoreMismatch, match="2010-04-02.csv of 'till' is not in the lake any more"):
            sync(store, shop, till, snapshot(shop, "till", now))
        assert sync(store, shop, till, before) == 0
    rmtree(tmp_path / "store")
    with open_online(tmp_path / "store") as store:
        store.keep(features)
        today = snapshot(shop, "till", now)
        sync(store, shop, till, today)
        asked = pl.DataFrame({"shop": [1, 2, 3], "moment": [now] * 3}).cast(
            {"moment": pl.Datetime("us", "UTC")}
        )
        for row in as_of(features, asked, {"till": read(shop, today)}).to_dicts():
            mine = store.reader(features).read(row, now)
            assert {k: bits(v) for k, v in mine.items()} == {k: bits(row[k]) for k in mine}


def test_a_feature_added_live_is_filled_from_the_lake(tmp_path):
    "Columns and keys that came to the declaration later: `sync` fills them, and readers of before go on meanwhile."
    shop = replace(load_settings(root=tmp_path / "root", home=HOME), raw=tmp_path / "raw")
    contract = Contract("till", (Column("sale", "int"), *columns), id="sale")
    source = FilesSource("till", contract, "till", known=lambda p: instant(p.stem))
    deliver(shop, 3)
    narrow = Events("till", keys={"shop": "int"}, time="at", columns={})
    wide = Events("till", keys={"shop": "int", "price": "int"}, time="at", columns={})
    counted = FeatureSet("counted", (f.count(narrow, "lifetime").named("n"),))
    prices = FeatureSet("prices", (f.count(wide, "lifetime", by=("price",)).named("n"),))
    now = instant("2010-04-12")
    ingest(shop, source, instant("2010-04-06"))
    with open_online(tmp_path / "store") as store:
        store.keep(counted)
        sync(store, shop, narrow, snapshot(shop, "till", instant("2010-04-06")))
        old = store.reader(counted)
        store.keep(prices)
        with pytest.raises(StoreMismatch, match="by price"):
            store.reader(prices)
        ingest(shop, source, now)
        taken = snapshot(shop, "till", now)
        assert sync(store, shop, wide, taken) > 0 and sync(store, shop, wide, taken) == 0
        rows = read(shop, taken)
        for one, reader in ((counted, old), (prices, store.reader(prices))):
            asked = rows.select(list(one.keys)).drop_nulls().unique().with_columns(moment=pl.lit(now))
            for row in as_of(one, asked, {"till": rows}).to_dicts():
                assert reader.read(row, now) == {"n": row["n"]}
