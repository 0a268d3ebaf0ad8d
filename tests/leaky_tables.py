"""Tables whose every column is known to be honest or not, drawn from four worlds as the words of the matter tell them.

Nothing here is taken from how leaks are looked for: a shop's parcels (sent back or not), a clinic's appointments (kept, late,
missed), a workshop's repairs (hours), a carrier's freight (what the invoice came to: heavy tails, and an honest quote that tells
most of it). What is honest is drawn before the outcome, what leaks after it.

    python tests/leaky_tables.py 100      # how often each planted column is named, and how often an honest one
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

BEGIN = datetime(2024, 1, 1, 8, tzinfo=UTC)
WORDS = "please the my order with a since not you when today it was we and for size colour box shop new old last first".split()


@dataclass(frozen=True)
class World:
    "One table, and what came of each of its rows."

    rows: pl.DataFrame  # Honest columns, `id`, `at`
    outcome: pl.Series
    rng: np.random.Generator

    @property
    def number(self) -> bool:
        return self.outcome.dtype.is_float()

    @property
    def rare(self) -> np.ndarray:
        "The rows of the outcome that somebody writes about: sent back, missed, the longest fifth."
        y = self.outcome.to_numpy()
        return y > np.quantile(y, 0.8) if self.number else y == ("yes" if "yes" in y else "missed")


def sentences(rng: np.random.Generator, n: int, topic: np.ndarray) -> list[str]:
    "What a customer wrote: words of no matter, and of topics that lean a little towards the outcome."
    about = ["broken zip", "too small", "gift", "second time", "urgent"]
    lean = np.clip(2 + np.round(1.2 * topic + rng.normal(size=n)), 0, 4).astype(int)
    return [f"{' '.join(rng.choice(WORDS, 7))} {about[k]} {' '.join(rng.choice(WORDS, 3))}" for k in lean]


def world(kind: str, seed: int, n: int = 0) -> World:
    "A table of one of the worlds."
    if kind == "freight":
        return freight(seed, n)
    rng = np.random.default_rng([seed, len(kind)])
    n = n or int(rng.choice([800, 2000, 5000]))
    who = rng.integers(0, max(n // 5, 30), n)
    nature = rng.normal(size=who.max() + 1)[who]
    strength = rng.choice([0.4, 1.0, 2.0])
    a, b, group = (
        rng.normal(size=n),
        rng.exponential(size=n),
        rng.choice(["north", "south", "east", "west"], n),
    )
    odds = strength * (0.8 * a + 0.5 * nature + 0.6 * (group == "east") + 0.3 * np.log1p(b))
    given = np.where(rng.random(n) < 0.15, np.nan, 20 + 5 * a + 3 * rng.normal(size=n))
    discount = np.where(rng.random(n) < 0.7, 0.0, np.round(5 * rng.exponential(size=n), 2))
    odds = odds + 0.5 * strength * (discount > 0)
    if kind == "parcels":
        said = np.where(rng.random(n) < 1 / (1 + np.exp(1.4 - odds)), "yes", "no")
        outcome = pl.Series("back", said)
    elif kind == "clinic":
        drawn = rng.gumbel(size=(n, 3)) + np.column_stack([1.2 + 0 * odds, 0.3 * odds, odds - 0.2])
        outcome = pl.Series("came", np.array(["kept", "late", "missed"])[drawn.argmax(axis=1)])
    else:
        outcome = pl.Series("hours", np.round(np.exp(1 + 0.3 * odds + 0.3 * rng.normal(size=n)), 2))
    at = [BEGIN + timedelta(minutes=int(m)) for m in np.sort(rng.integers(0, 400_000, n))]
    rows = pl.DataFrame({
        "id": np.arange(n) + 10_000, "at": at, "who": [f"K{w}" for w in who], "size": np.round(a, 3), "weight": np.round(b, 2),
        "region": group, "age": pl.Series(np.round(given), nan_to_null=True), "discount": discount,
        "floor": rng.integers(0, 6, n), "note": sentences(rng, n, odds), "born": [BEGIN - timedelta(days=int(d)) for d in rng.integers(1, 9000, n)],
        "voucher": [f"V{v}" if v < 40 else None for v in rng.integers(0, 200, n)],
    }, strict=False)  # fmt: skip
    return World(rows, outcome, rng)


def freight(seed: int, n: int = 0) -> World:
    "Shipments and what their invoices came to: a few are far dearer than all others, and the quote of before tells most of it."
    rng = np.random.default_rng([seed, 4711])
    n = n or int(rng.choice([800, 2000, 5000]))
    who, kind = (
        rng.integers(0, max(n // 8, 30), n),
        rng.choice(["dry", "chilled", "oversize", "dangerous"], n, p=[0.6, 0.2, 0.15, 0.05]),
    )
    dearer = rng.normal(0, 0.15, who.max() + 1)[who]
    tons, km = np.exp(rng.normal(1.5, 0.8, n)), np.round(rng.gamma(2, 250, n) + 20)
    customs, waiting = rng.random(n) < 0.25, rng.exponential(1.0, n)
    plain = (
        4 + 0.6 * np.log(tons) + 0.5 * np.log(km) + 0.5 * (kind == "oversize") + 0.8 * (kind == "dangerous")
    )
    quote = np.exp(plain + dearer + rng.choice([0.05, 0.15, 0.4]) * rng.normal(size=n))
    amount = np.exp(plain + dearer + 0.3 * customs + 0.1 * waiting + 0.2 * rng.standard_t(3, n))
    at = [BEGIN + timedelta(minutes=int(m)) for m in np.sort(rng.integers(0, 500_000, n))]
    rows = pl.DataFrame({
        "id": np.arange(n) + 700_000, "at": at, "who": [f"S{w}" for w in who], "region": kind, "tons": tons.round(2), "km": km,
        "customs": customs, "quote": pl.Series(np.where(rng.random(n) < 0.1, np.nan, quote.round(0)), nan_to_null=True),
        "truck": [("own", "hired", None)[k] for k in rng.integers(0, 3, n)], "pallets": np.ceil(tons * rng.uniform(1, 2, n)).astype(int),
        "order": sentences(rng, n, np.log(tons) - 1.5), "asked": [t - timedelta(hours=int(h)) for t, h in zip(at, rng.integers(1, 300, n), strict=True)],
    }, strict=False)  # fmt: skip
    return World(rows, pl.Series("invoice", amount.round(2)), rng)


def hit(w: World, share: float) -> np.ndarray:
    return w.rng.random(w.rows.height) < share


def copy_of_id(w: World) -> pl.Series:
    "A file number that ends in a letter for what came of it."
    y = (
        w.outcome.rank("ordinal").to_numpy() * 5 // (w.rows.height + 1)
        if w.number
        else w.outcome.rank("dense").to_numpy()
    )
    return pl.Series([f"F{i * 7}-{'ABCDEFG'[int(k)]}" for i, k in enumerate(y)])


def stage(w: World) -> pl.Series:
    "A stage of work that says the outcome nearly always (one row in thirty is filed wrongly)."
    y = w.outcome.qcut(8, labels=[f"Q{i}" for i in range(8)]).cast(pl.String) if w.number else w.outcome
    wrong = w.rng.permutation(y.to_numpy())
    return pl.Series([f"S-{v}" for v in np.where(hit(w, 1 / 30), wrong, y.to_numpy())])


def afterwards(share: float, words: tuple[str, ...]) -> Callable[[World], pl.Series]:
    "A note into which, for this share of the rare outcome, somebody wrote what had happened."

    def plant(w: World) -> pl.Series:
        plain = [" ".join(w.rng.choice(WORDS, 8)) for _ in range(w.rows.height)]
        told = w.rare & hit(w, share)
        place = w.rng.integers(0, 8, w.rows.height)
        found = []
        for text, yes, k in zip(plain, told, place, strict=True):
            parts = text.split()
            found.append(" ".join([*parts[:k], str(w.rng.choice(words)), *parts[k:]]) if yes else text)
        return pl.Series(found)

    return plant


def goodwill(w: World) -> pl.Series:
    "An amount that is paid out after the rare outcome, 93 times of 100, else nought."
    paid = np.round(5 + 10 * w.rng.exponential(size=w.rows.height), 2)
    return pl.Series(np.where(w.rare & hit(w, 0.93), paid, 0.0))


def only_there(share: float) -> Callable[[World], pl.Series]:
    "A number that is missing except for the rare outcome, and there in this share."
    return lambda w: pl.Series(
        np.where(w.rare & hit(w, share), np.round(w.rng.normal(50, 9, w.rows.height), 1), np.nan),
        nan_to_null=True,
    )


def later(share: float) -> Callable[[World], pl.Series]:
    "A date after the moment, filled in for this share of rows."

    def plant(w: World) -> pl.Series:
        there, days = hit(w, share), w.rng.integers(1, 20, w.rows.height)
        return pl.Series(
            [
                t + timedelta(days=int(d)) if yes else None
                for t, d, yes in zip(w.rows["at"], days, there, strict=True)
            ]
        )

    return plant


def average(by: str) -> Callable[[World], pl.Series]:
    "The mean of the outcome over all rows that share a column: these rows among them, and the later ones."

    def plant(w: World) -> pl.Series:
        y = w.outcome if w.number else pl.Series(w.rare.astype(float))
        return pl.DataFrame({"g": w.rows[by], "y": y}).select(pl.col("y").mean().over("g").round(4))["y"]

    return plant


def copies(share: float) -> Callable[[World], pl.Series]:
    "The outcome itself in this share of the rows, something idle in the others."

    def plant(w: World) -> pl.Series:
        n = w.rows.height
        idle = (
            pl.Series(np.round(np.exp(1 + 0.5 * w.rng.normal(size=n)), 2))
            if w.number
            else pl.Series(w.rng.choice(["open", "?", "new"], n))
        )
        return pl.select(pl.when(pl.Series(hit(w, share))).then(w.outcome).otherwise(idle)).to_series()

    return plant


PLANTS: dict[str, Callable[[World], pl.Series]] = {
    "a file number that ends in it": copy_of_id,
    "a stage that nearly repeats it": stage,
    "words of it, 93 % of one outcome, one word": afterwards(0.93, ("refunded",)),
    "words of it, 93 % of one outcome, three words": afterwards(0.93, ("refunded", "credited", "reimbursed")),
    "words of it, 30 % of one outcome": afterwards(0.30, ("refunded", "credited")),
    "an amount that is nought without it": goodwill,
    "a number there for 93 % of it alone": only_there(0.93),
    "a number there for 30 % of it alone": only_there(0.30),
    "a date after the moment": later(0.9),
    "a date after the moment, in 5 %": later(0.05),
    "its mean by customer": average("who"),
    "copies of it in 30 %": copies(0.30),
    "copies of it in 1 %": copies(0.01),
}  # fmt: skip
KINDS = ("parcels", "clinic", "repairs", "freight")


def blurred(spread: float) -> Callable[[World], pl.Series]:
    "Something that was counted afterwards and goes with the number, apart from errors."
    return lambda w: pl.Series(
        np.round(w.outcome.to_numpy() / 65 * np.exp(spread * w.rng.normal(size=w.rows.height)), 4)
    )


def signed(w: World) -> pl.Series:
    "Who had to approve it: limits in money, and one in fifty by somebody else."
    limits = np.quantile(w.outcome.to_numpy(), [0.6, 0.9, 0.97])
    grade = np.searchsorted(limits, w.outcome.to_numpy())
    return pl.Series(np.array(["clerk", "lead", "head", "board"])[np.where(hit(w, 0.02), 1, grade)])


def rebated(w: World) -> pl.Series:
    "What was paid: two in a hundred less for four of ten who paid at once."
    return pl.Series(np.round(w.outcome.to_numpy() * np.where(hit(w, 0.4), 0.98, 1.0), 2))


def ranked(w: World) -> pl.Series:
    "Its place among all of the same month."
    month = w.rows["at"].dt.truncate("1mo")
    return pl.DataFrame({"m": month, "y": w.outcome}).select(pl.col("y").rank("ordinal").over("m"))["y"]


NUMBERS = ("repairs", "freight")
OF_NUMBERS: dict[str, Callable[[World], pl.Series]] = {
    "its tax, a fifth, to the cent": lambda w: (w.outcome * 0.19).round(2),
    "what was paid, with a rebate": rebated,
    "who had to approve it": signed,
    "its place in the month": ranked,
    "counted afterwards, off by a tenth": blurred(0.1),
    "counted afterwards, off by a third": blurred(0.33),
}  # fmt: skip


def planted(w: World, name: str) -> pl.DataFrame:
    "What names a row and when, with one more column: the honest ones have a look of their own."
    beside = [c for c in ("size", "weight", "tons", "km", "customs") if c in w.rows.columns]
    made = (PLANTS | OF_NUMBERS)[name](w)
    return w.rows.select("id", "at", "who", "region", *beside).with_columns(made.alias("extra"))


def named_by_new(w: World, rows: pl.DataFrame) -> set[str]:
    "What `mlsys new` names as a leak, sure or perhaps, of the table written as CSV."
    from mlsys_nb.data.table_profiling import survey
    from mlsys_nb.doors.onboarding.problem_proposal import propose

    table = rows.with_columns(w.outcome)
    text = pl.read_csv(table.write_csv().encode(), infer_schema=False)
    look = survey(text, time="at", target=w.outcome.name)
    return {s.column for s in propose(look, "x", datetime(2026, 1, 1, tzinfo=UTC), text).suspects}


def named_by_scope(w: World, rows: pl.DataFrame) -> set[str]:
    "What `mlsys scope` names of the labelled rows that a model would learn from."
    from mlsys_nb.evaluation.leakage_tests import battery

    month = pl.col("at").dt.truncate("1mo") + timedelta(days=31)
    label = w.outcome if w.number or w.outcome.name == "came" else pl.Series(w.rare.astype(np.int8))
    typed = rows.with_columns(period=month, moment=pl.col("at"), label=label)
    features = [c for c in rows.columns if c not in ("id", "at")]
    return {s.column for s in battery(typed, features, entity=["who"]) if s.column != "rows"}


def rates(n: int) -> Iterator[str]:
    "One line a plant and a world, then the false names."
    for name in (*PLANTS, *OF_NUMBERS):
        told = []
        for kind in KINDS if name in PLANTS else NUMBERS:
            worlds = [world(kind, seed) for seed in range(n)]
            tables = [(w, planted(w, name)) for w in worlds]
            hits = [
                sum("extra" in by(w, rows) for w, rows in tables) for by in (named_by_new, named_by_scope)
            ]
            told.append(f"{kind} {hits[0]:3} {hits[1]:3}")
        yield f"{name:48} new, scope of {n}: {'; '.join(told)}"
    for kind in KINDS:
        false = [
            (by.__name__, sorted(by(w, w.rows)))
            for seed in range(n)
            for w in [world(kind, 1000 + seed)]
            for by in (named_by_new, named_by_scope)
        ]
        bad = [f for f in false if f[1]]
        yield f"honest tables of {kind}: {len(bad)} of {len(false)} looks name a column {bad[:4]}"


if __name__ == "__main__":
    for line in rates(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
        print(line, flush=True)
