"Package, inference and registry: exact forms, nothing damaged is loaded, one champion at a time."

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import JUNE, dataset, make, package

from mlsys_nb.cases.churn import problem
from mlsys_nb.learning.train import fit
from mlsys_nb.release.inference import Inputs, sigmoid, trees_of
from mlsys_nb.release.package import Evidence, PackageError, build, load, open_package, seal
from mlsys_nb.release.registry import champion, load_champion, promote, register, rollback, versions
from mlsys_nb.system.control import StalePointer, open_control
from mlsys_nb.system.settings import load_settings

FAMILIES = ("rule", "logistic", "boosting")


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_and_many_rows_give_the_same_bits(family):
    model, frame = open_package(package(family)), dataset().frame
    together = model.predict(frame)
    assert [model.predict_one(row) for row in frame.to_dicts()] == together.tolist()
    for size in (2, 3, 7, 255, 256, 257, 511):
        parts = [model.predict(frame[i : i + size]) for i in range(0, frame.height, size)]
        assert np.concatenate(parts).tobytes() == together.tobytes()
    assert model.predict(frame.clear()).shape == (0,)


@st.composite
def tables(draw):
    n, d = draw(st.integers(60, 300)), draw(st.integers(1, 4))
    seed, kinds = draw(st.integers(0, 2**31)), draw(st.lists(st.booleans(), min_size=d, max_size=d))
    rng = np.random.default_rng(seed)
    X = np.column_stack(
        [rng.integers(0, rng.integers(2, 40), n) if k else rng.lognormal(0, 3, n) for k in kinds]
    )
    X = X.astype(float)
    X[rng.random((n, d)) < rng.choice([0.0, 0.1, 0.6])] = np.nan
    y = (
        np.nan_to_num(X, nan=3).sum(axis=1) + rng.normal(size=n) * 3
        > np.nan_to_num(X, nan=3).sum(axis=1).mean()
    ) * 1
    y[:2] = (0, 1)
    return X, y, kinds, seed


@given(tables())
@settings(max_examples=40, deadline=None)
def test_trees_agree_with_scikit_learn_to_the_bit(table):
    from sklearn.ensemble import HistGradientBoostingClassifier

    X, y, kinds, seed = table
    known = [i for i, k in enumerate(kinds) if k and not np.isnan(X[:, i]).all()]
    kinds = [i in known for i in range(len(kinds))]
    model = HistGradientBoostingClassifier(
        max_iter=8, min_samples_leaf=3, categorical_features=kinds, early_stopping=False, random_state=0
    ).fit(X, y)
    rng = np.random.default_rng(seed)
    asked = np.concatenate(
        [X, rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e300, -1e300], size=(20, X.shape[1]))]
    )
    asked[:, kinds] = np.concatenate([X, rng.integers(0, 50, size=(20, X.shape[1]))])[:, kinds]
    trees = trees_of(model, 60)
    assert trees.log_odds(asked).tobytes() == model._raw_predict(asked)[:, 0].tobytes()
    assert [trees.log_odds(asked[[i]])[0] for i in range(0, len(asked), 7)] == trees.log_odds(asked)[
        ::7
    ].tolist()


@given(st.lists(st.floats(-800, 800), min_size=2, max_size=50))
@settings(max_examples=200, deadline=None)
def test_sigmoid(values):
    z = np.array(values)
    p = sigmoid(z)
    assert [sigmoid(z[i : i + 1])[0] for i in range(len(z))] == p.tolist()
    with np.errstate(over="ignore"):
        assert np.abs(p - 1 / (1 + np.exp(-z))).max() < 1e-15
    assert ((p >= 0) & (p <= 1)).all()


def test_whole_numbers_beyond_float_and_booleans():
    inputs = Inputs(("n", "b"), (None, None))
    rows = [{"n": 2**53 + 1, "b": True}, {"n": -(2**63), "b": None}]
    frame = pl.DataFrame(rows, schema={"n": pl.Int64, "b": pl.Boolean})
    np.testing.assert_array_equal(inputs.matrix(rows), inputs.matrix(frame))


@pytest.fixture
def sealed(tmp_path):
    seal(package("boosting"), tmp_path / "p")
    return tmp_path / "p"


def test_every_flipped_byte_is_found(sealed):
    rng = np.random.default_rng(0)
    for path in sorted(sealed.iterdir()):
        good = path.read_bytes()
        for at in {0, len(good) - 1, *rng.integers(0, len(good), 12).tolist()}:
            bad = bytearray(good)
            bad[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(bad)
            with pytest.raises(PackageError):
                load(sealed)
        path.write_bytes(good)
    load(sealed)


def test_missing_extra_truncated_and_no_folder(sealed, tmp_path):
    for path in sorted(sealed.iterdir()):
        good = path.read_bytes()
        path.unlink()
        with pytest.raises(PackageError):
            load(sealed)
        path.write_bytes(good[:-1])
        with pytest.raises(PackageError):
            load(sealed)
        path.write_bytes(good)
    (sealed / "model.pkl").write_bytes(b"")
    with pytest.raises(PackageError, match=r"model\.pkl"):
        load(sealed)
    with pytest.raises(PackageError):
        load(tmp_path / "nowhere")


def test_a_pickle_inside_an_array_file_is_never_loaded(tmp_path):
    import io

    from mlsys_nb.release.package import Package
    from mlsys_nb.system.durable import json_bytes, sha256

    real, buffer = package("boosting"), io.BytesIO()
    np.save(buffer, np.array([{"evil": print}], dtype=object), allow_pickle=True)
    files = {**real.files, "value.npy": buffer.getvalue()}
    listed = {n: {"sha256": sha256(c), "bytes": len(c)} for n, c in files.items()}
    manifest = {**{k: v for k, v in real.manifest.items() if k != "seal"}, "files": listed}
    seal(Package(files, {**manifest, "seal": sha256(json_bytes(manifest))}), tmp_path / "p")
    with pytest.raises((PackageError, ValueError), match="pickle|object"):
        load(tmp_path / "p")


def test_another_versions_folder_is_refused(tmp_path):
    here = make(tmp_path)
    first, second = versions(open_control(here), here, "churn")
    shutil.rmtree(first.path)
    shutil.copytree(second.path, first.path)
    with pytest.raises(PackageError, match="the registry expects"):
        load_champion(open_control(here), here, problem)


BUILD = """
import sys; sys.path.insert(0, "tests")
from serving_world import package
print(package("boosting").digest, package("logistic").digest)
"""


def test_the_same_training_gives_the_same_digest_in_another_process():
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [package("boosting").digest, package("logistic").digest]


def test_manifest_says_where_the_model_came_from():
    made = build(
        fit("rule", dataset().frame, problem.features.names, rule=problem.rule), dataset(),
        Evidence({"auc": 0.7}, {"decision": "promote"}, {"differing": 0}, {"features": {}}),
    )  # fmt: skip
    said = made.manifest
    assert said["dataset"] == dataset().digest and said["feature_set_hash"] == problem.features.hash
    assert (
        said["training"]["rows"] == dataset().frame.height and said["environment"]["numpy"] == np.__version__
    )
    assert len(said["code"]["sources"]) == 64 and said["verdict"] == {"decision": "promote"}
    assert open_package(made).profile == {"features": {}}
    golden = json.loads(made.files["golden.json"])
    assert len(golden["rows"]) >= 32 and any(v is None for row in golden["rows"] for v in row.values())
    with pytest.raises(ValueError, match="finite"):
        build(
            fit("rule", dataset().frame, problem.features.names, rule=problem.rule),
            dataset(),
            Evidence({"auc": float("nan")}),
        )


def test_of_many_promotions_at_once_exactly_one_wins(tmp_path):
    here = load_settings(root=tmp_path)
    control = open_control(here)
    for family in FAMILIES:
        register(control, here, package(family), "test", JUNE)
    won, lost = [], []

    def try_(n):
        try:
            won.append(
                promote(
                    open_control(here),
                    "churn",
                    1 + n % 3,
                    expected_epoch=0,
                    at=JUNE,
                    actor=str(n),
                    reason="race",
                )
            )
        except StalePointer:
            lost.append(n)

    threads = [threading.Thread(target=try_, args=(n,)) for n in range(12)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (len(won), len(lost)) == (1, 11) and champion(control, "churn").version == won[0].version


def test_registering_at_once_gives_one_number(tmp_path):
    here = load_settings(root=tmp_path)
    open_control(here)
    found = []
    work = lambda: found.append(register(open_control(here), here, package("rule"), "test", JUNE).version)
    threads = [threading.Thread(target=work) for _ in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert found == [1] * 6


def test_rollback_walks_back(tmp_path):
    here = load_settings(root=tmp_path)
    control = open_control(here)
    said = {"at": JUNE, "actor": "ada", "reason": "test"}
    for n, family in enumerate(FAMILIES):
        register(control, here, package(family), "test", JUNE)
        promote(control, "churn", n + 1, expected_epoch=n, **said)
    assert [rollback(control, "churn", **said).version for _ in range(2)] == [2, 1]
    promote(control, "churn", 3, expected_epoch=5, **said)
    assert rollback(control, "churn", **said).version == 1
