"Feature sets that use every word of the floor; shared by the tests of the feature floor."

from mlsys_nb.features.feature_set import (
    Events,
    FeatureSet,
    Measure,
    absolute,
    apply,
    attribute,
    bucket,
    clip,
    count,
    cross,
    day_of_week,
    distinct,
    filled,
    first,
    first_time,
    hour_of_day,
    known,
    largest,
    last,
    last_time,
    log1p,
    mapped,
    mean,
    moment,
    ratio,
    recent,
    request,
    share,
    smallest,
    std,
    time_since_first,
    time_since_last,
    top,
    total,
    variance,
)

orders = Events(
    "orders",
    keys={"customer": "int", "product": "text", "country": "text"},
    time="ts",
    columns={
        "pence": Measure("int", unit="pence"),
        "weight": Measure("float", unit="kg"),
        "shop": "text",
        "gift": "bool",
        "due": "time",
    },
)
visits = Events(
    "visits", keys={"customer": "int"}, time="seen_at", columns={"page": "text", "seconds": "int"}
)
mine, theirs = ("customer",), ("product",)
large = orders["pence"] >= 100
odd = (
    (orders["weight"] > 0.1)
    | (orders["shop"].isin(["a", "é", "EIRE"]) & ~orders["gift"])
    | orders["shop"].is_null()
)


def average(total, n):
    return total / n


def anything(text, number):
    return None if number is None else f"{text}:{number % 3}"


spent = total(orders, "pence", "7d", by=mine).named("spent")
n_large = count(orders, "7d", where=large, by=mine).named("n_large")
features = FeatureSet(
    "everything",
    (
        spent,
        n_large,
        count(orders, "lifetime", where=odd, by=mine).named("n_odd"),
        count(orders, "3h", by=theirs).named("product_3h"),
        total(orders, "pence", "30d", where=orders["gift"], by=("country",)).named("country_gifts"),
        total(orders, "pence", "lifetime", by=("customer", "product")).named("pair_spent"),
        mean(orders, "pence", "30d", by=theirs).named("product_mean"),
        smallest(orders, "weight", "7d", by=mine).named("lightest"),
        largest(orders, "weight", "lifetime", by=mine).named("heaviest"),
        smallest(orders, "pence", "lifetime", where=large, by=mine).named("least"),
        largest(orders, "pence", "7d", by=mine).named("most"),
        first(orders, "shop", "7d", by=mine).named("first_shop"),
        last(orders, "shop", "lifetime", where=odd, by=mine).named("last_shop"),
        last(orders, "gift", by=mine).named("gift"),
        last(orders, "weight", "30d", by=mine).named("weight"),
        attribute(orders, "shop", max_age="30d", by=theirs).named("product_shop"),
        *(f.named(f"recent_{i}") for i, f in enumerate(recent(visits, "page", 3, "30d"))),
        distinct(orders, "shop", "7d", by=mine).named("shops"),
        distinct(orders, "shop", "lifetime", by=mine).named("shops_ever"),
        distinct(visits, "seconds", "30d").named("lengths"),
        top(visits, "page", "30d").named("favourite"),
        top(orders, "pence", "lifetime", by=mine).named("usual"),
        share(orders, "shop", "a", "30d", where=large).named("share_of_a"),
        std(orders, "pence", "30d", ddof=1).named("std"),
        variance(visits, "seconds", "7d", ddof=0).named("variance"),
        time_since_last(orders, where=large, by=mine).named("recency"),
        time_since_first(visits, unit="h").named("tenure"),
        hour_of_day(last_time(orders, by=mine), "Europe/London").named("hour"),
        day_of_week(first_time(visits), "America/New_York").named("weekday"),
        hour_of_day(moment(), "Asia/Kolkata").named("hour_now"),
        ratio(spent, n_large, zero=0).named("ratio_zero"),
        ratio(spent, n_large).named("ratio_null"),
        (spent / request("basket", "float")).named("of_basket"),
        (spent * spent - 3 * n_large + 1).named("polynomial"),
        (0.5 * total(visits, "seconds", "7d") + request("basket", "float")).named("mixed"),
        log1p(spent).named("log_spent"),
        log1p(last(orders, "weight", by=mine)).named("log_weight"),
        clip(spent, low=-100, high=1000).named("clipped"),
        clip(last(orders, "weight", by=mine), low=0.5).named("clipped_weight"),
        absolute(spent).named("size"),
        bucket(spent, [0, 100, 1000]).named("bucket"),
        bucket(last(orders, "weight", by=mine), [0.0, 0.1, 1.5], ["a", "b", "c", "d"]).named("weight_class"),
        filled(mean(orders, "pence", "7d", by=mine), -1.0).named("filled"),
        known(last(orders, "shop", "7d", by=mine)).named("has_shop"),
        mapped(last(orders, "shop", by=mine), {"a": 1, "é": 2, "": 3}, other=0).named("mapped"),
        cross(last(orders, "shop", by=mine), request("device", "text"), known(spent)).named("crossed"),
        apply(average, spent, n_large).named("own_average"),
        apply(anything, last(orders, "shop", by=mine), n_large, dtype="text", takes_none=True).named(
            "own_text"
        ),
    ),
)
