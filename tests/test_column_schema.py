"Columns as people write them: what is declared is read exactly, and nothing else is."

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlsys_nb.data.column_schema import LARGEST_INT, Column
from mlsys_nb.data.contract import Checked, Contract, ContractError, RowRule, check


def read(column: Column, *values: Any, text: bool = True) -> Checked:
    return check(Contract("c", (column,), twins="count"), pl.DataFrame({column.name: values}), text)


def values(found: Checked) -> list[Any]:
    "The value of each delivered row; the reason where it was refused."
    rows = dict(found.rows.select("row", pl.nth(1)).iter_rows())
    rows |= dict(found.quarantine.select("row", "reason").iter_rows())
    return [rows[i] for i in range(len(rows))]


@given(st.lists(st.decimals(-(2**53), 2**53, places=4), min_size=1, max_size=60), st.integers(0, 6))
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_decimal_in_text_is_exact_or_refused(numbers: list[Decimal], scale: int) -> None:
    "No detour through floating point: the same digits in three ways of writing, against Decimal."
    for column, written in (
        (Column("x", "decimal", scale=scale), [f"{n:f}" for n in numbers]),
        (Column("x", "decimal", scale=scale, money="$"), [f"${n:,.4f}" for n in numbers]),
        (
            Column("x", "decimal", scale=scale, decimal=","),
            [f"{n:,.4f}".translate({44: ".", 46: ","}) for n in numbers],
        ),
    ):
        kept = dict(read(column, *written).rows.select("row", "x").iter_rows())
        for row, number in enumerate(numbers):
            units = number.scaleb(scale)
            exact = units == units.to_integral_value() and abs(units) <= LARGEST_INT
            assert kept.get(row) == (int(units) if exact else None), (written[row], column)


def test_seventeen_digits_are_not_rounded_into_a_price() -> None:
    "0.10000000000000000555 is 0.1 to a float; the text is not."
    found = read(
        Column("x", "decimal"), "0.10", "0.10000000000000000555", "90071992547409.93", "90071992547409.92"
    )
    assert [v for v in values(found) if isinstance(v, int)] == [10, 9007199254740992]


@pytest.mark.parametrize(
    ("column", "text", "value"),
    [
        (Column("x", "decimal", money="$"), "$1,200.00", 120000),
        (Column("x", "decimal", money="$"), "-$1,200", -120000),
        (Column("x", "decimal", money="$"), "$-5", -500),
        (Column("x", "decimal", money="$"), "($1,200.50)", -120050),
        (Column("x", "decimal", money="$"), "7", 700),
        (Column("x", "decimal", money="$"), "$1,20.00", None),
        (Column("x", "decimal", money="$"), "$12,000,00", None),
        (Column("x", "decimal", money="$"), "€5", None),
        (Column("x", "decimal", money="$"), "$1234,567", None),
        (Column("x", "decimal", money="$"), "$", None),
        (Column("x", "decimal", money="$"), "$$5", None),
        (Column("x", "decimal", money="$"), "1e3", None),
        (Column("x", "decimal"), "(5)", None),
        (Column("x", "decimal"), "1,200", None),
        (Column("x", "decimal", thousands=","), "1,200", 120000),
        (Column("x", "decimal", decimal=","), "1.200,50", 120050),
        (Column("x", "decimal", decimal=","), "1.20", None),
        (Column("x", "decimal", decimal=",", thousands=" ", money="€"), "1\u202f200,50\u00a0€", 120050),
        (Column("x", "decimal", thousands="'"), "1'200.50", 120050),
        (Column("x", "int", decimal=","), "1.200", 1200),
        (Column("x", "int", decimal=","), "1,5", None),
        (Column("x", "float", decimal=","), "1,5", 1.5),
        (Column("x", "float", unit="%"), "12.5 %", 12.5),
        (Column("x", "float"), "12.5%", None),
        (Column("x", "bool"), "Yes", True),
        (Column("x", "bool"), "N", False),
    ],
)
def test_one_way_of_writing(column: Column, text: str, value: Any) -> None:
    [found] = values(read(column, text))
    assert found == value if value is not None else (isinstance(found, str) and text in found), found


def test_marks_that_stand_for_nothing() -> None:
    column = Column("x", "int", nullable=True, missing=("?", "N/A", -999))
    assert values(read(column, "?", " N/A ", "-999", "7", "n/a"))[:4] == [None, None, None, 7]
    assert "n/a is not a whole number" in values(read(column, "?", " N/A ", "-999", "7", "n/a"))[4]
    assert values(read(column, -999, 7, text=False)) == [None, 7]
    strict = Column("x", "category", missing=("",))
    assert values(read(strict, "", "a", text=False)) == ["x: missing", "a"]


def test_formats_are_tried_in_order_and_read_what_they_say() -> None:
    column = Column(
        "x", "time", zone="Europe/London", formats=("%d/%m/%Y", "%d/%m/%Y %H:%M", "%d %b %y", "epoch ms")
    )
    found = values(
        read(
            column,
            "12/07/2008",
            "12/07/2008 10:30",
            "12 Jul 08",
            "1215862200000",
            "2008-07-12",
            "12/13/2008",
            "12/07/08",
        )
    )
    day = datetime(2008, 7, 11, 23, tzinfo=UTC)
    assert found[:5] == [
        day,
        datetime(2008, 7, 12, 9, 30, tzinfo=UTC),
        day,
        datetime(2008, 7, 12, 11, 30, tzinfo=UTC),
        day,
    ]
    assert all("is not a time in Europe/London" in f for f in found[5:])
    assert values(read(column, 1215862200000, 2**62, text=False))[0] == datetime(
        2008, 7, 12, 11, 30, tzinfo=UTC
    )
    zoned = Column("x", "time", zone="Europe/London", formats=("%d/%b/%Y:%H:%M:%S %z",))
    assert values(read(zoned, "12/Jul/2008:10:30:00 +0200")) == [datetime(2008, 7, 12, 8, 30, tzinfo=UTC)]
    american = Column("x", "time", formats=("%Y-%d-%m",))
    assert values(read(american, "2008-12-07"))[0] == datetime(2008, 7, 12, tzinfo=UTC)
    assert "is not a time" in values(read(american, "2008-07-13"))[0]  # not read the other way round


@pytest.mark.parametrize(
    ("formats", "why"),
    [
        (("%d/%m/%Y", "%m/%d/%Y"), "ambiguous"),
        (("%d/%m/%y", "%y/%m/%d"), "ambiguous"),
        (("epoch s", "epoch ms"), "ambiguous"),
        (("%Y%m%d", "epoch s"), "ambiguous"),
        (("%H:%M",), "with its year"),
        (("%d/%m",), "with its year"),
        (("soon",), "with its year"),
        (("%Q",), "with its year"),
    ],
)
def test_formats_that_say_nothing_or_two_things_are_refused(formats: tuple[str, ...], why: str) -> None:
    with pytest.raises(ContractError, match=why):
        Column("x", "time", formats=formats)


def test_a_column_has_one_name_from_here_on() -> None:
    contract = Contract(
        "listings",
        (
            Column("Listing ID", "int", as_="listing"),
            Column("row", "text", as_="line"),
            Column("rule", "int", as_="law", maximum=2),
        ),
        (RowRule("small", pl.col("listing") < 10),),
        id="listing",
    )
    found = check(
        contract,
        pl.DataFrame(
            {
                "Listing ID": ["1", "x", "30"],
                "row": ["a", "b", "c"],
                "rule": ["1", "2", "3"],
                "part": [0, 0, 0],
            }
        ),
        text=True,
    )
    assert found.rows.drop("fingerprint").rows() == [(0, 1, "a", 1)]
    assert found.quarantine.select("rule", "row (delivered)").rows() == [
        ("listing: unreadable", "b"),
        ("law: above maximum 2", "c"),
    ]
    assert found.counts == {"small": 2, "law: above maximum 2": 1, "listing: unreadable": 1}
    with pytest.raises(ContractError, match="promises the columns Listing ID"):
        check(contract, pl.DataFrame({"listing": [1], "row": ["a"], "rule": [1]}))


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        ({"dtype": "text", "money": "$"}, "says how a column of type int or float or decimal is read"),
        ({"dtype": "float", "merge": {"a": "b"}}, "merge says"),
        ({"dtype": "text", "merge": {"a": "b", "b": "c"}}, "both sides"),
        ({"dtype": "decimal", "decimal": ";"}, "decimal '.' or ','"),
        ({"dtype": "decimal", "thousands": "."}, "another single sign"),
        ({"dtype": "text", "as_": "event_id"}, "the system's own"),
    ],
)  # fmt: skip
def test_declarations_that_contradict_themselves(declared: dict[str, Any], why: str) -> None:
    with pytest.raises(ContractError, match=why):
        Column("x", **declared)


def test_every_broken_rule_of_a_row_is_counted() -> None:
    contract = Contract(
        "c",
        (Column("a", "int", minimum=0), Column("b", "text", pattern="^x")),
        (RowRule("sum", pl.col("a") > 5),),
    )
    found = check(contract, pl.DataFrame({"a": [-1, 3, 9], "b": ["y", "x", "x"]}))
    assert found.counts == {"sum": 2, "a: below minimum 0": 1, "b: unlike pattern": 1}
    assert (
        found.quarantine["reason"][0].count(";") == 2 and found.quarantine["rule"][0] == "a: below minimum 0"
    )


def test_a_pandas_frame_is_a_batch() -> None:
    frame = pd.DataFrame(
        {"n": [1.0, None, 3.0], "s": ["a", None, 7], "at": pd.to_datetime(["2010-03-01"] * 3)},
        index=[7, 8, 9],
    )
    contract = Contract(
        "c",
        (Column("n", "int", nullable=True), Column("s", "text", nullable=True), Column("at", "time")),
        twins="count",
    )
    assert check(contract, frame).rows.select("n", "s").rows() == [(1, "a"), (None, None), (3, "7")]
    assert check(contract, frame).rows["at"].dtype == pl.Datetime("us", "UTC")


def test_a_pandas_frame_is_welcome_wherever_a_person_meets_one() -> None:
    "The same answers from both, and rows in the kind that was asked with."
    import numpy as np
    import serving_world as world

    from mlsys_nb.evaluation import Probability, clusters, slice_gains, slice_report
    from mlsys_nb.learning import fit, permutation_importance
    from mlsys_nb.monitoring import drift_check, period_wobble, reference_profile
    from mlsys_nb.problem.dataset import Lake, build_dataset
    from mlsys_nb.release.package import open_package

    rows, problem = world.dataset().frame, world.problem
    other, names = rows.to_pandas(), problem.features.names
    both = [fit("linear", frame, names, rule=problem.rule) for frame in (rows, other)]
    p, q = both[0].predict(rows), both[1].predict(other)
    model = open_package(world.package())
    assert np.array_equal(p, q) and np.array_equal(model.predict(rows), model.predict(other))
    judge, groups = Probability(), clusters(other, ["customer_id"])
    assert groups.tolist() == clusters(rows, ["customer_id"]).tolist()
    tables = [
        lambda f: slice_report(judge, f, f["label"], p, ["country"], groups=groups),
        lambda f: slice_gains(judge, f, f["label"], p, q, ["country"], groups=groups),
        lambda f: permutation_importance(judge, both[0].predict, f, names[:2], groups=groups, repeats=1),
    ]
    for made in tables:
        a, b = made(rows), made(other)
        assert isinstance(a, pl.DataFrame) and isinstance(b, pd.DataFrame)
        assert a.equals(pl.from_pandas(b, schema_overrides=a.schema))
    profiles = [reference_profile(frame, names[:3]) for frame in (rows, other)]
    assert profiles[0].to_json() == profiles[1].to_json()
    newer = [frame[frame["moment"] == frame["moment"].max()] for frame in (other,)]
    assert drift_check(profiles[0], newer[0]).rows == rows.filter(moment=rows["moment"].max()).height
    assert period_wobble(judge, other) == period_wobble(judge, rows)
    lake = Lake({"lines": world.lines().to_pandas()}, ())
    assert build_dataset(problem, lake, world.MOMENTS[:2], world.JUNE).digest == (
        build_dataset(problem, world.lake(), world.MOMENTS[:2], world.JUNE).digest
    )
