"""An oracle of the feature floor, written from its prose alone: slow plain Python against history, the store and the stream.

Nothing here is shared with the engines or with `features.reference_implementation`: a value is computed from the raw rows by the words of
the chapters. Worlds are drawn from a seed: `python tests/oracle.py --worlds 10000 --workers 2 --seed 0`. A difference is
printed with the seed that draws its world again, shrunk to one feature and few events.
"""

import argparse
import math
import random
import struct
import sys
import tempfile
import time as clock
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from mlsys_nb import features as f
from mlsys_nb.features.event_filters import Condition
from mlsys_nb.features.store_sync import compact, open_online, refill

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
UNITS = {
    "us": 1, "ms": 1000, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6, "w": 7 * 86400 * 10**6,
}  # fmt: skip
WIDE = 2**63 - 1
ZONES = ("Europe/London", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Apia", "UTC",
         "America/St_Johns", "Africa/Casablanca")  # fmt: skip
TEXTS = (
    "",
    "a",
    "B",
    "é",
    "e\u0301",
    "a|b",
    "\\",
    "|",
    "𝔘",
    "\uffff",
    " a",
    "a ",
    "10",
    "9",
    "\n",
    "ß",
    "SS",
)
INTS = (0, 1, -1, 2, 3, 7, -5, 100, 2**53, -(2**53), 2**53 - 1, 2**31, -(2**40))
FLOATS = (0.0, -0.0, 1.0, -1.5, 0.1, 0.3, 1e300, -1e-300, 5e-324, math.inf, -math.inf, math.nan, 2.0**53)
Spec = tuple[Any, ...]


def micros(moment: datetime) -> int:
    """An instant as whole microseconds."""
    return (moment - EPOCH) // US


def instant_of(us: int) -> datetime:
    """Whole microseconds as an instant."""
    return EPOCH + us * US


# ------------------------------------------------------------------------------------------------ your own functions
def own_add(a, b):
    return a + b


def own_quotient(a, b):
    return a / b


def own_power(a):
    return a * 2**45


def own_nones(a, b):
    return (a is None) * 1 + (b is None) * 2


def own_text(a, b):
    return f"{a}~{b}"


def own_longer(a):
    return len(a) > 1


def own_exp(a):
    return math.exp(a)


def own_over(limit):
    def over(a):
        return None if a == limit else a > limit

    return over


# ------------------------------------------------------------------------------------------------------- the oracle
@dataclass(frozen=True)
class Version:
    """One version of one event, as the prose of `events` tells it."""

    time: int
    id: Any
    start: int
    end: float
    row: dict[str, Any]


def normal_value(dtype: str, value: Any) -> Any:
    """NaN is unknown, minus zero is zero, an instant is microseconds."""
    if value is None:
        return None
    if dtype == "float":
        return None if math.isnan(value) else float(value) + 0.0
    if dtype.startswith("list"):  # an item that is missing is none
        return [item for item in value if item is not None]
    return micros(value) if dtype == "time" else value


def versions_of(kind: "Kind", rows: list[dict[str, Any]]) -> list[Version]:
    """Rows that agree are one version; a later known_at ends what was known before."""
    by_id: dict[Any, dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        by_id.setdefault(row["event_id"], {}).setdefault(micros(row["known_at"]), []).append(row)
    found = []
    for event_id, known in by_id.items():
        moments = sorted(known)
        for i, moment in enumerate(moments):
            told = known[moment]
            ends = [micros(r["retracted_at"]) for r in told if r["retracted_at"] is not None]
            end = min([*ends, math.inf, *moments[i + 1 : i + 2]])
            happened = micros(told[0]["at"])
            content = {c: normal_value(t, told[0][c]) for c, t in kind.all_columns.items()}
            found.append(Version(happened, event_id, max(happened, moment), end, content))
    return sorted(found, key=lambda v: (v.time, v.id))


COMPARE = {
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip


def holds(condition: Spec | None, row: dict[str, Any]) -> bool | None:
    """A condition of one event, in three-valued logic."""
    if condition is None:
        return True
    op, *args = condition
    if op in ("and", "or"):
        values = [holds(a, row) for a in args]
        decided = op == "or"
        if decided in values:
            return decided
        return None if None in values else not decided
    if op == "not":
        value = holds(args[0], row)
        return None if value is None else not value
    if op == "versus":
        left, right = operand(args[1], row), operand(args[2], row)
        return None if left is None or right is None else COMPARE[args[0]](left, right)
    value = operand(args[0], row)
    if op == "null":
        return value is None
    if value is None:
        return None
    if op == "true":
        return value
    if op == "contains":
        return args[1] in value
    if op == "in":
        return value in [normal_value(args[1], a) for a in args[2]]
    return COMPARE[op](value, normal_value(args[1], args[2]))


def operand(told: Any, row: dict[str, Any]) -> Any:
    """A column of an event, or what a clock on the wall showed at a time in it."""
    if isinstance(told, str):
        return row[told]
    part, zone, column = told
    if row[column] is None:
        return None
    shown = local(row[column], zone)
    return {"hour": shown.hour, "weekday": shown.isoweekday(), "month": shown.month}[part]


@dataclass(frozen=True)
class Asked:
    """What one row asks: whom, when, and what came with the request."""

    keys: dict[str, Any]
    moment: int
    request: dict[str, Any]
    versions: dict[str, list[Version]]
    strict: bool = False


def exact_quotient(numerator: int, denominator: int) -> float:
    """A quotient of whole numbers, rounded once; 0 / -1 is minus zero, as IEEE 754 has it."""
    return float(Fraction(numerator, denominator)) if numerator or denominator > 0 else -0.0


def seen(leaf: Spec, asked: Asked) -> list[Version]:
    """The versions that a window word looks at, in order."""
    word, kind, column, window, where, by, _ = leaf[1:8]
    if any(asked.keys[k] is None for k in by):
        return []
    moment = asked.moment
    mine = []
    for v in asked.versions[kind]:
        visible = v.start <= moment < v.end and v.time <= moment
        if asked.strict:  # before the moment: an end that comes with it is not known yet
            visible = v.start < moment <= v.end and v.time < moment
        if visible and all(v.row[k] == asked.keys[k] for k in by):
            mine.append(v)
    if (
        isinstance(window, tuple) and window[0] == "session"
    ):  # of all visible events, whatever is kept of them
        last = cut_by_silence(mine, length_of(window[1]))[-1:]
        mine = last[0] if last and moment - last[0][-1].time <= length_of(window[1]) else []
        window = window[2]  # how much of it is looked at
    return [
        v
        for v in mine
        if in_window(window, v.time, asked)
        and holds(where, v.row) is True
        and (not column or v.row[column] is not None)
    ]


def cut_by_silence(events: list[Version], gap: int) -> list[list[Version]]:
    """Sessions: an event belongs to the session of the one before it unless more than the gap lies between."""
    found: list[list[Version]] = []
    for i, v in enumerate(events):
        if not i or v.time - events[i - 1].time > gap:
            found.append([])
        found[-1].append(v)
    return found


def in_window(window: Any, time: int, asked: Asked) -> bool:
    """Whether a time is in a window: a length that may have ended a while ago, or a period of a calendar."""
    if isinstance(window, tuple) and window[0] == "period":
        begin, end = period_of(asked.moment, *window[1:])
        return begin <= time < end
    length, lag = window[1:] if isinstance(window, tuple) else (window, None)
    end = asked.moment - (length_of(lag) if lag else 0)
    begin = -math.inf if length == "lifetime" else end - length_of(length)
    return begin <= time < end if asked.strict else begin < time <= end


@lru_cache(maxsize=100_000)
def period_of(moment: int, unit: str, zone: str, back: int) -> tuple[int, int]:
    """The begin of a period and of the next: first midnights on the clocks of a place."""
    today = local(moment, zone).date()
    begins = {
        "day": lambda d: True, "week": lambda d: d.isoweekday() == 1, "month": lambda d: d.day == 1,
        "quarter": lambda d: d.day == 1 and d.month in (1, 4, 7, 10), "year": lambda d: (d.day, d.month) == (1, 1),
    }[unit]  # fmt: skip
    days = [
        today + timedelta(days=n)
        for n in range(-(back + 2) * 367 if unit == "year" else -(back + 2) * 93, 370)
    ]
    starts = [micros(datetime(d.year, d.month, d.day, tzinfo=ZoneInfo(zone))) for d in days if begins(d)]
    place = max(i for i, s in enumerate(starts) if s <= moment)
    return starts[place - back], starts[place - back + 1]


def length_of(window: str | timedelta) -> int:
    """The length of a window in microseconds."""
    if isinstance(window, timedelta):
        return window // US
    number = window.rstrip("abcdefghijklmnopqrstuvwxyz")
    return int(number) * UNITS[window[len(number) :]]


def window_value(leaf: Spec, asked: Asked) -> Any:
    """One window word, from its definition."""
    word, column, extra = leaf[1], leaf[3], leaf[7]
    kept = seen(leaf, asked)
    values = [v.row[column] for v in kept] if column else []
    whole = ("first", "last", "attribute", "recent")  # the list itself; of all else, the items are looked at
    if values and isinstance(values[0], list) and word not in whole:
        values = [item for told in values for item in told]
    if word == "items":
        return len(values)
    if not values and column and word == "mode":
        return None
    if word == "count":
        return len(kept)
    if word == "sessions":
        return len(cut_by_silence(kept, length_of(extra[0])))
    if word == "sum":
        return sum(values)
    if word == "count_distinct":
        return len(set(values))
    if word == "share":
        wanted = normal_value(extra[1], extra[0])
        return exact_quotient(sum(v == wanted for v in values), len(values)) if values else None
    if word in ("variance", "std"):
        n, ddof = len(values), extra[0]
        if n <= ddof:
            return None
        variance = exact_quotient(n * sum(v * v for v in values) - sum(values) ** 2, n * (n - ddof))
        return variance if word == "variance" else math.sqrt(variance)
    if word == "recent":
        return values[-1 - extra[0]] if len(values) > extra[0] else None
    if not kept:
        return None
    if word in ("time_since_last", "time_since_first", "first_time", "last_time"):
        found = kept[-1].time if "last" in word else kept[0].time
        return found if word.endswith("_time") else exact_quotient(asked.moment - found, UNITS[extra[0]])
    if word == "mode":
        times = Counter(values)
        return min(v for v in values if times[v] == max(times.values()))
    return {
        "mean": lambda: exact_quotient(sum(values), len(values)), "min": lambda: min(values), "max": lambda: max(values),
        "first": lambda: values[0], "last": lambda: values[-1], "attribute": lambda: values[-1],
    }[word]()  # fmt: skip


def defined(value: Any) -> Any:
    """A whole number that does not fit, and a float that is not a number, are unknown."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return None if isinstance(value, int) and not isinstance(value, bool) and abs(value) > WIDE else value


def constant(value: Any) -> Any:
    """A constant of a declaration: minus zero is zero."""
    return value + 0.0 if isinstance(value, float) else value


def quotient(a: Any, b: Any, zero: float | None) -> float | None:
    """One division, rounded once; by zero it is what the declaration says."""
    if b == 0:
        return zero
    if isinstance(a, int) and isinstance(b, int):
        return exact_quotient(a, b)
    return defined(float(a) / float(b))


def combined(op: str, a: Any, b: Any) -> Any:
    """A sum, difference, product or quotient."""
    if op == "/":
        return quotient(a, b, None)
    if isinstance(a, float) or isinstance(b, float):
        a, b = float(a), float(b)
    return defined(a + b if op == "+" else a - b if op == "-" else a * b)


def local(us: int, zone: str) -> datetime:
    """The wall clock of an instant at a place."""
    return instant_of(us).astimezone(ZoneInfo(zone))


def escaped(value: Any) -> str:
    """A category in a cross."""
    return value.replace("\\", "\\\\").replace("|", "\\|") if isinstance(value, str) else str(value)


def own_value(spec: Spec, values: list[Any]) -> Any:
    """What a user's function gives."""
    function, dtype, takes_none = spec[1:4]
    if not takes_none and None in values:
        return None
    try:
        value = function(*values)
    except ArithmeticError:
        return None
    if dtype == "float" and type(value) is int:
        value = float(value)
    return defined(value)


def over_value(op: str, dtype: str, values: list[Any]) -> Any:
    """What the known values of a list's items come to; a sum of floats is the true one, rounded once."""
    if op == "count":
        return len(values)
    if op in ("min", "max"):
        return (min(values) if op == "min" else max(values)) + 0 if values else None
    if not values:
        return {"int": 0, "float": 0.0}[dtype] if op == "sum" else None
    ends = {v for v in values if isinstance(v, float) and math.isinf(v)}
    if len(ends) == 2:
        return None
    exact = Fraction(0) if ends else sum(map(Fraction, values))
    try:
        total = ends.pop() if ends else defined(int(exact)) if dtype == "int" else float(exact)
    except OverflowError:
        total = math.inf if exact > 0 else -math.inf
    return total if op == "sum" or total is None else total / len(values)


def value_of(spec: Spec, asked: Asked) -> Any:
    """Any feature, from its definition."""
    op = spec[0]
    if op == "window":
        return window_value(spec, asked)
    if op == "of":
        source, leaf = spec[-1]
        return window_value(leaf, replace(asked, keys={**asked.keys, spec[1]: value_of(source, asked)}))
    if op == "over":
        source, inner = spec[-1]
        items = value_of(source, asked)
        if items is None:
            return None
        each = [value_of(inner, replace(asked, keys={**asked.keys, spec[1]: item})) for item in items]
        return over_value(spec[2], spec[3], [v for v in each if v is not None])
    if op == "request":
        return normal_value(spec[2], asked.request.get(spec[1]))
    if op == "moment":
        return asked.moment
    if op == "number":
        return constant(spec[1])
    inputs = [value_of(s, asked) for s in spec[-1]]
    if op == "apply":
        return own_value(spec, inputs)
    x = inputs[0]
    if op == "known":
        return x is not None
    if op == "filled":
        return constant(spec[1]) if x is None else x
    if None in inputs:
        return None
    if op == "size":
        return len(x)
    if op in "+-*/":
        return combined(op, *inputs)
    return row_value(spec, x, inputs, asked)


def row_value(spec: Spec, x: Any, inputs: list[Any], asked: Asked) -> Any:
    """A transform of known values."""
    op = spec[0]
    if op == "ratio":
        return quotient(*inputs, None if spec[1] is None else float(spec[1]) + 0.0)
    if op == "log1p":
        return None if x <= -1 else math.log1p(x)
    if op == "absolute":
        return defined(abs(x))
    if op == "clip":
        low, high = constant(spec[1]), constant(spec[2])
        return low if low is not None and x < low else high if high is not None and x > high else x
    if op == "bucket":
        place = sum(edge <= x for edge in spec[1])
        return spec[2][place] if spec[2] else place
    if op == "age":
        return exact_quotient(asked.moment - x, UNITS[spec[1]])
    if op == "hour":
        return local(x, spec[1]).hour
    if op == "weekday":
        return local(x, spec[1]).isoweekday()
    if op == "mapped":
        return constant(next((to for value, to in spec[1] if value == x), spec[2]))
    return "|".join(escaped(v) for v in inputs)  # cross


# ------------------------------------------------------------------------------------------------------- the worlds
@dataclass(frozen=True)
class Kind:
    """A declaration of events, and its rows in the order in which they happened to be written down."""

    name: str
    keys: dict[str, str]
    columns: dict[str, str]
    ids: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def all_columns(self) -> dict[str, str]:
        """What a condition may ask of: columns, keys and the time."""
        return self.columns | self.keys | {"at": "time"}


@dataclass(frozen=True)
class World:
    """Everything that one seed draws."""

    seed: int
    kinds: dict[str, Kind]
    features: dict[str, Spec]
    asked: list[tuple[dict[str, Any], int, dict[str, Any]]]
    requests: dict[str, str]
    strict: bool = False


class Draw:
    """Random parts of a world."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.dtypes: dict[str, str] = {}
        center = self.r.choice(
            (
                datetime(2010, 3, 28, 0, 30),
                datetime(2024, 11, 3, 5, 30),
                datetime(2024, 4, 6, 14, 59),
                datetime(2011, 12, 30),
            )
        ).replace(tzinfo=UTC)
        self.center = micros(center)
        self.windows = [self.window() for _ in range(4)] + ["lifetime"] * (self.r.random() < 0.6)
        self.requests: dict[str, str] = {}
        self.texts = self.r.sample(TEXTS, 5)
        self.ints = self.r.sample(INTS, 5)
        self.floats = self.r.sample(FLOATS, 5)
        self.times: list[int] = [self.center]

    def window(self) -> Any:
        """A window: a length, a text or a timedelta; one that ended a while ago; or a period of a calendar."""
        p = self.r.random()
        if p < 0.2:
            return ("lagged", "lifetime" if p < 0.03 else self.length(), self.length())
        if p < 0.4:
            unit = self.r.choice(("day", "week", "month", "quarter", "year"))
            return ("period", unit, self.r.choice(ZONES), self.r.choice((0, 0, 1, 2, 7)))
        if p < 0.55:
            gap, most = self.length(), self.length() if p < 0.48 else "lifetime"
            longer = most == "lifetime" or length_of(gap) <= length_of(most)
            return ("session", gap, most) if longer else ("session", most, gap)
        return self.length()

    def length(self) -> Any:
        """A length of time."""
        text = self.r.choice(
            ("1us", "1ms", "90s", "45min", "1h", "3h", "24h", "1d", "7d", "2w", "30d", "365d", "20000d")
        )
        return timedelta(microseconds=length_of(text) + 1) if self.r.random() < 0.1 else text

    def time(self) -> int:
        """An instant: near the others, at their edges, or years away."""
        p, r = self.r.random(), self.r
        if p < 0.25:
            return r.choice(self.times)
        if p < 0.5:
            step = r.choice((1, 10**6, UNITS["h"], UNITS["d"]))
            us = self.center + r.randrange(-6, 7) * step
        elif p < 0.75:
            us = self.edge(r.choice([w for w in self.windows if w != "lifetime"])) + r.choice(
                (-1, 0, 0, 0, 1)
            )
        elif p < 0.95:
            us = self.center + r.randrange(-40 * UNITS["d"], 40 * UNITS["d"])
        else:
            us = self.center + r.randrange(-90, 100) * 365 * UNITS["d"]
        us = us if abs(us - self.center) < 200 * 365 * UNITS["d"] else self.center
        self.times.append(us)
        return us

    def edge(self, window: Any) -> int:
        """An instant at which something enters or leaves a window of another one."""
        start, sign = self.r.choice(self.times), self.r.choice((-1, 1))
        if not isinstance(window, tuple):
            return start + sign * length_of(window)
        if window[0] == "period":
            return self.r.choice(period_of(start, *window[1:]))
        lengths = [length_of(w) for w in window[1:] if w != "lifetime"]
        return start + sign * self.r.choice((lengths[-1], sum(lengths)))

    def value(self, dtype: str, nulls: float = 0.2) -> Any:
        """A value of a column."""
        if self.r.random() < nulls:
            return None
        if dtype == "time":
            return instant_of(self.time())
        if dtype == "list":
            return [self.value("text", 0.1) for _ in range(self.r.choice((0, 1, 2, 2, 4)))]
        choice = {"int": self.ints, "float": self.floats, "text": self.texts, "bool": (True, False)}[dtype]
        return self.r.choice(choice)

    def requested(self, dtype: str) -> Any:
        """A value of a request, which may be as large as a whole number gets."""
        if dtype.startswith("list"):
            items = [self.value(dtype[5:-1], 0.15) for _ in range(self.r.choice((0, 1, 2, 3, 5)))]
            return None if self.r.random() < 0.15 else items
        large = dtype == "int" and self.r.random() < 0.2
        return self.r.choice((2**63 - 1, -(2**63 - 1), 2**62, 2**53 + 1)) if large else self.value(dtype)

    def constant(self, dtype: str) -> Any:
        """A value that a column may be compared with."""
        value = self.value(dtype, 0)
        return 0.1 if isinstance(value, float) and math.isnan(value) else value

    def kind(self, name: str, keys: dict[str, str]) -> Kind:
        """A declaration with its history."""
        r = self.r
        dtypes = ["int", *r.choices(("int", "float", "text", "bool", "time", "list"), k=r.randrange(1, 5))]
        kind = Kind(name, keys, {f"c{i}{t[0]}": t for i, t in enumerate(dtypes)}, r.choice(("int", "text")))
        entities = [{k: self.value(t, 0.05) for k, t in keys.items()} for _ in range(r.randrange(1, 4))]
        ids = (
            list(range(-3, 60))
            if kind.ids == "int"
            else [f"{i}{r.choice(('', 'é', 'a'))}" for i in range(60)]
        )
        r.shuffle(ids)
        for _ in range(r.randrange(3, 22)):
            self.event(kind, entities, ids.pop())
        return kind

    def event(self, kind: Kind, entities: list[dict[str, Any]], event_id: Any) -> None:
        """One event: its versions, their ends, and what is told twice."""
        r = self.r
        known: set[int] = set()
        last: dict[str, Any] = {}
        for i in range(r.choice((1, 1, 1, 1, 2, 3))):
            again = last and r.random() < 0.5
            who = {k: last[k] for k in kind.keys} if again and r.random() < 0.7 else r.choice(entities)
            at = last["at"] if again else instant_of(self.time())
            p = r.random()
            known_at = at if p < 0.4 and not i else instant_of(self.time()) if p < 0.6 else at + r.randrange(4) * r.choice(
                (US, timedelta(hours=1), timedelta(days=3))
            )  # fmt: skip
            if micros(known_at) in known:
                continue
            known.add(micros(known_at))
            content = {c: self.value(t) for c, t in kind.columns.items()}
            end = instant_of(self.time()) if r.random() < 0.15 else None
            self.times.append(micros(known_at))
            last = {
                "event_id": event_id,
                **who,
                "at": at,
                **content,
                "known_at": known_at,
                "retracted_at": None,
            }
            told = r.choice(((None,), (None,), (None,), (end,), (None, end), (end, None, end)))
            kind.rows.extend(last | {"retracted_at": e} for e in told)

    def condition(self, kind: Kind, depth: int = 2) -> Spec:
        """A random tree of questions."""
        r = self.r
        if depth and r.random() < 0.45:
            if r.random() < 0.3:
                return ("not", self.condition(kind, depth - 1))
            return (r.choice(("and", "or")), self.condition(kind, depth - 1), self.condition(kind, depth - 1))
        column, dtype = r.choice(list(kind.all_columns.items()))
        p = r.random()
        if p < 0.15:
            return ("null", column)
        if dtype == "list":
            return ("contains", column, self.value("text", 0))
        if p > 0.8:
            told = [(r.choice(("hour", "weekday", "month")), r.choice(ZONES), c) if t == "time" and r.random() < 0.5 else c
                    for c, t in kind.all_columns.items() if t == dtype]  # fmt: skip
            alike = [o for o in told if isinstance(o, str) == isinstance(told[0], str)]
            return ("versus", r.choice(list(COMPARE)), alike[0], r.choice(alike))
        if dtype == "time" and p > 0.5:
            asked = (r.choice(("hour", "weekday", "month")), r.choice(ZONES), column)
            return (
                (r.choice(list(COMPARE)), asked, "int", r.randrange(24))
                if p > 0.6
                else ("in", asked, "int", (1, 2, 3, 12, 23))
            )
        if dtype == "bool" and p < 0.5:
            return ("true", column)
        if p < 0.35:
            return ("in", column, dtype, tuple(self.constant(dtype) for _ in range(r.randrange(4))))
        return (r.choice(list(COMPARE)), column, dtype, self.constant(dtype))

    def leaf(self, kinds: dict[str, Kind], dtypes: tuple[str, ...]) -> Spec:
        """A window word whose value has one of some types."""
        r = self.r
        for _ in range(200):
            kind = r.choice(list(kinds.values()))
            word = r.choice(list(WORDS))
            if word.startswith("time_since") and "lifetime" not in self.windows:
                continue
            accepts, gives = WORDS[word]
            named = (
                kind.keys
                if word in ("first", "last", "mode", "count_distinct", "recent", "attribute")
                else {}
            )
            column, dtype = r.choice(list((kind.columns | named).items())) if accepts else ("", "")
            if accepts and dtype not in accepts:
                continue
            gives = gives or (dtype if dtype != "list" else "text" if word == "mode" else "list[text]")
            if gives not in dtypes:
                continue
            by = tuple(kind.keys)
            if len(by) > 1 and r.random() < 0.4:
                by = (r.choice(by),)
            by = () if r.random() < 0.08 else by
            window = "lifetime" if word.startswith("time_since") else r.choice(self.windows)
            where = self.condition(kind) if r.random() < 0.5 else None
            extra = {
                "share": lambda dtype=dtype: (self.constant(dtype), dtype), "variance": lambda: (r.randrange(2),),
                "std": lambda: (r.randrange(2),), "recent": lambda: (r.randrange(4),),
                "sessions": lambda: (self.length(),), "time_since_last": lambda: (r.choice(list(UNITS)),), "time_since_first": lambda: (r.choice(list(UNITS)),),
            }.get(word, lambda: ())()  # fmt: skip
            spec = ("window", word, kind.name, column, window, where, by, extra)
            self.dtypes[repr(spec)] = gives
            return spec
        spec = (
            "window",
            "count",
            next(iter(kinds)),
            "",
            self.windows[-1],
            None,
            tuple(next(iter(kinds.values())).keys),
            (),
        )
        return spec if "int" in dtypes else self.turned(spec, dtypes[0])

    def turned(self, spec: Spec, dtype: str) -> Spec:
        """A count as another type."""
        if dtype == "float":
            return ("/", (spec, ("number", 3)))
        if dtype == "text":
            return ("bucket", (1, 3), ("few", "some", "many"), (spec,))
        return ("known", (spec,)) if dtype == "bool" else ("moment",)

    def typed(self, spec: Spec, dtype: str) -> Spec:
        """Remember the type of a feature."""
        self.dtypes[repr(spec)] = dtype
        return spec

    def tree(self, kinds: dict[str, Kind], dtype: str, depth: int) -> Spec:
        """A random expression of a type."""
        r = self.r
        if depth and r.random() < 0.75:
            return self.branch(kinds, dtype, depth - 1)
        p = r.random()
        if p > 0.85 and depth < 3:
            leaf = self.leaf(kinds, (dtype,))
            if leaf[0] == "window" and leaf[6]:
                key = r.choice(leaf[6])
                return ("of", key, (self.tree(kinds, kinds[leaf[2]].keys[key], 0), leaf))
        if 0.72 < p <= 0.85 and dtype in ("int", "float"):
            return self.over(kinds, dtype) or self.leaf(kinds, (dtype,))
        if dtype != "time" and p < 0.12:
            name = f"r_{dtype}"
            self.requests[name] = dtype
            return ("request", name, dtype)
        if dtype == "time" and p < 0.25:
            return ("moment",)
        return self.leaf(kinds, (dtype,))

    def listed(self, kinds: dict[str, Kind], dtype: str) -> Spec:
        """A list: of the request, or of an event."""
        found = self.leaf(kinds, ("list[text]",)) if dtype == "text" and self.r.random() < 0.5 else ("",)
        if found[0] == "window":
            return found
        name = f"r_list_{dtype}"
        self.requests[name] = f"list[{dtype}]"
        return ("request", name, f"list[{dtype}]")

    def over(self, kinds: dict[str, Kind], dtype: str) -> Spec | None:
        """What is known of all items of a list, made one number."""
        r = self.r
        if dtype == "int" and r.random() < 0.1:
            return ("size", (self.listed(kinds, r.choice(("int", "text"))),))
        op = r.choice(
            ("count", "sum", "min", "max") if dtype == "int" else ("mean", "mean", "sum", "min", "max")
        )
        of = (
            r.choice(("int", "float", "text", "bool"))
            if op == "count"
            else r.choice((dtype, "int" if op == "mean" else dtype))
        )
        inner = self.leaf(kinds, (of,))
        if inner[0] != "window" or not inner[6]:
            return None
        key = r.choice(inner[6])
        source = self.listed(kinds, kinds[inner[2]].keys[key])
        if of in ("int", "float") and r.random() < 0.4:  # steps of each item, with what else the row knows
            inner = (r.choice("+-*"), (inner, self.leaf(kinds, (of,))))
        return ("over", key, op, of, (source, inner))

    def branch(self, kinds: dict[str, Kind], dtype: str, depth: int) -> Spec:
        """A transform that gives a type."""
        r, some = self.r, lambda t: self.tree(kinds, t, depth)
        number = lambda: some(r.choice(("int", "float")))
        if dtype == "time":
            return self.leaf(kinds, ("time",))
        if dtype == "bool":
            return r.choice((
                lambda: ("known", (some(r.choice(("int", "float", "text", "time"))),)),
                lambda: ("filled", r.random() < 0.5, (some("bool"),)),
                lambda: ("apply", own_longer, "bool", False, (some("text"),)),
                lambda: ("apply", own_over(r.choice((0, 3))), "bool", False, (number(),)),
            ))()  # fmt: skip
        if dtype == "text":
            return r.choice((
                lambda: ("filled", r.choice(self.texts), (some("text"),)),
                lambda: ("cross", tuple(some(r.choice(("int", "text", "bool"))) for _ in range(r.randrange(2, 4)))),
                lambda: ("bucket", *self.edges("int", True), (some("int"),)),
                lambda: ("bucket", *self.edges("float", True), (some("float"),)),
                lambda: ("apply", own_text, "text", r.random() < 0.5, (some("int"), some("text"))),
                lambda: self.mapping(some, "text"),
            ))()  # fmt: skip
        shared = (
            lambda: ("absolute", (some(dtype),)), lambda: ("clip", *self.bounds(dtype), (some(dtype),)),
            lambda: ("filled", self.number(dtype), (some(dtype),)), lambda: self.mapping(some, dtype),
            lambda: ("apply", own_power, dtype, False, (some(dtype),)),
            lambda: ("apply", own_add, dtype, False, (some(dtype), some(dtype))),
        )  # fmt: skip
        if dtype == "int":
            return r.choice((
                *shared, lambda: (r.choice("+-*"), self.operands(some, "int")),
                lambda: (r.choice("+-*"), self.operands(some, "int")), lambda: ("bucket", *self.edges("int", False), (some("int"),)),
                lambda: ("bucket", *self.edges("float", False), (some("float"),)), lambda: ("hour", r.choice(ZONES), (some("time"),)),
                lambda: ("weekday", r.choice(ZONES), (some("time"),)),
                lambda: ("apply", own_nones, "int", True, (number(), some("text"))),
            ))()  # fmt: skip
        return r.choice((
            *shared, lambda: (r.choice("+-*"), self.operands(some, "float")), lambda: ("/", self.operands(some, r.choice(("int", "float")))),
            lambda: ("/", (some("int"), some("int"))),
            lambda: ("ratio", r.choice((None, 0.0, 1, -0.0, 7.5)), (number(), number())), lambda: ("log1p", (number(),)),
            lambda: ("age", r.choice(list(UNITS)), (some("time"),)), lambda: ("apply", own_quotient, "float", False, (number(), number())),
            lambda: ("apply", own_exp, "float", False, (some("float"),)),
        ))()  # fmt: skip

    def operands(self, some: Any, dtype: str) -> tuple[Spec, Spec]:
        """Two operands of which at least one has the type; one may be a number."""
        other = self.r.choice((dtype, dtype, "int")) if dtype == "float" else dtype
        number = self.number(other)
        number = (
            number if abs(number) <= 2**53 else type(number)(25)
        )  # beside an operator they are at most 2**53
        pair = [some(dtype), ("number", number) if self.r.random() < 0.4 else some(other)]
        self.r.shuffle(pair)
        return pair[0], pair[1]

    def number(self, dtype: str) -> Any:
        """A constant of a declaration."""
        if dtype == "int":
            return self.r.choice((0, 1, -1, 2, 3, 100, 2**53, -(2**53), 2**40))
        return self.r.choice((0.0, -0.0, 1.5, -1.0, 0.1, 1e300, 1e-300, 5e-324))

    def bounds(self, dtype: str) -> tuple[Any, Any]:
        """Bounds of a clip."""
        low, high = sorted((self.number(dtype), self.number(dtype)))
        return self.r.choice(((low, high), (None, high), (low, None)))

    def edges(self, dtype: str, labels: bool) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """Edges of buckets, and labels."""
        edges = tuple(sorted({self.number(dtype) for _ in range(self.r.randrange(1, 5))}))
        return edges, tuple(f"é{i}" for i in range(len(edges) + 1)) if labels else ()

    def mapping(self, some: Any, dtype: str) -> Spec:
        """A table of categories."""
        source = self.r.choice(("int", "text", "bool"))
        new = lambda: self.constant(dtype) if dtype == "text" else self.number(dtype)
        values = (True, False)[: self.r.randrange(1, 3)] if source == "bool" else self.r.sample(
            self.ints if source == "int" else self.texts, 2)  # fmt: skip
        return ("mapped", tuple((v, new()) for v in values), self.r.choice((None, new())), (some(source),))


WORDS: dict[str, tuple[tuple[str, ...], str]] = {  # the columns they take, and the type they give: "" that of the column
    "count": ((), "int"), "sum": (("int",), "int"), "mean": (("int",), "float"), "min": (("int", "float", "time"), ""),
    "max": (("int", "float", "time"), ""), "first": (("int", "float", "text", "bool", "time", "list"), ""),
    "last": (("int", "float", "text", "bool", "time", "list"), ""), "attribute": (("int", "float", "text", "bool", "time", "list"), ""),
    "recent": (("int", "float", "text", "bool", "time", "list"), ""), "count_distinct": (("int", "text", "bool", "time", "list"), "int"),
    "mode": (("int", "text", "bool", "list"), ""), "items": (("list",), "int"), "first_time": ((), "time"), "last_time": ((), "time"),
    "time_since_last": ((), "float"), "time_since_first": ((), "float"), "variance": (("int",), "float"),
    "std": (("int",), "float"), "sessions": ((), "int"), "share": (("int", "text", "bool", "time"), "float"),
}  # fmt: skip


def drawn(seed: int) -> World:
    """The world of a seed."""
    d = Draw(seed)
    r = d.r
    keys = r.choice(
        (
            {"a": "int"},
            {"a": "text"},
            {"a": "int", "b": "text"},
            {"a": "text", "b": "text"},
            {"a": "int", "b": "int"},
        )
    )
    kinds = {"one": d.kind("one", keys)}
    if r.random() < 0.5:
        some = dict(r.sample(list(keys.items()), r.randrange(1, len(keys) + 1)))
        kinds["two"] = d.kind("two", some)
    specs = {}
    for i in range(r.randrange(3, 9)):
        dtype = r.choice(("int", "float", "int", "float", "text", "bool"))
        specs[f"f{i}"] = d.leaf(kinds, (dtype,)) if not i or r.random() < 0.3 else d.tree(kinds, dtype, 3)
    entities = [{k: row[k] for k in kind.keys} for kind in kinds.values() for row in kind.rows]
    who = [{k: d.value(t, 0.1) for k, t in keys.items()} | r.choice(entities) for _ in range(4)]
    who += [{k: d.value(t, 0.1) for k, t in keys.items()}]
    moments = {d.time() for _ in range(r.randrange(4, 9))} | {r.choice(d.times) for _ in range(2)}
    asked = [
        (w, m, {name: d.requested(t) for name, t in d.requests.items()})
        for m in sorted(moments) for w in who if r.random() < 0.6
    ]  # fmt: skip
    return World(seed, kinds, specs, asked, d.requests, r.random() < 0.3)


# ----------------------------------------------------------------------------------- the same, told to the engine
def declared(kind: Kind, keys: set[str], columns: set[str]) -> f.Events:
    """A declaration of a kind's events, with some of its keys and columns."""
    return f.Events(
        kind.name,
        {k: t for k, t in kind.keys.items() if k in keys or not keys},
        "at",
        {c: t for c, t in kind.columns.items() if c in columns},
    )


def condition_told(spec: Spec | None, events: f.Events) -> Condition | None:
    """A condition as one would write it."""
    if spec is None:
        return None
    op, *args = spec
    if op == "not":
        return ~condition_told(args[0], events)
    if op == "and":
        return condition_told(args[0], events) & condition_told(args[1], events)
    if op == "or":
        return condition_told(args[0], events) | condition_told(args[1], events)
    if op == "versus":
        return COMPARE[args[0]](operand_told(args[1], events), operand_told(args[2], events))
    column = operand_told(args[0], events)
    if op == "null":
        return column.is_null()
    if op == "contains":
        return column.contains(args[1])
    if op == "true":
        return column & column
    return column.isin(list(args[2])) if op == "in" else COMPARE[op](column, args[2])


def operand_told(told: Any, events: f.Events) -> Any:
    """A column, or a part of a time, as one would write it."""
    return events[told] if isinstance(told, str) else getattr(events[told[2]], told[0])(told[1])


def leaf_told(spec: Spec, kinds: dict[str, f.Events]) -> f.Feature:
    """A window word as one would write it."""
    _, word, kind, column, window, where, by, extra = spec
    if isinstance(window, tuple):
        window = getattr(f, window[0])(*window[1:])
    events = kinds[kind]
    scope: dict[str, Any] = {
        "by": None if by and tuple(events.keys) == by else by,
        "where": condition_told(where, events),
    }
    make = getattr(f, word)
    if word.startswith("time_since"):
        return make(events, unit=extra[0], **scope)
    if word == "sessions":
        return make(events, extra[0], window, **scope)
    if word in ("count", "first_time", "last_time"):
        return make(events, window, **scope)
    if word in ("variance", "std"):
        return make(events, column, window, extra[0], **scope)
    if word == "recent":
        return make(events, column, extra[0] + 1, window, **scope)[extra[0]]
    if word == "share":
        return make(events, column, extra[0], window, **scope)
    return make(events, column, window, **scope)


def told(spec: Spec, kinds: dict[str, f.Events]) -> Any:
    """A feature as one would write it."""
    op = spec[0]
    if op == "window":
        return leaf_told(spec, kinds)
    if op == "of":
        source, leaf = spec[-1]
        return f.of({spec[1]: told(source, kinds)}, leaf_told(leaf, kinds))
    if op == "over":
        source, inner = spec[-1]
        return f.of({spec[1]: told(source, kinds)}, told(inner, kinds), spec[2])
    if op == "request":
        return f.request(spec[1], spec[2])
    if op == "moment":
        return f.moment()
    if op == "number":
        return spec[1]
    x, *others = inputs = [told(s, kinds) for s in spec[-1]]
    if op in "+-*/":
        return {"+": lambda: x + others[0], "-": lambda: x - others[0], "*": lambda: x * others[0], "/": lambda: x / others[0]}[op]()  # fmt: skip
    return {
        "ratio": lambda: f.ratio(*inputs, zero=spec[1]), "log1p": lambda: f.log1p(x), "absolute": lambda: f.absolute(x),
        "clip": lambda: f.clip(x, spec[1], spec[2]), "bucket": lambda: f.bucket(x, spec[1], spec[2]),
        "age": lambda: f.age(x, spec[1]), "hour": lambda: f.hour_of_day(x, spec[1]), "weekday": lambda: f.day_of_week(x, spec[1]),
        "mapped": lambda: f.mapped(x, dict(spec[1]), spec[2]), "cross": lambda: f.cross(*inputs), "known": lambda: f.known(x), "size": lambda: f.size(x),
        "filled": lambda: f.filled(x, spec[1]), "apply": lambda: f.apply(spec[1], *inputs, dtype=spec[2], takes_none=spec[3]),
    }[op]()  # fmt: skip


def leaves(spec: Spec) -> list[Spec]:
    """The window words of a feature."""
    if spec[0] == "window":
        return [spec]
    return (
        [leaf for s in spec[-1] for leaf in leaves(s)]
        if isinstance(spec[-1], tuple) and spec[0] != "number"
        else []
    )


def condition_reads(spec: Spec | None) -> set[str]:
    """The columns of a condition."""
    if spec is None:
        return set()
    if spec[0] in ("and", "or", "not"):
        return set().union(*(condition_reads(a) for a in spec[1:]))
    told = spec[2:4] if spec[0] == "versus" else spec[1:2]
    return {o if isinstance(o, str) else o[2] for o in told}


def declarations(world: World, specs: dict[str, Spec], whole: bool) -> dict[str, f.Events]:
    """The declarations that some features need: whole, or only what they read."""
    used: dict[str, tuple[set[str], set[str]]] = {}
    for leaf in (leaf for s in specs.values() for leaf in leaves(s)):
        keys, columns = used.setdefault(leaf[2], (set(), set()))
        read = condition_reads(leaf[5]) | ({leaf[3]} if leaf[3] else set())
        keys |= set(leaf[6]) | (read & set(world.kinds[leaf[2]].keys))
        columns |= read
    if whole:
        return {name: declared(k, set(k.keys), set(k.columns)) for name, k in world.kinds.items()}
    return {name: declared(world.kinds[name], *used[name]) for name in used}


def feature_set(specs: dict[str, Spec], kinds: dict[str, f.Events], strict: bool) -> f.FeatureSet:
    """Some features as a set."""
    named = []
    for feature, spec in specs.items():
        named.append(told(spec, kinds).named(feature))
    return f.FeatureSet("drawn", tuple(named), strict)


TYPES = {
    "int": pl.Int64,
    "float": pl.Float64,
    "text": pl.String,
    "bool": pl.Boolean,
    "time": pl.Datetime("us", "UTC"),
    "list": pl.List(pl.String),
    "list[int]": pl.List(pl.Int64),
    "list[text]": pl.List(pl.String),
}


def frame_of(rows: list[dict[str, Any]], kind: Kind, r: random.Random) -> pl.DataFrame:
    """Rows as a frame, in one of the types that a frame may have."""
    types = {
        "event_id": kind.ids,
        **kind.keys,
        "at": "time",
        **kind.columns,
        "known_at": "time",
        "retracted_at": "time",
    }
    schema = {c: TYPES[t] for c, t in types.items()}
    frame = pl.DataFrame([{c: row[c] for c in types} for row in rows], schema=schema, orient="row")
    for column, dtype in kind.columns.items():
        if dtype == "int" and r.random() < 0.1 and frame[column].is_between(-100, 100).all():
            frame = frame.with_columns(pl.col(column).cast(pl.Int8))
        if dtype == "time" and r.random() < 0.1:
            frame = frame.with_columns(pl.col(column).dt.cast_time_unit("ns"))
    if r.random() < 0.2:
        frame = frame.with_columns(pl.col("at", "known_at").dt.convert_time_zone(r.choice(ZONES)))
    if r.random() < 0.2:
        frame = frame.select(r.sample(frame.columns, len(frame.columns)))
    return frame


# ------------------------------------------------------------------------------------------------------ comparing
def bits(value: Any) -> Any:
    """A value that equals another one only when type and bits do."""
    return ("float", struct.pack("<d", value)) if isinstance(value, float) else (type(value).__name__, value)


@dataclass
class Tally:
    """What was compared, and what differed."""

    values: int = 0
    differences: list[str] = field(default_factory=list)
    culprits: list[str] = field(default_factory=list)

    def compare(self, where: str, asked: Any, got: dict[str, Any], expected: dict[str, Any]) -> None:
        """Hold what an engine gave against the oracle."""
        for name, value in expected.items():
            self.values += 1
            if name not in got or bits(got[name]) != bits(value):
                self.differ(
                    f"{where}: {name} of {asked}: engine {got.get(name, 'nothing')!r}, oracle {value!r}", name
                )

    def differ(self, what: str, name: str = "") -> None:
        """Note a difference."""
        self.differences.append(what)
        self.culprits.append(name)


class Trial:
    """One world, tried on every path."""

    def __init__(self, world: World, tally: Tally) -> None:
        self.world, self.tally = world, tally
        self.r = random.Random(world.seed ^ 0x5EED)
        self.compacted: dict[
            str, bool
        ] = {}  # kinds without older moments; False: refilled since, so perhaps with them

    def expected(self, specs: dict[str, Spec], rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The oracle's answer to all that is asked."""
        found = {n: versions_of(k, rows.get(n, [])) for n, k in self.world.kinds.items()}
        return [
            {n: value_of(s, Asked(who, moment, request, found, self.world.strict)) for n, s in specs.items()}
            for who, moment, request in self.world.asked
        ]

    def known(
        self, features: f.FeatureSet, who: dict[str, Any], rows: dict[str, list[dict[str, Any]]]
    ) -> bool:
        """Whether anything ever happened to an entity, by any of the keys that features ask."""
        return not features.keys or any(
            all(who[k] is not None and row[k] == who[k] for k in family.by)
            for family in features.plan.families
            if family.by and not family.bound
            for row in rows.get(family.events.name, [])
        )

    def history(self, specs: dict[str, Spec]) -> None:
        """`as_of`, in any order of the rows."""
        world, r = self.world, self.r
        features = feature_set(specs, declarations(world, specs, True), world.strict)
        frames, numbered, happened = {}, r.random() < 0.15, {}
        for name, kind in world.kinds.items():
            rows = r.sample(kind.rows, len(kind.rows))
            if (
                numbered
            ):  # without ids and known_at, rows are numbered as they stand and known when they happened
                rows = [row | {"event_id": i, "known_at": row["at"]} for i, row in enumerate(rows)]
            frame = frame_of(rows, replace(kind, ids="int") if numbered else kind, r)
            frame = frame.drop("event_id", "known_at") if numbered else frame
            happened[name] = rows
            frames[name] = frame.lazy() if r.random() < 0.1 else frame
        asked = list(enumerate(world.asked))
        r.shuffle(asked)
        columns: dict[str, Any] = {k: TYPES[t] for kind in world.kinds.values() for k, t in kind.keys.items()}
        columns |= {"moment": TYPES["time"]} | {n: TYPES[t] for n, t in world.requests.items()}
        rows = [{**who, "moment": instant_of(m), **request} for _, (who, m, request) in asked]
        moments = pl.DataFrame(rows, schema=columns, orient="row")
        answer = f.as_of(features, moments, frames, partitions=r.choice((1, 1, 3))).to_dicts()
        expected = self.expected(specs, happened)
        for (i, question), got in zip(asked, answer, strict=True):
            self.tally.compare("history", question, got, expected[i])

    def read(
        self,
        reader: Any,
        specs: dict[str, Spec],
        written: dict[str, list[Any]],
        horizon: int | None,
        where: str,
    ) -> None:
        """A reader, at all moments; what is below the horizon must be refused."""
        expected, r = self.expected(specs, written), self.r
        for i, (who, moment, request) in enumerate(self.world.asked):
            keys = {k: who[k] for k in reader.features.keys}
            given = {n: v for n, v in request.items() if v is not None or r.random() < 0.5}
            question = (keys, moment, request)
            below = horizon is not None and moment - self.world.strict < horizon
            lists = (v for v in request.values() if isinstance(v, list))
            somebody = any(x is not None for x in (*keys.values(), *(x for one in lists for x in one)))
            try:
                got = reader.read(keys, instant_of(moment), given)
            except ValueError as error:
                if not below or not self.compacted or "moments before" not in str(error):
                    self.tally.differ(f"{where}: {question} refused: {error}")
                continue
            known = self.known(reader.features, who, written)
            gone = {n: rows for n, rows in written.items() if self.compacted.get(n)}
            if below and somebody and got is not None and gone and self.known(reader.features, who, gone):
                self.tally.differ(
                    f"{where}: {question} is below the horizon {horizon}, answered {got}", next(iter(specs))
                )
            elif got is None and known and horizon is None or got is not None and not known:
                self.tally.differ(
                    f"{where}: {question} is {'known' if known else 'a stranger'}, got {got}",
                    next(iter(specs)),
                )
            elif got is not None:
                self.tally.compare(where, question, got, expected[i])
            elif not below:
                nobody = reader.read(keys, instant_of(moment), given, strangers=True)
                self.tally.compare(f"{where} (stranger)", question, nobody, expected[i])
        self.read_many(reader, expected, horizon, where)

    def read_many(self, reader: Any, expected: list[dict[str, Any]], horizon: int | None, where: str) -> None:
        """All entities of one moment at once."""
        moment = self.r.choice([m for _, m, _ in self.world.asked])
        if horizon is not None and moment - self.world.strict < horizon:
            return
        rows = [(i, who, request) for i, (who, m, request) in enumerate(self.world.asked) if m == moment]
        keys = [{k: who[k] for k in reader.features.keys} for _, who, _ in rows]
        many = reader.read_many(keys, instant_of(moment), [request for _, _, request in rows])
        for (i, who, _), got in zip(rows, many.frame.to_dicts(), strict=True):
            self.tally.compare(f"{where} (many)", (who, moment), got, expected[i])

    def pieces(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The history of all kinds, cut into deliveries in any order."""
        r, found = self.r, []
        for name, kind in self.world.kinds.items():
            rows = r.sample(kind.rows, len(kind.rows))
            rows += r.sample(rows, len(rows) // 4)
            cuts = sorted({0, len(rows), *(r.randrange(len(rows) + 1) for _ in range(r.randrange(3)))})
            found += [(name, rows[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]
        r.shuffle(found)
        return found

    def is_news(
        self, name: str, row: dict[str, Any], before: list[dict[str, Any]], horizon: int | None
    ) -> bool:
        """Whether a store that was compacted can take a row: known since, told before, or of an event never told."""
        if name not in self.compacted or micros(row["known_at"]) >= horizon:
            return True
        same = [old for old in before if old["event_id"] == row["event_id"]]
        return not same or any(old["known_at"] == row["known_at"] for old in same)

    def online(self, specs: dict[str, Spec], folder: str) -> None:
        """The store: deliveries, late features, compaction, several readers."""
        world, r = self.world, self.r
        names = list(specs)
        some = dict(r.sample(list(specs.items()), r.randrange(1, len(names) + 1)))
        grows = r.random() < 0.4 and any(leaves(s) for s in some.values())
        first = some if grows else specs
        kinds = declarations(world, first, not grows)
        pieces, written, horizon = self.pieces(), {n: [] for n in world.kinds}, None
        before: dict[str, list[Any]] = {}
        turn, cut = r.randrange(len(pieces)), r.randrange(len(pieces)) if r.random() < 0.4 else None
        with open_online(folder) as store:
            features = feature_set(first, kinds, world.strict)
            store.keep(features)
            for i, (name, rows) in enumerate(pieces):
                events = kinds.get(name)
                rows = [row for row in rows if self.is_news(name, row, before.get(name, []), horizon)]
                if events is not None or not grows:
                    store.write(
                        events or declarations(world, specs, True)[name], frame_of(rows, world.kinds[name], r)
                    )
                written[name] += rows
                if i == turn and r.random() < 0.7:
                    here = {n: w if n in kinds else [] for n, w in written.items()}
                    self.read(store.reader(features), first, here, horizon, "online, halfway")
                if i == cut:
                    before = {n: list(w) for n, w in written.items()}
                    horizon = self.world.asked[r.randrange(len(self.world.asked))][1]
                    compact(store, [features], instant_of(horizon))
                    lifelong = {
                        p.events.name
                        for a in features.plan.families
                        for p in a.parts
                        if p.window.reach is None
                    }
                    self.compacted = {e.name: True for e in features.events if e.name not in lifelong}
                if grows and i == turn:
                    kinds = declarations(world, specs, True)
                    features, grows, first = feature_set(specs, kinds, world.strict), False, specs
                    store.keep(features)
                    for n, events in kinds.items():
                        if written[n] or n in self.compacted:
                            self.compacted.update({n: False} if n in self.compacted else {})
                            refill(
                                store,
                                events,
                                frame_of(r.sample(written[n], len(written[n])), world.kinds[n], r),
                                {},
                            )
                    self.read(store.reader(features), specs, written, horizon, "online, refilled")
            self.read(store.reader(features), specs, written, horizon, "online")
            if r.random() < 0.3:
                backwards = dict(reversed(list(specs.items())))
                other = feature_set(backwards, kinds, world.strict)
                self.read(store.reader(other), backwards, written, horizon, "online, other reader")

    def stream(self, specs: dict[str, Spec], folder: str) -> None:
        """The same events by the handful, in any order, some of them twice, as they come from an inbox."""
        world, r = self.world, self.r
        kinds = declarations(world, specs, True)
        features = feature_set(specs, kinds, world.strict)
        told = []
        with open_online(Path(folder) / "store") as store:
            store.keep(features)
            for name, kind in world.kinds.items():
                if name in {e.name for e in features.events}:
                    rows = r.sample(kind.rows, len(kind.rows))
                    told += [(name, row) for row in rows + r.sample(rows, len(rows) // 3)]
            r.shuffle(told)
            for i in range(0, len(told), 20):
                for name, kind in world.kinds.items():
                    rows = [row for owner, row in told[i : i + 20] if owner == name]
                    if rows:
                        store.write(kinds[name], frame_of(rows, kind, r))
            written = {n: k.rows for n, k in world.kinds.items()}
            self.read(store.reader(features), specs, written, None, "stream")


PATHS = ("history", "online", "stream")


def tried(world: World, paths: tuple[str, ...] = PATHS) -> Tally:
    """Try one world on some paths."""
    tally = Tally()
    for path in paths:
        trial = Trial(world, tally)
        try:
            if path == "history":
                trial.history(world.features)
                continue
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").exists() else None) as folder:
                getattr(trial, path)(world.features, folder)
        except Exception as error:
            tally.differ(f"{path}: raised {type(error).__name__}: {str(error)[:600]}")
    return tally


def shrunk(world: World, budget: float = 6.0) -> tuple[World, Tally]:
    """A smaller world that differs as well."""
    begin, tally = clock.monotonic(), tried(world)
    path = (tally.differences[0].split(":")[0].split(",")[0].split(" ")[0],)
    tally = tried(world, path)
    if not tally.differences:
        return world, tried(world)

    def smaller(candidate: World) -> bool:
        nonlocal world, tally
        if clock.monotonic() - begin > budget or not candidate.asked:
            return False
        try:
            found = tried(candidate, path)
        except Exception:
            return False
        same = [d for d in found.differences if d[:12] == tally.differences[0][:12]]
        if same:
            world, tally = candidate, found
        return bool(same)

    for name in [tally.culprits[0], *world.features]:
        if (
            name in world.features
            and len(world.features) > 1
            and smaller(replace(world, features={name: world.features[name]}))
        ):
            break
    for name in list(world.kinds):
        for step in (16, 4, 1):
            for i in reversed(range(0, len(world.kinds[name].rows), step)):
                kind = world.kinds[name]
                fewer = replace(kind, rows=kind.rows[:i] + kind.rows[i + step :])
                smaller(replace(world, kinds=world.kinds | {name: fewer}))
    for step in (8, 2, 1):
        for i in reversed(range(0, len(world.asked), step)):
            smaller(replace(world, asked=world.asked[:i] + world.asked[i + step :]))
    return world, tally


def report(world: World, tally: Tally) -> str:
    """A difference for people."""
    lines = [f"world --seed {world.seed} --worlds 1", *(f"  {d}" for d in tally.differences[:3])]
    lines += [f"  {name} = {spec}" for name, spec in world.features.items()]
    for kind in world.kinds.values():
        lines += [f"  {kind.name} {kind.keys} {kind.columns} ids {kind.ids}"]
        lines += [
            "    " + ", ".join(f"{c}={micros(v) if isinstance(v, datetime) else v!r}" for c, v in row.items())
            for row in kind.rows
        ]
    return "\n".join(lines)


def run(seeds: range, shrink: bool = True) -> tuple[int, int, int, list[str]]:
    """Try the worlds of some seeds: worlds, values, worlds that differ, reports."""
    values, wrong, reports = 0, 0, []
    for seed in seeds:
        world = drawn(seed)
        tally = tried(world)
        values += tally.values
        if tally.differences:
            wrong += 1
            if len(reports) < 5:
                reports.append(report(*(shrunk(world) if shrink else (world, tally))))
    return len(seeds), values, wrong, reports


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begin, totals = clock.monotonic(), [0, 0, 0]
    step = 50 if args.workers > 1 else args.worlds
    parts = [
        range(s, min(s + step, args.seed + args.worlds))
        for s in range(args.seed, args.seed + args.worlds, step)
    ]
    pool = ProcessPoolExecutor(args.workers) if args.workers > 1 else None
    for *counts, reports in pool.map(run, parts) if pool else map(run, parts):
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        for text in reports:
            print(text, flush=True)
    seconds = clock.monotonic() - begin
    print(
        f"== {totals[0]} worlds from seed {args.seed}, {totals[1]} values compared, {totals[2]} worlds differ; "
        f"{seconds:.0f} s, {totals[0] / seconds:.1f} worlds a second"
    )
    sys.exit(bool(totals[2]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from oracle import main as command  # functions of a module can be loaded again, those of a script cannot

    command()
