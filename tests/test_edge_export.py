"A version in a folder of its own: the bits of the package for every family and kind, hostile rows, damage, the printed lines."

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import calls_world
import numpy as np
import polars as pl
import pytest
import serving_world
import tools_world
from test_families import KINDS, learner, rows

from mlsys_nb.doors.cli import main
from mlsys_nb.learning.candidate_rows import numbers_of
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.model_correction import Corrected
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.dataset import build_dataset
from mlsys_nb.release.corrected_package import amended
from mlsys_nb.release.edge_export import export
from mlsys_nb.release.manifest import Evidence
from mlsys_nb.release.package import PackageError, build, load, open_package, seal

ODD = [
    None,
    "",
    "∅ never seen",
    "NOISY",
    "lovely lovely",
    "a" * 12_000,
    "\ud800 half",
    "日本語の本",
    "x\x00y",
    "  ",
]


def exported(tmp_path: Path, package, name: str = "p"):
    "A package sealed, given away, and what its file predicts with."
    seal(package, tmp_path / name)
    model = load(tmp_path / name, version=7)
    given = export(model, tmp_path / name, tmp_path / f"{name}-given")
    spec = importlib.util.spec_from_file_location(f"given_{name}", given.path / "predictor.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return model, given, module.Predictor(given.path)


def same(model, predictor, asked: list[dict]) -> None:
    together, alone = model.predict(asked), [model.predict([row]) for row in asked]
    theirs = predictor.predict(asked)
    numbers = lambda p: p.p if hasattr(p, "p") else p
    assert np.asarray(numbers_of(together)).tobytes() == np.asarray(numbers(theirs)).tobytes()
    for row, one in zip(asked, alone, strict=True):
        assert (
            np.asarray(numbers_of(one)).tobytes() == np.asarray(numbers(predictor.predict([row]))).tobytes()
        ), row


def hostile(frame: pl.DataFrame, names: list[str], n: int = 40) -> list[dict]:
    "Real rows, and the same with whatever else may come."
    rng, found = np.random.default_rng(1), frame.select(names).head(n).to_dicts()
    for row in frame.select(names)[n : 2 * n].to_dicts():
        for name in rng.choice(names, max(1, len(names) // 3), replace=False):
            text = isinstance(frame.schema[name], pl.String)
            row[name] = (
                rng.choice(np.array(ODD, dtype=object))
                if text
                else rng.choice([None, 0, -1e300, 1e300, 3, float("nan")])
            )
        found.append(row)
    return found


@pytest.mark.parametrize("link", KINDS)
@pytest.mark.parametrize("family", ["linear", "boosting", "rule", "table", "neighbours"])
def test_every_family_and_kind_gives_the_bits_of_its_package(tmp_path, link, family):
    data = serving_world.dataset()
    extra = rows(3, data.frame.height).select("said", "amount", "kind", "event")
    data = replace(data, frame=data.frame.hstack(extra))
    features = [*data.features, "said"] if family not in ("table", "neighbours") else list(data.features)
    params = {"max_iter": 15} if family == "boosting" else {}
    about = {"learner": learner(link), "rule": Rule.table(data.features[0]), "params": params}
    package = build(fit(family, data.frame, features, label=KINDS[link], **about), data)
    model, given, predictor = exported(tmp_path, package)
    assert given.golden >= 32 and 0 < given.milliseconds < 1_000
    same(model, predictor, hostile(data.frame, features))


def test_a_corrected_version_is_exported_with_its_correction(tmp_path):
    plain = open_package(serving_world.package("linear"))
    corrected = Corrected(plain.link, 0.8, (0.3,))
    package = amended(plain, corrected, serving_world.dataset(), Evidence())
    model, _, predictor = exported(tmp_path, package)
    asked = hostile(serving_world.dataset().frame, list(model.feature_names))
    same(model, predictor, asked)
    assert not np.array_equal(model.predict(asked[:9]), plain.predict(asked[:9]))


@pytest.mark.parametrize("family", ["linear", "rule"])
def test_a_choice_among_candidates_is_exported(tmp_path, family):
    problem, end = tools_world.problem, tools_world.START + 50 * tools_world.DAY
    data = build_dataset(
        problem, tools_world.lake(n=1_500), problem.population.periods(end), end, learning=True
    ).learnable()
    how = {"learner": problem.target.learner, "moment": "period", "rule": problem.rule}
    package = build(fit(family, data.frame, problem.inputs, **how), data)
    model, _, predictor = exported(tmp_path, package)
    lists = [problem.target.among.item, *model.inputs.names]
    asked = [
        {name: list(v) if v is not None else None for name, v in row.items()}
        for row in data.frame.select(lists).head(40).to_dicts()
    ]
    asked.append(dict.fromkeys(lists, []))
    same(model, predictor, asked)
    told = predictor.answers(asked[:1])[0]["candidates"]
    assert [one["item"] for one in told] == asked[0][lists[0]]
    with pytest.raises(ValueError, match="give lists of equal length"):
        predictor.predict([{**asked[0], lists[0]: asked[0][lists[0]][:-1]}])


@pytest.fixture(scope="module")
def desk():
    "A choice of a class, from few calls."
    problem, now = calls_world.desk, calls_world.START + 60 * calls_world.DAY
    told, known = calls_world.rows(2_000)
    frames = {"calls": told, "answers": known, "faults": calls_world.broken()}
    ids = {"calls": "call", "answers": "call", "faults": "fault"}
    frames = {
        n: f.with_columns(pl.col("at").dt.replace_time_zone("UTC")).with_columns(
            known_at="at", event_id=ids[n]
        )
        for n, f in frames.items()
    }
    from mlsys_nb.problem.dataset import Lake, training_periods

    data = build_dataset(problem, Lake(frames, ()), training_periods(problem, now), now).learnable()
    return build(fit("linear", data.frame, problem.features.names, learner=problem.learner), data)


def test_classes_are_named_and_a_line_in_is_a_line_out(tmp_path, desk):
    model, given, predictor = exported(tmp_path, desk)
    row = dict(model.background[0])
    (told,) = predictor.answers([row])
    assert list(told["classes"]) == ["office", "field", "store"]
    assert list(told["classes"].values()) == model.predict([row])[0].tolist()
    ask = [sys.executable, "-I", str(given.path / "predictor.py")]
    said = subprocess.run(
        ask, input=json.dumps(row) + "\n\n" + json.dumps(row), capture_output=True, text=True, check=True
    ).stdout
    assert [json.loads(line) for line in said.splitlines()] == [told, told]


def test_the_printed_lines_run_as_printed_and_say_size_and_latency(tmp_path, desk):
    _, given, _ = exported(tmp_path, desk)
    text = (given.path / "README.md").read_text()
    size = sum(p.stat().st_size for p in given.path.iterdir() if p.name not in ("README.md", "manifest.json"))
    assert f"{size:,} bytes; one row in {given.milliseconds:.3f} ms" in text and size == given.bytes
    block = re.search(r"```sh\n(.*?)```", text, re.S)[1]
    ran = subprocess.run(["bash", "-e"], input=block, cwd=given.path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    golden, answer = ran.stdout.splitlines()
    assert golden.startswith(f"{given.golden} golden rows, bit for bit") and "classes" in json.loads(answer)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_golden.py"],
        cwd=given.path,
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0, tested.stdout


def test_the_file_needs_nothing_but_numpy(tmp_path, desk):
    _, given, _ = exported(tmp_path, desk)
    code = f"""
import sys
sys.path.insert(0, {str(given.path)!r})
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlsys_nb", "polars", "pandas", "sklearn", "scipy", "orjson"):
            raise ImportError(name)
sys.meta_path.insert(0, Nothing())
import test_golden
test_golden.test_golden()
print("well")
"""
    ran = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "well", ran.stderr


def test_an_export_whose_golden_test_fails_is_not_given_away(tmp_path, monkeypatch):
    from mlsys_nb.release import edge_export

    seal(serving_world.package("linear"), tmp_path / "p")
    model = load(tmp_path / "p")
    code = edge_export._predictor_code
    monkeypatch.setattr(
        edge_export, "_predictor_code", lambda m: code(m).replace("1.0 / (1.0", "1.0000000000000002 / (1.0")
    )
    with pytest.raises(PackageError, match="its golden test failed: AssertionError"):
        export(model, tmp_path / "p", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_the_champion_or_another_version(tmp_path, capsys):
    here = serving_world.make(tmp_path / "root")
    words = ["export", "churn", "--root", str(here.root)]
    assert main([*words, str(tmp_path / "till")]) == 0
    said = capsys.readouterr().out
    assert "version 1 of churn" in said and "golden rows, bit for bit" in said
    assert main([*words, str(tmp_path / "till")]) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "other"), "--version", "2"]) == 0
    assert json.loads((tmp_path / "other" / "manifest.json").read_text())["version"] == 2
