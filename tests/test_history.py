"""History where it was slow, hungry or silent: cliffs, partitions, ids and corrections."""

import random
import time
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from feature_sets import features as everything

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.generated import world
from mlsys_nb.features.history import as_of
from mlsys_nb.features.online import open_online
from mlsys_nb.features.parity import frame_of
from mlsys_nb.features.partition import repeated_ids
from mlsys_nb.system.clock import instant

orders = Events("orders", keys={"customer": "int"}, time="at", columns={"pence": "int", "shop": "text"})
MINUTE = timedelta(minutes=1)
noon = instant("2010-05-01T12:00")


def one_long_life(n, late):
    "Events of one customer, one a minute, and moments all over."
    rng = np.random.default_rng(1)
    at = pl.Series([noon]).dt.epoch("us")[0] + np.arange(n) * 60_000_000
    frame = pl.DataFrame({"customer": 1, "at": at, "pence": rng.integers(0, 50, n), "shop": rng.integers(0, 3000, n).astype(str), "event_id": np.arange(n)})  # fmt: skip
    if late:
        frame = frame.with_columns(known_at=pl.col("at") + rng.integers(0, 10**12, n))
    asked = pl.DataFrame({"customer": 1, "moment": rng.choice(at, 20_000)})
    stamps = [pl.col(c).cast(pl.Datetime("us", "UTC")) for c in ("at", "known_at") if c in frame.columns]
    return frame.with_columns(stamps), asked.with_columns(pl.col("moment").cast(pl.Datetime("us", "UTC")))


@pytest.mark.parametrize("late", [False, True], ids=["orderly", "late"])
@pytest.mark.parametrize(
    "features",
    [(f.mode(orders, "shop", "lifetime"),), (f.mode(orders, "pence", "30d"),), f.recent(orders, "pence", 5), (f.recent(orders, "pence", 40)[39],)],
    ids=["mode", "mode_30d", "recent_5", "recent_40"],
)  # fmt: skip
def test_fault_19_no_pair_of_moment_and_event_is_listed(features, late):
    "100,000 events x 20,000 moments are a billion pairs: minutes, where the index takes a second."
    frame, asked = one_long_life(100_000, late)
    begin = time.perf_counter()
    told = as_of(FeatureSet("s", features), asked, {"orders": frame})
    assert time.perf_counter() - begin < 15
    assert told[features[-1].name].null_count() < told.height


@pytest.mark.parametrize("seed", range(40))
def test_mode_and_recent_against_counting(seed):
    "Small worlds, late and retracted events, windows: every moment counted by hand."
    draw = random.Random(seed)
    rows = []
    for i in range(draw.randint(0, 60)):
        at = noon + draw.randint(0, 30) * MINUTE
        known = at + draw.choice((0, 0, draw.randint(-5, 20))) * MINUTE
        gone = known + draw.randint(0, 20) * MINUTE if draw.random() < 0.2 else None
        rows.append({"event_id": i, "customer": draw.randint(1, 2), "at": at, "known_at": known, "retracted_at": gone, "pence": draw.choice((None, 1, 2, 3, 3, 9)), "shop": None})  # fmt: skip
    schema = {"event_id": pl.Int64, "customer": pl.Int64, "at": pl.Datetime("us", "UTC"), "known_at": pl.Datetime("us", "UTC"), "retracted_at": pl.Datetime("us", "UTC"), "pence": pl.Int64, "shop": pl.String}  # fmt: skip
    frame = pl.DataFrame(rows, schema=schema)
    asked = pl.DataFrame({"customer": [draw.randint(1, 3) for _ in range(50)], "moment": [noon + draw.randint(-2, 60) * MINUTE for _ in range(50)]})  # fmt: skip
    for window, length in (("10min", 10 * MINUTE), ("lifetime", timedelta(days=999))):
        latest = f.recent(orders, "pence", 4, window)
        told = as_of(
            FeatureSet("s", (f.mode(orders, "pence", window).named("mode"), *latest)),
            asked,
            {"orders": frame},
        )
        for row in told.to_dicts():
            seen = [
                r
                for r in rows
                if r["customer"] == row["customer"] and max(r["at"], r["known_at"]) <= row["moment"]
            ]
            seen = [r for r in seen if r["retracted_at"] is None or r["retracted_at"] > row["moment"]]
            seen = sorted(
                (r for r in seen if r["at"] > row["moment"] - length), key=lambda r: (r["at"], r["event_id"])
            )
            values = [r["pence"] for r in seen if r["pence"] is not None]
            assert row["mode"] == max(sorted(set(values)), key=values.count, default=None)
            back = [*values[::-1], None, None, None, None]
            assert [row[x.name] for x in latest] == back[:4]


@pytest.mark.parametrize("n", [2, 7, 100])
@pytest.mark.parametrize("lazy", [False, True])
def test_partitions_give_the_same_bits(n, lazy):
    "Corrections that move an event to another entity, late and retracted events, several keys, unknown keys."
    made = world(everything, 300, 3)
    frames = {e.name: frame_of(e, made.rows[e.name]) for e in everything.events}
    whole = as_of(everything, made.moments, frames)
    given = {k: v.lazy() for k, v in frames.items()} if lazy else frames
    assert as_of(everything, made.moments, given, partitions=n).equals(whole)


def test_partitions_without_ids_and_without_events():
    frame, asked = one_long_life(300, late=True)
    features = FeatureSet("s", (f.last(orders, "shop"), f.count(orders, "30d")))
    frame = frame.drop("event_id")
    for events in (frame, frame.head(0)):
        assert as_of(features, asked, {"orders": events}, partitions=3).equals(
            as_of(features, asked, {"orders": events})
        )
    with pytest.raises(ValueError, match="partitions is a number from 1"):
        as_of(features, asked, {"orders": frame}, partitions=0)


def test_fault_19_a_scan_is_read_once_and_only_what_is_asked(tmp_path, monkeypatch):
    "Sixteen partitions once read sixteen times, and every column."
    frame, asked = one_long_life(1000, late=False)
    read = []
    source = pl.io.plugins.register_io_source(
        lambda columns, predicate, n_rows, size: iter(
            [read.append(columns) or frame.select(columns or frame.columns)]
        ),
        schema={**frame.schema},
    )
    features = FeatureSet("s", (f.sum(orders, "pence", "30d"), f.count(orders, "1h")))
    as_of(features, asked, {"orders": source}, partitions=16)
    assert len(read) == 1 and set(read[0]) == {"customer", "at", "pence", "event_id"}


def test_repeated_ids_of_numbers_and_texts():
    for ids in ([1, 2, 1, 3, 3, 3], ["b", "a", "b", "c", "x", "x"]):
        assert repeated_ids(pl.Series(ids)).to_list() == pl.Series(ids).is_duplicated().to_list()
    assert (
        not repeated_ids(pl.Series([3, 1, 2])).any()
        and repeated_ids(pl.Series([], dtype=pl.Int64)).len() == 0
    )


def told(**columns):
    rows = {
        "event_id": [1, 2],
        "customer": [1, 1],
        "at": [noon, noon],
        "pence": [1, 2],
        "shop": ["a", "b"],
        **columns,
    }
    return pl.DataFrame(rows)


ask = pl.DataFrame({"customer": [1], "moment": [noon]})
last = FeatureSet("s", (f.last(orders, "pence").named("last"), f.sum(orders, "pence", "1d").named("sum")))


def answer(frame):
    return as_of(last, ask, {"orders": frame}).row(0)[2:]


@pytest.mark.parametrize("ids", [[9.0, 10.0], [noon, noon], [True, False], [["a"], ["b"]]], ids=str)
def test_fault_8_ids_that_are_neither_int_nor_text_are_refused(ids):
    with pytest.raises(ValueError, match="event_id .* is int or text"):
        answer(told(event_id=ids))


def test_ties_are_broken_by_id_numbers_by_size_texts_by_code_point():
    assert answer(told(event_id=[9, 10])) == (2, 3)
    assert answer(told(event_id=["9", "10"])) == (1, 3)
    assert answer(told(event_id=pl.Series(["é", "z"]).cast(pl.Categorical))) == (1, 3)
    assert answer(told(event_id=pl.Series([10, 9], dtype=pl.UInt8))) == (1, 3)
    with pytest.raises(ValueError, match=r"below 2\*\*63"):
        answer(told(event_id=pl.Series([1, 2**63], dtype=pl.UInt64)))


def test_fault_8_a_version_told_for_two_entities_is_refused():
    with pytest.raises(ValueError, match=r"belongs to one entity .* event_id 7 .*\['customer'\]"):
        answer(told(event_id=[7, 7], customer=[1, 2], pence=[1, 1], shop=["a", "a"]))


def test_fault_8_corrections_of_one_instant_are_named():
    with pytest.raises(
        ValueError, match=r"has one content .* event_id 7 as known at 2010-05-01 12:00.*\['pence'\]"
    ):
        answer(told(event_id=[7, 7]))
    later = [noon - MINUTE, noon]
    assert answer(told(event_id=[7, 7], known_at=later)) == (2, 2)
    assert answer(told(event_id=[7, 7], pence=[2, 2])) == (2, 2), "the same content twice is one event"


@pytest.mark.parametrize("late", [False, True])
def test_one_entitys_huge_sum_stops_nobody(late, tmp_path):
    "Fault 12: 1,100 amounts of 2**53 outgrow int64; that sum is unknown, every other answer stands, online alike."
    pay = Events("pay", keys={"id": "int"}, time="at", columns={"amount": "int"})
    start, n = instant("2026-01-01"), 1100
    at = [start + timedelta(hours=i) for i in range(n)]
    huge = pl.DataFrame({"event_id": range(n), "id": 1, "at": at, "amount": [2**53] * n})
    small = pl.DataFrame({"event_id": range(n, n + 3), "id": 2, "at": at[:3], "amount": [5, -7, 2**53]})
    frame = pl.concat([huge, small]).with_columns(known_at=pl.col("at") + timedelta(hours=5 if late else 0))
    if late:  # one event comes before those that happened earlier
        frame = frame.with_columns(
            known_at=pl.when(pl.col("event_id") == 9).then(pl.col("at")).otherwise("known_at")
        )
    words = FeatureSet("s", [f.sum(pay, "amount", "lifetime"), f.sum(pay, "amount", "1000h"), f.mean(pay, "amount", "lifetime"),
                             f.count(pay, "lifetime")])  # fmt: skip
    moments = [at[-1] + timedelta(days=1), at[1], at[-1] - timedelta(hours=80)]
    asked = pl.DataFrame({"id": [1, 2] * 3, "moment": [m for m in moments for _ in range(2)]})
    told = as_of(words, asked, {"pay": frame})
    assert told[words.names[0]].to_list()[:2] == [None, 2**53 - 2]
    assert told[words.names[1]].to_list()[0] == 2**53 * sum(
        moments[0] - timedelta(hours=1000) < t for t in at
    )
    assert told[words.names[2]].to_list()[0] is None and told[words.names[3]].to_list()[0] == n
    with open_online(tmp_path) as store:
        store.keep(words)
        store.write(pay, frame)
        reader = store.reader(words)
        for row in told.iter_rows(named=True):
            assert reader.read({"id": row["id"]}, row["moment"]) == {k: row[k] for k in words.names}
