"What an answer takes of the machine, by problem and version: `mlsys costs` and `/metrics` after a service that was really asked."

import json
import os
from collections import Counter
from pathlib import Path

import pages_world as pages
from caller import client_of
from conftest import until
from serving_world import JUNE
from test_problems import asked, served, two_problems, workers_of

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.doors.cli import main
from mlsys_nb.release.registry import champion, get_version, promote
from mlsys_nb.serving.service import running
from mlsys_nb.serving.slo_history import Pulse
from mlsys_nb.system.control_tables import open_control


def told(here, capsys, monkeypatch):
    "What the command says, by problem and version."
    monkeypatch.setenv("MLSYS_HOME", str(here.home))
    capsys.readouterr()
    assert main(["costs", "--root", str(here.root), "--json"]) == 0
    return {(row["problem"], row["version"]): row for row in json.loads(capsys.readouterr().out)}


def logged(here, name):
    "How many answers the log holds of each version, and how many bytes all of their records are."
    folder = here.decisions / name
    lines = [line for p in folder.glob("segments/*.log") for line in p.read_bytes().splitlines(True)[1:]]
    return Counter(read_decisions(here, name)["version"].to_list()), sum(map(len, lines))


def computed(pids):
    "Seconds of processor that some processes have had."
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(s[11]) + int(s[12]) for s in stats) / os.sysconf("SC_CLK_TCK")


def check(here, found, names):
    "The command says what the log holds, and what the packages weigh."
    for name in names:
        answers, size = logged(here, name)
        mine = {version: row for (problem, version), row in found.items() if problem == name}
        assert {version: row["answers"] for version, row in mine.items()} == answers
        assert abs(sum(row["answers"] * row["log_bytes"] for row in mine.values()) - size) <= sum(
            answers.values()
        )
        for version, row in mine.items():
            path = get_version(open_control(here), here, name, version).path
            assert row["package_bytes"] == sum(f.stat().st_size for f in path.iterdir())


def test_two_problems_and_two_versions_in_two_workers(tmp_path, capsys, monkeypatch):
    here = two_problems(tmp_path)
    with served(here, workers=2) as (client, child):
        for i in range(120):
            assert asked(client, ("churn", "lapse")[i % 2]).status_code == 200
        control, many = open_control(here), {"entities": [{"customer_id": 13080}] * 50}
        epoch = champion(control, "lapse").epoch
        promote(control, "lapse", 2, expected_epoch=epoch, at=JUNE, actor="test", reason="test")
        until(lambda: asked(client, "lapse").json()["version"] == 2)
        for _ in range(4):
            assert client.post("/v1/lapse/predictions", json=many).status_code == 200
        assert asked(client, "churn", 5).status_code == 404, "a refusal is no answer"
        most = computed([child.pid, *workers_of(child)])
    found = told(here, capsys, monkeypatch)
    assert set(found) == {("churn", 1), ("lapse", 1), ("lapse", 2)}
    check(here, found, ("churn", "lapse"))
    took = sum(row["answers"] * row["cpu_ms"] / 1000 for row in found.values())
    assert 0 < took <= most + 1, "of the processor no more is told apart than was used"
    assert main(["costs", "--root", str(here.root)]) == 0
    said = capsys.readouterr().out
    assert "lapse version 2" in said and "shared by all of them" in said


def test_texts_as_ids_and_what_prometheus_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Pulse.keep, "__defaults__", (0.2,))
    here = pages.make(tmp_path)
    with running(here, "pages") as url, client_of(here.root, url) as client:
        for i in range(40):
            assert client.post("/v1/pages/predictions", json={"visitor": f"v-{i}"}).status_code == 200
        until(lambda: 'mlsys_log_bytes_total{problem="pages",version="1"}' in client.get("/metrics").text)
    found = told(here, capsys, monkeypatch)
    check(here, found, ("pages",))
    assert found["pages", 1]["cpu_ms"] > 0.05, "an answer takes more than nothing"
    monkeypatch.setenv("MLSYS_HOME", str(here.home))
    assert main(["costs", "--root", str(tmp_path / "empty")]) == 0
    assert "no answer in 30 days" in capsys.readouterr().out


def test_dear_answers_bear_more_of_the_same_minute(tmp_path, capsys, monkeypatch):
    from mlsys_nb.serving import predictor

    here, real = two_problems(tmp_path), predictor.decided

    def slow(who, *given):
        end = predictor.elapsed() + 0.003 * (who.problem.name == "lapse")
        while predictor.elapsed() < end:
            pass
        return real(who, *given)

    monkeypatch.setenv("PYTHONPATH", str(here.home))
    monkeypatch.syspath_prepend(str(here.home))
    monkeypatch.setattr(predictor, "decided", slow)
    with running(here, "churn", "lapse") as url, client_of(here.root, url) as client:
        for i in range(200):
            assert asked(client, ("churn", "lapse")[i % 2]).status_code == 200
    found = told(here, capsys, monkeypatch)
    assert found["lapse", 1]["cpu_ms"] > 3 * found["churn", 1]["cpu_ms"]
