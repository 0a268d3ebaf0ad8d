"One decision about each event: trained, scored, served, answered and watched, with history and without any."

import io
import json
import urllib.request
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import timedelta
from zoneinfo import ZoneInfo

import calls_world as world
import polars as pl
import pytest
from caller import post

from mlsys_nb.decisions.labelled_decisions import taught
from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.decisions.outcomes import labelled
from mlsys_nb.doors.predict_command import Unanswered, answered_there, predict_case
from mlsys_nb.features.events import POLARS
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.decision_reproduction import reproduce
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.matured_outcomes import newly_matured
from mlsys_nb.loop.pipeline import monitor, score, train
from mlsys_nb.loop.step_context import context
from mlsys_nb.loop.training_serving_skew import served_again
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.problem.dataset import Lake, build_dataset, training_periods
from mlsys_nb.release.registry import champion, promote, versions
from mlsys_nb.serving.service import running
from mlsys_nb.system.clock import instant
from mlsys_nb.system.durable import write_json

SAID = {"calls": 1, "bare": 1, "hours": 99.5, "desk": "fax"}
NOW = world.START + 70 * world.DAY


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
    faults = world.broken().with_columns(pl.col("at").dt.replace_time_zone("UTC"))
    parts["faults"] = faults.with_columns(known_at="at", event_id="fault")
    return Lake(parts, ())


def said_plainly(lake: Lake, now, problem) -> list[tuple]:
    "The rule, in loops: what the client had called about before, and the answer if it came in time."
    answers = {r["call"]: r for r in lake.events["answers"].to_dicts()}
    calls, faults = lake.events["calls"].sort("at").to_dicts(), lake.events["faults"].to_dicts()
    found = []
    for c in calls:
        mine = [o for o in calls if o["client"] == c["client"] and o["at"] < c["at"]]
        week = [o for o in mine if o["at"] >= c["at"] - timedelta(days=7)]
        a, final = answers.get(c["call"]), c["at"] + problem.matures_after
        label = int(a["again"]) if a and a["at"] <= final and final <= now else None
        lately = [e["device"] for e in faults if c["at"] - timedelta(days=14) <= e["at"] < c["at"]]
        each = [lately.count(part) for part in c["parts"] or ()]
        whole = (max(each), sum(each) / len(each)) if each else (None, None)
        size = None if c["parts"] is None else len(each)
        found.append((c["call"], len(week), mine[-1]["topic"] if mine else None, label, *whole, size))
    return found


def test_each_row_sees_what_was_known_strictly_before_it_and_its_own_answer():
    lake, problem = frames(1_500), world.history
    now = world.START + 60 * world.DAY
    periods = problem.population.periods(now)
    found = build_dataset(problem, lake, periods, now)
    shown = found.frame.select(
        "call", "calls_7d", "topic_before", "label", "worst_part", "usual_part", "n_parts"
    ).rows()
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


def test_a_start_that_is_told_in_another_zone_is_the_same_moment():
    lake, problem = frames(600), world.history
    now = world.START + 40 * world.DAY
    there = problem.population.start.astimezone(ZoneInfo("America/New_York"))
    same = replace(problem, population=replace(problem.population, start=there))
    one, other = (build_dataset(p, lake, p.population.periods(now), now) for p in (problem, same))
    assert one.digest == other.digest and one.frame.height > 100


@pytest.fixture(scope="module", params=["calls", "bare", "hours", "desk"])
def lived(request, tmp_path_factory):
    here = world.make(tmp_path_factory.mktemp(request.param))
    write_json(here.clock_file, {"now": NOW.isoformat()})
    at = context(request.param, NOW.isoformat(), here)
    ingested = ingest_due(at)
    assert ingested.outputs["quarantined"] == 0
    trained = train(context(request.param, NOW.isoformat(), here), n_trials=3)
    return at, trained


def the_command_says_what_the_service_says(at, address, sent, made):
    told = {n: v if isinstance(v, str) else json.dumps(v) for n, v in sent.items() if v is not None}
    words = {
        "problem": at.problem.name,
        "entity": [f"{n}={told[n]}" for n in at.problem.entity],
        "p": [f"{n}={told[n]}" for n in at.problem.features.requests if n in told],
    }
    answers = []
    for service in (None, address):
        written = io.StringIO()
        with redirect_stdout(written):
            predict_case(at.settings, Namespace(**words, service=service, key_file=None, now=None))
        answers.append(json.loads(written.getvalue()))
    for answer in answers:
        for part in ("prediction", "action", "version", "features", "entity"):
            assert answer[part] == made[part], part
    assert "decision_id" not in answers[0] and answers[1]["decision_id"] != made["decision_id"]
    with pytest.raises(Unanswered, match="answered 422: minutes is of type int"):
        answered_there(
            address, at.problem, ({n: sent[n] for n in at.problem.entity}, {**sent, "minutes": "x"})
        )


def lists_are_checked_item_by_item(address, name, sent):
    for parts, rule in (
        ("7", "parts is a list of at most 1000 items of type int, or null"),
        ([1] * 1_001, "parts is a list of at most 1000 items"),
        ([7, "8"], "parts[1] is of type int"),
        ([7, None], "parts[1] is of type int"),
        ([2**63], "parts[0] is a whole number from -2**63+1"),
    ):
        status, wrong = post(address, f"/v1/{name}/predictions", {**sent, "parts": parts})
        assert status == 422 and rule in wrong["error"]["rule"], wrong
    for parts in ([], None):
        status, told = post(address, f"/v1/{name}/predictions", {**sent, "parts": parts, "features": True})
        assert status == 200 and told["features"]["n_parts"] == (None if parts is None else 0)


def each_is_trained_and_promoted(lived):
    at, trained = lived
    assert trained.decision == "promoted", trained.reason
    played = trained.candidate.played
    assert played.judged.train_end + at.problem.matures_after <= played.newest["moment"].min()


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
    one = next(row for row in coming.to_dicts()[3:] if len(row["parts"] or ()) > 1)
    entity = {"client": one["client"], "call": one["call"]} if name != "bare" else {"call": one["call"]}
    values = {"topic": one["topic"], "minutes": one["minutes"]}
    values |= {"parts": one["parts"]} if name != "bare" else {}
    with running(at.settings, name) as address:
        status, made = post(address, f"/v1/{name}/predictions", {**entity, **values, "features": True})
        assert status == 200, made
        assert made["features"]["minutes"] == one["minutes"]
        check_answer(name, made)
        the_command_says_what_the_service_says(at, address, {**entity, **values}, made)
        status, wrong = post(address, f"/v1/{name}/predictions", {**entity, **values, "minutes": "ten"})
        assert status == 422 and set(wrong["error"]) == {"rule", "got", "remedy"}
        assert "minutes is of type int" in wrong["error"]["rule"]
        if name != "bare":
            assert made["features"]["n_parts"] == len(one["parts"]) > 1
            lists_are_checked_item_by_item(address, name, {**entity, **values})
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
        with urllib.request.urlopen(f"{address}/openapi.json", timeout=60) as answer:
            described = json.load(answer)
    body = described["paths"][f"/v1/{name}/predictions"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["oneOf"][0]["properties"]["minutes"]["type"] == ["integer", "null"]
    if name != "bare":
        told = {"type": "integer", "minimum": -(2**63) + 1, "maximum": 2**63 - 1}
        described = body["schema"]["oneOf"][0]["properties"]["parts"]
        assert (described["type"], described["items"]) == (["array", "null"], told)
    assert find_decision(at.settings, name, made["decision_id"]).request == values
    second = score(context(name, later.isoformat(), at.settings)).batch
    assert second.rows == coming.height - 1
    assert not set(second.frame["call"]) & {*first.frame["call"], one["call"]}
    assert score(context(name, later.isoformat(), at.settings)).batch.already


def made_again(now) -> None:
    "One decision of the service and some of the batch, made again from the lake and the sealed version."
    made = read_decisions(now.settings, now.problem.name)
    some = [
        *made.filter(source="http")["decision_id"][:2],
        *made.filter(source="batch")["decision_id"][::97][:4],
    ]
    found = [reproduce(now, find_decision(now.settings, now.problem.name, name)) for name in some]
    assert len(found) > 3 and all(one.same for one in found), [str(one) for one in found]


def each_decision_is_the_same_again_from_history_and_gets_its_outcome(lived):
    at, _ = lived
    name, later = at.problem.name, NOW + 8 * world.DAY
    write_json(at.settings.clock_file, {"now": later.isoformat()})
    ingest_due(context(name, later.isoformat(), at.settings))
    now = context(name, later.isoformat(), at.settings)
    replayed = served_again(now)
    assert replayed is not None and min(replayed.equal.values()) == 1.0
    made_again(now)
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


def test_what_a_version_had_learnt_from_is_no_evidence_about_it(tmp_path):
    "Calls are scored late, by a version that had learnt from some of them already: those prove nothing."
    here, early, late = world.make(tmp_path), world.START + 42 * world.DAY, world.START + 70 * world.DAY

    def come(now):
        write_json(here.clock_file, {"now": now.isoformat()})
        ingest_due(context("bare", now.isoformat(), here))
        return context("bare", now.isoformat(), here)

    train(come(early), n_trials=2)
    score(context("bare", early.isoformat(), here))
    at = come(late)
    train(at, n_trials=2, seed=1)
    holder = champion(at.control, "bare")
    newest = max(v.version for v in versions(at.control, here, "bare") if v.summary["family"] != "rule")
    if holder.version != newest:
        promote(
            at.control, "bare", newest, expected_epoch=holder.epoch, at=late, actor="ada", reason="to see"
        )
    score(context("bare", late.isoformat(), here))
    now = come(late + 8 * world.DAY)
    assert now.champion.version == newest > 1
    learnt = instant(now.model.manifest["training"]["last"])
    made = labelled(here, now.problem, now.now, now.lake).filter(version=newest, source="batch")
    taught_it = made.filter(pl.col("period") <= learnt)
    assert taught_it["label"].count() > 100  # they have outcomes, and would flatter it
    seen = newly_matured(now, now.model).filter(
        version=newest
    )  # beside those of the version that it refreshed
    assert seen.height > 100 and seen["period"].min() > learnt
    assert not set(seen["call"]) & set(taught_it["call"])
    judged = backtest(now).frame.filter(who="champion")
    told = labelled(here, now.problem, now.now, now.lake).filter(source="batch").drop_nulls("label")
    fair = told.filter((pl.col("version") != newest) | (pl.col("period") > learnt))
    assert judged["n"].sum() < fair.height + taught_it["label"].count()
    assert judged.filter(pl.col("moment") > early)["n"].sum() == seen["label"].count()
