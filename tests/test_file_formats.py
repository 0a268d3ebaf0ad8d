"""Files as people have them: legal ones are read as they are, a malformed line harms itself only, and the form is named."""

import csv
import gzip
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.csv_files import Dialect, SourceError, delimited
from mlsys_nb.data.file_formats import read_table
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import quarantine, snapshot
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import load_settings

LETTERS = "ab1 \"\n,;|\t'.é€\u2028-"
VALUES = st.text(alphabet=LETTERS, max_size=6)


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(2, 4))
    return draw(st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=1, max_size=8))


def blank(value: str) -> str | None:
    return value or None


def written(rows: list[list[str]], delimiter: str, quoting: int) -> str:
    out = io.StringIO()
    names = [f"name{i}" for i in range(len(rows[0]))]
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows([names, *rows])
    return out.getvalue()


@settings(max_examples=300, deadline=None)
@given(tables(), st.sampled_from([",", ";", "\t", "|"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_is_legal_is_read_as_it_is(rows: list[list[str]], delimiter: str, quoting: int) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        text = written(rows, delimiter, quoting)
        found = delimited(text.encode(encoding), Dialect(delimiter=delimiter))
        assert found.spoiled.is_empty(), found.spoiled["reason"].to_list()
        kept = [list(map(blank, row)) for row in rows]
        assert [[v or None for v in row] for row in found.frame.rows()] == kept


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_spoiled_line_harms_itself_only(data: st.DataObject) -> None:
    "Lines without line breaks of their own; one is replaced by bytes of any kind without a quote."
    good = [f"{i},name {i},{i / 7:.2f}" for i in range(data.draw(st.integers(1, 6)))]
    at = data.draw(st.integers(0, len(good)))
    noise = (
        data.draw(st.binary(min_size=1, max_size=12))
        .replace(b"\n", b"")
        .replace(b'"', b"")
        .replace(b"\r", b"")
    )
    lines = ["id,name,price", *good[:at]], good[at:]
    content = "\n".join(lines[0]).encode() + b"\n" + noise + b"\n" + "\n".join(lines[1]).encode()
    found = delimited(content, Dialect(encoding="utf-8", delimiter=","))
    ids = found.frame["id"].to_list()
    own = [str(i) for i in range(len(good))]
    extra = len(ids) - len(own)
    assert extra in (0, 1) and (ids[:at] + ids[at + extra :]) == own
    assert len(found.spoiled) == 1 - extra - (not noise.strip(b" "))


@pytest.mark.parametrize("place", range(4))
def test_a_quote_that_is_never_closed_does_not_swallow_the_file(place: int) -> None:
    lines = [f'{i},"name {i}",{i}' for i in range(4)]
    lines[place] = lines[place].replace('"', "", 2).replace("name", '"name')
    found = delimited(("id,name,n\n" + "\n".join(lines) + "\n").encode())
    assert found.frame["id"].to_list() == [str(i) for i in range(4) if i != place]
    assert found.spoiled["reason"][0].startswith(f"line {place + 2}: ")
    assert found.spoiled["delivered line"][0] == lines[place]


HOSTILE = {
    "nul": (b"a,b\n1,2\n3\x00,4\n5,6\n", [("1", "2"), ("5", "6")], ["line 3: has a NUL byte"]),
    "short": (b"a,b\n1,2\n3\n5,6\n", [("1", "2"), ("5", "6")], ["line 3: has 1 fields, the header has 2"]),
    "long": (b"a,b\n1,2\n3,4,5\n5,6", [("1", "2"), ("5", "6")], ["line 3: has 3 fields, the header has 2"]),
    "wide": (b"a,b\n1,2\n" + b",".join([b"x"] * 10_000) + b"\n5,6\n", [("1", "2"), ("5", "6")], ["line 3: has 10000 fields, the header has 2"]),
    "inch": (b'a,b\n5" disk,2\n5,6"\n', [('5" disk', "2"), ("5", '6"')], []),
    "blank before a quote": (b'a,b\n1, "x,y"\n', [("1", "x,y")], []),
    "blank lines": (b"a,b\n\n1,2\n  \n5,6\n\n", [("1", "2"), ("5", "6")], []),
    "mac": (b"a,b\r1,2\r5,6\r", [("1", "2"), ("5", "6")], []),
    "windows": (b'a,b\r\n1,"2\r\n3"\r\n5,6\r\n', [("1", "2\n3"), ("5", "6")], []),
    "excel": (b"sep=;\r\na;b\r\n1;2,5\r\n", [("1", "2,5")], []),
    "bom": (b"\xef\xbb\xbfa,b\n1,2\n", [("1", "2")], []),
    "broken utf-8": ("a,b\nJosé,1\nM".encode() + b"\xfcller,2\n" + "Zoë,3\n".encode(), [("José", "1"), ("Zoë", "3")], ["line 3: has bytes that are no utf-8"]),
    "latin-1": ("a,b\nJosé,1\nMüller,2\n".encode("latin-1"), [("José", "1"), ("Müller", "2")], []),
    "undefined in cp1252": (b"a,b\nJos\xe9,1\nM\x81ller,2\n\xe9,3", [("José", "1"), ("é", "3")], ["line 3: has bytes that are no cp1252"]),
    "header only": (b"a,b\n", [], []),
    "header without an end": (b"a,b", [], []),
    "empty": (b"", [], []),
    "blank": (b"\n \n", [], []),
    "after a close": (b'a,b\n"x"y,1\n5,6\n', [("5", "6")], ["line 2: its quotes"]),
    "end in a quote": (b'a,b\n1,2\n5,"6\n', [("1", "2")], ["line 3: its quotes"]),
    "utf-16 cut": ("a,b\n1,2\n".encode("utf-16") + b"3", [("1", "2")], ["line 3: has bytes that are no utf-16"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str) -> None:
    content, rows, reasons = HOSTILE[name]
    found = delimited(content)
    assert found.frame.rows() == rows
    told = found.spoiled["reason"].to_list()
    assert len(told) == len(reasons) and all(t.startswith(r) for t, r in zip(told, reasons, strict=True)), (
        told
    )
    assert "empty" in found.notes[0] if name in ("empty", "blank") else found.notes[0].startswith("read as ")


@pytest.mark.parametrize(
    ("content", "columns", "note"),
    [
        (b"a,a,b\n1,2,3\n", ["a (1)", "a (2)", "b"], "names 'a' 2 times"),
        (b",b\n0,2\n", ["column 1", "b"], "no name in the header"),
        (b" a , b\n0,2\n", ["a", "b"], "read as"),
        (b'"a\nb",c\n0,2\n', ["a\nb", "c"], "read as"),
    ],
)
def test_headers(content: bytes, columns: list[str], note: str) -> None:
    found = delimited(content)
    assert found.frame.columns == columns and note in "; ".join(found.notes)


def test_what_is_declared_wins() -> None:
    content = "a;b,c\nMüller;1,2\n".encode()
    assert delimited(content, Dialect(delimiter=",")).frame.columns == ["a;b", "c"]
    assert delimited(content, Dialect(encoding="cp1252", delimiter=";")).frame.row(0)[0] == "MÃ¼ller"
    assert delimited(b"a,b\n'x,y',2\n", Dialect(quote="'")).frame.row(0) == ("x,y", "2")
    assert delimited(b'a,b\n"x,2\n', Dialect(quote="")).frame.row(0) == ('"x', "2")
    assert delimited(b"report of May\n\na,b\n1,2\n", Dialect(skip=2)).frame.columns == ["a", "b"]
    with pytest.raises(SourceError, match="the header, line 1, has bytes that are no utf-8.*deliver"):
        delimited(b"\xff,b\n1,2\n", Dialect(encoding="utf-8"))
    with pytest.raises(SourceError, match="names of their own"):
        delimited(b"a,a,a (1)\n1,2,3\n")


def test_many_broken_lines_take_time_in_proportion() -> None:
    "Half of 40,000 lines open a quote and never close it, the rest go over two lines."
    lines = [f'{i},"x{i}' if i % 2 else f'{i},"a\nb"' for i in range(20_000)]
    begun = time.process_time()
    found = delimited(("id,name\n" + "\n".join(lines)).encode())
    assert time.process_time() - begun < 4 and len(found.frame) + len(found.spoiled) >= 10_000


@pytest.mark.parametrize(
    "noise", ["{", "[1]", '{"a": }', "\x00", '{"a": 1', "null", "{" * 100_000, '{"a":1}{"a":2}']
)
def test_a_malformed_json_line_harms_itself_only(tmp_path: Path, noise: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"a": 1}}\n{noise}\n{{"a": 2}}\n')
    found = read_table(tmp_path / "x.jsonl")
    assert [str(v) for v in found.frame["a"]] == ["1", "2"]
    assert found.spoiled["reason"][0].startswith("line 2: ")


def test_json_numbers_of_two_kinds_and_of_many_digits_keep_their_digits(tmp_path: Path) -> None:
    rows = [{"id": 12345678901234567890123, "n": 1}, {"id": 7, "n": True}, {"id": None, "n": {"x": 1}}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_table(tmp_path / "x.jsonl")
    assert found.frame.rows() == [(12345678901234567890123, "1"), (7, "true"), (None, '{"x": 1}')]
    (tmp_path / "y.jsonl").write_text('{"id": 9007199254740993}\n{"id": 7.5}\n')
    assert read_table(tmp_path / "y.jsonl").frame["id"].to_list() == ["9007199254740993", "7.5"]


def test_packed_files_and_big_letters(tmp_path: Path) -> None:
    (tmp_path / "X.CSV.GZ").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    (tmp_path / "y.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 1000)[:-20])
    assert read_table(tmp_path / "X.CSV.GZ").frame.rows() == [("1", "2")]
    with pytest.raises(SourceError, match=r"y.csv.gz cannot be read as csv: .*deliver it again"):
        read_table(tmp_path / "y.csv.gz")


def test_a_workbook(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    writer = pytest.importorskip("xlsxwriter")
    book = writer.Workbook(tmp_path / "x.xlsx", {"remove_timezone": True})
    day = book.add_format({"num_format": "dd/mm/yyyy"})
    till, _ = book.add_worksheet("till"), book.add_worksheet("empty")
    till.write_row(0, 0, ["item", "price", "n", "at", "code", "code"])
    for row, (item, price) in enumerate([("lamp", 6.95), ("bag", "free")], 1):
        till.write_row(row, 0, [item, price, row])
        till.write_datetime(
            row, 3, pl.datetime_range(pl.datetime(2010, 3, 1), pl.datetime(2010, 3, 1), eager=True)[0], day
        )
        till.write_row(row, 4, [536365 if row == 1 else "C536366", "x"])
    book.close()
    found = read_table(tmp_path / "x.xlsx")
    assert found.frame.columns == ["item", "price", "n", "at", "code (1)", "code (2)"]
    assert found.frame["price"].to_list() == ["6.95", "free"] and found.frame["code (1)"].to_list() == [
        "536365",
        "C536366",
    ]
    assert found.frame["n"].to_list() == [1, 2] and found.frame["at"][0].year == 2010
    assert read_table(tmp_path / "x.xlsx", Dialect(sheet="empty")).notes == ("the sheet is empty",)
    with pytest.raises(SourceError, match="sheet"):
        read_table(tmp_path / "x.xlsx", Dialect(sheet="tills"))
    with pytest.raises(SourceError, match="cannot be read as xlsx"):
        (tmp_path / "y.xlsx").write_bytes(b"none")
        read_table(tmp_path / "y.xlsx")


def test_a_spoiled_line_stands_in_the_quarantine_with_its_number(tmp_path: Path) -> None:
    here = replace(load_settings(root=str(tmp_path)), raw=tmp_path / "raw")
    (here.raw / "till").mkdir(parents=True)
    (here.raw / "till" / "a.csv").write_bytes("Artikel;at\nMüller;2010-03-01\ncut\n".encode("latin-1"))
    contract = Contract("till", (Column("Artikel", "text"), Column("at", "time")))
    source = FilesSource("till", contract, "till", dialect=Dialect(encoding="latin-1"))
    report = ingest(here, source, instant("2099-01-01"))
    assert (report.rows, report.quarantined) == (1, {"unreadable line": 1})
    assert report.notes == ("read as latin-1, delimited by ';'",)
    [bad] = quarantine(here, snapshot(here, "till")).to_dicts()
    assert (bad["delivered line"], bad["reason"]) == ("cut", "line 3: has 1 fields, the header has 2")
    assert ingest(here, source, instant("2099-01-02")).batches == ()


def test_a_broken_line_is_not_swallowed_by_a_quote_that_was_opened_before_it() -> None:
    found = delimited(b'a,b\n1,"x\n\xff\ny"\n2,z\n', Dialect(encoding="utf-8", delimiter=","))
    assert found.frame.rows() == [("2", "z")]
    assert [reason.split(":")[0] for reason in found.spoiled["reason"]] == ["line 2", "line 3", "line 4"]
