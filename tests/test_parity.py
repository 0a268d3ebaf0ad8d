"""Training, serving and the stream give the same bits, on generated cases, for every word of the feature floor.

The always-run part compares 250 cases a feature, `make long` 5,000. The acceptance figure (10,000 and more) is
`TEST_MLSYS_PARITY_CASES=10000 pytest tests/test_parity.py`, or `mlsys parity churn`.
"""

import os
from datetime import datetime, timedelta

import polars as pl
import pytest
from feature_sets import features, orders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlsys_nb import features as f
from mlsys_nb.features import FeatureSet
from mlsys_nb.features.generated_test_cases import World
from mlsys_nb.features.parity import bits, by_history, by_reference, by_store, certify
from mlsys_nb.system.clock import EPOCH

CASES = int(os.environ.get("TEST_MLSYS_PARITY_CASES", "250"))


def test_every_word_of_the_floor():
    certificate = certify(features, CASES, seed=CASES)
    assert certificate.examples == ()
    assert certificate.passed and certificate.cases == CASES
    assert set(certificate.compared) == set(features.names)


def test_every_word_strictly_before():
    "What a decision about an event may see: all words, with moments at and one microsecond beside every edge."
    certificate = certify(FeatureSet("strict", features.features, strict=True), CASES, seed=CASES + 1)
    assert certificate.examples == ()


def test_request_values_alone_have_a_certificate():
    loan = FeatureSet(
        "loan", (f.request("income", "int"), f.log1p(f.request("rate")), f.request("purpose", "text"))
    )
    certificate = certify(loan, 300)
    assert certificate.examples == () and certificate.passed


def test_the_churn_case():
    churn = pytest.importorskip("mlsys_nb.cases.churn")
    certificate = certify(churn.problem.features, min(CASES, 1500), seed=1)
    assert certificate.examples == ()


stamps = st.integers(-3, 12).map(lambda h: EPOCH + timedelta(days=14_600, hours=12 * h))
row = st.fixed_dictionaries(
    {
        "event_id": st.integers(0, 6).map("e{}".format),
        "customer": st.sampled_from([1, 2]),
        "product": st.sampled_from(["p", None]),
        "country": st.just("x"),
        "ts": stamps,
        "pence": st.one_of(st.none(), st.integers(-5, 5)),
        "weight": st.one_of(st.none(), st.floats()),
        "shop": st.one_of(st.none(), st.text(max_size=2)),
        "gift": st.one_of(st.none(), st.booleans()),
        "tags": st.sampled_from([None, "[]", '["a"]', '["a", "é", "a"]']),
        "due": st.none(),
        "pounds": st.none(),
        "floor": st.none(),
        "known_at": stamps,
        "retracted_at": st.one_of(st.none(), stamps),
    }
)
small = FeatureSet(
    "small",
    (
        f.count(orders, "12h", by=("customer",)),
        f.sum(orders, "pence", "1d", by=("customer",)),
        f.max(orders, "weight", "2d", by=("customer",)),
        f.first(orders, "shop", "1d", by=("customer",)),
        f.last(orders, "shop", "lifetime", by=("customer",)),
        f.count_distinct(orders, "pence", "1d", by=("customer", "product")),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(row, max_size=12), st.lists(st.tuples(st.sampled_from([1, 2]), stamps), min_size=1, max_size=6)
)
def test_what_hypothesis_finds(rows, asked):
    "Hypothesis shrinks any difference to its smallest example; one content a version, as the contract of the lake has it."
    kept = {}
    for r in rows:
        first_seen = kept.setdefault((r["event_id"], r["known_at"]), r)
        kept[(r["event_id"], r["known_at"])] = {
            **first_seen,
            "retracted_at": first_seen["retracted_at"] or r["retracted_at"],
        }
    moments = pl.DataFrame(
        {"customer": [c for c, _ in asked], "product": ["p"] * len(asked), "moment": [m for _, m in asked]},
        schema={"customer": pl.Int64, "product": pl.String, "moment": pl.Datetime("us", "UTC")},
    )
    invented = World({"orders": list(kept.values())}, moments)
    truth = by_reference(small, invented)
    for way in (by_history, by_store):
        for mine, right in zip(way(small, invented), truth, strict=True):
            assert {k: bits(v) for k, v in mine.items()} == {k: bits(v) for k, v in right.items()}, (
                way.__name__
            )


def test_a_naive_moment_is_refused():
    with pytest.raises(ValueError, match="has a time zone"):
        from mlsys_nb.system.clock import micros

        micros(datetime(2010, 1, 1))
