"Mistakes of declarations and of tables: each answer says the rule, what came, and what to do; and says it at once."

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import calls_world as calls
import polars as pl
import pytest
import visits_world as visits

from mlsys_nb.data.contract import Column, Contract, ContractError
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.features import Events, FeatureSet, Measure, count, last
from mlsys_nb.features.transforms import request
from mlsys_nb.learning.rule import Rule
from mlsys_nb.problem.amount import Amount
from mlsys_nb.problem.calendar import Calendar
from mlsys_nb.problem.criterion import Criterion
from mlsys_nb.problem.dataset import Lake, build_dataset
from mlsys_nb.problem.declaration import Problem
from mlsys_nb.problem.each import Each
from mlsys_nb.problem.happens import Happens
from mlsys_nb.problem.one_of import OneOf
from mlsys_nb.problem.population import Everyone
from mlsys_nb.system.settings import MlsysError

GYM, DESK, DAY = visits.problem, calls.history, timedelta(days=1)
Mistake = Callable[[], object]


def gym(**changed: object) -> Mistake:
    return lambda: replace(GYM, **changed)


def desk(**changed: object) -> Mistake:
    return lambda: replace(DESK, **changed)


def asked(*features: object) -> Mistake:
    return lambda: replace(DESK, features=FeatureSet("x", (*features, *DESK.features.features)))


WEEK = count(visits.visits, "7d")
COMES = count(visits.visits, "7d").named("next")
ANSWERS, CALLS = calls.answers, calls.calls

# What is declared wrongly -> a part of the rule, of what came, of the remedy
MISTAKES: dict[str, tuple[Mistake, tuple[str, ...]]] = {
    # the problem
    "a name with a space": (gym(name="my problem"), ("identifier", "'my problem'", "rename")),
    "an empty name": (gym(name=""), ("identifier", "''", "rename")),
    "a horizon that is no length": (gym(horizon=7), ("timedelta", "7", "write timedelta")),
    "a negative horizon": (gym(horizon=-DAY), ("above zero", "-1 day", "give")),
    "a lookback of nothing": (gym(lookback=timedelta(0)), ("above zero", "0:00:00", "give")),
    "a lookback that is a text": (gym(lookback="90d"), ("timedelta", "'90d'", "write")),
    "a maturity without a unit": (gym(maturity="3"), ("such as '0d'", "'3'", "")),
    "a maturity for ever": (gym(maturity="lifetime"), ("such as '0d'", "lifetime", "never final")),
    "a slice that is no feature": (gym(slices=("colour",)), ("slices[0]", "'colour'", "add or rename")),
    "no source for the events": (gym(sources=()), ("no source", "visits", "sources")),
    "two sources of one name": (gym(sources=GYM.sources * 2), ("one source", "['visits', 'visits']", "rename")),
    # for whom
    "a condition on nothing": (
        gym(population=Everyone(DAY, visits.START, Criterion("orders", ">=", 1))), ("eligible", "'orders'", "add or rename"),
    ),
    "a condition on the wrong kind": (
        gym(population=Everyone(DAY, visits.START, Criterion("visits_21d", ">=", "one"))), ("int", "'one'", "its type"),
    ),
    "a text compared with a number": (
        gym(population=Everyone(DAY, visits.START, Criterion("branch", "==", 1))), ("text", "1", "its type"),
    ),
    "a comparison that does not exist": (lambda: Criterion("visits_21d", "=>", 1), ("one of", "'=>'", "choose")),
    "a comparison in words": (lambda: Criterion("visits_21d", "at least", 1), ("one of", "'at least'", "choose")),
    "a grid without a zone": (lambda: Everyone(DAY, datetime(2024, 1, 1)), ("aware", "2024", "tzinfo")),
    "a grid that stands still": (lambda: Everyone(timedelta(0), visits.START), ("above zero", "0", "give")),
    "a grid that goes back": (lambda: Everyone(-DAY, visits.START), ("above zero", "-1", "give")),
    "a calendar in words": (lambda: Calendar("monthly", visits.START), ("above zero", "'monthly'", "give")),
    "a calendar of no months": (lambda: Calendar("0mo", visits.START), ("above zero", "'0mo'", "give")),
    "a calendar of a number": (lambda: Calendar(30, visits.START), ("above zero", "30", "give")),
    "a calendar that begins with a text": (lambda: Calendar("1mo", "2024-01-01"), ("aware", "'2024-01-01'", "tzinfo")),
    "a calendar that asks with request values": (
        gym(features=FeatureSet("x", (*GYM.features.features, request("mood", "text")))), ("calendar", "['mood']", "Each"),
    ),
    "everyone without any events": (
        gym(features=FeatureSet("x", (request("mood", "text"),))), ("events were seen", "without any", "Each"),
    ),
    "each of a table's name": (lambda: Each("calls", "1w", calls.START), ("Each asks", "'calls'", "Events declaration")),
    "an id that is no column": (lambda: Each(CALLS, "1w", calls.START, id="ticket"), ("named by", "['ticket']", "known")),
    "a condition on other events": (
        lambda: Each(CALLS, "1w", calls.START, where=ANSWERS["again"]), ("where reads", "['again']", "known"),
    ),
    "an id that is a measurement": (
        lambda: replace(DESK, population=Each(Events("calls", {"client": "int"}, "at", {"call": "float"}), "1w", calls.START, id="call"),
                        features=FeatureSet("x", (count(CALLS, "7d"),))),
        ("named by whole numbers", "float", "another column"),
    ),
    "events that lack the key": (
        desk(population=Each(calls.singles, "1w", calls.START)), ("every key", "'client' (int)", "declare"),
    ),
    "a request value that nobody delivers": (asked(request("age", "int")), ("request value", "'age' (int)", "declare")),
    "a request value of another type": (
        lambda: replace(DESK, features=FeatureSet("x", (request("minutes", "text"),))), ("request value", "is int there", "declare"),
    ),
    "an id as an input": (asked(request("call", "text")), ("names a decision", "['call']", "drop")),
    # names
    "a feature called score": (
        gym(features=FeatureSet("x", (*GYM.features.features, WEEK.named("score")))), ("names of their own", "['score']", "rename"),
    ),
    "a feature called period": (
        gym(features=FeatureSet("x", (*GYM.features.features, WEEK.named("period")))), ("names of their own", "['period']", "rename"),
    ),
    "a feature called label": (
        gym(features=FeatureSet("x", (*GYM.features.features, WEEK.named("label")))), ("names of their own", "['label']", "rename"),
    ),
    "a feature called as the id": (
        desk(features=FeatureSet("x", (*DESK.features.features, count(CALLS, "7d").named("call")))), ("", "['call']", "rename"),
    ),
    "a feature that hides a request value": (
        lambda: replace(DESK, features=FeatureSet("x", (request("topic", "text"), (request("minutes", "int") * 2).named("minutes"))),
                        rule=Rule.feature("minutes", "likelier", "x")),
        ("only the value itself", "['minutes']", "rename"),
    ),
    "two features of one name": (
        lambda: FeatureSet("x", (WEEK.named("n"), count(visits.visits, "21d").named("n"))), ("different names", "['n']", "named"),
    ),
    # the outcome
    "a window longer than the horizon": (
        gym(target=Happens(count(visits.visits, "8d"), "==", 0)), ("its window is the horizon", "8 days", "give its aggregates"),
    ),
    "a window for ever": (
        gym(target=Happens(count(visits.visits, "lifetime"), "==", 0)), ("its window is the horizon", "lifetime", "give"),
    ),
    "no horizon for a count": (gym(horizon=timedelta(0)), ("above zero", "7 days", "look the outcome up")),
    "an outcome of request values": (
        desk(target=Happens((last(ANSWERS, "hours") + request("minutes", "int")).named("n"), ">", 5)),
        ("told by events", "['minutes']", "count events"),
    ),
    "an outcome by another key": (
        gym(target=Happens(count(Events("visits", {"branch": "text"}, "at", {}), "7d"), "==", 0)), ("belongs to", "['branch']", "count it by"),
    ),
    "an outcome among the features": (
        lambda: replace(calls.bare, features=FeatureSet("x", (request("topic", "text"), request("minutes", "int"))),
                        target=Happens.by(calls.singles, "minutes", 5)),
        ("not among the features", "['minutes']", "remove"),
    ),
    "an outcome that no source delivers": (
        desk(target=Happens.by(Events("letters", {"call": "text"}, "at", {"again": "bool"}), "again")), ("no source", "letters", "sources"),
    ),
    "a column that is not there": (lambda: Happens.by(ANSWERS, "solved"), ("no column", "'solved'", "known")),
    "an amount of texts": (lambda: Amount.by(ANSWERS, "desk"), ("an amount is a number", "text", "OneOf")),
    "an interval that never holds": (lambda: Amount(WEEK, coverage=0.2), ("interval", "0.2", "0.8")),
    "one class only": (lambda: OneOf.by(ANSWERS, "desk", ("office",)), ("two classes", "['office']", "Happens")),
    "a class twice": (lambda: OneOf.by(ANSWERS, "desk", ("office", "office")), ("each once", "office", "name them")),
    "classes of numbers": (lambda: OneOf.by(ANSWERS, "hours", ("1", "2")), ("a class is a text", "int", "Amount")),
    "a class merged into nothing": (
        lambda: OneOf.by(ANSWERS, "desk", ("office", "field"), "", {"fax": "store"}), ("count as one of", "store", "declare"),
    ),
    "a class called abstain": (lambda: OneOf.by(ANSWERS, "desk", ("office", "abstain")), ("other than", "abstain", "rename")),
    # costs and rules
    "an error that is free": (lambda: Costs("EUR", 0.0, 1.0), ("above zero", "false_positive=0.0", "needs no model")),
    "costs of an amount for yes or no": (gym(costs=OverUnder("EUR", 1.0, 2.0)), ("decided by Costs", "OverUnder", "say what")),
    "costs of yes or no for classes": (lambda: replace(calls.desk, costs=GYM.costs), ("decided by CostMatrix", "Costs", "say")),
    "costs of classes for an amount": (
        lambda: replace(calls.hours, costs=CostMatrix("EUR", uniform=1.0)), ("decided by OverUnder", "CostMatrix", "say"),
    ),
    "an abstention that never pays": (
        lambda: CostMatrix("EUR", uniform=1.0, abstain=2.0), ("costs less than", "abstain=2", "lower it"),
    ),
    "a rule on nothing": (gym(rule=Rule.feature("age", "likelier", "x")), ("rule", "'age'", "add or rename")),
    "a rule on a text": (gym(rule=Rule.feature("branch", "likelier", "x")), ("reads a number", "'branch'", "Rule.table")),
    "a rule that points nowhere": (lambda: Rule.feature("days_since", "up", "x"), ("higher_is", "'up'", "say which way")),
    "a rule for amounts about yes or no": (gym(rule=Rule.median()), ("a rule for this target", "Rule.median", "declare one")),
    # tables and their declarations
    "events without keys": (lambda: Events("visits", {}, "at", {}), ("keys", "{}", "e.g.")),
    "a column twice": (lambda: Events("visits", {"at": "int"}, "at", {}), ("one role", "['at']", "rename")),
    "a measure in money": (lambda: Measure("decimal"), ("one of", "'decimal'", "pence")),
    "a contract without columns": (lambda: Contract("x", ()), ("columns", "[]", "")),
    "an id that is not in the contract": (
        lambda: Contract("x", (Column("a", "int"),), id="b"), ("among them its id", "'b'", ""),
    ),
    "a request value of a time": (lambda: request("at", "time"), ("int, float, text, bool, list[int] or list[text]", "'time'", "")),
    "a table without the column": (
        lambda: build_dataset(DESK, Lake({"calls": pl.DataFrame({"client": [1]}), "answers": pl.DataFrame()}, ()),
                              [calls.START + 7 * DAY], calls.START + 9 * DAY),
        ("needs", "missing", "got"),
    ),
    "a table with another type": (
        lambda: build_dataset(DESK, Lake({"calls": calls.rows(50)[0].with_columns(pl.col("at").dt.replace_time_zone("UTC"), client=pl.lit("x")),
                                          "answers": pl.DataFrame()}, ()), [calls.START + 7 * DAY], calls.START + 9 * DAY),
        ("declared int", "String", "convert it"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_rule_what_came_and_what_to_do(name):
    made, parts = MISTAKES[name]
    with pytest.raises((MlsysError, ValueError, KeyError)) as told:
        made()
    said = str(told.value)
    assert all(part in said for part in parts), said
    assert len(said) < 700 and "Traceback" not in said


def test_the_table_is_large_enough_and_the_right_declarations_pass():
    assert len(MISTAKES) >= 60
    for right in (GYM, DESK, calls.bare, calls.hours, calls.desk):
        assert isinstance(replace(right), Problem)
    source = ReplaySource("x", Contract("x", (Column("a", "int"),)), path="x.csv", time="a")
    assert source.name == "x" and issubclass(ContractError, ValueError)
