"""The `mlsys` command as a user meets it: exit codes, one clear line, no traceback, quick help."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from mlsys_nb.doors.cli import COMMANDS, failure, main, parser
from mlsys_nb.system.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]


def mlsys(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out, err


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
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "mlsys_nb.doors.cli"], capture_output=True)
        command = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(['--help']))"
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
        took.append((time.perf_counter() - began) / 2)
        assert "COMMAND" in done.stdout
    assert min(took) < 0.5, took  # 0.12 s on an idle machine


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
        (["serve", "nope"], "churn"),
        (["features", "churn", "--entity", "customer=1"], "customer_id"),
        (["features", "churn", "--entity", "customer_id=abc"], "declared as int"),
        (["features", "churn", "--entity", "customer_id=1"], "ingest"),
        (["parity", "nope"], "churn"),
        (["demo", "--problem", "nope"], "churn"),
        (["features", "churn", "--entity", "customer_id=1", "--at", ""], "ISO 8601"),
        (["train", "churn", "-p", "problem=returns"], "problem is given once"),
        (["runs", "--problem", "nope"], "no problem 'nope'"),
        (["runs", "--job", "nope"], "no job 'nope'"),
        (["serve", "churn", "--port", "70000"], "choose another"),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_clear_line(capsys, root, words, says):
    code, out, err = mlsys(capsys, *words, "--root", root)
    assert code == 2, err
    assert err.startswith("error: ")
    assert says in err
    assert len(err.splitlines()) == 1


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
    assert mlsys(capsys, "demo", "--problem", "nope", "--root", root)[1] == ""


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
    assert done.stderr == ""


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
