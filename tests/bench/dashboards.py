"""First content of a dashboard as a file, behind the server and with a warm kernel; what 20 viewers take; plain Voila beside them.

python tests/bench/dashboards.py [ROOT]: a root in which something ran, else one is made. Wall time is the browser's own (first contentful paint);
processor time is that of the server's processes, so that a busy machine can be told from a slow page.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "tests"))

import dashboards_world as world  # noqa: E402
from conftest import FLAGS, chromium  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from mlsys_nb.doors.dashboards.static_export import write_snapshot  # noqa: E402
from mlsys_nb.system.settings import load_settings  # noqa: E402

SESSIONS, VIEWS = int(os.environ.get("SESSIONS", "20")), 5
LINE = "{:<62} {:>8.2f} {:<4} {}"
COMMAND = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())"


def tree(pid):
    "A process and all that came of it."
    found, open_ = [], [pid]
    while open_:
        one = open_.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                open_ += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def spent(pid):
    "Seconds of processor of a tree, and the shares of memory that are its own, in MB."
    seconds, memory = 0.0, 0.0
    for one in tree(pid):
        try:
            parts = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            share = Path(f"/proc/{one}/smaps_rollup").read_text().partition("Pss:")[2].split()[0]
        except OSError:
            continue
        seconds += sum(map(int, parts[11:15])) / os.sysconf("SC_CLK_TCK")
        memory += int(share) / 1024
    return seconds, memory


@contextmanager
def served(words, address, where):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, *(w.format(port=port) for w in words)], cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    place, end = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{place}{address}", timeout=60).read()
                break
            except OSError:
                assert time.monotonic() < end and child.poll() is None, "the server did not start"
                time.sleep(0.5)
        yield place, child.pid
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(30)


def first_content(browser, address, ready):
    "Milliseconds to the first contentful paint, as the browser says; once everything is there."
    page = browser.new_page()
    page.goto(address, wait_until="load", timeout=120_000)
    page.wait_for_selector(ready, timeout=120_000, state="attached")
    told = page.evaluate("performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)[0]")
    return told, page


def looked_at(browser, name, address, ready, pid=None, aim=None):
    "The middle of some views, the first of which warms up; and processor seconds of each."
    first_content(browser, address, ready)[1].close()
    before, told = spent(pid)[0] if pid else 0.0, []
    for _ in range(VIEWS):
        ms, page = first_content(browser, address, ready)
        told.append(ms / 1000)
        page.close()
    took = (spent(pid)[0] - before) / VIEWS if pid else 0.0
    middle = sorted(told)[VIEWS // 2]
    word = "" if aim is None else f"at most {aim:g}: {'kept' if middle <= aim else 'BROKEN'}"
    print(LINE.format(f"first content, {name}", middle, "s", word), flush=True)
    if pid:
        print(LINE.format("... processor of the server, whole page and desk", took, "s", ""), flush=True)


def main():
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        folder = Path(place)
        settings = load_settings(root=sys.argv[1] if sys.argv[1:] else folder / "system", home=HOME)
        if not sys.argv[1:]:
            world.lived(settings)
        write_snapshot(settings, folder / "pages")
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
        cell = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": "from ipywidgets import Button\nButton(description='one')"}  # fmt: skip
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        plain = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        (folder / "plain").mkdir()
        (folder / "plain/one.ipynb").write_text(json.dumps(plain))
        browser = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        looked_at(browser, "a file", (folder / "pages/churn-model.html").as_uri(), "h1", aim=1)
        words = [
            "-c",
            COMMAND,
            "dashboard",
            "--root",
            str(settings.root),
            "--token",
            "none",
            "--port",
            "{port}",
        ]
        with served(words, "/favicon.ico", HOME) as (at, pid):
            looked_at(browser, "behind the server", f"{at}/churn-model.html", "h1", pid, aim=1)
            desk = f"{at}/voila/render/reviews.ipynb?problem=churn"
            looked_at(browser, "with a warm kernel", desk, "#mls-desk button", pid, aim=2)
            pages = [first_content(browser, desk, "#mls-desk button")[1] for _ in range(SESSIONS)]
            memory = spent(pid)[1]
            word = f"at most 2000: {'kept' if memory <= 2000 else 'BROKEN'}"
            print(
                LINE.format(f"{len(pages)} sessions at once, share of memory (PSS)", memory, "MB", word),
                flush=True,
            )
            for page in pages:
                page.close()
        words = ["-m", "voila", "one.ipynb", "--no-browser", "--port={port}", "--Voila.ip=127.0.0.1"]
        with served(words, "/voila/static/voila.js", folder / "plain") as (at, pid):
            looked_at(browser, "plain Voila, one button", f"{at}/", "button", pid)
        browser.close()


if __name__ == "__main__":
    main()
