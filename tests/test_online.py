"""The serving store: arrival order, crashes, concurrency, chunks, live features, damage.

The always-run part delivers 15 random orders; `make long` delivers 1,000.
"""

import multiprocessing
import os
import random
import time
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest
from conftest import FULL
from feature_sets import features, orders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet, store_sync, store_updates
from mlsys_nb.features import store_reader as reader_room
from mlsys_nb.features.generated_test_cases import World, world
from mlsys_nb.features.key_value_engine import StoreError
from mlsys_nb.features.parity import bits, by_history, by_reference, read_all
from mlsys_nb.features.parity import frame_of as whole_frame
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_cache import Recent
from mlsys_nb.features.store_sync import StoreMismatch, compact, online_store, open_online
from mlsys_nb.system.clock import instant

ORDERS = int(os.environ.get("TEST_MLSYS_ORDERS", "15"))
mine = ("customer",)
HORIZON = instant("2010-01-01T06:00:00Z")


@pytest.fixture
def short(monkeypatch):
    "Chunks and newest parts of a few rows, so that small worlds cross their boundaries all the time."
    monkeypatch.setattr(store_updates, "CHUNK", 7)
    monkeypatch.setattr(store_updates, "TAIL", 3)


def frame_of(events, rows):
    "Rows that say nothing of a column have nothing in it."
    return whole_frame(events, [{**dict.fromkeys(events.columns), **row} for row in rows])


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


def as_bits(answers):
    return [{k: bits(v) for k, v in a.items()} for a in answers]


def timelines(store):
    "Everything but the index, whose buckets depend on how often it grew, and the chunks, which depend on arrival."
    return {bytes(k): bytes(v) for k, v in store.engine.scan(b"") if k[:1] in b"ec"}


def deliver_in_disorder(store, rows, draw, crashing=False):
    "Everything at least once, some twice, in handfuls of any size and order, crashes in between."
    kinds = {e.name: e for e in features.events}
    messages = [(name, row) for name, r in rows.items() for row in r]
    messages += draw.sample(messages, len(messages) // 4)
    draw.shuffle(messages)
    target = online_store(Flaky(store.engine, draw)) if crashing else store
    while messages:
        name = messages[-1][0]
        taken = [m for m in messages[-draw.choice((1, 2, 7, 30, 60)) :] if m[0] == name]
        try:
            target.write(kinds[name], frame_of(kinds[name], [row for _, row in taken]))
        except Crash:
            continue  # nothing was acknowledged: deliver again
        for m in taken:
            del messages[next(i for i in range(len(messages) - 1, -1, -1) if messages[i] is m)]


def filled(path, invented, sets=(features,)):
    store = open_online(path)
    for s in sets:
        store.keep(s)
    for e in features.events:
        store.write(e, frame_of(e, invented.rows[e.name]))
    return store


def test_any_order_of_arrival_ends_in_the_same_store(tmp_path):
    invented = world(features, 300, seed=9)
    rows = {name: r[:60] for name, r in invented.rows.items()}
    invented = World(rows, invented.moments.head(25))
    with filled(tmp_path / "truth", invented) as store:
        right, served = timelines(store), read_all(store, features, invented.moments)
    assert as_bits(served) == as_bits(by_reference(features, invented))
    for n in range(ORDERS):
        with open_online(tmp_path / f"order{n}") as store:
            store.keep(features)
            deliver_in_disorder(store, rows, random.Random(n), crashing=True)
            assert timelines(store) == right, f"order {n}"


@pytest.mark.parametrize("seed", range(4 if FULL else 2))
def test_across_chunks_in_any_order(tmp_path, short, seed):
    "Late, corrected, withdrawn and repeated events, over chunks of seven rows: the bits of the definition."
    invented = world(features, 240, seed=100 + seed)
    truth = as_bits(by_reference(features, invented))
    with filled(tmp_path / "at once", invented) as store:
        assert any(True for _ in store.engine.scan(b"h")), "no timeline had chunks"
        assert as_bits(read_all(store, features, invented.moments)) == truth
    with open_online(tmp_path / "bit by bit") as store:
        store.keep(features)
        deliver_in_disorder(store, invented.rows, random.Random(seed))
        assert as_bits(read_all(store, features, invented.moments)) == truth


# Features that change on a live system ------------------------------------------------------------------------------


def test_fault_1_moving_features_changes_no_answer(tmp_path):
    "Readers of the same features in another order, and of some of them, read one store side by side."
    invented = world(features, 150, seed=3)
    truth = as_bits(by_reference(features, invented))
    moved = FeatureSet("moved", tuple(reversed(features.features)))
    few = FeatureSet("few", features.features[5:9])
    with filled(tmp_path / "s", invented, (moved, features)) as store:
        store.keep(few)
        for one in (features, moved, few):
            found = as_bits(read_all(store, one, invented.moments))
            assert found == [{k: row[k] for k in one.names} for row in truth], one.name


def test_fault_9_a_key_added_later_is_filled_and_corrections_go_on(tmp_path):
    small = Events("orders", {"customer": "int"}, "ts", {"pence": "int"})
    large = Events("orders", {"customer": "int", "country": "text"}, "ts", {"pence": "int", "shop": "text"})
    before = FeatureSet("before", (f.sum(small, "pence", "lifetime").named("spent"),))
    after = FeatureSet(
        "after",
        (
            f.sum(large, "pence", "lifetime", by=("country",)).named("country_spent"),
            f.last(large, "shop", "lifetime", by=mine).named("shop"),
        ),
    )
    now = instant("2010-03-01")
    rows = [
        {"event_id": i, "customer": i % 3, "country": "ab"[i % 2], "pence": 100 + i, "shop": f"s{i}"}
        for i in range(40)
    ]
    frame = pl.DataFrame(rows).with_columns(ts=pl.lit(now), known_at=pl.lit(now))
    later = now + timedelta(days=1)
    with open_online(tmp_path / "s") as store:
        store.keep(before)
        store.write(small, frame.drop("country", "shop"))
        old = store.reader(before)
        store.keep(after)
        with pytest.raises(StoreMismatch, match=r"\['shop', 'by country'\]; run `mlsys ingest`|lacks"):
            store.reader(after)
        fix = frame.head(5).with_columns(pence=pl.lit(0, pl.Int64), known_at=pl.lit(now + timedelta(hours=1)))
        assert store.write(large, fix) == 5  # a correction before the store is filled
        everything = pl.concat([frame, fix])
        store_sync.refill(store, large, everything, {})
        more = fix.with_columns(
            pence=pl.lit(7, pl.Int64), known_at=pl.lit(now + timedelta(hours=2)), country=pl.lit("c")
        )
        assert store.write(large, more) == 5  # ... and one after, which moves events to another country
        everything = pl.concat([everything, more])
        for one, reader in ((before, old), (after, store.reader(after))):
            who = [{"customer": c, "country": k} for c in (0, 1, 2) for k in ("a", "b", "c")]
            asked = pl.DataFrame(who).select(list(one.keys))
            asked = asked.with_columns(moment=pl.lit(later))
            for row in as_of(one, asked, {"orders": everything}).to_dicts():
                assert as_bits([reader.read(row, later)]) == as_bits([{n: row[n] for n in one.names}])


def test_two_problems_share_the_events(tmp_path):
    "Declarations of two problems over the same source: one copy, each with its own columns."
    first = Events("orders", {"customer": "int"}, "ts", {"pence": "int"})
    second = Events("orders", {"customer": "int"}, "ts", {"gift": "bool"})
    one = FeatureSet("one", (f.sum(first, "pence", "lifetime").named("spent"),))
    two = FeatureSet("two", (f.count(second, "lifetime", where=second["gift"]).named("gifts"),))
    now = instant("2010-03-01")
    frame = pl.DataFrame({"event_id": [1, 2], "customer": [7, 7], "pence": [5, 6], "gift": [True, False]})
    frame = frame.with_columns(ts=pl.lit(now))
    with open_online(tmp_path / "s") as store:
        store.keep(one)
        store.keep(two)
        assert store.write(first, frame) == 2 and store.write(second, frame) == 0
        assert store.reader(one).read({"customer": 7}, now) == {"spent": 11}
        assert store.reader(two).read({"customer": 7}, now) == {"gifts": 1}
        assert store.write(first, frame.drop("gift").with_columns(event_id=pl.col("event_id") + 2)) == 2
        assert store.reader(one).read({"customer": 7}, now) == {"spent": 22}
        with pytest.raises(StoreMismatch, match="'gift'"):
            store.reader(two)  # some rows came without what it needs
        changed = Events("orders", {"customer": "int"}, "ts", {"pence": "float"})
        with pytest.raises(StoreMismatch, match="pence is int, declared float"):
            store.write(changed, frame.with_columns(pl.col("pence").cast(float)))


# Long timelines -----------------------------------------------------------------------------------------------------

busy = FeatureSet(
    "busy",
    (
        f.count(orders, "30d", by=mine),
        f.sum(orders, "pence", "7d", by=mine),
        f.max(orders, "pence", "30d", by=mine),
        f.last(orders, "shop", "30d", by=mine),
        f.count_distinct(orders, "shop", "7d", by=mine),
        f.count(orders, "20d", where=(orders["shop"] > "s3") & ~(orders["pence"] > 500), by=mine).named(
            "some"
        ),
        f.mode(orders, "shop", "30d", by=mine),
    ),
)


def busy_rows(n, seed):
    draw = random.Random(seed)
    start, rows = instant("2010-01-01"), []
    for i in range(n):
        at = start + timedelta(minutes=7 * i, microseconds=draw.randint(0, 10**8))
        late = timedelta(hours=draw.choice((0, 0, 0, 0, 30)))
        rows.append(
            {"event_id": f"b{i:06}", "customer": 1, "product": "p", "country": "x", "ts": at}
            | {"pence": draw.randint(-9, 999), "weight": None, "gift": None, "due": None}
            | {"shop": f"s{int(draw.expovariate(0.1))}", "known_at": at + late}
            | {"retracted_at": at + timedelta(days=9) if draw.random() < 0.02 else None}
        )
    return rows


def truth_of(one, rows, moments):
    asked = pl.DataFrame({"customer": [1] * len(moments), "moment": moments})
    asked = asked.cast({"moment": pl.Datetime("us", "UTC")})
    return as_bits(as_of(one, asked, {"orders": frame_of(orders, rows)}).select(one.names).to_dicts())


def test_a_long_timeline_grows_event_by_event(tmp_path, monkeypatch):
    monkeypatch.setattr(store_updates, "CHUNK", 300)
    monkeypatch.setattr(store_updates, "TAIL", 60)
    rows = busy_rows(2600, 1)
    with open_online(tmp_path / "s") as store:
        store.keep(busy)
        store.write(orders, frame_of(orders, rows[:2000]))
        reader, at, draw = store.reader(busy), 2000, random.Random(5)
        while at < len(rows):
            size = draw.choice((1, 1, 3, 20))
            store.write(orders, frame_of(orders, rows[at : at + size]))
            at += size
            if draw.random() < 0.15:
                span = (rows[min(at, len(rows)) - 1]["ts"] - rows[0]["ts"]).total_seconds()
                moments = [rows[0]["ts"] + timedelta(seconds=draw.random() * span * 1.1) for _ in range(4)]
                found = as_bits([reader.read({"customer": 1}, m) for m in moments])
                assert found == truth_of(busy, rows[:at], moments)


# Compaction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(8192, 1024), (50, 10)])
def test_compaction_changes_no_later_answer(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(store_updates, "CHUNK", sizes[0])
    monkeypatch.setattr(store_updates, "TAIL", sizes[1])
    rows = busy_rows(9000, 2)[::10]
    with open_online(tmp_path / "s") as store:
        store.keep(busy)
        store.write(orders, frame_of(orders, rows))
        reader, horizon = store.reader(busy), rows[800]["ts"]
        moments = [horizon + timedelta(hours=7 * i) for i in range(60)]
        before = as_bits([reader.read({"customer": 1}, m) for m in moments])
        assert before == truth_of(busy, rows, moments)
        size = sum(len(v) for k, v in store.engine.scan(b"") if k[:1] in b"eh")
        assert compact(store, [busy], horizon) == 1
        assert sum(len(v) for k, v in store.engine.scan(b"") if k[:1] in b"eh") < size * 0.85
        assert as_bits([reader.read({"customer": 1}, m) for m in moments]) == before
        assert store.write(orders, frame_of(orders, rows[:50])) == 0, "what was dropped stays dropped"
        assert store.write(orders, frame_of(orders, rows)) == 0
        assert as_bits([reader.read({"customer": 1}, m) for m in moments]) == before
        with pytest.raises(ValueError, match="compacted"):
            reader.read({"customer": 1}, horizon - timedelta(microseconds=1))
        lifetime = FeatureSet("life", (f.count(orders, "lifetime", by=mine),))
        with pytest.raises(StoreMismatch, match="a longer window"):
            store.reader(lifetime)
        assert compact(store, [busy, lifetime], horizon + timedelta(days=9)) == 0, (
            "a lifetime feature keeps everything"
        )
        store.keep(lifetime)
        store_sync.refill(store, orders, frame_of(orders, rows), {})
        found = as_bits([store.reader(lifetime).read({"customer": 1}, m) for m in moments])
        assert found == truth_of(lifetime, rows, moments), "a longer window is restored from the lake"


def test_fault_4_an_emptied_entity_keeps_its_horizon_and_is_known(tmp_path):
    short = FeatureSet("short", (f.count(orders, "1d", by=mine).named("n"),))
    rows = busy_rows(5, 3)
    with open_online(tmp_path / "s") as store:
        store.keep(short)
        store.write(orders, frame_of(orders, rows))
        horizon = rows[-1]["ts"] + timedelta(days=30)
        assert compact(store, [short], horizon) == 1
        reader = store.reader(short)
        assert reader.read({"customer": 1}, horizon) == {"n": 0}
        with pytest.raises(ValueError, match="moments before"):
            reader.read({"customer": 1}, rows[-1]["ts"])
        again = [{**rows[0], "event_id": "late", "known_at": horizon + timedelta(days=1)}]
        assert store.write(orders, frame_of(orders, again)) == 1
        with pytest.raises(ValueError, match="moments before"):
            reader.read({"customer": 1}, rows[-1]["ts"])


def test_worlds_1689_and_4526_a_refill_after_a_compaction_forgets_nothing(tmp_path):
    "A kind that was compacted is not asked about its past, and what it dropped is no news, also when it was filled anew."
    short = FeatureSet("short", (f.count(orders, "1d", by=mine).named("n"),))
    longer = FeatureSet("longer", (f.count(orders, "7d", by=mine).named("n"),))
    told = [{**r, "known_at": r["ts"], "retracted_at": None} for r in busy_rows(5, 3)]
    horizon = told[-1]["ts"] + timedelta(days=30)
    moved = {**told[0], "known_at": told[0]["ts"] + timedelta(hours=1), "ts": horizon - timedelta(hours=2)}
    with open_online(tmp_path / "s") as store:
        store.keep(short)
        store.write(orders, frame_of(orders, told))
        compact(store, [short], horizon)
        store.keep(longer)
        store_sync.refill(store, orders, frame_of(orders, [*told, moved]), {})
        reader = store.reader(longer)
        assert reader.read({"customer": 1}, horizon) == {"n": 1}
        assert store.write(orders, frame_of(orders, told)) == 0, "an original told again after its correction"
        assert reader.read({"customer": 1}, horizon) == {"n": 1}
        for nobody in (1, 2):
            with pytest.raises(ValueError, match="moments before"):
                reader.read({"customer": nobody}, told[0]["ts"], strangers=True)


def test_what_is_withdrawn_does_not_come_back_to_life_after_compaction(tmp_path):
    week = FeatureSet("week", (f.sum(orders, "pence", "30d", by=mine).named("spent"),))
    rows = busy_rows(3, 4)
    told = [{**r, "known_at": r["ts"], "retracted_at": None, "pence": 10} for r in rows]
    gone = {**told[0], "retracted_at": told[0]["ts"] + timedelta(days=1)}
    moved = {
        **told[1],
        "known_at": told[1]["ts"] + timedelta(days=1),
        "ts": told[1]["ts"] - timedelta(days=90),
    }
    horizon = rows[-1]["ts"] + timedelta(days=5)
    with open_online(tmp_path / "s") as store:
        store.keep(week)
        store.write(orders, frame_of(orders, [*told, gone, moved]))
        reader = store.reader(week)
        assert reader.read({"customer": 1}, horizon) == {"spent": 10}
        compact(store, [week], horizon)
        for again in (told, [gone], [moved], [told[1]]):
            store.write(orders, frame_of(orders, again))
            assert reader.read({"customer": 1}, horizon) == {"spent": 10}


# Hypothesis: everything at once -------------------------------------------------------------------------------------

stamps = st.integers(-4, 14).map(lambda h: instant("2010-01-05") + timedelta(hours=12 * h))
row = st.fixed_dictionaries(
    {
        "event_id": st.integers(0, 7).map("e{}".format),
        "customer": st.sampled_from([1, 2, None]),
        "product": st.sampled_from(["p", None]),
        "country": st.sampled_from(["x", "y"]),
        "ts": stamps,
        "pence": st.one_of(st.none(), st.integers(-5, 5), st.just(2**53)),
        "weight": st.one_of(st.none(), st.floats()),
        "shop": st.one_of(st.none(), st.text(max_size=2)),
        "gift": st.one_of(st.none(), st.booleans()),
        "tags": st.sampled_from([None, "[]", '["a"]', '["a", "é", "a"]']),
        "due": st.none(),
        "pounds": st.none(),
        "floor": st.none(),
        "known_at": stamps,
        "retracted_at": st.one_of(st.none(), stamps),
    }
)
pool = (
    f.count(orders, "12h", by=mine).named("a"),
    f.sum(orders, "pence", "1d", by=mine).named("b"),
    f.max(orders, "weight", "2d", where=~(orders["shop"] < "b"), by=mine).named("c"),
    f.first(orders, "shop", "1d", by=mine).named("d"),
    f.last(orders, "shop", "2d", by=mine).named("e"),
    f.count_distinct(orders, "pence", "1d", by=("customer", "product")).named("f"),
    f.mean(orders, "pence", "2d", by=("country",)).named("g"),
    f.variance(orders, "pence", "2d", ddof=0, where=orders["gift"] | (orders["pence"] <= 2), by=mine).named(
        "h"
    ),
)


@settings(
    max_examples=int(os.environ.get("TEST_MLSYS_EXAMPLES", "50")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(row, max_size=14), st.data())
def test_what_hypothesis_finds(tmp_path_factory, rows, data):
    "Any delivery in any pieces, sets that come and go, a compaction somewhere: the store is history, to the bit."
    kept = {}
    for r in rows:  # one content a version, as the contract of the lake has it
        first = kept.setdefault((r["event_id"], r["known_at"]), r)
        kept[(r["event_id"], r["known_at"])] = {
            **first,
            "retracted_at": first["retracted_at"] or r["retracted_at"],
        }
    told = list(kept.values())
    sets = [
        FeatureSet(f"s{i}", tuple(data.draw(st.permutations(pool)))[: data.draw(st.integers(1, 8))])
        for i in range(2)
    ]
    pieces = data.draw(st.permutations([*told, *told[: len(told) // 2]])) if told else []
    horizon = data.draw(stamps)
    with pytest.MonkeyPatch.context() as m, open_online(tmp_path_factory.mktemp("s")) as store:
        m.setattr(store_updates, "CHUNK", 3)
        m.setattr(store_updates, "TAIL", 2)
        store.keep(sets[0])
        while pieces:
            n = data.draw(st.integers(1, 6))
            store.write(orders, frame_of(orders, pieces[:n]))
            pieces = pieces[n:]
        store.keep(sets[1])
        store_sync.refill(store, orders, frame_of(orders, told), {})
        moments = [horizon + timedelta(hours=h) for h in (0, 1, 12, 60, 200)]
        if data.draw(st.booleans()):
            compact(store, sets, horizon)
            store.write(orders, frame_of(orders, told))
        questions = [
            {"customer": c, "product": "p", "country": "x", "moment": t} for c in (1, 2) for t in moments
        ]
        for one in sets:
            asked = pl.DataFrame(questions, schema_overrides={"moment": pl.Datetime("us", "UTC")})
            invented = World({"orders": told}, asked.select(*one.keys, "moment"))
            truth = as_bits(by_history(one, invented))
            assert truth == as_bits(by_reference(one, invented))
            assert as_bits(read_all(store, one, invented.moments)) == truth


# Records kept open --------------------------------------------------------------------------------------------------


def in_order(rows, late=timedelta(0)):
    "As a source tells that never withdraws, and tells everything so much later."
    return [{**r, "retracted_at": None, "known_at": r["ts"] + late} for r in rows]


@pytest.mark.parametrize("seed", range(6))
def test_records_kept_open_answer_as_if_opened_anew(tmp_path, seed):
    "Reads and writes in any order, moments back and forth, records that are late, withdrawn, in chunks or compacted."
    draw = random.Random(seed)
    rows = [r for c in (1, 2, 3) for r in busy_rows(300, 10 * seed + c)[:: draw.choice((3, 7, 40))]]
    rows = [{**r, "customer": 1 + i % 3, "event_id": f"e{i}"} for i, r in enumerate(rows)]
    draw.shuffle(rows)
    if kind := seed % 3:
        rows = in_order(rows, timedelta(hours=kind - 1))
    sets = [FeatureSet(f"s{i}", tuple(draw.sample(pool, 5))) for i in range(2)]
    with pytest.MonkeyPatch.context() as m, open_online(tmp_path / "s") as store:
        m.setattr(store_updates, "CHUNK", 8192 if kind else 8)
        m.setattr(store_updates, "TAIL", 1024 if kind else 4)
        store = replace(store, recent=Recent(most=draw.choice((20_000, 1 << 20))))
        for one in sets:
            store.keep(one)
        readers, reused = [store.reader(one) for one in sets], 0
        while rows or draw.random() < 0.97:
            if draw.random() < 0.2:
                told, rows = rows[: (n := draw.choice((1, 5, 40)))], rows[n:]
                store.write(orders, frame_of(orders, told)) if told else compact(store, sets, HORIZON)
            which, moment = draw.randrange(2), HORIZON + timedelta(minutes=draw.randint(0, 2000))
            told = {"customer": draw.choice((1, 1, 2, 3, 9)), "product": "p", "country": "x"}
            entity = {k: told[k] for k in sets[which].keys}
            anew = online_store(store.engine).reader(sets[which])
            found, truth = (as_bits([r.read(entity, moment) or {}]) for r in (readers[which], anew))
            assert found == truth
            reused += sum(one.view.again for one in store.recent._kept.values())
        assert reused or not kind, "otherwise nothing was kept open, and nothing is shown"


def test_many_records_kept_open_take_no_place_of_a_reader(tmp_path):
    "A store has room for so many readers; a record that is kept open is none of them."
    rows = [{**r, "customer": i, "event_id": f"e{i}"} for i, r in enumerate(busy_rows(100, 1)[:60])]
    with open_online(tmp_path / "s") as store:
        store.keep(busy)
        store.write(orders, frame_of(orders, rows))
        reader = store.reader(busy)
        assert all(reader.read({"customer": i}, rows[-1]["ts"]) for i in range(60))
        assert len(store.recent._kept) > 30, "otherwise nothing is shown"
        assert store.engine.env.info()["num_readers"] <= 2


def test_a_record_kept_open_is_still_somebody_elses(tmp_path, monkeypatch):
    with open_online(tmp_path / "s") as store:
        both = FeatureSet("both", (pool[5],))
        store.keep(both)
        store.write(orders, frame_of(orders, in_order(busy_rows(3, 1))))
        reader, asked = store.reader(both), {"customer": 1, "product": "p"}
        code, real = [], reader_room.entity_code
        monkeypatch.setattr(reader_room, "entity_code", lambda codes: code.append(real(codes)) or code[0])
        later = instant("2010-01-01T12:00:00Z")
        assert reader.read(asked, later) == reader.read(asked, later)
        with pytest.raises(StoreMismatch, match="two entities share one code"):
            reader.read({**asked, "product": "q"}, later)


# Other processes, damage, mistakes ----------------------------------------------------------------------------------

pair = FeatureSet(
    "pair",
    (
        f.count(orders, "30d", by=mine).named("n"),
        f.count_distinct(orders, "shop", "lifetime", by=mine).named("shops"),
    ),
)


def _reader(path, seen, stop):
    with open_online(path) as store:
        reader = store.reader(pair)
        while not stop.is_set():
            row = reader.read({"customer": 1}, instant("2010-12-01")) or {"n": 0, "shops": 0}
            seen.append((row["n"], row["shops"]))


def test_other_processes_read_while_one_writes(tmp_path):
    "A reader sees whole commits only: every write adds one event and one new shop."
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, open_online(tmp_path / "s") as store:
        store.keep(pair)
        seen, stop = manager.list(), context.Event()
        reader = context.Process(target=_reader, args=(tmp_path / "s", seen, stop))
        reader.start()
        base = busy_rows(1, 3)[0]
        for i in range(120):
            at = instant("2010-11-25") + timedelta(minutes=i)
            told = {
                **base,
                "event_id": f"r{i}",
                "ts": at,
                "known_at": at,
                "retracted_at": None,
                "shop": f"{i}",
            }
            assert store.write(orders, frame_of(orders, [told])) == 1
        while not seen or seen[-1] != (120, 120):
            assert reader.is_alive()
            time.sleep(0.01)
        stop.set()
        reader.join(60)
        assert all(a == b for a, b in seen) and list(seen) == sorted(seen)


def test_a_flipped_bit_is_never_served(tmp_path):
    "Any bit of any value, flipped as a disk would: the value is refused with the way back, or was not needed."
    rows = busy_rows(300, 5)
    with open_online(tmp_path / "s") as store:
        store.keep(busy)
        store.write(orders, frame_of(orders, rows))
        moment = rows[-1]["ts"]
        right = store.reader(busy).read({"customer": 1}, moment)
        values = [bytes(v) for k, v in store.engine.scan(b"e") if k[:1] == b"e" and len(v) > 3000]
    whole, draw, refused = (tmp_path / "s" / "data.mdb").read_bytes(), random.Random(1), 0
    places = [(whole.index(v), len(v) + 4) for v in values]  # the value and its checksum
    for _ in range(60):
        flipped = bytearray(whole)
        begin, size = draw.choice(places)
        flipped[begin + draw.randrange(size)] ^= 1 << draw.randrange(8)
        (tmp_path / "s" / "data.mdb").write_bytes(flipped)
        with open_online(tmp_path / "s") as store:
            try:
                assert store.reader(busy).read({"customer": 1}, moment) == right
            except StoreError as e:
                assert "mlsys ingest" in str(e)
                refused += 1
    assert refused > 15, "a third of the values is what was read"


def test_another_format_is_refused_with_the_way_out(tmp_path):
    with open_online(tmp_path / "s") as store:
        store.engine.change(lambda get, put: put(b"f", b"9"))
    with pytest.raises(StoreMismatch, match="got format 9; remove the store .* `mlsys ingest`"):
        open_online(tmp_path / "s")


def test_fault_8_one_version_has_one_content_entity_included(tmp_path):
    "A repeated version with another amount, another entity or another time is refused by history and by the store."
    rows = busy_rows(3, 4)
    frame = frame_of(orders, rows)
    with open_online(tmp_path / "s") as store:
        store.keep(busy)
        assert store.write(orders, frame) == 3
        for change in (
            {"pence": pl.lit(7, pl.Int64)},
            {"customer": pl.lit(2, pl.Int64)},
            {"country": pl.lit("z")},
            {"ts": pl.col("ts") - pl.duration(days=1)},
        ):
            wrong = frame.with_columns(**change)
            with pytest.raises(ValueError, match="one content"):
                store.write(orders, wrong)
            asked = pl.DataFrame({"customer": [1], "moment": [rows[0]["ts"]]})
            with pytest.raises(ValueError, match="told once|one content"):
                as_of(
                    busy,
                    asked.cast({"moment": pl.Datetime("us", "UTC")}),
                    {"orders": pl.concat([frame, wrong])},
                )


def test_fault_8_ids_are_whole_numbers_or_text(tmp_path):
    "Floats tie-break as 9.0 < 10.0 in one place and as texts in another: they are refused in both."
    frame = frame_of(orders, busy_rows(3, 4)).with_columns(event_id=pl.Series([8.0, 9.0, 10.0]))
    with open_online(tmp_path / "s") as store:
        store.keep(busy)
        with pytest.raises(ValueError, match="int or text"):
            store.write(orders, frame)
        asked = pl.DataFrame({"customer": [1], "moment": [instant("2010-02-01")]})
        with pytest.raises(ValueError, match="int or text"):
            as_of(busy, asked.cast({"moment": pl.Datetime("us", "UTC")}), {"orders": frame})
        store.write(orders, frame.with_columns(event_id=pl.Series([8, 9, 10])))
        with pytest.raises(StoreMismatch, match="are int, got text"):
            store.write(orders, frame.with_columns(event_id=pl.Series(["8", "9", "10"])))


def test_a_removed_store_is_noticed_by_a_running_reader(tmp_path):
    with filled(
        tmp_path / "s",
        World({e.name: [] for e in features.events} | {"orders": busy_rows(5, 1)}, pl.DataFrame()),
    ) as store:
        reader = store.reader(busy)
        assert reader.read({"customer": 1}, instant("2010-01-02"))
        (tmp_path / "s" / "data.mdb").unlink()
        with pytest.raises(StoreError, match="was removed while it was open"):
            reader.read({"customer": 1}, instant("2010-01-02"))
    with pytest.raises(StoreError, match=r"is missing; .* `mlsys ingest`"):
        open_online(tmp_path / "s")


def test_what_a_user_can_get_wrong(tmp_path):
    frame = frame_of(orders, busy_rows(3, 4))
    with open_online(tmp_path / "s") as store:
        with pytest.raises(StoreMismatch, match="lacks"):
            store.reader(busy)
        store.keep(busy)
        with pytest.raises(ValueError, match="need an event_id"):
            store.write(orders, frame.drop("event_id"))
        with pytest.raises(ValueError, match="missing"):
            store.write(orders, frame.drop("shop"))
        with pytest.raises(ValueError, match="declared int"):
            store.write(orders, frame.with_columns(pence=pl.lit("12")))
        reader = store.reader(busy)
        with pytest.raises(ValueError, match="64 bits"):
            reader.read({"customer": True}, instant("2010-01-01"))
        with pytest.raises(ValueError, match="is asked by"):
            reader.read({"product": "p"}, instant("2010-01-01"))
        assert reader.read({"customer": None}, instant("2010-01-01")) is None
        assert store.kinds()["orders"].ids == "", "nothing that was refused left a trace"
