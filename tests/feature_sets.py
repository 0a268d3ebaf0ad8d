"Feature sets that use every word of the floor; shared by the tests of the feature floor."

from mlsys_nb import features as f
from mlsys_nb.features import Events, FeatureSet, Measure

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
        "pounds": "int",
        "floor": "text",
        "tags": "list",
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


wanted = {"product": f.request("its_product", "text")}
basket = {"product": f.request("products", "list[text]")}
spent = f.sum(orders, "pence", "7d", by=mine).named("spent")
n_large = f.count(orders, "7d", where=large, by=mine).named("n_large")
features = FeatureSet(
    "everything",
    (
        spent,
        n_large,
        f.count(orders, "lifetime", where=odd, by=mine).named("n_odd"),
        f.count(orders, "30d", where=~large, by=mine).named("n_small"),
        f.count(orders, "30d", where=~(orders["shop"] >= "b"), by=mine).named("n_early_letters"),
        f.count(orders, "3h", by=theirs).named("product_3h"),
        f.sum(orders, "pence", "30d", where=orders["gift"], by=("country",)).named("country_gifts"),
        f.sum(orders, "pence", "lifetime", by=("customer", "product")).named("pair_spent"),
        f.mean(orders, "pence", "30d", by=theirs).named("product_mean"),
        f.min(orders, "weight", "7d", by=mine).named("lightest"),
        f.max(orders, "weight", "lifetime", by=mine).named("heaviest"),
        f.min(orders, "pence", "lifetime", where=large, by=mine).named("least"),
        f.max(orders, "pence", "7d", by=mine).named("most"),
        f.first(orders, "shop", "7d", by=mine).named("first_shop"),
        f.last(orders, "shop", "lifetime", where=odd, by=mine).named("last_shop"),
        f.last(orders, "gift", by=mine).named("gift"),
        f.last(orders, "weight", "30d", by=mine).named("weight"),
        f.attribute(orders, "shop", max_age="30d", by=theirs).named("product_shop"),
        *(x.named(f"recent_{i}") for i, x in enumerate(f.recent(visits, "page", 3, "30d"))),
        f.count_distinct(orders, "shop", "7d", by=mine).named("shops"),
        f.count_distinct(orders, "shop", "lifetime", by=mine).named("shops_ever"),
        f.count_distinct(visits, "seconds", "30d").named("lengths"),
        f.mode(visits, "page", "30d").named("favourite"),
        f.mode(orders, "pence", "lifetime", by=mine).named("usual"),
        f.share(orders, "shop", "a", "30d", where=large).named("share_of_a"),
        f.sum(orders, "pence", f.lagged("7d", "7d"), by=mine).named("week_before"),
        f.count(orders, f.lagged("lifetime", "1us"), by=mine).named("before_now"),
        f.count_distinct(orders, "shop", f.lagged("7d", "30d"), by=mine).named("shops_before"),
        f.last(orders, "shop", f.lagged("30d", "7d"), by=theirs).named("shop_a_week_ago"),
        f.max(visits, "seconds", f.lagged("7d", "1h")).named("longest_before"),
        f.mode(visits, "page", f.lagged("30d", "7d")).named("favourite_before"),
        f.sum(orders, "pence", f.period("month", "Europe/London"), by=mine).named("this_month"),
        f.count(orders, f.period("month", "Europe/London", back=1), by=mine).named("last_month"),
        f.count_distinct(visits, "page", f.period("week", "America/New_York")).named("pages_since_monday"),
        f.recent(visits, "seconds", 2, f.period("day", "Europe/London", back=1))[1].named("yesterday"),
        f.count(orders, f.period("quarter", "Asia/Kolkata"), by=theirs).named("product_quarter"),
        f.time_since_first(orders, where=orders["ts"].month("Europe/London") != 3, by=mine).named(
            "since_not_march"
        ),
        f.count(visits, "30d", where=visits["seen_at"].hour("Europe/London").isin([1, 2])).named("at_night"),
        f.count(visits, f.lagged("7d", "1h"), where=visits["seen_at"].weekday("America/New_York") >= 6).named(
            "weekends"
        ),
        f.count(orders, "lifetime", where=orders["ts"] < orders["due"], by=mine).named("due_later"),
        f.count(orders, "lifetime", where=orders["pence"] == orders["pounds"], by=mine).named("as_listed"),
        f.sum(orders, "pence", "30d", where=~(orders["pence"] > orders["pounds"]), by=theirs).named(
            "below_list"
        ),
        f.count(orders, "lifetime", where=orders["shop"] >= orders["floor"], by=mine).named(
            "shop_from_floor"
        ),
        f.count(orders, "lifetime", where=~(orders["shop"] == orders["floor"]), by=mine).named("other_floor"),
        f.count(orders, "30d", where=orders["product"] > "b", by=mine).named("late_products"),
        f.count(orders, "lifetime", where=orders["product"] == orders["country"], by=mine).named(
            "named_alike"
        ),
        f.items(orders, "tags", "30d", by=mine).named("n_tags"),
        f.count_distinct(orders, "tags", f.lagged("7d", "3h"), where=orders["gift"], by=theirs).named(
            "product_tags"
        ),
        f.mode(orders, "tags", "lifetime", by=mine).named("usual_tag"),
        f.count(orders, "30d", where=orders["tags"].contains("a"), by=mine).named("with_a"),
        f.sum(orders, "pence", "lifetime", where=~orders["tags"].contains("é"), by=theirs).named("without_é"),
        f.count(orders, "lifetime", where=orders["tags"].is_null(), by=()).named("untagged"),
        f.of(wanted, f.mode(orders, "tags", f.session("7d"), by=theirs)).named("wanted_tag"),
        f.sessions(orders, "3h", "30d", by=mine).named("spells"),
        f.sessions(orders, "7d", "lifetime", where=large, by=theirs).named("product_spells"),
        f.sessions(visits, "1h", f.period("month", "Europe/London")).named("visits_this_month"),
        f.sessions(orders, "3h", "7d", by=()).named("spells_of_all"),
        f.count(visits, f.session("3h")).named("pages_of_visit"),
        f.count_distinct(orders, "shop", f.session("7d"), by=mine).named("shops_of_spell"),
        f.mode(visits, "page", f.session("7d"), where=visits["seconds"] > 0).named("page_of_spell"),
        f.sum(orders, "pence", f.session("7d"), where=odd, by=theirs).named("product_spell"),
        f.last(orders, "shop", f.session("30d"), by=mine).named("last_shop_of_spell"),
        f.age(f.first_time(visits, f.session("7d")), "min").named("visit_lasts"),
        f.of(wanted, f.count(orders, f.session("7d"), by=theirs)).named("wanted_spell"),
        f.count(visits, f.session("3h", most="7h")).named("pages_of_late_visit"),
        f.count_distinct(orders, "shop", f.session("7d", "10d"), by=mine).named("shops_of_late_spell"),
        f.mode(visits, "page", f.session("7d", "7d"), where=visits["seconds"] > 0).named(
            "page_of_late_spell"
        ),
        f.month_of_year(f.last_time(orders, by=mine), "Europe/London").named("month_of_order"),
        f.of(wanted, f.count(orders, "30d", by=theirs)).named("wanted"),
        f.of(wanted, f.mean(orders, "pence", "lifetime", by=theirs)).named("wanted_price"),
        f.of(wanted, f.last(orders, "shop", "30d", by=("customer", "product"))).named("pair_shop"),
        f.of({"product": f.request("product_of_page", "text")}, f.time_since_last(orders, by=theirs)).named(
            "recency_of_page"
        ),
        f.of({"product": f.last(orders, "product", by=mine)}, f.sum(orders, "pence", "30d", by=theirs)).named(
            "last_product"
        ),
        f.of(
            {
                "country": f.mode(orders, "country", "30d", by=mine),
                "product": f.request("its_product", "text"),
            },
            f.count_distinct(orders, "shop", f.lagged("30d", "3h"), by=("country", "product")),
        ).named("shops_there"),
        f.of(
            {"customer": f.of(wanted, f.last(orders, "customer", by=theirs))},
            f.max(visits, "seconds", "lifetime"),
        ).named("last_buyer"),
        *(
            f.of(basket, f.mean(orders, "pence", "30d", by=theirs), over).named(f"basket_{over}")
            for over in ("count", "mean", "min", "max")
        ),
        f.of(basket, f.sum(orders, "pence", "lifetime", by=theirs), "sum").named("basket_sold"),
        f.of(basket, f.last(orders, "weight", by=theirs), "sum").named("basket_weight"),
        f.of(basket, f.ratio(f.count(orders, "30d", by=("customer", "product")), n_large), "mean").named(
            "basket_own_share"
        ),
        f.of(
            basket,
            f.last(orders, "weight", by=theirs) - f.of(basket, f.last(orders, "weight", by=theirs), "mean"),
            "max",
        ).named("basket_heaviest"),
        f.of({"product": f.last(orders, "tags", by=mine)}, f.count(orders, "30d", by=theirs), "sum").named(
            "tagged_products"
        ),
        f.of(
            {"customer": f.request("friends", "list[int]")}, f.max(visits, "seconds", f.session("7d")), "max"
        ).named("friends_longest"),
        f.size(f.request("friends", "list[int]")).named("n_friends"),
        f.count(orders, "3h", by=()).named("all_3h"),
        f.sum(visits, "seconds", f.period("day", "Europe/London"), by=()).named("seconds_today"),
        f.last(orders, "shop", by=()).named("last_shop_of_all"),
        f.ratio(f.count(orders, "3h", by=theirs), f.count(orders, "30d", by=())).named("share_of_all"),
        f.std(orders, "pence", "30d", ddof=1).named("std"),
        f.variance(visits, "seconds", "7d", ddof=0).named("variance"),
        f.time_since_last(orders, where=large, by=mine).named("recency"),
        f.time_since_first(visits, unit="h").named("tenure"),
        f.hour_of_day(f.last_time(orders, by=mine), "Europe/London").named("hour"),
        f.day_of_week(f.first_time(visits), "America/New_York").named("weekday"),
        f.hour_of_day(f.moment(), "Asia/Kolkata").named("hour_now"),
        f.ratio(spent, n_large, zero=0).named("ratio_zero"),
        f.ratio(spent, n_large).named("ratio_null"),
        (spent / f.request("basket", "float")).named("of_basket"),
        (spent * spent - 3 * n_large + 1).named("polynomial"),
        (0.5 * f.sum(visits, "seconds", "7d") + f.request("basket", "float")).named("mixed"),
        f.log1p(spent).named("log_spent"),
        f.log1p(f.last(orders, "weight", by=mine)).named("log_weight"),
        f.clip(spent, low=-100, high=1000).named("clipped"),
        f.clip(f.last(orders, "weight", by=mine), low=0.5).named("clipped_weight"),
        f.absolute(spent).named("size"),
        f.bucket(spent, [0, 100, 1000]).named("bucket"),
        f.bucket(f.last(orders, "weight", by=mine), [0.0, 0.1, 1.5], ["a", "b", "c", "d"]).named(
            "weight_class"
        ),
        f.filled(f.mean(orders, "pence", "7d", by=mine), -1.0).named("filled"),
        f.known(f.last(orders, "shop", "7d", by=mine)).named("has_shop"),
        f.mapped(f.last(orders, "shop", by=mine), {"a": 1, "é": 2, "": 3}, other=0).named("mapped"),
        f.cross(f.last(orders, "shop", by=mine), f.request("device", "text"), f.known(spent)).named(
            "crossed"
        ),
        f.apply(average, spent, n_large).named("own_average"),
        f.apply(anything, f.last(orders, "shop", by=mine), n_large, dtype="text", takes_none=True).named(
            "own_text"
        ),
    ),
)
