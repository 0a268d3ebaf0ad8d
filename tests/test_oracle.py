"""The engines against an oracle written from the prose alone; many more worlds: `python tests/oracle.py --worlds 10000 --workers 2`."""

import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from oracle import drawn, report, shrunk, tried

from mlsys_nb import features as f
from mlsys_nb.features.entity_events import own_rows
from mlsys_nb.features.store_sync import compact, open_online


@pytest.mark.parametrize("part", range(6))
def test_worlds_are_what_the_prose_says(part):
    values = 0
    for seed in range(part * 10, part * 10 + 10):
        world = drawn(seed)
        tally = tried(world)
        assert not tally.differences, report(*shrunk(world))
        values += tally.values
    assert values > 1000


def test_minus_zero_in_a_declaration_is_zero():
    """`clip`, `ratio` and the operators kept the sign of a zero that `filled` and `mapped` dropped."""
    lines = f.Events("lines", {"a": "int"}, "at", {"x": "float"})
    x, n = f.last(lines, "x"), f.count(lines, "1d")
    for signed, plain in (
        (f.clip(x, -0.0), f.clip(x, 0.0)),
        (f.ratio(n, n, zero=-0.0), f.ratio(n, n, zero=0.0)),
        (x * -0.0, x * 0.0),
        (f.bucket(x, [-0.0]), f.bucket(x, [0.0])),
        (f.filled(x, -0.0), f.filled(x, 0.0)),
    ):
        assert signed == plain
        assert "-0" not in repr(signed.params)


DAY = timedelta(days=1)
START = datetime(2020, 1, 1, tzinfo=UTC)
orders = f.Events("orders", {"a": "int"}, "at", {"pence": "int"})
week = f.FeatureSet("week", (f.sum(orders, "pence", "7d").named("spent"),))
ever = f.FeatureSet("ever", (f.sum(orders, "pence", "lifetime").named("spent"),))


def order(number, customer, day, pence, known):
    return {
        "event_id": number,
        "a": customer,
        "at": START + day * DAY,
        "pence": pence,
        "known_at": START + known * DAY,
    }


def compacted(folder, first, *later):
    """A store compacted at day 20 between a delivery and some others."""
    store = open_online(folder)
    store.keep(week)
    for i, rows in enumerate((first, *later)):
        if rows:
            store.write(orders, pl.DataFrame(rows))
        if not i:
            compact(store, [week], START + 20 * DAY)
    return store


def test_a_correction_that_comes_before_what_it_corrects_is_not_lost_at_a_compacted_store(tmp_path):
    """The correction was dropped at the door as too old; the order it corrects came later and was alive again."""
    told, moved = order(5, 1, 17, 1, 17), order(5, 1, 3, 1, 18)
    with compacted(tmp_path, [order(9, 1, 19, 1000, 19)], [moved], [told]) as store:
        assert store.reader(week).read({"a": 1}, START + 21 * DAY) == {"spent": 1000}


def test_a_customer_whose_only_order_is_below_the_horizon_is_known_and_refused_there(tmp_path):
    """An old order that came after compaction left no trace: the customer was a stranger, and the past was answered."""
    with compacted(tmp_path, [order(9, 1, 19, 1000, 19)], [order(7, 2, 3, 5, 3)]) as store:
        reader = store.reader(week)
        assert reader.read({"a": 2}, START + 21 * DAY) == {"spent": 0}
        with pytest.raises(ValueError, match="moments before"):
            reader.read({"a": 2}, START + 10 * DAY)


def test_compacting_events_that_have_not_come_yet_forbids_no_window(tmp_path):
    """Nothing was dropped, yet a longer window was lacking, and no refill from an empty lake could bring it."""
    with compacted(tmp_path, []) as store:
        store.keep(ever)
        store.write(orders, pl.DataFrame([order(7, 2, 3, 5, 3)]))
        assert store.reader(ever).read({"a": 2}, START + 21 * DAY) == {"spent": 5}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_bounded_session_is_the_same_after_compaction_whatever_comes_late(tmp_path, seed, strict):
    """The reach of a session had no bound: with one in any set, compaction kept every event for ever."""
    draw = random.Random(seed)
    clicks = f.Events("clicks", {"who": "int"}, "at", {"page": "text"})
    told = {
        "pages": f.count(clicks, f.session("2h", most="9h")),
        "kinds": f.count_distinct(clicks, "page", f.session("2h", "9h"), where=clicks["page"] != "a"),
        "lasts": f.age(f.first_time(clicks, f.session("2h", "9h")), "min"),
        "usual": f.mode(clicks, "page", f.session("3h", "3h")),
    }
    features = f.FeatureSet("late", tuple(x.named(n) for n, x in told.items()), strict)
    rows = [
        {"event_id": i, "who": i % 3, "page": draw.choice("abc"), "at": START + timedelta(minutes=20 * i)}
        for i in range(600)
        if draw.random() < 0.6
    ]
    for row in rows:
        late = timedelta(minutes=draw.randrange(900)) if draw.random() < 0.3 else timedelta()
        row["known_at"] = row["at"] + late
    horizon = START + timedelta(days=4)
    moments = [horizon + timedelta(minutes=draw.randrange(5_000)) for _ in range(40)] + [
        horizon + timedelta(microseconds=strict),
        START + 7 * DAY,
    ]
    asked = pl.DataFrame({"who": [w for w in range(4) for _ in moments], "moment": moments * 4})
    asked = asked.with_columns(pl.col("moment").cast(pl.Datetime("us", "UTC")))
    frame = pl.DataFrame(rows)
    known = frame["known_at"] <= horizon
    history = f.as_of(features, asked, {"clicks": frame})
    with open_online(tmp_path) as store:
        store.keep(features)
        store.write(clicks, frame.filter(known))
        compact(store, [features], horizon)
        held = sum(own_rows(store, clicks, {"who": w}, ["page"], moments[-1]).height for w in range(3))
        assert held < 0.3 * known.sum(), "what no window sees is dropped"
        store.write(clicks, frame.filter(~known))
        reader = store.reader(features)
        for who, moment, *values in history.select("who", "moment", *features.names).iter_rows():
            assert list(reader.read({"who": who}, moment).values()) == values if who < 3 else True, (
                who,
                moment,
            )
    assert history["pages"].max() > 5 and history["lasts"].max() > 500
