"Sessions among events that come in any order and vanish again, held against a walk from moment to moment."

import numpy as np
import polars as pl
import pytest

from mlsys_nb.features import sessionization
from mlsys_nb.features.events import NEVER, Events, encode
from mlsys_nb.features.history_sort import Asked, Sweep
from mlsys_nb.features.window_index import spans
from mlsys_nb.features.window_lengths import Window, session


def sweep_of(rng, n, order, lives):
    "Events of three entities, close together; they become known in some order, and some of them end."
    entity = np.sort(rng.integers(0, 3, n))
    time = np.concatenate([np.sort(rng.integers(0, 4 * n, (entity == e).sum())) for e in range(3)])
    frame = pl.DataFrame({"id": entity, "at": time}).with_columns(pl.col("at").cast(pl.Datetime("us", "UTC")))
    seen = encode(Events("e", {"id": "int"}, "at"), frame, [], [], lambda c, s: s)
    late = {"backwards": 8 * n - time, "random": rng.integers(0, 8 * n, n), "orderly": time}[order]
    start = np.maximum(time, late)
    end = np.where(rng.random(n) < lives, NEVER, start + rng.integers(0, 3 * n, n))
    m = 400
    whose = np.sort(rng.integers(0, 3, m))
    moments = np.concatenate([np.sort(rng.integers(0, 12 * n, (whose == e).sum())) for e in range(3)])
    object.__setattr__(seen, "start", start)
    object.__setattr__(seen, "end", end)
    return Sweep(seen, entity, Asked(whose, moments, np.arange(m)))


def walked(sweep, gap):
    "How many sessions, when the last one began and ended: moment by moment."
    found = []
    for entity, t in zip(sweep.asked.entity, sweep.asked.time, strict=True):
        e = sweep.events
        times = e.time[(sweep.entity == entity) & (e.start <= t) & (t < e.end)]
        begins = times[np.append(True, np.diff(times) > gap)[: len(times)]]
        found.append((len(begins), begins[-1], times[-1]) if len(times) else (0, 0, 0))
    return found


@pytest.mark.parametrize("order", ["orderly", "random", "backwards"])
@pytest.mark.parametrize("lives", [1.0, 0.6, 0.0])
def test_sessions_are_those_of_a_walk(order, lives):
    rng = np.random.default_rng(5)
    for n, gap in ((1, 3), (60, 0), (60, 9), (300, 40), (300, 100_000)):
        sweep = sweep_of(rng, n, order, lives)
        found = sessionization.sessions_in_spans(spans(sweep, Window(), None), sweep, gap)
        assert list(
            zip(found.number.tolist(), found.begin.tolist(), found.end.tolist(), strict=True)
        ) == walked(sweep, gap)


def test_events_that_come_backwards_are_cut_in_few_steps(monkeypatch):
    "Fault: each event would have been held against all before it; blocks that cannot touch it are skipped."
    steps, real = [], sessionization.Cut.without
    monkeypatch.setattr(
        sessionization.Cut, "without", lambda self, lo, hi: steps.append(len(lo)) or real(self, lo, hi)
    )
    sweep = sweep_of(np.random.default_rng(1), 3_000, "backwards", 1.0)
    sessionization.sessions_in_spans(spans(sweep, Window(), None), sweep, 100_000)
    assert sum(steps) < 10 * 3_000, sum(steps)
    assert sessionization.session_spans(sweep, session("100ms"), None).n == 400
