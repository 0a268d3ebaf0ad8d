"A recalibrated version: the old model behind a few numbers, of every kind of answer, with the same bits everywhere."

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import visits_world as world
from test_loop import FIRST, at

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.evaluate import evaluate
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.learning.link_functions import Interval, Logistic, Softmax, sigmoid
from mlsys_nb.learning.model_correction import Corrected, Corrigible, correction, folds, link_from, link_spec
from mlsys_nb.learning.split import TooLittleData
from mlsys_nb.learning.train import fit
from mlsys_nb.loop.attempt_history import attempts_of
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import monitor, retrain, score
from mlsys_nb.loop.recalibrate import recalibrate
from mlsys_nb.loop.retrain import held_to, profile_of
from mlsys_nb.loop.step_context import anew
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.problem.retrain_triggers import BrokenPromise, Cadence
from mlsys_nb.release.manifest import Evidence
from mlsys_nb.release.package import build
from mlsys_nb.release.registry import champion, promote, register

DAY = world.DAY
TROUBLED = replace(world.problem, retrain_when=(BrokenPromise(),), cadence=Cadence())


def dim(settings, problem=TROUBLED) -> int:
    "A champion that ranks well and has learnt from a world with a third of the outcomes: it promises far too little."
    place = at(settings, 0, problem)
    dataset = training_set(place)
    rows = dataset.labelled()
    keep = (pl.col("label") == 0) | (pl.int_range(pl.len()).hash(seed=1) % 3 == 0)
    fitted = fit(
        "linear", rows.filter(keep), problem.features.names, moment="period", params={"C": 0.1, "segments": 1}
    )
    thin, judge = rows.filter(keep), problem.target.judge
    promised = evaluate(judge, judge.outcomes(thin["label"]), fitted.predict(thin), costs=problem.costs)
    evidence = Evidence(held_to(problem, fitted, thin, promised), profile=profile_of(problem, fitted, rows))
    found = build(fitted, dataset.at(rows["period"].unique().sort().to_list()), evidence)
    made = register(place.control, settings, found, "by hand", place.now)
    said = {"expected_epoch": place.champion.epoch, "at": place.now, "actor": "ada", "reason": "a hunch"}
    promote(place.control, "visits", made.version, **said)
    return made.version


@pytest.fixture
def dimmed(tmp_path):
    settings = world.make(tmp_path)
    ingest_due(at(settings, 0, TROUBLED))
    dim(settings)
    score(at(settings, 0, TROUBLED))
    return settings


def later(settings, day):
    place = at(settings, day, TROUBLED)
    ingest_due(place)
    return place


# --- through the loop


def test_a_broken_promise_of_calibration_is_mended_by_two_numbers(dimmed):
    before = at(dimmed, 0, TROUBLED).model
    place = later(dimmed, 24)
    watched = monitor(place)
    assert (
        watched.outputs["performance"] == "broken promise" and "calibration_gap" in watched.performance.broken
    )
    assert "nats a decision" in watched.outputs["avoidable"]
    done = retrain(anew(place), n_trials=1)
    assert (done.policy.action, done.decision) == ("recalibrate", "promoted"), done.reason
    assert done.remedy.correction.moved(np.zeros((1, 1)))[0, 0] > 0.3 and done.candidate is None
    assert "goes on losing" in done.policy.counterfactual and "Recalibration" in done._repr_html_()

    now = anew(place).model
    assert now.manifest["correction"]["of"] == before.digest and now.features.hash == before.features.hash
    assert isinstance(now.link, Corrected) and now.link.base == before.link
    assert all(
        (getattr(now.form, k) == getattr(before.form, k)).all() for k in ("weight", "intercept", "centre")
    )
    batch = score(anew(place)).batch.frame
    rows = training_set(place).frame.head(40)
    assert [now.predict_one(row) for row in rows.to_dicts()] == now.predict(rows).tolist()
    assert (batch["version"] == now.version).all() and batch["score"].mean() > before.predict(rows).mean()
    (tried,) = attempts_of(place.control, "visits")
    assert (tried.action, tried.outcome, tried.trouble) == ("recalibrate", "promoted", True)

    again = retrain(anew(place), n_trials=1)  # the same look: found, not done twice
    assert again.outputs["champion"] == now.version and champion(place.control, "visits").epoch == 2


def test_a_correction_is_judged_forward_in_time_and_learns_from_nothing_that_the_model_knew(dimmed):
    place = later(dimmed, 24)
    found = recalibrate(place, place.model)
    fitted = place.model.manifest["training"]["last"]
    assert found.apart and found.dataset.frame["period"].min().isoformat() > fitted
    note = found.package.manifest
    assert note["correction"]["fitted"] == fitted and note["training"]["last"] == note["correction"]["last"]
    assert note["training"]["rows"] == place.model.manifest["training"]["rows"]


def test_too_few_outcomes_teach_no_correction(dimmed):
    place = at(dimmed, 0, TROUBLED)
    with pytest.raises(TooLittleData, match="came after"):
        recalibrate(place, place.model)


def test_where_outcomes_overlap_in_time_the_later_half_is_judged_on_other_entities(dimmed):
    place = later(dimmed, 9)
    found = recalibrate(place, place.model)
    assert not found.apart and found.evaluation.n < found.dataset.frame.height / 2 + 300
    told = " ".join(check.meaning for check in found.verdict.checks)
    assert found.verdict.decision == "not enough data" and "with three periods more" in told  # of two it has
    assert float(told.partition("log-loss gain +")[2].split()[0]) > 0.1


# --- corrections of anything


def asked(judge, link, raw, labels) -> Corrigible:
    raw = np.asarray(raw, dtype=float).reshape(len(labels), -1)
    rows = pl.DataFrame({"i": np.arange(len(labels)), "label": labels})
    return Corrigible(judge, link, ("i",), lambda found: raw[found["i"].to_numpy()], rows)


RNG = np.random.default_rng(3)
Z = RNG.normal(0, 2, 400)
HOSTILE = {
    "plain": (Z, (RNG.random(400) < sigmoid(Z)).astype(int)),
    "constant sums": (np.full(400, 0.3), RNG.integers(0, 2, 400)),
    "sums beyond any odds": (np.where(Z > 0, 1e3, -1e3), (Z > 0).astype(int)),
    "one outcome only": (Z, np.ones(400, dtype=int)),
    "turned round": (Z, (RNG.random(400) < sigmoid(-Z)).astype(int)),
    "three rows": (Z[:3], np.array([0, 1, 1])),
    "ties": (np.round(Z), RNG.integers(0, 2, 400)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("monotone", [False, True])
def test_a_correction_of_a_probability_is_finite_keeps_the_order_and_gives_a_row_the_same_bits(
    name, monotone
):
    raw, labels = HOSTILE[name]
    case = asked(Probability(), Logistic(), raw, labels)
    found = correction(case, monotone)
    p = case.answers(found)
    assert np.isfinite(p).all() and ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p[np.argsort(raw, kind="stable")]) >= 0).all()
    assert [case.only(np.arange(len(raw)) == i).answers(found)[0] for i in range(min(len(raw), 30))] == p[
        :30
    ].tolist()
    assert link_from(link_spec(found)) == found


def test_little_evidence_corrects_little():
    few, many = (asked(Probability(), Logistic(), np.zeros(n), np.ones(n, dtype=int)) for n in (2, 2_000))
    assert correction(few).offsets[0] < 0.5 < 3 < correction(many).offsets[0]


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_a_correction_of_an_amount_loses_less_in_any_unit_and_tail(scale, tail):
    "Least squares chased a few large amounts: on the shipped demand its pinball loss was 6 pieces worse than no correction."
    x = RNG.gamma(2.0, 10.0, 1_500)
    noise = RNG.normal(0, 4, 1_500) if tail == "normal" else RNG.standard_t(1.5, 1_500) * 6
    y = np.maximum(0.7 * x + 3 + noise, 0) * scale
    case = asked(Number(0.8), Interval((0.0,), (-3.0 * scale,), (3.0 * scale,), 0.0), x * scale, y)
    found = correction(case)
    losses = [case.judge.losses(case.y, case.answers(link)).mean() / scale for link in (case.link, found)]
    p = case.answers(found)
    assert losses[1] < losses[0] - 0.3 and (p[:, 1] <= p[:, 0]).all() and (p[:, 0] <= p[:, 2]).all()
    assert 0.6 < ((case.y >= p[:, 1]) & (case.y <= p[:, 2])).mean() < 0.92


def test_a_correction_of_classes_learns_a_number_for_each():
    names, raw = ("a", "b", "c"), RNG.normal(0, 1, (1_500, 3))
    odds = np.exp(raw + [1.0, 0.0, -1.0])
    drawn = (np.cumsum(odds / odds.sum(1, keepdims=True), 1) > RNG.random((1_500, 1))).argmax(1)
    case = asked(Classes(names), Softmax(3, (0, 1, 2)), raw, [names[i] for i in drawn])
    found = correction(case)
    assert found.offsets[0] - found.offsets[2] > 1.5
    one = case.only(np.arange(1_500) == 7).answers(found)
    assert (one[0] == case.answers(found)[7]).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_row_judges_what_it_has_taught(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    periods = np.sort(rng.integers(0, n, 300))
    periods = np.unique(periods, return_inverse=True)[1]
    late = [max(k - int(rng.integers(1, 4)), 0) for k in range(periods.max() + 1)]
    parts, apart = folds(periods, late, rng.integers(0, 50, 300), 60)
    for part in parts:
        assert not (part.teaches & part.judged).any()
        if apart:
            assert periods[part.teaches].max() < periods[part.judged].min()
    assert FIRST > world.START
