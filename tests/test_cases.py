"""The shipped cases on a small share of their data: each is short, arrives, trains, serves, is watched, and means the same
bits in history and in what was served. `TEST_MLSYS_CASES=full` replays the whole of each, as `make long` does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import polars as pl
import pytest

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.doors.cli import main
from mlsys_nb.loop.backtest import backtest
from mlsys_nb.loop.candidate_checks import leaks
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import monitor, score, train
from mlsys_nb.loop.step_context import Context, context
from mlsys_nb.loop.training_serving_skew import certificate, served_again
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import load_settings

scope_room = import_module("mlsys_nb.loop.feasibility")  # the face of the floor has a function of that name
ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "data/raw"
TRAINED = {  # when each is trained
    "returns": "2010-04-01", "demand": "2010-04-05", "traffic": "2018-01-01", "loans": "1990-08-01", "sentiment": "2014-02-01",
}  # fmt: skip


def shares(folder):
    "A quarter of the customers, half a year of hours, a month of texts, and the few loans there are."
    folder.mkdir()
    lines = pl.read_parquet(RAW / "online_retail_year1_lines.parquet")
    lines = lines.filter(
        (pl.col("customer_id") % 4 == 3) & (pl.col("invoice_ts") < instant("2010-04-10").replace(tzinfo=None))
    )
    lines.write_parquet(folder / "online_retail_year1_lines.parquet")
    texts = pl.read_parquet(RAW / "vader_rated_text.parquet").head(3_200)
    texts.write_parquet(folder / "vader_rated_text.parquet")
    hours = pl.read_csv(RAW / "metro_traffic_volume.csv.gz", infer_schema=False)
    hours.filter(pl.col("date_time") >= "2017-06-05").write_csv(folder / "metro_traffic_volume.csv")
    (folder / "hmda_loanapp.csv.gz").write_bytes((RAW / "hmda_loanapp.csv.gz").read_bytes())


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    place = tmp_path_factory.mktemp("cases")
    shares(place / "raw")
    return replace(load_settings(root=place), raw=place / "raw", tracking_uri="off")


def smaller(at):
    "Traffic reads the share of its file, which is not packed."
    if at.problem.name != "traffic":
        return at
    [source] = at.problem.sources
    return Context(
        at.settings, replace(at.problem, sources=(replace(source, path="metro_traffic_volume.csv"),)), at.now
    )


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "nbs/cases").glob("[a-z]*.ipynb")))
def test_a_case_is_declared_in_at_most_120_lines(name):
    cells = json.loads((ROOT / f"nbs/cases/{name}.ipynb").read_text())["cells"]
    exported = [c["source"] for c in cells if "".join(c["source"]).startswith("#| export")]
    code = [
        line
        for cell in exported
        for line in "".join(cell).splitlines()
        if line.strip() and not line.startswith("#|")
    ]
    assert len(code) <= 120, len(code)


@pytest.fixture(scope="module", params=TRAINED)
def lived(request, settings):
    "A case that was ingested, trained with a short search, and has scored."
    at = smaller(context(request.param, TRAINED[request.param], settings))
    ingest_due(at)
    trained = train(at, n_trials=1)
    return at, trained, score(at)


def test_a_case_trains_scores_and_is_watched(lived):
    at, trained, scored = lived
    assert trained.outputs["champion"] is not None, trained.reason
    assert scored.batch.rows >= 20
    made = read_decisions(at.settings, at.problem.name)
    assert made.height == scored.batch.rows and set(at.problem.entity) <= set(made.columns)
    watched = monitor(smaller(context(at.problem.name, TRAINED[at.problem.name], at.settings)))
    assert watched.performance.verdict in ("not enough labels", "as promised")


def test_no_case_is_stopped_as_a_leak(lived):
    "Traffic of the week before tells 89 % of tomorrow's, and was named as a leak."
    _, trained, _ = lived
    [check] = [c for c in trained.candidate.verdict.checks if c.name == "leakage"]
    assert check.passed, check.meaning


@pytest.mark.parametrize(
    "name, when", [("churn", "2010-04-01"), ("conversion", "2010-04-08"), ("next_product", "2010-04-05")]
)
def test_no_other_case_is_suspected(name, when, settings):
    at = context(name, when, settings)
    ingest_due(at)
    assert not [s for s in leaks(at.problem, training_set(at).frame) if s.sure]


SCOPED = {**TRAINED, "churn": "2010-04-01", "conversion": "2010-04-08", "next_product": "2010-09-01"}


@pytest.mark.parametrize("name", SCOPED)
def test_every_case_can_be_scoped(name, settings, tmp_path, monkeypatch):
    "`mlsys scope next_product` gave up: a table to look up has no cell for candidates."
    monkeypatch.setattr(scope_room, "SHUFFLES", 2)
    if name == "next_product":  # fewer customers for longer: its first choices are known in spring
        lines = pl.read_parquet(RAW / "online_retail_year1_lines.parquet").filter(
            pl.col("customer_id") % 30 == 3
        )
        (tmp_path / "raw").mkdir()
        lines.write_parquet(tmp_path / "raw/online_retail_year1_lines.parquet")
        settings = replace(load_settings(root=tmp_path), raw=tmp_path / "raw", tracking_uri="off")
    at = smaller(context(name, SCOPED[name], settings))
    ingest_due(at)
    found = scope_room.scope(at)
    assert found.verdict in ("go", "re-scope", "stop") and found.reasons and found._repr_html_()
    if name != "conversion":  # a month of it has too few periods, and says so
        deciders = found.contestants["decided by"].to_list()
        assert deciders[:2] == ["nothing known", "the rule"] and deciders[-1] == "a quick model"
        assert len(found.facts["signal"]) > 20 and found.metrics["needed"] >= 0
    assert not [s for s in found.suspects if s.sure]


def test_all_cases_are_scoped_and_there_is_no_other():
    assert set(SCOPED) == {p.stem for p in (ROOT / "nbs/cases").glob("*.ipynb")} - {"00_index"}


def test_a_case_is_examined_and_has_a_card(lived, capsys):
    at, trained, _ = lived
    found, manifest = trained.candidate.examined, trained.candidate.package.manifest
    parts = {row["feature"]: row["mean_part"] for row in manifest["examined"]["lives_on"]}
    assert max(parts.values()) > 0 and set(parts) <= set(at.problem.inputs)
    assert {c["name"] for c in manifest["verdict"]["checks"]} >= {"leakage", "influence", "source cap"}
    assert all(c.passed for c in found.checks), [c.meaning for c in found.checks if not c.passed]
    assert set(found.missing["feature"]) == set(at.problem.inputs)
    number = str(trained.release.version)
    assert main(["card", at.problem.name, "--version", number, "--root", str(at.settings.root)]) == 0
    shown = capsys.readouterr().out
    assert (
        "## To know" in shown
        and "## What it lives on" in shown
        and f"sealed {manifest['seal'][:12]}" in shown
    )
    assert "Examined" in trained._repr_html_()
    if at.problem.name == "loans":
        says = dict(found.groups.table.select("value", "says").unique().rows())
        assert set(says) == {"white", "black", "hispanic"} and "## Groups" in shown


def test_a_case_has_the_same_bits_wherever_it_is_computed(lived):
    at, _, scored = lived
    assert certificate(at, 250, anew=True)["passed"]
    again = served_again(at)
    assert again.rows == scored.batch.rows and set(again.equal.values()) == {1.0}, again.examples


def test_a_case_is_judged_against_its_rule_by_the_stretches_asked_for(lived):
    "The rule of a number or of classes was fitted as if it answered yes or no."
    at, _, scored = lived
    week = instant(TRAINED[at.problem.name]) + at.problem.matures_after * 2
    later = Context(at.settings, at.problem, week)
    found = backtest(later, [at.now])
    assert found.frame["moment"].unique().to_list() == [at.now] if found.frame.height else at.problem.horizon
    labelled = found.frame.filter(who="rule")["n"].sum()
    assert 0 <= labelled <= scored.batch.rows and (labelled or at.problem.horizon)


def test_what_hangs_together_and_what_no_model_reads(settings):
    problems = {name: context(name, TRAINED[name], settings).problem for name in TRAINED}
    assert problems["returns"].keys == ("customer_id",) and problems["traffic"].keys == ("day",)
    assert "group" in problems["loans"].entity and "group" not in problems["loans"].features.names


@pytest.mark.skipif(os.environ.get("TEST_MLSYS_CASES") != "full", reason="minutes each; make long")
@pytest.mark.parametrize("name", TRAINED)
def test_the_whole_of_a_case_is_replayed(name, tmp_path):
    command = [Path(sys.executable).with_name("mlsys"), "demo", name, "--root", tmp_path / name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(f"== {name}\n" + done.stdout[done.stdout.index("| month") :])
