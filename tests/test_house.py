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
CHAPTERS = sorted(p for p in NBS.rglob("[0-9]*.ipynb") if p.relative_to(NBS).parts[0][0].isdigit())
CASES = sorted(NBS.glob("cases/*.ipynb"))
LEAVES = [*sorted(NBS.glob("jobs/*.ipynb")), *sorted(NBS.glob("dashboards/*.ipynb"))]
MODULES = sorted(p for p in PACKAGE.glob("*/**/*.py") if p.name != "__init__.py" or p.stat().st_size > 10)

# Floor: the floors it may import, in the order of their numbers. Any other arrow is a decision to take here first. Every
# floor may import `system`, which is not written down.
ARROWS = """
system:
data:
features: data
evaluation:
learning: evaluation
problem: data features evaluation learning
release: features learning problem
decisions: data problem
serving: data features problem release decisions
monitoring: evaluation problem
jobs:
loop: data features evaluation learning problem release decisions serving monitoring
doors: data features evaluation learning problem release decisions serving monitoring jobs loop
cases: data features evaluation learning problem
"""

# Wing of a floor: the wings of that floor which its rooms may import; rooms outside of wings serve and use them all.
WINGS = """
doors.onboarding:
doors.privacy:
doors.recovery:
doors.deploy:
doors.commands: doors.dashboards doors.deploy doors.privacy doors.recovery
doors.docs:
doors.figures:
doors.dashboards: doors.figures
doors.game_day: doors.recovery doors.figures
"""

# Bounds that a room breaks, and why it is better so: (room, bound) -> (its own bound, reason).
LARGER = {
    ("88_notebook_api", "cell"): (54, "Workbench is one class: a short method for each thing one does"),
    ("40_period_calendar", "cell"): (
        54,
        "Calendar is one class: the instants, and what lies between two of them",
    ),
    ("41_population", "cell"): (60, "Everyone is one class of one-line answers, the protocol's words"),
    ("41_per_event_population", "cell"): (60, "Each is one class of one-line answers, the protocol's words"),
    ("32_regression_metrics", "cell"): (60, "Number is one class of short answers, the protocol's words"),
    ("32_ranking_metrics", "cell"): (60, "Ranking is one class of short answers, the protocol's words"),
    ("41_item_candidates", "cell"): (
        56,
        "Candidates is one class: fields, and what follows from them in a line each",
    ),
    ("37_trial", "cell"): (48, "Task is one class: what all trials share, each part made once"),
    ("63_alerts", "cell"): (44, "Alert is one class: its fields, and what follows from them"),
    ("00_settings", "cell"): (
        53,
        "Places and Settings are one class each: a line or a property for each thing that is set",
    ),
    ("43_declaration", "cell"): (
        60,
        "Problem is one class: its fields, and what follows from them in a line each",
    ),
    ("43_declaration", "lines"): (
        325,
        "Problem is one declaration, and each of its contradictions one refusal",
    ),
    ("60_binning", "cell"): (46, "Lens is one class: its fields, and what follows from them"),
    ("61_drift", "cell"): (52, "DriftReport is one class: what was found, and how it shows itself"),
    ("47_registry", "lines"): (
        310,
        "versions, champions and the way back are one table, for problems and tenants",
    ),
    ("46_package", "cell"): (52, "Model is one class of small properties of a manifest"),
    ("32_multiclass_metrics", "cell"): (60, "Classes is one class of short answers, the protocol's words"),
    ("32_binary_metrics", "cell"): (44, "Probability is one class of short answers, the protocol's words"),
    ("42_regression_target", "cell"): (56, "Amount is one class of short answers, the protocol's words"),
    ("42_multiclass_target", "cell"): (56, "OneOf is one class of short answers, the protocol's words"),
    ("74_schedule", "cell"): (60, "Scheduler is one class: what it runs, and what a turn is"),
    ("86_scheduler_daemon", "cell"): (
        59,
        "Timekeeper is one class: a scheduler, its processes, what it looks at",
    ),
    ("24_review_widget", "cell"): (
        60,
        "ReviewDesk is one class: a reviewer's place, and the few deeds of it",
    ),
    ("24_what_if_widget", "cell"): (
        60,
        "WhatIfDesk is one class: a case, its fields, and the answer below them",
    ),
    ("10_page_data", "cell"): (
        60,
        "ProblemView is one class of short properties: what dashboards read of a problem",
    ),
    ("89_cli", "cell"): (60, "COMMANDS is one table: a line for each"),
    ("55_predictor", "cell"): (56, "Predictor is one class: what it was given, and the two ways to ask"),
    ("57_prometheus_metrics", "cell"): (
        54,
        "Metrics is one class: the figures of one service, and how each is counted",
    ),
    ("58_redis_requests", "cell"): (
        50,
        "RequestStream is one class: what is taken of a stream, and how it is settled",
    ),
    ("57_access_control", "cell"): (
        50,
        "Caller is one class: who was let in, and what each question may refuse",
    ),
    ("58_served_problems", "cell"): (
        50,
        "Problems is one class: what is served, what cannot be, how both change",
    ),
    ("56_tenant_model_cache", "cell"): (
        60,
        "TenantVersions is one class: what is known, what is open, and who answers",
    ),
    ("56_reload", "cell"): (48, "Reloader is one class: what it looks at, and what it takes"),
    ("42_binary_target", "cell"): (60, "Happens is one class of short answers, the protocol's words"),
    ("50_log_segments", "cell"): (
        52,
        "Segment is one class: a file, what was written to it, what is noted of it",
    ),
    ("51_log_writer", "cell"): (60, "DecisionLog is one class of short methods around one lock"),
    ("14_event_inbox", "cell"): (
        48,
        "Inbox is one class: what a process knows of the file, and the one way to add to it",
    ),
    ("28_inbox_to_store", "cell"): (48, "Materializer is one class: a thread, what it is told, how it fares"),
    ("02_group_commit", "cell"): (
        60,
        "GroupCommit is one class: a queue, its thread, and how the thread fares",
    ),
    ("73_runner", "cell"): (44, "Runner is one class; a class cannot be spread over cells"),
    ("26_key_value_engine", "cell"): (
        56,
        "LmdbEngine is one class: the four methods of an engine, and its file",
    ),
    ("26_redis_postgres_store", "cell"): (
        50,
        "RedisEngine and PostgresEngine are one class each: the same four methods, other words",
    ),
    ("21_feature_definition", "cell"): (50, "Feature is one class: fields, identity, equality and lineage"),
    ("23_feature_set", "cell"): (
        60,
        "FeatureSet is one class of small cached properties, each of which is public",
    ),
    ("24_history_sort", "cell"): (60, "Track is one class: the keys it caches refer to each other"),
    ("20_event_filters", "cell"): (56, "Field is one class: a line for each comparison"),
    ("26_record_packing", "cell"): (56, "Record is one class: how each part of a value is read in place"),
    ("27_feature_store", "cell"): (
        60,
        "OnlineStore is one class of one-line methods, the public face of the floor",
    ),
}

# Doors: what else may do a guarded deed, and why.
WRITERS: dict[str, tuple[set[str], str]] = {
    "doors.figures.matplotlib_image": ({"savefig"}, "draws into memory"),
    "system.durable": ({"write_parquet"}, "into memory"),
    "system.streaming_write": (
        {"sink_parquet", "write_ndjson"},
        "into memory, or to the end of a file of disk",
    ),
}
MARKUP = {
    "doors.privacy.personal_data_scan": "reads the tables of pages, and makes none",
    "doors.docs.notebook_to_markdown": "frames sanitised output in a Markdown page",
    "doors.docs.markdown_to_html": "makes HTML of Markdown: all text of it is escaped by the parser, or sanitised",
    "doors.docs.linking": "leads from words of rendered pages to where they are defined",
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


def is_face(room: str) -> bool:
    return room.endswith("__init__")


@cache
def numbers() -> dict[str, tuple[int, ...]]:
    "The numbers of each room's floor, of its wing if it stands in one, and of its chapter; rooms that were one share theirs."
    places = {}
    for path in CHAPTERS:
        parts = path.relative_to(NBS).with_suffix("").parts
        room = ".".join(part.split("_", 1)[1] for part in parts)
        places[re.sub(r"\.index$", ".__init__", room)] = tuple(int(part[:2]) for part in parts)
    return places


def number(room: str) -> tuple[int, ...]:
    return numbers().get(room, (100,))


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def own_imports(module: Path) -> set[str]:
    "Rooms that a module imports, at its top or in a function; `floor.__init__` when it imports a floor's face."
    room = room_of(module).split(".")
    found = set()
    for node in ast.walk(tree(module)):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = [*room[: len(room) - node.level], *(node.module or "").split(".")]
        elif (node.module or "").split(".")[0] == "mlsys_nb":
            base = node.module.split(".")[1:]
        else:
            continue
        named = ".".join(filter(None, base))
        for alias in node.names:
            inner = f"{named}.{alias.name}".strip(".")
            face = f"{inner}.__init__"  # from mlsys_nb import features as f
            known = [r for r in (inner, named, face) if r in rooms()]
            found.add(known[0] if known else f"{named}.__init__")
    return {f for f in found if f != ".__init__"}  # the package itself: its version


@cache
def rooms() -> frozenset[str]:
    return frozenset(map(room_of, MODULES))


def floor_of(room: str) -> str:
    return room.split(".")[0]


def wing_of(room: str) -> str:
    "Empty for a room that stands on its floor itself."
    return room.rpartition(".")[0] if room.count(".") == 2 else ""


def arrows(table: str = ARROWS) -> dict[str, set[str]]:
    return {
        place: set(deps.split()) for place, deps in (row.split(":") for row in table.strip().splitlines())
    }


@cache
def actual() -> dict[str, set[str]]:
    return {room_of(m): own_imports(m) for m in MODULES}


@cache
def between() -> dict[str, set[str]]:
    "Floor: the floors that its rooms import, itself and `system` left out; a face counts for nothing."
    found: dict[str, set[str]] = {}
    for room, deps in actual().items():
        if not is_face(room):
            found.setdefault(floor_of(room), set()).update(
                floor_of(d) for d in deps if floor_of(d) not in (floor_of(room), "system")
            )
    return found


def order(floor: str) -> int:
    return min((n[0] for room, n in numbers().items() if floor_of(room) == floor), default=100)


def row(floor: str) -> str:
    return f"{floor}: {' '.join(sorted(between().get(floor, ()), key=order))}".rstrip()


def table() -> str:
    return "\n".join(row(floor) for floor in sorted(between(), key=order))


def test_the_table_of_arrows_is_what_the_code_has():
    allowed = arrows()
    for floor, deps in between().items():
        assert floor in allowed, (
            f"floor {floor} is not in the table of arrows; the line it needs:\n{row(floor)}"
        )
        extra = sorted(deps - allowed[floor])
        assert not extra, f"{floor} imports {extra}; if that is meant, its line becomes:\n{row(floor)}"
        unused = sorted(allowed[floor] - deps)
        assert not unused, f"{floor} no longer imports {unused}; take them out of its line"
    assert set(allowed) == set(between()), "the table names a floor that is not there"


def test_there_are_few_arrows():
    inner = [(floor, d) for floor, deps in arrows().items() if floor != "cases" for d in deps]
    assert len(inner) <= 42, f"{len(inner)} arrows between floors; at most 42"


def test_the_table_of_wings_is_what_the_code_has():
    found: dict[str, set[str]] = {}
    for room, deps in actual().items():
        if wing := wing_of(room):
            near = {wing_of(d) for d in deps if floor_of(d) == floor_of(room)} - {wing, ""}
            found.setdefault(wing, set()).update(near)
    told = "\n".join(f"{wing}: {' '.join(sorted(deps))}".rstrip() for wing, deps in sorted(found.items()))
    assert found == arrows(WINGS), f"the arrows between wings are now:\n{told}"


def test_few_rooms_stand_side_by_side():
    for folder in {path.parent for path in CHAPTERS}:
        count = len(list(folder.glob("[0-9]*.ipynb")))
        assert count <= 46, f"{folder.name} holds {count} rooms; put those that belong together into a wing"


def test_arrows_point_down():
    for room, deps in actual().items():
        if is_face(room):  # a face names its own rooms, which all stand below it
            assert {floor_of(d) for d in deps} <= {floor_of(room), "system"}, (
                f"the face {room} reaches beyond its floor"
            )
            continue
        later = [d for d in deps if number(d) > number(room)]
        assert not later, f"{room} imports {later}, which stand above it"


def test_no_room_imports_its_own_face():
    for room, deps in actual().items():
        assert is_face(room) or f"{floor_of(room)}.__init__" not in deps, (
            f"{room} imports the face of its own floor"
        )


def test_no_circles():
    graph = {room: deps for room, deps in actual().items() if not is_face(room)}
    assert list(TopologicalSorter(graph).static_order()), "raises CycleError with the circle"


def test_nothing_outside_a_case_knows_it():
    for room, deps in actual().items():
        assert floor_of(room) == "cases" or not any(d.startswith("cases") for d in deps), (
            f"{room} imports a case"
        )
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
        big = [s for s in exports if what == "cell" and lines(s) > usual]
        several = [s for s in big if len(re.findall(r"^(?:class|def|async def) ", s, re.M)) > 1]
        assert not several, f"{stem}: only one class may be larger; split the cell that holds more"
        assert allowed <= usual * 1.5, f"{stem}: {allowed} is not an exception any more; split the chapter"


FOREIGN = {"nbdev", "fastcore", "execnb"}
HEAVY = {
    "sklearn", "mlflow", "optuna", "pandas", "matplotlib", "nbconvert", "papermill", "nbclient", "nbformat", "fastapi",
    "uvicorn", "IPython", "voila", "ipywidgets", "mistune", "pygments", "jinja2",
}  # fmt: skip


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
    return found


def is_written_in_style(module):
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
CHANGING = {
    "os.replace", "os.rename", "os.remove", "os.pwrite", "os.ftruncate", "os.fsync", "os.fdatasync", "os.link",
    "os.mkfifo", "os.symlink", "shutil.move", "shutil.copy", "shutil.copy2",
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


@cache
def calls(module: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(module)) if isinstance(node, ast.Call)]


def opens_for_writing(name: str, call: ast.Call) -> bool:
    if name.split(".")[-1] not in ("open", "fdopen"):
        return False
    texts = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
    modes = [t for t in texts if isinstance(t, str) and re.fullmatch(r"[rwxabt+]{1,4}", t)]
    return any(set(m) & set("wxa+") for m in modes)


def writes_by_disk_alone(module):
    room = room_of(module)
    found = set()
    for name, call in calls(module):
        deed = name.split(".")[-1]
        if ("." in name and deed in WRITING) or opens_for_writing(name, call):
            found.add(deed)
        if name in CHANGING:
            found.add(name)
    extra = found - set(WRITERS.get(room, ({}, ""))[0])
    assert room == "system.file_operations" or not extra, (
        f"{room} writes by itself: {sorted(extra)}; use mlsys_nb.system.durable"
    )


def asks_the_clock_for_the_time(module):
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
        assert room_of(module) == "system.clock" or not asks, (
            f"{name}() asks the machine; take `now`, or ask mlsys_nb.system.clock"
        )
    if room_of(module) != "system.clock":
        assert "time" not in imported(ast.walk(tree(module))), (
            "the module `time` belongs to mlsys_nb.system.clock"
        )


def makes_html_by_markup(module):
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
    assert room_of(module) == "system.markup" or room_of(module) in MARKUP or not found, (
        f"HTML outside of markup: {found}"
    )


def loads_no_models(module):
    parsed = tree(module)
    assert not imported(ast.walk(parsed)) & LOADERS, "nothing in this house unpickles"
    for name, _ in calls(module):
        if name in ("np.load", "numpy.load", "np.loads"):
            assert room_of(module) == "release.package", (
                f"{room_of(module)} loads arrays; only package turns bytes into a model"
            )


@pytest.mark.parametrize("module", MODULES, ids=room_of)
def test_a_room_keeps_the_rules_of_the_house(module):
    is_written_in_style(module)
    writes_by_disk_alone(module)
    asks_the_clock_for_the_time(module)
    makes_html_by_markup(module)
    loads_no_models(module)


def test_the_service_is_lean():
    code = (
        "import sys, mlsys_nb.serving.service; bad = {'mlflow', 'papermill', 'jupyter_client', 'IPython', 'nbconvert', 'sklearn',"
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
    from mlsys_nb.jobs.parameters import parameters_of

    declared = parameters_of(path)
    assert declared, "a job has parameters"
    assert all(p.meaning for p in declared), "each parameter says what it means, in a comment"


if __name__ == "__main__":
    print(table())
