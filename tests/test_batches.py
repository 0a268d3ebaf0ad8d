"""Batches posted over HTTP: the bits of single predictions, each entity decided once whoever is killed, nobody else's to read.

The always-run part kills twice; the acceptance figure is `TEST_MLSYS_KILLS=60 pytest tests/test_batches.py -k kill`.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import calls_world
import httpx
import polars as pl
import pytest
import tools_world
from caller import head
from conftest import until
from serving_world import HOME, JUNE, lines, make
from test_alert_delivery import hook  # noqa: F401
from test_service import service

from mlsys_nb.cases.churn import problem
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import train
from mlsys_nb.loop.step_context import context
from mlsys_nb.monitoring.alert_channels import signature
from mlsys_nb.monitoring.alert_delivery import deliver_due
from mlsys_nb.monitoring.alerts import Alert, record
from mlsys_nb.serving import batch_endpoint, batch_queue, batch_worker
from mlsys_nb.serving.access_control import Caller
from mlsys_nb.serving.api_keys import KeyWanted, add_key
from mlsys_nb.serving.batch_queue import BatchWanted, accept, find_batch, progress_of
from mlsys_nb.serving.batch_worker import BatchWorker
from mlsys_nb.serving.error_responses import Refusal
from mlsys_nb.serving.service import running
from mlsys_nb.serving.service_readiness import open_service
from mlsys_nb.system.clock import SystemClock, instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import MlsysError

KILLS = int(os.environ.get("TEST_MLSYS_KILLS", "2"))
KNOWN = sorted(lines()["customer_id"].unique())
JSON = {"content-type": "application/json"}


@pytest.fixture
def here(tmp_path):
    return make(tmp_path, families=("linear",))


def entities(n):
    "Known ones, again and again, with a stranger now and then."
    return [{"customer_id": 1 if i % 97 == 5 else KNOWN[i % len(KNOWN)]} for i in range(n)]


def ended(client, place, seconds=180):
    end = time.monotonic() + seconds
    while (told := client.get(place).json())["status"] in ("queued", "running"):
        assert time.monotonic() < end, told
        time.sleep(0.05)
    return told


def answers(client, place):
    told = client.get(place).json()
    pages = [client.get(f"{place}/answers/{i + 1}") for i in range(told["pages"])]
    assert {p.headers["content-type"] for p in pages} <= {"application/x-ndjson"}
    return [json.loads(line) for page in pages for line in page.text.splitlines()]


@contextmanager
def asked(here, **more):
    with running(replace(here, **more), "churn") as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_a_batch_has_the_bits_of_single_predictions_and_stands_in_the_log(here):
    with asked(here, max_body=2_000) as client:
        posted = client.post("/v1/churn/batches", json={"entities": entities(2_300), "features": True})
        assert posted.status_code == 202 and posted.headers["location"] == posted.json()["location"]
        place = posted.headers["location"]
        told = ended(client, place)
        rows = answers(client, place)
        singles = {
            e: client.post("/v1/churn/predictions", json={"customer_id": e, "features": True}).json()
            for e in (1, *KNOWN[:40])
        }
        found = client.get(f"/v1/churn/decisions/{rows[-1]['decision_id']}").json()
    assert (told["status"], told["entities"], told["pages"]) == ("done", 2_300, 3)
    assert told["answered"] + told["refused"] == 2_300 and told["refused"] == 24
    assert [row["index"] for row in rows] == list(range(2_300))
    assert [row["entity"] for row in rows] == entities(2_300)
    same = ("prediction", "action", "eligible", "version", "features", "moment")
    for row in rows:
        single = singles.get(row["entity"]["customer_id"])
        if single and "error" in row:
            assert row["error"] == single["error"]
        elif single:
            assert [row[n] for n in same] == [single[n] for n in same]
    assert found["prediction"] == rows[-1]["prediction"]
    made = read_decisions(here, "churn").drop_nulls("request_id")
    assert dict(made.select("request_id", "decision_id").iter_rows()) == {
        f"{told['batch']}:{row['index']}": row["decision_id"] for row in rows if "decision_id" in row
    }


def test_a_batch_is_its_owners_and_everybody_else_learns_nothing(here):
    keys = {name: add_key(here, KeyWanted(name, ("predict",)), "test") for name in ("shop", "other")}
    keys["elsewhere"] = add_key(here, KeyWanted("elsewhere", ("predict",), problems=("returns",)), "test")
    keys["viewer"] = add_key(here, KeyWanted("viewer", ("view", "operate", "outcome")), "test")
    with running(replace(here, open="nobody"), "churn") as url, httpx.Client(base_url=url) as client:
        who = {name: {"authorization": f"Bearer {key}", **JSON} for name, key in keys.items()}
        place = client.post("/v1/churn/batches", json={"entities": entities(3)}, headers=who["shop"]).headers[
            "location"
        ]
        until(lambda: client.get(place, headers=who["shop"]).json()["status"] == "done")
        none = "/v1/churn/batches/q" + "0" * 32
        for more in ("", "/answers/1"):
            assert client.get(place + more, headers=who["shop"]).status_code == 200
            theirs, nobodys = (client.get(p + more, headers=who["other"]) for p in (place, none))
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace(place[-33:], "ID") == nobodys.text.replace(none[-33:], "ID")
            assert client.get(place + more, headers=who["elsewhere"]).status_code == 403
            assert client.get(place + more, headers=who["viewer"]).status_code == 403
            assert client.get(place + more).status_code == 401
        for name in ("..", "%2e%2e", "q", "../../churn/batches", "q" + "0" * 31 + "/", "Q" + place[-32:]):
            assert client.get(f"/v1/churn/batches/{name}", headers=who["shop"]).status_code in (404, 405)


WRONG = [
    ({}, 422, "entities is a list"),
    ({"entities": []}, 422, "entities is a list"),
    ({"entities": {"customer_id": 1}}, 422, "entities is a list"),
    ({"entities": [{"customer_id": 1}] * 2_001}, 422, "2001 of them"),
    ({"entities": [{"customer_id": 1}, 7]}, 422, "entities[1] is 7"),
    ({"entities": [{"customer_id": 1}, {"customer_id": "1"}]}, 422, "entities[1]"),
    ({"entities": [{"customer_id": 1}, {"customer_id": True}]}, 422, "entities[1]"),
    ({"entities": [{"customer_id": 2**63}]}, 422, "entities[0]"),
    ({"entities": [{"customer_id": None}]}, 422, "entities[0]"),
    ({"entities": [{}]}, 422, "entities[0]"),
    ({"entities": [{"customer_id": 1, "x": 1}]}, 422, "entities[0]"),
    ({"entities": [{"customer_id": 1}], "features": 1}, 422, "features is true or false"),
    ({"entities": [{"customer_id": 1}], "request_id": 7}, 422, "request_id is a text"),
    ({"entities": [{"customer_id": 1}], "request_id": "x" * 201}, 422, "request_id is a text"),
    ({"entities": [{"customer_id": 1}], "channel": "http://evil.example/"}, 422, "a channel that is told"),
    ({"entities": [{"customer_id": 1}], "webhook": "http://evil.example/"}, 422, "unknown ['webhook']"),
    ([{"customer_id": 1}], 400, "a JSON object"),
]


def test_what_is_wrong_is_said_at_once_and_nothing_is_kept(here):
    with asked(here, batch_entities=2_000, max_body=500) as client:
        for body, status, text in WRONG:
            told = client.post("/v1/churn/batches", json=body)
            assert told.status_code == status and text in told.text, (body, told.text)
        for raw, status in (
            (b"{", 400),
            (b'{"entities": [{"customer_id": NaN}]}', 400),
            (b'{"entities": ' + b"[" * 99, 400),
            (b'{"entities": [{"customer_id": 1, "customer_id": 2}]}', 400),
            (b" " * 512_001, 413),
        ):
            assert client.post("/v1/churn/batches", content=raw, headers=JSON).status_code == status, raw[:60]
        assert client.post("/v1/churn/predictions", content=b" " * 501, headers=JSON).status_code == 413
        assert client.post("/v1/churn/batches", json={"entities": entities(2_000)}).status_code == 202
    with asked(here, batch_entities=0) as client:
        assert "takes no batches" in client.post("/v1/churn/batches", json={"entities": entities(1)}).text
    assert len(list((here.data / "batches" / "churn").glob("q*"))) == 1


def test_a_key_has_few_batches_under_way_and_a_repeated_post_is_the_same_batch(here):
    with patch.object(BatchWorker, "start"), asked(here) as client:
        body = {"entities": entities(5), "request_id": "once"}
        first, again = (client.post("/v1/churn/batches", json=body).json() for _ in range(2))
        assert first == again and first["status"] == "queued"
        other = client.post("/v1/churn/batches", json={**body, "entities": entities(6)})
        assert other.status_code == 409
        more = [client.post("/v1/churn/batches", json={"entities": entities(1)}) for _ in range(5)]
        assert [r.status_code for r in more] == [202, 202, 202, 429, 429] and more[-1].headers["retry-after"]


def once(here, batch, n):
    "Every entity has one decision, and one answer, which is that decision."
    made = read_decisions(here, "churn").drop_nulls("request_id")
    assert made["request_id"].is_unique().all(), "an entity was decided twice"
    far = progress_of(batch)
    rows = [json.loads(row) for part in far.parts for row in batch_queue.page_of(batch, part).splitlines()]
    assert (far.ended, [row["index"] for row in rows], [row["entity"] for row in rows]) == (
        "done",
        list(range(n)),
        entities(n),
    )
    told = {f"{batch.id}:{row['index']}": row["decision_id"] for row in rows if "decision_id" in row}
    assert dict(made.select("request_id", "decision_id").iter_rows()) == told
    return rows


def worked(here, batch, workers=1, seconds=180):
    "Until it is done."
    opened = [open_service(here, problem) for _ in range(workers)]
    started = [BatchWorker(lambda s=s: {"churn": s}).start() for s in opened]
    end = time.monotonic() + seconds
    while not progress_of(batch).ended and time.monotonic() < end:
        time.sleep(0.02)
    for worker, one in zip(started, opened, strict=True):
        worker.close()
        one.close()


def wanted(n):
    return BatchWanted("churn", "shop", [(e, {}) for e in entities(n)])


@pytest.mark.parametrize("where", ["before the log", "after the log", "within the log", "before the note"])
def test_fault_a_batch_that_was_broken_off_was_answered_twice(here, where, monkeypatch):
    "Between the log and the answers of a part: what a new worker finds in the log is the answer."
    monkeypatch.setattr(batch_worker, "PATIENCE", 0.0)
    batch, n = accept(here, wanted(1_500), SystemClock().now()), 0
    real, note = batch_worker.DecisionLog.append, batch_queue.Log.append

    def log(self, decisions):
        nonlocal n
        n += 1
        if n == 2 and where == "before the log":
            raise MlsysError("broken off")
        made = real(self, decisions[:300] if n == 2 and where == "within the log" else decisions)
        if n == 2 and where in ("after the log", "within the log"):
            raise MlsysError("broken off")
        return made

    def noted(self, records):
        nonlocal n
        if where == "before the note" and n == 1 and "part" in records[0]:
            n += 1
            raise MlsysError("broken off")
        note(self, records)

    with (
        patch.object(batch_worker.DecisionLog, "append", log),
        patch.object(batch_queue.Log, "append", noted),
    ):
        worked(here, batch)
    assert n >= 2
    once(here, batch, 1_500)


def test_two_processes_share_the_batches_and_answer_none_twice(here):
    batches = [accept(here, replace(wanted(n), owner=f"k{n}"), SystemClock().now()) for n in (2_500, 900)]
    worked(here, batches[0], workers=2)
    worked(here, batches[1])
    made = read_decisions(here, "churn").drop_nulls("request_id")
    assert made["request_id"].is_unique().all()
    assert {b.id: progress_of(b).ended for b in batches} == dict.fromkeys((b.id for b in batches), "done")


def test_one_entity_that_the_model_stumbles_over_harms_nobody_else(here):
    batch, bad = accept(here, wanted(300), SystemClock().now()), KNOWN[3]
    real = batch_worker.Predictor.predict_many

    def stumbles(self, given, *more):
        if any(e["customer_id"] == bad for e in given):
            raise ZeroDivisionError("a secret")
        return real(self, given, *more)

    with patch.object(batch_worker.Predictor, "predict_many", stumbles):
        worked(here, batch)
    rows = once(here, batch, 300)
    wrong = [row for row in rows if row["entity"]["customer_id"] == bad]
    assert wrong and all(row["error"]["got"] == "an error of the service" for row in wrong)
    assert "a secret" not in json.dumps(rows) and all(
        "error" not in r for r in rows if r["entity"]["customer_id"] == KNOWN[4]
    )


def test_what_cannot_go_on_says_so_and_goes_on_when_it_can(here, monkeypatch):
    monkeypatch.setattr(batch_worker, "PATIENCE", 0.2)
    batch, real = accept(here, wanted(20), SystemClock().now()), batch_worker.DecisionLog.append
    full = patch.object(
        batch_worker.DecisionLog, "append", side_effect=OSError(28, "No space left on device")
    )
    opened = open_service(here, problem)
    worker = BatchWorker(lambda: {"churn": opened})
    with full:
        worker.start()
        assert (
            "No space left" in until(lambda: progress_of(batch).waits)
            and progress_of(batch).status == "running"
        )
    assert batch_worker.DecisionLog.append is real
    until(lambda: progress_of(batch).ended)
    worker.close()
    opened.close()
    once(here, batch, 20)


def test_damaged_files_are_said_and_harm_only_their_batch(here):
    with asked(here) as client:
        places = [
            client.post("/v1/churn/batches", json={"entities": entities(3)}).headers["location"]
            for _ in range(3)
        ]
        for place in places:
            ended(client, place)
        first, second = (find_batch(here, "churn", place.rpartition("/")[2]) for place in places[:2])
        first.answers(0).write_text("{}\n")
        (second.folder / "asked" / "manifest.json").write_text("{}")
        assert client.get(f"{places[0]}/answers/1").status_code == 503
        assert client.get(places[1]).status_code == 503
        assert len(answers(client, places[2])) == 3
        assert client.post("/v1/churn/batches", json={"entities": entities(3)}).status_code == 202


def test_kill_nine_of_the_service_between_two_answers(here):
    draw, n, place = random.Random(7), 4_000 + 1_000 * KILLS, ""
    for kill in range(KILLS + 1):
        with service(here.root) as (client, process, _):
            if not place:
                place = client.post("/v1/churn/batches", json={"entities": entities(n)}, timeout=60).headers[
                    "location"
                ]
            if kill < KILLS:
                begun = client.get(place).json()["pages"]
                end = time.monotonic() + 30
                while client.get(place).json()["pages"] == begun and time.monotonic() < end:
                    time.sleep(0.01)
                time.sleep(draw.random() * 0.3)
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                assert ended(client, place)["status"] == "done"
    once(here, find_batch(here, "churn", place.rpartition("/")[2]), n)


def test_the_end_of_a_batch_is_told_to_the_channel_it_names(here, hook, monkeypatch):  # noqa: F811
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    line = f"webhook {hook.url} secret=env:HOOK_SECRET"
    told = {"shop": f"{line} of=batches", "ops": line, "returns.shop": f"{line} of=batches"}
    there = replace(here, deliver=told)
    alert = Alert("churn", "drift", "orders", "critical", "3 -> 9", "a unit changed", "look", JUNE)
    with asked(here, deliver=told) as client:
        for name in ("ops", "returns.shop", hook.url, "nobody"):
            body = {"entities": entities(3), "channel": name}
            said = client.post("/v1/churn/batches", json=body)
            assert said.status_code == 422 and "one of shop" in said.text, said.text
        place = client.post("/v1/churn/batches", json={"entities": entities(7), "channel": "shop"}).headers[
            "location"
        ]
        ended(client, place)
    record(open_control(here), "churn", [alert], JUNE)
    for _ in range(2):
        deliver_due(there, SystemClock().now())
    news = [(head, json.loads(body)) for head, body in hook.got]
    assert sorted(event["kind"] for _, body in news for event in body["events"]) == ["batch", "drift"]
    head, body = next((h, b) for h, b in news if b["events"][0]["kind"] == "batch")
    assert body["events"][0]["action"] == f"GET {place}" and "6 of 7 entities answered" in body["subject"]
    seconds = int(head["x-mlsys-signature"].partition(",")[0][2:])
    raw = next(b for h, b in hook.got if h is head or h == head)
    assert head["x-mlsys-signature"] == signature("s3cret", instant(seconds * 1_000_000), raw)


def test_the_lines_of_the_guide_run_as_printed(here, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = (HOME / "nbs/guide/howto/25_batches.md").read_text()
    text = re.search(r"^```sh elsewhere\n(.*?)^```$", page, re.M | re.S)[1]
    head(here.root)
    with running(replace(here, open="nobody"), "churn") as url:
        script = "set -eu\n" + text.replace("localhost:8100", url.removeprefix("http://"))
        done = subprocess.run(
            ["bash", "-c", script], cwd=here.root, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["entity"]["customer_id"] for row in rows] == [13080, 13100, 1]
    assert ["error" in row for row in rows] == [False, False, True]


@pytest.mark.parametrize("name", ["calls", "hours", "desk", "tools"])
def test_every_kind_of_problem_gets_the_bits_of_single_requests(name, tmp_path):
    "Decisions about events with values of the request, a number, one of several, a choice among candidates; and over a stream."
    world = tools_world if name == "tools" else calls_world
    here, now = world.make(tmp_path), (world.START + 70 * world.DAY).isoformat()
    if name == "tools":
        now = (world.START + 50 * world.DAY).isoformat()
        bodies = [{"visitor": i, "visit": f"x{i}"} for i in (0, 6, 12, 9_999)]
        bodies += [{"visitor": 3, "visit": "own", "candidates": ["nobody knows it", "new"]}]
    else:
        coming = world.rows()[0].filter(
            pl.col("at").dt.replace_time_zone("UTC") > world.START + 70 * world.DAY
        )
        bodies = coming.head(12).select("call", "client", "topic", "minutes", "parts").to_dicts()
        bodies += [{**bodies[0], "call": "again", "topic": None, "parts": None}, {**bodies[0], "client": -5}]
    write_json(here.clock_file, {"now": now})
    ingest_due(context(name, now, here))
    train(context(name, now, here), n_trials=1, rule=True)
    with running(here, name) as url, httpx.Client(base_url=url, timeout=60) as client:
        wrong = client.post(f"/v1/{name}/batches", json={"entities": [bodies[0], {**bodies[1], "x": 1}]})
        place = client.post(f"/v1/{name}/batches", json={"entities": bodies, "features": True}).headers[
            "location"
        ]
        told = ended(client, place)
        rows, found = answers(client, place), client.get(place).json()
        singles = [
            client.post(f"/v1/{name}/predictions", json={**b, "features": True}).json() for b in bodies
        ]
        looked = client.get(f"/v1/{name}/decisions/{rows[0]['decision_id']}").json()
    assert wrong.status_code == 422 and "entities[1]" in wrong.text and told == found
    same = ("entity", "prediction", "answer", "action", "eligible", "version", "features", "moment")
    for row, single in zip(rows, singles, strict=True):
        assert row.get("error") == single.get("error"), (row, single)
        assert "error" in row or {n: row.get(n) for n in same} == {n: single.get(n) for n in same}
    assert sum("error" in row for row in rows) == told["refused"] and told["answered"] >= 5
    assert looked["prediction"] == rows[0]["prediction"]
    values = {k: v for k, v in bodies[0].items() if k not in rows[0]["entity"]}
    assert looked.get("request", {}) == values


def test_whatever_is_posted_is_taken_or_refused_by_a_rule(here):
    "Thousands of broken bodies: never an error of the service, never a batch that cannot be answered."
    draw, n = random.Random(11), int(os.environ.get("TEST_MLSYS_BODIES", "2000"))
    good = json.dumps({"entities": entities(4), "features": True, "request_id": "r"}).encode()
    odd = [
        None,
        True,
        0,
        -1,
        1.5,
        2**64,
        1e308,
        "",
        "x",
        "\x00",
        "\ud800",
        [],
        {},
        [[]],
        {"customer_id": 1},
        "é" * 300,
    ]
    kinds = ("entities", "features", "request_id", "channel", "customer_id", "", "constructor")

    def broken():
        if draw.random() < 0.5:
            body = bytearray(good)
            for _ in range(draw.randrange(1, 4)):
                body[draw.randrange(len(body))] = (
                    draw.choice(b'{}[]",:0x\x00\xff\\e-') if draw.random() < 0.8 else draw.randrange(256)
                )
            return bytes(body)
        made = {k: draw.choice(odd) for k in draw.sample(kinds, draw.randrange(len(kinds)))}
        if draw.random() < 0.7:
            made["entities"] = [
                {draw.choice(kinds[-3:]): draw.choice(odd)} for _ in range(draw.randrange(4))
            ] or 7
        return json.dumps(made).encode()

    opened = open_service(here, problem)
    caller, seen = Caller("shop", ("predict",)), dict[int, int]()
    with patch.object(batch_queue, "MOST_WAITING", n):
        for _ in range(n):
            try:
                batch_endpoint._taken(opened, broken(), caller)
                seen[202] = seen.get(202, 0) + 1
            except Refusal as e:
                assert e.status in (400, 409, 422) and len(str(e)) < 2_000, e
                seen[e.status] = seen.get(e.status, 0) + 1
    kept = list(batch_queue.queued_batches(here, "churn"))
    opened.close()
    assert seen[202] >= len(kept) > 0 and seen[400] > n / 10 and seen[422] > n / 10, seen
    for batch in kept:
        worked(here, batch) if batch is kept[0] else None
    assert {progress_of(b).status for b in kept[:1]} == {"done"}
