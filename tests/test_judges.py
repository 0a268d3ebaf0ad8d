"Judges of probabilities, amounts and classes: figures against independent references, intervals by simulation, hostile input."

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm, spearmanr
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    mean_pinball_loss,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.bootstrap import resample
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.evaluation.evaluate import compare, evaluate
from mlsys_nb.evaluation.multiclass_metrics import Classes, gap_of
from mlsys_nb.evaluation.regression_metrics import Number, at_quantile
from mlsys_nb.evaluation.slices import slice_gains, slice_report

NAMES = ("bad", "middling", "good")
NUMBER, CLASSES, PROBABILITY = Number(level=0.8, unit="cars"), Classes(NAMES), Probability()


def amounts(seed, n=1500, sd=10.0, entities=500, claimed=None, level=0.8):
    "Outcomes with an entity effect; a point that knows the mean, and an interval that claims a spread."
    rng = np.random.default_rng(seed)
    entity = np.arange(n) % entities
    mean = rng.uniform(50, 150, n)
    y = mean + sd * (0.6 * rng.normal(size=entities)[entity] + 0.8 * rng.normal(size=n))
    half = norm.ppf((1 + level) / 2) * (claimed or sd)
    return y, np.column_stack([mean, mean - half, mean + half]), entity


def kinds(seed, n=1500, sure=1.0, lift=0.0, k=3):
    "Classes drawn from known probabilities; predictions that are `sure` times too sure and favour the last class."
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) + np.linspace(0, 1, k)
    true, said = (
        np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (z, sure * z + lift * np.eye(k)[-1])
    )
    y = (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, k - 1).astype(float)
    return y, said, true


def world(judge, seed, n=1500):
    "One of the three kinds: y, a good prediction, a worse one, costs."
    if judge is NUMBER:
        y, p, _ = amounts(seed, n)
        return y, p, p + np.random.default_rng(seed + 1).normal(0, 12, (n, 1)), OverUnder("EUR", 1.0, 3.0)
    if judge is CLASSES:
        y, p, _ = kinds(seed, n)
        return y, p, kinds(seed, n, 2.0)[1], CostMatrix("EUR", uniform=1.0, abstain=0.5)
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n)
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    return y, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-3 * z)), Costs("EUR", 1.0, 2.0)


JUDGES = pytest.mark.parametrize(
    "judge", [PROBABILITY, NUMBER, CLASSES], ids=["probability", "number", "classes"]
)


def test_figures_of_amounts_equal_sklearn_and_scipy():
    y, p, entity = amounts(0)
    found = evaluate(NUMBER, y, p, groups=entity, repeats=20)
    point, low, high = p.T
    thirds = [mean_pinball_loss(y, at, alpha=q) for at, q in ((low, 0.1), (point, 0.5), (high, 0.9))]
    expected = {
        "pinball": np.mean(thirds),
        "mae": mean_absolute_error(y, point),
        "rmse": root_mean_squared_error(y, point),
        "r2": r2_score(y, point),
        "rank_correlation": spearmanr(y, point).statistic,
        "coverage": np.mean((y >= low) & (y <= high)),
        "interval_width": np.mean(high - low),
        "calibration_gap": np.mean(point - y),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name


def test_figures_of_classes_equal_sklearn():
    y, p, _ = kinds(0)
    found = evaluate(CLASSES, y, p, repeats=20)
    assert found["log_loss"].value == pytest.approx(log_loss(y, p), abs=1e-12)
    assert found["accuracy"].value == pytest.approx(accuracy_score(y, p.argmax(axis=1)), abs=1e-12)
    assert found["macro_auc"].value == pytest.approx(roc_auc_score(y, p, multi_class="ovr"), abs=1e-12)
    each = sum(brier_score_loss(y == c, p[:, c]) for c in range(3))
    assert found["brier"].value == pytest.approx(each, abs=1e-12)
    confusion = found.tables["confusion"]
    assert confusion.drop("came").to_numpy().trace() == np.sum(y == p.argmax(axis=1))
    assert confusion.drop("came").to_numpy().sum() == len(y)


def test_two_classes_are_judged_like_a_probability():
    y, p, _ = world(PROBABILITY, 3)[:3]
    both, one = Classes(("no", "yes")), PROBABILITY
    two = np.column_stack([1 - p, p])
    assert both.losses(y, two) == pytest.approx(one.losses(y, p), abs=1e-9)
    assert both.ranking(y, two)[0] == pytest.approx(one.ranking(y, p)[0], abs=1e-12)
    assert both.scale(y) == pytest.approx(one.scale(y)) and both.spread(y) == pytest.approx(one.spread(y))
    costs, matrix = Costs("EUR", 2.0, 6.0), CostMatrix("EUR", matrix=((0, 2), (6, 0)))
    assert both.money(y, two, matrix).sum() == pytest.approx(one.money(y, p, costs).sum())


@JUDGES
def test_intervals_cover_the_truth(judge):
    "Each figure's 95 % interval contains the value that a very large sample has."
    names = {"probability": ("auc", "log_loss", "calibration_gap"), "number": ("pinball", "coverage", "rank_correlation",
             "mae", "calibration_gap"), "classes": ("log_loss", "macro_auc", "calibration_gap", gap_of("good"), "accuracy")}  # fmt: skip
    asked = names[{PROBABILITY: "probability", NUMBER: "number", CLASSES: "classes"}[judge]]
    y, p, *_ = world(judge, 10_000, 100_000)
    truth = evaluate(judge, y, p, repeats=2)
    hits = {name: [] for name in asked}
    for seed in range(150):
        y, p, *_ = world(judge, seed, 400)
        groups = np.arange(400) % 500 if judge is NUMBER else None
        found = evaluate(judge, y, p, groups=groups, repeats=100, seed=seed)
        for name in asked:
            hits[name].append(found[name].low <= truth[name].value <= found[name].high)
    for name, seen in hits.items():
        assert 0.88 <= np.mean(seen) <= 0.995, (name, np.mean(seen))


def test_rows_of_one_entity_are_no_independent_evidence_of_an_amount():
    y, p, entity = amounts(1, 3000, entities=100)
    alone, together = (evaluate(NUMBER, y, p, groups=g)["calibration_gap"] for g in (None, entity))
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


@JUDGES
def test_the_parts_of_a_gain_add_up_and_back_is_minus(judge):
    y, good, worse, costs = world(judge, 5)
    there, back = compare(judge, y, good, worse, costs=costs), compare(judge, y, worse, good, costs=costs)
    assert there.calibration_part.value + there.ranking_part.value == pytest.approx(there.loss_gain.value)
    assert there.loss_gain.low > 0 and back.loss_gain.value == pytest.approx(-there.loss_gain.value)
    assert there.saving_per_1000.value > 0 and "gets worse" in back.sentence
    itself = compare(judge, y, good, good, costs=costs)
    assert itself.loss_gain.value == itself.rank_gain.value == itself.saving_per_1000.value == 0


@JUDGES
def test_a_correction_helps_and_a_right_prediction_has_little_to_gain(judge):
    y, good, worse, _ = world(judge, 6, 4000)
    mean = lambda p: float(judge.losses(y, p).mean())
    assert mean(judge.corrected(y, worse)) <= mean(worse) + 1e-9
    assert abs(mean(judge.corrected(y, good)) - mean(good)) < 0.01 * judge.spread(y)
    judge.checked(y, judge.corrected(y, worse))


def test_the_correction_of_amounts_finds_what_was_done():
    y, p, _ = amounts(7, 4000)
    bent = 20 + 0.5 * p
    fixed = NUMBER.corrected(y, bent)
    assert np.abs(fixed[:, 0] - p[:, 0]).mean() < 1.0
    inside = np.mean((y >= fixed[:, 1]) & (y <= fixed[:, 2]))
    assert inside == pytest.approx(0.8, abs=0.01)
    turned = NUMBER.corrected(y, np.column_stack([-p[:, 0], -p[:, 2], -p[:, 1]]))
    assert np.ptp(turned[:, 0]) == 0, "a correction must not turn the order around"


def test_the_correction_of_classes_finds_temperature_and_shares():
    y, rash, true = kinds(8, 6000, sure=2.0, lift=1.0)
    assert np.abs(CLASSES.corrected(y, rash) - true).mean() < 0.02


@pytest.mark.parametrize(
    ("seed", "wrong", "names"), [(0, {"sure": 2.5}, {"log_loss"}), (1, {"lift": 1.0}, {"good"})]
)
def test_what_is_wrong_with_classes_shows_where_it_should(seed, wrong, names):
    y, p, true = kinds(seed, 3000, **wrong)
    said, right = evaluate(CLASSES, y, p), evaluate(CLASSES, y, true)
    if "good" in names:
        assert said[gap_of("good")].low > 0.05 and said[gap_of("bad")].high < 0
    else:
        assert said["log_loss"].low > right["log_loss"].high and said["calibration_gap"].low > 0
    assert right["calibration_gap"].low < 0 < right["calibration_gap"].high


def test_the_coverage_table_says_where_intervals_fail():
    y, p, _ = amounts(9, 6000)
    loud = y + np.where(p[:, 0] > 120, 25, 0) * np.random.default_rng(0).normal(size=len(y))
    shown = NUMBER.tables(loud, p, resample(len(y)), 0.95)["reliability"]
    held = dict(shown.select("bin", "coverage").iter_rows())
    assert held[1] > 0.75 and held[10] < 0.6 and shown["n"].sum() == len(y)
    assert (shown["coverage_low"] <= shown["coverage"]).all()


def test_an_amount_is_decided_at_the_quantile_that_costs_least():
    y, p, _ = amounts(10, 20_000)
    costs = OverUnder("EUR", over=1.0, under=4.0)
    best = NUMBER.money(y, p, costs).mean()
    decided = at_quantile(p, costs.quantile, 0.8)
    assert np.mean(y <= decided) == pytest.approx(0.8, abs=0.02)
    for other in (0.6, 0.7, 0.88, 0.95):
        over = at_quantile(p, other, 0.8) - y
        assert best <= np.where(over >= 0, over, -4 * over).mean() + 1e-3


def test_abstaining_pays_where_nothing_is_sure():
    y, p, _ = kinds(11, 5000)
    strict, free = CostMatrix("EUR", uniform=1.0), CostMatrix("EUR", uniform=1.0, abstain=0.4)
    assert CLASSES.money(y, p, free).mean() < CLASSES.money(y, p, strict).mean()
    assert ((free.answers(p) == -1) == (1 - p.max(axis=1) > 0.4)).all()


@JUDGES
def test_slices_of_every_kind(judge):
    y, good, worse, _ = world(judge, 12)
    rows = pl.DataFrame({"part": np.where(np.arange(len(y)) % 3 == 0, "a", "b")})
    spoilt = np.where((rows["part"] == "a").to_numpy().reshape(-1, *[1] * (good.ndim - 1)), worse, good)
    gains = slice_gains(judge, rows, y, spoilt, good, ["part"])
    assert gains.filter(pl.col("high") < 0)["value"].to_list() == ["a"]
    report = slice_report(judge, rows, y, good, ["part"])
    assert {"slice", "value", "n", "mean_label", judge.loss, judge.ranks, "calibration_gap"} <= set(
        report.columns
    )


@pytest.mark.parametrize(
    ("judge", "y", "p", "says"),
    [
        (NUMBER, [1.0, float("nan")], [[1, 0, 2]] * 2, "got nan; leave out"),
        (NUMBER, [1.0, float("inf")], [[1, 0, 2]] * 2, "got inf; leave out"),
        (NUMBER, [1.0], [[1, 2, 0]], "sort the ends"),
        (NUMBER, [1.0], [1.0], "predict n rows of three"),
        (NUMBER, [], np.empty((0, 3)), "at least one row"),
        (NUMBER, [1.0], [[float("nan"), 0, 1]], "check the model"),
        (NUMBER, [1e300], [[1, 0, 2]], "up to 1e\\+100"),
        (CLASSES, [3], [[0.2, 0.3, 0.5]], "0 to 2, got 3"),
        (CLASSES, [0.5], [[0.2, 0.3, 0.5]], "0 to 2, got 0.5"),
        (CLASSES, [0], [[0.2, 0.3, 0.6]], "sum to 1"),
        (CLASSES, [0], [[-0.5, 0.5, 1.0]], "below zero"),
        (CLASSES, [0, 1], [[0.5, 0.5]] * 2, "predict every class"),
        (CLASSES, [], np.empty((0, 3)), "at least one row"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(judge, y, p, says):
    with pytest.raises(ValueError, match=says):
        evaluate(judge, y, p)


@pytest.mark.parametrize("n", [1, 2, 3])
@JUDGES
def test_a_handful_of_rows_is_judged_without_an_accident(judge, n):
    y, good, worse, costs = world(judge, 13, n)
    assert evaluate(judge, y, good, costs=costs).n == n
    assert compare(judge, y, good, worse, costs=costs).n == n
    assert judge.scale(y) > 0 and judge.spread(y) > 0
    judge.checked(y, judge.corrected(y, worse))


@JUDGES
def test_a_constant_outcome_is_judged_and_is_not_enough(judge):
    y, good, worse, costs = world(judge, 14)
    same = np.full(len(y), y[0])
    found = evaluate(judge, same, good, costs=costs)
    assert found[judge.ranks].value is None and np.isfinite(found[judge.loss].value)
    assert list(judge.enough(same).values()) == [0] and judge.scale(same) > 0 and judge.spread(same) > 0
    compare(judge, same, good, worse, costs=costs)
    assert np.isfinite(judge.corrected(same, good)).all()


def test_constant_predictions_and_intervals_without_width():
    y, p, _ = amounts(15)
    flat = np.full((len(y), 3), 100.0)
    found = evaluate(NUMBER, y, flat)
    assert found["coverage"].value == 0 and found["rank_correlation"].value == 0
    assert NUMBER.corrected(y, flat)[:, 0] == pytest.approx(y.mean())


def test_huge_and_tiny_amounts_lose_no_figure():
    y, p, _ = amounts(16)
    for size in (1e-60, 1e60):
        found = evaluate(NUMBER, y * size, p * size)
        assert found["r2"].value == pytest.approx(evaluate(NUMBER, y, p)["r2"].value, rel=1e-6)
        assert found["mae"].value == pytest.approx(evaluate(NUMBER, y, p)["mae"].value * size)
    far = evaluate(NUMBER, y + 1e9, p + 1e9)
    assert far["r2"].value == pytest.approx(evaluate(NUMBER, y, p)["r2"].value, abs=1e-6)


def test_a_class_that_never_came_keeps_the_others_standing():
    y, p, _ = kinds(17)
    there = y != 1
    found = evaluate(CLASSES, y[there], p[there])
    assert found["macro_auc"].value is not None and found[gap_of("middling")].low > 0
    fixed = CLASSES.corrected(y[there], p[there])
    assert np.isfinite(CLASSES.losses(y[there], fixed)).all() and fixed[:, 1].max() < 0.1


@JUDGES
def test_the_same_seed_gives_the_same_figures_and_plain_data(judge):
    import json

    y, good, worse, costs = world(judge, 18)
    one, two = (evaluate(judge, y, good, costs=costs, seed=3).to_dict() for _ in range(2))
    assert json.loads(json.dumps(one)) == json.loads(json.dumps(two))
    assert set(one) == {"n", "entities", "facts", "figures", "tables"}
    shown = evaluate(judge, y, good, costs=costs)._repr_html_() + compare(judge, y, good, worse)._repr_html_()
    assert "Evaluation" in shown and "log_loss" not in shown
    assert {"mean_label", "mean_prediction"} <= set(one["facts"])
    assert set(judge.watched) <= set(one["figures"])


@JUDGES
def test_limits_do_not_depend_on_the_unit(judge):
    "Scale and spread follow the outcomes: a limit that is a share of them means the same in pence and in pounds."
    y, *_ = world(judge, 19)
    if judge is NUMBER:
        assert judge.scale(100 * y) == pytest.approx(100 * judge.scale(y))
        assert judge.spread(100 * y) == pytest.approx(100 * judge.spread(y))
    else:
        rare = np.where(np.arange(len(y)) % 50 == 0, y, 0.0)
        assert judge.scale(rare) < 0.1 * judge.scale(y) and judge.spread(rare) < 0.3 * judge.spread(y)
