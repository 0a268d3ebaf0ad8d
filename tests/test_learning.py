"How a problem is learnt: what it declares reaches the search, the package, the report and the command; what was tried is kept."

import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import ExtraTreesClassifier

from mlsys_nb.cases.churn import problem as churn
from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.regression_metrics import Number
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.link_functions import YES_OR_NO, Learner, asked_of
from mlsys_nb.learning.recipe import Recipe
from mlsys_nb.learning.search_reuse import revisit
from mlsys_nb.learning.sklearn_estimators import Rival
from mlsys_nb.learning.split import time_split
from mlsys_nb.learning.train import fit
from mlsys_nb.learning.training_options import FAMILIES, LOOKBACKS, Learning
from mlsys_nb.learning.training_window import _chosen, blocks, how_much_past, ways
from mlsys_nb.learning.trial_cache import KeptTrials
from mlsys_nb.learning.tune import Effort, Tuned, tune
from mlsys_nb.loop.retrain import _bound, _found
from mlsys_nb.problem.dataset import Dataset
from mlsys_nb.release.package import Model, PackageError, build, load, seal, serving_form
from mlsys_nb.system.durable import json_bytes
from mlsys_nb.system.settings import ProblemError

START, DAY = datetime(2020, 1, 6, tzinfo=UTC), timedelta(days=1)
FEATURES, ASKED_NOTHING = ["a", "b", "land"], Learning()


def world(seed=0, weeks=24, n=150, turning=0.0):
    "A year-like stream whose truth is known: `turning` half-turns of the direction in which things get likelier."
    rng = np.random.default_rng(seed)
    week, x = np.repeat(np.arange(weeks), n), rng.normal(size=(weeks * n, 2))
    angle = turning * week / weeks * np.pi
    odds = 1.5 * (np.cos(angle) * x[:, 0] + np.sin(angle) * x[:, 1])
    odds = odds + np.where(rng.random(len(week)) < 0.3, 0.5, 0.0)
    frame = pl.DataFrame(
        {
            "who": np.tile(np.arange(n), weeks),
            "a": x[:, 0],
            "b": x[:, 1],
            "land": rng.choice(["UK", "EIRE", "FR"], len(week)),
        }
    )
    days = [START + 7 * DAY * int(w) for w in week]
    label = rng.random(len(week)) < 1 / (1 + np.exp(-odds))
    holes = {
        name: pl.when(pl.Series(rng.random(len(week)) < 0.05)).then(None).otherwise(pl.col(name)).alias(name)
        for name in FEATURES
    }
    return frame.with_columns(**holes).with_columns(
        moment=pl.Series(days), period=pl.Series(days), label=pl.Series(label).cast(pl.Int8), amount=odds + rng.normal(size=len(week)) / 2
    )  # fmt: skip


def tuned(rows, how=ASKED_NOTHING, effort=12, families=None, seed=0):
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    learner = replace(YES_OR_NO, how=how, families=families or YES_OR_NO.families)
    return tune(
        Probability(),
        rows,
        split,
        FEATURES,
        learner=learner,
        rule=Rule.majority(),
        n_trials=effort,
        entity=["who"],
        seed=seed,
    )


# Families with a serving form: the same bits trained, in company, alone, sealed and loaded


@pytest.mark.parametrize("family", ["table", "neighbours"])
@pytest.mark.parametrize("link", ["logistic", "identity", "softmax"])
def test_tables_and_neighbours_serve_the_same_bits_alone_and_in_company(family, link):
    rows = world().with_columns(kind=pl.col("land").fill_null("none"))
    label = {"logistic": "label", "identity": "amount", "softmax": "kind"}[link]
    learner = Learner(link, ("EIRE", "FR", "UK", "none") if link == "softmax" else ())
    fitted = fit(family, rows, FEATURES, learner=learner, label=label, params={"half_life_days": 60.0})
    model = Model(*serving_form(fitted), fitted.link, {})
    strange = pl.DataFrame(
        {"a": [None, 1e300, -1e300, 0.0], "b": [None, 0.0, 1.0, None], "land": [None, "Atlantis", "", "UK"]}
    )
    asked = pl.concat([rows.select(FEATURES)[:300], strange])
    together, trained = model.predict(asked), fitted.predict(asked)
    assert together.tobytes() == np.asarray(trained).tobytes()
    alone = [np.asarray(model.predict_one(row)) for row in asked.to_dicts()]
    assert np.stack(alone).tobytes() == together.tobytes()


def test_neighbours_are_sealed_and_replayed_and_a_rival_is_not(tmp_path):
    rows = world()
    names = churn.features.names
    frame = rows.select(
        "moment", "period", "label", *[pl.col("a").alias(n) for n in names if n != "country"], country="land"
    )
    dataset = Dataset(churn, frame, START, {}, 0)
    package = build(fit("neighbours", frame, names), dataset)
    seal(package, tmp_path / "one")
    assert (
        load(tmp_path / "one").predict(frame[:50]).tobytes()
        == fit("neighbours", frame, names).predict(frame[:50]).tobytes()
    )
    how = replace(YES_OR_NO, how=Learning(rivals=(ExtraTreesClassifier(5),)))
    with pytest.raises(PackageError, match="never sealed"):
        build(fit("ExtraTreesClassifier", frame, names, learner=how), dataset)


# The leaderboard


def test_a_clearly_better_rival_is_told_and_never_chosen_and_a_broken_one_stops_nobody():
    rows = world(1).with_columns(
        label=(pl.col("a").fill_null(0) * pl.col("b").fill_null(0) > 0).cast(pl.Int8)
    )
    rivals = (
        ExtraTreesClassifier(50, min_samples_leaf=5),
        Rival("json:loads", "broken"),
        Rival("acme.nothing:here", "away"),
    )
    found = tuned(rows, Learning(rivals=rivals), 3, families=("rule", "linear"))
    assert found.family in ("rule", "linear")
    assert (
        "clearly better" in found.rivals["ExtraTreesClassifier"]
        and "never sealed" in found.rivals["ExtraTreesClassifier"]
    )
    assert "broken" in found.rivals and "can be imported" in found.rivals["away"]
    assert found.trials.filter(origin="rival")["family"].to_list() == ["ExtraTreesClassifier"]
    shown = found._repr_html_()
    assert "ExtraTreesClassifier" in shown and "can be imported" in shown
    assert json.dumps(found.to_dict())


def test_all_families_take_part_where_a_problem_asks_for_them():
    found = tuned(world(2), Learning(families=FAMILIES), 8, families=FAMILIES)
    assert set(found.trials["family"]) == set(FAMILIES)


# How much past


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_a_short_memory_wins_where_the_world_turns_and_a_long_one_where_it_stays(seed):
    tries = Learning(lookbacks=(28 * DAY, 84 * DAY, None))
    short = tuned(world(seed, 40, turning=2.0), tries, 2, families=("rule", "linear"))
    long = tuned(world(seed, 40), tries, 2, families=("rule", "linear"))
    assert short.params.get("lookback_days", 999) <= 84 and "lookback_days" not in long.params, (
        short.past,
        long.past,
    )
    assert "how much past" in short._repr_html_() and short.to_dict()["past"]["tried"]


def test_parameters_that_forget_are_followed_by_every_later_fit():
    rows = world(6, 40, turning=2.0)
    forgetful = fit("linear", rows, FEATURES, params={"lookback_days": 35.0})
    recent = fit("linear", rows.filter(pl.col("moment") >= rows["moment"].max() - 35 * DAY), FEATURES)
    assert forgetful.predict(rows).tobytes() == recent.predict(rows).tobytes()
    assert forgetful.n_rows == recent.n_rows < rows.height / 5


def broken(weeks=80, at=60, n=150):
    "Rows whose direction turns once, by a quarter turn."
    early, late = world(1, at, n), world(2, weeks - at, n, turning=0.0)
    swapped = late.rename({"a": "b", "b": "a"}).select(early.columns)
    shift = pl.lit(7 * at * DAY).cast(pl.Duration("us"))
    return pl.concat([early, swapped.with_columns(pl.col("moment", "period") + shift)])


def test_a_problem_that_says_nothing_is_asked_and_one_with_a_rule_of_its_own_is_not():
    assert asked_of(YES_OR_NO, Learning()).how.lookbacks == LOOKBACKS
    assert asked_of(YES_OR_NO, Learning(), 90 * DAY).how.lookbacks == ()
    assert asked_of(YES_OR_NO, Learning(half_lives=(30 * DAY,))).how.lookbacks == ()
    assert asked_of(YES_OR_NO, Learning(lookbacks=(None,))).how.lookbacks == (None,)
    assert asked_of(Learner("among", item="offered"), Learning()).how.lookbacks == ()
    assert (
        churn.learner.how.lookbacks == () and replace(churn, lookback=None).learner.how.lookbacks == LOOKBACKS
    )


def test_what_nobody_named_is_tried_as_far_as_half_of_what_is_known_covers_it():
    usual = asked_of(YES_OR_NO, Learning())
    assert ways(usual, 400 * DAY) == [{}, *({"lookback_days": float(d)} for d in (182, 91, 45))]
    assert ways(usual, 9 * DAY) == [{}]
    named = replace(YES_OR_NO, how=Learning(lookbacks=(30 * DAY, 900 * DAY)))
    assert ways(named, 400 * DAY) == [{"lookback_days": 900.0}, {"lookback_days": 30.0}]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_forgotten_where_the_world_stands_and_the_old_regime_is_where_it_broke(seed):
    usual = asked_of(YES_OR_NO, Learning()).how
    stands = tuned(world(seed, 80), usual, 2, families=("rule", "linear"))
    broke = tuned(broken(), usual, 2, families=("rule", "linear"), seed=seed)
    assert stands.past.params == {} and "lookback_days" not in stands.params, stands.past
    assert broke.params["lookback_days"] <= 182, broke.past


def test_the_newer_half_asks_and_no_block_is_asked_of_what_was_not_final():
    rows = world(3, 40)
    split = time_split(rows["moment"].unique().to_list(), 14 * DAY)
    pairs, half = list(blocks(rows, split)), split.known[0] + (split.known[-1] - split.known[0]) / 2
    assert 3 <= len(pairs) <= 9
    for early, late in pairs:
        assert early["moment"].max() + 14 * DAY <= late["moment"].min() and late["moment"].min() > half
        assert early["moment"].min() == split.known[0]
    asked = [late["moment"].min() for _, late in pairs]
    assert asked == sorted(asked, reverse=True) and pairs[0][1]["moment"].max() == split.known[-1]


def test_of_very_many_rows_some_of_every_moment_are_learnt_from(monkeypatch):
    from mlsys_nb.learning import training_window

    rows = world(4, 40)
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    monkeypatch.setattr(training_window, "_ROWS", 500)
    (early, late), *_ = blocks(rows, split)
    assert 250 < early.height < 750
    asked = sum(part.height for _, part in blocks(rows, split))
    assert 700 < asked < 1300 and late["moment"].n_unique() > 1  # the newer half of 2,000
    assert early["moment"].n_unique() > 25 and early["who"].n_unique() > 100


def test_the_least_forgetting_within_one_standard_error_is_taken_and_no_more():
    tried = [{}, {"lookback_days": 91.0}, {"lookback_days": 45.0}]
    best, apart = np.full(4, 0.5), np.array([-0.03, 0.05, -0.03, 0.05])  # .01 on average, error .023
    for far, chosen in ((apart, 0), (apart + 0.1, 1)):
        found = _chosen(Probability(), tried, np.stack([best + far, best + apart, best]))
        assert found.params == tried[chosen] and found.tried["chosen"].to_list().index(True) == chosen
        assert "within one standard error of the last 45 days: 0.0100 <= 0.0231" in found.reason


def test_the_family_that_does_best_is_asked_how_much_past():
    rows = world(5, 40).with_columns(
        label=(pl.col("a").fill_null(0) * pl.col("b").fill_null(0) > 0).cast(pl.Int8)
    )
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    usual = asked_of(YES_OR_NO, Learning())
    found = [
        how_much_past(Probability(), rows, split, tuple(FEATURES), usual, families).tried["log_loss"][0]
        for families in (("boosting", "linear"), ("rule", "linear"))
    ]
    chosen = tuned(rows, usual.how, 3)
    assert chosen.family == "boosting" and chosen.past.tried["log_loss"][0] == found[0] < found[1] - 0.1


def only(rows, kind, begin, end):
    "Rows with one kind of outcome from one day to another."
    then = pl.col("moment").is_between(START + begin * DAY, START + end * DAY)
    return rows.with_columns(label=pl.when(then).then(kind).otherwise(pl.col("label")).cast(pl.Int8))


def asked_how_much(rows):
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    usual = asked_of(YES_OR_NO, Learning())
    return how_much_past(Probability(), rows, split, tuple(FEATURES), usual, ("linear",))


def test_a_way_that_cannot_be_learnt_from_is_left_out_and_the_others_are_asked():
    found = asked_how_much(only(world(6, 40), 1, 175, 210))  # 22 days hold one kind of outcome
    assert found.tried["way"].to_list() == ["everything", "the last 91 days", "the last 45 days"]


@pytest.mark.parametrize("days", [196, 231], ids=["before the validation", "in what ships"])
def test_no_way_is_tried_that_leaves_nothing_to_learn_now(days):
    "Outcomes that stopped make a short memory the best one, and leave it nothing."
    rows = only(world(6, 40), 0, days, 280)
    found = asked_how_much(rows)
    assert found.tried["way"].to_list() == ["everything", "the last 91 days"]
    chosen = tuned(rows, asked_of(YES_OR_NO, Learning()).how, 3)
    assert chosen.trials.height == 3 and chosen.past.tried.equals(asked_how_much(rows).tried)


def test_no_way_is_tried_that_leaves_one_period():
    "The gate judges nothing of a recipe that learns from one period."
    quarters = [datetime(2018 + i // 4, 1 + 3 * (i % 4), 1, tzinfo=UTC) for i in range(16)]
    when = pl.col("moment").replace_strict({START + 7 * DAY * i: day for i, day in enumerate(quarters)})
    found = asked_how_much(world(6, 16).with_columns(moment=when, period=when))
    known = ["everything", "the last 365 days", "the last 182 days"]  # and no quarter
    assert found.tried["way"].to_list() == known


def test_what_is_named_and_teaches_nothing_now_is_told_and_not_passed_over():
    told = tuned(only(world(6, 40), 0, 210, 280), Learning(lookbacks=(28 * DAY, None)), 3)
    assert told.past.params == {} and "nothing can be learnt now" in told._repr_html_()
    json_bytes(told.to_dict())


def test_a_search_whose_newest_rows_hold_one_kind_of_outcome_ends_and_can_be_sealed():
    found = tuned(only(world(6, 24), 0, 128, 280), effort=3)
    assert found.trials.height == 3 and found.trials["auc"].null_count() == 3
    json_bytes(found.to_dict())


def test_what_few_periods_say_of_the_past_can_be_sealed():
    "Outcomes that differ came late: two blocks have anything to learn from before them."
    found = asked_how_much(only(world(6, 40), 0, -1, 222))
    assert "could tell" in found.reason and found.params == {}
    json_bytes(found.to_dict())


def test_one_way_that_is_declared_holds_for_the_rule_alone_too():
    told = tuned(world(6, 24), Learning(lookbacks=(28 * DAY,)), families=("rule",))
    assert told.params == {"lookback_days": 28.0} and told.past.reason == "declared"


def test_how_far_back_a_search_found_stands_on_the_recipe_and_a_rule_of_the_problem_binds_it():
    tuned = Tuned("linear", {"C": 0.1, "lookback_days": 365.0, "half_life_days": 30.0}, "", pl.DataFrame())
    found = _found(replace(churn, lookback=None), tuned)
    assert found.lookback == 365 * DAY and found.params == {"C": 0.1, "half_life_days": 30.0}
    assert _found(churn, tuned).lookback == churn.lookback == 90 * DAY
    assert _found(replace(churn, lookback=None), replace(tuned, params={"C": 0.1})).lookback is None


def test_a_rule_that_a_problem_has_since_declared_binds_the_recipe_that_is_refreshed():
    found = Recipe(churn.features.hash, "linear", {"C": 0.1})
    assert _bound(churn, found).lookback == 90 * DAY
    assert _bound(churn, replace(found, lookback=30 * DAY)) == replace(found, lookback=30 * DAY)
    free = replace(churn, lookback=None)
    assert _bound(free, found) == found and _bound(free, _bound(churn, found)).lookback == 90 * DAY


def test_an_earlier_search_is_revisited_on_all_rows_where_its_memory_holds_one_kind_of_outcome_by_now():
    rows, way = world(6, 40), {"C": 0.1, "segments": 1}
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    earlier = [
        {"family": "linear", "params": json.dumps(p), "log_loss": 0.6 + i, "chosen": not i}
        for i, p in enumerate([{**way, "lookback_days": 28.0}, {**way, "C": 1.0, "lookback_days": 28.0}])
    ]
    revisited = lambda part: revisit(Probability(), part, split, FEATURES, earlier, entity=["who"])
    assert revisited(rows).params == {**way, "lookback_days": 28.0}
    found = revisited(only(rows, 0, 210, 280))
    assert found.params == way and "as before" in found.reason


# What was tried is kept


def test_how_much_past_is_asked_of_the_same_rows_once(tmp_path, monkeypatch):
    from mlsys_nb.learning import training_window

    rows, usual, kept = world(7, 40), asked_of(YES_OR_NO, Learning()).how, KeptTrials(tmp_path / "t")
    first = tuned(rows, usual, Effort(3, kept=kept))
    assert first.past.to_dict() == tuned(rows, usual, 3).past.to_dict()

    def fitted_again(*args, **more):
        raise AssertionError("what was asked is not fitted again")

    monkeypatch.setattr(training_window, "fit", fitted_again)
    assert tuned(rows, usual, Effort(3, kept=kept)).past.to_dict() == first.past.to_dict()
    with pytest.raises(AssertionError, match="not fitted again"):
        tuned(rows.with_columns(label=1 - pl.col("label")), usual, Effort(3, kept=kept))


def test_a_kept_search_gives_the_same_result_for_nothing(tmp_path, monkeypatch):
    from mlsys_nb.learning import trial

    rows, kept = world(7), KeptTrials(tmp_path / "t")
    first = tuned(rows, effort=Effort(8, kept=kept))
    plain = tuned(rows, effort=8)
    assert first.trials.equals(plain.trials) and first.reason == plain.reason

    def fitted_again(*args):
        raise AssertionError("a kept trial is not fitted again")

    monkeypatch.setattr(trial, "_fitted", fitted_again)
    again = tuned(rows, effort=Effort(8, kept=kept))
    assert again.trials.equals(first.trials) and again.family == first.family
    with pytest.raises(
        AssertionError, match="not fitted again"
    ):  # another label, another weight, another seed
        tuned(rows.with_columns(label=1 - pl.col("label")), effort=Effort(8, kept=kept))
    with pytest.raises(AssertionError, match="not fitted again"):
        tuned(rows, Learning(directions={"a": "up"}), Effort(8, kept=kept))
    with pytest.raises(AssertionError, match="not fitted again"):
        tuned(rows, effort=Effort(8, kept=kept), seed=1)


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        import os, signal
        from test_learning import Effort, KeptTrials, tuned, world
        from mlsys_nb.system import file_operations
        whole = lambda: [f for f in Path(sys.argv[2]).glob("*") if len(f.name) == 64]
        file_operations.FAULTS.append(lambda *deed: len(whole()) >= 6 and os.kill(os.getpid(), signal.SIGKILL))
        tuned(world(8), effort=Effort(30, kept=KeptTrials(Path(sys.argv[2]))))
        """
    )
    where = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", script, where, str(tmp_path / "t")])
    assert process.wait(300) == -signal.SIGKILL
    left = len([f for f in tmp_path.glob("t/*") if len(f.name) == 64])
    assert left == 6
    kept = KeptTrials(tmp_path / "t")
    whole, resumed = tuned(world(8), effort=30), tuned(world(8), effort=Effort(30, kept=kept))
    assert resumed.trials.equals(whole.trials) and (resumed.family, resumed.params) == (
        whole.family,
        whole.params,
    )


def test_time_ends_a_search_and_the_manifest_says_what_ran():
    found = tuned(world(9), effort=Effort(500, seconds=0.0))
    assert found.stopped and found.trials.height == 3
    told = found.to_dict()
    assert (
        told["stopped by time"]
        and len(told["trials"]) == 3
        and "was up after 3 trials" in found._repr_html_()
    )
    assert not tuned(world(9), effort=Effort(4, seconds=600.0)).stopped


# Early stopping


def test_boosting_stops_at_later_rows_and_not_at_a_random_draw_of_the_same_days():
    rows = world(10, 30, turning=0.3)
    found = tuned(rows, effort=4, families=("boosting",))
    params = [json.loads(text) for text in found.trials["params"]]
    assert all(1 <= p["max_iter"] <= 300 for p in params) and len({p["max_iter"] for p in params}) > 1
    split = time_split(rows["moment"].unique().to_list(), 7 * DAY)
    judge, train, valid = Probability(), split.rows(rows, "train"), split.rows(rows, "valid")
    y = judge.outcomes(valid["label"])
    for p, loss in zip(params, found.trials["log_loss"], strict=True):
        assert judge.losses(y, fit("boosting", train, FEATURES, params=p).predict(valid)).mean() == loss
    for trees in (params[0]["max_iter"] - 1, params[0]["max_iter"] + 1):
        other = fit("boosting", train, FEATURES, params={**params[0], "max_iter": max(trees, 1)})
        assert judge.losses(y, other.predict(valid)).mean() >= found.trials["log_loss"][0]
    more = {**params[0], "max_iter": 300}
    assert (
        judge.losses(y, fit("boosting", train, FEATURES, params=more).predict(valid)).mean()
        > found.trials["log_loss"][0]
    )


# The declaration


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (Learning(weight="no_such"), "weight names a number of each row"),
        (Learning(weight="country"), "weight names a number of each row"),
        (Learning(directions={"country": "up"}), "a feature that is a number"),
        (Learning(rivals=(3,)), "a scikit-learn estimator"),
        (Learning(rivals=(ExtraTreesClassifier(), ExtraTreesClassifier())), "twice"),
    ],
)
def test_a_declaration_that_cannot_be_learnt_is_refused_at_once(how, why):
    with pytest.raises(ProblemError, match=why):
        replace(churn, learning=how)


def test_what_a_problem_asks_for_reaches_its_learner_and_a_version_needs_none_of_it():
    how = Learning(families=("rule", "table"), directions={}, weight="orders_90d")
    asked = replace(churn, learning=how)
    assert asked.learner.how == how and asked.learner.families == ("rule", "table")
    assert churn.learner.families == ("rule", "linear", "boosting")
    few = replace(asked, learning=Learning())
    assert few.hash == asked.hash == churn.hash, "how it is learnt is not what is asked"


def test_numbers_are_learnt_with_weights_and_directions_too():
    rows = world(11)
    up = Learner("identity", how=Learning(directions={"a": "up", "b": "down"}, weight="n"))
    counted = rows.with_columns(n=pl.col("who") % 3)
    for family in ("linear", "boosting"):
        model = fit(family, counted, FEATURES, learner=up, label="amount")
        ladder = pl.DataFrame({"a": np.linspace(-3, 3, 50), "b": 0.0, "land": "UK"})
        steps = np.diff(model.predict(ladder)[:, 0])
        assert (steps >= -1e-9).all() and steps.max() > 0
        against = replace(up, how=Learning(directions={"a": "down"}))  # the rows say otherwise
        contradicted = fit(family, counted, FEATURES, learner=against, label="amount")
        assert (np.diff(contradicted.predict(ladder)[:, 0]) <= 1e-9).all()
        y, p = counted["amount"].to_numpy(), model.predict(counted)
        assert Number(0.8).losses(y, p).mean() < Number(0.8).losses(y, np.full_like(p, y.mean())).mean()
    with pytest.raises(ValueError, match="counts zero times or more"):
        fit("linear", rows.with_columns(n=pl.lit(-1)), FEATURES, learner=up, label="amount")


# From the declaration to the report, the manifest and the kept trials


def test_a_rival_and_a_memory_walk_from_the_declaration_to_report_and_manifest_and_are_revisited(tmp_path):
    import visits_world as visits
    from test_loop import at, ingest_due, train

    settings = visits.make(tmp_path)
    how = Learning(
        rivals=(ExtraTreesClassifier(20),), half_lives=(None, 14 * DAY), families=("rule", "table", "linear")
    )
    problem = replace(visits.problem, learning=how)
    ingest_due(at(settings))
    done = train(at(settings, problem=problem), n_trials=4)
    assert (
        done.decision == "promoted"
        and "ExtraTreesClassifier" in done._repr_html_()
        and "how much past" in done._repr_html_()
    )
    told = at(settings, problem=problem).model.manifest["search"]
    assert "ExtraTreesClassifier" in told["rivals"] and len(told["past"]["tried"]) == 2
    assert {t["family"] for t in told["trials"]} == {"rule", "table", "linear", "ExtraTreesClassifier"}
    assert 3 < len(list((settings.trials / "visits").iterdir())) <= len(told["trials"])
    ingest_due(at(settings, 11, problem))
    again = train(at(settings, 11, problem), n_trials=0)
    assert set(again.candidate.tuned.trials["origin"]) == {"earlier"}
    assert "of an earlier search" in again.candidate.package.manifest["search"]["reason"]
    with pytest.raises(ValueError, match="a search has trials"):
        train(at(settings, 11, problem), n_trials=-1)


def test_a_line_took_the_place_of_trees_because_both_were_asked_on_a_twelfth_of_the_rows(monkeypatch):
    import importlib

    room = importlib.import_module("mlsys_nb.learning.search_reuse")
    rng, n, weeks = np.random.default_rng(3), 400, 20
    when = [datetime(2020, 1, 6, tzinfo=UTC) + timedelta(weeks=i) for i in range(weeks)]
    rows = pl.DataFrame(
        {
            "who": np.tile(np.arange(n), weeks),
            "moment": pl.Series([m for m in when for _ in range(n)], dtype=pl.Datetime("us", "UTC")),
            "a": rng.normal(size=n * weeks),
            "b": rng.normal(size=n * weeks),
        }
    )
    odds = (0.6 * rows["a"] + 0.9 * rows["a"] * rows["b"]).to_numpy()
    rows = rows.with_columns(label=pl.Series(rng.random(len(odds)) < 1 / (1 + np.exp(-odds))).cast(pl.Int8))
    trees = {
        "max_iter": 120,
        "max_leaf_nodes": 16,
        "min_samples_leaf": 10,
        "learning_rate": 0.1,
        "l2_regularization": 1.0,
    }
    named = {"linear": {"C": 0.1, "segments": 1}, "boosting": trees}
    earlier = [
        {"family": f, "params": json.dumps(p), "log_loss": 0.6, "chosen": f == "boosting"}
        for f, p in named.items()
    ]
    monkeypatch.setattr(room, "_ROWS", 400)
    asked = (Probability(), rows, time_split(when, timedelta(days=7)), ["a", "b"], earlier)
    found = room.revisit(*asked, rule=Rule.majority(), entity=["who"])
    few, whole = (found.trials.filter(pl.col("origin") == origin) for origin in ("earlier", "on all rows"))
    lost = lambda part: dict(part.select("family", "log_loss").iter_rows())
    assert lost(few)["linear"] < lost(few)["boosting"]  # what the sample says
    assert lost(whole)["boosting"] < lost(whole)["linear"] and found.family == "boosting", found.trials
