"""How long a decision among a thousand and among ten thousand candidates takes, as the service makes it.

    python tests/bench/candidates.py

The middle of 120 answers, by the clock and by processor. One visitor with some hundred events of its own, a store with as many items as candidates, ten features of a candidate, a linear model of
them; from the entity to the decision that goes to the log, without HTTP and without the disk. Held to: 1,000 in 20 ms, 10,000 in 150 ms.
"""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import numpy as np
import polars as pl

from mlsys_nb import features as f
from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import PerHit
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.learning.train import fit
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.item_candidates import Candidates, beside
from mlsys_nb.problem.population import Everyone
from mlsys_nb.problem.ranking_target import Chosen
from mlsys_nb.release.package import Model, serving_form
from mlsys_nb.serving.candidate_retrieval import Shortlist
from mlsys_nb.serving.predictor import Predictor

START, LIMITS = datetime(2026, 1, 1, tzinfo=UTC), {1_000: 20.0, 10_000: 150.0}
buys = f.Events("buys", keys={"who": "int", "what": "text"}, time="at", columns={"n": "int"})
whole = f.FeatureSet("who", (f.count(buys, "7d", by="who").named("buys_7d"),))


def candidates(top: int) -> Candidates:
    items = [f.log1p(f.count(buys, w, by="what")).named(f"sold_{w}") for w in ("1d", "7d", "30d")]
    items += [
        f.sum(buys, "n", "30d", by="what").named("pieces"),
        f.time_since_first(buys, by="what").named("age"),
    ]
    pairs = [f.log1p(f.count(buys, w)).named(f"own_{w}") for w in ("7d", "30d", "lifetime")]
    pairs += [f.time_since_last(buys).named("since"), f.sum(buys, "n", "30d").named("own_pieces")]
    sets = {"items": f.FeatureSet("items", tuple(items)), "pairs": f.FeatureSet("pairs", tuple(pairs))}
    return Candidates(**sets, events=buys, most="sold_30d", every="1d", start=START, top=top, own=100)


def events(n_items: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    n = n_items * 12
    own = np.where(rng.random(n) < 400 / n, 1, rng.integers(2, 3_000, n))
    frame = pl.DataFrame({
        "who": own, "what": [f"item {i:05d}" for i in rng.permutation(np.arange(n) % n_items)], "n": rng.integers(1, 9, n),
        "at": START + timedelta(days=1) + pl.Series(np.sort(rng.integers(0, 20 * 86_400, n)) * 1_000_000).cast(pl.Duration("us")),
    })  # fmt: skip
    frame = frame.with_columns(pl.col("at").cast(pl.Datetime("us", "UTC")))
    return frame.with_columns(known_at="at", event_id=pl.int_range(pl.len()))


def measured(n: int, folder: Path) -> tuple[float, float, float, int]:
    among, frame, moment = candidates(n), events(n), START + timedelta(days=22, hours=9)
    target = Chosen(f.first(buys, "what", "7d", by="who"), among)
    asked = pl.DataFrame({"who": list(range(1, 41))}).with_columns(
        moment=pl.lit(moment).cast(pl.Datetime("us", "UTC"))
    )
    rows = beside(candidates(200), asked, {"buys": frame})
    rows = rows.with_columns(label=pl.col("what").list.get(3))
    fitted = fit("linear", rows, among.names, learner=target.learner, rule=Rule.majority())
    model = Model(*serving_form(fitted), fitted.link, {"declared": {}})
    contract = Contract(
        "buys",
        tuple(Column(c, t) for c, t in (("who", "int"), ("what", "text"), ("n", "int"), ("at", "time"))),
    )
    problem = Problem(
        name="next", title="Next", question="What will be bought next?", sources=(ReplaySource("buys", contract, "buys.parquet", "at"),),
        features=whole, population=Everyone(every="1w", start=START + timedelta(days=7)), target=target, horizon=timedelta(days=7),
        rule=Rule.feature("sold_30d", "likelier", "what many buy"), costs=PerHit("EUR", 1.0),
    )  # fmt: skip
    with open_online(folder / str(n)) as store:
        for kept in (whole, *among.kept):
            store.keep(kept)
        store.write(buys, frame)
        predictor = Predictor(model, Shortlist(store, whole, among), problem)
        begun = perf_counter()
        predictor.predict({"who": 1}, moment)
        first, times, busy = perf_counter() - begun, [], []
        for i in range(120):
            begun, before = perf_counter(), process_time()
            made = predictor.predict({"who": 1 + i % 30}, moment)
            times.append(perf_counter() - begun)
            busy.append(process_time() - before)
        sizes = len(made.answer["candidates"]) + made.answer["others"]["number"]
    return median(times) * 1000, median(busy) * 1000, first * 1000, sizes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for n, limit in LIMITS.items():
            took, busy, first, sizes = measured(n, Path(folder))
            print(
                f"{sizes:>6,} candidates: {took:6.1f} ms, {busy:.1f} of processor (first of a refresh {first:,.0f} ms), at most {limit:g} ms: {'kept' if took <= limit else 'BROKEN'}"
            )
