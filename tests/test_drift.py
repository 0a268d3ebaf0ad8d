"Drift: the odds it states, by simulation at small size (bench/odds_drift.py has the full one), and each fault that was measured."

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlsys_nb.monitoring.drift import Odds, drift_check, drift_of
from mlsys_nb.monitoring.lens import DriftError
from mlsys_nb.monitoring.profile import profile_from, reference_profile
from mlsys_nb.monitoring.sketch import sketch_frame

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import odds_drift as odds

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
    ],
    ids=str,
)  # fmt: skip
def test_quiet_years_are_quiet(world):
    "Three model-years each, with daily looks: marks of feature-months as rare as stated, and hardly an alert."
    marks, alerts = odds.quiet_rows(3, 11, (world,))
    assert marks["measured"] <= 0.01 + 0.01, marks
    assert alerts["measured"] <= 1 / 3, alerts


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
