"The learning curve beside its lesson: choices among candidates, few entities, and what a training passes on."

from datetime import timedelta

import numpy as np
import polars as pl
import tools_world as world

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.learning.learning_curve import Taught, learning_curve
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.dataset import build_dataset

END = world.START + 50 * world.DAY


def test_choices_among_candidates_have_a_curve_too():
    problem = world.problem
    lake = world.lake((0.8, 1.5))
    rows = build_dataset(problem, lake, problem.population.periods(END), END, learning=True).learnable().frame
    last = rows["period"].unique().sort()[-2]
    before, later = rows.filter(pl.col("period") < last), rows.filter(pl.col("period") >= last)
    engine = {"learner": problem.learner, "rule": problem.rule, "moment": "period"}
    said = lambda part: fit("linear", part, problem.inputs, **engine).predict(later)
    rule = fit("rule", before, problem.inputs, **engine).predict(later)
    given = Taught(problem.target.judge, before, later, problem.keys)
    found = learning_curve(given, said, said(before), rule)
    own = found.table.filter(who="candidate")
    assert own["rows"].is_sorted() and own["rows"][-1] == before.height
    assert (found.table["low"] < found.table["loss"]).all() and found.over_rule.low > 0
    assert found.answer == "hardly", found.sentence  # two weights are known from a few hundred choices


def test_one_entity_is_drawn_by_its_periods():
    "A single road has no customers to draw; its days are drawn whole, and rows where there are few days."
    rng, day = np.random.default_rng(0), timedelta(days=1)
    for days in (60, 12):
        period = [world.START + day * i for i in range(days) for _ in range(24)]
        rows = pl.DataFrame(
            {"road": ["a"] * len(period), "period": period, "x": rng.normal(size=len(period))}
        )
        chance = 1 / (1 + np.exp(-rows["x"].to_numpy()))
        rows = rows.with_columns(label=pl.Series((rng.random(len(period)) < chance).astype(np.int8)))
        last = rows["period"].unique().sort()[-4]
        before, later = rows.filter(pl.col("period") < last), rows.filter(pl.col("period") >= last)
        seen = []

        def said(part, later=later, seen=seen):
            seen.append(part)
            return fit("linear", part, ["x"], moment="period").predict(later)

        level = np.full(later.height, before["label"].mean())
        found = learning_curve(Taught(Probability(), before, later, ["road"]), said, said(before), level)
        assert found is not None and found.table["rows"].max() == before.height
        halves = seen[-2:]
        whole_days = [part["period"].value_counts()["count"].min() == 24 for part in halves]
        assert whole_days == [days == 60] * 2
