"""The gate's odds for classes and for what is chosen among candidates, where effects differ from month to month: equal recipes, and what can be seen.

    python tests/bench/odds_choice.py [n] [seed]

As in `odds_gate.py` beside this file models are simulated. One says too little of the effect of what is known and one too much, so that both lose the same in
the long run.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl
from odds_gate import ENTITIES, KNOWN
from rates import line, printed

from mlsys_nb.evaluation.clustered_intervals import wobble_of
from mlsys_nb.evaluation.costs import CostMatrix, PerHit
from mlsys_nb.evaluation.gate import Inquiry, _decided, case_of
from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.evaluation.ranking_metrics import Ranked, Ranking


@dataclass(frozen=True)
class Choices:
    "Entities that choose in every period, by what is known of each choice."

    kind: str = "classes"
    periods: int = 3
    steep: float = 0.15  # How far the effect of what is known differs between periods
    flat: float = 0.7  # Slope of a model that says too little
    better: bool = False  # The other one is right, or as wrong

    @property
    def judge(self):
        return Classes(("a", "b", "c")) if self.kind == "classes" else Ranking(3)

    @property
    def costs(self):
        return CostMatrix("EUR", uniform=2.0) if self.kind == "classes" else PerHit("EUR", 1.0)

    def known(self, rng, n):
        "What speaks for each choice: one quantity for and against classes, one for each candidate."
        return (
            rng.normal(size=(n, 1)) * [1.0, 0.0, -1.0] if self.kind == "classes" else rng.normal(size=(n, 8))
        )

    def said(self, p):
        "Probabilities as the judge knows them."
        if self.kind == "classes":
            return p
        (n, m), names = p.shape, [str(i) for i in range(p.shape[1])]
        return Ranked(pl.Series(names * n), p.ravel(), np.arange(n + 1) * m, np.ones(n * m))


def shares(x):
    "Probabilities of log-odds."
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@cache
def other(world: Choices) -> float:
    "The slope of the other model: right, or too steep and as wrong in the long run."
    rng = np.random.default_rng(1)
    x, (e, we) = world.known(rng, 20_000), np.polynomial.hermite_e.hermegauss(15)
    came = sum(w * shares(x * (1 + world.steep * v)) for v, w in zip(e, we / we.sum(), strict=True))
    noise = rng.normal(0, 0.1, x.shape)
    loss = lambda slope: -(came * np.log(shares(x * slope + noise))).sum(axis=1).mean()
    low, high = 1.0, 1 + 2 * (1 - world.flat)
    for _ in range(0 if world.better else 30):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) < loss(world.flat) else (low, middle)
    return low


def passes(world: Choices, seed: int) -> bool:
    "Whether a challenger passes as a change of recipe."
    rng, judge, k = np.random.default_rng(seed), world.judge, world.periods
    x, slopes = world.known(rng, ENTITIES), 1 + world.steep * rng.normal(size=KNOWN + k)
    p = shares(x * slopes[:, None, None])
    y = (rng.random((*p.shape[:2], 1)) > p.cumsum(axis=-1)).sum(axis=-1).clip(0, x.shape[1] - 1)
    y = y if world.kind == "classes" else y.astype(str).astype(object)
    wobble = wobble_of(judge, y.ravel(), np.repeat(np.arange(KNOWN + k), ENTITIES))
    pair = [world.flat, other(world)][:: 1 if world.better else rng.choice([-1, 1])]
    tell = lambda slope: np.concatenate([shares(x * slope + rng.normal(0, 0.1, x.shape)) for _ in range(k)])
    old, new = (world.said(tell(slope)) for slope in pair)
    truth = y[KNOWN:].ravel()
    label = np.array(judge.names)[truth] if world.kind == "classes" else truth
    who, when = np.tile(np.arange(ENTITIES), k), np.repeat(np.arange(k), ENTITIES)
    rows = pl.DataFrame({"entity": who, "moment": when, "label": list(label)})
    case = case_of(judge, rows, (new, old), world.costs, (["entity"], "moment", Inquiry(wobble=wobble)))
    gains = case.gain(new, old, "the champion")
    return all(check.passed is True for check in _decided(Question.CHANGE, gains, case.limits))


def rows(n: int = 400, seed: int = 0) -> Iterator[dict]:
    "One row a claim and world."
    for kind in ("classes", "chosen among candidates"):
        for steep, flat, better in (
            (0.15, 0.7, False),
            (0.15, 0.6, True),
            (0.0, 0.6, True),
            (0.0, 0.8, True),
        ):
            world = Choices(kind, 3, steep, flat, better)
            hits = sum(passes(world, seed + i) for i in range(n))
            claim, aim = (
                ("a real gain is seen", "power") if better else ("an equal recipe passes", "<= 0.025")
            )
            said = f", slope {flat:.1f}" if better else ""
            yield line(claim, f"{kind}, 3 periods, effects x 1 +- {steep:.2f}{said}", hits, n, aim)


def main() -> None:
    n, seed = (int(x) for x in (*sys.argv[1:], *("400", "0")[len(sys.argv) - 1 :]))
    printed(rows(n, seed))


if __name__ == "__main__":
    main()
