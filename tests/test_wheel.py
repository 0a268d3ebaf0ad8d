"""The wheel: it builds, and installs and works without nbdev, JupyterLab or Voila."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which("uv")


def run(*words, **more):
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # What is compiled is kept
    done = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, timeout=900, env=kept, **more
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    copy = tmp_path_factory.mktemp("source") / "mlsys_nb"
    ignored = shutil.ignore_patterns(".git", ".venv", "raw", "_docs", "_proc", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", out, copy]
    run(*([UV, "build", "--quiet", "--wheel", "-o", out, copy] if UV else pip))
    return next(out.glob("*.whl"))


def test_the_wheel_carries_the_notebooks_it_runs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in [*ROOT.glob("nbs/jobs/*.ipynb"), *ROOT.glob("nbs/dashboards/*.ipynb")]:
        assert f"mlsys_nb/notebooks/{path.parent.name}/{path.name}" in names
    assert "mlsys_nb/py.typed" in names
    book = (
        "index.ipynb",
        "20_features/25_point_in_time_join.ipynb",
        "guide/start/01_tutorial.md",
        "site/page.html.j2",
    )
    assert {f"mlsys_nb/notebooks/{name}" for name in book} <= names, "the wheel carries its book"
    assert "mlsys_nb/notebooks/dashboards/.voila/voila/templates/mlsys/index.html.j2" in names
    assert not [n for n in names if n.startswith(("tests/", "nbs/", "data/"))]


def test_it_works_where_nobody_develops(wheel, tmp_path):
    python = tmp_path / "venv/bin/python"
    if UV:
        run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
        run(UV, "pip", "install", "--quiet", "--python", python, "-c", ROOT / "constraints.txt", wheel)
    else:
        run(sys.executable, "-m", "venv", tmp_path / "venv")
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    look = """
import importlib, importlib.util, pkgutil, mlsys_nb
for absent in ("nbdev", "fastcore", "execnb", "voila", "jupyterlab", "fastapi", "mlflow"):
    assert importlib.util.find_spec(absent) is None, absent
names = [m.name for m in pkgutil.walk_packages(mlsys_nb.__path__, "mlsys_nb.") if not m.name.endswith("_modidx")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""
    assert int(run(python, "-c", look, cwd=tmp_path)) >= 40
    command = tmp_path / "venv/bin/mlsys"
    assert "monitor" in run(command, "--help", cwd=tmp_path)
    (tmp_path / "settings.ini").write_text("[problems]\nchurn = mlsys_nb.cases.churn:problem\n")
    assert "churn" in run(command, "problems", cwd=tmp_path)
    assert "0 files" not in run(command, "docs", cwd=tmp_path), "the book is built where only the package is"
    assert (tmp_path / "_docs/features/point_in_time_join.html").exists() and (
        tmp_path / "_docs/reference/http.html"
    ).exists()
    missing = subprocess.run(
        [command, "serve", "churn"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert missing.returncode == 2
    assert "pip install" in missing.stderr
    assert "Traceback" not in missing.stderr
