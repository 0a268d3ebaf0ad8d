"The promise of a release: few false alarms when the world wobbles as it did, and real decay found."

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mlsys_nb.evaluation.evaluate import evaluate
from mlsys_nb.monitoring.performance import performance_check, period_wobble, promise
from mlsys_nb.problem.declaration import Costs
from mlsys_nb.system.clock import instant

PROBLEM = SimpleNamespace(keys=("customer_id",), costs=Costs("GBP", 3.0, 2.0))
START = instant("2010-01-04")


def period(rng: np.random.Generator, rows: int, shift: float, noise: float = 0.0) -> pl.DataFrame:
    "One period of a calibrated model, its outcome moved by `shift` in log-odds, its ranking spoilt by `noise`."
    odds = rng.normal(0.6, 0.9, rows)
    label = (rng.random(rows) < 1 / (1 + np.exp(-(odds + shift)))).astype(int)
    score = 1 / (
        1 + np.exp(-(odds if noise == 0 else np.where(rng.random(rows) < noise, rng.permutation(odds), odds)))
    )
    return pl.DataFrame(
        {"customer_id": np.arange(rows), "moment": [START] * rows, "label": label, "score": score}
    )


def promised(rng: np.random.Generator, rows: int, wobble: float):
    history = pl.concat(
        period(rng, rows, wobble * rng.standard_normal()).with_columns(moment=pl.lit(i)) for i in range(12)
    )
    holdout = pl.concat(period(rng, rows, wobble * rng.standard_normal()) for _ in range(2))
    judged = evaluate(holdout["label"], holdout["score"], repeats=100)
    return promise({**judged.to_dict(), "period_wobble": period_wobble(history)})


@pytest.mark.parametrize("wobble", [0.0, 0.15])  # 0.15 in log-odds is three percentage points
def test_false_alarms(wobble):
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(150):
        given = promised(rng, 600, wobble)
        alarms += (
            performance_check(PROBLEM, period(rng, 600, wobble * rng.standard_normal()), given).verdict
            != "as promised"
        )
    assert alarms / 150 <= 0.02, alarms


def test_power():
    rng = np.random.default_rng(4)
    given = promised(rng, 2000, 0.1)
    level = [performance_check(PROBLEM, period(rng, 2000, -0.8), given).broken for _ in range(10)]
    assert all("calibration_gap" in broken and "auc" not in broken for broken in level)
    rank = [performance_check(PROBLEM, period(rng, 2000, 0.0, noise=0.6), given).broken for _ in range(10)]
    assert all("auc" in broken for broken in rank)


def test_report_is_plain_data():
    import json

    rng = np.random.default_rng(5)
    report = performance_check(PROBLEM, period(rng, 600, -1.0), promised(rng, 600, 0.1))
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == "broken promise"
    assert report.avoidable_cost >= 0
    empty = performance_check(PROBLEM, period(rng, 600, 0).head(0), promised(rng, 600, 0.1))
    assert json.dumps(empty.to_dict()) and empty.verdict == "not enough labels"
    assert "not enough labels" in empty._repr_html_()
