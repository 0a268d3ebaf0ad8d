"A service that is told to stop finishes what has begun; one that is given a certificate speaks TLS and nothing else."

import shutil
import signal
import socket
import ssl
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace

import httpx
import pytest
from caller import head
from conftest import until
from serving_world import make
from test_service import post, service

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.serving.service import ServiceError, running, serve

BODY = b'{"customer_id": 13080}'


def listens(port):
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def test_what_has_begun_is_answered_after_sigterm_and_nothing_new_is(tmp_path):
    here = make(tmp_path, families=("linear",))
    heads = "".join(f"{name}: {value}\r\n" for name, value in head(tmp_path).items())
    begun = f"POST /v1/churn/predictions HTTP/1.1\r\nHost: localhost\r\n{heads}Content-Length: {len(BODY)}\r\n\r\n".encode()
    patient = {"MLSYS_HEADER_SECONDS": "60", "MLSYS_DEADLINE_SECONDS": "60"}
    with service(tmp_path, **patient) as (client, process, port), ExitStack() as stack:
        assert post(client, {"customer_id": 13080}).status_code == 200
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(5)]
        for line in lines:
            line.sendall(begun + BODY[:7])
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        until(lambda: not listens(port))
        for line in lines:
            line.sendall(BODY[7:])
        answers = [line.recv(4000) for line in lines]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers), answers
        assert process.wait(90) in (0, -signal.SIGTERM)
    assert read_decisions(here, "churn").height == 6


def test_with_a_certificate_it_speaks_tls(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    here = make(tmp_path, families=("linear",))
    for name in ("one", "other"):
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]  # fmt: skip
        subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    one = {"certificate": str(tmp_path / "one.pem"), "private_key": str(tmp_path / "one.key")}
    with running(replace(here, open="nobody", **one), "churn") as url:
        trusted = ssl.create_default_context(cafile=one["certificate"])
        there = url.replace("http://", "https://")
        answer = httpx.post(
            f"{there}/v1/churn/predictions", content=BODY, headers=head(tmp_path), verify=trusted
        )
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url.replace('https', 'http')}/healthz", timeout=5)
    for wrong in (
        {**one, "private_key": str(tmp_path / "other.key")},
        {**one, "certificate": "nothing.pem"},
        {**one, "private_key": ""},
    ):
        with pytest.raises(ServiceError, match="TLS needs the files"):
            serve(replace(here, **wrong), "churn", port=0)
