"""Explanations add up to the margin and are Shapley values, for every family, link and strange row."""

import asyncio
import json
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from serving_world import make
from test_endpoints import service_of
from test_families import FEATURES, KINDS, STRANGE, learner, rows

from mlsys_nb.doors.cli import main
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.train import fit
from mlsys_nb.release.feature_contributions import contributions, explain, mean_parts
from mlsys_nb.release.package import Model, PackageError, serving_form
from mlsys_nb.serving.endpoints import predict

RULES = {
    "logistic": Rule.table("spent", "place"),
    "identity": Rule.feature("spent", "more", "m"),
    "softmax": Rule.table("place"),
}


def model_of(family, link, seed=0):
    table = rows(seed).with_columns(label=pl.col(KINDS[link]))
    more = {"rule": RULES[link]} if family == "rule" else {}
    fitted = fit(family, table, FEATURES, learner=learner(link), **more)
    return Model(
        *serving_form(fitted), fitted.link, {}, background=table.select(FEATURES).head(6).to_dicts()
    ), table


@pytest.mark.parametrize("link", KINDS)
@pytest.mark.parametrize("family", ["linear", "boosting", "rule"])
def test_parts_add_up_to_the_margin(family, link):
    "A library's contributions were off the margin by up to 18 where a column was a category, without a word."
    model, table = model_of(family, link)
    cases = pl.concat([table.select(FEATURES).tail(60), STRANGE], how="vertical_relaxed")
    margin, usual, parts = contributions(model, cases)
    assert np.abs(usual + parts.sum(axis=1) - margin).max() <= 1e-9 * max(1.0, np.abs(margin).max())
    assert np.abs(parts).max() > 0.01


@pytest.mark.parametrize("link", ["logistic", "softmax"])
def test_parts_of_trees_are_shapley_values(link):
    "Each order of replacement tried, for each golden row."
    model, table = model_of("boosting", link)
    case = table.select(FEATURES).row(100, named=True)
    told = np.zeros((3, contributions(model, [case])[0].shape[1]))
    orders = list(permutations(range(3)))
    for other in model.background:
        for order in orders:
            mixed = dict(other)
            for j in order:
                before = model.sums([mixed])[0]
                mixed[FEATURES[j]] = case[FEATURES[j]]
                told[j] += (model.sums([mixed])[0] - before) / len(orders) / len(model.background)
    assert np.allclose(contributions(model, [case])[2][0], told, atol=1e-12)


def test_wrong_parts_are_refused(monkeypatch):
    import mlsys_nb.release.feature_contributions as room

    model, table = model_of("boosting", "logistic")
    right = room._WAYS[type(model.form)]
    monkeypatch.setitem(room._WAYS, type(model.form), lambda *a: right(*a) * 1.001)
    with pytest.raises(PackageError, match="add up to the margin"):
        explain(model, table.select(FEATURES).row(0, named=True))


def test_what_is_never_looked_at_adds_nothing():
    model, table = model_of("rule", "logistic")
    assert mean_parts(model, table).filter(feature="said")["mean_part"].item() == 0.0


@pytest.mark.parametrize("family", ["linear", "boosting"])
def test_an_answer_is_explained_by_command_and_service(family, tmp_path, capsys):
    here = make(tmp_path, families=(family,))
    with service_of(here) as service:
        plain = asyncio.run(predict(service, b'{"customer_id": 13080}'))
        told = asyncio.run(predict(service, b'{"customer_id": 13080, "explain": true}'))
    assert "because" not in plain
    because = told["because"]
    assert because["usual"] + sum(because["parts"].values()) == pytest.approx(because["margin"], abs=1e-9)
    assert 1 / (1 + np.exp(-because["margin"])) == pytest.approx(told["prediction"], abs=1e-12)
    assert main(["explain", told["decision_id"], "--root", str(tmp_path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["parts"] == because["parts"] and again["version"] == told["version"]
    assert main(["explain", told["decision_id"], "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 + len(because["parts"]) and "days_since_order = " in shown
    assert main(["explain", "nobody", "--root", str(tmp_path)]) == 2
