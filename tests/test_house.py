"""The house rules: who may import whom, how big a room may be, who may write, tell time, make HTML or load a model.

`python tests/test_house.py` prints the table of arrows as the code has it now; compare before you copy.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NBS = ROOT / "mlsys_nb", ROOT / "nbs"
CHAPTERS = sorted(NBS.glob("[0-9]*.ipynb"))
CASES = sorted(NBS.glob("cases/*.ipynb"))
LEAVES = [*sorted(NBS.glob("jobs/*.ipynb")), *sorted(NBS.glob("dashboards/*.ipynb"))]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if not p.name.startswith("_"))

# Room: the rooms it may import. Any other arrow is a decision to take here first, in the order of the floors.
ARROWS = """
settings:
clock:
durable: settings
markup:
database: settings clock durable
control: settings database
tracking: settings clock durable control
columns: settings
contract: durable markup columns
sources: settings clock durable contract
ingest: settings clock durable markup contract sources
conditions: clock
events: markup conditions
aggregates: markup events
windows: events aggregates
arithmetic: clock
transforms: aggregates arithmetic
features: markup events aggregates windows transforms
ranges: events track
reduction: events features ranges track
track: events
history: events arithmetic features reduction track
engine: settings durable
timeline: events features
compaction: events engine timeline delivery
delivery: events engine timeline lookup
lookup: events features timeline
online: settings clock durable ingest events features engine timeline compaction delivery serving
serving: events arithmetic features engine timeline delivery lookup
stream: clock events online
parity: clock markup events features history online stream reference worlds
reference: events features
worlds: clock conditions events features
problem: settings markup sources features
dataset: settings markup ingest features history problem
split: settings markup
encoding:
train: markup problem encoding
bootstrap:
calibration: bootstrap
evaluate: markup problem bootstrap calibration
tune: markup problem split train bootstrap evaluate
slices: bootstrap evaluate
explain: train bootstrap evaluate
gate: markup problem bootstrap evaluate slices
inference:
package: settings clock durable markup dataset train inference
registry: settings durable markup control problem package
decisions: settings clock durable
predictor: settings problem package decisions
guard: settings
batch: settings clock markup history problem dataset package decisions
champion: settings control problem package registry predictor
telemetry: clock guard
openapi: markup problem
labels: settings clock durable problem dataset decisions
chart:
drift: settings clock markup chart
performance: markup problem bootstrap calibration evaluate
alerts: clock markup control problem slices drift performance
policy: settings markup alerts
retrain: settings clock markup control problem dataset split train evaluate tune gate package registry drift performance alerts
backtest: settings clock markup control problem dataset train bootstrap calibration evaluate gate registry labels performance
context: settings clock control problem dataset registry
pipeline: settings markup ingest online parity dataset split package registry decisions batch labels drift performance alerts policy retrain context
figures: markup
report: settings durable markup
jobs: settings clock durable markup control tracking report kernels parameters
kernels: settings
parameters:
endpoints: settings clock control online problem package decisions predictor guard champion telemetry labels
service: settings problem predictor guard champion telemetry openapi endpoints
replay: settings clock durable markup control problem registry decisions labels backtest jobs service
pages: settings durable markup
site: settings clock durable kernels pages
panels: settings clock markup control problem evaluate registry labels performance alerts backtest figures kernels
cli: settings clock control history problem dataset registry context pipeline report jobs parameters service replay site panels
cases.churn: contract sources features problem
"""

# Bounds that a room breaks, and why it is better so: (room, bound) -> (its own bound, reason).
LARGER = {
    ("02_durable", "lines"): (310, "the one room that writes; a second one would be a second door"),
    ("82_jobs", "cell"): (44, "Runner is one class; a class cannot be spread over cells"),
    ("26_engine", "cell"): (
        50,
        "RedisEngine and PostgresEngine are one class each: the same four methods, other words",
    ),
    ("21_aggregates", "cell"): (
        54,
        "Feature is one class: fields, identity, lineage and the arithmetic operators",
    ),
    ("23_features", "cell"): (
        60,
        "FeatureSet is one class of small cached properties, each of which is public",
    ),
    ("24_track", "cell"): (60, "Track is one class: the keys it caches refer to each other"),
    ("26_timeline", "cell"): (56, "Layout is one class: where each field of a row stands"),
    ("27_online", "cell"): (60, "OnlineStore is one class of one-line methods, the public face of the floor"),
}

# Doors: what else may do a guarded deed, and why.
WRITERS: dict[str, tuple[set[str], str]] = {
    "figures": ({"savefig"}, "draws into memory"),
}
MARKUP = {
    "report": "the template of nbconvert, whose result passes markup.sanitize",
    "pages": "frames sanitised output in a Markdown page; looks for scripts in built pages",
    "panels": "the style of a Voila page, which markup.page does not make",
}


@cache
def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(path: Path) -> list[str]:
    return [source(c) for c in cells(path) if c["cell_type"] == "code"]


def exported(path: Path) -> list[str]:
    return [s for s in code(path) if re.search(r"^#\|\s*export", s, re.M)]


def lines(text: str) -> int:
    "Lines of code: blank ones and directives are not counted."
    return sum(bool(line.strip()) and not line.startswith("#|") for line in text.splitlines())


def room_of(module: Path) -> str:
    return ".".join(module.relative_to(PACKAGE).with_suffix("").parts)


@cache
def floor_order() -> list[str]:
    "Rooms from the ground up; cases stand on everything and carry nothing."
    rooms = [re.sub(r"^\d+_", "", p.stem) for p in CHAPTERS]
    return rooms + [f"cases.{p.stem}" for p in CASES]


def place(room: str) -> int:
    order = floor_order()
    return order.index(room) if room in order else len(order)


def number(room: str) -> int:
    "The number of a room's chapter; a room that was split keeps it, so siblings share one."
    found = [int(p.stem.split("_")[0]) for p in CHAPTERS if p.stem.split("_", 1)[1] == room]
    return found[0] if found else 100


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def own_imports(module: Path) -> set[str]:
    "Rooms that a module imports, at its top or in a function."
    depth = len(module.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == depth, f"{module}: a relative import that leaves the package"
            found |= {node.module} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlsys_nb."):
            found.add(node.module.removeprefix("mlsys_nb."))
    return found - {"__version__"}


def arrows() -> dict[str, set[str]]:
    return {
        room: set(names.split()) for room, names in (row.split(":") for row in ARROWS.strip().splitlines())
    }


@cache
def actual() -> dict[str, set[str]]:
    return {room_of(m): own_imports(m) for m in MODULES}


def table() -> str:
    return "\n".join(f"{room}: {' '.join(sorted(deps, key=place))}".rstrip() for room, deps in
                     sorted(actual().items(), key=lambda kv: place(kv[0])))  # fmt: skip


def test_every_arrow_is_in_the_table():
    allowed = arrows()
    for room, deps in actual().items():
        line = f"{room}: {' '.join(sorted(deps, key=place))}"
        assert room in allowed, f"room {room} is not in the table of arrows; the line it needs:\n{line}"
        extra = sorted(deps - allowed[room])
        assert not extra, f"{room} imports {extra}; if that is meant, its line becomes:\n{line}"


def test_the_table_tells_the_truth():
    for room, deps in arrows().items():
        unused = sorted(deps - actual().get(room, set()))
        assert room in actual(), f"the table names {room}, which is not there"
        assert not unused, f"{room} no longer imports {unused}; take them out of its line"


def test_arrows_point_down():
    for room, deps in actual().items():
        later = [d for d in deps if number(d) > number(room)]
        assert not later, f"{room} imports {later}, which stand above it"


def test_no_circles():
    assert list(TopologicalSorter(actual()).static_order()), "raises CycleError with the circle"


def test_nothing_outside_a_case_knows_it():
    for room, deps in actual().items():
        assert not any(d.startswith("cases") for d in deps), f"{room} imports a case"
    for chapter in [*CHAPTERS, *LEAVES]:
        text = "\n".join(exported(chapter))
        found = re.findall(r"customer_id|invoice|wholesal|stock_code", text)
        assert not found, (
            f"{chapter.name}: exported code speaks of {sorted(set(found))}, which belong to a case"
        )


@pytest.mark.parametrize("path", [*CHAPTERS, *CASES], ids=lambda p: p.stem)
def test_chapter_bounds(path):
    def bound(what: str, usual: int) -> int:
        return LARGER.get((path.stem, what), (usual, ""))[0]

    exports = exported(path)
    total, biggest = sum(map(lines, exports)), max(map(lines, exports), default=0)
    assert len(cells(path)) <= bound("cells", 80), f"{len(cells(path))} cells; split the chapter"
    assert total <= bound("lines", 300), f"{total} exported lines; split the chapter"
    assert biggest <= bound("cell", 40), f"an exported cell of {biggest} lines; one idea a cell"
    prose = [source(c) for c in cells(path) if c["cell_type"] == "markdown"]
    words = sum(len(s.split()) for s in prose)
    assert words >= total, f"{words} words for {total} exported lines; explain more"
    assert re.match(r"# .+\n+> .+", prose[0]), "open with '# Title' and '> one sentence' in one cell"


def test_exceptions_are_needed():
    for (stem, what), (allowed, reason) in LARGER.items():
        path = next(p for p in [*CHAPTERS, *CASES] if p.stem == stem)
        exports = exported(path)
        size = {
            "cells": len(cells(path)),
            "lines": sum(map(lines, exports)),
            "cell": max(map(lines, exports), default=0),
        }[what]
        usual = {"cells": 80, "lines": 300, "cell": 40}[what]
        assert size > usual, f"{stem} keeps to the usual bound again ({size}); take its exception out"
        assert len(reason.split()) >= 4, f"{stem}: say why"
        assert allowed <= usual * 1.5, f"{stem}: {allowed} is not an exception any more; split the chapter"


FOREIGN = {"nbdev", "fastcore", "execnb"}
HEAVY = {
    "sklearn", "mlflow", "optuna", "pandas", "matplotlib", "nbconvert", "papermill", "nbclient", "nbformat", "fastapi",
    "uvicorn", "IPython", "voila", "ipywidgets", "zensical",
}  # fmt: skip


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=room_of)
def test_exported_style(module):
    parsed = tree(module)
    assert not imported(ast.walk(parsed)) & FOREIGN, "exported code never imports nbdev, fastcore or execnb"
    heavy = imported(iter(parsed.body)) & HEAVY
    assert not heavy, f"{sorted(heavy)} are imported inside the function that uses them"
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom):
            assert all(a.name != "*" for a in node.names), "name your imports"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "breakpoint", "eval", "exec"), (
                f"{node.func.id}() in exported code"
            )
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            marks = [ast.unparse(d) for d in node.decorator_list]
            assert not any(m.startswith("patch") for m in marks), "@patch hides methods from type checkers"


def test_no_room_is_a_drawer():
    bad = {"utils", "util", "core", "common", "base", "helpers", "misc"}
    assert not bad & {room_of(m).split(".")[-1] for m in MODULES}


# One door each -------------------------------------------------------------------------------------------------------

WRITING = {
    "write_text", "write_bytes", "write_parquet", "write_ipc", "write_ndjson", "write_excel", "sink_parquet", "sink_csv",
    "to_parquet", "to_pickle", "to_excel", "savefig", "savez", "savez_compressed", "mkdir", "makedirs", "unlink", "rmdir",
    "rmtree", "touch", "copyfile", "copytree", "symlink_to", "truncate",
}  # fmt: skip
TIME = {
    "now",
    "utcnow",
    "today",
    "time",
    "monotonic",
    "perf_counter",
    "time_ns",
    "sleep",
    "strftime",
    "gmtime",
}
LOADERS = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve", "skops"}
TAG = re.compile(
    r"</?(?:div|table|thead|tbody|tr|td|th|span|p|h[1-6]|img|a|b|i|ul|li|section|svg|details|style)[\s>/]"
)


def calls(module: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def opens_for_writing(name: str, call: ast.Call) -> bool:
    if name.split(".")[-1] not in ("open", "fdopen"):
        return False
    texts = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    modes = [t for t in texts if isinstance(t, str) and re.fullmatch(r"[rwxabt+]{1,4}", t)]
    return any(set(m) & set("wxa+") for m in modes)


@pytest.mark.parametrize("module", MODULES, ids=room_of)
def test_only_durable_writes(module):
    room = room_of(module)
    found = set()
    for name, call in calls(module):
        deed = name.split(".")[-1]
        if ("." in name and deed in WRITING) or opens_for_writing(name, call):
            found.add(deed)
        if name in ("os.replace", "os.rename", "os.remove", "shutil.move", "shutil.copy"):
            found.add(name)
    extra = found - set(WRITERS.get(room, ({}, ""))[0])
    assert room == "durable" or not extra, f"{room} writes by itself: {sorted(extra)}; use mlsys_nb.durable"


@pytest.mark.parametrize("module", MODULES, ids=room_of)
def test_only_clock_tells_the_time(module):
    for name, _ in calls(module):
        first, _, last = name.rpartition(".")
        asks = last in TIME and first.split(".")[-1] in (
            "datetime",
            "date",
            "time",
            "_time",
            "Timestamp",
            "pd",
        )
        assert room_of(module) == "clock" or not asks, (
            f"{name}() asks the machine; take `now`, or ask mlsys_nb.clock"
        )
    if room_of(module) != "clock":
        assert "time" not in imported(ast.walk(tree(module))), "the module `time` belongs to mlsys_nb.clock"


@pytest.mark.parametrize("module", MODULES, ids=room_of)
def test_only_markup_makes_html(module):
    parsed = tree(module)
    docs = {id(n.body[0].value) for n in ast.walk(parsed)
            if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef) and n.body and isinstance(n.body[0], ast.Expr)}  # fmt: skip
    found = [
        n.value[:60]
        for n in ast.walk(parsed)
        if isinstance(n, ast.Constant)
        and isinstance(n.value, str)
        and id(n) not in docs
        and TAG.search(n.value)
    ]
    assert room_of(module) == "markup" or room_of(module) in MARKUP or not found, (
        f"HTML outside of markup: {found}"
    )


@pytest.mark.parametrize("module", MODULES, ids=room_of)
def test_only_package_loads_models(module):
    parsed = tree(module)
    assert not imported(ast.walk(parsed)) & LOADERS, "nothing in this house unpickles"
    for name, _ in calls(module):
        if name in ("np.load", "numpy.load", "np.loads"):
            assert room_of(module) == "package", (
                f"{room_of(module)} loads arrays; only package turns bytes into a model"
            )


def test_the_service_is_lean():
    code = (
        "import sys, mlsys_nb.service; bad = {'mlflow', 'papermill', 'jupyter_client', 'IPython', 'nbconvert', 'sklearn',"
        " 'optuna', 'matplotlib', 'pandas'}; print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# Jobs and dashboards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_jobs_and_dashboards_are_thin(path):
    text = "\n".join(code(path))
    assert not re.search(r"^\s*(async def|def|class)\b", text, re.M), "move definitions to the package"
    assert lines(text) <= 60, f"{lines(text)} lines of code; at most 60"
    assert not re.search(r"^\s*[%!]", text, re.M), "no magics: a job runs as plain Python"
    for cell in cells(path):
        assert not cell.get("outputs"), "clear outputs; reports/ keeps the executed copies"
        assert cell.get("execution_count") is None, "clear execution counts"
        assert set(cell["metadata"]) <= {"tags"}, f"cell metadata {sorted(cell['metadata'])}; run nbdev-clean"


@pytest.mark.parametrize("path", sorted(NBS.glob("jobs/*.ipynb")), ids=lambda p: p.stem)
def test_a_job_declares_its_parameters(path):
    from mlsys_nb.parameters import parameters_of

    declared = parameters_of(path)
    assert declared, "a job has parameters"
    assert all(p.meaning for p in declared), "each parameter says what it means, in a comment"


if __name__ == "__main__":
    print(table())
