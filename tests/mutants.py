"""Plant small bugs, one at a time, and see whether the tests notice.

    python tests/mutants.py --seed 1                 # 100 mutants over all rooms, at most 60 s each
    python tests/mutants.py --seed 1 -n 10 --floor features
    python tests/mutants.py                          # with a seed that nobody chose: the text of the rooms gives it
    python tests/mutants.py --seed 1 --show          # only say which bugs would be planted

A mutant is one change in one exported line: a comparison's boundary, a number off by one, a condition turned round, a call
or an entry of a dictionary left out, a text exchanged for its neighbour. It is planted in a copy of the project, never in
the checkout, and held against tests that run its line, then those that run its function, then others of its room: first
its chapter, then in turn the quickest of each file. Which lines a test runs is seen in one plain run of all tests
(tests/traced.py), which is kept beside the results. A mutant that hangs where the sound code does not is caught; one whose
tests all pass survives and is printed. Some mutants change nothing that can be observed, so nobody reaches 100 %; one kind is
known without looking: at the boundary of a number that is there for rounding (`> 1e-9`) a comparison is turned round instead.
"""

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from bench.rates import line as rated
from bench.rates import text as told
from traced import place

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 60.0
FIRST = 3  # tests that are tried before the files of all others are imported
SKIPPED = {
    "test_house",
    "test_wheel",
    "test_site",
    "test_cuts",
    "test_faces",
    "test_remedies",
}  # about text, or far above a minute
COPIED = ("mlsys_nb", "nbs", "tests", "data", "pyproject.toml", "settings.ini", "constraints.txt", "README.md", "CONTRIBUTING.md")  # fmt: skip

BOUNDARY = {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
              ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}  # fmt: skip
TURNED = {ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Lt: ast.Gt, ast.LtE: ast.GtE}
TINY = 1e-5
# Flags that only guard against a bug elsewhere, or only order what is sorted later.
QUIET = {"strict", "maintain_order", "frozen", "eq", "repr", "slots", "capture_output", "text", "errors", "encoding", "stacklevel"}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    "One planted bug: where it stands, what stood there, what stands there now."

    room: str
    line: int
    start: int
    end: int
    old: str
    new: str
    kind: str

    def __str__(self) -> str:
        return f"{self.room}:{self.line} {self.kind}: {' '.join(self.old.split())[:90]}  ->  {' '.join(self.new.split())[:90]}"


def spoken(node: ast.AST) -> list[ast.AST]:
    "Which parts of a node only speak: an annotation, an error's words, a log line, the list of names."
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    if isinstance(node, ast.FunctionDef):
        return [*node.decorator_list, *([node.returns] if node.returns else [])]
    if isinstance(node, ast.If):
        whole = "TYPE_CHECKING" in ast.unparse(node.test)
    elif isinstance(node, ast.Call):
        whole = bool(re.search(r"(LOG|logg?er|logging)\b|\b(warn|TypeVar)$", ast.unparse(node.func)))
    elif isinstance(node, ast.Assign):
        whole = any("__all__" in ast.unparse(t) for t in node.targets)
    elif isinstance(node, ast.keyword):
        whole = (node.arg or "") in QUIET
    else:
        whole = isinstance(node, ast.arg | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Raise)
    return [*ast.iter_child_nodes(node)] if whole else []


def silent(tree: ast.AST) -> set[ast.AST]:
    "The nodes of a room that only speak, and all that they are made of."
    found = set[ast.AST]()
    for node in ast.walk(tree):
        found.update(ast.iter_child_nodes(node) if node in found else spoken(node))
    return found


def rounding(node: ast.AST) -> bool:
    "Whether a number is there because of rounding: nothing computed comes to lie exactly on it, so `<` and `<=` are one."
    return any(
        isinstance(n, ast.Constant) and isinstance(n.value, float) and 0 < n.value < TINY
        for n in ast.walk(node)
    )


def apart(node: ast.AST) -> Any:
    "A node of its own over the same children."
    return type(node)(**{k: [*v] if isinstance(v, list) else v for k, v in vars(node).items()})


def changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "What can go wrong at a node: (kind, the node as a bug would have it)."
    copy: Any = apart(node)
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
        for i, op in enumerate(node.ops):
            if type(op) in BOUNDARY:
                copy = apart(node)
                other = TURNED if type(op) in TURNED and any(map(rounding, parts[i : i + 2])) else BOUNDARY
                copy.ops[i] = other[type(op)]()
                yield "comparison", copy
    elif (
        isinstance(node, ast.BinOp)
        and type(node.op) in ARITHMETIC
        and not isinstance(node.left, ast.Constant)
    ):
        copy.op = ARITHMETIC[type(node.op)]()
        yield "arithmetic", copy
    elif isinstance(node, ast.BoolOp):
        copy.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        yield "and or", copy
        if len(node.values) > 1:
            yield "part of a condition dropped", node.values[0]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not dropped", node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield "off by one", ast.Constant(node.value + 1)
    elif isinstance(node, ast.IfExp):
        copy.body, copy.orelse = copy.orelse, copy.body
        yield "branches swapped", copy
    elif (
        isinstance(node, ast.Dict)
        and len(node.keys) > 1
        and all(isinstance(k, ast.Constant) for k in node.keys)
    ):
        del copy.keys[-1], copy.values[-1]
        yield "entry dropped", copy
        copy = apart(node)
        copy.values[0], copy.values[1] = copy.values[1], copy.values[0]
        if ast.unparse(copy) != ast.unparse(node):
            yield "entries swapped", copy
    elif (
        isinstance(node, ast.Call)
        and node.keywords
        and node.keywords[-1].arg
        and node.keywords[-1].arg not in QUIET
    ):
        del copy.keywords[-1]
        yield "keyword dropped", copy
    elif (
        isinstance(node, ast.Call)
        and len(node.args) == 2
        and not any(isinstance(a, ast.Starred) for a in node.args)
    ):
        name = ast.unparse(node.func)
        if not re.search(r"isinstance|getattr|cast|maximum|minimum|max$|min$|field|suppress", name):
            copy.args.reverse()
            if ast.unparse(copy) != ast.unparse(node):
                yield "arguments swapped", copy
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("sorted", "max", "min", "any", "all")
    ):
        func = ast.unparse(node.func)
        other = {"sorted": "list", "max": "min", "min": "max", "any": "all", "all": "any"}
        word = next(w for w in other if func.endswith(w))
        if "." not in func:
            copy.func = ast.Name(other[word])
            yield "another word", copy
    elif isinstance(node, ast.If) and not node.orelse:
        yield "guard turned", ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, [])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement dropped", ast.Pass()
    elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.BitOr):
        yield "overwritten", ast.Assign([node.target], node.value, lineno=node.lineno)


def changes(tree: ast.AST) -> Iterator[tuple[Any, str, ast.AST]]:
    "Every bug that could be planted in a room: where, of which kind, what would stand there."
    quiet = silent(tree)
    for node in ast.walk(tree):
        call = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else node
        if isinstance(node, ast.expr | ast.stmt) and not quiet & {node, call}:
            yield from ((node, *change) for change in changed(node))


def planted(room: str, node: Any, kind: str, new: ast.AST) -> Mutant:
    "A bug, with the places of the bytes that it takes."
    content = rooms()[room].read_bytes()
    starts = [0]
    for line in content.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    a, b = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
    code = ast.unparse(ast.fix_missing_locations(new))
    code = f"({code})" if isinstance(new, ast.expr) else code.replace("\n", "\n" + " " * node.col_offset)
    return Mutant(room, node.lineno, a, b, content[a:b].decode(), code, kind)


@cache
def rooms() -> dict[str, Path]:
    paths = sorted(p for p in (ROOT / "mlsys_nb").glob("*/**/*.py") if p.name != "__init__.py")
    return {".".join(p.relative_to(ROOT / "mlsys_nb").with_suffix("").parts): p for p in paths}


def seed_of_rooms() -> int:
    "A seed that nobody chose: it comes from the text of all rooms."
    return int(hashlib.sha256(b"".join(path.read_bytes() for path in rooms().values())).hexdigest()[:6], 16)


@cache
def possible(floor: str) -> list[tuple[str, Any, str, ast.AST]]:
    "Every bug that could be planted in the rooms of a floor, in their order."
    trees = {r: ast.parse(p.read_text(encoding="utf-8")) for r, p in rooms().items() if r.startswith(floor)}
    return [(room, *change) for room, tree in trees.items() for change in changes(tree)]


def drawn(seed: int, n: int, floor: str) -> list[Mutant]:
    "Mutants in proportion to the rooms' sizes; a seed always draws the same."
    found = possible(floor)
    return [planted(*change) for change in random.Random(seed).sample(found, min(n, len(found)))]


def listed(mutants: list[Mutant]) -> str:
    "One a line, by room."
    return "\n".join(map(str, sorted(mutants, key=lambda m: (m.room, m.line))))


@dataclass(frozen=True)
class Test:
    "One test: the lines it ran, by room and function (a mask), what it cost, and the fixtures it shares with others."

    name: str
    own: str  # The room whose chapter it is
    seconds: float
    ran: dict[str, dict[str, int]]
    fixtures: tuple[str, ...]

    @property
    def file(self) -> str:
        return self.name.split("::")[0] if not self.own else self.name


@dataclass(frozen=True)
class Known:
    "Every test, and what each shared fixture costs."

    tests: list[Test]
    fixtures: dict[str, float]


def merged(into: dict[str, dict[str, int]], masks: dict[str, dict[str, Any]]) -> None:
    for room, found in masks.items():
        for name, mask in found.items():
            into.setdefault(room, {})[name] = into.get(room, {}).get(name, 0) | (
                int(mask, 16) if isinstance(mask, str) else mask
            )


def known(kept: Path) -> Known:
    "What tests/traced.py recorded in one plain run of all tests."
    record = kept / "lines.jsonl"
    if not record.exists():
        print("one plain run of all tests, to see which lines each runs ...", flush=True)
        part = kept / "lines.part"
        part.unlink(missing_ok=True)
        ignored = [f"--ignore=tests/{name}.py" for name in SKIPPED]
        environment = {**os.environ, "TRACED": str(part), "PYTHONPATH": str(ROOT / "tests")}
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "traced", *ignored, "tests"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit("the tests fail without any mutant:\n" + done.stdout[-3000:])
        part.rename(record)
    chapters = {
        path.stem if path.stem != "00_index" else f"{path.parent.stem}_index": path
        for path in [*ROOT.glob("nbs/[0-9]*/**/[0-9]*.ipynb"), *ROOT.glob("nbs/cases/*.ipynb")]
    }
    ran: dict[str, dict[str, dict[str, int]]] = {}
    seconds: dict[str, float] = {}
    shared: dict[str, tuple[str, ...]] = {}
    for line in record.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        label = told.get("test") or told.get("fixture") or told.get("child") or ""
        merged(ran.setdefault(label, {}), told["lines"])
        if "seconds" in told:
            seconds[label] = told["seconds"]
        if "test" in told and not told.get("failed"):
            shared[label] = tuple(told["fixtures"])
    tests = []
    for name, fixtures in shared.items():
        stem = re.search(r"test_chapter\[(\w+)\]", name)
        path = chapters.get(stem[1]) if stem else None
        parts = path.relative_to(ROOT / "nbs").with_suffix("").parts if path else ()
        own = ".".join(part.split("_", 1)[-1] for part in parts)
        for fixture in fixtures:
            merged(ran[name], ran.get(fixture, {}))
        tests.append(Test(name, own, seconds[name], ran[name], fixtures))
    return Known(tests, {name: seconds.get(name, 0.0) for names in shared.values() for name in names})


def relevance(mutant: Mutant, test: Test) -> int | None:
    "How near a test is to a mutant: it ran the line, the function, another one of the room; None for a stranger to the room."
    name, first = place(str(rooms()[mutant.room]), mutant.line)
    found = test.ran.get(mutant.room)
    if name and found and found.get(name, 0) >> (mutant.line - first) & 1:
        return 0
    if name and found and name in found:
        return 1
    return 2 if found or test.own == mutant.room else None


def chosen(mutant: Mutant, known: Known, budget: float = BUDGET * 0.75) -> list[str]:
    "The tests that ran the line, then its function, then its room: first its chapter, then of each file the quickest in turn."
    near = [(r, test) for test in known.tests if (r := relevance(mutant, test)) is not None]
    turns: dict[tuple[int, str], int] = {}
    ranked: list[tuple[int, bool, float, str, Test]] = []
    for r, test in sorted(near, key=lambda x: (x[1].seconds, x[1].name)):
        turn = turns[r, test.file] = turns.get((r, test.file), 0) + 1
        ranked.append((r, test.own != mutant.room, (test.seconds + 0.1) * turn, test.name, test))
    names, total, made = [], 0.0, set[str]()
    for _, _, _, name, test in sorted(ranked, key=lambda x: x[:4]):
        cost = test.seconds + 0.02 + sum(known.fixtures[f] for f in test.fixtures if f not in made)
        if total + cost <= budget:
            total += cost
            made |= set(test.fixtures)
            names.append(name)
    return names


# Imported once; the rooms and the tests are imported anew for each mutant.
AHEAD = ["pytest", "polars", "numpy", "pandas", "hypothesis", "sqlalchemy", "nbdev.process", "execnb.shell", "httpx", "sklearn.linear_model"]  # fmt: skip
FORKED = multiprocessing.get_context("forkserver")


def run_tests(copy: Path, tests: list[str], said: Path, seconds: int) -> None:
    "Run tests of a copy, in a process group of their own, for so much CPU; the last line says how it ended."
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    out = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), MPLBACKEND="agg")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    sys.path[:] = [
        str(copy),
        *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "tests")),
    ]
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *tests])
    os.write(1, f"\nended with {int(code)}\n".encode())
    os._exit(0)


def outcome(tests: list[str], copy: Path, limit: float, wait: int = 5) -> tuple[str, str]:
    "What the tests say of a copy as it stands: 'caught', 'survived' or 'hung', and by what."
    while tests:
        file = copy / "said.txt"
        process = FORKED.Process(target=run_tests, args=(copy, tests, file, int(limit)))
        process.start()
        process.join(limit * wait)  # of other programs on this machine
        ended = process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, 9)
        process.join()
        if ended in (None, -signal.SIGXCPU, -signal.SIGKILL):
            return "hung", f"longer than {limit:.0f} s"
        said = file.read_text(encoding="utf-8", errors="replace")
        gone = re.findall(r"^ERROR: (?:file or directory )?not found: (?:.*/)?(tests/.*)$", said, re.M)
        if gone:  # since they were recorded
            tests = [name for name in tests if name not in gone]
            continue
        if said.endswith("\nended with 0\n"):
            return "survived", f"{len(tests)} tests passed"
        first = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
        return "caught", first[1] if first else said.strip().splitlines()[-1]
    return "survived", "no test runs the room"


def judged(mutant: Mutant, tests: list[str], copy: Path, limit: float) -> tuple[str, str]:
    "Plant, test, take it out. What hangs is caught if the same tests end in time without the mutant."
    path = copy / "mlsys_nb" / (mutant.room.replace(".", "/") + ".py")
    sound, stat = path.read_bytes(), path.stat()
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
    path.write_bytes(sound[: mutant.start] + mutant.new.encode() + sound[mutant.end :])
    try:
        verdict, why = outcome(tests[:FIRST], copy, limit)
        if verdict == "survived" and tests[FIRST:]:
            verdict, why = outcome(tests[FIRST:], copy, limit)
    finally:
        path.write_bytes(sound)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if verdict == "hung" and outcome(tests, copy, limit)[0] != "survived":
        return "survived", f"its tests take {why} without it, too; try again with --limit"
    return verdict, why


def copy_of_project(place: Path) -> Path:
    "What the tests need of it."
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=ignored, symlinks=True)
        elif source.exists():
            shutil.copy(source, place / name)
    (place / "reports").mkdir()
    return place


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seed", type=int, help="any number; without it one that only this state of the rooms gives"
    )
    parser.add_argument("-n", type=int, default=100, help="how many mutants (100)")
    parser.add_argument("--floor", default="", help="only rooms whose name begins so, such as `features`")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--aim", type=float, default=85.0, help="the share to catch, in percent; below it, exit 1"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=BUDGET,
        help="seconds of CPU after which one hangs (60)",
    )
    parser.add_argument("--budget", type=float, default=BUDGET * 0.75, help="seconds of tests a mutant (45)")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="begin no other after so many; those tried are a fair draw"
    )
    parser.add_argument("--show", action="store_true", help="only say which bugs would be planted")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".pytest_cache/mutants", help="where times and results are kept"
    )
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else seed_of_rooms()
    mutants = drawn(seed, given.n, given.floor)
    if given.show:
        print(listed(mutants))
        return 0
    given.keep.mkdir(parents=True, exist_ok=True)
    record, started = known(given.keep), monotonic()
    results = given.keep / f"seed-{seed}.jsonl"
    done = dict(json.loads(line) for line in results.read_text().splitlines()) if results.exists() else {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(given.workers) as pool:
        copies = [
            copy_of_project(Path(temporary) / str(i))
            for i in range(given.workers)
            if (Path(temporary) / str(i)).mkdir() is None
        ]

        def work(mutant: Mutant) -> tuple[Mutant, str, str] | None:
            if str(mutant) in done:
                return mutant, *done[str(mutant)]
            if monotonic() - started > 60 * given.minutes:
                return None
            copy = copies.pop()
            try:
                verdict, why = judged(mutant, chosen(mutant, record, given.budget), copy, given.limit)
            finally:
                copies.append(copy)
            with results.open("a") as file:
                file.write(json.dumps([str(mutant), [verdict, why]]) + "\n")
            print(f"{verdict:9} {mutant}\n          {why}", flush=True)
            return mutant, verdict, why

        FORKED.set_forkserver_preload(AHEAD)
        answers = [found for found in pool.map(work, mutants) if found]
    survived = [(m, why) for m, verdict, why in answers if verdict == "survived"]
    row = rated(
        "planted bugs caught",
        f"seed {seed}",
        len(answers) - len(survived),
        len(answers),
        f">= {given.aim / 100:.2f}",
    )
    print(f"\n== {told(row)}  ({monotonic() - started:.0f} s); survived:")
    for mutant, why in survived:
        print(f"  {mutant}   [{why}]")
    return int(row["measured"] < given.aim / 100)


if __name__ == "__main__":
    sys.exit(main())
