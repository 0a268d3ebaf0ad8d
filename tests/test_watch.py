"Watching drift: each period is read once, whatever happens between looks; and what that costs in the twelfth month."

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import visits_world as world

from mlsys_nb.decisions.batch_decisions import append_batch
from mlsys_nb.loop import drift_step
from mlsys_nb.loop.step_context import Context
from mlsys_nb.monitoring.training_profile import reference_profile
from mlsys_nb.problem.dataset import Lake
from mlsys_nb.problem.population import Everyone
from mlsys_nb.system.control_tables import get_document, put_document
from mlsys_nb.system.settings import load_settings

START, WEEK = world.START, timedelta(weeks=1)
PROBLEM = replace(world.problem, population=Everyone(WEEK, START), slices=())
MEMBERS, REFERENCE = 150, 20  # a week; weeks
WATCHED = ("visits", "tenure")


def week(k, shift=0.0, n=MEMBERS):
    "A week's cases: visits that may shift, a tenure that grows by seven days a week."
    rng = np.random.default_rng(k)
    own = {
        "member": np.arange(n),
        "visits": rng.normal(5 + shift, 1, n),
        "tenure": rng.random(n) * (200 + 7 * k),
    }
    return pl.DataFrame(own).with_columns(moment=pl.lit(START + k * WEEK).cast(pl.Datetime("us", "UTC")))


def model(version=1):
    profile = reference_profile(pl.concat([week(k) for k in range(REFERENCE)]), WATCHED, lifetime=["tenure"])
    return SimpleNamespace(version=version, feature_set_hash="f00d", profile=profile.to_json())


def decide(at, k, version=1, eligible=True, **how):
    "A batch of decisions about a week."
    rows = week(k, **how).with_columns(version=pl.lit(version), score=0.5, threshold=0.5, action=pl.lit("none"),
                                       eligible=eligible, feature_set_hash=pl.lit("f00d"))  # fmt: skip
    append_batch(at.settings, PROBLEM.name, f"v{version}-{k}", rows, ["member"])


def look(root, k):
    "The step's context at the end of a week."
    at = Context(load_settings(root=root), PROBLEM, START + k * WEEK)
    at.__dict__["lake"] = Lake({}, ())
    return at


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    "The lake is not asked: somebody is eligible unless a test says otherwise."
    monkeypatch.setattr(drift_step, "as_trained", lambda problem, model: problem)
    monkeypatch.setattr(drift_step, "reaching", lambda at: None)
    monkeypatch.setattr(drift_step, "rows_asked", lambda *asked: week(0))


@pytest.fixture(scope="module")
def first():
    return model()


def test_several_periods_at_one_look_are_each_judged(tmp_path, first):
    "Of four weeks that came at once the second was wrong; the newest alone would tell nothing."
    at = look(tmp_path, 24)
    for k in range(21, 25):
        decide(at, k, shift=3.0 if k == 22 else 0.0)
    report = drift_step.watch_drift(at, first).report
    assert len(report.current) == 4 and report.rows == 4 * MEMBERS
    assert "visits" in report.drifted and "visits" in report.alerts
    row = report.frame.filter(pl.col("feature") == "visits").row(0, named=True)
    assert row["direction"] == "up" and row["cause"]


def test_the_same_look_twice_says_the_same_and_counts_nothing_twice(tmp_path, first):
    at = look(tmp_path, 22)
    decide(at, 21)
    decide(at, 22)
    once = drift_step.watch_drift(at, first).report
    again = drift_step.watch_drift(look(tmp_path, 22), first).report
    assert again.rows == once.rows == 2 * MEMBERS and again.frame.equals(once.frame)
    assert again.told == once.told and "named once" in once.told


def test_with_nothing_new_the_last_look_still_stands(tmp_path, first):
    decide(look(tmp_path, 21), 21, shift=3.0)
    assert "visits" in drift_step.watch_drift(look(tmp_path, 21), first).report.drifted
    later = drift_step.watch_drift(look(tmp_path, 22), first).report
    assert "visits" in later.drifted and later.rows == MEMBERS


def test_nobody_eligible_is_nobody_to_look_at_and_leaves_no_trace(tmp_path, first, monkeypatch):
    at = look(tmp_path, 21)
    monkeypatch.setattr(drift_step, "rows_asked", lambda *asked: week(0).clear())
    assert drift_step.watch_drift(at, first).report.verdict == "nobody to look at"
    assert get_document(at.control, "sketch", "visits/1") is None


def test_what_was_only_declined_was_not_served(tmp_path, first):
    decide(look(tmp_path, 21), 21, eligible=False, shift=3.0)
    assert drift_step.watch_drift(look(tmp_path, 21), first).report.verdict == "nothing served yet"


def test_a_replaced_version_is_judged_by_its_own_decisions(tmp_path, first):
    "Version 2 serves from the second week on, among other people; what it saw is no drift of version 1."
    second = model(2)
    decide(look(tmp_path, 21), 21)
    decide(look(tmp_path, 22), 22, version=2, shift=3.0)
    old, new = (drift_step.watch_drift(look(tmp_path, 22), one).report for one in (first, second))
    assert old.verdict == "quiet" and old.rows == MEMBERS
    assert "visits" in new.drifted and new.rows == MEMBERS
    decide(look(tmp_path, 23), 23)  # rolled back
    back = drift_step.watch_drift(look(tmp_path, 23), first).report
    assert back.verdict == "quiet" and [p[:10] for p in back.current] == [f"{START + 23 * WEEK:%Y-%m-%d}"]


def test_a_gap_of_data_is_neither_drift_nor_an_end(tmp_path, first):
    decide(look(tmp_path, 21), 21)
    assert drift_step.watch_drift(look(tmp_path, 21), first).report.verdict == "quiet"
    for k in (22, 23, 24):
        assert drift_step.watch_drift(look(tmp_path, k), first).report.rows == MEMBERS
    decide(look(tmp_path, 29), 29)
    after = drift_step.watch_drift(look(tmp_path, 29), first).report
    assert after.verdict == "quiet" and after.rows == MEMBERS
    decide(look(tmp_path, 34), 34, shift=3.0)
    assert "visits" in drift_step.watch_drift(look(tmp_path, 34), first).report.drifted


@pytest.mark.parametrize("damage", [
    lambda kept: {**kept, "counts": [kept["counts"][0][:-8], kept["counts"][1]]},
    lambda kept: {**kept, "counts": ["bm90IGNvdW50cw==", kept["counts"][1]]},
    lambda kept: {**kept, "format": 0},
    lambda kept: {**kept, "counts": kept["counts"][:1]},
    lambda kept: {name: value for name, value in kept.items() if name != "periods"},
], ids=["cut off", "not counts", "another format", "a column lost", "no periods"])  # fmt: skip
def test_damaged_sketches_are_counted_anew_from_the_log(tmp_path, first, damage):
    for k in (21, 22):
        decide(look(tmp_path, k), k)
        drift_step.watch_drift(look(tmp_path, k), first)
    at = look(tmp_path, 23)
    whole = get_document(at.control, "sketch", "visits/1")
    put_document(at.control, "sketch", "visits/1", damage(whole))
    decide(at, 23)
    report = drift_step.watch_drift(at, first).report
    assert "counted anew" in report.told and report.rows == 3 * MEMBERS and report.verdict == "quiet"
    mended = get_document(at.control, "sketch", "visits/1")
    assert len(mended["periods"]) == 3 and mended["periods"][:2] == whole["periods"]
    assert "counted anew" not in drift_step.watch_drift(look(tmp_path, 24), first).report.told


def test_growing_history_is_named_once_a_version(tmp_path, first):
    "Ten weeks of tenures that grow as they did: named at the first look, silent after it, and never drift."
    told = []
    for k in range(21, 31):
        decide(look(tmp_path, k), k)
        report = drift_step.watch_drift(look(tmp_path, k), first).report
        assert "tenure" not in report.drifted, report.frame
        told.append("tenure" in report.told.get("named once", ""))
    assert sum(told) == 1 and any(told[:2])
    decide(look(tmp_path, 31), 31, version=2)
    assert "tenure" in drift_step.watch_drift(look(tmp_path, 31), model(2)).report.told["named once"]


def test_month_twelve_costs_what_month_one_costs(tmp_path, first, monkeypatch):
    "Rows read from the log, rows sketched, and the size of what is kept, at each of thirteen looks of four weeks."
    read, sketch, spent = drift_step.read_decisions, drift_step.sketch_frame, {"read": 0, "sketched": 0}

    def counted_read(*asked):
        found = read(*asked)
        spent["read"] += found.height
        return found

    def counted_sketch(lenses, slices, rows, period):
        spent["sketched"] += rows.height
        return sketch(lenses, slices, rows, period)

    monkeypatch.setattr(drift_step, "read_decisions", counted_read)
    monkeypatch.setattr(drift_step, "sketch_frame", counted_sketch)
    months = []
    for month in range(1, 14):
        for k in range(20 + 4 * (month - 1) + 1, 20 + 4 * month + 1):
            decide(look(tmp_path, k), k)
        at = look(tmp_path, 20 + 4 * month)
        spent.update(read=0, sketched=0)
        drift_step.watch_drift(at, first)
        months.append((spent["read"], spent["sketched"]))
    assert all(sketched == 4 * MEMBERS for _, sketched in months), months
    later = {
        rows for rows, _ in months[1:]
    }  # with the last two weeks again: requests may lie in an open period
    assert later == {6 * MEMBERS}, months
    assert len(get_document(at.control, "sketch", "visits/1")["periods"]) == 52 <= drift_step.KEPT
