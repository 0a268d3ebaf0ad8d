"""What the calls of a lesson gave when it was last read: kept in tests/values/, one file a chapter, held by tests/test_chapters.py.

A lesson asserts what it teaches. Whatever else its calls give is kept beside it, short values in words and long ones by a
digest, so a change that no sentence speaks of is seen too. `python tests/outputs.py NAME` writes them with the saved
outputs: what differs between three runs, on three days and in three folders, is not kept. A chapter whose cells have changed
since is not held until it is written again, and none is held under other versions of the libraries that compute; floors
whose lessons fit models or start servers are not held at all: their last digits and moments are not those of the code.
"""

import ast
import builtins
import dataclasses
import enum
import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NBS = HERE.parent / "nbs"
NAME = "__seen__"
FREE = ("35_learning", "45_release", "55_serving", "75_loop")  # floors that are not held
TINY = 1e-25, 1e-6  # between them there is little but the last digits of a processor
LONG, SHORT, TIMES, ROWS, DEEP = 20_000, 60, 12, 60, 6
# What a lesson gives to the house, checks, or names: no value of the house. Control tables are those of the rooms that were imported.
PLAIN = re.compile(
    r"(pl|np|datetime|timedelta|date|instant|Decimal|test_\w+|expect_fail|Path|TemporaryDirectory|prepare)\b"
)
NOTHING = re.compile(r"None|<\w+>")
_TOPS = {"tmp", "home", "root", "work", "usr", "var", "opt", "private", "Users", "mnt"} | {
    Path(place).resolve().parts[1]
    for place in (HERE, Path.home(), tempfile.gettempdir(), sys.prefix, sys.base_prefix)
}  # folders below which paths are of a machine
PATHS = re.compile(rf"(?<![\w.])/+(?:{'|'.join(map(re.escape, sorted(_TOPS)))})/[^\s'\"<>:;,)\]]*")
DIGESTS = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b")
FLOATS = re.compile(r"\d+\.\d{7,}(?:e[+-]?\d+)?")


def words(text: str) -> str:
    "A text without what is of this machine: paths, its Python, digests, the last digits of floats."
    text = PATHS.sub("~", text.replace(platform.python_version(), "3"))
    text = FLOATS.sub(lambda m: f"{float(m[0]):.6g}", text)
    return DIGESTS.sub("#", text)


def _table(value: Any) -> Iterator[str]:
    "A frame, a series or an array: what it is, and its first rows."
    kind = type(value).__name__
    if kind == "DataFrame" and hasattr(value, "schema"):
        yield f"{value.shape} {list(value.schema.items())}"
        yield from (part for row in value.head(ROWS).rows() for part in parts(row, 1))
    elif kind == "Series" and hasattr(value, "dtype") and hasattr(value, "to_list"):
        yield f"{len(value)} {value.dtype}"
        yield from parts(value.head(ROWS).to_list(), 1)
    elif kind == "ndarray":
        yield f"{value.dtype} {value.shape}"
        yield from parts(value.ravel()[: 4 * ROWS].tolist(), 1)
    else:
        yield f"<{kind}>"


def _many(value: Any, deep: int) -> Iterator[str]:
    items: Iterable[Any] = value
    if isinstance(value, set | frozenset):
        items = sorted("".join(parts(x, deep + 1)) for x in value)
    yield f"{type(value).__name__}["
    for item in items:
        yield from parts(item, deep + 1)
        yield ","
    yield "]"


def _named(name: str, items: Iterable[tuple[Any, Any]], deep: int) -> Iterator[str]:
    yield f"{name}("
    for key, value in items:
        yield from (str(key) if isinstance(key, str) else "".join(parts(key, deep + 1)), "=")
        yield from parts(value, deep + 1)
        yield ","
    yield ")"


def parts(value: Any, deep: int = 0) -> Iterator[str]:
    "A value as text, piece by piece; what is of this machine or has no value of its own is left out."
    kind = type(value)
    if value is None or isinstance(value, bool | int | Decimal):
        yield f"{value}"
    elif isinstance(value, float):
        yield "0" if TINY[0] < abs(value) < TINY[1] else f"{value:.6g}"
    elif isinstance(value, str):
        yield words(str(value))
    elif isinstance(value, bytes):
        yield words(value.decode("utf-8", "replace")) if b"\0" not in value else "bytes"
    elif isinstance(value, datetime | date | time | timedelta):
        yield str(value)
    elif isinstance(value, enum.Enum):
        yield value.name
    elif isinstance(value, BaseException):
        yield f"{kind.__name__}: {words(str(value))}"
    elif deep > DEEP:
        yield "…"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
        yield from _named(kind.__name__, named, deep)
    elif isinstance(value, Mapping):
        yield from _named(kind.__name__, list(value.items()), deep)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from _many(value, deep)
    elif kind.__module__.split(".")[0] in ("polars", "numpy"):
        item = getattr(value, "item", None)
        yield from _table(value) if not (item and getattr(value, "ndim", 1) == 0) else parts(item(), deep)
    elif kind.__module__.startswith("mlsys_nb.") and hasattr(value, "__dict__"):
        known = [(k, v) for k, v in vars(value).items() if not k.startswith("_")]
        yield from _named(kind.__name__, known, deep) if known else iter([f"<{kind.__name__}>"])
    else:
        yield f"<{kind.__name__}>"


def shown(value: object) -> str:
    "A value as it is kept: short ones whole, long ones by how they begin and a digest."
    text, size = [], 0
    for part in parts(value):
        text.append(part)
        size += len(part)
        if size > LONG:
            break
    whole = "".join(text)[:LONG]
    if len(whole) <= SHORT:
        return whole
    return f"{whole[:40]}… {hashlib.sha256(whole.encode('utf-8', 'replace')).hexdigest()[:12]}"


class _Wrapped(ast.NodeTransformer):
    "Every call of a lesson that stands outside of functions hands its value to `Seen` as well."

    def left(self, node: ast.AST) -> ast.AST:
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = left

    def _through(self, node: Any, call: ast.Call) -> Any:
        text = ast.unparse(call)
        if PLAIN.match(text) or (isinstance(call.func, ast.Name) and hasattr(builtins, call.func.id)):
            return node
        through = ast.Call(ast.Name(NAME, ast.Load()), [ast.Constant(text[:70]), node], [])
        return ast.copy_location(through, node)

    def visit_Call(self, node: ast.Call) -> Any:
        plain = ast.parse(ast.unparse(node), mode="eval").body
        self.generic_visit(node)
        return self._through(node, plain)

    def visit_Await(self, node: ast.Await) -> Any:
        return node


class Seen:
    "What the calls of a chapter's lessons give, by cell."

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, list[str]]] = {}
        self.cell = ""

    def watch(self, shell: Any) -> None:
        class Whole(ast.NodeTransformer):
            def visit(self, node: Any) -> Any:
                return ast.fix_missing_locations(_Wrapped().visit(node))

        shell.ast_transformers.append(Whole())
        shell.user_ns[NAME] = self

    def __call__(self, call: str, value: Any) -> Any:
        found = self.cells.setdefault(self.cell, {}).setdefault(call, [])
        if len(found) < TIMES:
            try:
                found.append(shown(value))
            except Exception as e:  # A value that cannot be read now: closed, or half made
                found.append(type(e).__name__)
        return value


def file_of(path: Path) -> Path:
    return HERE / "values" / path.relative_to(NBS).with_suffix(".json")


def source_of(path: Path) -> str:
    "A digest of a chapter's code."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def agreed(first: dict[str, Any], second: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    "What two runs gave alike."
    both = {
        cell: {
            call: values
            for call, values in calls.items()
            if second.get(cell, {}).get(call) == values and not all(map(NOTHING.fullmatch, values))
        }
        for cell, calls in first.items()
    }
    return {cell: calls for cell, calls in both.items() if calls}


def computed_with() -> str:
    names = ("numpy", "scipy", "polars", "scikit-learn")
    python = ".".join(platform.python_version_tuple()[:2])
    return " ".join([platform.machine(), f"python {python}", *(f"{name} {version(name)}" for name in names)])


def write(path: Path, cells: dict[str, dict[str, list[str]]]) -> None:
    "Keep what a chapter's calls gave."
    file = file_of(path)
    if path.parent.name not in FREE:
        file.parent.mkdir(parents=True, exist_ok=True)
        told = {"of": source_of(path), "with": computed_with(), "cells": cells}
        text = json.dumps(told, indent=0, ensure_ascii=False, sort_keys=True) + "\n"
        file.write_text(text, encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    "What was kept of a chapter as it is now; nothing if its code has changed since."
    file = file_of(path)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept if kept.get("of") == source_of(path) else {}


def held(path: Path) -> dict[str, dict[str, list[str]]]:
    "What a chapter's calls have to give here."
    kept = read(path)
    return kept["cells"] if kept.get("with") == computed_with() else {}


def differing(path: Path, seen: Seen) -> list[str]:
    "Which calls of a chapter give something else than they did."
    return [
        f"cell {cell}: {call} gave {old}; now {new}"
        for cell, calls in held(path).items()
        for call, values in calls.items()
        if values != (now := seen.cells.get(cell, {}).get(call, []))
        for old, new in [(" | ".join(values), " | ".join(now))]
    ]
