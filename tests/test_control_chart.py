"Control limits by their promise: quiet series of every kind stray beyond them as rarely as was asked."

import numpy as np
import pytest

from mlsys_nb.monitoring.control_chart import autocorrelation, limit


def paths(seed, n, periods, rho):
    "Stationary quiet series, drawn independently of the room's own."
    rng = np.random.default_rng(seed)
    x = np.empty((n, periods))
    x[:, 0] = rng.standard_normal(n)
    for i in range(1, periods):
        x[:, i] = rho * x[:, i - 1] + (1 - rho**2) ** 0.5 * rng.standard_normal(n)
    return x


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("n_periods", [5, 20])
def test_one_current_period_alarms_as_often_as_asked(n_periods, rho):
    x = paths(7, 40_000, n_periods + 1, rho)
    past, now = x[:, :-1], x[:, -1]
    beyond = limit(n_periods, np.array([1.0]), np.array([1.0]), rho, 0.01)
    rate = (np.abs(now - past.mean(axis=1)) / past.std(axis=1, ddof=1) > beyond).mean()
    assert 0.006 < rate < 0.014


def test_a_weighted_sum_of_later_periods_alarms_as_often_as_asked():
    weights, gaps, rho, n = np.array([0.3, 0.7]), np.array([2.0, 4.0]), 0.6, 12
    x = paths(3, 40_000, n + 4, rho)
    past = x[:, :n]
    moved = (x[:, [n + 1, n + 3]] - past.mean(axis=1, keepdims=True)) @ weights
    rate = (np.abs(moved) / past.std(axis=1, ddof=1) > limit(n, gaps, weights, rho, 0.02)).mean()
    assert 0.014 < rate < 0.026


def test_limits_grow_with_fewer_periods_fewer_alarms_and_likeness_of_neighbours():
    one = np.array([1.0])
    base = limit(20, one, one, 0.0, 0.01)
    assert limit(8, one, one, 0.0, 0.01) > base
    assert limit(20, one, one, 0.0, 0.001) > base
    assert limit(20, 9 * one, one, 0.8, 0.01) > base
    assert 2.5 < base < 3.1  # Student's with 19 degrees of freedom, times (1 + 1/20) ** .5


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_autocorrelation_errs_on_the_cautious_side(rho):
    found = [autocorrelation(paths(seed, 9, 30, rho), seed=1) for seed in range(20)]
    assert np.mean(np.array(found) >= rho - 0.1) > 0.9
    assert np.mean(found) < rho + 0.35


def test_noise_of_drawing_hides_likeness_and_is_taken_out():
    rng = np.random.default_rng(0)
    real = paths(5, 15, 60, 0.7)
    noisy = real + rng.standard_normal(real.shape)
    assert autocorrelation(noisy, noise=1.0) > autocorrelation(noisy) + 0.1


def test_too_short_or_constant_series_are_taken_for_the_worst():
    assert autocorrelation(np.zeros((3, 20))) == autocorrelation(paths(0, 4, 3, 0.0)) == 0.98
    mixed = np.vstack([np.zeros((1, 40)), paths(1, 9, 40, 0.0)])
    assert autocorrelation(mixed) < 0.4
