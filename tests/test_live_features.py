"Features change on a live service: a window added, a feature dropped, the order turned, a column and a key added, and the way back."

import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import httpx
import polars as pl
import pytest
import visits_world as world
from conftest import until
from serving_world import JUNE, MOMENTS, lake, lines, make

from mlsys_nb.cases.churn import bought, problem
from mlsys_nb.cases.churn import lines as events
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.features import Events
from mlsys_nb.features import aggregations as f
from mlsys_nb.features.feature_set import FeatureSet
from mlsys_nb.features.feature_store import open_online
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_sync import refill
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.train import fit
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import score, train
from mlsys_nb.loop.step_context import Context
from mlsys_nb.loop.training_serving_skew import served_again
from mlsys_nb.problem.criterion import Criterion
from mlsys_nb.problem.dataset import build_dataset as rows_of
from mlsys_nb.problem.population import everybody
from mlsys_nb.release.package import build
from mlsys_nb.release.registry import champion, promote, register, rollback
from mlsys_nb.serving.population_scoring import score_batch
from mlsys_nb.serving.service import running
from mlsys_nb.system.control_tables import get_document, open_control, put_document
from mlsys_nb.system.durable import write_json

SAID = {"at": JUNE, "actor": "ada", "reason": "test"}


def changed():
    "The problem as somebody declares it later: other windows, another order, a new key of the events."
    kept = [feature for feature in problem.features.features if feature.name != "cancelled_90d"]
    added = f.count_distinct(events, "invoice", "14d", where=bought).named(
        "orders_14d", meaning="Orders in 14 days"
    )
    codes = f.mode(events, "stock_code", "90d").named("favourite", meaning="The most frequent product")
    return replace(problem, features=FeatureSet("churn", (codes, added, *reversed(kept))))


def trained(declared):
    dataset = rows_of(declared, lake(), MOMENTS, JUNE)
    return build(fit("linear", dataset.frame, declared.features.names, rule=declared.rule), dataset)


def history(declared, customers):
    rows = as_of(declared.features, everybody(lake().events, declared.features, [JUNE]), lake().events)
    return {row["customer_id"]: row for row in rows.filter(pl.col("customer_id").is_in(customers)).to_dicts()}


def test_features_change_while_the_service_runs_and_change_back(tmp_path):
    here = replace(make(tmp_path, families=("linear",)), reload_seconds=0.05)
    control, later = open_control(here), changed()
    customers = everybody(lake().events, problem.features, [JUNE])["customer_id"].head(12).to_list()
    with running(here, "churn") as url, httpx.Client(base_url=url) as client:

        def now():
            return client.get("/readyz").json()["problems"]["churn"]

        def served(version, declared):
            expected = history(declared, customers)
            for customer in customers:
                answer = client.post(
                    "/v1/churn/predictions", json={"customer_id": customer, "features": True}
                )
                shown = answer.json()
                assert shown["version"] == version
                assert shown["features"] == {
                    name: expected[customer][name] for name in declared.features.names
                }

        served(1, problem)
        second = register(control, here, trained(later), "test", JUNE)
        promote(control, "churn", second.version, expected_epoch=1, **SAID)
        ready = until(lambda: (r := now()) and (r["version"] == 2 or r["warnings"]) and r)
        if ready["version"] == 1:  # the store lacks something: the old version serves, and the reason is said
            assert "it lacks" in ready["warnings"][0] and ready["ready"]
            served(1, problem)
        with open_online(here.online) as store:
            store.keep(later.features)
            refill(store, events, lines(), {})
        until(lambda: now()["version"] == 2)
        served(2, later)
        rollback(control, champion(control, "churn"), check=lambda version: None, **SAID)
        until(lambda: now()["version"] == 1)
        served(1, problem)
    hashes = read_decisions(here, "churn").group_by("version").agg(pl.col("feature_set_hash").unique())
    assert dict(hashes.sort("version").iter_rows()) == {1: [problem.features.hash], 2: [later.features.hash]}


def test_a_batch_of_an_older_version_reads_that_version_s_features(tmp_path):
    from mlsys_nb.release.package import open_package

    here = make(tmp_path, families=(), champion=None)
    old = replace(open_package(trained(problem)), version=1)
    scored = score_batch(here, changed(), old, JUNE, lake())
    assert scored.frame["feature_set_hash"].unique().to_list() == [problem.features.hash]
    assert "cancelled_90d" in scored.frame.columns and "orders_14d" not in scored.frame.columns


# --- the whole loop beside a service that is asked all the time

FIRST = world.START + 50 * world.DAY
plain = Events("visits", keys={"member": "int"}, time="at", columns={"branch": "text"})
active = f.count(plain, "21d").named("visits_21d")
recency = f.time_since_last(plain).named("days_since")
narrow = replace(
    world.problem,
    features=FeatureSet("visits", (recency, active, f.last(plain, "branch").named("branch"))),
)
later_on = replace(
    world.problem,  # other order, another name, a window, a column and a choice of keys more; one feature less
    features=FeatureSet(
        "visits",
        (
            f.sum(world.visits, "minutes", "14d").named("minutes_14d"),
            f.count(world.visits, "21d", by=("member",)).named("recently"),
            world.branch,
            f.count(world.visits, "lifetime").named("visits"),
        ),
    ),
    population=replace(world.problem.population, eligible=Criterion("recently", ">=", 1)),
    rule=Rule.feature("recently", "unlikelier", "who came lately comes again"),
)


def here_is(settings, day=0, declared=narrow):
    "The clock of the system, and a step's place at that moment."
    now = FIRST + timedelta(days=day)
    write_json(settings.clock_file, {"now": now.isoformat()})
    found = Context(settings, declared, now)
    for features in (narrow.features, later_on.features):  # proved elsewhere, and slow
        if get_document(found.control, "parity", features.hash) is None:
            put_document(found.control, "parity", features.hash, {"passed": True, "differing": []})
    return found


@pytest.fixture
def gym(tmp_path):
    made = replace(
        world.make(tmp_path), problems={"visits": "test_live_features:narrow"}, reload_seconds=0.05
    )
    ingest_due(here_is(made))
    assert train(here_is(made), n_trials=2).decision == "promoted"
    assert score(here_is(made)).batch.rows > 100
    return made


@contextmanager
def visitors(address, members):
    "Somebody asks all the time; what came of it."
    answers, gone, trouble = [], threading.Event(), []

    def ask():
        with httpx.Client(base_url=address, timeout=60) as client:
            while not gone.is_set():
                for member in members:
                    body = {"member": member, "features": True}
                    try:
                        found = client.post("/v1/visits/predictions", json=body)
                    except httpx.HTTPError as e:
                        trouble.append(repr(e))
                        return
                    answers.append((found.status_code, found.json()))
                    gone.wait(0.01)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        gone.set()
        thread.join()
    assert not trouble


def settled(answers, version):
    "Until that version has answered a while."
    start = len(answers)
    until(lambda: [a.get("version") for _, a in answers[start:]][-20:] == 20 * [version])


def test_the_service_is_never_down_while_features_change_and_change_back(gym):
    at = here_is(gym, 11)
    said = {**SAID, "at": at.now}
    ingest_due(at)
    known = everybody(at.lake.events, narrow.features, [at.now])["member"].head(24).to_list()
    with (
        running(gym, "visits") as address,
        visitors(address, known) as answers,
    ):
        settled(answers, 1)
        ingest_due(here_is(gym, 11, later_on))
        done = train(here_is(gym, 11, later_on), n_trials=2)
        assert done.candidate.comparison is not None, done.reason  # judged: each on its own features
        settled(answers, 1)
        second = done.release.version
        promote(at.control, "visits", second, expected_epoch=1, **said)
        settled(answers, second)
        rollback(at.control, champion(at.control, "visits"), check=lambda version: None, **said)
        settled(answers, 1)
    assert {status for status, _ in answers} == {200}
    served = {}
    for version, declared in ((1, narrow), (second, later_on)):
        keys = everybody(at.lake.events, declared.features, [at.now])
        rows = as_of(declared.features, keys, at.lake.events).to_dicts()
        served[version] = {
            row["member"]: {name: row[name] for name in declared.features.names} for row in rows
        }
    for _, answer in answers:
        member, version = answer["entity"]["member"], answer["version"]
        assert answer["features"] == served[version][member]
        recent = "visits_21d" if version == 1 else "recently"
        assert answer["eligible"] == (answer["features"][recent] >= 1)


def test_fault_a_training_with_other_features_was_taken_for_done(gym):
    "On a clock that stands still, as a demo leaves it, the changed problem got the answer of the old one."
    before, again = train(here_is(gym), n_trials=2), train(here_is(gym, 0, later_on), n_trials=2)
    assert before.release.version == 1 and before.candidate is None
    assert again.release is None or again.release.version > before.release.version


def test_fault_a_renamed_feature_decides_whom_an_older_version_may_score(gym):
    "Eligibility was read under the installed name, which the older version's features do not have."
    declared = here_is(gym, 1, later_on)
    ingest_due(declared)
    batch = score(declared).batch
    assert batch.rows == score(here_is(gym, 1)).batch.rows > 100
    assert "visits_21d" in batch.frame.columns


def test_fault_a_changed_rule_changes_months_that_are_past(gym):
    ingest_due(here_is(gym, 11))
    now, later = (backtest(here_is(gym, 11, declared)).frame for declared in (narrow, later_on))
    assert now.equals(later) and now.height == 3


def test_fault_parity_forgets_what_an_older_version_served(gym):
    seen = served_again(here_is(gym, 0, later_on))
    assert seen.rows > 100 and seen.share == 1
    assert list(seen.equal) == list(narrow.features.names)
