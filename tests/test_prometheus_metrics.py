"Telemetry: what is counted under which name, and which model the gauge names."

import asyncio

import pytest

from mlsys_nb.serving.prometheus_metrics import Metrics, measured
from mlsys_nb.serving.routes import Routes
from mlsys_nb.serving.service import ROUTES


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/churn/predictions", "predictions"), ("/v1/churn/decisions/h1-2-3", "decisions"), ("/healthz", "healthz"),
        ("/v1/churn/contradictions", "contradictions"), ("/v1/churn/" + "a" * 9000, "other"), ("/healthz/", "other"),
        ("/", "other"), ("", "other"), ("/v2/churn/predictions", "other"), ("/predictions", "other"), ("/v1/events/lines", "events"),
    ],
)  # fmt: skip
def test_a_hostile_path_makes_no_new_series(path, name):
    assert Routes(ROUTES).find(path).name == name


def test_fault_24_the_gauge_names_one_model_the_one_that_serves():
    metrics = Metrics()
    metrics.serving("churn", 1, "a" * 64)
    metrics.serving("returns", 1, "a" * 64)
    metrics.serving("churn", 2, "b" * 64)
    lines = [line for line in metrics.text().decode().splitlines() if line.startswith("mlsys_model_info{")]
    told = 'mlsys_model_info{{digest="{}",problem="{}",version="{}"}} 1.0'
    assert sorted(lines) == sorted([told.format("b" * 12, "churn", 2), told.format("a" * 12, "returns", 1)])


def call(metrics, status, path="/v1/churn/predictions", fails=False):
    async def app(scope, receive, send):
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
        if fails:
            raise RuntimeError("a bug")

    async def send(message):
        sent.append(message)

    sent: list = []
    asyncio.run(measured(app, metrics)({"type": "http", "route": Routes(ROUTES).find(path)}, None, send))
    return sent


def test_every_request_is_counted_once_under_its_status():
    metrics = Metrics()
    for status in (200, 200, 503):
        assert call(metrics, status)[0]["status"] == status
    call(metrics, None)  # the client left: there is no answer
    with pytest.raises(RuntimeError):
        call(metrics, 500, fails=True)
    text = metrics.text().decode()
    for status, n in ((200, 2), (503, 1), (499, 1), (500, 1)):
        assert f'mlsys_requests_total{{route="predictions",status="{status}"}} {n}.0' in text
    assert 'mlsys_request_seconds_count{route="predictions"} 5.0' in text


def test_two_services_in_one_process_do_not_share_figures():
    first, second = Metrics(), Metrics()
    second.about("returns", {})
    first.requests.labels("predictions", "200").inc()
    assert b"mlsys_requests_total{" not in second.text()
    assert b'mlsys_champion_refused{problem="returns"} 0.0' in second.text()
