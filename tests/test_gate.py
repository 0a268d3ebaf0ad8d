"The gate's promises about its own odds, by simulation."

import numpy as np
import polars as pl
import pytest

from mlsys_nb.evaluation.gate import GateLimits, Predictions, gate
from mlsys_nb.problem.declaration import Costs

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
            frame, Predictions(noisy(z, rng, 0.6), rule, noisy(z, rng, 0.6)), COSTS, **ABOUT, seed=seed
        )

    n = 200
    assert rate("promote", n, one) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / n)


def test_nearly_identical_models_are_promoted_at_most_at_the_stated_level():
    "A/A with tiny differences: a refit that changed nothing that matters."

    def one(seed):
        frame, z, rule, rng = holdout(seed)
        return gate(
            frame, Predictions(noisy(z, rng, 0.05), rule, noisy(z, rng, 0.05)), COSTS, **ABOUT, seed=seed
        )

    n = 150
    assert rate("promote", n, one) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / n)


def test_a_clearly_better_model_is_promoted():
    "The champion's level has drifted away, as it does on real data; 1,500 entities at two moments."

    def one(seed):
        frame, z, rule, rng = holdout(seed, 1500)
        return gate(
            frame, Predictions(noisy(z, rng, 0.3), rule, noisy(z - 0.7, rng, 0.3)), COSTS, **ABOUT, seed=seed
        )

    assert rate("promote", 60, one) >= 0.9


def test_a_clearly_worse_model_never_is():
    def one(seed):
        frame, z, rule, rng = holdout(seed)
        return gate(
            frame, Predictions(noisy(z, rng, 1.2), rule, noisy(z, rng, 0.3)), COSTS, **ABOUT, seed=seed
        )

    assert rate("promote", 40, one) == 0


@pytest.mark.parametrize("n_entities", [1, 5, 40, 90])
def test_too_little_data_never_promotes(n_entities):
    for seed in range(10):
        frame, z, rule, rng = holdout(seed, n_entities)
        verdict = gate(frame, Predictions(sigmoid(z), rule, noisy(z - 2, rng, 1)), COSTS, **ABOUT)
        assert verdict.decision == "not enough data" and len(verdict.checks) == 1


def test_one_kind_of_outcome_is_not_enough():
    frame, z, rule, _ = holdout(0)
    verdict = gate(frame.with_columns(label=pl.lit(1)), Predictions(sigmoid(z), rule, rule), COSTS, **ABOUT)
    assert verdict.decision == "not enough data" and "0 outcomes of the rarer kind" in verdict.reason


def test_a_model_no_better_than_the_rule_is_refused():
    frame, _, rule, _ = holdout(1)
    verdict = gate(frame, Predictions(rule, rule), COSTS, **ABOUT)
    assert verdict.decision == "refuse" and "against the rule" in verdict.reason


def test_a_gain_that_costs_the_ranking_is_refused():
    frame, z, rule, rng = holdout(2, 3000)
    champion = sigmoid(z - 2.5)  # Ranks perfectly, promises far too little
    verdict = gate(frame, Predictions(noisy(z, rng, 0.9), rule, champion), COSTS, **ABOUT)
    failed = [check.name for check in verdict.checks if check.passed is False]
    assert verdict.decision == "refuse" and "ranking" in failed and "better than the champion" not in failed


def test_a_spoilt_slice_is_refused_and_named():
    frame, z, rule, rng = holdout(3, 3000)
    small = (frame["size"] < -0.67).to_numpy()
    challenger = np.where(small, sigmoid(z - 1.2), sigmoid(z))
    verdict = gate(
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
        limits = GateLimits(slice_loss=0.0)
        verdict = gate(
            frame, Predictions(noisy(z, rng, 0.5), rule, noisy(z, rng, 0.5)), COSTS, **about, limits=limits
        )
        failed.append(any(check.name == "slices" and check.passed is False for check in verdict.checks))
    assert np.mean(failed) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_limits_of_machine_and_refit():
    frame, z, rule, _ = holdout(4)
    seen = Predictions(sigmoid(z), rule, sigmoid(z - 1), sigmoid(z + 3))
    verdict = gate(frame, seen, COSTS, **(ABOUT | {"latency_ms": 50.0, "package_bytes": 10**9}))
    failed = {check.name for check in verdict.checks if check.passed is False}
    assert failed == {"latency", "package size", "refit"} and verdict.decision == "refuse"
    names = {check["name"] for check in verdict.to_dict(measured=False)["checks"]}
    assert not names & {"latency", "package size"} and "refit" in names
    slower = gate(frame, seen, COSTS, **(ABOUT | {"latency_ms": 51.0, "package_bytes": 10**9}))
    assert slower.to_dict(measured=False) == verdict.to_dict(measured=False) and "latency failed" in str(
        verdict.to_dict(False)
    )


def test_same_input_same_verdict():
    frame, z, rule, rng = holdout(5)
    seen = Predictions(noisy(z, rng, 0.3), rule, noisy(z, rng, 0.6))
    assert gate(frame, seen, COSTS, **ABOUT).to_dict() == gate(frame, seen, COSTS, **ABOUT).to_dict()
    assert "Gate:" in gate(frame, seen, COSTS, **ABOUT)._repr_html_()


@pytest.mark.parametrize(
    ("low", "high", "passed"),
    [(-0.02, 0.1, True), (-0.021, 0.1, None), (-0.1, -0.021, False), (-0.1, -0.02, None)],
)
def test_ranking_is_kept_lost_or_open_by_the_whole_interval(low, high, passed):
    from types import SimpleNamespace

    from mlsys_nb.evaluation.bootstrap import Estimate
    from mlsys_nb.evaluation.gate import ranking

    found = SimpleNamespace(auc_gain=Estimate((low + high) / 2, low, high))
    assert ranking(found, GateLimits(), "the champion").passed is passed
    unknown = SimpleNamespace(auc_gain=Estimate(0.1))
    assert ranking(unknown, GateLimits(), "the champion").passed is None
