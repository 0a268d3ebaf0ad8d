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
from types import SimpleNamespace

import nbformat
import pytest
from conftest import until
from test_markup import acting

from mlsys_nb.jobs.kernels import Ahead, Kernels, order_kernel, thread_limits
from mlsys_nb.jobs.run_index import index
from mlsys_nb.jobs.runner import JobFailed, Runner, run_job
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import verify_folder
from mlsys_nb.system.runs_table import list_runs, start_run
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
    before = len(list_runs(runner.control))
    with pytest.raises(ValueError, match=re.escape(says)):
        runner.run("echo", given)
    assert len(list_runs(runner.control)) == before


@pytest.mark.parametrize("name", ["nope", "../jobs/echo", "echo.ipynb", "", "/etc/passwd", "a b", "echo\n"])
def test_an_unknown_job_is_told_the_known_ones(runner, name):
    with pytest.raises(FileNotFoundError, match="there are: .*die, echo"):
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


def test_a_kernel_looks_ahead_for_one_job_only(tmp_path):
    mine, edited = (Ahead(("os:mkdir", str(tmp_path / "mine")), code) for code in ("code", "edited"))
    asked = [(mine, mine, True), (None, mine, True), (mine, None, False), (mine, edited, False)]
    with Kernels(tmp_path, thread_limits(1)) as kernels:
        for ready, wanted, same in asked:
            kernels.prepare(ready)
            pid = kernels._spare[0].pid
            kernel = kernels.take(wanted)
            assert (kernel.pid == pid) is same and kernel.is_alive()
            kernel.shutdown_kernel()
        kernels.prepare(mine)
        until(lambda: (tmp_path / "mine").is_dir())


def test_a_parent_of_kept_older_code_is_asked_for_no_more_than_it_knows(tmp_path):
    "A run is made again by the code it ran with; a word that this has never heard of would end it."
    asked = []
    parent = SimpleNamespace(order=lambda verb, what: asked.append(what) or os.getpid())
    order_kernel(parent, tmp_path / "kernel")
    assert [set(what) for what in asked] == [{"connection_file"}]


@pytest.mark.parametrize("call", ["os:abort", "nowhere:nothing", "os:rmdir"])
def test_a_kernel_that_fails_while_it_looks_ahead_fails_no_job(runner, call):
    before = runner.run("where", ahead=((), (call,)))
    time.sleep(0.3)
    after = runner.run("where", {"mark": call}, ahead=((call,), ()))
    assert after.status == "succeeded" and after.outputs["pid"] != before.outputs["pid"]


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


def test_what_acts_unseen_or_never_ends_fills_no_report(runner):
    "Ten megabytes that begin by turning the line around: as a parameter, in the code, printed, as HTML, in the list of runs."
    run = runner.run("evil", {"name": "\u202e\x1b[2J<script>" + "x" * 10_000_000 + "\u2066"})
    folder = runner.settings.root / run.report
    page, listed = (path.read_text() for path in (folder / "report.html", index(runner.settings)))
    assert len(page) < 1_000_000 and not acting(page) and not acting(listed)
    assert "[U+202E][U+001B]" in page and "characters are left out" in page and dangers(page) == []
    assert len((folder / "notebook.ipynb").read_text()) > 10_000_000, "what ran is kept whole"


def test_the_overhead_of_a_run_is_small(runner):
    "Measured against what a machine as busy as this one needs for starting a kernel in the ordinary way."
    runner.run("where")
    took, ordinary = [], []
    for _ in range(3):
        began = time.perf_counter()
        runner.run("where")
        took.append(time.perf_counter() - began)
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", "import ipykernel.kernelapp, polars, sklearn.ensemble"], check=True
        )
        ordinary.append(time.perf_counter() - began)
    assert min(took) < min(ordinary), (took, ordinary)  # 0.36 s against 1.4 s on an idle machine


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


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
    until(lambda: marker.exists() and marker.read_text())
    kernel = int(marker.read_text())
    assert alive(kernel)
    process.kill()
    process.wait()
    until(lambda: not alive(kernel))
    assert not list(root.glob("reports/*/*/*")), "a report before its commit"
    settings = load_settings(root=root, home=home)
    control = open_control(settings)
    assert [run.status for run in list_runs(control)] == ["running"]
    marker.unlink()
    done = run_job(settings, "slow", {"seconds": 0.0, "marker": str(marker)}, key="once")
    assert done.status == "succeeded"
    assert [run.status for run in list_runs(control)] == ["interrupted", "succeeded"]
    assert (
        run_job(settings, "slow", {"seconds": 0.0, "marker": str(marker)}, key="once").run_id == done.run_id
    )


def test_killed_between_report_and_note_counts_as_done(home, tmp_path):
    settings = load_settings(root=tmp_path, home=home)
    marker = {"seconds": 0.0, "marker": str(tmp_path / "m")}
    done = run_job(settings, "slow", marker, key="once")
    control = open_control(settings)
    start_run(control, replace(done, status="running", outputs={}, seconds=None, finished_at=None))
    again = run_job(settings, "slow", marker, key="once")
    assert (again.run_id, again.status, again.outputs) == (done.run_id, "succeeded", {"slept": 0.0})
    assert len(list_runs(control)) == 1


def test_two_callers_of_one_key_do_the_work_once(home, tmp_path):
    root = tmp_path / "system"
    both = [start(home, root, tmp_path / "m", 0.5) for _ in range(2)]
    assert [p.wait(120) for p in both] == [0, 0]
    runs = list_runs(open_control(load_settings(root=root, home=home)))
    assert [run.status for run in runs] == ["succeeded"]


def test_ctrl_c_is_calm(home, tmp_path):
    marker, root = tmp_path / "pid", tmp_path / "system"
    words = ["run", "slow", "-p", f"marker={marker}", "--root", str(root)]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())", *words],
        cwd=home, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    until(lambda: marker.exists() and marker.read_text())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "stopped" in said
    assert "Traceback" not in said
    until(lambda: not alive(int(marker.read_text())))
    assert [run.status for run in list_runs(open_control(load_settings(root=root, home=home)))] == [
        "interrupted"
    ]


def test_fault_10_a_key_belongs_to_its_job_problem_and_parameters(runner):
    first = runner.run("echo", {"number": 1}, key="2010-06-01")
    assert runner.run("echo", {"number": 1.0}, key="2010-06-01").run_id == first.run_id
    other = runner.run("where", key="2010-06-01")
    assert (other.job, "pid" in other.outputs) == ("where", True), "the key of echo skipped another job"
    again = runner.run("echo", {"number": 2}, key="2010-06-01")
    assert again.outputs["number"] == 2.0, "other parameters are other work"
    assert runner.run("echo", {"number": 2}, key="2010-06-01").run_id == again.run_id
    assert runner.run("echo", {"number": 2}).run_id != again.run_id, "no key: always anew"


def last(runner: Runner):
    return list_runs(runner.control)[-1]


@pytest.mark.parametrize(
    "data", ["{'text/html': 5}", "{'text/html': None}", "{'image/png': 5, 'text/plain': {}}"]
)
def test_fault_16_a_display_that_lies_leaves_a_report(runner, home, data):
    job(home, "lie", "x: int = 1", f"from IPython.display import display\ndisplay({data}, raw=True)")
    done = runner.run("lie")
    assert "not what it says it is" in (runner.settings.root / done.report / "report.html").read_text()


def test_fault_16_false_outputs_are_a_failure_with_a_report(runner, home):
    code = "from IPython.display import display\ndisplay({'application/vnd.mlsys.outputs+json': 5}, raw=True)"
    job(home, "liar", "x: int = 1", code)
    with pytest.raises(JobFailed, match=r"by outputs\(\), got 5; report: "):
        runner.run("liar")
    assert last(runner).status == "failed"


def test_fault_16_a_page_that_cannot_be_made_becomes_a_plain_one(runner, monkeypatch):
    monkeypatch.setattr("mlsys_nb.jobs.run_artifacts.render", lambda *a: 1 / 0)
    with pytest.raises(JobFailed, match="could not be made: ZeroDivisionError"):
        runner.run("echo")
    folder = runner.settings.root / last(runner).report
    verify_folder(folder)
    assert json.loads((folder / "run.json").read_text())["status"] == last(runner).status == "failed"
    assert "outputs(" in (folder / "report.html").read_text()


def test_fault_16_a_full_disk_ends_the_run_as_failed(runner, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlsys_nb.jobs.run_artifacts.write_folder", full)
    with pytest.raises(JobFailed, match="No space left on device; no report could be kept"):
        runner.run("echo")
    assert last(runner).status == "failed"


def test_fault_16_a_job_has_a_time_limit(home, tmp_path):
    settings = replace(load_settings(home=home), root=tmp_path, job_seconds=2.0)
    with pytest.raises(JobFailed, match="longer than 2 s; see the setting job_seconds; report: "):
        run_job(settings, "slow", {"seconds": 60.0, "marker": str(tmp_path / "m")})
    marker = tmp_path / "m"
    assert not marker.exists() or not alive(int(marker.read_text()))  # a busy machine may not get so far


def test_fault_16_no_kernel_outlives_a_killed_parent(home, tmp_path):
    with Runner(replace(load_settings(home=home), root=tmp_path), preload=()) as runner:
        kernel = runner._kernels.take()
        pid = kernel.pid
        runner._kernels._parent.process.kill()
        runner._kernels._parent.process.wait()
        until(lambda: not alive(pid))
        assert not kernel.is_alive()
        kernel.shutdown_kernel()
        with pytest.raises(JobFailed, match="ended unexpectedly"):
            runner.run("echo")


def test_fault_16_whoever_waits_for_another_run_is_told(home, tmp_path, caplog):
    root, marker = tmp_path / "system", tmp_path / "m"
    other = start(home, root, marker, 1.0)
    until(lambda: marker.exists() and marker.read_text())
    run_job(load_settings(root=root, home=home), "slow", {"seconds": 0.0, "marker": str(marker)})
    assert other.wait(90) == 0
    assert "another run of slow is at work; waiting" in caplog.text


@pytest.mark.parametrize("name", ["../../elsewhere", "a/b", "..", "x y", "/tmp"])
def test_fault_22_a_problem_is_a_name_and_no_path(runner, home, name):
    job(home, "about", "problem: str = 'churn'", "problem")
    before = sorted(runner.settings.root.rglob("*"))
    with pytest.raises(ValueError, match="named by letters"):
        runner.run("about", {"problem": name})
    assert sorted(runner.settings.root.rglob("*")) == before


def test_fault_21_a_number_out_of_its_range_starts_no_kernel(runner, home):
    job(home, "search", "n_trials: int = 12  # 1..1000: Trials", "n_trials")
    before = len(list_runs(runner.control))
    for wrong in (0, -1, 1001):
        with pytest.raises(ValueError, match=re.escape(f"n_trials is within 1..1000, got {wrong}")):
            runner.run("search", {"n_trials": wrong})
    assert len(list_runs(runner.control)) == before
