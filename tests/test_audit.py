"The chain of the audit under every way to tamper with it."

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlsys_nb.doors.cli import main
from mlsys_nb.system.audit import AuditLine, AuditMark, audit, audit_log, check_trail, line_digest
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.database import row_of
from mlsys_nb.system.registry_journal import keep_journal, read_journal, recover
from mlsys_nb.system.settings import Settings, load_settings

MAY = instant("2010-05-01")
LINES = 12


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    "A system in which a dozen things were done, and the journal has seen the end of them."
    here = load_settings(root=tmp_path)
    control = open_control(here)
    for i in range(LINES):
        audit(control, AuditLine(MAY, "ann", "look", f"thing/{i}", {"i": i, "why": "ünïcode £"}))
    keep_journal(control)
    return here


def rows(settings: Settings) -> list[AuditLine]:
    return audit_log(open_control(settings))


def write(settings: Settings, lines: list[AuditLine], mark: AuditMark | None = None) -> None:
    "Put lines in the place of all that are there, each with a checksum that fits, behind the system's back."
    with sqlite3.connect(settings.data / "control.db") as file:
        file.execute("DELETE FROM audit")
        for line in lines:
            row = row_of(line)
            names, places = ", ".join(row), ", ".join(f":{n}" for n in row)
            file.execute(f"INSERT INTO audit ({names}) VALUES ({places})", row)
        if mark is not None:
            row = row_of(mark)
            file.execute("UPDATE audit_mark SET number=:number, digest=:digest, crc=:crc", row)


def chained(lines: list[AuditLine]) -> tuple[list[AuditLine], AuditMark]:
    "The same lines as a chain that fits itself."
    found, digest = [], ""
    for number, line in enumerate(lines, 1):
        found.append(replace(line, number=number, previous=digest))
        digest = line_digest(row_of(found[-1]))
    return found, AuditMark(number=len(found), digest=digest)


def renumbered(lines: list[AuditLine]) -> list[AuditLine]:
    return [replace(line, number=n) for n, line in enumerate(lines, 1)]


Tampering = Callable[[list[AuditLine]], list[AuditLine]]
TAMPERINGS: dict[str, tuple[Tampering, int]] = {
    "edited": (lambda r: [*r[:4], replace(r[4], actor="eve"), *r[5:]], 5),
    "edited at the end": (lambda r: [*r[:-1], replace(r[-1], detail={})], 12),
    "edited at the beginning": (lambda r: [replace(r[0], at=instant("2010-05-02")), *r[1:]], 1),
    "removed": (lambda r: [*r[:4], *r[5:]], 5),
    "removed, later ones renumbered": (lambda r: renumbered([*r[:4], *r[5:]]), 5),
    "inserted": (lambda r: renumbered([*r[:4], replace(r[4], actor="eve"), *r[4:]]), 6),
    "reordered": (lambda r: renumbered([*r[:4], r[5], r[4], *r[6:]]), 5),
    "cut off": (lambda r: r[:9], 10),
    "emptied": (lambda r: [], 1),
    "put behind the end": (
        lambda r: [*r, replace(r[-1], number=13, previous=line_digest(row_of(r[-1])))],
        13,
    ),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_tampering_with_checksums_that_fit_is_named_by_its_first_line(settings, capsys, how):
    change, broken = TAMPERINGS[how]
    write(settings, change(rows(settings)))
    found = check_trail(open_control(settings))
    assert found.broken == broken, found
    assert main(["audit", "--verify", "--root", str(settings.root)]) == 1
    assert f"line {broken} does not hold" in capsys.readouterr().out
    assert main(["verify", "--root", str(settings.root)]) == 1
    assert f"line {broken} of the audit does not hold" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["edited", "removed, later ones renumbered", "cut off", "emptied"])
def test_a_trail_that_was_written_anew_as_a_whole_does_not_fit_what_the_journal_noted(settings, how):
    change, _ = TAMPERINGS[how]
    lines, mark = chained(change(rows(settings)))
    write(settings, lines, mark)
    control = open_control(settings)
    assert check_trail(control).broken is None, "it fits itself"
    found = check_trail(control, read_journal(settings.journal).marks)
    assert found.broken == min(len(lines) + 1, LINES), found


def test_a_sound_trail_says_how_far_it_reaches(settings, capsys):
    assert main(["audit", "--verify", "--root", str(settings.root)]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith(f"{LINES} lines, each holds the one before")
        and line_digest(row_of(rows(settings)[-1])) in said
    )
    audit(open_control(settings), AuditLine(MAY, "ben", "look", "more"))
    assert main(["audit", "--verify", "--root", str(settings.root)]) == 0


def test_a_line_added_to_a_cut_trail_does_not_hide_the_cut(settings):
    "The next number used to be the largest that is there, plus one: a line behind a cut closed it."
    write(settings, rows(settings)[:9])
    audit(open_control(settings), AuditLine(MAY, "ben", "look", "more"))
    found = check_trail(open_control(settings))
    assert (found.broken, "missing" in found.why) == (10, True)


def test_an_audit_that_was_lost_with_its_tables_begins_anew_and_says_so(settings):
    (settings.data / "control.db").unlink()
    from mlsys_nb.system.control_tables import open_tables

    lost = open_tables(settings.control_url, settings.journal)
    assert check_trail(lost, read_journal(settings.journal).marks).broken == 1
    recover(lost, MAY, "ann")
    (line,) = audit_log(lost)
    assert line.action == "recover" and "older audit lines" in line.detail["lost"]
    assert check_trail(lost, read_journal(settings.journal).marks).broken is None


def test_no_system_has_no_trail(tmp_path, capsys):
    assert main(["audit", "--verify", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 lines")
