"""Every column kernel against its scalar form, bit for bit, on values chosen to hurt (fault 19: slow scalar steps became columns)."""

import math
import random
import struct

import numpy as np
import pytest

from mlsys_nb import features as f
from mlsys_nb.features.nullable_column import column_of
from mlsys_nb.features.transform_math import KERNELS, apply_columns
from mlsys_nb.system.clock import instant, micros

WHOLE = [
    0,
    1,
    -1,
    3,
    -3,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    2**62,
    -(2**62),
    2**63 - 1,
    -(2**63) + 1,
    10**18 + 1,
]
REAL = [0.0, -0.0, 0.5, -0.5, -1.0, -1.0000000001, 1e-300, 1e300, 5e-324, math.inf, -math.inf, 0.1, 2.0**53]
TEXT = ["", "a", "b", "A", "é", "e\u0301", "a|b", "\\", "x" * 300, "nul\x00"]
TIMES = [
    micros(instant(t)) + d
    for t in ("2010-03-28T01:00", "2010-10-31T01:00", "1999-12-31T23:59")
    for d in (-1, 0, 1)
]
LISTS = {
    "list[int]": [(), (0,), (2**63 - 1, -(2**63) + 1), (3, 3, 3)],
    "list[text]": [(), ("",), ("a|b", "é"), tuple("x" * 300)],
}
VALUES = {"int": WHOLE, "float": REAL, "text": TEXT, "bool": [True, False], "time": TIMES, **LISTS}


def column(dtype, seed, n=300):
    draw = random.Random(seed)
    return [None if draw.random() < 0.2 else draw.choice(VALUES[dtype]) for _ in range(n)]


def bits(value):
    return struct.pack("<d", value) if isinstance(value, float) else (type(value).__name__, value)


MIXED = [("int", "int"), ("int", "float"), ("float", "int"), ("float", "float")]
CASES = [
    *((op, (), pair, "float" if "float" in pair else "int") for op in ("add", "subtract", "multiply") for pair in MIXED),
    *(("divide", (zero,), pair, "float") for zero in (None, 0.0, -1.5) for pair in MIXED),
    *(("log1p", (), (t,), "float") for t in ("int", "float")),
    *(("absolute", (), (t,), t) for t in ("int", "float")),
    *(("clip", (low, high), ("int",), "int") for low, high in ((-1, None), (None, 3), (-1, 3), (0, 0), (2**63 - 1, None))),
    *(("clip", (low, high), ("float",), "float") for low, high in ((-0.5, None), (None, 0.1), (-0.0, 0.0))),
    *(("bucket", (edges, labels), ("int",), "text" if labels else "int") for edges in ((0,), (-3, 0, 3), (2**53, 2**53 + 1)) for labels in ((), ("p", "q", "r", "s")[: len(edges) + 1])),
    *(("bucket", (edges, ()), ("float",), "int") for edges in ((0.0,), (-0.0,), (-1.0, 0.0, 0.1), (5e-324, 1e300))),
    *(("filled", (VALUES[t][1],), (t,), t) for t in ("int", "float", "text", "bool")),
    *(("known", (), (t,), "bool") for t in VALUES),
    ("mapped", (((-3, "x"), (0, "y"), (2**62, "z")), None), ("int",), "text"),
    ("mapped", (((-3, -0.0), (0, 1.5)), 0.0), ("int",), "float"),
    ("mapped", (((False, 2**63 - 1), (True, 2)), None), ("bool",), "int"),
    ("mapped", ((("", True), ("e\u0301", False)), False), ("text",), "bool"),
    ("mapped", ((), "only"), ("text",), "text"),
    *((part, (zone,), ("time",), "int") for part in ("hour", "weekday", "month") for zone in ("Europe/London", "Asia/Kolkata")),
    *(("age", (unit,), ("time", "time"), "float") for unit in (1, 3600 * 10**6, 86400 * 10**6)),
    ("cross", (), ("text", "bool", "int"), "text"),
    *(("size", (), (t,), "int") for t in LISTS),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{'-'.join(c[2])}-{c[1]}"[:60])
@pytest.mark.parametrize("full", [False, True], ids=["with unknowns", "all known"])
def test_column_form_equals_scalar_form(case, full):
    op, params, dtypes, dtype = case
    rows = [column(t, i) for i, t in enumerate(dtypes)]
    if op == "age":
        rows[0] = [TIMES[0] if v is None else v for v in rows[0]]  # the moment is always known
    if full:
        rows = [[VALUES[t][0] if v is None else v for v in r] for t, r in zip(dtypes, rows, strict=True)]
    scalar = KERNELS[op].scalar(*params)
    expected = [scalar(*row) for row in zip(*rows, strict=True)]
    columns = [column_of(r, t) for r, t in zip(rows, dtypes, strict=True)]
    before = [(c.values.copy(), c.known.copy()) for c in columns]
    found = apply_columns(op, params, columns, dtype)
    assert found.dtype == dtype
    assert list(map(bits, found.items())) == list(map(bits, expected))
    for c, (values, known) in zip(columns, before, strict=True):
        assert np.array_equal(c.values, values) and np.array_equal(c.known, known), "inputs are not modified"


def test_every_kernel_is_held():
    assert {c[0] for c in CASES} == set(KERNELS) - {"spread", "own"}


def test_fault_19_no_step_falls_back_to_a_loop_of_scalars():
    for op in ("filled", "known", "bucket", "absolute", "mapped", "log1p", "clip", "add", "divide"):
        assert KERNELS[op].columns is not None, op


def test_constants_that_no_int64_holds_are_refused():
    x = f.request("x", "int")
    for make in (
        lambda: f.filled(x, 2**63),
        lambda: f.clip(x, low=-(2**63)),
        lambda: f.bucket(x, [0, 2**64]),
        lambda: f.mapped(x, {1: 2**63}),
        lambda: f.mapped(x, {2**63: 1}),
        lambda: f.mapped(x, {1: 1}, other=2**63),
    ):
        with pytest.raises(ValueError, match=r"below 2\*\*63"):
            make()
    for least in (2**63 - 1, -(2**63) + 1):
        assert f.filled(x, least).params[0] == least
