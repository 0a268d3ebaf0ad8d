"The main job from outside: a problem of another package, killed at random moments, comes to the same table."

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def undisturbed(home):
    root = home / "undisturbed"
    return root, finish(demo(home, root))


def test_the_year_is_told(undisturbed):
    root, out = undisturbed
    assert len([line for line in table(out) if line.startswith("| 2010-")]) == 4
    assert "Left alone, the first model's mean prediction" in out
    runs = [json.loads(p.read_text()) for p in root.glob("reports/short/*/*/run.json")]
    assert len(runs) >= 12 and {run["status"] for run in runs} == {"succeeded"}
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
    for _ in range(4):
        process = demo(home, root)
        time.sleep(rng.uniform(2, 9))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills
    assert table(finish(demo(home, root))) == table(out)
    decisions = [p for p in (root / "data/decisions/short/batch").iterdir() if not p.name.startswith(".")]
    assert len(decisions) == 4
