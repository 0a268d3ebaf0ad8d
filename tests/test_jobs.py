"""The runner under hostile calls, dying kernels and kill -9; reports that are safe to open."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from mlsys_nb.jobs.runner import JobFailed, Runner, run_job
from mlsys_nb.system.control import open_control
from mlsys_nb.system.durable import verify_folder
from mlsys_nb.system.settings import load_settings

KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
FIRST = "from mlsys_nb.jobs.runner import outputs\n"


def job(home: Path, name: str, parameters: str, *code: str) -> None:
    "Write a job notebook as JupyterLab would."
    new = nbformat.v4.new_code_cell
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        new(parameters, metadata={"tags": ["parameters"]}),
        *map(new, code),
    ]
    path = home / "nbs" / "jobs" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("project")
    (home / "settings.ini").write_text(
        "[system]\ntracking_uri = off\n[problems]\nchurn = mlsys_nb.cases.churn:problem\n"
    )
    job(home, "echo", "texts: list[str] = []\nnumber: float = 0.5\nflag: bool = False\nlimit: int | None = None",
        FIRST + "outputs({'texts': texts, 'number': number, 'flag': flag, 'limit': limit})")  # fmt: skip
    job(home, "die", "code: int = 9  # = exit code", "before = 1\nbefore", "import os\nos._exit(code)")
    job(home, "where", "mark: str = 'x'", FIRST + "import os\nfrom mlsys_nb.system.settings import load_settings\n"
        "seen = 'old' in globals()\nold = mark\ns = load_settings()\n"
        "outputs({'root': str(s.root), 'cwd': os.getcwd(), 'seen': seen, 'pid': os.getpid(), "
        "'threads': os.environ['OMP_NUM_THREADS'], 'tracking': s.tracking_uri})")  # fmt: skip
    job(home, "slow", "seconds: float = 60.0\nmarker: str = ...", FIRST + "import os, time\nfrom pathlib import Path\n"
        "Path(marker).write_text(str(os.getpid()))\ntime.sleep(seconds)\noutputs({'slept': seconds})")  # fmt: skip
    job(home, "evil", "name: str = 'x'", "from IPython.display import HTML, SVG, Javascript, display\n"
        "display(HTML('<b>ok</b><script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(2)>'))\n"
        "display(Javascript('alert(3)'))\nprint(name)\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(4)</script></svg>'))")  # fmt: skip
    return home


@pytest.fixture(scope="module")
def runner(home):
    with Runner(load_settings(home=home), preload=()) as runner:
        yield runner


NASTY = [
    "", "it's", 'say "hi"', "back\\slash", "new\nline", "tab\t", "'''", '"""', "{braces}", "%cd ..", "!ls", "#| hide",
    "café 北京 🎁", "\x00\x1f", "x=1\nimport os", "\\N{BULLET}", "\r\n", "‮rtl", "</script><script>alert(1)</script>",
]  # fmt: skip


def test_values_arrive_as_they_were_given(runner):
    run = runner.run("echo", {"texts": NASTY, "number": 1, "flag": True, "limit": -(2**53)})
    assert run.outputs == {"texts": NASTY, "number": 1.0, "flag": True, "limit": -(2**53)}
    page = (runner.settings.root / run.report / "report.html").read_text()
    assert dangers(page) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"text": []}, "declares no parameter 'text'"),
        ({"texts=[]\nimport os": 1}, "declares no parameter"),
        ({"texts": "abc"}, "declared as list[str]"),
        ({"texts": [1]}, "declared as list[str]"),
        ({"number": "0.5"}, "declared as float"),
        ({"number": None}, "declared as float"),
        ({"flag": 1}, "declared as bool"),
        ({"limit": True}, "declared as int | None"),
        ({"limit": 1.5}, "declared as int | None"),
        ({"texts": {"a": 1}}, "declared as list[str]"),
    ],
)
def test_a_wrong_call_leaves_no_trace(runner, given, says):
    before = len(runner.control.runs())
    with pytest.raises(ValueError, match=re.escape(says)):
        runner.run("echo", given)
    assert len(runner.control.runs()) == before


@pytest.mark.parametrize("name", ["nope", "../jobs/echo", "echo.ipynb", "", "/etc/passwd", "a b", "echo\n"])
def test_an_unknown_job_is_told_the_known_ones(runner, name):
    with pytest.raises(FileNotFoundError, match="there are: die, echo"):
        runner.run(name)


def test_a_kernel_that_dies_is_a_failure_with_a_report(runner):
    with pytest.raises(JobFailed, match="kernel died") as caught:
        runner.run("die")
    folder = runner.settings.root / caught.value.run.report
    verify_folder(folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert json.loads((folder / "notebook.ipynb").read_text())["cells"][2]["outputs"], (
        "cells before it are kept"
    )


def test_runs_share_nothing_but_the_settings(runner, home):
    one, two = runner.run("where", {"mark": "a"}).outputs, runner.run("where").outputs
    assert one["pid"] != two["pid"]
    assert not two["seen"]
    assert one["root"] == str(home)
    assert one["cwd"] == str(home)
    assert one["threads"] == str(runner.settings.threads)
    assert one["tracking"] == "off"


def test_the_kernel_sees_settings_that_no_file_holds(home, tmp_path):
    settings = replace(load_settings(home=home), root=tmp_path / "elsewhere", threads=1)
    seen = run_job(settings, "where").outputs
    assert (seen["root"], seen["threads"]) == (str(tmp_path / "elsewhere"), "1")


def dangers(page: str) -> list[tuple]:
    "Whatever in a page could run or request something."
    found = []

    class Look(HTMLParser):
        def handle_starttag(self, tag, attrs):
            for name, value in attrs:
                leads = name in ("src", "href", "action", "data", "srcset") and tag != "a"
                if name.startswith("on") or (leads and not (value or "").startswith("data:image/")):
                    found.append((tag, name, value))
                if (value or "").strip().lower().startswith("javascript:"):
                    found.append((tag, name, value))
            if tag in ("script", "iframe", "object", "embed", "link", "form", "base"):
                found.append((tag,))

    Look().feed(page)
    return found


def test_reports_request_nothing_and_run_nothing(runner):
    run = runner.run("evil", {"name": "<script>alert(5)</script>"})
    page = (runner.settings.root / run.report / "report.html").read_text()
    assert "<b>ok</b>" in page
    assert dangers(page) == []
    assert "default-src 'none'" in page


def test_the_overhead_of_a_run_is_small(runner):
    runner.run("where")
    took = []
    for _ in range(3):
        began = time.perf_counter()
        runner.run("where")
        took.append(time.perf_counter() - began)
    assert min(took) < 1.5, took  # 0.36 s on an idle machine


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start(home: Path, root: Path, marker: Path, seconds: float) -> subprocess.Popen:
    code = (
        "from dataclasses import replace\nfrom pathlib import Path\nfrom mlsys_nb.jobs.runner import run_job\n"
        "from mlsys_nb.system.settings import load_settings\n"
        f"run_job(load_settings(root={str(root)!r}, home={str(home)!r}), 'slow', "
        f"{{'seconds': {seconds}, 'marker': {str(marker)!r}}}, key='once')"
    )
    return subprocess.Popen([sys.executable, "-c", code])


def test_kill_nine_leaves_no_half_report_and_no_orphan(home, tmp_path):
    marker, root = tmp_path / "pid", tmp_path / "system"
    process = start(home, root, marker, 60)
    wait(lambda: marker.exists() and marker.read_text())
    kernel = int(marker.read_text())
    assert alive(kernel)
    process.kill()
    process.wait()
    wait(lambda: not alive(kernel), 5)
    assert not list(root.glob("reports/*/*/*")), "a report before its commit"
    settings = load_settings(root=root, home=home)
    control = open_control(settings)
    assert [run.status for run in control.runs()] == ["running"]
    marker.unlink()
    done = run_job(settings, "slow", {"seconds": 0.0, "marker": str(marker)}, key="once")
    assert done.status == "succeeded"
    assert [run.status for run in control.runs()] == ["interrupted", "succeeded"]
    assert (
        run_job(settings, "slow", {"seconds": 0.0, "marker": str(marker)}, key="once").run_id == done.run_id
    )


def test_killed_between_report_and_note_counts_as_done(home, tmp_path):
    settings = load_settings(root=tmp_path, home=home)
    marker = {"seconds": 0.0, "marker": str(tmp_path / "m")}
    done = run_job(settings, "slow", marker, key="once")
    control = open_control(settings)
    control.start_run(replace(done, status="running", outputs={}, seconds=None, finished_at=None))
    again = run_job(settings, "slow", marker, key="once")
    assert (again.run_id, again.status, again.outputs) == (done.run_id, "succeeded", {"slept": 0.0})
    assert len(control.runs()) == 1


def test_two_callers_of_one_key_do_the_work_once(home, tmp_path):
    root = tmp_path / "system"
    both = [start(home, root, tmp_path / f"m{i}", 0.5) for i in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    runs = open_control(load_settings(root=root, home=home)).runs()
    assert [run.status for run in runs] == ["succeeded"]


def test_ctrl_c_is_calm(home, tmp_path):
    marker, root = tmp_path / "pid", tmp_path / "system"
    words = ["run", "slow", "-p", f"marker={marker}", "--root", str(root)]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())", *words],
        cwd=home, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait(lambda: marker.exists() and marker.read_text())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "stopped" in said
    assert "Traceback" not in said
    wait(lambda: not alive(int(marker.read_text())), 5)
    assert [run.status for run in open_control(load_settings(root=root, home=home)).runs()] == ["interrupted"]
