"The control tables when many processes want the same thing."

import secrets
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlsys_nb.system.audit import audit_log, check_trail
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import (
    MIGRATIONS,
    AlertRow,
    alert_rows,
    get_document,
    open_tables,
    put_alert,
    put_document,
)
from mlsys_nb.system.database import ControlError
from mlsys_nb.system.database_migrations import prepare
from mlsys_nb.system.pointers import Move, StalePointer, get_pointer, move_pointer, pointer_history
from mlsys_nb.system.runs_table import RUNS, Run, find_run, finish_run, list_runs, start_run
from mlsys_nb.system.versions_table import VersionRow, add_version, version_rows

MAY = instant("2010-05-01")


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    "An empty place for control tables, in a file and on a real server."
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/data/control.db"
    server = request.getfixturevalue("postgres_url")
    import psycopg

    name = f"control_{secrets.token_hex(4)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("postgresql://", "postgresql+psycopg://").replace("/postgres", f"/{name}")


# One interpreter that forks: imports are paid once, and the children meet at the same instant.
FORKS = """
    import os, sys
    from mlsys_nb.system.clock import instant
    from mlsys_nb.system.audit import AuditLine, audit
    from mlsys_nb.system.control_tables import open_tables
    from mlsys_nb.system.pointers import Move, StalePointer, move_pointer
    from mlsys_nb.system.versions_table import VersionRow, add_version

    def fork(work, count):
        go = os.pipe()
        children = []
        for i in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(go[1])
                os.read(go[0], 1)
                os._exit(work(i))
            children.append(pid)
        os.close(go[1])  # everybody wakes up
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

    MAY, uri = instant("2010-05-01"), sys.argv[1]
"""


def test_of_32_processes_exactly_one_moves_the_pointer(uri: str) -> None:
    code = """
    def move(i):
        try:
            move_pointer(open_tables(uri), Move("champion", 2, f"v{i}", MAY, str(i), "race"))
            return 0
        except StalePointer:
            return 3

    print(sorted(fork(move, 32)))
    """
    move_pointer(open_tables(uri), Move("champion", 1, "first", MAY, "test", "start"))
    assert start(FORKS + code, uri).communicate()[0].strip() == str([0] + [3] * 31)
    control = open_tables(uri)
    now = get_pointer(control, "champion")
    assert now is not None and now.epoch == 2
    assert [m.value for m in pointer_history(control, "champion")] == ["first", now.value]
    assert [line.number for line in audit_log(control)] == [1, 2]


def test_many_processes_open_a_fresh_system_and_register_versions(uri: str) -> None:
    code = """
    def register(number):
        control = open_tables(uri)
        for i in range(8):
            add_version(control, VersionRow("churn", 0, f"digest-{i}-{number % 2}", "p", MAY))
            audit(control, AuditLine(MAY, str(number), "register", "churn", {"i": i}))
        return 0

    print(sum(fork(register, 6)))
    """
    assert start(FORKS + code, uri).communicate()[0].strip() == "0"
    control = open_tables(uri)
    assert [v.version for v in version_rows(control, "churn")] == list(range(1, 17))
    assert len({v.digest for v in version_rows(control, "churn")}) == 16
    assert [line.number for line in audit_log(control, "churn")] == list(range(1, 49))


def test_a_writer_killed_in_its_transaction_leaves_the_old_state(uri: str) -> None:
    code = """
        import os, signal, sys
        from mlsys_nb.system.control_tables import open_tables
        from mlsys_nb.system.pointers import POINTERS
        control = open_tables(sys.argv[1])
        with control.writing() as connection:
            connection.execute(POINTERS.update().values(value="half", epoch=99))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    control = open_tables(uri)
    first = move_pointer(control, Move("champion", 1, "1", MAY, "test", "start"))
    start(code, uri).wait()
    assert get_pointer(control, "champion") == first
    assert move_pointer(control, Move("champion", 2, "2", MAY, "test", "next")).epoch == 2


def test_a_refused_move_leaves_no_trace(uri: str) -> None:
    control = open_tables(uri)
    with pytest.raises(StalePointer, match="expected 5, it is at 0"):
        move_pointer(control, Move("champion", 6, "1", MAY, "test", "start"))
    assert get_pointer(control, "champion") is None
    assert pointer_history(control, "champion") == [] and audit_log(control) == []


def test_rows_come_back_as_they_went_in(uri: str) -> None:
    control = open_tables(uri)
    run = Run(
        "r",
        "train",
        "churn",
        "k",
        "failed",
        MAY,
        {"x": [1, "£", None]},
        MAY,
        MAY,
        1.5,
        "report",
        {"a": {"b": 1}},
        "why",
    )
    start_run(control, Run("r", "train", "churn", "k", "running", MAY))
    finish_run(control, run)
    assert list_runs(control) == [run] and find_run(control, "k") is None
    alert = AlertRow("churn", "drift", "closed", MAY, MAY, {"size": 0.1})
    put_alert(control, AlertRow("churn", "drift", "open", MAY))
    put_alert(control, alert)
    assert alert_rows(control) == [alert] and alert_rows(control, status="open") == []
    version = add_version(control, VersionRow("churn", 7, "d", "p", MAY, summary={"auc": 0.74}))
    assert version.version == 1 and version_rows(control) == [version]
    put_document(control, "policy", "churn", {"a": 1})
    put_document(control, "policy", "churn", {"a": 2})
    assert (
        get_document(control, "policy", "churn") == {"a": 2}
        and get_document(control, "policy", "other") is None
    )


def test_the_password_of_a_database_is_never_shown() -> None:
    with pytest.raises(Exception) as caught:
        open_tables("postgresql+psycopg://ann:hunt/er2@127.0.0.1:1/none")
    assert "er2" not in str(caught.value)


def older(uri: str) -> None:
    "Take the tables back to their first form, from before rows had checksums and tables a number."
    control = open_tables(uri)
    with control.writing() as connection:
        connection.exec_driver_sql("DROP TABLE control_schema")
        for table in ("pointers", "pointer_moves", "audit", "documents", "runs", "versions", "alerts"):
            connection.exec_driver_sql(f"ALTER TABLE {table} DROP COLUMN crc")
        connection.exec_driver_sql("ALTER TABLE audit DROP COLUMN previous")
        connection.exec_driver_sql("DROP TABLE audit_mark")


def test_older_tables_are_brought_to_todays_form_by_whoever_opens_them_first(uri: str) -> None:
    control = open_tables(uri)
    seen = move_pointer(control, Move("champion", 1, "1", MAY, "test", "start"))
    run = start_run(control, Run("r", "train", "churn", "k", "failed", MAY, {"x": "£"}, seconds=0.1))
    version = add_version(control, VersionRow("churn", 0, "d", "p", MAY))
    older(uri)
    code = """
    def opened(i):
        from mlsys_nb.system.pointers import get_pointer
        return 0 if get_pointer(open_tables(uri), "champion").epoch == 1 else 1

    print(sum(fork(opened, 8)))
    """
    assert start(FORKS + code, uri).communicate()[0].strip() == "0"
    control = open_tables(uri)
    assert get_pointer(control, "champion") == seen and list_runs(control) == [run]
    assert version_rows(control) == [version] and len(audit_log(control)) == 1
    assert check_trail(control).broken is None, "the lines that were there are chained by the step"


def test_a_step_that_fails_leaves_the_older_form_whole(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sa.Connection) -> None:
        connection.exec_driver_sql("DROP TABLE runs")
        raise ControlError("the step stops here")

    control = open_tables(uri)
    start_run(control, Run("r", "train", "churn", "k", "failed", MAY))
    older(uri)
    with pytest.raises(ControlError, match="stops here"):
        prepare(control, (*MIGRATIONS, broken))
    assert [run.run_id for run in list_runs(open_tables(uri))] == ["r"]


def test_newer_tables_are_refused(uri: str) -> None:
    control = open_tables(uri)
    prepare(control, (*MIGRATIONS, lambda connection: None))
    with pytest.raises(
        ControlError, match=f"this house knows forms up to {len(MIGRATIONS)}; install the newer"
    ):
        open_tables(uri)


def test_a_field_without_a_step_is_named(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    "It used to be a raw OperationalError from whichever statement met the missing column."
    open_tables(uri)
    more = property(
        lambda table: [*(f.name for f in fields(table.kind)), *["colour"] * (table is RUNS), "crc"]
    )
    monkeypatch.setattr(type(RUNS), "names", more)
    with pytest.raises(ControlError, match="lack runs.colour, which the code declares; .* MIGRATIONS"):
        open_tables(uri)


def test_a_row_changed_behind_the_systems_back_is_refused(uri: str) -> None:
    control = open_tables(uri)
    move_pointer(control, Move("champion", 1, "1", MAY, "test", "start"))
    with control.writing() as connection:
        connection.exec_driver_sql("UPDATE pointers SET value = '3'")
    with pytest.raises(ControlError, match="not as it was written: Pointer.*value='3'"):
        get_pointer(control, "champion")


def test_an_unreachable_or_unwritable_database_answers_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ControlError, match="tables at postgresql.*cannot be used: .*; see that the database is up"
    ):
        open_tables("postgresql+psycopg://127.0.0.1:1/none")
    (tmp_path / "control.db").mkdir()
    with pytest.raises(ControlError, match="unable to open database file; see that the folder is there"):
        open_tables(f"sqlite:///{tmp_path}/control.db")
