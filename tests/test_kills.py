"The programs of `make long`, small: a few kills, the same bugs from the same seed."

import subprocess
import sys
from pathlib import Path

from mutants import drawn, listed

TESTS = Path(__file__).parent


def told(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=TESTS.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_killed_at_random_moments_every_workload_comes_to_the_same_end() -> None:
    out = told("tests/kills.py", "--kills", "15", "--seed", "3")
    assert "nothing lost, doubled or hung" in out
    assert {line.split()[0] for line in out.splitlines()[:4]} == {"lake", "decisions", "pointers", "inbox"}


def test_a_seed_always_draws_the_same_bugs_and_each_changes_its_line() -> None:
    one = told("tests/mutants.py", "--seed", "5", "-n", "30", "--floor", "data", "--show").strip()
    again, other = (
        listed(drawn(seed, 30, "data")) for seed in (5, 6)
    )  # with other hashes than that process had
    assert one == again != other
    everywhere = listed(drawn(5, 30, ""))
    for line in [*one.splitlines(), *everywhere.splitlines()]:
        old, new = line.split(": ", 1)[1].split("  ->  ")
        assert old != new, line
    assert len({line.split(".")[0] for line in everywhere.splitlines()}) >= 6, "bugs stand on many floors"
