"One decision about each event: trained, scored, served, answered and watched, with history and without any."

import json
import urllib.error
import urllib.request
from dataclasses import replace
from datetime import timedelta

import calls_world as world
import polars as pl
import pytest

from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.decisions.outcomes import labelled
from mlsys_nb.decisions.taught import taught
from mlsys_nb.features.events import POLARS
from mlsys_nb.loop.arrivals import ingest_due
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.pipeline import monitor, score, train
from mlsys_nb.loop.retrain import training_set
from mlsys_nb.loop.skew import served_again
from mlsys_nb.loop.step import context
from mlsys_nb.problem.dataset import Lake, build_dataset, training_periods
from mlsys_nb.serving.service import running
from mlsys_nb.system.durable import write_json

SAID = {"calls": 1, "bare": 1, "hours": 99.5, "desk": "fax"}
NOW = world.START + 70 * world.DAY


def post(address: str, path: str, body: object) -> tuple[int, dict]:
    asked = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def check_answer(name: str, made: dict) -> None:
    "Beside the score: nothing, an interval, or the probability of each class."
    if name == "hours":
        told = made["answer"]
        assert told["low"] <= made["prediction"] <= told["high"] and told["provide"] >= made["prediction"]
    elif name == "desk":
        shares = made["answer"]["classes"]
        assert set(shares) == {"office", "field", "store"} and abs(sum(shares.values()) - 1) < 1e-9
        assert made["prediction"] == max(shares.values()) and made["action"] in {*shares, "abstain"}
    else:
        assert "answer" not in made and 0 <= made["prediction"] <= 1


def frames(n: int = 3_000) -> Lake:
    told, known = world.rows(n)
    parts = {}
    for name, frame in (("calls", told), ("answers", known)):
        frame = frame.with_columns(pl.col("at").dt.replace_time_zone("UTC"))
        parts[name] = frame.with_columns(known_at="at", event_id="call")
    return Lake(parts, ())


def said_plainly(lake: Lake, now, problem) -> list[tuple]:
    "The rule, in loops: what the client had called about before, and the answer if it came in time."
    answers = {r["call"]: r for r in lake.events["answers"].to_dicts()}
    calls = lake.events["calls"].sort("at").to_dicts()
    found = []
    for c in calls:
        mine = [o for o in calls if o["client"] == c["client"] and o["at"] < c["at"]]
        week = [o for o in mine if o["at"] >= c["at"] - timedelta(days=7)]
        a, final = answers.get(c["call"]), c["at"] + problem.matures_after
        label = int(a["again"]) if a and a["at"] <= final and final <= now else None
        found.append((c["call"], len(week), mine[-1]["topic"] if mine else None, label))
    return found


def test_each_row_sees_what_was_known_strictly_before_it_and_its_own_answer():
    lake, problem = frames(1_500), world.history
    now = world.START + 60 * world.DAY
    periods = problem.population.periods(now)
    found = build_dataset(problem, lake, periods, now)
    shown = found.frame.select("call", "calls_7d", "topic_before", "label").rows()
    by_call = {row[0]: row for row in said_plainly(lake, now, problem)}
    assert len(shown) > 800
    plain = [by_call[row[0]] for row in shown]
    # ties in a topic before are ordered by event id; none are generated
    assert [row[:2] + row[3:] for row in shown] == [row[:2] + row[3:] for row in plain]
    assert found.frame["period"].is_in(pl.Series(periods).implode()).all()
    assert (found.frame["moment"] <= found.frame["period"]).all()


def test_a_training_set_does_not_change_when_later_events_arrive():
    lake, problem = frames(), world.history
    now = world.START + 40 * world.DAY
    early = Lake({n: e.filter(pl.col("known_at") <= now) for n, e in lake.events.items()}, ())
    periods = training_periods(problem, now)
    assert len(periods) >= 4
    assert (
        build_dataset(problem, early, periods, now).digest
        == build_dataset(problem, lake, periods, now).digest
    )


@pytest.fixture(scope="module", params=["calls", "bare", "hours", "desk"])
def lived(request, tmp_path_factory):
    here = world.make(tmp_path_factory.mktemp(request.param))
    write_json(here.clock_file, {"now": NOW.isoformat()})
    at = context(request.param, NOW.isoformat(), here)
    ingested = ingest_due(at)
    assert ingested.outputs["quarantined"] == 0
    trained = train(context(request.param, NOW.isoformat(), here), n_trials=3)
    return at, trained


def each_is_trained_and_promoted(lived):
    at, trained = lived
    assert trained.decision == "promoted", trained.reason
    split = trained.candidate.split
    opens = trained.candidate.dataset.opens
    assert split.known[-1] + at.problem.matures_after <= opens[split.holdout[0]]


def each_is_scored_once_and_what_the_service_decided_is_not_scored_again(lived):
    at, _ = lived
    name = at.problem.name
    first = score(context(name, NOW.isoformat(), at.settings)).batch
    assert first.rows > 100
    assert first.frame["call"].n_unique() == first.rows
    later = NOW + 3 * world.DAY
    write_json(at.settings.clock_file, {"now": later.isoformat()})
    ingest_due(context(name, later.isoformat(), at.settings))
    coming = world.rows()[0].filter(
        pl.col("at").dt.replace_time_zone("UTC").is_between(NOW, later, closed="right")
    )
    one = coming.row(3, named=True)
    entity = {"client": one["client"], "call": one["call"]} if name != "bare" else {"call": one["call"]}
    values = {"topic": one["topic"], "minutes": one["minutes"]}
    with running(at.settings, name) as address:
        status, made = post(address, f"/v1/{name}/predictions", {**entity, **values, "features": True})
        assert status == 200, made
        assert made["features"]["minutes"] == one["minutes"]
        check_answer(name, made)
        status, wrong = post(address, f"/v1/{name}/predictions", {**entity, **values, "minutes": "ten"})
        assert status == 422 and set(wrong["error"]) == {"rule", "got", "remedy"}
        assert "minutes is of type int" in wrong["error"]["rule"]
        status, wrong = post(address, f"/v1/{name}/predictions", entity)
        assert status == 422 and "null where it is not known" in wrong["error"]["remedy"]
        new = {**entity, "call": "never seen before", **values}
        status, stranger = post(
            address, f"/v1/{name}/predictions", {**new, "client": -5} if name != "bare" else new
        )
        assert status == 200, stranger
        status, several = post(address, f"/v1/{name}/predictions", {"entities": [{**entity, **values}, new]})
        assert status == 200 and several["predictions"][0]["prediction"] == made["prediction"]
        assert (
            post(
                address, f"/v1/{name}/outcomes", {"decision_id": made["decision_id"], "outcome": SAID[name]}
            )[0]
            == 200
        )
        assert (
            post(address, f"/v1/{name}/outcomes", {"decision_id": made["decision_id"], "outcome": [1]})[0]
            == 422
        )
        with urllib.request.urlopen(f"{address}/openapi.json", timeout=20) as answer:
            described = json.load(answer)
    body = described["paths"]["/v1/{problem}/predictions"]["post"]["requestBody"]["content"][
        "application/json"
    ]
    assert body["schema"]["oneOf"][0]["properties"]["minutes"]["type"] == ["integer", "null"]
    assert find_decision(at.settings, name, made["decision_id"]).request == values
    second = score(context(name, later.isoformat(), at.settings)).batch
    assert second.rows == coming.height - 1
    assert not set(second.frame["call"]) & {*first.frame["call"], one["call"]}
    assert score(context(name, later.isoformat(), at.settings)).batch.already


def each_decision_is_the_same_again_from_history_and_gets_its_outcome(lived):
    at, _ = lived
    name, later = at.problem.name, NOW + 8 * world.DAY
    write_json(at.settings.clock_file, {"now": later.isoformat()})
    ingest_due(context(name, later.isoformat(), at.settings))
    now = context(name, later.isoformat(), at.settings)
    replayed = served_again(now)
    assert replayed is not None and min(replayed.equal.values()) == 1.0
    known = labelled(now.settings, now.problem, later, now.lake)
    assert 0.8 < known.filter(source="batch")["label"].is_not_null().mean() < 1.0
    watched = monitor(now)
    assert watched.outputs["labels"] > 100
    assert watched.drift.rows > 100  # in the middle of a period as well
    told = backtest(now)
    assert set(told.frame["moment"]) <= {*now.problem.population.period_of(known["moment"])}
    assert told.frame["who"].n_unique() == 3 and told.frame["n"].sum() > 300 and told.finding


def fault_posted_outcomes_never_reached_training(lived):
    at, _ = lived
    later = NOW + 14 * world.DAY
    ingest_due(context(at.problem.name, later.isoformat(), at.settings))
    now = context(at.problem.name, later.isoformat(), at.settings)
    values = {n: POLARS[t] for n, t in now.problem.features.requests.items()}
    told = taught(now.settings, now.problem, now.lake, later, values)
    assert told is not None and told.height == 1
    mine = training_set(now)
    assert mine.told == 1
    plain = build_dataset(now.problem, now.lake, now.matured, later)
    call = told["call"][0]
    others = plain.learnable().frame.filter(pl.col("call") != call)
    assert mine.frame.height == others.height + 1  # the decision takes the place of its event's row
    assert mine.frame.filter(call=call)["label"].to_list() == [at.problem.target.said(SAID[at.problem.name])]
    assert mine.frame.filter(call=call)["moment"].item() != plain.frame.filter(call=call)["moment"].item()


def decisions_of_each_are_known_by_their_period(lived):
    at, _ = lived
    made = read_decisions(at.settings, at.problem.name)
    periods = at.problem.population.period_of(made["moment"])
    assert ((periods >= made["moment"]) & (periods - timedelta(days=7) < made["moment"])).all()


def test_a_condition_makes_fewer_decisions():
    lake = frames()
    some = replace(
        world.history, population=replace(world.history.population, where=world.calls["minutes"] > 50)
    )
    periods = some.population.periods(NOW)
    found = build_dataset(some, lake, periods, NOW).frame
    assert found["minutes"].min() > 50 and found.height > 100


def test_each_is_trained_scored_served_answered_watched_and_teaches(lived):
    "One life of a system: each part goes on from where the last one left it."
    each_is_trained_and_promoted(lived)
    each_is_scored_once_and_what_the_service_decided_is_not_scored_again(lived)
    each_decision_is_the_same_again_from_history_and_gets_its_outcome(lived)
    fault_posted_outcomes_never_reached_training(lived)
    decisions_of_each_are_known_by_their_period(lived)
