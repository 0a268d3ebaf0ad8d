"""Who may ask: every route by every role, by nobody, and by those whose key is another's, revoked or over; from a web page, under a
foreign name, by guessed ids. What a stranger gets is compared by its status, its bytes and the digest of every file of the root."""

import asyncio
import hashlib
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from unittest.mock import patch

import httpx
import pytest
from caller import head
from conftest import until
from serving_world import make

from mlsys_nb.cases.churn import problem
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.outcomes import read_outcomes
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.commands.keys import curl_line, example_request
from mlsys_nb.serving import api_keys as keyring
from mlsys_nb.serving.access_control import Access
from mlsys_nb.serving.api_keys import ROLES, KeyWanted, add_key, local_key, read_keys, revoke_key, rotate_key
from mlsys_nb.serving.openapi import openapi_document
from mlsys_nb.serving.population_scoring import score_batch
from mlsys_nb.serving.routes import Routes
from mlsys_nb.serving.service import ROUTES, running
from mlsys_nb.system.clock import SystemClock
from mlsys_nb.system.settings import load_settings

# Said once more by hand: a route that is added, or given to another role, is said here and asked in `World.requests`
MATRIX = {
    "predict": "POST /v1/{problem}/predictions; POST /v1/{problem}/explanations; POST /v1/{problem}/batches; "
    "GET /v1/{problem}/batches/{part}; GET /v1/{problem}/batches/{part}/answers/{part}; POST /v1/{problem}/invocations; "
    "POST /invocations; POST /v2/models/{problem}/infer; POST /v2/models/{problem}/versions/{part}/infer",
    "outcome": "POST /v1/{problem}/outcomes; POST /v1/events/{part}",
    "view": "GET /v1/{problem}/decisions/{part}; GET /v1/{problem}/model; GET /v1/{problem}/contradictions; GET /metrics",
    "any": "GET /v2; GET /v2/models/{problem}; GET /v2/models/{problem}/ready; GET /v2/models/{problem}/versions/{part}; "
    "GET /v2/models/{problem}/versions/{part}/ready; GET /openapi.json; GET /docs",
    "": "GET /v2/health/live; GET /v2/health/ready; GET /ping; GET /healthz; GET /readyz",
}
NEEDS = {route.name: route.role for route in ROUTES} | {"other": "any"}
JSON = {"content-type": "application/json"}
EVENT = {"invoice": "1", "stock_code": "a", "quantity": 1, "price": "1", "invoice_ts": "2010-05-01T08:00", "customer_id": 13080, "country": "UK"}  # fmt: skip


TENSORS = {"inputs": [{"name": "customer_id", "shape": [1], "datatype": "INT64", "data": [13080]}]}


class World:
    "A closed service, one key for each role and for each way of being no key."

    def __init__(self, root, url):
        self.here, self.url = replace(load_settings(root=root), open="nobody"), url
        self.keys = {role: add_key(self.here, KeyWanted(role, (role,)), "test") for role in ROLES}
        self.keys["gone"] = add_key(self.here, KeyWanted("gone", tuple(ROLES)), "test")
        revoke_key(self.here, "gone", "test")
        self.keys["late"] = add_key(self.here, KeyWanted("late", tuple(ROLES)), "test")
        self.keys["late after"] = rotate_key(self.here, "late", timedelta(0), "test")
        self.keys["wrong"] = self.keys["view"][:-2] + ("AA" if self.keys["view"][-2:] != "AA" else "BB")
        self.keys["other id"] = self.keys["view"][:6] + "00000000" + self.keys["view"][14:]
        self.asked = self.ask(
            "POST", "/v1/churn/predictions", {"customer_id": 13080}, local_key(self.here)
        ).json()

    def ask(self, method, path, body=None, key=None, **heads):
        sent = {
            **({"authorization": f"Bearer {key}"} if key else {}),
            **(JSON if body is not None else {}),
            **heads,
        }
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        return httpx.request(method, self.url + path, content=content, headers=sent, timeout=60)

    def requests(self):
        "One request for each route: its name, method, path and body."
        made = self.asked["decision_id"]
        return [
            ("predictions", "POST", "/v1/churn/predictions", {"customer_id": 13080}),
            ("predictions", "POST", "/v1/churn/predictions", {"entities": [{"customer_id": 13080}]}),
            ("outcomes", "POST", "/v1/churn/outcomes", {"decision_id": made, "outcome": 1}),
            ("events", "POST", "/v1/events/lines", EVENT),
            ("decisions", "GET", f"/v1/churn/decisions/{made}", None),
            ("model", "GET", "/v1/churn/model", None),
            ("contradictions", "GET", "/v1/churn/contradictions", None),
            ("metrics", "GET", "/metrics", None),
            ("openapi.json", "GET", "/openapi.json", None),
            ("docs", "GET", "/docs", None),
            ("other", "GET", "/v1/nothing", None),
            ("other", "DELETE", "/", None),
            ("model", "GET", "/v1/returns/model", None),
            ("healthz", "GET", "/healthz", None),
            ("readyz", "GET", "/readyz", None),
            ("explanations", "POST", "/v1/churn/explanations", {"customer_id": 13080}),
            ("v2", "GET", "/v2", None),
            ("v2 live", "GET", "/v2/health/live", None),
            ("v2 ready", "GET", "/v2/health/ready", None),
            ("v2 model", "GET", "/v2/models/churn", None),
            ("v2 model ready", "GET", "/v2/models/churn/ready", None),
            ("v2 infer", "POST", "/v2/models/churn/infer", TENSORS),
            ("v2 model", "GET", "/v2/models/churn/versions/1", None),
            ("v2 model ready", "GET", "/v2/models/churn/versions/1/ready", None),
            ("v2 infer", "POST", "/v2/models/churn/versions/1/infer", TENSORS),
            ("invocations", "POST", "/v1/churn/invocations", {"instances": [{"customer_id": 13080}]}),
            ("invocations", "POST", "/invocations", {"instances": [{"customer_id": 13080}]}),
            ("ping", "GET", "/ping", None),
            (
                "batches",
                "POST",
                "/v1/churn/batches",
                {"entities": []},
            ),  # test_batches.py has those that are taken
            ("batch", "GET", f"/v1/churn/batches/q{'0' * 32}", None),
            ("answers", "GET", f"/v1/churn/batches/q{'0' * 32}/answers/1", None),
        ]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("closed")
    here = replace(make(root), open="nobody")
    with running(here, "churn") as url:
        yield World(root, url)


def digest(root):
    "Of every file of a root, but the locks (LMDB's list of readers is one) and what the service counts of itself each minute."
    found, own = hashlib.sha256(), root / "data" / "service"
    files = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock" and p.name != "lock.mdb")
    files = (p for p in files if own not in p.parents)
    for path in sorted(files):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


# --- roles


def test_every_route_is_in_the_matrix(world):
    told = {(*route.split(), role) for role, routes in MATRIX.items() for route in routes.split("; ")}
    assert {(route.method, route.path, route.role) for route in ROUTES} == told
    table = Routes(ROUTES)
    asked = [(name, method, table.find(path)) for name, method, path, _ in world.requests()]
    assert all(found.name == name for name, _, found in asked)
    reached = {route.path + route.method for _, method, found in asked if (route := found.route(method))}
    assert reached == {route.path + route.method for route in ROUTES}, "every route is asked"


def test_every_route_by_every_role(world):
    for name, method, path, body in world.requests():
        for role in ROLES:
            status = world.ask(method, path, body, world.keys[role]).status_code
            if NEEDS[name] not in ("", "any", role):
                assert status == 403, (path, role)
            else:
                assert status not in (401, 403, 415, 421), (path, role, status)


@pytest.mark.parametrize("key", [None, "gone", "late", "wrong", "other id", "empty", "long", "hash", "basic"])
def test_who_has_no_good_key_reads_nothing_and_writes_nothing(world, key):
    [kept] = [k for k in read_keys(world.here.keys_file) if k.name == "view"]
    others = {"empty": "x", "long": "mlsys_" + "a" * 5000, "hash": f"mlsys_{kept.id}_{kept.digest}"}
    given = world.keys.get(key) or others.get(key)
    heads = {"authorization": "Basic " + "eDp5"} if key == "basic" else {}
    before, public = digest(world.here.root), {"healthz": {"alive": True}, "readyz": {"ready": True}}
    public |= {"v2 live": {"live": True}, "v2 ready": {"ready": True}, "ping": {"alive": True}}
    for name, method, path, body in world.requests():
        answer = world.ask(method, path, body, given, **heads)
        if name in public:
            assert answer.json() == public[name]
            continue
        assert answer.status_code == 401, (path, answer.text)
        assert answer.headers["www-authenticate"].startswith(
            "Basic" if name in ("docs", "openapi.json") else "Bearer"
        )
        assert answer.headers["content-type"] == "application/problem+json" and answer.json()["status"] == 401
        for secret in (world.asked["decision_id"], "13080", "churn", "version", *([given] if given else [])):
            assert secret not in answer.text.replace(path, ""), (path, secret)
    assert digest(world.here.root) == before


def test_a_stranger_cannot_make_the_service_read_a_body(world):
    host, port = world.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as line:
        line.sendall(
            b"POST /v1/churn/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
        )
        assert line.recv(4000).startswith(b"HTTP/1.1 401")


# --- web pages


@pytest.mark.parametrize("mode", ["nobody", "loopback"])
def test_a_page_of_another_site_reads_nothing_and_writes_nothing(world, tmp_path, mode):
    "Simple requests, forms, foreign origins, a rebound name: with the loopback open and closed."
    here = world.here if mode == "nobody" else replace(make(tmp_path, families=("linear",)), open=mode)
    with ExitStack() as stack:
        url = world.url if mode == "nobody" else stack.enter_context(running(here, "churn"))
        own = url.removeprefix("http://")
        bodies = ({"customer_id": 13080}, b"customer_id=13080", b'{"customer_id": 13080}')
        pages = [
            {"origin": "http://evil.example", **JSON},
            {"origin": "null", **JSON},
            {"origin": "http://localhost:1", **JSON},
            {"origin": f"http://{own}.evil.example", **JSON},
            {"sec-fetch-site": "cross-site", "content-type": "text/plain"},
            {"content-type": "text/plain"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-type": "multipart/form-data; boundary=x"},
            {"content-type": "text/plain; application/json"},
            {},
            {"host": "evil.example", **JSON},
            {"host": f"evil.example:{own.split(':')[1]}", "origin": "http://evil.example", **JSON},
            {"host": "localhost.evil.example", **JSON},
        ]
        before = digest(here.root)
        for heads in pages:
            for body in bodies:
                for path in ("/v1/churn/predictions", "/v1/churn/outcomes", "/v1/events/lines"):
                    content = body if isinstance(body, bytes) else json.dumps(body).encode()
                    answer = httpx.post(url + path, content=content, headers=heads)
                    assert answer.status_code in (401, 403, 415, 421), (heads, answer.text)
        with httpx.Client(base_url=url) as page:
            for name, method, path, body in world.requests():
                if not NEEDS[name]:
                    continue
                content = None if body is None else json.dumps(body).encode()
                for heads in (
                    pages
                    if body is not None
                    else ({"host": "evil.example"}, {"origin": "http://evil.example"})
                ):
                    answer = page.request(method, path, content=content, headers=heads)
                    assert answer.status_code in (401, 403, 415, 421), (path, heads, answer.text)
                answer = page.request("OPTIONS", path, headers={"origin": "http://evil.example"})
                assert answer.status_code in (401, 403), (path, answer.text)
                assert not any(h.startswith("access-control") for h in answer.headers)
        assert digest(here.root) == before
        if mode == "loopback":
            good = httpx.post(
                url + "/v1/churn/predictions",
                json={"customer_id": 13080},
                headers={"origin": f"http://{own}"},
            )
            assert good.status_code == 200
            told = {"decision_id": good.json()["decision_id"], "outcome": 1}
            assert httpx.post(url + "/v1/churn/outcomes", json=told).status_code == 200
            assert [o.actor for o in read_outcomes(here, "churn")] == ["loopback"]


def test_no_route_becomes_a_websocket(world):
    host, port = world.url.removeprefix("http://").split(":")
    heads = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: aGk=\r\nSec-WebSocket-Version: 13"
    for _, _, path, _ in world.requests():
        for key in ("", f"\r\nAuthorization: Bearer {world.keys['view']}"):
            with socket.create_connection((host, int(port)), 60) as line:
                line.sendall(f"GET {path} HTTP/1.1\r\n{heads}{key}\r\n\r\n".encode())
                said = line.recv(4000)
                assert said.startswith(b"HTTP/1.1 ") and not said.startswith(b"HTTP/1.1 101"), (path, said)


def test_a_page_is_refused_even_with_a_key_and_json(world):
    for heads, status in (
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 421),
        ({"content-type": "text/plain"}, 415),
    ):
        answer = world.ask(
            "POST", "/v1/churn/predictions", {"customer_id": 13080}, world.keys["predict"], **heads
        )
        assert answer.status_code == status


# --- what a key does


def test_the_actor_is_the_key_and_never_the_body(world):
    made = world.ask("POST", "/v1/churn/predictions", {"customer_id": 13080}, world.keys["predict"]).json()[
        "decision_id"
    ]
    said = {"decision_id": made, "outcome": 1}
    answer = world.ask("POST", "/v1/churn/outcomes", {**said, "actor": "boss"}, world.keys["outcome"])
    assert answer.status_code == 422 and "actor" in answer.json()["error"]["got"]
    assert (
        world.ask("POST", "/v1/churn/outcomes", {**said, "reviewer": True}, world.keys["outcome"]).status_code
        == 403
    )
    assert world.ask("POST", "/v1/churn/outcomes", said, world.keys["outcome"]).status_code == 200
    both = add_key(world.here, KeyWanted("judge", ("outcome", "operate")), "test")
    settled = world.ask("POST", "/v1/churn/outcomes", {**said, "outcome": 0, "reviewer": True}, both)
    assert settled.json()["status"] == "corrected"
    mine = [(o.actor, o.reviewer) for o in read_outcomes(world.here, "churn") if o.decision_id == made]
    assert mine == [("outcome", False), ("judge", True)]


def test_revoked_means_now_and_rotated_leaves_no_gap(world):
    first = add_key(world.here, KeyWanted("quick", ("view",)), "test")
    asking = lambda key: world.ask("GET", "/v1/churn/model", key=key).status_code
    seen, ends = [], threading.Event()

    def always():
        while not ends.is_set():
            seen.append((time.monotonic(), asking(first)))

    assert asking(first) == 200
    second = rotate_key(world.here, "quick", timedelta(hours=1), "test")
    assert asking(first) == asking(second) == 200
    thread = threading.Thread(target=always)
    thread.start()
    while not seen:  # a busy machine begins later
        time.sleep(0.01)
    revoke_key(world.here, "quick", "test")
    after = time.monotonic()
    time.sleep(0.2)
    ends.set()
    thread.join()
    assert {status for at, status in seen if at > after} == {401}, (
        "revoked is revoked when the command returns"
    )
    assert [status for _, status in seen][0] == 200 and asking(second) == 401


def test_an_overlap_ends(world):
    old = add_key(world.here, KeyWanted("brief", ("view",)), "test")
    rotate_key(world.here, "brief", timedelta(seconds=3), "test")
    assert world.ask("GET", "/v1/churn/model", key=old).status_code == 200
    time.sleep(3.1)
    answer = world.ask("GET", "/v1/churn/model", key=old)
    assert answer.status_code == 401 and "ended at" in answer.json()["error"]["got"]


def test_a_rate_and_a_quota_a_key_over_all_processes(world):
    key = add_key(world.here, KeyWanted("busy", ("view",), a_second=1), "test")
    statuses = [world.ask("GET", "/v1/churn/model", key=key) for _ in range(25)]
    refused = [a for a in statuses if a.status_code == 429]
    assert refused and {a.status_code for a in statuses} == {200, 429}
    assert all(a.headers["retry-after"] == "1" for a in refused)
    few = add_key(world.here, KeyWanted("few", ("view",), a_day=3), "test")
    assert [world.ask("GET", "/v1/churn/model", key=few).status_code for _ in range(4)] == [
        200,
        200,
        200,
        429,
    ]
    told = world.ask("GET", "/v1/churn/model", key=few)
    assert (
        0 < int(told.headers["retry-after"]) <= 86_400 and "3 times on a day" in told.json()["error"]["rule"]
    )
    with running(world.here, "churn") as other:  # another process, or the same after a restart
        heads = {"authorization": f"Bearer {few}"}
        assert httpx.get(f"{other}/v1/churn/model", headers=heads).status_code == 429
    assert world.ask("GET", "/v1/churn/model", key=world.keys["view"]).status_code == 200


def test_a_file_of_keys_that_cannot_be_read_opens_nothing(tmp_path):
    here = replace(make(tmp_path, families=("linear",)), open="nobody")
    with running(here, "churn") as url:
        heads = head(tmp_path)
        assert httpx.get(f"{url}/v1/churn/model", headers=heads).status_code == 200
        good = here.keys_file.read_bytes()
        here.keys_file.write_bytes(good[:-30])
        said = lambda: httpx.get(f"{url}/v1/churn/model", headers=heads)
        until(lambda: said().status_code == 503)
        assert str(tmp_path) not in said().text
        assert httpx.get(f"{url}/healthz", headers=heads).status_code == 200
        here.keys_file.unlink()
        until(lambda: said().status_code == 401)
        here.keys_file.write_bytes(good)
        until(lambda: said().status_code == 200)


def test_the_time_of_a_comparison_says_nothing_about_a_key(world):
    "Each text is compared once, whole digest with whole digest, by the one function that takes as long for all."
    ring, asked = keyring.Keyring(world.here.keys_file), []
    real = keyring.hmac.compare_digest

    def watched(one, other):
        asked.append((len(one), len(other)))
        return real(one, other)

    with patch.object(keyring.hmac, "compare_digest", watched):
        for text in (world.keys["view"], world.keys["wrong"], world.keys["other id"], "x", ""):
            ring.find(text.encode())
    assert asked == [(64, 64)] * 5


def test_the_check_costs_a_few_microseconds(world):
    access = Access(world.here, Routes(ROUTES))
    heads = [(b"host", b"127.0.0.1:8100"), (b"accept", b"*/*"), (b"content-type", b"application/json"),
             (b"authorization", f"Bearer {world.keys['predict']}".encode())]  # fmt: skip
    scope = {"method": "POST", "path": "/v1/churn/predictions", "headers": heads, "client": ("127.0.0.1", 1)}
    best = []
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(500):
            access.count(access.admitted(scope))
        best.append((time.perf_counter() - begun) / 500)
    assert min(best) < 25e-6, f"{min(best) * 1e6:.1f} us"  # 3 us on a quiet machine


# --- ids, pages, files, the command


def test_ids_cannot_be_guessed(world):
    from serving_world import JUNE, lake

    from mlsys_nb.release.fallback import last_sound
    from mlsys_nb.system.control_tables import open_control

    model = last_sound(open_control(world.here), world.here, problem).model
    batch = score_batch(world.here, problem, model, JUNE, lake()).frame["decision_id"]
    assert batch.str.extract(r"-([0-9a-f]{16})$").n_unique() == len(batch)
    one, view = batch[0], world.keys["view"]
    assert world.ask("GET", f"/v1/churn/decisions/{one}", key=view).status_code == 200
    made = world.asked["decision_id"]
    for guess in (
        one.rpartition("-")[0],
        one[:-1] + "x",
        one[:-16] + "0" * 16,
        made[:-16] + "0" * 16,
        made.rpartition("-")[0],
    ):
        assert world.ask("GET", f"/v1/churn/decisions/{guess}", key=view).status_code == 404
        told = {"decision_id": guess, "outcome": 1}
        assert world.ask("POST", "/v1/churn/outcomes", told, world.keys["outcome"]).status_code == 404


def test_lookups_have_their_places(world):
    from mlsys_nb.serving.endpoints import decision
    from mlsys_nb.serving.error_responses import Refusal
    from mlsys_nb.serving.service_readiness import open_service
    from mlsys_nb.serving.shared_resources import Lookups

    service = open_service(world.here, problem)
    service.shared.lookups = Lookups(most=3)
    guess = world.asked["decision_id"][:-1] + "z"

    async def many():
        return await asyncio.gather(*(decision(service, guess) for _ in range(8)), return_exceptions=True)

    try:
        found = asyncio.run(many())
        assert sorted(e.status for e in found if isinstance(e, Refusal)) == [404] * 3 + [503] * 5
        assert {e.retry_after for e in found if e.status == 503} == {1}
        assert asyncio.run(many())[0].status == 404, "the places are free again"
    finally:
        service.close()


def test_the_description_says_the_role_and_what_is_refused(world):
    described = openapi_document([problem], NEEDS)
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    table = Routes(ROUTES)
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            need = table.find(re.sub(r"\{\w+\}", "x", path)).route(method.upper()).role
            assert operation["security"] == ([{"key": [need]}] if need else [])
            assert ({"401", "403", "421", "429"} <= set(operation["responses"])) == bool(need)
    posts = [m["post"] for m in described["paths"].values() if "post" in m]
    assert all("415" in operation["responses"] for operation in posts)
    late = posts[0]["responses"]["408"]["content"]["application/problem+json"]["example"]["error"]
    assert late["rule"] == "a body arrives within 5 s", "the body has a deadline of its own"
    for path in ("/docs", "/openapi.json"):  # as a browser asks, after its dialogue
        answer = httpx.get(world.url + path, auth=("anybody", world.keys["view"]))
        assert answer.status_code == 200
        assert (
            httpx.get(world.url + "/v1/churn/model", auth=("anybody", world.keys["view"])).status_code == 401
        )
    assert world.ask("GET", "/readyz", key=world.keys["view"]).json()["problems"]["churn"]["version"] == 1
    assert world.ask("GET", "/readyz", key=world.keys["predict"]).json() == {"ready": True}


def test_what_is_stored_of_keys_opens_nothing_and_only_its_owner_reads_it(world):
    for path in (world.here.keys_file, world.here.key_file):
        assert path.stat().st_mode & 0o777 == 0o600
    texts = [text for name, text in world.keys.items() if name != "wrong"]
    local = local_key(world.here)
    for path in (p for p in world.here.root.rglob("*") if p.is_file()):
        content = path.read_bytes()
        assert not [t for t in texts if t[15:].encode() in content], path
        assert local.encode() not in content or path == world.here.key_file


def test_a_printed_line_of_curl_runs_as_printed(world, monkeypatch):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port = world.url.rpartition(":")[2]
    monkeypatch.chdir(world.here.root)
    lines = [
        curl_line(world.here, "/v1/churn/predictions", {"customer_id": 13080}),
        example_request(world.here, "churn"),
    ]
    for line in lines:
        assert "$(cat data/key)" in line and local_key(world.here) not in line
        done = subprocess.run(
            ["sh", "-c", line.replace(":8100/", f":{port}/")], capture_output=True, text=True, timeout=60
        )
        assert json.loads(done.stdout)["decision_id"], done


def test_the_command_from_the_first_key_to_the_last(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLSYS_OPEN", raising=False)
    assert main(["init", str(tmp_path / "shop")]) == 0
    assert "data/key" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path / "shop")
    here = load_settings()
    assert here.open == "nobody", "closed by default"
    assert [k.name for k in read_keys(here.keys_file)] == ["local"]

    def said(*words, code=0):
        assert main(["keys", *words]) == code
        told = capsys.readouterr()
        return told.out if code == 0 else told.err

    key = said("add", "web", "--role", "predict", "--role", "outcome", "--per-second", "9").split()[0]
    assert re.fullmatch(r"mlsys_[0-9a-f]{8}_[\w-]{43}", key)
    assert "rotate it" in said("add", "web", "--role", "view", code=2)
    assert "some of the roles" in said("add", "app", "--role", "root", code=2)
    assert "from 0 to" in said("add", "app", "--role", "view", "--per-second", "-1", code=2)
    assert json.loads(said("rotate", "web", "--overlap", "2h", "--json"))["key"] != key
    assert "good until" in said("list", "web")
    assert said("revoke", "web").startswith("web opens nothing")
    rows = json.loads(said("--json"))
    assert [(r["name"], r["state"].split()[0]) for r in rows] == [
        ("local", "good"),
        ("web", "ended"),
        ("web", "ended"),
    ]
    before = local_key(here)
    said("rotate", "local", "--overlap", "0m")
    assert local_key(here) != before
    assert main(["audit", "--of", "key/web"]) == 0
    told = capsys.readouterr().out
    assert "revoke key" in told and key[15:] not in told
    assert all(key.made_at <= SystemClock().now() for key in read_keys(here.keys_file))


def test_decisions_of_strangers_are_none(world):
    "After all that was tried above, the log holds only what keys asked for."
    made = read_decisions(world.here, "churn")
    assert set(made["source"]) <= {"http", "batch"} and made.filter(source="http").height < 200
