"Jobs by the calendar: once each over the change of clocks, with schedulers that die; in other clocks' words; told when not done."

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import nbformat
import pytest
from calendar_world import lived

from mlsys_nb.doors.cli import main
from mlsys_nb.jobs.schedule import due_until, entry_from
from mlsys_nb.jobs.timetable import exported, on_calendar
from mlsys_nb.monitoring.alerts import open_alerts
from mlsys_nb.system.control import open_control, put_document
from mlsys_nb.system.duty import dues
from mlsys_nb.system.runs import list_runs
from mlsys_nb.system.settings import load_settings

KNOWN = {"problems": ["churn"], "jobs": ["score", "tick"]}


def test_over_a_change_of_clocks_with_schedulers_killed_at_random_each_moment_runs_once_or_is_said_to_be_missed():
    found = lived(6, 0, "2026-03-26")
    assert not found["wrong"] and found["moments"] > 25 and found["kills"] > 10, found


@pytest.fixture
def home(tmp_path, monkeypatch):
    declare = "problem: str = ...  # Whose\nfails: bool = False  # Whether it fails\nseconds: float = 0.0  # How long"
    work = "import time\nfrom mlsys_nb.jobs.runner import outputs\ntime.sleep(seconds)\nassert not fails, 'asked to fail'\noutputs({'problem': problem})"
    cells = [
        nbformat.v4.new_markdown_cell("# Tick"),
        nbformat.v4.new_code_cell(declare, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(work),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    place = tmp_path / "nbs/jobs/tick.ipynb"
    place.parent.mkdir(parents=True)
    place.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=kernel)))
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path))
    return tmp_path


def declared(home, line, ago=timedelta(hours=30)):
    "A system with one job, whose schedule has been kept for a while."
    problems = "[problems]\nchurn = mlsys_nb.cases.churn:problem\n"
    (home / "settings.ini").write_text(
        f"[system]\ntracking_uri = off\n[schedule]\nchurn.tick = {line}\n{problems}"
    )
    settings = load_settings()
    entry = entry_from("churn.tick", line, KNOWN)
    since = (datetime.now(UTC) - ago).isoformat()
    put_document(
        open_control(settings),
        "schedule",
        "churn.tick",
        {"line": f"{entry.cron} {entry.zone}", "after": since},
    )
    return settings


def test_two_schedulers_run_a_job_once_as_the_command_that_is_printed(home, capsys):
    settings = declared(home, "0 3 * * * Asia/Tokyo -p seconds=1")
    both = [
        subprocess.Popen(["mlsys", "schedule", "--once"], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    control = open_control(settings)
    [run] = list_runs(control)
    due = due_until(
        entry_from("churn.tick", "0 3 * * * Asia/Tokyo", KNOWN),
        datetime.now(UTC) - timedelta(hours=30),
        datetime.now(UTC),
    )
    assert (run.status, run.job) == ("succeeded", "tick") and len(due) in (1, 2)
    assert [row.status for row in dues(control)] == ["missed"] * (len(due) - 1) + ["done"]
    capsys.readouterr()
    assert main(["schedule", "--list"]) == 0 and "done" in capsys.readouterr().out
    assert main(["schedule", "--check"]) == 0
    assert main(["schedule", "--next", "3", "--json"]) == 0
    coming = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    command = shlex.split(coming[0]["command"])
    assert len(coming) == 3 and command == ["mlsys", "run", "tick", "-p", "problem=churn", "-p", "seconds=1"]
    assert main(command[1:]) == 0 and len(list_runs(control)) == 2


def test_a_job_that_fails_is_tried_again_and_then_told(home):
    settings = declared(home, "0 3 * * * UTC -p fails=true --retries 0 --within 1m")
    assert main(["schedule", "--once"]) == 0
    control = open_control(settings)
    assert dues(control)[-1].status == "failed" and "exit code 1" in dues(control)[-1].error
    assert main(["schedule", "--check"]) == 1
    [alert] = open_alerts(control, "churn")
    assert (alert.kind, alert.subject) == ("schedule", "tick") and "exit code 1" in alert.likely_cause
    assert main(["run", "tick", "-p", "problem=churn"]) == 0  # by hand, which is not the moment that failed
    assert main(["schedule", "--check"]) == 1


def test_nobody_keeps_time_and_it_is_said(home, capsys):
    declared(home, "0 3 * * * UTC --within 1m", ago=timedelta(days=3))
    assert main(["schedule", "--check"]) == 1
    assert "no scheduler has started it" in capsys.readouterr().out


def test_a_job_that_hangs_is_ended_and_a_stopped_scheduler_leaves_nothing(home):
    settings = declared(home, "0 3 * * * UTC -p seconds=600 --timeout 8s --retries 0")
    started = time.monotonic()
    assert main(["schedule", "--once"]) == 0 and time.monotonic() - started < 100
    control = open_control(settings)
    assert "it took longer than" in dues(control)[-1].error
    settings = declared(home, "30 3 * * * UTC -p seconds=600")
    process = subprocess.Popen(["mlsys", "schedule"], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(r.status == "running" for r in list_runs(control)):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    row = dues(control)[-1]
    assert (row.status, row.error) == ("waiting", "stopped")
    assert not [r for r in list_runs(control) if r.status == "running"], "the job said that it was stopped"


LINES = {
    "churn.score": "0 6 * * 1-5 Europe/London -p seed=7 --timeout 1h",
    "churn.score.often": "*/15 8-18/2 * * MON,FRI America/New_York",
    "churn.score.month": "30 2 1,15 */3 5 UTC --missed none",
}
ENTRIES = [entry_from(name, line, KNOWN) for name, line in LINES.items()]


def fires(expression, base, n):
    "What systemd itself makes of an expression."
    words = [
        "systemd-analyze",
        "calendar",
        f"--iterations={n}",
        f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC",
        expression,
    ]
    said = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "TZ": "UTC"})
    assert said.returncode == 0, said.stderr
    found = re.findall(r"(?:Next elapse|Iter. #\d+|\(in UTC\)): \w+ (\S+ \S+) UTC", said.stdout)
    return [datetime.fromisoformat(f"{t}+00:00") for t in found]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_systemd_reads_the_same_moments(entry):
    base = datetime(2026, 3, 20, tzinfo=UTC)
    theirs = sorted({t for line in on_calendar(entry) for t in fires(line, base, 40)})[:40]
    ours = due_until(entry, base, theirs[-1])
    assert len(theirs) == 40 and ours[:40] == theirs


def test_every_export_is_read_by_its_own_rules(tmp_path):
    tab = exported(ENTRIES, "crontab", tmp_path)["crontab"].splitlines()[1:]
    for entry, zone, line in zip(ENTRIES, tab[::2], tab[1::2], strict=True):
        assert zone == f"CRON_TZ={entry.zone}" and line.startswith(f"{entry.cron} cd ")
        assert shlex.split(line.split(" && ")[1]) == entry.words()
    units = exported(ENTRIES, "systemd", tmp_path)
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    if shutil.which("systemd-analyze"):
        said = subprocess.run(
            ["systemd-analyze", "verify", *(str(tmp_path / n) for n in units)], capture_output=True, text=True
        )
        assert "mlsys-" not in said.stderr, said.stderr
    documents = [
        json.loads(d) for d in exported(ENTRIES, "kubernetes", tmp_path)["cronjobs.yaml"].split("---\n")
    ]
    for entry, document in zip(ENTRIES, documents, strict=True):
        ZoneInfo(document["spec"]["timeZone"])
        assert (
            re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])
            and len(document["metadata"]["name"]) <= 52
        )
        [box] = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        assert document["spec"]["schedule"] == entry.cron and box["command"] == entry.words()
    dags = ast.parse(exported(ENTRIES, "airflow", tmp_path)["mlsys_dags.py"])
    commands = [
        ast.literal_eval(k.value)
        for n in ast.walk(dags)
        if isinstance(n, ast.Call)
        for k in n.keywords
        if k.arg == "bash_command"
    ]
    assert [shlex.split(c) for c in commands] == [e.words() for e in ENTRIES]


def test_github_starts_at_every_hour_at_which_something_is_due(tmp_path):
    flow = json.loads(exported(ENTRIES, "github", tmp_path)["mlsys.yml"])
    base = datetime(2026, 3, 20, tzinfo=UTC)
    for entry, when in zip(ENTRIES, flow["on"]["schedule"], strict=True):
        utc = entry_from("churn.score", f"{when['cron']} UTC", KNOWN)
        ours, starts = (
            due_until(entry, base, base + timedelta(days=25)),
            set(due_until(utc, base, base + timedelta(days=25))),
        )
        assert ours and set(ours) <= starts, entry.name
    assert flow["jobs"]["schedule"]["steps"][-1]["run"] == "mlsys schedule --once"


@pytest.mark.parametrize(
    "line, why",
    [
        ("0 6 * *", "five fields"), ("0 6 * * 8 UTC", "Bad day-of-week"), ("0 6 * * 1 Nowhere/Land", "No time zone"),
        ("0 6 * * 1 UTC -p seed", "name=value"), ("0 6 * * 1 UTC --timeout soon", "timeout is a length"),
        ("0 6 31 2 * UTC", "Bad day-of-month"), ("* 0 6 * * 1", "zone '1'"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_meant_is_refused_in_one_line(home, capsys, line, why):
    text = f"[schedule]\nchurn.tick = {line}\n[problems]\nchurn = mlsys_nb.cases.churn:problem\n"
    (home / "settings.ini").write_text(text)
    assert main(["schedule", "--list"]) == 2
    said = capsys.readouterr().err
    assert "[schedule] churn.tick" in said and why in said and said.count("\n") == 1, said
