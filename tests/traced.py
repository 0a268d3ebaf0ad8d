"""Which lines of the rooms each test runs, in this process and in those it starts: what tests/mutants.py chooses tests by.

    TRACED=lines.jsonl PYTHONPATH=tests python -m pytest -p traced tests

Appends one record for each test, for each fixture that tests share, and for each process that a test started. A line is
named by the function at the top of its room and its distance from there, so a record outlives changes elsewhere. Only the
first calls of a function are followed within a test: the rest is as quick as ever.
"""

import ast
import atexit
import json
import os
import sys
import tempfile
import threading
from bisect import bisect_right
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = f"{ROOT}/mlsys_nb/"
CALLS, LINES = 5, 5000  # calls of a function that are followed in one test, and lines of them


class Tracer:
    "The lines of the rooms that ran since it was last asked."

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.calls: dict[int, int] = {}
        self.left: dict[int, int] = {}

    def start(self) -> None:
        threading.settrace(self.called)
        sys.settrace(self.called)

    def called(self, frame: Any, event: str, arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "<module>":
            return None
        key = id(code)
        count = self.calls.get(key, 0)
        if count >= CALLS:
            return None
        self.calls[key] = count + 1
        self.lines.add((code.co_filename, frame.f_lineno))
        return self.line

    def line(self, frame: Any, event: str, arg: object) -> Any:
        if event == "line":
            code = frame.f_code
            self.lines.add((code.co_filename, frame.f_lineno))
            left = self.left.get(id(code), LINES)
            self.left[id(code)] = left - 1
            if left <= 0:
                frame.f_trace_lines = False
        return self.line

    def taken(self) -> dict[str, dict[str, str]]:
        "What ran, by room and function, each a mask of lines in hexadecimal; and begin anew."
        lines, self.lines, self.calls, self.left = self.lines, set(), {}, {}
        masks: dict[str, dict[str, int]] = {}
        for path, line in lines:
            room = path.removeprefix(PACKAGE).removesuffix(".py").replace("/", ".")
            name, first = place(path, line)
            if name:
                masks.setdefault(room, {}).setdefault(name, 0)
                masks[room][name] |= 1 << (line - first)
        return {room: {name: f"{m:x}" for name, m in found.items()} for room, found in masks.items()}


@cache
def tops(path: str) -> tuple[list[int], list[tuple[str, int, int]]]:
    "Functions and methods at the top of a file by their first line: (name, first line, last line)."
    found = []
    for node in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found += [(f"{prefix}{n.name}", n.lineno, n.end_lineno or n.lineno) for n in inside
                  if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]  # fmt: skip
    found.sort(key=lambda top: top[1])
    return [first for _, first, _ in found], found


def place(path: str, line: int) -> tuple[str, int]:
    "The function at the top of a file that a line belongs to, and where that begins; '' for a line outside of all."
    firsts, found = tops(path)
    at = bisect_right(firsts, line) - 1
    if at < 0 or line > found[at][2]:
        return "", 0
    return found[at][:2]


def spent() -> float:
    "Seconds of CPU of this process and of those it has waited for."
    return sum(os.times()[:4])


def write(record: dict[str, object], path: str = "") -> None:
    with open(path or os.environ["TRACED"], "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def in_child() -> None:
    "Follow a process that a test has started; at its end it leaves what ran in it, for `children` to write down."
    tracer, label = Tracer(), os.environ.get("TRACED_FOR", "")
    atexit.register(
        lambda: write({"child": label, "ran": sorted(tracer.lines)}, os.environ["TRACED_CHILDREN"])
    )
    tracer.start()


def children() -> None:
    "Write a record for each process that a test has started."
    path, tracer = Path(os.environ["TRACED_CHILDREN"]), Tracer()
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        left = json.loads(text)
        tracer.lines = {(place, line) for place, line in left["ran"]}
        write({"child": left["child"], "lines": tracer.taken()})
    path.unlink(missing_ok=True)


class Recorder:
    "Writes a record for each test and each shared fixture."

    def __init__(self) -> None:
        self.tracer = Tracer()
        self.fixtures: dict[Any, str] = {}
        self.inside = 0.0
        self.failed = False

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Any:
        if fixturedef.scope == "function":
            return (yield)
        key = f"{fixturedef.baseid}::{fixturedef.argname}"
        before, outside, self.fixtures[fixturedef] = spent(), self.tracer.lines, key
        was = os.environ.get("TRACED_FOR", "")
        self.tracer.lines, self.tracer.calls, self.tracer.left = set(), {}, {}
        os.environ["TRACED_FOR"] = key
        try:
            return (yield)
        finally:
            self.inside += spent() - before
            write({"fixture": key, "seconds": round(spent() - before, 3), "lines": self.tracer.taken()})
            self.tracer.lines = outside
            os.environ["TRACED_FOR"] = was

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
        before, self.inside, self.failed = spent(), 0.0, False
        os.environ["TRACED_FOR"] = item.nodeid
        self.tracer.taken()
        self.tracer.start()
        done = yield
        shared = [self.fixtures[d] for name in item.fixturenames
                  for d in item._fixtureinfo.name2fixturedefs.get(name, ())[-1:] if d in self.fixtures]  # fmt: skip
        write({"test": item.nodeid, "seconds": round(spent() - before - self.inside, 3), "fixtures": shared,
               "failed": self.failed, "lines": self.tracer.taken()})  # fmt: skip
        return done

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed

    def pytest_unconfigure(self) -> None:
        sys.settrace(None)
        children()


def pytest_configure(config: Any) -> None:
    os.environ["TRACED"] = os.path.abspath(os.environ["TRACED"])
    folder = tempfile.mkdtemp(prefix="traced-")
    here = str(Path(__file__).parent)
    Path(folder, "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({here!r})\nimport traced\ntraced.in_child()\n"
    )
    os.environ["TRACED_CHILDREN"] = f"{folder}/ran.jsonl"
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = folder + (os.pathsep + before if before else "")
    config.pluginmanager.register(Recorder(), "recorder")
