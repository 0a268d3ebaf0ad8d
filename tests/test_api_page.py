"""The page of the interface, in the hands of a stranger: its lines run as printed, its button asks, and nothing on it does more than show."""

import html
import os
import re
import shutil
import subprocess
from dataclasses import replace

import polars as pl
import pytest
import serving_world as world
from access import barriers, engine
from caller import client_of
from conftest import SCREENS, picture

from mlsys_nb.features.events import Events
from mlsys_nb.features.feature_store import somebody
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.serving.api_keys import KeyWanted, add_key, local_key
from mlsys_nb.serving.api_page import api_page
from mlsys_nb.serving.service import running

HOSTILE = "</textarea></pre>\"'><img src=x onerror='window.hit=1'><script>window.hit=1</script>"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return replace(world.make(tmp_path_factory.mktemp("page"), ("linear",)), open="nobody")


@pytest.fixture(scope="module")
def url(here):
    with running(here, "churn") as address:
        yield address


@pytest.fixture(scope="module")
def page_text(here, url):
    with client_of(here.root, url) as client:
        return client.get("/docs").raise_for_status().text


def lines_of(text: str) -> dict[str, str]:
    "What is printed for a shell, by the request that it is about."
    found = re.findall(r'data-path="([^"]*)".*?<pre class="curl"[^>]*>(.*?)</pre>', text, re.S)
    return {html.unescape(path): html.unescape(line) for path, line in found}


def test_every_request_of_the_document_stands_on_the_page(here, url, page_text):
    with client_of(here.root, url) as client:
        described = client.get("/openapi.json").json()
    named = {path.replace("{name}", "lines") for path in described["paths"]}
    assert set(lines_of(page_text)) == named and len(named) >= 16
    assert "{name}" not in page_text and url in page_text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_its_lines_run_as_they_are_printed(here, url, page_text, tmp_path):
    known = {int(c) for c in world.lines()["customer_id"].unique()}
    about = set(map(int, re.findall(r'"customer_id": (\d+)', lines_of(page_text)["/v1/churn/predictions"])))
    assert about and about <= known, "the entity is one that the store knows"
    wrong = {}
    for path, line in lines_of(page_text).items():
        told = f"{line} -o /dev/null -w '%{{http_code}}'"
        done = subprocess.run(["bash", "-c", told], capture_output=True, text=True, timeout=60, cwd=tmp_path,
                              env={**os.environ, "MLSYS_KEY": local_key(here)})  # fmt: skip
        if not done.stdout.endswith(("200", "202")):
            wrong[path] = (line, done.stdout, done.stderr)
    assert not wrong


def test_a_key_that_asks_nothing_is_shown_nobody(here, url):
    wanted = {"outcome": KeyWanted("says", ("outcome",)), "predict": KeyWanted("asks", ("predict",))}
    wanted["bound"] = KeyWanted("bound", ("predict",), tenants=("7",))
    told = {role: add_key(here, key, "test") for role, key in wanted.items()}
    seen = {}
    with client_of(here.root, url) as client:
        for role, key in told.items():
            text = client.get("/docs", headers={"authorization": f"Bearer {key}"}).raise_for_status().text
            seen[role] = lines_of(text)["/v1/churn/predictions"]
    for role in ("outcome", "bound"):
        assert '"customer_id": 13085' in seen[role], "the sample of the description"
    assert '"customer_id": 13085' not in seen["predict"]


def test_an_entity_that_is_text_is_found_as_it_was_written(tmp_path):
    events = Events("orders", {"shop": "text", "customer": "int"}, "at", {})
    frame = pl.DataFrame({"event_id": [1], "shop": [HOSTILE], "customer": [7], "at": [world.JUNE], "known_at": [world.JUNE]})  # fmt: skip
    with open_online(tmp_path) as store:
        assert somebody(store, ["orders"], ["shop"]) is None
        store.write(events, frame)
        assert somebody(store, ["orders"], ["shop", "customer"]) == {"shop": HOSTILE, "customer": 7}
        assert somebody(store, ["others"], ["shop"]) is None


@pytest.fixture
def watched(browser):
    "A page, and what its console said and whom it asked."
    page, said, asked = browser.new_page(viewport={"width": 1280, "height": 900}), [], []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    yield page, said, asked
    page.close()


def opened(page, here, url) -> None:
    "As a browser comes in: the key as the password of its own dialogue, which only pages take."
    page.route("**/docs", lambda route: route.continue_(headers={**route.request.headers, "authorization": f"Bearer {local_key(here)}"}))  # fmt: skip
    page.goto(f"{url}/docs")


def test_its_button_asks_for_a_prediction_and_shows_what_came(here, url, watched):
    page, said, asked = watched
    opened(page, here, url)
    page.get_by_label("Key", exact=True).fill(local_key(here))
    op = page.locator('details.op[data-path="/v1/churn/predictions"]')
    op.locator("> summary").focus()
    page.keyboard.press("Enter")  # and no mouse
    op.get_by_role("button", name="Send").press("Enter")
    op.locator("output", has_text="decision_id").wait_for(timeout=60_000)
    told = op.locator("output").inner_text()
    assert told.startswith("200 OK after ") and re.search(r" \d+ ms\n", told)
    decision_id = re.search(r'"decision_id": "([^"]+)"', told)[1]
    kept = page.locator('details.op[data-path="/v1/churn/decisions/{decision_id}"]')
    kept.locator("> summary").click()
    assert kept.get_by_label("decision_id", exact=True).input_value() == decision_id
    kept.get_by_role("button", name="Send").click()
    kept.locator("output", has_text=decision_id).wait_for(timeout=60_000)
    with client_of(here.root, url) as client:
        assert client.get(f"/v1/churn/decisions/{decision_id}").status_code == 200
    assert said == [] and {one.split("/", 3)[2] for one in asked} == {url.removeprefix("http://")}
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_is_read_on_any_screen(here, url, watched, width, scheme):
    page, said, _ = watched
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    opened(page, here, url)
    assert page.evaluate("document.documentElement.scrollHeight") < 2500, "folded, the page is a list"
    assert page.locator("details[open]").count() == 1, "the first problem"
    picture(page, f"api_page_{width}_{scheme}_folded")
    page.evaluate("document.querySelectorAll('details').forEach((e, i) => { e.open = i < 3 })")
    picture(page, f"api_page_{width}_{scheme}")
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    if engine():
        assert barriers(page) == []


def test_what_a_problem_or_an_entity_says_is_text(watched):
    page, _, asked = watched
    shape = {"schema": {"type": "object", "properties": {HOSTILE: {"type": "string", "description": HOSTILE}}},
             "example": {"shop": "sample"}}  # fmt: skip
    said = {
        "summary": HOSTILE, "description": HOSTILE, "tags": ["churn"], "security": [{"key": [HOSTILE]}],
        "requestBody": {"content": {"application/json": shape}}, "responses": {"200": {"description": HOSTILE, "content": {"application/json": shape}}},
    }  # fmt: skip
    described = {
        "tags": [{"name": "churn", "description": HOSTILE}],
        "paths": {"/v1/churn/predictions": {"post": said}},
    }
    page.set_content(api_page(described, f"http://{HOSTILE}", {"churn": {"shop": HOSTILE}}))
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    assert page.evaluate("window.hit") is None and page.locator("img").count() == 0 and asked == []
    assert HOSTILE in page.locator("h2").first.inner_text() and page.locator("textarea").count() == 1
    assert page.locator("textarea").input_value().count("<img") == 1


def test_a_line_holds_what_a_shell_would_run(tmp_path):
    line = lines_of(api_page({"paths": {"/v1/x/predictions": {"post": {
        "tags": ["x"], "requestBody": {"content": {"application/json": {"example": {"shop": ""}}}}, "responses": {}}}}, "tags": [{"name": "x", "description": ""}]},
        "http://localhost:8$(touch hit)", {"x": {"shop": "'; touch hit; '$(touch hit)`touch hit`"}}))["/v1/x/predictions"]  # fmt: skip
    words = subprocess.run(["bash", "-c", f"curl() {{ printf '%s\\n' \"$@\"; }}; {line}"], capture_output=True, text=True, timeout=60, cwd=tmp_path)  # fmt: skip
    told = words.stdout.splitlines()
    assert told[-1] == "http://localhost:8$(touch hit)/v1/x/predictions" and "`touch hit`" in told[-2]
