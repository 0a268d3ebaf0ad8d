"""Drift over a million rows of twenty columns, beside a scan of the same rows by polars: `python tests/bench/drift.py [rows]`.

One process, one run: the scan (quantiles and n_unique of each column), the drift check of six days (sketches, charts, report), the
reference, and joint change, each the best of three, and the peak of memory above what the process held with the rows in it.
"""

import resource
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from mlsys_nb.monitoring.drift import drift_of, with_joint
from mlsys_nb.monitoring.histogram_sketch import sketch_frame
from mlsys_nb.monitoring.training_profile import reference_profile

START = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = [f"x{i}" for i in range(20)]


def frame(rows: int, first: int, days: int, seed: int) -> pl.DataFrame:
    "Twenty columns: normal, lognormal, counts and shares of zero, five of each."
    rng, of = np.random.default_rng(seed), np.sort(np.arange(rows) % days)
    makes = (
        lambda: rng.standard_normal(rows),
        lambda: rng.lognormal(3, 1, rows),
        lambda: rng.poisson(3, rows).astype(float),
        lambda: np.where(rng.random(rows) < 0.7, 0.0, rng.lognormal(0, 1, rows)),
    )
    at = pl.Series([START + timedelta(days=first + i) for i in range(days)], dtype=pl.Datetime("us", "UTC"))
    return pl.DataFrame({c: makes[i % 4]() for i, c in enumerate(COLUMNS)}).with_columns(moment=at.gather(of))


def scan(rows: pl.DataFrame) -> Any:
    "What anybody would ask of the columns at least."
    asked = [pl.col(c).quantile(q).alias(f"{c} {q}") for c in COLUMNS for q in (0.05, 0.5, 0.95)]
    return rows.select(*asked, *(pl.col(c).n_unique().alias(f"{c} n") for c in COLUMNS))


def best(act: Callable[[], Any], times: int = 3) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        took.append(time.perf_counter() - began)
    return min(took)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(rows: int) -> dict[str, float]:
    "Seconds, and megabytes."
    past = frame(min(rows, 300_000), 0, 30, 0)
    reference = best(lambda: reference_profile(past, COLUMNS), 1)
    profile = reference_profile(past, COLUMNS)
    now = frame(rows, 31, 6, 1)

    def check() -> Any:
        return drift_of(profile, sketch_frame(profile.lenses, profile.slices, now, "moment"))

    took, whole = best(check), peak()
    report = check()
    joint = best(lambda: with_joint(report, profile, now, "moment"))
    found = {
        "scan s": best(lambda: scan(now)),
        "drift s": took,
        "reference of 300k s": reference,
        "joint s": joint,
    }
    return {**found, "drift / scan": found["drift s"] / found["scan s"], "peak MB with the rows": whole}


if __name__ == "__main__":
    for name, value in measured(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000).items():
        print(f"{name:24s} {value:8.2f}")
