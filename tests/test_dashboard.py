"The loop's dashboard: on a system that never ran and on one that lived for three months, in a real browser."

import importlib.util
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import dashboards_world as world
import polars as pl
import pytest
from access import barriers, engine
from conftest import SCREENS, picture, until
from ports import free_port

from mlsys_nb.cases.churn import lines
from mlsys_nb.data.ingest import ingest
from mlsys_nb.decisions.batch_decisions import append_batch
from mlsys_nb.decisions.outcomes import labelled, read_outcomes
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.dashboards.feature_catalog import catalog, matching
from mlsys_nb.doors.dashboards.static_export import OVERVIEW, SHEETS, write_snapshot
from mlsys_nb.features import count
from mlsys_nb.jobs.report import render
from mlsys_nb.jobs.run_index import index, records
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.promotion import carry_out, note_release
from mlsys_nb.loop.retrain import train_candidate
from mlsys_nb.loop.step_context import Context
from mlsys_nb.monitoring.alerts import alerts, from_performance, open_alerts, record
from mlsys_nb.monitoring.performance import performance_check, promise
from mlsys_nb.problem.dataset import build_dataset, load_events
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.release.fallback import last_sound
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import write_json, write_text
from mlsys_nb.system.markup import card
from mlsys_nb.system.settings import load_settings

HOME = Path(__file__).resolve().parents[1]
VOILA = pytest.mark.skipif(importlib.util.find_spec("voila") is None, reason="needs voila")


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    "A model of April that scored two months whose outcomes are known, one of which it got wrong on purpose."
    here = load_settings(root=tmp_path_factory.mktemp("lived"), home=HOME)
    problem, control, now = load_problem(here, "churn"), open_control(here), instant("2010-07-01")
    write_json(here.clock_file, {"now": now.isoformat()})
    ingest(here, problem.sources[0], now)
    april = instant("2010-04-01")
    at = Context(here, problem, april)
    carry_out(at, note_release(at, train_candidate(at, n_trials=1), "first"))
    model, lake = last_sound(control, here, problem).model, load_events(problem, here, now)
    for month, off in (("2010-04-01", 0.0), ("2010-05-01", -0.3)):
        rows = build_dataset(problem, lake, [instant(month)], now).frame.drop("label")
        scores = pl.Series(model.predict(rows)) + off
        scored = rows.with_columns(
            score=scores.clip(0.01, 0.99), version=model.version, threshold=problem.costs.threshold,
            action=pl.lit("write"), eligible=True, feature_set_hash=pl.lit(problem.features.hash),
        )  # fmt: skip
        append_batch(here, problem.name, month, scored, problem.keys)
    judged = labelled(here, problem, now, lake).filter(pl.col("moment") == instant("2010-05-01"))
    report = performance_check(problem, judged, promise(problem.target.judge, model.manifest["metrics"]))
    record(control, problem.name, from_performance(problem, report, now, judged), now)
    return here


def test_the_loop_tells_what_happened(lived):
    control, problem = open_control(lived), load_problem(lived, "churn")
    (gap, *_) = [a for a in open_alerts(control, "churn") if a.subject == "calibration_gap"]
    assert gap.size.startswith("predicted 0.") and "GBP per 1,000 decisions" in gap.expected_cost
    shown = backtest(Context(lived, problem, instant("2010-07-01")))
    assert shown.frame.height == 6
    assert shown.over_frozen.loss.high < 0 and "Retraining lost" in shown.finding
    again = record(control, "churn", [], instant("2010-07-02"), kinds=("drift",))
    assert gap.key in {a.key for a in again}, (
        "a check that could not judge performance must not close its alerts"
    )
    assert len(alerts(control, "churn")) == len(again)


def test_the_catalog_knows_who_uses_what(lived, monkeypatch, capsys):
    "One entry a meaning: the installed problem and its versions share it; a version keeps what the problem dropped."
    known = catalog(lived)
    (orders,) = matching(known.entries, ["orders_30d"])
    assert orders.used_by == ("churn", "churn version 1 (champion)") and orders.owner == "customer relations"
    s = orders.statistics
    learnt = last_sound(open_control(lived), lived, load_problem(lived, "churn")).model.manifest["training"]
    assert (
        s["rows"] == learnt["rows"] and s["least"] == 0 <= s["5 %"] <= s["median"] <= s["95 %"] <= s["most"]
    )
    (country,) = matching(known.entries, ["country of"])
    assert next(iter(country.statistics["commonest"])) == "United Kingdom"

    problem = load_problem(lived, "churn")
    rest = tuple(f for f in problem.features.features if f.name != "orders_30d")
    window = count(lines, "45d").named("orders_30d", meaning="another window under an old name")
    later = replace(problem, features=replace(problem.features, features=(*rest, window)))
    monkeypatch.setattr(
        "mlsys_nb.doors.dashboards.feature_catalog.load_problem", lambda settings, name: later
    )
    old, new = sorted(
        matching(catalog(lived).entries, ["orders_30d"]), key=lambda e: len(e.used_by[0]), reverse=True
    )
    assert old.used_by == ("churn version 1 (champion)",) and new.used_by == ("churn",)
    assert old.statistics == s and new.statistics == {}, "statistics are those of the same meaning"
    monkeypatch.undo()

    words = ["--root", str(lived.root), "catalog"]
    assert main([*words, "pence", "30", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["feature"] == "log_turnover_30d" and row["statistics_of"] == "churn version 1 (champion)"
    assert (
        main([*words, "nothing", "like", "this"]) == 0
        and "features says all of these words" in capsys.readouterr().out
    )
    package = next(lived.models.rglob("manifest.json"))
    sound = package.read_bytes()
    try:
        package.write_bytes(sound[:-20])
        assert main(words) == 1
        shown = capsys.readouterr()
        assert "orders_30d" in shown.out and "cannot be read: churn version 1" in shown.err
    finally:
        package.write_bytes(sound)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    "The server of all dashboards over a system that lived; its address, its token and its root."
    settings = load_settings(root=tmp_path_factory.mktemp("windows") / "system", home=HOME)
    world.lived(settings)
    port = free_port()
    kept = settings.root / "token"
    kept.write_text("a-token-for-this-test")
    code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())"
    words = ["dashboard", "--root", str(settings.root), "--port", str(port), "--token", str(kept)]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: server.poll() is not None or status(f"http://127.0.0.1:{port}/favicon.ico") == 204)
        assert server.poll() is None, "the dashboards did not start"
        yield f"http://127.0.0.1:{port}", "a-token-for-this-test", settings
    finally:
        server.terminate()
        server.wait(60)


def status(url):
    "What a server answers, without following it elsewhere; 0 where there is none."

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *more):
            return None

    try:
        return urllib.request.build_opener(Stay).open(url, timeout=60).status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0


@VOILA
def test_nobody_sees_a_page_a_report_or_a_kernel_without_the_token(windows):
    url, token, settings = windows
    report = next(settings.reports.rglob("report.html")).relative_to(settings.root)
    for place in (
        "",
        "overview.html",
        "churn-model.html",
        f"{report}",
        "voila/render/model.ipynb",
        "voila/render/catalog.ipynb",
    ):
        assert status(f"{url}/{place}") == 302, f"{place} must ask for the token"
        assert status(f"{url}/{place}?token=another-token-than-it") == 302, place
    for place in ("", "overview.html", "churn-model.html", f"{report}"):
        assert status(f"{url}/{place}?token={token}") == 200, place
    with pytest.raises(urllib.error.HTTPError) as missed:
        urllib.request.urlopen(f"{url}/churn-modell.html?token={token}", timeout=60)
    told = missed.value.read().decode()
    assert missed.value.code == 404 and "modell" in told
    back = re.search('<a href="(/[^"]+)">to the overview', told)
    assert back and status(f"{url}{back[1]}?token={token}") == 200, told
    assert status(f"{url}/reports/../data/control.db?token={token}") in (403, 404)


def watched(browser, width, errors, foreign, scheme="light"):
    "A tab whose errors, and requests to elsewhere, are noted."
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)  # a kernel on a busy machine
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on(
        "request",
        lambda r: (
            foreign.append(r.url) if r.url.startswith("http") and "://127.0.0.1:" not in r.url else None
        ),
    )
    return page


CLIPPED = """() => [...document.querySelectorAll('.mls-sheet, .mls-sheet *, main, main *')].filter(e => !e.closest('svg, .mls-scroll, pre') && getComputedStyle(e).display !== 'inline'
  && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1).map(e => e.tagName + ' ' + e.className + ': ' + e.textContent.slice(0, 80))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "Where the plain pages lie of a system that never ran, and of one in which much has happened."
    made = {}
    for state in ("fresh", "lived"):
        place = tmp_path_factory.mktemp(state)
        settings = load_settings(root=place / "system", home=HOME)
        if state == "lived":
            world.lived(settings)
        write_snapshot(settings, place / "pages")
        made[state] = place / "pages"
    return made


@VOILA
@pytest.mark.parametrize(
    ("state", "width", "scheme"), [("fresh", 390, "light"), *(("lived", *screen) for screen in SCREENS)]
)
def test_every_page_shows_whole_on_any_screen(state, width, scheme, browser, pages):
    errors, foreign = [], []
    page = watched(browser, width, errors, foreign, scheme)
    for name in [OVERVIEW, *(f"churn-{sheet}" for sheet in SHEETS)]:
        page.goto((pages[state] / f"{name}.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
        picture(page, f"{name}_{state}_{width}_{scheme}")
        assert page.evaluate(CLIPPED) == [], f"{name} at {width}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.locator("h1").is_visible() and page.locator(".mls-nav").first.is_visible()
        if engine():
            assert barriers(page) == [], f"{name} at {width}"
    assert not errors and not foreign, (errors, foreign)


@VOILA
def test_the_list_of_runs_and_a_report_with_every_link_show_whole_on_any_screen(browser, tmp_path):
    settings, errors, foreign = load_settings(root=tmp_path / "system", home=HOME), [], []
    world.lived(settings)
    places = {"runs": index(settings)}
    _, record = records(settings.reports)[0]
    ways = ("all runs", "the run before", "alerts", "the last decision", "card of version 16")
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "source": "one", "outputs": []}
    batch = {"batch": "churn-v18-20101201T000000Z" * 2, "rows": 2877, "n": 17}
    shown = {"output_type": "display_data", "metadata": {}, "data": {"text/html": card("Batch", batch)}}
    page = render({"cells": [{**cell, "outputs": [shown]}]}, record, dict.fromkeys(ways, "report.html"))
    places["report"] = tmp_path / "report.html"
    write_text(places["report"], page)
    for name, place in places.items():
        for width, scheme in SCREENS:
            tab = watched(browser, width, errors, foreign, scheme)
            tab.goto(place.as_uri())
            picture(tab, f"{name}_{width}_{scheme}")
            assert tab.evaluate(CLIPPED) == [], f"{name} at {width}"
            boxes = [b.bounding_box() for b in tab.locator("td.said, nav.mls-links a").all()]
            assert len(boxes) >= 4 and max(b["x"] + b["width"] for b in boxes) <= width, f"{name} at {width}"
            if name == "runs":
                tab.get_by_label("any words").fill("there is no such word")
                assert tab.locator("tbody tr").filter(visible=True).count() == 0
            if engine():
                assert barriers(tab) == [], f"{name} at {width}"
    assert not errors and not foreign, (errors, foreign)


@pytest.mark.skipif(not engine(), reason="needs axe-playwright-python")
@VOILA
def test_the_search_for_barriers_finds_one(browser):
    page = browser.new_page()
    page.set_content(
        "<main><h1>Pale</h1><p style='color:#ccc;background:#fff'>hardly seen</p><select></select>"
    )
    assert {told.split(":")[0] for told in barriers(page)} == {
        "serious color-contrast", "critical select-name", "serious html-has-lang", "serious document-title"
    }  # fmt: skip


def kept(page, name):
    "Where a stranger has come to nothing is cut off on any screen."
    for width, scheme in SCREENS:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        picture(page, f"stranger_{name}_{width}_{scheme}")
        assert page.evaluate(CLIPPED) == [], f"{name} at {width}"


@pytest.fixture
def strangers(browser, tmp_path):
    "The plain pages of a system in which much has happened, the overview open before a stranger; and the system."
    settings, errors, foreign = load_settings(root=tmp_path / "system", home=HOME), [], []
    world.lived(settings)
    for number, promoted in ((4, True), (5, True), (6, False)):
        world.another_version(settings, number, world.SEPTEMBER - (7 - number) * world.DAY, promoted)
    page = watched(browser, 1280, errors, foreign)

    def opened():
        write_snapshot(settings, tmp_path / "pages")
        page.goto((tmp_path / "pages" / "overview.html").as_uri())
        return page

    yield settings, opened
    assert not errors and not foreign, (errors, foreign)


@VOILA
def test_a_stranger_finds_why_version_4_replaced_3(strangers):
    "Neither of them is the newest, and neither is beside the other when the page opens."
    page = strangers[1]()
    page.get_by_role("link", name="churn", exact=True).first.click()
    section = page.locator("section", has=page.get_by_role("heading", name="Two versions beside each other"))
    assert "It replaced version 4" in section.inner_text() and "reason 4" in section.inner_text()
    section.get_by_label("this").select_option("version 4")
    section.get_by_label("beside").select_option("version 3")
    told = section.inner_text()
    assert "It replaced version 3 on 29 Aug 2010, by gate: reason 4" in told
    assert "reason 5" not in told, "the others make room"
    assert section.locator("figure").filter(visible=True).count() == 4, "a curve and gains of each"
    kept(page, "versions")
    section.get_by_label("this").select_option("version 6")
    assert "It never served. version 6 was not better" in section.inner_text()


@VOILA
def test_a_stranger_finds_the_batch_that_moved_a_feature(strangers):
    "From the alert on the overview to the one batch among those that the feature reads."
    page = strangers[1]()
    alert = page.locator("section.mls-box", has_text="orders 90d, critical")
    alert.get_by_role("link", name="see drift").click()
    card = page.locator("figure", has_text="orders_90d: newest batches")
    card.wait_for()
    (moved,) = [line.inner_text() for line in card.locator("li").all() if "MOVED" in line.inner_text()]
    assert "lines 2010-08-15" in moved and "2.4" in moved and "1,900 rows" in moved
    kept(page, "batch")


@VOILA
def test_a_stranger_compares_two_runs(strangers):
    "Of three looks the first and the last: one parameter and one batch are other, and a figure with them."
    settings, opened = strangers
    batches = pl.DataFrame({"source": ["lines"] * 2, "batch": ["1", "2"], "content": ["a", "b"]})
    for number, limit, content in ((20, 0.1, "b"), (21, 0.1, "c"), (22, 0.2, "b")):
        tables = {"batches": batches.with_columns(content=pl.Series(["a", content]))}
        look = world.run_at("score", world.SEPTEMBER + number * world.DAY, number)
        world.ran(
            settings, replace(look, parameters={"limit": limit}), tables, told={"metrics": {"acted": limit}}
        )
    page = opened()
    page.get_by_role("link", name="churn", exact=True).first.click()
    page.get_by_role("link", name="Runs").click()
    section = page.locator("section", has=page.get_by_role("heading", name="Two runs of score"))
    pick = lambda label, run: section.get_by_label(label).select_option(
        f"{run.as_of.day} Sep 2010 ({run.run_id})"
    )
    one, two, three = (world.run_at("score", world.SEPTEMBER + n * world.DAY, n) for n in (20, 21, 22))
    pick("this", three), pick("beside", one)
    said = lambda name: section.locator(f"[data-is={name}]").inner_text()
    assert said("found") == "explained by parameter limit: nothing else differs"
    assert said("names") == f"{three.run_id} {one.run_id}"
    assert "0.2" in section.inner_text() and "data lines" not in section.inner_text()
    kept(page, "runs")
    pick("this", two)
    assert said("found") == "the inputs differ, what came out is the same"
    pick("beside", three)
    assert said("found").startswith("2 inputs differ")
    assert section.locator("code").inner_text() == f"mlsys diff {two.run_id} {three.run_id} --swap"
    pick("this", three)
    assert said("found") == "nothing differs but names and times"


@VOILA
def test_a_stranger_moves_the_threshold_and_reads_the_money(browser, pages):
    "Act on nobody, then on everybody, then let a missed case cost twice as much: each figure is what the counts say."
    errors, foreign = [], []
    page = watched(browser, 390, errors, foreign)
    page.goto((pages["lived"] / "overview.html").as_uri())
    page.get_by_role("link", name="churn", exact=True).first.click()
    counts = {row["threshold"]: row for row in world.cuts(seed=3).to_dicts()}
    money = lambda t, fp, fn: (
        1000 * (counts[t]["false_positive"] * fp + counts[t]["false_negative"] * fn) / 2000
    )
    said = lambda name: float(
        page.locator(f"[data-is={name}]").first.inner_text().split()[0].replace(",", "")
    )
    slide = lambda label, value: page.get_by_label(label).fill(str(value))
    assert said("cost") == pytest.approx(money(0.6, 3, 2), abs=0.6)
    for threshold in (1.0, 0.0, 0.3):
        slide("act from probability", threshold)
        assert said("cost") == pytest.approx(money(threshold, 3, 2), abs=0.6)
        assert said("missed") == counts[threshold]["false_negative"]
        assert said("saved") == pytest.approx(money(1.0, 3, 2) - money(threshold, 3, 2), abs=1.1)
    slide("cost of a missed case", 4)
    assert said("cost") == pytest.approx(money(0.3, 3, 4), abs=0.6)
    assert said("least") == pytest.approx(min(money(t, 3, 4) for t in counts), abs=0.6)
    kept(page, "threshold")
    page.get_by_role("button", name="as declared").click()
    assert said("cost") == pytest.approx(money(0.6, 3, 2), abs=0.6)
    assert not errors and not foreign, (errors, foreign)


@VOILA
def test_the_catalog_is_searched_behind_the_server(windows, browser):
    (url, token, _), errors, foreign = windows, [], []
    page = watched(browser, 1280, errors, foreign)
    page.goto(f"{url}/overview.html?token={token}")
    page.get_by_role("link", name="Features").click()
    page.wait_for_selector(".mls-card")
    page.get_by_placeholder("pence 30d").fill("pence 30")
    page.wait_for_function("document.querySelectorAll('.mls-card').length >= 1")
    picture(page, "catalog")
    assert "log_turnover_30d" in page.inner_text("body")
    assert page.locator("h1").all_inner_texts() == ["Features"]
    assert "_xsrf" in {cookie["name"] for cookie in page.context.cookies()}, (
        "who leaves a page may end its kernel"
    )
    page.get_by_role("link", name="Drift").click()
    page.wait_for_url("**/churn-drift.html")
    assert not errors and not foreign, (errors, foreign)


@VOILA
def test_a_stranger_answers_five_review_cases(windows, browser):
    "From the overview to five answers on disk, each a label, without a word of explanation."
    (url, token, settings), errors, foreign = windows, [], []
    page = watched(browser, 1280, errors, foreign)
    page.goto(f"{url}/overview.html?token={token}")
    page.get_by_role("link", name="Reviews").click()
    page.get_by_role("link", name="Answer them one by one").click()
    page.wait_for_url("**/voila/render/reviews.ipynb*", wait_until="commit")  # it comes in two parts
    page.locator("body > main .mls-tile").first.wait_for()
    assert page.locator("#loading").is_visible(), "what is known stands there before the kernel"
    page.get_by_placeholder("your name").fill("ann")
    queue = page.locator("main").get_by_role("heading", name="The queue")
    assert page.get_by_role("button", name="it happened").bounding_box()["y"] < queue.bounding_box()["y"]
    assert page.locator("main h1").count() == 1, "the page stands there once"
    for done in range(1, 6):
        page.get_by_role("button", name="it happened").click()
        page.wait_for_function(f"document.body.innerText.includes('{done} answered')")
    kept(page, "reviews")
    colour = "e => getComputedStyle(e).backgroundColor"
    assert page.locator("#mls-desk").evaluate(colour) == page.locator("main").first.evaluate(colour), (
        "dark as the page"
    )
    assert not page.get_by_role("link", name="Answer them one by one").count(), "that is here"
    if engine():
        assert barriers(page) == []
    told = read_outcomes(settings, "churn")
    assert len({o.decision_id for o in told}) == 5 and {(o.label, o.actor, o.reviewer) for o in told} == {
        (1, "ann", True)
    }
    assert not errors and not foreign, (errors, foreign)
