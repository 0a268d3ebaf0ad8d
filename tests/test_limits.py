"""A value at its limit, and one just beyond: `at most`, `at least`, `before` and `from ... on` mean what they say, in every room.

Worlds that are drawn hardly ever come to lie on a limit, so `<` and `<=` would be alike to them. Here is one line for each.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mlsys_nb.data.row_hash import fingerprint_of, fingerprints
from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.bootstrap import Estimate
from mlsys_nb.evaluation.clustered_intervals import MeanGain
from mlsys_nb.evaluation.gate import (  # fmt: skip
    Gains,
    _decided,
    _over_rule,
    gained,
    kept,
    money_check,
)
from mlsys_nb.evaluation.gate_checks import calibration, enough, slice_check
from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.evaluation.gate_verdict import RefitMove, at_most, refit_check
from mlsys_nb.evaluation.regression_metrics import LARGEST_AMOUNT, Number
from mlsys_nb.jobs.schedule import _too_late, entry_from
from mlsys_nb.loop.attempt_history import Attempt
from mlsys_nb.loop.retrain_policy import ChampionState, _spent
from mlsys_nb.monitoring.alert_channels import SEVERITIES, Channel
from mlsys_nb.monitoring.alert_delivery import TRIES, _Known, _news, postponed
from mlsys_nb.monitoring.alerts import Alert
from mlsys_nb.problem.capacity import Capacity, best_within
from mlsys_nb.problem.retrain_triggers import Cadence
from mlsys_nb.system.settings import ProblemError

NOON = datetime(2011, 6, 1, 12, tzinfo=UTC)
HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
JUDGE, LIMITS = Probability(), Limits()


def gain(low, high, value=None):
    middle = (low + high) / 2 if value is None else value
    return MeanGain(middle, low, high, low, high, 0.1, 0.05, 900, 300, 3, "entities", 0.95)


def said(check):
    return check.passed, check.meaning.split(":")[0]


@pytest.mark.parametrize(
    ("found", "worth", "answer"),
    [
        (gain(0.0, 0.4), 0.1, (None, "the interval includes zero")),
        (gain(1e-9, 0.4, 0.1), 0.1, (True, "better")),
        (gain(1e-9, 0.4, 0.09), 0.1, (False, "no difference worth a release")),
        (gain(-0.4, 0.0), 0.0, (False, "no difference worth a release")),
        (gain(-0.4, -1e-9), 0.0, (False, "worse")),
        (gain(-0.4, 0.1), 0.1, (False, "no difference worth a release")),
        (gain(-0.4, 0.11), 0.1, (None, "the interval includes zero")),
    ],
)
def test_a_gain_is_shown_excluded_or_open(found, worth, answer):
    assert said(gained("better", found, "log loss gain", "the champion", worth)) == answer


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.01, 0.2, (None, "it may be worse")),
        (-0.0099, 0.2, (True, "not worse")),
        (-0.02, 0.0, (None, "it may be worse")),
        (-0.02, -1e-9, (False, "worse")),
    ],
)
def test_what_is_kept_is_not_lost_by_more_than_makes_a_difference(low, high, answer):
    assert said(kept("kept", gain(low, high), "log loss gain", "the champion", 0.01)) == answer


@pytest.mark.parametrize(
    ("question", "loss", "money", "answer"),
    [
        (Question.CHANGE, gain(-0.0099, 0.3), 1e-9, True),
        (Question.CHANGE, gain(-0.0099, 0.3), 0.0, None),
        (Question.CHANGE, gain(-0.01, 0.3), 1e-9, None),
        (Question.REFRESH, gain(-0.02, 0.0), 1e-9, True),
        (Question.REFRESH, gain(-0.02, -1e-9), 1e-9, False),
    ],
)
def test_money_answers_where_loss_cannot_and_does_no_harm(question, loss, money, answer):
    gains = Gains(loss, gain(money, 9.0), "log loss gain", "GBP", "the champion")
    checks = _decided(question, gains, replace(LIMITS, same=0.01))
    assert [check.passed for check in checks] == [answer, True]
    assert ("saves" in checks[0].meaning) == (answer is True)


def test_a_loss_forbids_only_beyond_doubt():
    over = partial(Gains, money=gain(0, 1), unit="gain", currency="GBP", over="the rule")
    for check in (lambda g: money_check(g, "GBP", "the rule"), lambda g: _over_rule(over(loss=g))):
        assert [check(gain(-1.0, high)).passed for high in (0.0, -1e-9)] == [True, False]


def test_enough_is_from_the_limit_on():
    limits = Limits(rows=8, entities=4, outcomes=3, moments=2, slice_entities=2)
    y, groups = np.array([1, 0] * 4), np.arange(8) % 4
    assert enough(JUDGE, y, groups, 2, limits).passed is True
    for less in ((y[:7], groups[:7], 2), (y, groups % 3, 2), (np.array([1, 1] + [0] * 6), groups, 2), (y, groups, 1)):  # fmt: skip
        assert enough(JUDGE, *less, limits).passed is None


@pytest.mark.parametrize(
    ("new", "old", "passed"),
    [
        ((0.2, 0.1, 0.3), 0.0, True),
        ((0.2, 0.11, 0.3), 0.0, False),
        ((-0.2, -0.3, -0.11), 0.2, True),
        ((-0.2, -0.3, -0.11), 0.19, False),
        ((0.2, -1e-9, 0.4), 0.0, True),
    ],
)
def test_a_promise_is_broken_beyond_the_limit_and_beyond_chance(new, old, passed):
    facts = {"mean_prediction": 0.5, "mean_label": 0.3}
    told = lambda *gap: type("Told", (dict,), {"facts": facts})(calibration_gap=Estimate(*gap))
    gap, *interval = new
    check = calibration(
        JUDGE, told(gap, *interval), told(old, 0, 0), replace(LIMITS, calibration=0.1), chance=0.0
    )
    assert check.passed is passed


def test_a_slice_is_looked_at_from_its_size_on_and_refused_beyond_its_loss():
    limits = replace(LIMITS, slice_entities=50, slice_loss=0.02)
    row = {
        "slice": "size",
        "value": "small",
        "n": 90,
        "entities": 50,
        "gain": -0.04,
        "low": -0.06,
        "high": -0.021,
    }
    passed = lambda **other: slice_check(pl.DataFrame([row | other]), limits, "the rule", "log loss").passed
    assert (passed(), passed(entities=49), passed(high=-0.02)) == (False, True, True)


def test_at_most_is_at_most():
    assert [at_most("latency", x, 5.0, "ms").passed for x in (5.0, 5.001)] == [True, False]
    assert at_most("size", 1000, 999.9, "B").meaning == "1,000 B, at most 1e+03 allowed"
    asked = [refit_check(RefitMove(0.5, 0.1, x), 0.2)[0].passed for x in (0.0, 1e-9)]
    assert asked == [False, True] and refit_check(RefitMove(0.2, 0.1), 0.1)[0].passed


def test_limits_are_themselves_within_limits():
    every = {"rows": 9, "entities": 9, "outcomes": 9, "moments": 9, "slice_entities": 9}
    assert Limits(**every, level=0.5, package_bytes=1).rows == 9
    for wrong in ({"slice_entities": 10}, {"level": 0.499}, {"level": 1.0}, {"package_bytes": 0}):
        with pytest.raises(ProblemError):
            Limits(**(every | wrong))
    assert Capacity(1).actions == 1 and Limits(slice_loss=0.0).slice_loss == 0
    with pytest.raises(ProblemError):
        Capacity(0)


def test_the_largest_amounts_and_the_ends_of_a_probability_are_allowed():
    top = LARGEST_AMOUNT
    y, p = Number().checked(np.array([top, -top]), np.array([[top, top, top], [-top, -top, -top]]))
    assert (np.abs(y) == top).all() and (np.abs(p) == top).all()
    y, p = JUDGE.checked(np.array([0, 1]), np.array([0.0, 1.0]))
    assert p.tolist() == [0.0, 1.0]


def test_room_for_as_many_as_there_are_leaves_all():
    choices = pl.DataFrame({"score": [0.9, 0.8], "threshold": [0.5, 0.5], "action": ["call"] * 2, "answer": ["yes"] * 2})  # fmt: skip
    left = [best_within(choices, np.array([2.0, 1.0]), room, "nothing", [(1,), (2,)]) for room in (2, 1)]
    assert [frame["action"].to_list() for frame in left] == [["call", "call"], ["call", "nothing"]]


def test_a_moment_is_too_late_only_after_its_time():
    entry = SimpleNamespace(missed="in time", within=HOUR)
    assert _too_late(entry, [NOON], NOON + HOUR) == []
    assert _too_late(entry, [NOON], NOON + HOUR + SECOND) == [NOON]
    known = {"problems": ["churn"], "jobs": ["score"]}
    entry = lambda n: entry_from("churn.score", f"0 6 * * 1 --retries {n}", known)
    for n in (-1, 101):
        with pytest.raises(ValueError, match="0 to 100"):
            entry(n)


def told(channel, alert, last, now, heard=frozenset()):
    return [word for word, _ in _news(channel, [alert], _Known(frozenset(), last), heard, now)]


def test_a_channel_is_quiet_for_its_cool_down_and_speaks_after_its_patience():
    alert = Alert("churn", "drift", "spent", SEVERITIES[0], "2x", "x", "look", NOON)
    channel = Channel("team", "log", "x", cool_down=HOUR)
    last = {f"churn/{alert.key}": NOON - HOUR}
    assert told(channel, alert, last, NOON) == ["opened"] and told(channel, alert, last, NOON - SECOND) == []
    patient = replace(channel, after=HOUR)
    assert told(patient, alert, {}, NOON + HOUR) == ["not acknowledged"]
    assert told(patient, alert, {}, NOON + HOUR - SECOND) == []
    assert told(patient, alert, {}, NOON + HOUR, frozenset({alert.id})) == []
    ranks = [replace(channel, severity=heard).hears("churn", SEVERITIES[1]) for heard in SEVERITIES]
    assert ranks == [False] + [True] * (len(SEVERITIES) - 1)


def test_a_message_waits_twice_as_long_each_time_until_it_is_given_up():
    from mlsys_nb.monitoring.alert_delivery import Dispatch

    names = Dispatch.__dataclass_fields__
    new = Dispatch(**dict.fromkeys(names) | {"tries": 0, "status": "due"})
    waits, row, error = [], new, SimpleNamespace(after=0.0)
    while row.status == "due":
        row = postponed(row, error, NOON)
        waits.append((row.next_at - NOON).total_seconds())
    assert len(waits) == TRIES and waits[:4] == [30, 60, 120, 240] and max(waits) == 3600
    asked = [postponed(new, SimpleNamespace(after=x), NOON).next_at - NOON for x in (31.0, 10**6)]
    assert asked == [timedelta(seconds=31), timedelta(days=1)], "as it said, but at most a day"


@pytest.mark.parametrize(("ago", "spent"), [(timedelta(days=30) - SECOND, 1), (timedelta(days=30), 0)])
def test_a_training_leaves_the_budget_when_its_time_is_over(ago, spent):
    tried = Attempt(NOON - ago, "refresh", 1, 100, "promoted", "")
    state = ChampionState(problem="p", champion=1, now=NOON, attempts=(tried,))
    assert _spent(state, Cadence(per="30d")) == spent


@pytest.mark.parametrize("columns", [63, 64, 65, 128, 129])
def test_a_row_has_the_mark_of_its_table_however_many_columns_it_has(columns):
    row = {f"c{i:03}": None if i % 3 == 0 else i for i in range(columns)}
    frame = pl.DataFrame([row], schema=dict.fromkeys(row, pl.Int64))
    assert fingerprints(frame, list(row)).to_list() == [fingerprint_of(row, ())]
