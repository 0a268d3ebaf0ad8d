"""One word, one thing: no public name stands in two rooms, and none is built without a door.

`python tests/test_names.py` prints both lists as the code has them now.
"""

import ast
import json
from collections import defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, NBS = ROOT / "mlsys_nb", ROOT / "nbs"
ROOMS = sorted(p for p in PACKAGE.glob("*/**/*.py") if not p.name.startswith("_"))
CONSTANTS = {"LOG", "logger"}  # every room that logs has one of its own

# Names that stand in more than one room, and why that is better than another word.
TWICE: dict[str, str] = {}

# Public names that no command, setting, job, dashboard, case or other room uses, and why they stay.
LONE: dict[str, str] = {
    "open_problem": "is what users know as mlsys_nb.open",
    "serve_dashboards": "run by name in a child process, see voila.show",
    "serve_forks": "run by name in a child process, see start_parent",
    "serve_lab": "run by name in a child process, see open_notebook",
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return f"{path.parent.name}.{path.stem}"


def assigned(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [n.id for n in names if isinstance(n, ast.Name)]


def public(path: Path) -> list[str]:
    "What a room defines for others: functions, classes, constants."
    return [name for node in tree(path).body for name in assigned(node) if not name.startswith("_")]


def used(parsed: ast.AST) -> set[str]:
    names = {n.id for n in ast.walk(parsed) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return names | {n.attr for n in ast.walk(parsed) if isinstance(n, ast.Attribute)}


def notebook_code(path: Path) -> ast.Module:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ast.parse("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"))


def shown() -> set[str]:
    "The words of the faces: each has a lesson (see test_faces.py), and so its door."
    found: set[str] = set()
    for face in PACKAGE.glob("*/__init__.py"):
        for node in tree(face).body:
            if isinstance(node, ast.Assign) and assigned(node) == ["__all__"]:
                found |= set(ast.literal_eval(node.value))
    return found


def twice() -> dict[str, list[str]]:
    "Name: the rooms that define it, where they are several; each case speaks its own language."
    rooms = defaultdict(list)
    for path in (p for p in ROOMS if p.parent.name != "cases"):
        for name in dict.fromkeys(public(path)):
            rooms[name].append(room_of(path))
    return {name: found for name, found in sorted(rooms.items()) if len(found) > 1 and name not in CONSTANTS}


def lone() -> dict[str, str]:
    "Name: its room, for functions and classes that nothing calls."
    leaves = [*NBS.glob("jobs/*.ipynb"), *NBS.glob("dashboards/*.ipynb"), *NBS.glob("cases/*.ipynb")]
    modules = [*ROOMS, *PACKAGE.glob("*/__init__.py")]
    uses = shown().union(*(used(tree(p)) for p in modules), *(used(notebook_code(p)) for p in leaves))
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = {}
    for path in ROOMS:
        for node in tree(path).body:
            if isinstance(node, definitions) and not node.name.startswith("_") and node.name not in uses:
                found[node.name] = room_of(path)
    return found


def test_a_name_stands_in_one_room():
    extra = {name: rooms for name, rooms in twice().items() if name not in TWICE}
    assert not extra, f"one word means one thing; give all but one of each another name: {extra}"


def test_nothing_is_built_without_a_door():
    extra = {name: room for name, room in lone().items() if name not in LONE}
    assert not extra, (
        f"nothing calls these; give each a command, a setting or a caller, or take it out: {extra}"
    )


def test_exceptions_are_needed():
    for title, listed, found in (("TWICE", TWICE, twice()), ("LONE", LONE, lone())):
        stale = sorted(set(listed) - set(found))
        assert not stale, f"{title} excuses {stale}, which need no excuse any more; take them out"
        assert all(len(reason.split()) >= 4 for reason in listed.values()), f"{title}: say why"


def test_the_search_for_names_finds_them(tmp_path):
    path = tmp_path / "room.py"
    path.write_text(
        "A = 1\n_B = 2\nC: int = 3\nasync def d(): ...\nclass E: ...\ndef f(): return E().g(A)\nH, I = 1, 2\n"
    )
    assert public(path) == ["A", "C", "d", "E", "f", "H", "I"]
    assert used(ast.parse(path.read_text())) >= {"E", "A", "g"} and "d" not in used(
        ast.parse(path.read_text())
    )


if __name__ == "__main__":
    for name, rooms in twice().items():
        print(f"{name}: {', '.join(rooms)}")
    print(f"\n{len(lone())} without a caller")
    for name, room in sorted(lone().items(), key=lambda n: n[1]):
        print(f"  {room}.{name}")
