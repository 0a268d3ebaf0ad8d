"Control limits by their promise: quiet series of every kind stray beyond them as rarely as was asked."

import numpy as np
import pytest

from mlsys_nb.monitoring.control_chart import (
    Behaviour,
    _likeness,
    autocorrelation,
    limit,
    quiet_from,
    seasonal,
)
from mlsys_nb.monitoring.tail_probability import centre_spread, tail_score


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
    beyond = limit(Behaviour(n_periods, rho), 0.01)
    rate = (np.abs(now - past.mean(axis=1)) / past.std(axis=1, ddof=1) > beyond).mean()
    assert 0.006 < rate < 0.014


def test_the_mean_of_later_periods_alarms_as_often_as_asked():
    x = paths(3, 40_000, 17, 0.6)
    past, now = x[:, :12], x[:, 14:]
    distance = np.abs(now.mean(axis=1) - past.mean(axis=1)) / past.std(axis=1, ddof=1)
    rate = (distance > limit(Behaviour(12, 0.6), 0.02, window=3, gap=3)).mean()
    assert 0.014 < rate < 0.026


def test_heavy_tails_alarm_as_often_as_asked_and_a_normal_limit_would_not():
    rng = np.random.default_rng(5)
    x = rng.standard_t(3, (20_000, 61))
    centre, square = centre_spread(x[:, :60], 3.0)
    distance = (x[:, 60] - centre) / np.sqrt(square)
    assert (
        0.0005 < (np.abs(tail_score(distance, 3.0)) > limit(Behaviour(60, freedom=3.0), 0.001)).mean() < 0.002
    )
    blind = (x[:, 60] - x[:, :60].mean(axis=1)) / x[:, :60].std(axis=1, ddof=1)
    assert (np.abs(blind) > limit(Behaviour(60), 0.001)).mean() > 0.006


def test_parts_that_spread_alike_lend_each_other_their_spread():
    rng = np.random.default_rng(6)
    beyond, alone, n = 0, 0, 0
    for _ in range(200):
        x = rng.standard_normal((20, 11))
        quiet = quiet_from(x[:, :10], np.full((20, 10), 1e9), ["location"] * 20, np.zeros(10, int))
        score = quiet.scores(x[:, 10:], np.full((20, 1), 1e9), np.zeros(1, int))[:, 0]
        limits = np.array([limit(b, 0.005) for b in quiet.behaviours])
        beyond, n = beyond + int((np.abs(score) > limits).sum()), n + 20
        alone += limit(Behaviour(10, quiet.behaviours[0].autocorrelation), 0.005) > limits.mean()
    assert beyond / n < 0.007 and alone > 180  # as rare as asked, with a nearer limit


def test_the_week_is_taken_out_and_what_has_no_week_is_left_alone():
    rng = np.random.default_rng(1)
    day, weekly = np.arange(63) % 7, np.array([0, 0, 0, 0, 1.0, 3.0, -4.0])
    x = np.vstack([rng.standard_normal(63) + weekly[day], rng.standard_normal((30, 63))])
    effect, real = seasonal(x, day, 7)
    assert real[0] > 0.8 and np.abs(effect[0] - weekly + weekly.mean()).max() < 1.2
    assert real[1:].mean() < 0.3 and np.abs(effect[1:]).mean() < 0.15


def test_limits_grow_with_fewer_periods_fewer_alarms_and_likeness_of_neighbours():
    base = limit(Behaviour(20), 0.01)
    assert limit(Behaviour(8), 0.01) > base and limit(Behaviour(20), 0.001) > base
    assert limit(Behaviour(20, 0.8), 0.01, window=9) > limit(Behaviour(20), 0.01, window=9)
    assert limit(Behaviour(20, prior=200.0), 0.01) < base
    assert 2.8 < base < 3.1  # Student's with 19 degrees of freedom, times (1 + 1/20) ** .5


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_autocorrelation_errs_on_the_cautious_side(rho):
    found = [autocorrelation(paths(seed, 9, 30, rho), seed=1) for seed in range(20)]
    assert np.mean(np.array(found) >= rho - 0.1) > 0.9
    assert np.mean(found) < rho + 0.35


def test_what_is_drawn_anew_hides_likeness_and_is_told_from_what_lasts():
    "Half of the variance comes from drawing few rows: the other half is like its neighbours by .7, not by .35."
    rng, rows = np.random.default_rng(0), np.full((15, 60), 100.0)
    real = 0.1 * paths(5, 15, 60, 0.7)
    noisy = real + 0.1 * rng.standard_normal(real.shape)
    found = quiet_from(noisy, rows, ["location"] * 15, np.zeros(60, int)).behaviours
    assert {b.lasting for b in found} <= {0.5, 0.7}
    assert 0.5 <= np.median([b.autocorrelation for b in found]) <= 0.85
    still = quiet_from(
        0.1 * rng.standard_normal(real.shape), rows, ["location"] * 15, np.zeros(60, int)
    ).behaviours
    assert np.median([b.lasting for b in still]) <= 0.1  # nothing lasts where rows are drawn from one urn


def test_the_mean_of_periods_that_last_in_part_alarms_as_often_as_asked():
    x = 0.5**0.5 * (paths(3, 40_000, 17, 0.8) + paths(4, 40_000, 17, 0.0))
    past, now = x[:, :12], x[:, 12:15]
    distance = np.abs(now.mean(axis=1) - past.mean(axis=1)) / past.std(axis=1, ddof=1)
    rate = (distance > limit(Behaviour(12, 0.8, lasting=0.5), 0.02, window=3)).mean()
    assert 0.01 < rate < 0.025
    assert (distance > limit(Behaviour(12), 0.02, window=3)).mean() > 0.05


def test_days_that_are_skewed_are_read_on_a_skewed_curve():
    "A level that wanders by factors lies far on one side without anything having happened; one that fell is found as soon."
    rng = np.random.default_rng(2)
    x = np.exp(0.3 * rng.standard_normal((10, 60 + 4000)))
    x = (x - x.mean()) / x.std()
    quiet = quiet_from(x[:, :60], np.full((10, 60), 1e9), ["location"] * 10, np.zeros(60, int))
    later, place = np.full((10, 4000), 1e9), np.zeros(4000, int)
    score = quiet.scores(x[:, 60:], later, place)
    naive = (x[:, 60:] - x[:, :60].mean(axis=1, keepdims=True)) / x[:, :60].std(axis=1, keepdims=True, ddof=1)
    assert (naive > 3).mean() > 0.003 > 0.0015 > (score > 3).mean()
    fell = np.full((10, 1), -4.0)
    assert quiet.scores(fell, later[:, :1], place[:1]).max() < -2.5  # as far as before


def test_too_short_or_constant_series_are_taken_for_the_worst():
    assert autocorrelation(np.zeros((3, 20))) == autocorrelation(paths(0, 4, 3, 0.0)) == 0.98
    mixed = np.vstack([np.zeros((1, 40)), paths(1, 9, 40, 0.0)])
    assert autocorrelation(mixed) < 0.4


@pytest.mark.parametrize("days", [0.2, 0.5])
def test_wild_days_behind_drawing_alarm_as_often_as_asked_and_a_normal_limit_would_not(days):
    "A spread of which drawing makes most looks normal for sixty days; one in a thousand lies far out all the same."
    rng = np.random.default_rng(8)
    x = days**0.5 * rng.standard_t(3, (40_000, 61)) + (1 - days) ** 0.5 * rng.standard_normal((40_000, 61))
    centre, square = centre_spread(x[:, :60], 3.0, days)
    score = tail_score((x[:, 60] - centre) / np.sqrt(square), 3.0, days)
    assert 0.0005 < (np.abs(score) > limit(Behaviour(60, freedom=3.0, wild=days), 0.001)).mean() < 0.002
    blind = (x[:, 60] - x[:, :60].mean(axis=1)) / x[:, :60].std(axis=1, ddof=1)
    assert (np.abs(blind) > limit(Behaviour(60), 0.001)).mean() > 0.004


def test_one_part_that_strays_borrows_no_calm_and_no_independence_from_the_others():
    rng, rows = np.random.default_rng(9), np.full((40, 60), 5000.0)
    calm = rng.standard_normal((40, 60)) / 5000**0.5
    wild = calm.copy()
    wild[0] += 0.012 * rng.standard_t(3, 60)
    found = quiet_from(wild, rows, ["share"] * 40, np.zeros(60, int)).behaviours[0]
    assert found.freedom == 3.0 and found.wild >= 0.2
    alike = calm.copy()
    alike[0] = 0.1 * paths(10, 1, 60, 0.85)[0]
    assert quiet_from(alike, rows, ["share"] * 40, np.zeros(60, int)).behaviours[0].autocorrelation >= 0.5


def test_what_lasts_a_little_behind_drawing_is_taken_to_last_a_tenth():
    "The fault: steps below a tenth let days that resemble each other behind drawing mark 1.25 % of quiet feature-months."
    rng, drawn = np.random.default_rng(12), 0.94
    x = (1 - drawn) ** 0.5 * paths(13, 20, 60, 0.8) + drawn**0.5 * rng.standard_normal((20, 60))
    _, lasting = _likeness(x, np.full(20, drawn), np.ones(20))
    assert (lasting == 0.1).all()
