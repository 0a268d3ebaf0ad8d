"The service as a process: answers, refusals, fuzz, reload, kill -9, SIGTERM, and what it imports."

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
from caller import client_of, undescribed
from conftest import until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ports import free_port
from serving_world import HOME, JUNE, lake, make

from mlsys_nb.cases.churn import problem
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.problem.population import everybody
from mlsys_nb.release.registry import promote, versions
from mlsys_nb.system.control_tables import open_control

START = """
import os, sys, threading, time
from mlsys_nb.system.settings import load_settings
from mlsys_nb.serving.service import serve
serve(load_settings(root=sys.argv[1], home=sys.argv[2]), "churn", port=int(sys.argv[3]))
"""


@contextmanager
def service(root, **environment):
    port = free_port()
    quick = {**os.environ, "MLSYS_RELOAD_SECONDS": "0.1", "MLSYS_OPEN": "nobody", **environment}
    command = [sys.executable, "-c", START, str(root), str(HOME), str(port)]
    process = subprocess.Popen(command, env=quick, stderr=subprocess.PIPE, cwd=root)
    client = client_of(root, f"http://127.0.0.1:{port}")
    try:
        for _ in range(3000):
            assert process.poll() is None, process.stderr.read().decode()
            try:
                client.get("/healthz")
                break
            except httpx.TransportError:
                time.sleep(0.02)
        yield client, process, port
    finally:
        client.close()
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("service")
    here = make(root)
    with service(root) as (client, process, port):
        yield here, client, process, port


def post(client, body, what="predictions"):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(f"/v1/churn/{what}", content=content, headers={"content-type": "application/json"})


def test_features_online_equal_the_as_of_rows_bit_for_bit(world):
    here, client, _, _ = world
    known = everybody(lake().events, problem.features, [JUNE])
    rows = as_of(problem.features, known, lake().events).head(60)
    for row in rows.to_dicts():
        answer = post(client, {"customer_id": row["customer_id"], "features": True}).json()
        assert answer["features"] == {name: row[name] for name in problem.features.names}
        assert answer["eligible"] == problem.population.eligible.holds(
            row[problem.population.eligible.feature]
        )
    entities = [{"customer_id": c} for c in rows["customer_id"]]
    several = post(client, {"entities": entities, "features": True}).json()["predictions"]
    assert [s["features"] for s in several] == rows.select(problem.features.names).to_dicts()
    assert several[-1]["prediction"] == answer["prediction"]


def test_answers_and_refusals(world):
    here, client, _, _ = world
    ok = post(client, {"customer_id": 13080})
    assert ok.status_code == 200 and ok.json()["version"] == 1 and ok.json()["action"] in ("write", "leave")
    cases = [
        (b'{"customer_id": 1}', 404), (b'{"customer_id": "13080"}', 422), (b'{"customer_id": 13080.0}', 422),
        (b'{"customer_id": true}', 422), (b'{"customer_id": null}', 422), (b"{}", 422), (b"", 400), (b"{", 400),
        (b'{"customer_id": NaN}', 400), (b'{"customer_id": 1e999}', 400), (b'{"customer_id": "\\ud800"}', 400),
        (b'{"customer_id": 13080, "customer_id": 13100}', 400), (b"[" * 3000, 400), (b"[]", 422), (b'"x"', 422),
        (b'{"customer_id": 13080, "extra": 1}', 422), (b'{"customer_id": 99999999999999999999999}', 422),
        (b'{"customer_id": 13080, "request_id": 5}', 422), (b'{"customer_id": 13080, "features": "yes"}', 422),
        (b'{"entities": {}}', 422), (b'{"entities": [1]}', 422), (b'{"entities": [{"customer_id": 13080, "x": 1}]}', 422),
        (b'{"entities": [], "customer_id": 13080}', 422), (b"x" * 70_000, 413),
    ]  # fmt: skip
    for body, status in cases:
        answer = post(client, body)
        if status == 422 and body in (b"[]", b'"x"'):
            status = 400
        assert answer.status_code == status, (body[:80], answer.text)
        error = answer.json()["error"]
        assert (
            set(error) == {"rule", "got", "remedy"}
            and len(answer.content) < 1000
            and "Traceback" not in answer.text
        )
    for path, status in (("/v1/returns/model", 404), ("/nothing", 404), ("/v1/churn/decisions/x%00y", 404),
                         ("/v1/churn/decisions/" + "a" * 3000, 404), ("/v1/churn/predictions", 405)):  # fmt: skip
        answer = client.get(path)
        assert answer.status_code == status and set(answer.json()["error"]) == {"rule", "got", "remedy"}


def test_methods_slashes_and_precise_rules(world):
    _, client, _, _ = world
    for path, method, allowed in (
        ("/v1/churn/predictions", "GET", {"POST"}),
        ("/v1/churn/model", "DELETE", {"GET", "HEAD"}),
        ("/healthz", "POST", {"GET", "HEAD"}),
    ):
        answer = client.request(method, path)
        assert answer.status_code == 405 and set(answer.headers["allow"].split(", ")) == allowed
        assert all(name in answer.json()["error"]["rule"] for name in allowed)
    for path in ("/healthz", "/readyz"):
        assert (client.head(path).status_code, client.head(path).content) == (200, b"")
        answer = client.get(path + "/")
        assert answer.status_code == 404 and set(answer.json()["error"]) == {"rule", "got", "remedy"}
    assert post(client, {"customer_id": 13080}, "predictions/").status_code == 404
    error = post(client, {"customer_id": 2**63}).json()["error"]
    assert "-2**63+1 to 2**63-1" in error["rule"]
    assert post(client, {"customer_id": 13080, "request_id": 5}).json()["error"]["remedy"] == "send text"
    assert post(client, {"decision_id": 5, "outcome": 1}, "outcomes").json()["error"]["remedy"] == "send text"
    assert "501 of them" in post(client, {"entities": [{"customer_id": 13080}] * 501}).json()["error"]["got"]


def test_two_services_on_one_root_agree_on_outcomes(world):
    here, client, _, _ = world
    with service(here.root) as (other, _, _):
        decision_id = post(client, {"customer_id": 13080}).json()["decision_id"]
        said = [
            post(c, {"decision_id": decision_id, "outcome": o}, "outcomes")
            for c, o in ((client, 1), (other, 0))
        ]
        assert [answer.status_code for answer in said] == [200, 409]
        assert "counts: 1" in said[1].json()["error"]["rule"]
        assert post(client, {"decision_id": decision_id, "outcome": 0}, "outcomes").status_code == 409


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()), 
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["customer_id", "entities", "request_id", "features", "decision_id", "outcome"]) | st.text(max_size=3),
        inner, max_size=5), max_leaves=12)  # fmt: skip
bodies = st.binary(max_size=200) | anything.map(lambda v: json.dumps(v).encode("utf-8", "surrogatepass"))


@given(bodies, st.sampled_from(["predictions", "outcomes"]))
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_body_gets_a_5xx(world, body, what):
    answer = post(world[1], body, what)
    assert answer.status_code < 500, (body, answer.text)
    assert answer.status_code == 200 or set(answer.json()["error"]) == {"rule", "got", "remedy"}


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_path_gets_a_5xx(world, text):
    from urllib.parse import quote

    for path in (
        f"/v1/churn/decisions/{quote(text, safe='')}",
        f"/v1/{quote(text, safe='')}/model",
        "/" + quote(text),
    ):
        assert world[1].get(path).status_code < 500


def test_a_repeated_request_gets_the_same_decision(world):
    here, client, _, _ = world
    first = post(client, {"customer_id": 13080, "request_id": "twice"}).json()
    assert post(client, {"customer_id": 13080, "request_id": "twice"}).json() == first
    assert post(client, {"customer_id": 13100, "request_id": "twice"}).status_code == 409
    found = client.get(f"/v1/churn/decisions/{first['decision_id']}").json()
    assert found["prediction"] == first["prediction"] and found["features"]
    assert read_decisions(here, "churn")["request_id"].to_list().count("twice") == 1


def test_outcomes(world):
    _, client, _, _ = world
    decision_id = post(client, {"customer_id": 13080}).json()["decision_id"]
    answers = [post(client, {"decision_id": decision_id, "outcome": o}, "outcomes") for o in (1, 1, 0, 0, 1)]
    assert [a.status_code for a in answers] == [200, 200, 409, 409, 200]
    assert [a.json()["status"] for a in answers if a.status_code == 200] == ["new", "repeated", "repeated"]
    error = answers[2].json()["error"]
    assert (
        "counts: 1" in error["rule"]
        and error["got"] == "outcome 0"
        and '"correction": true' in error["remedy"]
    )
    corrected = {"decision_id": decision_id, "outcome": 0, "correction": True}
    assert post(client, corrected, "outcomes").json()["status"] == "corrected"
    for wrong, status in (({"decision_id": "h1-1-0000000000000000", "outcome": 1}, 404), ({"outcome": 1}, 422),
                          ({"decision_id": decision_id, "outcome": 1.0}, 422)):  # fmt: skip
        assert post(client, wrong, "outcomes").status_code == status


def test_documentation_health_and_metrics(world):
    _, client, _, _ = world
    described = client.get("/openapi.json").json()
    assert {"200", "400", "404", "409", "413", "422", "503"} <= set(
        described["paths"]["/v1/churn/predictions"]["post"]["responses"]
    )
    page = client.get("/docs").text
    assert page.count("<script") == 1 and "https://" not in page
    assert page.count("http://") == page.count(str(client.base_url).rstrip("/")), "no address but its own"
    answered = post(client, {"customer_id": 13080, "features": True, "request_id": "described"}).json()
    kept = client.get(f"/v1/churn/decisions/{answered['decision_id']}").json()
    assert undescribed(described, "churn", answered, kept) == set()
    said = client.get("/openapi.json").json()["paths"]["/v1/churn/outcomes"]["post"]
    assert "409" in said["responses"] and "correction" in page and "same service process" in page
    assert client.get("/readyz").json()["problems"]["churn"]["version"] == 1 and client.get(
        "/healthz"
    ).json() == {"alive": True}
    figures = client.get("/metrics").text
    assert "mlsys_model_info" in figures and "mlsys_request_seconds_bucket" in figures
    assert client.get("/v1/churn/model").json()["feature_set_hash"] == problem.features.hash


def test_slow_and_endless_bodies(tmp_path):
    make(tmp_path)
    with service(tmp_path, MLSYS_HEADER_SECONDS="1", MLSYS_OPEN="loopback") as (client, _, port):
        for begin in (b"Content-Length: 50\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as slow:
                slow.settimeout(60)
                slow.sendall(
                    b"POST /v1/churn/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    + begin
                )
                assert slow.recv(4000).startswith(b"HTTP/1.1 408")
        with socket.create_connection(("127.0.0.1", port)) as huge:
            huge.sendall(
                b"POST /v1/churn/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 9999999999\r\n\r\n"
            )
            assert huge.recv(4000).startswith(b"HTTP/1.1 413")
        assert post(client, {"customer_id": 13080}).status_code == 200


def test_champion_is_exchanged_and_a_damaged_one_refused(tmp_path):
    here = make(tmp_path, champion=None)
    control, said = open_control(here), {"at": JUNE, "actor": "ada", "reason": "test"}
    with service(tmp_path) as (client, _, _):
        assert client.get("/readyz").status_code == 503
        assert post(client, {"customer_id": 13080}).status_code == 503
        promote(control, "churn", 1, expected_epoch=0, **said)
        assert until(lambda: client.get("/readyz").status_code == 200)
        before = post(client, {"customer_id": 13080}).json()
        second = versions(control, here, "churn")[1]
        good = (second.path / "value.npy").read_bytes()
        (second.path / "value.npy").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        promote(control, "churn", 2, expected_epoch=1, **said)
        assert until(lambda: "was refused" in client.get("/readyz").json()["problems"]["churn"]["detail"])
        assert "mlsys_champion_refused" in client.get("/metrics").text
        after = post(client, {"customer_id": 13080}).json()
        assert (after["version"], after["prediction"]) == (1, before["prediction"])
        (second.path / "value.npy").write_bytes(good)
        assert until(lambda: post(client, {"customer_id": 13080}).json()["version"] == 2)


def test_kill_loses_no_acknowledged_decision(tmp_path):
    here = make(tmp_path)
    told: list[str] = []
    for _ in range(2):
        with service(tmp_path) as (client, process, port):
            stop = threading.Event()

            def ask(port=port, stop=stop):
                with client_of(tmp_path, f"http://127.0.0.1:{port}") as mine:
                    while not stop.is_set():
                        try:
                            told.append(post(mine, {"customer_id": 13080}).json()["decision_id"])
                        except (httpx.HTTPError, ValueError):
                            return

            threads = [threading.Thread(target=ask) for _ in range(4)]
            [t.start() for t in threads]
            many = len(told) + 40
            until(lambda many=many: len(told) > many)
            os.kill(process.pid, signal.SIGKILL)
            stop.set()
            [t.join() for t in threads]
    kept = read_decisions(here, "churn")["decision_id"].to_list()
    assert len(told) > 50 and set(told) <= set(kept) and len(set(kept)) == len(kept)


def test_sigterm_finishes_and_what_the_process_imports(tmp_path):
    here = make(tmp_path)
    with service(tmp_path) as (client, process, _):
        post(client, {"customer_id": 13080})
        maps = open(f"/proc/{process.pid}/maps").read()
        assert not [m for m in ("sklearn", "scipy", "matplotlib", "pandas", "zmq") if f"/{m}/" in maps]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert b"Traceback" not in process.stderr.read()
    assert read_decisions(here, "churn").height == 1


def test_each_term_of_durability_is_said_and_a_kill_loses_nothing_in_any(tmp_path):
    here = make(tmp_path)
    told = []
    for durable in ("before answer", "within 5 ms", "by the OS"):
        with service(tmp_path, MLSYS_DURABLE=durable) as (client, process, _):
            for i in range(40):
                answer = post(client, {"customer_id": 13080, "request_id": f"{durable} {i // 2}"}).json()
                assert answer["durable"] == durable
                told.append(answer["decision_id"])
            many = post(client, {"entities": [{"customer_id": 13080}, {"customer_id": 13100}]}).json()
            told += [one["decision_id"] for one in many["predictions"]]
            os.kill(process.pid, signal.SIGKILL)
    assert len(told) == 126 and len(set(told)) == 66
    assert sorted(set(told)) == sorted(read_decisions(here, "churn")["decision_id"])


def test_workers_share_a_port_and_one_that_is_killed_is_replaced(tmp_path):
    here = make(tmp_path)
    with service(tmp_path, MLSYS_WORKERS="2") as (client, process, port):
        told, by_worker = [], set()
        for _ in range(200):
            with client_of(tmp_path, f"http://127.0.0.1:{port}") as mine:
                told.append(post(mine, {"customer_id": 13080}).json()["decision_id"])
            by_worker.add(told[-1].partition("-")[0])
            if len(by_worker) == 2 and len(told) >= 20:
                break
        assert len(by_worker) == 2 and len(set(told)) == len(told)
        counted = lambda: [
            float(line.rpartition(" ")[2])
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("mlsys_predictions_total")
        ]
        # the worker that is not asked tells what it counted when it next looks at its champions
        assert until(lambda: sum(counted()) == len(told))
        children = [int(c) for c in open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()]
        workers = [c for c in children if b"spawn_main" in open(f"/proc/{c}/cmdline", "rb").read()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        killed, waited = time.monotonic(), []
        while time.monotonic() - killed < 180:
            with client_of(tmp_path, f"http://127.0.0.1:{port}") as mine:
                try:
                    begun = time.monotonic()
                    told.append(post(mine, {"customer_id": 13080}).json()["decision_id"])
                    waited.append(time.monotonic() - begun)
                except httpx.TransportError:
                    pass
            by_worker.add(told[-1].partition("-")[0])
            if len(by_worker) == 3:
                break
            time.sleep(0.02)
        assert len(by_worker) == 3 and waited
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    kept = read_decisions(here, "churn")["decision_id"].to_list()
    assert set(told) <= set(kept) and len(set(kept)) == len(kept)


def test_workers_end_when_whoever_looks_after_them_is_killed(tmp_path):
    make(tmp_path, families=("linear",))
    with service(tmp_path, MLSYS_WORKERS="2") as (client, process, _):
        children = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
        os.kill(process.pid, signal.SIGKILL)
        assert until(lambda: not any(os.path.exists(f"/proc/{child}/exe") for child in children))


def test_imports_of_the_service():
    code = (
        "import sys; from mlsys_nb.serving.service import _application, _Life; "
        "from mlsys_nb.system.settings import load_settings; "
        "_application(_Life(load_settings())); "
        "print([m for m in ('mlflow', 'papermill', 'jupyter_client', 'IPython', 'nbconvert', 'sklearn', 'pandas', "
        "'matplotlib', 'optuna', 'nbdev', 'fastcore') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOME)
    assert done.stdout.strip() == "[]"


def test_what_is_wrong_with_the_system_is_told_in_one_sentence(tmp_path):
    from mlsys_nb.serving.service import running
    from mlsys_nb.system.settings import MlsysError

    here = make(tmp_path)
    log = here.decisions / "churn" / "http" / "000001.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"00000000 []\n")
    with pytest.raises(MlsysError, match="of format 1"), running(here, "churn"):
        pass
    log.unlink()
    with pytest.raises(MlsysError, match="known"), running(here, "nothing"):
        pass
    with running(here, "churn") as url:
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_batch_scores_the_same_bits_as_the_service(tmp_path):
    from mlsys_nb.release.fallback import last_sound
    from mlsys_nb.serving.population_scoring import score_batch

    here = make(tmp_path, families=("boosting",))
    batch = score_batch(here, problem, last_sound(open_control(here), here, problem).model, JUNE, lake())
    assert score_batch(
        here, problem, last_sound(open_control(here), here, problem).model, JUNE, lake()
    ).already
    with service(tmp_path) as (client, _, _):
        for row in batch.frame.head(40).to_dicts():
            answer = post(client, {"customer_id": row["customer_id"], "features": True}).json()
            assert (answer["prediction"], answer["action"]) == (row["score"], row["action"])
            assert answer["features"] == {name: row[name] for name in problem.features.names}
    logged = read_decisions(here, "churn")
    both = logged.filter(logged["customer_id"] == batch.frame["customer_id"][0])
    assert both["source"].sort().to_list() == ["batch", "http"] and both["score"].n_unique() == 1
