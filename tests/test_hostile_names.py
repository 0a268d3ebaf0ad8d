"""Columns called as the system calls its own: each is refused by name when it is declared, or means what any other column means.

The names are gathered from the code itself: every name that a frame of data, features, problem or loop is given beside a user's columns, and what
people and machines write into headers."""

import ast
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlsys_nb import features as f
from mlsys_nb.data.column_schema import Column
from mlsys_nb.data.contract import Contract, ContractError, RowRule, check_many
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import quarantine, read, snapshot
from mlsys_nb.data.reserved_columns import delivered_as
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.data.withdrawal import withdraw
from mlsys_nb.features.feature_set import from_spec, to_spec
from mlsys_nb.features.store_sync import OnlineStore, open_online
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = (
    "", " ", "a b", "x'", 'x"', "x`", "x;y", "x,y", "x\ty", "x/y", "..", "*", "^.*$", "{}", "%s", "naïve", "é" * 150, "数量", "🙂", "\u202eabc",
    "n" * 300, "__index__", "__index_level_0__", "index", "id", "row (delivered)", "part (delivered)", "fault of x", "fault of plain", "True", "null",
    "NaN", "0", "1", "-1", "literal", "len", "count", "value", "values", "entity", "moment", "label", "period", "time", "known_at", "name",
)  # fmt: skip
CALLS = {
    "alias",
    "with_row_index",
    "rename",
    "col",
    "lit",
    "drop",
    "sort",
    "over",
    "group_by",
    "select",
    "with_columns",
    "agg",
    "join",
}


def names_in(path: Path) -> set[str]:
    "Words that a module gives to columns of a frame: keywords and texts of polars calls."
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CALLS:
            found |= {k.arg for k in node.keywords if k.arg}
            found |= {
                a.value for a in ast.walk(node) if isinstance(a, ast.Constant) and isinstance(a.value, str)
            }
    return {n for n in found if len(n) <= 30}


INTERNAL = sorted(
    {
        n
        for floor in ("data", "features")
        for p in (ROOT / "mlsys_nb" / floor).glob("*.py")
        for n in names_in(p)
    }
)
ONCE = (
    "part",
    "code",
    "gone",
    "told",
    "claimed",
    "broken",
    "batch",
    "ending",
    "before",
    "by",
    "until",
    "version",
)  # were lost, or broke it
NAMES = sorted({*WRITTEN, *ONCE, *INTERNAL})


def told(name: str, shape: str) -> Contract:
    sale = Column("sale", "int")
    columns = (Column("x", "int"), Column("plain", "text"), Column(name, "text"), Column("at", "time"))
    if shape == "id":
        return Contract("c", (sale, *columns), id="sale")
    if shape == "is id":
        return Contract("c", columns, id=name)
    return Contract("c", columns, twins=shape)


def frames(name: str) -> list[pl.DataFrame]:
    at = [datetime(2026, 1, i, tzinfo=UTC) for i in (1, 2, 2, 3, 4)]
    one = {
        "sale": [1, 2, 2, 3, 4],
        "x": ["1", "2", "2", "drei", "4"],
        "plain": ["a", "b", "b", "c", None],
        name: ["p", "q", "q", "r", "s"],
    }
    first = pl.DataFrame({**one, "at": at})
    return [first, first.with_columns(pl.lit("7").alias("x"))]


@pytest.mark.parametrize("shape", ["once", "count", "id", "is id"])
def test_a_hostile_name_means_what_any_other_means(shape: str) -> None:
    usual = check_many(told("usual name", shape), frames("usual name"), text=True)
    wrong = []
    for name in NAMES:
        if name in ("sale", "x", "plain", "at"):
            continue
        try:
            contract = told(name, shape)
        except ContractError as e:
            assert repr(name) in str(e), e
            continue
        try:
            found = check_many(contract, frames(name), text=True)
            for a, b in zip(found, usual, strict=True):
                assert a.rows[name].to_list() == b.rows["usual name"].to_list()
                assert a.rows.width == b.rows.width and a.quarantine.width == b.quarantine.width
                assert a.quarantine["rule"].to_list() == b.quarantine["rule"].to_list()
                assert a.n_duplicates == b.n_duplicates
        except Exception as e:
            wrong.append((name, f"{type(e).__name__}: {e}"[:150]))
    assert not wrong, "\n".join(map(str, wrong))


def legal(name: str) -> bool:
    try:
        return bool(Column(name, "text"))
    except ContractError:
        return False


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    (tmp_path / "raw" / "all").mkdir(parents=True)
    return replace(load_settings(root=tmp_path / "root", home=ROOT), raw=tmp_path / "raw")


@pytest.mark.parametrize("shape", ["once", "count", "id"])
def test_a_table_of_nothing_but_hostile_names_goes_into_the_lake_and_comes_back(
    here: Settings, shape: str
) -> None:
    names = [n for n in NAMES if n not in ("at", "sale", "x")]
    called = [n if legal(n) else f"called {i}" for i, n in enumerate(names)]
    columns = [Column(n, "text", as_="" if n == c else c) for n, c in zip(names, called, strict=True)]
    rows = {n: [f"{i}", f"{i}", f"{i} bad", f"{i} good"] for i, n in enumerate(names)}
    at = [datetime(2026, 1, i, tzinfo=UTC) for i in (1, 1, 2, 3)]
    frame = pl.DataFrame(
        {**rows, "at": at, "sale": [1, 1, 2, 3], "x": [1, 1, -1, 3], "retracted": [False] * 4}
    )
    frame.drop(*(() if shape == "id" else ("retracted",))).write_parquet(
        here.raw / "all" / "2026-01-05.parquet"
    )
    rule = RowRule("rises", pl.col("x") > 0)
    told = {"id": "sale"} if shape == "id" else {"twins": shape}
    contract = Contract(
        "all", (*columns, Column("at", "time"), Column("sale", "int"), Column("x", "int")), (rule,), **told
    )
    source = FilesSource(
        "all",
        contract,
        "all",
        known=lambda p: instant(p.stem),
        derive=lambda f: f.with_columns(twice=pl.col("x") * 2),
    )
    done = ingest(here, source, instant("2026-01-06"))
    kept, aside = read(here, snapshot(here, "all")), quarantine(here, snapshot(here, "all"))
    assert (done.rows, kept.height, aside.height) == (
        {"once": 2, "count": 3, "id": 2}[shape],
        *(2 if shape != "count" else 3, 1),
    )
    for i, (name, now) in enumerate(zip(names, called, strict=True)):
        assert kept.sort("at")[now].to_list() == [f"{i}"] * (kept.height - 1) + [f"{i} good"], name
        assert aside[delivered_as(name)].to_list() == [f"{i} bad"], name
    assert aside["rule"].to_list() == ["rises"] and aside["row"].to_list() == [2]
    more = (
        frame.head(1)
        .with_columns(sale=pl.lit(9), at=pl.lit(at[3]))
        .drop(*(() if shape == "id" else ("retracted",)))
    )
    more.write_parquet(here.raw / "all" / "2026-01-07.parquet")
    ingest(here, source, instant("2026-01-08"))
    withdraw(here, "all", "2026-01-05.parquet", instant("2026-01-09"), "wrong")
    last = read(here, snapshot(here, "all"))
    assert last.columns == kept.columns and last["retracted_at"].null_count() == 1
    left = last.filter(pl.col("retracted_at").is_not_null()).drop("retracted_at")
    assert left.sort("at", "event_id").equals(kept.drop("retracted_at").sort("at", "event_id"))


asked_at = pl.Series("moment", [datetime(2026, 1, 3, tzinfo=UTC)] * 2).dt.cast_time_unit("us")


def features_of(
    key: str, column: str, time: str, feature: str, kind: str = "e"
) -> tuple[f.Events, f.FeatureSet]:
    events = f.Events(kind, {key: "int", "other": "text"}, time, {column: "text", "n": "int"})
    told = (
        f.last(events, column, by=key).named(feature),
        f.count_distinct(events, column, "7d", where=events["n"] > 0, by=key).named("kinds"),
        f.mode(events, column, f.session("2d"), by=key).named("usual"),
        f.sum(events, "n", "lifetime", where=events[column] == "p", by=(key, "other")).named("pairs"),
    )
    return events, f.FeatureSet("set", told)


def computed(told: list[str], store: OnlineStore, kind: str) -> list[Any]:
    "History's answers, held against those of the store."
    events, features = features_of(*told, kind)
    key, column, time, _ = told
    at = pl.Series([datetime(2026, 1, i, tzinfo=UTC) for i in (1, 2, 2, 5)]).dt.cast_time_unit("us")
    rows = pl.DataFrame({"n": [1, 2, 3, 4], "other": ["o"] * 4, "event_id": [1, 2, 3, 4], "known_at": at})
    rows = rows.with_columns(
        pl.Series(key, [7, 7, 8, 7]), pl.Series(column, ["p", "q", "p", "r"]), at.alias(time)
    )
    asked = pl.DataFrame({key: [7, 8], "other": ["o", "o"]}).with_columns(asked_at)
    history = f.as_of(features, asked, {kind: rows}).select(features.names).rows()
    store.keep(features)
    store.write(events, rows)
    reader = store.reader(features)
    served = [tuple(reader.read({key: k, "other": "o"}, asked_at[0]).values()) for k in (7, 8)]
    assert served == history
    assert from_spec(json.loads(json.dumps(to_spec(features)))) == features
    return history


@pytest.mark.parametrize("role", range(4))
def test_events_of_any_name_have_the_features_of_any_other(role: int, tmp_path: Path) -> None:
    plain, wrong = ["entity_id", "colour", "happened", "latest colour"], []
    with open_online(tmp_path) as store:
        usual = computed(plain, store, "usual")
        for i, name in enumerate(NAMES):
            told = [name if r == role else p for r, p in enumerate(plain)]
            try:
                features_of(*told)
            except (ValueError, KeyError) as e:
                if repr(name) not in str(e):
                    wrong.append((name, f"refused without its name: {e}"))
                continue
            try:
                assert computed(told, store, f"kind {i}") == usual
            except Exception as e:
                wrong.append((name, f"{type(e).__name__}: {e}"[:160]))
    assert not wrong, "\n".join(map(str, wrong))
