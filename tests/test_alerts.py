"Alerts from the finding to the day they are closed."

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import visits_world as world

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.evaluate import evaluate
from mlsys_nb.monitoring.alerts import Alert, alerts, from_drift, from_performance, open_alerts, record
from mlsys_nb.monitoring.drift import DriftReport, Odds
from mlsys_nb.monitoring.performance import PerformanceFinding, PerformanceReport
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.settings import load_settings

MAY, DAY = instant("2024-05-01"), timedelta(days=1)
FOUND = Alert("visits", "drift", "minutes", "notice", "60 -> 30", "the source", "look", MAY)


def drifted(*rows):
    "A drift report with these features beyond their limit, and one within it."
    full = {
        "slice": "all", "part": "location", "periods": 1, "reference": 1.0, "current": 2.0, "size": 1.0, "statistic": 4.0,
        "limit": 3.0, "direction": "up", "drifted": True, "alert": True, "cause": "not known", "because": "nothing evident",
        "action": "look",
    }  # fmt: skip
    quiet = {**full, "feature": "calm", "drifted": False, "alert": False}
    frame = pl.DataFrame([*({**full, **row} for row in rows), quiet])
    return DriftReport(frame, 10, (), (), Odds(), 8, "drifted")


def named(*names):
    return drifted(*({"feature": n} for n in names))


def test_few_features_are_alerts_of_their_own_and_many_are_one_about_the_population():
    three = from_drift(world.problem, named("a", "b", "c"), MAY)
    assert [a.subject for a in three] == ["a", "b", "c"]
    four = from_drift(world.problem, named("a", "b", "c", "d"), MAY)
    assert [a.subject for a in four] == ["population"]
    assert four[0].size.startswith("4 of 5 features moved together; farthest a")


def test_the_score_is_always_an_alert_of_its_own_and_says_what_it_follows():
    found = from_drift(world.problem, named("a", "score", "b", "c", "d"), MAY)
    assert [a.subject for a in found] == ["score", "population"]
    assert found[0].likely_cause.startswith("the predictions follow 4 input(s)")
    assert "of 5 features" in found[1].size  # The score is no input
    alone = from_drift(world.problem, named("score"), MAY)
    assert alone[0].likely_cause.startswith("no single input moved")


@pytest.mark.parametrize(("statistic", "severity"), [(3.1, "notice"), (6.0, "notice"), (6.1, "warning")])
def test_twice_the_limit_is_a_warning(statistic, severity):
    found = from_drift(world.problem, drifted({"feature": "a", "statistic": statistic}), MAY)
    assert found[0].severity == severity


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("location", "typical value 1 -> 2"),
        ("spread", "spread 2.00 times the reference's"),
        ("missing", "share missing 100.0% -> 200.0%"),
        ("new", "share new"),
        ("share of north", "share of north"),
    ],
)
def test_what_moved_is_said_in_figures_and_the_cause_is_the_one_that_was_found(part, said):
    row = {
        "feature": "a",
        "part": part,
        "because": "10 % look like the reference times 100",
        "action": "mend",
    }
    found = from_drift(world.problem, drifted(row), MAY)[0]
    assert said in found.size and found.likely_cause == row["because"] and found.action == "mend"


def test_what_is_only_marked_is_no_alert():
    assert from_drift(world.problem, drifted({"feature": "a", "alert": False}), MAY) == []


def test_a_slice_is_an_alert_of_its_own_unless_the_whole_moved():
    part = {"feature": "a", "slice": "branch = north"}
    assert [a.slice for a in from_drift(world.problem, drifted(part), MAY)] == ["branch = north"]
    assert [a.slice for a in from_drift(world.problem, drifted(part, {"feature": "a"}), MAY)] == ["all"]


def report(*findings, avoidable_cost=0.0, extra_cost=None, evaluation=None):
    return PerformanceReport(
        "broken promise",
        evaluation,
        findings,
        0.1,
        avoidable_cost,
        extra_cost,
        "2024-01-01",
        "2024-04-01",
        0.01,
        "nats",
    )


def finding(name, broken=True):
    return PerformanceFinding(name, 0.0, 0.1, 0.05, 0.15, 4.0, 3.0, broken, "")


def test_only_broken_figures_are_alerts():
    found = from_performance(world.problem, report(finding("auc"), finding("log_loss", False)), MAY)
    assert [a.subject for a in found] == ["auc"]


@pytest.mark.parametrize(
    ("avoidable", "extra", "name", "severity", "cost"),
    [
        (12.0, None, "calibration_gap", "critical", "12 EUR per 1,000 decisions"),
        (0.0, 50.0, "calibration_gap", "warning", "0 EUR per 1,000 decisions"),
        (12.0, None, "auc", "warning", "not known: the promise names no cost"),
        (0.0, 7.0, "auc", "critical", "7 EUR per 1,000 decisions"),
        (0.0, -7.0, "log_loss", "warning", "0 EUR per 1,000 decisions"),
    ],
)
def test_money_makes_an_alert_critical(avoidable, extra, name, severity, cost):
    made = report(finding(name), avoidable_cost=avoidable, extra_cost=extra)
    found = from_performance(world.problem, made, MAY)[0]
    assert (found.severity, found.expected_cost) == (severity, cost)


def judged(rng, off):
    "Decisions whose level is off by `off` in the south only."
    n = 1200
    branch = np.array(["north", "south", "west"])[np.arange(n) % 3]
    score = np.full(n, 0.5)
    truth = np.where(branch == "south", 0.5 - off, 0.5)
    label = (rng.random(n) < truth).astype(np.int8)
    return pl.DataFrame({"member": np.arange(n), "branch": branch, "score": score, "label": label})


def test_the_slice_that_stands_out_is_named():
    rng = np.random.default_rng(0)
    rows = judged(rng, 0.4)
    e = evaluate(Probability(), rows["label"].to_numpy(), rows["score"].to_numpy())
    made = report(finding("calibration_gap"), evaluation=e)
    found = from_performance(world.problem, made, MAY, rows)[0]
    assert found.slice == "branch = south"
    low, high = e["calibration_gap"].low, e["calibration_gap"].high
    assert f"predicted 0.50, observed {e.facts['mean_label']:.2f}" in found.size and low < high
    assert from_performance(world.problem, made, MAY)[0].slice == "all"
    even = from_performance(world.problem, made, MAY, judged(rng, 0.0))[0]
    assert even.slice == "all"
    few = from_performance(world.problem, made, MAY, rows.head(290))[0]
    assert few.slice == "all"  # fewer than a hundred rows a slice


@pytest.fixture
def control(tmp_path):
    return open_control(load_settings(root=tmp_path))


def test_an_alert_stays_open_from_its_first_day_until_it_is_not_found_any_more(control):
    first = record(control, "visits", [FOUND], MAY)
    assert [(a.opened_at, a.last_seen) for a in first] == [(MAY, MAY)]
    second = record(control, "visits", [replace(FOUND, opened_at=MAY + DAY, size="60 -> 20")], MAY + DAY)
    assert [(a.opened_at, a.last_seen, a.size) for a in second] == [(MAY, MAY + DAY, "60 -> 20")]
    assert record(control, "visits", [], MAY + 2 * DAY) == []
    gone = alerts(control, "visits")
    assert [(a.opened_at, a.last_seen, a.closed_at) for a in gone] == [(MAY, MAY + DAY, MAY + 2 * DAY)]


def test_an_alert_that_comes_back_is_another_episode(control):
    for day, found in enumerate(([FOUND], [], [FOUND])):
        record(control, "visits", found, MAY + day * DAY)
    assert [a.opened_at for a in open_alerts(control, "visits")] == [MAY + 2 * DAY]
    assert len(alerts(control, "visits")) == 2


def test_a_check_that_could_not_say_closes_nothing(control):
    gap = replace(FOUND, kind="performance", subject="calibration_gap")
    record(control, "visits", [FOUND, gap], MAY)
    left = record(control, "visits", [], MAY + DAY, kinds=("drift",))
    assert [a.subject for a in left] == ["calibration_gap"]


def test_the_same_subject_elsewhere_is_another_alert(control):
    other = replace(FOUND, slice="branch = south")
    assert len(record(control, "visits", [FOUND, other], MAY)) == 2
    assert [a.slice for a in record(control, "visits", [other], MAY + DAY)] == ["branch = south"]


def test_problems_do_not_close_each_others_alerts(control):
    record(control, "visits", [FOUND], MAY)
    assert record(control, "other", [], MAY + DAY) == []
    assert len(open_alerts(control, "visits")) == 1


def test_open_alerts_come_critical_first_then_oldest(control):
    bad, warn = (
        replace(FOUND, subject="b", severity="critical"),
        replace(FOUND, subject="c", severity="warning"),
    )
    record(control, "visits", [FOUND, warn], MAY)
    record(control, "visits", [FOUND, warn, bad, replace(warn, subject="a")], MAY + DAY)
    assert [a.subject for a in open_alerts(control, "visits")] == ["b", "c", "a", "minutes"]
