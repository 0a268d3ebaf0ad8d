"Package, inference and registry: exact forms, nothing damaged is loaded, one champion at a time."

import importlib
import json
import math
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import JUNE, MOMENTS, dataset, lake, make, package

from mlsys_nb import features as f
from mlsys_nb.cases.churn import bought, lines, problem
from mlsys_nb.doors.recovery.integrity_check import journal_findings
from mlsys_nb.features.feature_set import FeatureSet
from mlsys_nb.features.transforms import apply
from mlsys_nb.learning.link_functions import sigmoid
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.dataset import build_dataset
from mlsys_nb.release import registry
from mlsys_nb.release.fallback import last_sound
from mlsys_nb.release.numpy_inference import Inputs, trees_of
from mlsys_nb.release.package import (
    Evidence,
    Package,
    PackageError,
    as_trained,
    build,
    load,
    open_package,
    seal,
)
from mlsys_nb.release.registry import (
    RegistryError,
    champion,
    features_in_use,
    load_version,
    promote,
    register,
    retire,
    rollback,
    versions,
)
from mlsys_nb.system import pointers
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.control_tables import open_control, open_tables
from mlsys_nb.system.database import ControlError
from mlsys_nb.system.durable import Log, SealError
from mlsys_nb.system.pointers import StalePointer, pointer_history
from mlsys_nb.system.registry_journal import read_journal, recover
from mlsys_nb.system.settings import load_settings

FAMILIES = ("rule", "linear", "boosting")


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
    assert trees.raw(asked).tobytes() == model._raw_predict(asked).tobytes()
    alone = [trees.raw(asked[[i]])[0].tolist() for i in range(0, len(asked), 7)]
    assert alone == trees.raw(asked)[::7].tolist()


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
        load_version(open_control(here), here, problem, 1)


BUILD = """
import sys; sys.path.insert(0, "tests")
from serving_world import package
print(package("boosting").digest, package("linear").digest)
"""


def test_the_same_training_gives_the_same_digest_in_another_process():
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [package("boosting").digest, package("linear").digest]


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
    back = lambda: rollback(control, champion(control, "churn"), **said, check=lambda version: None).version
    assert [back(), back()] == [2, 1]
    promote(control, "churn", 3, expected_epoch=5, **said)
    assert back() == 1


def test_two_rollbacks_at_once_go_back_once(tmp_path):
    "Both people saw version 3 serve; the second used to take the system back to version 1."
    here = load_settings(root=tmp_path)
    control = open_control(here)
    said = {"at": JUNE, "actor": "ada", "reason": "test"}
    for n, family in enumerate(FAMILIES):
        register(control, here, package(family), "test", JUNE)
        promote(control, "churn", n + 1, expected_epoch=n, **said)
    seen = champion(control, "churn")
    barrier, won, lost = threading.Barrier(2), [], []

    def back():
        try:
            check = lambda version: barrier.wait(60)
            won.append(rollback(open_control(here), seen, **said, check=check).version)
        except StalePointer as e:
            lost.append(str(e))

    threads = [threading.Thread(target=back) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert won == [2] and len(lost) == 1 and "it is at 4 (2); look again" in lost[0]
    with pytest.raises(StalePointer):  # and one who comes later, with what he saw before
        rollback(control, seen, **said, check=lambda version: None)
    actions = [(line.action, line.detail.get("version")) for line in audit_log(control)]
    moved = [*(("promote", n) for n in (1, 2, 3)), ("hold", None), ("promote", 2)]
    assert actions == moved, "a move, its hold and their audit lines are one transaction"


def test_a_move_whose_audit_line_fails_does_not_happen(tmp_path, monkeypatch):
    here = load_settings(root=tmp_path)
    control = open_control(here)
    register(control, here, package("rule"), "test", JUNE)

    def full(*_):
        raise ControlError("the disk is full")

    monkeypatch.setattr(pointers, "add_line", full)
    with pytest.raises(ControlError, match="full"):
        promote(control, "churn", 1, expected_epoch=0, at=JUNE, actor="ada", reason="test")
    assert champion(control, "churn").version is None and pointer_history(control, "churn/champion") == []


@pytest.mark.parametrize("harm", ["deleted", "emptied", "an old copy", "another system's"])
def test_lost_control_tables_beside_models_are_refused_and_made_again(tmp_path, harm):
    "They looked like a fresh system, and the next training made another version 1."
    here = load_settings(root=tmp_path / "here")
    said, file = {"at": JUNE, "actor": "ada", "reason": "test"}, here.data / "control.db"
    register(open_control(here), here, package("rule"), "test", JUNE)
    kept = file.read_bytes()
    register(open_control(here), here, package("linear"), "test", JUNE)
    promote(open_control(here), "churn", 2, expected_epoch=0, **said)
    other = load_settings(root=tmp_path / "other")
    if harm == "deleted":
        file.unlink()
    elif harm == "emptied":
        file.write_bytes(b"")
    elif harm == "an old copy":
        file.write_bytes(kept)
    else:
        open_control(other)
        file.write_bytes((other.data / "control.db").read_bytes())
    with pytest.raises(ControlError, match="do not fit the models .*restore the database .* mlsys recover"):
        open_control(here)
    assert recover(open_tables(here.control_url, here.journal), JUNE, "ada") >= 2
    control = open_control(here)
    assert champion(control, "churn").version == 2 and champion(control, "churn").epoch == 1
    assert [v.version for v in versions(control, here, "churn")] == [1, 2]
    assert register(control, here, package("boosting"), "test", JUNE).version == 3


def test_models_without_journal_and_tables_are_refused(tmp_path):
    here = load_settings(root=tmp_path)
    register(open_control(here), here, package("rule"), "test", JUNE)
    (here.data / "control.db").unlink()
    here.journal.unlink()
    with pytest.raises(ControlError, match="they know no version, but there are sealed models"):
        open_control(here)
    with pytest.raises(ControlError, match="from a journal, and there is none"):
        recover(open_tables(here.control_url, here.journal), JUNE, "ada")


def test_a_crash_between_a_package_and_its_row_is_no_loss(tmp_path, monkeypatch):
    here = load_settings(root=tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(registry, "add_version", killed)
        with pytest.raises(KeyboardInterrupt):
            register(open_control(here), here, package("rule"), "test", JUNE)
    assert register(open_control(here), here, package("rule"), "test", JUNE).version == 1


def test_a_damaged_journal_does_not_stop_a_system_whose_tables_are_there(tmp_path, caplog):
    here = load_settings(root=tmp_path)
    register(open_control(here), here, package("rule"), "test", JUNE)
    content = bytearray(here.journal.read_bytes())
    content[len(content) // 2] ^= 1
    here.journal.write_bytes(content)
    assert [v.version for v in versions(open_control(here), here, "churn")] == [1]
    assert "journal.log" in caplog.text
    here.journal.unlink()  # the remedy that mlsys verify names
    assert recover(open_tables(here.control_url, here.journal), JUNE, "ada") == 0
    assert list(read_journal(here.journal).versions) == [("churn", 1)]
    here.journal.write_bytes(content)
    (here.data / "control.db").unlink()
    with pytest.raises(SealError, match="journal.log"):
        open_control(here)


def test_a_sound_champion_is_opened_without_a_look_at_all_other_versions(tmp_path, monkeypatch):
    "Where tenants have versions of their own there are thousands."
    from mlsys_nb.release import fallback

    here = make(tmp_path)
    control = open_control(here)
    monkeypatch.setattr(fallback, "version_rows", lambda *_: pytest.fail("all versions are read"))
    assert last_sound(control, here, problem).model.version == 1


def test_a_damaged_champion_gives_way_to_the_last_sound_one_and_says_so(tmp_path):
    here = load_settings(root=tmp_path)
    control, said = open_control(here), {"at": JUNE, "actor": "ada", "reason": "test"}
    for n, family in enumerate(FAMILIES):
        register(control, here, package(family), "test", JUNE)
        promote(control, "churn", n + 1, expected_epoch=n, **said)
    sound = last_sound(control, here, problem)
    assert (sound.model.version, sound.refused, sound.said) == (3, (), "")
    for version in versions(control, here, "churn")[1:]:
        (version.path / "golden.json").write_bytes(b"{}")
    sound = last_sound(control, here, problem)
    assert sound.model.version == 1 and len(sound.refused) == 2
    assert "version 3 is refused" in sound.said and "version 1, serves instead" in sound.said
    assert champion(control, "churn").version == 3, "looking moves nothing"


def problem_with(*more):
    return replace(problem, features=FeatureSet(problem.features.name, (*problem.features.features, *more)))


def trained(asked):
    "A registered-to-be package of a problem with other features than the installed one."
    made = build_dataset(asked, lake(), MOMENTS, JUNE)
    return build(fit("rule", made.frame, asked.features.names, rule=asked.rule), made)


def test_each_version_keeps_its_own_features(tmp_path):
    "A reordered, shortened or longer set used to refuse every version that was trained before."
    here = load_settings(root=tmp_path)
    control, (first, *_) = open_control(here), problem.features.features
    extra = apply(math.floor, first, dtype="int").named("own_word")
    register(control, here, trained(problem_with(extra)), "test", JUNE)
    register(control, here, trained(problem), "test", JUNE)
    for version, names in ((1, (*problem.features.names, "own_word")), (2, problem.features.names)):
        model = load_version(control, here, problem, version)
        assert model.features.names == names and as_trained(problem, model).features.names == names
    reading = features_in_use(control, here, problem)
    assert [f.names for f in reading] == [problem.features.names, (*problem.features.names, "own_word")]
    retire(control, versions(control, here, "churn")[0], at=JUNE, actor="ada", reason="test")
    assert [f.names for f in features_in_use(control, here, problem)] == [problem.features.names]


def test_a_version_whose_own_function_changed_is_refused(tmp_path, monkeypatch):
    here = load_settings(root=tmp_path / "root")
    module = tmp_path / "own_words_of_a_test.py"
    module.write_text("def doubled(x):\n    return x * 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = importlib.import_module("own_words_of_a_test")
    number = next(f for f in problem.features.features if f.dtype in ("int", "float"))
    changed = problem_with(apply(own.doubled, number).named("own_word"))
    register(open_control(here), here, trained(changed), "test", JUNE)
    assert load_version(open_control(here), here, problem, 1).features["own_word"].dtype == "float"
    module.write_text("def doubled(x):\n    return x * 3  # changed\n")
    importlib.invalidate_caches()
    sys.modules.pop("own_words_of_a_test")
    with pytest.raises(
        PackageError, match="own_words_of_a_test:doubled.*install the code it was trained with"
    ):
        load_version(open_control(here), here, problem, 1)
    with pytest.raises(RegistryError, match="must be kept.*retire it: mlsys retire churn 1"):
        features_in_use(open_control(here), here, problem)


@pytest.mark.parametrize(
    "part",
    ["horizon", "target", "population"],
)
def test_a_changed_question_is_another_problem(tmp_path, part):
    here = load_settings(root=tmp_path)
    register(open_control(here), here, package("rule"), "test", JUNE)
    if part == "target":
        asked = replace(problem, target=replace(problem.target, value=problem.target.value + 1))
    elif part == "population":
        who = problem.population.eligible
        asked = replace(
            problem, population=replace(problem.population, eligible=replace(who, value=who.value + 1))
        )
    else:
        longer = f.count_distinct(lines, "invoice", "31d", where=bought).named("orders_next_31d")
        label = replace(problem.target, feature=longer)
        asked = replace(problem, horizon=timedelta(days=31), target=label)
    with pytest.raises(PackageError, match=f"with another .*{part}.*a name of its own"):
        load_version(open_control(here), here, asked, 1)


def test_a_package_of_an_older_form_is_refused_with_the_remedy(tmp_path):
    older = package("rule")
    manifest = {**older.manifest, "format": 1}
    seal(Package(older.files, manifest), tmp_path / "p")
    with pytest.raises(PackageError, match="reads packages of form 6, this has form 1; retrain it here"):
        load(tmp_path / "p")


def test_a_damaged_journal_refuses_a_promotion_before_the_pointer_moves(tmp_path):
    here = load_settings(root=tmp_path)
    control, said = open_control(here), {"at": JUNE, "actor": "ada", "reason": "test"}
    first = register(control, here, package("rule"), "test", JUNE)
    register(control, here, package("linear"), "test", JUNE)
    promote(control, "churn", 1, expected_epoch=0, **said)
    content = bytearray(here.journal.read_bytes())
    content[len(content) // 2] ^= 1
    here.journal.write_bytes(content)
    with pytest.raises(SealError, match="journal.log"):
        promote(control, "churn", 2, expected_epoch=1, **said)
    with pytest.raises(SealError, match="journal.log"):
        retire(control, versions(control, here, "churn")[1], **said)
    assert champion(control, "churn").version == 1 and first.version == 1
    assert [v.status for v in versions(control, here, "churn")] == ["registered"] * 2
    here.journal.unlink()  # the remedy that mlsys verify names
    recover(open_tables(here.control_url, here.journal), JUNE, "ada")
    assert promote(control, "churn", 2, expected_epoch=1, **said).version == 2
    assert [m.value for m in read_journal(here.journal).moves.values()] == ["1", "2"]


def test_a_journal_that_cannot_be_written_behind_a_promotion_is_made_up_for_by_the_next(
    tmp_path, monkeypatch, caplog
):
    here = load_settings(root=tmp_path)
    control, said = open_control(here), {"at": JUNE, "actor": "ada", "reason": "test"}
    for family in ("rule", "linear"):
        register(control, here, package(family), "test", JUNE)
    with monkeypatch.context() as full:
        full.setattr(Log, "append", lambda log, records: (_ for _ in ()).throw(OSError("no room")))
        assert promote(control, "churn", 1, expected_epoch=0, **said).version == 1
    assert "the journal lacks it: no room" in caplog.text
    assert champion(control, "churn").version == 1 and not read_journal(here.journal).moves
    (finding,) = journal_findings(here)
    assert "1 changes of champion" in finding.problem and "mlsys recover" in finding.remedy
    promote(control, "churn", 2, expected_epoch=1, **said)
    assert [m.value for m in read_journal(here.journal).moves.values()] == ["1", "2"]
    assert journal_findings(here) == []
