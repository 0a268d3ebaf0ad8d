"A system is copied while it works, brought back elsewhere, and is sound there; nothing that was acknowledged before is missing."

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import serving_world as world
from caller import post
from conftest import until

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.log_writer import DecisionLog
from mlsys_nb.decisions.outcomes import read_outcomes
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.recovery.backup import (
    BackupError,
    backups,
    damaged,
    keep_newest,
    restore,
    stored,
    take,
    taken_by,
)
from mlsys_nb.doors.recovery.integrity_check import findings
from mlsys_nb.loop.decision_reproduction import reproduce
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.step_context import context
from mlsys_nb.release.registry import champion
from mlsys_nb.serving.service import running
from mlsys_nb.system.durable import SealError, write_json
from mlsys_nb.system.settings import load_settings


def faults(root: Path) -> list[dict]:
    "What `mlsys verify` would say, but for the serving store, which is made anew."
    return [f for f in findings(load_settings(root=root, home=world.HOME)) if f["part"] != "serving store"]


def test_copies_of_a_working_system_are_sound_and_miss_nothing_acknowledged_before(tmp_path):
    here, place = world.make(tmp_path / "live"), tmp_path / "copies"
    told, stop = [], threading.Event()

    def ask(url: str, who: int) -> None:
        while not stop.is_set():
            status, made = post(url, "/v1/churn/predictions", {"customer_id": 13080})
            assert status == 200, made
            told.append(made["decision_id"])
            if len(told) % 3 == 0:
                body = {"decision_id": made["decision_id"], "outcome": len(told) % 2}
                assert post(url, "/v1/churn/outcomes", body)[0] == 200

    seen = []
    with running(here, "churn") as url:
        threads = [threading.Thread(target=ask, args=(url, who)) for who in range(2)]
        for thread in threads:
            thread.start()
        try:
            for n in range(4):
                while len(told) < 20 * (n + 1):
                    time.sleep(0.01)
                before = list(told)
                seen.append((take(here, place, world.JUNE + timedelta(hours=n)), before))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert seen[-1][0].added < seen[0][0].added / 2, "what was there before costs nothing again"
    for n, (backup, before) in enumerate(seen):
        root = tmp_path / f"again{n}"
        assert restore(backup, root) == backup.files and faults(root) == []
        again = load_settings(root=root, home=world.HOME)
        assert set(before) <= set(read_decisions(again, "churn")["decision_id"])
        assert champion(context("churn", "2010-06-01", again).control, "churn").version == 1
    assert len(read_outcomes(again, "churn", world.JUNE + timedelta(days=900))) > 5


def test_a_restored_system_ingests_serves_and_makes_the_old_decisions_again(tmp_path):
    here, now = load_settings(root=tmp_path / "live", home=world.HOME), "2010-04-01"
    write_json(here.clock_file, {"now": f"{now}T00:00:00+00:00"})
    from mlsys_nb.loop.pipeline import score, train

    ingest_due(context("churn", now, here))
    train(context("churn", now, here), n_trials=1)
    names = score(context("churn", now, here)).batch.frame["decision_id"]
    place, root = tmp_path / "copies", tmp_path / "again"
    for words in (["backup", str(place), "--keep", "2"], ["backup", str(place), "--list"]):
        assert main([*words, "--root", str(here.root)]) == 0
    assert main(["restore", str(place), "--to", str(root)]) == 0
    assert main(["restore", str(place), "--to", str(root)]) == 2, "never over something"
    again = load_settings(root=root, home=world.HOME)
    ingest_due(context("churn", now, again))
    assert findings(again) == []
    from mlsys_nb.decisions.log import find_decision

    found = [reproduce(context("churn", now, again), find_decision(again, "churn", n)) for n in names[::300]]
    assert found and all(one.same for one in found)
    with running(again, "churn") as url:
        assert post(url, "/v1/churn/predictions", {"customer_id": 13085})[0] == 200


def test_a_killed_backup_leaves_no_half_and_the_next_one_is_whole(tmp_path):
    here, place = world.make(tmp_path / "live"), tmp_path / "copies"
    code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())"
    for files in (1, 9, 30):
        child = subprocess.Popen(
            [sys.executable, "-c", code, "backup", str(place), "--root", str(here.root)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda child=child, many=files: child.poll() is not None or len([*place.rglob("*")]) > many)
        child.send_signal(signal.SIGKILL)
        child.wait()
        for n, backup in enumerate(backups(place) if place.exists() else []):
            root = tmp_path / f"{files}-{n}"
            restore(backup, root)
            assert faults(root) == []
    whole = take(here, place, world.JUNE)
    assert restore(whole, tmp_path / "whole") == whole.files == len(dict(stored(here.root)))


@pytest.mark.parametrize("hurt", ["cut", "gone", "flipped", "manifest"])
def test_a_damaged_backup_is_named_and_writes_nothing(tmp_path, hurt, capsys):
    here, place = world.make(tmp_path / "live"), tmp_path / "copies"
    made = take(here, place, world.JUNE)
    path = next(p for p in sorted((place / "objects").glob("*/*")) if p.stat().st_size > 100)
    path = made.path / "files.json" if hurt == "manifest" else path
    content = path.read_bytes()
    if hurt == "gone":
        path.unlink()
    else:
        path.write_bytes(
            content[:50] if hurt == "cut" else content[:60] + bytes([content[60] ^ 1]) + content[61:]
        )
    assert main(["restore", str(place), "--to", str(tmp_path / "no")]) == 2
    assert str(place) in capsys.readouterr().err and not (tmp_path / "no").exists()
    take(here, place, world.JUNE + timedelta(days=1))  # the same content once more: it mends the place
    assert main(["restore", str(place), "--to", str(tmp_path / "yes")]) == 0


@pytest.mark.parametrize("name", ["manifest.json", "files.json"])
def test_one_damaged_manifest_hurts_only_its_own_backup(tmp_path, name, capsys):
    here, place = world.make(tmp_path / "live"), tmp_path / "copies"
    day = timedelta(days=1)
    made = [take(here, place, world.JUNE + n * day) for n in range(3)]
    content = (made[1].path / name).read_bytes()
    (made[1].path / name).write_bytes(content[:-20])
    assert taken_by(place, world.JUNE + day / 2) == made[0] and taken_by(place, None) == made[2]
    with pytest.raises(SealError, match=f"{made[1].name}.*--at 2010-06-01T00:00:00Z"):
        taken_by(place, world.JUNE + day)
    newer = take(here, place, world.JUNE + 3 * day)
    assert newer.name.endswith("-000004") and backups(place) == [made[0], made[2], newer]
    for words in (["backup", str(place), "--list"], ["restore", str(place), "--to", str(tmp_path / "yes")]):
        assert main([*words, "--root", str(here.root)]) == 0
    assert f"{made[1].name}  damaged: " in capsys.readouterr().out
    with pytest.raises(BackupError, match=f"{made[1].name}.*nothing was removed"):
        keep_newest(place, 1)
    assert made[0].path.exists()
    (made[1].path / name).write_bytes(content)
    assert keep_newest(place, 1) == 3 and restore(newer, tmp_path / "whole") == newer.files


def test_what_is_not_copied_and_what_is_refused(tmp_path):
    here, place = world.make(tmp_path / "live"), tmp_path / "copies"
    (here.data / "key").write_text("secret")
    (here.data / "keys.json").write_text("{}")
    os.symlink("/etc/passwd", here.data / "link")
    os.mkfifo(here.data / "pipe")
    names = {name for name, _ in stored(here.root)}
    assert not {
        n for n in names if "key" in n or "online" in n or n.endswith(".lock") or "link" in n or "pipe" in n
    }
    assert "data/control.db" in names
    with pytest.raises(BackupError, match="stored something"):
        take(load_settings(root=tmp_path / "nothing"), place, world.JUNE)
    with pytest.raises(BackupError, match="of that time or before"):
        taken_by(place, world.JUNE)
    log = DecisionLog(here, "churn")
    log.close()
    made = take(here, place, world.JUNE)
    said = json.loads((made.path / "manifest.json").read_text())
    (made.path / "manifest.json").write_text(json.dumps({**said, "format": 9}))
    assert backups(place) == [] and "not as it was written" in str(damaged(place)[0])
