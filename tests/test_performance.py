"The promise of a release: few false alarms when the world wobbles as it did, and real decay found."

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mlsys_nb.evaluation.classes import Classes
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.evaluation.evaluate import evaluate
from mlsys_nb.evaluation.number import Number
from mlsys_nb.evaluation.probability import Probability
from mlsys_nb.monitoring.performance import performance_check, period_wobble, promise
from mlsys_nb.system.clock import instant

SCORES = SimpleNamespace(judge=Probability(), predictions=lambda rows: rows["score"].to_numpy())
PROBLEM = SimpleNamespace(keys=("customer_id",), costs=Costs("GBP", 3.0, 2.0), target=SCORES)
START = instant("2010-01-04")


def period(rng: np.random.Generator, rows: int, shift: float, noise: float = 0.0) -> pl.DataFrame:
    "One period of a calibrated model, its outcome moved by `shift` in log-odds, its ranking spoilt by `noise`."
    odds = rng.normal(0.6, 0.9, rows)
    label = (rng.random(rows) < 1 / (1 + np.exp(-(odds + shift)))).astype(int)
    score = 1 / (
        1 + np.exp(-(odds if noise == 0 else np.where(rng.random(rows) < noise, rng.permutation(odds), odds)))
    )
    return pl.DataFrame(
        {"customer_id": np.arange(rows), "moment": [START] * rows, "label": label, "score": score}
    )


def promised(rng: np.random.Generator, rows: int, wobble: float):
    history = pl.concat(
        period(rng, rows, wobble * rng.standard_normal()).with_columns(moment=pl.lit(i)) for i in range(12)
    )
    holdout = pl.concat(period(rng, rows, wobble * rng.standard_normal()) for _ in range(2))
    judged = evaluate(Probability(), holdout["label"], holdout["score"], repeats=100)
    return promise(
        Probability(), {**judged.to_dict(), "period_wobble": period_wobble(Probability(), history)}
    )


@pytest.mark.parametrize("wobble", [0.0, 0.15])  # 0.15 in log-odds is three percentage points
def test_false_alarms(wobble):
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(150):
        given = promised(rng, 600, wobble)
        alarms += (
            performance_check(PROBLEM, period(rng, 600, wobble * rng.standard_normal()), given).verdict
            != "as promised"
        )
    assert alarms / 150 <= 0.02, alarms


def test_power():
    rng = np.random.default_rng(4)
    given = promised(rng, 2000, 0.1)
    level = [performance_check(PROBLEM, period(rng, 2000, -0.8), given).broken for _ in range(10)]
    assert all("calibration_gap" in broken and "auc" not in broken for broken in level)
    rank = [performance_check(PROBLEM, period(rng, 2000, 0.0, noise=0.6), given).broken for _ in range(10)]
    assert all("auc" in broken for broken in rank)


def test_report_is_plain_data():
    import json

    rng = np.random.default_rng(5)
    report = performance_check(PROBLEM, period(rng, 600, -1.0), promised(rng, 600, 0.1))
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == "broken promise"
    assert report.avoidable_cost >= 0
    empty = performance_check(PROBLEM, period(rng, 600, 0).head(0), promised(rng, 600, 0.1))
    assert json.dumps(empty.to_dict()) and empty.verdict == "not enough labels"
    assert "not enough labels" in empty._repr_html_()


CARS, TOPICS = Number(level=0.8, unit="cars"), Classes(("bill", "repair", "other"))


def cars(rng: np.random.Generator, rows: int, shift: float = 0.0, wide: float = 1.0, noise: float = 0.0):
    "Amounts around a known mean, moved by `shift`, spread `wide` times as far, the points shuffled for a share `noise`."
    mean = rng.uniform(50, 150, rows)
    y = mean + shift + wide * rng.normal(0, 10, rows)
    said = np.where(rng.random(rows) < noise, rng.permutation(mean), mean)
    return y, np.column_stack([said, said - 12.816, said + 12.816])


def topics(rng: np.random.Generator, rows: int, shift: float = 0.0, wide: float = 1.0, noise: float = 0.0):
    "Classes from known probabilities; the last comes more often by `shift`, all are `wide` times as uncertain."
    z = rng.normal(size=(rows, 3))
    said, true = (np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (z, (z + [0, 0, shift]) / wide))
    y = (true.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(0, 2)
    return y, np.where((rng.random(rows) < noise)[:, None], rng.permutation(said), said)


def world_of(judge):
    "A problem of this kind, and its periods as labelled decisions."
    make, names = (cars, "abc") if judge is CARS else (topics, "abc")

    def frame(rng, rows, **how):
        y, p = make(rng, rows, **how)
        label = pl.Series(y) if judge is CARS else pl.Series([TOPICS.names[int(k)] for k in y])
        said = {name: p[:, i] for i, name in enumerate(names)}
        return pl.DataFrame(
            {"customer_id": np.arange(rows), "moment": [START] * rows, "label": label, **said}
        )

    target = SimpleNamespace(judge=judge, predictions=lambda rows: rows.select(*names).to_numpy())
    costs = OverUnder("EUR", 1.0, 3.0) if judge is CARS else CostMatrix("EUR", uniform=1.0)
    return SimpleNamespace(keys=("customer_id",), costs=costs, target=target), frame


def promised_of(problem, frame, rng, rows, wobble):
    judge = problem.target.judge
    periods = [frame(rng, rows, shift=wobble * rng.standard_normal()) for _ in range(14)]
    history = pl.concat(f.with_columns(moment=pl.lit(i)) for i, f in enumerate(periods[:12]))
    holdout = pl.concat(periods[12:])
    y, p = judge.outcomes(holdout["label"]), problem.target.predictions(holdout)
    judged = evaluate(judge, y, p, repeats=100)
    return promise(judge, {**judged.to_dict(), "period_wobble": period_wobble(judge, history)})


@pytest.mark.parametrize(("judge", "wobble"), [(CARS, 0.0), (CARS, 3.0), (TOPICS, 0.0), (TOPICS, 0.15)])
def test_false_alarms_of_amounts_and_classes(judge, wobble):
    (problem, frame), rng, alarms = world_of(judge), np.random.default_rng(6), 0
    for _ in range(60):
        given = promised_of(problem, frame, rng, 500, wobble)
        now = frame(rng, 500, shift=wobble * rng.standard_normal())
        alarms += performance_check(problem, now, given).verdict != "as promised"
    assert alarms <= 2, alarms


@pytest.mark.parametrize(
    ("judge", "wrong", "broken"),
    [
        (CARS, {"shift": 12.0}, "calibration_gap"),
        (CARS, {"wide": 2.0}, "coverage"),
        (CARS, {"wide": 0.4}, "coverage"),
        (CARS, {"noise": 0.4}, "rank_correlation"),
        (TOPICS, {"shift": 0.9}, "calibration_gap_of_other"),
        (TOPICS, {"noise": 0.6}, "macro_auc"),
        (TOPICS, {"noise": 0.6}, "log_loss"),
    ],
)
def test_what_breaks_is_named_for_every_kind(judge, wrong, broken):
    problem, frame = world_of(judge)
    rng = np.random.default_rng(7)
    report = performance_check(
        problem, frame(rng, 3000, **wrong), promised_of(problem, frame, rng, 2000, 0.02)
    )
    assert broken in report.broken
    if "shift" in wrong:
        assert report.avoidable > 0.005 and "rank_correlation" not in report.broken


@pytest.mark.parametrize("judge", [CARS, TOPICS])
def test_an_improvement_is_no_alarm(judge):
    "Outcomes that became easier to foretell lower the loss and lift the ranking: neither is a broken promise."
    problem, frame = world_of(judge)
    rng = np.random.default_rng(8)
    given = promised_of(problem, frame, rng, 2000, 0.02)
    better = performance_check(problem, frame(rng, 3000, wide=0.5), given)
    loss = next(f for f in better.findings if f.name == judge.loss)
    assert loss.observed < loss.promised and loss.z < -loss.limit and not loss.broken


def test_constant_outcomes_are_not_enough_to_judge_an_amount():
    problem, frame = world_of(CARS)
    rng = np.random.default_rng(9)
    given = promised_of(problem, frame, rng, 500, 0.0)
    stuck = frame(rng, 500).with_columns(label=pl.lit(100.0))
    assert performance_check(problem, stuck, given).verdict == "not enough labels"
