"""Intervals hold as often as they say, and probabilities come true: in worlds whose truth is known, and on the shipped cases.

    python tests/bench/coverage.py            # 30 worlds a row, all cases
    python tests/bench/coverage.py -n 10 --worlds     # the worlds alone
    python tests/bench/coverage.py --cases loans

A world has eight months whose level wanders by a share of the noise; six teach, the next one is asked about. Of an amount the share inside
its interval is told; of classes the gap between the mean of what was said and the mean of the true probabilities, in the bin of ten where
that gap is largest on average. Cases are asked as a gate asks: every held-out period by a fit on what was final when it began. Intervals
are over worlds, or over periods (Student's t).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parent))

from rates import text

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.bootstrap import resample
from mlsys_nb.evaluation.calibration import quantile_bins, reliability
from mlsys_nb.evaluation.clustered_intervals import student
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.learning.link_functions import Learner
from mlsys_nb.learning.split import judging_origins, opens_of, rows_of_periods
from mlsys_nb.learning.train import Fitted, default_params, fit
from mlsys_nb.learning.trial import Task, trial_of
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.step_context import context
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.system.settings import load_settings

START, FAMILIES = datetime(2024, 1, 1, tzinfo=UTC), ("linear", "boosting")
CASES = {"demand": "2010-11-29", "traffic": "2018-09-01", "loans": "1990-12-01", "sentiment": "2014-09-01"}


def row(claim: str, world: str, each: np.ndarray, aim: str, n: int) -> dict[str, Any]:
    "The mean of some worlds or periods, and what it leaves open."
    wide = student(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    middle = float(each.mean())
    told = {"claim": claim, "world": world, "measured": middle, "low": middle - wide, "high": middle + wide}
    return {**told, "aim": aim, "n": n}


def drawn(kind: str, wander: float, seed: int, n: int = 3_200) -> tuple[pl.DataFrame, np.ndarray]:
    "Eight months of rows, and for classes the true probabilities."
    rng = np.random.default_rng([seed, int(100 * wander), len(kind)])
    month = np.arange(n) * 8 // n
    x, z = rng.normal(size=n), rng.integers(0, 5, n)
    level = x + 0.5 * np.sin(2 * x) + 0.4 * (z == 2) + wander * rng.normal(size=8)[month]
    frame = pl.DataFrame({"x": x, "z": z, "w": rng.normal(size=n)}).with_columns(
        moment=pl.Series([START + timedelta(days=30 * int(m)) for m in month])
    )
    if kind == "amount":
        y = level + (0.5 + 0.5 * (x > 0)) * rng.standard_t(4, n)
        return frame.with_columns(label=pl.Series(y)), np.empty(0)
    sums = np.column_stack([np.zeros(n), level, 1.0 - level])[:, : 2 if kind == "yes or no" else 3]
    true = np.exp(sums) / np.exp(sums).sum(axis=1, keepdims=True)
    code = (true.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)
    label = (
        pl.Series(code.astype(np.int8)) if kind == "yes or no" else pl.Series(np.array(["a", "b", "c"])[code])
    )
    return frame.with_columns(label=label), true


def parted(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    "Six months, and the one that comes next."
    return frame[: frame.height * 6 // 8], frame[frame.height * 6 // 8 : frame.height * 7 // 8]


def gaps(said: np.ndarray, came: np.ndarray) -> np.ndarray:
    "In ten bins of what was said: its mean above the mean of what came."
    bins = np.argsort(np.argsort(said, kind="stable")) * 10 // len(said)
    return np.array([(said - came)[bins == b].mean() for b in range(10)])


def worst(each: np.ndarray) -> np.ndarray:
    "Of bins by worlds the one that is farthest off on average, as a size."
    at = int(np.abs(each.mean(axis=0)).argmax())
    return each[:, at] * np.sign(each[:, at].mean() or 1.0)


def columns(p: np.ndarray) -> np.ndarray:
    "Probabilities, one column a class."
    return np.column_stack([1 - p, p]) if p.ndim == 1 else p


def worlds(n: int, classes: bool = False) -> Iterator[dict[str, Any]]:
    features = ["x", "z", "w"]
    for wander in (0.0, 0.1, 0.3):
        for family in FAMILIES:
            name = f"{family}, months wander by {wander:g} of the noise"
            for share in () if classes else (0.8, 0.9):
                learner, held = Learner("identity", coverage=share), []
                for seed in range(n):
                    early, later = parted(drawn("amount", wander, seed)[0])
                    p, y = (
                        fit(family, early, features, learner=learner).predict(later),
                        later["label"].to_numpy(),
                    )
                    held.append(((p[:, 1] <= y) & (y <= p[:, 2])).mean())
                yield row(f"interval of {share:.0%} holds", name, np.array(held), f"{share:g}", n)
            for kind, learner in (("yes or no", Learner()), ("three classes", Learner("softmax", classes=("a", "b", "c")))):  # fmt: skip
                found = [probabilities(family, kind, learner, wander, seed) for seed in range(n)]
                each, held = (np.array([one[i] for one in found]) for i in (0, 1))
                claim = f"probabilities of {kind}: worst bin of ten"
                yield row(claim, name, worst(each), f"calibrated: <= {by_chance(each):.3f}", n)
                yield row(f"... the interval of a bin holds its truth, {kind}", name, held, "0.95", n)


def shipped(family: str, early: pl.DataFrame, features: list[str], learner: Learner) -> Fitted:
    "As `train` makes it of a family: boosting stops where the later third of the rows says, and learns from all of them."
    third = early.height * 2 // 3
    judge = Classes(learner.classes) if learner.link == "softmax" else Probability()
    task = Task(judge, early[:third], early[third:], tuple(features), None, learner, 0, 1)
    plain = {k: v for k, v in default_params(family).items() if k != "max_iter"}
    params = trial_of(task, family, plain, "default").params
    return fit(family, early, features, learner=learner, params=params)


def probabilities(
    family: str, kind: str, learner: Learner, wander: float, seed: int
) -> tuple[np.ndarray, float]:
    "By how much each bin is off the truth, and in how many the interval that the reliability table states holds it."
    frame, true = drawn(kind, wander, seed)
    early, later = parted(frame)
    fitted = shipped(family, early, ["x", "z", "w"], learner)
    p, truth = columns(fitted.predict(later)), true[early.height : early.height + later.height]
    y = learner.outcomes(later["label"]).astype(int)
    off, held = [], []
    for k in range(1, p.shape[1]):
        off.append(gaps(p[:, k], truth[:, k]))
        told = reliability((y == k).astype(float), p[:, k], resample(len(y), None, seed=seed))
        mean = np.bincount(bins := quantile_bins(p[:, k], 10), truth[:, k]) / np.bincount(bins)
        held.append(((told["low"].to_numpy() <= mean) & (mean <= told["high"].to_numpy())).mean())
    return np.mean(off, axis=0), float(np.mean(held))


def by_chance(each: np.ndarray, draws: int = 2_000) -> float:
    "What a calibrated model's worst bin stays below in 19 of 20: worlds as these around nothing, the worst of ten chosen as here."
    rng, plain = np.random.default_rng(0), each - each.mean(axis=0)
    signs = rng.choice([-1.0, 1.0], (draws, len(each)))
    return float(np.quantile(np.abs(signs @ plain / len(each)).max(axis=1), 0.95))


def asked(at: Any, family: str, learner: Any) -> Iterator[tuple[pl.DataFrame, Any]]:
    "Each held-out period, and what a fit on what was final when it began says of it."
    problem, rows = at.problem, training_set(at).frame
    counts = dict(rows["period"].value_counts().rows())
    for origin in judging_origins(opens_of(rows), counts, problem.matures_after, problem.limits.rows):
        known, later = (rows_of_periods(rows, p) for p in (origin.within(problem.lookback), origin.judged))
        how = {"learner": learner, "rule": problem.rule, "moment": "period"}
        yield later, fit(family, known, problem.inputs, **how).predict(later)


def cases(names: list[str]) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(load_settings(root=Path(folder)), raw=load_settings().raw, tracking_uri="off")
        for name in names:
            at = context(name, CASES[name], settings)
            ingest_due(at)
            for family in FAMILIES:
                yield from told_of(name, family, context(name, CASES[name], settings))


def told_of(name: str, family: str, at: Any) -> Iterator[dict[str, Any]]:
    "What a family promises of a case, and what came."
    learner, judge = at.problem.learner, at.problem.target.judge
    if learner.link == "identity":
        for share in (0.8, 0.9):
            held, n = [], 0
            for later, p in asked(at, family, replace(learner, coverage=share)):
                y = judge.outcomes(later["label"])
                held.append(((p[:, 1] <= y) & (y <= p[:, 2])).mean())
                n += len(y)
            yield row(f"interval of {share:.0%} holds", f"{name}, {family}, {len(held)} periods", np.array(held), f"{share:g}", n)  # fmt: skip
        return
    each, n = [], 0
    for later, p in asked(at, family, learner):
        p, y = columns(p), learner.outcomes(later["label"]).astype(int)
        each.append(np.mean([gaps(p[:, k], y == k) for k in range(1, p.shape[1])], axis=0))
        n += len(y)
    yield row("probabilities: worst bin of ten", f"{name}, {family}, {len(each)} periods", worst(np.array(each)), "<= 0.05", n)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=30, help="worlds a row")
    parser.add_argument("--worlds", action="store_true", help="no cases")
    parser.add_argument("--classes", action="store_true", help="the probabilities of the worlds alone")
    parser.add_argument("--cases", nargs="*", choices=CASES, help="these cases alone")
    given = parser.parse_args()
    print("== coverage")
    for each in () if given.cases is not None else worlds(given.n, given.classes):
        print(text(each), flush=True)
    for each in () if given.worlds or given.classes else cases(given.cases or list(CASES)):
        print(text(each), flush=True)


if __name__ == "__main__":
    main()
