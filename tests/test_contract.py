"Values that fit nowhere: each is the fault of its row, named, and of nothing else."

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlsys_nb.data.column_schema import LARGEST_INT, Column
from mlsys_nb.data.contract import Contract, ContractError, RowRule, check
from mlsys_nb.data.row_hash import fingerprints, numbered

SPAN = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC))


def judged(column: Column, series: pl.Series, text: bool = False) -> Any:
    return check(Contract("c", (column,), twins="count"), series.alias("x").to_frame(), text)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(0, 12))
@hypothesis_settings(max_examples=150, deadline=None)
def test_fault_3_a_whole_number_of_pounds_never_wraps_into_pennies(pounds: list[int], scale: int) -> None:
    found = judged(Column("x", "decimal", scale=scale), pl.Series(pounds, dtype=pl.Int64))
    kept = dict(found.rows.select("row", "x").iter_rows())
    for row, value in enumerate(pounds):
        exact = value * 10**scale
        assert kept.get(row) == (exact if abs(exact) <= LARGEST_INT else None)
    assert len(kept) + len(found.quarantine) == len(pounds)


def test_fault_3_the_named_price_is_quarantined_under_its_own_name() -> None:
    found = judged(Column("x", "decimal", unit="GBP"), pl.Series([184467440737095517, 84]))
    assert found.rows["x"].to_list() == [8400]
    assert found.quarantine["x"].to_list() == [184467440737095517]
    assert "184467440737095517 is not a whole number of 0.01 GBP below 2**53" in found.quarantine["reason"][0]


@given(
    st.lists(st.integers(-(2**63) + 1, 2**63 - 1), min_size=1, max_size=8),
    st.sampled_from(["ms", "us", "ns"]),
    st.sampled_from([None, "UTC", "Asia/Kolkata"]),
    st.sampled_from(["UTC", "Europe/London", "Pacific/Apia"]),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_fault_3_no_time_stops_the_process(
    values: list[int], unit: Any, zone: str | None, read_in: str
) -> None:
    series = pl.Series(values, dtype=pl.Int64).cast(pl.Datetime(unit, zone))
    found = judged(Column("x", "time", zone=read_in), series)
    assert len(found.rows) + len(found.quarantine) == len(values)
    assert all(
        SPAN[0] <= t <= SPAN[1] for t in found.rows["x"].to_list()
    )  # Python can hold every one of them
    assert found.quarantine["reason"].null_count() == 0
    assert repr(found.quarantine.rows()) and found._repr_html_()


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    st.sampled_from(["UTC", "Europe/London"]),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_fault_3_no_date_stops_the_process(days: list[int], zone: str) -> None:
    found = judged(Column("x", "time", zone=zone), pl.Series(days, dtype=pl.Int32).cast(pl.Date))
    assert len(found.rows) + len(found.quarantine) == len(days)
    assert all(isinstance(t, datetime) for t in found.rows["x"].to_list())
    assert repr(found.quarantine.rows())


def test_fault_3_a_date_beyond_the_calendar_is_shown_as_it_came() -> None:
    dates = pl.Series([2**31 - 1, 14669], dtype=pl.Int32).cast(pl.Date)
    found = judged(Column("x", "time"), dates)
    assert found.rows["x"].to_list() == [datetime(2010, 3, 1, tzinfo=UTC)]
    assert found.quarantine["x"].to_list() == ["2147483647 days since 1970"]
    assert "2147483647 days since 1970 is not a time in UTC" in found.quarantine["reason"][0]


@pytest.mark.parametrize(
    "text", ["0000-12-31", "+262142-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"]
)
def test_times_in_text_stay_within_the_calendar(text: str) -> None:
    found = judged(Column("x", "time"), pl.Series([text, "2010-03-01"]), text=True)
    assert len(found.rows) == 1 and found.quarantine["x"].to_list() == [text]


def test_fault_12_limits_of_the_engine_need_no_declaration() -> None:
    numbers = pl.Series([2**53, 2**53 + 1, -(2**53) - 1, -(2**63)])
    found = judged(Column("x", "int"), numbers)
    assert found.rows["x"].to_list() == [2**53] and found.counts == {"x: beyond 2**53": 3}
    wide = judged(Column("x", "int", minimum=-(2**63), maximum=2**63 - 1), numbers)  # keys, and says so
    assert len(wide.rows) == 4
    ids = pl.Series(["a" * 400, "a" * 401, "ä" * 201, "ä" * 200])
    named = check(Contract("c", (Column("x", "text"),), id="x"), ids.alias("x").to_frame())
    assert named.rows["row"].to_list() == [0, 3] and named.counts == {"x: longer than 400 bytes": 2}
    whole = check(Contract("c", (Column("x", "int"),), id="x"), numbers.alias("x").to_frame())
    assert len(whole.rows) == 4  # an id is not computed with


def test_every_broken_rule_of_a_row_is_told() -> None:
    contract = Contract(
        "c",
        (Column("a", "int", minimum=1), Column("b", "text", pattern="^x"), Column("c", "int")),
        rules=(RowRule("small", pl.col("a") + pl.col("c") < 9, "together below nine"),),
    )
    frame = pl.DataFrame({"a": ["0", "5", "soon"], "b": ["y", "x", "x"], "c": ["1", "7", "1"]})
    found = check(contract, frame, text=True).quarantine
    assert found["rule"].to_list() == ["a: below minimum 1", "small", "a: unreadable"]
    assert found["reason"][0] == "a: 0 is below minimum 1; b: y does not look like ^x"
    assert (
        found["reason"][2].startswith("a: soon is not a whole number") and "missing" not in found["reason"][2]
    )
    assert found["b"].to_list() == ["y", "x", "x"]


def test_fault_7_equal_rows_are_equal_however_they_are_written() -> None:
    contract = Contract("c", (Column("price", "decimal"), Column("at", "time")))
    frame = pl.DataFrame(
        {"price": ["6.95", "6.950", " 6.95 "], "at": ["2010-03-01", "2010-03-01T00:00", "2010-03-01Z"]}
    )
    found = check(
        contract, frame.with_columns(at=pl.Series(["2010-03-01", "2010-03-01T00:00", "2010-03-01"])), True
    )
    assert (len(found.rows), found.n_duplicates) == (1, 2)


def test_contracts_whose_identity_makes_no_sense() -> None:
    columns = (Column("x", "float"), Column("n", "int"), Column("at", "time"))
    for wrong in (
        {"id": "x"},  # 9.0 and 10.0 would sort differently here and there
        {"twins": "twice"},
        {"id": "n", "twins": "count"},
        {"claims": "n"},
        {"claims": "nowhere"},
    ):
        with pytest.raises(ContractError):
            Contract("c", columns, **wrong)  # type: ignore[arg-type]
    hashes = {
        Contract("c", columns, **k).hash for k in ({}, {"twins": "count"}, {"id": "n"}, {"claims": "at"})
    }  # type: ignore[arg-type]
    assert len(hashes) == 4


values = st.one_of(st.none(), st.integers(-3, 3))
words = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ab", "0", "\0", "ä"]))
floats = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5, -1.5]))
days = st.one_of(st.none(), st.sampled_from([date(2010, 3, 1), date(1969, 12, 31)]))


@given(st.lists(st.tuples(values, words, floats, days, words), min_size=1, max_size=12))
@hypothesis_settings(max_examples=150, deadline=None)
def test_fingerprints_are_equal_exactly_where_rows_are(rows: list[Any]) -> None:
    kinds = {"n": pl.Int64, "a": pl.String, "x": pl.Float64, "day": pl.Date, "b": pl.String}
    frame = pl.DataFrame(rows, schema=kinds, orient="row")
    prints = fingerprints(frame, frame.columns)
    same = {tuple(r): p for r, p in zip(rows, prints, strict=True)}  # 0.0 == -0.0 in Python as well
    assert len(set(prints)) == len(same)
    shuffled = frame.select("b", "day", "n", "x", "a").reverse()
    assert fingerprints(shuffled, shuffled.columns).to_list() == prints.to_list()[::-1]
    assert numbered(prints).n_unique() == len(rows)
    assert sorted(numbered(prints.reverse())) == sorted(numbered(prints))


def test_a_withdrawal_that_cannot_be_read_is_no_event() -> None:
    told = pl.DataFrame({"n": [1, 2, 3], "retracted": ["true", "perhaps", None]})
    found = check(Contract("visits", (Column("n", "int"),), id="n"), told, text=True)
    assert found.rows["n"].to_list() == [1, 3]
    assert found.quarantine["rule"].to_list() == ["retracted: unreadable"]
