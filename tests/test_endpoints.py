"What requests are answered with, without a socket: the order of refusals, disks that fail, stores that are gone."

import asyncio
import json
import shutil
import threading
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
from serving_world import JUNE, make

from mlsys_nb.cases.churn import problem
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.log_segments import log_folder, place_of, segment_path
from mlsys_nb.release.registry import promote, versions
from mlsys_nb.serving.access_control import Caller
from mlsys_nb.serving.endpoints import contradictions, decision, outcome, predict
from mlsys_nb.serving.error_responses import Refusal
from mlsys_nb.serving.service_readiness import open_service, readiness
from mlsys_nb.system.control_tables import alert_rows, open_control

ONE = b'{"customer_id": 13080}'
SHOP = Caller("shop", ("predict", "outcome"))


def ask(coroutine):
    return asyncio.run(coroutine)


def refused(coroutine):
    with pytest.raises(Refusal) as e:
        ask(coroutine)
    return e.value


@contextmanager
def service_of(here):
    service = open_service(here, problem)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def here(tmp_path):
    return make(tmp_path)


def test_without_a_champion_every_prediction_is_told_to_come_again(tmp_path):
    with service_of(make(tmp_path, champion=None)) as service:
        said = refused(predict(service, ONE))
        assert (said.status, said.retry_after) == (503, 5) and "no champion yet" in said.got
        assert readiness(service)[0] == 503


def test_a_prediction_is_counted_logged_and_repeated(here):
    with service_of(here) as service:
        body = json.dumps({"customer_id": 13080, "request_id": "r"}).encode()
        first = ask(predict(service, body))
        assert ask(predict(service, body)) == first
        assert refused(predict(service, body.replace(b"13080", b"13100"))).status == 409
        text = service.metrics.text().decode()
        assert (
            f'mlsys_predictions_total{{action="{first["action"]}",problem="churn",version="1"}} 1.0' in text
        )
        assert ask(decision(service, first["decision_id"]))["request_id"] == "r"
        assert read_decisions(here, "churn").height == 1


def test_one_lookup_and_one_parse_for_each_prediction(here):
    "The walk of a request: what was parsed twice and read twice is parsed once and read once."
    with service_of(here) as service:
        reader, calls = service.predictor.reader, []

        class Counting:
            features = reader.features

            def read(self, keys, moment, *more):
                calls.append("read")
                return reader.read(keys, moment, *more)

        service.reloader.predictor = replace(service.predictor, reader=Counting())
        with patch("mlsys_nb.serving.request_guard._DECODER") as strict:
            strict.decode.side_effect = AssertionError("parsed twice")
            ask(predict(service, ONE))
            assert refused(predict(service, b'{"customer_id": 1}')).status == 404
        assert calls == ["read", "read"]


def test_fault_14_a_stall_longer_than_the_deadline(here):
    "It ended the only commit thread: every later prediction was 503 while /readyz said ready."
    with service_of(here) as service:
        go, began = threading.Event(), threading.Event()

        def stall(handle, path):
            began.set()
            go.wait(60)

        async def given_up(body):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await predict(service, body)

        async def both():
            await asyncio.gather(given_up(ONE), given_up(b'{"customer_id": 13080, "request_id": "r"}'))

        with patch("mlsys_nb.system.append_only_file.sync_file", stall):
            ask(both())
            assert began.wait(60)
            assert "has not finished a write" in service.log.trouble(patience=0.0)
            go.set()
            ask(predict(service, ONE))
        assert readiness(service)[0] == 200
        again = ask(predict(service, b'{"customer_id": 13080, "request_id": "r"}'))
        assert ask(decision(service, again["decision_id"]))["request_id"] == "r"
        assert read_decisions(here, "churn")["request_id"].to_list().count("r") == 1


def test_fault_15_a_full_disk_is_a_503_and_unready_until_there_is_room(here):
    with service_of(here) as service:
        for deed in ("open_file", "put", "sync_file"):
            full = OSError(28, "No space left on device")
            with patch(f"mlsys_nb.system.append_only_file.{deed}", side_effect=full):
                if deed == "open_file":
                    service.log._files.let_go()
                said = refused(predict(service, ONE))
                assert (said.status, said.retry_after) == (503, 5) and "No space" in said.got
                assert readiness(service)[0] == 503
            assert ask(predict(service, ONE))["decision_id"]
            assert readiness(service)[0] == 200


def test_fault_15_one_flipped_bit_harms_one_decision(here):
    with service_of(here) as service:
        ids = [ask(predict(service, ONE))["decision_id"] for _ in range(3)]
    number, place = place_of(ids[1])
    path = segment_path(log_folder(here, "churn"), number)
    content = bytearray(path.read_bytes())
    content[place + 40] ^= 1
    path.write_bytes(bytes(content))
    with service_of(here) as service:  # it starts
        assert ask(decision(service, ids[0]))["decision_id"] == ids[0]
        assert ask(decision(service, ids[2]))["decision_id"] == ids[2]
        assert refused(decision(service, ids[1])).status == 410
        assert ask(predict(service, ONE))["decision_id"] not in ids
    assert read_decisions(here, "churn").height == 3


def test_fault_15_a_deleted_log_is_said_and_its_ids_are_not_given_again(here):
    with service_of(here) as service:
        gone = ask(predict(service, ONE))["decision_id"]
    segment_path(log_folder(here, "churn"), place_of(gone)[0]).unlink()
    with service_of(here) as service:
        (warning,) = readiness(service)[1]["warnings"]
        assert "it is missing" in warning
        new = ask(predict(service, ONE))["decision_id"]
        assert place_of(new)[0] > place_of(gone)[0]
        assert refused(decision(service, gone)).status == 404


def test_fault_15_a_damaged_champion_at_the_start(here):
    "The last sound version serves, and log, readiness, metric and alert say so, until the package is restored."
    control = open_control(here)
    promote(control, "churn", 2, expected_epoch=1, at=JUNE, actor="ada", reason="test")
    second = versions(control, here, "churn")[1]
    good = (second.path / "value.npy").read_bytes()
    (second.path / "value.npy").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with service_of(here) as service:
        status, shown = readiness(service)
        assert (status, shown["version"]) == (200, 1) and "version 2 is refused" in shown["warnings"][0]
        assert ask(predict(service, ONE))["version"] == 1
        assert b'mlsys_champion_refused{problem="churn"} 1.0' in service.metrics.text()
        (row,) = alert_rows(control, "churn", "open")
        assert "version 2 is refused" in row.content["size"]
        (second.path / "value.npy").write_bytes(good)
        service.reloader.look()
        assert ask(predict(service, ONE))["version"] == 2
        assert b'mlsys_champion_refused{problem="churn"} 0.0' in service.metrics.text()
        assert alert_rows(control, "churn", "open") == [] and readiness(service)[1]["warnings"] == []


def test_fault_24_a_store_that_cannot_be_read_is_not_ready(here):
    with service_of(here) as service:

        class Broken:
            features = service.predictor.reader.features

            def read(self, keys, moment, *more):
                raise OSError(5, "Input/output error")

            read_many = read

        service.reloader.predictor = replace(service.predictor, reader=Broken())
        status, shown = readiness(service)
        assert (status, shown["ready"]) == (503, False) and "Input/output" in shown["detail"]
        for body in (ONE, b'{"entities": [{"customer_id": 13080}]}'):
            said = refused(predict(service, body))
            assert (said.status, said.retry_after) == (503, 5)


def test_fault_15_a_store_that_cannot_be_opened_does_not_keep_the_service_from_saying_so(here):
    shutil.rmtree(here.online)
    here.online.write_bytes(b"not a folder")
    with service_of(here) as service:
        status, shown = readiness(service)
        assert (status, shown["ready"]) == (503, False) and "refused" in shown["detail"]
        assert refused(predict(service, ONE)).status == 503


def test_fault_24_contradictions_are_settled_by_a_correction(here):
    with service_of(here) as service:
        made = ask(predict(service, ONE))["decision_id"]

        def post(said, **more):
            body = json.dumps({"decision_id": made, "outcome": said, **more}).encode()
            return ask(outcome(service, body, SHOP))

        assert post(1)["status"] == "new"
        with pytest.raises(Refusal, match="counts: 1"):
            post(0)
        assert [c["contradicted_by"] for c in ask(contradictions(service))["contradictions"]] == [0]
        assert post(0, correction=True)["status"] == "corrected"
        assert ask(contradictions(service))["contradictions"] == []
        assert (
            refused(outcome(service, b'{"decision_id": "h9-9-0000000000000000", "outcome": 1}', SHOP)).status
            == 404
        )
