"""What the gate's odds are worth where months differ: equal recipes, many looks, refreshes that are worse, what ships, what can be seen.

    python tests/bench/odds_gate.py [n] [seed]

Models are simulated, not fitted, for a gate judges predictions; who is judged, what loss and money say and what is stated are the
gate's own. As in production, the wobble is known from the judged periods and one before them. Ranking, calibration and slices are left out:
they can only forbid. `odds_years.py` beside this file fits real models for whole years. `tests/test_odds_gate.py` runs a small n and asserts.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import polars as pl
from rates import line, printed

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.clustered_intervals import wobble_of
from mlsys_nb.evaluation.costs import Costs, OverUnder
from mlsys_nb.evaluation.gate import Inquiry, _decided, case_of
from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.evaluation.regression_metrics import Number

ENTITIES, KNOWN, BEFORE = (
    300,
    1,
    2,
)  # Periods known beside the judged ones; periods that a shared past consists of
SHOCKS, PERIODS = (0.0, 0.05, 0.10, 0.15, 0.20), (1, 2, 3, 6, 8)


@dataclass(frozen=True)
class World:
    "Entities seen in every period, and periods that share a shock."

    kind: str = "yes or no"
    shock: float = 0.0  # In log-odds; in standard deviations of the noise for amounts
    periods: int = 6
    apart: float = 0.3  # How far both models are from the truth, one too high and one too low
    gain: float = 0.0  # How much nearer the challenger is
    shared: bool = False  # Both fits have caught the shocks of the same two periods, or each one of its own
    steep: float = (
        0.0  # How far the effect of what is known differs between periods: a shock that no level shows
    )

    @property
    def judge(self):
        return Probability() if self.kind == "yes or no" else Number()

    @property
    def costs(self):
        return Costs("EUR", 2.0, 3.0) if self.kind == "yes or no" else OverUnder("EUR", over=1.0, under=2.0)

    def outcomes(self, rng, n):
        "What is known of everybody, the shock of each of n periods, and what came of it."
        z, shocks = rng.normal(0, 1, ENTITIES), self.shock * rng.normal(size=n)
        at = z * (1 + self.steep * rng.normal(size=n))[:, None] + shocks[:, None]
        if self.kind == "yes or no":
            return z, shocks, (rng.random(at.shape) < 1 / (1 + np.exp(-at))).astype(float)
        return z, shocks, 100 + 10 * (at + rng.normal(size=at.shape))

    def caught(self, rng, shocks, n):
        "What two fits as of each of the last n periods have caught of the shocks before: one row a fit."
        if self.shared:
            past = np.concatenate([self.shock * rng.normal(size=BEFORE), shocks])
            means = [past[t : t + BEFORE].mean() for t in range(len(shocks))]
            return np.tile(means[-n:], (2, 1))
        return self.shock * rng.normal(size=(2, n))

    def said(self, rng, z, off, slope):
        "What a model says in one period: off in level or in slope, and a little in every row."
        told = z * slope + off + rng.normal(0, 0.1, len(z))
        if self.kind == "yes or no":
            return 1 / (1 + np.exp(-told))
        return (100 + 10 * told)[:, None] + np.array([0.0, -12.8, 12.8])


@cache
def too_steep(world: World) -> float:
    "The slope above one that loses in the long run as much as one that is too flat: of yes and no, slopes as far off are not as wrong."
    if world.kind != "yes or no":
        return 1 + world.apart
    (z, wz), (e, we) = (np.polynomial.hermite_e.hermegauss(n) for n in (60, 30))
    came = (1 / (1 + np.exp(-z[:, None] * (1 + world.steep * e)))) @ (we / we.sum())
    said = lambda slope: 1 / (1 + np.exp(-(z[:, None] * slope + 0.1 * e)))
    loss = lambda slope: float(wz @ -(came[:, None] * np.log(said(slope)) + (1 - came[:, None]) * np.log(1 - said(slope))) @ we)  # fmt: skip
    low, high = 1.0, 1 + 2 * world.apart
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < loss(1 - world.apart) else (low, middle)
    return low


@dataclass(frozen=True)
class Lived:
    "What was judged, by whom, and what is known of such periods."

    y: np.ndarray  # One row a period, the future's last
    champion: list
    others: list  # Of each challenger, what it says period by period
    wobble: object


def lived(world: World, seed: int, challengers: int = 1, more: int = 0) -> Lived:
    "Judged periods with a champion and challengers, and further periods of the future."
    rng, n = np.random.default_rng(seed), world.periods + more
    z, shocks, y = world.outcomes(rng, KNOWN + n)
    known = KNOWN + world.periods
    wobble = wobble_of(world.judge, y[:known].ravel(), np.repeat(np.arange(known), ENTITIES))
    sides, caught = rng.choice([-1, 1]) * world.apart * np.array([1.0, -(1 - world.gain)]), world.caught(rng, shocks, n)  # fmt: skip
    level = [0.0, 0.0] if world.steep else sides
    steeper = (too_steep(world) - 1) / world.apart if world.steep else 1.0
    slope = 1 + np.where(sides > 0, steeper, 1.0) * sides if world.steep else [1.0, 1.0]
    tell = lambda i: [world.said(rng, z, level[i] + caught[i][t], slope[i]) for t in range(n)]
    return Lived(y[KNOWN:], tell(0), [tell(1) for _ in range(challengers)], wobble)


def asked(world: World, found: Lived, challenger: list, question: Question, look: int):
    "What loss and money say of a challenger, and what is stated."
    k, judge = world.periods, world.judge
    who, when = np.tile(np.arange(ENTITIES), k), np.repeat(np.arange(k), ENTITIES)
    pair = np.concatenate(challenger[:k]), np.concatenate(found.champion[:k])
    rows = pl.DataFrame({"entity": who, "moment": when, "label": found.y[:k].ravel()})
    case = case_of(
        judge, rows, pair, world.costs, (["entity"], "moment", Inquiry(question, look, found.wobble))
    )
    gains = case.gain(*pair, "the champion")
    return all(check.passed is True for check in _decided(question, gains, case.limits)), gains.loss


def passes(world: World, seed: int, question=Question.CHANGE, looks: int = 1, more: int = 0):
    "Whether any of the challengers passes; what is stated of the last one, and what it then gains in further periods."
    found, judge = lived(world, seed, looks, more), world.judge
    told = [asked(world, found, other, question, look) for look, other in enumerate(found.others, 1)]
    later, last = range(world.periods, world.periods + more), found.others[-1]
    gained = [judge.losses(found.y[t], found.champion[t]) - judge.losses(found.y[t], last[t]) for t in later]
    return any(passed for passed, _ in told), told[-1][1], [float(gain.mean()) for gain in gained]


def worse_by_margin(kind: str, shock: float, periods: int) -> World:
    "A world in which the champion is right and the challenger as much worse as makes a difference (`Limits.same`), in the long run."
    calm = World(kind, shock, 400, apart=1.0)
    judge, rng = calm.judge, np.random.default_rng(7)
    z, _, y = calm.outcomes(rng, 400)
    loss = lambda off: judge.losses(
        y.ravel(), np.concatenate([calm.said(np.random.default_rng(t), z, off + shock * np.random.default_rng(t).normal(), 1.0) for t in range(400)])
    ).mean()  # fmt: skip
    right, low, high = loss(0.0), 0.0, 2.0
    aim = Limits().same * min(judge.spread(y.ravel()), right)
    for _ in range(12):
        off = (low + high) / 2
        low, high = (off, high) if loss(off) - right < aim else (low, off)
    return World(kind, shock, periods, apart=off, shared=True)


def share(claim: str, world: World, n: int, seed: int, aim: str, said: str = "", **how) -> dict:
    "How often a challenger passes in a world."
    hits = sum(passes(world, seed + i, **how)[0] for i in range(n))
    about = f"{world.kind}, {world.periods} period{'s' if world.periods > 1 else ''}, shock {world.shock:.2f}"
    return line(claim, about + said, hits, n, aim)


def rows(n: int = 400, seed: int = 0) -> Iterator[dict]:
    "One row a claim and world."
    for kind in ("yes or no", "amount"):
        yield from _shipped(kind, n, seed)
        for periods in PERIODS:
            for shock in SHOCKS:
                yield share("an equal recipe passes", World(kind, shock, periods), n, seed, "<= 0.025")
            shared = World(kind, 0.20, periods, shared=True)
            yield share("an equal recipe passes", shared, n, seed, "<= 0.025", ", same teachers")
        for periods in (3, 6):
            world, few = World(kind, 0.20, periods), max(n // 2, 20)
            yield share("one of 20 equal ones passes", world, few, seed, "<= 0.025", looks=20)
            steep = World(kind, 0.0, periods, steep=0.15)
            yield share("an equal recipe passes", steep, n, seed, "<= 0.025", ", effects x 1 +- .15")
        for periods in (1, 3, 6, 8):
            for shock in (0.0, 0.10, 0.20):
                yield _worse(worse_by_margin(kind, shock, periods), n, seed)
        for gain, periods in ((0.5, 3), (1.0, 3), (0.5, 6), (1.0, 6), (1.0, 8)):
            world = World(kind, 0.10, periods, apart=0.6, gain=gain)
            yield share("a real gain is seen", world, n, seed, "power", f", {gain:.0%} nearer")
        for shock, periods, apart in ((0.0, 3, 0.8), (0.05, 8, 0.6), (0.20, 3, 3.0)):
            yield foretold(World(kind, shock, periods, apart=apart), n, seed)


def foretold(world: World, n: int, seed: int) -> dict:
    "How often a change passes that truly gains what such a contest says will be seen (`loop.statistical_power`), where that is found by halving."
    low, high = 0.0, 1.0
    for _ in range(6):
        told = replace(world, gain=(low + high) / 2)
        stated = [asked(told, found, found.others[0], Question.CHANGE, 1)[1] for found in (lived(told, seed + 10_000 + i) for i in range(40))]  # fmt: skip
        short = np.mean([one.value for one in stated]) < np.mean([one.seen for one in stated])
        low, high = (told.gain, high) if short else (low, told.gain)
    return share("a gain that was said to be seen is seen", told, n, seed, ">= 0.80")


def _worse(world: World, n: int, seed: int) -> dict:
    "How often a refresh passes that is worse by what makes a difference."
    hits = 0
    for i in range(n):
        found = lived(replace(world, gain=0.0, apart=0.0), seed + i)
        off = lived(world, seed + i).others[0]  # The same draws, and a level that is off
        hits += asked(world, found, off, Question.REFRESH, 1)[0]
    about = f"{world.kind}, {world.periods} period{'s' if world.periods > 1 else ''}, shock {world.shock:.2f}"
    return line("a refresh worse by the margin passes", about, hits, n, "<= 0.025")


def _shipped(kind: str, n: int, seed: int) -> Iterator[dict]:
    "What shipped versions gain in the next period, against what was stated."
    for question in (Question.REFRESH, Question.CHANGE):
        for shock, periods in ((0.05, 1), (0.10, 3), (0.20, 3), (0.15, 6), (0.20, 8)):
            held = shipped = 0
            for i in range(n):
                gain = float(np.random.default_rng(seed + 7919 + i).uniform(0, 1))
                world = World(kind, shock, periods, apart=0.6, gain=gain)
                passed, stated, realised = passes(world, seed + i, question, more=1)
                shipped += passed
                held += passed and stated.ahead_low <= realised[0] <= stated.ahead_high
            about = f"{kind}, {question}, {periods} period{'s' if periods > 1 else ''}, shock {shock:.2f}"
            if shipped:
                yield line("the stated interval holds what ships", about, held, shipped, ">= 0.90")


def main() -> None:
    n, seed = (int(x) for x in (*sys.argv[1:], *("400", "0")[len(sys.argv) - 1 :]))
    printed(rows(n, seed))


if __name__ == "__main__":
    main()
