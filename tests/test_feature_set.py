"""A feature set as data: every word of the algebra, read back, is itself; what is declared in another order is the same."""

import json
import operator
import random
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from feature_sets import features as everything

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet, Measure
from mlsys_nb.features.event_filters import condition_of
from mlsys_nb.features.events import POLARS, events_of, events_spec
from mlsys_nb.features.feature_definition import OPERATIONS
from mlsys_nb.features.feature_plan import Step
from mlsys_nb.features.feature_set import from_spec, to_spec
from mlsys_nb.features.transform_math import KERNELS
from mlsys_nb.system.clock import instant

orders = Events(
    "orders",
    keys={"customer": "int", "product": "text"},
    time="ts",
    columns={
        "pence": Measure("int", "pence", "Price"),
        "weight": "float",
        "shop": "text",
        "tags": "list",
        "gift": "bool",
        "due": "time",
        "listed": "int",
    },
    meaning="What was ordered",
)
visits = Events("visits", keys={"customer": "int"}, time="at", columns={"seconds": "int", "page": "text"})
WINDOWED = ("sum", "mean", "min", "max", "first", "last", "count_distinct", "mode", "variance", "std", "attribute", "recent", "share")  # fmt: skip


def condition(draw):
    "A random condition about orders."
    made = draw.choice(
        (
            lambda: orders["pence"] >= draw.randint(-5, 5),
            lambda: orders["weight"] < draw.choice((0.5, -0.0, float("inf"), 3)),
            lambda: orders["shop"].isin(draw.sample(["a", "é", "", "b|c"], draw.randint(0, 3))),
            lambda: orders["due"] > instant("2010-05-01"),
            lambda: orders["gift"] == (draw.random() < 0.5),
            lambda: orders["shop"].is_null(),
            lambda: orders["pence"] != orders["listed"],
            lambda: orders["ts"].hour("Europe/London") < 12,
            lambda: (
                orders["product"].isin(["a", "b"])
                & (orders["due"].weekday("UTC") == orders["ts"].weekday("UTC"))
            ),
        )
    )()
    how = draw.random()
    return (
        ~made
        if how < 0.2
        else (made & condition(draw))
        if how < 0.4
        else made | condition(draw)
        if how < 0.5
        else made
    )


def leaf(draw):
    "A random window word, request value or moment."
    window = draw.choice(
        (
            "1us",
            "3h",
            "7d",
            "lifetime",
            f.lagged("7d", "3h"),
            f.period("month", "Europe/London", 1),
            f.session("3h"),
        )
    )
    where = condition(draw) if draw.random() < 0.5 else None
    by = draw.choice(((), ("customer",), ("product", "customer")))
    word = draw.choice((*WINDOWED, "count", "times", "request", "moment"))
    if word == "count":
        listed = draw.choice((f.items, f.count_distinct))(orders, "tags", window, where, by)
        if draw.random() < 0.3:
            return listed
        return draw.choice((f.count(orders, window, where, by), f.sessions(orders, "3h", window, where, by)))
    if word == "times":
        since = draw.choice((f.time_since_last, f.time_since_first))
        return draw.choice(
            (since(visits), since(orders, where, "h", by), f.age(f.first_time(orders, window, where, by)))
        )
    if word == "request":
        return f.request(f"r{draw.randint(0, 3)}", "int")
    if word == "moment":
        return draw.choice((f.hour_of_day, f.day_of_week, f.month_of_year))(f.moment(), "Europe/London")
    if word in ("variance", "std"):
        return getattr(f, word)(orders, "pence", window, draw.randint(0, 1), where, by)
    if word == "recent":
        return draw.choice(f.recent(orders, "pence", 3, window, where, by))
    if word == "share":
        return f.share(orders, "shop", "a", window, where, by)
    return getattr(f, word)(orders, "pence", window, where=where, by=by)


def tree(draw, made):
    "A random feature over leaves and over what was made before, so that parts are shared."
    pick = lambda: draw.choice(made) if made and draw.random() < 0.6 else leaf(draw)
    a, b = pick(), pick()
    category = f.last(orders, "shop", by=("customer",))
    return draw.choice(
        (
            lambda: a + b,
            lambda: 3 - a,
            lambda: a * b / 2.5,
            lambda: f.ratio(a, b, zero=draw.choice((None, 0, -1.5))),
            lambda: f.log1p(f.absolute(a)),
            lambda: f.clip(a, low=-3, high=draw.choice((None, 7))),
            lambda: f.filled(f.bucket(a, [0, 5]), -1),
            lambda: f.mapped(f.known(a), {True: 2, False: 1}),
            lambda: f.mapped(f.cross(category, f.bucket(b, [1], ["x", "y"])), {"a|x": 1.5}, other=-0.0),
            lambda: f.apply(operator.mul, a, b),
            lambda: f.size(f.request("basket", "list[text]")),
            lambda: f.of(
                {"product": f.request("basket", "list[text]")},
                f.ratio(f.sum(orders, "pence", "7d", by=("product",)), a),
                draw.choice(("count", "sum", "mean", "min", "max")),
            ),
        )
    )()


def generated(seed):
    "A random feature set of shared parts."
    draw, made = random.Random(seed), []
    for _ in range(draw.randint(1, 12)):
        made.append(tree(draw, made))
    return FeatureSet(
        f"set {seed}",
        tuple(x.named(f"f{i}", draw.choice(("", "so to say")), unit="u") for i, x in enumerate(made)),
    )


@pytest.mark.parametrize("seed", range(150))
def test_a_generated_set_reads_back_as_itself(seed):
    features = generated(seed)
    text = json.dumps(to_spec(features), allow_nan=False)
    back = from_spec(json.loads(text))
    assert back == features and back.hash == features.hash
    assert back.plan == features.plan and back.names == features.names and back.events == features.events
    assert json.dumps(to_spec(back), allow_nan=False) == text


def test_reductions_of_reductions_have_their_slots_in_time():
    "What one list's items want to know of the row may hang on other lists, which hang on the row again."
    wanted = {"product": f.request("basket", "list[text]")}, {"customer": f.request("friends", "list[int]")}
    sold, spent = (f.sum(orders, "pence", "7d", by=(key,)) for key in ("product", "customer"))
    a, b = f.of(wanted[0], sold, "mean"), f.of(wanted[1], spent, "max")
    c = f.of(wanted[0], sold - b, "sum") + f.of(wanted[1], spent - a, "sum")
    d = f.of(wanted[0], f.of(wanted[1], spent - c, "max") - sold, "min")
    e = f.of(wanted[0], f.of(wanted[1], f.sum(orders, "pence", "7d", by=("customer",)), "sum") * sold, "max")
    declared = FeatureSet("nested", tuple(x.named(n) for n, x in zip("abcde", (a, b, c, d, e), strict=True)))
    at = datetime(2024, 5, 1, tzinfo=UTC)
    rows = [(1, "x", 5), (1, "y", 7), (2, "y", 11), (3, "z", 100)]
    told = pl.DataFrame(rows, ["customer", "product", "pence"], orient="row").with_columns(at=at, ts=at)
    told = told.with_columns(
        pl.lit(None, POLARS[m.dtype]).alias(n) for n, m in orders.columns.items() if n != "pence"
    )
    told = told.with_columns(
        pl.lit(None, POLARS[t]).alias(n) for n, t in orders.keys.items() if n not in told.columns
    )
    asked = pl.DataFrame({"basket": [["x", "y"]], "friends": [[1, 2, 9]], "moment": [at + timedelta(days=1)]})
    found = f.as_of(declared, asked, {"orders": told}).row(0, named=True)
    a, b = (5 + 18) / 2, 12
    c = (5 - b) + (18 - b) + (12 - a) + (11 - a) + (0 - a)
    most = max(12 - c, 11 - c, 0 - c)
    assert [found[n] for n in "abcde"] == [a, b, c, most - 18, 23 * 18]
    assert from_spec(json.loads(json.dumps(to_spec(declared)))).plan == declared.plan


def test_every_word_reads_back_as_itself():
    back = from_spec(json.loads(json.dumps(to_spec(everything), allow_nan=False)))
    assert back == everything and back.hash == everything.hash and back.plan == everything.plan


def test_the_generated_sets_use_every_word():
    plans = [generated(seed).plan for seed in range(150)]
    used = {s.op for plan in plans for s in plan.steps if isinstance(s, Step)} | {
        p.op for plan in plans for x in plan.families for p in x.parts
    }
    assert used == set(KERNELS) | set(OPERATIONS)


@pytest.mark.parametrize("seed", range(20))
def test_conditions_and_events_read_back_as_themselves(seed):
    asked = condition(random.Random(seed))
    assert condition_of(json.loads(json.dumps(asked.spec(), allow_nan=False))) == asked
    back = events_of(json.loads(json.dumps(events_spec(orders))))
    assert (
        back == orders and list(back.keys) == list(orders.keys) and list(back.columns) == list(orders.columns)
    )


@pytest.mark.parametrize("seed", range(30))
def test_fault_1_the_order_of_declaration_is_not_what_features_mean(seed):
    features = generated(seed)
    parts = list(features.features)
    random.Random(seed).shuffle(parts)
    moved = FeatureSet("moved", tuple(parts))
    assert {x.name: x.identity for x in moved.features} == {x.name: x.identity for x in features.features}
    assert (moved.hash == features.hash) == (moved.names == features.names)


def test_the_order_of_keys_in_a_declaration_means_nothing():
    turned = Events(
        "orders", {"product": "text", "customer": "int"}, "ts", orders.columns, "What was ordered"
    )
    assert f.count(turned, "7d").identity == f.count(orders, "7d").identity
    assert f.count(orders, "7d", by=("product", "customer")) == f.count(
        orders, "7d", by=("customer", "product")
    )


def test_what_a_feature_means_is_what_its_inputs_mean_whatever_they_are_called():
    week, eight = f.count(orders, "7d"), f.count(orders, "8d")
    assert (week.named("a") + 1).identity != (eight.named("a") + 1).identity
    assert (week.named("a") + 1).identity == (week.named("b") + 1).identity
    assert f.ratio(week, eight).identity != f.ratio(eight, week).identity
    mixed = FeatureSet(
        "s",
        (
            f.count(orders, "7d", by=("product", "customer")),
            f.count(orders, "8d", by=("customer", "product")),
        ),
    )
    assert len(mixed.plan.families) == 1


def test_a_damaged_or_foreign_set_is_refused():
    spec = to_spec(generated(3))
    for broken in (
        {},
        {**spec, "format": 1},
        {**spec, "hash": "0" * 64},
        {**spec, "nodes": spec["nodes"][1:]},
        {**spec, "features": [999]},
    ):
        with pytest.raises(ValueError, match="format 3|damaged"):
            from_spec(broken)


def test_two_declarations_of_one_kind_of_events_are_refused_within_one_family():
    other = Events("orders", orders.keys, "ts", {**orders.columns, "extra": "int"})
    with pytest.raises(ValueError, match="declared in two different ways"):
        FeatureSet("s", (f.count(orders, "7d"), f.count(other, "8d")))


def test_fault_19_planning_does_not_grow_with_shared_depth():
    x = f.sum(orders, "pence", "30d", by=("customer",)) + 1
    for _ in range(200):
        x = x + x
    begin = time.process_time()
    features = FeatureSet("deep", (x.named("x"),))
    assert len(features.plan.steps) == 201
    back = from_spec(json.loads(json.dumps(to_spec(features))))
    assert back == features and len(x.name) <= 120 and len(repr(x)) < 300
    assert x.lineage == ("orders.pence",) and len(x._repr_html_()) < 100_000
    assert time.process_time() - begin < 1.0, "16 doublings took 29 s"


def test_a_long_chain_needs_no_deep_stack():
    x = f.count(orders, "30d", by=("customer",))
    for i in range(3000):
        x = x + i
    features = FeatureSet("long", (x.named("x"),))
    none = pl.DataFrame(schema={"customer": pl.Int64, "product": pl.String, "ts": POLARS["time"]})
    asked = pl.DataFrame({"customer": [1], "moment": [instant("2010-05-01")]})
    assert f.as_of(from_spec(to_spec(features)), asked, {"orders": none})["x"].to_list() == [sum(range(3000))]
