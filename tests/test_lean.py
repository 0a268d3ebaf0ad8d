"A serving worker holds what it needs to answer, and none of the engines that train, tabulate and migrate."

import json
import subprocess
import sys

import pytest
from serving_world import HOME, JUNE, make, package

from mlsys_nb.release.registry import promote, register
from mlsys_nb.serving.api_keys import first_key
from mlsys_nb.system.control_tables import open_control

ENGINES = (
    "polars",
    "sqlalchemy",
    "pandas",
    "sklearn",
    "scipy",
    "mlflow",
    "alembic",
    "pyarrow",
    "duckdb",
    "numba",
)
WORKER = """
import json, resource, sys, time
from mlsys_nb.system.settings import load_settings
from mlsys_nb.serving.service import _Life, running
import httpx
from pathlib import Path
here = load_settings(root=sys.argv[1], home=sys.argv[2])
loaded = lambda: sorted({name.partition(".")[0] for name in sys.modules if "." in name})
with running(here, "churn") as url:
    begun = loaded()
    with httpx.Client(base_url=url, headers=json.loads(sys.argv[3]), timeout=60) as client:
        answer = lambda: client.post("/v1/churn/predictions", json={"customer_id": 13080, "features": True})
        first = answer()
        for path in ("/readyz", "/metrics", "/openapi.json", "/docs", "/v1/churn/model", f"/v1/churn/decisions/{first.json()['decision_id']}"):
            assert client.get(path).status_code == 200, path
        told = {"decision_id": first.json()["decision_id"], "outcome": True}
        assert client.post("/v1/churn/outcomes", json=told).status_code == 200
        print("answered", flush=True)
        sys.stdin.readline()
        while (last := answer().json())["version"] == first.json()["version"]:
            time.sleep(0.05)
print(json.dumps({"begun": begun, "ended": loaded(), "versions": [first.json()["version"], last["version"]]}))
"""


@pytest.mark.parametrize("durable", ["before answer", "within 5 ms"])
def test_a_worker_loads_no_engine_while_it_answers_and_while_it_takes_another_version(tmp_path, durable):
    "Planted once: `import polars` in a room that every answer passes, and one of SQLAlchemy in the reading of the pointer."
    from caller import head

    here = make(tmp_path, families=("boosting",))
    first_key(here, "test")
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(here.root), str(HOME), json.dumps(head(here.root))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**__import__("os").environ, "MLSYS_DURABLE": durable, "MLSYS_RELOAD_SECONDS": "0.2"},
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "answered\n"
        control = open_control(here)
        register(control, here, package("linear"), "test", JUNE)
        promote(control, "churn", 2, expected_epoch=1, at=JUNE, actor="test", reason="another one")
        said, _ = child.communicate("on\n", timeout=120)
    finally:
        child.kill()
    told = json.loads(said)
    assert told["versions"] == [1, 2]
    for when in ("begun", "ended"):
        assert not {*ENGINES} & {*told[when]}, f"{when}: {[name for name in ENGINES if name in told[when]]}"


@pytest.mark.parametrize(
    "loaded",
    [
        "from mlsys_nb.doors.dashboards.server import dashboard_server; dashboard_server(load_settings())",
        "from mlsys_nb.doors.jupyterlab import trust; trust(HOME / 'nbs/index.ipynb')",
        "from mlsys_nb.jobs.notebook_execution import engine; engine()",
    ],
)
def test_nobody_reads_the_grammars_of_a_format_that_nobody_uses(loaded):
    "They cost two of the three seconds of processor that loading Voila takes."
    for needed in ("voila", "nbformat"):
        pytest.importorskip(needed)
    code = f"import sys; from pathlib import Path; from mlsys_nb.system.settings import load_settings; HOME = Path({str(HOME)!r}); {loaded}"
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; print('jsonschema' in sys.modules, 'lark' in sys.modules)"],
        capture_output=True, text=True, cwd=HOME,
    )  # fmt: skip
    assert told.stdout.split() == ["True", "False"], told.stderr[-2000:]
