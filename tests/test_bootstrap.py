"The cluster bootstrap against its definition, spelled out row by row."

from statistics import NormalDist

import numpy as np
import polars as pl
import pytest

from mlsys_nb.evaluation.bootstrap import Estimate, Resample, clusters, resample


def test_a_repetition_draws_as_many_entities_as_there_are_with_all_their_rows():
    groups = ["b", "a", "b", "c", "a", "b"]
    draws = resample(6, groups, repeats=50, seed=3)
    assert draws.counts.shape == (50, 3) and draws.n_entities == 3
    assert (draws.counts.sum(axis=1) == 3).all()
    assert draws.codes.tolist() == [1, 0, 1, 2, 0, 1]
    x = np.array([[1.0, 10], [2, 20], [4, 40], [8, 80], [16, 160], [32, 320]])
    spelled = [sum(c[draws.codes[i]] * x[i] for i in range(6)) for c in draws.counts]
    assert np.allclose(draws.sums(x), spelled)


def test_draws_are_with_replacement_and_different_each_time():
    counts = resample(40, repeats=30, seed=0).counts
    assert (counts > 1).any() and (counts == 0).any()
    assert len(np.unique(counts, axis=0)) == 30
    # The mean count of an entity is one: nobody is favoured.
    assert abs(resample(20, repeats=4000, seed=1).counts.mean(axis=0) - 1).max() < 0.08


def test_same_seed_same_draws_other_seed_others():
    one, two, other = (resample(30, repeats=20, seed=s).counts for s in (5, 5, 6))
    assert (one == two).all() and (one != other).any()


def test_rows_without_groups_are_entities_of_their_own():
    assert resample(7).codes.tolist() == list(range(7))
    assert resample(7).counts.shape == (200, 7)


@pytest.mark.parametrize("groups", [[1, 2], [1, 2, 3, 4]])
def test_groups_of_another_length_are_refused(groups):
    with pytest.raises(ValueError, match=f"got {len(groups)} for 3 rows"):
        resample(3, groups)


def test_the_interval_is_students_to_first_order_around_the_value():
    counts = np.ones((5, 4))
    draws = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = Resample(np.arange(4), counts).estimate(3.0, draws, level=0.9)
    z = NormalDist().inv_cdf(0.95)
    t = z + (z**3 + z) / 4 * (1 / 3 + 1 / 4)
    half = t * draws.std(ddof=1) * (4 / 3) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 3 - half, 3 + half))


def test_an_interval_stays_within_its_bounds_and_ignores_what_is_not_defined():
    some = Resample(np.arange(9), np.ones((4, 9)))
    found = some.estimate(0.98, np.array([0.6, 1.0, np.nan, 0.9]), bounds=(0, 1))
    assert found.high == 1.0 and 0 <= found.low < 0.98
    assert some.estimate(0.02, np.array([0.0, 0.4, 0.1, 0.0]), bounds=(0, 1)).low == 0.0


@pytest.mark.parametrize(
    ("value", "draws", "entities"),
    [(None, [1.0, 2.0], 5), (1.0, None, 5), (1.0, [1.0, 2.0], 1), (1.0, [1.0, np.nan], 5)],
)
def test_no_interval_where_there_is_nothing_to_spread(value, draws, entities):
    some = Resample(np.zeros(3, dtype=int), np.ones((2, entities)))
    found = some.estimate(value, None if draws is None else np.array(draws))
    assert found == Estimate(value)


def test_two_defined_repetitions_and_two_entities_are_enough():
    found = Resample(np.arange(2), np.ones((2, 2))).estimate(1.0, np.array([0.9, 1.1]))
    assert found.low is not None and found.low < 0.9


def test_intervals_widen_for_rows_that_go_together():
    rng = np.random.default_rng(0)
    entity = np.repeat(np.arange(50), 20)
    x = rng.normal(size=50)[entity] + 0.1 * rng.normal(size=1000)
    alone, together = (
        draws.estimate(
            float(x.mean()), draws.sums(x[:, None])[:, 0] / draws.counts[:, draws.codes].sum(axis=1)
        )
        for draws in (resample(1000), resample(1000, entity))
    )
    assert 3 < (together.high - together.low) / (alone.high - alone.low) < 7


def test_an_entity_of_two_keys_is_one_entity():
    frame = pl.DataFrame({"shop": ["a", "a", "b", "a"], "till": [1, 2, 1, 1], "x": [0, 1, 2, 3]})
    found = clusters(frame, ["shop", "till"])
    assert found[0] == found[3] and len(set(found.tolist())) == 3


def test_an_estimate_is_told_with_its_interval():
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"
    assert str(Estimate(0.5)) == "0.5000" and str(Estimate(None)) == "not defined"
