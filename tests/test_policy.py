"The policy at its edges: each reason begins exactly where the rule says."

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from mlsys_nb.loop.policy import ChampionState, RetrainDecision, decide
from mlsys_nb.monitoring.alerts import Alert
from mlsys_nb.system.settings import load_settings

MAY = datetime(2010, 5, 1, tzinfo=UTC)
SETTINGS = replace(load_settings(), max_age_days=0)
AGED = replace(SETTINGS, max_age_days=90)
GAP = Alert("p", "performance", "calibration_gap", "critical", "predicted .5, observed .7", "", "", MAY)
RANK = replace(GAP, subject="auc", size="promised .8, observed .7")
DRIFT = replace(GAP, kind="drift", subject="orders", size="2 -> 3", severity="notice")
CALM = ChampionState("p", 3, age_days=40, trained_rows=1000, new_labels=100, performance="as promised")


def asked(state: ChampionState, settings=SETTINGS) -> RetrainDecision:
    return decide(state, settings)


def test_without_a_champion_one_is_trained():
    found = asked(ChampionState("p", None))
    assert found.retrain and found.reason == "there is no champion yet"


@pytest.mark.parametrize(("new", "retrain"), [(499, False), (500, True), (501, True)])
def test_half_as_many_new_labels_as_learnt_from_are_a_reason(new, retrain):
    found = asked(replace(CALM, new_labels=new))
    assert found.retrain is retrain
    assert ("50% more exist" in found.reason) is retrain


def test_growth_is_a_share_that_the_caller_may_set():
    assert decide(replace(CALM, new_labels=100), SETTINGS, growth=0.1).retrain
    assert not decide(replace(CALM, new_labels=99), SETTINGS, growth=0.1).retrain


def test_a_champion_that_learnt_from_nothing_known_gives_no_share():
    assert not asked(replace(CALM, trained_rows=0)).retrain


@pytest.mark.parametrize(("age", "retrain"), [(89.9, False), (90.0, False), (90.1, True)])
def test_age_is_a_reason_beyond_the_limit(age, retrain):
    found = asked(replace(CALM, age_days=age), AGED)
    assert found.retrain is retrain
    assert ("the limit is 90" in found.reason) is retrain


def test_age_counts_only_where_the_settings_say_so():
    assert not asked(replace(CALM, age_days=10_000)).retrain


def test_a_broken_promise_is_a_reason_and_the_calibration_gap_leads():
    found = asked(replace(CALM, performance="broken promise", alerts=(DRIFT, RANK, GAP)))
    assert found.retrain
    assert [r.split(":")[0] for r in found.reasons] == ["calibration gap", "auc"]
    assert all(r.endswith("100 labels matured since training") for r in found.reasons)


@pytest.mark.parametrize(
    ("performance", "retrain"),
    [("not enough labels", True), ("as promised", False), ("broken promise", False)],
)
def test_drift_is_a_reason_only_while_performance_is_not_known(performance, retrain):
    found = asked(replace(CALM, performance=performance, alerts=(DRIFT,)))
    assert found.retrain is retrain
    assert ("performance is not known and inputs drifted (orders: 2 -> 3)" in found.reason) is retrain


def test_reasons_are_told_strongest_first():
    state = replace(CALM, new_labels=900, age_days=91, performance="not enough labels", alerts=(DRIFT, RANK))
    told = asked(state, AGED).reasons
    assert all(w in r for r, w in zip(told, ("auc", "90% more", "91 days", "drifted"), strict=True))


@pytest.mark.parametrize("alerts", [(GAP,), (DRIFT,)])
def test_nothing_new_to_learn_from_is_never_a_reason(alerts):
    found = asked(
        replace(CALM, new_labels=0, age_days=500, performance="not enough labels", alerts=alerts), AGED
    )
    assert not found.retrain
    assert "no label has matured since version 3 was trained" in found.reason


def test_a_quiet_champion_is_kept_and_open_alerts_are_told():
    kept = asked(CALM)
    assert (kept.retrain, kept.reason) == (
        False,
        "version 3 keeps its promise; 100 labels matured since training",
    )
    drifting = asked(replace(CALM, alerts=(DRIFT,)))
    assert drifting.reason.startswith("inputs drifted (orders: 2 -> 3), but version 3 keeps its promise")
    assert drifting.reasons[1:] == ("open: orders: 2 -> 3",)
    young = asked(replace(CALM, performance="not enough labels"))
    assert young.reason.startswith("nothing speaks against version 3")


def test_the_card_says_what_is_done():
    assert "Train a challenger" in asked(ChampionState("p", None))._repr_html_()
    assert "Keep the champion" in asked(CALM)._repr_html_() and "nothing else" in asked(CALM)._repr_html_()
