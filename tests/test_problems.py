"One process, every problem of a root: who is served, what is wrong with one, whose key is for which, who asked."

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from caller import head
from conftest import until
from ports import free_port
from serving_world import HOME, JUNE, MOMENTS, lake, make

from mlsys_nb.cases.churn import problem
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.dataset import build_dataset
from mlsys_nb.release.package import build
from mlsys_nb.release.registry import promote, register
from mlsys_nb.serving.api_keys import ROLES, KeyWanted, add_key
from mlsys_nb.serving.service import ROUTES, running
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.settings import load_settings

COMMAND = "from mlsys_nb.doors.cli import main; raise SystemExit(main())"
LAPSE = """
from dataclasses import replace
from mlsys_nb.cases.churn import problem as churn
problem = replace(churn, name="lapse", title="Lapse", question="Will this customer stay away?")
"""
INI = """[problems]
churn = mlsys_nb.cases.churn:problem
lapse = lapse_of_{0}:problem
broken = broken_of_{0}:problem
quiet = lapse_of_{0}:quiet
"""


def two_problems(folder):
    "A team's folder: two problems with champions, one whose module does not import, one that nobody has trained."
    home, root = folder / "home", folder / "root"
    home.mkdir()
    name = f"{abs(hash(str(folder)))}"
    (home / "settings.ini").write_text(INI.format(name))
    (home / f"lapse_of_{name}.py").write_text(LAPSE + 'quiet = replace(problem, name="quiet")\n')
    (home / f"broken_of_{name}.py").write_text("import there_is_no_such_module\n")
    make(root, families=("linear",))
    here = load_settings(root=root, home=home)
    control, lapse = open_control(here), replace(problem, name="lapse")
    rows = build_dataset(lapse, lake(), MOMENTS, JUNE)
    sealed = build(
        fit("linear", rows.frame, problem.features.names, rule=problem.rule, params={"C": 0.01}), rows
    )
    again = build(
        fit("linear", rows.frame, problem.features.names, rule=problem.rule, params={"C": 0.02}), rows
    )
    for one in (sealed, again):
        register(control, here, one, "test", JUNE)
    said = {"at": JUNE, "actor": "test", "reason": "test"}
    promote(control, "lapse", 1, expected_epoch=0, **said)
    return here


@contextmanager
def served(here, *names, workers=1):
    "The command in a process of its own."
    port = free_port()
    command = [sys.executable, "-c", COMMAND, "serve", *names, "--root", str(here.root),
               "--port", str(port), "--workers", str(workers)]  # fmt: skip
    child = subprocess.Popen(command, cwd=here.home, stderr=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": f"{here.home}:{Path(__file__).parent}", "MLSYS_RELOAD_SECONDS": "0.1"})  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=head(here.root), timeout=60) as client:
            for _ in range(1200):
                try:
                    client.get("/healthz")
                    break
                except httpx.TransportError:
                    assert child.poll() is None, child.stderr.read()
                    time.sleep(0.05)
            yield client, child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(60)


def asked(client, name, customer=13080, **heads):
    return client.post(f"/v1/{name}/predictions", json={"customer_id": customer}, headers=heads)


def test_two_problems_two_workers_one_command(tmp_path):
    here = two_problems(tmp_path)
    with served(here, workers=2) as (client, _):
        found = {name: asked(client, name).json() for name in ("churn", "lapse")}
        assert {name: told["problem"] for name, told in found.items()} == {"churn": "churn", "lapse": "lapse"}
        assert found["churn"]["prediction"] != found["lapse"]["prediction"]
        told = client.get("/readyz").json()
        assert told["ready"] and {n: p["version"] for n, p in told["problems"].items()} == {
            "churn": 1,
            "lapse": 1,
        }
        for name, remedy in (("quiet", "mlsys train quiet"), ("broken", "mlsys train broken")):
            answer = asked(client, name)
            assert answer.status_code == 503 and remedy in answer.text, "declared, and nothing to serve yet"
        assert asked(client, "nothing").status_code == 404
        made = {name: told["decision_id"] for name, told in found.items()}
        for name, decision in made.items():
            said = {"decision_id": decision, "outcome": 1}
            assert client.post(f"/v1/{name}/outcomes", json=said).json()["status"] == "new"
            other = "lapse" if name == "churn" else "churn"
            missed = client.get(f"/v1/{other}/decisions/{decision}")
            assert missed.status_code in (404, 410), "a decision is of one problem"
        described = client.get("/openapi.json").json()
        assert {f"/v1/{n}/predictions" for n in found} <= set(described["paths"])
        ids = [op["operationId"] for path in described["paths"].values() for op in path.values()]
        assert len(ids) == len(set(ids)) and sum("/events/" in path for path in described["paths"]) == 1
        figures = client.get("/metrics").text
        assert all(f'problem="{name}",version="1"' in figures for name in found)
        # one problem's champion changes, in every worker, and no other's
        control = open_control(here)
        promote(control, "lapse", 2, expected_epoch=1, at=JUNE, actor="test", reason="test")
        deadline, seen = time.monotonic() + 180, []
        while time.monotonic() < deadline and seen[-20:] != [2] * 20:
            with httpx.Client(base_url=str(client.base_url), headers=client.headers, timeout=60) as anew:
                seen.append(asked(anew, "lapse").json()["version"])
        assert seen[-20:] == [2] * 20 and asked(client, "churn").json()["version"] == 1


def test_one_that_cannot_be_loaded_is_named_and_the_others_serve(tmp_path):
    here = two_problems(tmp_path)
    control = open_control(here)
    with served(here, "churn", "broken") as (client, _):
        assert asked(client, "churn").status_code == 200
        ready = client.get("/readyz")
        assert (
            ready.status_code == 200
            and "there_is_no_such_module" in ready.json()["problems"]["broken"]["detail"]
        )
        answer = asked(client, "broken")
        assert answer.status_code == 503 and "there_is_no_such_module" in answer.text
        assert asked(client, "lapse").status_code == 404, "not one of those that were named"
        (broken,) = here.home.glob("broken_of_*.py")
        broken.write_text(LAPSE.replace("lapse", "broken"))
        until(
            lambda: "no champion yet" in asked(client, "broken").text
        )  # mended, and served without a restart
    assert control is not None


def workers_of(child):
    "The processes that answer: children with a socket, not the one that only keeps track of resources."
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as told:
        found = [int(one) for one in told.read().split()]
    return [one for one in found if "resource_tracker" not in open(f"/proc/{one}/cmdline").read()]


def test_a_killed_worker_is_missed_by_nobody_who_asks_again(tmp_path):
    here = two_problems(tmp_path)
    with served(here, "churn", workers=2) as (client, child):
        met: set[str] = set()

        def answers():
            "Which of them, by the beginning of its decision's id; whoever connects anew may meet another."
            with httpx.Client(base_url=str(client.base_url), headers=client.headers, timeout=60) as anew:
                met.add(asked(anew, "churn").json()["decision_id"].partition("-")[0])
            return len(met) == 2

        until(answers)
        first = workers_of(child)
        os.kill(first[0], signal.SIGKILL)
        took = []
        for _ in range(20):
            begun = time.monotonic()
            while True:  # whoever was connected to it is cut off, and asks again
                try:
                    with httpx.Client(
                        base_url=str(client.base_url), headers=client.headers, timeout=60
                    ) as anew:
                        assert asked(anew, "churn").status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.01)
            took.append(time.monotonic() - begun)
        assert sorted(took)[10] < 1.0, took  # the median, on a machine that does other things as well
        until(lambda: len(workers_of(child)) == 2 and first[0] not in workers_of(child))  # another is there


KEYS = {"one": ("churn",), "two": ("churn", "lapse"), "all": ()}


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    here = replace(two_problems(tmp_path_factory.mktemp("keys")), open="nobody")
    keys = {
        name: add_key(here, KeyWanted(name, tuple(ROLES), problems=of), "test") for name, of in KEYS.items()
    }
    with running(here) as url:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield here, client, keys


def ask(client, key, method, path, body=None):
    return client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_route_by_every_key_and_problem(closed, name):
    "The role matrix, with keys that have every role and are for some problems."
    here, client, keys = closed
    made = {p: ask(client, keys["all"], "POST", f"/v1/{p}/predictions", {"customer_id": 13080}).json()
            for p in ("churn", "lapse")}  # fmt: skip
    bodies = {"predictions": {"customer_id": 13080}}
    tried = 0
    for route in ROUTES:
        for problem_name in ("churn", "lapse", "quiet", "nothing") if "{problem}" in route.path else ("",):
            decision = made.get(problem_name, made["churn"])["decision_id"]
            path = route.path.replace("{problem}", problem_name).replace("{part}", decision)
            body = (
                bodies.get(route.name, {"decision_id": decision, "outcome": 1})
                if route.method == "POST"
                else None
            )
            status = ask(client, keys[name], route.method, path, body).status_code
            mine = not KEYS[name] or problem_name in KEYS[name]
            if problem_name and not mine:
                assert status == 403, (path, name)
            elif problem_name in made:
                assert status in (200, 400, 404, 422), (
                    path,
                    name,
                    status,
                )  # let in; the part or body may be of another route
                tried += 1
            elif problem_name:
                assert status in {"quiet": (503, 404, 422), "nothing": (404, 422)}[problem_name], (
                    path,
                    name,
                    status,
                )
    assert tried >= 5


def test_a_key_for_one_problem_learns_nothing_of_another(closed):
    here, client, keys = closed
    for path in ("/readyz", "/openapi.json", "/docs"):
        text = ask(client, keys["one"], "GET", path).text
        assert "churn" in text and "v1/lapse" not in text and "Lapse" not in text, path
        assert '"lapse"' not in text and "lapse" in ask(client, keys["two"], "GET", path).text
    assert [ask(client, keys[name], "GET", "/metrics").status_code for name in ("one", "two", "all")] == [
        403,
        403,
        200,
    ]
    refused = ask(client, keys["one"], "GET", "/v1/lapse/model").json()["error"]
    assert refused["rule"] == "the key 'one' is for churn"


def test_the_log_knows_whose_key_asked(closed):
    here, client, keys = closed
    for name in ("one", "two"):
        told = ask(client, keys[name], "POST", "/v1/churn/predictions", {"customer_id": 13080}).json()
        many = {"entities": [{"customer_id": 13080}, {"customer_id": 13100}]}
        several = ask(client, keys[name], "POST", "/v1/churn/predictions", many).json()["predictions"]
        ids = [told["decision_id"], *(one["decision_id"] for one in several)]
        logged = read_decisions(here, "churn").filter(decision_id=told["decision_id"])
        assert logged["asked_by"].to_list() == [name]
        assert set(read_decisions(here, "churn").filter(pl_in(ids))["asked_by"]) == {name}


def pl_in(ids):
    import polars as pl

    return pl.col("decision_id").is_in(ids)


def test_keys_for_some_problems_by_the_command(tmp_path, capsys):
    from mlsys_nb.doors.cli import main

    root = ["--root", str(tmp_path)]
    assert main(["keys", "add", "shop", "--role", "predict", "--problems", "churn, demand", *root]) == 0
    capsys.readouterr()
    assert main(["keys", "list", "--json", *root]) == 0
    assert json.loads(capsys.readouterr().out)[0]["problems"] == ["churn", "demand"]
    assert main(["keys", "add", "other", "--role", "predict", "--problems", "chrun", *root]) != 0
    assert "known:" in capsys.readouterr().err and HOME.exists()
