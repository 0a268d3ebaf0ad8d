"""History where it was slow, hungry or silent: cliffs, partitions, ids and corrections."""

import random
import time
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from conftest import FULL
from feature_sets import features as everything

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.generated_test_cases import world
from mlsys_nb.features.history_partition import repeated_ids
from mlsys_nb.features.parity import frame_of
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_integrity import flaws
from mlsys_nb.features.store_sync import open_online
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
    begin = time.process_time()
    told = as_of(FeatureSet("s", features), asked, {"orders": frame})
    assert time.process_time() - begin < 15
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


@pytest.mark.parametrize("n", [2, 7, 100 if FULL else 30])
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


def test_a_decision_about_an_event_does_not_see_it():
    "Every event is a decision at the moment it became known; three of one customer share an instant, one came late."
    at = [noon, noon, noon, noon + MINUTE, noon + 2 * MINUTE]
    known = [noon, noon, noon, noon + 2 * MINUTE, noon + 2 * MINUTE]
    frame = pl.DataFrame({"event_id": range(5), "customer": 1, "at": at, "known_at": known, "pence": [1, 2, 4, 8, 16], "shop": "a"})  # fmt: skip
    sums = f.sum(orders, "pence", "lifetime").named("ever"), f.sum(orders, "pence", "2min").named("lately")
    moments = frame.select("customer", moment=pl.max_horizontal("at", "known_at"))
    strict = FeatureSet("before", sums, strict=True)
    told = as_of(strict, moments, {"orders": frame})
    assert told["ever"].to_list() == [0, 0, 0, 7, 7], (
        "seven, not fifteen: 8 was not known yet, 16 is the event itself"
    )
    assert told["lately"].to_list() == [0, 0, 0, 7, 7], "a window of two minutes begins two minutes before"
    later = as_of(
        strict, moments.with_columns(pl.col("moment") + timedelta(microseconds=1)), {"orders": frame}
    )
    assert later["lately"].to_list() == [7, 7, 7, 24, 24]


@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_withdrawal_at_the_moment_is_not_known_before_it(cancelled, tmp_path):
    frame = told(retracted_at=[noon + MINUTE, None], at=[noon, noon]).head(1)
    strict = FeatureSet("before", last.features, strict=True)
    moment = noon + MINUTE + cancelled * timedelta(microseconds=1)
    row = as_of(strict, pl.DataFrame({"customer": [1], "moment": [moment]}), {"orders": frame}).row(0)
    assert row[2:] == ((None, 0) if cancelled else (1, 1))
    with open_online(tmp_path) as store:
        store.keep(strict)
        store.write(orders, frame)
        assert tuple(store.reader(strict).read({"customer": 1}, moment).values()) == row[2:]


def test_ids_that_are_used_once_are_not_crossed_with_moments():
    "One decision an event; ids that are used once cost no more than others: no cross of entities and moments."
    n = 300_000
    frame = pl.DataFrame({"event_id": np.arange(n), "customer": np.arange(n) * 1_000_003, "at": np.arange(n) * 10**6, "pence": 1})  # fmt: skip
    frame = frame.with_columns(pl.col("at").cast(pl.Datetime("us", "UTC")), shop=pl.lit("a"))
    begin = time.process_time()
    words = (f.count(orders, "30d"), f.sum(orders, "pence", "lifetime"), f.last(orders, "shop"))
    rows = as_of(
        FeatureSet("once", words, strict=True), frame.select("customer", moment="at"), {"orders": frame}
    )
    assert time.process_time() - begin < 10
    assert rows[words[1].name].sum() == 0 and rows.height == n


def test_an_entity_never_seen_has_an_empty_history(tmp_path):
    "What the store gives a stranger who is welcome, and what history gives her, is the same."
    words = FeatureSet(
        "s", (*last.features, f.request("basket", "int"), f.time_since_last(orders).named("since"))
    )
    rows = as_of(words, ask.with_columns(basket=3), {"orders": told().head(0)})
    with open_online(tmp_path) as store:
        store.keep(words)
        reader = store.reader(words)
        assert reader.read({"customer": 1}, noon, {"basket": 3}) is None
        found = reader.read({"customer": 1}, noon, {"basket": 3}, strangers=True)
        assert found == rows.select(words.names).row(0, named=True)
        nothing = FeatureSet("no events", (f.request("basket", "int"),))
        store.keep(nothing)
        assert store.reader(nothing).read({}, noon, {"basket": 3}) == {"basket": 3}
        assert store.reader(nothing).read_many([{}], noon, [{"basket": 3}]).known == [True]
        with pytest.raises(ValueError, match=r"a number below 2\*\*63"):
            reader.read({"customer": 1}, noon, {"basket": 2**63})


def test_a_strict_row_at_midnight_is_in_the_month_that_begins(tmp_path):
    "What was before it was another month; the month of the microsecond before would count all of April."
    may = instant("2010-04-30T23:00")  # the first of May begins in London
    frame = told(at=[may - MINUTE, may])
    words = (
        f.count(orders, f.period("month", "Europe/London")).named("month"),
        f.count(orders, "1d").named("day"),
    )
    words += (f.count(orders, f.period("month", "Europe/London", back=1)).named("month_before"),)
    for strict, expected in ((False, (1, 2, 1)), (True, (0, 1, 1))):
        features = FeatureSet("s", words, strict)
        assert (
            as_of(features, pl.DataFrame({"customer": [1], "moment": [may]}), {"orders": frame}).row(0)[2:]
            == expected
        )
        with open_online(tmp_path / str(strict)) as store:
            store.keep(features)
            store.write(orders, frame)
            assert tuple(store.reader(features).read({"customer": 1}, may).values()) == expected


def test_the_seven_days_before_the_last_seven():
    "Half-open at the same side as every window, and known by now, not then."
    days = [noon - timedelta(days=n) for n in range(20)]
    frame = pl.DataFrame({"event_id": range(20), "customer": 1, "at": days, "known_at": [noon] * 20, "pence": [1 << n for n in range(20)], "shop": "a"})  # fmt: skip
    features = FeatureSet("s", (f.sum(orders, "pence", f.lagged("7d", "7d")).named("before"), f.sum(orders, "pence", f.lagged("7d", "1us")).named("not_now")))  # fmt: skip
    row = as_of(features, ask, {"orders": frame}).row(0)
    assert row[2:] == (sum(1 << n for n in range(7, 14)), sum(1 << n for n in range(1, 8)))


lines = Events("lines", {"customer": "int", "product": "text"}, "at", {"pence": "int"})
sold = f.sum(lines, "pence", "1d", by="product")


def of_lines(n=600, seed=3):
    "Lines of few customers and products, hostile names and unknown keys among them, corrected and late."
    draw = random.Random(seed)
    rows = [
        {
            "event_id": i,
            "customer": draw.choice((1, 2, 3, None)),
            "product": draw.choice(("mug", "", "nul\x00", "日本", "e\u0301", None)),
            "at": noon + draw.randint(0, 3000) * MINUTE,
            "pence": draw.choice((1, -7, 2**53, None)),
        }
        for i in range(n)
    ]
    told = [{**r, "known_at": r["at"] + draw.choice((0, 0, 90)) * MINUTE} for r in rows]
    moved = [{**r, "product": "mug", "known_at": r["known_at"] + MINUTE} for r in told if draw.random() < 0.2]
    return pl.DataFrame([*told, *moved], schema_overrides={"pence": pl.Int64})


def test_another_entity_is_the_same_in_the_store_and_in_history(tmp_path):
    "Named by the request, by the row's own history, by nobody; with all together; whole after corrections that move events."
    frame = of_lines()
    words = (
        f.of("product", sold).named("wanted"),
        f.of("product", f.count(lines, "lifetime")).named("pair"),
        f.of({"product": f.last(lines, "product", by="customer")}, sold).named("last_bought"),
        f.sum(lines, "pence", "1h", by=()).named("all"),
        f.mode(lines, "product", "1d", by=()).named("hit"),
    )
    features = FeatureSet("shop", words, strict=True)
    assert features.keys == {"customer": "int"} and features.requests == {"product": "text"}
    asked = frame.select("customer", "product", moment=pl.max_horizontal("at", "known_at"))
    rows = as_of(features, asked, {"lines": frame})
    assert rows["last_bought"].n_unique() > 20 and rows["hit"].n_unique() > 2
    assert as_of(features, asked, {"lines": frame}, partitions=3).equals(rows)
    with open_online(tmp_path) as store:
        store.keep(features)
        store.write(lines, frame)
        reader = store.reader(features)
        for row in rows.iter_rows(named=True):
            got = reader.read(row, row["moment"], row, strangers=True)
            assert got == {name: row[name] for name in features.names}
        assert reader.read({"customer": 99}, noon) is None, (
            "what everybody did does not make a stranger known"
        )
        with pytest.raises(ValueError, match="is asked by"):
            reader.read({"product": "mug"}, noon)
    assert flaws(tmp_path) == []


def test_everybody_alone_has_a_home_of_its_own(tmp_path):
    "A store that is asked of all together only still finds an event to correct it."
    everybody = FeatureSet("all", (f.sum(lines, "pence", "lifetime", by=()).named("all"),))
    frame = of_lines()
    with open_online(tmp_path) as store:
        store.keep(everybody)
        for part in (frame[400:], frame[:500], frame):
            store.write(lines, part)
        assert store.kinds()["lines"].groupings[0] == ("customer", "product")
        end = noon + 9000 * MINUTE
        expected = as_of(everybody, pl.DataFrame({"moment": [end]}), {"lines": frame})["all"][0]
        assert store.reader(everybody).read({}, end) == {"all": expected}
    assert flaws(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: f.of("shop", sold), r"got \['shop'\] .* counted by \['product'\]"),
        (lambda: f.of({"product": f.request("n", "int")}, sold), "is text, so what names it is too"),
        (lambda: f.of({}, sold), "of names keys"),
        (lambda: f.of("product", f.sum(lines, "pence", "1d", by="customer")), r"counted by \['customer'\]"),
        (lambda: f.of("product", f.request("basket")), "of names keys"),
        (lambda: f.sum(lines, "customer", "1d"), "of a key .* are taken"),
        (lambda: f.last(lines, "at"), "of the time first_time and last_time"),
        (lambda: FeatureSet("s", (sold, f.of("product", sold))), "not those of keys"),
        (lambda: f.lagged("7d", "lifetime"), "a lag is a length of time"),
        (lambda: f.period("fortnight", "UTC"), "a period is one of"),
        (lambda: f.period("month", "Mars/Olympus"), "a zone is an IANA name"),
        (lambda: f.period("month", "UTC", back=-1), "at most 1000 back"),
        (lambda: lines["pence"] > lines["product"], "of one type are compared"),
        (lambda: lines["pence"].hour("UTC"), "the hour of a time is asked"),
        (lambda: f.count(lines, "1d", where=lines["at"] > orders["at"]), "one kind of events"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_when_it_is_declared(make, told):
    with pytest.raises(ValueError, match=told):
        make()
