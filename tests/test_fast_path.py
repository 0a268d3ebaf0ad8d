"The straight line and the long way: the same bits, the same records, the same refusals, whatever way a request takes."

import asyncio
import json
import socket
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch
from urllib.request import Request, urlopen

import pytest
from caller import head
from fuzz import fuzzed
from serving_world import JUNE, make

from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.release import package
from mlsys_nb.serving import connections, fast_path
from mlsys_nb.serving.prometheus_metrics import STAGES
from mlsys_nb.serving.service import _Life, running
from mlsys_nb.system import file_operations
from mlsys_nb.system.clock import pause

PATH = "/v1/churn/predictions"


@pytest.fixture(scope="module", params=["within 5 ms", "before answer"])
def world(request, tmp_path_factory):
    here = replace(make(tmp_path_factory.mktemp("fast")), durable=request.param)
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
    seen, real = [], fast_path.StraightLine.__call__

    def counted(self, *given):
        made = real(self, *given)
        seen.append(made)
        return made

    return seen, patch.object(fast_path.StraightLine, "__call__", counted)


def heads_of(top):
    first, *lines = top.split(b"\r\n")
    return first, sorted(line.split(b":")[0].lower() for line in lines)


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
            assert seen == [True], "in one piece: at once"
            [(other, slow, slow_top)] = asked(port, whole[:-5], whole[-5:])
            assert seen == [True], "in two pieces: the long way, which does not ask the line"
        assert status == other and plain(quick) == plain(slow)
        assert heads_of(top) == heads_of(slow_top)
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
    for cut in (2, 3, *range(1, len(one), 37)):  # two letters once passed for a head that is known
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

    file_operations.FAULTS.append(full)
    try:
        [(status, told, top)] = asked(port, one)
        [(other, slow, slow_top)] = asked(port, one[:-2], one[-2:])
    finally:
        file_operations.FAULTS.remove(full)
    assert status == 503 and "No space" in told["error"]["got"]
    assert (status, told) == (other, slow) and heads_of(top) == heads_of(slow_top)
    assert asked(port, one)[0][0] == 200
    assert read_decisions(here, "churn").height == before + 1


def test_an_answer_comes_after_its_record_and_where_the_terms_say_so_after_the_disk(world):
    "Planted once: an answer before its `write(2)`, and one before its fsync."
    here, port, heads = world
    written, synced, seen, real = b"", b"", [], connections._AtOnce.give

    def watched(verb, path, content):
        nonlocal written, synced
        if path.parent.name == "segments":
            written += content if verb == "written" and path.suffix == ".log" else b""
            synced = written if verb == "synced" else synced

    def given(self, answer):
        name = json.loads(answer.body)["decision_id"].encode()
        seen.append((name in written, name in synced))
        real(self, answer)

    file_operations.FAULTS.append(watched)
    try:
        with patch.object(connections._AtOnce, "give", given):
            for customer in (13080, 13100, 12980) * 3:
                asked(port, request(heads, b'{"customer_id": %d}' % customer))
    finally:
        file_operations.FAULTS.remove(watched)
    assert len(seen) == 9 and all(wrote for wrote, _ in seen)
    assert here.durable != "before answer" or all(sync for _, sync in seen)


def test_many_callers_at_once_are_each_told_about_their_own(world):
    "A head that is known, bodies of several lengths, and connections that share nothing but the log."
    here, port, heads = world
    customers = [13080, 13100, 12980, 13200, 12360, 13400]
    alone = {c: asked(port, request(heads, b'{"customer_id": %d}' % c))[0] for c in customers}
    with ExitStack() as stack:
        lines = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(12)]
        ids = set()
        for turn in range(12):
            whom = [customers[(i + turn) % len(customers)] for i in range(len(lines))]
            for line, customer in zip(lines, whom, strict=True):
                line.sendall(request(heads, b'{"customer_id":%s%d}' % (b" " * (turn % 3), customer)))
            for line, customer in zip(lines, whom, strict=True):
                [(status, told, _)] = answers(line)
                assert (status, plain(told)) == (alone[customer][0], plain(alone[customer][1])), customer
                ids.add(told.get("decision_id"))
    good = sum(alone[c][0] == 200 for c in customers) * 2 * 12
    assert len(ids - {None}) == good


def test_what_arrives_together_is_written_together_and_synced_once(world):
    here, _, heads = world
    life = _Life(here, ["churn"])
    life.open()
    line = fast_path.StraightLine(life.served, life.access, here)
    sent = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **heads}.items()]
    standing, given, deeds = line.standing(PATH.encode(), sent, ("127.0.0.1", 1)), [], []

    async def together():
        await asyncio.sleep(0)
        for customer in (13080, 13100, 12980) * 5:
            assert line(standing, b'{"customer_id": %d}' % customer, given.append, False)
        assert len(given) == (8 if here.durable != "before answer" else 0), (
            "nobody is answered before the write"
        )
        while len(given) < 15:
            await asyncio.sleep(0.001)

    def watched(verb, path, content):
        if path.suffix == ".log":
            deeds.append(verb)
            pause(0.2 if verb == "synced" else 0)

    service = life.served.services["churn"]
    service.log.append([service.predictor.predict({"customer_id": 13080}, JUNE)])  # a segment is there
    file_operations.FAULTS.append(watched)
    try:
        asyncio.run(together())
    finally:
        file_operations.FAULTS.remove(watched)
        life.close()
    assert len({json.loads(answer.body)["decision_id"] for answer in given}) == 15
    if here.durable == "before answer":
        assert deeds.count("written") == deeds.count("synced") <= 3, "the thread may take the first one alone"
    else:
        assert deeds.count("written") == 2, "eight at a time"


def test_a_loop_polls_between_two_quick_requests_where_no_thread_has_to_sync(world):
    here, _, heads = world
    life = _Life(replace(here, poll_seconds=0.5), ["churn"])
    life.open()
    line = fast_path.StraightLine(life.served, life.access, life.settings)
    sent = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **heads}.items()]
    standing, given = line.standing(PATH.encode(), sent, ("127.0.0.1", 1)), []

    async def quickly():
        for n in (1, 2):
            assert line(standing, b'{"customer_id": 13080}', given.append, True)
            while len(given) < n:
                await asyncio.sleep(0.001)
        return line._poll.looking

    try:
        assert asyncio.run(quickly()) == (here.durable != "before answer")
    finally:
        life.close()


def test_nobody_is_alone_beside_another_connection_whether_a_head_came_before_or_not(world):
    "Heads that differ, as those of a caller that traces its requests, had no loop sleep however many asked."
    _, port, heads = world
    told, real = [], fast_path.StraightLine.__call__

    def watched(self, standing, body, give, now):
        told.append(now)
        return real(self, standing, body, give, now)

    def ask(line, n):
        line.sendall(request(heads, b'{"customer_id": 13080}', x_trace=str(n)))
        assert answers(line)[0][0] == 200

    with patch.object(fast_path.StraightLine, "__call__", watched):
        with socket.create_connection(("127.0.0.1", port), 20) as one:
            with socket.create_connection(("127.0.0.1", port), 20) as other:
                for n in (0, 1, 1, 2):
                    ask(other, n)
                    ask(one, n)
            assert not any(told[1:]), "the first may come before the second connection is there"
            for n in range(200):
                ask(one, n)
    assert told[-1], "and alone again"


def test_what_goes_wrong_with_one_harms_nobody_who_arrived_with_it(world):
    "A stranger, and one of whom the model cannot speak, among others; each is answered as if it had come alone."
    here, port, heads = world
    life = _Life(here, ["churn"])
    life.open()
    line = fast_path.StraightLine(life.served, life.access, here)
    sent = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **heads}.items()]
    standing, given = line.standing(PATH.encode(), sent, ("127.0.0.1", 1)), {}
    before, real = read_decisions(here, "churn").height, package.Model.predict_one
    whom = [13080, 1, 13100, 12980]

    def odd(self, features):
        if features == unlucky:
            raise RuntimeError("planted")
        return real(self, features)

    async def together():
        for customer in whom:
            body = b'{"customer_id": %d, "features": true}' % customer
            assert line(standing, body, lambda answer, c=customer: given.update({c: answer}), False)
        while len(given) < len(whom):
            await asyncio.sleep(0.001)

    service = life.served.services["churn"]
    unlucky = dict(service.predictor.reader.read({"customer_id": 13100}, service.moment()))
    try:
        with patch.object(package.Model, "predict_one", odd):
            asyncio.run(together())
    finally:
        life.close()
    assert {c: answer.status for c, answer in given.items()} == {13080: 200, 1: 404, 13100: 500, 12980: 200}
    assert b"planted" not in given[13100].body
    for customer in (13080, 1, 12980):
        alone = asked(port, request(heads, b'{"customer_id": %d, "features": true}' % customer))[0][1]
        assert plain(json.loads(given[customer].body)) == plain(alone)
    assert read_decisions(here, "churn").height == before + 4


def test_the_times_of_the_stages_are_told_to_who_asks_and_counted(world):
    here, port, heads = world
    one, asks = b'{"customer_id": 13080}', {**heads, "prefer": "server-timing"}
    for pieces in ([request(asks, one)], [request(asks, one)[:-3], request(asks, one)[-3:]]):
        [(status, _, top)] = asked(port, *pieces)
        [said] = [x for x in top.decode().split("\r\n") if x.startswith("server-timing: ")]
        found = dict(part.split(";dur=") for part in said.removeprefix("server-timing: ").split(", "))
        assert status == 200 and tuple(found) == STAGES
        assert all(0 < float(ms) < 20_000 for ms in found.values()), found
    assert b"server-timing" not in asked(port, request(heads, one))[0][2]
    text = urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers=heads)).read().decode()
    for stage in STAGES:
        name = f'mlsys_stage_seconds_count{{problem="churn",stage="{stage}"}} '
        assert float(text.partition(name)[2].partition("\n")[0]) >= 3
        name = name.replace("_count", "_sum")
        assert float(text.partition(name)[2].partition("\n")[0]) > 0


def test_changed_requests_are_answered_below_500_and_tell_no_key(world):
    n, found = fuzzed(world[0], 600.0, seed=7, most=400)
    assert n == 400 and {"200", "400", "422"} <= set(found), found
    assert fuzzed(world[0], 600.0, seed=8, at_socket=True, most=60)[0] == 60


def test_a_disk_that_hangs_is_said_after_the_deadline_and_the_rest_is_answered(tmp_path):
    here = replace(make(tmp_path), durable="before answer", deadline_seconds=0.5)
    with running(here, "churn") as url:
        port, heads = int(url.rpartition(":")[2]), head(here.root)
        one = request(heads, b'{"customer_id": 13080}')
        assert asked(port, one)[0][0] == 200
        hangs = lambda verb, path, content: pause(1.5) if verb == "synced" else None
        file_operations.FAULTS.append(hangs)
        [(status, told, top)] = asked(port, one)
        file_operations.FAULTS.remove(hangs)
        assert status == 503 and "at most 0.5 s" in told["error"]["rule"] and b"retry-after: 1" in top
        pause(2.0)
        assert asked(port, one)[0][0] == 200
