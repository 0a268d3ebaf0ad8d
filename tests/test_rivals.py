"Any scikit-learn estimator on the leaderboard of other worlds: numbers by the hour, applications, texts; and of hostile ones."

import gzip
import importlib
import json
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.link_functions import YES_OR_NO
from mlsys_nb.learning.sklearn_estimators import Rival
from mlsys_nb.learning.split import time_split
from mlsys_nb.learning.training_options import Learning
from mlsys_nb.learning.trial_cache import KeptTrials
from mlsys_nb.learning.tune import Effort, Tuned, tune
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.step_context import Context
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.settings import load_settings

DAY = timedelta(days=1)


RAW = "metro_traffic_volume.csv.gz"


def newest(raw, folder):
    "The hours of the newest years: what is ranked here are the last twelve periods of four weeks."
    rows = pl.read_csv(raw / RAW, infer_schema=False).filter(pl.col("date_time") >= "2016-11")
    with gzip.open(folder / RAW, "wb") as file:
        rows.write_csv(file)
    return folder


@cache
def learnt(name):
    "A case at the middle of its recorded year: what may be learnt from then."
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(load_settings(), root=Path(folder, "root"), tracking_uri="off")
        if name == "traffic":
            settings = replace(settings, raw=newest(settings.raw, Path(folder)))
        problem = load_problem(settings, name)
        moments = problem.replay.moments()
        at = Context(settings, problem, moments[0 if name == "traffic" else len(moments) // 2])
        ingest_due(at)
        dataset = training_set(at)
        return problem, dataset.at(dataset.periods[-12:]) if name == "traffic" else dataset


def ranked(problem, dataset, rivals):
    "The leaderboard of a case with rivals on it."
    split = time_split(dataset.opens, problem.matures_after, lookback=problem.lookback)
    families = tuple(f for f in problem.learner.families if f in ("rule", "linear"))
    learner = replace(problem.learner, how=replace(problem.learner.how, rivals=rivals))
    how = {"learner": learner, "rule": problem.rule, "families": families, "entity": problem.keys}
    return tune(problem.target.judge, dataset.frame, split, dataset.features, n_trials=2, **how)


@pytest.mark.parametrize(
    "name, rivals",
    [
        ("traffic", (make_pipeline(StandardScaler(), Ridge()), ExtraTreesRegressor(20, min_samples_leaf=20))),
        ("loans", (GaussianNB(), ExtraTreesClassifier(20, min_samples_leaf=20))),
        ("sentiment", (LogisticRegression(), ExtraTreesClassifier(20, min_samples_leaf=20))),
    ],
)
def test_rivals_are_told_in_other_worlds_and_never_chosen(name, rivals):
    problem, dataset = learnt(name)
    found = ranked(problem, dataset, rivals)
    shown = found.trials.filter(origin="rival")
    assert shown.height == 2 and set(found.rivals) == set(shown["family"]), found.rivals
    assert found.family in ("rule", "linear") and not shown["chosen"].any()
    assert np.isfinite(shown[problem.target.judge.loss].to_numpy()).all()
    assert all("clearly better" in said for said in found.rivals.values()) and json.dumps(found.to_dict())


START = datetime(2020, 1, 6, tzinfo=UTC)


def hostile(n, weeks=12, seed=0):
    "A constant column, one without any value, one with infinities and one that nobody has seen before."
    rng = np.random.default_rng(seed)
    week = np.arange(n) * weeks // n
    frame = pl.DataFrame({"who": np.arange(n), "a": rng.normal(size=n), "same": np.full(n, 7.0)})
    return frame.with_columns(
        none=pl.lit(None, dtype=pl.Float64),
        new=pl.Series([f"kind {w}" for w in week]),
        moment=pl.Series([START + 7 * DAY * int(w) for w in week], dtype=pl.Datetime("us", "UTC")),
        label=pl.Series(rng.random(n) < 1 / (1 + np.exp(-2 * frame["a"].to_numpy()))).cast(pl.Int8),
    ).with_columns(period=pl.col("moment"))


RIVALS = (GaussianNB(), ExtraTreesClassifier(20), SVC())


def contested(rows, rivals=RIVALS, kept=None) -> Tuned:
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    learner = replace(YES_OR_NO, how=Learning(rivals=rivals), families=("rule", "table", "linear"))
    features = ["a", "same", "none", "new"]
    asked = {"learner": learner, "rule": Rule.majority(), "n_trials": Effort(3, kept=kept), "entity": ["who"]}
    return tune(Probability(), rows, split, features, **asked)


@pytest.mark.parametrize("n", [30, 600])
def test_a_hostile_table_is_ranked_and_who_cannot_answer_is_named(n):
    found = contested(hostile(n))
    assert "has no predict_proba" in found.rivals["SVC"] and "CalibratedClassifierCV" in found.rivals["SVC"]
    assert {"GaussianNB", "ExtraTreesClassifier"} <= set(found.trials["family"])
    assert np.isfinite(found.trials["log_loss"].to_numpy()).all() and found.family in (
        "rule",
        "table",
        "linear",
    )


@pytest.mark.parametrize("only", [0, 1])
def test_one_kind_of_outcome_is_said_by_whoever_cannot_learn_from_it(only):
    rows = hostile(300).with_columns(label=pl.lit(only, dtype=pl.Int8))
    with pytest.raises(ValueError, match=f"both kinds, 0 and 1, got .{only}"):
        contested(rows)


class Dumb(GaussianNB):
    "Says nothing of one row."

    def predict_proba(self, X):
        said = super().predict_proba(X)
        said[0] = np.nan
        return said


def test_a_rival_that_says_nothing_of_a_row_is_named_and_not_ranked():
    found = contested(hostile(300), (Dumb(), GaussianNB()))
    assert "a finite number for each row" in found.rivals["Dumb"] and "nan for 1 of" in found.rivals["Dumb"]
    assert found.trials.filter(origin="rival")["family"].to_list() == ["GaussianNB"]


def test_a_factory_whose_code_has_changed_is_fitted_anew(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "from sklearn.linear_model import LogisticRegression as L\ndef made(): return L(C=%s)\n"

    def loss(C, kept):
        (tmp_path / "acme_rival.py").write_text(code % C)
        sys.modules.pop("acme_rival", None)
        importlib.invalidate_caches()
        found = contested(hostile(300), (Rival("acme_rival:made", "acme"),), KeptTrials(kept))
        return found.trials.filter(origin="rival")["log_loss"].item()

    first, other = loss("1.00", tmp_path / "kept"), loss("1e-6", tmp_path / "kept")
    assert first != other == loss("1e-6", tmp_path / "anew")


def test_a_rival_that_cannot_read_infinity_says_so_and_the_families_can():
    rows = hostile(300).with_columns(
        a=pl.when(pl.int_range(pl.len()) % 17 == 0).then(float("inf")).otherwise("a")
    )
    found = contested(rows)
    assert found.family in ("rule", "table", "linear")
    assert all("infinity" in found.rivals[name] for name in ("GaussianNB", "ExtraTreesClassifier"))
