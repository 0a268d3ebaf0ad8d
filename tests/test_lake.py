"Two times, re-delivery, versions, limits and broken-off ingests: on generated and hostile deliveries."

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from random import Random
from shutil import copytree, rmtree
from typing import Any

import polars as pl
import pytest
from conftest import FULL
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlsys_nb.data.column_schema import Column
from mlsys_nb.data.contract import Contract
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import (
    LakeError,
    finished,
    quarantine,
    read,
    read_by_batch,
    read_ledger,
    snapshot,
    verify_lake,
)
from mlsys_nb.data.sources import FilesSource, ReplaySource
from mlsys_nb.data.sql_source import SqlSource
from mlsys_nb.data.staging import IngestError
from mlsys_nb.features import Events, FeatureSet, as_of, count, last, time_since_last
from mlsys_nb.system.clock import instant
from mlsys_nb.system.durable import Log, SealError, json_bytes, sha256
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
ingest_room = import_module("mlsys_nb.data.ingest")
PLAIN = (Column("shop", "int"), Column("price", "decimal"), Column("at", "time"))
SALES = Contract("till", PLAIN)
NAMED = Contract("till", (Column("sale", "int"), *PLAIN), id="sale")
LATER = instant("2011-01-01")


def dated(path: Path) -> datetime:
    return instant(path.stem[:10])


def shop_in(folder: Path) -> Settings:
    (folder / "raw" / "till").mkdir(parents=True)
    return replace(load_settings(root=folder / "root", home=HOME), raw=folder / "raw")


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    return shop_in(tmp_path)


def till(contract: Contract = SALES, **more: Any) -> FilesSource:
    return FilesSource("till", contract, "till", known=dated, **more)


def deliver(shop: Settings, name: str, rows: list[Any], head: str = "shop,price,at") -> Path:
    path = shop.raw / "till" / f"{name}.csv"
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


# --- fault 5: two times -----------------------------------------------------------------------------------------------

sales = st.tuples(st.integers(1, 3), st.sampled_from(["1.00", "2.50", "7.25"]), st.dates(datetime(2010, 1, 1).date(), datetime(2010, 3, 20).date()))  # fmt: skip
deliveries = st.lists(
    st.tuples(st.integers(1, 28), st.lists(sales, min_size=1, max_size=4)), min_size=1, max_size=6
)


@given(deliveries)
@hypothesis_settings(max_examples=25 if FULL else 12, deadline=None)
def test_fault_5_what_was_seen_once_never_changes(
    tmp_path_factory: pytest.TempPathFactory, days: list[Any]
) -> None:
    "Files whose names claim any date in February arrive one a day in March; every earlier snapshot reads the same for ever."
    shop = shop_in(tmp_path_factory.mktemp("late"))
    seen: list[tuple[datetime, str, pl.DataFrame]] = []
    for number, (claimed, rows) in enumerate(days):
        now = instant("2010-03-21") + timedelta(days=number)
        deliver(shop, f"2010-02-{claimed:02}-{number}", rows)
        ingest(shop, till(), now)
        taken = snapshot(shop, "till", now)
        assert finished(shop, "till", now).digest == taken.digest
        seen.append((now, taken.digest, read(shop, taken)))
        for moment, digest, events in seen:
            then = snapshot(shop, "till", moment)
            assert then.digest == digest and read(shop, then).equals(events)
        fresh = read(shop, taken, news=[f"2010-02-{claimed:02}-{number}.csv"])
        first = number == 0
        assert set(fresh["known_at"]) <= {instant(f"2010-02-{claimed:02}") if first else now}
    assert bool(snapshot(shop, "till").claims) and not snapshot(shop, "till", instant("2010-03-20")).batches


def test_fault_5_training_rows_of_the_past_do_not_move(shop: Settings) -> None:
    events = Events("till", keys={"shop": "int"}, time="at", columns={"price": "int"})
    features = FeatureSet("till", (count(events, "90d").named("n"),))
    moments = [instant("2010-02-01") + timedelta(days=i) for i in range(30)]
    asked = pl.DataFrame({"shop": [1] * 30, "moment": moments}).cast({"moment": pl.Datetime("us", "UTC")})

    def rows() -> pl.DataFrame:
        return as_of(features, asked, {"till": read(shop, snapshot(shop, "till"))})

    for day in (1, 10, 20):
        deliver(shop, f"2010-02-{day:02}", [(1, "1.00", f"2010-01-{day:02}")])
    ingest(shop, till(), moments[-1])
    before = rows()
    assert before["n"].to_list() == [1] * 9 + [2] * 10 + [3] * 11  # the first load is believed
    deliver(shop, "2010-02-05", [(1, "9.99", "2010-01-05")])  # late, with an old date
    ingest(shop, till(), moments[-1] + timedelta(days=1))
    assert rows().equals(before)


def test_fault_5_a_column_or_a_delay_claims_the_past_and_says_so(shop: Settings) -> None:
    contract = replace(SALES, claims="at", delay=timedelta(days=2))
    now = instant("2010-03-01")
    rows = [(1, "1.00", "2010-01-01"), (1, "2.00", "2010-02-28")]
    deliver(shop, "2010-02-28", rows)
    ingest(shop, till(contract), now)
    known = dict(read(shop, snapshot(shop, "till")).select("price", "known_at").iter_rows())
    assert known == {100: instant("2010-01-03"), 200: now}  # never later than it really came
    [claim] = snapshot(shop, "till").claims
    assert "at + 2 days" in claim and "2010-03-01" in claim
    deliver(shop, "2010-02-27", [(1, "3.00", "2010-01-01")])
    ingest(shop, till(contract), now + timedelta(days=1))
    events = read(shop, snapshot(shop, "till"))
    assert events.filter(price=300)["known_at"].item() == now + timedelta(days=1)


def test_fault_5_a_finished_moment_stays_finished(shop: Settings) -> None:
    "A file that turns up after the ingest of a moment counts from the next microsecond on, and the report says so."
    now = instant("2010-03-05")
    deliver(shop, "2010-03-01", [(1, "1.00", "2010-02-01")])
    ingest(shop, till(), now)
    then = snapshot(shop, "till", now)
    deliver(shop, "2010-03-02", [(1, "2.00", "2010-02-01")])
    for moment in (now, now - timedelta(days=3), now - timedelta(days=3)):
        report = ingest(shop, till(), moment)
        assert snapshot(shop, "till", now) == then
    assert report.batches == () and ingest(shop, till(), now).skipped == 2
    assert [len(read(shop, snapshot(shop, "till", now + timedelta(microseconds=i)))) for i in (0, 1)] == [
        1,
        2,
    ]
    deliver(shop, "2010-03-03", [(1, "3.00", "2010-02-01")])
    assert "came after the ingest of 2010-03-05" in ingest(shop, till(), now).notes[-1]


def test_fault_5_a_replay_is_ingested_by_its_own_clock(tmp_path: Path) -> None:
    source = ReplaySource("till", replace(SALES, claims="at"), "till.csv", "at")
    text = "shop,price,at\n" + "".join(f"1,{d}.00,2010-03-{d:02}T12:00\n" for d in range(1, 10))
    lakes = []
    for name, days in (("whole", [9]), ("pieces", [2, 3, 3, 7, 9])):
        shop = shop_in(tmp_path / name)
        (shop.raw / "till.csv").write_text(text)
        for day in days:
            ingest(shop, source, instant(f"2010-03-{day + 1:02}"))
        lakes.append(snapshot(shop, "till"))
        events = read(shop, lakes[-1])
        assert [k.day for k in events["known_at"]] == list(range(2, 11)) and not lakes[-1].claims
        assert len(read(shop, snapshot(shop, "till", instant("2010-03-04")))) == 3
    assert lakes[0] == lakes[1]


# --- fault 7: re-delivery ---------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(sales, st.integers(1, 3)), min_size=1, max_size=8), st.integers(0, 10**6))
@hypothesis_settings(max_examples=30 if FULL else 15, deadline=None)
def test_fault_7_any_order_and_split_is_the_same_lake(
    tmp_path_factory: pytest.TempPathFactory, bought: list[Any], seed: int
) -> None:
    "All rows at once, against shuffled and overlapping pieces of them over several ingests."
    draw, folder = Random(seed), tmp_path_factory.mktemp("split")
    rows = [row for row, _ in bought]
    whole, pieces = shop_in(folder / "whole"), shop_in(folder / "pieces")
    deliver(whole, "2010-03-21", rows)
    ingest(whole, till(), LATER)
    asked = [*rows, *draw.choices(rows, k=4)]
    draw.shuffle(asked)
    for day in range(4):
        part = asked if day == 3 else draw.sample(asked, k=draw.randint(1, len(asked)))
        deliver(pieces, f"2010-03-{21 + day}", draw.sample(part, k=len(part)))
        if draw.random() < 0.5:
            ingest(pieces, till(), instant(f"2010-04-{21 + day}"))
    ingest(pieces, till(), LATER)
    one, other = (read(s, snapshot(s, "till")).drop("known_at").sort("event_id") for s in (whole, pieces))
    assert one.equals(other) and len(one) == len(set(rows))
    store: dict[Any, Any] = {}  # what a store that takes batch after batch comes to hold
    there, held = snapshot(pieces, "till"), 0
    for batch in there.batches:
        news = read(pieces, there, news=[batch])
        held += len(news)
        store |= {row["event_id"]: row for row in news.to_dicts()}
    assert held == len(store) == len(other)


@given(st.lists(sales, min_size=1, max_size=5), st.integers(0, 10**6))
@hypothesis_settings(max_examples=20 if FULL else 10, deadline=None)
def test_fault_7_twins_count_where_the_source_says_so(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], seed: int
) -> None:
    "Equal rows of one delivery are several events; the same delivery again, whole or in part, adds none."
    draw, shop = Random(seed), shop_in(tmp_path_factory.mktemp("twins"))
    source, many = till(replace(SALES, twins="count")), [*rows, *rows]
    deliver(shop, "2010-03-21", many)
    ingest(shop, source, LATER)
    before = read(shop, snapshot(shop, "till"))
    assert len(before) == len(many)
    deliver(shop, "2010-03-22", draw.sample(many, k=len(many)))
    deliver(shop, "2010-03-23", draw.sample(many, k=draw.randint(1, len(many))))
    ingest(shop, source, LATER + timedelta(days=1))
    assert read(shop, snapshot(shop, "till")).sort("event_id").equals(before.sort("event_id"))


def test_fault_7_a_batch_in_another_order_is_the_same_batch(shop: Settings) -> None:
    rows = [(n, f"{n}.00", f"2010-02-{n + 1:02}") for n in range(9)]
    for contract, head in ((SALES, "shop,price,at"), (NAMED, "sale,shop,price,at")):
        named = [(r[0], *r) for r in rows] if contract.id else rows
        rmtree(shop.lake, ignore_errors=True)
        deliver(shop, "2010-03-01", named, head)
        ingest(shop, till(contract), LATER)
        before = snapshot(shop, "till")
        deliver(shop, "2010-03-01", [*reversed(named), named[0]][: len(named)], head)
        assert ingest(shop, till(contract), LATER).skipped == 1 and snapshot(shop, "till") == before
        deliver(shop, "2010-03-01", named[1:], head)
        with pytest.raises(IngestError, match="other content"):
            ingest(shop, till(contract), LATER)


def test_fault_7_of_contradicting_rows_the_same_one_stays_in_any_order(tmp_path: Path) -> None:
    rows = [(1, 1, f"{p}.00", "2010-02-01") for p in range(5)]
    kept = set()
    for seed in range(6):
        shop = shop_in(tmp_path / str(seed))
        deliver(shop, "2010-03-01", Random(seed).sample(rows, k=5), "sale,shop,price,at")
        report = ingest(shop, till(NAMED), LATER)
        assert (report.rows, report.quarantined) == (1, {"sale: twice in one batch": 4})
        kept.add(read(shop, snapshot(shop, "till"))["price"].item())
    assert len(kept) == 1


# --- fault 8: withdrawals and corrections -----------------------------------------------------------------------------

HEAD = "sale,shop,price,at,retracted"


@pytest.mark.parametrize("rows", [
    [(1, 1, "5.00", "2010-02-01", ""), (1, "", "", "", "true"), (2, 1, "1.00", "2010-02-01", "")],
    [(1, "", "", "", "true"), (2, 1, "1.00", "2010-02-01", "false"), (1, 1, "5.00", "2010-02-01", "false")],
])  # fmt: skip
def test_fault_8_a_withdrawal_in_the_file_of_its_event_takes_effect(shop: Settings, rows: list[Any]) -> None:
    deliver(shop, "2010-03-01", rows, HEAD)
    report = ingest(shop, till(NAMED), LATER)
    assert (report.quarantined, report.superseded) == ({}, 1)
    assert read(shop, snapshot(shop, "till"))["event_id"].to_list() == [2]


def test_fault_8_two_corrections_known_at_one_moment_have_an_order(shop: Settings) -> None:
    "Three files come with one ingest, so all of them are known when it ran; the last of them counts."
    deliver(shop, "2010-03-01", [(1, 1, "1.00", "2010-02-01", "")], HEAD)
    ingest(shop, till(NAMED), instant("2010-03-02"))
    for day, price in ((3, "2.00"), (4, "3.00"), (5, "4.00")):
        deliver(shop, f"2010-03-{day:02}", [(1, 9, price, "2010-02-01", "")], HEAD)
    ingest(shop, till(NAMED), instant("2010-03-06"))
    events = read(shop, snapshot(shop, "till"))
    assert events["price"].to_list() == [100, 400] and events["shop"].to_list() == [1, 9]
    assert events["retracted_at"].to_list() == [instant("2010-03-06"), None]
    assert not events.select(pl.struct("event_id", "known_at").is_duplicated()).to_series().any()


versions = st.lists(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.none() | st.integers(1, 3)), min_size=1, max_size=5
    ),
    min_size=1,
    max_size=4,
)


@given(versions, st.lists(st.booleans(), min_size=4, max_size=4))
@hypothesis_settings(max_examples=40, deadline=None)
def test_fault_8_no_version_stops_history(
    tmp_path_factory: pytest.TempPathFactory, files: list[Any], now_and_then: list[bool]
) -> None:
    "Ids repeated within and across files, with other entities, withdrawn and brought back: always one version a moment."
    shop = shop_in(tmp_path_factory.mktemp("versions"))
    events = Events("till", keys={"shop": "int"}, time="at", columns={"price": "int"})
    features = FeatureSet("till", (count(events, "lifetime").named("n"),))
    for number, rows in enumerate(files, 1):
        told = [(s, k, p or "", "2010-02-01" if p else "", p is None) for s, k, p in rows]
        deliver(shop, f"2010-03-{number:02}", told, HEAD)
        if now_and_then[number - 1]:
            ingest(shop, till(NAMED), instant(f"2010-03-{number:02}"))
    ingest(shop, till(NAMED), LATER)
    taken = snapshot(shop, "till")
    found = read(shop, taken)
    assert not found.select(pl.struct("event_id", "known_at").is_duplicated()).to_series().any()
    assert (found["retracted_at"] > found["known_at"]).fill_null(True).all()
    asked = pl.DataFrame({"shop": [1, 2, 3], "moment": [LATER] * 3}).cast(
        {"moment": pl.Datetime("us", "UTC")}
    )
    standing = found.filter(pl.col("retracted_at").is_null())
    assert standing["event_id"].is_unique().all()
    assert as_of(features, asked, {"till": found})["n"].sum() == len(standing)
    apart = read_by_batch(shop, taken, taken.batches)
    assert all(news.equals(read(shop, taken, news=[batch])) for batch, news in apart.items())
    rows = [r for news in apart.values() for r in news.to_dicts()]
    assert {(r["event_id"], r["known_at"]) for r in rows} == set(
        found.select("event_id", "known_at").iter_rows()
    )


# --- fault 11: finished ingests ---------------------------------------------------------------------------------------


def test_fault_11_a_moment_needs_an_ingest_that_ended(shop: Settings) -> None:
    for day in (1, 2):
        deliver(shop, f"2010-03-{day:02}", [(day, "1.00", "2010-02-01")])
    with pytest.raises(LakeError, match="there was none; run `mlsys ingest`"):
        finished(shop, "till", instant("2010-03-02"))
    ingest(shop, till(), instant("2010-03-01"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_room, "_finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(shop, till(), instant("2010-03-02"))
    assert len(snapshot(shop, "till", instant("2010-03-02")).batches) == 2
    with pytest.raises(LakeError, match="an ingest is at work, was broken off"):
        finished(shop, "till", instant("2010-03-02"))
    ingest(shop, till(), instant("2010-03-02"))
    assert finished(shop, "till", instant("2010-03-02")).digest == snapshot(shop, "till").digest
    with pytest.raises(LakeError, match="the last one ended at 2010-03-02"):
        finished(shop, "till", instant("2010-06-01"))
    assert finished(shop, "till", instant("2010-06-01"), within=timedelta(days=365)).moment == instant(
        "2010-03-02"
    )
    ingest(shop, till(), instant("2010-06-01"))  # nothing is due, and that is now known
    assert finished(shop, "till", instant("2010-06-01")).moment == instant("2010-06-01")


# --- fault 12: one row harms itself only ------------------------------------------------------------------------------


def amounts(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        amount=pl.col("price") * pl.col("pieces"),
        cube=pl.col("pieces") ** 3,
        share=100 / pl.col("pieces"),
        until=pl.col("at") + pl.duration(days=pl.col("pieces").clip(0, 10**7)),
    )


PIECES = Contract("till", (*PLAIN, Column("pieces", "int"), Column("note", "text", nullable=True)))
GOOD = [(1, "1.00", "2010-02-01", 2, ""), (2, "2.00", "2010-02-02", 3, "x")]
POISON = {
    "a product beyond 64 bits": (1, "88888888888888.00", "2010-02-01", 2**33, ""),
    "a product that wraps to nearly nothing": (1, "21474836.48", "2010-02-01", 2**33, ""),
    "a product beyond 2**53": (1, "11111111.00", "2010-02-01", 2**24, ""),
    "a number beyond 2**53": (1, "1.00", "2010-02-01", 2**53 + 1, ""),
    "a price beyond 2**53": (1, "90071992547409.93", "2010-02-01", 1, ""),
    "a share that is infinite": (1, "1.00", "2010-02-01", 0, ""),
    "a derived time beyond the calendar": (1, "1.00", "9000-02-01", 10**6, ""),
    "a time beyond the calendar": (1, "1.00", "+12000-01-01T00:00:00", 1, ""),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_fault_12_a_poisonous_row_is_refused_alone(shop: Settings, poison: Any) -> None:
    head = "shop,price,at,pieces,note"
    deliver(shop, "2010-03-01", [GOOD[0], poison, GOOD[1]], head)
    source = till(PIECES, derive=amounts)
    report = ingest(shop, source, LATER)
    assert report.rows == 2 and report.set_aside == 1
    refused = quarantine(shop, snapshot(shop, "till"))
    assert refused.select("shop", "price", "at", "pieces").row(0) == tuple(map(str, poison[:4]))
    assert refused["row"].to_list() == [1] and refused["reason"].null_count() == 0
    columns = {
        "price": "int",
        "pieces": "int",
        "amount": "int",
        "cube": "int",
        "share": "float",
        "until": "time",
    }
    events = Events("till", keys={"shop": "int"}, time="at", columns=columns)
    parts = (count(events, "30d"), last(events, "amount"), last(events, "share"), time_since_last(events))
    features = FeatureSet("till", tuple(p.named(f"f{i}") for i, p in enumerate(parts)))
    asked = pl.DataFrame({"shop": [1, 2], "moment": [LATER] * 2}).cast({"moment": pl.Datetime("us", "UTC")})
    found = as_of(features, asked, {"till": read(shop, snapshot(shop, "till"))})
    assert found["f1"].to_list() == [200, 600]


numbers = st.one_of(
    st.integers(-9, 9), st.integers(-(2**53), 2**53), st.sampled_from([2**31, 2**32, 2**42, -(2**52)])
)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
@hypothesis_settings(max_examples=40, deadline=None)
def test_fault_12_no_product_wraps_unseen(tmp_path_factory: pytest.TempPathFactory, pairs: list[Any]) -> None:
    shop = shop_in(tmp_path_factory.mktemp("products"))
    contract = Contract("till", (Column("n", "int"), Column("a", "int"), Column("b", "int")))
    deliver(shop, "2010-03-01", [(i, a, b) for i, (a, b) in enumerate(pairs)], "n,a,b")
    source = till(contract, derive=lambda rows: rows.with_columns(ab=pl.col("a") * pl.col("b")))
    ingest(shop, source, LATER)
    kept = dict(read(shop, snapshot(shop, "till")).select("n", "ab").iter_rows())
    assert kept == {i: a * b for i, (a, b) in enumerate(pairs) if abs(a * b) <= 2**53}


def test_fault_12_a_derive_that_stumbles_over_a_row_loses_that_row(shop: Settings) -> None:
    rows = [(i, "1.00", "2010-02-01", i, "x" if i in (3, 50) else "1") for i in range(1, 80)]
    deliver(shop, "2010-03-01", rows, "shop,price,at,pieces,note")
    source = till(PIECES, derive=lambda rows: rows.with_columns(n=pl.col("note").str.to_integer()))
    report = ingest(shop, source, LATER)
    assert (report.rows, report.quarantined) == (77, {"derived: failed": 2})
    assert quarantine(shop, snapshot(shop, "till"))["row"].to_list() == [2, 49]
    broken = till(PIECES, derive=lambda rows: rows.select(pl.col("nothing")))
    with pytest.raises(IngestError, match="not even without any row"):
        ingest(replace(shop, root=shop.root / "other"), broken, LATER)


@pytest.mark.parametrize("every", ["1d", "6h", "1w"])
def test_fault_12_a_date_before_the_year_1000_does_not_break_a_replay(shop: Settings, every: str) -> None:
    days = [
        "0001-01-01",
        "0003-05-06",
        "0999-12-31T23:00",
        "2010-03-01",
        "2010-03-02",
        "9999-12-31T23:59",
        "soon",
    ]
    (shop.raw / "till.csv").write_text("shop,price,at\n" + "".join(f"1,1.00,{day}\n" for day in days))
    source = ReplaySource("till", SALES, "till.csv", "at", every=every)
    for now in ("2010-03-02", "2010-03-09", "2010-03-16"):
        ingest(shop, source, instant(now))
    events = read(shop, snapshot(shop, "till"))
    assert len(events) == 5 and ingest(shop, source, instant("2010-03-16")).batches == ()
    assert quarantine(shop, snapshot(shop, "till"))["rule"].to_list() == ["at: unreadable"]


def test_fault_12_a_number_of_a_hundred_digits_in_a_database(shop: Settings) -> None:
    import sqlalchemy as sa

    uri = f"sqlite:///{shop.root.parent}/till.db"
    with sa.create_engine(uri).begin() as connection:
        connection.execute(sa.text("CREATE TABLE sold (shop, price, at TIMESTAMP)"))
        for shop_id in (1, "9" * 100):
            connection.execute(sa.text("INSERT INTO sold VALUES (:s, 1.25, '2010-03-01')"), {"s": shop_id})
    source = SqlSource("till", SALES, uri, "SELECT shop, price, at FROM sold", "at")
    report = ingest(shop, source, instant("2010-03-02"))
    assert (report.rows, report.quarantined) == (1, {"shop: unreadable": 1})


# --- fault 16 and 22: broken-off ingests, full disks, paths ------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 5))
def test_fault_16_a_continued_ingest_reports_the_whole(shop: Settings, step: int) -> None:
    for day in range(1, 5):
        deliver(shop, f"2010-03-{day:02}", [(day, "1.00", "2010-02-01"), (day, "half", "2010-02-01")])
    left, now = [step], instant("2010-03-05")

    def dying(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return commit(*given)

    commit = ingest_room._commit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_room, "_commit", dying)
        patch.setattr(ingest_room, "GROUP", 1)
        if step < 4:
            with pytest.raises(KeyboardInterrupt):
                ingest(shop, till(), now)
    report = ingest(shop, till(), now)
    assert (len(report.batches), report.rows, report.quarantined) == (4, 4, {"price: unreadable": 4})
    assert report.resumed == (step if step < 4 else 0) and report.skipped == 0
    assert ("broken off" in report._repr_html_()) == (step < 4)
    again = ingest(shop, till(), now)
    assert (again.batches, again.quarantined, again.skipped, again.resumed) == ((), {}, 4, 0)


def test_fault_22_names_do_not_leave_the_lake(shop: Settings) -> None:
    deliver(shop, "2010-03-01", [(1, "1.00", "2010-02-01")])
    for name in ("../models", "..", "", ".hidden", "a/b"):
        with pytest.raises(LakeError, match="plain name"):
            ingest(shop, replace(till(), name=name), LATER)
        with pytest.raises(LakeError, match="plain name"):
            snapshot(shop, name)
    assert not (shop.root / "data" / "models").exists()


# --- format, damage ---------------------------------------------------------------------------------------------------


def test_a_lake_of_another_format_is_refused_with_a_way_on(shop: Settings) -> None:
    deliver(shop, "2010-03-01", [(1, "1.00", "2010-02-01")])
    ingest(shop, till(), LATER)
    path = shop.lake / "till" / "2010-03-01.csv" / "manifest.json"
    old = path.read_bytes()
    for change in ({"format": 1}, {"entity_keys": "vault"}):
        manifest = {**json.loads(old), **change}
        del manifest["seal"]
        path.write_bytes(json_bytes({**manifest, "seal": sha256(json_bytes(manifest))}))
        for deed in (lambda: snapshot(shop, "till"), lambda: ingest(shop, till(), LATER)):
            with pytest.raises(
                LakeError, match="reads batches of format 3 .*ingest again from the raw files"
            ):
                deed()
    path.write_bytes(old)
    ledger = shop.lake / "till" / ".batches.log"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.unlink()
    Log(ledger).append([{"batch": "2010-03-01.csv", "content": "2010-03-01 abc"}])  # as format 1 wrote it
    with pytest.raises(LakeError, match="reads lakes of format 3"):
        snapshot(shop, "till")
    ledger.write_bytes(b"".join(lines))
    assert snapshot(shop, "till").rows == 1


def test_a_manifest_is_read_once_while_its_file_stays_and_again_when_it_is_another(
    shop: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, opened = import_module("mlsys_nb.data.lake"), list[Path]()
    reading = lake.read_folder_manifest
    monkeypatch.setattr(lake, "read_folder_manifest", lambda path: opened.append(path) or reading(path))
    for day in (1, 2):
        deliver(shop, f"2010-03-0{day}", [(day, "1.00", "2010-02-01")])
    ingest(shop, till(), LATER)
    first, folder = snapshot(shop, "till"), shop.lake / "till" / "2010-03-01.csv"
    assert read(shop, snapshot(shop, "till")).height == 2 and sorted(opened) == [folder, folder.with_name("2010-03-02.csv")]  # fmt: skip
    path, elsewhere = folder / "manifest.json", folder.with_name(".elsewhere")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"rows": 1', b'"rows": 2'))  # in its place, of the same length
    with pytest.raises(SealError, match=r"manifest.json is not as it was written"):
        snapshot(shop, "till")
    path.write_bytes(content)
    assert snapshot(shop, "till") == first
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    with pytest.raises(SealError, match="is a link"):
        snapshot(shop, "till")
    folder.unlink()
    elsewhere.rename(folder)
    assert snapshot(shop, "till") == first
    path.unlink()
    with pytest.raises(LakeError, match="is missing from the lake|holds other content"):
        snapshot(shop, "till")


def damages(path: Path) -> Iterator[Callable[[], None]]:
    content = path.read_bytes()
    yield lambda: path.unlink()
    yield lambda: path.write_bytes(b"")
    yield lambda: path.write_bytes(content[: len(content) // 2])
    yield lambda: path.write_bytes(content[:30] + bytes([content[30] ^ 1]) + content[31:])


def test_every_damaged_file_is_named_and_nothing_answers_wrong(tmp_path: Path) -> None:
    "Each file of a lake deleted, emptied, halved and flipped in turn."
    sound = shop_in(tmp_path / "sound")
    for day in (1, 2, 3):
        deliver(sound, f"2010-03-{day:02}", [(day, "1.00", "2010-02-01"), (day, "x", "2010-02-01")])
        ingest(sound, till(), instant(f"2010-03-{day:02}"))
    assert verify_lake(sound) == [] == verify_lake(shop_in(tmp_path / "none"))
    events = read(sound, snapshot(sound, "till"))
    files = [
        p.relative_to(sound.root)
        for p in sound.lake.rglob("*")
        if p.is_file() and not p.name.endswith(".lock")
    ]
    assert len(files) == 10
    for name in files:
        for number in range(4):
            here = replace(sound, root=tmp_path / f"{len(list(tmp_path.iterdir()))}")
            copytree(sound.root, here.root)
            list(damages(here.root / name))[number]()
            found = verify_lake(here)
            assert found and all(f.remedy for f in found), (name, number)
            assert any((here.root / name).is_relative_to(f.path) for f in found), (name, number, found)
            try:
                assert read(here, snapshot(here, "till")).equals(events), (name, number)
                quarantine(here, snapshot(here, "till"))
            except (LakeError, SealError):
                pass


def test_a_ledger_that_lost_its_end_is_noticed(shop: Settings) -> None:
    for day in (1, 2, 3):
        deliver(shop, f"2010-03-{day:02}", [(day, "1.00", "2010-02-01")])
        ingest(shop, till(), instant(f"2010-03-{day:02}"))
    ledger = shop.lake / "till" / ".batches.log"
    lines = ledger.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) - 2):
        ledger.write_bytes(b"".join(lines[:kept]))
        rmtree(shop.lake / "till" / "2010-03-02.csv", ignore_errors=True)  # nobody would miss it
        with pytest.raises(LakeError, match="restore it from a copy, or remove"):
            snapshot(shop, "till")
        with pytest.raises(LakeError):
            ingest(shop, till(), LATER)
    ledger.write_bytes(b"".join(lines))
    ingest(shop, till(), LATER)
    assert len(read_ledger(shop.lake / "till").contents) == 3 and verify_lake(shop) == []
