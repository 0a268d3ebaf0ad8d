"A choice among candidates: learnt, judged, scored, served, answered and watched, in a world whose truth is known."

import json
import urllib.request
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import tools_world as world
from caller import post

from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.decisions.outcomes import labelled
from mlsys_nb.evaluation.bootstrap import clusters
from mlsys_nb.evaluation.evaluate import compare, evaluate
from mlsys_nb.evaluation.ranking_metrics import looked_for
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.learning.candidate_rows import AT_ONCE
from mlsys_nb.learning.choice_model import cases_of, conditional_logit
from mlsys_nb.learning.model_correction import Corrigible, correction
from mlsys_nb.learning.train import fit, raw_sums
from mlsys_nb.loop.decision_reproduction import explanation_of, reproduce
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import monitor, score, train
from mlsys_nb.loop.step_context import context
from mlsys_nb.loop.training_serving_skew import served_again
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.problem.dataset import as_known, build_dataset
from mlsys_nb.problem.item_candidates import beside
from mlsys_nb.release.registry import load_version
from mlsys_nb.serving.candidate_retrieval import reader_for
from mlsys_nb.serving.predictor import Predictor
from mlsys_nb.serving.service import running
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import ProblemError

END = world.START + 50 * world.DAY
TWO = ("popular", "times")


def dataset(weights: tuple[float, float]) -> pl.DataFrame:
    lake, problem = world.lake(weights), world.problem
    return build_dataset(problem, lake, problem.population.periods(END), END, learning=True).learnable().frame


def test_the_weights_of_a_known_world_are_found_again():
    rows = dataset((0.8, 1.5))
    assert rows.height > 2_500 and rows["tool"].list.len().min() > 10
    cases = cases_of(world.problem.target.learner, rows, TWO, "label", 0)
    design, y = cases.rows.select(TWO).to_numpy(), cases.y
    w = conditional_logit(design, y, 1e9)
    unit, p = y[:, 0].astype(int), np.exp(design @ w)
    p /= np.bincount(unit, p)[unit]
    mean = np.column_stack([np.bincount(unit, p * x) for x in design.T])[unit]
    error = np.sqrt(np.diag(np.linalg.inv((design - mean).T @ ((design - mean) * p[:, None]))))
    assert (np.abs(w - [0.8, 1.5]) < 3 * error).all() and (error < 0.1).all(), (w, error)
    assert 0.95 < cases.inside < 0.98  # one pick in thirty is of a tool that nobody knew


def compared(weights: tuple[float, float]):
    rows, problem = dataset(weights), world.problem
    early, late = (rows.filter(pl.col("visitor") % 2 == half) for half in (0, 1))
    how = {"learner": problem.target.learner, "moment": "period", "rule": problem.rule}
    p = {family: fit(family, early, problem.inputs, **how).predict(late) for family in ("rule", "linear")}
    judge = problem.target.judge
    y, groups = judge.outcomes(late["label"]), clusters(late, ["visitor"])
    found = compare(judge, y, p["linear"], p["rule"], groups=groups)
    return found, evaluate(judge, y, p["linear"], groups=groups)


def test_a_ranking_beats_popularity_where_people_repeat_themselves_and_only_there():
    gain, judged = compared((0.8, 1.5))
    assert gain.loss_gain.low > 0.1 and gain.rank_gain.low > 0.05
    gap = judged["calibration_gap"]
    assert gap.low < 0 < gap.high, "expected hits are the hits that come"
    nothing, _ = compared((1.2, 0.0))
    assert nothing.loss_gain.low < 0.01 and abs(nothing.rank_gain.value) < 0.02


def trained_in(folder):
    here, now = world.make(folder), world.START + 40 * world.DAY
    write_json(here.clock_file, {"now": now.isoformat()})
    at = context("tools", now.isoformat(), here)
    assert ingest_due(at).outputs["quarantined"] == 0
    return at, train(context("tools", now.isoformat(), here), n_trials=2)


def it_is_promoted_by_decisions_not_by_candidates(lived):
    _, trained = lived
    assert trained.decision == "promoted", trained.reason
    judged = trained.candidate.evaluation
    assert judged.n == trained.candidate.played.rows.height
    assert judged.entities <= 150 and judged.facts["candidates"] > 20


def history_store_and_service_give_the_same_bits(lived):
    at, _ = lived
    model = load_version(at.control, at.settings, at.problem, 1)
    people = [*range(0, 150, 6), 9_999]  # the last one was never seen
    moment = at.now + timedelta(hours=5, seconds=7)
    asked = pl.DataFrame(
        {"visitor": people, "visit": [f"x{i}" for i in people]},
        schema={"visitor": pl.Int64, "visit": pl.String},
    )
    asked = asked.with_columns(moment=pl.lit(moment).dt.cast_time_unit("us"))
    rows = as_known(at.problem, asked, at.lake)
    history = model.predict(rows)
    with open_online(at.settings.online_url) as store:
        predictor = Predictor(model, reader_for(store, model), at.problem)
        alone = [predictor.predict(e, moment) for e in asked.select("visitor", "visit").to_dicts()]
        many = predictor.predict_many(asked.select("visitor", "visit").to_dicts(), moment)
        served = predictor.reader.read_many(asked.select("visitor", "visit").to_dicts(), moment).frame
    columns = ["tool", *world.among.names]
    assert served.select(columns).equals(rows.select(columns), null_equal=True)
    choices = at.problem.target.choices(history, at.problem.costs)
    for one, again, row in zip(alone, many, choices.to_dicts(), strict=True):
        assert one.score == again.score == row["score"] and one.answer == again.answer == json.loads(
            row["answer"]
        )
    assert alone[-1].answer["candidates"] and "popular" not in alone[-1].features


def a_request_brings_its_own_candidates_and_the_decision_is_made_again_from_the_log(lived):
    at, _ = lived
    usual = set(world.lake((0.8, 1.5)).events["picks"]["tool"])
    asked = {"visitor": 3, "visit": "own", "candidates": ["nobody knows it", *sorted(usual)[:4]]}
    body = (
        {**asked, "request_id": "one"},
        {"entities": [asked, {"visitor": 77_777, "visit": "w", "candidates": ["new"]}]},
    )
    with running(at.settings, "tools") as address:
        status, made = post(address, "/v1/tools/predictions", body[0])
        assert status == 200, made
        names = [one["item"] for one in made["answer"]["candidates"]]
        assert set(names) <= set(asked["candidates"]) and made["answer"]["others"]["number"] == 2
        assert post(address, "/v1/tools/predictions", body[0])[1] == made
        status, other = post(address, "/v1/tools/predictions", {**body[0], "candidates": ["new"]})
        assert status == 409 and "one request" in other["error"]["rule"]
        status, several = post(address, "/v1/tools/predictions", body[1])
        assert status == 200 and several["predictions"][0]["prediction"] == made["prediction"]
        [alone] = several["predictions"][1]["answer"]["candidates"]
        assert alone["item"] == "new" and alone["p"] > 0.9
        for wrong, rule in (
            ([], "1 to 10000 different items"), (["a", "a"], "different items"), ("a", "a list of at most 10000"),
            ([7], "candidates[0] is of type text"), (None, "a list of at most 10000"),
        ):  # fmt: skip
            status, told = post(address, "/v1/tools/predictions", {**asked, "candidates": wrong})
            assert status == 422 and rule in told["error"]["rule"], told
        with urllib.request.urlopen(f"{address}/openapi.json", timeout=60) as answer:
            body = json.load(answer)["paths"]["/v1/tools/predictions"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]["oneOf"][0]
    assert schema["properties"]["candidates"]["items"] == {"type": "string", "minLength": 1, "maxLength": 200}
    assert "candidates" not in schema["required"]
    logged = find_decision(at.settings, "tools", made["decision_id"])
    assert logged.request == {"candidates": asked["candidates"]}
    assert (again := reproduce(at, logged)).same, again
    usually = find_decision(at.settings, "tools", several["predictions"][1]["decision_id"])
    assert (again := reproduce(at, usually)).same, again


def the_service_answers_ranked_candidates_and_the_outcome_comes_back(lived):
    at, _ = lived
    assert score(at).batch.rows > 50
    with running(at.settings, "tools") as address:
        status, made = post(address, "/v1/tools/predictions", {"visitor": 3, "visit": "mine"})
        assert status == 200, made
        shown = made["answer"]["candidates"]
        status, told = post(address, "/v1/tools/predictions", {"visitor": 3, "visit": "why", "explain": True})
        assert status == 200 and told["because"]["of"] == told["answer"]["candidates"][0]["item"], told
        because, features = explanation_of(at, find_decision(at.settings, "tools", told["decision_id"]))
        assert because.parts == told["because"]["parts"] and because.about == told["because"]["of"]
        assert not any(isinstance(features[name], list) for name in because.parts), features
        assert [len(shown), made["action"]] == [3, "show"]
        assert [one["p"] for one in shown] == sorted((one["p"] for one in shown), reverse=True)
        assert made["prediction"] == pytest.approx(sum(one["p"] for one in shown))
        status, new = post(address, "/v1/tools/predictions", {"visitor": 77_777, "visit": "new"})
        assert status == 200 and len(new["answer"]["candidates"]) == 3
        told = {"decision_id": made["decision_id"], "outcome": "a tool of tomorrow"}
        assert post(address, "/v1/tools/outcomes", told)[0] == 200
        assert post(address, "/v1/tools/outcomes", {**told, "outcome": 7})[0] == 422
    later = at.now + 8 * world.DAY
    write_json(at.settings.clock_file, {"now": later.isoformat()})
    ingest_due(context("tools", later.isoformat(), at.settings))
    now = context("tools", later.isoformat(), at.settings)
    assert min(served_again(now).equal.values()) == 1.0
    known = labelled(at.settings, now.problem, later, now.lake)
    mine = known.filter(visit="mine")
    assert mine["label"].to_list() == ["a tool of tomorrow"] and mine.height == 1
    logged = now.problem.target.predictions(known)
    assert looked_for(logged, np.array(known["label"].to_list(), dtype=object)).place.min() == 1
    learnt = training_set(now)
    row = learnt.frame.filter(visit="mine")
    assert learnt.told == 1 and row["label"].to_list() == ["a tool of tomorrow"] and len(row["tool"][0]) > 10


def a_decision_is_one_row_for_the_monitor(lived):
    at, _ = lived
    now = context("tools", (at.now + 8 * world.DAY).isoformat(), at.settings)
    batch = score(now).batch
    made = read_decisions(at.settings, "tools")
    assert made.filter(source="batch")["visit"].is_unique().all() and batch.rows < 1_000
    watched = monitor(now)
    assert watched.outputs["labels"] == watched.performance.evaluation.n > 100
    assert watched.outputs["labels"] <= made.height
    assert {f.name for f in watched.performance.findings} == {
        "calibration_gap",
        "evidence",
        "hit_at_3",
        "ndcg_at_3",
    }


def test_a_choice_is_trained_scored_served_answered_and_watched(tmp_path):
    "The parts above, each of them after the one before it."
    lived = trained_in(tmp_path)
    it_is_promoted_by_decisions_not_by_candidates(lived)
    history_store_and_service_give_the_same_bits(lived)
    a_request_brings_its_own_candidates_and_the_decision_is_made_again_from_the_log(lived)
    the_service_answers_ranked_candidates_and_the_outcome_comes_back(lived)
    a_decision_is_one_row_for_the_monitor(lived)


def test_a_correction_learns_from_more_choices_than_are_laid_out_at_once():
    "What many decisions have is laid out a thousand at a time; each part once got the sums of the first."
    rows = dataset((0.8, 1.5))
    assert rows.height > 2 * AT_ONCE
    learner, judge = world.problem.learner, world.problem.target.judge
    model = fit("linear", rows, world.problem.inputs, learner=learner, moment="period")
    asked = []

    def sums(long):
        asked.append(long.height)
        return 0.5 * raw_sums(model.estimator, model.encode(long))  # half as sure as it should be

    about = Corrigible(judge, model.link, model.feature_names, sums, rows)
    made = correction(about)
    assert 1.6 < made.slope < 2.5, made
    assert len(asked) == -(-rows.height // AT_ONCE), "each part is computed once"
    y, plain, mended = judge.outcomes(rows["label"]), about.answers(model.link), about.answers(made)
    assert judge.losses(y, mended).mean() < judge.losses(y, plain).mean() - 0.01


def test_one_candidate_none_and_ties():
    lake, problem = world.lake(), world.problem
    moment = world.START + 20 * world.DAY
    asked = pl.DataFrame({"visitor": [5, 9_999], "moment": [moment, moment]}).cast(
        {"moment": pl.Datetime("us", "UTC")}
    )
    single = beside(replace(world.among, top=1, own=0), asked, lake.events)
    assert single["tool"].list.len().to_list() == [1, 1]
    early = asked.with_columns(moment=pl.lit(world.START + timedelta(minutes=1)).dt.cast_time_unit("us"))
    nothing = beside(world.among, early, lake.events)
    assert nothing["tool"].list.len().to_list() == [0, 0]
    rows = dataset((0.8, 1.5)).head(300)
    flat = fit(
        "linear",
        rows.with_columns(pl.col(n).list.eval(pl.lit(0.0)) for n in TWO),
        TWO,
        learner=problem.target.learner,
    )
    both = pl.concat([single, nothing]).with_columns(pl.col(n).list.eval(pl.lit(0.0)) for n in TWO)
    p = flat.predict(both)
    assert [len(one.p) for one in p] == [1, 1, 0, 0]
    rows = problem.target.choices(p, problem.costs)
    assert rows["action"].to_list() == ["show", "show", "none", "none"] and rows["score"].to_list()[2:] == [
        0.0,
        0.0,
    ]


def test_declarations_that_contradict_themselves_are_refused():
    p, among = world.problem, world.among
    target = p.target
    for changed, said in (
        (
            {"target": replace(target, among=replace(among, start=world.START + 30 * world.DAY))},
            "begin earlier",
        ),
        ({"rule": replace(p.rule, features=("visits_7d",))}, "rule names feature 'visits_7d'"),
        ({"rule": world.Rule.median()}, "a rule for this target"),
        (
            {
                "costs": world.f
                and __import__("mlsys_nb.evaluation.costs", fromlist=["x"]).OverUnder("EUR", 1.0, 1.0)
            },
            "PerHit",
        ),
        ({"slices": ("popular",)}, "slices[0] names feature 'popular'"),
        (
            {
                "features": world.FeatureSet("x", (world.f.count(world.visits, "7d").named("popular"),)),
                "slices": (),
            },
            "twice",
        ),
    ):
        with pytest.raises(ProblemError, match=said.replace("[", r"\[").replace("]", r"\]")):
            replace(p, **changed)
