"The straight line and the long way: the same bits, the same records, the same refusals, whatever way a request takes."

import json
import socket
from dataclasses import replace
from unittest.mock import patch

import pytest
from caller import head
from serving_world import make

from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.serving import straight
from mlsys_nb.serving.service import running
from mlsys_nb.system import disk

PATH = "/v1/churn/predictions"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    here = replace(make(tmp_path_factory.mktemp("straight")), durable="within 5 ms")
    heads = head(here.root)
    with running(here, "churn") as url:
        yield here, int(url.rpartition(":")[2]), heads


def request(heads, body, path=PATH, version="1.1", **more):
    said = {"host": "127.0.0.1", **heads, "content-length": len(body), **more}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in said.items())
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode() + body


def answers(line, n=1):
    "So many whole answers of a connection: status and body."
    found, came = [], b""
    while len(found) < n:
        top, cut, rest = came.partition(b"\r\n\r\n")
        size = int(top.lower().partition(b"content-length:")[2].partition(b"\r")[0] or 0) if cut else 0
        if cut and len(rest) >= size:
            if not top.startswith(b"HTTP/1.1 100"):
                found.append((int(top.split()[1]), json.loads(rest[:size]), top))
            came = rest[size:]
            continue
        more = line.recv(65_536)
        assert more, came
        came += more
    return found


def asked(port, *pieces, n=1):
    "What a connection is answered to some pieces, each a packet of its own."
    with socket.create_connection(("127.0.0.1", port), 20) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i, piece in enumerate(pieces):
            if i:
                import time

                time.sleep(0.02)
            line.sendall(piece)
        return answers(line, n)


def taken():
    "Count how many requests the straight line answered."
    seen, real = [], straight.StraightLine.__call__

    def counted(self, *given):
        made = real(self, *given)
        seen.append(made is not None)
        return made

    return seen, patch.object(straight.StraightLine, "__call__", counted)


def plain(told):
    return {name: value for name, value in told.items() if name != "decision_id"}


def test_both_ways_give_the_same_bits_and_the_same_records(world):
    here, port, heads = world
    for customer in (13080, 13100, 12980, 13200):
        body = json.dumps({"customer_id": customer, "features": True}).encode()
        whole = request(heads, body)
        seen, counted = taken()
        with counted:
            [(status, quick, top)] = asked(port, whole)
            assert seen == [status == 200], "in one piece: at once"
            [(other, slow, slow_top)] = asked(port, whole[:-5], whole[-5:])
            assert seen == [status == 200], "in two pieces: the long way, which does not ask the line"
        assert status == other and plain(quick) == plain(slow)
        names = [sorted(x.split(b":")[0].lower() for x in t.split(b"\r\n")[1:]) for t in (top, slow_top)]
        assert names[0] == names[1], "the same heads"
        if status == 200:
            made = [find_decision(here, "churn", told["decision_id"]) for told in (quick, slow)]
            assert plain(vars(made[0])) == plain(vars(made[1])) and made[0].asked_by == "local"


def test_what_is_wrong_is_said_alike(world):
    here, port, heads = world
    cases = [b"{", b"[]", b'{"customer_id": "1"}', b'{"customer_id": 1}', b'{"customer_id": NaN}', b"",
             b'{"customer_id": 13080, "x": 1}', b'{"customer_id": 13080, "features": 1}', b"[" * 5000,
             b'{"entities": []}', b'{"customer_id": 13080, "customer_id": 13100}', b"\xff", b"x" * 70_000]  # fmt: skip
    before = read_decisions(here, "churn").height
    for body in cases:
        [(status, quick, _)] = asked(port, request(heads, body))
        [(other, slow, _)] = asked(port, request(heads, body)[:-2], request(heads, body)[-2:])
        assert (status, quick) == (other, slow) and status in (400, 404, 413, 422), body[:40]
    bad = {**heads, "authorization": heads["authorization"][:-2] + "xx"}
    assert asked(port, request(bad, b'{"customer_id": 13080}'))[0][0] == 401
    assert (
        asked(port, request({**heads, "content-type": "text/plain"}, b'{"customer_id": 13080}'))[0][0] == 415
    )
    assert (
        asked(port, request({**heads, "origin": "http://evil.example"}, b'{"customer_id": 13080}'))[0][0]
        == 403
    )
    assert read_decisions(here, "churn").height == before, "what is refused stands in no log"


def test_any_cut_and_any_number_in_one_piece(world):
    here, port, heads = world
    one = request(heads, b'{"customer_id": 13080}')
    first = plain(asked(port, one)[0][1])
    for cut in range(1, len(one), 37):
        [(status, told, _)] = asked(port, one[:cut], one[cut:])
        assert status == 200 and plain(told) == first, cut
    many = asked(port, one * 30, n=30)
    assert [plain(told) for _, told, _ in many] == [first] * 30
    assert len({told["decision_id"] for _, told, _ in many}) == 30
    mixed = one + request(heads, b'{"customer_id": 13080, "request_id": "r-1"}') + one  # waits, then not
    assert [status for status, *_ in asked(port, mixed, n=3)] == [200] * 3
    chunked = {**heads, "transfer-encoding": "chunked"}
    text = (
        request(chunked, b"").replace(b"content-length: 0\r\n", b"")
        + b"16\r\n"
        + b'{"customer_id": 13080}'
        + b"\r\n0\r\n\r\n"
    )
    assert plain(asked(port, text)[0][1]) == first


@pytest.mark.parametrize("more", [{"version": "1.0"}, {"connection": "close"}, {"expect": "100-continue"}])
def test_other_manners_of_http_go_the_long_way(world, more):
    here, port, heads = world
    seen, counted = taken()
    with counted:
        [(status, told, _)] = asked(port, request(heads, b'{"customer_id": 13080}', **more))
    assert status == 200 and told["problem"] == "churn" and not any(seen)


def test_a_full_disk_is_said_and_nothing_is_logged_twice(world):
    here, port, heads = world
    before = read_decisions(here, "churn").height
    one = request(heads, b'{"customer_id": 13080}')

    def full(verb, path, content):
        if verb == "written":
            raise OSError(28, "No space left on device")

    disk.FAULTS.append(full)
    try:
        [(status, told, _)] = asked(port, one)
    finally:
        disk.FAULTS.remove(full)
    assert status == 503 and "No space" in told["error"]["got"]
    assert asked(port, one)[0][0] == 200
    assert read_decisions(here, "churn").height == before + 1
