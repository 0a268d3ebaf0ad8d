"""The serving store: arrival order, crashes, concurrency, long timelines, compaction.

The always-run part delivers 60 random orders; the acceptance figure is `TEST_MLSYS_ORDERS=1000 pytest tests/test_online.py`.
"""

import multiprocessing
import os
import random
from datetime import timedelta

import polars as pl
import pytest
from feature_sets import features, orders

from mlsys_nb.features.feature_set import FeatureSet, count, distinct, largest, last, top, total
from mlsys_nb.features.generated import World, world
from mlsys_nb.features.history import as_of
from mlsys_nb.features.online import StoreMismatch, online_store, open_online
from mlsys_nb.features.parity import bits, by_reference, by_store, frame_of, read_all
from mlsys_nb.system.clock import instant

ORDERS = int(os.environ.get("TEST_MLSYS_ORDERS", "60"))


class Crash(RuntimeError):
    "Stands for the power cut."


class Flaky:
    "An engine that now and then dies in the middle of a change."

    def __init__(self, engine, draw):
        self.engine, self.draw = engine, draw

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def change(self, function):
        left = self.draw.choice((None, None, 0, 1, 2, 5, 9))

        def until_crash(get, put):
            n = [left]

            def counted(key, value):
                if n[0] == 0:
                    raise Crash
                n[0] = None if n[0] is None else n[0] - 1
                put(key, value)

            return function(get, counted)

        return self.engine.change(until_crash)


def content(store):
    return list(store.engine.scan(b""))


def test_any_order_of_arrival_ends_in_the_same_store(tmp_path):
    invented = world(features, 300, seed=9)
    rows = {name: r[:60] for name, r in invented.rows.items()}
    invented = World(rows, invented.moments.head(25))
    events = {e.name: e for e in features.events}
    with open_online(tmp_path / "truth", features) as store:
        for name, r in rows.items():
            store.write(name, frame_of(events[name], r))
        right, served = content(store), read_all(store, invented.moments)
    assert [{k: bits(v) for k, v in a.items()} for a in served] == [
        {k: bits(v) for k, v in a.items()} for a in by_reference(features, invented)
    ]
    for n in range(ORDERS):
        draw = random.Random(n)
        messages = [(name, row) for name, r in rows.items() for row in r]
        messages += draw.sample(messages, len(messages) // 4)  # delivered twice
        draw.shuffle(messages)
        with open_online(tmp_path / f"order{n}", features) as store:
            flaky = online_store(Flaky(store.engine, draw), features)
            while messages:
                size = draw.choice((1, 2, 7, 30, 60))
                name = messages[-1][0]
                taken = [m for m in messages[-size:] if m[0] == name]
                try:
                    flaky.write(name, frame_of(events[name], [row for _, row in taken]))
                except Crash:
                    continue  # nothing was acknowledged: deliver again
                for m in taken:
                    del messages[next(i for i in range(len(messages) - 1, -1, -1) if messages[i] is m)]
            assert content(store) == right, f"order {n}"
        draw.shuffle(rows["orders"])
    again = by_store(features, World(rows, invented.moments))
    assert [{k: bits(v) for k, v in a.items()} for a in again] == [
        {k: bits(v) for k, v in a.items()} for a in served
    ]


busy = FeatureSet(
    "busy",
    (
        count(orders, "30d", by=("customer",)),
        total(orders, "pence", "7d", by=("customer",)),
        largest(orders, "pence", "30d", by=("customer",)),
        last(orders, "shop", "30d", by=("customer",)),
        distinct(orders, "shop", "7d", by=("customer",)),
        distinct(orders, "shop", "lifetime", by=("customer",)),
        top(orders, "shop", "30d", by=("customer",)),
    ),
)


def busy_rows(n, seed):
    draw = random.Random(seed)
    start, rows = instant("2010-01-01"), []
    for i in range(n):
        at = start + timedelta(minutes=7 * i, microseconds=draw.randint(0, 10**8))
        late = timedelta(hours=draw.choice((0, 0, 0, 0, 30)))
        rows.append(
            {
                "event_id": f"b{i:06}",
                "customer": 1,
                "product": "p",
                "country": "x",
                "ts": at,
                "pence": draw.randint(-9, 999),
            }
            | {"weight": None, "shop": f"s{int(draw.expovariate(0.1))}", "gift": None, "due": None}
            | {
                "known_at": at + late,
                "retracted_at": at + timedelta(days=9) if draw.random() < 0.02 else None,
            }
        )
    return rows


def test_a_long_timeline_grows_event_by_event(tmp_path):
    "Blocks, value index, tails and merges of a long timeline answer as history does, at any moment."
    rows = busy_rows(2600, 1)
    frame = frame_of(orders, rows)
    with open_online(tmp_path / "s", busy) as store:
        store.write("orders", frame.head(2000))
        at = 2000
        draw = random.Random(5)
        while at < len(rows):
            size = draw.choice((1, 1, 3, 20))
            store.write("orders", frame[at : at + size])
            at += size
            if draw.random() < 0.25:
                known = frame.head(at)
                span = (rows[min(at, len(rows)) - 1]["ts"] - rows[0]["ts"]).total_seconds()
                for _ in range(4):
                    moment = rows[0]["ts"] + timedelta(seconds=draw.random() * span * 1.1)
                    asked = pl.DataFrame({"customer": [1], "moment": [moment]})
                    truth = as_of(
                        busy, asked.cast({"moment": pl.Datetime("us", "UTC")}), {"orders": known}
                    ).to_dicts()[0]
                    mine = store.read({"customer": 1}, moment)
                    assert {k: bits(truth[k]) for k in mine} == {k: bits(v) for k, v in mine.items()}


def test_compaction_changes_no_later_answer(tmp_path):
    rows = busy_rows(900, 2)
    with open_online(tmp_path / "s", busy) as store:
        store.write("orders", frame_of(orders, rows))
        horizon = rows[600]["ts"]
        moments = [horizon + timedelta(hours=7 * i) for i in range(60)]
        before = [store.read({"customer": 1}, m) for m in moments]
        assert store.compact(horizon) == 1
        assert [store.read({"customer": 1}, m) for m in moments] == before
        assert store.write("orders", frame_of(orders, rows[:50])) == 0
        assert [store.read({"customer": 1}, m) for m in moments] == before
        with pytest.raises(ValueError, match="compacted"):
            store.read({"customer": 1}, horizon - timedelta(microseconds=1))


def _reader(path, seen, stop):
    with open_online(path, busy) as store:
        while not stop.is_set():
            row = store.read({"customer": 1}, instant("2010-12-01"))
            seen.append((row["orders_count_30d"], row["orders_distinct_shop_lifetime"]))


def test_other_processes_read_while_one_writes(tmp_path):
    "A reader sees whole commits only: every write adds one event and one new shop."
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, open_online(tmp_path / "s", busy) as store:
        seen, stop = manager.list(), context.Event()
        reader = context.Process(target=_reader, args=(tmp_path / "s", seen, stop))
        reader.start()
        base = busy_rows(1, 3)[0]
        for i in range(120):
            at = instant("2010-11-25") + timedelta(minutes=i)
            row = {
                **base,
                "event_id": f"r{i}",
                "ts": at,
                "known_at": at,
                "retracted_at": None,
                "shop": f"shop {i}",
            }
            assert store.write("orders", frame_of(orders, [row])) == 1
        while not seen or seen[-1] != (120, 120):
            assert reader.is_alive()
        stop.set()
        reader.join(20)
        assert all(a == b for a, b in seen) and list(seen) == sorted(seen)


def test_what_a_user_can_get_wrong(tmp_path):
    frame = frame_of(orders, busy_rows(3, 4))
    with open_online(tmp_path / "s", busy) as store:
        with pytest.raises(KeyError, match="reads"):
            store.write("order", frame)
        with pytest.raises(ValueError, match="need an event_id"):
            store.write("orders", frame.drop("event_id"))
        with pytest.raises(ValueError, match="missing"):
            store.write("orders", frame.drop("shop"))
        with pytest.raises(ValueError, match="declared int"):
            store.write("orders", frame.with_columns(pence=pl.lit("12")))
        with pytest.raises(ValueError, match="64 bits"):
            store.read({"customer": True}, instant("2010-01-01"))
        assert store.write("orders", frame) == 3
        with pytest.raises(ValueError, match="again with another"):
            store.write("orders", frame.with_columns(pence=pl.lit(7)))
        assert content(store) and not store.knows({"customer": None})
        with pytest.raises(StoreMismatch, match="build it again"):
            open_online(tmp_path / "s", FeatureSet("x", busy.features[:1]))
