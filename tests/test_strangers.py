"""What a stranger's table did to `mlsys new`, each fault once: what must be seen in the table now."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from mlsys_nb.data import Column, Contract, check, survey
from mlsys_nb.data.csv_files import SourceError
from mlsys_nb.data.file_formats import read_table
from mlsys_nb.data.table_profiling import concerns
from mlsys_nb.doors.onboarding.code_generation import declared_code
from mlsys_nb.doors.onboarding.problem_proposal import assumptions, called, completed, propose
from mlsys_nb.doors.onboarding.table_origin import Origin, read_origin, reading
from mlsys_nb.doors.onboarding.typed_files import as_stored
from mlsys_nb.loop.step_context import StaleData, reaching
from mlsys_nb.system.settings import MlsysError

N, NOW = 400, datetime(2026, 1, 1, tzinfo=UTC)
BEGIN = datetime(2024, 1, 1)


def table(head: str, *columns: list[str], split: str = ",", above: str = "") -> bytes:
    rows = [split.join(fields) for fields in zip(*columns, strict=True)]
    return "\n".join([*above.split("\n")[: above.count("\n")], head, *rows, ""]).encode()


def at(form: str) -> list[str]:
    return [f"{BEGIN + timedelta(hours=15 * i):{form}}" for i in range(N)]


def some(*values: str) -> list[str]:
    return [str(v) for v in np.random.default_rng(len(values)).choice(values, N)]


IDS, CARDS = [f"R{i}" for i in range(N)], [f"4{i % 90:015}" for i in range(N)]
KILOS = [f"{i % 37 + 0.5} kg" for i in range(N)]
COMMAS = [f"{i % 37},5" for i in range(N)]
TITLE = "Report of orders\nGenerated 2024-05-05\n\n"
# fault: (file, columns that must be what is said: time, entity, outcome; a column and its type)
TABLES = {
    "a year of two digits is no year 3": (
        table("id,day,x,won", IDS, at("%d-%b-%y"), KILOS, some("y", "n")), ("day", None, "won"), ("day", "time")),
    "a short year behind dashes is no year 30": (
        table("id,closed,x,won", IDS, at("%d-%m-%y %H:%M:%S"), KILOS, some("y", "n")), ("closed", None, "won"), ("closed", "time")),
    "a year before points is a time": (
        table("nº;dia;x;won", IDS, at("%Y.%m.%d %H:%M"), KILOS, some("y", "n"), split=";"), ("dia", None, "won"), ("dia", "time")),
    "a line of sums below is no third outcome": (
        table("id,day,x,won", [*IDS[:-1], "Total"], [*at("%Y-%m-%d")[:-1], ""], [*KILOS[:-1], ""], [*some("y", "n")[:-1], "4711"]),
        ("day", None, "won"), ("won", "category")),
    "blanks between thousands": (
        table("id;day;x;won", IDS, at("%Y-%m-%d"), [f"{1 + i % 7} {i % 900 + 100},5" for i in range(N)], some("y", "n"), split=";"),
        ("day", None, "won"), ("x", "float")),
    "Swiss thousands": (
        table("id,day,x,won", IDS, at("%Y-%m-%d"), [f"{1 + i % 7}'{i % 900 + 100}.05" for i in range(N)], some("y", "n")),
        ("day", None, "won"), ("x", "float")),
    "a month alone is a time": (
        table("id,month,x,won", IDS, at("%Y-%m"), KILOS, some("y", "n")), ("month", None, "won"), ("month", "time")),
    "Chinese times and sentences without blanks": (
        table("编号,时间,内容,类别", IDS, at("%Y年%m月%d日 %H:%M"), [f"第{i}个包裹来得太晚了" for i in range(N)],
              some("退款", "物流", "质量")), ("时间", None, "类别"), ("内容", "text")),
    "numbers with a unit name nobody": (
        table("id,day,weight,broken", IDS, at("%Y-%m-%d"), KILOS, some("y", "n")), ("day", None, "broken"), ("weight", "float")),
    "durations name nobody": (
        table("id,day,took,late", IDS, at("%Y-%m-%d"), [f"{i % 9:02}:{i % 8:02}" for i in range(N)], some("0", "1")),
        ("day", None, "late"), ("took", "text")),
    "a card is somebody, and no time in 2096": (
        table("tx,day,card,chargeback", IDS, at("%Y-%m-%d"), CARDS, some("0", "1")), ("day", "card", "chargeback"), ("card", "int")),
    "the header comes after a title": (
        table("id,day,qty,won", IDS, at("%Y-%m-%d"), some("1", "2", "3"), some("y", "n"), above=TITLE), ("day", None, "won"), ("qty", "int")),
    "decimal commas are no delimiters above which a title stands": (
        table("id;day;qty;won", IDS, at("%d.%m.%Y"), COMMAS, some("y", "n"), split=";"), ("day", None, "won"), ("qty", "float")),
    "a last column of a few words is an outcome before a number called score": (
        table("id,day,score,tier", IDS, at("%Y-%m-%d"), COMMAS, some("a", "b", "c"), split=",").replace(b",5,", b".5,"),
        ("day", None, "tier"), ("score", "float")),
}  # fmt: skip


@pytest.mark.parametrize("fault", TABLES)
def test_a_strangers_table_is_seen_for_what_it_is(tmp_path: Path, fault: str) -> None:
    content, wanted, (column, dtype) = TABLES[fault]
    (tmp_path / "x.csv").write_bytes(content)
    frame = read_table(tmp_path / "x.csv").frame
    look = survey(frame)
    assert len(frame) == N
    assert (look.time, look.entity, look.target) == wanted
    assert look[column].dtype == dtype
    assert look.target != "won" or look["won"].distinct == 2
    if column == "内容":
        assert look[column].prose
    proposal = propose(look, "found", NOW)
    assert not proposal.suspects
    assert proposal.start.year >= 2023
    said: dict[str, Any] = {}
    exec("\n".join(declared_code(proposal, Origin("found/x.csv"))), said)
    taken = check(said["found_source"].contract, frame, text=True)
    assert len(taken.quarantine) <= 0.03 * N, "what is guessed is what the contract reads"


def test_what_was_guessed_of_a_table_stays_when_rows_get_a_time() -> None:
    rows = pl.DataFrame(
        {
            "who": [f"w{i % 90}" for i in range(N)],
            "x": range(N),
            "late": some("0", "1"),
            "y": some("a", "b", "c"),
        }
    )
    look = survey(rows)
    whole, notes = completed(rows, look)
    assert len(notes) == 1 and look.target == "y"
    assert survey(whole, time="row_time", entity=look.entity, target=look.target).target == "y"


def test_objects_within_objects_become_columns(tmp_path: Path) -> None:
    rows = [
        {
            "id": i,
            "who": {"id": f"c{i % 50}", "at": {"zip": "10115"}},
            "paid": None if i % 3 else {"by": "card"},
        }
        for i in range(9)
    ]
    told = "\n".join(map(json.dumps, rows))
    for more in ("", "\nno object"):  # read at once, and line by line
        (tmp_path / "x.jsonl").write_text(told + more)
        assert set(read_table(tmp_path / "x.jsonl").frame.columns) >= {
            "id",
            "who.id",
            "who.at.zip",
            "paid.by",
        }


def test_a_first_line_of_numbers_is_no_header() -> None:
    with pytest.raises(SourceError, match="put a line of names above"):
        survey(pl.DataFrame({"0.5": [1, 2], "3": [2, 3]}))
    assert survey(pl.DataFrame({"2019": [1, 2], "2020": [2, 3]})).rows == 2


def test_names_in_other_scripts_are_told_apart() -> None:
    assert list(called(["编号", "номер", "Größe", "id"]).values()) == [
        "column_1",
        "column_2",
        "groesse",
        "id",
    ]


def test_a_table_with_nothing_to_learn_from_is_told_so() -> None:
    rows = pl.DataFrame({"id": IDS, "day": at("%Y-%m-%d"), "won": some("y", "n")})
    with pytest.raises(MlsysError, match="bring more columns, or name --entity"):
        propose(survey(rows), "bare", NOW)


def test_dates_that_a_parquet_file_has_as_text_are_declared_so() -> None:
    rows = pl.DataFrame(
        {"day": ["2024-05-01", "2024-05-02T10:00:00", None], "x": [1, 2, 3], "at": [BEGIN] * 3}
    )
    found = as_stored(survey(rows, target="x"), rows)
    assert found["day"].formats == ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d") and found["at"].formats == ()
    contract = Contract("c", (Column("day", "time", formats=found["day"].formats, nullable=True),))
    assert check(contract, rows.select("day")).rows["day"].null_count() == 1


@pytest.mark.parametrize("empty", [("a",), ("a", "b")])
def test_a_step_without_rows_says_where_they_went(empty: tuple[str, ...]) -> None:
    known = pl.Series("known_at", [NOW]).to_frame()
    events = {name: known.clear() if name in empty else known for name in ("a", "b")}
    problem = SimpleNamespace(
        name="p",
        sources=(),
        horizon=timedelta(),
        population=SimpleNamespace(calendar=SimpleNamespace(length=timedelta())),
    )
    lake = SimpleNamespace(events=events, digests={})
    at = SimpleNamespace(lake=lake, written={}, problem=problem, now=NOW)
    if len(empty) == 2:
        with pytest.raises(StaleData, match="its lake has none as of"):
            reaching(at)  # type: ignore[arg-type]
    else:
        assert reaching(at) is lake  # type: ignore[arg-type,comparison-overlap]


def written(rows: pl.DataFrame, place: str = "found/x.csv") -> dict[str, Any]:
    "What the declaration that follows from a table declares."
    look = survey(rows) if place.endswith(("csv", "jsonl")) else as_stored(survey(rows), rows)
    declared: dict[str, Any] = {}
    exec("\n".join(declared_code(propose(look, "found", NOW, rows), Origin(place))), declared)
    return declared


def log(n: int = 6000, people: int = 200, things: int = 30, **more: Any) -> pl.DataFrame:
    "Who scanned a badge where, in columns that are called nothing that is known."
    rng = np.random.default_rng(7)
    when = [BEGIN + timedelta(minutes=int(m)) for m in np.sort(rng.integers(0, 250_000, n))]
    who = [f"b{i:03}" for i in rng.integers(0, people, n)]
    what = [f"hall {i}" for i in rng.integers(0, things, n)]
    return pl.DataFrame({"scanned": when, "tag": who, "hall": what} | more)


def test_a_log_of_who_visited_what_asks_what_comes_next() -> None:
    declared = written(log())
    problem = declared["problem"]
    assert problem.target.among.item == "hall" and problem.keys == ("tag",)
    assert problem.target.among.top == 200
    crowd = replace(
        propose(survey(log()), "crowd", NOW), every=timedelta(minutes=1)
    )  # forty million pairs and more
    assert "top=20," in "\n".join(declared_code(crowd, Origin("found/x.csv")))


def test_whoever_names_the_item_of_a_log_need_not_name_its_visitor() -> None:
    rows = log().with_columns(nr=pl.col("tag").rank("dense").cast(pl.Int64))
    look = survey(rows.select("scanned", "nr", "hall"), item="hall")
    assert (look.entity, look.item, look.ranks) == ("nr", "hall", True)
    called = survey(rows.select("scanned", "hall", badge="nr"))
    assert (called.entity, called.item, called.target) == ("badge", "hall", None)


def test_many_rare_classes_are_told_in_one_line() -> None:
    sizes = [400, 300, *range(1, 30)]
    kinds = [f"kind {i}" for i, n in enumerate(sizes) for _ in range(n)]
    told = concerns(survey(pl.DataFrame({"x": range(len(kinds)), "kind": kinds}), target="kind"))
    assert [line for line in told if "kind" in line] == [
        "kind: 29 of its 31 values have fewer than 50 rows each; merge them, or ask another question"
    ]


def look_at(table: pl.DataFrame) -> Any:
    return survey(table).columns[0]


@pytest.mark.parametrize(
    ("page", "words"),
    [("cp1250", ["Złożono", "Łódź", "wąż", "Kraków"]), ("cp1251", ["Город", "Москва", "Тверь", "km"]),
     ("cp1252", ["Größe (m³)", "España", "¿Qué?", "nº 7", "Côte"])],
)  # fmt: skip
def test_a_byte_a_letter_is_read_as_the_language_it_is(tmp_path: Path, page: str, words: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(
        f"{words[0]};n\n".encode(page) + "".join(f"{w};{i}\n" for i in range(40) for w in words).encode(page)
    )
    table, origin = read_origin(str(path))
    assert table.columns[0] == words[0] and set(table[words[0]]) == set(words)
    assert [
        line for line in origin.unread if line.startswith(f"read as {page}") and "save it as UTF-8" in line
    ]
    code, said = "\n".join([origin.source("t", "None", look_at(table), None), reading(origin)]), {}
    assert f'Dialect("{page}")' in code
    ascii_only = path.with_name("u.csv")
    ascii_only.write_bytes(b"a;n\n" + "".join(f"{words[1]};{i}\n" for i in range(2)).encode(page))
    exec(
        f"from mlsys_nb.data import FilesSource\nfrom mlsys_nb.data.csv_files import Dialect\nfound = {origin.source('t', 'None', look_at(table), None)}",
        said,
    )
    assert set(read_table(ascii_only, said["found"].dialect).frame["a"]) == {words[1]}
    ascii_only.write_text(f"a;n\n{words[0]}é;1\n", encoding="utf-8")
    assert "sound UTF-8" in read_table(ascii_only, said["found"].dialect).notes[0]


def test_one_word_in_several_spellings_is_told_and_not_merged() -> None:
    rng = np.random.default_rng(2)
    told = [
        str(v)
        for v in rng.choice(
            ["yes", "YES", "Yes", "no", "NO", "perhaps"], 900, p=[0.3, 0.1, 0.1, 0.3, 0.1, 0.1]
        )
    ]
    look = survey(pl.DataFrame({"x": range(900), "came": told, "way": ["a", "b", "c"] * 300}), target="came")
    [line] = [line for line in concerns(look) if "capitals" in line]
    assert (
        "'NO': 'no'" in line
        and "'Yes': 'yes'" in line
        and "perhaps" not in line
        and look["came"].distinct == 6
    )


def test_amounts_beside_an_item_ask_first_who_returns() -> None:
    rows = log(paid=np.random.default_rng(1).random(6000).round(2)).rename({"hall": "sku", "tag": "customer"})
    look = survey(rows)
    assert (look.entity, look.item, look.ranks) == ("customer", "sku", False)
    assert survey(rows, item="sku").ranks
    assert "Happens" in declared_code(propose(look, "found", NOW), Origin("found/x.csv"))[-1]


def test_a_word_among_numbers_is_a_missing_value_and_an_amount_nobody() -> None:
    ages = ["s/d" if i % 30 == 0 else str(20 + i % 61) for i in range(N)]
    rows = pl.DataFrame(
        {"id": IDS, "day": at("%Y-%m-%d"), "edad": ages, "x": COMMAS, "baja": some("Sí", "No")}
    )
    look = survey(rows)
    assert (look.entity, look.target, look["edad"].dtype, look["edad"].marks) == (
        None,
        "baja",
        "int",
        ("s/d",),
    )
    assert check(written(rows)["found_source"].contract, rows, text=True).quarantine.is_empty()
    kinds = [
        "10 and more" if i % 30 == 0 else str(i % 9) for i in range(N)
    ]  # a class that says a number stays one
    assert survey(rows.with_columns(edad=pl.Series(kinds)))["edad"].dtype == "category"


def test_lists_are_read_and_asked_for_as_their_json(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [
        {"id": f"k{i}", "at": f"2024-01-{1 + i // 20:02}T10:00:00Z", "tags": [str(t) for t in rng.choice(list("abcde"), rng.integers(0, 4))],
         "won": ["y", "n"][int(rng.integers(0, 2))]}
        for i in range(N)
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "x.json").write_text(json.dumps(rows))
    frame = read_table(tmp_path / "x.jsonl").frame
    assert read_table(tmp_path / "x.json").frame.equals(frame)
    declared = written(frame, "found/x.jsonl")
    assert declared["features"].requests == {"tags": "text"}
    checked = check(declared["found_source"].contract, frame, text=True)
    assert checked.quarantine.is_empty()
    assert json.loads(checked.rows["tags"][1]) == rows[1]["tags"]


def test_numbers_and_truths_that_a_parquet_file_has_as_text_are_declared_so() -> None:
    numbers = [f"{1000 + i}.5" for i in range(N)]
    rows = pl.DataFrame(
        {
            "id": IDS,
            "day": [BEGIN + timedelta(hours=i) for i in range(N)],
            "x": numbers,
            "ok": some("TRUE", "FALSE"),
        }
    )
    declared = written(rows, "found/x.parquet")
    found = check(declared["found_source"].contract, rows)
    assert found.quarantine.is_empty() and found.rows["x"][0] == 1000.5
    assert declared["problem"].target.value in found.rows["ok"].to_list()


def test_what_was_assumed_is_told() -> None:
    rows = pl.DataFrame({"id": IDS, "day": at("%Y-%m-%d %H:%M:%S"), "x": COMMAS, "won": some("y", "n")})
    zone, known = assumptions(propose(survey(rows), "found", NOW))
    assert "day: no zone is written" in zone and "won: known at once" in known
    told = rows.with_columns(pl.col("day") + "+02:00")
    assert assumptions(propose(survey(told), "found", NOW)) == [known]


ZONED = [f"{BEGIN + timedelta(hours=15 * i):%Y-%m-%d %H:%M}" for i in range(N)]
# how a column is written: (values, a type it must have, what of its Column)
WRITTEN = {
    "a zone behind minutes": ([t + "+02:00" for t in ZONED], "time", {"formats": (), "zoneless": False}),
    "as PostgreSQL writes it": ([t + ":00+02" for t in ZONED], "time", {"formats": (), "zoneless": False}),
    "UTC in letters": ([t + ":00 UTC" for t in ZONED], "time", {"formats": (), "zoneless": False}),
    "decimal marks that differ from line to line": (
        [f"{i % 97}.{i % 90 + 10}" if i % 5 == 0 else f"1.{i % 900 + 100},{i % 90 + 10}" for i in range(N)],
        "float", {"decimal": ",.", "scale": 2}),
    "a sign of money with nothing or a word beside it": (
        [("€", "n/a €", "k.A. €")[i // 9 % 3] if i % 9 == 0 else f"{i % 97},{i % 90 + 10} €" for i in range(N)],
        "decimal", {"money": "€", "marks": ("k.A. €", "n/a €", "€")}),
}  # fmt: skip


@pytest.mark.parametrize("way", WRITTEN)
def test_a_column_is_read_as_it_is_written_and_its_contract_reads_the_same(tmp_path: Path, way: str) -> None:
    values, dtype, said = WRITTEN[way]
    rows = pl.DataFrame({"id": IDS, "day": at("%Y-%m-%d"), "x": values, "won": some("y", "n")})
    column = survey(rows)["x"]
    assert column.dtype == dtype and {word: getattr(column, word) for word in said} == said
    how = {w: getattr(column, w) for w in ("formats", "decimal", "thousands", "money")}
    contract = Contract(
        "c", (Column("id", "text"), Column("x", dtype, missing=column.marks, nullable=True, **how))
    )
    read = check(contract, rows.select("id", "x"), text=True)
    assert not len(read.quarantine) and read.rows["x"].null_count() == column.missing
    assert column.missing == (len([v for v in values if not any(map(str.isdigit, v))]))
    if dtype == "time":
        assert set(read.rows["x"].dt.minute()) == {0} and column.low == read.rows["x"].min()


@pytest.mark.parametrize(
    ("values", "word"),
    [([f"{i}th of June" if i % 3 else str(i) for i in range(N)], ""),
     ([f"{i}.5" if i % 9 else f"about {i}" for i in range(N)], "89% of its values are numbers"),
     ([f"{i % 28 + 1}-{i % 12 + 1}-{2000 + i % 9}T{i % 24}h{i % 50 + 10}" for i in range(N)], "looks like times, in no way"),
     ([f"OF/{i + 1:06}/23" for i in range(N)], ""), ([f"AB-{i + 100}-{i % 10}" for i in range(N)], "")],
)  # fmt: skip
def test_what_is_nearly_a_number_or_a_time_is_said_to_be_so(values: list[str], word: str) -> None:
    [column] = survey(pl.DataFrame({"x": values})).columns
    assert column.dtype == "text" and (word in " ".join(column.notes) if word else not column.notes)


def meters(days: int = 120) -> pl.DataFrame:
    "A reading of each meter each day, of which the last column is no outcome."
    rng, level = np.random.default_rng(3), np.exp(np.random.default_rng(4).normal(2, 1, 12))
    rows = [
        (f"Z{k}", BEGIN + timedelta(days=d), round(level[k] * (1 + 0.3 * (d % 7 > 4)), 2), float(d % 9))
        for d in range(days)
        for k in range(12)
        if rng.random() > 0.02
    ]
    return pl.DataFrame(rows, schema=["Zähler", "Ablesung", "Verbrauch", "Temperatur"], orient="row")


def test_what_is_measured_at_every_moment_is_asked_about_with_what_it_was_before() -> None:
    look = survey(meters())
    assert (look.entity, look.target, look.measured) == ("Zähler", "Verbrauch", True)
    whole, _ = completed(meters(), look)
    problem = written(whole)["problem"]
    assert (problem.rule.kind, problem.rule.features) == ("previous", ("last_verbrauch",))
    assert len([n for n in problem.features.names if "verbrauch" in n]) == 7
    orders = meters().with_columns(
        pl.col("Zähler").shuffle(seed=1)
    )  # as many rows, in no order: nobody's meter
    assert not survey(orders).measured


def test_a_yes_or_no_beside_the_name_of_a_row_is_its_outcome() -> None:
    told = [None if i % 3 else "where is it" for i in range(N)]
    when = [None if i % 3 else BEGIN + timedelta(hours=15 * i + 5) for i in range(N)]
    rows = pl.DataFrame({"uuid": IDS, "at": [BEGIN + timedelta(hours=15 * i) for i in range(N)],
                         "courier": [i % 40 for i in range(N)], "user_id": [i % 50 for i in range(N)], "km": range(N),
                         "tipsy": [i % 3 == 0 for i in range(N)], "complaint": told, "complained": when})  # fmt: skip
    look = survey(rows)
    assert (look.target, look.entity) == ("tipsy", "user_id")
    assert survey(rows.drop("tipsy")).target is None  # one word that is there or not says nothing more


def test_what_came_of_earlier_rows_is_a_feature_only_where_one_knows_when() -> None:
    base = {"uuid": IDS, "at": at("%Y-%m-%d"), "patient": [f"p{i % 60}" for i in range(N)], "x": range(N)}
    y = {"no_show": some("y", "n")}
    after = {"closed": [f"{BEGIN + timedelta(hours=15 * i + 50):%Y-%m-%d}" for i in range(N)]}
    assert "no_show_before" not in written(pl.DataFrame(base | y))["problem"].features.names
    assert {"last_no_show", "no_show_before"} <= set(
        written(pl.DataFrame(base | after | y))["problem"].features.names
    )


def test_numbers_name_what_was_taken_where_they_are_called_so() -> None:
    rows = log(isbn=[978_000 + i for i in np.random.default_rng(1).integers(0, 40, 6000)]).drop("hall")
    look = survey(rows)
    assert (look.item, look.ranks) == ("isbn", True)
