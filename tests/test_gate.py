"The gate's promises about its own odds, by simulation."

import numpy as np
import polars as pl
import pytest
from conftest import FULL

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.clustered_intervals import LevelWobble
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.evaluation.gate import Inquiry, Predictions, gate
from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.evaluation.gate_verdict import RefitMove
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.system.settings import ProblemError

JUDGE = Probability()
COSTS = Costs("GBP", false_positive=2.0, false_negative=6.0)
ABOUT = {"entity": ["customer_id"], "slices": ["size"], "latency_ms": 0.3, "package_bytes": 80_000}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def holdout(seed, n_entities=600, moments=2):
    "Entities seen at several moments, a known truth, and a rule that knows a little of it."
    rng = np.random.default_rng(seed)
    entity = np.tile(np.arange(n_entities), moments)
    known, hidden = rng.normal(size=n_entities)[entity], rng.normal(size=n_entities)[entity]
    z = 0.8 + known + 0.5 * hidden
    y = (rng.uniform(size=len(z)) < sigmoid(z)).astype(np.int8)
    moment = np.repeat(np.arange(moments), n_entities)
    frame = pl.DataFrame(
        {"customer_id": entity, "moment": moment, "label": y, "size": rng.normal(size=len(z))}
    )
    return frame, z, sigmoid(0.5 + 0.3 * (known + 1.5 * rng.normal(size=len(z)))), rng


def noisy(z, rng, sd):
    "A model that is off by independent noise of a given size, entity by entity row."
    return sigmoid(z + sd * rng.normal(size=len(z)))


def rate(decision, worlds, make):
    return np.mean([make(seed).decision == decision for seed in range(worlds)])


def test_equal_models_are_promoted_at_most_at_the_stated_level():
    "A/A: challenger and champion are equally wrong in different places."

    def one(seed):
        frame, z, rule, rng = holdout(seed)
        return gate(
            JUDGE, frame, Predictions(noisy(z, rng, 0.6), rule, noisy(z, rng, 0.6)), COSTS, **ABOUT, seed=seed
        )

    n = 200 if FULL else 80
    assert rate("promote", n, one) <= 0.05


def test_nearly_identical_models_are_promoted_at_most_at_the_stated_level():
    "A/A with tiny differences: a refit that changed nothing that matters."

    def one(seed):
        frame, z, rule, rng = holdout(seed)
        return gate(
            JUDGE,
            frame,
            Predictions(noisy(z, rng, 0.05), rule, noisy(z, rng, 0.05)),
            COSTS,
            **ABOUT,
            seed=seed,
        )

    n = 150 if FULL else 60
    assert rate("promote", n, one) <= 0.05


def test_a_clearly_better_model_is_promoted():
    "The champion's level has drifted away, as it does on real data; 600 entities in six periods."

    def one(seed):
        frame, z, rule, rng = holdout(seed, 600, moments=6)
        return gate(
            JUDGE,
            frame,
            Predictions(noisy(z, rng, 0.3), rule, noisy(z - 0.7, rng, 0.3)),
            COSTS,
            **ABOUT,
            seed=seed,
        )

    assert rate("promote", 20, one) >= 0.9


def test_a_clearly_worse_model_never_is():
    def one(seed):
        frame, z, rule, rng = holdout(seed)
        return gate(
            JUDGE, frame, Predictions(noisy(z, rng, 1.2), rule, noisy(z, rng, 0.3)), COSTS, **ABOUT, seed=seed
        )

    assert rate("promote", 40, one) == 0


@pytest.mark.parametrize("n_entities", [1, 5, 40, 90])
def test_too_little_data_never_promotes(n_entities):
    for seed in range(10):
        frame, z, rule, rng = holdout(seed, n_entities)
        verdict = gate(JUDGE, frame, Predictions(sigmoid(z), rule, noisy(z - 2, rng, 1)), COSTS, **ABOUT)
        assert verdict.decision == "not enough data" and len(verdict.checks) == 1


def test_one_kind_of_outcome_is_not_enough():
    frame, z, rule, _ = holdout(0)
    verdict = gate(
        JUDGE, frame.with_columns(label=pl.lit(1)), Predictions(sigmoid(z), rule, rule), COSTS, **ABOUT
    )
    assert verdict.decision == "not enough data" and "0 outcomes of the rarer kind" in verdict.reason


def test_a_model_no_better_than_the_rule_is_refused():
    frame, _, rule, _ = holdout(1)
    verdict = gate(JUDGE, frame, Predictions(rule, rule), COSTS, **ABOUT)
    assert verdict.decision == "refuse" and "against the rule" in verdict.reason


def test_a_gain_that_costs_the_ranking_is_refused():
    frame, z, rule, rng = holdout(2, 3000)
    champion = sigmoid(z - 2.5)  # Ranks perfectly, promises far too little
    verdict = gate(JUDGE, frame, Predictions(noisy(z, rng, 0.9), rule, champion), COSTS, **ABOUT)
    failed = [check.name for check in verdict.checks if check.passed is False]
    assert verdict.decision == "refuse" and "ranking" in failed and "better than the champion" not in failed


def test_a_spoilt_slice_is_refused_and_named():
    frame, z, rule, rng = holdout(3, 3000)
    small = (frame["size"] < -0.67).to_numpy()
    challenger = np.where(small, sigmoid(z - 1.2), sigmoid(z))
    verdict = gate(
        JUDGE,
        frame,
        Predictions(challenger, rule, noisy(z - 0.9, rng, 0.5) * ~small + sigmoid(z) * small),
        COSTS,
        **ABOUT,
    )
    (check,) = [check for check in verdict.checks if check.name == "slices"]
    assert check.passed is False and "size = up to" in check.meaning and verdict.decision == "refuse"


def test_equal_models_rarely_fail_the_slice_check_however_many_slices():
    failed = []
    for seed in range(60):
        frame, z, rule, rng = holdout(seed)
        frame = frame.with_columns(**{f"s{i}": rng.normal(size=len(z)) for i in range(6)})
        about = ABOUT | {"slices": [f"s{i}" for i in range(6)]}
        limits = Limits(slice_loss=0.0)
        verdict = gate(
            JUDGE,
            frame,
            Predictions(noisy(z, rng, 0.5), rule, noisy(z, rng, 0.5)),
            COSTS,
            **about,
            asked=Inquiry(limits=limits),
        )
        failed.append(any(check.name == "slices" and check.passed is False for check in verdict.checks))
    assert np.mean(failed) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_limits_of_machine_and_refit():
    frame, z, rule, _ = holdout(4)
    seen = Predictions(sigmoid(z), rule, sigmoid(z - 1))
    far = {"asked": Inquiry(moved=RefitMove(0.5, 0.1), wobble=LevelWobble((0.01,), 20))}
    verdict = gate(JUDGE, frame, seen, COSTS, **(ABOUT | far | {"latency_ms": 50.0, "package_bytes": 10**9}))
    failed = {check.name for check in verdict.checks if check.passed is False}
    assert failed == {"latency", "package size", "refit"} and verdict.decision == "refuse"
    names = {check["name"] for check in verdict.to_dict(measured=False)["checks"]}
    assert not names & {"latency", "package size"} and "refit" in names
    slower = gate(JUDGE, frame, seen, COSTS, **(ABOUT | far | {"latency_ms": 51.0, "package_bytes": 10**9}))
    assert slower.to_dict(measured=False) == verdict.to_dict(measured=False) and "latency failed" in str(
        verdict.to_dict(False)
    )


def test_same_input_same_verdict():
    frame, z, rule, rng = holdout(5)
    seen = Predictions(noisy(z, rng, 0.3), rule, noisy(z, rng, 0.6))
    assert (
        gate(JUDGE, frame, seen, COSTS, **ABOUT).to_dict()
        == gate(JUDGE, frame, seen, COSTS, **ABOUT).to_dict()
    )
    assert "Gate:" in gate(JUDGE, frame, seen, COSTS, **ABOUT)._repr_html_()


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [(-0.02, 0.1, True), (-0.021, 0.1, True), (-0.1, -0.021, False), (-0.1, -0.02, True)],
)
def test_ranking_forbids_only_where_it_is_lost_beyond_doubt(low, high, passed):
    from types import SimpleNamespace

    from mlsys_nb.evaluation.bootstrap import Estimate
    from mlsys_nb.evaluation.gate_checks import ranking

    found = SimpleNamespace(ranks="auc", rank_gain=Estimate((low + high) / 2, low, high))
    assert ranking(found, Limits(), "the champion").passed is passed
    unknown = SimpleNamespace(ranks="auc", rank_gain=Estimate(0.1))
    assert ranking(unknown, Limits(), "the champion").passed is True


def calibration_at(base, times, rows=6000):
    "The calibration check of a gate where a share `base` happens and `times` as much is promised."
    rng = np.random.default_rng(0)
    truth = np.clip(base * np.exp(rng.normal(0, 0.8, rows) - 0.32), 0, 0.95)
    frame = pl.DataFrame({"customer_id": np.arange(rows), "moment": 0, "size": rng.normal(size=rows)})
    frame = frame.with_columns(label=(rng.random(rows) < truth).astype(np.int8))
    rule = np.full(rows, base)
    p, calm = Predictions(np.clip(times * truth, 0, 1), rule), Inquiry(wobble=LevelWobble((0.002,), 20))
    verdict = gate(JUDGE, frame, p, COSTS, **ABOUT, asked=calm)
    return next(check for check in verdict.checks if check.name == "calibration")


def test_a_gap_that_is_small_only_because_the_outcome_is_rare_is_refused():
    "An absolute limit of .10 lets a model pass that promises four times what happens at a base rate of 2 %."
    assert calibration_at(0.02, 4.0).passed is False
    assert calibration_at(0.02, 1.0).passed is True and calibration_at(0.4, 1.0).passed is True
    assert calibration_at(0.4, 1.5).passed is False


def test_limits_are_the_problems():
    frame, z, rule, _ = holdout(4, 3000, moments=3)
    seen = Predictions(sigmoid(z - 0.5), rule)
    usual, strict, loose = (
        gate(JUDGE, frame, seen, COSTS, **ABOUT, asked=Inquiry(limits=Limits(**how)))
        for how in ({}, {"calibration": 0.01, "latency_ms": 0.1}, {"calibration": 5.0, "slice_loss": 9.0})
    )
    failed = lambda v: {c.name for c in v.checks if c.passed is False}
    assert (
        {"calibration", "latency"} <= failed(strict) and not failed(loose) and "latency" not in failed(usual)
    )


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"rows": 20}, "entities=100 cannot be among rows=20"),
        ({"level": 0.0}, "level"),
        ({"calibration": -1}, "calibration is a limit"),
        ({"refit": float("inf")}, "refit is a limit"),
        ({"outcomes": 2.5}, "whole number"),
    ],
)
def test_contradicting_limits_are_refused(how, says):
    with pytest.raises(ProblemError, match=says):
        Limits(**how)


def kind_of_world(kind, seed, n=900):
    "Rows, a model, an equally wrong one, a much better one and the rule, for amounts and for classes."
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame({"customer_id": np.arange(n) % 450, "moment": np.repeat([0, 1], n // 2)})
    frame = frame.with_columns(size=rng.normal(size=n))
    if kind == "number":
        mean = rng.uniform(50, 150, n)
        label = pl.Series("label", mean + rng.normal(0, 10, n))

        def off(sd):
            return (mean + rng.normal(0, sd, n))[:, None] + np.array([0.0, -13.0, 13.0])

        return (
            Number(),
            frame.with_columns(label),
            off,
            np.tile([100.0, 55.0, 145.0], (n, 1)),
            OverUnder("EUR", 1, 3),
        )
    z = rng.normal(size=(n, 3))
    true = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    label = [("a", "b", "c")[k] for k in (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, 2)]

    def said(sd):
        w = np.exp(z + rng.normal(0, sd / 10, (n, 3)))
        return w / w.sum(axis=1, keepdims=True)

    shares = np.tile([1 / 3] * 3, (n, 1))
    return (
        Classes(("a", "b", "c")),
        frame.with_columns(label=pl.Series(label)),
        said,
        shares,
        CostMatrix("EUR", uniform=1.0),
    )


@pytest.mark.parametrize("kind", ["number", "classes"])
def test_the_gate_keeps_its_odds_for_every_kind(kind):
    "Equal models pass at most at the stated level, a clearly better one does, the rule itself does not."
    equal, better = [], []
    n = 60 if FULL else 30
    for seed in range(n):
        judge, frame, model, rule, costs = kind_of_world(kind, seed)
        seen = Predictions(model(6.0), rule, model(6.0))
        equal.append(gate(judge, frame, seen, costs, **ABOUT, seed=seed).promotes)
        if seed < 10:
            better.append(
                gate(judge, frame, Predictions(model(1.0), rule, model(9.0)), costs, **ABOUT).promotes
            )
    assert np.mean(equal) <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / n), np.mean(equal)
    assert np.mean(better) >= 0.9, np.mean(better)
    verdict = gate(judge, frame, Predictions(rule, rule), costs, **ABOUT)
    assert not verdict.promotes and "the rule" in verdict.reason


@pytest.mark.parametrize("question", [Question.CHANGE, Question.REFRESH])
@pytest.mark.parametrize("kind", ["number", "classes"])
def test_only_a_gain_that_must_be_shown_is_charged_with_what_few_periods_may_hide(kind, question):
    said = []
    for seed in range(6):
        judge, frame, model, rule, costs = kind_of_world(kind, seed)
        asked = Inquiry(question, wobble=LevelWobble((0.0,) * (3 if kind == "classes" else 1), 12))
        seen = Predictions(model(6.0), rule, model(6.0))
        said.append(str(gate(judge, frame, seen, costs, **ABOUT, asked=asked).stated.covers))
    assert any("so few may hide" in one for one in said) == (question is Question.CHANGE), said


@pytest.mark.parametrize("kind", ["number", "classes"])
def test_nothing_to_judge_by_is_not_enough_data(kind):
    judge, frame, model, rule, costs = kind_of_world(kind, 0)
    same = frame.with_columns(label=pl.lit(frame["label"][0]))
    verdict = gate(judge, same, Predictions(model(1.0), rule), costs, **ABOUT)
    assert verdict.decision == "not enough data" and "apart from the commonest" in verdict.reason
    two = gate(judge, frame[:2], Predictions(model(1.0)[:2], rule[:2]), costs, **ABOUT)
    assert two.decision == "not enough data" and len(two.checks) == 1


def test_a_class_that_is_promised_too_often_is_refused_by_name():
    judge, frame, model, rule, costs = kind_of_world("classes", 1, 3000)
    p = model(1.0) * [1.0, 1.0, 6.0]
    p /= p.sum(axis=1, keepdims=True)
    verdict = gate(judge, frame, Predictions(p, rule), costs, **ABOUT)
    check = next(c for c in verdict.checks if c.name == "calibration")
    assert check.passed is False and "calibration gap of c" in check.meaning


def test_a_class_missing_in_the_holdout_is_judged_by_the_others():
    judge, frame, model, rule, costs = kind_of_world("classes", 2, 3000)
    p = model(1.0)
    there = (frame["label"] != "b").to_numpy()
    calm = Inquiry(wobble=LevelWobble((0.002,) * 3, 20))
    verdict = gate(judge, frame.filter(there), Predictions(p[there], rule[there]), costs, **ABOUT, asked=calm)
    check = next(c for c in verdict.checks if c.name == "calibration")
    assert "calibration gap of b" in check.meaning and "what serves now" in check.meaning
