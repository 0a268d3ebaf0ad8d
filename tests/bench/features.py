"""Measure the feature floor beside its peers, in one run on one machine.

    python tests/bench/features.py            # all of it, a few minutes
    python tests/bench/features.py --quick    # a tenth of the size

History: 12 features (count, sum, mean, largest of windows of 7, 30 and 90 days) of 200k moments over 1M events, against a
NumPy prefix-sum join written by hand, polars, DuckDB and, where it is installed, Feast's offline store (a last-value
lookup: Feast computes no windows). Online: one entity, a hundred, a long one; durable writes; bulk load.
"""

import argparse
import resource
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import polars as pl

from mlsys_nb import features as f
from mlsys_nb.features.events import Events
from mlsys_nb.features.feature_set import FeatureSet
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_sync import open_online

DAY, START, WINDOWS = 86_400_000_000, 1_262_304_000_000_000, (7, 30, 90)
events = Events("e", keys={"id": "int"}, time="ts", columns={"amount": "int", "shop": "int"})
windowed = [
    make(w).named(f"{name}_{w}")
    for w in (f"{d}d" for d in WINDOWS)
    for name, make in (
        ("count", lambda w: f.count(events, w)),
        ("sum", lambda w: f.sum(events, "amount", w)),
        ("mean", lambda w: f.mean(events, "amount", w)),
        ("max", lambda w: f.max(events, "amount", w)),
    )
]
features = FeatureSet("bench", tuple(windowed))
served = FeatureSet("served", (*windowed[:3], f.count_distinct(events, "shop", "30d"), *windowed[4:12]))


def made(n, entities, moments, skew=False, seed=0):
    "Events in order of time, and moments in no order."
    rng = np.random.default_rng(seed)
    who = rng.integers(0, entities, n)
    if skew:
        who[rng.random(n) < 0.5] = 0
    frame = pl.DataFrame(
        {
            "id": who,
            "ts": np.sort(rng.integers(0, 365 * DAY, n)) + START,
            "amount": rng.integers(-100, 10_000, n),
            "shop": rng.integers(0, 30, n),
            "event_id": np.arange(n),
        }
    ).with_columns(pl.col("ts").cast(pl.Datetime("us", "UTC")))
    asked = pl.DataFrame(
        {
            "id": rng.integers(0, entities, moments),
            "moment": rng.integers(30 * DAY, 365 * DAY, moments) + START,
        }
    )
    return frame, asked.with_columns(pl.col("moment").cast(pl.Datetime("us", "UTC")))


def by_hand(frame, asked):
    "A prefix-sum join as one would write it for exactly this question: counts, sums, means; maxima by a doubling table."
    who, ts, amount = (
        frame["id"].to_numpy(),
        frame["ts"].cast(pl.Int64).to_numpy(),
        frame["amount"].to_numpy(),
    )
    span = 400 * DAY
    key = who * span + (ts - START)
    order = np.argsort(key)
    key, amount = key[order], amount[order]
    sums = np.append(0, np.cumsum(amount))
    moments = asked["id"].to_numpy() * span + (asked["moment"].cast(pl.Int64).to_numpy() - START)
    sort = np.argsort(moments)
    asc = moments[sort]
    hi, first = np.searchsorted(key, asc, "right"), np.searchsorted(key, asc // span * span, "left")
    out = {}
    for d in WINDOWS:
        lo = np.maximum(np.searchsorted(key, asc - d * DAY, "right"), first)
        n, s = hi - lo, sums[hi] - sums[lo]
        best, level, table = np.zeros(len(n), dtype=np.int64), np.frexp(n.astype(float))[1] - 1, amount
        for k in range(level.max() + 1):
            table = np.maximum(table[: -(1 << (k - 1))], table[1 << (k - 1) :]) if k else table
            r = np.flatnonzero(level == k)
            best[r] = np.maximum(table[lo[r]], table[hi[r] - (1 << k)])
        with np.errstate(all="ignore"):
            columns = {"count": n, "sum": s, "mean": s / n, "max": best}
        for name, v in columns.items():
            out[f"{name}_{d}d"] = np.empty_like(v)
            out[f"{name}_{d}d"][sort] = v
    return out


def by_polars_join(frame, asked):
    "Inner join and group, one window after another."
    rows = asked.with_row_index("row")
    for d in WINDOWS:
        joined = (
            rows.lazy()
            .join(frame.lazy(), on="id")
            .filter(
                (pl.col("ts") <= pl.col("moment")) & (pl.col("ts") > pl.col("moment") - pl.duration(days=d))
            )
        )
        a = pl.col("amount")
        joined.group_by("row").agg(n=pl.len(), s=a.sum(), m=a.mean(), x=a.max()).collect()


def by_polars_rolling(frame, asked):
    "polars' rolling windows over events and moments together."
    both = pl.concat(
        [
            frame.select("id", "ts", "amount", moment=pl.lit(False)),
            asked.select("id", ts="moment", amount=pl.lit(None, pl.Int64), moment=pl.lit(True)),
        ]
    ).sort("id", "ts", "moment")
    for d in WINDOWS:
        a = pl.col("amount")
        both.rolling("ts", period=f"{d}d", group_by="id").agg(
            a.count().alias("n"), a.sum().alias("s"), a.mean().alias("m"), a.max().alias("x")
        )


def by_duckdb(frame, asked):
    "A range join in SQL."
    import duckdb

    con = duckdb.connect()
    con.register("e", frame.to_arrow())
    con.register("q", asked.with_row_index("row").to_arrow())
    for d in WINDOWS:
        con.execute(
            f"""SELECT q.row, count(*), sum(amount), avg(amount), max(amount) FROM q JOIN e ON e.id = q.id
            AND e.ts <= q.moment AND e.ts > q.moment - INTERVAL {d} DAY GROUP BY q.row"""
        ).fetchnumpy()


def by_feast(frame, asked):
    "The last value as of each moment, from Feast's default offline store. No windows: Feast does not compute."
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource
    from feast.types import Int64
    from feast.value_type import ValueType

    with tempfile.TemporaryDirectory() as folder:
        frame.select("id", "ts", "amount").write_parquet(f"{folder}/e.parquet")
        Path(folder, "feature_store.yaml").write_text(
            f"project: b\nregistry: {folder}/r.db\nprovider: local\noffline_store: {{type: file}}\n"
        )
        source = FileSource(path=f"{folder}/e.parquet", timestamp_field="ts")
        who = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
        view = FeatureView(
            name="v", entities=[who], schema=[Field(name="amount", dtype=Int64)], source=source
        )
        store = FeatureStore(repo_path=folder)
        store.apply([who, view])
        rows = asked.rename({"moment": "event_timestamp"}).to_pandas()
        begin = perf_counter()
        store.get_historical_features(entity_df=rows, features=["v:amount"]).to_df()
        return perf_counter() - begin


def seconds(function, *args, times=3):
    best = float("inf")
    for _ in range(times):
        begin = perf_counter()
        told = function(*args)
        best = min(best, told if isinstance(told, float) else perf_counter() - begin)
    return best


def resident():
    return (
        int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
        if Path("/proc/self/statm").exists()
        else 0
    )


def peak(function, *args):
    "Highest resident memory above the start, sampled."
    high, stop = [resident()], threading.Event()

    def watch():
        while not stop.is_set():
            high[0] = max(high[0], resident())
            sleep(0.005)

    begin, watcher = resident(), threading.Thread(target=watch)
    watcher.start()
    function(*args)
    stop.set()
    watcher.join()
    return high[0] - begin


def percentiles(function, n):
    took = []
    for i in range(n):
        begin = perf_counter()
        function(i)
        took.append(perf_counter() - begin)
    return np.percentile(took, [50, 99])


def history(scale):
    n, m = int(1_000_000 * scale), int(200_000 * scale)
    frame, asked = made(n, max(10, n // 100), m)
    print(
        f"\nAs-of sets: {m:,} moments x {n:,} events x {len(features)} window features, 100 events an entity"
    )
    ours = as_of(features, asked, {"e": frame})
    hand = by_hand(frame, asked)
    for name in features.names:
        mine, right = ours[name].to_numpy(), hand[name]
        known = ~np.isnan(mine.astype(float))
        assert (mine[known] == right[known]).all(), name
    reference = seconds(by_hand, frame, asked)
    print(f"  {'NumPy prefix sums by hand':34} {reference:8.3f} s   1.0x")
    rivals = [("mlsys_nb history.as_of", lambda f, a: as_of(features, a, {"e": f}) is None)]
    rivals += [
        ("polars join and group", by_polars_join),
        ("polars rolling", by_polars_rolling),
        ("DuckDB range join", by_duckdb),
    ]
    for name, way in rivals:
        try:
            took = seconds(way, frame, asked, times=3 if "mlsys" in name else 1)
            print(f"  {name:34} {took:8.3f} s {took / reference:5.1f}x")
        except ImportError as e:
            print(f"  {name:34} not installed ({e.name})")
    try:
        took = seconds(by_feast, frame, asked, times=1)
        print(f"  {'Feast, last value, no window':34} {took:8.3f} s {took / reference:5.1f}x")
    except ImportError:
        print(f"  {'Feast, last value, no window':34} not installed")
    print(
        f"  memory above the frames: as_of {peak(as_of, features, asked, {'e': frame}):.0f} MB, by hand {peak(by_hand, frame, asked):.0f} MB"
    )
    print("Other shapes (seconds: by hand, as_of)")
    for label, entities, skew in (
        ("1,000 events an entity", max(10, n // 1000), False),
        ("one entity holds half", max(10, n // 100), True),
    ):
        f, a = made(n, entities, m, skew)
        print(
            f"  {label:34} {seconds(by_hand, f, a):8.3f} {seconds(lambda f, a: as_of(features, a, {'e': f}) is None, f, a):8.3f}"
        )
    f = frame.with_columns(known_at=pl.col("ts") + pl.duration(hours=pl.col("amount").abs() % 50))
    print(
        f"  {'every event late, out of order':34} {'':8} {seconds(lambda f, a: as_of(features, a, {'e': f}) is None, f, asked):8.3f}"
    )
    print("Growth (events 1x, 4x, 16x from a quarter of the size)")
    for times in (1, 4, 16):
        f, a = made(n // 4 * times, max(10, n // 400 * times), m)
        print(
            f"  {n // 4 * times:>12,} events {seconds(lambda f, a: as_of(features, a, {'e': f}) is None, f, a, times=2):8.3f} s"
        )


def seconds_and_size(store, folder, frame):
    before, begin = Path(folder, "data.mdb").stat().st_size, perf_counter()
    store.write(events, frame)
    return perf_counter() - begin, Path(folder, "data.mdb").stat().st_size - before


def online(scale):
    n, now = int(1_000_000 * scale), datetime(2010, 12, 20, tzinfo=UTC)
    frame, _ = made(n, n // 100, 1)
    print(
        "\nOnline: 12 window features (served: count, sum, mean, max of 7, 30, 90 days, and one distinct count)"
    )
    with tempfile.TemporaryDirectory() as folder, open_online(folder) as store:
        store.keep(served)
        took, size = seconds_and_size(store, folder, frame)
        print(f"  bulk load of {n:,} events            {took:8.2f} s   {size / n:6.1f} B an event on disk")
        reader = store.reader(served)
        for entity, size in ((-1, 500), (-2, 5_000), (-3, int(50_000 * scale)), (-4, int(200_000 * scale))):
            long, _ = made(size, 1, 1, seed=1)
            long = long.with_columns(
                id=pl.lit(entity, pl.Int64), event_id=pl.col("event_id") + 10**8 * -entity
            )
            took, bytes_ = seconds_and_size(store, folder, long)
            print(
                f"  load of one entity of {size:>7,} events   {took:8.2f} s   {bytes_ / size:6.1f} B an event on disk"
            )
            p50, p99 = percentiles(lambda i, e=entity: reader.read({"id": e}, now), 3000)
            print(
                f"  read one entity of {size:>7,} events      p50 {p50 * 1e6:8.0f} us  p99 {p99 * 1e6:8.0f} us"
            )
        p50, p99 = percentiles(lambda i: reader.read({"id": i % (n // 100)}, now), 3000)
        print(f"  read one entity of 100 events          p50 {p50 * 1e6:8.0f} us  p99 {p99 * 1e6:8.0f} us")
        many = [[{"id": (i * 100 + j) % (n // 100)} for j in range(100)] for i in range(200)]
        p50, p99 = percentiles(lambda i: reader.read_many(many[i], now), 200)
        print(f"  read 100 entities at once              p50 {p50 * 1e6:8.0f} us  p99 {p99 * 1e6:8.0f} us")
        news = frame.head(1000).with_columns(ts=pl.lit(now), event_id=pl.col("event_id") + 2 * 10**9)
        p50, p99 = percentiles(lambda i: store.write(events, news[i : i + 1]), 300)
        print(f"  durable write of one event           p50 {p50 * 1e3:8.2f} ms  p99 {p99 * 1e3:8.2f} ms")
        news = news.with_columns(id=pl.lit(-4, pl.Int64), event_id=pl.col("event_id") + 10**7)
        p50, p99 = percentiles(lambda i: store.write(events, news[i : i + 1]), 200)
        print(f"  the same into the longest timeline   p50 {p50 * 1e3:8.2f} ms  p99 {p99 * 1e3:8.2f} ms")
        p50, p99 = percentiles(lambda i: reader.read({"id": -4}, now), 2000)
        print(f"  read it with what is in its newest part  p50 {p50 * 1e6:8.0f} us  p99 {p99 * 1e6:8.0f} us")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--online", action="store_true", help="only the serving store")
    told = parser.parse_args()
    scale = 0.1 if told.quick else 1.0
    if not told.online:
        history(scale)
    online(scale)
    print(f"\npeak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
