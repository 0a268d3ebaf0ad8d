"""The floors' faces: few words, each from its first use on, each used once in a lesson; typed for whoever imports them.

`python tests/test_faces.py` prints how many words each floor shows.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from mlsys_nb.system.lazy_imports import FORMER

ROOT = Path(__file__).resolve().parents[1]
FACES = {p.parent.name.split("_", 1)[1]: p for p in sorted((ROOT / "nbs").glob("[0-9]*/00_index.ipynb"))}
MOST = {"features": 46}  # words of a face; elsewhere some two dozen
HEAVY = {
    "polars", "numpy", "pandas", "pyarrow", "sklearn", "scipy", "sqlalchemy", "optuna", "matplotlib", "orjson", "lmdb",
    "fastapi", "uvicorn", "mlflow", "papermill", "nbconvert", "jupyter_client", "IPython", "nh3", "prometheus_client",
}  # fmt: skip


@cache
def module_source(floor: str) -> ast.Module:
    return ast.parse((ROOT / "mlsys_nb" / floor / "__init__.py").read_text(encoding="utf-8"))


def typed(floor: str) -> dict[str, str]:
    "Word: room, as the imports for type checkers say."
    found = {}
    for node in ast.walk(module_source(floor)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"mlsys_nb.{floor}."):
            found |= {alias.name: node.module.split(".", 2)[2] for alias in node.names}
    return found


def face(floor: str):
    return importlib.import_module(f"mlsys_nb.{floor}")


def cells(floor: str) -> list[dict]:
    return json.loads(FACES[floor].read_text(encoding="utf-8"))["cells"]


def lessons(floor: str) -> str:
    "The code that shows the words: what is neither exported nor the list of imports."
    sources = ["".join(c["source"]) for c in cells(floor) if c["cell_type"] == "code"]
    text = "\n".join(s for s in sources if not re.search(r"^#\|\s*export", s, re.M))
    return re.sub(r"^from mlsys_nb\.\w+ import (\([^)]*\)|.*)$", "", text, flags=re.M)


@pytest.mark.parametrize("floor", FACES)
def test_every_word_is_there_for_all_three_readers(floor):
    words = face(floor).__all__
    assert sorted(words) == sorted(set(words)), "a word is shown once"
    assert set(words) == set(typed(floor)) == set(vars(face(floor))["_module_of"]), (
        "the imports for type checkers, `attach` and `_all_` name the same words"
    )
    assert vars(face(floor))["_module_of"] == typed(floor), "both say the same room of each word"
    for word in words:
        room = importlib.import_module(f"mlsys_nb.{floor}.{typed(floor)[word]}")
        assert getattr(face(floor), word) is getattr(room, word), word
        assert word in dir(face(floor))


@pytest.mark.parametrize("floor", FACES)
def test_a_face_shows_few_words(floor):
    count = len(face(floor).__all__)
    assert 4 <= count <= MOST.get(floor, 24), f"{floor} shows {count} words; a newcomer needs a dozen"


@pytest.mark.parametrize("floor", FACES)
def test_every_word_is_used_in_a_lesson(floor):
    used = {n.id for n in ast.walk(ast.parse(lessons(floor))) if isinstance(n, ast.Name)}
    used |= {n.attr for n in ast.walk(ast.parse(lessons(floor))) if isinstance(n, ast.Attribute)}  # fmt: skip
    unused = sorted(set(face(floor).__all__) - used)
    assert not unused, f"the face of {floor} shows {unused} without using them; add a lesson or take them out"


@pytest.mark.parametrize("floor", FACES)
def test_a_face_has_a_picture(floor):
    prose = "\n".join("".join(c["source"]) for c in cells(floor) if c["cell_type"] == "markdown")
    picture = re.search(r"```text\n(.*?)```", prose, re.S)
    assert picture and len(picture[1].splitlines()) >= 4, "draw how data passes through the rooms"
    rooms = {p.stem for p in (ROOT / "mlsys_nb" / floor).rglob("[a-z]*.py")}
    missing = sorted(r for r in rooms if r not in picture[1].replace("\n", " "))
    assert not missing, f"the picture of {floor} leaves out the rooms {missing}"


@pytest.mark.parametrize("floor", FACES)
def test_a_face_loads_nothing(floor):
    code = f"import sys, mlsys_nb.{floor}; print(sorted(m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 0, done.stderr
    loaded = ast.literal_eval(done.stdout)
    assert (
        not {m.split(".")[0] for m in loaded if "." in m} & HEAVY
    )  # one without parts only stands for what may be loaded
    own = {m for m in loaded if m.startswith("mlsys_nb.")}
    assert own <= {"mlsys_nb.system", "mlsys_nb.system.lazy_imports", f"mlsys_nb.{floor}"}


def test_a_word_loads_no_more_than_its_room():
    code = "import sys; from mlsys_nb.system import instant; print('polars.dataframe' in sys.modules, instant('2010-05-01').year)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.stdout.split() == ["False", "2010"], done.stderr


def test_a_room_is_found_by_the_name_that_kept_files_have_for_it():
    "Lesson: a package in MLflow and a notebook of one's own named rooms by words that were no longer theirs."
    for place, told in FORMER.items():
        folder = ROOT / "mlsys_nb" / place.replace(".", "/")
        for then, now in (pair.split("=") for pair in told.split()):
            assert not (folder / f"{then}.py").exists(), f"{place}.{then} is a room; it cannot mean {now} too"
            assert (folder / f"{now}.py").is_file(), f"{place}.{now}, once {then}, is no room"
    code = (
        "import importlib; from mlsys_nb.data.delimited import Dialect; from mlsys_nb.data.csv_files import Dialect as now; "
        "from mlsys_nb.doors.onboarding.origin import with_outcomes; import mlsys_nb.problem.occasion as rooms; "
        "flavour = importlib.import_module('mlsys_nb.release.pyfunc'); "
        "print(Dialect is now, with_outcomes.__module__, rooms.__name__, hasattr(flavour, '_load_pyfunc'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    told = "True mlsys_nb.doors.onboarding.table_origin mlsys_nb.problem.retrain_triggers True"
    assert done.stdout.split() == told.split(), done.stderr


def test_what_a_face_does_not_show_is_an_error():
    with pytest.raises(ImportError, match="no_such_word"):
        from mlsys_nb.system import no_such_word  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'no_such_word'"):
        face("system").no_such_word


# What `mypy --strict` asks for; it cannot be said for one file.
STRICT = (
    "disallow-any-generics", "disallow-subclassing-any", "disallow-untyped-calls", "disallow-untyped-defs",
    "disallow-incomplete-defs", "check-untyped-defs", "disallow-untyped-decorators", "warn-unused-ignores",
    "warn-return-any", "no-implicit-reexport", "strict-equality", "extra-checks",
)  # fmt: skip


def test_a_user_script_passes_mypy_strict(tmp_path):
    "The script is strict; the rooms are read as `mypy` alone has read them, from its cache if it has run."
    lines = [f"from mlsys_nb.{floor} import {word}" for floor in FACES for word in face(floor).__all__]
    lines += ["from datetime import datetime", "from mlsys_nb.system import instant as at", "x: datetime = at('2010-05-01')"]  # fmt: skip
    strict = "# mypy: " + ", ".join(STRICT) + "\n"
    script, other = tmp_path / "script.py", tmp_path / "other.py"
    script.write_text(strict + "\n".join(dict.fromkeys(lines)) + "\n")
    wrong = "from mlsys_nb.system import no_such_word, instant\nx: int = instant('2010-05-01')\n"
    other.write_text(strict + wrong + "def f(y):\n    return [y]\n")
    run = [sys.executable, "-m", "mypy", "--no-error-summary"]
    done = subprocess.run(
        [*run, str(script), str(other)], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    told = [line for line in done.stdout.splitlines() if "script.py" in line]
    assert not told, "\n".join(told)
    for word in ("no_such_word", "Incompatible types", "missing a type annotation"):
        assert word in done.stdout, done.stdout + done.stderr


if __name__ == "__main__":
    for floor in FACES:
        print(f"{len(face(floor).__all__):3}  {floor}")
