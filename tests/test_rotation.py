"""Keys change while others write, and whatever stops it: no row is lost, and every key that a row needs is there.

A few cuts and kills by default; `TEST_MLSYS_FULL=1 pytest tests/test_rotation.py` tries every write, and 200 kills.
"""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import vault_world as world

from mlsys_nb.decisions.log_segments import service_at_work
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.recovery import backup
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.encryption import boxes_of, key_of
from mlsys_nb.system.line_checksum import keys_in

FULL = bool(os.environ.get("TEST_MLSYS_FULL"))
COMMAND = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLSYS_MASTER_KEY", str(tmp_path / "master.key"))
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path))
    return tmp_path


def started(*words: object, **more: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    made = [sys.executable, *map(str, words)]
    return subprocess.Popen(made, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)  # fmt: skip


def helper(*words: object, **more: object) -> subprocess.Popen[str]:
    return started(Path(world.__file__), *words, **more)


def encrypt(folder: Path, *more: str) -> subprocess.Popen[str]:
    return started("-c", COMMAND, "encrypt", *more, "--root", folder / "root")


def until(path: Path, process: subprocess.Popen[str], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


def all_read(folder: Path) -> dict[str, bytes]:
    "Every covered file, read by a process that knows no key of before, and here; all under one key."
    here = world.at(folder)
    fresh = helper("told", folder)
    out, _ = fresh.communicate(timeout=60)
    assert fresh.returncode == 0, out
    found = world.told(here)
    (box,) = boxes_of(here.data)
    for path in world.covered_files(here):
        content = path.read_bytes()
        named = keys_in(content) if path.suffix == ".log" else {key_of(content)} - {b""}
        assert named <= {box.id}, f"{path} is under another key than the one there is"
    return found


@pytest.mark.parametrize("rotate", [True, False], ids=["rotate", "first"])
@pytest.mark.parametrize("kind", [k for k in world.KINDS if k != "decisions"])
def test_who_writes_while_keys_change_loses_nothing(folder, kind, rotate):
    if rotate:
        assert main(["encrypt", "--root", str(folder / "root")]) == 0
    world.filled(folder)
    writer = helper("write", kind, folder)
    until(folder / "held", writer)
    command = encrypt(folder, *(["--rotate"] if rotate else []))
    said = next(
        (line for line in command.stdout if "waiting until they are on disk" in line), "nobody waited"
    )
    assert said != "nobody waited" and writer.poll() is None and command.poll() is None, said
    (folder / "go").touch()
    assert writer.wait(60) == 0, writer.stdout.read()
    assert command.wait(60) == 0, command.stdout.read()
    found = all_read(folder)
    assert any(b"ZQROW-77" in content for content in found.values()), "what was acknowledged is there"


def test_a_service_that_has_answered_nothing_yet_is_at_work(folder):
    assert main(["encrypt", "--root", str(folder / "root")]) == 0
    world.filled(folder)
    service = helper("hold", folder, stdin=subprocess.PIPE)
    assert service.stdout.readline() == "at work\n" and service_at_work(world.at(folder))
    refused = encrypt(folder, "--rotate")
    assert refused.wait(60) == 2 and "a service is at work" in refused.stdout.read()
    service.communicate("", timeout=60)
    assert not service_at_work(world.at(folder))
    assert encrypt(folder, "--rotate").wait(60) == 0
    all_read(folder)


@pytest.mark.parametrize("rotate", ["rotate", "first"])
def test_a_cut_before_any_write_leaves_every_row_readable(folder, rotate):
    if rotate == "rotate":
        assert main(["encrypt", "--root", str(folder / "root")]) == 0
    world.filled(folder)
    first, step = (1, 1) if FULL else (random.Random(os.environ.get("PYTEST_SEED", 0)).randint(1, 19), 29)
    done = helper("cuts", folder, rotate, first, step)
    out, _ = done.communicate(timeout=3000)
    assert done.returncode == 0, out
    assert int(out.split()[-1]) > 60, "there were few deeds"


def test_a_backup_in_which_keys_change_has_the_keys_of_its_files(folder, monkeypatch):
    here, real, changed = world.at(folder), backup.stored, []
    assert open_control(here) and main(["encrypt", "--root", str(here.root)]) == 0
    world.filled(folder)

    def midway(root: Path) -> Iterator[tuple[str, bytes]]:
        for name, content in real(root):
            yield name, content
            if not changed and name.startswith("data/lake"):
                changed.append(main(["encrypt", "--rotate", "--root", str(root)]))

    monkeypatch.setattr(backup, "stored", midway)
    made = backup.take(here, folder / "copies", world.MAY)
    assert changed == [0] and made.settled
    backup.restore(made, folder / "again" / "root")
    monkeypatch.setenv("MLSYS_HOME", str(folder / "again"))
    assert all_read(folder / "again") == world.told(here)


STREAMS = ("lake", "inbox", "outcomes", "batch")


def test_kills_at_any_moment_while_others_write_lose_nothing(folder):
    assert main(["encrypt", "--root", str(folder / "root")]) == 0
    world.filled(folder)
    rng, writers = random.Random(1), [helper("stream", kind, folder) for kind in STREAMS]
    for kind, writer in zip(STREAMS, writers, strict=True):
        until(folder / f"{kind}.said", writer)
    for number in range(200 if FULL else 4):
        command = helper("encrypt", folder, "first" if number % 2 else "rotate")
        assert command.stdout.readline() == "at work\n"
        time.sleep(rng.uniform(0.0, 2.0))
        command.kill()
        command.wait()
    rows = dict[str, int]()
    for kind, writer in zip(STREAMS, writers, strict=True):
        assert writer.poll() is None, writer.stdout.read()
        writer.kill()
        rows[kind] = int((folder / f"{kind}.said").read_text().split()[-1])
    assert encrypt(folder).wait(600) == 0
    said = b"\n".join(all_read(folder).values())
    for kind, last in rows.items():
        for n in range(1000, last + 1):
            assert b"ZQROW-%d" % n in said, f"row {n} of {kind} was acknowledged"
