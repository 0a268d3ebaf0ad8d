"""Tables at their size: a text, single-use ids, a decision an event, many candidates; each held to a line.

    python tests/bench/tables.py               # all of it, a few minutes
    python tests/bench/tables.py text single   # some of it

- text: one decision about one text, from the request's values to what goes to the log, as the service makes it: at most 1 ms.
- single: a table of 280,000 rows whose ids are used once: from the rows to a judged candidate, all families: at most 30 s.
- each: a million decisions, one an event, with 12 window features: at most 2x `as_of` of the same rows, the middle of seven runs of
  each; at most 1.5 GB.
- candidates: a decision among a thousand candidates in at most 20 ms, among ten thousand in at most 150 ms.

Every line runs in a process of its own, so that its memory is its own. Exit code 1 where a line is broken.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Line:
    "One figure and its limit."

    what: str
    value: float
    limit: float
    unit: str

    @property
    def kept(self) -> bool:
        return self.value <= self.limit


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def text(small: bool) -> Iterator[Line]:
    "Rated texts as the case of sentiment has them, a linear model of hashed n-grams."
    import numpy as np
    import polars as pl

    from mlsys_nb.cases.sentiment import problem
    from mlsys_nb.features.store_sync import open_online
    from mlsys_nb.learning.train import fit
    from mlsys_nb.release.package import Model, serving_form
    from mlsys_nb.serving.predictor import Predictor

    rng, n = np.random.default_rng(0), 500 if small else 5_000
    words = [
        f"{a}{b}"
        for a in ("good", "bad", "plain", "long", "odd")
        for b in ("", "ly", " film", " day", "ness", " as ever")
    ]
    texts = [" ".join(rng.choice(words, 30)) for _ in range(n)]
    moods = [
        ("positive" if t.count("good") > t.count("bad") else "negative" if t.count("bad") > 6 else "neutral")
        for t in texts
    ]
    rows = pl.DataFrame(
        {
            "text": texts,
            "channel": rng.choice(["a", "b"], n),
            "label": moods,
            "moment": START,
            "period": START,
        }
    )
    fitted = fit("linear", rows, problem.features.names, learner=problem.target.learner)
    model = Model(*serving_form(fitted), fitted.link, {"declared": {}})
    with tempfile.TemporaryDirectory() as folder, open_online(Path(folder) / "store") as store:
        store.keep(problem.features)
        predictor, took = Predictor(model, store.reader(problem.features), problem), []
        for i in range(300):
            asked = {"text": texts[i % n] + f" number {i}", "channel": "a"}
            begun = perf_counter()
            predictor.predict({"text_id": f"t{i}"}, START, request=asked)
            took.append(perf_counter() - begun)
    yield Line(f"one text of {len(texts[0])} characters", median(took) * 1000, 1.0, "ms")


def single(small: bool) -> Iterator[Line]:
    "Calls whose ids never come again, and what became of them."
    import calls_world as world

    from mlsys_nb.loop.ingest_step import ingest_due
    from mlsys_nb.loop.pipeline import train
    from mlsys_nb.loop.step_context import context

    n = 6_000 if small else 280_000
    with tempfile.TemporaryDirectory() as folder:
        here = world.make(Path(folder), n)
        at = context("bare", "2024-04-05", here)
        ingest_due(at)
        begun, worked = perf_counter(), process_time()
        done = train(context("bare", "2024-04-05", here), n_trials=3)
        took, worked = perf_counter() - begun, process_time() - worked
        assert done.candidate is not None and done.candidate.dataset.frame.height > 0.8 * n
    yield Line(f"{n:,} single-use ids, trained and judged ({worked:.0f} s of processor)", took, 30.0, "s")
    yield Line("... in memory", megabytes(), 1_500.0, "MB")


def decisions(n: int) -> tuple[Any, Any]:
    "A problem that decides at every event, and its events."
    import features as bench
    import polars as pl

    from mlsys_nb.data.contract import Column, Contract
    from mlsys_nb.data.sources import ReplaySource
    from mlsys_nb.evaluation.costs import Costs
    from mlsys_nb.learning.declared_rule import Rule
    from mlsys_nb.problem.binary_target import Happens
    from mlsys_nb.problem.dataset import Lake
    from mlsys_nb.problem.declaration import Problem
    from mlsys_nb.problem.per_event_population import Each

    frame, _ = bench.made(n, max(n // 50, 10), 10)
    frame = frame.with_columns(known_at="ts", retracted_at=pl.lit(None, pl.Datetime("us", "UTC")))
    more = bench.f.count(bench.events, "7d").named("events_after")
    columns = (("id", "int"), ("ts", "time"), ("amount", "int"), ("shop", "int"))
    contract = Contract("e", tuple(Column(c, t) for c, t in columns))
    problem = Problem(
        name="each", title="Each", question="Will another event come within a week?",
        sources=(ReplaySource("e", contract, "e.parquet", "ts"),), features=bench.features,
        population=Each(bench.events, every="1mo", start=datetime(2010, 1, 1, tzinfo=UTC)),
        target=Happens(more, ">", 0, "another event within a week"), horizon=timedelta(days=7),
        rule=Rule.feature("count_7d", "likelier", "who comes often comes again"), costs=Costs("EUR", false_positive=1.0, false_negative=2.0),
    )  # fmt: skip
    return problem, Lake({"e": frame}, ())


def built(n: int) -> tuple[float, float, float]:
    from mlsys_nb.problem.dataset import build_dataset

    problem, lake = decisions(n)
    now = datetime(2011, 2, 1, tzinfo=UTC)
    begun, busy = perf_counter(), process_time()
    rows = build_dataset(problem, lake, problem.population.periods(now), now)
    took, busy = perf_counter() - begun, process_time() - busy
    assert rows.frame.height >= 0.99 * n
    return took, busy, megabytes()


def as_of_alone(n: int) -> tuple[float, float, float]:
    import polars as pl

    from mlsys_nb.features.point_in_time_join import as_of

    problem, lake = decisions(n)
    asked = lake.events["e"].select("id", pl.col("ts").alias("moment"))
    begun, busy = perf_counter(), process_time()
    as_of(replace(problem.features, strict=True), asked, lake.events)
    return perf_counter() - begun, process_time() - busy, megabytes()


def each(small: bool) -> Iterator[Line]:
    "In turns, since a single shot of one second says little: the middle of all, by the clock and by processor."
    n, turns = (20_000, 1) if small else (1_000_000, 7)
    pairs = [(in_process("built", n), in_process("as_of_alone", n)) for _ in range(turns)]
    (took, busy), (alone, idle) = ([median(pair[i][j] for pair in pairs) for j in (0, 1)] for i in (0, 1))
    shots = ", ".join(f"{whole[0] / beside[0]:.2f}" for whole, beside in pairs)
    said = f"{n:,} decisions x 12 features: {took:.1f} s, beside as_of alone {alone:.1f} s"
    yield Line(f"{said} (by processor {busy / idle:.2f} x; {shots})", took / alone, 2.0, "x")
    yield Line("... in memory", max(whole[2] for whole, _ in pairs), 1_500.0, "MB")


def among(small: bool) -> Iterator[Line]:
    import candidates

    with tempfile.TemporaryDirectory() as folder:
        for n, limit in candidates.LIMITS.items():
            if small and n > 1_000:
                continue
            took, busy, _, sizes = candidates.measured(n, Path(folder))
            yield Line(f"{sizes:,} candidates ({busy:.1f} ms of processor)", took, limit, "ms")


LINES: dict[str, Callable[[bool], Iterator[Line]]] = {
    "text": text,
    "single": single,
    "each": each,
    "candidates": among,
}


def in_process(name: str, size: int) -> Any:
    "What one measurement gives in a process of its own."
    done = subprocess.run(
        [sys.executable, __file__, "--alone", name, str(size)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2_000:])
    return json.loads(done.stdout.splitlines()[-1])


def alone(name: str, size: int) -> Any:
    if name in LINES:
        return [[line.what, line.value, line.limit, line.unit] for line in LINES[name](bool(size))]
    return globals()[name](size)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lines", nargs="*", choices=[[], *LINES], help="which; all of them")
    parser.add_argument("--small", action="store_true", help="small tables: whether it runs at all")
    parser.add_argument("--alone", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(alone(given.alone[0], int(given.alone[1]))))
        return 0
    print("== tables")
    broken = 0
    for name in given.lines or LINES:
        for line in (Line(*told) for told in in_process(name, int(given.small))):
            broken += not line.kept
            print(
                f"{line.what:75} {line.value:8.2f} {line.unit:3} at most {line.limit:g}: {'kept' if line.kept else 'BROKEN'}",
                flush=True,
            )
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
