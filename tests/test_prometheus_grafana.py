"""What watches the service asks only for what the service shows: rules and the page of Grafana against a live /metrics and the guide;
`mlsys slo` counts over restarts and over all workers; budgets burn as the windows say."""

import json
import re
import shutil
import subprocess
import urllib.request
from datetime import timedelta
from pathlib import Path

import promql_parser
import pytest
import yaml
from caller import client_of, head
from prometheus_client.parser import text_string_to_metric_families
from serving_world import make
from test_service import service

from mlsys_nb.doors.cli import main
from mlsys_nb.doors.commands.deploying import deploy_files
from mlsys_nb.doors.deploy.prometheus_grafana import alarms, failing
from mlsys_nb.serving.service import running
from mlsys_nb.serving.slo import BOUNDS, Objectives
from mlsys_nb.serving.slo_history import minutes_since
from mlsys_nb.system.clock import SystemClock
from mlsys_nb.system.settings import load_settings

GUIDE = Path(__file__).resolve().parents[1] / "nbs/guide"
OWN = {"up": {"job"}}  # What Prometheus itself makes


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    "Metrics of a live service by name, with the labels that each has; empty where it has no series yet."
    root = tmp_path_factory.mktemp("watched")
    here = make(root, families=("linear",))
    with running(here, "churn") as url, client_of(root, url) as client:
        assert client.post("/v1/churn/predictions", json={"customer_id": 13080}).status_code == 200
        assert client.post("/v1/churn/predictions", json={"customer_id": "x"}).status_code == 422
        asked = urllib.request.Request(f"{url}/metrics", headers=head(root))
        text = urllib.request.urlopen(asked, timeout=60).read().decode()
    found, values = {}, {}
    for family in text_string_to_metric_families(text):
        kinds = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        found |= {family.name + ending: set() for ending in kinds}
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
            values.setdefault((sample.name, "le"), set()).add(sample.labels.get("le"))
            values.setdefault((sample.name, "route"), set()).add(sample.labels.get("route"))
    return found, values


def selectors(node):
    "Every series that an expression asks for."
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "selector"):
        inner = getattr(node, name, None)
        if inner is not None and not isinstance(inner, str):
            yield from selectors(inner)
    for inner in getattr(node, "args", None) or ():
        yield from selectors(inner)


def wrong_in(expr, shown):
    "What an expression asks for that nobody shows."
    found, values = shown
    known = found | OWN
    wrong = []
    asked = list(selectors(promql_parser.parse(expr)))
    assert asked, f"nothing is asked for in {expr}"
    for one in asked:
        labels = {m.name: m for m in one.matchers.matchers}
        if one.name not in known:
            wrong.append(one.name)
        elif known[one.name] and not set(labels) <= known[one.name]:
            wrong.append(f"{one.name}{sorted(set(labels) - known[one.name])}")
        elif "le" in labels and labels["le"].value not in values[one.name, "le"]:
            wrong.append(f"{one.name} le={labels['le'].value}")
    for label in re.findall(r"by \(([^)]*)\)", expr):
        names = {n.strip() for n in label.split(",")} - {"le"}
        wrong += [
            f"by {n}"
            for n in names
            if not any(n in known[s.name] or not known[s.name] for s in asked if s.name in known)
        ]
    return wrong


def expressions(settings):
    files = deploy_files(settings, "prometheus", Path("/tmp"))
    rules = [r for g in yaml.safe_load(files["mlsys.rules.yml"])["groups"] for r in g["rules"]]
    panels = [t["expr"] for p in json.loads(files["grafana-mlsys.json"])["panels"] for t in p["targets"]]
    return [r["expr"] for r in rules] + panels


def test_every_expression_asks_for_what_the_service_shows(shown, tmp_path):
    asked = expressions(load_settings(home=tmp_path))
    assert len(asked) > 15
    assert not [(expr, wrong) for expr in asked if (wrong := wrong_in(expr, shown))]


@pytest.mark.parametrize("bound", BOUNDS)
def test_every_bound_that_may_be_promised_is_counted(shown, bound):
    assert not wrong_in(failing(Objectives(seconds=bound), "latency", "5m"), shown)


@pytest.mark.parametrize(
    "planted",
    [
        'sum(rate(mlsys_request_total{status=~"5.."}[5m]))', 'sum(rate(mlsys_requests_total{code=~"5.."}[5m]))',
        'rate(mlsys_request_seconds_bucket{le="0.2"}[5m])', "sum by (model) (rate(mlsys_predictions_total[5m]))",
        "max(mlsys_requests)", "histogram_quantile(0.9, sum by (le) (rate(mlsys_request_second_bucket[5m])))",
    ],
)  # fmt: skip
def test_a_name_that_is_not_shown_would_be_found(shown, planted):
    assert wrong_in(planted, shown)


def test_what_cannot_be_parsed_is_no_expression():
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(mlsys_requests_total[5m])")


def test_every_alert_has_a_page_that_says_what_to_do(tmp_path):
    pages = {p.stem.partition("_")[2]: p for p in (GUIDE / "runbook").glob("*.md")}
    told = {rule.page for rule in alarms(Objectives())}
    assert told == set(pages), "a page for each alert, and an alert for each page"
    for rule in alarms(Objectives()):
        text = pages[rule.page].read_text()
        assert f"`{rule.alert}`" in text.splitlines()[1], f"{rule.page} names its alert first"
        assert all(f"{part}" in text for part in ("**What it means.**", "## Look", "## Do", "**Escalate**"))
    files = deploy_files(
        load_settings(home=tmp_path), "prometheus", tmp_path, "https://docs.example.org/mlsys/"
    )
    for rule in yaml.safe_load(files["mlsys.rules.yml"])["groups"][0]["rules"]:
        where = rule["annotations"]["runbook_url"]
        assert re.fullmatch(r"https://docs\.example\.org/mlsys/runbook/\w+\.html", where)
        assert where.rsplit("/", 1)[1].removesuffix(".html") in pages


def test_prometheus_takes_the_files(tmp_path, monkeypatch):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path))
    assert main(["deploy", "prometheus", str(tmp_path / "out")]) == 0
    for words in (
        ["check", "rules", "mlsys.rules.yml"],
        ["check", "config", "--syntax-only", "prometheus.yml"],
    ):
        said = subprocess.run(["promtool", *words], cwd=tmp_path / "out", capture_output=True, text=True)
        assert said.returncode == 0, said.stdout + said.stderr


def test_what_was_asked_is_counted_over_a_restart_and_probes_are_not(tmp_path, capsys):
    here = make(tmp_path, families=("linear",))
    for _ in range(2):
        with service(tmp_path) as (client, process, _):
            for body in ({"customer_id": 13080}, {"customer_id": "x"}):
                client.post("/v1/churn/predictions", json=body)
            client.get("/readyz")
            process.terminate()
            process.wait(30)
    counted = minutes_since(here, SystemClock().now() - timedelta(hours=1))
    assert (sum(m.asked for m in counted), sum(m.failed for m in counted)) == (4, 0)
    assert main(["slo", "--root", str(tmp_path), "--json"]) == 0
    up, quick = json.loads(capsys.readouterr().out)
    assert (up["asked"], up["bad"], up["state"], quick["asked"]) == (4, 0, "kept", 4)
