"""Requests from a real Redis, answered into it: the bits of the service, poison set aside, each once though the consumer is killed.

The always-run part kills twice; the acceptance figure is `TEST_MLSYS_KILLS=60 pytest tests/test_redis_requests.py -k kill`.
"""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from unittest.mock import patch

import pytest
from serving_world import HOME, JUNE, lines, make
from test_service import service
from test_stream_source import RUN, redis_port  # noqa: F401

from mlsys_nb.cases.churn import problem
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.log_writer import DecisionLog
from mlsys_nb.doors.cli import main
from mlsys_nb.serving.error_responses import Refusal
from mlsys_nb.serving.redis_requests import RequestStream, StreamConsumer
from mlsys_nb.serving.service_readiness import OpenService, open_service
from mlsys_nb.system.durable import LockedError

KILLS = int(os.environ.get("TEST_MLSYS_KILLS", "2"))
KNOWN = sorted(lines()["customer_id"].unique())


@pytest.fixture
def here(tmp_path):
    return make(tmp_path, families=("linear",))


@pytest.fixture
def broker(redis_port):  # noqa: F811
    import redis

    client = redis.Redis(port=redis_port)
    client.flushall()
    client.where = f"redis://127.0.0.1:{redis_port}/0#asks"
    return client


@contextmanager
def consumer_of(here, broker, champion=True):
    opened = open_service(here, problem)
    try:
        yield StreamConsumer(opened, RequestStream(broker, "asks", "mlsys-churn"), limit=100)
    finally:
        opened.close()


def ask(broker, *bodies):
    return [
        broker.xadd("asks", {"request": b if isinstance(b, bytes) else json.dumps(b)}).decode()
        for b in bodies
    ]


def read(broker, name):
    return [{k.decode(): v for k, v in fields.items()} for _, fields in broker.xrange(f"asks:{name}")]


def answers(broker):
    "By the entry that was answered."
    found = [(e["of"].decode(), json.loads(e["answer"])) for e in read(broker, "answers")]
    assert len(dict(found)) == len(found), "an entry was answered twice"
    return dict(found)


def test_a_stream_gets_the_bits_of_the_service(here, broker, capsys):
    with service(here.root) as (client, _, _):
        told = [
            client.post("/v1/churn/predictions", json={"customer_id": c, "features": True}).json()
            for c in KNOWN[:30]
        ]
    ids = ask(broker, *({"customer_id": c, "features": True} for c in KNOWN[:30]))
    assert main(["predict-stream", broker.where, "churn", "--root", str(here.root)]) == 0
    assert capsys.readouterr().out == "30 answered, 0 refused\n"
    found = answers(broker)
    same = ("prediction", "action", "eligible", "version", "features", "moment", "entity")
    assert [[found[i][n] for n in same] for i in ids] == [[t[n] for n in same] for t in told]
    made = read_decisions(here, "churn").drop_nulls("request_id")
    assert dict(made.select("request_id", "decision_id").iter_rows()) == {
        f"asks/{i}": found[i]["decision_id"] for i in ids
    }
    assert broker.xpending("asks", "mlsys-churn")["pending"] == 0


POISON = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 5_000, b'{"customer_id": NaN}', b'{"customer_id": 1, "customer_id": 2}',
    b'{"customer_id": "13080"}', b'{"customer_id": true}', b'{"customer_id": 13080.5}', b'{"customer_id": 1}', b"{}",
    b'{"customer_id": 9223372036854775808}', b'{"customer_id": 13080, "x": 1}', b'{"customer_id": 13080, "entities": []}',
    b'{"customer_id": 13080, "request_id": 7}', b'{"customer_id": 13080, "request_id": ""}', b'{"customer_id": 13080, "features": 1}',
    b'{"customer_id": 13080, "request_id": "\\ud800"}', b" " * 65_537, b'{"customer_id": ' + b"9" * 5_000 + b"}",
]  # fmt: skip


def test_poison_is_set_aside_and_harms_nobody(here, broker):
    draw, good = random.Random(3), [{"customer_id": c} for c in KNOWN[:40]]
    mixed = draw.sample([*POISON, *good], len(POISON) + len(good))
    ids = ask(broker, *mixed)
    ids += [
        broker.xadd("asks", {"something": "else"}).decode(),
        broker.xadd("asks", {"request": b"gone"}).decode(),
    ]
    with consumer_of(here, broker) as consumer:
        RequestStream(broker, "asks", "mlsys-churn").take(500)  # taken by one that dies, then trimmed
        broker.xdel("asks", ids[-1])
        done = [consumer.turn() for _ in range(3)]
    assert tuple(map(sum, zip(*done, strict=True))) == (40, len(POISON) + 2)
    bad = {e["of"].decode(): e for e in read(broker, "refused")}
    assert {*answers(broker), *bad} == set(ids) and len(read(broker, "refused")) == len(bad)
    assert set(answers(broker)) == {i for i, b in zip(ids, mixed, strict=False) if isinstance(b, dict)}
    for i, body in zip(ids, mixed, strict=False):
        if i in bad:
            assert set(json.loads(bad[i]["error"])) == {"rule", "got", "remedy"}
            assert bad[i]["request"] == body[:65_536]
    assert b"is gone" in bad[ids[-1]]["error"]


def test_fault_a_message_that_came_again_was_decided_twice(here, broker):
    "Killed between the log and the broker: what stands in the log is the answer; others' decisions are not."
    ids = ask(broker, *({"customer_id": c, "request_id": f"r{c}"} for c in KNOWN[:50]))
    with (
        consumer_of(here, broker) as consumer,
        patch.object(RequestStream, "settle", side_effect=ConnectionError),
    ):
        with pytest.raises(ConnectionError):
            consumer.turn()
        first = dict(read_decisions(here, "churn").select("request_id", "decision_id").iter_rows())
    assert len(first) == 50 and not read(broker, "answers")
    with consumer_of(here, broker) as consumer:
        consumer.service.log._memory.by_request.clear()  # pushed out by others, as in a busy system
        assert (consumer.turn(), consumer.turn()) == ((50, 0), (0, 0))
        again = ask(broker, {"customer_id": KNOWN[0], "request_id": f"r{KNOWN[0]}"})
        assert consumer.turn() == (1, 0)
    assert {
        f"asks/r{c}": answers(broker)[i]["decision_id"] for i, c in zip(ids, KNOWN, strict=False)
    } == first
    made = read_decisions(here, "churn")
    assert made.height == 51 and made["request_id"].to_list().count(f"asks/r{KNOWN[0]}") == 2, again


def test_more_than_one_turn_comes_again(here, broker, monkeypatch):
    "Fault: the note moved on with the first turn, and what the others had decided was not found."
    seconds = count()
    monkeypatch.setattr(
        OpenService, "moment", lambda self: JUNE - timedelta(hours=1) + timedelta(seconds=next(seconds))
    )
    ask(broker, *({"customer_id": c} for c in KNOWN[:90]))
    real, gone = DecisionLog.append, patch.object(RequestStream, "settle", side_effect=ConnectionError)
    torn = patch.object(DecisionLog, "append", lambda self, made: real(self, made[10:]))
    with consumer_of(here, broker) as consumer, gone, torn, pytest.raises(ConnectionError):
        consumer.turn()  # killed within the log: its first ten are not there
    with consumer_of(here, broker) as consumer:
        consumer.service.log._memory.by_request.clear()
        ask(broker, *({"customer_id": c} for c in KNOWN[:5]))
        consumer.limit = 20
        while any(consumer.turn()):
            consumer.service.log._memory.by_request.clear()
    assert len(answers(broker)) == 95 and read_decisions(here, "churn").height == 95


def test_without_a_champion_nothing_is_taken(tmp_path, broker):
    here = make(tmp_path, families=("linear",), champion=None)
    ask(broker, {"customer_id": KNOWN[0]})
    with consumer_of(here, broker) as consumer, pytest.raises(Refusal, match="no champion yet"):
        consumer.turn()
    assert broker.xlen("asks") == 1 and not broker.exists("asks:refused")


def test_two_never_read_for_one_problem(here, broker):
    with consumer_of(here, broker) as one, consumer_of(here, broker) as other, one.alone():
        with pytest.raises(LockedError, match="stop that one first"), other.alone():
            pass


def test_what_is_no_stream_of_requests_is_one_line(here, capsys):
    for where in (
        "asks.jsonl",
        "redis://127.0.0.1:1/0",
        "http://127.0.0.1/#asks",
        "redis://127.0.0.1:1/0#asks",
    ):
        assert main(["predict-stream", where, "churn", "--root", str(here.root)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said


def test_kill_nine_of_a_consumer(here, broker):
    draw, n = random.Random(5), 1_500 * (KILLS + 1)
    bodies = [{"customer_id": 1 if i % 50 == 7 else KNOWN[i % len(KNOWN)]} for i in range(n)]
    ids = ask(broker, *bodies)
    words = [*RUN, "predict-stream", broker.where, "churn", "--root", str(here.root)]
    known = {**os.environ, "MLSYS_HOME": str(HOME)}
    for _ in range(KILLS):
        process, begun = subprocess.Popen([*words, "--follow"], env=known), broker.xlen("asks:answers")
        until = time.monotonic() + 40
        while broker.xlen("asks:answers") == begun and time.monotonic() < until:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(words, env=known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, bad = answers(broker), [e["of"].decode() for e in read(broker, "refused")]
    assert sorted(bad) == sorted(i for i, b in zip(ids, bodies, strict=True) if b["customer_id"] == 1)
    assert set(found) == set(ids) - set(bad)
    made = read_decisions(here, "churn")
    assert dict(made.select("request_id", "decision_id").iter_rows()) == {
        f"asks/{i}": d["decision_id"] for i, d in found.items()
    }
    assert made.height == len(found), "a message was decided twice"
