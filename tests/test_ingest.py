"Contract, sources and ingest: nothing lost, nothing twice, nothing half, and the past stays as it was."

import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlsys_nb.data.contract import Column, Contract, ContractError, RowRule, check, check_many
from mlsys_nb.data.csv_files import SourceError
from mlsys_nb.data.ingest import IngestError, ingest
from mlsys_nb.data.lake import LakeError, quarantine, read, read_ledger, snapshot
from mlsys_nb.data.sources import Due, FilesSource, RawBatch, ReplaySource
from mlsys_nb.data.sql_source import SqlSource
from mlsys_nb.system.clock import instant
from mlsys_nb.system.durable import SealError
from mlsys_nb.system.settings import Settings, load_settings

ingest_room = import_module("mlsys_nb.data.ingest")  # the face of the floor has a function of that name
HOME = Path(__file__).resolve().parents[1]
RETAIL = "online_retail_year1_lines.parquet"
COLUMNS = (
    Column("invoice", "text"),
    Column("quantity", "int"),
    Column("invoice_ts", "time", zone="Europe/London"),
    Column("price", "decimal", unit="GBP", minimum=0.01),
    Column("customer_id", "int"),
)
YEAR = ReplaySource("lines", Contract("lines", COLUMNS), RETAIL, "invoice_ts")
SALE = Contract("till", (Column("sale", "int"), Column("price", "decimal"), Column("at", "time")), id="sale")


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return load_settings(root=tmp_path / "root", home=HOME)


@pytest.fixture
def shop(here: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "raw" / "till").mkdir(parents=True)
    return replace(here, raw=tmp_path / "raw")


def dated(path: Path) -> datetime:
    return instant(path.stem)


TILL = FilesSource("till", SALE, "till", known=dated)
LATER = instant("2011-01-01")


def deliver(shop: Settings, day: str, content: str) -> Path:
    path = shop.raw / "till" / f"{day}.csv"
    path.write_text(content)
    return path


# --- contract ---------------------------------------------------------------------------------------------------------


def test_every_penny_survives_32_bits() -> None:
    pence = pl.Series("pence", range(1, 8_000_001, 7))
    prices = pl.DataFrame({"price": (pence / 100).cast(pl.Float32)})
    checked = check(Contract("c", (Column("price", "decimal"),), twins="count"), prices)
    assert checked.rows["price"].equals(pence.alias("price"))


@given(st.lists(st.floats(width=64, allow_nan=True), min_size=1, max_size=30))
@hypothesis_settings(max_examples=80, deadline=None)
def test_a_decimal_is_exact_or_refused(values: list[float]) -> None:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    checked = check(Contract("c", (Column("x", "decimal", nullable=True),), twins="count"), frame)
    assert len(checked.rows) + len(checked.quarantine) == len(values)
    for row, units in checked.rows.select("row", "x").iter_rows():
        given_value = values[row]
        assert (units is None) == (given_value != given_value)
        if units is not None:
            assert abs(units / 100 - given_value) <= max(1e-8, abs(given_value) * 1e-15)


cells = st.one_of(
    st.none(), st.sampled_from(["", " ", "1", "-3", "2.5", "1e3", "nan", "inf", "x", "2010-05-01", "9" * 25])
)


@given(st.lists(st.tuples(cells, cells, cells, cells, cells), max_size=12), st.booleans())
@hypothesis_settings(max_examples=120, deadline=None)
def test_every_row_ends_in_exactly_one_place(rows: list[tuple[Any, ...]], unique: bool) -> None:
    kinds = ("int", "float", "decimal", "time", "bool")
    contract = Contract(
        "c", tuple(Column(k, k, nullable=k == "float") for k in kinds), twins="once" if unique else "count"
    )
    frame = pl.DataFrame(rows, schema=dict.fromkeys(kinds, pl.String), orient="row")
    checked = check(contract, frame, text=True)
    assert len(checked.rows) + len(checked.quarantine) + checked.n_duplicates == len(frame)
    assert sum(checked.counts.values()) >= len(checked.quarantine) and set(checked.quarantine["rule"]) <= set(
        checked.counts
    )
    assert not set(checked.rows["row"]) & set(checked.quarantine["row"])
    assert checked.quarantine["reason"].null_count() == 0
    assert checked.rows.drop("row", "float").null_count().sum_horizontal().sum() == 0
    assert checked.rows["float"].is_nan().sum() == 0
    assert unique or checked.n_duplicates == 0


def test_many_batches_at_once_are_checked_like_each_alone() -> None:
    raw = pl.read_parquet(HOME / "data" / "raw" / RETAIL).sample(3000, seed=1)
    frames = [raw[:1000], raw[1000:1000], raw[1000:], raw[:1000]]
    for one, frame in zip(check_many(YEAR.contract, frames), frames, strict=True):
        alone = check(YEAR.contract, frame)
        assert one.rows.equals(alone.rows) and one.quarantine.equals(alone.quarantine)
        assert (one.n_duplicates, one.counts) == (alone.n_duplicates, alone.counts)


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        (Column("x", "int", minimum=1), [0], "x: 0 is below minimum 1"),
        (Column("x", "int"), [None], "x: missing"),
        (Column("x", "float"), [float("nan")], "x: missing"),
        (Column("x", "float"), [float("inf")], "x: inf is not a finite number"),
        (Column("x", "decimal", minimum=0.01), [0.0], "x: 0.00 is below minimum 0.01"),
        (Column("x", "decimal", minimum=0.01), [-11.25], "x: -11.25 is below minimum 0.01"),
        (Column("x", "decimal", maximum=10), [10.01], "x: 10.01 is above maximum 10"),
        (Column("x", "text", allowed=("a", "b")), ["c"], "x: c is not one of a, b"),
        (Column("x", "text", pattern="^[a-z]+$"), ["A"], "x: A does not look like ^[a-z]+$"),
        (Column("x", "int"), [1.5], "x: 1.5 is not a whole number"),
    ],
)
def test_reasons_are_sentences(column: Column, values: list[Any], reason: str) -> None:
    found = check(Contract("c", (column,)), pl.DataFrame({"x": values}, strict=False))
    if values == [None]:
        found = check(Contract("c", (column,)), pl.DataFrame({"x": values}, schema={"x": pl.Int64}))
    assert found.quarantine["reason"].to_list() == [reason]


@pytest.mark.parametrize(
    ("dtype", "series"),
    [
        ("int", pl.Series(["1"])),
        ("decimal", pl.Series(["1.00"])),
        ("float", pl.Series([True])),
        ("time", pl.Series([20100501])),
        ("text", pl.Series([1.5])),
        ("bool", pl.Series(["true"])),
        ("int", pl.Series([[1]])),
    ],
)
def test_a_changed_type_is_the_batchs_fault(dtype: str, series: pl.Series) -> None:
    with pytest.raises(
        ContractError, match=f"c.x must be {dtype}, the batch has .*; the whole batch is refused"
    ):
        check(Contract("c", (Column("x", dtype),)), pl.DataFrame({"x": series}))


def test_contracts_that_make_no_sense() -> None:
    with pytest.raises(ContractError, match="dtype is one of"):
        Column("x", "money")
    with pytest.raises(ContractError, match="the system's own"):
        Column("known_at", "time")
    with pytest.raises(ContractError, match="distinct names"):
        Contract("c", (Column("x", "int"), Column("x", "text")))
    with pytest.raises(
        ContractError, match=r"distinct names.* got \['till', 'till'\]"
    ):  # one of them would be lost
        Contract("c", (Column("till", "int", as_="a"), Column("till", "text", as_="b")))
    with pytest.raises(ContractError, match="among them its id"):
        Contract("c", (Column("x", "int"),), id="y")
    with pytest.raises(ContractError, match="smallest unit"):
        check(Contract("c", (Column("x", "decimal", minimum=0.001),)), pl.DataFrame({"x": [1.0]}))


def test_markup_in_a_column_name_or_reason_is_text() -> None:
    contract = Contract("c", (Column("<b>", "int", minimum=1, meaning="<script>"),))
    drawn = contract._repr_html_() + check(contract, pl.DataFrame({"<b>": [0]}))._repr_html_()
    assert "<b>" not in drawn and "<script>" not in drawn


# --- sources ----------------------------------------------------------------------------------------------------------


def test_replayed_batches_are_the_file_cut_at_midnight() -> None:
    raw = pl.read_parquet(HOME / "data" / "raw" / RETAIL)
    batches = list(YEAR.batches(Due(HOME / "data" / "raw", LATER)))
    assert pl.concat([b.frame for b in batches]).sort(pl.all()).equals(raw.sort(pl.all()))
    assert [b.known_at for b in batches] == sorted({b.known_at for b in batches})
    for batch in batches[100:130]:
        utc = batch.frame["invoice_ts"].dt.replace_time_zone("Europe/London").dt.convert_time_zone("UTC")
        assert set(utc.dt.date()) == {date.fromisoformat(batch.batch_id)}
        assert batch.known_at == instant(batch.batch_id) + timedelta(days=1)
    taken = {b.batch_id: b.origin_sha for b in batches[:200]}
    rest = list(YEAR.batches(Due(HOME / "data" / "raw", LATER, taken)))
    assert [b.batch_id for b in rest] == [b.batch_id for b in batches[200:]]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(SourceError, match="a.parquet cannot be read as parquet"):
        list(FilesSource("s", SALE, ".").batches(Due(tmp_path, instant("2099-01-01"))))
    with pytest.raises(SourceError, match=r"one of .csv, .tsv"):
        list(ReplaySource("s", SALE, "a.doc", "at").batches(Due(tmp_path, LATER)))
    with pytest.raises(SourceError, match="such as 15min"):
        list(ReplaySource("s", SALE, "a.csv", "at", every="1mo").batches(Due(tmp_path, LATER)))


def test_json_lines(shop: Settings) -> None:
    source = FilesSource("till", SALE, "till", known=dated)
    (shop.raw / "till" / "2010-03-02.jsonl").write_text(
        '{"sale": 1, "price": 6.95, "at": "2010-03-01T10:00:00Z"}\n{"sale": 2, "price": 0.005, "at": "noon"}\n'
    )
    report = ingest(shop, source, LATER)
    assert (report.rows, report.quarantined) == (1, {"at: unreadable": 1, "price: unreadable": 1})


def test_sql_pulls_join_without_gap_or_overlap(here: Settings, tmp_path: Path) -> None:
    import sqlalchemy as sa

    uri = f"sqlite:///{tmp_path}/till.db"
    engine = sa.create_engine(uri)
    sold = sa.Table(
        "sold",
        sa.MetaData(),
        sa.Column("sale", sa.Integer),
        sa.Column("price", sa.Float),
        sa.Column("at", sa.DateTime),
    )
    sold.metadata.create_all(engine)
    with engine.begin() as connection:
        start = datetime(2010, 3, 1)
        connection.execute(
            sold.insert(), [{"sale": i, "price": 1.25, "at": start + timedelta(hours=i)} for i in range(100)]
        )
    source = SqlSource("till", SALE, uri, "SELECT sale, price, at FROM sold", "at", overlap="1h")
    counts = [ingest(here, source, instant(f"2010-03-0{day}")).rows for day in (1, 2, 2, 3, 4, 5, 6, 7)]
    assert sum(counts) == 100 and counts[:3] == [1, 24, 0]
    events = read(here, snapshot(here, "till"))
    assert events["sale"].to_list() == list(range(100))


# --- ingest -----------------------------------------------------------------------------------------------------------


def test_ingesting_in_pieces_is_ingesting_at_once(here: Settings, tmp_path: Path) -> None:
    other = replace(here, root=tmp_path / "other")
    ingest(here, YEAR, instant("2009-12-20"))
    for day in ("2009-12-04", "2009-12-04", "2009-12-11", "2009-12-20"):
        ingest(other, YEAR, instant(day))
    assert snapshot(here, "lines") == snapshot(other, "lines")
    assert read(here, snapshot(here, "lines")).equals(read(other, snapshot(other, "lines")))


KILLED = """
    import sys
    from mlsys_nb.system.clock import instant
    from mlsys_nb.data.contract import Column, Contract
    from mlsys_nb.data.ingest import ingest
    from mlsys_nb.system.settings import load_settings
    from mlsys_nb.data.sources import ReplaySource
    sys.path.insert(0, sys.argv[2])
    from test_ingest import YEAR
    print("at work", flush=True)
    ingest(load_settings(root=sys.argv[1], home=sys.argv[2]), YEAR, instant("2010-02-15"))
    print("done", flush=True)
"""


def test_killed_and_started_again_gives_the_same_lake(here: Settings, tmp_path: Path) -> None:
    for seconds in (0.25, 0.4, 0.6):
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(here.root), str(Path(__file__).parent)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    ingest(here, YEAR, instant("2010-02-15"))
    other = replace(here, root=tmp_path / "other")
    ingest(other, YEAR, instant("2010-02-15"))
    assert snapshot(here, "lines") == snapshot(other, "lines")


def test_two_ingests_at_once(here: Settings) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(here.root), str(Path(__file__).parent)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0].split("\n")[1] for p in both] == ["done"] * 2
    events = read(here, snapshot(here, "lines"))
    assert events["event_id"].n_unique() == len(events) == snapshot(here, "lines").rows


def test_a_lost_or_swapped_batch_is_noticed(shop: Settings) -> None:
    for day in ("2010-03-02", "2010-03-03"):
        deliver(shop, day, f"sale,price,at\n{day[-1]},6.95,2010-03-01\n")
    ingest(shop, TILL, LATER)
    lost, then = shop.lake / "till" / "2010-03-03.csv", snapshot(shop, "till")
    rmtree(lost)
    with pytest.raises(LakeError, match="2010-03-03.csv is missing from the lake.*ingest again"):
        snapshot(shop, "till")
    with pytest.raises(SealError):
        read(shop, then)
    assert snapshot(shop, "till", LATER - timedelta(days=1)).batches == ()
    deliver(
        shop, "2010-03-03", "sale,price,at\n3,5.95,2010-03-01\n"
    )  # taken out on purpose: the new content counts
    assert ingest(shop, TILL, LATER).batches == ("2010-03-03.csv",)
    assert snapshot(shop, "till").batches == then.batches
    with pytest.raises(LakeError, match="replaced since; take a new snapshot"):
        read(shop, then)
    other = replace(shop, root=shop.root / "other")
    deliver(shop, "2010-03-03", "sale,price,at\n3,4.95,2010-03-01\n")
    ingest(other, TILL, LATER)
    rmtree(lost)
    (other.lake / "till" / lost.name).rename(lost)
    with pytest.raises(LakeError, match="2010-03-03.csv holds other content; restore"):
        snapshot(shop, "till")


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("step", range(1, 5))
def test_a_crash_between_batch_and_ledger_heals(shop: Settings, again: bool, step: int) -> None:
    "Dies at the n-th commit or note, of new batches and of one that was taken out and comes with other content."
    for day in ("2010-03-02", "2010-03-03"):
        deliver(shop, day, f"sale,price,at\n{day[-1]},6.95,2010-03-01\n")
    if again:
        ingest(shop, TILL, LATER)
        rmtree(shop.lake / "till" / "2010-03-03.csv")
        deliver(shop, "2010-03-03", "sale,price,at\n3,5.95,2010-03-01\n")
    left = [step]

    def dying(deed: Any) -> Any:
        def first_count(*given: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise KeyboardInterrupt
            return deed(*given)

        return first_count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_room, "_commit", dying(ingest_room._commit))
        patch.setattr(ingest_room, "note_batches", dying(ingest_room.note_batches))
        with suppress(KeyboardInterrupt):
            ingest(shop, TILL, LATER)
    folders = {p.name for p in shop.lake.glob("till/*.csv")}
    if not again or len(folders) == 2:
        assert set(snapshot(shop, "till").batches) == folders  # what is there is never refused
    ingest(shop, TILL, LATER)
    assert snapshot(shop, "till").batches == ("2010-03-02.csv", "2010-03-03.csv")
    assert set(read_ledger(shop.lake / "till").contents) == set(snapshot(shop, "till").batches)
    rmtree(shop.lake / "till" / "2010-03-02.csv")
    with pytest.raises(LakeError, match="2010-03-02.csv is missing"):
        snapshot(shop, "till")


def test_a_file_that_came_empty_is_told(here: Settings, tmp_path: Path) -> None:
    there = replace(here, raw=tmp_path / "raw")
    there.raw.mkdir()
    raw = pl.read_parquet(HOME / "data" / "raw" / RETAIL).head(3000)
    raw.write_parquet(there.raw / RETAIL)
    assert "has no rows" not in str(ingest(there, YEAR, instant("2009-12-06")).notes)
    raw.clear().write_parquet(there.raw / RETAIL)
    [note] = ingest(there, YEAR, instant("2009-12-06")).notes
    assert f"{RETAIL} has no rows" in note


def test_the_past_does_not_change(here: Settings) -> None:
    ingest(here, YEAR, instant("2009-12-05"))
    then = snapshot(here, "lines", ingested_by=instant("2009-12-04"))
    rows = read(here, then)
    ingest(here, YEAR, instant("2009-12-20"))
    assert snapshot(here, "lines", ingested_by=instant("2009-12-04")) == then
    assert read(here, then).equals(rows)


def test_a_file_of_history_may_grow_but_not_change(here: Settings, tmp_path: Path) -> None:
    raw = pl.read_parquet(HOME / "data" / "raw" / RETAIL).head(20_000)
    there = replace(here, raw=tmp_path / "raw")
    there.raw.mkdir()
    half = raw.filter(pl.col("invoice_ts") < datetime(2009, 12, 4))
    half.write_parquet(there.raw / RETAIL)
    assert len(ingest(there, YEAR, instant("2009-12-06")).batches) == 3
    raw.write_parquet(there.raw / RETAIL)
    grown = ingest(there, YEAR, instant("2009-12-06"))
    assert (grown.batches, grown.skipped) == (("2009-12-04", "2009-12-05"), 3)
    before = snapshot(there, "lines")
    raw.with_columns(quantity=pl.col("quantity") + 1).write_parquet(there.raw / RETAIL)
    with pytest.raises(IngestError, match="2009-12-01 of 'lines' is already in the lake with other content"):
        ingest(there, YEAR, instant("2009-12-06"))
    assert snapshot(there, "lines") == before


def test_a_changed_type_stops_there_and_loses_nothing(shop: Settings) -> None:
    source = replace(TILL, contract=replace(SALE, columns=SALE.columns))
    for day, prices in (("2010-03-02", [1.0]), ("2010-03-03", ["on request"]), ("2010-03-04", [2.0])):
        frame = pl.DataFrame({"sale": [int(day[-1])], "price": prices, "at": [datetime(2010, 3, 1)]})
        frame.write_parquet(shop.raw / "till" / f"{day}.parquet")
    for _ in range(2):
        with pytest.raises(
            ContractError, match=r"batch 2010-03-03.parquet .*price must be decimal.*nothing of it was taken"
        ):
            ingest(shop, source, LATER)
        assert snapshot(shop, "till").batches == ("2010-03-02.parquet",)
    pl.DataFrame({"sale": [3], "price": [9.0], "at": [datetime(2010, 3, 1)]}).write_parquet(
        shop.raw / "till" / "2010-03-03.parquet"
    )
    report = ingest(shop, source, LATER)
    assert report.batches == tuple(f"2010-03-0{day}.parquet" for day in (2, 3, 4)) and report.resumed == 1


def test_another_contract_is_told(shop: Settings) -> None:
    deliver(shop, "2010-03-02", "sale,price,at\n1,6.95,2010-03-01\n")
    ingest(shop, TILL, LATER)
    worded = replace(SALE, rules=(RowRule("any", pl.col("sale") > 0),))
    assert ingest(shop, replace(TILL, contract=worded), LATER).skipped == 1  # the same rows, so all is well
    stricter = replace(
        SALE, columns=(*SALE.columns[:1], Column("price", "decimal", minimum=10), SALE.columns[2])
    )
    with pytest.raises(
        ContractError, match="1 rows of .* do not keep the changed contract, such as 'price: 6.95 is below"
    ):
        ingest(shop, replace(TILL, contract=stricter), LATER)


def test_an_id_twice_in_one_batch(shop: Settings) -> None:
    deliver(
        shop,
        "2010-03-02",
        "sale,price,at\n2,1.00,2010-03-01\n1,6.95,2010-03-01\n1,5.95,2010-03-01\n1,6.95,2010-03-01\n",
    )
    report = ingest(shop, TILL, LATER)
    assert (report.rows, report.duplicates, report.quarantined) == (2, 1, {"sale: twice in one batch": 1})
    assert read(shop, snapshot(shop, "till"))["event_id"].to_list() == [1, 2]
    [row] = quarantine(shop, snapshot(shop, "till"))["row"].to_list()
    assert row in (1, 2)


def test_damage_in_the_lake_is_found_before_it_is_parsed(here: Settings) -> None:
    ingest(here, YEAR, instant("2009-12-03"))
    there = snapshot(here, "lines")
    path = here.lake / "lines" / "2009-12-02" / "rows.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(SealError, match="2009-12-02/rows.parquet is not as it was written"):
        read(here, there)
    path.unlink()
    with pytest.raises(SealError, match="is missing"):
        read(here, there)


def test_derive_may_not_drop_rows(here: Settings) -> None:
    with pytest.raises(IngestError, match="adds columns to rows and keeps the rest"):
        ingest(here, replace(YEAR, derive=lambda rows: rows.head(1)), instant("2009-12-03"))
    assert snapshot(here, "lines").batches == ()


def test_missing_inputs(here: Settings) -> None:
    with pytest.raises(FileNotFoundError, match="no source file"):
        ingest(here, replace(YEAR, path="nowhere.parquet"), LATER)
    with pytest.raises(ContractError, match="cut by the time column"):
        ingest(here, replace(YEAR, time="sold_at"), LATER)
    with pytest.raises(LakeError, match="ingest it first"):
        read(here, snapshot(here, "lines"))


@dataclass(frozen=True)
class Hostile:
    batch_id: str
    name: str = "till"
    contract: Contract = SALE
    derive: None = None
    fresh: None = None
    retention: None = None
    sampling: None = None

    def batches(self, due: Due) -> Any:
        frame = pl.DataFrame({"sale": [1], "price": [1.0], "at": [datetime(2010, 3, 1)]})
        yield RawBatch(self.batch_id, frame, instant("2010-03-02"), "memory", "0")


@pytest.mark.parametrize("batch_id", ["../../out", "a/b", "", ".hidden", ".."])
def test_a_batch_stays_inside_the_lake(here: Settings, batch_id: str) -> None:
    with pytest.raises(LakeError, match="plain file name"):
        ingest(here, Hostile(batch_id), LATER)


changes = st.lists(
    st.tuples(st.integers(1, 4), st.none() | st.integers(1, 9)),
    min_size=1,
    max_size=4,
    unique_by=lambda t: t[0],
)


@given(st.lists(changes, min_size=1, max_size=5))
@hypothesis_settings(max_examples=25, deadline=None)
def test_versions_of_events_are_what_was_believed(
    tmp_path_factory: pytest.TempPathFactory, days: list[list[Any]]
) -> None:
    "Against a plain dictionary that takes one delivery after the other; None is a retraction."
    root = tmp_path_factory.mktemp("versions")
    shop = replace(load_settings(root=root, home=HOME), raw=root / "raw")
    (shop.raw / "till").mkdir(parents=True)
    believed: dict[int, int] = {}
    history: list[dict[int, int]] = []
    for number, delivery in enumerate(days, 1):
        lines = [
            f"{sale},{'' if price is None else price},2010-03-01,{price is None}" for sale, price in delivery
        ]
        deliver(shop, f"2010-04-{number:02}", "\n".join(["sale,price,at,retracted", *lines]) + "\n")
        for sale, price in delivery:
            believed.pop(sale, None) if price is None else believed.update({sale: price * 100})
        history.append(dict(believed))
        ingest(shop, TILL, instant(f"2010-04-{number:02}"))
    for ingested_by in (None, instant(f"2010-04-{len(days):02}")):
        events = read(shop, snapshot(shop, "till", ingested_by))
        for number, expected in enumerate(history, 1):
            moment = instant(f"2010-04-{number:02}")
            alive = (pl.col("known_at") <= moment) & pl.col("retracted_at").gt(moment).fill_null(True)
            seen = events.filter(alive)
            assert dict(seen.select("sale", "price").iter_rows()) == expected and len(seen) == len(expected)
