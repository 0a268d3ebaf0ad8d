"""Every check at its full size: `make long`. Resumable: a step that passed for this state of the code is not run again.

    python tests/long.py              # all steps, in the order of their cost; at most three hours on two cores
    python tests/long.py oracle cuts  # some of them
    python tests/long.py --list

Each step is a program or a test file that also runs, small and seeded, in CI. Two steps run at once where neither measures
time nor takes both processors. What a step says after its last line that begins with `==` goes to its section of
`tests/LONG.md`, which is committed with the code that it belongs to, in the place of what it said before; what somebody
has written around it stays. A step that was not run again keeps what it said, with the commit it was run on.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
    beside: bool = False  # Another such step may run at the same time


PYTEST = (sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider")
STEPS = (
    Step("odds_years", "whole years with real fits: what is trained, what ships, what it gains", (sys.executable, "tests/bench/odds.py", "-n", "200", "--only", "years"), beside=True),
    Step("odds_performance", "the performance monitor: false alarms of quiet worlds, what is found and when", (sys.executable, "tests/bench/odds.py", "-n", "200", "--only", "performance"), beside=True),
    Step("odds_gate", "the gate: equal recipes, the stated interval, real gains", (sys.executable, "tests/bench/odds.py", "-n", "800", "--only", "gate"), beside=True),
    Step("odds_drift", "drift: marks and alerts of quiet worlds, what is found within three looks", (sys.executable, "tests/bench/odds.py", "-n", "60", "--only", "drift"), beside=True),
    Step("odds_choice", "the gate, classes and candidates: equal recipes, real gains", (sys.executable, "tests/bench/odds.py", "-n", "400", "--only", "choice"), beside=True),
    Step("kills", "1,500 SIGKILLs at random moments: nothing lost, doubled or hung; outputs equal", (sys.executable, "tests/kills.py", "--kills", "1500", "--seed", "1"), beside=True),
    Step("calendar", "1,000 simulated days over changes of clocks, two schedulers killed at random: once each, or said to be missed", (sys.executable, "tests/calendar_world.py", "1000", "1", "8"), beside=True),
    Step("worlds", "three worlds, whole policies: the declared loop against never, recalibrate, refit, newest", (sys.executable, "tests/bench/worlds.py"), beside=True),
    Step("leaks", "columns known only afterwards in three worlds, and honest tables: how often each is named", (sys.executable, "tests/leaky_tables.py", "30"), beside=True),
    Step("coverage", "intervals hold as often as they say, probabilities come true: worlds of known truth, and the shipped cases", (sys.executable, "tests/bench/coverage.py"), beside=True),
    Step("drill", "every planted fault on a year of the demo: told at the first look with the cause, closed when mended", (sys.executable, "tests/game_day.py"), beside=True),
    Step("readme", "every command of the README as printed, in a year of the demo", (sys.executable, "tests/readme.py"), beside=True),
    Step("walks", "tables never seen before, six kinds in many forms: the tutorial by its printed commands, from the wheel", (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/test_own_problem.py"), (("TEST_MLSYS_WALKS", "6"),), beside=True),
    Step("swaps", "champions exchanged a thousand times under load, in both terms that say when", (sys.executable, "-m", "pytest", "-q", "-s", "tests/test_swaps.py", "-k", "exchanged"), (("SWAPS", "1000"),), beside=True),
    Step("fuzz", "requests changed at random, in process", (sys.executable, "tests/fuzz.py", "--seconds", "600"), beside=True),
    Step("cases", "the shipped cases on all of their data, replayed month by month", (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/test_cases.py", "-k", "whole"), (("TEST_MLSYS_CASES", "full"),), beside=True),
    Step("causes", "what `mlsys diff` names on shipped cases: ten planted causes each, and trainings again without one", (sys.executable, "tests/causes.py"), beside=True),
    Step("events", "10,000 events over HTTP with kills of two services: acknowledged = lake = store = training set", (sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "tests/test_event_endpoint.py"), (("TEST_MLSYS_EVENTS", "10000"),), beside=True),
    Step("streams", "60 SIGKILLs of `mlsys stream` over a file and over Redis", (*PYTEST[:-4], "-p", "no:cacheprovider", "tests/test_stream_source.py"), (("TEST_MLSYS_KILLS", "30"),), beside=True),
    Step("past", "how much past to learn from, in eight worlds whose truth is known: never forgetting, a number somebody wrote down, asking", (sys.executable, "tests/bench/past.py"), beside=True),
    Step("features", "feature floor beside its peers: as-of sets, reads, bytes an event, bulk load", (sys.executable, "tests/bench/features.py")),
    Step("history", "as-of cliffs, wide transforms, partitions", (sys.executable, "tests/bench/history.py")),
    Step("oracle", "10,000 generated worlds: history = online = stream = an oracle written from the prose", (sys.executable, "tests/oracle.py", "--worlds", "10000", "--workers", "2")),
    Step("parity", "5,000 cases a feature: every way gives the same bits; planted mistakes in the feature floor are rejected by the certificate", (*PYTEST, "tests/test_parity.py", "tests/test_parity_mutants.py"), (("TEST_MLSYS_PARITY_CASES", "5000"), ("TEST_MLSYS_FULL", "1"))),
    Step("cuts", "every write, fsync and rename of every command cut once", (*PYTEST, "tests/test_cuts.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("damage", "every file of a root truncated, emptied, flipped, deleted: `mlsys verify` names it", (*PYTEST, "tests/test_verify.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("keys", "keys change while others write, cut before each deed, 200 kills: no row is lost", (*PYTEST, "tests/test_rotation.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("forgetting", "a person is forgotten; killed at each write, the same command ends it", (*PYTEST, "tests/test_forget.py", "tests/test_encryption.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("draws", "what CI draws a part of: odds of gate, performance and drift, 1,000 orders of arrival, lakes in any order, leaks, runs compared, screens, kills of a replayed year", (*PYTEST, *(f"tests/test_{n}.py" for n in ("gate", "performance", "drift", "online", "point_in_time_join", "lake", "withdrawal", "sql_source", "leaks", "run_comparison", "dashboard", "site", "api_page", "replay"))), (("TEST_MLSYS_FULL", "1"), ("TEST_MLSYS_ORDERS", "1000"))),
    Step("diff", "ten planted causes beside an idle one: named by swapping one input at a time", (*PYTEST, "tests/test_difference_cause.py"), (("TEST_MLSYS_FULL", "1"),)),
    Step("retrain", "retraining cold, again, after one more trial, feature, month, beside naive", (sys.executable, "tests/bench/retrain.py")),
    Step("drift", "drift over 1M rows x 20 columns beside a scan", (sys.executable, "tests/bench/drift.py")),
    Step("tables", "a text, 280,000 single-use ids, a million decisions, ten thousand candidates: each within its line", (sys.executable, "tests/bench/tables.py")),
    Step("serving", "the service beside a bare echo, by term of durability", (sys.executable, "tests/bench/serving.py")),
    Step("hostile", "honest callers beside 500 hostile and 1,000 idle clients, and five times as many as can be served", (sys.executable, "tests/bench/hostile.py")),
    Step("pages", "first content of a dashboard as a file, behind the server and with a warm kernel; sessions at once", (sys.executable, "tests/bench/dashboards.py")),
    Step("mutants", "100 planted small bugs", (sys.executable, "tests/mutants.py", "-n", "100")),
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


FAILED = ".failed.txt"  # What a step said that did not pass: it is in the table, and run again


def passed(step: Step, kept: Path) -> bool:
    "Whether a step passed, now or before on this state of the code; what it says is shown as it comes, and kept."
    said, failure = (kept / f"{step.name}{end}" for end in (".txt", FAILED))
    if said.exists():
        return True
    failure.unlink(missing_ok=True)
    print(f"== {step.name}: {step.says}", flush=True)
    start, lines, before = monotonic(), [], f"{step.name} | " if step.beside else "   "
    process = subprocess.Popen(step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env={**os.environ, "MPLBACKEND": "agg", "DRAW_ANEW": "1", **dict(step.environment)})  # fmt: skip
    assert process.stdout
    for line in process.stdout:
        print(before + line, end="", flush=True)
        lines.append(line.rstrip())
    last = max((i for i, line in enumerate(lines) if line.startswith("==")), default=max(len(lines) - 3, -1))
    text = "\n".join([*lines[last:], f"({monotonic() - start:.0f} s)"]).lstrip("= ")
    failed = process.wait()
    print(f"== {step.name} {f'failed with exit code {failed}' if failed else 'passed'} after {monotonic() - start:.0f} s", flush=True)  # fmt: skip
    (failure if failed else said).write_text(text)
    return not failed


def commit() -> str:
    "The commit that is checked out, and whether anything was changed since."
    short = subprocess.run(["git", "describe", "--always", "--dirty=, changed since", "--exclude", "*"],
                           cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    return short.stdout.strip()


SECTION = re.compile(r"^## ([^:\n]+): (.*?)(?=^## |\Z)", re.M | re.S)
SAID = re.compile(r"`make long` on commit [^\n]*:\n\n```text\n.*?\n```", re.S)


def table(before: str, steps: list[Step], kept: Path, now: str) -> str:
    "The text of the table with what these steps said in the place of what they said before; what was written by hand stays."
    parts = dict(SECTION.findall(before))
    for step in steps:
        for told, end in (("", ".txt"), (", failed", FAILED)):
            if not (words := kept / f"{step.name}{end}").exists():
                continue
            said = f"`make long` on commit {now}{told}:\n\n```text\n{words.read_text().strip()}\n```"
            _, _, rest = parts.get(step.name, "").partition("\n")
            written = SAID.split(rest, maxsplit=1) if SAID.search(rest) else ["\n", f"\n{rest}"]
            parts[step.name] = step.says + "\n" + said.join(written)
    order = [step.name for step in STEPS]
    by_hand = [name for name in parts if name not in order]
    listed = [f"## {name}: {parts[name].strip()}\n" for name in [*by_hand, *order] if name in parts]
    return before[: before.index("## ")] + "\n".join(listed)


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
    start = monotonic()
    with ThreadPoolExecutor(2) as pool:
        done = {s.name: pool.submit(passed, s, kept) for s in wanted if s.beside}
    done_alone = {s.name: passed(s, kept) for s in wanted if not s.beside}
    failed = [
        s.name for s in wanted if not (done_alone[s.name] if s.name in done_alone else done[s.name].result())
    ]
    TABLE.write_text(table(TABLE.read_text(), wanted, kept, commit()))
    print(
        f"{len(wanted) - len(failed)} of {len(wanted)} steps passed in {(monotonic() - start) / 60:.0f} minutes"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
