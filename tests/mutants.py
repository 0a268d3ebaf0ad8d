"""Plant small bugs, one at a time, and see whether the tests notice.

    python tests/mutants.py --seed 1                 # 100 mutants over all rooms, at most 60 s each
    python tests/mutants.py --seed 1 -n 10 --floor features
    python tests/mutants.py --seed 1 --show          # only say which bugs would be planted

A mutant is one change in one exported line: a comparison's boundary, a number off by one, a condition turned round, a call
or an entry of a dictionary left out, a text exchanged for its neighbour. It is planted in a copy of the project, never in
the checkout, and held against the lessons and tests of its room, then of those that import it, quickest first. A mutant
that hangs is caught; one whose tests all pass survives and is printed. Some mutants change nothing that can be
observed, so nobody reaches 100 %. Times of tests come from one plain run, which is kept beside the results.
"""

import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 60.0
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


def parents_of(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def silent(node: ast.AST, above: dict[ast.AST, ast.AST]) -> bool:
    "Whether a node only speaks: an annotation, an error's words, a log line, the list of names."
    while node in above:
        parent = above[node]
        if isinstance(parent, ast.arg | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return True
        if isinstance(parent, ast.AnnAssign) and parent.annotation is node:
            return True
        if isinstance(parent, ast.FunctionDef) and (parent.returns is node or node in parent.decorator_list):
            return True
        if isinstance(parent, ast.Raise) or (
            isinstance(parent, ast.If) and "TYPE_CHECKING" in ast.unparse(parent.test)
        ):
            return True
        if isinstance(parent, ast.Call) and re.search(
            r"(LOG|logg?er|logging)\b|\b(warn|TypeVar)$", ast.unparse(parent.func)
        ):
            return True
        if isinstance(parent, ast.Assign) and any("__all__" in ast.unparse(t) for t in parent.targets):
            return True
        if isinstance(parent, ast.keyword) and (parent.arg or "") in QUIET:
            return True
        node = parent
    return False


def changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    "What can go wrong at a node: (kind, the node as a bug would have it)."
    copy: Any = deepcopy(node)
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in BOUNDARY:
                copy = deepcopy(node)
                copy.ops[i] = BOUNDARY[type(op)]()
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
        copy = deepcopy(node)
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


def mutants_of(path: Path, room: str) -> list[Mutant]:
    "Every bug that could be planted in a room."
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    above, found = parents_of(tree), []
    for node in ast.walk(tree):
        if not isinstance(node, ast.expr | ast.stmt) or silent(node, above):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and silent(node.value.func, above):
            continue
        a, b = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]
        old = text.encode()[a:b].decode()
        for kind, new in changed(node):
            code = ast.unparse(ast.fix_missing_locations(new))
            code = (
                f"({code})" if isinstance(new, ast.expr) else code.replace("\n", "\n" + " " * node.col_offset)
            )
            found.append(Mutant(room, node.lineno, a, b, old, code, kind))
    return found


def rooms() -> dict[str, Path]:
    paths = sorted(p for p in (ROOT / "mlsys_nb").glob("*/*.py") if p.name != "__init__.py")
    return {".".join(p.relative_to(ROOT / "mlsys_nb").with_suffix("").parts): p for p in paths}


def drawn(seed: int, n: int, floor: str) -> list[Mutant]:
    "Mutants in proportion to the rooms' sizes; a seed always draws the same."
    rng, found = random.Random(seed), []
    for room, path in rooms().items():
        if room.startswith(floor):
            found += mutants_of(path, room)
    return sorted(rng.sample(found, min(n, len(found))), key=lambda m: (m.room, m.line))


def mentioned(text: str, room: str = "") -> set[str]:
    "Rooms that a text imports; names of faces are looked up by the room that has them."
    known, found = rooms(), set()
    for start, named, names in re.findall(r"from (mlsys_nb\.?|\.+)([\w.]*) import (\(?[\w, \\n\n\"]+)", text):
        base = [] if start.startswith("m") else room.split(".")[: -len(start)]
        base += named.split(".") if named else []
        place = ".".join(base)
        found |= {place} & known.keys() | {f"{place}.{n}" for n in re.findall(r"\w+", names)} & known.keys()
        if place and "." not in place:  # a face
            found |= {r for n in re.findall(r"\w+", names) for r in owners(place).get(n, ())}
    return found | {m for m in re.findall(r"mlsys_nb\.(\w+\.\w+)", text) if m in known}


OWNERS: dict[str, dict[str, set[str]]] = {}


def owners(floor: str) -> dict[str, set[str]]:
    "Name: the rooms of a floor that define it."
    if floor not in OWNERS:
        OWNERS[floor] = {}
        for room, path in rooms().items():
            if room.startswith(floor + "."):
                for node in ast.parse(path.read_text(encoding="utf-8")).body:
                    if isinstance(node, ast.FunctionDef | ast.ClassDef):
                        OWNERS[floor].setdefault(node.name, set()).add(room)
    return OWNERS[floor]


@dataclass(frozen=True)
class Test:
    "One test, which rooms its file imports, and how long it takes."

    name: str
    rooms: frozenset[str]
    own: str  # The room whose chapter it is
    seconds: float


def timed(kept: Path) -> list[Test]:
    "Every test with its time, from one plain run."
    report = kept / "times.xml"
    if not report.exists():
        print("one plain run of all tests, for their times ...", flush=True)
        ignored = [f"--ignore=tests/{name}.py" for name in SKIPPED]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", f"--junitxml={report}", *ignored, "tests"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            report.unlink(missing_ok=True)
            sys.exit("the tests fail without any mutant:\n" + done.stdout[-3000:])
    chapters = {p.stem: p for p in ROOT.glob("nbs/[0-9]*/[0-9]*.ipynb")} | {
        p.stem: p for p in ROOT.glob("nbs/cases/*.ipynb")
    }
    tests, read = [], dict[Path, frozenset[str]]()
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        stem = re.search(r"test_chapter\[(\w+)\]", case.get("name", ""))
        path = chapters.get(stem[1]) if stem else ROOT / file
        if path is None or not path.exists():
            continue
        if path not in read:
            text = path.read_text(encoding="utf-8")
            for helper in re.findall(r"^from (\w+) import", text, re.M):  # worlds that several tests share
                if (ROOT / f"tests/{helper}.py").exists():
                    text += (ROOT / f"tests/{helper}.py").read_text(encoding="utf-8")
            read[path] = frozenset(mentioned(text))
        own = f"{path.parent.name.split('_', 1)[-1]}.{path.stem.split('_', 1)[-1]}" if stem else ""
        tests.append(Test(f"{file}::{case.get('name')}", read[path], own, float(case.get("time", 0))))
    return tests


def chosen(mutant: Mutant, tests: list[Test]) -> list[str]:
    "The tests of a room, then of those that import it, quickest first, within the budget."
    importers = {r for r, p in rooms().items() if mutant.room in mentioned(p.read_text(encoding="utf-8"), r)}

    def rank(test: Test) -> int | None:
        if test.own == mutant.room:
            return 0
        return (
            1 if mutant.room in test.rooms else 2 if test.own in importers or test.rooms & importers else None
        )

    ranked = sorted((r, t.seconds, t.name) for t in tests if (r := rank(t)) is not None)
    names, total = [], 0.0
    for _, seconds, name in ranked:
        total += seconds + 0.02
        if total > BUDGET * 0.75:
            break
        names.append(name)
    return names


def judged(mutant: Mutant, tests: list[str], copy: Path, limit: float) -> tuple[str, str]:
    "Plant, test, take it out: 'caught', 'survived' or 'hung', and by what."
    path = copy / "mlsys_nb" / (mutant.room.replace(".", "/") + ".py")
    sound = path.read_bytes()
    path.write_bytes(sound[: mutant.start] + mutant.new.encode() + sound[mutant.end :])
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        *tests,
    ]
    try:
        if not tests:
            return "survived", "no test imports the room"
        process = subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, start_new_session=True)  # fmt: skip
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()
            return "hung", f"longer than {limit:.0f} s"
        if "(no match in any of" in said or "ERROR: not found:" in said:
            sys.exit(
                f"the kept times name tests that are gone; remove times.xml and run again:\n{said[-500:]}"
            )
        if process.returncode == 0:
            return "survived", f"{len(tests)} tests passed"
        first = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.M)
        return "caught", first[1] if first else said.strip().splitlines()[-1]
    finally:
        path.write_bytes(sound)


def copy_of_project(place: Path) -> Path:
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
    parser.add_argument("--seed", type=int, required=True)
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
        help="seconds after which one hangs (60); more on a busy machine",
    )
    parser.add_argument("--show", action="store_true", help="only say which bugs would be planted")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / ".pytest_cache/mutants", help="where times and results are kept"
    )
    given = parser.parse_args()
    mutants = drawn(given.seed, given.n, given.floor)
    if given.show:
        print("\n".join(map(str, mutants)))
        return 0
    given.keep.mkdir(parents=True, exist_ok=True)
    tests, started = timed(given.keep), monotonic()
    results = given.keep / f"seed-{given.seed}.jsonl"
    done = dict(json.loads(line) for line in results.read_text().splitlines()) if results.exists() else {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(given.workers) as pool:
        copies = [
            copy_of_project(Path(temporary) / str(i))
            for i in range(given.workers)
            if (Path(temporary) / str(i)).mkdir() is None
        ]

        def work(mutant: Mutant) -> tuple[Mutant, str, str]:
            if str(mutant) in done:
                return mutant, *done[str(mutant)]
            copy = copies.pop()
            try:
                verdict, why = judged(mutant, chosen(mutant, tests), copy, given.limit)
            finally:
                copies.append(copy)
            with results.open("a") as file:
                file.write(json.dumps([str(mutant), [verdict, why]]) + "\n")
            print(f"{verdict:9} {mutant}\n          {why}", flush=True)
            return mutant, verdict, why

        answers = list(pool.map(work, mutants))
    survived = [(m, why) for m, verdict, why in answers if verdict == "survived"]
    share = 100 * (1 - len(survived) / len(answers))
    print(f"\nseed {given.seed}: {len(answers) - len(survived)} of {len(answers)} caught, {share:.0f} % (aim {given.aim:.0f} %), "
          f"{monotonic() - started:.0f} s; survived:")  # fmt: skip
    for mutant, why in survived:
        print(f"  {mutant}   [{why}]")
    return int(share < given.aim)


if __name__ == "__main__":
    sys.exit(main())
