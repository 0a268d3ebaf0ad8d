"How much more it takes: as much as is said is enough for the rules that refuse, and one period less is not."

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.learning.split import TooLittleData, judging_origins, time_split
from mlsys_nb.loop.data_shortage import more_periods, saying_how_much_more
from mlsys_nb.problem.dataset import Dataset
from mlsys_nb.problem.period_calendar import Calendar

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)
KINDS = {
    "yes or no": (Probability(), lambda rng, n: (rng.random(n) < 0.1).astype(np.int8)),
    "a number": (Number(0.8), lambda rng, n: rng.normal(size=n)),
    "classes": (Classes(("ash", "elm", "oak")), lambda rng, n: rng.choice(["ash", "elm", "oak"], size=n)),
}


def made(kind, every, rate, periods, after=timedelta(0), **limits):
    judge, labels = KINDS[kind]
    calendar = Calendar(every, START)
    ends = calendar.points(START + periods * calendar.length)[1 : periods + 1]
    rows = [(end, end - (i + 1) * timedelta(hours=1)) for end in ends for i in range(rate)]
    moments = pl.Datetime("us", "UTC")
    frame = pl.DataFrame(rows, schema={"period": moments, "moment": moments}, orient="row")
    label = pl.Series("label", labels(np.random.default_rng(4), frame.height))
    problem = SimpleNamespace(
        limits=Limits(**limits), lookback=None, matures_after=after, target=SimpleNamespace(judge=judge),
        population=SimpleNamespace(calendar=calendar),
    )  # fmt: skip
    return Dataset(problem, frame.with_columns(label), START, {}, 0)


def judged(dataset, more):
    "Rows that judge once `more` periods like those so far have come, counted here anew; 0 where nothing can be split."
    rate = dataset.frame.height // len(dataset.periods)
    opens, length = dict(dataset.opens), max(p - o for p, o in dataset.opens.items())
    opens |= {period: period - length for period in more}
    try:
        split = time_split(opens, dataset.problem.matures_after)
    except TooLittleData:
        return 0
    counts = dict.fromkeys(opens, rate)
    origins = judging_origins(opens, counts, dataset.problem.matures_after, dataset.problem.limits.rows)
    return sum(rate * len(o.judged) for o in origins if not set(o.judged) & set(split.valid))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("every", "rate", "after"), [("1w", 8, 0), ("1d", 3, 5), ("1mo", 30, 14)])
def test_as_much_as_is_said_is_enough_and_a_period_less_is_not(kind, every, rate, after):
    dataset = made(kind, every, rate, 4, after * DAY)
    asked = 30 / 0.1 if kind == "yes or no" else 200
    more = more_periods(dataset)
    assert more and more[0] > max(dataset.periods)
    assert (
        judged(dataset, more) >= asked * 0.6
    )  # the share of rare outcomes is that of the few rows there are
    assert judged(dataset, more[:-1]) < max(200, judged(dataset, more) + 1)
    with pytest.raises(TooLittleData) as told, saying_how_much_more(dataset, True):
        raise TooLittleData("too little")
    days = (dataset.problem.population.calendar.length) / DAY
    ready = more[-1] + after * DAY
    for part in (f"{dataset.frame.height} rows have an outcome, in 4 periods of {days:g} days", f"about {len(more)} more ({rate * len(more):,} rows)",
                 f"until {ready:%Y-%m-%d}", "every= of the population", "Limits(rows=200, outcomes=30)"):  # fmt: skip
        assert part in str(told.value)


def test_numbers_have_an_exact_answer():
    "Planted once: periods that chose the model counted as judging ones; the widest origin only."
    dataset = made("a number", "1w", 8, 4)
    more = more_periods(dataset)
    assert judged(dataset, more) >= 200 > judged(dataset, more[:-1])


def test_less_is_asked_where_the_problem_asks_for_less():
    small = {"rows": 20, "entities": 10, "outcomes": 5, "slice_entities": 10}
    eager = more_periods(made("a number", "1w", 8, 4, **small))
    assert len(eager) < len(more_periods(made("a number", "1w", 8, 4)))
    assert more_periods(made("a number", "1w", 8, 60)) == []


def test_what_no_waiting_mends_is_told_so():
    "Nothing but one kind of outcome; nothing at all; and a model that is there already is not lectured."
    alone = made("yes or no", "1w", 8, 40)
    alone = Dataset(alone.problem, alone.frame.with_columns(label=pl.lit(0, pl.Int8)), START, {}, 0)
    never = made("a number", "1d", 1, 3, rows=100_000)
    empty = Dataset(alone.problem, alone.frame.clear(), START, {}, 0)
    for dataset, part in (
        (alone, "other outcomes are missing"),
        (never, "no length of waiting"),
        (empty, "no row has an outcome yet"),
    ):
        with pytest.raises(TooLittleData, match=part), saying_how_much_more(dataset, True):
            raise TooLittleData("too little")
    with pytest.raises(TooLittleData) as told, saying_how_much_more(never, False):
        raise TooLittleData("too little")
    assert str(told.value) == "too little"
