"The loop's dashboard: on a system that never ran and on one that lived for three months, in a real browser."

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mlsys_nb.cases.churn import lines
from mlsys_nb.data.ingest import ingest
from mlsys_nb.decisions.batches import append_batch
from mlsys_nb.decisions.outcomes import labelled
from mlsys_nb.doors.catalog import catalog, matching
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.dashboard import PANELS, loops, panel
from mlsys_nb.features import count
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.retrain import carry_out, note_release, train_candidate
from mlsys_nb.loop.step import Context
from mlsys_nb.monitoring.alerts import alerts, from_performance, open_alerts, record
from mlsys_nb.monitoring.performance import performance_check, promise
from mlsys_nb.problem.dataset import build_dataset, load_events
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.release.registry import load_champion
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control import open_control
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import load_settings

HOME = Path(__file__).resolve().parents[1]
DASHBOARDS = HOME / "nbs" / "dashboards"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


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
    model, lake = load_champion(control, here, problem), load_events(problem, here, now)
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


def test_panels(lived, tmp_path):
    every = loops(lived)
    said = {tab: panel(every, tab, "churn") for tab in PANELS}
    assert "first model" in said["Months"] and said["Months"].count("data:image/svg") == 1
    assert (
        "version 1" in said["Champions"]
        and "calibration" in said["Alerts"]
        and "Calibration" in said["Calibration"]
    )
    fresh = load_settings(root=tmp_path, home=HOME)
    assert all("mlsys demo --root" in panel(loops(fresh), tab, "churn") for tab in PANELS)
    assert not list(tmp_path.iterdir()), "looking at a system that never ran must leave nothing behind"


def test_the_catalog_knows_who_uses_what(lived, monkeypatch, capsys):
    "One entry a meaning: the installed problem and its versions share it; a version keeps what the problem dropped."
    known = catalog(lived)
    (orders,) = matching(known.entries, ["orders_30d"])
    assert orders.used_by == ("churn", "churn version 1 (champion)") and orders.owner == "customer relations"
    s = orders.statistics
    learnt = load_champion(open_control(lived), lived, load_problem(lived, "churn")).manifest["training"]
    assert (
        s["rows"] == learnt["rows"] and s["least"] == 0 <= s["5 %"] <= s["median"] <= s["95 %"] <= s["most"]
    )
    (country,) = matching(known.entries, ["country of"])
    assert next(iter(country.statistics["commonest"])) == "United Kingdom"

    problem = load_problem(lived, "churn")
    rest = tuple(f for f in problem.features.features if f.name != "orders_30d")
    window = count(lines, "45d").named("orders_30d", meaning="another window under an old name")
    later = replace(problem, features=replace(problem.features, features=(*rest, window)))
    monkeypatch.setattr("mlsys_nb.doors.catalog.load_problem", lambda settings, name: later)
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


def voila(root: Path, port: int) -> subprocess.Popen:
    allowed = ("@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8")
    command = [
        sys.executable, "-m", "voila", str(DASHBOARDS), "--template=mlsys", "--no-browser", f"--port={port}",
        *(f"--VoilaConfiguration.extension_allowlist={name}" for name in allowed),
    ]  # fmt: skip
    here = {**os.environ, "MLSYS_ROOT": str(root), "JUPYTER_PATH": str(DASHBOARDS / ".voila")}
    return subprocess.Popen(command, env=here, cwd=HOME, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait(url: str, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            assert time.monotonic() < until, f"{url} did not answer"
            time.sleep(0.3)


def watched_tab(browser, port, errors, foreign):
    "A tab whose errors, and requests to elsewhere, are noted."
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(120_000)  # a kernel on a busy machine
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on(
        "request",
        lambda r: foreign.append(r.url) if r.url.startswith("http") and f":{port}/" not in r.url else None,
    )
    return page


@pytest.mark.skipif(
    not Path(CHROMIUM).exists() or any(importlib.util.find_spec(m) is None for m in ("voila", "playwright")),
    reason="needs chromium, voila and playwright",
)
@pytest.mark.parametrize("state", ["fresh", "lived"])
def test_in_a_browser(state, lived, tmp_path):
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shots = Path(os.environ.get("TEST_MLSYS_SCREENSHOTS", tmp_path / "shots"))
    shots.mkdir(parents=True, exist_ok=True)
    server, errors, foreign = voila(lived.root if state == "lived" else tmp_path / "none", port), [], []
    try:
        wait(f"http://127.0.0.1:{port}/")
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = watched_tab(browser, port, errors, foreign)
            page.goto(f"http://127.0.0.1:{port}/voila/render/loop.ipynb")
            page.wait_for_selector(".mls-card", timeout=120_000)
            for tab in PANELS:
                page.locator(".lm-TabBar-tabLabel", has_text=tab).click()
                page.wait_for_timeout(300)
                page.screenshot(path=shots / f"loop_{state}_{tab.lower()}.png", full_page=True)
                said = page.inner_text("body")
                assert "Traceback" not in said and ("mlsys demo" in said) == (state == "fresh"), said[:500]
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            if state == "lived":
                page = watched_tab(browser, port, errors, foreign)
                page.goto(f"http://127.0.0.1:{port}/voila/render/catalog.ipynb")
                page.wait_for_selector(".mls-card", timeout=120_000)
                page.get_by_placeholder("pence 30d").fill("pence 30")
                page.wait_for_function("document.querySelectorAll('.mls-card').length == 1")
                assert "log_turnover_30d" in page.inner_text("body")
                page.screenshot(path=shots / "catalog_dashboard.png", full_page=True)
                assert main(["--root", str(lived.root), "catalog", "--page"]) == 0
                page = watched_tab(browser, port, errors, foreign)
                page.goto((lived.reports / "catalog.html").as_uri())
                page.screenshot(path=shots / "catalog_page.png", full_page=True)
                page.get_by_role("link", name="orders_60d", exact=True).click()
                assert page.get_by_role("heading", name="orders_60d").is_visible()
                assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    assert not errors and not foreign, (errors, foreign)
