"Mistakes of declarations and of tables: each answer says the rule, what came, and what to do; and says it at once."

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import calls_world as calls
import polars as pl
import pytest
import visits_world as visits

from mlsys_nb.data.contract import Column, Contract, ContractError, check
from mlsys_nb.data.sources import ReplaySource
from mlsys_nb.evaluation.costs import CostMatrix, Costs, OverUnder
from mlsys_nb.features import Events, FeatureSet, Measure, count, last
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.transforms import request
from mlsys_nb.learning.declared_rule import Rule
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.problem.criterion import Criterion
from mlsys_nb.problem.dataset import Lake, build_dataset
from mlsys_nb.problem.declaration import Problem, load_problem
from mlsys_nb.problem.multiclass_target import OneOf
from mlsys_nb.problem.per_event_population import Each
from mlsys_nb.problem.period_calendar import Calendar
from mlsys_nb.problem.population import Everyone
from mlsys_nb.problem.regression_target import Amount
from mlsys_nb.system.settings import MlsysError, load_settings

SETTINGS = replace(load_settings(), problems={"visits": "visits_world:problem"})
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
    "a word of nothing": (gym(horizn=DAY), ("declared by name", "'horizn'; did you mean horizon?", "correct")),
    "a rule forgotten": (lambda: Problem(name="x"), ("needs name", "got no title", "add")),  # type: ignore[call-arg]
    "a column with a slip": (
        lambda: Column("age", "int", nulable=True), ("declared by", "'nulable'; did you mean nullable?", "correct"),  # type: ignore[call-arg]
    ),
    "a contract with a slip": (
        lambda: Contract("x", (), claim="at"), ("declared by", "'claim'; did you mean claims?", "correct"),  # type: ignore[call-arg]
    ),
    "a population with a slip": (
        lambda: Everyone(DAY, visits.START, eligble=None), ("declared by", "'eligble'; did you mean eligible?", "correct"),  # type: ignore[call-arg]
    ),
    "a name with a space": (gym(name="my problem"), ("identifier", "'my problem'", "rename")),
    "an empty name": (gym(name=""), ("identifier", "''", "rename")),
    "a horizon that is no length": (gym(horizon=7), ("timedelta", "7", "write timedelta")),
    "a negative horizon": (gym(horizon=-DAY), ("above zero", "-1 day", "give")),
    "a lookback of nothing": (gym(lookback=timedelta(0)), ("above zero", "0:00:00", "give")),
    "a lookback that is a text": (gym(lookback="90d"), ("timedelta", "'90d'", "write")),
    "a maturity without a unit": (gym(maturity="3"), ("such as '0d'", "'3'", "write days")),
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
        desk(features=FeatureSet("x", (*DESK.features.features, count(CALLS, "7d").named("call")))), ("names a decision", "['call']", "rename"),
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
    "a key that its source delivers as a number": (
        gym(target=Happens(count(Events("visits", {"member": "text"}, "at", {}), "7d"), "==", 0)),
        ("as their contract delivers", "member is int in the contract and text in the events", "declare both alike"),
    ),
    "a time that may be missing": (
        gym(sources=(replace(GYM.sources[0], contract=replace(visits.contract, columns=tuple(
            replace(c, nullable=c.name == "at") for c in visits.contract.columns))),)),
        ("as their contract delivers", "at may be missing in the contract", "declare both alike"),
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
    "a contract without columns": (lambda: Contract("x", ()), ("columns", "[]", "declare each once")),
    "an id that is not in the contract": (
        lambda: Contract("x", (Column("a", "int"),), id="b"), ("among them its id", "'b'", "declare each once, and the id"),
    ),
    "a request value of a time": (lambda: request("at", "time"), ("int, float, text, bool, list[int] or list[text]", "'time'", "declare it")),
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
    # a part of another kind than its place asks for
    "a name that is a number": (gym(name=5), ("name is a str", "5 (int)", "write a name")),
    "one source without its tuple": (gym(sources=GYM.sources[0]), ("sources is a tuple", "ReplaySource", "write sources=(source,)")),
    "features in a list": (gym(features=[WEEK]), ("features is a FeatureSet", "(list)", "write FeatureSet")),
    "one feature without its comma": (lambda: FeatureSet("x", WEEK), ("stand in a tuple", "(Feature)", "write (feature,)")),
    "a name among the features": (lambda: FeatureSet("x", (WEEK, "days")), ("features[1]", "'days' (str)", "count, last, request")),
    "a rule that is only named": (gym(rule="days_since"), ("rule is a Rule", "'days_since' (str)", "Rule.feature")),
    "limits in a dictionary": (gym(limits={"latency_ms": 5}), ("limits is a Limits", "(dict)", "write Limits")),
    "learning by the name of a family": (gym(learning="boosting"), ("learning is a Learning", "'boosting'", "write Learning")),
    "one slice without its tuple": (gym(slices="branch"), ("slices is a tuple", "'branch'", 'write slices=("name",)')),
    "a target that is a feature": (gym(target=COMES), ("what is predicted", "next", "write Happens")),
    "a target without its brackets": (gym(target=Happens), ("what is predicted", "Happens", "write Happens(...)")),
    "a population that is a length": (gym(population=DAY), ("for whom", "1)", "Everyone(every, start)")),
    "a population without its brackets": (gym(population=Everyone), ("for whom", "Everyone", "Everyone(every, start)")),
    "no costs": (gym(costs=None), ("decided by Costs", "NoneType", "say what")),
    "costs that are texts": (lambda: Costs("EUR", "1", "2"), ("above zero", "false_positive='1'", "needs no model")),
    "a number compared with a text": (lambda: Happens(COMES, "==", "0"), ("'next' is int", "'0'", "its type")),
    "what happens, by a name": (lambda: Happens("next", "==", 0), ("reads a Feature", "'next' (str)", "write Happens(count(")),
    "an outcome looked up by the name of events": (
        lambda: Happens.by("answers", "again"), ("looked up in Events", "'answers' (str)", "their declaration"),
    ),
    "classes in one text": (lambda: OneOf.by(ANSWERS, "desk", "office"), ("stand in a tuple", "'office' (str)", 'write ("yes", "no")')),
    "events with a list of keys": (lambda: Events("visits", ["member"], "at", {}), ("have keys", "['member'] (list)", 'write {"id"')),
    "events with a list of columns": (lambda: Events("visits", {"member": "int"}, "at", ["branch"]), ("columns", "['branch']", "write")),
    "events with a number for a time": (lambda: Events("visits", {"member": "int"}, 5, {}), ("a time", "5 (int)", '"at"')),
    "a column of Python's type": (lambda: Column("a", int), ("dtype is one of", "<class 'int'>", "write one of them")),
    "a column that is a date": (lambda: Column("a", "date"), ("dtype is one of", "'date'", "a date is a time")),
    "a request value that is a category": (lambda: request("a", "category"), ("int, float, text", "'category'", "a category is a text")),
    "a claim on a column that is not there": (
        lambda: Contract("x", (Column("a", "int"),), claims="at"), ("one of its time columns", "'at'", "declare"),
    ),
    "a batch checked by its source": (
        lambda: check(GYM.sources[0], pl.DataFrame({"a": [1]})), ("checked by a Contract", "ReplaySource", "source.contract"),
    ),
    "frames of events without their names": (
        lambda: as_of(GYM.features, pl.DataFrame({"member": [1]}), pl.DataFrame({"member": [1]})),
        ("by name", "(DataFrame)", 'write {"orders": frame}'),
    ),
    "a problem opened by itself": (lambda: load_problem(SETTINGS, GYM), ("no problem", "<problem visits", "mlsys new")),
    "a problem with a typing error": (lambda: load_problem(SETTINGS, "vists"), ("no problem 'vists'", "did you mean visits?", "mlsys new")),
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
    assert len(MISTAKES) >= 100
    for right in (GYM, DESK, calls.bare, calls.hours, calls.desk):
        assert isinstance(replace(right), Problem)
    source = ReplaySource("x", Contract("x", (Column("a", "int"),)), path="x.csv", time="a")
    assert source.name == "x" and issubclass(ContractError, ValueError)
