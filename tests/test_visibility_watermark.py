"""A moment is promised before it counts: whoever asks between two deeds of a promise is told the present, whatever a killed writer left."""

import fcntl
from datetime import datetime
from pathlib import Path

import pytest

from mlsys_nb.features import visibility_watermark
from mlsys_nb.features.visibility_watermark import Fence, PromisedMoment
from mlsys_nb.system.clock import SystemClock, micros
from mlsys_nb.system.file_operations import open_file


class LocksFirst(PromisedMoment):
    "The same deeds in the wrong order."

    def say(self) -> int:
        self._handle = open_file(self._path)
        visibility_watermark.fcntl.flock(self._handle, fcntl.LOCK_EX)
        self._write()
        return self.known


class NeverWritesAgain(PromisedMoment):
    "Says before it waits for the lock, and not again once it has it."

    def say(self) -> int:
        self._handle = open_file(self._path)
        self._write()
        visibility_watermark.fcntl.flock(self._handle, fcntl.LOCK_EX)
        return self.known


def killed(folder: Path, known: int) -> None:
    "A writer that said a moment, and was killed before it kept the promise."
    (folder / "promise").write_bytes(known.to_bytes(8, "little", signed=True))


def answers(
    folder: Path, kind: type[PromisedMoment], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[datetime, datetime]]:
    "When somebody asked, between any two deeds, and as of when the answer was."
    clock, told, fence = SystemClock(), list[tuple[datetime, datetime]](), Fence([folder])

    def asked() -> None:
        now = clock.now()
        told.append((now, fence.before(now)))

    put, lock = visibility_watermark.put, fcntl.flock

    def putting(*deed: object) -> None:
        asked()
        put(*deed)  # type: ignore[arg-type]
        asked()

    class Locks:
        LOCK_EX, LOCK_SH, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB, fcntl.LOCK_UN

        @staticmethod
        def flock(handle: int, what: int) -> None:
            lock(handle, what)
            if what == fcntl.LOCK_EX:
                asked()

    with monkeypatch.context() as m:
        m.setattr(visibility_watermark, "put", putting)
        m.setattr(visibility_watermark, "fcntl", Locks)
        moment = kind(folder, clock, 0)
        moment.say()
        moment.end()
    fence.close()
    return told


def wrong(
    folder: Path, kind: type[PromisedMoment], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[datetime, datetime]]:
    killed(folder, micros(SystemClock().now()) - 3_600_000_000)
    found = answers(folder, kind, monkeypatch)
    assert len(found) >= 4
    return [pair for pair in found if pair[0] != pair[1]]


def test_between_writing_and_locking_nobody_goes_back_to_what_a_killed_writer_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not wrong(tmp_path, PromisedMoment, monkeypatch)
    swapped = wrong(tmp_path, LocksFirst, monkeypatch)
    assert swapped and all((now - then).total_seconds() > 3_000 for now, then in swapped), (
        "the test sees the swapped order"
    )


@pytest.mark.parametrize("kind, kept", [(PromisedMoment, True), (NeverWritesAgain, False)])
def test_a_moment_said_before_the_wait_for_the_lock_is_said_again_behind_it(
    kind: type[PromisedMoment], kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "Whoever answers during the wait must not have seen as far as the moment from which the events are known."
    clock, seen = SystemClock(), list[datetime]()

    class Waits:
        LOCK_EX, LOCK_SH, LOCK_NB, LOCK_UN = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_NB, fcntl.LOCK_UN

        @staticmethod
        def flock(handle: int, what: int) -> None:
            if what == fcntl.LOCK_EX:  # another reader held it for longer than the lead
                begun = clock.now()
                while clock.now() - begun < visibility_watermark.LEAD * 1.2:
                    visibility_watermark.pause(0.02)
                seen.append(fence.before(clock.now()))
            fcntl.flock(handle, what)

    monkeypatch.setattr(visibility_watermark, "fcntl", Waits)
    moment, fence = kind(tmp_path, clock, 0), Fence([tmp_path])
    known = moment.say()
    assert (known > micros(seen[0])) is kept
    moment.end()
    fence.close()
