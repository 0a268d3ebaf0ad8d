"Splits, encoding, families and tuning on hostile rows."

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.encoding import Encoder
from mlsys_nb.learning.feature_importance import permutation_importance
from mlsys_nb.learning.split import TooLittleData, time_split
from mlsys_nb.learning.train import FAMILIES, fit
from mlsys_nb.learning.tune import tune

DAY = timedelta(days=1)
START = datetime(2010, 1, 1, tzinfo=UTC)
FEATURES = ["spent", "visits", "land", "vip"]
RULE = Rule.feature("spent", "unlikelier", "big spenders stay")


def rows(seed=0, n=600, moments=6):
    rng = np.random.default_rng(seed)
    spent, visits = np.exp(rng.normal(size=n) * 2), rng.poisson(2, size=n)
    land = rng.choice(["UK", "EIRE", "Malta", "Élan \u202e"], p=[0.6, 0.3, 0.09, 0.01], size=n)
    z = 0.7 - 0.6 * np.log(spent) + 0.4 * (land == "EIRE") - 0.2 * visits
    return pl.DataFrame(
        {
            "customer_id": rng.integers(0, n // 3, size=n),
            "moment": pl.Series(
                [START + 7 * DAY * int(i) for i in np.sort(rng.integers(0, moments, size=n))]
            ),
            "spent": pl.Series(spent).set(pl.Series(rng.uniform(size=n) < 0.1), None),
            "visits": visits,
            "land": pl.Series(land).set(pl.Series(rng.uniform(size=n) < 0.1), None),
            "vip": rng.uniform(size=n) < 0.3,
            "label": (rng.uniform(size=n) < 1 / (1 + np.exp(-z))).astype(np.int8),
        }
    )


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(0, 300), min_size=0, max_size=40),
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(0, 100)),
    st.one_of(st.none(), st.integers(1, 100)),
)
def test_no_split_ever_leaks(days, horizon, n_holdout, n_valid, after, lookback):
    moments, horizon = [START + d * DAY for d in days], horizon * DAY
    after = None if after is None else START + after * DAY
    lookback = None if lookback is None else lookback * DAY
    try:
        found = time_split(
            moments, horizon, after=after, n_holdout=n_holdout, n_valid=n_valid, lookback=lookback
        )
    except TooLittleData as e:
        assert "matures after" in str(e) or "wait for more history" in str(e)
        return
    assert found.known[-1] + horizon <= found.holdout[0]
    assert (
        found.train
        and found.valid
        and found.train[-1] < found.valid[0]
        and found.valid[-1] == found.known[-1]
    )
    assert set(found.train) | set(found.valid) <= set(found.known)
    assert after is None or found.holdout[0] > after
    assert found.valid_purged == (found.note == "") and (
        not found.valid_purged or found.train[-1] + horizon <= found.valid[0]
    )
    assert set(found.holdout) <= set(found.refit) | set(moments) and found.refit[-1] == max(moments)


def test_an_earlier_split_does_not_change_with_later_moments():
    grid = [START + 7 * DAY * i for i in range(40)]
    early = time_split(grid[:20], 30 * DAY)
    assert time_split([m for m in grid if m <= grid[19]], 30 * DAY) == early


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_is_predicted_as_among_many_and_nothing_is_not_a_number(family):
    frame = rows()
    model = fit(family, frame, FEATURES, rule=RULE, seed=3)
    strange = pl.DataFrame(
        {
            "spent": [None, float("inf"), -1e300, 1.0],
            "visits": [0, 10**15, None, 2],
            "land": [None, "Mars", "", "UK"],
            "vip": [None, True, False, None],
        }
    )
    for test in (frame, strange):
        many = model.predict(test)
        assert np.isfinite(many).all() and ((many >= 0) & (many <= 1)).all()
        for i in range(0, test.height, 37):
            assert model.predict(test[i : i + 1])[0] == many[i]
    shuffled = frame.select(reversed(frame.columns))
    assert model.predict(shuffled).tobytes() == model.predict(frame).tobytes()
    assert len(model.predict(frame[:0])) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_rows_equal_model_whatever_the_threads(family):
    frame = rows(1)
    params = {"max_iter": 15} if family == "boosting" else {}
    one, two = (fit(family, frame, FEATURES, rule=RULE, params=params, seed=3, threads=n) for n in (1, 2))
    assert one.predict(frame).tobytes() == two.predict(frame).tobytes()


def test_linear_is_its_terms_added_in_order():
    frame = rows(2)
    model = fit("linear", frame, FEATURES)
    X, total = model.encoder.transform(frame), None
    for i in (0, 17, 333):
        (total,) = model.estimator.intercepts
        for t in model.estimator.terms:
            x = X[i, t.feature]
            if t.kind == "missing":
                v = float(np.isnan(x))
            elif t.kind == "category":
                v = float(x == t.code)
            else:
                v = min(max(t.fill if np.isnan(x) else x, t.low), t.high)
            total = total + t.weights[0] * ((v - t.centre) / t.scale)
        assert total == model.estimator.raw(X)[i, 0]


def test_a_rule_is_monotone_in_its_direction():
    model = fit("rule", rows(3), FEATURES, rule=RULE)
    line = pl.DataFrame({"spent": np.geomspace(1e-3, 1e4, 200)}).with_columns(
        visits=1, land=pl.lit("UK"), vip=True
    )
    p = model.predict(line)
    assert (np.diff(p) <= 0).all() and p[0] > p[-1]
    flat = fit("rule", rows(3), FEATURES, rule=Rule.feature("spent", "likelier", "wrong"))
    assert np.unique(flat.predict(line)).size == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["UK", "EIRE"])), min_size=1, max_size=60
    )
)
def test_encoder_knows_exactly_the_frequent_texts(texts):
    encoder = Encoder(["t"], min_count=3).fit(pl.DataFrame({"t": pl.Series(texts, dtype=pl.String)}))
    known = [t for t in texts if t is not None]
    frequent = {t for t in known if known.count(t) >= 3}
    if encoder.columns[0].kind == "text":  # made of words, and most of them rare
        assert sum(t in frequent for t in known) * 2 < len(known)
        return
    assert set(encoder.columns[0].categories) == frequent
    codes = encoder.transform(pl.DataFrame({"t": pl.Series([*texts, "never seen before"], dtype=pl.String)}))[
        :, 0
    ]
    for text, code in zip(texts, codes, strict=False):
        assert np.isnan(code) if text not in frequent else encoder.columns[0].categories[int(code)] == text
    assert np.isnan(codes[-1])


def test_constant_and_empty_columns_are_harmless():
    frame = rows(4).with_columns(
        same=pl.lit(1.0), nothing=pl.lit(None, dtype=pl.Float64), blank=pl.lit(None, dtype=pl.String)
    )
    features = [*FEATURES, "same", "nothing", "blank"]
    for family in FAMILIES:
        assert np.isfinite(fit(family, frame, features, rule=RULE).predict(frame)).all()
    assert np.unique(fit("linear", frame, ["same"]).predict(frame)).size == 1


def test_caller_errors_are_named():
    frame = rows(5)
    with pytest.raises(ValueError, match="none"):
        fit("linear", frame.with_columns(label=pl.lit(None, dtype=pl.Int8)), FEATURES)
    with pytest.raises(ValueError, match="rows need the columns"):
        fit("linear", frame.drop("land"), FEATURES)
    with pytest.raises(ValueError, match="was a number in training"):
        fit("linear", frame, FEATURES).predict(frame.with_columns(spent=pl.lit("much")))


def test_tuning_is_deterministic_and_prefers_the_simple():
    frame = rows(6, 1500, 12)
    split = time_split(sorted(set(frame["moment"])), 14 * DAY)
    about = {"rule": RULE, "entity": ["customer_id"], "n_trials": 7, "seed": 2}
    one, two = (tune(Probability(), frame, split, FEATURES, **about) for _ in range(2))
    assert one.trials.equals(two.trials) and (one.family, one.params) == (two.family, two.params)
    assert one.family != "boosting"  # The truth is additive
    only = tune(
        Probability(),
        frame,
        split,
        FEATURES,
        families=["boosting"],
        n_trials=3,
        warm_start=("boosting", {"learning_rate": 0.1, "max_iter": 60}),
    )
    assert only.trials["origin"].to_list() == ["default", "warm start", "search"]


def test_permutation_importance_finds_the_only_signal():
    frame = rows(7, 2000)
    model = fit("boosting", frame, FEATURES, params={"max_iter": 40})
    fresh = rows(8, 2000)
    found = permutation_importance(Probability(), model.predict, fresh, FEATURES, groups=fresh["customer_id"])
    assert found["feature"][0] == "spent" and found["low"][0] > 0
    assert found.filter(pl.col("feature") == "vip")["importance"][0] < 0.01
