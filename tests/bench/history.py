"""The cliffs of history: shapes on which `as_of` was once ten to a hundred times slower than its neighbours.

    python tests/bench/history.py             # all of it, about a minute
    python tests/bench/history.py mode recent # some of it

Each line of the first table is 20,000 moments (1M events, 5,000 an entity, window: a lifetime); a cliff may take 3 s. The second
table is one row-wise step over 1M rows; the third cuts the events into partitions, in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import polars as pl

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.features.nullable_column import MaskedColumn
from mlsys_nb.features.transform_math import apply_columns

DAY, START = 86_400_000_000, 1_262_304_000_000_000
events = Events("e", keys={"id": "int"}, time="ts", columns={"amount": "int", "shop": "text"})


def made(n, entities, moments, late=False, wide=0, seed=0):
    "Events of a year in order of time, and moments in no order."
    rng = np.random.default_rng(seed)
    ts = np.sort(rng.integers(0, 365 * DAY, n)) + START
    frame = pl.DataFrame(
        {
            "id": rng.integers(0, entities, n),
            "ts": ts,
            "amount": rng.integers(-100, 10_000, n),
            "shop": np.char.add("shop ", rng.integers(0, 500, n).astype(str)),
            "event_id": np.arange(n),
            **({"known_at": ts + rng.integers(0, 40 * DAY, n)} if late else {}),
            **{f"other_{i}": rng.integers(0, 2**40, n) for i in range(wide)},
        }
    )
    asked = pl.DataFrame(
        {
            "id": rng.integers(0, entities, moments),
            "moment": rng.integers(30 * DAY, 365 * DAY, moments) + START,
        }
    )
    stamps = [pl.col(c).cast(pl.Datetime("us", "UTC")) for c in ("ts", "known_at") if c in frame.columns]
    return frame.with_columns(stamps), asked.with_columns(pl.col("moment").cast(pl.Datetime("us", "UTC")))


def seconds(function, *args):
    begin = perf_counter()
    function(*args)
    return perf_counter() - begin


SHAPES = {
    "mode": ((f.mode(events, "shop", "lifetime"),), False),
    "mode_late": ((f.mode(events, "shop", "lifetime"),), True),
    "mode_90d": ((f.mode(events, "shop", "90d"),), False),
    "mode_of_numbers": ((f.mode(events, "amount", "lifetime"),), False),
    "recent": (f.recent(events, "amount", 5), False),
    "recent_late": (f.recent(events, "amount", 5), True),
    "recent_late_20": (f.recent(events, "amount", 20), True),
    "count_distinct_late": ((f.count_distinct(events, "shop", "lifetime"),), True),
    "std_late": ((f.std(events, "amount", "lifetime", ddof=1),), True),
    "max_late": ((f.max(events, "amount", "lifetime"),), True),
}


def cliffs(chosen):
    print(f"{'20,000 moments, 1M events, 5,000 an entity':44} seconds")
    if chosen and not set(chosen) & set(SHAPES):
        return 0.0
    data = {late: made(1_000_000, 200, 20_000, late) for late in (False, True)}
    worst = 0.0
    for name, (parts, late) in SHAPES.items():
        if not chosen or name in chosen:
            frame, asked = data[late]
            took = seconds(f.as_of, FeatureSet("s", tuple(parts)), asked, {"e": frame})
            worst = max(worst, took)
            print(f"  {name:42} {took:7.2f}")
    return worst


def steps(chosen, n=1_000_000):
    rng = np.random.default_rng(0)
    known = rng.random(n) < 0.9
    whole = MaskedColumn(rng.integers(-1000, 1000, n), known, "int")
    real = MaskedColumn(rng.normal(size=n), known, "float")
    text = MaskedColumn(np.array([f"t{i % 50}" for i in range(n)], dtype=object), known, "text")
    pairs = tuple((f"t{i}", i) for i in range(40))
    kernels = {
        "add": ("add", (), (whole, whole), "int"),
        "absolute": ("absolute", (), (whole,), "int"),
        "absolute_float": ("absolute", (), (real,), "float"),
        "filled": ("filled", (0,), (whole,), "int"),
        "filled_text": ("filled", ("?",), (text,), "text"),
        "known": ("known", (), (text,), "bool"),
        "bucket": ("bucket", ((-1.0, 0.0, 1.0), ()), (real,), "int"),
        "bucket_labels": ("bucket", ((-1, 0, 1), ("a", "b", "c", "d")), (whole,), "text"),
        "mapped": ("mapped", (pairs, -1), (text,), "int"),
        "log1p": ("log1p", (), (real,), "float"),
    }
    print(f"{'One step over 1M rows':44} seconds")
    for name, (op, params, columns, dtype) in kernels.items():
        if not chosen or name in chosen:
            print(f"  {name:42} {seconds(apply_columns, op, params, columns, dtype):7.3f}")


def one_partitioning(path, partitions):
    "Seconds, and megabytes above what was there before, of a scan of `path` in this process."
    words = [g(w).named(f"{n}_{w}") for w in ("7d", "30d", "90d") for n, g in (("n", lambda w: f.count(events, w)), ("sum", lambda w: f.sum(events, "amount", w)), ("mean", lambda w: f.mean(events, "amount", w)), ("shop", lambda w: f.last(events, "shop", w)))]  # fmt: skip
    _, asked = made(10, 20_000, 200_000)
    features = FeatureSet("s", tuple(words))
    f.as_of(features, asked[:5], {"e": pl.scan_parquet(path).head(5)})  # imports and warms up
    before = resident("VmRSS")
    took = seconds(lambda: f.as_of(features, asked, {"e": pl.scan_parquet(path)}, partitions=partitions))
    print(json.dumps({"seconds": took, "megabytes": resident("VmHWM") - before}))


def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def partitioned(chosen):
    if chosen and "partitions" not in chosen:
        return
    print(f"{'2M events of 12 columns from Parquet, 12 features':44} seconds  MB above the start")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/e.parquet"
        made(2_000_000, 20_000, 1, wide=8)[0].write_parquet(path)
        for n in (1, 4, 16):
            done = subprocess.run(
                [sys.executable, __file__, "--one", path, str(n)], capture_output=True, text=True, check=True
            )
            told = json.loads(done.stdout)
            print(f"  partitions={n:<31} {told['seconds']:7.2f}  {told['megabytes']:7.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("chosen", nargs="*", help="names of lines, or: partitions")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one_partitioning(given.one[0], int(given.one[1]))
        sys.exit()
    worst = cliffs(given.chosen)
    steps(given.chosen)
    partitioned(given.chosen)
    sys.exit(worst > 3.0)
