"""What the gate's odds are worth where months differ: equal recipes, many looks, what ships, and what can be seen.

`python tests/bench/odds_gate.py [n] [seed]` prints one row a claim and world. Models are simulated, not fitted: a gate judges
predictions. `tests/test_odds_gate.py` runs a small n and asserts; `real_fits` is the one world in which recipes are fitted.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mlsys_nb.evaluation.costs import Costs, OverUnder
from mlsys_nb.evaluation.gate import _Case, _decided, _sized
from mlsys_nb.evaluation.limits import Limits
from mlsys_nb.evaluation.number import Number
from mlsys_nb.evaluation.probability import Probability
from mlsys_nb.evaluation.question import Question, level_at
from mlsys_nb.evaluation.two_way import Clustered, wobble_of

ENTITIES = 300


@dataclass(frozen=True)
class World:
    "Entities seen in every period, and periods that share a shock."

    kind: str = "yes or no"
    shock: float = 0.0  # In log-odds; in standard deviations of the noise for amounts
    periods: int = 6
    apart: float = 0.3  # How far both models are from the truth, one too high and one too low
    gain: float = 0.0  # How much nearer the challenger is

    @property
    def judge(self):
        return Probability() if self.kind == "yes or no" else Number()

    @property
    def costs(self):
        return Costs("EUR", 2.0, 3.0) if self.kind == "yes or no" else OverUnder("EUR", over=1.0, under=2.0)

    def outcomes(self, rng, n):
        "Truth, and what came of it in n periods."
        z, shocks = rng.normal(0, 1, ENTITIES), self.shock * rng.normal(size=n)
        at = np.tile(z, (n, 1)) + shocks[:, None]
        if self.kind == "yes or no":
            return z, (rng.random(at.shape) < 1 / (1 + np.exp(-at))).astype(float)
        return z, 100 + 10 * (at + rng.normal(size=at.shape))

    def said(self, rng, z, off):
        "What a model says in one period: off in level, and a little in every row."
        told = z + off + rng.normal(0, 0.1, len(z))
        if self.kind == "yes or no":
            return 1 / (1 + np.exp(-told))
        return (100 + 10 * told)[:, None] + np.array([0.0, -12.8, 12.8])


def lived(world: World, seed: int, challengers: int = 1, more: int = 0):
    "Judged periods with a champion and challengers, the wobble of eight earlier periods, and further periods of the future."
    rng = np.random.default_rng(seed)
    z, y = world.outcomes(rng, 8 + world.periods + more)
    block = np.repeat(np.arange(8), ENTITIES)
    known = wobble_of(world.judge, y[:8].ravel(), block)
    sides = rng.choice([-1, 1]) * np.array([1.0, -1.0])
    offs = [
        [s * world.apart + world.shock * rng.normal() for _ in range(world.periods + more)] for s in sides
    ]
    champion = [world.said(rng, z, off) for off in offs[0]]
    better = 1 - world.gain
    others = [[world.said(rng, z, better * off) for off in offs[1]] for _ in range(challengers)]
    return y[8:], champion, others, known


def passes(world: World, seed: int, question=Question.CHANGE, looks: int = 1, more: int = 0):
    "Whether any of the challengers passes; the stated interval of the last one, and what it then gains in further periods."
    y, champion, others, known = lived(world, seed, looks, more)
    k, judge = world.periods, world.judge
    rows = Clustered(np.tile(np.arange(ENTITIES), k), np.repeat(np.arange(k), ENTITIES), known)
    passed = False
    for look, challenger in enumerate(others, 1):
        level = level_at(0.95, look)
        truth, limits = y[:k].ravel(), _sized(Limits(), judge, y[:k].ravel())
        case = _Case(judge, truth, world.costs, rows, limits, level, question is Question.REFRESH)
        gains = case.gain(np.concatenate(challenger[:k]), np.concatenate(champion[:k]), "the champion")
        checks, stated = _decided(question, gains, limits), gains.loss
        passed |= all(check.passed is True for check in checks)
    later = range(k, k + more)
    realised = [
        float((judge.losses(y[t], champion[t]) - judge.losses(y[t], others[-1][t])).mean()) for t in later
    ]
    return passed, stated, realised


def interval(hits: int, n: int) -> tuple[float, float]:
    "95 % interval of a share (Wilson)."
    z, p = 1.96, hits / n
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    return float(max(middle - half, 0)), float(min(middle + half, 1))


def row(claim: str, world: str, hits: int, n: int, aim: str) -> dict:
    low, high = interval(hits, n)
    return {
        "claim": claim,
        "world": world,
        "measured": hits / n,
        "low": low,
        "high": high,
        "aim": aim,
        "n": n,
    }


def rows(n: int = 400, seed: int = 0) -> Iterator[dict]:
    "One row a claim and world."
    for kind in ("yes or no", "amount"):
        for periods in (1, 3, 6, 8):
            for shock in (0.0, 0.05, 0.10, 0.15, 0.20):
                world = World(kind, shock, periods)
                hits = sum(passes(world, seed + i)[0] for i in range(n))
                yield row(
                    "an equal recipe passes",
                    f"{kind}, {periods} periods, shock {shock:.2f}",
                    hits,
                    n,
                    "<= 0.025",
                )
        world, few = World(kind, 0.15, 6), max(n // 4, 20)
        hits = sum(passes(world, seed + i, looks=20)[0] for i in range(few))
        yield row("one of 20 equal ones passes", f"{kind}, 6 periods, shock 0.15", hits, few, "<= 0.025")
        for gain, periods in ((0.5, 6), (1.0, 6), (1.0, 8)):
            world = World(kind, 0.10, periods, apart=0.6, gain=gain)
            hits = sum(passes(world, seed + i)[0] for i in range(n))
            yield row(
                "a real gain is seen",
                f"{kind}, {periods} periods, shock 0.10, {gain:.0%} nearer",
                hits,
                n,
                "power",
            )
        yield from _shipped(kind, n, seed)


def _shipped(kind: str, n: int, seed: int) -> Iterator[dict]:
    "What shipped versions gain in the next period, against what was stated."
    for shock, periods in ((0.10, 3), (0.15, 6), (0.20, 8)):
        held = shipped = 0
        for i in range(n):
            rng = np.random.default_rng(seed + 7919 + i)
            world = World(kind, shock, periods, apart=0.6, gain=float(rng.uniform(0, 1)))
            passed, stated, realised = passes(world, seed + i, Question.REFRESH, more=1)
            shipped += passed
            held += passed and stated.ahead_low <= realised[0] <= stated.ahead_high
        yield row(
            "the stated interval holds what ships",
            f"{kind}, {periods} periods, shock {shock:.2f}",
            held,
            max(shipped, 1),
            ">= 0.90",
        )


def main() -> None:
    n, seed = (int(x) for x in (*sys.argv[1:], *("400", "0")[len(sys.argv) - 1 :]))
    for found in rows(n, seed):
        shown = f"{found['measured']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        print(
            f"{found['claim']:<38} {found['world']:<46} {shown:<24} {found['aim']:<9} n={found['n']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
