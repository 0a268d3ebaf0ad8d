"""The `mlsys` command as a user meets it: exit codes, one clear line, no traceback, quick help."""

import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import visits_world
from conftest import until
from ports import free_port

from mlsys_nb.doors.cli import COMMANDS, failure, main, parser
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.jobs.run_artifacts import record_for, write_report
from mlsys_nb.system.clock import open_clock
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.runs_table import Run, finish_run, list_runs
from mlsys_nb.system.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]


def mlsys(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    quiet = [line for line in err.splitlines(keepends=True) if not line.startswith("... ")]  # progress
    return code, out, "".join(quiet)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return str(tmp_path / "system")


def test_every_command_explains_itself(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            parser().parse_args([name, "--help"])
        assert ended.value.code == 0
        assert len(capsys.readouterr().out.splitlines()) >= 4


def test_help_is_quick():
    took = []
    for _ in range(3):
        began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        command = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(['--help']))"
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        took.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began)
        assert "COMMAND" in done.stdout
    assert min(took) < 0.5, took  # seconds of processor; 0.12 on an idle machine


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "nope"], "no job 'nope'"),
        (["run", "../x"], "no job '../x'"),
        (["run", "train", "-p", "problem=chrun"], "churn"),
        (["run", "train", "-p", "sed=7"], "declares no parameter 'sed'"),
        (["run", "train", "-p", "seed=seven"], "declared as int, got 'seven'"),
        (["run", "train", "-p", "seed"], "name=value"),
        (["run", "train", "-p", "seed=1", "-p", "seed=2"], "given once"),
        (["train", "nope"], "churn"),
        (["train", "churn", "--now", "yesterday"], "ISO 8601"),
        (["champion", "nope"], "churn"),
        (["champion", "churn"], "mlsys train churn"),
        (["rollback", "churn", "--reason", "x"], "error: "),
        (["withdraw", "churn", "2010-01-01", "--reason", "x"], "batch '2010-01-01': none has it"),
        (["withdraw", "churn", "2010-01-01"], "--reason"),
        (["serve", "nope"], "churn"),
        (["features", "churn", "--entity", "customer=1"], "customer_id"),
        (["features", "churn", "--entity", "customer_id=abc"], "declared as int"),
        (["features", "churn", "--entity", "customer_id=1"], "ingest"),
        (["parity", "nope"], "churn"),
        (["demo", "nope"], "churn"),
        (["features", "churn", "--entity", "customer_id=1", "--at", ""], "ISO 8601"),
        (["train", "churn", "-p", "problem=returns"], "problem is given once"),
        (["runs", "--problem", "nope"], "no problem 'nope'"),
        (["runs", "--job", "nope"], "no job 'nope'"),
        (["serve", "churn", "--port", "70000"], "from 0 to 65535"),
        (["trian", "churn"], "did you mean train?"),
        (["train", "churn", "--nwo", "x"], "did you mean --now?"),
        (["train", "chrun"], "no problem 'chrun'"),
        (["run", "trian"], "did you mean train?"),
        (["train", "churn", "-p", "n_trials=-1"], "n_trials is within 0..1000, got -1"),
        (["--now", "2010-05-01", "problems"], "problems takes no --now"),
        (["--json", "train", "churn"], "train takes no --json"),
        (["run", "ingest", "--now", "x", "-p", "now=y"], "now is given once"),
        (["parity", "churn", "--cases", "0"], "from 1 to 10000000"),
        (["runs", "--limit", "0"], "from 1 to"),
        (["promote", "churn", "7", "--reason", "x"], "no version 7"),
        (["decision", "h000000-7-abcdef12"], "a decision id comes from an answer"),
        (["dashboard", "modle"], "did you mean model?"),
        (["completion", "fish"], "bash"),
        (["stream", "none.jsonl", "nope"], "no problem 'nope'"),
        (["stream", "none.jsonl", "churn"], "there is none at none.jsonl"),
        (["stream", "none.jsonl"], "problem"),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_clear_line(capsys, root, words, says):
    code, out, err = mlsys(capsys, *words, "--root", root)
    assert code == 2, err
    assert err.startswith("error: ")
    assert says in err.replace(f" --root {root}", "")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_what_is_told_where_a_root_was_typed_works_on_that_root(capsys, tmp_path, words):
    shop = str(tmp_path / "my shop")
    code, _, err = mlsys(capsys, "champion", "churn", "--root", shop, *words)
    told = re.search(r"mlsys .*", err)
    assert code == 2 and told
    options = parser().parse_args(shlex.split(told[0])[1:])
    assert (options.root, options.command, options.problem) == (shop, "train", "churn")
    _, _, err = mlsys(capsys, "champion", "churn")
    assert "--root" not in err


@pytest.mark.parametrize(
    "text", ["[system]\nrot = x\n", "[sytem]\n", "[service]\nport = many\n", "no section\n", "[system\n"]
)
def test_a_bad_settings_file_is_named(capsys, tmp_path, monkeypatch, text):
    (tmp_path / "settings.ini").write_text(text)
    monkeypatch.chdir(tmp_path)
    code, _, err = mlsys(capsys, "runs")
    assert code == 2
    assert "settings.ini" in err


def test_a_bad_environment_variable_is_named(capsys, root, monkeypatch):
    monkeypatch.setenv("MLSYS_PORT", "many")
    code, _, err = mlsys(capsys, "runs", "--root", root)
    assert (code, "MLSYS_PORT" in err) == (2, True)


def test_a_missing_raw_file_is_named(capsys, root, monkeypatch, tmp_path):
    monkeypatch.setenv("MLSYS_RAW", str(tmp_path / "nowhere"))
    monkeypatch.setenv("MLSYS_TRACKING_URI", "off")
    code, _, err = mlsys(capsys, "ingest", "churn", "--now", "2010-01-01", "--root", root)
    assert code == 1, "the job ran and failed"
    assert "nowhere" in err
    report = re.search(r"report: (\S+)", err)[1]
    assert "nowhere" in Path(report).read_text()


def test_looking_at_an_empty_system(capsys, root):
    assert mlsys(capsys, "runs", "--root", root) == (0, f"no runs yet in {root}\n", "")
    assert "no champion yet" in mlsys(capsys, "champion", "churn", "--root", root)[2]
    assert not Path(root).exists(), "looking creates nothing"
    code, out, _ = mlsys(capsys, "problems", "--root", root)
    assert (code, out.split()[0]) == (0, "churn")
    code, out, _ = mlsys(capsys, "reports", "--root", root)
    assert code == 0
    assert "0 runs" in Path(out.strip()).read_text()


@pytest.mark.parametrize(
    "words", [["demo"], ["train", "churn"], ["serve", "churn"], ["reports"]], ids=" ".join
)
def test_a_root_that_is_a_file_is_refused_before_the_work(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        code, out, err = mlsys(capsys, *words, "--root", str(root))
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert "is a file; choose another --root" in err


def test_demo_checks_before_it_speaks(capsys, root):
    assert mlsys(capsys, "demo", "nope", "--root", root)[1] == ""


def test_problems_lists_all_and_marks_the_broken(capsys, tmp_path, monkeypatch):
    lines = "[problems]\naaa = no_such_module:x\nbad = broken_case:x\nchurn = mlsys_nb.cases.churn:problem\n"
    (tmp_path / "settings.ini").write_text(lines)
    (tmp_path / "broken_case.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = mlsys(capsys, "problems")
    assert code == 2
    first, second, third = out.splitlines()
    assert "BROKEN" in first and "BROKEN" in second and "no licence" in second and third.startswith("churn")


def test_a_misspelt_environment_variable_is_refused(capsys, root, monkeypatch):
    monkeypatch.setenv("MLSYS_PROT", "80")
    code, _, err = mlsys(capsys, "runs", "--root", root)
    assert (code, "MLSYS_PROT" in err) == (2, True)


def test_a_damaged_clock_is_named(capsys, root):
    marker = Path(root) / "data" / "clock.json"
    marker.parent.mkdir(parents=True)
    marker.write_text("{")
    code, _, err = mlsys(capsys, "reports", "--root", root)
    assert (code, "clock.json holds the replayed time" in err) == (2, True)


def test_answers_by_kind_of_error():
    assert failure(ModuleNotFoundError("No module named 'fastapi'", name="fastapi"))[0] == 2
    assert failure(PermissionError(13, "denied"))[0] == 2
    assert failure(KeyError("no version 7"))[1] == "error: no version 7"
    assert failure(KeyboardInterrupt())[0] == 130
    assert failure(AttributeError("x"))[0] == 70


def test_debug_shows_where(capsys, root):
    with pytest.raises(FileNotFoundError):
        main(["run", "nope", "--root", root, "--debug"])


def test_a_closed_pipe_is_no_error(root):
    command = f"{sys.executable} -c 'import sys; from mlsys_nb.doors.cli import main; sys.exit(main())' problems --root {root} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert [line for line in done.stderr.splitlines() if not line.startswith("... ")] == []


def test_the_as_of_row_of_one_customer(capsys, root, monkeypatch):
    monkeypatch.setenv("MLSYS_TRACKING_URI", "off")
    code, out, err = mlsys(capsys, "ingest", "churn", "--now", "2009-12-05", "--root", root)
    assert code == 0, err
    assert "report" in out
    words = [
        "features",
        "churn",
        "--entity",
        "customer_id=13085",
        "--at",
        "2009-12-04T00:00:00Z",
        "--root",
        root,
    ]
    code, out, err = mlsys(capsys, *words)
    assert code == 0, err
    row = json.loads(out)
    assert row["entity"] == {"customer_id": 13085}
    raw = pl.read_parquet(ROOT / "data/raw/online_retail_year1_lines.parquet")
    mine = raw.filter(pl.col("customer_id") == 13085, pl.col("invoice_ts") < pl.datetime(2009, 12, 4))
    assert (
        row["features"]["orders"]
        == mine.filter(~pl.col("invoice").str.starts_with("C"))["invoice"].n_unique()
    )
    assert mlsys(capsys, *words)[1] == out
    code, _, err = mlsys(capsys, *words[:3], "customer_id=1", *words[4:])
    assert (code, "customer_id" in err) == (2, True)
    code, out, _ = mlsys(capsys, "runs", "--root", root)
    assert "ingest" in out
    assert load_settings(root=root).root == Path(root)


def test_fault_21_options_stand_before_or_after(capsys, root):
    for words in (["--root", root, "runs"], ["runs", "--root", root]):
        assert mlsys(capsys, *words) == (0, f"no runs yet in {root}\n", "")
    for words in (["--now", "x", "train", "churn"], ["train", "churn", "--now", "x"]):
        assert "ISO 8601" in mlsys(capsys, *words, "--root", root)[2]


def test_fault_21_listing_commands_answer_in_json(capsys, root):
    one = {
        "champion",
        "diff",
        "explain",
        "forget",
        "influence",
        "replay",
        "reproduce",
        "schedule",
        "tenants",
    }  # They answer about what must be there, or wait; explain with one object
    names = [name for name, command in COMMANDS.items() if "lists" in command.kind and name not in one]
    assert {"problems", "jobs", "runs", "versions", "alerts", "decisions", "conflicts", "verify"} <= set(
        names
    )
    for name in names:
        places = [word for word, _ in COMMANDS[name].options if word == "problem"]
        code, out, err = mlsys(capsys, name, *["churn" for _ in places], "--json", "--root", root)
        assert (code, err) == (0, ""), name
        assert isinstance(json.loads(out), list), name
    assert not Path(root).exists(), "looking creates nothing"


def test_fault_21_an_own_folder_finds_the_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = mlsys(capsys, "jobs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "drill",
        "ingest",
        "monitor",
        "retrain",
        "scope",
        "score",
        "simulate",
        "train",
    ]
    assert "n_trials: int = 12 (1..1000)" in out


def command(*words, cwd=ROOT, **more):
    code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def test_fault_21_a_busy_dashboard_port_is_refused(root):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        process = command("dashboard", "--port", str(other.getsockname()[1]), "--root", root)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "choose another --port" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_fault_21_stopping_the_dashboard_ends_voila(root, number):
    pytest.importorskip("voila")
    port = free_port()
    process = command("dashboard", "--port", str(port), "--root", root)

    def listens():
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", port)) == 0

    until(lambda: process.poll() is not None or listens())
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not listens()


def test_fault_21_completion_is_a_script_that_bash_runs(tmp_path):
    script = subprocess.run(
        [sys.executable, "-c", "from mlsys_nb.doors.cli import main; main(['completion', 'bash'])"],
        capture_output=True, text=True, cwd=ROOT,
    ).stdout  # fmt: skip
    there = Path(sys.executable).parent
    ask = f"PATH={there}:$PATH\n{script}\nCOMP_WORDS=(mlsys train ch); COMP_CWORD=2; _mlsys; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "churn", done.stderr


@dataclass(frozen=True)
class Again:
    share: float


@pytest.mark.parametrize(
    ("passed", "served", "code"),
    [
        (True, None, 0),
        (True, Again(1.0), 0),
        (False, None, 1),
        (True, Again(0.999), 1),
        (False, Again(1.0), 1),
    ],
)
def test_fault_24_the_exit_code_of_parity(capsys, root, monkeypatch, passed, served, code):
    monkeypatch.setattr("mlsys_nb.loop.training_serving_skew.certificate", lambda *a, **k: {"passed": passed})
    monkeypatch.setattr("mlsys_nb.loop.training_serving_skew.served_again", lambda at: served)
    assert mlsys(capsys, "parity", "churn", "--root", root)[0] == code


def test_reports_that_were_removed_for_their_age_are_not_missed(capsys, root, monkeypatch):
    monkeypatch.setenv("MLSYS_REPORT_DAYS", "30")
    settings = load_settings(root=root)
    for month in (1, 5):
        at = datetime(2010, month, 1, tzinfo=UTC)
        run = Run(f"r{month}", "train", "churn", "", "succeeded", at, as_of=at, seconds=1.0)
        run = replace(run, report=f"reports/churn/train/r{month}", finished_at=at)
        record = record_for(run, {"inputs": {}, "metrics": {}}, settings)
        write_report(settings, run, {"notebook": {"cells": []}, "page": "<p>page</p>", "record": record})
        finish_run(open_control(settings), run)
    code, out, _ = mlsys(capsys, "reports", "--now", "2010-05-02", "--root", root)
    assert (code, "(1 reports older than 30 days removed, with what " in out) == (0, True), out
    assert [run.report for run in list_runs(open_control(settings))] == ["", "reports/churn/train/r5"]
    assert mlsys(capsys, "verify", "--root", root)[0] == 0
    code, out, _ = mlsys(capsys, "audit", "--json", "--root", root)
    (line,) = json.loads(out)
    assert (line["action"], line["detail"]["reports"]) == ("remove reports", ["r1"])
    assert "remove reports" in mlsys(capsys, "audit", "--of", "reports", "--root", root)[1]
    assert "nothing was done yet" in mlsys(capsys, "audit", "--of", "churn/champion", "--root", root)[1]


def test_a_stream_is_followed_and_goes_on_after_a_kill(capsys, tmp_path, monkeypatch):
    settings = visits_world.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    path, root = tmp_path / "visits.jsonl", str(settings.root)
    assert mlsys(capsys, "ingest", "visits", "--root", root)[0] == 0
    good = {"events": "visits", "member": 999_007, "minutes": 30, "branch": "north"}
    lines = [json.dumps({**good, "at": f"2024-01-{n:02}T09:00:00Z"}) for n in range(1, 21)]
    path.write_text("\n".join([*lines[:10], '{"events": "other"}']) + "\n")
    words = [sys.executable, "-c", "import sys; from mlsys_nb.doors.cli import main; sys.exit(main())"]
    words += ["stream", str(path), "visits", "--root", root]
    process = subprocess.Popen([*words, "--follow"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("refused     visits: not an event: an event is an object")
    assert process.stdout.readline() == "10 accepted, 0 corrected, 0 repeated, 1 quarantined\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with path.open("a") as file:
        file.write("\n".join(lines[10:] + lines[:1]) + "\n")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == "10 accepted, 0 corrected, 1 repeated, 0 quarantined\n", done
    now = open_clock(settings.clock_file).now()
    with open_online(settings.online) as store:
        assert store.reader(visits_world.features).read({"member": 999_007}, now)["branch"] == "north"
    code, out, _ = mlsys(capsys, "ingest", "visits", "--root", root)
    assert code == 0 and '"rows": 20' in out.replace("rows: 20", '"rows": 20'), out
    code, out, err = mlsys(capsys, "compact", "visits", "--root", root, "--now", "2024-03-01")
    assert code == 0 and "inbox       0 files removed" in out, err
    assert "store       " in out and "without what only moments before 2024-02-18" in out
