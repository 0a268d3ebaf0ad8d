"Batches that leave, contracts that change, deliveries that are not what they are like: the past stays as it was."

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

import polars as pl
import pytest
from conftest import FULL

from mlsys_nb import features as f
from mlsys_nb.data.batch_expectations import Expect
from mlsys_nb.data.column_schema import Column
from mlsys_nb.data.contract import Contract, ContractError, RowRule
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import finished, quarantine, read, snapshot, verify_lake
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.data.staging import IngestError
from mlsys_nb.data.withdrawal import withdraw
from mlsys_nb.doors.cli import main
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.parity import bits
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_sync import StoreMismatch, open_online, sync
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
PLAIN = (Column("shop", "int"), Column("price", "decimal"), Column("at", "time"))
SALES = Contract("till", PLAIN)
NAMED = Contract("till", (Column("sale", "int"), *PLAIN), id="sale")
LATER = instant("2011-01-01")
DAY = timedelta(days=1)


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    (tmp_path / "raw" / "till").mkdir(parents=True)
    return replace(load_settings(root=tmp_path / "root", home=HOME), raw=tmp_path / "raw")


def till(contract: Contract = SALES, **more: Any) -> FilesSource:
    return FilesSource("till", contract, "till", known=lambda p: instant(p.stem[:10]), **more)


def deliver(shop: Settings, name: str, rows: list[Any], head: str = "shop,price,at") -> None:
    text = "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n"
    (shop.raw / "till" / f"{name}.csv").write_text(text)


def known(shop: Settings, moment: datetime) -> list[tuple[Any, ...]]:
    "What somebody knew at a moment, read today."
    rows = read(shop, snapshot(shop, "till"))
    open_then = (pl.col("known_at") <= moment) & (
        pl.col("retracted_at").is_null() | (pl.col("retracted_at") > moment)
    )
    return sorted(rows.filter(open_then).select("shop", "price").rows())


WORDS = Events("till", keys={"shop": "int"}, time="at", columns={"price": "int"})
SET = FeatureSet(
    "till", (f.count(WORDS, "lifetime").named("n"), f.sum(WORDS, "price", "lifetime").named("spent"))
)


def same_in_store(store: Any, shop: Settings, moment: datetime) -> None:
    asked = pl.DataFrame({"shop": [1, 2, 3], "moment": [moment] * 3}).cast(
        {"moment": pl.Datetime("us", "UTC")}
    )
    for row in as_of(SET, asked, {"till": read(shop, snapshot(shop, "till"))}).to_dicts():
        mine = store.reader(SET).read(row, moment)
        if mine is None:
            assert row["n"] == 0
            continue
        assert {k: bits(v) for k, v in mine.items()} == {k: bits(row[k]) for k in mine}


@pytest.mark.parametrize("seed", range(6 if FULL else 3))
@pytest.mark.parametrize("contract", [SALES, NAMED], ids=["by content", "by id"])
def test_withdrawals_in_any_order_against_a_diary(
    shop: Settings, tmp_path: Path, contract: Contract, seed: int
) -> None:
    """Twelve days; each brings rows that others may have brought, and on some an earlier one leaves.

    A diary, kept without the lake, says what was known each evening; so does the store."""
    draw, source, named = Random(seed), till(contract), bool(contract.id)
    standing: dict[Any, Any] = {}  # By id, or by what it says: the row, and which batches tell it
    diary: dict[int, list[tuple[Any, ...]]] = {}
    left: set[str] = set()
    with open_online(tmp_path / "store") as store:
        store.keep(SET)
        for day in range(1, 13):
            name, now = f"2010-04-{day:02}", instant(f"2010-04-{day:02}")
            rows = {draw.randint(1, 6): (draw.randint(1, 3), draw.randint(1, 3)) for _ in range(4)}
            lines = [((k,) if named else ()) + (s, p, "2010-04-01") for k, (s, p) in rows.items()]
            deliver(shop, name, lines, ("sale," if named else "") + "shop,price,at")
            ingest(shop, source, now)
            for number, row in rows.items():
                key = number if named else row
                before = standing.get(key, (None, set()))
                standing[key] = row, (before[1] if before[0] == row else set()) | {f"{name}.csv"}
            gone = f"2010-04-{draw.randint(1, day):02}.csv"
            if draw.random() < 0.5 and gone not in left:
                left.add(gone)
                withdraw(shop, "till", gone, now + timedelta(hours=1), "a trial")
                standing = {k: (row, by - {gone}) for k, (row, by) in standing.items() if by - {gone}}
            evening = now + timedelta(hours=20)
            diary[day] = sorted((s, p * 100) for (s, p), _ in standing.values())
            assert known(shop, evening) == diary[day]
            sync(store, shop, WORDS, snapshot(shop, "till"))
            same_in_store(store, shop, evening)
    assert len(left) > 1
    evenings = {d: instant(f"2010-04-{d:02}") + timedelta(hours=20) for d in diary}
    assert {d: known(shop, at) for d, at in evenings.items()} == diary, "the past stays readable"


def test_a_withdrawn_batch_stays_away_and_its_mended_rows_come_anew(shop: Settings) -> None:
    deliver(shop, "2010-04-01", [(1, 5, "2010-04-01"), (2, 9, "2010-04-01")])
    ingest(shop, till(), instant("2010-04-01"))
    before = snapshot(shop, "till")
    done = withdraw(shop, "till", "2010-04-01.csv", instant("2010-04-03"), "shop 2 sent a test")
    assert (done.rows, done.anew) == (2, True)
    assert withdraw(shop, "till", "2010-04-01.csv", instant("2010-04-09"), "again") == replace(
        done, anew=False
    )
    assert read(shop, before)["retracted_at"].null_count() == 2, "a snapshot of before is as good as ever"
    report = ingest(shop, till(), instant("2010-04-04"))
    assert (report.batches, report.skipped, report.resumed) == ((), 1, 0) and known(shop, LATER) == []
    assert finished(shop, "till", instant("2010-04-04")).digest == snapshot(shop, "till").digest
    deliver(shop, "2010-04-05", [(1, 5, "2010-04-01")])
    ingest(shop, till(), instant("2010-04-05"))
    assert known(shop, LATER) == [(1, 500)] and known(shop, instant("2010-04-04")) == []
    assert len(known(shop, instant("2010-04-02"))) == 2 and verify_lake(shop) == []


def test_equal_rows_that_count_leave_together(shop: Settings) -> None:
    counted = till(replace(SALES, twins="count"))
    deliver(shop, "2010-04-01", [(1, 5, "2010-04-01")] * 3)
    deliver(shop, "2010-04-02", [(1, 5, "2010-04-01")] * 2)
    ingest(shop, counted, instant("2010-04-02"))
    withdraw(shop, "till", "2010-04-01.csv", instant("2010-04-03"), "x")
    assert len(known(shop, instant("2010-04-02"))) == 3 and len(known(shop, LATER)) == 2


def test_an_earlier_claim_does_not_move_a_withdrawal_into_the_past(shop: Settings) -> None:
    "Asked for with an old --now, after a later ingest: it counts from the microsecond after that."
    deliver(shop, "2010-04-01", [(1, 5, "2010-04-01")])
    ingest(shop, till(), instant("2010-04-09"))
    done = withdraw(shop, "till", "2010-04-01.csv", instant("2010-04-02"), "x")
    assert done.moment > instant("2010-04-09") and len(known(shop, instant("2010-04-09"))) == 1


# Contracts that change

NOTE = Column("note", "text", nullable=True)
KIND = Column("kind", "category", allowed=("lamp", "lamps", "bag"))


def test_a_changed_contract_reads_old_rows_as_it_says_now(shop: Settings, tmp_path: Path) -> None:
    "A new column, a wider limit, another name, two classes merged and one added: without a new source, and the same rows are the same events."
    old = Contract("till", (*PLAIN[:2], Column("at", "time"), KIND))
    deliver(
        shop,
        "2010-04-01",
        [(1, 5, "2010-04-01", "lamps"), (2, 7, "2010-04-01", "bag"), (1, 5, "2010-04-01", "lamp")],
        "shop,price,at,kind",
    )
    ingest(shop, till(old), instant("2010-04-01"))
    before = snapshot(shop, "till")
    merged = replace(KIND, merge={"lamps": "lamp"}, allowed=("lamp", "bag", "tin"))
    new = Contract("till", (PLAIN[0], replace(PLAIN[1], as_="paid"), Column("at", "time"), merged, NOTE))
    assert ingest(shop, till(new), instant("2010-04-02")).batches == (), "nothing came, nothing changes"
    assert snapshot(shop, "till").digest == before.digest
    rows = [(1, 5, "2010-04-01", "lamps", ""), (3, 1, "2010-04-02", "tin", "new")]
    deliver(shop, "2010-04-02", rows, "shop,price,at,kind,note")
    report = ingest(shop, till(new), instant("2010-04-03"))
    assert report.rows == 2
    now = snapshot(shop, "till")
    found = read(shop, now).sort("shop", "paid")
    assert found.select("shop", "paid", "kind", "note").rows() == [
        (1, 500, "lamp", None),
        (2, 700, "bag", None),
        (3, 100, "tin", "new"),
    ]
    assert read(shop, before).select("price", "kind").sort("price", "kind").rows() == [
        (500, "lamp"),
        (500, "lamps"),
        (700, "bag"),
    ]
    assert finished(shop, "till", instant("2010-04-03")).digest == now.digest != before.digest
    assert ingest(shop, till(new), instant("2010-04-04")).batches == () and verify_lake(shop) == []
    for wrong, why in (
        (replace(new, columns=new.columns[:-1]), "note: the column is gone.*keep what they have, or give"),
        (old, "note: the column is gone; kind: it merged"),
        (replace(new, twins="count"), "its twins was 'once' and is 'count'"),
        (
            replace(new, columns=(replace(new.columns[0], maximum=2), *new.columns[1:])),
            "1 rows .*shop: 3 is above",
        ),
        (replace(new, columns=(*new.columns[:4], replace(NOTE, nullable=False))), "2 rows .*note: missing"),
        (
            replace(new, rules=(RowRule("dear", pl.col("paid") > 500),)),
            "2 rows of 'till' .*'dear: .*withdraw their",
        ),
    ):
        with pytest.raises(ContractError, match=why):
            ingest(shop, till(wrong), instant("2010-04-05"))
    kept = replace(new, columns=(replace(new.columns[0], maximum=3), *new.columns[1:]))
    assert ingest(shop, till(kept), instant("2010-04-05")).batches == (), "what all rows keep can be promised"


def test_a_store_is_told_that_the_contract_changed(shop: Settings, tmp_path: Path) -> None:
    deliver(shop, "2010-04-01", [(1, 5, "2010-04-01")])
    ingest(shop, till(), instant("2010-04-01"))
    with open_online(tmp_path / "store") as store:
        store.keep(SET)
        sync(store, shop, WORDS, snapshot(shop, "till"))
        deliver(shop, "2010-04-02", [(1, 6, "2010-04-02", "x")], "shop,price,at,note")
        ingest(shop, till(Contract("till", (*PLAIN, NOTE))), instant("2010-04-02"))
        with pytest.raises(StoreMismatch, match="read under a newer contract.*rebuilt from the lake"):
            sync(store, shop, WORDS, snapshot(shop, "till"))
    rmtree(tmp_path / "store")
    with open_online(tmp_path / "store") as store:
        store.keep(SET)
        sync(store, shop, WORDS, snapshot(shop, "till"))
        same_in_store(store, shop, LATER)


def test_a_changed_contract_with_ids_and_derived_columns(shop: Settings) -> None:
    head = "sale,shop,price,at"
    deliver(shop, "2010-04-01", [(1, 1, 5, "2010-04-01"), (2, 1, 7, "2010-04-01")], head)
    ingest(shop, till(NAMED), instant("2010-04-01"))
    twice = replace(NAMED, derived=(Column("twice", "decimal", nullable=True, maximum=20),))
    deliver(shop, "2010-04-02", [(1, 1, 6, "2010-04-01"), (3, 1, 11, "2010-04-01")], head)
    source = till(twice, derive=lambda rows: rows.with_columns(twice=pl.col("price") * 2))
    report = ingest(shop, source, instant("2010-04-02"))
    assert report.quarantined == {"twice: above maximum 20": 1}
    found = read(shop, snapshot(shop, "till")).sort("sale", "known_at")
    assert found.select("sale", "price", "twice").rows() == [(1, 500, None), (1, 600, 1200), (2, 700, None)]
    with pytest.raises(IngestError, match="promises a derived column 'twice'"):
        deliver(shop, "2010-04-03", [(9, 1, 6, "2010-04-01")], head)
        ingest(shop, till(twice), instant("2010-04-03"))


# Deliveries as a whole


def test_what_a_batch_is_like(shop: Settings) -> None:
    hoped = replace(
        SALES,
        columns=(PLAIN[0], replace(PLAIN[1], nullable=True), PLAIN[2]),
        expects=(
            Expect.rows(at_least=2),
            Expect.missing("price", at_most=0.4, effect="quarantine"),
            Expect.mean("price", between=(1, 100), effect="refuse"),
            Expect.new_values("shop", at_most=0.5, effect="quarantine"),
        ),
    )
    deliver(shop, "2010-04-01", [(1, 5, "2010-04-01"), (2, 7, "2010-04-01")])
    deliver(shop, "2010-04-02", [(1, 5, "2010-04-02")])
    deliver(shop, "2010-04-03", [(1, "", "2010-04-03"), (1, 5, "2010-04-03")])
    deliver(shop, "2010-04-04", [(3, 6, "2010-04-04"), (4, 5, "2010-04-04"), (1, 5, "2010-04-04")])
    deliver(shop, "2010-04-05", [(3, 6, "2010-04-05"), (4, 5, "2010-04-05"), (1, 5, "2010-04-05")])
    report = ingest(shop, till(hoped), instant("2010-04-05"))
    whole = {
        "batch: expected missing of price at most 0.4, got 0.5": 2,
        "batch: expected new_values of shop at most 0.5, got 0.666667": 3,
    }
    assert (report.rows, report.set_aside) == (3, 8)
    assert report.quarantined == {**whole, "batch: expected new_values of shop at most 0.5, got 0.666667": 6}
    assert "2010-04-02.csv: expected rows at least 2, got 1" in report.notes
    bad = quarantine(shop, snapshot(shop, "till"))
    assert len(bad) == 8 and set(bad["batch"]) == {f"2010-04-0{d}.csv" for d in (3, 4, 5)}
    (shop.lake / "till" / "2010-04-04.csv").rename(
        shop.lake / "aside"
    )  # lost, and ingested again: judged as it was
    rmtree(shop.lake / "aside")
    assert ingest(shop, till(hoped), instant("2010-04-05")).batches in ((), ("2010-04-04.csv",))
    assert len(quarantine(shop, snapshot(shop, "till"))) == 8
    deliver(shop, "2010-04-06", [(1, 5, "2010-04-06"), (1, 6, "2010-04-06")])
    deliver(shop, "2010-04-07", [(1, 5000, "2010-04-07"), (2, 5000, "2010-04-07")])
    with pytest.raises(
        ContractError,
        match="batch 2010-04-07.csv.*expected mean of price at least 1 and at most 100, got 5000.*nothing of it was taken",
    ):
        ingest(shop, till(hoped), instant("2010-04-07"))
    assert snapshot(shop, "till").batches[-1] == "2010-04-06.csv", (
        "the batch before it is in the lake, as the message says"
    )


def test_new_values_are_watched_where_they_are_few(shop: Settings) -> None:
    with pytest.raises(ContractError, match="new_values is expected of a column"):
        replace(SALES, expects=(Expect.new_values("at", at_most=0.5),))
    wide = replace(SALES, expects=(Expect.new_values("shop", at_most=0.5),))
    deliver(shop, "2010-04-01", [(i, 5, "2010-04-01") for i in range(1001)])
    with pytest.raises(ContractError, match="at most 1000, 'shop' has 1001"):
        ingest(shop, till(wide), instant("2010-04-01"))


def test_the_command_says_what_leaves_and_what_follows(
    shop: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    "A day of the demo's lines leaves; the act stands in the audit once, however often it is asked for."
    case = load_problem(shop, "churn")
    here = load_settings(root=shop.root, home=HOME)
    ingest(here, case.sources[0], instant("2009-12-04"))
    words = [
        "withdraw",
        "churn",
        "2009-12-02",
        "--reason",
        "sent twice",
        "--root",
        str(shop.root),
        "--now",
        "2009-12-05",
    ]
    for word in ("leaves", "left"):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"2009-12-02 of lines {word}: " in out and "(sent twice)" in out
        assert f"mlsys ingest churn --root {shop.root}" in out
    lines = audit_log(open_control(here), "lines/2009-12-02")
    assert [(line.action, line.detail["reason"]) for line in lines] == [("withdraw", "sent twice")]
    days = read(here, snapshot(here, "lines")).filter(pl.col("retracted_at").is_not_null())
    assert (
        set(days["invoice_ts"].dt.date().cast(str)) == {"2009-12-02"} and len(days) == lines[0].detail["rows"]
    )
