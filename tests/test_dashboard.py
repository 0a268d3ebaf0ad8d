"The loop's dashboard: on a system that never ran and on one that lived for three months, in a real browser."

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import polars as pl
import pytest

from mlsys_nb.data.ingest import ingest
from mlsys_nb.decisions.batches import append_batch
from mlsys_nb.decisions.outcomes import labelled
from mlsys_nb.doors.dashboard import PANELS, loops, panel
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
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(120_000)  # a kernel on a busy machine
            page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.on(
                "request",
                lambda r: (
                    foreign.append(r.url) if r.url.startswith("http") and f":{port}/" not in r.url else None
                ),
            )
            page.goto(f"http://127.0.0.1:{port}/voila/render/loop.ipynb")
            page.wait_for_selector(".mls-card", timeout=120_000)
            for tab in PANELS:
                page.locator(".lm-TabBar-tabLabel", has_text=tab).click()
                page.wait_for_timeout(300)
                page.screenshot(path=shots / f"loop_{state}_{tab.lower()}.png", full_page=True)
                said = page.inner_text("body")
                assert "Traceback" not in said and ("mlsys demo" in said) == (state == "fresh"), said[:500]
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    assert not errors and not foreign, (errors, foreign)
