"Metrics, intervals and comparisons against independent references and hostile input."

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from mlsys_nb.evaluation.binary_metrics import CLIP, Probability, auc, log_losses, pairs
from mlsys_nb.evaluation.bootstrap import Estimate, clusters, resample
from mlsys_nb.evaluation.calibration import monotone, recalibration
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.evaluation.evaluate import compare, evaluate
from mlsys_nb.evaluation.slices import slice_gains, slice_labels, slice_report

JUDGE = Probability()
scores = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=60)


def world(seed, n_entities=400, per_entity=3, sharp=1.0, shift=0.0):
    "Outcomes with an entity effect, and predictions that are right but for `sharp` and `shift`."
    rng = np.random.default_rng(seed)
    entity = np.repeat(np.arange(n_entities), per_entity)
    z = rng.normal(size=n_entities)[entity] + 0.5 * rng.normal(size=len(entity))
    y = (rng.uniform(size=len(z)) < 1 / (1 + np.exp(-z))).astype(float)
    return y, 1 / (1 + np.exp(-(sharp * z + shift))), entity


@settings(deadline=None, max_examples=150)
@given(scores)
def test_auc_log_loss_brier_equal_sklearn_with_ties(rows):
    y, p = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows]) / 7 + 0.05
    found = evaluate(JUDGE, y, p, repeats=5)
    assert found["brier"].value == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    assert found["log_loss"].value == pytest.approx(log_loss(y, p, labels=[0, 1]), abs=1e-12)
    if 0 < y.sum() < len(y):
        assert found["auc"].value == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    else:
        assert found["auc"].value is None and found["calibration_slope"].value is None


@settings(deadline=None, max_examples=100)
@given(scores)
def test_monotone_equals_sklearn(rows):
    y, p = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)
    assert monotone(y, p) == pytest.approx(IsotonicRegression().fit(p, y).predict(p), abs=1e-9)


def test_weighted_auc_equals_repeated_rows():
    y, p, _ = world(1, 20, 2)
    p = p.round(1)
    counts = np.random.default_rng(2).integers(0, 4, size=len(y))
    repeated = roc_auc_score(np.repeat(y, counts), np.repeat(p, counts))
    assert auc(y, p, counts[None, :].astype(float))[0] == pytest.approx(repeated, abs=1e-12)


def test_log_loss_is_clipped_at_certainty():
    assert log_losses(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(
        [-np.log(CLIP)] * 2, rel=1e-4
    )
    assert np.isfinite(evaluate(JUDGE, [0, 1, 1], [0.0, 1.0, 0.0])["log_loss"].value)


@pytest.mark.parametrize(
    "y, p, says",
    [
        ([], [], "at least one row"),
        ([0, 1], [0.5], "one prediction per outcome"),
        ([0, 1], [0.5, float("nan")], "got nan"),
        ([0, 1], [0.5, 1.5], "got 1.5"),
        ([0, 0.5], [0.5, 0.5], "0 or 1, got 0.5"),
        ([0, float("nan")], [0.5, 0.5], "0 or 1, got nan"),
        ([[0, 1]], [[0.5, 0.5]], "one prediction per outcome"),
    ],
)
def test_bad_input_is_named(y, p, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        pairs(y, p)


def test_same_seed_same_figures_and_groups_of_text():
    y, p, entity = world(3)
    names = np.array([f"customer {e}" for e in entity])
    one, two = (evaluate(JUDGE, y, p, groups=g, seed=5) for g in (entity, entity))
    assert one.to_dict() == two.to_dict()
    assert evaluate(JUDGE, y, p, groups=names, seed=5).entities == one.entities
    frame = pl.DataFrame({"a": entity, "b": entity % 2})
    assert len(np.unique(clusters(frame, ["a", "b"]))) == one.entities


def test_recalibration_finds_what_was_done():
    y, p, _ = world(4, 20_000, 1, sharp=2.0, shift=1.0)
    found = recalibration(y, p)
    assert (found.slope, found.intercept) == pytest.approx((0.5, -0.5), abs=0.08)
    separated = recalibration(np.repeat([0.0, 1.0], 50), np.repeat([0.1, 0.9], 50))
    assert np.isfinite([separated.slope, separated.intercept]).all() and separated.slope > 1


def test_slope_interval_of_one_step_agrees_with_full_refits():
    y, p, entity = world(5)
    draws = resample(len(y), entity, 100, seed=0)
    fitted = []
    for counts in draws.counts:
        times = counts[draws.codes].astype(int)
        fitted.append(recalibration(np.repeat(y, times), np.repeat(p, times)).slope)
    found = evaluate(JUDGE, y, p, groups=entity, repeats=100)["calibration_slope"]
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(fitted), rel=0.15)


def test_intervals_cover():
    "Over repeated worlds the clustered 95 % intervals of gain, AUC and calibration contain the truth."
    truth = {"auc": [], "calibration_gap": [], "slope": []}
    large_y, large_p, _ = world(99, 60_000, 3)
    area = roc_auc_score(large_y, large_p)
    for seed in range(150):
        found = evaluate(JUDGE, *world(seed, 150)[:2], groups=world(seed, 150)[2], repeats=100, seed=seed)
        truth["auc"].append(found["auc"].low <= area <= found["auc"].high)
        truth["calibration_gap"].append(found["calibration_gap"].low <= 0 <= found["calibration_gap"].high)
        truth["slope"].append(found["calibration_slope"].low <= 1 <= found["calibration_slope"].high)
    for name, hits in truth.items():
        assert 0.89 <= np.mean(hits) <= 0.995, (name, np.mean(hits))


def test_gain_of_a_shifted_model_is_calibration_of_a_noisy_one_ranking():
    y, right, entity = world(6, 1500)
    _, shifted, _ = world(6, 1500, shift=0.8)
    noise = np.random.default_rng(0).normal(size=len(y)) * 1.2
    noisy = np.clip(monotone(y, 1 / (1 + np.exp(-(np.log(right / (1 - right)) + noise)))), 0.01, 0.99)
    level = compare(JUDGE, y, right, shifted, groups=entity)
    assert level.loss_gain.low > 0 and level.ranking_part.value == pytest.approx(0, abs=1e-12)
    assert "100% of it calibration" in level.sentence and level.rank_gain.value == 0
    rank = compare(JUDGE, y, right, noisy, groups=entity)
    assert rank.ranking_part.low > 0 and rank.ranking_part.value > 0.7 * rank.loss_gain.value
    assert rank.rank_gain.low > 0
    back = compare(JUDGE, y, noisy, right, groups=entity)
    assert back.loss_gain.value == pytest.approx(-rank.loss_gain.value, abs=1e-12)
    assert "gets worse" in back.sentence


def test_one_entity_has_no_interval_and_says_so():
    found = compare(JUDGE, [0, 1, 1], [0.4, 0.5, 0.6], [0.5, 0.5, 0.5], groups=[1, 1, 1])
    assert found.loss_gain.low is None and "No difference can be stated" in found.sentence
    assert str(evaluate(JUDGE, [1, 1], [0.5, 0.5])["auc"]) == "not defined"
    assert str(Estimate(0.5)) == "0.5000"


def test_money_is_counted_at_the_implied_threshold():
    costs = Costs("GBP", false_positive=1.0, false_negative=3.0)
    found = evaluate(JUDGE, [1, 0, 1, 0], [0.2, 0.25, 0.9, 0.1], costs=costs)
    assert found["cost_per_1000"].value == pytest.approx(1000 * (3 + 1) / 4)
    saved = compare(JUDGE, [1, 0], [0.9, 0.1], [0.1, 0.9], costs=costs)
    assert saved.saving_per_1000.value == pytest.approx(2000)


def test_reports_are_html_and_escape():
    y, p, entity = world(8, 50)
    assert (
        "<" in evaluate(JUDGE, y, p, groups=entity)._repr_html_()
        and "<" in compare(JUDGE, y, p, p)._repr_html_()
    )


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.one_of(st.none(), st.floats(allow_infinity=False), st.integers(-5, 5)), min_size=1, max_size=40
    )
)
def test_every_number_has_one_slice(values):
    labels = slice_labels(pl.Series("x", values, dtype=pl.Float64, strict=False))
    assert len(labels) == len(values) and labels.null_count() == 0
    missing = [v is None or v != v for v in values]
    assert [label == "missing" for label in labels] == missing


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.one_of(st.none(), st.text(max_size=5), st.sampled_from(["other", "missing"])),
        min_size=1,
        max_size=40,
    )
)
def test_every_text_has_one_slice(values):
    assert slice_labels(pl.Series("x", values, dtype=pl.String)).null_count() == 0


def test_slices_report_one_class_and_tiny_slices():
    frame = pl.DataFrame({"land": ["a"] * 30 + ["b"] * 2, "n": [None] * 32})
    y = np.array([0, 1] * 15 + [1, 1])
    report = slice_report(JUDGE, frame, y, np.full(32, 0.5), ["land", "n"])
    assert report["n"].to_list() == [30, 2, 32] and report["auc"][1] is None
    assert slice_gains(JUDGE, frame, y, np.full(32, 0.5), np.full(32, 0.4), []).height == 0
