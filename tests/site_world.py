"""SIMULATED: a site with tools on it, in a database of its own, whose truth is known. Visitors come and go, are keener on
workdays and in winter, and have a taste; new visitors and new tools appear all the time."""

import math
import sqlite3
from datetime import timedelta
from pathlib import Path

import numpy as np
from site_problems import CLASSES, DAY, START

SIMULATED = {"visitors": 1000, "days": 160, "weekend": 0.45, "winter": 0.25, "stays": 30.0, "null": False}
NOW = START + 126 * DAY  # a Monday
FOLLOWS = np.array(
    [[0.6, 0.2, 0.15, 0.05], [0.15, 0.6, 0.05, 0.2], [0.3, 0.1, 0.55, 0.05], [0.05, 0.35, 0.05, 0.55]]
)
TABLES = {
    "users": "visitor TEXT PRIMARY KEY, country TEXT, joined TEXT",
    "tools": "tool TEXT PRIMARY KEY, class TEXT, added TEXT",
    "visits": "visit TEXT PRIMARY KEY, visitor TEXT, tool TEXT, class TEXT, member INT, seconds INT, at TEXT",
    "signups": "signup TEXT PRIMARY KEY, visitor TEXT, plan TEXT, at TEXT",
}


def season(day: int) -> float:
    "How keen everybody is: winter and workdays more."
    winter = 1 + SIMULATED["winter"] * math.cos(2 * math.pi * day / 365)
    return winter * (SIMULATED["weekend"] if day % 7 >= 5 else 1.0)


def tools() -> list[tuple[str, int, int]]:
    "Name, class and first day of each tool; every fifth is new."
    return [(f"{CLASSES[i % 4]}-{i // 4}", i % 4, 0 if i % 5 else 10 + 2 * i) for i in range(64)]


def simulated(seed: int = 0) -> dict[str, list[tuple]]:
    "The rows of each table of the site."
    rng, found = np.random.default_rng(seed), {name: list[tuple]() for name in TABLES}
    moment = lambda day: str((START + timedelta(seconds=int(day * 86_400))).replace(tzinfo=None))
    found["tools"] = [(name, CLASSES[k], moment(day)) for name, k, day in tools()]
    rows, shelf = [], [[(t, first) for t, k, first in tools() if k == kind] for kind in range(4)]
    for n in range(SIMULATED["visitors"]):
        joined = rng.uniform(0, 40) if n < 400 else rng.uniform(0, SIMULATED["days"])
        who, member, seen, kind = f"v{n}", False, 0, int(rng.integers(4))
        keen = (0.15, 1.1)[n % 2]  # some come daily, some now and then
        leaves = joined + rng.exponential(SIMULATED["stays"])
        found["users"].append((who, ("de", "fr", "us")[n % 3], moment(joined)))
        for day in range(int(joined), SIMULATED["days"]):
            for at in np.sort(day + rng.uniform(0.3, 0.95, rng.poisson(keen * season(day)))):
                if not joined <= at < leaves:
                    continue
                kind = int(rng.choice(4, p=FOLLOWS[kind]))
                here = [t for t, first in shelf[kind] if first <= day]
                tool, seconds = here[int(len(here) * rng.random() ** 2)], int(rng.gamma(2, 60))
                seen += 1
                rows.append((at, who, tool, CLASSES[kind], int(member), seconds))
                odds = -6.0 + 0.3 * min(seen, 10) + 3.0 * (kind == 0)
                if not member and rng.random() < 1 / (1 + math.exp(-odds)):
                    member = True
                    when = moment(at + rng.uniform(0.001, 0.02))
                    found["signups"].append((f"s{n}", who, ("month", "year")[n % 2], when))
    for i, (at, *rest) in enumerate(sorted(rows)):
        found["visits"].append((f"e{i}", *rest, moment(at)))
    return found


class Site:
    "The database of the site, which knows what has happened until some moment."

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path, self.rows, self.until = path, simulated(seed), ""
        with sqlite3.connect(path) as base:
            for name, columns in TABLES.items():
                base.execute(f"CREATE TABLE {name} ({columns})")

    def between(self, name: str, since: str, until: str) -> list[tuple]:
        return [row for row in self.rows[name] if since <= row[-1] < until]

    def lives(self, until) -> None:
        "Time goes on until some moment."
        end = str(until.replace(tzinfo=None))
        with sqlite3.connect(self.path) as base:
            for name in TABLES:
                rows = self.between(name, self.until, end)
                marks = ", ".join("?" * (TABLES[name].count(",") + 1))
                base.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)
        self.until = end
