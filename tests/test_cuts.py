"""Every deed on the disk cut once: the process ends before the k-th one, starts again, and ends in the same state.

A few cuts of each work by default; `TEST_MLSYS_FULL=1 pytest tests/test_cuts.py` tries all of them.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import inbox_cuts
import pytest
from cutting import CUT, cut_before

from mlsys_nb.data.lake import quarantine, read, snapshot
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.release.package import Package
from mlsys_nb.release.registry import champion, promote, register, versions
from mlsys_nb.system import file_operations
from mlsys_nb.system.append_only_file import Appender, acknowledged
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import Log, json_bytes, remove_tree, sha256, write_bytes, write_folder
from mlsys_nb.system.pointers import StalePointer
from mlsys_nb.system.registry_journal import read_journal
from mlsys_nb.system.settings import load_settings
from mlsys_nb.system.temporary_files import TEMPORARY

MAY = instant("2010-05-01")


def stand_in(text: str) -> Package:
    files = {"model.json": json_bytes(text), "golden.json": json_bytes([text] * 50)}
    listed = {name: {"sha256": sha256(content), "bytes": len(content)} for name, content in files.items()}
    words = {"problem": "churn", "family": "rule", "params": {}, "training": {}, "metrics": {}}
    manifest = {"files": listed, **words, "dataset": text, "simulated": False}
    return Package(files, {**manifest, "seal": sha256(json_bytes(manifest))})


def batches(root: Path) -> None:
    for day in range(2):
        write_folder(
            root / "lake" / f"2010-05-{day + 1:02d}", {"rows": b"1" * 3000, "quarantine": b""}, {"n": day}
        )


def report(root: Path) -> None:
    write_bytes(root / "reports" / "index.html", b"old")
    write_folder(root / "reports" / "train" / "r1", {"report.html": b"<p>", "run.json": b"{}"})
    write_bytes(root / "reports" / "index.html", b"new")


def records(root: Path) -> None:
    log = Log(root / "outcomes.log")
    known = {record["i"] for record in Log.read(log.path)}
    for i in range(4):
        if i not in known:
            log.append([{"i": i, "text": "x" * 500}])


def retention(root: Path) -> None:
    write_folder(root / "kept", {"rows": b"1"})
    if not (root / "done").exists():
        write_folder(root / "old", {"rows": b"2"})
        write_bytes(root / "done", b"")
    remove_tree(root / "old")


def release(root: Path) -> None:
    settings = load_settings(root=root)
    for number, text in enumerate(("first", "second")):
        control = open_control(settings)
        register(control, settings, stand_in(text), "run", MAY)
        if champion(control, "churn").epoch == number:
            promote(
                control, "churn", number + 1, expected_epoch=number, at=MAY, actor="gate", reason="better"
            )


WORKS: list[Callable[[Path], None]] = [batches, report, records, retention, release]


def state(root: Path) -> dict[str, object]:
    "What a reader sees; control tables and their journal by what they say."
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and "control.db" not in name and path.suffix != ".lock" and path.name != ".lock":
            found[name] = path.read_bytes()
    if (root / "data" / "control.db").exists():
        settings = load_settings(root=root)
        control, journal = open_control(settings), read_journal(settings.journal)
        found["data/models/journal.log"] = sorted(journal.versions), sorted(journal.moves)
        found["versions"] = [(v.version, v.digest, v.status) for v in versions(control, settings, "churn")]
        found["champion"] = champion(control, "churn")
        found["audit"] = [(line.number, line.action, line.detail) for line in audit_log(control)]
    return found


def deeds_of(work: Callable[[Path], None], root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    with monkeypatch.context() as m:
        m.setattr(file_operations, "FAULTS", [lambda verb, path, content: told.append(verb)])
        work(root)
    return told


def cut_at(work: Callable[[Path], None], root: Path, number: int) -> int:
    "Run in a child that ends before its deed `number`; half of what it was to write is there."
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        cut_before(number)
        work(root)
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.__name__)
def test_a_cut_anywhere_ends_in_the_state_of_an_uncut_run(
    work: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = deeds_of(work, tmp_path / "uncut", monkeypatch)
    wanted = state(tmp_path / "uncut")
    assert len(told) >= 8 and wanted
    step = 1 if os.environ.get("TEST_MLSYS_FULL") else max(1, len(told) // 12)
    for number in range(1, len(told) + 1, step):
        root = tmp_path / f"cut-{number}"
        assert cut_at(work, root, number) == CUT, f"deed {number} of {len(told)} ({told[number - 1]})"
        work(root)
        now = state(root)
        left = [name for name in now if TEMPORARY in name]
        assert {k: v for k, v in now.items() if k not in left} == wanted, (
            f"cut before {told[number - 1]} {number}"
        )


def inbox_life(root: Path, number: int) -> tuple[int, str]:
    "The exit code of one life, and what it said; cut before a deed, or with 0 not at all."
    words = [sys.executable, Path(__file__).with_name("inbox_cuts.py"), root, str(number)]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


def in_the_end(root: Path) -> tuple[object, ...]:
    "Events of the lake that count, what the store says of two visitors, what was set aside."
    here = load_settings(root=root / "root", home=root)
    rows, aside = read(here, snapshot(here, "views")), quarantine(here, snapshot(here, "views"))
    rows = rows.filter(rows["retracted_at"].is_null()).sort("event_id")
    with open_online(here.online_url) as store:
        reader = store.reader(inbox_cuts.features)
        told = [reader.read({"visitor": v}, inbox_cuts.TODAY + timedelta(days=2)) for v in ("v-1", "v-2")]
    return rows.select("event_id", "visitor", "ms").rows(), told, aside.height


def test_an_inbox_cut_anywhere_ends_as_an_uncut_one(tmp_path: Path) -> None:
    "It could not be tried: the child of a fork waits for ever for the threads of polars."
    code, said = inbox_life(tmp_path / "uncut", 0)
    assert code == 0, said
    deeds, wanted = int(said.split()[-1]), in_the_end(tmp_path / "uncut")
    assert {e: ms for e, _, ms in wanted[0]} == {**inbox_cuts.LAST, "h0": 5} and wanted[2] == 1 and deeds > 20
    step = 1 if os.environ.get("TEST_MLSYS_FULL") else deeds // 5
    for number in range(1, deeds + 1, step):
        root = tmp_path / f"cut-{number}"
        code, said = inbox_life(root, number)
        assert code == CUT, f"deed {number} of {deeds}: {said}"
        code, said = inbox_life(root, 0)
        assert code == 0, f"after a cut before deed {number}: {said}"
        assert in_the_end(root) == wanted, f"cut before deed {number} of {deeds}"


def test_what_an_appender_said_is_there_after_a_cut(tmp_path: Path) -> None:
    for number in range(1, 14):
        path = tmp_path / str(number) / "segment.log"

        def work(root: Path, path: Path = path) -> None:
            file = Appender(path)
            for _ in range(3):
                file.append(b"0123456789")

        cut_at(work, tmp_path, number)
        if path.exists():
            assert path.stat().st_size >= acknowledged(path)
            assert path.read_bytes().startswith(b"0123456789" * (acknowledged(path) // 10))


def test_a_second_promotion_after_a_cut_is_told(tmp_path: Path) -> None:
    release(tmp_path)
    with pytest.raises(StalePointer):
        promote(
            open_control(load_settings(root=tmp_path)),
            "churn",
            1,
            expected_epoch=0,
            at=MAY,
            actor="a",
            reason="b",
        )
