"The control tables when many processes want the same thing."

import secrets
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mlsys_nb.system.clock import instant
from mlsys_nb.system.control import AlertRow, Control, Run, StalePointer, VersionRow

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
    from mlsys_nb.system.control import Control, StalePointer, VersionRow

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
            Control(uri).set_pointer("champion", f"v{i}", 1, at=MAY, actor=str(i), reason="race")
            return 0
        except StalePointer:
            return 3

    print(sorted(fork(move, 32)))
    """
    Control(uri).set_pointer("champion", "first", 0, at=MAY, actor="test", reason="start")
    assert start(FORKS + code, uri).communicate()[0].strip() == str([0] + [3] * 31)
    control = Control(uri)
    now = control.get_pointer("champion")
    assert now is not None and now.epoch == 2
    assert [m.value for m in control.pointer_history("champion")] == ["first", now.value]
    assert [e.number for e in control.audit_log()] == [1, 2]


def test_many_processes_open_a_fresh_system_and_register_versions(uri: str) -> None:
    code = """
    def register(number):
        control = Control(uri)
        for i in range(8):
            control.add_version(VersionRow("churn", 0, f"digest-{i}-{number % 2}", "p", MAY))
            control.audit(MAY, str(number), "register", "churn", {"i": i})
        return 0

    print(sum(fork(register, 6)))
    """
    assert start(FORKS + code, uri).communicate()[0].strip() == "0"
    control = Control(uri)
    assert [v.version for v in control.versions("churn")] == list(range(1, 17))
    assert len({v.digest for v in control.versions("churn")}) == 16
    assert [e.number for e in control.audit_log("churn")] == list(range(1, 49))


def test_a_writer_killed_in_its_transaction_leaves_the_old_state(uri: str) -> None:
    code = """
        import os, signal, sys
        from mlsys_nb.system.control import Control, POINTERS
        control = Control(sys.argv[1])
        with control.writing() as connection:
            connection.execute(POINTERS.update().values(value="half", epoch=99))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    control = Control(uri)
    first = control.set_pointer("champion", "1", 0, at=MAY, actor="test", reason="start")
    start(code, uri).wait()
    assert control.get_pointer("champion") == first
    assert control.set_pointer("champion", "2", 1, at=MAY, actor="test", reason="next").epoch == 2


def test_a_refused_move_leaves_no_trace(uri: str) -> None:
    control = Control(uri)
    with pytest.raises(StalePointer, match="expected 5, it is at 0"):
        control.set_pointer("champion", "1", 5, at=MAY, actor="test", reason="start")
    assert control.get_pointer("champion") is None
    assert control.pointer_history("champion") == [] and control.audit_log() == []


def test_rows_come_back_as_they_went_in(uri: str) -> None:
    control = Control(uri)
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
    control.start_run(Run("r", "train", "churn", "k", "running", MAY))
    control.finish_run(run)
    assert control.runs() == [run] and control.find_run("k") is None
    alert = AlertRow("churn", "drift", "closed", MAY, MAY, {"size": 0.1})
    control.put_alert(AlertRow("churn", "drift", "open", MAY))
    control.put_alert(alert)
    assert control.alerts() == [alert] and control.alerts(status="open") == []
    version = control.add_version(VersionRow("churn", 7, "d", "p", MAY, summary={"auc": 0.74}))
    assert version.version == 1 and control.get_version("churn", 1) == version
    control.put_doc("policy", "churn", {"a": 1})
    control.put_doc("policy", "churn", {"a": 2})
    assert control.docs("policy") == {"churn": {"a": 2}} and control.get_doc("policy", "other") is None


def test_the_password_of_a_database_is_never_shown() -> None:
    with pytest.raises(Exception) as caught:
        Control("postgresql+psycopg://ann:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(caught.value)
