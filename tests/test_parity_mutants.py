"""Planted mistakes: each is one that real feature pipelines ship with, and `certify` must reject it.

A mutant counts as rejected when the certificate shows differing bits, or when an evaluation refuses to go on.
"""

import math
import unicodedata
from bisect import bisect_left
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from conftest import FULL
from feature_sets import features

from mlsys_nb.features import (
    aggregation_math,
    events,
    history_sort,
    list_reduction,
    parity,
    plan_execution,
    point_in_time_join,
    store_filters,
    store_reader,
    store_updates,
    transform_math,
    visible_events,
    window_index,
    window_lengths,
)
from mlsys_nb.features.events import NEVER, NULL
from mlsys_nb.features.nullable_column import MaskedColumn
from mlsys_nb.features.parity import certify
from mlsys_nb.features.record_packing import ORDERLY, TIME
from mlsys_nb.features.transform_math import Kernel

FEW, SEED = 20, 4
strict = replace(features, strict=True)


def kernel(monkeypatch, name, scalar=None, columns=None):
    old = transform_math.KERNELS[name]
    monkeypatch.setitem(
        transform_math.KERNELS,
        name,
        Kernel(scalar or old.scalar, columns if columns is not None else old.columns),
    )


def encoded(monkeypatch, room, change):
    "Change what comes through the door of history or of the store."
    real = room.encode
    monkeypatch.setattr(room, "encode", lambda *args: change(real(*args)))


def window_closed_in_history(m):
    real = history_sort.edges_at
    m.setattr(
        history_sort,
        "edges_at",
        lambda w, t: [e if i or e is None else e - 1 for i, e in enumerate(real(w, t))],
    )


def window_closed_in_store(m):
    real, piece = window_lengths.Window.bounds, visible_events.piece_of
    m.setattr(
        window_lengths.Window,
        "bounds",
        lambda self, t: (real(self, t)[0] and real(self, t)[0] - 1, real(self, t)[1]),
    )
    m.setattr(visible_events, "piece_of", lambda r, t, w: piece(r, t, w if w is None else w + 1))


def lag_forgotten_in_history(m):
    real = window_index.stay
    m.setattr(window_index, "stay", lambda w, t: real(replace(w, lag=0), t))
    edges = history_sort.edges_at
    m.setattr(history_sort, "edges_at", lambda w, t: edges(replace(w, lag=0), t))


def lag_moves_what_is_known_in_store(m):
    real = visible_events.piece_of
    m.setattr(visible_events, "piece_of", lambda r, t, w: real(r, t - 3_600_000_000, w))


def last_month_ends_now_in_store(m):
    real = window_lengths.Window.bounds
    m.setattr(window_lengths.Window, "bounds", lambda self, t: (real(self, t)[0], t - self.lag))


def months_of_utc_in_store(m):
    real = window_lengths.Window.bounds
    m.setattr(
        window_lengths.Window, "bounds", lambda self, t: real(replace(self, zone=self.zone and "UTC"), t)
    )


def distinct_ignores_lag(m):
    real = window_index.stay
    m.setattr(window_index, "stay", lambda w, t: (t, real(w, t)[1]))


def hour_of_events_in_utc_in_store(m):
    real = store_filters.time_parts
    m.setattr(store_filters, "time_parts", lambda part, zone, t: real(part, "UTC", t))


def equal_unknowns_in_store(m):
    m.setattr(store_filters, "mask_of_columns", lambda c, kind, holds, real=store_filters.mask_of_columns: lambda seen: real(c, kind, holds)(seen) | (
        store_filters.operand_of(c.args[1], kind)(seen) == NULL))  # fmt: skip


def texts_compared_by_code_in_store(m):
    m.setattr(store_filters, "text_ranks", lambda seen, *columns: columns)


def moment_excluded_in_store(m):
    m.setattr(
        visible_events,
        "bisect_right",
        lambda a, x, lo=0, hi=None: bisect_left(a, x, lo, len(a) if hi is None else hi),
    )


def known_at_ignored_in_history(m):
    encoded(m, point_in_time_join, lambda e: replace(e, start=e.time))


def known_at_ignored_in_store(m):
    encoded(m, store_updates, lambda e: replace(e, known=e.time))


def event_time_ignored(m):
    encoded(m, point_in_time_join, lambda e: replace(e, start=e.known))


def retraction_ignored_in_history(m):
    encoded(m, point_in_time_join, lambda e: replace(e, end=np.full(len(e.end), NEVER)))


def retraction_ignored_in_store(m):
    encoded(m, store_updates, lambda e: replace(e, end=np.full(len(e.end), NEVER)))


def retraction_one_late(m):
    encoded(m, point_in_time_join, lambda e: replace(e, end=np.where(e.end == NEVER, NEVER, e.end + 1)))


def dedup_off_in_history(m):
    def keep_all(declared, rows):
        return rows

    m.setattr(events, "resolve_versions", keep_all)


def correction_does_not_end_in_store(m):
    real = store_updates.resolved
    m.setattr(
        store_updates,
        "resolved",
        lambda *args: replace(real(*args), ended=real(*args).new.take(np.arange(0))),
    )


def zero_rule_in_history(m):
    kernel(m, "divide", columns=lambda zero, a, b: transform_math.divide_columns(0.0, a, b))


def zero_rule_in_serving(m):
    kernel(m, "divide", scalar=lambda zero: transform_math.divide(0.0 if zero is None else zero))


def ddof_ignored(m):
    kernel(m, "spread", scalar=lambda ddof, root: transform_math.spread(0, root))


def time_zone_ignored(m):
    kernel(m, "hour", scalar=lambda zone: transform_math.time_part("hour", "UTC"))


def fixed_offset_instead_of_zone(m):
    def hour(zone, x):
        values = (x.values // 3_600_000_000) % 24  # right in London for half of the year
        return MaskedColumn(values, x.known, "int")

    kernel(m, "hour", columns=hour)


def weekday_from_zero(m):
    real = transform_math.KERNELS["weekday"].columns
    kernel(m, "weekday", columns=lambda zone, x: replace(real(zone, x), values=real(zone, x).values - 1))


def another_log_provider(m):
    def log1p(x):
        known = x.known & (x.values > -1)
        return MaskedColumn(np.log(1.0 + np.where(known, x.values, 0)), known, "float")

    kernel(m, "log1p", columns=log1p)


def float_sums(m):
    real = aggregation_math.reduced

    def reduced(t, part, view, *more):
        if part.op != "sum" or not isinstance(view, aggregation_math.Ranges):
            return real(t, part, view, *more)
        values = t.events.columns[part.column][view.rows].astype(np.float64)
        sums = np.append(0.0, np.cumsum(values))
        return (sums[view.hi] - sums[view.lo]).astype(np.int64), None

    m.setattr(aggregation_math, "reduced", reduced)


def two_roundings_in_a_mean(m):
    m.setattr(transform_math, "inexact", lambda column: np.zeros(len(column.values), dtype=bool))


def null_counts_as_zero(m):
    encoded(
        m,
        point_in_time_join,
        lambda e: replace(e, columns={c: np.where(v == NULL, 0, v) for c, v in e.columns.items()}),
    )


def nan_is_a_value(m):
    real = events.typed_column

    def typed(name, dtype, found, owner):
        return (
            pl.col(name).fill_nan(0.0)
            if dtype == "float" and found != pl.Null
            else real(name, dtype, found, owner)
        )

    m.setattr(events, "typed_column", typed)


def minus_zero_kept(m):
    real = events.typed_column

    def typed(name, dtype, found, owner):
        return (
            pl.col(name).fill_nan(None)
            if dtype == "float" and found != pl.Null
            else real(name, dtype, found, owner)
        )

    m.setattr(events, "typed_column", typed)


def ties_by_arrival(m):
    m.setattr(history_sort, "tie_order", lambda *args: None)


def ties_by_arrival_in_store(m):
    def by_time(rows, group=None):
        return np.lexsort((rows.cells[TIME],) if group is None else (rows.cells[TIME], group))

    m.setattr(store_updates, "sorted_rows", by_time)


def distinct_counts_events(m):
    m.setattr(aggregation_math, "distinct_in_ranges", lambda view, t, values: view.count())


def text_is_normalised(m):
    real = store_updates.text_code
    m.setattr(store_updates, "text_code", lambda text: real(unicodedata.normalize("NFC", text)))


def edge_belongs_below(m):
    kernel(m, "bucket", scalar=lambda edges, labels: _bucket_left(edges, labels))


def _bucket_left(edges, labels):
    def scalar(x):
        if x is None:
            return None
        place = bisect_left(edges, x)
        return labels[place] if labels else place

    return scalar


def late_events_lost_in_store(m):
    real = visible_events.piece_of
    m.setattr(visible_events, "piece_of", lambda r, t, w: real(r, t, w) if r.flags & ORDERLY else None)


def unknown_counts_in_store(m):
    m.setattr(visible_events, "NULLS", 0)


def not_of_unknown_is_true_in_store(m):
    m.setitem(store_filters.COMPARED, "!=", lambda v, c: v != c)
    m.setitem(store_filters.COMPARED, "<", lambda v, c: v < c)


def conditions_forgotten_in_store(m):
    real = store_reader.mask_of
    m.setattr(
        store_reader, "mask_of", lambda c, kind: lambda seen: np.ones(len(real(c, kind)(seen)), dtype=bool)
    )


def mode_takes_the_largest_of_equals_in_store(m):
    m.setattr(store_reader, "min", max, raising=False)


def the_newest_part_is_forgotten(m):
    real = visible_events.pieces_of
    m.setattr(
        store_reader,
        "pieces_of",
        lambda head, key, get, span: real(head, key, get, span)[:-1] if head.n > 3 else [],
    )


def overflow_wraps(m):
    m.setattr(transform_math, "whole", lambda value: (value + 2**63) % 2**64 - 2**63)


def unknown_category_is_null(m):
    kernel(m, "mapped", scalar=lambda pairs, other: lambda x, d=dict(pairs): d.get(x))


def mode_takes_the_last_of_equals(m):
    real = aggregation_math.mode_in_spans
    m.setattr(
        aggregation_math,
        "mode_in_spans",
        lambda view, values: np.where(real(view, -values) == NULL, NULL, -real(view, -values)),
    )


def own_product_instead_of_the_wanted_one(m):
    real = store_reader.Reading.key
    m.setattr(
        store_reader.Reading,
        "key",
        lambda self, who: real(
            self, {**who, "product": who["product"]} if not self.bound else {**who, "product": "a"}
        ),
    )


def nobody_is_everybody(m):
    m.setattr(point_in_time_join, "elsewhere", lambda *told, real=point_in_time_join.elsewhere: real(*told).with_columns(
        pl.lit(None, pl.Int64).alias("customer") if "customer" in told[0].by else pl.lit(0).alias("none")))  # fmt: skip


def every_item_counts_in_store(m):
    real = plan_execution.reduction

    def counted(op, dtype):
        act = real(op, dtype)
        return lambda values: act([v or 0 for v in values])

    m.setattr(plan_execution, "reduction", counted)


def items_count_once_in_store(m):
    real = plan_execution.item_values
    m.setattr(
        plan_execution,
        "item_values",
        lambda act, slots, at, look: real(
            act, [*slots[:at], slots[at] and tuple(dict.fromkeys(slots[at])), *slots[at + 1 :]], at, look
        ),
    )


def floats_of_items_added_in_order(m):
    m.setitem(list_reduction.REDUCED, "sum", lambda values: list_reduction.whole(sum(values)) if values and type(values[0]) is int else math.nan if {math.inf, -math.inf} <= {*values} else sum(values))  # fmt: skip


def items_of_the_next_row_in_history(m):
    real = plan_execution.exploded
    m.setattr(
        plan_execution,
        "exploded",
        lambda *told: replace(real(*told), place=np.maximum(real(*told).place - 1, 0)),
    )


def no_list_is_an_empty_one_in_history(m):
    real = plan_execution.exploded
    m.setattr(
        plan_execution, "exploded", lambda *told: replace(real(*told), known=np.ones_like(real(*told).known))
    )


def strictness_forgotten_in_store(m):
    m.setattr(store_reader, "answered", lambda r, *told, real=store_reader.answered: real(loose(r), *told))


def strictness_forgotten_in_history(m):
    m.setattr(parity, "as_of", lambda features, *told: point_in_time_join.as_of(loose(features), *told))


def strict_rows_see_other_ages(m):
    def answered(r, found, places, asked, real=store_reader.answered):
        given, *rest = asked
        return real(loose(r), found, places, ([given[0] - r.features.strict, *given[1:]], *rest))

    m.setattr(store_reader, "answered", answered)


def loose(owner):
    "A set, or a reader of one, that sees its own moment."
    if isinstance(owner, store_reader.Reader):
        return replace(owner, features=loose(owner.features))
    return replace(owner, strict=False)


MUTANTS = [
    f
    for name, f in list(globals().items())
    if callable(f)
    and f.__module__ == __name__
    and len(f.__code__.co_varnames)
    and f.__code__.co_varnames[0] == "m"
    and f.__code__.co_argcount == 1
]


def test_there_are_enough():
    assert len(MUTANTS) >= 20


@pytest.mark.parametrize("declared", [features, strict], ids=["loose", "strict"])
def test_the_unchanged_floor_passes(declared):
    "The very cases in which most mistakes are found; test_parity.py has many more."
    assert certify(declared, FEW, SEED).examples == ()


@pytest.mark.parametrize("mutant", MUTANTS if FULL else MUTANTS[::2], ids=lambda f: f.__name__)
def test_is_rejected(mutant, monkeypatch):
    mutant(monkeypatch)
    declared = strict if "strict" in mutant.__name__ else features
    try:  # a few cases find most; a rare mistake is looked for in as many as a certificate that ships has
        draws = (parity.certify(declared, FEW, SEED + i) for i in range(1_000 // FEW + 5))
        certificate = next((found for found in draws if not found.passed), None)
    except Exception as refusal:  # an evaluation that refuses to go on has noticed the mistake
        assert not isinstance(refusal, (NameError, ImportError, AttributeError, TypeError)), refusal
        return
    assert certificate, f"{mutant.__name__} survived"
