"The main job from outside: a problem of another package, killed at random moments, comes to the same table."

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import FULL

from mlsys_nb.doors.replay import run_key
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.policy_simulation import compare_policies
from mlsys_nb.loop.step_context import Context
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.runs_table import find_run
from mlsys_nb.system.settings import load_settings

replaying = import_module("mlsys_nb.doors.replay")  # `mlsys_nb.doors.replay` is also the deed
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A team's folder: its settings, its problem, this project's jobs and raw data."
    folder = tmp_path_factory.mktemp("team")
    (folder / "settings.ini").write_text(
        f"[system]\nraw = {ROOT / 'data/raw'}\njobs = {ROOT / 'nbs/jobs'}\n[problems]\nshort = short_year:problem\n"
    )
    return folder


def demo(home: Path, root: Path) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    command = [
        str(Path(sys.executable).with_name("mlsys")),
        "demo",
        "short",
        "--root",
        str(root),
    ]
    return subprocess.Popen(
        command,
        cwd=home,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    assert "Traceback" not in err
    return out


def table(out: str) -> list[str]:
    "The lines of the months' table and what is said of each month, without times and places."
    return [
        line
        for line in out.splitlines()
        if line.startswith(("|", "2010-")) and " rows in" not in line and "exists" not in line
    ]


@pytest.mark.parametrize(
    ("capacity", "waits"), [(None, []), (SimpleNamespace(most=5), [2 * replaying.LOOKS])]
)
def test_where_room_is_limited_customers_come_after_the_next_look(monkeypatch, capacity, waits):
    "Else the first of them are answered by the threshold at which the batch before stopped."
    met: list = []
    monkeypatch.setattr(replaying, "get_document", lambda *given: None)
    monkeypatch.setattr(replaying, "wait_for", lambda *given: met.append("serves"))
    monkeypatch.setattr(replaying, "pause", met.append)
    monkeypatch.setattr(replaying, "read_decisions", lambda *given: sys.exit("customers come"))
    problem = SimpleNamespace(name="p", capacity=capacity)
    at = SimpleNamespace(problem=problem, control=None, client=None, settings=None)
    with pytest.raises(SystemExit, match="customers come"):
        replaying._serve(at, datetime(2010, 5, 1, tzinfo=UTC), 1, None)
    assert met == ["serves", *waits]


@pytest.fixture(scope="module")
def undisturbed(home):
    root = home / "undisturbed"
    return root, finish(demo(home, root))


def test_the_year_is_told(undisturbed):
    root, out = undisturbed
    assert len([line for line in table(out) if line.startswith("| 2010-")]) == 3
    assert "Left alone, the first model's mean prediction" in out
    runs = [json.loads(p.read_text()) for p in root.glob("reports/short/*/*/run.json")]
    assert len(runs) >= 10 and {run["status"] for run in runs} == {"succeeded"}
    assert all(run["inputs"] for run in runs)
    assert (root / "reports/index.html").exists()


def test_a_second_start_has_nothing_to_do(home, undisturbed):
    root, out = undisturbed
    before = sorted(p.name for p in root.glob("reports/short/*/*"))
    again = finish(demo(home, root))
    assert "already" in again and table(again) == table(out)
    assert sorted(p.name for p in root.glob("reports/short/*/*")) == before


def test_killed_at_random_moments_it_comes_to_the_same_table(home, undisturbed):
    _, out = undisturbed
    root, rng, kills = home / "killed", random.Random(7), 0
    for _ in range(4 if FULL else 2):
        process = demo(home, root)
        time.sleep(rng.uniform(2, 9))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills
    assert table(finish(demo(home, root))) == table(out)
    decisions = [p for p in (root / "data/decisions/short/batch").iterdir() if not p.name.startswith(".")]
    assert len(decisions) == 3


def test_the_simulator_agrees_with_the_year_that_was_lived(home, undisturbed, monkeypatch):
    "A rehearsal by the same steps: the same decisions as the replay's, and the closing figures of champion and first model."
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    root, _ = undisturbed
    settings = load_settings(root, home=home)
    problem = load_problem(settings, "short")
    end = problem.replay.moments()[-1]
    at = Context(settings, problem, end)
    found = compare_policies(at, "never,declared")
    lived = backtest(at, problem.replay.moments())
    loss = found.judge.loss
    for who, policy in (("champion", "declared"), ("frozen", "never")):
        mine, theirs = found.periods.filter(policy=policy), lived.frame.filter(who=who)
        assert mine["n"].to_list() == theirs["n"].to_list()
        # Visitors of the replay told some outcomes themselves: their rows stand elsewhere in the training set.
        assert mine[loss].to_list() == pytest.approx(theirs[loss].to_list(), abs=1e-4)
    decided = [find_run(at.control, run_key(problem, "retrain", m.at)) for m in found.lived[1:]]
    assert [run.outputs["champion"] for run in decided] == [m.version for m in found.lived[1:]]


def test_simulating_twice_gives_the_same_bytes_and_a_report(home, undisturbed):
    root, _ = undisturbed
    command = [str(Path(sys.executable).with_name("mlsys")), "simulate", "short", "--root", str(root)]
    command += ["--policies", "never,monthly,oracle", "-p", "n_trials=2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    said = [
        subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, timeout=300)
        for _ in range(2)
    ]
    assert [one.returncode for one in said] == [0, 0], said[0].stderr[-2000:]
    assert said[0].stdout == said[1].stdout
    assert "Best of the alternatives:" in said[0].stdout and "monthly" in said[0].stdout
    assert len(list(root.glob("reports/short/simulate/*/report.html"))) == 2
    wrong = subprocess.run(
        [*command[:-3], "nevver", "-p", "n_trials=2"], cwd=home, env=env, capture_output=True, text=True
    )
    assert wrong.returncode != 0 and "did you mean never?" in wrong.stderr
