"""Four questions about a site with tools on it: who leaves, who subscribes, which tool next, what will be opened tomorrow.
A test copies this file into a folder that `mlsys init` has begun; the site's own database stands beside that."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlsys_nb import features as f
from mlsys_nb.data import Column, Contract
from mlsys_nb.data.sql_source import SqlSource
from mlsys_nb.evaluation.costs import Costs, OverUnder, PerHit
from mlsys_nb.evaluation.gate_limits import Limits
from mlsys_nb.features import Events, FeatureSet
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem import Amount, Criterion, Each, Everyone, Happens, Problem
from mlsys_nb.problem.item_candidates import Candidates
from mlsys_nb.problem.ranking_target import Chosen

SITE = f"sqlite:///{Path(__file__).resolve().parents[1]}/site.db"
START, DAY = datetime(2025, 1, 6, tzinfo=UTC), timedelta(days=1)
CLASSES = ("pdf", "image", "text", "video")


def table(name: str, key: str, *columns: Column, time: str = "at") -> SqlSource:
    "A table of the site, read by its time column; a row that comes two hours late is found."
    told = (Column(key, "text"), *columns, Column(time, "time"))
    names = ", ".join(c.name for c in told)
    return SqlSource(
        name,
        Contract(name, told, id=key, claims=time),
        SITE,
        f"SELECT {names} FROM {name}",
        time,
        overlap="2h",
    )


visits_source = table(
    "visits",
    "visit",
    Column("visitor", "text"),
    Column("tool", "text"),
    Column("class", "category", as_="kind", allowed=CLASSES),
    Column("member", "bool"),
    Column("seconds", "int", minimum=0),
)
users_source = table("users", "visitor", Column("country", "category"), time="joined")
tools_source = table("tools", "tool", Column("class", "category", as_="kind"), time="added")
signups_source = table("signups", "signup", Column("visitor", "text"), Column("plan", "category"))

visited = {"visit": "text", "tool": "text", "kind": "text", "member": "bool", "seconds": "int"}
visits = Events("visits", keys={"visitor": "text"}, time="at", columns=visited)
opened = Events("visits", keys={"tool": "text"}, time="at", columns={"visitor": "text", "member": "bool"})
users = Events("users", keys={"visitor": "text"}, time="joined", columns={"country": "text"})
tools = Events("tools", keys={"tool": "text"}, time="added", columns={"kind": "text"})
signups = Events("signups", keys={"visitor": "text"}, time="at", columns={"plan": "text"})

visited_before = (
    f.count(visits, "7d").named("visits_7d"),
    f.count(visits, "lifetime").named("visits"),
    f.count_distinct(visits, "tool", "28d").named("tools_28d"),
    f.time_since_last(visits).named("days_since_visit"),
)
leaves = Problem(
    name="leaves",
    title="Visitors who leave",
    question="Will a visitor of the last two weeks stay away for the next two?",
    sources=(visits_source, users_source, signups_source),
    features=FeatureSet(
        "leaves",
        (
            *visited_before,
            f.count(visits, "14d").named("visits_14d"),
            f.count(visits, "28d").named("visits_28d"),
            f.count(signups, "lifetime").named("signups"),
            f.attribute(users, "country").named("country"),
        ),
    ),
    population=Everyone(7 * DAY, START + 28 * DAY, Criterion("visits_14d", ">=", 1)),
    target=Happens(f.count(visits, "14d").named("visits_next_14d"), "==", 0, "no visit within two weeks"),
    horizon=14 * DAY,
    rule=Rule.feature("days_since_visit", "likelier", "the longer ago, the likelier"),
    costs=Costs("EUR", false_positive=1.0, false_negative=3.0, action="write", otherwise="none"),
    lookback=28 * DAY,
    slices=("country",),
    maturity="1d",  # the site is read every night
    simulated=True,
)
subscribes = Problem(
    name="subscribes",
    title="Visitors who subscribe",
    question="Will somebody without an account sign up within two days of this visit?",
    sources=(visits_source, signups_source),
    features=FeatureSet(
        "subscribes", (f.request("kind", "text"), f.request("seconds", "int"), *visited_before)
    ),
    population=Each(visits, every="1w", start=START + 28 * DAY, where=~visits["member"], id="visit"),
    target=Happens(f.count(signups, "2d").named("signups_next_2d"), ">=", 1, "a sign-up within two days"),
    horizon=2 * DAY,
    rule=Rule.feature("visits", "likelier", "the more visits, the likelier"),
    costs=Costs("EUR", false_positive=0.2, false_negative=4.0, action="offer", otherwise="none"),
    lookback=28 * DAY,
    maturity="1d",
    simulated=True,
)
used = Events(
    "visits", keys={"visitor": "text", "tool": "text"}, time="at", columns={"visit": "text", "kind": "text"}
)
offered = Candidates(
    items=FeatureSet(
        "tool",
        (
            f.log1p(f.count(used, "7d", by="tool")).named("log_opened_7d"),
            f.log1p(f.count(used, "28d", by="tool")).named("log_opened_28d"),
            f.attribute(tools, "kind").named("kind"),
        ),
    ),
    pairs=FeatureSet(
        "visitor_tool",
        (
            f.count(used, "28d").named("times_28d"),
            f.time_since_last(used).named("days_since_used"),
        ),
    ),
    events=used,
    most="log_opened_28d",
    every="1d",
    start=START + 28 * DAY,
    top=64,
    own=16,
)
next_tool = Problem(
    name="next_tool",
    title="Which tool next",
    question="Which tool will a visitor of the last two weeks open next?",
    sources=(visits_source, tools_source),
    features=FeatureSet("next_tool", (*visited_before, f.count(visits, "14d").named("visits_14d"))),
    population=Everyone(7 * DAY, START + 28 * DAY, Criterion("visits_14d", ">=", 1)),
    target=Chosen(
        f.first(used, "tool", "7d", by="visitor").named("next_tool"),
        among=offered,
        meaning="the tool that is opened next, within a week",
        shown=5,
    ),
    horizon=7 * DAY,
    rule=Rule.feature("log_opened_28d", "likelier", "what many opened"),
    costs=PerHit("EUR", 0.1),
    limits=Limits(latency_ms=20.0),
    lookback=28 * DAY,
    maturity="1d",
    simulated=True,
)
day_ahead = f.count(opened, f.lagged("1d", "6d")).named("opened_a_week_ago")
opened_tomorrow = Problem(
    name="opened_tomorrow",
    title="What will be opened tomorrow",
    question="How often will each tool be opened on the day to come?",
    sources=(visits_source, tools_source),
    features=FeatureSet(
        "opened_tomorrow",
        (
            day_ahead,
            f.count(opened, "1d").named("opened_1d"),
            f.count(opened, "7d").named("opened_7d"),
            f.count(opened, "28d").named("opened_28d"),
            f.day_of_week(f.moment(), "UTC").named("weekday"),
            f.time_since_first(tools).named("days_here"),
            f.attribute(tools, "kind").named("kind"),
        ),
    ),
    population=Everyone(DAY, START + 28 * DAY),
    target=Amount(f.count(opened, "1d").named("opened_next_1d"), "times it is opened", "visits"),
    horizon=DAY,
    rule=Rule.previous("opened_a_week_ago", "as on the same day a week ago"),
    costs=OverUnder("EUR", over=1.0, under=2.0),
    limits=Limits(rows=100, entities=50),  # the newest two days of sixty tools judge
    lookback=28 * DAY,
    maturity="1d",
    simulated=True,
)
