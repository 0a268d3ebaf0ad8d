"Reliability and recalibration against plain counting and a general optimiser."

import numpy as np
import pytest
from scipy.optimize import minimize

from mlsys_nb.evaluation.bootstrap import resample
from mlsys_nb.evaluation.calibration import (
    Recalibration,
    calibration_error,
    calibration_line,
    monotone,
    recalibration,
    reliability,
)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def sample(seed=0, n=3000, intercept=0.4, slope=0.7):
    "Outcomes of the true odds, and predictions that are off by a line in log-odds."
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    return (rng.random(n) < sigmoid(intercept + slope * z)).astype(float), sigmoid(z)


def test_recalibration_is_the_penalised_maximum_likelihood():
    y, p = sample(n=400)
    z = np.log(p / (1 - p))

    def loss(b):
        line = b[0] + b[1] * z
        return np.sum(np.logaddexp(0, line) - y * line) + 0.01 * (b[0] ** 2 + (b[1] - 1) ** 2) / 2

    best = minimize(loss, [0, 1], tol=1e-12).x
    found = recalibration(y, p)
    assert (found.intercept, found.slope) == pytest.approx(best, abs=1e-5)


def test_a_strong_prior_leaves_predictions_as_they_are():
    y, p = sample(n=400)
    kept = recalibration(y, p, pull=1e9)
    assert (kept.intercept, kept.slope) == pytest.approx((0, 1), abs=1e-4)
    assert kept.apply(p) == pytest.approx(p, abs=1e-4)


def test_apply_is_a_line_in_log_odds():
    p = np.array([0.2, 0.5, 0.9])
    assert Recalibration(0.3, 2.0).apply(p) == pytest.approx(sigmoid(0.3 + 2.0 * np.log(p / (1 - p))))
    assert np.isfinite(Recalibration(0.0, 1.0).apply(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_one_kind_of_outcome_has_no_line_and_does_not_run_away(outcome):
    y, p = np.full(50, outcome), np.linspace(0.1, 0.9, 50)
    draws = resample(50)
    assert [e.value for e in calibration_line(y, p, draws)] == [None, None]
    assert np.isfinite(recalibration(y, p).apply(p)).all()


def test_the_line_is_found_and_its_interval_covers_the_truth():
    hits = 0
    for seed in range(40):
        y, p = sample(seed, n=600)
        intercept, slope = calibration_line(y, p, resample(600, seed=seed))
        hits += (intercept.low <= 0.4 <= intercept.high) + (slope.low <= 0.7 <= slope.high)
    assert hits >= 68  # of 80, 95 % asked


@pytest.mark.parametrize("n_bins", [1, 4, 10])
def test_the_reliability_table_is_plain_counting(n_bins):
    y, p = sample(1, n=1000)
    shown = reliability(y, p, resample(1000), n_bins)
    error = calibration_error(y, p, resample(1000), n_bins)
    edges = np.quantile(p, np.arange(1, n_bins) / n_bins)
    bins = [int((x > edges).sum()) for x in p]
    for b in range(n_bins):
        inside = np.array(bins) == b
        row = shown.row(b, named=True)
        assert row["bin"] == b + 1 and row["n"] == inside.sum()
        assert row["mean_prediction"] == pytest.approx(p[inside].mean())
        assert row["mean_label"] == pytest.approx(y[inside].mean())
        assert row["low"] <= row["mean_label"] <= row["high"]
    gaps = [abs(p[np.array(bins) == b].mean() - y[np.array(bins) == b].mean()) for b in range(n_bins)]
    weights = [(np.array(bins) == b).mean() for b in range(n_bins)]
    assert error.value == pytest.approx(np.dot(gaps, weights))
    assert error.low <= error.value <= error.high


def test_equal_predictions_share_a_bin():
    y, p = np.array([0.0, 1, 1, 0, 1, 0]), np.array([0.2, 0.2, 0.2, 0.2, 0.8, 0.8])
    shown = reliability(y, p, resample(6), 5)
    assert shown["n"].to_list() == [4, 2]


def test_a_prediction_on_the_edge_belongs_below_it():
    y, p = np.array([0.0, 1, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert reliability(y, p, resample(5), 2)["n"].to_list() == [3, 2]


def test_monotone_keeps_order_and_ties():
    y, p = sample(2, n=300)
    p = p.round(2)
    fixed = monotone(y, p)
    order = np.argsort(p, kind="stable")
    assert (np.diff(fixed[order]) >= -1e-12).all()
    assert all(len(set(fixed[p == x].round(12))) == 1 for x in np.unique(p))
    assert fixed.mean() == pytest.approx(y.mean())
