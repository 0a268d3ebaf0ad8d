"""Two runs compared: runs of the same thing (twenty in `make long`) differ in nothing, and whatever was planted is named as what explains the rest."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from conftest import FULL
from test_jobs import FIRST, job

from mlsys_nb.doors.cli import main
from mlsys_nb.evaluation.costs import Costs
from mlsys_nb.jobs import run_artifacts
from mlsys_nb.jobs.run_comparison import compare_runs
from mlsys_nb.jobs.runner import Runner
from mlsys_nb.loop.data_lineage import declared_parts, source_parts
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.settings import load_settings

WORK = FIRST + (
    "import numpy as np, polars as pl\nrng = np.random.default_rng(seed)\nbatches = pl.read_csv(data)\n"
    "loss = float(batches['n'].mean()) * scale + float(rng.random())\n"
    "told = pl.DataFrame({'source': ['lines'] * batches.height, 'batch': batches['batch'], 'content': batches['n'].cast(pl.String)})\n"
    "outputs({'decision': 'kept'}, {}, {'loss': loss}, {'batches': told, 'gain': pl.DataFrame({'against': ['rule'], 'gain': [loss]})}, 'Kept')"
)
DECLARE = "data: str = ...\nscale: float = 1.0\nseed: int = 0"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    home = tmp_path_factory.mktemp("compared")
    (home / "settings.ini").write_text("[system]\ntracking_uri = off\n")
    (home / "lines.csv").write_text("batch,n\nmay,3\njune,4\n")
    (home / "other.csv").write_text("batch,n\nmay,3\njune,5\n")
    job(home, "learn", DECLARE, WORK)
    with Runner(load_settings(home=home), preload=()) as runner:
        yield home, runner


def folder(runner, **given):
    done = runner.run("learn", given)
    return runner.settings.root / done.report


@pytest.fixture(scope="module")
def base(place):
    home, runner = place
    return folder(runner, data=str(home / "lines.csv"))


def test_runs_of_the_same_thing_differ_in_nothing(place, base):
    home, runner = place
    again = [folder(runner, data=str(home / "lines.csv")) for _ in range(20 if FULL else 5)]
    assert [compare_runs(base, other).finding for other in again if not compare_runs(base, other).same] == []


@pytest.mark.parametrize(("name", "given"), [("scale", {"scale": 2.0}), ("seed", {"seed": 1})])
def test_a_parameter_is_named(place, base, name, given):
    home, runner = place
    found = compare_runs(base, folder(runner, data=str(home / "lines.csv"), **given))
    assert found.finding == f"explained by parameter {name}: nothing else differs"
    assert {"metric", "figure"} <= {effect.kind for effect in found.effects}


def test_a_batch_of_data_is_named(place, base):
    home, runner = place
    text = (home / "lines.csv").read_text()
    (home / "lines.csv").write_text((home / "other.csv").read_text())
    found = compare_runs(base, folder(runner, data=str(home / "lines.csv")))
    (home / "lines.csv").write_text(text)
    assert found.finding == "explained by data lines june: nothing else differs"


def test_code_is_named(place, base):
    home, runner = place
    path = home / "nbs" / "jobs" / "learn.ipynb"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"* scale", b"* scale * 2"))
    found = compare_runs(base, folder(runner, data=str(home / "lines.csv")))
    path.write_bytes(kept)
    assert found.finding == "explained by code package: nothing else differs"


def test_a_library_is_named(place, base, monkeypatch):
    home, runner = place
    monkeypatch.setattr(
        run_artifacts,
        "libraries",
        lambda: {**json.loads((base / "run.json").read_text())["libraries"], "polars": "9.9"},
    )
    found = compare_runs(base, folder(runner, data=str(home / "lines.csv")))
    assert [cause.name for cause in found.causes] == ["polars"]


def problem():
    return load_problem(load_settings(), "churn")


def parts(problem):
    return dict([*declared_parts(problem, ""), *(part for s in problem.sources for part in source_parts(s))])


def with_column(problem, name, **words):
    "The problem with one column of its source declared otherwise."
    (source,) = problem.sources
    columns = tuple(replace(c, **words) if c.name == name else c for c in source.contract.columns)
    return replace(problem, sources=(replace(source, contract=replace(source.contract, columns=columns)),))


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("source lines invoice_ts.zone", lambda p: with_column(p, "invoice_ts", zone="America/New_York")),
        ("source lines price.minimum", lambda p: with_column(p, "price", minimum=0)),
        ("source lines fresh", lambda p: replace(p, sources=(replace(p.sources[0], fresh="36h"),))),
        ("limits.worth", lambda p: replace(p, limits=replace(p.limits, worth=0.5))),
        ("maturity", lambda p: replace(p, maturity="3d")),
        (
            "costs.false_positive",
            lambda p: replace(p, costs=replace(p.costs, false_positive=p.costs.false_positive * 2)),
        ),
        ("lookback", lambda p: replace(p, lookback=timedelta(days=40))),
    ],
)
def test_each_part_of_a_declaration_has_a_line_of_its_own(what, changed):
    before, after = (parts(one) for one in (problem(), changed(problem())))
    moved = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    assert any(name == what or name.startswith(what) for name in moved), sorted(moved)
    assert len(moved) <= 3, sorted(moved)
    assert isinstance(problem().costs, Costs)
    assert not [name for name, text in before.items() if " at 0x" in text]


def test_the_command_answers_like_diff_and_swaps_in_a_copy(place, base, capsys, monkeypatch):
    home, runner = place
    monkeypatch.chdir(home)
    runs = [json.loads((base / "run.json").read_text())["run_id"]]
    runs += [
        json.loads(
            (folder(runner, data=str(home / "lines.csv"), seed=s, scale=s * 1.0) / "run.json").read_text()
        )["run_id"]
        for s in (3, 3)
    ]
    before = sorted((runner.settings.root / "reports").rglob("run.json"))
    assert main(["diff", runs[1], runs[2]]) == 0
    assert "nothing differs but names and times" in capsys.readouterr().out
    assert main(["diff", runs[0], runs[1], "--swap"]) == 1
    said = capsys.readouterr().out
    assert "2 inputs differ (parameter scale; parameter seed)" in said
    assert "alone     parameter scale: metric loss" in said
    assert "alone     parameter seed: metric loss" in said
    assert "parameter scale, parameter seed each has a share" in said
    assert main(["diff", "nope", runs[1]]) == 2
    assert "none begins so; see mlsys runs" in capsys.readouterr().err
    assert sorted((runner.settings.root / "reports").rglob("run.json")) == before, "a copy was used"
