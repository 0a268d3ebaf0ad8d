"""How many rows a second a whole table is scored at, beside scikit-learn's own pipeline over the same rows, in one run.

    python tests/bench/bulk.py                    # 200,000 rows
    python tests/bench/bulk.py --rows 5000000     # the stated size; some minutes

The processor that a row takes stands beside the rows a second, which say little where others are at work. Three measurements, each in a process of its own, whose peak memory is its own: the table holds the features themselves (what a
pipeline of scikit-learn can do as well, from Parquet to Parquet); the table holds customers and moments, and the features
are computed; and scikit-learn's pipeline, fitted to the same rows with the same settings: as many trees and leaves, a line with as many bends.
Beside that stands its pipeline with a straight line for each column, which is less of a model and less to compute.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
BLOCK = 200_000


def spent() -> tuple[float, float]:
    "Time, and that of the processors."
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def since(began: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("seconds", "cpu"), (b - a for a, b in zip(began, spent(), strict=True)), strict=True))


def given_table(place: Path, rows: int) -> None:
    "Feature rows of the small wholesaler, again and again, and who they are of."
    import polars as pl
    import serving_world as world

    frame = world.dataset().frame
    names = list(world.problem.features.names)
    many = rows // frame.height + 1
    frame = pl.concat([frame] * many)[:rows]
    frame.select(names).write_parquet(place / "features.parquet")
    frame.select("customer_id", "moment").write_parquet(place / "customers.parquet")


def ours(place: Path, family: str, given: bool) -> dict[str, float]:
    import polars as pl
    import serving_world as world

    from mlsys_nb.problem.dataset import Lake
    from mlsys_nb.release.package import open_package
    from mlsys_nb.serving.table_scoring import Answering, TableJob, _every_block
    from mlsys_nb.system.streaming_write import join_frames

    params = {"max_iter": 100} if family == "boosting" else {}
    model = open_package(world.package(family, **params))
    lake = Lake({}, ()) if given else world.lake()
    who = Answering(world.problem, model, lake)
    job = TableJob(
        f"{place}/{'features' if given else 'customers'}.parquet",
        place / f"{family}{given}.parquet",
        given,
        rows=BLOCK,
    )
    job.parts.mkdir()
    began = spent()
    found, _ = _every_block(job, who, world.JUNE)
    join_frames(job.out, [job.parts / f"{record['block']:06}.answers" for record in found])
    told = since(began)
    return {"rows": pl.scan_parquet(job.out).select(pl.len()).collect().item(), **told}


def pipeline_of(family: str, bends: bool):
    "What people build with scikit-learn from the same rows, fitted; and the rows."
    import numpy as np
    import polars as pl
    import serving_world as world
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, SplineTransformer, StandardScaler

    from mlsys_nb.learning.train import default_params

    frame = world.dataset().frame
    names = list(world.problem.features.names)
    texts = [n for n in names if frame.schema[n] == pl.String]
    numbers = [n for n in names if n not in texts]
    if family == "boosting":
        coded = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan)
        steps = ColumnTransformer([("texts", coded, texts)], remainder="passthrough")
        sizes = default_params(family) | {"max_iter": 100}
        coded_first = list(range(len(texts))) or None
        last = HistGradientBoostingClassifier(
            **sizes, early_stopping=False, categorical_features=coded_first, random_state=0
        )
    else:
        params = default_params(family)
        bent = SplineTransformer(int(params["segments"]) + 1, degree=1, knots="quantile")
        scaled = make_pipeline(
            SimpleImputer(add_indicator=True), *([bent] if bends else []), StandardScaler()
        )
        steps = ColumnTransformer(
            [("numbers", scaled, numbers), ("texts", OneHotEncoder(handle_unknown="ignore"), texts)]
        )
        last = LogisticRegression(C=params["C"], max_iter=1000)
    table = frame.select(names).to_pandas()
    return make_pipeline(steps, last).fit(table, frame["label"].to_numpy()), table


def theirs(place: Path, family: str, bends: bool) -> dict[str, float]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    pipeline, _ = pipeline_of(family, bends)
    began, rows, out = spent(), 0, None
    for batch in pq.ParquetFile(place / "features.parquet").iter_batches(BLOCK):
        p = pipeline.predict_proba(batch.to_pandas())[:, 1]
        told = pa.Table.from_pandas(pd.DataFrame({"prediction": p}))
        out = out or pq.ParquetWriter(place / f"theirs-{family}.parquet", told.schema)
        out.write_table(told)
        rows += len(p)
    out.close()
    return {"rows": rows, **since(began)}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=200_000)
    asked.add_argument("--only", help=argparse.SUPPRESS)
    asked.add_argument("--place", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.only:
        who, family = given.only.split(",")
        place = Path(given.place)
        found = (
            theirs(place, family, who == "theirs")
            if who in ("theirs", "plain")
            else ours(place, family, who == "given")
        )
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        given_table(Path(folder), given.rows)
        for family in ("linear", "boosting"):
            base = None
            for who in (*(["plain"] if family == "linear" else []), "theirs", "given", "customers"):
                command = [sys.executable, __file__, "--only", f"{who},{family}", "--place", folder]
                told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                found = json.loads(told.splitlines()[-1])
                pace, cost = found["rows"] / found["seconds"], found["cpu"] / found["rows"] * 1e6
                base = (pace, cost) if who == "theirs" else base or (pace, cost)
                names = {
                    "plain": "scikit-learn's, straight lines",
                    "theirs": "scikit-learn's pipeline",
                    "given": "mlsys score --given",
                    "customers": "mlsys score, features computed",
                }
                print(
                    f"{family:9} {names[who]:32} {pace:12,.0f} rows/s {pace / base[0]:6.2f}x"
                    f"  {cost:6.2f} us of CPU a row {base[1] / cost:6.2f}x  peak {found['peak']:,.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
