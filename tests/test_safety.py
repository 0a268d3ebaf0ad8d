"""The safety contract of job notebooks: each of twelve mutations is refused, with the right exit code and a word about it."""

import json
import os
import signal
import threading
import time

import pytest
from test_jobs import FIRST, job

from mlsys_nb.doors.cli import main
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.runs_table import list_runs
from mlsys_nb.system.settings import load_settings

DECLARE = "factor: int = ...  # By how much\nseed: int = 0"
GOOD = ("rows = [1, 2, 3]", FIRST + "outputs({'sum': factor * sum(rows)})")


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[system]\ntracking_uri = off\n")
    job(tmp_path, "add", DECLARE, *GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(home, change):
    path = home / "nbs" / "jobs" / "add.ipynb"
    notebook = json.loads(path.read_text())
    change(notebook["cells"])
    path.write_text(json.dumps(notebook))


def source(cells, number, text):
    cells[number]["source"] = text


def swap(cells):
    cells[2], cells[3] = cells[3], cells[2]


BEFORE = {  # mutation: how it is planted, what is asked, what is said
    "tag stripped": (
        lambda c: c[1]["metadata"].clear(),
        ["factor=2"],
        "exactly one cell tagged 'parameters'",
    ),
    "name misspelt": (None, ["factr=2"], "no parameter 'factr'"),
    "wrong type": (None, ["factor=two"], "declared as int"),
    "missing value": (None, [], "needs a value for factor"),
    "stale output": (
        lambda c: c[2].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "old"}]),
        ["factor=2"],
        "an earlier run",
    ),
    "cells out of order": (swap, ["factor=2"], "put the cells in the order"),
    "unpinned seed": (
        lambda c: source(c, 2, "import numpy as np\nrows = np.random.default_rng().integers(9, size=3)"),
        ["factor=2"],
        "only from a seed",
    ),
    "unpinned draw under another name": (
        lambda c: source(c, 2, "from uuid import uuid4 as name\nrows = [name().int % 7]"),
        ["factor=2"],
        "calls name()",
    ),
    "a shell that may fail unseen": (
        lambda c: source(c, 2, "rows = [1]\n!false"),
        ["factor=2"],
        "asks a shell",
    ),
    "hidden state": (lambda c: source(c, 2, "pass"), ["factor=2"], "no cell makes"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_can_be_told_beforehand_starts_nothing(home, capsys, name):
    plant, given, says = BEFORE[name]
    if plant:
        edited(home, plant)
    assert main(["run", "add", *(word for value in given for word in ("-p", value))]) == 2
    assert says in capsys.readouterr().err
    assert not (home / "reports").exists(), "no kernel was started"


def test_an_unknown_job_starts_nothing(home, capsys):
    assert main(["run", "ad"]) == 2
    assert "no job 'ad'" in capsys.readouterr().err


def test_the_same_job_in_order_succeeds(home, capsys):
    assert main(["run", "add", "-p", "factor=2"]) == 0
    assert "sum: 12" in capsys.readouterr().out


def failed(home):
    (run,) = list_runs(open_control(load_settings(home=home)))
    assert run.status == "failed"
    assert (home / run.report / "report.html").is_file(), "its report is kept"
    return run


@pytest.mark.parametrize(
    ("cell", "says"),
    [("rows = [1 / 0]", "ZeroDivisionError"), ("rows = [1]\nraise SystemExit(0)", "ended the job")],
)
def test_a_failing_cell_is_a_failed_run(home, capsys, cell, says):
    "Also one that says that all is well, and lets nothing after it run."
    edited(home, lambda c: source(c, 2, cell))
    assert main(["run", "add", "-p", "factor=2"]) == 1
    assert says in failed(home).error


def test_a_killed_kernel_is_a_failed_run(home, capsys):
    edited(
        home, lambda c: source(c, 2, f"import os\nos.kill(os.getpid(), {int(signal.SIGKILL)})\nrows = [1]")
    )
    assert main(["run", "add", "-p", "factor=2"]) == 1
    assert "the kernel died" in failed(home).error


def test_a_module_edited_under_a_running_job_fails_it(home, capsys):
    marker, module = home / "began", home / "own.py"
    module.write_text("rows = [1, 2]\n")
    wait = f"import time\nfrom pathlib import Path\nPath({str(marker)!r}).write_text('')\nwhile not Path({str(marker)!r} + '2').exists():\n    time.sleep(0.02)\nrows = [1]"
    edited(home, lambda c: source(c, 2, wait))

    def edit():
        end = time.monotonic() + 60
        while not marker.exists() and time.monotonic() < end:
            time.sleep(0.02)
        module.write_text("rows = [1, 2, 3]\n")
        os.utime(module)
        (home / "began2").write_text("")

    hand = threading.Thread(target=edit)
    hand.start()
    assert main(["run", "add", "-p", "factor=2"]) == 1
    hand.join()
    assert "code was edited while the job ran (own.py)" in failed(home).error
