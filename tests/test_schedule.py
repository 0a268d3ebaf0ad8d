"Jobs by the calendar: once each over the change of clocks, with schedulers that die; in other clocks' words; told when not done."

import ast
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import nbformat
import pytest
from calendar_world import lived
from conftest import until

from mlsys_nb.doors.cli import main
from mlsys_nb.doors.scheduler_daemon import Timekeeper
from mlsys_nb.jobs.schedule import Scheduler, due_times, due_until, entry_from, last_due, late_entries
from mlsys_nb.jobs.schedule_export import exported, on_calendar
from mlsys_nb.monitoring.alerts import open_alerts
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control, open_tables, put_document
from mlsys_nb.system.runs_table import list_runs
from mlsys_nb.system.settings import load_settings
from mlsys_nb.system.work_queue import dues

KNOWN = {"problems": ["churn"], "jobs": ["score", "tick"]}


def test_over_a_change_of_clocks_with_schedulers_killed_at_random_each_moment_runs_once_or_is_said_to_be_missed():
    found = lived(6, 0, "2026-03-26")
    assert not found["wrong"] and found["moments"] > 25 and found["kills"] > 10, found


CHANGES = {  # of the clock: at midnight, at midnight, by half an hour, twice in a month of fasting
    "America/Santiago": ("2025-04-05", "2025-09-06"),
    "Asia/Beirut": ("2025-03-29", "2025-10-25"),
    "Australia/Lord_Howe": ("2025-04-05", "2025-10-04"),
    "Europe/London": ("2025-03-29", "2025-10-25"),
    "Africa/Casablanca": ("2025-02-22", "2025-04-05"),
}
CRONS = ("0 0 * * *", "30 0 * * *", "45 1 * * *", "15 2 * * *", "45 23 * * *", "0 */6 * * *", "*/15 * * * *")


@pytest.mark.parametrize("zone", CHANGES)
@pytest.mark.parametrize("cron", CRONS)
def test_over_every_change_of_clocks_each_day_has_its_moment_once_from_wherever_one_looks(zone, cron):
    entry = entry_from("churn.score", f"{cron} {zone}", KNOWN)
    for day in CHANGES[zone]:
        begin = instant(day) - timedelta(days=2)
        every = due_until(entry, begin, begin + timedelta(days=6))
        walls = [t.astimezone(ZoneInfo(zone)) for t in every]
        steps = {b - a for a, b in zip(every, every[1:], strict=False)}
        if cron.startswith("*/15"):
            assert steps == {timedelta(minutes=15)}
        elif "/" in cron:
            assert all(w.hour % 6 == 0 and w.minute == 0 for w in walls) and max(steps) <= timedelta(hours=13)
        else:
            assert (
                (walls[-1].date() - walls[0].date()).days + 1 == len({w.date() for w in walls}) == len(every)
            )
        for minutes in range(0, 4 * 24 * 60, 23):
            moment = begin + timedelta(days=1, minutes=minutes)
            assert next(due_times(entry, moment)) == min(t for t in every if t > moment)
            assert last_due(entry, moment) == max(t for t in every if t <= moment)


class Instantly:
    "A job that is done at once, and says so."

    def __init__(self, done, key):
        done[key] += 1

    def poll(self):
        return 0

    def kill(self): ...


def kept(folder):
    "Tables, a daily entry, a scheduler of it whose jobs are done at once, and how often each was."
    control, done = open_tables(f"sqlite:///{folder}/control.db"), Counter()
    entry = entry_from("churn.score", "0 6 * * * UTC", KNOWN)
    start = lambda entry, due: Instantly(done, due)
    return control, entry, lambda name: Scheduler(control, [entry], start, name), done


@pytest.mark.parametrize("ahead", [timedelta(minutes=40), timedelta(days=1), timedelta(days=365)])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_was_ahead_and_is_set_back_costs_no_run_and_makes_none_twice(tmp_path, ahead, restarted):
    control, entry, scheduler, done = kept(tmp_path)
    keeper, now = scheduler("one"), instant("2026-05-01T00:00")
    while now < instant("2026-05-10T00:00"):
        keeper.turn(now)
        if now == instant("2026-05-04T05:45"):
            for minutes in (0, 15, 30):  # the clock jumps, and is set right
                keeper.turn(now + ahead + timedelta(minutes=minutes))
            keeper = scheduler("two") if restarted else keeper
        now += timedelta(minutes=15)
    days = [instant(f"2026-05-{day:02}T06:00") for day in range(1, 10)]
    assert all(done[day] for day in days)
    assert max(done.values()) <= 1 + restarted  # how the job of a killed one ended, its key knows alone
    assert {row.status for row in dues(control, after=days[0]) if row.due in days} == {"done"}
    assert late_entries(control, [entry], now) == []


def test_what_does_not_run_after_a_clock_was_set_back_is_told(tmp_path):
    control, entry, scheduler, _ = kept(tmp_path)
    for moment in ("2026-05-01T05:00", "2027-05-01T07:00", "2027-05-01T07:01", "2026-05-01T05:01"):
        scheduler("one").turn(instant(moment))
    [late] = late_entries(control, [entry], instant("2026-05-02T08:00"))
    assert late.due == instant("2026-05-02T06:00") and "no scheduler has started it" in late.why


KEEPER = """
from datetime import timedelta
from mlsys_nb.jobs import schedule
schedule.LEASE = timedelta(seconds=3)
from mlsys_nb.doors.scheduler_daemon import Timekeeper
from mlsys_nb.system.settings import load_settings
Timekeeper(load_settings(), print).run(seconds=0.3)
"""


def stopped_between_writes(process, tables):
    "Stop a process at a moment when it does not hold the lock of SQLite's file: with that nobody could take over."
    while True:
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        with closing(sqlite3.connect(tables, timeout=1, isolation_level=None)) as free:
            try:
                free.execute("BEGIN EXCLUSIVE")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.5)  # long enough to end what it was at


def test_a_scheduler_that_is_stopped_beyond_its_lease_and_continued_neither_runs_twice_nor_ends_what_is_not_its_own(
    home,
):
    control = open_control(declared(home, "0 3 * * * UTC -p seconds=1"))
    first, second = None, None
    newest = lambda: next((row for row in reversed(dues(control)) if row.status != "missed"), None)
    try:
        first = subprocess.Popen([sys.executable, "-c", KEEPER])
        until(lambda: newest() is not None)
        stopped_between_writes(first, home / "data/control.db")
        holder = newest().owner
        second = subprocess.Popen([sys.executable, "-c", KEEPER])
        until(lambda: newest().status == "done")
        assert newest().owner != holder and newest().tries == 2
        ended = newest()
        first.send_signal(signal.SIGCONT)
        time.sleep(3)
        assert newest() == ended and first.poll() is None
        assert [run.status for run in list_runs(control)] == ["succeeded"]
    finally:
        for process in filter(None, (first, second)):
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(60)


def test_a_disk_that_is_full_stops_no_scheduler_and_starts_nothing_without_a_lease(home, monkeypatch):
    settings, said, started = declared(home, "0 3 * * * UTC"), [], Counter()
    keeper = Timekeeper(settings, said.append)
    monkeypatch.setattr(keeper.scheduler, "start", lambda entry, due: Instantly(started, due))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    full(0)
    try:
        for _ in range(3):
            keeper.persist()
    finally:
        full(soft)
    assert len(said) == 1 and said[0].startswith("cannot keep time: the control tables"), said
    assert (
        not started and [row.status for row in dues(open_control(settings)) if row.status != "missed"] == []
    )
    keeper.persist()
    full(0)
    try:
        keeper.persist()  # it has ended, and this cannot be written
    finally:
        full(soft)
    keeper.persist()
    assert [*started.values()] == [1] and dues(open_control(settings))[-1].status == "done"


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
    assert main(["schedule", "--once"]) == 0 and time.monotonic() - started < 300
    control = open_control(settings)
    assert "it took longer than" in dues(control)[-1].error
    settings, before = declared(home, "30 3 * * * UTC -p seconds=600"), {r.run_id for r in list_runs(control)}
    process = subprocess.Popen(["mlsys", "schedule"], stdout=subprocess.DEVNULL)
    until(lambda: any(r.status == "running" and r.run_id not in before for r in list_runs(control)))
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
