"The promise of a release: few false alarms when the world wobbles as it did, and real decay found."

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from conftest import FULL

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.evaluation.evaluate import evaluate
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.monitoring.error_detector import Tally, bands_of, detect
from mlsys_nb.monitoring.metric_variability import period_wobble, wobbles
from mlsys_nb.monitoring.performance import allowed, performance_check, promise
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import load_settings

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import odds_performance as odds

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
    n, alarms = 150 if FULL else 60, 0
    for _ in range(n):
        given = promised(rng, 600, wobble)
        alarms += (
            performance_check(PROBLEM, period(rng, 600, wobble * rng.standard_normal()), given).verdict
            != "as promised"
        )
    assert alarms / n <= 0.02, alarms


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
    for _ in range(60 if FULL else 25):
        given = promised_of(problem, frame, rng, 500, wobble)
        now = frame(rng, 500, shift=wobble * rng.standard_normal())
        alarms += performance_check(problem, now, given).verdict != "as promised"
    assert alarms <= (2 if FULL else 1), alarms


@pytest.mark.parametrize(
    ("judge", "wrong", "broken"),
    [
        (CARS, {"shift": 12.0}, "calibration_gap"),
        (CARS, {"wide": 2.0}, "coverage"),
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
    assert loss.observed < loss.promised and loss.z < -1 and not loss.broken


def test_fault_an_interval_that_holds_more_than_promised_was_a_broken_promise():
    problem, frame = world_of(CARS)
    rng = np.random.default_rng(7)
    report = performance_check(
        problem, frame(rng, 3000, wide=0.4), promised_of(problem, frame, rng, 2000, 0.02)
    )
    covered = next(f for f in report.findings if f.name == "coverage")
    assert covered.observed > 0.99 > 0.8 == covered.promised and report.verdict == "as promised"


def test_fault_a_slope_that_came_nearer_to_one_was_a_broken_promise():
    rng = np.random.default_rng(8)
    given = promised(rng, 4000, 0.0)
    given = replace(given, values={**given.values, "calibration_slope": 0.85}, wobbles=(), wobble=0.002)

    def looked(slope):
        odds = rng.normal(0.6, 0.9, 20_000)
        label = (rng.random(20_000) < 1 / (1 + np.exp(-odds))).astype(int)
        score = 1 / (1 + np.exp(-odds / slope))
        who = {"customer_id": np.arange(20_000), "moment": [START] * 20_000}
        return performance_check(PROBLEM, pl.DataFrame({**who, "label": label, "score": score}), given).broken

    assert "calibration_slope" not in looked(1.12)
    assert "calibration_slope" in looked(0.6) and "calibration_slope" in looked(1.6)


def test_fault_one_period_of_two_rows_made_the_monitor_numb():
    'Predicted .08, observed .38, and "as promised" eight times: the spread of plain means was that of two rows.'
    rng = np.random.default_rng(10)
    sizes = [2, *[600] * 13]
    parts = [
        pl.DataFrame({"moment": [i] * n, "label": (rng.random(n) < 0.08).astype(int)})
        for i, n in enumerate(sizes)
    ]
    history = pl.concat([pl.DataFrame({"moment": [0] * 2, "label": [1, 1]}), *parts[1:]])
    assert period_wobble(Probability(), history) < 0.03
    p = rng.beta(2, 23, 1200)
    judged = evaluate(Probability(), (rng.random(1200) < p).astype(int), p, repeats=100)
    given = promise(
        Probability(), {**judged.to_dict(), "period_wobble": period_wobble(Probability(), history)}
    )
    who = {"customer_id": np.arange(1200), "moment": [START] * 1200}
    now = pl.DataFrame({**who, "label": (rng.random(1200) < 0.38).astype(int), "score": p})
    assert "calibration_gap" in performance_check(PROBLEM, now, given).broken


def test_constant_outcomes_are_not_enough_to_judge_an_amount():
    problem, frame = world_of(CARS)
    rng = np.random.default_rng(9)
    given = promised_of(problem, frame, rng, 500, 0.0)
    stuck = frame(rng, 500).with_columns(label=pl.lit(100.0))
    assert performance_check(problem, stuck, given).verdict == "not enough labels"


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        (odds.YES, odds.World("wanders as in the demo, young", odds.wanders(0.15), history=16)),
        (odds.CARS, odds.World("wanders", odds.wanders(0.15))),
        (odds.DESK, odds.World("wanders", odds.wanders(0.15))),
        (odds.YES, odds.World("tiny periods", odds.wanders(0.15), n=10, history=80, whole=True)),
    ],
    ids=["yes", "amount", "one of", "tiny"],
)
def test_fault_where_the_rate_wanders_as_in_the_demo_one_check_in_thirteen_was_a_false_alarm(kind, world):
    "The full figures are those of tests/bench/odds_performance.py; here a few model-years, of which none may alarm twice."
    told = [odds.model_year(kind, world, seed) for seed in range(3)]
    assert sum(checks for _, checks in told) >= 8
    assert sum(alarms for alarms, _ in told) <= 1, told


@pytest.mark.parametrize("differ", [0.05, 0.1])
def test_a_base_rate_that_rises_by_half_is_found_within_three_looks_at_five_thousand_rows_a_day(differ):
    world = odds.World("quiet days", odds.days(differ), 1, 1, 60, 5_000, 1)
    assert all(odds.found_within(odds.RARE, world, seed, 0.463) for seed in range(4))


@pytest.mark.parametrize(
    ("kind", "label", "broken"),
    [
        (odds.RARE, 0.0, "calibration_gap"),
        (odds.RARE, 1.0, "calibration_gap"),
        (odds.DESK, "bill", "calibration_gap_of_bill"),
        (odds.CARS, 0.0, "coverage"),
    ],
    ids=["never", "always", "one class", "amounts stuck far below"],
)
def test_fault_outcomes_of_one_kind_were_not_enough_labels_though_hundreds_of_the_other_were_foretold(
    kind, label, broken
):
    given, later, _ = odds.lived(kind, odds.World("constant", odds.constant), 1)
    report = performance_check(kind.problem, later(45).with_columns(label=pl.lit(label)), given)
    assert report.verdict == "broken promise" and broken in report.broken
    few = later(46).head(60).with_columns(label=pl.lit(label))
    assert performance_check(kind.problem, few, given).verdict == "not enough labels"


def test_a_class_that_vanished_is_named():
    given, later, _ = odds.lived(odds.DESK, odds.World("constant", odds.constant), 1)
    report = performance_check(odds.DESK.problem, later(45).filter(pl.col("label") != "other"), given)
    assert "calibration_gap_of_other" in report.broken


@pytest.mark.parametrize("kind", [odds.YES, odds.RARE, odds.CARS, odds.DESK], ids=lambda k: k.name)
def test_what_the_odds_skip_would_not_have_been_broken(kind):
    "The measured odds are those of the check itself: where its intervals are not computed they change nothing."
    skipped, found = 0, 0
    for seed in range(3):
        given, _, rng = odds.lived(kind, odds.World("wanders", odds.wanders(0.15), history=16), seed)
        for level in (0.0, 0.3, 0.6, 1.0):
            rows = kind.frame(rng, 500, level, odds.START)
            broken = performance_check(kind.problem, rows, given).broken
            clear = odds.cannot_break(kind, rows, given, 0.01)
            assert not (clear and broken)
            skipped, found = skipped + clear, found + bool(broken)
    assert skipped >= 3 and found >= 2


def traffic(kind):
    "Four years of a motorway, hour by hour: what a table of hours and weekdays says of each, learnt in the first of them."
    hours = pl.read_csv(load_settings().raw / "metro_traffic_volume.csv.gz", try_parse_dates=True)
    hours = hours.sort("date_time").unique("date_time", keep="first", maintain_order=True)
    hours = hours.with_columns(
        moment=pl.col("date_time").dt.replace_time_zone("UTC"), y=pl.col("traffic_volume").cast(pl.Float64)
    )
    day = pl.col("moment").dt.truncate("1d")
    slot = pl.col("moment").dt.weekday() * 24 + pl.col("moment").dt.hour()
    hours = hours.with_columns(customer_id=day, period=day + timedelta(days=1), slot=slot)
    days = hours["customer_id"].unique().sort()
    learnt = hours.filter(pl.col("customer_id").is_in(days[-1060:-695].implode()))
    if kind is odds.CARS:
        said = learnt.group_by("slot").agg(
            a=pl.col("y").mean(), b=pl.col("y").quantile(0.1), c=pl.col("y").quantile(0.9)
        )
        return hours.join(said, on="slot", how="left", maintain_order="left").with_columns(
            label=pl.col("y")
        ), days
    busy = (pl.col("y") > 3500).cast(pl.Float64)
    said = learnt.group_by("slot").agg(a=(busy.sum() + 0.5) / (pl.len() + 1))
    return hours.join(said, on="slot", how="left", maintain_order="left").with_columns(label=busy), days


@pytest.mark.parametrize("kind", [odds.CARS, odds.YES], ids=["vehicles", "busy or not"])
def test_a_quiet_real_stream_has_no_alarm_in_eleven_of_eleven_looks(kind):
    "A year of weeks, holidays and snow as history; then eleven months, each looked at by the check and label by label."
    rows, days = traffic(kind)
    within = lambda first, last: rows.filter(pl.col("customer_id").is_in(days[first:last].implode()))
    known, held, judge, day = within(-695, -330), within(-390, -330), kind.judge, timedelta(days=1)
    judged = evaluate(
        judge, held["label"].to_numpy(), kind.said(held), groups=held["customer_id"].to_physical().to_numpy()
    )
    strays = wobbles(judge, known, kind.said(known), judged, day)
    usual = period_wobble(judge, known, "period", day)
    given = promise(
        judge, {**judged.to_dict(), "period_wobble": usual, "wobbles": [w.to_dict() for w in strays]}
    )
    evidence, said, last = Tally(), [], len(days)
    for first in range(last - 330, last, 30):
        month = rows.filter(pl.col("customer_id").is_in(days[first : first + 30].implode()))
        report = performance_check(kind.problem, month, given, allowed(0.01, 30 * day))
        one_a_day = month.filter(
            pl.col("customer_id").dt.ordinal_day() * 7 % 24 == pl.col("moment").dt.hour()
        )
        found = detect(
            judge, one_a_day["label"].to_numpy(), kind.said(one_a_day), bands_of(judge, given), evidence
        )
        evidence = found.evidence
        said.append((report.verdict, found.alarm))
    assert said == [("as promised", False)] * 11
    changed = month.with_columns(label=pl.col("label") * 1.5 if kind is odds.CARS else 1 - pl.col("label"))
    assert performance_check(kind.problem, changed, given).broken
