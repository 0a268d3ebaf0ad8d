"""The odds that drift states, measured: marks a feature-month, alerts a model-year, and what is found within three looks.

`python tests/bench/odds_drift.py [years] [seed]` simulates sketches (counts a day) of whole years, not rows, and judges them by
the product's own code; `tests/test_drift.py` shows that rows, read and sketched by the product, give the same counts and verdicts. With
200 years it takes about a quarter of an hour on one core.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from rates import line, printed
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import poisson
from scipy.stats import t as student

from mlsys_nb.monitoring.binning import COMMONEST, Lens, lens_of
from mlsys_nb.monitoring.drift import Odds, judge
from mlsys_nb.monitoring.histogram_sketch import Sketches, masses
from mlsys_nb.monitoring.training_profile import Profile
from mlsys_nb.monitoring.trend_season import charted

START = datetime(2023, 1, 2, tzinfo=UTC)
REFERENCE, YEAR, ROWS, FEATURES = 60, 365, 5000, 10  # Days, rows a day
WEEKS = 26  # Of reference where looks are weekly
Cells = Callable[[np.ndarray, np.ndarray], np.ndarray]  # edges, day effects -> share of each cell on each day


def _from_cdf(cdf: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Cells:
    def cells(edges: np.ndarray, effect: np.ndarray) -> np.ndarray:
        below = cdf(edges[None, :], effect[:, None])
        return np.diff(np.c_[np.zeros(len(effect)), below, np.ones(len(effect))], axis=1).clip(0)

    return cells


def _zero_inflated(x: np.ndarray, e: np.ndarray) -> np.ndarray:
    "Seven of ten rows are zero, the others lognormal; both wobble."
    zero = expit(logit(0.7) - e)
    inner = ndtr(np.log(np.maximum(x, 1e-300)) - e)
    return np.where(x > 0, zero + (1 - zero) * np.where(x > 0, inner, 0), 0.0)


KINDS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], Cells]] = {
    "normal": (lambda g, n: g.standard_normal(n), _from_cdf(lambda x, e: ndtr(x - e))),
    "lognormal": (
        lambda g, n: g.lognormal(0, 1, n),
        _from_cdf(lambda x, e: np.where(x > 0, ndtr(np.log(np.maximum(x, 1e-300)) - e), 0.0)),
    ),
    "t3": (lambda g, n: g.standard_t(3, n), _from_cdf(lambda x, e: student.cdf(x - 3**0.5 * e, 3))),
    "zero-inflated": (
        lambda g, n: np.where(g.random(n) < 0.7, 0.0, g.lognormal(0, 1, n)),
        _from_cdf(_zero_inflated),
    ),
    "Poisson": (
        lambda g, n: g.poisson(3, n).astype(float),
        _from_cdf(lambda x, e: np.where(x > 0, poisson.cdf(np.ceil(x) - 1, 3 * np.exp(e / 3**0.5)), 0.0)),
    ),
    "rare binary": (
        lambda g, n: (g.random(n) < 0.01).astype(float),
        _from_cdf(lambda x, e: np.where(x > 1, 1.0, np.where(x > 0, 1 - expit(logit(0.01) + e), 0.0))),
    ),
}


def _zipf(n: int, power: float = 1.0) -> tuple[float, ...]:
    share = np.arange(1, n + 1) ** -power
    return tuple((share / share.sum()).tolist())


@dataclass(frozen=True)
class Values:
    "Usual shares of a category's values; the log-odds of some of them stray, each in its own way."

    shares: tuple[float, ...]
    stray: tuple[int, ...] = ()  # None: all
    passing: float = 0.0  # Rows of values that are heard of for a few days, then never again
    lives: int = 3  # Days


CATEGORIES: dict[str, Values] = {
    "yes or no": Values((0.7, 0.3), (1,)),
    "3 values": Values((0.5, 0.3, 0.2)),
    "one of 4 values strays": Values((0.5, 0.3, 0.15, 0.05), (3,)),
    "two thirds hold one of 12 values": Values((2 / 3, *(_zipf(11)[i] / 3 for i in range(11)))),
    "rare ones of 10 values": Values((0.955, *(0.01, 0.01, 0.01, 0.005, 0.005, 0.002, 0.001, 0.001, 0.001))),
    "20 values": Values(_zipf(20)),
    "300 values": Values(_zipf(300)),
    "1,000 values, new ones each day": Values(_zipf(1000, 1.5)),
    "values that come and go": Values((0.5, 0.3, 0.2), passing=0.02),
}


@dataclass(frozen=True)
class World:
    "How quiet days differ."

    kind: str = "normal"
    wobble: float = 0.05
    rho: float = 0.0
    week: float = 0.0  # Standard deviation of weekday effects
    tails: float = np.inf  # Degrees of freedom of day effects
    rows: int = ROWS
    unlike: float = (
        1.0  # The most wobbling feature has so many times the wobble, the least so many parts of it
    )
    every: int = 1  # Days that a look takes together

    def __str__(self) -> str:
        told = [self.kind, f"wobble {self.wobble:g}"]
        told += [f"each its own by {self.unlike:g}"] if self.unlike > 1 else []
        told += [f"AR({self.rho:g})"] if self.rho else []
        told += [f"week {self.week:g}"] if self.week else []
        told += [f"t{self.tails:g} day effects"] if np.isfinite(self.tails) else []
        return ", ".join([*told, f"{self.rows:,} rows a {'day' if self.every == 1 else 'week'}"])


def effects(world: World, rng: np.random.Generator, days: int, width: int = FEATURES) -> np.ndarray:
    "What each day adds to each feature, in standard deviations."
    z = rng.standard_normal((width, days))
    for i in range(1, days):
        z[:, i] = world.rho * z[:, i - 1] + (1 - world.rho**2) ** 0.5 * z[:, i]
    if np.isfinite(world.tails):
        z = student.ppf(ndtr(z), world.tails) / (world.tails / (world.tails - 2)) ** 0.5
    z *= np.geomspace(1 / world.unlike, world.unlike, width)[:, None]
    week = world.week if world.every == 1 else 0.0
    return world.wobble * z + week * rng.standard_normal((width, 7))[:, np.arange(days) % 7]


_LENSES: dict[str, Lens] = {}


def lens(kind: str) -> Lens:
    "How a column of this kind is read."
    if kind in CATEGORIES:
        return Lens(kind, "category", known=tuple(str(i) for i in range(len(CATEGORIES[kind].shares))))
    if kind not in _LENSES:
        rows = KINDS[kind][0](np.random.default_rng(1), 100_000)
        (_LENSES[kind],) = lens_of(kind, pl.Series(kind, rows), np.zeros(len(rows), int))
    return _LENSES[kind]


def drawn(world: World, rng: np.random.Generator, effect: np.ndarray) -> np.ndarray:
    "Counts of a feature's cells, day by day; nothing is missing."
    share = KINDS[world.kind][1](np.array(lens(world.kind).edges), effect)
    counts = rng.multinomial(world.rows, share / share.sum(axis=1, keepdims=True))
    return np.c_[counts, np.zeros(len(effect), int)][:, None, :]


def category(world: World, rng: np.random.Generator, days: int, past: int) -> np.ndarray:
    "Counts of a category's cells, day by day, as a profile of the first days reads them."
    of, n = CATEGORIES[world.kind], np.array(CATEGORIES[world.kind].shares)
    stray = list(of.stray or range(len(n)))
    odds = np.tile(np.log(n / n.sum())[:, None], days)
    odds[stray] += effects(world, rng, days, len(stray))
    share = np.exp(odds - odds.max(axis=0))
    here = rng.binomial(world.rows, of.passing, days)
    counts = rng.multinomial(world.rows - here, (share / share.sum(axis=0)).T)
    for day, rows in enumerate(
        here
    ):  # each passing value is born on one day and spoken of on the next ones too
        born = np.zeros((days, 1), int)
        lives = slice(day, day + of.lives)
        born[lives, 0] = rng.multinomial(rows, np.full(of.lives, 1 / of.lives))[: days - day]
        counts = np.c_[counts, born] if of.passing else counts
    return folded(counts, past)


def folded(counts: np.ndarray, past: int) -> np.ndarray:
    "Counts of every value, day by day -> of the cells of a lens: the commonest, the other known ones, new ones, missing."
    seen = (counts[:past] > 0).sum(axis=0)
    order = np.argsort(-counts[:past].sum(axis=0), kind="stable")
    top, rest = order[:COMMONEST], order[COMMONEST:]
    once, known = seen == 1, seen > 0
    fresh = np.where(np.arange(len(counts))[:, None] < past, once, ~known)
    own = np.where(fresh[:, top], 0, counts[:, top])
    other = np.where(fresh[:, rest], 0, counts[:, rest]).sum(axis=1)
    new = np.where(fresh, counts, 0).sum(axis=1)
    return np.c_[own, other, new, np.zeros(len(counts), int)][:, None, :]


def reference(
    counts: list[np.ndarray], one: Lens, days: int = REFERENCE, every: int = 1
) -> tuple[Profile, Sketches]:
    "A profile of the first days, and what was served on the others."
    at = tuple(START + timedelta(days=every * i) for i in range(counts[0].shape[0]))
    lenses = tuple(masses(replace(one, feature=f"x{i}"), c[:days]) for i, c in enumerate(counts))
    profile = Profile(lenses, Sketches(at[:days], tuple(c[:days] for c in counts)))
    return profile, Sketches(at[days:], tuple(c[days:] for c in counts))


def quiet_year(world: World, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    "Marks and alerts of a quiet year with daily looks: one row a feature, one column a day."
    past, looks = (REFERENCE if world.every == 1 else WEEKS), YEAR // world.every
    if world.kind in CATEGORIES:
        counts = [category(world, rng, past + looks, past) for _ in range(FEATURES)]
    else:
        counts = [drawn(world, rng, e) for e in effects(world, rng, past + looks)]
    profile, served = reference(counts, lens(world.kind), past, world.every)
    chart, odds = charted(profile, served), Odds()
    told = [judge(profile, chart, (i, 0), odds) for i in range(FEATURES)]
    return np.array([t.marked.any(axis=0) for t in told]), np.array([t.alert.any(axis=0) for t in told])


QUIET = (
    *(World(kind, wobble) for kind in KINDS for wobble in (0.05, 0.3)),
    World(wobble=0.1, rho=0.3), World(wobble=0.1, rho=0.8), World(wobble=0.3, rho=0.8), World("lognormal", 0.1, 0.8),
    World(wobble=0.05, week=0.3), World("Poisson", 0.1, 0.3, week=0.3), World(wobble=0.1, tails=3),
    World("lognormal", 0.3, tails=3), World("zero-inflated", 0.1, 0.3, 0.3), World(wobble=0.05, rows=300),
    World("rare binary", 0.05, rows=500), World("rare binary", 0.3, tails=3), World("Poisson", 0.05, tails=3, rows=500),
    World(wobble=0.01, tails=3), World(wobble=0.02, tails=3), World(wobble=0.05, tails=3, rows=300), World(wobble=0.02, rho=0.8, rows=300), World(wobble=0.1, unlike=4), World("lognormal", 0.1, 0.3, unlike=4),
)  # fmt: skip


QUIET_CATEGORIES = (
    *(World(kind, wobble, tails=3) for kind in CATEGORIES for wobble in (0.05, 0.3)),
    *(World(kind, 0.1) for kind in CATEGORIES),
    *(World(kind, 0.1, 0.3, week=0.3) for kind in ("3 values", "20 values")),
    *(World(kind, 0.3, 0.8) for kind in ("3 values", "one of 4 values strays", "300 values")),
    *(World(kind, 0.3, tails=3, rows=500) for kind in ("one of 4 values strays", "20 values")),
    *(World(kind, 0.3, tails=3, every=7) for kind in ("one of 4 values strays", "two thirds hold one of 12 values", "20 values")),
)  # fmt: skip


def quiet_rows(
    years: int, seed: int, worlds: tuple[World, ...] = (*QUIET, *QUIET_CATEGORIES)
) -> Iterator[dict]:
    "False marks and false alerts of quiet years."
    for k, world in enumerate(worlds):
        rng, months, alerts = np.random.default_rng((seed, k)), 0, 0
        for _ in range(years):
            marked, acted = quiet_year(world, rng)
            month = np.arange(marked.shape[1]) * 12 // marked.shape[1]
            months += sum(int(marked[:, month == k].any(axis=1).sum()) for k in range(12))
            alerts += int(acted.any())
        yield line("drift marks a feature-month", str(world), months, years * FEATURES * 12, "<= 0.01")
        yield line(
            f"drift alerts a model-year, {'daily' if world.every == 1 else 'weekly'} looks",
            str(world),
            alerts,
            years,
            "<= 0.05",
        )


@dataclass(frozen=True)
class Fault:
    "What breaks in one of ten features."

    name: str
    world: World
    share: Callable[
        [Cells, np.ndarray, np.ndarray], np.ndarray
    ]  # Of each cell, from the kind's own, edges and day effects
    missing: float = 0.0


def _stuck(cells: Cells, edges: np.ndarray, effect: np.ndarray) -> np.ndarray:
    out = np.zeros((len(effect), len(edges) + 1))
    out[:, int(np.searchsorted(edges, 0.0, side="right"))] = 1
    return out


_YES = (
    (lambda g, n: (g.random(n) < 0.05).astype(float)),
    _from_cdf(lambda x, e: np.where(x > 1, 1.0, np.where(x > 0, 1 - expit(logit(0.05) + e), 0.0))),
)
KINDS["a share of 5 %"] = _YES
FAULTS = (
    Fault("stuck at its median", World(), _stuck),
    Fault("spread x 1.5", World(), lambda c, x, e: c(x / 1.5, e / 1.5)),
    Fault("+.2 sd at wobble .05", World(wobble=0.05), lambda c, x, e: c(x, e + 0.2)),
    Fault("unit x 100 in 10 % of rows", World("lognormal"), lambda c, x, e: 0.9 * c(x, e) + 0.1 * c(x / 100, e)),
    Fault(
        "share 5 -> 6 %", World("a share of 5 %", 0.0), lambda c, x, e: c(x, e + float(logit(0.06) - logit(0.05)))
    ),
    Fault("missing 0 -> 2 %", World(), lambda c, x, e: c(x, e), 0.02),
)  # fmt: skip


def _broken(fault: Fault, rng: np.random.Generator, effect: np.ndarray) -> np.ndarray:
    "Counts of the days on which a feature is broken."
    edges = np.array(lens(fault.world.kind).edges)
    share = fault.share(KINDS[fault.world.kind][1], edges, effect)
    gone = rng.binomial(fault.world.rows, fault.missing, len(effect))
    counts = rng.multinomial(fault.world.rows - gone, share / share.sum(axis=1, keepdims=True))
    return np.c_[counts, gone][:, None, :]


def found(fault: Fault, rng: np.random.Generator, looks: int = 3, width: int = FEATURES) -> bool:
    "Whether the broken feature has an alert within so many looks."
    counts = []
    for i, effect in enumerate(effects(fault.world, rng, REFERENCE + looks, width)):
        usual = drawn(fault.world, rng, effect)
        if i == 0:
            usual[REFERENCE:] = _broken(fault, rng, effect[REFERENCE:])
        counts.append(usual)
    profile, served = reference(counts, lens(fault.world.kind))
    return bool(judge(profile, charted(profile, served), (0, 0), Odds()).alert.any())


def at_most(before: float, after: float, rows: int = ROWS, features: int = FEATURES, looks: int = 3) -> float:
    """The power that no test of a share exceeds in so many daily looks, when one quiet model-year in twenty may have an alert.

    The year has 365 / looks blocks that share no day, and any feature may move up or down in any of them: so each of these has its part of
    the 5 %, and within it none is better than the sum of the days (Neyman and Pearson 1933), even with a reference known exactly.
    """
    own = 1 - (1 - 0.05) ** (looks / 365 / features / 2)
    sd, now = ((p * (1 - p) / rows / looks) ** 0.5 for p in (before, after))
    return float(ndtr((after - before + ndtri(own) * sd) / now))


def power_rows(n: int, seed: int) -> Iterator[dict]:
    "What is found within three looks; the share also among three features, and at three looks of a week's rows each."
    share = next(f for f in FAULTS if f.name.startswith("share"))
    weekly = replace(share, world=replace(share.world, rows=7 * ROWS))
    for k, (fault, width) in enumerate((*((f, FEATURES) for f in (*FAULTS, weekly)), (share, 3))):
        rng = np.random.default_rng((seed, 1000 + k))
        hits = sum(found(fault, rng, width=width) for _ in range(n))
        best = (
            f", no test > {at_most(0.05, 0.06, fault.world.rows, width):.2f}"
            if fault.name == share.name
            else ""
        )
        told = f"{fault.name}{best}, {fault.world}" + (f", {width} features" if width != FEATURES else "")
        yield line("drift alerts within three looks", told, hits, n, ">= 0.95")


def rows(n: int, seed: int) -> Iterator[dict]:
    "Everything: claim, world, measured, low, high, aim, n."
    yield from power_rows(2 * n, seed)
    yield from quiet_rows(n, seed)


def main() -> None:
    years, seed = (*(int(text) for text in sys.argv[1:]), *(20, 0)[len(sys.argv) - 1 :])
    printed(rows(years, seed))


if __name__ == "__main__":
    main()
