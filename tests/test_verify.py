"""Every file of a filled root truncated, emptied, flipped, deleted in turn: `mlsys verify` names it, or the part it is of.

A few files of each kind are damaged; TEST_MLSYS_FULL=1 takes every file. What nobody notices must change no answer.
"""

import json
import os
import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import polars as pl
import pytest
import visits_world

from mlsys_nb.data.event_inbox import visible_entries
from mlsys_nb.data.event_validation import Intake, Post
from mlsys_nb.data.inbox_files import inbox_folder
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.decisions.batch_decisions import append_batch
from mlsys_nb.decisions.decision_record import Decision
from mlsys_nb.decisions.log import archive_days, read_decisions
from mlsys_nb.decisions.log_writer import DecisionLog
from mlsys_nb.decisions.outcomes import Ledger, Outcome
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.recovery.integrity_check import CHECKS, findings
from mlsys_nb.features.store_sync import open_online, sync
from mlsys_nb.jobs.run_index import record_of
from mlsys_nb.jobs.runner import Runner
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.clock import open_clock
from mlsys_nb.system.control_tables import open_control, put_document
from mlsys_nb.system.durable import write_folder, write_json
from mlsys_nb.system.registry_journal import keep_journal
from mlsys_nb.system.runs_table import list_runs
from mlsys_nb.system.settings import load_settings
from mlsys_nb.system.versions_table import VersionRow, add_version, version_rows

MAY = datetime(2010, 5, 1, tzinfo=UTC)
KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}


def world(root: Path, home: Path):
    "A small system with a run, a model and decisions, as the product itself writes them."
    notebook = nbformat.v4.new_notebook(metadata=KERNEL)
    new = nbformat.v4.new_code_cell
    notebook.cells = [new("n: int = 1", metadata={"tags": ["parameters"]}), new("n + 1")]
    (home / "nbs/jobs").mkdir(parents=True)
    (home / "nbs/jobs/add.ipynb").write_text(nbformat.writes(notebook))
    (home / "settings.ini").write_text(
        "[system]\ntracking_uri = off\n[problems]\nchurn = mlsys_nb.cases.churn:problem\n"
    )
    settings = load_settings(root=root, home=home)
    with Runner(settings, preload=()) as runner:
        runner.run("add")
        runner.run("add", {"n": 2})
        seal = write_folder(
            settings.models / "churn/aa", {"form.npz": b"0123456789" * 9}, {"family": "rule"}
        )["seal"]
        add_version(runner.control, VersionRow("churn", 0, seal, "churn/aa", MAY, summary={"family": "rule"}))
        keep_journal(runner.control)
    one = Decision("", "churn", {"customer_id": 1}, MAY, 1, 0.5, 0.25, "write", True, {"a": 1}, "f00d")
    log = DecisionLog(settings, "churn", rotate=3)
    log.append([replace(one, request_id=f"r{n}", moment=MAY + timedelta(hours=n)) for n in range(7)])
    log.close()
    rows = {"customer_id": [1, 2], "moment": [MAY] * 2, "version": [1] * 2, "score": [0.5, 0.25], "threshold": [0.3] * 2,
            "action": ["write", "leave"], "eligible": [True] * 2, "feature_set_hash": ["f00d"] * 2, "a": [1, 2]}  # fmt: skip
    append_batch(settings, "churn", "b1", pl.DataFrame(rows), ["customer_id"])
    archive_days(settings, "churn", MAY + timedelta(days=9))
    Ledger(settings, "churn").post([Outcome("b:b1:0", 1, MAY + timedelta(days=3), "ada")])
    visits_world.rows(12, days=9).write_parquet(home / visits_world.FILE)
    stored = replace(settings, raw=home)
    for day in (5, 9):
        ingest(stored, visits_world.problem.sources[0], visits_world.START + timedelta(days=day))
    with open_online(settings.online) as store:
        store.keep(visits_world.features)
        sync(store, stored, visits_world.visits, snapshot(stored, "visits"))
    intake = Intake(stored, visits_world.problem.sources[0], lambda: MAY)
    for n in range(3):
        visit = {"member": 1, "at": f"2024-01-0{n + 2}T10:00:00Z", "minutes": 30, "branch": "north"}
        assert intake.submit(Post([visit])).result().count("accepted") == 1
    intake.close()
    write_json(settings.clock_file, {"now": "2010-05-01T00:00:00+00:00"})
    put_document(open_control(settings), "clock", "replayed", {"since": "2010-05-01T00:00:00+00:00"})
    return settings


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return world(tmp_path_factory.mktemp("root"), home)


def damaged(content: bytes, how: str) -> bytes | None:
    at = len(content) // 2
    return {
        "truncated": content[:-1],
        "halved": content[:at],
        "emptied": b"",
        "flipped": content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :] if content else b"x",
        "deleted": None,
    }[how]


def files(root: Path) -> list[Path]:
    "Files that hold state: locks hold none, the catalogue of a sealed folder is checked with it."
    every = [p for p in root.rglob("*") if p.is_file() and not p.name.endswith(".lock") and p.stat().st_size]
    return sorted(p for p in every if "locks" not in p.parts)


def answers(settings) -> tuple:
    "What the tables and the decision log say; a byte between two rows, or a note that is not needed, changes nothing."
    control = open_control(settings)
    return (
        read_decisions(settings, "churn").rows(),
        list_runs(control),
        version_rows(control),
        audit_log(control),
        served(settings),
        open_clock(settings.clock_file).now(),
        visible_entries(inbox_folder(settings, "visits")),
    )


def served(settings) -> list:
    "What the serving store answers, and the lake."
    with open_online(settings.online) as store:
        reader = store.reader(visits_world.features)
        rows = [reader.read({"member": m}, visits_world.START + timedelta(days=9)) for m in range(1, 14)]
    return [rows, read(settings, snapshot(settings, "visits")).rows()]


DAMAGES = ("truncated", "halved", "emptied", "flipped", "deleted")


def test_a_sound_root_is_called_sound(sound, capsys, monkeypatch):
    monkeypatch.chdir(sound.home)
    assert main(["verify", "--root", str(sound.root)]) == 0
    assert "are sound" in capsys.readouterr().out
    assert len(files(sound.root)) > 12


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_is_named_with_the_way_back(sound, tmp_path, how):
    every = files(sound.root)
    if not os.environ.get("TEST_MLSYS_FULL"):
        always = [path for path in every if path.name in ("data.mdb", "00000001.log")]
        every = always + random.Random(how).sample(every, 4)
    for number, path in enumerate(every):
        root = tmp_path / str(number)  # a path of its own: connections are kept by path
        shutil.copytree(sound.root, root)
        victim = root / path.relative_to(sound.root)
        content = damaged(victim.read_bytes(), how)
        victim.unlink() if content is None else victim.write_bytes(content)
        record_of.cache_clear()
        rows = findings(replace(sound, root=root))
        if not rows:
            name = f"{path.relative_to(sound.root)} {how}"
            assert path.suffix in (".db", ".size", ".mdb") or path.name == "clock.json", (
                f"{name}: nobody noticed"
            )
            assert answers(replace(sound, root=root)) == answers(sound), f"{name}: it answers wrong"
        assert all(row["remedy"] for row in rows)
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"run_id": "r1", "job": "train", "status": "failed"}', '{"metrics": 3}']
)
def test_a_damaged_record_stops_no_list_and_is_named_with_the_way_back(
    sound, tmp_path, capsys, monkeypatch, content
):
    root = tmp_path / "copy"
    shutil.copytree(sound.root, root)
    victims = sorted(root.glob("reports/*/*/*/run.json"))
    victims[0].write_text(content)
    record_of.cache_clear()
    monkeypatch.chdir(sound.home)
    assert main(["reports", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert (
        f"run {victims[0].parent.name} is not listed: its record says run_id, job, status, started_at" in said
    )
    assert f"bring {victims[0].parent} back from a backup" in said and "all that is damaged: mlsys" in said
    page = (root / "reports/index.html").read_text()
    assert "1 cannot be read: mlsys verify" in page and page.count("report.html") == len(victims) - 1


def test_verify_speaks_json_and_fails(sound, tmp_path, capsys, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(sound.root, root)
    page = next(root.glob("reports/*/*/*/report.html"))
    page.write_text(page.read_text() + " ")
    monkeypatch.chdir(sound.home)
    assert main(["verify", "--root", str(root), "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["part"], row["path"]) == ("reports", str(page.parent))
    assert main(["verify", "--root", str(root)]) == 1
    assert str(page.parent) in capsys.readouterr().out


def test_every_check_is_there():
    assert set(CHECKS) >= {
        "control tables",
        "clock",
        "lake",
        "inbox",
        "serving store",
        "models",
        "decisions",
        "reports",
        "mirror",
    }
