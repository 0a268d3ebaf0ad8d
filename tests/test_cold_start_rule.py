"The rule serves from the first day, stands by beside a model, and takes over only from one that is worse than it."

import json
import shutil
from dataclasses import replace
from datetime import timedelta

import calls_world
import polars as pl
import pytest
import visits_world as world
from caller import post

from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.doors.cli import main
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.learning.train import fit
from mlsys_nb.loop.cold_start_rule import _parts
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import monitor, retrain, score, train
from mlsys_nb.loop.step_context import Context, anew, seen_by
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.release.package import build
from mlsys_nb.release.registry import champion, champion_history, get_version, promote, register, versions
from mlsys_nb.serving.service import running
from mlsys_nb.system.control_tables import get_document, put_document
from mlsys_nb.system.durable import write_json

DAY = world.DAY
FIRST = world.START + 50 * DAY


def at(settings, day=0.0, problem=world.problem, first=FIRST) -> Context:
    found = Context(settings, problem, first + day * DAY)
    put_document(found.control, "parity", problem.features.hash, {"passed": True, "differing": []})
    write_json(settings.clock_file, {"now": found.now.isoformat()})
    return found


def families(place: Context) -> list[str]:
    return [v.summary["family"] for v in versions(place.control, place.settings, place.problem.name)]


def serve_by(place: Context, names: list[str], sign: int = 1) -> int:
    "Somebody promotes a model by hand: linear, on some features, of labels as they are or turned round."
    dataset = training_set(place)
    rows = dataset.labelled()
    turned = rows.with_columns(label=pl.col("label") if sign > 0 else 1 - pl.col("label"))
    fitted = fit("linear", turned, place.problem.features.names, params={"C": 0.1, "segments": 1})
    if names:
        blind = turned.with_columns(
            pl.lit(None).cast(turned[c].dtype).alias(c) for c in fitted.feature_names if c not in names
        )
        fitted = fit("linear", blind, place.problem.features.names, params={"C": 1e6, "segments": 1})
    package = build(fitted, dataset.at(rows["period"].unique().sort().to_list()))
    made = register(place.control, place.settings, package, "by hand", place.now)
    said = {"expected_epoch": place.champion.epoch, "at": place.now, "actor": "ada", "reason": "a hunch"}
    promote(place.control, place.problem.name, made.version, **said)
    return made.version


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    "A root of the gym with fifty-eight days of visits, copied by nobody: each test takes its own."
    return world.rows()


@pytest.fixture
def own(tmp_path, gym):
    settings = world.make(tmp_path, gym)
    ingest_due(at(settings))
    return settings


# --- takeover

STRICT = replace(world.problem, limits=Limits(package_bytes=10))  # no candidate passes


def test_a_champion_that_is_worse_than_the_rule_by_its_interval_is_replaced_through_the_gate(own):
    bad = serve_by(at(own), [], sign=-1)
    ingest_due(at(own, 11))
    place = at(own, 11, STRICT)
    done = train(place, n_trials=1)
    assert done.decision == "refused" and done.candidate.rule.promotes
    assert "better: log-loss gain of the rule" in done.rule
    now = anew(place)
    assert now.model.manifest["family"] == "rule" and now.champion.version != bad
    moved = champion_history(place.control, "visits").row(-1, named=True)
    assert moved["actor"] == "gate" and "log-loss gain of the rule" in moved["reason"]
    again = train(place, n_trials=1)  # the same work at the same moment is found, not done twice
    assert again.candidate is None and again.outputs["champion"] == now.champion.version
    assert champion(place.control, "visits").epoch == 2
    assert score(place).batch.frame["fallback"].null_count() > 0  # the rule is the champion, and no fallback


def test_a_champion_that_equals_the_rule_stays_and_so_does_one_that_beats_it(own):
    alike = serve_by(at(own), list(world.problem.rule.features))
    ingest_due(at(own, 11))
    done = train(at(own, 11, STRICT), n_trials=1)
    assert done.decision == "refused" and not done.candidate.rule.promotes and done.rule == ""
    assert champion(at(own).control, "visits").version == alike
    asked = train(at(own, 11), rule=True)
    assert asked.decision in ("refused", "not enough data") and "stands by" in asked.reason
    assert champion(at(own, 11).control, "visits").version == alike and families(at(own, 11))[-1] == "rule"


def test_the_rule_that_was_asked_for_takes_over_from_a_worse_champion(own):
    serve_by(at(own), [], sign=-1)
    ingest_due(at(own, 11))
    done = train(at(own, 11), rule=True)
    assert done.decision == "promoted" and "better: log-loss gain" in done.reason
    assert anew(at(own, 11)).model.manifest["family"] == "rule"


def test_a_rule_that_serves_stands_aside_for_the_first_model_that_beats_it(own):
    assert train(at(own), rule=True).rule.startswith("the rule serves as version 1")
    first = score(at(own)).batch
    assert first.rows > 50 and first.frame["score"].n_unique() > 3
    done = retrain(at(own, 0.1), n_trials=2)
    assert done.decision == "promoted" and done.rule == "" and done.candidate.comparison is None
    assert "no champion" in done.policy.reason
    assert families(at(own, 0.1))[1] != "rule"


# --- the fallback


def test_the_rule_answers_where_the_champion_is_damaged_and_says_so(own):
    place = at(own)
    assert train(place, n_trials=2).decision == "promoted"
    assert families(place)[1:] == ["rule"]
    victim = get_version(place.control, own, "visits", 1).path / "model.json"
    sound = victim.read_bytes()
    victim.write_bytes(sound[:-1] + b" ")
    scored = score(place)
    assert scored.batch.frame["fallback"].unique().to_list() == ["the rule instead of version 1"]
    assert "the rule, version 2, serves instead" in scored.outputs["fallback"]
    assert "Not by the champion" in scored._repr_html_()
    who = {"member": int(scored.batch.frame["member"][0])}
    quick = replace(own, reload_seconds=0.05)
    with running(quick, "visits") as address:
        _, made = post(address, "/v1/visits/predictions", who)
        assert made["fallback"] == "the rule instead of version 1" and made["version"] == 2
        assert made["prediction"] == scored.batch.frame["score"][0]
        kept = find_decision(own, "visits", made["decision_id"])
        assert kept.fallback == made["fallback"]
        assert find_decision(own, "visits", scored.batch.frame["decision_id"][0]).fallback == made["fallback"]
        status, told = get(address, "/readyz")
        ready = told["problems"]["visits"]
        assert status == 200 and "serving version 2, the rule; the champion was refused" in ready["detail"]
        assert "model.json is not as it was written" in ready["warnings"][0]
        told = {"decision_id": made["decision_id"], "outcome": 1}
        assert post(address, "/v1/visits/outcomes", told)[0] == 200
        victim.write_bytes(sound)  # restored: the champion takes its place again, without a restart
        for _ in range(200):
            _, made = post(address, "/v1/visits/predictions", who)
            if made["version"] == 1:
                break
        assert made["version"] == 1 and "fallback" not in made


def by_service(place: Context, who: dict) -> str:
    "The id of an answer of a service that starts now."
    with running(place.settings, "visits") as address:
        status, made = post(address, "/v1/visits/predictions", who)
        assert status == 200, made
        return made["decision_id"]


@pytest.mark.parametrize("instead", ["the rule", "version 1"])
def test_an_answer_that_stood_in_for_a_damaged_champion_is_made_again(own, instead, capsys):
    shutil.copy(world.__file__, own.home)
    if instead == "version 1":
        serve_by(at(own), [])
    else:
        train(at(own), rule=True)
    bad = serve_by(anew(at(own)), list(world.problem.rule.features), sign=-1)
    place = anew(at(own))
    victim = get_version(place.control, own, "visits", bad).path / "model.json"
    sound = victim.read_bytes()
    victim.write_bytes(sound[:-1] + b" ")
    batch = score(place).batch.frame
    named = [by_service(place, {"member": int(batch["member"][0])}), *batch["decision_id"][:3]]
    victim.write_bytes(sound)  # who answered is in the decision, whatever could answer today
    words = ["--root", str(own.root), "--now", place.now.isoformat()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own.home)
        for name in named:
            kept = find_decision(own, "visits", name)
            assert kept.fallback == f"{instead} instead of version {bad}" and kept.version != bad
            assert main(["replay", name, *words]) == 0
            assert f"the same to the bit: version {kept.version}," in capsys.readouterr().out
        kept_by = get_version(place.control, own, "visits", kept.version).path / "model.json"
        kept_by.write_bytes(kept_by.read_bytes()[:-1] + b" ")
        assert main(["replay", name, *words]) == 2, "nothing is said of an answer whose version is gone"


def test_features_served_by_another_set_of_the_same_names_are_made_anew(own):
    serve_by(at(own), [])
    place = anew(at(own))
    score(place)
    made, names = read_decisions(own, "visits"), [*place.problem.features.names]
    assert seen_by(place, place.model, made) is made
    meant = made.with_columns(pl.col("visits_21d") + 1, feature_set_hash=pl.lit("f" * 64))
    both = pl.concat([made[:20], meant[20:]])
    for other in (meant, both):
        assert seen_by(place, place.model, other).select(names).equals(made.select(names))


def test_the_rule_is_judged_by_the_newest_period_alone(own):
    place = at(own)
    rows = training_set(place).labelled()
    early, newest = _parts(place, rows)
    assert newest["period"].unique().to_list() == [rows["period"].max()]
    # what became final at the very moment at which the newest period began was known then
    assert early["period"].max() == rows["period"].max() - place.problem.matures_after


def test_a_look_says_what_to_expect_of_decisions_that_wait_for_their_outcome(own):
    train(at(own), n_trials=1)
    first = score(at(own)).batch.rows
    for day in (12, 15):
        ingest_due(at(own, day))
        waiting = score(at(own, day)).batch.rows
    monitor(at(own, 15))
    told = get_document(at(own, 15).control, "follow_up", "visits")["parts"]["LabelFree"]
    assert first > 50 and told["n"] >= waiting


def get(address: str, path: str) -> tuple[int, dict]:
    import urllib.request

    with urllib.request.urlopen(address + path, timeout=60) as answer:
        return answer.status, json.load(answer)


# --- the first day


def lives_on(place: Context, who: dict, outcome: object) -> None:
    "Scored, served, answered and watched, as with any model."
    name = place.problem.name
    assert score(place).outputs["version"] == place.champion.version
    with running(place.settings, name) as address:
        status, made = post(address, f"/v1/{name}/predictions", who)
        assert status == 200 and "fallback" not in made, made
        told = {"decision_id": made["decision_id"], "outcome": outcome}
        assert post(address, f"/v1/{name}/outcomes", told)[0] == 200
        assert get(address, "/readyz")[1]["problems"][name]["detail"].endswith(", the rule")
    assert monitor(place).outputs["version"] == place.champion.version


def test_the_first_day_by_the_command(tmp_path, capsys):
    few = world.rows(12, 60)
    settings = world.make(tmp_path, few)
    shutil.copy(world.__file__, tmp_path)
    place = at(settings, -20)
    ingest_due(place)
    words = ["--root", str(settings.root), "--now", place.now.isoformat()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(settings.home)
        assert main(["train", "visits", *words]) == 0
        said = capsys.readouterr().out
        assert (
            "decision: not enough data" in said and "rule: the rule serves as version 1: too little" in said
        )
        assert "rows have an outcome, in " in said and "at this rate it takes about " in said
        assert main(["train", "visits", "--rule", "-p", "n_trials=2", *words]) == 0
        assert "decision: promoted" in capsys.readouterr().out
        assert main(["versions", "visits", "--root", str(settings.root)]) == 0
        assert "rule" in capsys.readouterr().out
    lives_on(anew(place), {"member": int(few["member"][0])}, 1)


@pytest.mark.parametrize(("name", "outcome"), [("calls", 1), ("bare", 0), ("hours", 7.5), ("desk", "field")])
def test_the_first_days_of_each_kind(tmp_path, name, outcome):
    settings = calls_world.make(tmp_path, 400)
    problem = {"calls": calls_world.history, "bare": calls_world.bare, "hours": calls_world.hours}.get(
        name, calls_world.desk
    )
    place = at(settings, 20, problem, calls_world.START)
    ingest_due(place)
    done = train(place, n_trials=1)
    assert done.decision == "not enough data" and done.rule.startswith("the rule serves as version 1")
    who = {"call": "new", "topic": "line", "minutes": 12}
    who |= {} if name == "bare" else {"client": 3, "parts": [4, 7]}
    lives_on(anew(place), who, outcome)


def test_a_rule_that_serves_is_fitted_anew_while_no_model_passes(own):
    for day in (0, 5):
        ingest_due(at(own, day))
        done = train(at(own, day, STRICT), n_trials=1)
        assert done.decision == "refused" and "no model has passed the gate" in done.rule
    history = champion_history(at(own, 5).control, "visits")["version"].to_list()
    assert len(history) == 2 and families(at(own, 5)) == [families(at(own, 5))[0], "rule"] * 2


# --- hostile


@pytest.mark.parametrize(("comparison", "value"), [(">=", 0), ("<", 0)])
def test_with_one_kind_of_outcome_not_even_the_rule_serves_and_both_are_said(own, comparison, value):
    target = Happens(world.problem.target.feature, comparison, value, "what always or never is")
    always = replace(world.problem, target=target)
    done = train(at(own, 0, always), n_trials=1)
    assert done.decision == "not enough data" and done.outputs["champion"] is None
    assert "the rule cannot serve either: a rule needs" in done.outputs["rule"]
    asked = train(at(own, 0, always), rule=True)
    assert asked.decision == "not enough data" and "a rule needs" in asked.reason
    assert versions(at(own).control, own, "visits") == []


def test_before_anything_has_matured_nothing_serves_and_the_step_says_why(tmp_path):
    settings = world.make(tmp_path, world.rows(12, 60))
    place = at(settings, -29)
    ingest_due(place)
    done = train(place, n_trials=1)
    assert (done.decision, done.outputs["champion"]) == ("not enough data", None)
    assert "a rule needs outcomes, 0 rows" in done.rule


@pytest.mark.parametrize("problem", [calls_world.hours, calls_world.desk], ids=["hours", "desk"])
def test_outcomes_that_never_differ_are_said_by_name(tmp_path, problem):
    settings = calls_world.make(tmp_path, 400)
    known = pl.read_parquet(tmp_path / "raw" / "answers.parquet")
    same = known.with_columns(hours=pl.lit(3, pl.Int64), desk=pl.lit("field"))
    same.write_parquet(tmp_path / "raw" / "answers.parquet")
    place = at(settings, 20, problem, calls_world.START)
    ingest_due(place)
    done = train(place, n_trials=1)
    assert done.decision == "not enough data" and done.outputs["champion"] is None
    assert "the rule cannot serve either: a rule needs" in done.rule and "wait until" in done.rule


def test_a_rule_counts_as_old_as_what_it_learnt_from(own):
    train(at(own), rule=True)
    learnt = anew(at(own)).model.manifest["training"]
    assert learnt["last"] <= (FIRST - timedelta(days=9)).isoformat() and learnt["rows"] > 100
