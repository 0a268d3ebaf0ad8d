"The loop in a generated world with its own periods and delays: who looks when, data that ends, days on which nobody comes."

import shutil
import tempfile
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import polars as pl
import pytest
import visits_world as world

from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import LakeError
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.outcomes import Ledger, Outcome, labelled
from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.features import count, point_in_time_join, sum
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.learning.recipe import Recipe
from mlsys_nb.loop import pipeline, policy_execution, step_context
from mlsys_nb.loop.attempt_history import attempts_of
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.matured_outcomes import newly_matured
from mlsys_nb.loop.pipeline import monitor, retrain, score, train
from mlsys_nb.loop.prefetch import ask_ahead
from mlsys_nb.loop.promotion import Release, carry_out, noted_release
from mlsys_nb.loop.retrain import recipe_of
from mlsys_nb.loop.retrain_policy import Upkeep
from mlsys_nb.loop.step_context import Context, StaleData, TimeError, anew
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.monitoring.alerts import Alert, open_alerts, record
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.criterion import Criterion
from mlsys_nb.problem.dataset import build_dataset
from mlsys_nb.release.registry import RegistryError, champion, promote, versions
from mlsys_nb.system.control_tables import get_document, put_document
from mlsys_nb.system.pointers import StalePointer
from mlsys_nb.system.settings import MlsysError, load_settings

FIRST, DAY = world.START + 50 * world.DAY, world.DAY


def at(settings, day=0, problem=world.problem) -> Context:
    found = Context(settings, problem, FIRST + day * DAY)
    key = problem.features.hash
    if get_document(found.control, "parity", key) is None:  # Proved elsewhere, and slow
        put_document(found.control, "parity", key, {"passed": True, "differing": []})
    return found


def live(folder):
    "Fifty days of the gym, a first champion, a batch of decisions, and eleven more days."
    settings = world.make(folder)
    ingest_due(at(settings))
    assert train(at(settings), n_trials=3).decision == "promoted"
    score(at(settings))
    ingest_due(at(settings, 11))
    return settings


@cache
def _lived():
    folder = tempfile.TemporaryDirectory(prefix="mlsys-gym-")
    live(Path(folder.name))
    return folder


def lived(folder):
    "A copy of what was lived through once."
    shutil.copytree(_lived().name, folder, dirs_exist_ok=True)
    return load_settings(root=folder / "root", home=folder)


@pytest.fixture(scope="module")
def gym(tmp_path_factory):
    "Only looked at, never changed."
    return lived(tmp_path_factory.mktemp("gym"))


@pytest.fixture
def own(tmp_path):
    return lived(tmp_path)


# --- labels


def test_fault_06_a_model_learns_from_final_labels_only(gym):
    learnt = at(gym, 11).model.manifest["training"]["last"]
    moments = [world.START + i * world.problem.population.every for i in range(40)]
    assert learnt == max(m for m in moments if m + world.problem.matures_after <= FIRST).isoformat()


def test_fault_06_decisions_are_judged_when_their_labels_are_final(gym):
    final, lake = FIRST + world.problem.matures_after, at(gym, 11).lake
    before = labelled(gym, world.problem, final - timedelta(microseconds=1), lake)
    judged = labelled(gym, world.problem, final, lake)
    assert before["label"].null_count() == before.height > 0
    assert judged["label"].null_count() == 0
    assert judged["matured_at"].unique().to_list() == [final]


def test_fault_06_the_monitor_takes_each_decision_once_after_its_label_is_final(gym):
    final = FIRST + world.problem.matures_after
    model = at(gym, 11).model

    def place(now):
        found = Context(gym, world.problem, now)
        object.__setattr__(found, "lake", at(gym, 11).lake)
        return found

    n = read_decisions(gym, "visits").height
    assert newly_matured(place(final - timedelta(microseconds=1)), model).height == 0
    assert newly_matured(place(final), model).height == n
    assert newly_matured(place(final + 8 * world.problem.horizon), model).height == n


def test_fault_looked_at_every_eight_weeks_the_monitor_saw_no_label(own):
    "Decided and looked at every eight weeks, with outcomes that are final after nine days: zero labels, for ever."
    late = FIRST + 20 * DAY
    ingest_due(at(own, 20))
    watched = monitor(at(own, 20))
    n = read_decisions(own, "visits").height
    assert watched.outputs["labels"] == n > 100 and late - FIRST > 2 * world.problem.matures_after
    assert monitor(at(own, 20)).outputs["labels"] == n  # the same look again
    ingest_due(at(own, 23))
    assert monitor(at(own, 23)).outputs["labels"] == 0  # judged already
    score(at(own, 23))
    ingest_due(at(own, 60))
    assert monitor(at(own, 60)).outputs["labels"] == read_decisions(own, "visits").height - n > 100


# --- one look


def test_a6_a_retrain_reads_the_pointer_once_and_verifies_the_package_once(own, monkeypatch):
    counts = dict.fromkeys(("champion", "load_version", "load_events"), 0)
    for name in counts:
        real = getattr(step_context, name)

        def counted(*args, name=name, real=real):
            counts[name] += 1
            return real(*args)

        monkeypatch.setattr(step_context, name, counted)
    done = retrain(at(own, 11), n_trials=3)
    assert done.policy is not None
    assert counts == {"champion": 1, "load_version": 1, "load_events": 1}


def test_a_promotion_during_a_training_is_not_overruled_by_it(own, monkeypatch):
    "The gate compared with the champion of the beginning; the release must not pretend otherwise."
    place = at(own, 11)
    real = pipeline.train_candidate

    def meanwhile(*args, **options):
        candidate = real(*args, **options)
        promote(place.control, "visits", 1, expected_epoch=1, at=place.now, actor="ada", reason="as I say")
        return replace(candidate, verdict=replace(candidate.verdict, decision="promote"))

    monkeypatch.setattr(pipeline, "train_candidate", meanwhile)
    with pytest.raises(StalePointer, match="expected 1, it is at 2"):
        train(place, n_trials=3)
    assert champion(place.control, "visits").epoch == 2


def test_a_step_that_was_interrupted_is_finished_and_not_decided_again(own, monkeypatch):
    place, real = at(own, 11), pipeline.train_candidate

    def die(*args, **options):
        raise KeyboardInterrupt

    def better(*args, **options):
        candidate = real(*args, **options)
        return replace(candidate, verdict=replace(candidate.verdict, decision="promote"))

    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "carry_out", die)
        broken.setattr(pipeline, "train_candidate", better)
        with pytest.raises(KeyboardInterrupt):
            train(place, n_trials=3)
    noted = noted_release(place.control, f"{place.label}/train/3/0/{world.features.hash[:12]}")
    with monkeypatch.context() as lazy:
        lazy.setattr(pipeline, "train_candidate", die)
        done = train(place, n_trials=3)
    assert done.release == noted and done.candidate is None
    known = versions(place.control, own, "visits")
    families = [v.summary["family"] for v in known[noted.version - 1 :]]
    assert families[0] in ("linear", "boosting") and families[1:] == ["rule"] * noted.promotes


def test_a_refresh_learns_no_older_rows_than_a_rule_that_was_declared_since(own):
    place = at(own, 11)
    before, month = replace(recipe_of(place.model), lookback=None), place.problem.lookback
    made = pipeline.train_candidate(place, recipe=before)
    fitted = made.played.shipped
    assert fitted.train_end - fitted.train_start <= month and made.question is Question.REFRESH
    assert Recipe.read(made.package.manifest["recipe"]) == replace(before, lookback=month)


SEARCH = Upkeep("search", "the recipe is old", then="refresh")


def asked_for_a_search(monkeypatch, decision="refuse"):
    "A policy that wants a search, and a gate that says so much of what it finds; how often a candidate was made."
    real, made = pipeline.train_candidate, []

    def judged(*args, recipe=None, **options):
        candidate = real(*args, recipe=recipe, **options)
        made.append((recipe is not None, options["asked"], candidate.verdict.look, candidate.question))
        said = replace(candidate.verdict, decision="promote" if recipe else decision)
        return replace(candidate, verdict=said, rule=None)

    monkeypatch.setattr(pipeline, "train_candidate", judged)
    monkeypatch.setattr(policy_execution, "decide", lambda *args: SEARCH)
    return made


def test_a_refused_search_costs_no_refresh(own, monkeypatch):
    "The fault: the month in which a search found nothing better had no newer rows either."
    place, made = at(own, 11), asked_for_a_search(monkeypatch)
    before = recipe_of(place.model)
    done = retrain(place, n_trials=3)
    assert done.decision == "promoted" and done.search.decision == "refused"
    assert [(followed, asked) for followed, asked, *_ in made] == [(False, 0), (True, 1)]
    assert made[1][2:] == (2, Question.REFRESH)  # the second look at the same rows
    now = anew(place)
    assert recipe_of(now.model) == before and now.champion.version == done.release.version
    assert [(a.action, a.outcome) for a in attempts_of(now.control, "visits")] == [
        ("search", "refused"),
        ("refresh", "promoted"),
    ]
    assert done.outputs["search"].startswith("refused: ") and "the search before it" in done._repr_html_()
    again = retrain(place, n_trials=3)  # said again, nothing is done twice
    assert len(made) == 2 and (again.decision, again.outputs["champion"]) == (
        "promoted",
        now.champion.version,
    )
    assert len(attempts_of(now.control, "visits")) == 2


def test_a_search_that_passes_is_followed_by_nothing(own, monkeypatch):
    made = asked_for_a_search(monkeypatch, "promote")
    done = retrain(at(own, 11), n_trials=3)
    assert (done.decision, done.search, len(made)) == ("promoted", None, 1)


def test_a_run_that_died_between_search_and_refresh_goes_on_where_it_was(own, monkeypatch):
    place, made = at(own, 11), asked_for_a_search(monkeypatch)
    real = pipeline.note_release

    def die(at, candidate, key):
        if key.endswith("/refresh"):
            raise KeyboardInterrupt
        return real(at, candidate, key)

    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "note_release", die)
        with pytest.raises(KeyboardInterrupt):
            retrain(place, n_trials=3)
    done = retrain(place, n_trials=3)
    assert done.decision == "promoted" and [followed for followed, *_ in made] == [False, True, True]
    assert made[1][2] == made[2][2] == 2  # the same candidate, judged again, is the same look


def test_outputs_name_the_version_the_gate_the_reason_and_the_data(own):
    place = at(own, 11)
    done = train(place, n_trials=3)
    assert done.outputs["candidate"] == done.release.version == 3  # the rule stands by as version 2
    assert done.outputs["champion"] == champion(place.control, "visits").version
    assert done.outputs["reason"] == done.release.reason
    assert done.outputs["snapshots"] == place.lake.digests
    assert done.metrics["rows"] == done.candidate.evaluation.n
    assert "policy" not in done.outputs
    html = done._repr_html_()
    assert "in parts" in html and "log-loss lost without a feature" in html and "branch" in html
    kept = retrain(at(own, 11), n_trials=3)
    assert kept.outputs["policy"] == kept.policy.reason


def test_all_alerts_about_the_old_champion_are_closed_by_a_promotion_and_only_then(own):
    place = at(own, 11)
    gap = Alert("visits", "performance", "auc", "warning", "", "", "", FIRST)
    record(place.control, "visits", [gap, replace(gap, kind="drift")], FIRST)
    stays = Release(1, False, "refuse", "worse", 1)
    carry_out(anew(place), stays)
    assert len(open_alerts(place.control, "visits")) == 2
    carry_out(anew(place), replace(stays, promotes=True, decision="promote"))
    assert open_alerts(place.control, "visits") == []


# --- moments


def test_fault_17_a_step_on_data_that_ended_names_the_newest_event_and_leaves_nothing(own):
    years = at(own, 2000)
    ingest_due(years)
    newest = Context(own, world.problem, years.now).lake.events["visits"]["known_at"].max()
    before = {p: p.stat().st_mtime_ns for p in own.root.rglob("*") if p.is_file()}
    for act in (score, monitor, train, retrain):
        with pytest.raises(StaleData) as refused:
            act(years)
        assert newest.isoformat() in str(refused.value)
        assert "--now " in str(refused.value) and "-p now=" in str(refused.value)
    assert {p: p.stat().st_mtime_ns for p in own.root.rglob("*") if p.is_file()} == before
    assert score(Context(own, world.problem, newest)).batch.rows > 0  # What it says is what helps


def test_data_may_be_as_old_as_the_horizon_and_no_older(gym, monkeypatch):
    lake = at(gym, 11).lake
    ended = type("Ended", (), {"digest": lake.digests["visits"]})
    monkeypatch.setattr(step_context, "finished", lambda *args: ended)
    monkeypatch.setattr(step_context, "load_events", lambda *args: lake)
    newest = lake.events["visits"]["known_at"].max()
    edge = Context(gym, world.problem, newest + world.problem.horizon)
    assert step_context.reaching(edge) is lake
    with pytest.raises(StaleData):
        step_context.reaching(Context(gym, world.problem, edge.now + timedelta(microseconds=1)))


def test_fault_11_a_score_beside_a_running_ingest_is_refused(own, monkeypatch):
    place = at(own, 12)
    real = ingest.__globals__["_finish"]
    seen = []

    def first_look(*args):
        with pytest.raises(LakeError) as refused:
            score(place)
        seen.append(str(refused.value))
        real(*args)

    monkeypatch.setitem(ingest.__globals__, "_finish", first_look)
    ingest_due(place)
    assert "an ingest is at work" in seen[0] or "ended at most" in seen[0]
    scored, watched = score(place), monitor(place)
    assert scored.batch.rows > 100
    assert scored.outputs["rows"] == scored.batch.rows and scored.outputs["version"] == 1
    assert scored.outputs["batch"] == scored.batch.batch_id
    assert 0 < scored.outputs["actions"] == scored.batch.actions < scored.batch.rows
    assert watched.outputs["version"] == 1 and watched.outputs["labels"] > 0
    assert watched.outputs["alerts"] == [a.sentence for a in watched.alerts]
    assert scored.outputs["snapshots"] == watched.outputs["snapshots"] == anew(place).lake.digests


@pytest.fixture
def worked(monkeypatch):
    "The sets that were worked out, and not found among what was asked ahead."
    seen, real = [], point_in_time_join._worked_out
    monkeypatch.setattr(
        point_in_time_join, "_worked_out", lambda asked, *more: seen.append(asked) or real(asked, *more)
    )
    monkeypatch.setattr(step_context, "_LOOKED_UP", {})
    return seen


def test_what_was_asked_ahead_is_what_the_step_would_have_found(own, worked, monkeypatch):
    place = at(own, 12)
    ingest_due(place)
    plain, rows = training_set(anew(place)), worked.count(world.problem.features)
    worked.clear()
    for what in ("retrain", "score", "monitor"):
        ask_ahead(what, place)
        worked.clear()
        if what == "retrain":
            found = training_set(anew(place))
            assert worked.count(world.problem.features) == 0 < rows
            assert found.frame.equals(plain.frame)
            assert replace(found, frame=None) == replace(plain, frame=None)
    step_context._LOOKED_UP.clear()
    ask_ahead("score", place)
    worked.clear()
    scored = score(place).batch
    assert not worked and scored.rows > 100
    alone = as_of(
        world.problem.features, scored.frame.select("member", "moment"), dict(anew(place).lake.events)
    )
    assert scored.frame.select(alone.columns).equals(alone)


def test_what_was_asked_ahead_is_forgotten_when_something_arrives(own, worked):
    place = at(own, 12)
    ask_ahead("score", place)  # a day too early
    early = anew(place).lake
    assert early is step_context._LOOKED_UP[step_context._place(place)]
    ingest_due(place)
    assert anew(place).lake.digests == anew(place).written != early.digests
    assert score(place).batch.rows > 100 and worked


def test_fault_11_a_score_long_after_the_last_ingest_is_refused(own):
    for day in (13, 60):
        for act in (score, monitor, train, retrain):
            with pytest.raises(LakeError, match="ended at most 1 day"):
                act(at(own, day))
    assert read_decisions(own, "visits")["moment"].unique().to_list() == [FIRST]


def test_no_step_goes_back_behind_the_promotion(gym):
    for act in (score, monitor, train, retrain):
        with pytest.raises(TimeError, match="at or after the champion's promotion"):
            act(at(gym, -1))


def test_without_a_champion_score_and_monitor_say_what_to_run(tmp_path):
    settings = world.make(tmp_path)
    ingest_due(at(settings))
    for act in (score, monitor):
        with pytest.raises(RegistryError, match="mlsys train visits"):
            act(at(settings))


# --- too little


def test_fault_17_a_day_on_which_nobody_is_eligible_is_an_alert_and_no_crash(own):
    nobody = replace(
        world.problem, population=replace(world.problem.population, eligible=Criterion("visits_21d", ">=", 1))
    )
    place = at(own, 11, nobody)
    gone = place.lake.events["visits"].with_columns(pl.col("at") - 60 * DAY)
    place_lake = replace(place.lake, events={"visits": gone})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_context, "load_events", lambda *a: place_lake)
        watched = monitor(place)
    assert watched.drift.verdict == "nobody to look at" and watched.drift.rows == 0
    assert [a.subject for a in watched.alerts if a.kind == "drift"] == ["population"]
    [alert] = [a for a in watched.alerts if "nobody is eligible" in a.size]
    newest = gone.filter(pl.col("known_at") <= place.now)["at"].max()
    assert f"the newest of visits is of {newest:%Y-%m-%d %H:%M}" in alert.size
    assert "deliver cases as they begin" in alert.action and "population=" in alert.action
    assert "no row" in watched._repr_html_()
    assert not [a for a in monitor(at(own, 11)).alerts if "nobody" in a.size]  # Seen again, closed again


@pytest.mark.parametrize(("comparison", "value"), [(">=", 0), ("<", 0)])
def test_fault_17_one_kind_of_outcome_is_not_enough_to_learn(tmp_path, comparison, value):
    always = replace(
        world.problem,
        target=Happens(world.problem.target.feature, comparison, value, "what always or never is"),
    )
    settings = world.make(tmp_path)
    ingest_due(at(settings, 0, always))
    done = train(at(settings, 0, always), n_trials=3)
    assert done.decision == "not enough data"
    assert "not enough to learn" in done.reason and "wait until more moments have matured" in done.reason
    assert versions(at(settings).control, settings, "visits") == []
    assert (
        train(at(settings, 0), n_trials=3).decision == "promoted"
    )  # Nothing stands in the way of a second try


def test_fault_17_a_first_training_that_comes_too_early_says_what_is_missing(tmp_path):
    settings = world.make(tmp_path)
    early = at(settings, -40)
    ingest_due(early)
    done = train(early, n_trials=3)
    assert done.decision == "not enough data"
    assert "a moment matures after 9 days" in done.reason and done.outputs["champion"] is None


def test_contradicting_outcomes_are_shown_by_the_monitor(own):
    ids = read_decisions(own, "visits")["decision_id"].to_list()
    said = FIRST + 10 * DAY
    Ledger(own, "visits").post([Outcome(ids[0], 1, said, "ann"), Outcome(ids[0], 0, said, "bob")])
    watched = monitor(at(own, 11))
    assert watched.outputs["conflicts"] == watched.conflicts.height >= 1  # the events may disagree as well
    assert "Contradicting outcomes" in watched._repr_html_() and "bob" in watched._repr_html_()


def test_a_search_of_less_than_no_trials_is_refused_before_any_work(gym):
    with pytest.raises(ValueError, match="n_trials=-1"):
        train(at(gym, 11), n_trials=-1)


# --- what it was worth


def test_the_backtest_of_one_champion_finds_no_gain_over_itself(gym):
    found = backtest(at(gym, 11))
    assert found.over_frozen.loss.value == 0 and found.over_rule.loss.value > 0
    who = dict(found.frame.select("who", "log_loss").iter_rows())
    assert who["champion"] == who["frozen"] < who["rule"]
    assert "gained nothing" in found.finding


def test_the_backtest_of_a_system_that_never_served_is_none(tmp_path):
    settings = world.make(tmp_path)
    ingest_due(at(settings))
    assert backtest(at(settings)) is None


def test_fault_06_an_outcome_dated_before_its_moment_is_named_and_not_believed(own):
    made = labelled(own, world.problem, FIRST + 11 * DAY, at(own, 11).lake)
    happened = made.filter(label=0)["decision_id"].to_list()[:2]
    before, after = FIRST - timedelta(microseconds=1), FIRST
    Ledger(own, "visits").post(
        [Outcome(happened[0], 1, before, "ann"), Outcome(happened[1], 1, after, "ann")]
    )
    told = labelled(own, world.problem, FIRST + 11 * DAY, at(own, 11).lake)
    rows = {row["decision_id"]: row for row in told.iter_rows(named=True)}
    early, right = (rows[i] for i in happened)
    assert (early["label"], early["label_source"], early["early"]) == (0, "events", True)
    assert (right["label"], right["label_source"], right["early"]) == (1, "posted", False)
    assert told["early"].sum() == 1
    assert monitor(at(own, 11)).outputs["early outcomes"] == 1


# --- features added, changed and dropped on a live system

BUSY = sum(world.visits, "minutes", "14d").named("minutes_14d")
CHANGES = {
    "reordered": (world.branch, world.active, world.recency, world.weekly),
    "a fourteen-day window": (world.recency, world.active, world.weekly, world.branch, BUSY),
    "one dropped": (world.recency, world.active, world.branch),
    "one changed": (
        world.recency, world.active, count(world.visits, "10d").named("visits_7d"), world.branch,
    ),
    "a key for one feature": (
        world.recency, world.active, world.branch, count(world.visits, "7d", by=("member",)).named("visits_7d"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_section_b_the_next_retrain_is_judged_after_features_changed(own, change):
    changed = world.with_features(*CHANGES[change])
    now = at(own, 11, changed)
    before = now.model
    assert before.features.hash == world.problem.features.hash
    ingest_due(now)
    done = train(now, n_trials=3)
    assert done.candidate.comparison is not None, done.reason
    rows = done.candidate.played.itself.rows
    assert rows.columns[3:-2] == list(changed.features.names)
    mine = as_of(world.problem.features, rows.select("member", "moment"), now.lake.events)
    assert done.candidate.played.itself.predictions.champion.tobytes() == before.predict(mine).tobytes()
    same = rows.select("member", "moment", "label")
    asked = build_dataset(world.problem, now.lake, rows["moment"].unique().to_list(), now.now).frame
    assert same.equals(asked.select("member", "moment", "label"))


def test_section_b_monitor_score_and_backtest_use_the_features_of_each_version(own):
    changed = world.with_features(*CHANGES["a fourteen-day window"])
    now = at(own, 11, changed)
    ingest_due(now)
    watched = monitor(now)
    assert set(watched.drift.frame["feature"]) == {*world.problem.features.names, "score"}
    assert score(now).batch.rows > 100
    done = train(now, n_trials=3)
    promote(
        now.control,
        "visits",
        done.release.version,
        expected_epoch=1,
        at=now.now,
        actor="ada",
        reason="to see",
    )
    later = at(own, 12, changed)
    ingest_due(later)
    assert "minutes_14d" in score(later).batch.frame.columns
    assert "minutes_14d" in set(monitor(later).drift.frame["feature"])
    much_later = at(own, 22, changed)
    ingest_due(much_later)
    found = backtest(much_later)
    moments = found.frame.filter(who="champion")["moment"].to_list()
    assert moments == [FIRST, FIRST + 11 * DAY, FIRST + 12 * DAY]
    by = {(r["moment"], r["who"]): r["log_loss"] for r in found.frame.iter_rows(named=True)}
    assert by[moments[0], "champion"] == by[moments[0], "frozen"]
    assert by[moments[2], "champion"] != by[moments[2], "frozen"]


@pytest.mark.parametrize("part", ["target", "horizon", "population"])
def test_section_b_another_question_is_refused_by_name(own, part):
    other = {
        "target": {"target": replace(world.problem.target, comparison="<", value=2)},
        "horizon": {
            "horizon": 14 * DAY,
            "target": replace(
                world.problem.target, feature=count(world.visits, "14d").named("visits_next_14d")
            ),
        },
        "population": {
            "population": replace(world.problem.population, eligible=Criterion("visits_21d", ">=", 2))
        },
    }[part]
    for act in (score, monitor, train, retrain):
        with pytest.raises(MlsysError, match=f"(?s)trained for.*{part}"):
            act(at(own, 11, replace(world.problem, **other)))


def test_the_monitor_tells_what_decisions_came_to_and_the_dashboard_shows_it(own):
    "Precision, recall and cost by slice, beside the rule, the first model, calling all and calling nobody."
    from mlsys_nb.doors.dashboards.model_maintenance import outcomes_part
    from mlsys_nb.doors.dashboards.page_data import ProblemView

    assert "No outcome has been looked at yet" in outcomes_part(ProblemView(own, "visits"))
    ingest_due(at(own, 20))
    score(at(own, 19))
    watched = monitor(at(own, 20))
    point, estimate = watched.performance.beside
    told = point.to_dict()
    assert {row["way"] for row in told["ways"]} >= {"as decided", "first model", "call all", "call none"}
    same = {row["way"]: row["cost_per_1000"] for row in told["ways"]}
    assert same["as decided"] == pytest.approx(same["first model"])  # the champion is the first model
    assert told["slices"][0]["slice"] == "all" and 0 < told["slices"][0]["recall"] <= 1
    assert any(row["slice"].startswith("branch = ") for row in told["slices"])
    assert "concept change" in estimate.to_dict()["blind"] and "concept change" in watched._repr_html_()
    shown = outcomes_part(ProblemView(own, "visits"))
    assert "call none" in shown and "branch = " in shown and "concept change" in shown


def test_whom_a_lot_spares_stands_for_those_that_were_called(own):
    "Who was called has no outcome; one in four is left alone, counts four times, and the sample to label is on a list."
    from mlsys_nb.decisions.selection_bias import case_names, explored_by, standing_for_all
    from mlsys_nb.problem.random_sampling import Lot, Lots

    explored = replace(world.problem, lots=Lots(explore=Lot(4)))
    ingest_due(at(own, 12))
    score(at(own, 12, explored))
    made = read_decisions(own, "visits").filter(pl.col("moment") == FIRST + 12 * DAY)
    spared = pl.Series(explored.lots.spared(case_names(explored, made)))
    would = made["score"] >= made["threshold"]
    assert set(made.filter(spared)["action"]) == {"none"} and (would & spared).sum() > 10
    assert set(made.filter(would & ~spared)["action"]) == {"call"}
    ingest_due(at(own, 25))
    place = at(own, 25, explored)
    rows = newly_matured(place, place.model).filter(pl.col("moment") == FIRST + 12 * DAY)
    assert rows.filter(action="call")["label"].null_count() == rows.filter(action="call").height > 10
    report = monitor(place).performance
    kept = newly_matured(at(own, 25, explored), place.model).drop_nulls("label").height
    assert report.evaluation.n > kept  # each that was spared stands for four

    # declared anew as one in nine: what was decided before still stands for four, drawn as it was drawn then
    later = replace(world.problem, lots=Lots(explore=Lot(9)))
    for problem in (explored, later):
        shares = explored_by(place.control, problem, rows)
        assert shares[made["costs"][0]] == Lot(4) and made["costs"][0] == explored.policy
        whole = standing_for_all(problem, rows, shares)
        assert whole.height == rows.height + 3 * (would & spared).sum()
