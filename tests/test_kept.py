"What fits have said is kept between retrainings; what has changed since is asked anew."

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlsys_nb.evaluation.gate_confidence import Question
from mlsys_nb.learning import trial_cache
from mlsys_nb.learning.recipe import Recipe
from mlsys_nb.learning.split import TooLittleData
from mlsys_nb.learning.trial_cache import KeptTrials
from mlsys_nb.loop import champion_challenger as room
from mlsys_nb.loop.champion_challenger import Contest, Incumbent, play
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.settings import load_settings

FRIDAYS = [datetime(2010, 1, 1, tzinfo=UTC) + timedelta(days=7 * i) for i in range(44)]
PROBLEM = load_problem(load_settings(), "churn")
RECIPE = Recipe(PROBLEM.features.hash, "linear", {"C": 0.1, "segments": 2}, timedelta(days=90))


def lived(customers=60):
    "A year of rows of the churn problem's form, with known truth."
    rng, n = np.random.default_rng(0), customers * len(FRIDAYS)
    frame = pl.DataFrame({name: rng.normal(size=n) for name in PROBLEM.inputs if name != "country"})
    when = [moment for moment in FRIDAYS for _ in range(customers)]
    frame = frame.with_columns(
        country=pl.Series(rng.choice(["UK", "EIRE"], n)),
        customer_id=np.tile(np.arange(customers), len(FRIDAYS)),
        moment=pl.Series(when, dtype=pl.Datetime("us", "UTC")),
    ).with_columns(period=pl.col("moment"))
    z = 0.8 * frame["days_since_order"].to_numpy()
    return frame.with_columns(label=pl.Series((rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int8)))


ROWS = lived()


def asked(rows=ROWS, kept=None, **changed):
    june = [m for m in FRIDAYS if m < datetime(2010, 6, 1, tzinfo=UTC)]
    says = Incumbent(RECIPE, june[-1], lambda part: np.full(part.height, 0.5))
    return replace(Contest(PROBLEM, rows, RECIPE, says, Question.REFRESH, kept=kept), **changed)


@pytest.fixture
def fits(monkeypatch):
    "How often something was fitted."
    made, fit = [], room._fit
    monkeypatch.setattr(room, "_fit", lambda *given: made.append(given) or fit(*given))
    return made


def spent(fits, contest):
    "The contest, and how many fits it took."
    before = len(fits)
    return play(contest), len(fits) - before


def alike(one, other):
    mine, theirs = one.predictions, other.predictions
    pairs = [(mine.challenger, theirs.challenger), (mine.rule, theirs.rule), (mine.champion, theirs.champion)]
    return all(np.array_equal(a, b) for a, b in pairs) and one.moved == other.moved


def test_a_second_contest_fits_only_what_ships_and_gives_the_same_bits(tmp_path, fits):
    plain, many = spent(fits, asked())
    first, once = spent(fits, asked(kept=KeptTrials(tmp_path)))
    again, few = spent(fits, asked(kept=KeptTrials(tmp_path)))
    assert many == once > 10 and few == 2  # what ships, and the newest judged fit, which is examined
    assert alike(plain, first) and alike(plain, again)


def test_a_month_later_only_new_origins_are_fitted(tmp_path, fits):
    month = ROWS.filter(pl.col("period") <= FRIDAYS[-6])  # an origin's distance earlier
    _, first = spent(fits, asked(month, KeptTrials(tmp_path)))
    kept, later = spent(fits, asked(kept=KeptTrials(tmp_path)))
    plain, whole = spent(fits, asked())
    assert later < 0.6 * whole and alike(kept, plain)


@pytest.mark.parametrize(
    "change",
    [
        pl.col("days_since_order") + pl.when(pl.int_range(pl.len()) == 1300).then(1.0).otherwise(0.0),
        pl.when(pl.int_range(pl.len()) == 1300).then(1 - pl.col("label")).otherwise("label").cast(pl.Int8).alias("label"),
    ],
    ids=["an event that came late", "an outcome that was withdrawn"],
)  # fmt: skip
def test_what_a_changed_row_teaches_is_fitted_anew(tmp_path, fits, change):
    play(asked(kept=KeptTrials(tmp_path)))
    rows = ROWS.with_columns(change)
    kept, n = spent(fits, asked(rows, KeptTrials(tmp_path)))
    plain, whole = spent(fits, asked(rows))
    assert 2 < n < whole and alike(kept, plain)


def test_another_seed_and_other_code_are_another_question(tmp_path, fits, monkeypatch):
    play(asked(kept=KeptTrials(tmp_path)))
    assert spent(fits, asked(kept=KeptTrials(tmp_path), seed=1))[1] > 10
    monkeypatch.setattr(trial_cache, "code_digest", lambda: "another")
    assert spent(fits, asked(kept=KeptTrials(tmp_path)))[1] > 10


def test_a_damaged_answer_is_named_and_asked_anew(tmp_path, fits, caplog):
    first = play(asked(kept=KeptTrials(tmp_path)))
    hurt, other = sorted(tmp_path.iterdir())[0], KeptTrials(tmp_path / "other")
    other.put(
        hurt.name, {}, KeptTrials(tmp_path).get(hurt.name)[1] / 2
    )  # well formed, under a seal that is not its own
    seal, content = hurt.read_bytes().partition(b"\n")[0], (other.folder / hurt.name).read_bytes()
    hurt.write_bytes(seal + b"\n" + content.partition(b"\n")[2])
    with caplog.at_level(logging.WARNING):
        again = play(asked(kept=KeptTrials(tmp_path)))
    assert alike(first, again) and any(hurt.name in told and "damaged" in told for told in caplog.messages)


def test_no_more_is_kept_than_asked(tmp_path):
    play(asked(kept=KeptTrials(tmp_path, most=7)))
    assert len(list(tmp_path.iterdir())) == 7


DAY = timedelta(days=1)


def quiet(begin, end):
    "The year with nothing happening from one Friday to another."
    still = pl.col("period").is_between(FRIDAYS[begin], FRIDAYS[end])
    return ROWS.with_columns(label=pl.when(still).then(0).otherwise("label").cast(pl.Int8))


def test_a_champion_that_forgets_more_than_the_challenger_judges_only_where_it_learns_anything():
    short = replace(RECIPE, lookback=21 * DAY)
    says = Incumbent(short, FRIDAYS[10], lambda part: np.full(part.height, 0.5))
    far = replace(RECIPE, lookback=None)
    change = {"recipe": far, "incumbent": says, "question": Question.CHANGE}
    whole, broken = (play(asked(rows, **change)) for rows in (ROWS, quiet(20, 32)))
    judged = [played.rows["origin"].n_unique() for played in (whole, broken)]
    assert judged[0] > judged[1] > 1 and len(broken.predictions.champion) == broken.rows.height


def test_where_the_newest_periods_hold_one_kind_of_outcome_nothing_ships_and_it_is_said():
    short = replace(RECIPE, lookback=21 * DAY)
    with pytest.raises(TooLittleData, match="one kind of outcome only and linear .*21 days back.*wait"):
        play(asked(quiet(38, 43), recipe=short))
    assert play(asked(quiet(38, 43), recipe=RECIPE)).shipped.n_rows > 60 * 10
