"""One's own data with the installed wheel only, in an empty folder: new, read, ingest, train, predict, outcome, monitor."""

import json
import os
import re
import shutil
import site
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from own_tables import TABLES

ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which("uv")


def run(*words, cwd, ok=True):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLSYS_", "PYTHONPATH"))}
    environment["JUPYTER_PATH"] = str(
        Path(sys.prefix) / "share/jupyter"
    )  # nbconvert's templates are no Python files
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment
    )
    assert not ok or done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def mlsys(tmp_path_factory):
    "The command of a fresh environment that holds the wheel, and the libraries of this one."
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "raw", "_docs", "_proc", "__pycache__", ".*_cache", "reports"
    )
    shutil.copytree(ROOT, place / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", place, place / "source"]
    run(*([UV, "build", "--quiet", "--wheel", "-o", place, place / "source"] if UV else pip), cwd=place)
    [wheel] = place.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv/bin/python"
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    into = [UV, "pip", "install", "--quiet", "--no-deps", "--python", python] if UV else [
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]  # fmt: skip
    run(*into, wheel, cwd=place)
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()))  # after its own: the wheel wins
    where = run(python, "-c", "import mlsys_nb; print(mlsys_nb.__file__)", cwd=place).strip()
    assert where.startswith(str(own)), where
    return place / "venv/bin/mlsys"


@pytest.fixture(scope="module")
def folder(mlsys, tmp_path_factory):
    "A folder begun outside of every repository, with the tables beside it."
    place = tmp_path_factory.mktemp("away")
    for file, write in TABLES.values():
        write(place / file)
    run(mlsys, "init", place / "my-shop", cwd=place)
    return place / "my-shop"


def cells(folder, name):
    return json.loads((folder / f"notebooks/{name}.ipynb").read_text())["cells"]


def declaration(folder, name):
    return "\n".join(c["source"] for c in cells(folder, name) if c["source"].startswith("#| export"))


@pytest.fixture(scope="module")
def declared(mlsys, folder):
    "What `mlsys new` says of each table, asked once."
    return {
        n: run(mlsys, "new", n, "--from", folder.parent / file, cwd=folder) for n, (file, _) in TABLES.items()
    }


@pytest.mark.parametrize("name", TABLES)
def test_a_declaration_is_short_and_its_notebook_runs(mlsys, folder, declared, name):
    code = [
        line for line in declaration(folder, name).splitlines() if line.strip() and not line.startswith("#|")
    ]
    assert len(code) <= 40, "\n".join(code)
    script = "\n\n".join(c["source"] for c in cells(folder, name) if c["cell_type"] == "code")
    (folder / f"notebooks/.{name}.py").write_text(script)
    run(mlsys.parent / "python", f".{name}.py", cwd=folder / "notebooks")


def test_planted_leaks_are_named(declared):
    assert "LEAK? collection_agency" in declared["loans"]
    assert "leak: recovered_amount" in declared["loans"]
    assert "left out: country: it never varies" in declared["loans"]
    assert "collection_agency" not in re.sub(r".*beware.*|.*left out.*", "", declared["loans"])


def test_each_kind_of_table_is_seen_for_what_it_is(folder, declared):
    for name, words in {
        "loans": ('Happens.by(loans, "defaulted", 1', 'id="loan_id"'),
        "calls": ("Happens.by(calls_outcomes, \"success\", 'yes'", 'claims="outcome_at"'),
        "houses": ('Amount.by(houses, "price"', "OverUnder("),
        "tickets": ('OneOf.by(tickets, "topic"', 'f.request("message", "text")'),
        "visits": ("Everyone(", '"==", 0, "not seen'),
        "kredite": ("Happens.by(kredite, \"status\", 'Ausfall'", "formats=('%d/%m/%Y',)"),
    }.items():
        for word in words if "which is not there" not in declared[name] else ():
            assert word in declaration(folder, name), (name, word, declaration(folder, name))


def test_marks_and_money_of_a_dirty_table_are_read(mlsys, folder, declared):
    code = declaration(folder, "kredite")
    for word in (
        "as_='hoehe_des_kredits'",
        "decimal=',', thousands='.', money='€'",
        "missing=('?',)",
        "missing=('N/A',)",
    ):
        assert word in code, code


def until(folder, name):
    found = re.search(r"--now (\S+)", "\n".join(c["source"] for c in cells(folder, name)))
    return ["--now", found[1]] if found else []


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port, path, body):
    url = f"http://127.0.0.1:{port}{path}"
    asked = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        raise AssertionError(f"{e.code} {e.read().decode()}") from e


def served(mlsys, folder, name, body, outcome):
    "One answer over HTTP, and its outcome."
    port = free_port()
    service = subprocess.Popen(
        [mlsys, "serve", name, "--port", str(port)], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
                break
            except (OSError, urllib.error.HTTPError):
                assert service.poll() is None, service.stderr.read()
                time.sleep(0.5)
        found = ask(port, f"/v1/{name}/predictions", body)
        ask(port, f"/v1/{name}/outcomes", {"decision_id": found["decision_id"], "outcome": outcome})
        return found
    finally:
        service.terminate()
        service.wait(20)


ASKED = {
    "loans": ({"loan_id": "L1", "age": 40, "income": 30000.0, "amount": 9000.0, "credit_history": "poor"}, 1),
    "kredite": (
        {"kredit_nr": "L1", "alter": 40, "einkommen": 3e4, "hoehe_des_kredits": 9e3, "bonitaet": "poor"}, 0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_the_walk_of_the_tutorial(mlsys, folder, declared, name):
    began, now = time.monotonic(), until(folder, name)
    assert "rows" in run(mlsys, "ingest", name, *now, cwd=folder)
    assert "verdict: " in run(mlsys, "scope", name, *now, cwd=folder)
    assert "decision: promoted" in run(mlsys, "train", name, *now, cwd=folder)
    body, outcome = ASKED[name]
    assert 0 <= served(mlsys, folder, name, body, outcome)["prediction"] <= 1
    run(mlsys, "score", name, *now, cwd=folder)
    run(mlsys, "monitor", name, *now, cwd=folder)
    took = time.monotonic() - began
    assert took <= 180, f"{took:.0f} s"


def test_the_folder_tests_itself(mlsys, folder, declared):
    said = run(mlsys, "problems", cwd=folder)
    assert "loans" in said and "BROKEN  (notebooks.loans" not in said
