"""Retraining after a small change, as a share of what it costs to begin anew, with the quality beside it.

    python tests/bench/retrain.py              # the wholesaler's year, weekly moments; about two minutes
    python tests/bench/retrain.py --trials 48

Each line is one retraining from events to the model that ships: the rows, the choice of family and parameters, the last fit. `naive` keeps
nothing and searches; the others find on disk what an earlier search left. The loss is that of the newest two moments, which
nobody has learnt from; `gap` is how much more of it a line has than a naive retraining of the same rows.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import perf_counter

import polars as pl

from mlsys_nb import features as f
from mlsys_nb.cases.churn import bought, lines
from mlsys_nb.cases.churn import problem as churn
from mlsys_nb.features import FeatureSet
from mlsys_nb.learning.search_reuse import revisit
from mlsys_nb.learning.split import time_split
from mlsys_nb.learning.train import fit
from mlsys_nb.learning.trial_cache import KeptTrials
from mlsys_nb.learning.tune import Effort, tune
from mlsys_nb.problem.dataset import Lake, build_dataset
from mlsys_nb.system.settings import load_settings

FIRST = datetime(2010, 2, 5, tzinfo=UTC)
MORE = f.count(lines, "30d", where=bought).named("lines_30d", meaning="Lines in 30 days")


@dataclass(frozen=True)
class Retrained:
    rows: float  # Seconds
    choice: float
    fit: float
    loss: float
    family: str
    trials: list

    @property
    def seconds(self):
        return self.rows + self.choice + self.fit


def events():
    "The wholesaler's lines as the lake would have them."
    read = pl.read_parquet(load_settings().raw / "online_retail_year1_lines.parquet").with_row_index(
        "event_id"
    )
    return read.filter(pl.col("customer_id").is_not_null() & (pl.col("price") > 0)).select(
        "event_id", "invoice", "stock_code", "country",
        customer_id=pl.col("customer_id").cast(pl.Int64),
        invoice_ts=pl.col("invoice_ts").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        cancelled=pl.col("invoice").str.starts_with("C"),
        amount=(pl.col("price").cast(pl.Float64) * 100).round().cast(pl.Int64) * pl.col("quantity"),
    ).with_columns(known_at=pl.col("invoice_ts"))  # fmt: skip


def retrained(problem, lake, weeks, effort, earlier=()):
    "One retraining; with earlier trials they are revisited, else a search chooses."
    clock = [perf_counter()]
    moments = [FIRST + timedelta(days=7 * i) for i in range(weeks)]
    rows = build_dataset(problem, lake, moments, moments[-1] + problem.matures_after).learnable()
    clock.append(perf_counter())
    split, judge = time_split(rows.opens, problem.matures_after), problem.target.judge
    how = {"learner": problem.learner, "rule": problem.rule, "entity": problem.keys}
    if earlier:
        found = revisit(judge, rows.frame, split, rows.features, earlier, kept=effort.kept, **how)
    else:
        found = tune(judge, rows.frame, split, rows.features, n_trials=effort, **how)
    clock.append(perf_counter())
    known, late = split.rows(rows.frame, "known"), split.rows(rows.frame, "holdout")
    model = fit(
        found.family,
        known,
        rows.features,
        params=found.params,
        rule=problem.rule,
        learner=problem.learner,
        moment="period",
    )
    clock.append(perf_counter())
    loss = float(judge.losses(judge.outcomes(late["label"]), model.predict(late)).mean())
    spent = [b - a for a, b in zip(clock, clock[1:], strict=False)]
    return Retrained(*spent, loss, found.family, found.to_dict()["trials"])


def compare(trials, weeks=38, every=1):
    "Each line: what changed, its retraining, and the naive one of the same rows."
    lake = Lake({"lines": events().filter(pl.col("customer_id") % every == 0)}, ())
    problem = replace(churn, lookback=None)
    features = FeatureSet("churn", (*churn.features.features, MORE))
    wider, naive = replace(problem, features=features), Effort(trials)
    with tempfile.TemporaryDirectory() as folder:
        kept = replace(naive, kept=KeptTrials(Path(folder) / "trials"))
        cold = retrained(problem, lake, weeks, naive)
        first = retrained(problem, lake, weeks, kept)
        yield "naive", cold, cold
        yield "naive, and kept", first, cold
        yield "the same again", retrained(problem, lake, weeks, kept), cold
        yield "one trial more", retrained(problem, lake, weeks, replace(kept, n_trials=trials + 1)), cold
        for what, changed, n in (("a feature added", wider, weeks), ("a month more", problem, weeks + 4)):
            yield what, retrained(changed, lake, n, kept, first.trials), retrained(changed, lake, n, naive)


def main():
    asked = argparse.ArgumentParser()
    asked.add_argument("--trials", type=int, default=24)
    asked.add_argument("--every", type=int, default=1, help="one customer in so many")
    asked = asked.parse_args()
    print(
        f"{'what changed':18}{'rows':>8}{'choice':>8}{'fit':>8}{'seconds':>9}{'of naive':>10}{'loss':>9}{'gap':>9}  family"
    )
    for what, new, naive in compare(asked.trials, every=asked.every):
        share, gap = new.seconds / naive.seconds, new.loss - naive.loss
        parts = f"{new.rows:8.2f}{new.choice:8.2f}{new.fit:8.2f}{new.seconds:9.2f}"
        print(f"{what:18}{parts}{share:10.1%}{new.loss:9.4f}{gap:+9.4f}  {new.family}", flush=True)


if __name__ == "__main__":
    main()
