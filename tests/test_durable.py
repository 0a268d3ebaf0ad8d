"Durable under fire: writers killed at random, bytes flipped, files lost, many writers at once."

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.system import file_operations
from mlsys_nb.system.durable import (
    MANIFEST,
    Log,
    SealError,
    frame_bytes,
    frame_from,
    json_bytes,
    lock,
    read_folder_manifest,
    read_sealed,
    remove_tree,
    verify_folder,
    write_bytes,
    write_folder,
)
from mlsys_nb.system.file_operations import StorageError
from mlsys_nb.system.temporary_files import TEMPORARY


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen[str], seconds: float) -> list[str]:
    "The lines that the process printed (its acknowledgements) before it was killed."
    assert process.stdout is not None
    first = process.stdout.readline()  # the process is at work
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    process.wait()
    whole = rest[:-1]  # a line without its end was not acknowledged
    return [line for line in [first.strip(), *whole] if line]


FOLDERS = """
    import sys
    from pathlib import Path
    from mlsys_nb.system.durable import write_folder
    root, start = Path(sys.argv[1]), int(sys.argv[2])
    print("at work", flush=True)
    for i in range(start, start + 100_000):
        write_folder(root / f"{i:06d}", {"rows": str(i).encode() * 5000, "quarantine": b"q" * 200}, {"batch": i})
        print(i, flush=True)
"""


def test_killed_folder_writers_leave_whole_folders_and_no_rubbish(tmp_path: Path) -> None:
    chance, begin = random.Random(7), 0
    for _ in range(6):
        said = kill_after(start(FOLDERS, tmp_path, begin), chance.uniform(0.005, 0.08))
        there = sorted(p for p in tmp_path.iterdir() if not p.name.startswith("."))
        for folder in there:
            manifest = verify_folder(folder)
            assert read_sealed(folder, "rows") == str(manifest["batch"]).encode() * 5000
        assert {int(s) for s in said[1:]} <= {int(p.name) for p in there}, "acknowledged, so it is there"
        begin = len(there)
    write_folder(tmp_path / "last", {"rows": b"1"})
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(TEMPORARY)]


APPENDS = """
    import sys
    from pathlib import Path
    from mlsys_nb.system.durable import Log
    log, start = Log(Path(sys.argv[1])), int(sys.argv[2])
    print("at work", flush=True)
    for i in range(start, start + 1_000_000):
        log.append([{"call": i, "part": part, "fill": "x" * 3000} for part in range(40)])
        print(i, flush=True)
"""


def test_killed_appenders_lose_nothing_acknowledged_and_leave_no_halves(tmp_path: Path) -> None:
    chance, path, begin, acknowledged = random.Random(8), tmp_path / "decisions.log", 0, set()
    for _ in range(6):
        said = kill_after(start(APPENDS, path, begin), chance.uniform(0.005, 0.08))
        acknowledged |= {int(s) for s in said[1:]}
        parts: dict[int, int] = {}
        for record in Log.read(path):
            parts[record["call"]] = parts.get(record["call"], 0) + 1
        assert set(parts.values()) <= {40}, "a call is there as a whole or not at all"
        assert acknowledged <= set(parts)
        begin = max(parts, default=-1) + 1


def test_a_replaced_file_is_always_whole(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from mlsys_nb.system.durable import write_bytes
        print("at work", flush=True)
        for i in range(1_000_000):
            write_bytes(Path(sys.argv[1]), str(i % 10).encode() * 300_000)
    """
    path = tmp_path / "state"
    write_bytes(path, b"0" * 300_000)
    for seconds in (0.01, 0.03, 0.05):
        kill_after(start(code, path), seconds)
        content = path.read_bytes()
        assert len(content) == 300_000 and len(set(content)) == 1
    write_bytes(path, b"end")
    assert os.listdir(tmp_path) == ["state"]


def test_a_living_writer_is_not_swept_away(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from mlsys_nb.system import temporary_files
        with temporary_files.temporary(Path(sys.argv[1]) / "slow", folder=True) as temporary:
            (temporary / "rows").write_bytes(b"1")
            print("at work", flush=True)
            time.sleep(60)
    """
    process = start(code, tmp_path)
    assert process.stdout is not None and process.stdout.readline().strip() == "at work"
    write_folder(tmp_path / "quick", {"rows": b"2"})
    assert any(p.name.startswith(TEMPORARY) for p in tmp_path.iterdir())
    process.kill()
    process.wait()
    write_folder(tmp_path / "quick-2", {"rows": b"2"})
    assert not any(p.name.startswith(TEMPORARY) for p in tmp_path.iterdir())


def test_every_single_flipped_bit_is_found(tmp_path: Path) -> None:
    frame = pl.DataFrame({"price": range(50)})
    write_folder(tmp_path / "batch", {"rows.parquet": frame_bytes(frame)}, {"known_at": "2010-05-01"})
    for name in ("rows.parquet", MANIFEST):
        path = tmp_path / "batch" / name
        whole = path.read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << (position % 8)
            path.write_bytes(bytes(flipped))
            with pytest.raises(SealError, match="not as it was written|is missing"):
                verify_folder(tmp_path / "batch")
            if name == "rows.parquet":
                with pytest.raises(SealError):
                    read_sealed(tmp_path / "batch", name)
        path.write_bytes(whole)
    verify_folder(tmp_path / "batch")


def test_every_single_flipped_bit_of_a_log_is_found(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    for i in range(3):
        log.append([{"i": i}])
    whole = log.path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        log.path.write_bytes(bytes(flipped))
        with pytest.raises(SealError, match="restore the file"):
            Log.read(log.path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b"\xff\xfe", b'{"files": {}, "seal": "x"}'])
def test_a_foreign_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(SealError, match="not as it was written"):
        read_folder_manifest(tmp_path)
    with pytest.raises(SealError, match="has none"):
        read_folder_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", MANIFEST, ""])
def test_names_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain file names"):
        write_folder(tmp_path / "batch", {name: b"1"})
    assert os.listdir(tmp_path) == []


def test_the_same_folder_from_many_processes_is_written_once(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from mlsys_nb.system.durable import write_folder
        for i in range(30):
            write_folder(Path(sys.argv[1]) / str(i), {"rows": b"1" * 10000})
        print("done", flush=True)
    """
    processes = [start(code, tmp_path) for _ in range(4)]
    assert [p.communicate()[0].strip() for p in processes] == ["done"] * 4
    assert sorted(os.listdir(tmp_path)) == sorted(str(i) for i in range(30))


def test_logs_of_many_processes_do_not_mix(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from mlsys_nb.system.durable import Log
        log = Log(Path(sys.argv[1]))
        for i in range(50):
            log.append([{"who": sys.argv[2], "i": i, "fill": "x" * 5000}] * 3)
    """
    path = tmp_path / "log"
    processes = [start(code, path, who) for who in "abcd"]
    assert [p.wait() for p in processes] == [0] * 4
    found = Log.read(path)
    assert len(found) == 4 * 50 * 3
    for who in "abcd":
        assert [r["i"] for r in found if r["who"] == who] == [i for i in range(50) for _ in range(3)]


def test_a_failed_append_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log")
    log.append([{"i": 0}])

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        log.append([{"i": 1}])
    monkeypatch.undo()
    log.append([{"i": 2}])
    assert [r["i"] for r in Log.read(log.path)] == [0, 2]


def test_a_failed_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_folder(tmp_path / "batch", {"rows": b"1"})
    assert os.listdir(tmp_path) == []


def test_a_lock_lets_one_through(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from mlsys_nb.system.durable import lock
        counter = Path(sys.argv[1]) / "counter"
        for _ in range(40):
            with lock(Path(sys.argv[1]) / "lock"):
                counter.write_text(str(int(counter.read_text()) + 1))
    """
    (tmp_path / "counter").write_text("0")
    processes = [start(code, tmp_path) for _ in range(4)]
    assert [p.wait() for p in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "160"
    with lock(tmp_path / "lock"):
        pass


def test_a_removed_tree_is_gone_for_readers_at_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "batch", {"rows": b"1"})
    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")
    assert os.listdir(tmp_path) == []


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), plain))
@settings(max_examples=80, deadline=None)
def test_canonical_json_is_a_fixed_point(value: dict[str, object]) -> None:
    assert json_bytes(json.loads(json_bytes(value))) == json_bytes(value)


@given(st.lists(st.dictionaries(st.text(), plain, max_size=3), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_log_gives_back_what_it_got(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "log")
    log.append(records)
    assert Log.read(log.path) == records


@given(
    st.lists(
        st.tuples(
            st.none() | st.integers(-(2**62), 2**62),
            st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        )
    ),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_equal_frames_have_equal_bytes(rows: list[tuple[int | None, str | None]], cut: int) -> None:
    frame = pl.DataFrame(rows, schema={"a": pl.Int64, "b": pl.String}, orient="row")
    pieces = pl.concat([frame[:cut], frame[cut:]], rechunk=False)
    assert frame_bytes(pieces) == frame_bytes(frame)
    assert frame_from(frame_bytes(frame)).equals(frame)


def test_links_and_pipes_in_a_sealed_folder_are_refused_at_once(tmp_path: Path) -> None:
    "A link used to be followed, and a pipe let its reader wait for ever."
    write_folder(tmp_path / "whole", {"rows": b"1"})
    for name in ("rows", MANIFEST):
        for make in (lambda p: p.symlink_to(tmp_path / "whole" / p.name), os.mkfifo):
            folder = tmp_path / f"{name}-{make is os.mkfifo}"
            write_folder(folder, {"rows": b"1"})
            (folder / name).unlink()
            make(folder / name)
            with pytest.raises(SealError, match=f"{name} cannot be read: .*; restore it"):
                verify_folder(folder)
    (tmp_path / "link").symlink_to(tmp_path / "whole")
    with pytest.raises(SealError, match="link is a link"):
        verify_folder(tmp_path / "link")


def test_a_file_that_has_grown_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "whole", {"rows": b"1"})
    os.truncate(tmp_path / "whole" / "rows", 2**40)  # a sparse terabyte
    with pytest.raises(SealError, match="not as it was written"):
        verify_folder(tmp_path / "whole")


@pytest.mark.parametrize(
    "code,remedy",
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "mount it writable"), (errno.EACCES, "the right to it"),
     (errno.EIO, "mlsys verify"), (errno.EDQUOT, "quota"), (errno.EMFILE, "ulimit")],
)  # fmt: skip
def test_every_refusal_of_the_disk_has_path_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, remedy: str
) -> None:
    works = [
        lambda: write_bytes(tmp_path / "a" / "file", b"1"),
        lambda: write_folder(tmp_path / "b" / "folder", {"rows": b"2"}),
        lambda: Log(tmp_path / "c" / "log").append([{"i": 1}]),
        lambda: lock(tmp_path / "d" / "lock").__enter__(),
        lambda: read_sealed(tmp_path / "kept", "rows"),
        lambda: remove_tree(tmp_path / "kept"),
    ]
    write_folder(tmp_path / "kept", {"rows": b"1"})

    def failing(verb: str, path: Path, content: bytes) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_operations, "FAULTS", [failing])
    for work in works:
        with pytest.raises((StorageError, SealError), match=f"^{tmp_path}.* cannot be .*: .*; .*{remedy}"):
            work()
    monkeypatch.setattr(file_operations, "FAULTS", [])
    for work in works:
        work()
