"The policy in production: a rolled-back version stays away, a refusal is remembered, alerts leave with their version."

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import visits_world as world
from test_loop import FIRST, at, lived

from mlsys_nb.doors.cli import main
from mlsys_nb.evaluation.clustered_intervals import PERIODS
from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.loop import pipeline
from mlsys_nb.loop.attempt_history import attempts_of
from mlsys_nb.loop.champion_challenger import verdict_on
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.matured_outcomes import newly_matured
from mlsys_nb.loop.pipeline import monitor, retrain, score, train
from mlsys_nb.loop.policy_execution import decisions_made, less_lost, state_of, waiting_days, worse_than
from mlsys_nb.loop.realised_gains import realised_of
from mlsys_nb.loop.refresh_lineage import looks, note_look, succession
from mlsys_nb.loop.statistical_power import note_power, power_before
from mlsys_nb.loop.step_context import anew
from mlsys_nb.loop.training_tables import gain_table
from mlsys_nb.monitoring.alerts import Alert, alerts, open_alerts, record
from mlsys_nb.monitoring.performance import allowed, performance_check
from mlsys_nb.problem.retrain_triggers import Age, Cadence, Growth, NoLabels, WorseThan
from mlsys_nb.release.promotion_hold import hold_of
from mlsys_nb.release.registry import champion, champion_history
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import ProblemError

MONTH = timedelta(days=30)
EAGER = replace(world.problem, retrain_when=(Age("1d"), Growth(0.01)), cadence=Cadence(cool_down="3d"))

EAGER_BACK = replace(EAGER, retrain_when=(WorseThan("previous"), Age("300d")))


@pytest.fixture
def own(tmp_path):
    return lived(tmp_path)


def later(settings, day, problem=EAGER):
    "The same gym on a later day, ingested."
    place = at(settings, day, problem)
    write_json(settings.clock_file, {"now": place.now.isoformat()})
    ingest_due(place)
    return place


def gate_says(monkeypatch, decision):
    "Every candidate is judged like this."
    real = pipeline.train_candidate

    def judged(*args, **options):
        found = real(*args, **options)
        return replace(
            found, verdict=replace(found.verdict, decision=decision, reason=f"because {decision}"), rule=None
        )

    monkeypatch.setattr(pipeline, "train_candidate", judged)


def command(settings, *words) -> int:
    return main([*words, "--root", str(settings.root)])


@pytest.fixture
def shop(own, monkeypatch):
    "The problem of this world is installed under its name."
    monkeypatch.setattr("mlsys_nb.problem.declaration.load_problem", lambda settings, name: EAGER)
    return own


# --- a rollback holds


def test_a_version_that_was_rolled_back_does_not_come_back_the_next_day(shop, monkeypatch, capsys):
    "Measured before: retrain promoted it again at its next look."
    gate_says(monkeypatch, "promote")
    left = train(later(shop, 11), n_trials=2).release.version
    assert champion(at(shop).control, "visits").version == left
    assert command(shop, "rollback", "visits", "--reason", "complaints") == 0
    said = capsys.readouterr().out
    assert "version 1 of visits serves again" in said and "mlsys resume visits --reason" in said

    for day in (11, 12, 19):
        place = later(shop, day)
        done = retrain(place, n_trials=2)
        assert (done.decision, done.policy.action) == ("kept", "nothing")
        assert "rollback from" in done.reason and done.outputs["otherwise"].startswith("without the hold: ")
        assert champion(place.control, "visits").version == 1
    by_hand = train(later(shop, 19), n_trials=2)
    assert by_hand.decision == "held" and "mlsys resume visits" in by_hand.reason
    assert champion(place.control, "visits").version == 1


def test_after_a_resume_another_version_may_come_and_the_one_that_was_left_may_not(shop, monkeypatch, capsys):
    gate_says(monkeypatch, "promote")
    left = train(later(shop, 11), n_trials=2).release.version
    assert command(shop, "rollback", "visits", "--reason", "complaints") == 0
    assert command(shop, "resume", "visits", "--reason", "looked at it") == 0
    same = train(later(shop, 11), n_trials=2)  # the same data, the same search: a twin
    assert same.decision == "held" and f"version {left} was rolled back" in same.reason
    assert champion(at(shop).control, "visits").version == 1
    new = train(later(shop, 14), n_trials=2)
    assert new.decision == "promoted" and new.release.version not in (1, left)
    assert (
        command(shop, "promote", "visits", str(left), "--reason", "it was the network") == 0
    )  # a person may
    moves = [(line.action, line.actor == "gate") for line in audit_log(at(shop).control)]
    assert ("hold", False) in moves and ("resume", False) in moves


def test_a_person_holds_and_resumes_and_everybody_can_see_it(shop, capsys):
    assert command(shop, "hold", "visits", "--reason", "stocktaking") == 0
    assert command(shop, "champion", "visits") == 0
    assert "held since" in capsys.readouterr().out
    assert state_of(later(shop, 11)).hold.startswith("held since")
    assert command(shop, "resume", "visits", "--reason", "counted") == 0
    assert hold_of(at(shop).control, "visits") is None
    assert command(shop, "resume", "visits", "--reason", "counted") == 2
    assert "what is resumed was held before" in capsys.readouterr().err


# --- a refusal is remembered


def test_a_refused_gate_is_not_asked_again_on_the_same_evidence(own, monkeypatch):
    "Measured before: asked on 317 of 365 quiet days."
    gate_says(monkeypatch, "refuse")
    calls = []
    for day in (11, 12, 13, 14, 15, 16):
        done = retrain(later(own, day), n_trials=1)
        calls.append(done.policy.action)
    assert calls[0] == "refresh" and calls.count("refresh") + calls.count("search") <= 2
    tries = attempts_of(at(own).control, "visits")
    assert [a.outcome for a in tries] == ["refused"] * len(tries) and tries[0].reason == "because refuse"
    again = retrain(later(own, 11 + 5), n_trials=1)
    assert again.policy.action == calls[-1] and attempts_of(at(own).control, "visits") == tries


def test_every_decision_is_written_down_with_its_reason_and_what_otherwise(shop, monkeypatch, capsys):
    gate_says(monkeypatch, "refuse")
    for day in (11, 12):
        retrain(later(shop, day), n_trials=1)
    first, second = decisions_made(at(shop).control, "visits")
    assert (first["action"], second["action"]) == ("refresh", "nothing")
    assert second["passed"] and "refresh: refused on" in second["passed"][0]
    assert second["counterfactual"] == "more labels open these questions again"
    capsys.readouterr()
    assert command(shop, "upkeep", "visits", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["action"] for row in rows] == ["refresh", "nothing"]
    assert command(shop, "upkeep", "visits") == 0 and "left to try" in capsys.readouterr().out


def test_a_refresh_follows_the_recipe_of_the_champion_and_searches_nothing(own, monkeypatch):
    done = retrain(later(own, 11), n_trials=1)
    assert done.policy.action == "refresh"
    assert done.candidate.tuned.trials.is_empty()
    before = at(own, 11).model.manifest
    assert (done.candidate.tuned.family, dict(done.candidate.tuned.params)) == (
        before["family"],
        before["params"],
    )


# --- alerts leave with their version


def test_alerts_of_a_replaced_version_are_closed_of_every_kind(shop, monkeypatch):
    place = later(shop, 11)
    gap = Alert("visits", "performance", "auc", "warning", "", "", "", FIRST, version=1)
    record(place.control, "visits", [gap, replace(gap, kind="drift")], FIRST)
    gate_says(monkeypatch, "promote")
    train(place, n_trials=1)
    assert open_alerts(place.control, "visits") == []
    why = {a.closed_because for a in alerts(place.control, "visits")}
    assert why == {f"version 1 was replaced by version {champion(place.control, 'visits').version}"}
    record(
        place.control, "visits", [replace(gap, version=champion(place.control, "visits").version)], place.now
    )
    assert command(shop, "rollback", "visits", "--reason", "x") == 0
    assert open_alerts(place.control, "visits") == []


def test_a_monitor_closes_what_it_finds_open_about_another_version(own):
    place = later(own, 11)
    record(
        place.control,
        "visits",
        [Alert("visits", "drift", "x", "notice", "", "", "", FIRST, version=7)],
        FIRST,
    )
    seen = monitor(place)
    assert all(a.version == 1 for a in seen.alerts)
    assert [a.version for a in alerts(place.control, "visits") if a.closed_at][:1] == [7]


# --- labels


def test_outcomes_that_do_not_come_are_asked_for_once_and_the_alert_stays(own, monkeypatch):
    never = replace(world.problem, retrain_when=(NoLabels("20d"),))
    monkeypatch.setattr("mlsys_nb.loop.policy_execution.waiting_days", lambda *args: 21.0)
    for day in (11, 12):
        place = later(own, day, never)
        monitor(place)
        done = retrain(place, n_trials=1)
        waiting = [a for a in open_alerts(place.control, "visits") if a.kind == "labels"]
        assert len(waiting) == 1 and "21 days after it was due" in waiting[0].size, done.reason
    assert [a.outcome for a in attempts_of(place.control, "visits")] == ["asked"]
    monkeypatch.setattr("mlsys_nb.loop.policy_execution.waiting_days", lambda *args: 0.0)
    place = later(own, 13, never)
    monitor(place)
    retrain(place, n_trials=1)
    assert not [a for a in open_alerts(place.control, "visits") if a.kind == "labels"]


def test_nobody_waits_for_outcomes_that_have_come(own):
    place = later(own, 11)
    assert waiting_days(place, place.model) == 0.0


def test_a_champion_that_beats_the_rule_is_not_called_worse_than_it(own):
    place = later(own, 11)
    judged = newly_matured(place, place.model)
    assert judged.height > 50 and worse_than(place, place.model) == {}
    assert anew(place).champion.version == 1 and champion_history(place.control, "visits").height == 1


def refreshed(own, monkeypatch):
    "The gym, its model refreshed before any of its decisions had an outcome."
    gate_says(monkeypatch, "promote")
    place = later(own, 6)
    monitor(place)
    done = retrain(place, n_trials=1)
    assert (done.policy.action, done.decision) == ("refresh", "promoted")
    score(later(own, 6))
    return later(own, 11), champion(place.control, "visits").version


def test_fault_a_version_that_is_refreshed_before_its_outcomes_come_was_never_judged(own, monkeypatch):
    "A decision of day 0 has its outcome on day 9, when its version has been replaced: the refresh is judged by it, too."
    place, new = refreshed(own, monkeypatch)
    judged = newly_matured(place, place.model)
    assert judged["version"].unique().to_list() == [1] and judged["label"].count() > 100
    assert succession(place, new) == (1, new)
    report = monitor(place).performance
    assert report.verdict == "as promised" and report.evaluation.n == judged["label"].count()
    first = looks(later(own, 12), 1)[-1]
    assert first.evidence.labels > 20  # and what its labels said is what the detector goes on with
    again = later(own, 17)
    assert newly_matured(again, again.model)["version"].unique().to_list() == [new]
    monitor(again)
    assert looks(later(own, 18), 1)[-1].evidence.labels > first.evidence.labels


def test_frequent_looks_judge_the_newest_three_together_each_question_at_half_of_the_rate(own, monkeypatch):
    asked, real = [], performance_check

    def noted(problem, rows, given, rate):
        asked.append((rows["label"].count(), round(rate / allowed(0.01, timedelta(days=3)), 3)))
        return real(problem, rows, given, rate)

    monkeypatch.setattr("mlsys_nb.loop.matured_outcomes.performance_check", noted)
    for day in (3, 6, 9):
        score(later(own, day))
    found = [monitor(later(own, day)).performance for day in (11, 14, 17, 20)]
    n = [report.evaluation.n for report in found]
    assert asked[0][0] == n[0] > 100 and asked[1] == (n[1], 1.0)  # nobody knows when the first look began
    assert asked[2:] == [(n[2], 0.5), (n[1] + n[2], 0.5), (n[3], 0.5), (sum(n[1:]), 0.5)]
    assert [report.verdict for report in found] == ["as promised"] * 4
    spent = [report.false_alarm_rate / allowed(0.01, timedelta(days=3)) for report in found[1:]]
    assert spent == pytest.approx([1.0] * 3)  # one answer of both questions
    monitor(later(own, 60))
    assert len(asked) == 7 and asked[6][1] > 1  # what comes after so long is asked alone


def test_the_remedy_of_a_broken_promise_begins_anew(own, monkeypatch):
    "What spoke against the version that was replaced does not speak against the one that replaced it."
    place, new = refreshed(own, monkeypatch)
    last = looks(place, 1)[-1]
    note_look(later(own, 6), 1, replace(last, broken=True))
    assert succession(place, new) == (new,) and newly_matured(place, place.model).is_empty()
    assert monitor(place).performance.verdict == "not enough labels"


# --- who would have done better, and what follows


def decided(seed, months, *, off=0.0, shock=0.0, entities=300):
    "Decisions of so many months: entity, moment, score, label; and what a rival that is off the other way would have said."
    rng, n = np.random.default_rng(seed), months * entities
    z, month = np.tile(rng.normal(0, 1, entities), months), np.repeat(np.arange(months), entities)
    truth = 1 / (1 + np.exp(-(z + shock * rng.normal(size=months)[month])))
    told = lambda by: 1 / (1 + np.exp(-(z + by + 0.1 * rng.normal(size=n))))
    frame = pl.DataFrame({"member": np.tile(np.arange(entities), months), "score": told(off)})
    when = pl.Series([FIRST + int(m) * MONTH for m in month], dtype=pl.Datetime("us", "UTC"))
    return frame.with_columns(moment=when, label=pl.Series((rng.random(n) < truth).astype(np.int8))), told


@pytest.mark.parametrize("months", [1, 3])
def test_a_champion_that_harms_is_seen_and_an_equal_one_is_not_blamed_for_its_month(months):
    "The fault: an interval of customers alone called a champion worse than its equal in every fifth month with a shock."
    problem, blamed, naive = world.problem, 0, 0
    for seed in range(60):
        known, told = decided(seed, months, off=0.3, shock=0.2)
        rival = told(-0.3)
        found = less_lost(problem, known, rival, MONTH)
        y, judge = known["label"].to_numpy(), problem.target.judge
        gain = judge.losses(y, known["score"].to_numpy()) - judge.losses(y, rival)
        blamed += found.low > 0
        naive += gain.mean() > 1.96 * gain.std() / len(gain) ** 0.5
    assert blamed <= 3 and naive >= 6  # 5 and 10 in a hundred
    known, told = decided(1, 3, off=1.5, shock=0.1)
    harmful = less_lost(problem, known, told(0.0), MONTH)
    assert harmful.low > 0 and "300 entities" in harmful.covers
    tenth = less_lost(problem, known, told(0.0), MONTH, look=10)
    assert tenth.low < harmful.low  # who looks again and again needs more
    assert less_lost(problem, known.head(20), told(0.0)[:20], MONTH) is None


def shipped_and_worse(own, monkeypatch, problem):
    "A second version serves, and the outcomes of its decisions say that the first would have done better."
    gate_says(monkeypatch, "promote")
    new = train(later(own, 11, problem), n_trials=1).release.version
    told = {"previous": "version 1 would have lost 0.02 nats less"}
    monkeypatch.setattr("mlsys_nb.loop.policy_execution.worse_than", lambda *args: told)
    place = later(own, 12, problem)
    monitor(place)
    return place, new


def test_a_version_worse_than_the_one_before_it_is_rolled_back_and_held(own, monkeypatch):
    place, new = shipped_and_worse(own, monkeypatch, EAGER_BACK)
    done = retrain(place, n_trials=1)
    assert (done.decision, done.policy.action) == ("rolled back", "roll back")
    assert champion(place.control, "visits").version == 1
    held = hold_of(place.control, "visits")
    assert held.actor == "policy" and "version 1 would have lost 0.02 nats less" in held.reason
    assert attempts_of(place.control, "visits")[-1].outcome == "rolled back"
    for day in (12, 13):  # asked again, and the next day: nothing moves until a person resumes
        after = retrain(later(own, day, EAGER_BACK), n_trials=1)
        assert after.decision == "kept" and "mlsys resume visits" in after.reason
        assert champion(place.control, "visits").version == 1
    assert decisions_made(place.control, "visits")[0]["action"] == "roll back"


def test_what_is_not_automatic_is_said_and_left_to_a_person(own, monkeypatch):
    careful = replace(EAGER_BACK, cadence=Cadence(cool_down="3d", automatic=("refresh",)))
    place, new = shipped_and_worse(own, monkeypatch, careful)
    done = retrain(place, n_trials=1)
    assert done.decision == "kept" and done.reason.startswith("roll back is left to a person")
    assert champion(place.control, "visits").version == new and hold_of(place.control, "visits") is None
    with pytest.raises(ProblemError, match="automatic names actions among recalibrate"):
        Cadence(automatic=("retrain",))
    with pytest.raises(ProblemError, match="automatic names actions"):
        Cadence(automatic="refresh")


def test_what_a_gate_can_see_is_said_before_anything_is_trained(own, monkeypatch):
    gate_says(monkeypatch, "promote")
    train(later(own, 11), n_trials=1)
    done = retrain(later(own, 14), n_trials=1)
    stated = done.policy.power
    assert "labels a period" in stated and "will not be seen for three periods more" in stated
    assert (
        done.outputs["power"] == stated and decisions_made(at(own).control, "visits")[-1]["power"] == stated
    )
    assert stated in done._repr_html_()


def test_what_is_stated_is_what_a_change_would_be_judged_by(own, monkeypatch):
    "The fault: the figure of what serves was stated, and a refresh is not charged with what so few periods hide."
    gate_says(monkeypatch, "promote")
    done = train(later(own, 11), n_trials=1)
    candidate = done.candidate
    change, other = (
        replace(candidate.contest, question=asked) for asked in (Question.CHANGE, Question.REFRESH)
    )
    judged, refresh = (verdict_on(one, candidate.played).stated for one in (change, other))
    assert judged.periods < PERIODS and "so few may hide" in judged.covers and refresh.seen < judged.seen
    note_power(at(own).control, replace(candidate.contest, question=Question.FIRST), candidate.played)
    assert power_before(at(own)) == done.outputs["power"]
    assert f"gains under {judged.seen:.2g} " in done.outputs["power"]
    drawn = gain_table(change, candidate.played).row(0, named=True)
    assert (drawn["gain"], drawn["low"], drawn["high"]) == (judged.value, judged.low, judged.high)


def test_every_version_that_was_shipped_is_held_against_what_was_stated(own, monkeypatch):
    "The fault: only the present champion was, and the outcomes of a version come when it has been replaced."
    gate_says(monkeypatch, "promote")
    made = [train(later(own, day), n_trials=1).release.version for day in (3, 6, 9)]
    train(later(own, 20), n_trials=1)
    known = realised_of(at(own).control, "visits")
    assert {str(version) for version in made} <= known.keys()
    assert all(one["rows"] > 0 and one["low"] < one["high"] for one in known.values())
    first = known[str(made[0])]
    train(later(own, 24), n_trials=1)
    again = realised_of(at(own).control, "visits")
    assert not first["whole"] or again[str(made[0])] == first  # judged once and for all
