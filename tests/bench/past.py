"""How much past to learn from, in worlds whose truth is known: what is lost by never forgetting, by a number that somebody wrote down, and by asking.

    python tests/bench/past.py [seeds] [family]

Three years of periods of 28 days. From the second year on a model is fitted before every period on what came before it, and loses what it loses on fresh rows of
that period. Every half year, as often as a recipe is searched for, `learning.training_window` is asked how much past to learn from, on what was known two periods earlier (the
newest two judge). Each figure is the mean loss above that of the best number for that world, known only afterwards, in percent of it.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.learning.link_functions import YES_OR_NO, Learner, asked_of
from mlsys_nb.learning.split import time_split
from mlsys_nb.learning.train import fit
from mlsys_nb.learning.training_options import Learning
from mlsys_nb.learning.training_window import how_much_past

START, PERIOD, YEAR, PERIODS = datetime(2020, 1, 6, tzinfo=UTC), timedelta(days=28), 13, 39
FEATURES, LOOKS, FRESH = ("a", "b", "c", "phase"), (14, 20, 27, 33, PERIODS), 1000
NUMBERS = (None, 730.0, 365.0, 182.0, 91.0, 45.0)


@dataclass(frozen=True)
class World:
    "What moves, and how."

    amount: bool = True
    wanders: float = 0.0  # Standard deviation of each effect's step between periods
    breaks: int = 0  # From here on effects are others; 0: never
    seasonal: float = 0.0  # How far level and effect differ between the phases of a year
    shocks: float = 0.0  # How far the level differs between periods, for that period alone
    rows: int = 250  # A period

    @property
    def judge(self):
        return Number() if self.amount else Probability()

    @property
    def learner(self):
        return asked_of(Learner("identity") if self.amount else YES_OR_NO, Learning())


WORLDS = {
    "amounts, still": World(shocks=0.1),
    "amounts, slow drift": World(wanders=0.12),
    "amounts, a break": World(breaks=19),
    "amounts, yearly": World(seasonal=0.8),
    "yes or no, still": World(False, shocks=0.15),
    "yes or no, slow drift": World(False, wanders=0.12),
    "yes or no, a break": World(False, breaks=19, rows=400),
    "yes or no, yearly": World(False, seasonal=0.8, rows=400),
}


def rows_of(world: World, seed: int, n: int, fresh: bool) -> pl.DataFrame:
    "Rows of all periods; fresh ones are others of the same world."
    told = np.random.default_rng([seed, 1])
    effects = np.array([0.9, 0.6]) + np.cumsum(told.normal(size=(PERIODS, 2)) * world.wanders, axis=0)
    if world.breaks:
        effects[world.breaks :] = [-0.3, 0.9]
    phases, levels = told.normal(size=(YEAR, 2)) * world.seasonal, told.normal(size=PERIODS) * world.shocks
    rng, period = np.random.default_rng([seed, 2 + fresh]), np.repeat(np.arange(PERIODS), n)
    x, phase = rng.normal(size=(len(period), 3)), period % YEAR
    slope = effects[period] + np.column_stack([phases[phase, 1], np.zeros(len(period))])
    mean = (slope * x[:, :2]).sum(axis=1) + phases[phase, 0] + levels[period]
    happens = (rng.random(len(mean)) < 1 / (1 + np.exp(0.8 - mean))).astype(np.int8)
    label = mean + rng.normal(size=len(mean)) if world.amount else happens
    moment = pl.Series([START + PERIOD * int(t) for t in range(PERIODS)])[period]
    inputs = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "phase": phase}
    return pl.DataFrame({"moment": moment, "period": moment, "turn": period, **inputs, "label": label})


def lost(world: World, seed: int, family: str) -> tuple[dict[float | None, float], float, list[float | None]]:
    "The mean loss with each number, with what was asked, and what the answers were."
    rows, fresh = (rows_of(world, seed, n, other) for n, other in ((world.rows, False), (FRESH, True)))
    judge, made = world.judge, {}

    def loss(days: float | None, t: int) -> float:
        days = None if days and days >= 28 * t else days
        if (days, t) not in made:
            way = {"lookback_days": days} if days else {}
            model = fit(family, rows.filter(pl.col("turn") < t), FEATURES, learner=world.learner, params=way)
            late = fresh.filter(turn=t)
            made[days, t] = judge.losses(judge.outcomes(late["label"]), model.predict(late)).mean()
        return made[days, t]

    served, answers = [], []
    for begin, end in zip(LOOKS, LOOKS[1:], strict=False):
        split = time_split(rows.filter(pl.col("turn") < begin)["period"].unique().to_list(), PERIOD / 2)
        past = how_much_past(judge, rows, split, FEATURES, world.learner, (family,))
        answers.append(past.params.get("lookback_days") if past else None)
        served += [loss(answers[-1], t) for t in range(begin, end)]
    whole = range(LOOKS[0], PERIODS)
    return {days: np.mean([loss(days, t) for t in whole]) for days in NUMBERS}, np.mean(served), answers


def main() -> None:
    seeds, family = int((sys.argv[1:] or [6])[0]), (sys.argv[2:] or ["linear"])[0]
    names = ["everything" if days is None else f"{days:g} days" for days in NUMBERS]
    print(f"{f'{family}, {seeds} seeds':24}" + "".join(f"{name:>12}" for name in [*names, "asked"]))
    table = []
    for name, world in WORLDS.items():
        told = [lost(world, seed, family) for seed in range(seeds)]
        means = np.mean([[*fixed.values(), asked] for fixed, asked, _ in told], axis=0)
        table.append(100 * (means / means[:-1].min() - 1))
        chosen = ", ".join(str(answers[-1] or "all") for _, _, answers in told)
        print(
            f"{name:24}" + "".join(f"{gap:12.2f}" for gap in table[-1]) + f"   last answers: {chosen}",
            flush=True,
        )
    for name, row in (("mean", np.mean(table, axis=0)), ("worst", np.max(table, axis=0))):
        print(f"{name:24}" + "".join(f"{gap:12.2f}" for gap in row))


if __name__ == "__main__":
    main()
