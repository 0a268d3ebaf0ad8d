"""`mlsys lab NAME` as a user meets it: the notebook opens in a real browser, all its cells run, its cards are shown and nothing fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import picture, until
from ports import free_port
from strange_tables import decisions
from walks import run

MLSYS = Path(sys.executable).with_name("mlsys")
DONE = "Array.from(document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')).map(e => e.textContent.trim())"


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    "What the command gives to the browser when it opens a new problem: a page that leads to the notebook."
    pytest.importorskip("jupyterlab")
    place = tmp_path_factory.mktemp("lab")
    table = decisions(3, place / "tables", n=900) if (place / "tables").mkdir() is None else None
    run([MLSYS, "init", place / "shop"], place)
    run([MLSYS, "new", "mine", "--from", table.file, *table.options], place / "shop")
    (place / "config").mkdir()
    quiet = {"ServerApp": {"use_redirect_file": True}}  # the command itself sees to root, news and updates
    (place / "config/jupyter_server_config.json").write_text(json.dumps(quiet))
    opens = place / "opens.sh"
    opens.write_text(f'#!/bin/sh\necho "$1" > {place}/address.txt\n')
    opens.chmod(0o755)
    port = free_port()
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLSYS_", "JUPYTER_", "PYTHONPATH"))}
    more = {"JUPYTER_CONFIG_DIR": place / "config", "JUPYTER_RUNTIME_DIR": place / "runtime", "JUPYTER_DATA_DIR": place / "data",
            "JUPYTER_PORT": port, "IPYTHONDIR": place / "ipython", "BROWSER": f"{opens} %s"}  # fmt: skip
    with (place / "said.txt").open("w") as said:
        process = subprocess.Popen([MLSYS, "lab", "mine"], cwd=place / "shop", stdout=said, stderr=said,
                                   env=own | {k: str(v) for k, v in more.items()}, start_new_session=True)  # fmt: skip
    try:
        told = place / "address.txt"  # whole, once its line has ended
        until(lambda: process.poll() is not None or told.exists() and told.read_text().endswith("\n"))
        assert process.poll() is None, (place / "said.txt").read_text()[-2000:]
        yield told.read_text().strip(), place
    finally:
        os.kill(
            process.pid, signal.SIGTERM
        )  # SIGINT is ignored by whatever a shell has begun in the background
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def opened(browser, address: str):
    "The page on which somebody has asked for all cells to be run, once its kernel is there."
    high = {"width": 1400, "height": 2400}  # every cell is in view, and drawn
    page = browser.new_page(viewport=high)
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
    assert page.get_by_role("tab", name=re.compile("mine.ipynb")).count()
    page.wait_for_selector(
        '.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=90_000, state="attached"
    )
    assert not page.locator(".jp-Dialog").count(), "nothing is asked of whoever opens a notebook"
    page.wait_for_timeout(1500)
    assert not page.locator(".lm-TabBar-tab.jp-mod-dirty").count(), "opened is not changed"
    for _ in range(4):  # a busy machine says idle before it listens; then one asks again
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.get_by_role("menuitem", name=re.compile(r"^Run All Cells")).click()
        end = time.monotonic() + 15
        while time.monotonic() < end:
            page.wait_for_timeout(500)
            if set(page.evaluate(DONE)) - {"[ ]:"}:
                return page
    return page


def failed(page) -> list[str]:
    return page.locator(".jp-Notebook .jp-OutputArea-output", has_text="Traceback").all_inner_texts()


def ran(page, seconds: float = 150) -> list[str]:
    "The numbers before all code cells, once the last of them has one."
    end, told = time.monotonic() + seconds, list[str]()
    while time.monotonic() < end and not failed(page):
        told = page.evaluate(DONE)
        if told and all(re.fullmatch(r"\[\d+\]:", one) for one in told):
            return told
        page.wait_for_timeout(500)
    raise AssertionError(f"cells did not all run: {told} {failed(page)}")


def test_the_notebook_of_a_new_problem_opens_and_all_of_its_cells_run(browser, lab):
    address, place = lab
    page = opened(browser, address)
    numbers = ran(page)
    cells = json.loads((place / "shop/notebooks/mine.ipynb").read_text())["cells"]
    assert len(numbers) == sum(c["cell_type"] == "code" for c in cells) >= 3
    assert not page.locator('.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]').count()
    assert page.locator(".jp-Notebook .mls-card").count(), "what a cell gives is trusted, and shown as a card"
    picture(page, "lab")
