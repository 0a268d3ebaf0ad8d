"""The odds of the performance monitor, measured: false alarms of quiet worlds, power and delay where something changed.

`python tests/bench/odds_performance.py 200` prints one line a claim; `rows(n, seed)` gives them as plain data.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
from rates import line, printed

from mlsys_nb.evaluation.binary_metrics import Probability, auc
from mlsys_nb.evaluation.calibration import recalibration
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.evaluation.evaluate import evaluate
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.monitoring.error_detector import Tally, bands_of, detect
from mlsys_nb.monitoring.metric_variability import figures_of, period_wobble, wobbles
from mlsys_nb.monitoring.performance import Promise, _periods, allowed, performance_check, promise

START, DAY = datetime(2010, 1, 4, tzinfo=UTC), timedelta(days=1)
NAMES = "abc"


def happens(rng: np.random.Generator, n: int, level: float, base: float = 0.6) -> tuple[Any, np.ndarray]:
    odds = rng.normal(base, 0.9, n)
    return (rng.random(n) < 1 / (1 + np.exp(-(odds + level)))) * 1.0, 1 / (1 + np.exp(-odds))


def rarely(rng: np.random.Generator, n: int, level: float) -> tuple[Any, np.ndarray]:
    "A rate of one in ten, of which the model knows little more."
    return happens(rng, n, level, -2.5)


def amount(rng: np.random.Generator, n: int, level: float) -> tuple[Any, np.ndarray]:
    mean = rng.uniform(50, 150, n)
    y = mean + 20 * level + rng.normal(0, 10, n)
    return y, np.column_stack([mean, mean - 12.816, mean + 12.816])


def one_of(rng: np.random.Generator, n: int, level: float) -> tuple[Any, np.ndarray]:
    z = rng.normal(size=(n, 3))
    said, true = (np.exp(v) / np.exp(v).sum(axis=1, keepdims=True) for v in (z, z + [0, 0, level]))
    return (true.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, 2), said


@dataclass(frozen=True)
class Kind:
    "One kind of target, and how its outcomes come about."

    name: str
    judge: Any
    costs: Any
    make: Callable[..., tuple[Any, np.ndarray]]

    def frame(self, rng: np.random.Generator, n: int, level: float, at: datetime) -> pl.DataFrame:
        y, p = self.make(rng, n, level)
        label = [self.judge.names[int(k)] for k in y] if isinstance(self.judge, Classes) else y
        said = {name: p.reshape(n, -1)[:, i] for i, name in enumerate(NAMES[: p.reshape(n, -1).shape[1]])}
        ends = {name: pl.lit(at, dtype=pl.Datetime("us", "UTC")) for name in ("moment", "period")}
        return pl.DataFrame({"customer_id": np.arange(n), "label": label, **said}).with_columns(**ends)

    def said(self, rows: pl.DataFrame) -> np.ndarray:
        p = rows.select(c for c in NAMES if c in rows.columns).to_numpy()
        return p[:, 0] if p.shape[1] == 1 else p

    @property
    def problem(self) -> Any:
        return SimpleNamespace(
            keys=("customer_id",),
            costs=self.costs,
            target=SimpleNamespace(judge=self.judge, predictions=self.said),
        )


YES = Kind("Happens", Probability(), Costs("EUR", 3.0, 2.0), happens)
RARE = Kind("Happens, one in ten", Probability(), Costs("EUR", 1.0, 5.0), rarely)
CARS = Kind("Amount", Number(level=0.8, unit="cars"), OverUnder("EUR", 1.0, 3.0), amount)
DESK = Kind("OneOf", Classes(("bill", "repair", "other")), CostMatrix("EUR", uniform=1.0), one_of)


def constant(rng: np.random.Generator, periods: int) -> np.ndarray:
    return np.zeros(periods)


def months(sd: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    "A level of its own for each four weeks, seen through four-week windows each week."

    def made(rng: np.random.Generator, periods: int) -> np.ndarray:
        of = np.repeat(rng.normal(0, sd, periods // 4 + 3), 4)
        return np.convolve(of, np.ones(4) / 4, "valid")[:periods]

    return made


def wanders(sd: float, stays: float = 0.8) -> Callable[[np.random.Generator, int], np.ndarray]:
    "A level that comes back: months correlated by `stays`, as in the demo, week by week."

    def made(rng: np.random.Generator, periods: int) -> np.ndarray:
        phi, x = stays**0.25, np.zeros(periods)
        x[0] = rng.normal(0, sd)
        steps = rng.normal(0, sd * np.sqrt(1 - phi**2), periods)
        for t in range(1, periods):
            x[t] = phi * x[t - 1] + steps[t]
        return x

    return made


def days(sd: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, periods: rng.normal(0, sd, periods)


def weekdays(rng: np.random.Generator, periods: int) -> np.ndarray:
    "Weekends are other days, and the model does not know them."
    return np.where(np.arange(periods) % 7 > 4, 0.4, 0.0) + rng.normal(0, 0.05, periods)


@dataclass(frozen=True)
class World:
    "Quiet times: how levels come about, how often is asked and looked, and how many answer."

    name: str
    level: Callable[[np.random.Generator, int], np.ndarray]
    every: int = 7  # Days from period to period
    window: int = 28  # Days until an outcome is final
    history: int = 40  # Periods that were learnt from
    n: int = 500
    look: int = 4  # Periods from look to look
    whole: bool = False  # All periods since the last look are judged; else the newest

    @property
    def looks(self) -> int:
        return 365 // (self.every * self.look)

    def sizes(self, rng: np.random.Generator, k: int) -> np.ndarray:
        return np.full(k, self.n) if self.n > 20 else rng.integers(1, 2 * self.n, k)


def lived(
    kind: Kind, world: World, seed: int
) -> tuple[Promise, Callable[[int], pl.DataFrame], np.random.Generator]:
    "What a model promised after the history of a world, and the rows of any later period."
    rng = np.random.default_rng(seed)
    periods = world.history + world.looks * world.look + world.look
    level, sizes = world.level(rng, periods), world.sizes(rng, periods)
    moments = [START + i * world.every * DAY for i in range(periods)]
    frames = [kind.frame(rng, int(sizes[i]), level[i], moments[i]) for i in range(world.history)]
    known = pl.concat(frames)
    held = pl.concat(frames[-max(2, 300 // world.n + 1) :])
    judge, window = kind.judge, world.window * DAY
    judged = evaluate(judge, judge.outcomes(held["label"]), kind.said(held), costs=kind.costs, repeats=100)
    found = wobbles(judge, known, kind.said(known), judged, window)
    usual = period_wobble(judge, known, "period", window)
    metrics = {**judged.to_dict(), "period_wobble": usual, "wobbles": [w.to_dict() for w in found]}
    later = lambda i: kind.frame(rng, int(sizes[i]), level[i], moments[i])
    return promise(judge, metrics), later, rng


def points(judge: Any, y: np.ndarray, p: np.ndarray) -> dict[str, float | None]:
    "The watched figures, without intervals."
    if not isinstance(judge, Probability):
        return figures_of(judge, y, p)
    gap, slope, loss = float((p - y).mean()), recalibration(y, p).slope, float(judge.losses(y, p).mean())
    return {"calibration_gap": gap, "calibration_slope": slope, "auc": float(auc(y, p)[0]), "log_loss": loss}


def cannot_break(kind: Kind, rows: pl.DataFrame, given: Promise, rate: float) -> bool:
    """Whether `performance_check` would certainly find nothing, told from the figures alone.

    Intervals are nine tenths of a check's time. But no error is below its floor (the holdout's, row for row), and Student's limit is
    not below the normal one: where a figure keeps within the limit at the floor, the interval changes nothing.
    """
    judge, y, p = kind.judge, kind.judge.outcomes(rows["label"]), kind.said(rows)
    if rows.height < 100 or min(judge.enough(y).values()) == 0:
        return False  # another matter: let the check say
    seen = points(judge, y, p)
    watched = {name: w for name, w in judge.watched.items() if name in given.values}
    limit = NormalDist().inv_cdf(1 - rate / max(sum(w.sides for w in watched.values()), 1))
    many = _periods(rows)
    for name, w in watched.items():
        if seen.get(name) is None:
            continue
        stray = given.stray(name, w, many).sd
        floor = (given.noise[name] ** 2 / rows.height + given.errors[name] ** 2 + stray**2) ** 0.5
        if w.harm(seen[name], given.values[name]) > limit * floor:
            return False
    return True


def looked(kind: Kind, rows: pl.DataFrame, given: Promise, rate: float) -> tuple[bool, bool]:
    "Whether there was enough to judge, and whether a figure was broken: what `performance_check` says."
    if cannot_break(kind, rows, given, rate):
        return True, False
    report = performance_check(kind.problem, rows, given, rate)
    return report.evaluation is not None, bool(report.broken)


@dataclass
class Looks:
    "The looks at a model, each asked as `matured_outcomes.look_at` asks: alone, and where looks are frequent the newest three together."

    kind: Kind
    world: World
    given: Promise
    begun: bool = False  # Nobody knows how far the first look reached back: it stands alone
    before: list[pl.DataFrame] = field(default_factory=list)

    def at(self, rows: pl.DataFrame) -> tuple[bool, bool]:
        "Whether there was enough to judge, and whether a figure was broken."
        covered, rate = self.world.look * self.world.every * DAY, 0.01
        rate, many = allowed(rate, covered), min(len(self.before), 2)
        run = many > 0 and (many + 1) * covered <= timedelta(days=31)
        judged, broken = looked(self.kind, rows, self.given, rate / 2 if run else rate)
        if judged and run and not broken:
            several = pl.concat([*self.before[-2:], rows])
            broken = looked(self.kind, several, self.given, rate / 2)[1]
        self.before = [*self.before[-1:], rows] if judged and self.begun else self.before
        self.begun = self.begun or judged
        return judged, broken


def model_year(kind: Kind, world: World, seed: int) -> tuple[int, int]:
    "False alarms and checks of one model-year, the detector's among them."
    given, later, _ = lived(kind, world, seed)
    asked, evidence, alarms, checks = Looks(kind, world, given), Tally(), 0, 0
    bands, waiting = bands_of(kind.judge, given), []
    for look in range(world.looks):
        last = world.history + (look + 1) * world.look
        waiting += [later(i) for i in (range(last - world.look, last) if world.whole else [last - 1])]
        rows = pl.concat(waiting)
        judged, broken = asked.at(rows)
        if not judged:
            continue
        found = detect(kind.judge, kind.judge.outcomes(rows["label"]), kind.said(rows), bands, evidence)
        evidence, waiting = found.evidence, []
        alarms, checks = alarms + bool(broken or found.alarm), checks + 1
    return alarms, checks


QUIET = (
    (YES, World("constant", constant)),
    (YES, World("months differ by .15", months(0.15))),
    (YES, World("wanders as in the demo", wanders(0.15))),
    (YES, World("wanders as in the demo, young: 16 weeks known", wanders(0.15), history=16)),
    (YES, World("wanders, looked at every eight weeks", wanders(0.15), look=8)),
    (YES, World("wanders, looked at every week", wanders(0.15), look=1)),
    (RARE, World("wanders as in the demo", wanders(0.15))),
    (
        RARE,
        World("days differ by .1, looked at daily", days(0.1), every=1, window=1, history=60, n=600, look=1),
    ),
    (RARE, World("days differ by .1, looked at weekly", days(0.1), 1, 1, 90, 200, 7, True)),
    (YES, World("weekends differ, looked at daily", weekdays, every=1, window=1, history=70, look=1)),
    (YES, World("tiny periods of 1 to 20 rows", wanders(0.15), n=10, look=4, history=80, whole=True)),
    (CARS, World("constant", constant)),
    (CARS, World("wanders", wanders(0.15))),
    (DESK, World("constant", constant)),
    (DESK, World("wanders", wanders(0.15))),
)


def quiet(n: int, seed: int) -> Iterator[dict[str, Any]]:
    "False alarms of quiet worlds, a check and a model-year."
    for kind, world in QUIET:
        told = [model_year(kind, world, seed + i) for i in range(n)]
        where = f"{kind.name}: {world.name}"
        alarms, checks = (sum(t[i] for t in told) for i in (0, 1))
        yield line("performance: false alarm, a check", where, alarms, checks, "<= 0.01")
        yield line("performance: false alarm, a model-year", where, sum(a > 0 for a, _ in told), n, "<= 0.05")


def found_within(kind: Kind, world: World, seed: int, shift: float, looks: int = 3) -> bool:
    "Whether a change of level is found within a few looks, after two quiet ones."
    given, later, rng = lived(kind, world, seed)
    asked, bands, evidence = Looks(kind, world, given), bands_of(kind.judge, given), Tally()
    for look in range(-2, looks):
        first = world.history + (look + 2) * world.look
        ends = range(first, first + world.look) if world.whole else [first]
        levels = world.level(rng, len(ends)) + (shift if look >= 0 else 0.0)
        made = [
            kind.frame(rng, world.n, x, START + i * world.every * DAY)
            for i, x in zip(ends, levels, strict=True)
        ]
        rows = pl.concat(made)
        broken = asked.at(rows)[1]
        found = detect(kind.judge, kind.judge.outcomes(rows["label"]), kind.said(rows), bands, evidence)
        evidence = found.evidence
        if (broken or found.alarm) and look >= 0:
            return True
    return False


def best_possible(sd: float, days_seen: int, n: int = 5_000, shift: float = 0.463) -> float:
    """How often any test could find a shift in some days, at five false alarms in a hundred years of such looks.

    Were it known beforehand how far days differ and what to look for: the mean of the days is then all that counts (Neyman & Pearson 1933).
    """
    noise = (sd**2 + 1 / (n * 0.09)) / days_seen
    rate, normal = 0.05 * days_seen / 365, NormalDist()
    return normal.cdf(shift / noise**0.5 - normal.inv_cdf(1 - rate))


def power(n: int, seed: int) -> Iterator[dict[str, Any]]:
    "A base rate of .10 that becomes .15, five thousand rows a day."
    for sd in (0.0, 0.05, 0.1, 0.2):
        for name, look in (("daily", 1), ("weekly", 7)):
            most = best_possible(sd, 3 * look)
            where = f"days differ by {sd:g}, looked at {name}; at most {most:.0%} is possible"
            world = World(where, days(sd), 1, 1, 60, 5_000, look, look > 1)
            told = [found_within(RARE, world, seed + i, 0.463) for i in range(max(n // 4, 5))]
            claim = "performance: .10 -> .15 found within three looks"
            yield line(claim, where, sum(told), len(told), ">= 0.95" if most >= 0.95 else "")


def stream(rng: np.random.Generator, n: int, change: int, new: float) -> np.ndarray:
    return (rng.random(n) < np.where(np.arange(n) < change, 0.1, new)) * 1.0


def delays(n: int, seed: int) -> Iterator[dict[str, Any]]:
    "The detector on a constant rate: false alarms in ten thousand labels, and labels until a change is found."
    judge, p, alarms, took = Probability(), np.full(30_000, 0.1), 0, []
    for i in range(5 * n):
        y = stream(np.random.default_rng(seed + i), 10_000, 10_000, 0.1)
        alarms += detect(judge, y, p[:10_000], {}, Tally()).alarm
    for i in range(n):
        y, evidence = stream(np.random.default_rng(seed + i), 30_000, 5_000, 0.15), Tally()
        evidence = detect(judge, y[:5_000], p[:5_000], {}, evidence).evidence
        for start in range(5_000, 30_000, 25):
            found = detect(judge, y[start : start + 25], p[start : start + 25], {}, evidence)
            evidence = found.evidence
            if found.alarm:
                break
        took.append(start + 25 - 5_000)
    yield line(
        "detector: false alarm in 10,000 labels", "constant rate of one in ten", alarms, 5 * n, "<= 0.01"
    )
    spread = np.quantile(took, (0.5, 0.25, 0.75))
    names = ("measured", "low", "high")
    told = {
        "claim": "detector: labels until .10 -> .15 is found, median and quartiles",
        "world": "constant before",
    }
    yield {**told, **dict(zip(names, map(float, spread), strict=True)), "aim": "<= 1000", "n": n}


def rows(n: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    "Every claim, measured."
    yield from quiet(n, seed)
    yield from power(n, seed)
    yield from delays(n, seed)


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    printed(rows(n))


if __name__ == "__main__":
    main()
