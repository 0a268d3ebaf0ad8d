"What the service tells of itself: JSON lines and spans that lead to the decision, and never say whom it was about."

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from caller import client_of
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from ports import free_port
from serving_world import make
from test_deploy import declared

from mlsys_nb.serving.service import running
from mlsys_nb.system.settings import load_settings

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans():
    "A collector of its own: what is posted to /v1/traces as OTLP."
    found = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = ExportTraceServiceRequest()
            asked.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/traces":
                found.extend(s for r in asked.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()
    thread.join()


def test_lines_and_spans_lead_to_the_decision_and_not_to_the_person(tmp_path, spans):
    address, found = spans
    home, port = tmp_path / "site", free_port()
    declared(home, port=port)
    told = f"[observe]\nlog = json\nrequests = all\ntraces = {address}\n"
    (home / "settings.ini").write_text((home / "settings.ini").read_text() + told)
    make(home / "state", families=("linear",))
    plain = {n: v for n, v in os.environ.items() if not n.startswith("MLSYS_")} | {"MLSYS_HOME": str(home)}
    words = [sys.executable, "-c", "from mlsys_nb.doors.cli import main; raise SystemExit(main())", "serve"]
    said = (tmp_path / "said").open("w+")
    process = subprocess.Popen([*words, "--root", str(home / "state")], env=plain, stderr=said)
    try:
        with client_of(home / "state", f"http://127.0.0.1:{port}") as client:
            for _ in range(1200):
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
            heads = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "9f3c"}
            answer = client.post("/v1/churn/predictions", json={"customer_id": 13080}, headers=heads).json()
            assert client.post("/v1/churn/predictions", json={"customer_id": 424242424}).status_code == 404
            assert client.post("/v1/churn/predictions", json={"customer_id": "Elm Street"}).status_code == 422
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 130, 143, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
    said.seek(0)
    text = said.read()
    rows = [
        json.loads(line) for line in text.splitlines() if not line.startswith(("...", "stopped;"))
    ]  # what the command says itself
    assert all({"time", "level", "from", "message"} <= row.keys() for row in rows), text
    asked = [row for row in rows if row.get("route") == "predictions"]
    assert [row["status"] for row in asked] == [200, 404, 422]
    assert (asked[0]["decision_id"], asked[0]["request_id"]) == (answer["decision_id"], "9f3c")
    assert any("listening" in row["message"] for row in rows)
    key = (home / "state/data/key").read_text().strip()
    for secret in ("13080", "424242424", "Elm", key, "authorization"):
        assert secret not in text, secret
        assert not [s for s in found if secret in str(s)], secret
    whole = [s for s in found if s.name == "POST predictions"]
    assert len(whole) == 3 and not [s for s in found if "healthz" in s.name]
    mine = next(s for s in whole if s.trace_id.hex() == TRACE)
    facts = {a.key: a.value.string_value or a.value.int_value for a in mine.attributes}
    assert facts["mlsys.decision_id"] == answer["decision_id"] and facts["http.response.status_code"] == 200
    stages = [s for s in found if s.parent_span_id == mine.span_id]
    assert [s.name for s in sorted(stages, key=lambda s: s.start_time_unix_nano)] == ["body", "work", "send"]


@pytest.mark.parametrize("slow, lines", [("0", 1), ("100", 0)])
def test_a_slow_request_is_told_once_with_its_decision_on_the_shortest_way_too(tmp_path, caplog, slow, lines):
    here = replace(make(tmp_path, families=("linear",)), observe={"slow": slow})
    with caplog.at_level(logging.INFO, "mlsys_nb.serving.service_logging"), running(here, "churn") as url:
        with client_of(tmp_path, url) as client:
            answer = client.post("/v1/churn/predictions", json={"customer_id": 13080}).json()
    told = [
        r.facts
        for r in caplog.records
        if r.name == "mlsys_nb.serving.service_logging" and r.facts["route"] == "predictions"
    ]
    assert len(told) == lines
    assert all(t["decision_id"] == answer["decision_id"] and t["event"] == "slow" for t in told)
    assert "13080" not in caplog.text


def test_what_cannot_be_meant_stops_the_service_before_it_listens(tmp_path):
    home = declared(tmp_path / "site")
    with (
        pytest.raises(ValueError, match="observe"),
        running(replace(load_settings(home=home), observe={"log": "xml"}), "churn"),
    ):
        pass
