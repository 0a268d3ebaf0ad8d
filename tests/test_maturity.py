"Labels of a world whose news travels: final when the news has arrived, never moved by what happened afterwards."

from dataclasses import replace
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
import visits_world as world
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.learning.split import time_split
from mlsys_nb.problem.dataset import Lake, build_dataset, labels, rows_asked, training_periods
from mlsys_nb.system.settings import ProblemError

NOW = world.START + 100 * world.DAY


def said_plainly(problem, rows, lake):
    "The rule without the algebra: visits in (moment, moment + horizon], known by moment + horizon + maturity."
    events = lake.events["visits"].select("member", "at", "known_at")
    joined = rows.with_row_index("row").join(events, on="member", how="left")
    counts = joined.filter(
        (pl.col("at") > pl.col("moment"))
        & (pl.col("at") <= pl.col("moment") + problem.horizon)
        & (pl.col("known_at") <= pl.col("moment") + problem.matures_after)
    )
    came = set(counts["row"])
    return [0 if i in came else 1 for i in range(rows.height)]


@pytest.mark.parametrize("delay", [0, 1, 3, 7, 14])
@pytest.mark.parametrize("maturity", ["0d", "2d", "36h", "14d"])
def test_fault_06_labels_count_what_happened_in_the_horizon_and_was_known_when_final(delay, maturity):
    problem, lake = replace(world.problem, maturity=maturity), world.lake(delay)
    rows = rows_asked(problem, lake, training_periods(problem, NOW)[::4], NOW)
    assert labels(problem, rows, lake, NOW).to_list() == said_plainly(problem, rows, lake)


@pytest.mark.parametrize("delay", [3, 7, 14])
def test_fault_06_late_news_makes_labels_wrong_for_good_without_maturity_and_right_with_it(delay):
    hasty = replace(world.problem, maturity="0d")
    patient = replace(world.problem, maturity=f"{delay}d")
    punctual, slow = world.lake(0), world.lake(delay)
    rows = rows_asked(patient, slow, training_periods(patient, NOW)[::4], NOW)
    truth = labels(hasty, rows, punctual, NOW)
    assert labels(patient, rows, slow, NOW).equals(truth)
    wrong = labels(hasty, rows, slow, NOW) != truth
    assert wrong.mean() > 0.01
    assert build_dataset(hasty, slow, rows["moment"].unique().to_list(), NOW).revised == wrong.sum()


def test_fault_06_a_label_is_unknown_until_it_is_final():
    problem = world.problem
    moment = training_periods(problem, NOW)[-1]
    rows = rows_asked(problem, world.lake(), [moment], NOW)
    final = moment + problem.matures_after
    assert labels(problem, rows, world.lake(), final).null_count() == 0
    assert labels(problem, rows, world.lake(), final - timedelta(microseconds=1)).null_count() == rows.height
    assert training_periods(problem, final)[-1] == moment
    assert training_periods(problem, final - timedelta(microseconds=1))[-1] < moment


def test_a_withdrawn_visit_does_not_count_if_the_withdrawal_was_known_when_the_label_became_final():
    problem, lake = replace(world.problem, maturity="2d"), world.lake(0)
    moment = training_periods(problem, NOW)[5]
    rows, end = rows_asked(problem, lake, [moment], NOW), moment + problem.horizon
    lonely = (
        lake.events["visits"]
        .filter((pl.col("at") > moment) & (pl.col("at") <= end))
        .filter(pl.len().over("member") == 1)
        .join(rows, on="member", how="semi")
    )
    assert lonely.height > 20
    for after, counted in ((timedelta(0), 0), (2 * world.DAY, 0), (2 * world.DAY + timedelta(seconds=1), 1)):
        gone = pl.when(pl.col("event_id").is_in(lonely["event_id"].implode())).then(end + after)
        told = Lake({"visits": lake.events["visits"].with_columns(retracted_at=gone)}, ())
        found = rows.with_columns(label=labels(problem, rows, told, NOW)).join(
            lonely, on="member", how="semi"
        )
        assert found["label"].to_list() == [1 - counted] * lonely.height


def test_fault_06_a_label_whose_window_is_not_its_horizon_is_refused():
    for window in ("6d", "8d", "lifetime"):
        label = replace(world.problem.target, feature=world.count(world.visits, window).named("other"))
        with pytest.raises(
            ProblemError, match="its window is the horizon .* give its aggregates that window"
        ):
            replace(world.problem, target=label)
    both = world.count(world.visits, "7d") + world.count(world.visits, "8d")
    with pytest.raises(ProblemError, match="looks at"):
        replace(world.problem, target=replace(world.problem.target, feature=both.named("both")))


@pytest.mark.parametrize("maturity", ["lifetime", "3 days", "-1d", "1mo", ""])
def test_a_maturity_that_is_no_length_of_time_is_refused(maturity):
    with pytest.raises(ProblemError, match="news of an outcome may travel"):
        replace(world.problem, maturity=maturity)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 4), st.integers(20, 120))
def test_fault_06_no_part_of_a_split_learns_from_a_label_that_was_not_final(horizon, maturity, every, n, age):
    moments = [world.START + every * i * world.DAY for i in range(60)]
    after = (horizon + maturity) * world.DAY
    now = world.START + age * world.DAY
    matured = [m for m in moments if m + after <= now]
    try:
        found = time_split(matured, after, n_holdout=n, n_valid=n)
    except Exception as e:
        assert "matures after" in str(e) or "wait for more history" in str(e)
        return
    assert all(m + after <= found.holdout[0] for m in found.known)
    assert all(m + after > found.holdout[0] for m in found.purged)
    assert not found.valid_purged or all(m + after <= found.valid[0] for m in found.train)


@pytest.mark.parametrize("seed", range(3))
def test_no_label_is_wrong_after_its_maturity_though_every_visit_is_heard_of_three_to_thirty_days_late(seed):
    "Each visit's news takes its own time; what the monitor, the training set and the ledger call final is the truth, at every moment."
    prompt, rng = world.lake(0, seed=seed), np.random.default_rng(seed)
    events = prompt.events["visits"]
    took = pl.Series(rng.integers(3 * 86_400, 30 * 86_400, events.height)) * 1_000_000
    slow = Lake({"visits": events.with_columns(known_at=pl.col("at") + took.cast(pl.Duration("us")))}, ())
    patient, hasty = replace(world.problem, maturity="30d"), replace(world.problem, maturity="9d")
    end = world.START + 170 * world.DAY
    rows = rows_asked(patient, prompt, training_periods(patient, end)[::3], end)
    truth = labels(replace(world.problem, maturity="0d"), rows, prompt, end)
    said, early = 0, 0
    for day in range(40, 170, 10):
        now = world.START + day * world.DAY
        found = labels(patient, rows, slow, now)
        known = found.is_not_null()
        assert (found.filter(known) == truth.filter(known)).all(), f"a wrong label on day {day}"
        said += known.sum()
        too_soon = labels(hasty, rows, slow, now)
        early += (too_soon.filter(too_soon.is_not_null()) != truth.filter(too_soon.is_not_null())).sum()
    assert said > 10_000 and early > 1_000  # and declared too short, labels are wrong by the thousand
