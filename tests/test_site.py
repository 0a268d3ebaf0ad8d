"""The documentation site and the reports in a real browser: no error on the console, no request to anywhere.

Screenshots stand in TEST_MLSYS_SCREENSHOTS, or in pytest's temporary folder.
"""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlsys_nb.doors.pages import chapter_page
from mlsys_nb.doors.site import build_site, chapters_of
from mlsys_nb.jobs.report import index
from mlsys_nb.jobs.runner import Runner
from mlsys_nb.system.markup import card
from mlsys_nb.system.settings import MlsysError, load_settings

ROOT = Path(__file__).resolve().parents[1]
SOME = [
    "00_system/00_index",
    "00_system/01_clock",
    "70_jobs/70_parameters",
    "30_evaluation/34_gate",
    "80_doors/81_figures",
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A project with some of the chapters, a problem, a job, and a run of it."
    home = tmp_path_factory.mktemp("project")
    for name in SOME:
        place = home / f"nbs/{name}.ipynb"
        place.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / f"nbs/{name}.ipynb", place)
    for folder in ("cases", "jobs"):
        shutil.copytree(ROOT / "nbs" / folder, home / "nbs" / folder)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, home)
    (home / "settings.ini").write_text(
        f"[system]\nraw = {ROOT / 'data/raw'}\ntracking_uri = off\n[problems]\nchurn = mlsys_nb.cases.churn:problem\n"
    )
    with Runner(load_settings(home=home), preload=()) as runner:
        runner.run("ingest", {"problem": "churn", "now": "2009-12-05"})
    return home


@pytest.fixture(scope="module")
def site(home):
    return build_site(load_settings(home=home))


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    "Open pages, and hold what the browser said against them."
    playwright = pytest.importorskip("playwright.sync_api")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here")
    shots = Path(os.environ.get("TEST_MLSYS_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as p:
        window = p.chromium.launch(executable_path=browser, args=FLAGS)
        page = window.new_page(viewport={"width": 1280, "height": 900})
        said: list[str] = []
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else said.append(r.url)
        )

        def look(path: Path, name: str):
            said.clear()
            page.goto(path.as_uri())
            page.wait_for_timeout(300)
            page.screenshot(path=shots / f"{name}.png")
            assert said == [], f"{path.name}: {said}"
            wide = page.evaluate(
                "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            )
            assert not wide, f"{path.name} is wider than its window"
            return page

        yield look
        window.close()


def test_the_site_has_every_page(site, home):
    names = {p.relative_to(site.folder).as_posix() for p in site.folder.rglob("*.html")}
    assert {
        "index.html",
        "system/clock.html",
        "evaluation/gate.html",
        "cases/churn.html",
        "jobs/train.html",
    } <= names
    assert {
        "project/changelog.html",
        "project/contributing.html",
        "project/reports.html",
        "reports/index.html",
    } <= names
    assert [n for n in names if n.startswith("reports/churn/ingest/")]
    clock = (site.folder / "system/clock.html").read_text()
    assert "The instant that" in clock or "UTC instant" in clock
    assert "<td>Aware, in UTC</td>" in clock


def test_the_jobs_floor_is_not_the_folder_of_jobs(home):
    sections = {c.path.parent.name: c.section for c in chapters_of(home / "nbs")}
    assert sections["70_jobs"] == "Jobs" and sections["jobs"] == "Notebooks run as jobs"


def test_a_face_leads_to_the_pages_of_its_words(site):
    face = (site.folder / "system/index.html").read_text()
    for word in ("instant", "open_clock"):
        assert f'<a href="clock.html#{word}"><code>{word}</code></a>' in face
        assert f'id="{word}"' in (site.folder / "system/clock.html").read_text()


def test_coroutines_and_stars_are_described():
    source = '#| export\nasync def f(*args: int, **more: str):\n    "Send."\n\n\nclass C:\n    async def go(self): ...'
    text, _ = chapter_page({"cells": [{"cell_type": "code", "source": source}]})
    assert "### f { #f .api }\n\n*A coroutine: await it.* Send." in text
    assert "| `*args` | `int` |" in text and "| `**more` | `str` |" in text
    assert "**`C.go`** *A coroutine: await it.*" in text


def test_a_type_reads_as_it_is_written(site):
    pages = [p for p in site.folder.rglob("*.html") if "reports" not in p.parts]
    assert any("<code>str | datetime | int</code>" in p.read_text() for p in pages)
    for path in pages:
        spans = re.findall(r"<td[^>]*><code>([^<]*)</code>", path.read_text())
        assert not [s for s in spans if "\\|" in s], f"{path.name} shows a backslash before a |"


def test_a_page_shows_the_outputs_that_its_notebook_saves(home, tmp_path):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 / 0", "execution_count": None,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": ["saved, not run\n"]}]}  # fmt: skip
    card_ = {**cell, "id": "b", "outputs": [{"output_type": "display_data", "data": {"text/html": card("Found", {"rows": 3})}}]}  # fmt: skip
    body = {"cells": [cell, card_], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs/index.ipynb").write_text(json.dumps(body))
    built = build_site(replace(load_settings(home=home), home=tmp_path, root=tmp_path))
    page = (built.folder / "index.html").read_text()
    assert "saved, not run" in page and built.pages == 1
    assert re.search(r'<section class="mls-card[^>]*style="[^"]*padding:', page), "a card keeps its padding"


def test_other_files_are_not_overwritten(home, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        build_site(load_settings(home=home), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_without_notebooks_the_answer_is_clear(home, tmp_path):
    assert chapters_of(tmp_path) == []
    with pytest.raises(MlsysError, match="source checkout"):
        build_site(replace(load_settings(home=home), home=tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "system/index",
        "system/clock",
        "evaluation/gate",
        "doors/figures",
        "cases/churn",
        "jobs/train",
    ],
)
def test_pages_in_a_browser(site, look, name):
    page = look(site.folder / f"{name}.html", "site-" + name.replace("/", "-"))
    assert page.title()
    for image in page.query_selector_all("img"):
        assert image.evaluate("i => i.complete && i.naturalWidth > 0"), "a picture that does not show"


def test_the_search_works_from_the_disk(site, look):
    page = look(site.folder / "index.html", "site-search-before")
    page.keyboard.press("/")
    page.wait_for_timeout(300)
    page.keyboard.type("instant")
    page.wait_for_selector("text=Clock", timeout=10_000)


def test_reports_in_a_browser(home, look):
    reports = load_settings(home=home).reports
    index(load_settings(home=home))
    page = look(reports / "index.html", "reports-index")
    page.click("a >> nth=0")
    page.wait_for_load_state()
    assert "ingest" in page.title()
    look(next(reports.glob("churn/ingest/*/report.html")), "report-ingest")
