"""kill -9 of `mlsys stream` while it reads a file of lines or a real Redis: nothing lost, nothing counted twice.

The always-run part kills 4 times each; the acceptance figure is `TEST_MLSYS_KILLS=60 pytest tests/test_stream_source.py`.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta

import polars as pl
import pytest
from conftest import wait_for
from pages_world import HERE, features, problem, settings_of, source, views
from ports import free_port

from mlsys_nb.data.event_inbox import Inbox
from mlsys_nb.data.event_validation import Intake, Post
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import quarantine, read, snapshot
from mlsys_nb.data.stream_source import JsonLines, RedisStream, take_in
from mlsys_nb.features import Events, FeatureSet, count
from mlsys_nb.features.inbox_to_store import materialize, waiting_rows
from mlsys_nb.features.store_sync import open_online, sync
from mlsys_nb.features.visibility_watermark import wait_until_due
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.step_context import Context
from mlsys_nb.system.clock import SystemClock

KILLS = int(os.environ.get("TEST_MLSYS_KILLS", "4"))
RUN = [sys.executable, "-c", "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())"]


@pytest.fixture
def here(tmp_path):
    settings = settings_of(tmp_path)
    header = "view,visitor,page,at,ms,paid\n"
    (settings.raw / "views" / "before.csv").write_text(f"{header}h0,v-1,/a,2026-01-01,5,\n")
    ingest_due(Context(settings, problem, SystemClock().now()))
    return settings


def messages(n, seed):
    "Events, some of them twice, some of them corrected later on."
    draw, now, rows = random.Random(seed), SystemClock().now(), []
    for i in range(n):
        at = (now - timedelta(minutes=draw.randrange(9000))).isoformat()
        row = {
            "events": "views",
            "view": f"e{i}",
            "visitor": f"v-{draw.randrange(30)}",
            "page": f"/t{i % 7}",
            "at": at,
        }
        rows.append({**row, "ms": draw.randrange(9000)})
        if rows and draw.random() < 0.1:
            rows.append(draw.choice(rows[-50:]))
        if draw.random() < 0.05:
            old = draw.choice(rows[-50:])
            rows.append({**old, "ms": old["ms"] + 1})
    return rows


def killed_and_read(here, where, kills, seed):
    draw = random.Random(seed)
    known = {**os.environ, "PYTHONPATH": str(HERE), "MLSYS_HOME": str(here.home)}
    words = [*RUN, "stream", where, "pages", "--root", str(here.root)]
    for _ in range(kills):
        process = subprocess.Popen([*words, "--follow"], env=known, stdout=subprocess.PIPE, text=True)
        folder = here.inbox / "views"
        until = time.monotonic() + 20
        size = sum(p.stat().st_size for p in folder.glob("*.log"))
        while sum(p.stat().st_size for p in folder.glob("*.log")) == size and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    done = subprocess.run(words, env=known, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def last_said(rows):
    "What counts in the end: the last that was said of each event."
    return {r["view"]: r["ms"] for r in rows}


def in_the_lake(here):
    ingest_due(Context(here, problem, SystemClock().now()))
    rows = read(here, snapshot(here, "views")).filter(pl.col("retracted_at").is_null())
    mine = rows.filter(pl.col("event_id").str.starts_with("e"))
    assert mine["event_id"].is_unique().all()
    return dict(zip(mine["event_id"], mine["ms"], strict=True))


def test_kill_nine_of_a_reader_of_lines(here, tmp_path):
    rows, path = messages(1500 * KILLS, 2), tmp_path / "views.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    killed_and_read(here, str(path), KILLS, 1)
    assert in_the_lake(here) == last_said(rows)
    again = Intake(here, source, SystemClock().now)
    assert take_in(JsonLines(path), {"views": again}) == {"views": []}
    again.close()


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory):
    redis = pytest.importorskip("redis")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server here")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: redis.Redis(port=port).ping(), process)
    yield port
    process.terminate()
    process.wait()


def test_kill_nine_of_a_reader_of_redis(here, redis_port):
    import redis

    client, rows = redis.Redis(port=redis_port), messages(1500 * KILLS, 3)
    pipe = client.pipeline()
    for row in rows:
        pipe.xadd("views", {"event": json.dumps(row)})
    pipe.execute()
    taken = RedisStream(client, "views").take(0, 50)  # a consumer that dies before it confirms
    assert len(taken) == 50 and client.xpending("views", "mlsys")["pending"] == 50
    killed_and_read(here, f"redis://127.0.0.1:{redis_port}/0#views", KILLS, 4)
    assert client.xpending("views", "mlsys")["pending"] == 0
    assert in_the_lake(here) == last_said(rows)


def test_fault_13_a_poison_message_is_refused_alone_and_kept(here, tmp_path):
    good = messages(1, 3)[0]
    odd = [
        {"events": []},
        {"events": {"a": 1}},
        {"events": "other"},
        {**good, "ms": 1.5},
        {**good, "at": "yesterday"},
        {**good, "view": ""},
        {**good, "view": None},
        {**good, "view": "big", "ms": 2**60},
        {**good, "view": "huge", "ms": 10**30},
        {**good, "view": "x" * 401},
        {**good, "view": "\ud800"},
        {**good, "view": "e", "page": "/\ud800"},
        {**good, "view": "n", "paid": float("inf")},
        {**good, "view": "t", "at": "0001-01-01T00:00:00+23:00"},
        {**good, "view": "l", "page": ["/"]},
        {**good, "view": "p", "page": "no slash"},
        {**good, "view": "r", "retracted": "perhaps"},
    ]
    bad = ["{", "[]", '"x"', "null", "[" * 100_000, "\ud800", "1" * 5000, *map(json.dumps, odd)]
    draw = random.Random(1)
    for round_, handful in enumerate((bad, draw.sample(bad, len(bad)))):
        path = tmp_path / f"{round_}.jsonl"
        told = [*handful[:9], json.dumps({**good, "view": f"e{round_}"}), *handful[9:]]
        path.write_bytes("\n".join([*told, ""]).encode("utf-8", "backslashreplace"))
        intake = Intake(here, source, SystemClock().now)
        (receipt,) = take_in(JsonLines(path), {"views": intake})["views"]
        intake.close()
        assert receipt.count("quarantined") == len(bad) and receipt.count("accepted") == 1
        assert all(fate.rule and fate.reason for fate in receipt.told if fate.status == "quarantined")
    in_the_lake(here)
    time.sleep(0.5)
    assert set(in_the_lake(here)) == {"e0", "e1"}
    kept = quarantine(here, snapshot(here, "views"))
    assert len(kept) == len(set(bad)), "each once, however often it came"


def test_what_a_killed_reader_left_is_visible_and_in_the_lake_after_two_ingests(here, tmp_path):
    "Nobody made it visible before the kill: the ingest does, and the next one takes it."
    intake = Intake(here, source, SystemClock().now)
    path = tmp_path / "left.jsonl"
    path.write_text(json.dumps(messages(1, 5)[0]) + "\n")
    take_in(JsonLines(path), {"views": intake})
    intake.close()
    assert in_the_lake(here) == {}
    box = Inbox(here, "views")
    box.catch_up()
    assert box.at.visible == box.at.count == 1
    time.sleep(0.3)
    assert len(in_the_lake(here)) == 1
    assert ingest(here, source, SystemClock().now()).batches == ()


def test_two_files_of_one_name_are_two_streams(tmp_path):
    one, other = JsonLines(tmp_path / "a" / "orders.jsonl"), JsonLines(tmp_path / "b" / "orders.jsonl")
    assert one.name != other.name and one.name == JsonLines(tmp_path / "a/../a/orders.jsonl").name


def test_fault_a_new_column_stayed_empty_for_events_that_waited_for_their_ingest(here):
    "A refill took it from the lake only; the next ingest then was refused, since the event said something else there."
    few = Events("views", keys={"visitor": "text"}, time="at", columns={"page": "text"})
    with open_online(here.root / "store") as kept:
        kept.keep(FeatureSet("few", (count(few, "7d").named("n"),)))
        sync(kept, here, few, snapshot(here, "views"))
        intake, clock = Intake(here, source, SystemClock().now), SystemClock()
        event = {"view": "w", "visitor": "v-9", "page": "/", "at": f"{clock.now():%Y-%m-%d}", "ms": 70}
        intake.submit(Post([event])).result(20)
        assert materialize(intake.box, source, kept, clock) == 1
        intake.close()
        wait_until_due(intake.box.at.known, clock)
        kept.keep(features)
        taken = snapshot(here, "views")
        sync(kept, here, views, taken, lambda: waiting_rows(here, source, kept, clock.now()))
        now = clock.now()
        assert kept.reader(features).read({"visitor": "v-9"}, now)["ms"] == 70
        ingest(here, source, now)
        assert sync(kept, here, views, snapshot(here, "views")) == 0
        assert kept.reader(features).read({"visitor": "v-9"}, now)["ms"] == 70
