"Clients that say nothing, begin and stop, or never end, while one who behaves is answered."

import socket
import time
from contextlib import ExitStack, suppress

import httpx
import pytest
from conftest import until
from serving_world import make
from test_service import post, service


def opened(port, stack, said=b""):
    made = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
    made.settimeout(60)
    made.sendall(said)
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("connections")
    make(root, families=("linear",))
    told = {
        "MLSYS_OPEN": "loopback",
        "MLSYS_HEADER_SECONDS": "1",
        "MLSYS_CONNECTIONS": "700",
        "MLSYS_CONNECTIONS_OF_ONE": "600",
    }
    with service(root, **told) as (client, process, port):
        yield client, port


BEGUN = b"POST /v1/churn/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_slow_heads_slow_bodies_and_silent_sockets_keep_nobody_out(world):
    client, port = world
    with ExitStack() as stack:
        slow = [
            opened(port, stack, said)
            for said in (b"", BEGUN, BEGUN + b"Content-Length: 40\r\n\r\n{")
            for _ in range(150)
        ]
        took = []
        for _ in range(20):
            begun = time.monotonic()
            assert post(client, {"customer_id": 13080}).status_code == 200
            took.append(time.monotonic() - begun)
        assert sorted(took)[10] < 1, took  # the others are let go after a second
        ends = [b"".join(iter(lambda one=one: one.recv(4000), b"")) for one in slow]
        assert all(end.startswith(b"HTTP/1.1 408") for end in ends)
        assert {b"head of a request" in end for end in ends[:300]} == {True}
        assert {b"a body arrives within" in end for end in ends[300:]} == {True}
    assert post(client, {"customer_id": 13080}).status_code == 200


def test_one_connection_too_many_is_told_so_and_the_next_one_after_it_is_let_in(world):
    client, port = world

    def refused():  # unless the first of them are let go before the last has come
        with ExitStack() as stack:
            answer = [opened(port, stack) for _ in range(610)][-1].recv(4000)
        return answer if answer.startswith(b"HTTP/1.1 503") else b""

    answer = until(refused)
    assert b"600 connections from one address" in answer and b"retry-after: 1" in answer.lower()

    def let_in():
        with suppress(httpx.HTTPError), httpx.Client(base_url=f"http://127.0.0.1:{port}") as other:
            return post(other, {"customer_id": 13080}).status_code == 200

    until(let_in)


def test_a_head_that_never_ends_and_a_websocket_are_refused(world):
    client, port = world
    with ExitStack() as stack:
        endless = opened(port, stack, BEGUN)
        said = b"X-Filler: " + b"x" * 1000 + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(100_000):
                endless.sendall(said)
        upgrade = b"GET /v1/churn/model HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        socked = opened(
            port, stack, upgrade + b"Sec-WebSocket-Key: aGk=\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        answer = socked.recv(4000)
        assert not answer.startswith(b"HTTP/1.1 101")
    answer = client.get("/healthz")
    assert "server" not in answer.headers and answer.headers["x-content-type-options"] == "nosniff"
