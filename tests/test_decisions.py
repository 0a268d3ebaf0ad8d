"Decisions: exact bits, group commit, torn tails, kill -9."

import math
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.decisions.log import (
    Decision,
    DecisionLog,
    UnknownDecision,
    append_batch,
    find_decision,
    from_record,
    read_decisions,
    to_record,
)  # fmt: skip
from mlsys_nb.system.durable import Log
from mlsys_nb.system.settings import load_settings

MAY = datetime(2010, 5, 1, tzinfo=UTC)
ONE = Decision(
    "", "churn", {"customer_id": 1}, MAY, 1, 0.5, 0.25, "write", True, {"a": 1, "b": 0.1, "c": "x"}, "f00d"
)


def bits(value):
    return struct.pack("<d", value) if isinstance(value, float) else value


@given(st.dictionaries(st.text(min_size=1, max_size=5).filter(str.isidentifier),
                       st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
                       | st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=6))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_features_come_back_to_the_bit(features):
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder) / "x.log")
        log.append([to_record(replace(ONE, features=features))])
        (back,) = [from_record(r) for r in Log.read(Path(folder) / "x.log")]
    assert {k: bits(v) for k, v in back.features.items()} == {k: bits(v) for k, v in features.items()}
    assert {k: type(v) for k, v in back.features.items()} == {k: type(v) for k, v in features.items()}


def test_nan_survives():
    back = from_record(to_record(replace(ONE, features={"a": math.nan})))
    assert math.isnan(back.features["a"])


def test_many_threads_and_rotation(tmp_path):
    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn", rotate=50)

    def work(n):
        for i in range(40):
            log.append([replace(ONE, request_id=f"{n}-{i}")])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    log.close()
    assert len(list((here.decisions / "churn" / "http").glob("*.log"))) == 7
    frame = read_decisions(here, "churn")
    assert frame.height == 320 and frame["request_id"].n_unique() == 320
    for decision_id in frame["decision_id"].sample(5, seed=0):
        assert find_decision(here, "churn", decision_id).decision_id == decision_id


def test_memory_is_bounded_and_newest_survive_a_restart(tmp_path):
    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn", remember=10)
    made = [log.append([replace(ONE, request_id=str(i))])[0] for i in range(30)]
    assert log.recall("29") is not None and log.recall("3") is None
    log.close()
    again = DecisionLog(here, "churn", remember=10)
    assert again.recall("25").result() == made[25] and again.recall("3") is None
    again.close()


def test_same_request_at_the_same_time_is_one_decision(tmp_path):
    log = DecisionLog(load_settings(root=tmp_path), "churn")
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(log.append([replace(ONE, request_id="r")])[0]))
        for _ in range(12)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    log.close()
    assert len({d.decision_id for d in found}) == 1
    assert read_decisions(load_settings(root=tmp_path), "churn").height == 1


def test_a_failed_write_is_not_remembered(tmp_path, monkeypatch):
    log = DecisionLog(load_settings(root=tmp_path), "churn")
    monkeypatch.setattr(
        Log, "append", lambda self, records: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError):
        log.append([replace(ONE, request_id="r")])
    monkeypatch.undo()
    assert log.recall("r") is None
    assert log.append([replace(ONE, request_id="r")])[0].decision_id
    log.close()


def test_torn_tail_is_no_decision(tmp_path):
    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn")
    log.append([ONE, ONE])
    log.close()
    (path,) = (here.decisions / "churn" / "http").glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-20])
    assert read_decisions(here, "churn").height == 2


def test_two_writers_never_share_an_id(tmp_path):
    here = load_settings(root=tmp_path)
    logs = [DecisionLog(here, "churn") for _ in range(3)]
    ids = [log.append([ONE])[0].decision_id for log in logs for _ in range(5)]
    assert len(set(ids)) == 15
    [log.close() for log in logs]
    assert read_decisions(here, "churn").height == 15


def test_ids_from_outside_cannot_leave_the_folder(tmp_path):
    here = load_settings(root=tmp_path)
    for wrong in (
        "b:../../x:1",
        "b:/etc:1",
        "h../1-1-00000000",
        "b:.:0",
        "h1-1-zzzzzzzz",
        "h٣-1-00000000",
        "\x00",
    ):
        with pytest.raises(UnknownDecision):
            find_decision(here, "churn", wrong)


def test_batches_with_other_columns_join(tmp_path):
    here = load_settings(root=tmp_path)
    frame = pl.DataFrame({"customer_id": [1], "moment": [MAY], "version": [1], "score": [0.5], "threshold": [0.5],
                          "action": ["x"], "eligible": [True], "feature_set_hash": ["a"], "n": [1]})  # fmt: skip
    append_batch(here, "churn", "one", frame, ["customer_id"])
    append_batch(here, "churn", "two", frame.rename({"n": "m"}).with_columns(m=pl.lit(0.5)), ["customer_id"])
    with pytest.raises(FileExistsError):
        append_batch(here, "churn", "one", frame.with_columns(score=pl.lit(0.6)), ["customer_id"])
    both = read_decisions(here, "churn")
    assert both.select("n", "m").rows() == [(1, None), (None, 0.5)]


KILLED = """
import sys
from datetime import UTC, datetime
from mlsys_nb.decisions.log import Decision, DecisionLog
from mlsys_nb.system.settings import load_settings
one = Decision("", "churn", {"customer_id": 1}, datetime(2010, 5, 1, tzinfo=UTC), 1, .5, .25, "write", True, {"a": 1}, "f")
log = DecisionLog(load_settings(root=sys.argv[1]), "churn")
while True:
    print(log.append([one])[0].decision_id, flush=True)
"""


def test_killed_writer_loses_nothing_acknowledged(tmp_path):
    for n in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        told = [process.stdout.readline().strip() for _ in range(30 + 17 * n)]
        os.kill(process.pid, signal.SIGKILL)
        told += [
            line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")
        ]
        process.wait()
        kept = set(read_decisions(load_settings(root=tmp_path), "churn")["decision_id"])
        assert set(told) <= kept and len(set(told)) == len(told)
