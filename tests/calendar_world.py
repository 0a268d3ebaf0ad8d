"""A calendar, lived through: two schedulers that are killed at random, jobs that fail, die with their scheduler, or outlive it.

`python tests/calendar_world.py DAYS SEED WORKERS` says what became of every moment at which something was due.
"""

import json
import random
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from mlsys_nb.jobs.schedule import Scheduler, due_until, entry_from
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_tables
from mlsys_nb.system.work_queue import dues

KNOWN = {"problems": ["churn"], "jobs": ["ingest", "monitor", "retrain", "score"]}
LINES = {
    "churn.ingest": "30 1 * * * Europe/London --missed all --retries 1",
    "churn.score": "5 */6 * * * America/New_York --missed last",
    "churn.retrain": "30 2 * * 0 Australia/Lord_Howe --missed none --within 6h",
    "churn.monitor": "0 0 * * * America/Santiago --missed all",
}


@dataclass
class FakeJob:
    "As the runner does it: one at a time under a key, and not again once it has succeeded."

    world: "World"
    key: str
    seconds: float
    fails: bool
    code: int | None = None
    begun: object = None

    def poll(self):
        self.world.move()
        return self.code

    def kill(self):
        if self.code is None:
            self.code = -9


@dataclass
class World:
    seed: int
    start: object
    days: int
    jobs: list = field(default_factory=list)
    done: Counter = field(default_factory=Counter)
    kills: int = 0

    def __post_init__(self):
        self.rng, self.now = random.Random(self.seed), self.start
        self.entries = [entry_from(name, line, KNOWN) for name, line in LINES.items()]

    def begin(self, entry, due):
        rng = self.rng
        job = FakeJob(self, entry.key(due), rng.choice([0, 5, 90, 900, 20000]), rng.random() < 0.1)
        self.jobs.append(job)
        return job

    def move(self):
        "What the jobs have come to by now."
        self.jobs = [job for job in self.jobs if job.code is None]
        for key in {job.key for job in self.jobs}:
            for job in [j for j in self.jobs if j.key == key]:
                if self.done[key]:
                    job.code = 0
                    continue
                job.begun = job.begun or self.now
                if (self.now - job.begun).total_seconds() < job.seconds:
                    break  # the others of this key wait for its lock
                job.code = 1 if job.fails else 0
                self.done[key] += not job.fails

    def live(self, folder):
        control, rng = open_tables(f"sqlite:///{folder}/control.db"), self.rng
        alive, number, end = [None, None], 0, self.start + timedelta(days=self.days)
        while self.now < end or self.jobs:
            over = self.now >= end
            for i, scheduler in enumerate(alive):
                if scheduler is None and (over or rng.random() < 0.3):
                    number += 1
                    alive[i] = Scheduler(control, self.entries, self.begin, f"s{number}")
                elif scheduler is not None and not over and rng.random() < 0.03:
                    self.kills += 1
                    for at in scheduler.running.values():
                        if rng.random() < 0.5:  # else it outlives its scheduler
                            at.work.kill()
                    alive[i] = None
                if alive[i] is not None:
                    alive[i].turn(self.now)
            self.move()
            step = rng.uniform(5, 50) if self.jobs and rng.random() < 0.7 else rng.uniform(60, 3600)
            self.now += timedelta(seconds=step)
        for _ in range(400):  # what waits for its next try
            self.now += timedelta(seconds=100)
            for scheduler in filter(None, alive):
                scheduler.turn(self.now)
            self.move()
        return self.found(control)

    def found(self, control):
        "Of every moment: how often it ran, and what is said of it."
        told = {(row.name, row.due): row.status for row in dues(control)}
        first = {name: min(due for n, due in told if n == name) for name in LINES}
        moments = [
            (e, t)
            for e in self.entries
            for t in due_until(e, first[e.name] - timedelta(seconds=1), self.now - timedelta(hours=8))
        ]
        fates = Counter((told.get((e.name, t), "nothing"), self.done[e.key(t)]) for e, t in moments)
        wrong = [
            fate
            for fate in fates
            if fate[1] > 1
            or fate[0] not in ("done", "missed", "failed")
            or (fate[0] == "done" and fate[1] != 1)
        ]
        return {
            "moments": len(moments),
            "kills": self.kills,
            "fates": {f"{s} {n}x": k for (s, n), k in sorted(fates.items())},
            "wrong": wrong,
        }


def lived(days, seed=0, start="2026-03-20"):
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        return World(seed, instant(start), days).live(folder)


def spans(days, seed, workers, start="2026-03-20"):
    "The same days, one span after the other, each with a seed of its own and lived by a process of its own."
    first, each = instant(start), -(-days // workers)
    asked = [
        (min(each, days - i), seed * 1000 + i, (first + timedelta(days=i)).isoformat())
        for i in range(0, days, each)
    ]
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(lived, *zip(*asked, strict=True)))
    fates = sum((Counter(one["fates"]) for one in found), Counter())
    counts = {name: sum(one[name] for one in found) for name in ("moments", "kills")}
    return {
        "days": days,
        **counts,
        "fates": dict(fates),
        "wrong": [fate for one in found for fate in one["wrong"]],
    }


if __name__ == "__main__":
    found = spans(*map(int, sys.argv[1:]))
    print("==", json.dumps(found))
    sys.exit(1 if found["wrong"] else 0)
