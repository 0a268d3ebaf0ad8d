"What a user's own code gets from the package when it is checked strictly."

import subprocess
import sys
from pathlib import Path

OWN = """
from mlsys_nb.cases.churn import problem
from mlsys_nb.features import Events, FeatureSet, count
from mlsys_nb.problem import Criterion, Problem
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system import load_settings

orders = Events("orders", keys={"customer": "int"}, time="at", columns={"amount": "int"})
features = FeatureSet("mine", (count(orders, window="30d").named("orders_30d"),))
names: tuple[str, ...] = tuple(features.names)
asked: Problem = load_problem(load_settings(), problem.name)
rule = Criterion("orders_30d", ">=", 1)
reveal_type(rule)
"""


# The rooms' own lines are checked elsewhere: here only what they offer is read, and nothing of other libraries.
ONLY = """
[mypy]
follow_imports = skip
[mypy-mlsys_nb.*]
follow_imports = silent
ignore_errors = True
"""


def test_the_documented_imports_pass_mypy_strict(tmp_path: Path) -> None:
    "It used to say that the module does not explicitly export them."
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mypy.ini").write_text(ONLY)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "own.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "criterion.Criterion" in done.stdout, "a name is its class, not Any"
