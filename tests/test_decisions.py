"Decisions: exact bits, group commit, torn tails, kill -9."

import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

import polars as pl
import pytest
from conftest import until
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.decisions import log_writer
from mlsys_nb.decisions.batch_decisions import append_batch, batch_written, read_batch
from mlsys_nb.decisions.decision_record import Decision, DecisionError, from_record, to_record
from mlsys_nb.decisions.log import UnknownDecision, find_decision, read_decisions
from mlsys_nb.decisions.log_segments import line_of, log_folder, read_lines
from mlsys_nb.decisions.log_writer import DecisionLog, _Files
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
    line = line_of(to_record(replace(ONE, features=features)))
    (back,) = [from_record(r) for r in read_lines(line).records]
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
    assert 2 <= len(list((here.decisions / "churn" / "segments").glob("*.log"))) <= 7
    frame = read_decisions(here, "churn")
    assert frame.height == 320 and frame["request_id"].n_unique() == 320
    for decision_id in frame["decision_id"].sample(5, seed=0):
        assert find_decision(here, "churn", decision_id).decision_id == decision_id


def known(log, name, asked_by=None, entity=ONE.entity):
    return log.recall(name, asked_by, (entity, {}))


def test_a_name_belongs_to_a_key_and_a_tenant(tmp_path):
    log = DecisionLog(load_settings(root=tmp_path), "churn", per="shop")
    asked = [
        replace(ONE, request_id="r", asked_by=by, entity={"shop": shop, "customer_id": 1})
        for by in ("a", "b")
        for shop in ("north", "south")
    ]
    made = log.append(asked)
    assert len({d.decision_id for d in made}) == 4, "four who chose the same name, four answers"
    assert [d.decision_id for d in log.append(asked)] == [d.decision_id for d in made]
    assert [known(log, "r", d.asked_by, d.entity).result() for d in made] == made
    assert known(log, "r", "c", asked[0].entity) is None
    log.close()
    again = DecisionLog(load_settings(root=tmp_path), "churn", per="shop")
    assert [known(again, "r", d.asked_by, d.entity).result() for d in made] == made
    again.close()


@pytest.mark.parametrize("cuts", [(0,), (0, 1200), (0, 499, 950, 1900)])
def test_a_restart_reads_the_end_of_the_log_and_decodes_what_has_a_name(tmp_path, monkeypatch, cuts):
    "Fault: the head of each file counted as a decision, so where a busy machine had begun another file fewer were remembered."
    from mlsys_nb.decisions import log_writer

    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn", rotate=900)
    names = {i: f"r{i}" for i in range(0, 2000, 100)}
    strange = {"t": ',"request_id":null,', "n": 'x","request_id":null,"y'}
    given = [replace(ONE, request_id=names.get(i), features=strange) for i in range(2000)]
    made = [one for a, b in pairwise([*cuts, 2000]) for one in log.append(given[a:b])]
    log.close()
    decoded, real = [], log_writer.from_record
    monkeypatch.setattr(log_writer, "from_record", lambda r: decoded.append(r) or real(r))
    again = DecisionLog(here, "churn", remember=1500)
    told = sorted((r["request_id"] for r in decoded), key=lambda name: int(name[1:]))
    assert told == [n for i, n in names.items() if i >= 500]  # file after file, the newest first
    assert all((known(again, n) is not None) == (i >= 500) for i, n in names.items())
    assert known(again, "r1900").result() == made[1900]
    again.close()


def test_memory_is_bounded_and_newest_survive_a_restart(tmp_path):
    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn", remember=10)
    made = [log.append([replace(ONE, request_id=str(i))])[0] for i in range(30)]
    assert known(log, "29") is not None and known(log, "3") is None
    log.close()
    again = DecisionLog(here, "churn", remember=10)
    assert known(again, "25").result() == made[25] and known(again, "3") is None
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


def test_torn_tail_is_no_decision(tmp_path):
    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn")
    log.append([ONE, ONE])
    log.close()
    (path,) = (here.decisions / "churn" / "segments").glob("*.log")
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-20])
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


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "", "/etc/x", "a/b", ".hidden", "a\\x00b", "x" * 201, "é"]
)
def test_a_batch_is_named_by_no_path(tmp_path, name):
    here = load_settings(root=tmp_path / "root")
    frame = pl.DataFrame({"customer_id": [1], "moment": [MAY], "version": [1], "score": [0.5], "threshold": [0.5],
                          "action": ["x"], "eligible": [True], "feature_set_hash": ["a"], "n": [1]})  # fmt: skip
    for deed in (
        lambda: append_batch(here, "churn", name, frame, ["customer_id"]),
        lambda: read_batch(here, "churn", name),
        lambda: batch_written(here, "churn", name),
    ):
        with pytest.raises(DecisionError, match="not by a path"):
            deed()
    assert list(tmp_path.iterdir()) == []


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
from mlsys_nb.decisions.decision_record import Decision
from mlsys_nb.decisions.log_writer import DecisionLog, _Files
from mlsys_nb.system.settings import load_settings
one = Decision("", "churn", {"customer_id": 1}, datetime(2010, 5, 1, tzinfo=UTC), 1, .5, .25, "write", True, {"a": 1}, "f")
log = DecisionLog(load_settings(root=sys.argv[1]), "churn")
while True:
    print(log.append([one])[0].decision_id, flush=True)
"""


def test_a_log_that_is_closed_while_its_thread_gathers_ends(tmp_path, monkeypatch):
    "Fault: what `close` had said was cleared with what was due, and a service that was told to end took half a minute."
    log = DecisionLog(replace(load_settings(root=tmp_path), durable="within 5 ms"), "churn")
    gathers = threading.Event()

    def pause(seconds):
        gathers.set()
        until(lambda: log._later._ends)
        time.sleep(0.05)  # and the rest of what `close` says

    monkeypatch.setattr(log_writer, "pause", pause)
    log.write([ONE])
    assert gathers.wait(60)
    log.close(patience=10)
    assert not log._later._thread.is_alive()


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


def test_fault_10_no_problem_may_declare_a_word_of_the_log():
    "A feature named `score` or `version` overwrote the served one in read_decisions."
    from mlsys_nb.cases.churn import problem
    from mlsys_nb.decisions.decision_record import META
    from mlsys_nb.features.feature_set import FeatureSet
    from mlsys_nb.problem.declaration import TAKEN
    from mlsys_nb.system.settings import ProblemError

    assert set(META) <= TAKEN
    for name in ("score", "version", "label"):
        first, *others = problem.features.features
        named = FeatureSet("named", (replace(first, name=name), *others))
        with pytest.raises(ProblemError, match=f"'{name}'"):
            replace(problem, features=named)


def test_fault_24_since_is_in_and_until_is_out_also_within_one_day(tmp_path):
    from datetime import timedelta

    from mlsys_nb.decisions.log import archive_days

    here = load_settings(root=tmp_path)
    log = DecisionLog(here, "churn")
    hours = [MAY + timedelta(hours=n) for n in range(4)]
    log.append([replace(ONE, moment=hour) for hour in hours])
    log.close()
    for _ in range(2):  # from the segment, then from Parquet
        found = read_decisions(here, "churn", since=hours[1], until=hours[3])["moment"].to_list()
        assert found == hours[1:3]
        archive_days(here, "churn", MAY + timedelta(days=2))


@pytest.mark.parametrize("let_go_first", [True, False])
def test_a_segment_let_go_while_it_is_brought_to_disk_is_on_disk_and_no_trouble(tmp_path, let_go_first):
    files = _Files(log_folder(load_settings(root=tmp_path), "echo"), "echo", 100)
    [[made]] = files.write([ONE], False)
    segment, synced = files._segment, []
    plain = segment._file.sync

    def watched() -> None:
        if let_go_first and not synced:
            synced.append("begun")
            files.let_go()  # another thread's turn, right before the system's call
        plain()
        synced.append("done")

    segment._file.sync = watched
    files.sync()
    files.let_go()
    assert synced == (["begun", "done"] if let_go_first else ["done"]) and isinstance(made, Decision)
    segment._file.sync = lambda: (_ for _ in ()).throw(OSError("the disk is gone"))
    with pytest.raises(OSError, match="disk is gone"):
        segment.sync()
