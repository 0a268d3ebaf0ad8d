"""Whole years with real fits, the real policy and the real gate, on rows whose truth is known: what is trained, what ships, what it gains.

    python tests/bench/odds_years.py [years] [seed]

A linear model of 200 customers a month, monthly looks. In a *quiet* year nothing changes but the months' own shocks; in one that
*moves* what is known means something else from month to month. Each look asks the policy; a refresh or another recipe (of
like worth) is judged by `champion_challenger.play` and `champion_challenger.verdict_on`, as in production, and what ships serves. Where another recipe is
refused, the refresh of what serves is asked in the same run, as a second look. A shipped version is held against what its verdict
stated in the first month that it serves.

The two recipes differ in how much they shrink. Over all years that move they are equal, within one they are not: where the effect
grows, who shrinks less gains month after month. So each change is held against the truth of the three months that follow.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from rates import line, printed

from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.learning.recipe import Recipe
from mlsys_nb.learning.split import TooLittleData
from mlsys_nb.learning.train import fit
from mlsys_nb.loop.attempt_history import Attempt, with_attempt
from mlsys_nb.loop.champion_challenger import Contest, Incumbent, play, verdict_on
from mlsys_nb.loop.retrain_policy import ChampionState, decide
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.problem.retrain_triggers import Age, Cadence, Growth
from mlsys_nb.system.settings import load_settings

CUSTOMERS, BEFORE, LOOKS, MONTH = 200, 8, 12, timedelta(days=30)
WHEN, CADENCE = (Growth(0.5), Age("28d")), Cadence(search="150d")
START = datetime(2010, 1, 1, tzinfo=UTC)
MOMENTS = [START + MONTH * i for i in range(BEFORE + LOOKS + 1)]
RECIPES = [{"C": 0.1, "segments": 1}, {"C": 0.2, "segments": 1}]  # Of equal worth


@dataclass
class Year:
    "What became of one."

    trainings: int = 0
    asked: int = 0  # Changes of recipe
    changed: int = 0  # Of these, shipped
    worthless: int = 0  # Changes asked for that gain nothing in the months to come, by the truth
    mistaken: int = 0  # Of these, shipped
    after: list = field(
        default_factory=list
    )  # Of each refused search with a refresh behind it: shipped, what it gains by the truth, the margin
    shipped: list = field(
        default_factory=list
    )  # Of each: whether the stated interval held, and what was gained


def world(problem, seed, shock, moves):
    "Months of the problem's form, with known truth."
    rng, n = np.random.default_rng(seed), CUSTOMERS * len(MOMENTS)
    frame = pl.DataFrame({name: rng.normal(size=n) for name in problem.inputs if name != "country"})
    month = np.repeat(np.arange(len(MOMENTS)), CUSTOMERS)
    known, effect = (
        frame[problem.features.names[0]].to_numpy(),
        1 + np.cumsum(moves * rng.normal(size=len(MOMENTS))),
    )
    z = 0.3 + effect[month] * known + shock * rng.normal(size=len(MOMENTS))[month]
    truth = 1 / (1 + np.exp(-z))
    when = pl.Series([MOMENTS[m] for m in month], dtype=pl.Datetime("us", "UTC"))
    return frame.with_columns(
        country=pl.Series(rng.choice(["UK", "EIRE"], n)), customer_id=np.tile(np.arange(CUSTOMERS), len(MOMENTS)),
        moment=when, period=when, label=pl.Series((rng.random(n) < truth).astype(np.int8)), truth=truth,
    )  # fmt: skip


def expected(judge, rows, *models) -> list[float]:
    "What each loses on rows whose chances are known, on average."
    odds, sure = rows["truth"].to_numpy(), [judge.outcomes(pl.Series([y] * rows.height)) for y in (0, 1)]
    lost = [[judge.losses(y, model.predict(rows)) for y in sure] for model in models]
    return [float(((1 - odds) * no + odds * yes).mean()) for no, yes in lost]


def lived(problem, seed, shock, moves) -> Year:
    "A year of looks."
    rows, found, attempts, which = world(problem, seed, shock, moves), Year(), (), 0
    judge, engine = (
        problem.target.judge,
        {"moment": "period", "rule": problem.rule, "learner": problem.learner},
    )
    until = lambda k: rows.filter(pl.col("period") <= MOMENTS[k])
    recipe = lambda i: Recipe(problem.features.hash, "linear", RECIPES[i % 2], None)
    model = fit("linear", until(BEFORE - 1), problem.inputs, params=RECIPES[0], **engine)
    before, fitted, searched, number = (
        Incumbent(recipe(0), MOMENTS[BEFORE - 1], model.predict),
        BEFORE,
        BEFORE,
        1,
    )
    for k in range(BEFORE + 1, BEFORE + LOOKS):
        known, now = until(k - 1), MOMENTS[k]
        days = {"age_days": 30.0 * (k - fitted), "searched_days": 30.0 * (k - searched)}
        labels = {"trained_rows": fitted * CUSTOMERS, "new_labels": (k - fitted) * CUSTOMERS}
        state = ChampionState(problem=problem.name, champion=number, now=now, performance="as promised", attempts=attempts, **days, **labels)  # fmt: skip
        plan = decide(state, WHEN, CADENCE)
        if plan.action not in ("refresh", "search"):
            continue
        searched = k if plan.action == "search" else searched
        labelled, number_then = labels["new_labels"], number
        for action in (plan.action, *([plan.then] if plan.then else [])):
            question, wanted = (Question.REFRESH, recipe(which)) if action == "refresh" else (Question.CHANGE, recipe(which + 1))  # fmt: skip
            second = action != plan.action
            found.trainings, found.asked = found.trainings + 1, found.asked + (action == "search")
            try:
                played = play(contest := Contest(problem, known, wanted, before, question, seed=seed))
            except TooLittleData:
                continue
            verdict = verdict_on(contest, played, look=1 + second)
            later = rows.filter(pl.col("period").is_in(MOMENTS[k : k + 3]))
            if action == "search":
                old = fit("linear", known, problem.inputs, params=RECIPES[which % 2], **engine)
                stays, goes = expected(judge, later, old, played.shipped)
                found.worthless += goes >= stays
                found.mistaken += goes >= stays and verdict.promotes
            if second:
                stays, goes = expected(judge, later, before, played.shipped)
                found.after.append((verdict.promotes, stays - goes, problem.limits.same * stays))
            outcome = {"promote": "promoted", "refuse": "refused"}.get(verdict.decision, verdict.decision)
            attempts = with_attempt(attempts, Attempt(now, action, number_then, labelled, outcome))
            if not verdict.promotes:
                continue
            next_one = rows.filter(period=MOMENTS[k])
            y = judge.outcomes(next_one["label"])
            gain = float((judge.losses(y, before.predict(next_one)) - judge.losses(y, played.shipped.predict(next_one))).mean())  # fmt: skip
            found.shipped.append((verdict.stated.ahead_low <= gain <= verdict.stated.ahead_high, gain))
            found.changed, which = found.changed + (action == "search"), which + (action == "search")
            before, fitted, number = (
                Incumbent(wanted, MOMENTS[k - 1], played.shipped.predict),
                k,
                number + 1,
            )
            break
    return found


WORLDS = {"quiet, shock .10": (0.10, 0.0), "quiet, shock .20": (0.20, 0.0), "moves, shock .10": (0.10, 0.15)}


def rows(n: int = 20, seed: int = 0, worlds=tuple(WORLDS)) -> Iterator[dict]:
    "One row a claim and world; n years of each."
    from dataclasses import replace

    problem = replace(load_problem(load_settings(), "churn"), slices=(), limits=Limits(rows=100, entities=50))
    for name in worlds:
        years = [lived(problem, seed + i, *WORLDS[name]) for i in range(n)]
        shipped = [one for year in years for one in year.shipped]
        about = f"{name}, {n} years"
        yield line("the stated interval holds what ships", about, sum(held for held, _ in shipped), len(shipped), ">= 0.90")  # fmt: skip
        yield line("a refresh ships, of all trainings", about, len(shipped), sum(y.trainings for y in years), "as it is")  # fmt: skip
        yield line("another recipe ships, of all asked", about, sum(y.changed for y in years), sum(y.asked for y in years), "as it is")  # fmt: skip
        yield line("a recipe that gains nothing in the next three months ships", about, sum(y.mistaken for y in years), sum(y.worthless for y in years), "<= 0.025")  # fmt: skip
        after = [one for year in years for one in year.after]
        yield line("a refresh ships behind a refused search", about, sum(a[0] for a in after), len(after), "as it is")  # fmt: skip
        worse = [shipped for shipped, gain, margin in after if gain <= -margin]
        yield line("... that is worse by the margin in the next three months", about, sum(worse), max(len(after), 1), "<= 0.025")  # fmt: skip
        kept = float(np.mean([gain if shipped else 0.0 for shipped, gain, _ in after])) if after else 0.0
        yield line(f"... it gains {kept:+.4f} nats a decision; more than none", about, sum(a[0] and a[1] > 0 for a in after), sum(a[0] for a in after), "as it is")  # fmt: skip
        yield line(
            "a year has more than 14 trainings", about, sum(y.trainings > 14 for y in years), n, "<= 0"
        )
        mean = float(np.mean([gain for _, gain in shipped])) if shipped else 0.0
        yield line(f"shipped versions gained {mean:+.4f} nats a decision; more than none", about, sum(g > 0 for _, g in shipped), len(shipped), "as it is")  # fmt: skip


def main() -> None:
    n, seed = (int(x) for x in (*sys.argv[1:], *("20", "0")[len(sys.argv) - 1 :]))
    printed(rows(n, seed))


if __name__ == "__main__":
    main()
