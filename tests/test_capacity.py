"Costs and capacity are the problem's: they change without a training, every decision names them, and no more is done than can be."

import asyncio
import json
from dataclasses import replace

import calls_world
import polars as pl
import pytest
import visits_world as world
from caller import post
from test_cold_start_rule import FIRST, at

from mlsys_nb.decisions.log import find_decision
from mlsys_nb.doors.cli import main
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.loop.decision_reproduction import reproduce
from mlsys_nb.loop.feasibility import Wanted, scope
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import score, train
from mlsys_nb.loop.step_context import Context, anew
from mlsys_nb.problem.capacity import Capacity, policy_spec
from mlsys_nb.serving.endpoints import decision, predict
from mlsys_nb.serving.service import running
from mlsys_nb.serving.service_readiness import open_service
from mlsys_nb.system.control_tables import get_document
from mlsys_nb.system.settings import ProblemError

FIVE = replace(world.problem, capacity=Capacity(5, "3d"))
DEAR = replace(world.problem, costs=Costs("EUR", 5.0, 3.0, action="call", otherwise="none"))


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    "A gym with a champion, which nobody trains again."
    settings = world.make(tmp_path_factory.mktemp("gym"))
    ingest_due(at(settings))
    assert train(at(settings), n_trials=1).decision == "promoted"
    return settings


KNOWN = world.rows().filter(pl.col("at") < FIRST.replace(tzinfo=None))["member"].unique().sort().to_list()


def answers(place: Context, members: list[int]) -> list[dict]:
    "What a service that starts now says."
    service = open_service(place.settings, place.problem)
    try:
        return [asyncio.run(predict(service, json.dumps({"member": m}).encode())) for m in members]
    finally:
        service.close()


def shown(place: Context, made: dict) -> dict:
    service = open_service(place.settings, place.problem)
    try:
        return asyncio.run(decision(service, made["decision_id"]))
    finally:
        service.close()


def test_a_batch_acts_on_the_best_and_the_service_as_selectively(gym):
    free = score(at(gym)).batch.frame
    assert (free["action"] == "call").sum() > 20 and free["costs"].unique().to_list() == [
        world.problem.policy
    ]
    ingest_due(at(gym, 6, FIVE))
    place = at(gym, 6, FIVE)
    few = score(place).batch
    acted = few.frame.filter(action="call")
    assert acted.height == few.actions == 10  # six days since the batch before, five every three
    assert acted["score"].min() >= few.frame.filter(action="none")["score"].max()
    stop = few.frame["threshold"].unique().item()
    assert stop == acted["score"].min() > FIVE.costs.threshold
    left = few.frame.filter(pl.col("action") == "none", pl.col("score") >= FIVE.costs.threshold)
    said = answers(place, [*acted["member"].to_list()[:3], *left["member"].to_list()[:3]])
    assert [s["action"] for s in said] == ["call"] * 3 + ["none"] * 3
    assert shown(place, said[3])["threshold"] == stop and shown(place, said[3])["costs"] == FIVE.policy
    for name in [said[0]["decision_id"], said[3]["decision_id"], *few.frame["decision_id"][::40]]:
        again = reproduce(place, find_decision(gym, "visits", name))
        assert again.same and not again.left, again
        other = reproduce(at(gym, 6), find_decision(gym, "visits", name))
        assert other.same and "other terms" in str(other), other
    open_to_all = answers(at(gym, 6), left["member"].to_list()[:3])  # without a capacity it pays
    assert [s["action"] for s in open_to_all] == ["call"] * 3


def test_changed_costs_count_at_the_next_start_with_the_same_model(gym, capsys):
    ingest_due(at(gym, 9))
    before = answers(at(gym, 9), KNOWN[:40])
    place = at(gym, 9, DEAR)
    after = answers(place, KNOWN[:40])
    assert {s["version"] for s in [*before, *after]} == {1}
    assert [s["prediction"] for s in before] == [s["prediction"] for s in after]
    calls = [sum(s["action"] == "call" for s in some) for some in (before, after)]
    assert calls[0] > calls[1]
    kept = find_decision(gym, "visits", after[0]["decision_id"])
    assert (kept.costs, kept.threshold) == (DEAR.policy, 5 / 8) and kept.costs != world.problem.policy
    terms = get_document(place.control, "costs", DEAR.policy)
    assert terms == {**policy_spec(DEAR.costs, None), "in words": DEAR.target.priced(DEAR.costs)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(gym.home)
        assert main(["decision", after[0]["decision_id"], "--root", str(gym.root)]) == 0
        told = json.loads(capsys.readouterr().out)
        assert main(["replay", after[0]["decision_id"], "--root", str(gym.root)]) == 0
        assert "the same to the bit: version 1" in (out := capsys.readouterr().out) and "other terms" in out
    assert told["terms"]["costs"]["false_positive"] == 5.0
    assert told["trained"]["number"] == 1 and len(told["trained"]["seal"]) == 64
    assert set(told["trained"]["snapshots"]) and told["features"] and told["outcomes"] == []
    batch = score(at(gym, 9)).batch
    assert batch.frame["threshold"].unique().to_list() == [0.25]
    again = score(place).batch
    assert again.already and "other costs" in again.note


def test_changed_costs_take_effect_in_a_service_that_runs(gym):
    "The next batch is scored on them, and the service follows without a start: same model, same prediction."
    ingest_due(at(gym, 10))
    ingest_due(at(gym, 11))
    quick = replace(gym, reload_seconds=0.05)

    def says(url: str) -> tuple[str, float]:
        status, made = post(url, "/v1/visits/predictions", {"member": KNOWN[0]})
        assert status == 200 and made["version"] == 1, made
        kept = find_decision(gym, "visits", made["decision_id"])
        return kept.costs, kept.threshold

    def until(url: str, policy: str) -> float:
        for _ in range(200):
            costs, threshold = says(url)
            if costs == policy:
                return threshold
        raise AssertionError(f"still {costs}, not {policy}")

    with running(quick, "visits") as url:
        assert says(url) == (world.problem.policy, 0.25)
        assert score(at(gym, 10, DEAR)).batch.frame["costs"].unique().to_list() == [DEAR.policy]
        assert until(url, DEAR.policy) == 5 / 8
        score(at(gym, 11))
        assert until(url, world.problem.policy) == 0.25


def test_the_stop_of_another_policy_does_not_count(gym):
    ingest_due(at(gym, 12))
    place = at(gym, 12, replace(FIVE, capacity=Capacity(7, "3d")))
    assert {s["action"] for s in answers(place, KNOWN[:60])} == {"call", "none"}
    assert shown(place, answers(place, KNOWN[:1])[0])["threshold"] == 0.25


def test_scope_takes_the_declared_capacity(gym):
    found = scope(at(gym, 9, FIVE), wanted=Wanted(0.05))
    assert found.facts["capacity"].startswith("1.66667 a day")


def test_a_rule_that_says_the_same_of_everybody_acts_on_as_many_as_there_is_room_for(tmp_path):
    few = calls_world.make(tmp_path, 800)
    alike = replace(calls_world.history, rule=Rule.majority(), capacity=Capacity(6, "1w"))
    alike = replace(alike, costs=Costs("EUR", 1.0, 50.0, action="visit", otherwise="none"))
    place = at(few, 20, alike, calls_world.START)
    ingest_due(place)
    train(place, rule=True)
    batch = score(anew(place)).batch.frame
    assert batch["score"].n_unique() == 1 and (batch["action"] == "visit").sum() == 6 < batch.height
    chosen = batch.filter(action="visit")["call"].to_list()
    assert chosen != batch["call"].sort().to_list()[:6]  # by lot, and not the first ones


def test_a_capacity_that_limits_nothing_is_refused_when_it_is_declared():
    for problem in (calls_world.hours, calls_world.desk):
        with pytest.raises(ProblemError, match="limits an action that can be left undone"):
            replace(problem, capacity=Capacity(5))
    with pytest.raises(ProblemError, match="capacity is Capacity"):
        replace(world.problem, capacity=200)
    with pytest.raises(ProblemError, match="is decided by"):
        replace(world.problem, costs=calls_world.hours.costs)


def test_a_model_that_takes_more_memory_than_declared_stays_outside(tmp_path):
    settings = world.make(tmp_path)
    tight = replace(world.problem, limits=Limits(memory_bytes=100, latency_ms=1e-9))
    ingest_due(at(settings, 0, tight))
    done = train(Context(settings, tight, FIRST), n_trials=1)
    failed = [c.name for c in done.candidate.verdict.checks if c.passed is False]
    assert done.decision == "refused" and failed == ["latency", "memory"]
    told = json.dumps(done.candidate.package.manifest["verdict"])
    assert (
        "memory failed" in told and "bytes, at most" not in told
    )  # a manifest does not depend on the machine
