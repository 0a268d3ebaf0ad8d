"""kill -9 of a stream consumer while it folds: nothing lost, nothing counted twice.

The always-run part kills 8 times; the acceptance figure is `TEST_MLSYS_KILLS=200 pytest tests/test_stream.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import polars as pl

from mlsys_nb.features.feature_set import Events, FeatureSet, count, distinct, total
from mlsys_nb.features.online import open_online
from mlsys_nb.features.stream import JsonLines, consume, fold
from mlsys_nb.system.clock import instant

KILLS = int(os.environ.get("TEST_MLSYS_KILLS", "8"))
orders = Events("orders", keys={"customer": "int"}, time="ts", columns={"pence": "int", "shop": "text"})
features = FeatureSet(
    "s",
    (
        count(orders, "lifetime").named("n"),
        total(orders, "pence", "lifetime").named("spent"),
        distinct(orders, "shop", "lifetime").named("shops"),
    ),
)
CONSUMER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_stream import features
from mlsys_nb.system.clock import instant
from mlsys_nb.features.online import open_online
from mlsys_nb.features.stream import JsonLines, consume
with open_online(Path(sys.argv[1]) / "store", features) as store:
    print("folding", flush=True)
    consume(JsonLines(Path(sys.argv[1]) / "orders.jsonl"), store, lambda: instant("2011-01-01"), limit=25)
print("done", flush=True)
"""


def messages(n, seed):
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        at = instant("2010-01-01") + timedelta(minutes=i)
        row = {"events": "orders", "event_id": f"o{i}", "customer": draw.randrange(40), "ts": at.isoformat()}
        row |= {"pence": draw.randint(-50, 5000), "shop": f"s{draw.randrange(30)}"}
        if draw.random() < 0.5:
            row["known_at"] = (at + timedelta(minutes=draw.choice((0, 0, 90)))).isoformat()
        rows.append(row)
        if draw.random() < 0.1:
            rows.append(draw.choice(rows[-50:]))
    return rows


def test_kill_nine(tmp_path):
    draw, rows = random.Random(1), messages(400 * KILLS + 500, 2)
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    script = CONSUMER.format(tests=str(Path(__file__).parent))
    killed, done = 0, False
    while not done:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "folding\n"
        if killed < KILLS:
            time.sleep(draw.random() * 0.12)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        done = process.stdout.read() == "done\n" and process.wait() == 0
        process.stdout.close()
    assert killed >= min(KILLS, 5)
    truth = pl.DataFrame(list({r["event_id"]: r for r in rows}.values()), infer_schema_length=None)
    truth = truth.group_by("customer").agg(
        n=pl.len().cast(pl.Int64), spent=pl.col("pence").sum(), shops=pl.col("shop").n_unique()
    )
    with open_online(tmp_path / "store", features) as store:
        for row in truth.iter_rows(named=True):
            mine = store.read({"customer": row["customer"]}, instant("2011-02-01"))
            assert mine == {k: row[k] for k in mine}
        assert consume(JsonLines(tmp_path / "orders.jsonl"), store, lambda: instant("2011-01-01")).new == 0


def test_what_cannot_be_read_is_set_aside(tmp_path):
    good = messages(1, 3)[0]
    bad = ["{", "[]", '"x"', "null", "[" * 100_000, '{"events": "other"}', json.dumps({**good, "pence": 1.5})]
    bad += [
        json.dumps({**good, "ts": "yesterday"}),
        json.dumps({**good, "event_id": 7}),
        json.dumps({**good, "customer": True}),
    ]
    bad += [
        json.dumps({**good, "event_id": "big", "pence": 2**60}),
        json.dumps({**good, "event_id": "x" * 1000}),
    ]
    bad += [
        json.dumps({**good, "event_id": "\ud800"}),
        json.dumps({**good, "shop": "\ud800", "event_id": "e"}),
    ]
    with open_online(tmp_path / "store", features) as store:
        folded = fold(store, [*bad[:5], json.dumps(good), *bad[5:]], instant("2010-02-01"))
        assert (folded.new, len(folded.rejected)) == (1, len(bad)), folded
        assert store.read({"customer": good["customer"]}, instant("2010-03-01"))["n"] == 1
