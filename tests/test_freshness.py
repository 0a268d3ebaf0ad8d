"Data that are older than declared: said by the steps, the service and its figures, and refused by nobody."

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import visits_world as world

from mlsys_nb.data.csv_files import SourceError
from mlsys_nb.data.freshness import Freshness
from mlsys_nb.data.lake import Finish
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.data.staging import IngestError
from mlsys_nb.doors.game_day.redelivery import deliver_rows, moved_to
from mlsys_nb.doors.scheduler_daemon import watch_duty
from mlsys_nb.jobs.schedule import entry_from
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import monitor, score, train
from mlsys_nb.loop.step_context import Context, StaleData, older_than_declared, reaching
from mlsys_nb.monitoring.alerts import open_alerts
from mlsys_nb.serving.endpoints import predict
from mlsys_nb.serving.service_readiness import open_service, readiness
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import put_document
from mlsys_nb.system.durable import write_json

(VISITS,) = world.problem.sources
FRESH = replace(world.problem, sources=(replace(VISITS, fresh="36h", retention="400d", sampling=0.5),))
FAST = replace(world.problem, sources=(replace(VISITS, fresh="72h"),))
END = world.START + timedelta(days=50)


@pytest.fixture(scope="module")
def gym(tmp_path_factory: pytest.TempPathFactory) -> Any:
    here = world.make(tmp_path_factory.mktemp("gym"))
    at = Context(here, FRESH, END)
    put_document(at.control, "parity", FRESH.features.hash, {"passed": True, "differing": []})
    ingest_due(at)
    assert train(at, n_trials=3).decision == "promoted"
    return here


def test_a_step_says_that_its_data_are_older_than_declared(gym: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    young = score(Context(gym, FRESH, END + timedelta(hours=12)))
    at = Context(gym, FRESH, END + timedelta(hours=40))
    monkeypatch.setattr(
        "mlsys_nb.loop.step_context.finished", lambda s, name, now: Finish(name, now, at.lake.digests[name])
    )
    old = score(at)
    assert "stale" not in young.outputs and "older than declared" not in young._repr_html_()
    (sentence,) = old.outputs["stale"]
    assert sentence.startswith("visits: the newest row became known") and "within 36.0 hours" in sentence
    assert "Data older than declared" in old._repr_html_()
    seen = monitor(Context(gym, FRESH, END + timedelta(hours=40)))
    assert seen.outputs["stale"] == [sentence] and "Data older than declared" in seen._repr_html_()


def test_a_step_still_needs_data_that_reach_its_moment_and_a_longer_declaration_lets_them(
    tmp_path: Path,
) -> None:
    early = world.rows().filter(pl.col("at") < (world.START + timedelta(days=45)).replace(tzinfo=None))
    here, late = world.make(tmp_path, early), world.START + timedelta(days=60)
    ingest_due(Context(here, world.problem, late))
    with pytest.raises(StaleData, match="a step acts at a moment its data reaches"):
        reaching(Context(here, world.problem, late))
    assert older_than_declared(Context(here, world.problem, late)) == []
    patient = replace(world.problem, sources=(replace(VISITS, fresh="3w"),))
    assert reaching(Context(here, patient, late)).events["visits"].height > 100
    tired = replace(world.problem, sources=(replace(VISITS, fresh="2w"),))
    assert len(older_than_declared(Context(here, tired, late))) == 1


def test_a_model_says_what_was_declared_of_its_sources(gym: Any) -> None:
    model = Context(gym, FRESH, END + timedelta(hours=1)).model
    assert model is not None
    assert model.manifest["sources"] == {"visits": {"fresh": "36h", "retention": "400d", "sampling": 0.5}}
    assert "400d" in model._repr_html_()


def test_the_service_answers_with_a_warning(gym: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlsys_nb.serving.service_readiness.FRESH", 0.0)
    body = orjson.dumps({"member": 7})
    for hours, stale in ((12, False), (40, True)):
        write_json(gym.clock_file, {"now": (END + timedelta(hours=hours)).isoformat()})
        service = open_service(gym, FRESH)
        try:
            status, told = readiness(service)
            answer = asyncio.run(predict(service, body))
            assert status == 200 and bool(told["warnings"]) == stale == ("warnings" in answer), (told, answer)
            assert b'mlsys_source_stale{source="visits"} %.1f' % stale in service.metrics.text()
            if stale:
                assert answer["warnings"] == told["warnings"] and "visits" in answer["warnings"][0]
        finally:
            service.close()
    gym.clock_file.unlink()


def test_an_old_file_that_is_sent_again_makes_no_source_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "It came whole before: neither the steps nor the service take it for news; a file with one new row they do."
    monkeypatch.setattr("mlsys_nb.serving.service_readiness.FRESH", 0.0)
    here = world.make(tmp_path, world.rows().filter(pl.col("at") < END.replace(tzinfo=None)))
    at = Context(here, FRESH, END)
    put_document(at.control, "parity", FRESH.features.hash, {"passed": True, "differing": []})
    ingest_due(at)
    assert train(at, n_trials=2).decision == "promoted"
    rows = moved_to(
        VISITS.contract, at.lake.events["visits"].select("member", "at", "minutes", "branch").tail(9), END
    )
    news, told = moved_to(VISITS.contract, rows, END + timedelta(hours=70)), {}
    deliver_rows(here, FRESH.sources[0], rows, "first", END + timedelta(hours=1))
    for hours, sent in ((60, rows), (70, pl.concat([rows, news]))):
        moment = END + timedelta(hours=hours)
        deliver_rows(here, FRESH.sources[0], sent, f"again{hours}", moment)
        later = Context(here, FRESH, moment)
        with suppress(IngestError):
            ingest_due(later)
        write_json(here.clock_file, {"now": moment.isoformat()})
        service = open_service(here, FRESH)
        told[hours] = (bool(older_than_declared(later)), bool(readiness(service)[1]["warnings"]))
        service.close()
    assert told == {60: (True, True), 70: (False, False)}


def test_one_failing_source_is_named_and_keeps_no_other_from_arriving(tmp_path: Path) -> None:
    here = world.make(tmp_path)
    slow = [FilesSource(f"extra{i}", VISITS.contract, f"extra{i}") for i in range(3)]
    for source in slow[:2]:
        (here.raw / source.folder).mkdir()
    problem = replace(world.problem, sources=(*slow, VISITS))
    with pytest.raises(
        IngestError, match=r"1 of 4 sources of visits .*extra2: .*no folder.*extra0, extra1, visits arrived"
    ):
        ingest_due(Context(here, problem, END))
    from mlsys_nb.data.lake import snapshot
    from mlsys_nb.features.store_sync import open_online

    assert snapshot(here, "visits").rows > 1000
    with open_online(here.online_url) as store:
        assert len(store.batches()) == len(snapshot(here, "visits").batches)
    (here.raw / "extra2").mkdir()
    assert len(ingest_due(Context(here, problem, END)).reports) == 4


@pytest.mark.parametrize("wrong", [{"fresh": "soon"}, {"retention": "1y"}, {"sampling": 0}, {"sampling": 2}])
def test_declarations_that_say_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="got"):
        replace(VISITS, **wrong)


def test_an_alert_opens_when_a_source_is_late_and_closes_when_it_delivers(
    gym: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    "The whole way: declared `fresh=`, looked at by the timekeeper's watch, kept as an open alert, closed by news."
    entry = entry_from("visits.score", "0 6 * * * UTC", {"problems": ["visits"], "jobs": ["score"]})
    from mlsys_nb.doors import scheduler_daemon

    declared = lambda here, name: scheduler_daemon.load_problem(here, name)
    monkeypatch.setattr("mlsys_nb.doors.scheduler_daemon.load_problem", lambda settings, name: FRESH)
    monkeypatch.setattr(
        "mlsys_nb.doors.scheduler_daemon.context",
        lambda name, now, here: Context(here, declared(here, name), instant(now)),
    )

    def late(hours: int) -> list[Any]:
        found = watch_duty(gym, [entry], END + timedelta(hours=hours))
        return [alert for alert in found if alert.kind == "freshness"]

    assert late(12) == []
    (alert,) = late(40)
    assert "visits: the newest row became known" in alert.size and "mlsys ingest visits" in alert.action
    assert alert.severity == "critical" and alert in open_alerts(Context(gym, FRESH, END).control, "visits")
    monkeypatch.setattr("mlsys_nb.doors.scheduler_daemon.load_problem", lambda settings, name: FAST)
    assert late(41) == [], "a declaration that allows it closes the alert"


@pytest.mark.parametrize(
    "age, said",
    [
        (20, "20 minutes ago"),
        (119, "119 minutes ago"),
        (120, "2.0 hours ago"),
        (2_879, "48.0 hours ago"),
        (2_880, "2.0 days ago"),
    ],
)
def test_an_age_is_said_in_the_unit_that_people_would_choose(age: int, said: str) -> None:
    told = str(Freshness("till", END - timedelta(minutes=age), END, timedelta(minutes=15)))
    assert said in told and "within 15 minutes" in told
