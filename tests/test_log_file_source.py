"Logs as they are written, rotated, packed, copied and cut: every line once, whenever somebody looks."

import gzip
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlsys_nb.data import log_file_source as room
from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import quarantine, read, snapshot
from mlsys_nb.data.log_file_source import LinesSource
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
VISITS = Contract("web", (Column("line", "text"), Column("at", "time"), Column("n", "int")), id="line")
SOURCE = LinesSource("web", VISITS, "web", r"(?P<at>\S+) (?P<n>\d+) .*", "access.log*")


def place(folder: Path) -> Settings:
    (folder / "raw" / "web").mkdir(parents=True)
    return replace(load_settings(root=folder / "root", home=HOME), raw=folder / "raw")


class Server:
    "A web server's log; every line has a number, and every third line is the same but for it."

    def __init__(self, folder: Path) -> None:
        self.log, self.written, self.clock = folder / "access.log", 0, 1_000_000_000
        self.half = b""

    def write(self, count: int, half: bool = False) -> None:
        text = b"".join(b"2010-03-01T10:00:00 %d GET /\n" % (self.written + k) for k in range(count))
        text, self.half = self.half + text, b""
        if half and len(text) > 10:
            text, self.half = text[:-7], text[-7:]
        with self.log.open("ab") as file:
            file.write(text)
        self.written += count
        self.touch(self.log)

    def touch(self, path: Path) -> None:
        self.clock += 10
        os.utime(path, (self.clock, self.clock))

    def archives(self) -> list[Path]:
        return sorted(self.log.parent.glob("access.log.*"), key=lambda p: -int(p.name.split(".")[2]))

    def rotate(self, packed: bool = False, copied: bool = False) -> None:
        if not self.log.exists() or self.half:
            return
        for path in self.archives():
            parts = path.name.split(".")
            path.rename(path.with_name(".".join([*parts[:2], str(int(parts[2]) + 1), *parts[3:]])))
        first = self.log.with_name("access.log.1")
        if copied:
            shutil.copy(self.log, first)
            self.log.write_bytes(b"")
        else:
            self.log.rename(first)
        if packed:
            with gzip.open(f"{first}.gz", "wb") as file:
                file.write(first.read_bytes())
            self.touch(Path(f"{first}.gz"))
            first.unlink()


deeds = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 40), st.booleans()),
        st.tuples(st.just("rotate"), st.booleans(), st.booleans()),
        st.tuples(st.just("look")),
    ),
    min_size=3,
    max_size=25,
)


@given(deeds)
@hypothesis_settings(max_examples=60, deadline=None)
def test_every_line_arrives_once_through_any_rotation(
    tmp_path_factory: pytest.TempPathFactory, told: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    here, day = place(folder), 0
    server = Server(here.raw / "web")
    server.write(1)
    for deed, *given_ in [*told, ("write", 1, False), ("look",)]:
        if deed == "look":
            day += 1
            ingest(here, SOURCE, instant(f"2010-04-{day:02}"))
        else:
            getattr(server, deed)(*given_)
    events = read(here, snapshot(here, "web"))
    assert sorted(events["n"]) == list(range(server.written))
    assert snapshot(here, "web").rows == server.written, "no line came twice"


def test_many_small_pages_are_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LINES", 7)
    monkeypatch.setattr("mlsys_nb.data.incremental_pull.PART", 20)
    here = place(tmp_path)
    server, draw = Server(here.raw / "web"), random.Random(3)
    for day in range(1, 8):
        server.write(draw.randrange(30), half=day % 2 == 0)
        ingest(here, SOURCE, instant(f"2010-04-0{day}"))
    server.write(1)
    ingest(here, SOURCE, instant("2010-04-09"))
    assert sorted(read(here, snapshot(here, "web"))["n"]) == list(range(server.written))


def test_a_look_between_the_two_steps_of_a_copytruncate(tmp_path: Path) -> None:
    here = place(tmp_path)
    server = Server(here.raw / "web")
    server.write(20)
    ingest(here, SOURCE, instant("2010-04-01"))
    server.write(5)
    shutil.copy(server.log, server.log.with_name("access.log.1"))
    assert ingest(here, SOURCE, instant("2010-04-02")).rows == 5
    server.log.write_bytes(b"")
    server.write(3)
    assert ingest(here, SOURCE, instant("2010-04-03")).rows == 3


def test_a_log_that_begins_like_the_last_one_is_another(tmp_path: Path) -> None:
    "A server that writes the same first lines whenever it starts: equal lines, several logs."
    here = place(tmp_path)
    log = here.raw / "web" / "access.log"
    for number in range(1, 5):
        log.write_text("# started\n2010-03-01T10:00:00 7 GET /\n" * 2)
        os.utime(log, (10**9 + number, 10**9 + number))
        assert ingest(here, SOURCE, instant(f"2010-04-0{number}")).rows == (2 if number == 1 else 3), number
        old = log.rename(log.with_name(f"access.log.{number}"))
        with old.open("a") as file:
            file.write(f"2010-03-01T10:00:00 {number} end\n")
        os.utime(old, (10**9 + number, 10**9 + number))
    assert ingest(here, SOURCE, instant("2010-04-09")).rows == 1
    assert len(read(here, snapshot(here, "web"))) == 12


def test_lines_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LONGEST_LINE", 64)
    here = place(tmp_path)
    good = b"2010-03-01T10:00:00 %d GET /\r\n"
    content = [
        good % 1,
        b"\xff\xfe 2 x\n",
        b"\n",
        b"x" * 300 + b"\n",
        good % 3,
        b"noon 4 GET /\n",
        b"reload\n",
        good % 5,
    ]
    (here.raw / "web" / "access.log").write_bytes(b"".join(content))
    report = ingest(here, SOURCE, instant("2010-04-01"))
    assert sorted(read(here, snapshot(here, "web"))["n"]) == [1, 3, 5]
    assert report.quarantined == {"unlike pattern": 3, "at: unreadable": 1}
    told = quarantine(here, snapshot(here, "web"))["reason"].to_list()
    assert [
        w
        for w in ("is no UTF-8", "longer than a line", "unlike the pattern")
        if not any(w in t for t in told)
    ] == []
