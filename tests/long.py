"""Every check at its full size: `make long`. Resumable: a step that passed for this state of the code is not run again.

    python tests/long.py              # all steps, in the order of their cost; at most three hours on two cores
    python tests/long.py oracle cuts  # some of them
    python tests/long.py --list

Each step is a program or a test file that also runs, small and seeded, in CI. What a step says after its last line that
begins with `==` goes to the table in `tests/LONG.md`, which is committed with the code that it belongs to. A step that was
not run again keeps its place there, with the commit it was run on.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests/LONG.md"


@dataclass(frozen=True)
class Step:
    "One check at its full size."

    name: str
    says: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


PYTEST = (sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider")
STEPS = (
    Step("features", "feature floor beside its peers: as-of sets, reads, bytes an event, bulk load", (sys.executable, "tests/bench/features.py")),
    Step("history", "as-of cliffs, wide transforms, partitions", (sys.executable, "tests/bench/history.py")),
    Step("oracle", "10,000 generated worlds: history = online = stream = an oracle written from the prose", (sys.executable, "tests/oracle.py", "--worlds", "10000", "--workers", "2")),
    Step("parity", "5,000 cases a feature: every way gives the same bits; planted mistakes in the feature floor are rejected by the certificate", (*PYTEST, "tests/test_parity.py", "tests/test_parity_mutants.py"), (("TEST_MLSYS_PARITY_CASES", "5000"), ("TEST_MLSYS_FULL", "1"))),
    Step("cuts", "every write, fsync and rename of every command cut once", (*PYTEST, "tests/test_cuts.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("damage", "every file of a root truncated, emptied, flipped, deleted: `mlsys verify` names it", (*PYTEST, "tests/test_verify.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("keys", "keys change while others write, cut before each deed, 200 kills: no row is lost", (*PYTEST, "tests/test_rotation.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("forgetting", "a person is forgotten; killed at each write, the same command ends it", (*PYTEST, "tests/test_forget.py", "tests/test_encryption.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("kills", "1,500 SIGKILLs at random moments: nothing lost, doubled or hung; outputs equal", (sys.executable, "tests/kills.py", "--kills", "1500", "--seed", "1")),
    Step("events", "10,000 events over HTTP with kills of two services: acknowledged = lake = store = training set", (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/test_event_endpoint.py"), (("TEST_MLSYS_EVENTS", "10000"),)),
    Step("streams", "60 SIGKILLs of `mlsys stream` over a file and over Redis", (*PYTEST[:-4], "-p", "no:cacheprovider", "tests/test_stream_source.py"), (("TEST_MLSYS_KILLS", "30"),)),
    Step("calendar", "1,000 simulated days over changes of clocks, two schedulers killed at random: once each, or said to be missed", (sys.executable, "tests/calendar_world.py", "1000", "1", "8")),
    Step("cases", "the shipped cases on all of their data, replayed month by month", (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/test_cases.py", "-k", "whole"), (("TEST_MLSYS_CASES", "full"),)),
    Step("worlds", "three worlds, whole policies: the declared loop against never, recalibrate, refit, newest", (sys.executable, "tests/bench/worlds.py")),
    Step("past", "how much past to learn from, in eight worlds whose truth is known: never forgetting, a number somebody wrote down, asking", (sys.executable, "tests/bench/past.py")),
    Step("walks", "tables never seen before, six kinds in many forms: the tutorial by its printed commands, from the wheel", (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/test_own_problem.py"), (("TEST_MLSYS_WALKS", "6"),)),
    Step("odds", "every rate that is stated, measured anew: gate, performance, drift", (sys.executable, "tests/bench/odds.py", "-n", "200")),
    Step("draws", "what CI draws a part of: odds of gate, performance and drift, 1,000 orders of arrival, lakes in any order, leaks, runs compared, screens, kills of a replayed year", (*PYTEST, *(f"tests/test_{n}.py" for n in ("gate", "performance", "drift", "online", "point_in_time_join", "lake", "withdrawal", "sql_source", "leaks", "run_comparison", "dashboard", "site", "api_page", "replay"))), (("TEST_MLSYS_FULL", "1"), ("TEST_MLSYS_ORDERS", "1000"))),
    Step("diff", "ten planted causes beside an idle one: named by swapping one input at a time", (*PYTEST, "tests/test_difference_cause.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("causes", "what `mlsys diff` names on shipped cases: ten planted causes each, and trainings again without one", (sys.executable, "tests/causes.py")),
    Step("retrain", "retraining cold, again, after one more trial, feature, month, beside naive", (sys.executable, "tests/bench/retrain.py")),
    Step("drift", "drift over 1M rows x 20 columns beside a scan", (sys.executable, "tests/bench/drift.py")),
    Step("leaks", "columns known only afterwards in three worlds, and honest tables: how often each is named", (sys.executable, "tests/leaky_tables.py", "30")),
    Step("coverage", "intervals hold as often as they say, probabilities come true: worlds of known truth, and the shipped cases", (sys.executable, "tests/bench/coverage.py")),
    Step("tables", "a text, 280,000 single-use ids, a million decisions, ten thousand candidates: each within its line", (sys.executable, "tests/bench/tables.py")),
    Step("serving", "the service beside a bare echo, by term of durability", (sys.executable, "tests/bench/serving.py")),
    Step("hostile", "honest callers beside 500 hostile and 1,000 idle clients, and five times as many as can be served", (sys.executable, "tests/bench/hostile.py")),
    Step("fuzz", "requests changed at random, in process", (sys.executable, "tests/fuzz.py", "--seconds", "600")),
    Step("drill", "every planted fault on a year of the demo: told at the first look with the cause, closed when mended", (sys.executable, "tests/game_day.py")),
    Step("readme", "every command of the README as printed, in a year of the demo", (sys.executable, "tests/readme.py")),
    Step("pages", "first content of a dashboard as a file, behind the server and with a warm kernel; sessions at once", (sys.executable, "tests/bench/dashboards.py")),
    Step("mutants", "100 planted small bugs", (sys.executable, "tests/mutants.py", "-n", "100")),
    Step("swaps", "champions exchanged a thousand times under load, in both terms that say when", (sys.executable, "-m", "pytest", "-q", "-s", "tests/test_swaps.py", "-k", "exchanged"), (("SWAPS", "1000"),)),
)  # fmt: skip


def state() -> str:
    "A hash of everything that a step may depend on."
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "nbs", "mlsys_nb", "tests", "constraints.txt"],
                          cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    paths = sorted(
        p for p in done.stdout.split("\n") if p and not p.endswith("LONG.md") and (ROOT / p).is_file()
    )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.encode() + hashlib.sha256((ROOT / path).read_bytes()).digest())
    return digest.hexdigest()[:16]


def passed(step: Step, kept: Path) -> str | None:
    "What a step said when it passed; None when it did not."
    said = kept / f"{step.name}.txt"
    if said.exists():
        return said.read_text()
    print(f"== {step.name}: {step.says}", flush=True)
    start, lines = monotonic(), []
    process = subprocess.Popen(step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "MPLBACKEND": "agg", "DRAW_ANEW": "1", **dict(step.environment)})  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        print("   " + line, end="", flush=True)
        lines.append(line.rstrip())
    last = max((i for i, line in enumerate(lines) if line.startswith("==")), default=max(len(lines) - 3, -1))
    text = "\n".join([*lines[last:], f"({monotonic() - start:.0f} s)"]).lstrip("= ")
    if process.wait():
        print(f"{step.name} failed with exit code {process.returncode}")
        return None
    said.write_text(text)
    return text


def commit() -> str:
    "The commit that is checked out, and whether anything was changed since."
    short = subprocess.run(["git", "describe", "--always", "--dirty=, changed since", "--exclude", "*"],
                           cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    return short.stdout.strip()


def write_table(wanted: list[Step], kept: Path, now: str) -> None:
    "Put what these steps said in the place of what they said before."
    parts = (
        dict(re.findall(r"^## (\w+): (.*?)(?=^## |\Z)", TABLE.read_text(), re.M | re.S))
        if TABLE.exists()
        else {}
    )
    for step in wanted:
        if (kept / f"{step.name}.txt").exists():
            text = (kept / f"{step.name}.txt").read_text().strip()
            parts[step.name] = f"{step.says}\n\nOn commit {now}.\n\n```text\n{text}\n```\n\n"
    steps = [step.name for step in STEPS]
    by_hand = [name for name in parts if name not in steps]  # What somebody has written of them
    listed = [f"## {name}: {parts[name].strip()}\n" for name in [*by_hand, *steps] if name in parts]
    TABLE.write_text(
        "# Checks at their full size\n\nWritten by `make long`, each with the commit it was run on.\n\n"
        + "\n".join(listed)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", choices=[[], *[s.name for s in STEPS]], help="which; all of them")
    parser.add_argument("--list", action="store_true", help="name the steps")
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{s.name:9} {s.says}" for s in STEPS))
        return 0
    now = state()
    kept = ROOT / ".pytest_cache/long" / now
    kept.mkdir(parents=True, exist_ok=True)
    wanted = [s for s in STEPS if not given.steps or s.name in given.steps]
    failed = [s.name for s in wanted if passed(s, kept) is None]
    write_table(wanted, kept, commit())
    print(
        f"{len(wanted) - len(failed)} of {len(wanted)} steps passed"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
