"Drift: the odds it states, by simulation at small size (bench/odds_drift.py has the full one), and each fault that was measured."

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import FULL

from mlsys_nb.monitoring.binning import DriftError
from mlsys_nb.monitoring.column_statistics import figures
from mlsys_nb.monitoring.drift import Odds, drift_check, drift_of
from mlsys_nb.monitoring.histogram_sketch import sketch_frame
from mlsys_nb.monitoring.training_profile import profile_from, reference_profile
from mlsys_nb.monitoring.trend_season import _unheard, charted

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import odds_drift as odds
import rates

START = datetime(2010, 1, 4, tzinfo=UTC)


def days(which, rows=800, seed=0, **columns):
    "A shop's days: skewed amounts that wobble by a twentieth, a branch, a score; some columns changed by a function."
    rng = np.random.default_rng(seed)
    of = np.repeat(list(which), rows)
    wobble = dict(zip(which, 0.05 * rng.standard_normal(len(which)), strict=True))
    z = rng.standard_normal(len(of)) + np.array([wobble[i] for i in of])
    frame = pl.DataFrame(
        {
            "moment": pl.Series([START + timedelta(days=int(i)) for i in of], dtype=pl.Datetime("us", "UTC")),
            "amount": np.exp(3 + z),
            "pieces": rng.poisson(3, len(of)).astype(float),
            "branch": rng.choice(["north", "south", "west"], len(of)),
            "score": 1 / (1 + np.exp(-z - rng.standard_normal(len(of)))),
        }
    )
    return frame.with_columns(**columns)


WATCHED = ("amount", "pieces", "branch", "score")


@pytest.fixture(scope="module")
def profile():
    return reference_profile(days(range(60)), WATCHED, slices=["branch"])


def test_a_quiet_fortnight_is_quiet(profile):
    assert drift_check(profile, days(range(61, 75), seed=1)).verdict == "quiet"


FAULTS = {
    "stuck at its median": ("amount", {"amount": pl.lit(float(np.exp(3)))}),
    "spreads by half as much again": ("amount", {"amount": (3 + 1.5 * (pl.col("amount").log() - 3)).exp()}),
    "one value in a fifth of the rows": (
        "amount",
        {"amount": pl.when(pl.int_range(pl.len()) % 5 == 0).then(20.0).otherwise("amount")},
    ),
    "pence in a tenth of the rows": (
        "amount",
        {"amount": pl.when(pl.int_range(pl.len()) % 10 == 0).then(100 * pl.col("amount")).otherwise("amount")},
    ),
    "missing in a twentieth": (
        "pieces",
        {"pieces": pl.when(pl.int_range(pl.len()) % 20 == 0).then(None).otherwise("pieces")},
    ),
    "a new category": ("branch", {"branch": pl.when(pl.int_range(pl.len()) % 25 == 0).then(pl.lit("east")).otherwise("branch")}),
    "a vanished category": ("branch", {"branch": pl.col("branch").replace("west", "south")}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_mean_cannot_see_is_an_alert_within_three_days(profile, fault):
    feature, columns = FAULTS[fault]
    report = drift_check(profile, days(range(61, 64), seed=2, **columns))
    assert feature in report.alerts, report.frame


def months(which: range, rows: int = 165, seed: int = 0, **columns: pl.Expr) -> pl.DataFrame:
    "A lender's four weeks: in some of them many shares are the same, once there was a rare weather."
    rng, of = np.random.default_rng(seed), np.repeat(list(which), rows)
    same = np.array([0.02, 0.1, 0.3, 0.05, 0.1, 0.15, 0.1, 0.2])[of % 8]
    rare = (of == 5) & (np.tile(np.arange(rows), len(which)) < rows / 150)
    frame = pl.DataFrame({
        "moment": pl.Series([START + timedelta(weeks=4 * int(i)) for i in of], dtype=pl.Datetime("us", "UTC")),
        "share": np.where(rng.random(len(of)) < same, 0.8, rng.beta(6, 2, len(of))),
        "season": (of % 12).astype(float),
        "weather": np.where(rare, "squall", rng.choice(["clear", "clouds", "rain"], len(of))),
    })  # fmt: skip
    return frame.with_columns(**columns)


@pytest.mark.parametrize(
    ("name", "part", "plant"),
    [
        ("share", "stuck", pl.col("share").median()),
        ("weather", "new", pl.when(pl.col("weather") == "clear").then(pl.lit("hail")).otherwise("weather")),
    ],
)
def test_what_the_rows_of_one_period_say_for_certain_waits_for_no_second(
    name: str, part: str, plant: pl.Expr
) -> None:
    "Few periods, one of them odd, leave their chart no room, however many rows of the next say the same; the rows do."

    def score(rows: int, **columns: pl.Expr) -> float:
        profile = reference_profile(months(range(8), rows), [name])
        seen = charted(
            profile, sketch_frame(profile.lenses, (), months(range(8, 9), rows, 1, **columns), "moment")
        )
        return float(seen.scores[[one.name for one in seen.before.parts].index(part), 0])

    assert score(165) < 2
    assert score(165, **{name: plant}) > 5.5
    assert score(1650, **{name: plant}) > 2 * score(165, **{name: plant})


def test_a_column_that_has_one_value_a_period_does_not_stand_still() -> None:
    "Nor does one of which most rows are at an end of its range: a level that moves takes more of them there."
    zeros = {"share": pl.when(pl.int_range(pl.len()) % 10 < 7).then(0.0).otherwise("share")}
    more = {"share": pl.when(pl.int_range(pl.len()) % 10 < 8).then(0.0).otherwise("share")}
    profile = reference_profile(months(range(14), **zeros), ("share", "season"))
    assert drift_check(profile, months(range(14, 26), seed=1, **more)).alerts == ()


def test_a_shift_that_the_week_hides_is_found():
    "Less than half of a standard deviation, where a Sunday differs by more than a whole one."

    def weekly(which, seed, shift=0.0):
        frame = days(which, seed=seed)
        week = pl.Series([0.0, 0.1, 0.2, 0.1, 0.5, 0.9, -1.2])
        at = frame["moment"].dt.weekday() - 1
        return frame.with_columns(amount=(pl.col("amount").log() + week.gather(at) + shift).exp())

    profile = reference_profile(weekly(range(63), 0), ["amount"])
    assert drift_check(profile, weekly(range(63, 77), 1)).verdict == "quiet"
    assert drift_check(profile, weekly(range(63, 66), 2, 0.45)).drifted == ("amount",)


def test_a_fiftieth_of_a_standard_deviation_is_nobodys_business():
    "At 20,000 rows a day and at a million; what counts as too small is the problem's to say."
    for rows, count in ((20_000, 60), (1_000_000, 20)):
        rng = np.random.default_rng(3)
        world = odds.World(wobble=0.0, rows=rows)
        effect = np.r_[np.zeros(count), np.full(9, 0.02)]
        profile, served = odds.reference([odds.drawn(world, rng, effect)], odds.lens("normal"), count)
        assert drift_of(profile, served).drifted == ()
        assert drift_of(profile, served, Odds(least=0.001)).drifted == ("x0",)


def test_tenure_that_grows_with_the_history_is_named_and_no_drift():
    "Seven months of days since the first order, where history began a year before."

    def customers(which, seed):
        rng = np.random.default_rng(seed)
        of = np.repeat(list(which), 400)
        tenure = rng.random(len(of)) * (300 + of)
        at = pl.Series([START + timedelta(days=int(i)) for i in of], dtype=pl.Datetime("us", "UTC"))
        return pl.DataFrame({"moment": at, "tenure": tenure, "visits": rng.poisson(3, len(of)).astype(float)})

    profile = reference_profile(customers(range(0, 91, 7), 0), ["tenure", "visits"], lifetime=["tenure"])
    for month in range(7):
        report = drift_check(profile, customers([98 + 30 * month], month + 1))
        assert report.drifted == () and report.growing == ("tenure",), report.frame
    jumped = customers([128], 9).with_columns(tenure=pl.col("tenure") * 3)
    assert drift_check(profile, jumped).drifted == ("tenure",)


def test_a_slice_that_moves_alone_is_named(profile):
    north = pl.when(pl.col("branch") == "north")
    changed = days(range(61, 64), seed=4, amount=north.then(1.35 * pl.col("amount")).otherwise("amount"))
    found = drift_check(profile, changed).frame.filter("drifted", pl.col("feature") == "amount")
    assert "branch = north" in found["slice"].to_list() and "branch = south" not in found["slice"].to_list()


def test_columns_that_no_longer_belong_together_are_an_alert(profile):
    report = drift_check(profile, days(range(61, 64), rows=4000, seed=5))
    assert report.joint is not None and not report.joint.alert
    height = days(range(60), seed=6)
    tied = reference_profile(
        height.with_columns(twin=pl.col("amount") * (1 + 0.1 * pl.col("pieces"))),
        ["amount", "twin", "pieces"],
    )
    later = days(range(61, 64), seed=7).with_columns(twin=pl.col("amount") * (1 + 0.1 * pl.col("pieces")))
    assert not drift_check(tied, later).joint.alert
    slipped = drift_check(tied, later.with_columns(pl.col("twin").shift(1).fill_null(20.0)))
    assert slipped.alerts == ("joint",) and {"amount", "twin"} == set(slipped.joint.pairs[0][:2])


def test_prose_in_another_vocabulary_is_drift():
    rng, words = np.random.default_rng(0), ["good", "bad", "price", "late", "kind", "quick", "never", "again"]

    def said(which, vocabulary, share=1.0):
        of = np.repeat(list(which), 200)
        at = pl.Series([START + timedelta(days=int(i)) for i in of], dtype=pl.Datetime("us", "UTC"))
        text = [" ".join(rng.choice(vocabulary if rng.random() < share else words, 8)) for _ in of]
        return pl.DataFrame({"moment": at, "comment": text})

    profile = reference_profile(said(range(20), words), ["comment"])
    assert drift_check(profile, said(range(21, 24), words)).verdict == "quiet"
    report = drift_check(profile, said(range(21, 24), ["très", "bon", "prix", "tard"], 0.2))
    assert report.alerts == ("comment",) and "vocabulary" in report.frame["part"][0]


def test_looking_often_spends_nothing(profile):
    "Ten looks a day at whole days, or one look at the end: each day is judged once, by the same limits."
    rows = days(range(61, 81), seed=8)
    whole = sketch_frame(profile.lenses, profile.slices, rows, "moment")
    at_once = drift_of(profile, whole)
    daily = [
        drift_of(
            profile, type(whole)(whole.periods[: i + 1], tuple(c[: i + 1] for c in whole.counts)), fresh=1
        )
        for i in range(20)
    ]
    assert {f for report in daily for f in report.drifted} == set(at_once.drifted)


def test_nothing_to_say_is_said(profile):
    three = reference_profile(days(range(3)), WATCHED)
    report = drift_check(three, days([5], seed=1, amount=pl.col("amount") * 9))
    assert report.verdict == "not enough reference periods" and not report.drifted and not report.alerts
    assert "not enough" in report._repr_html_()
    assert drift_check(profile, days([5]).clear()).verdict == "nobody to look at"
    with pytest.raises(DriftError, match="drift needs the column 'pieces'"):
        drift_check(profile, days([61]).drop("pieces"))


def test_a_profile_survives_json_and_the_order_of_rows(profile):
    again = profile_from(json.loads(json.dumps(profile.to_json(), allow_nan=False)))
    rows = days(range(61, 64), seed=2)
    one, other = (
        drift_check(p, r).frame
        for p, r in ((profile, rows), (again, rows.sample(fraction=1.0, shuffle=True, seed=3)))
    )
    assert one.equals(other)


def test_a_profile_of_another_format_is_refused():
    with pytest.raises(DriftError, match="format 1 cannot be read, this house reads 2; train a version anew"):
        profile_from({"periods": [], "features": []})


def test_odd_columns():
    "All missing, constant, infinite, boolean, a category that collides with our own words."

    def at(n, **columns):
        frame = pl.DataFrame(
            {k: [v[i % len(v)] for i in range(100)] for k, v in columns.items()}, strict=False
        )
        return frame.with_columns(moment=pl.lit(START + timedelta(weeks=n)).cast(pl.Datetime("us", "UTC")))

    usual = {
        "empty": [None],
        "constant": [3],
        "huge": [1.0, float("inf")],
        "flag": [True, False],
        "word": ["other", "missing", None, "new"],
    }
    frames = [at(i, **usual).with_columns(pl.col("empty").cast(pl.Float64)) for i in range(12)]
    profile = reference_profile(pl.concat(frames), list(usual))
    assert drift_check(profile, at(16, **usual)).verdict == "quiet"
    assert json.dumps(profile.to_json(), allow_nan=False)
    changed = {**usual, "empty": [1.5], "constant": [4], "flag": [True], "word": ["else"]}
    assert set(drift_check(profile, at(16, **changed)).drifted) == {"empty", "constant", "flag", "word"}


@pytest.mark.parametrize(
    "world",
    [
        odds.World("lognormal", 0.05), odds.World("rare binary", 0.3), odds.World(wobble=0.1, rho=0.8),
        odds.World(wobble=0.1, tails=3), odds.World("Poisson", 0.1, 0.3, week=0.3),
        odds.World("yes or no", 0.1), odds.World("3 values", 0.05, tails=3),
        odds.World("one of 4 values strays", 0.05, tails=3), odds.World("two thirds hold one of 12 values", 0.3, tails=3, every=7),
    ],
    ids=str,
)  # fmt: skip
def test_quiet_years_are_quiet(world):
    "Three model-years each, with daily looks: marks of feature-months as rare as stated, and hardly an alert."
    marks, alerts = odds.quiet_rows(3, 11, (world,))
    assert marks["measured"] <= 0.01 + 0.01, marks
    assert alerts["measured"] <= 1 / 3, alerts


def test_sameness_that_follows_weekdays_is_not_stuck():
    "The fault: of a column mostly nought, three weekdays in a row were three unheard-of ones in three of these eight years."
    (_, alerts) = odds.quiet_rows(8, 0, (odds.World("zero-inflated", 0.1, 0.3, week=0.3),))
    assert alerts["measured"] <= 1 / 8, alerts


def test_of_two_values_each_is_its_share():
    "The fault: which of two equal moves led was decided by rounding, day by day, and the other's share then was the usual one."
    counts = np.random.default_rng(0).binomial(5000, 0.3, 40)[:, None] * [1, 0, 0, 0, 0] + [0, 0, 0, 0, 5]
    counts[:, 1] = 5000 - counts[:, 0]
    yes = replace(odds.lens("yes or no"), masses=(0.3, 0.7, 0.0, 0.0))
    told = figures(yes, counts)
    assert np.allclose(np.sin(told.values[:2] / 2) ** 2, counts[:, :2].T / 5000, atol=1e-4)
    assert np.allclose(told.rows[:2], 5000)


def test_a_quiet_real_stream_has_no_alarm_in_eleven_of_eleven_looks():
    "Hourly traffic on a motorway, with its week, its holidays and its winter: a year as reference, then eleven months."
    from mlsys_nb.system.settings import load_settings

    hours = pl.read_csv(load_settings().raw / "metro_traffic_volume.csv.gz", try_parse_dates=True).sort(
        "date_time"
    )
    hours = hours.with_columns(moment=pl.col("date_time").dt.replace_time_zone("UTC").dt.truncate("1d"))
    dates = hours["moment"].unique().sort()
    of = {
        name: hours.filter(pl.col("moment").is_in(dates[part].implode()))
        for name, part in {"past": slice(-695, -330)}.items()
    }
    profile = reference_profile(of["past"], ["traffic_volume", "clouds_all"])
    looks = [dates[-330 + 30 * k :][:30] for k in range(11)]
    found = [drift_check(profile, hours.filter(pl.col("moment").is_in(look.implode()))) for look in looks]
    assert [report.verdict for report in found] == ["quiet"] * 11
    changed = hours.filter(pl.col("moment").is_in(looks[5].implode())).with_columns(
        pl.col("traffic_volume") * 10
    )
    assert drift_check(profile, changed).alerts == ("traffic_volume",)


def test_a_rate_is_told_with_its_interval_and_what_that_says_of_the_aim():
    assert rates.wilson(5, 100) == pytest.approx((0.0215, 0.1118), abs=1e-4)
    assert rates.wilson(0, 0)[0] == 0.0 and rates.wilson(7, 7)[1] == 1.0
    said = [rates.verdict(rates.line("c", "w", k, 200, aim)) for k, aim in (
        (0, "<= 0.05"), (9, "<= 0.05"), (40, "<= 0.05"), (200, ">= 0.95"), (190, ">= 0.95"), (100, ">= 0.95"), (3, "power"),
    )]  # fmt: skip
    assert said == ["met", "open", "missed", "met", "open", "missed", ""]
    row = rates.line("c", "w", 1, 20, "<= 0.05")
    assert rates.text(row).endswith("aim <= 0.05, n 20  open")
    assert [line.split()[0] for line in rates.by_claim([row, {**row, "claim": "d"}, row]).splitlines()] == [
        "c,",
        "w",
        "w",
        "d,",
        "w",
    ]


ROWS_OF = {
    "normal": lambda g, n, e: g.standard_normal(n) + e,
    "lognormal": lambda g, n, e: g.lognormal(e, 1, n),
    "t3": lambda g, n, e: g.standard_t(3, n) + 3**0.5 * e,
    "zero-inflated": lambda g, n, e: np.where(g.random(n) < 1 / (1 + np.exp(e) * 3 / 7), 0.0, g.lognormal(e, 1, n)),
    "Poisson": lambda g, n, e: g.poisson(3 * np.exp(e / 3**0.5), n).astype(float),
    "rare binary": lambda g, n, e: (g.random(n) < 1 / (1 + 99 * np.exp(-e))).astype(float),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS_OF)
def test_simulated_sketches_are_those_of_rows(kind):
    "The odds are measured on drawn counts; rows of the same day, read by the product, fall into the same cells."
    from scipy.stats import chisquare

    one, n, rng = odds.lens(kind), 200_000, np.random.default_rng(4)
    for effect in (-0.3, 0.25):
        rows = pl.DataFrame({one.feature: ROWS_OF[kind](rng, n, effect)}).with_columns(moment=pl.lit(START))
        seen = sketch_frame([one], [], rows, "moment").counts[0][0, 0, :-1]
        share = odds.KINDS[kind][1](np.array(one.edges), np.array([effect]))[0]
        likely = share * n >= 5
        assert seen[~likely].sum() <= 5 * max((~likely).sum(), 1)
        expected = share[likely] / share[likely].sum() * seen[likely].sum()
        assert chisquare(seen[likely], expected).pvalue > 1e-4, (kind, effect)


def test_simulated_categories_are_read_as_their_rows_are():
    "Every value's counts, folded by the bench, and rows read by the product, fall into the same cells; new values come in both."
    rng = np.random.default_rng(6)
    counts = rng.poisson(np.r_[np.geomspace(60, 8, 14), np.full(30, 0.2)], (12, 44))
    of = np.repeat(np.tile(np.arange(44), 12), counts.ravel())
    day = np.repeat(np.repeat(np.arange(12), 44), counts.ravel())
    at = pl.Series([START + timedelta(days=int(i)) for i in range(12)], dtype=pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"v": [f"v{i}" for i in of], "day": day}).with_columns(moment=at.gather(day))
    profile = reference_profile(rows.filter(pl.col("day") < 8), ["v"])
    later = sketch_frame(profile.lenses, (), rows.filter(pl.col("day") >= 8), "moment")
    assert (np.vstack([profile.reference.counts[0], later.counts[0]]) == odds.folded(counts, 8)).all()


def test_a_value_that_took_rows_from_others_is_the_one_that_is_named():
    "A level that wanders by factors in one value leaves the calm ones calm; what they did beside it is still seen."
    world, rng = odds.World("3 values", 0.05), np.random.default_rng(3)
    usual = odds.category(world, rng, 63, 60)
    usual[60:, 0, :3] = [1000, 600, 3400]  # the third took rows from both alike
    profile, served = odds.reference([usual], odds.lens("3 values"), 60)
    seen = charted(profile, served)
    score = dict(zip([part.name for part in seen.before.parts], np.abs(seen.scores).max(axis=1), strict=True))
    assert score["share of 2"] > 4 and max(score["share of 0"], score["share of 1"]) < 3.5
    usual[60:, 0, :3] = [200, 1400, 3400]
    seen = charted(*odds.reference([usual], odds.lens("3 values"), 60))
    score = dict(zip([part.name for part in seen.before.parts], np.abs(seen.scores).max(axis=1), strict=True))
    assert min(score["share of 0"], score["share of 1"]) > 4


def test_rows_and_simulated_sketches_give_the_same_verdicts():
    "A shift of a fifth at 5,000 rows a day, ten features: a few times from rows, as a user would see it."
    world, hits = odds.World(), 0
    for seed in range(5 if FULL else 2):
        rng = np.random.default_rng(seed)
        effect = odds.effects(world, rng, 63, 3)
        effect[0, 60:] += 0.25
        of = np.repeat(np.arange(63), 5000)
        at = pl.Series([START + timedelta(days=i) for i in range(63)], dtype=pl.Datetime("us", "UTC")).gather(
            of
        )
        rows = pl.DataFrame(
            {f"x{i}": effect[i][of] + rng.standard_normal(len(of)) for i in range(3)}
        ).with_columns(moment=at)
        past, now = (
            rows.filter(pl.col("moment") < START + timedelta(days=60)),
            rows.filter(pl.col("moment") >= START + timedelta(days=60)),
        )
        report = drift_check(reference_profile(past, ["x0", "x1", "x2"]), now)
        hits += "x0" in report.alerts
        assert not {"x1", "x2"} & set(report.alerts)
    rng, fault = np.random.default_rng(9), odds.Fault("", world, lambda c, x, e: c(x, e + 0.25))
    simulated = sum(odds.found(fault, rng, width=3) for _ in range(40))
    assert hits >= (4 if FULL else 2) and simulated >= 34


def test_no_power_beyond_what_any_test_has():
    "What is measured may not exceed the bound of Neyman and Pearson; fewer features leave each more of the odds."
    bounds = [odds.at_most(0.05, 0.06, features=k) for k in (1, 3, 10)]
    assert bounds == sorted(bounds, reverse=True) and 0.9 < bounds[2] < 0.93 < bounds[0] < 0.98


def test_two_features_that_one_batch_moved_have_one_cause(profile):
    "The rows of one source batch explain both; a third feature that moved everywhere is not laid at its door."
    from mlsys_nb.monitoring.drift_cause import Witness, cause_of

    batch = np.arange(3 * 800) % 5 == 0
    ill = pl.Series("ill", batch)
    rows = days(range(61, 64), seed=12).with_columns(
        amount=pl.when(ill).then(2.5 * pl.col("amount")).otherwise("amount"),
        pieces=pl.when(ill).then(pl.col("pieces") + 3).otherwise("pieces"),
        score=(pl.col("score") + 0.3).clip(0, 1),
    )
    report = drift_check(profile, rows)
    found = report.frame.filter("drifted", pl.col("slice") == "all").to_dicts()
    groups = {"batch 7 of sales": batch, "batch 8 of sales": np.roll(batch, 1)}
    causes = {row["feature"]: cause_of(profile, row, Witness(rows, groups)) for row in found}
    assert {causes[name].word for name in ("amount", "pieces")} == {"batch"}
    assert all("batch 7 of sales alone" in causes[name].sentence for name in ("amount", "pieces"))
    assert causes["score"].word == "not known"


def test_tenure_of_the_demos_year_is_growing_history_and_no_drift():
    "The wholesaler's customers, month by month as the demo looks at them: the reference ends in May, six looks follow."
    from mlsys_nb.system.settings import load_settings

    raw = pl.read_parquet(load_settings().raw / "online_retail_year1_lines.parquet")
    bought = raw.filter(pl.col("customer_id").is_not_null() & (pl.col("quantity") > 0))
    bought = bought.select(
        "customer_id", at=pl.col("invoice_ts").dt.replace_time_zone("UTC").cast(pl.Datetime("us", "UTC"))
    )
    begin, weeks = datetime(2010, 2, 1, tzinfo=UTC), []
    for k in range(42):
        moment = begin + timedelta(weeks=k)
        who = (
            bought.filter(pl.col("at") < moment)
            .group_by("customer_id")
            .agg(first=pl.col("at").min(), last=pl.col("at").max())
        )
        who = who.filter(pl.col("last") >= moment - timedelta(days=90))
        weeks.append(who.select(
            moment=pl.lit(moment).cast(pl.Datetime("us", "UTC")), tenure_days=(moment - pl.col("first")).dt.total_days().cast(pl.Float64),
            recency_days=(moment - pl.col("last")).dt.total_days().cast(pl.Float64),
        ))  # fmt: skip
    profile = reference_profile(
        pl.concat(weeks[:16]), ["tenure_days", "recency_days"], lifetime=["tenure_days"]
    )
    for month in range(6):
        report = drift_check(profile, pl.concat(weeks[16 + 4 * month : 20 + 4 * month]))
        assert "tenure_days" not in report.drifted, (month, report.frame)
        assert report.growing == ("tenure_days",)
    unnamed = reference_profile(pl.concat(weeks[:16]), ["recency_days"])
    assert unnamed.lifetime == ()


def weeks(which, rows=1500, seed=0, **columns):
    "A wholesaler's customers, week by week: a gap between orders that grows a little, one country for nine in ten."
    rng, frames = np.random.default_rng(seed), []
    for k in which:
        country = np.where(rng.random(rows) < 0.92, "home", rng.choice(["far", "farther", "farthest"], rows))
        gap = rng.gamma(2, 20, rows) + k / 3
        at = pl.Series([START + timedelta(weeks=int(k))] * rows, dtype=pl.Datetime("us", "UTC"))
        frames.append(pl.DataFrame({"moment": at, "country": country, "gap": gap}))
    return pl.concat(frames).with_columns(**columns)


FIRST = {
    "nine in ten in a country never seen": ("country", {"country": pl.col("country").replace("home", "atlantis")}),
    "one in ten in a country never seen": (
        "country",
        {"country": pl.when(pl.int_range(pl.len()) % 10 == 0).then(pl.lit("atlantis")).otherwise("country")},
    ),
    "a growing column that stands still": ("gap", {"gap": pl.lit(38.0)}),
    "a twentieth missing": ("gap", {"gap": pl.when(pl.int_range(pl.len()) % 20 == 0).then(None).otherwise("gap")}),
}  # fmt: skip


@pytest.fixture(scope="module")
def quarter():
    "Thirteen weeks as reference, one of them a holiday with two rows; three slices of some forty rows a week."
    rows = pl.concat([weeks(range(6), seed=1), weeks([6], 2, seed=2), weeks(range(7, 13), seed=3)])
    return reference_profile(rows, ["gap", "country"], slices=["country"], lifetime=["gap"])


@pytest.mark.parametrize("fault", FIRST)
def test_what_no_quiet_week_could_do_is_an_alert_at_the_first_look(quarter, fault):
    feature, columns = FIRST[fault]
    report = drift_check(quarter, weeks([14], seed=4, **columns))
    assert feature in report.alerts, report.frame


def test_few_weeks_and_small_slices_are_quiet_when_nothing_happened(quarter):
    for week in range(14, 20):
        assert drift_check(quarter, weeks([week], seed=10 + week)).alerts == ()


def grown(which, rate, rows=600, seed=0):
    "Customers whose tenure grows by three days a week until week 12, and at some rate of that from then on."
    rng, frames = np.random.default_rng(seed), []
    for k in which:
        at = pl.Series([START + timedelta(weeks=int(k))] * rows, dtype=pl.Datetime("us", "UTC"))
        days = 3 * (min(k, 12) + rate * max(k - 12, 0))
        frames.append(pl.DataFrame({"moment": at, "tenure": rng.gamma(4, 10, rows) + days}))
        frames[-1] = frames[-1].with_columns(basket=pl.Series(rng.standard_normal(rows)))
    return pl.concat(frames)


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.7, 1.0])
def test_a_column_that_grew_fast_and_then_stands_still_is_told_and_one_that_grows_more_slowly_is_not(rate):
    from mlsys_nb.monitoring.drift_cause import Witness, cause_of

    columns = ["tenure", "basket"]
    profile = reference_profile(grown(range(13), 1, seed=1), columns, lifetime=["tenure"])
    first, later = (grown(range(13, k), rate, seed=2) for k in (16, 37))
    assert drift_check(profile, first).drifted == ()  # three weeks cannot tell
    report = drift_check(profile, later)
    if rate:
        assert report.drifted == () and report.growing == ("tenure",), report.frame
        return
    (row,) = report.frame.filter("drifted").to_dicts()
    assert (row["feature"], row["direction"]) == ("tenure", "down") and report.growing == ()
    assert row["current"] < row["reference"]  # what there is, and the least that growth leads to
    assert cause_of(profile, row, Witness(later)).word == "growth ended"


def test_unheard_values_that_were_usual_and_strayed_are_no_news_at_ten_times_their_odds():
    "The fault: under heavy tails ten times the odds of the fullest day come once in five thousand days, and an alert has one in seventy thousand."
    rows, days = np.full(60, 5000), np.arange(60)
    told = lambda share, unheard: np.c_[rows - share, share] if unheard else np.c_[rows, 0 * rows]
    strayed = told(np.where(days % 2, 150, 400), True)
    drawn = told(np.random.default_rng(0).binomial(5000, 0.05, 60), True)
    much, some = np.array([[1500, 3500]]), np.array([[4000, 1000]])
    assert _unheard(strayed, much)[0] < 3  # its chart has the say
    assert _unheard(drawn, much)[0] > 10  # no more than drawing rows explains: rows alone say it
    assert _unheard(told(days, False), some)[0] > 10  # nobody ever had one
