"The drift monitor's two promises, by simulation: few false alarms on quiet data, and real shifts found."

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlsys_nb.monitoring.drift import Profile, drift_check, profile_from, reference_profile

START = datetime(2010, 1, 4, tzinfo=UTC)
NUMBERS = tuple(f"x{i}" for i in range(6))
FEATURES = (*NUMBERS, "kind", "score")
GAP = 5  # Weeks between the last reference week and the first current week: labels have to mature


def wobbles(rng: np.random.Generator, n: int, rho: float, common: float, width: int) -> np.ndarray:
    "Quiet period effects with unit variance: neighbours correlated, features partly moving together."
    own = rng.standard_normal((width + 1, n))
    for i in range(1, n):
        own[:, i] = rho * own[:, i - 1] + np.sqrt(1 - rho**2) * own[:, i]
    return np.sqrt(common) * own[:1] + np.sqrt(1 - common) * own[1:]


def week(rng: np.random.Generator, number: int, effect: np.ndarray, rows: int) -> pl.DataFrame:
    "One period: skewed numbers, a category, a score; every column moved by its effect, in standard deviations."
    z = rng.standard_normal((len(NUMBERS) + 2, rows)) + effect[:, None]
    columns = {name: np.exp(z[i]) for i, name in enumerate(NUMBERS)}
    columns["x0"] = np.where(rng.random(rows) < 0.05, np.nan, columns["x0"])
    columns["x1"] = np.floor(columns["x1"])
    kind = np.digitize(z[-2], [-1.2, 0.3, 1.5])
    frame = pl.DataFrame(
        {**columns, "kind": np.array(["a", "b", "c", "d"])[kind], "score": 1 / (1 + np.exp(-z[-1]))}
    )
    return frame.with_columns(moment=pl.lit(START + timedelta(weeks=number)).cast(pl.Datetime("us", "UTC")))


def quiet(
    rng, n_reference, n_current, rows=150, wobble=0.05, rho=0.0, common=0.5
) -> tuple[Profile, list[pl.DataFrame]]:
    n = n_reference + GAP + n_current
    effect = wobble * wobbles(rng, n, rho, common, len(NUMBERS) + 2)
    weeks = [week(rng, i, effect[:, i], rows) for i in range(n)]
    return reference_profile(pl.concat(weeks[:n_reference]), FEATURES), weeks[n_reference + GAP :]


@pytest.mark.parametrize(
    ("n_reference", "rho", "profiles"),
    [(9, 0.0, 500), (9, 0.7, 60), (26, 0.7, 40)],
)
def test_false_alarms(n_reference, rho, profiles):
    "At most 1 % of whole checks; 2,000 checks where periods are independent, fewer where they resemble each other."
    rng = np.random.default_rng(7)
    alarms = checks = 0
    for _ in range(profiles):
        profile, current = quiet(rng, n_reference, 4, rho=rho)
        alarms += sum(drift_check(profile, frame).verdict == "drifted" for frame in current)
        checks += len(current)
    assert alarms / checks <= 0.01, f"{alarms} false alarms in {checks} quiet checks"


def test_several_periods_share_one_rate():
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(100):
        profile, current = quiet(rng, 9, 4)
        alarms += drift_check(profile, pl.concat(current)).verdict == "drifted"
    assert alarms / 100 <= 0.01


@pytest.mark.parametrize(("n_reference", "least"), [(12, 0.75), (26, 0.97)])
def test_power(n_reference, least):
    "Half a standard deviation in one feature of eight, 400 rows a week."
    rng = np.random.default_rng(9)
    found = 0
    for _ in range(60):
        profile, current = quiet(rng, n_reference, 1, rows=400)
        shifted = current[0].with_columns(pl.col("x2") * np.exp(0.5))
        found += "x2" in drift_check(profile, shifted).drifted
    assert found / 60 >= least, found


def test_nothing_to_say_is_said():
    profile, current = quiet(np.random.default_rng(1), 3, 1)
    report = drift_check(profile, current[0])
    assert report.verdict == "not enough reference periods" and not report.drifted
    assert "not enough" in report._repr_html_()


def test_profile_survives_json_and_order():
    import json

    rng = np.random.default_rng(2)
    profile, current = quiet(rng, 9, 1)
    again = profile_from(json.loads(json.dumps(profile.to_json(), allow_nan=False)))
    assert again == profile
    shuffled = drift_check(again, current[0].sample(fraction=1.0, shuffle=True, seed=3))
    assert shuffled.frame.select("feature", "drifted").equals(
        drift_check(profile, current[0]).frame.select("feature", "drifted")
    )


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
        "word": ["other", "missing", None],
    }
    frames = [at(i, **usual).with_columns(pl.col("empty").cast(pl.Float64)) for i in range(12)]
    profile = reference_profile(pl.concat(frames), list(usual))
    same = drift_check(profile, at(16, **usual))
    assert same.verdict == "quiet" and json_safe(profile)
    changed = drift_check(
        profile, at(16, **{**usual, "empty": [1.5], "constant": [4], "flag": [True], "word": ["new"]})
    )
    assert set(changed.drifted) == {"empty", "constant", "flag", "word"}


def json_safe(profile: Profile) -> bool:
    import json

    return bool(json.dumps(profile.to_json(), allow_nan=False))
