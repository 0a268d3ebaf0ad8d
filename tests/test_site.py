"""The documentation site and the reports in a real browser: no error on the console, no request to anywhere, no link to nowhere.

Pictures of the pages are put into TEST_MLSYS_SCREENSHOTS, where that names a folder.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from access import barriers, engine
from conftest import SCREENS, picture

from mlsys_nb.doors.cli import parser
from mlsys_nb.doors.docs.notebook_to_markdown import chapter_page
from mlsys_nb.doors.docs.reference_manual import reference
from mlsys_nb.doors.docs.site import build_site, pages_of
from mlsys_nb.jobs.run_index import index
from mlsys_nb.jobs.runner import Runner
from mlsys_nb.system.markup import card
from mlsys_nb.system.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
SOME = [
    "00_system/00_index",
    "00_system/01_clock",
    "70_jobs/70_parameters",
    "30_evaluation/34_gate",
    "80_doors/84_figures/10_matplotlib_image",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A project with some of the chapters, a problem, a job, and a run of it."
    home = tmp_path_factory.mktemp("project")
    for name in SOME:
        place = home / f"nbs/{name}.ipynb"
        place.parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / f"nbs/{name}.ipynb", place)
    for folder in ("cases", "jobs", "guide", "site", "pictures"):
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
    settings = load_settings(home=home)
    return build_site(settings, made=reference(settings, parser()))


@pytest.fixture(scope="module")
def look(browser):
    "Open pages, and hold what the browser said against them."
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on(
        "request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else said.append(r.url)
    )

    def look(path: Path, name: str):
        said.clear()
        page.goto(path.as_uri())
        page.evaluate(
            "new Promise(idle => requestIdleCallback(() => idle(), {timeout: 9000}))"
        )  # what it does by itself is done
        picture(page, name)
        assert said == [], f"{path.name}: {said}"
        wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, f"{path.name} is wider than its window"
        if engine():
            assert barriers(page) == [], path.name
        return page

    look.page = page
    yield look
    page.close()


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


def test_the_jobs_floor_is_not_the_folder_of_jobs(site):
    "Both are called jobs: their pages stand side by side, and none hides another."
    assert (site.folder / "jobs/parameters.html").exists() and (site.folder / "jobs/train.html").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The site of this checkout, as `mlsys docs` makes it."
    settings = replace(load_settings(home=ROOT), root=tmp_path_factory.mktemp("none"))
    return build_site(settings, tmp_path_factory.mktemp("whole") / "site", reference(settings, parser()))


def test_no_link_leads_nowhere(whole):
    assert whole.broken == ()
    assert whole.pages > 290


def test_every_table_is_a_table_and_nothing_is_fetched(whole):
    for path in whole.folder.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<p>[^<]*\|---", text), f"{path}: a table was not understood"
        fetched = re.findall(
            r"""<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^>]*>""", text
        )
        assert not fetched, f"{path}: {fetched}"


def test_declarations_of_cases_stand_open(whole):
    "Fault: they were folded away as imports and constants."
    for path in sorted((ROOT / "nbs/cases").glob("*.ipynb")):
        page = (whole.folder / f"cases/{path.stem}.html").read_text()
        opened = re.sub(r"(?s)<details>.*?</details>", "", page)
        assert re.search(r'class="n">problem</span> <span class="o">=</span>', opened), path.stem


def test_only_what_changed_is_written_again(home, site, tmp_path):
    settings = load_settings(home=home)
    pages = reference(settings, parser())
    assert build_site(settings, made=pages).written == 0
    clock = home / "nbs/00_system/01_clock.ipynb"
    before = clock.read_text()
    clock.write_text(before.replace("# Clock", "# Clock", 1).replace("instant", "moment", 1))
    try:
        assert 1 <= build_site(settings, made=pages).written <= 2  # the page, and the index of the search
    finally:
        clock.write_text(before)
    assert build_site(settings, made=pages).written <= 2


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
    page = (built.folder / "start/tour.html").read_text()
    assert "saved, not run" in page and built.pages == 2
    assert re.search(r'<section class="mls-card[^>]*style="[^"]*padding:', page), "a card keeps its padding"


def test_other_files_are_not_overwritten(home, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files"):
        build_site(load_settings(home=home), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_folder_of_ones_own_gets_the_book_and_its_own_problems(home, tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "nbs/cases/loans.ipynb", tmp_path / "notebooks/mine.ipynb")
    places = [page.place for page in pages_of(replace(load_settings(home=home), home=tmp_path))]
    assert {"index", "yours/mine", "features/point_in_time_join", "cases/churn"} <= set(places)


def test_hostile_words_act_nowhere(home, tmp_path, look):
    "A column, a title, a link that would act: on the page, in the navigation, in the search."
    hostile = (
        '# <img src=x onerror=alert(1)> `</script><script>alert(2)</script>`\n> Said.\n\n[go](javascript:alert(3))\n\n## \u202e"><b>x\n\n'
        + "long " * 50_000
    )
    (tmp_path / "nbs/guide/howto").mkdir(parents=True)
    (tmp_path / "nbs/guide/howto/10_x.md").write_text(hostile)
    (tmp_path / "nbs/one.ipynb").write_text(
        json.dumps({"cells": [{"cell_type": "markdown", "source": hostile}]})
    )
    built = build_site(replace(load_settings(home=home), home=tmp_path, root=tmp_path))
    page = look(built.folder / "howto/x.html", "site-hostile")
    assert (
        page.evaluate(
            "document.querySelectorAll('article img[onerror], article script, article a[href^=javascript]').length"
        )
        == 0
    )
    page.keyboard.press("/")
    page.keyboard.type("said")
    page.wait_for_selector("#found a")
    assert page.evaluate("document.querySelectorAll('#found img, #found script').length") == 0


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "system/index",
        "system/clock",
        "evaluation/gate",
        "doors/figures/matplotlib_image",
        "cases/churn",
        "jobs/train",
    ],
)
def test_pages_in_a_browser(site, look, name):
    page = look(site.folder / f"{name}.html", "site-" + name.replace("/", "-"))
    assert page.title()
    for image in page.query_selector_all("img"):
        assert image.evaluate("i => i.complete && i.naturalWidth > 0"), "a picture that does not show"


@pytest.mark.parametrize(
    ("typed", "first"),
    [("open_clock", "open_clock"), ("gate", "gate"), ("instan", "instant"), ("champion rule", None)],
)
def test_the_search_works_from_the_disk(site, look, typed, first):
    "Fault: it found only the last letter. What is typed is looked for as a whole, and the best answer stands first."
    page = look(site.folder / "system/clock.html", "site-search-before")
    page.keyboard.press("/")
    page.keyboard.type(typed)
    page.wait_for_selector("#found a")
    told = page.locator("#found a").first
    assert first is None or told.locator("strong").inner_text() == first
    words = typed.split()
    assert all(word in page.locator("#found a").nth(0).inner_text().lower() + page.url for word in words[:1])
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert page.url.endswith(".html") or "#" in page.url


def test_the_search_says_so_when_nothing_fits(site, look):
    page = look(site.folder / "index.html", "site-search-nothing")
    page.keyboard.press("/")
    page.keyboard.type("xyzzy<b>")
    page.wait_for_selector("#found .none")
    assert "xyzzy<b>" in page.locator("#found .none").inner_text()


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_pages_on_a_phone_and_at_night(whole, look, width, scheme):
    page = look.page
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    try:
        for name in (
            "index",
            "features/point_in_time_join",
            "cases/churn",
            "reference/commands",
            "reference/settings",
        ):
            page = look(whole.folder / f"{name}.html", f"site-{name.replace('/', '-')}-{width}-{scheme}")
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
        if width == 390:
            page.click("#menu")
            assert page.locator(".doors-too a").first.is_visible()
            page.click("#menu")
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme="light")


def test_reports_in_a_browser(home, look):
    reports = load_settings(home=home).reports
    index(load_settings(home=home))
    page = look(reports / "index.html", "reports-index")
    with page.expect_navigation():
        page.click("a >> nth=0")
    assert page.title().startswith("Ingest")
    look(next(reports.glob("churn/ingest/*/report.html")), "report-ingest")
