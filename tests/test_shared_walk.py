"""Several machines' way of living, walked once: the serving store in a real Redis, the control tables in a real PostgreSQL, events over HTTP
into the inbox, a kill in the middle, an ingest, and the same features in the store, in training and in what was served."""

import random
import signal

import pytest
from conftest import until
from pages_world import make, problem
from test_engines import redis_port  # noqa: F401
from test_event_endpoint import same_everywhere, service, start, view, wait_until_up

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.step_context import Context
from mlsys_nb.loop.training_serving_skew import served_again
from mlsys_nb.release.registry import champion
from mlsys_nb.system.clock import SystemClock
from mlsys_nb.system.control_tables import open_control


@pytest.fixture
def here(tmp_path, redis_port, postgres_url):  # noqa: F811
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE walked")
    control = postgres_url.replace("postgresql://", "postgresql+psycopg://").replace("/postgres", "/walked")
    return make(tmp_path, online_uri=f"redis://127.0.0.1:{redis_port}/3", control_uri=control)


def test_an_inbox_on_redis_with_control_tables_on_postgresql(here):
    draw, sent = random.Random(5), list(range(60))
    assert not (here.data / "online").exists() and not (here.data / "control.db").exists()
    assert champion(open_control(here), "pages").version == 1
    process, url = start(here)
    try:
        wait_until_up(process, url)
        import httpx

        with httpx.Client(base_url=url, timeout=60) as web:
            for i in sent[:30]:
                assert (
                    web.post("/v1/events/views", json=view(i, draw, visitor=f"v-{i % 7}")).status_code == 202
                )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with service(here) as web:
        for i in sent[20:]:  # ten of them once more: their sender does not know what became of them
            told = web.post("/v1/events/views", json=view(i, draw, visitor=f"v-{i % 7}", view=f"e{i}"))
            assert told.status_code == 202
        new = view(99, draw, visitor="new", at=SystemClock().now().isoformat())
        assert web.post("/v1/events/views", json=new).status_code == 202

        def seen():
            answer = web.post("/v1/pages/predictions", json={"visitor": "new", "features": True})
            return answer.status_code == 200 and answer.json()["features"]["views"] == 1

        until(seen)
        asked = [web.post("/v1/pages/predictions", json={"visitor": f"v-{i}"}) for i in range(7)]
        assert all(a.status_code == 200 for a in asked)
    now = Context(here, problem, SystemClock().now())
    ingest_due(now)
    same_everywhere(here, {f"e{i}" for i in (*sent, 99)})
    assert read_decisions(here, "pages").height >= 8 and served_again(now).share == 1
    with open_online(here.online_url) as store:
        assert type(store.engine).__name__ == "RedisEngine"
