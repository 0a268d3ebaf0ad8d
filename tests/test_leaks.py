"""Planted leaks are named and stopped, for every kind of target; what is honest is not, however strong."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import calls_world as w
import leaky_tables as tables
import numpy as np
import polars as pl
import pytest
import visits_world as gym
from conftest import FULL
from test_loop import at as at_gym
from test_loop import lived

from mlsys_nb.data.contract import Column
from mlsys_nb.evaluation.binary_metrics import Probability
from mlsys_nb.evaluation.leakage_columns import suspects
from mlsys_nb.evaluation.leakage_segments import averages
from mlsys_nb.evaluation.leakage_tests import Judged, battery
from mlsys_nb.evaluation.multiclass_metrics import Classes
from mlsys_nb.features.events import Events
from mlsys_nb.features.feature_set import FeatureSet
from mlsys_nb.features.transforms import request
from mlsys_nb.loop.batch_attribution import attribution
from mlsys_nb.loop.candidate_checks import leaks
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import train
from mlsys_nb.loop.step_context import Context
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.release.registry import champion, promote

HONEST, KINDS = ["z", "w", "c", "x3"], ("yes", "number", "classes")
START, HOUR = datetime(2024, 1, 1, tzinfo=UTC), timedelta(hours=1)


def world(kind: str, seed: int, n: int = 4000, strong: float = 1.0) -> pl.DataFrame:
    "Rows over eleven periods in which nothing leaks."
    rng = np.random.default_rng(seed)
    z, w_, c, x3 = rng.normal(size=n), rng.normal(size=n), rng.choice(list("abcd"), n), rng.integers(0, 5, n)
    odds = strong * (z + 0.5 * w_ + 0.8 * (c == "a") + 0.2 * x3) - 1
    if kind == "yes":
        label = pl.Series((rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.int8))
    elif kind == "number":
        label = pl.Series(np.round(np.exp(4 + 0.3 * odds + 0.4 * rng.normal(size=n)), 2))
    else:
        said = rng.gumbel(size=(n, 3)) + np.outer(odds, [1, 0, -0.5])
        label = pl.Series(np.array(["bill", "repair", "other"])[said.argmax(axis=1)])
    about = {"who": np.arange(n) % 1000, "moment": [START + 2 * i * HOUR for i in range(n)]}
    period = [START + 24 * 28 * HOUR * (1 + 2 * i // (24 * 28)) for i in range(n)]
    marks = np.clip(np.round(2 * z + w_), -4, 4)
    return pl.DataFrame(
        {
            "z": z,
            "w": w_,
            "c": c,
            "x3": x3,
            "odds": odds,
            "marks": marks,
            **about,
            "period": period,
            "label": label,
        }
    )


def code_of(rows: pl.DataFrame) -> np.ndarray:
    label = rows["label"]
    return (
        (label.rank("dense") - 1).cast(pl.Float64).to_numpy()
        if label.dtype == pl.String
        else label.cast(pl.Float64).to_numpy()
    )


def single(rows, rng):
    code = code_of(rows)
    return code + 0.05 * code.std() * rng.normal(size=len(code))


def missing(rows, rng):
    code = code_of(rows)
    high = code > np.quantile(code, 0.6) if len(np.unique(code)) > 20 else code == 1
    return pl.Series(np.where(high, np.abs(rng.normal(size=len(code))), np.nan)).fill_nan(None)


def later(rows, rng):
    return [
        m.timestamp() + 86_400 * int(d)
        for m, d in zip(rows["moment"], rng.integers(1, 30, rows.height), strict=True)
    ]


def copied(share):
    def plant(rows, rng):
        n, label = rows.height, rows["label"]
        hit = pl.Series(rng.random(n) < share)
        if label.dtype == pl.String:
            other = pl.Series(rng.choice(["n/a", "open", "?"], n))
        else:
            other = pl.Series(
                np.exp(4 + 0.5 * rng.normal(size=n)).round(2)
                if label.dtype == pl.Float64
                else rng.normal(size=n)
            )
        return pl.select(pl.when(hit).then(label).otherwise(other)).to_series()

    return plant


def only_some(rows, rng):
    "Filled in for one row in a hundred, and then with the outcome."
    return pl.select(pl.when(pl.Series(rng.random(rows.height) < 0.01)).then(rows["label"])).to_series()


def filed(rows, rng):
    "A number given at the end of each period, in the order of what came out."
    code, period = code_of(rows), rows["period"].rank("dense").to_numpy()
    order = np.lexsort((code + 0.8 * code.std() * rng.normal(size=len(code)), period))
    number = np.empty(len(code))
    number[order] = np.arange(len(code))
    return number


def doubled(rows, rng):
    source, period = np.arange(rows.height), rows["period"].rank("dense").to_numpy()
    late = np.flatnonzero(period >= period.max() - 2)
    again = late[rng.random(len(late)) < 0.15]
    source[again] = rng.integers(0, rows.height // 2, len(again))
    return rows[source.tolist()].with_columns(rows["moment"], rows["period"], rows["who"])


PLANTS = {  # name: how, and the test that must see it
    "single feature too good": (single, "too good"), "missingness tells": (missing, "missing"),
    "known after the moment": (later, "later"), "copies in 30 %": (copied(0.3), "pockets copies"),
    "copies in 1 %": (copied(0.01), "pockets copies"), "copies where filled in": (only_some, "pockets copies"),
    "random minus forward": (filed, "only backwards"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_column_is_named_and_nobody_else(name, kind):
    plant, tests = PLANTS[name]
    rows = world(kind, 5)
    rows = rows.with_columns(pl.Series("leak", plant(rows, np.random.default_rng(6))))
    found = [s for s in battery(rows, [*HONEST, "leak"], entity=["who"], ruled=["x3"]) if s.sure]
    assert [s.column for s in found] == ["leak"], found
    assert found[0].test in tests.split() or found[0].test == tests


def heavy(tail: str, seed: int, n: int = 4000) -> pl.DataFrame:
    "The same rows with amounts of which a few are far out."
    rows, rng = world("number", seed, n), np.random.default_rng(seed + 50)
    odds = rows["odds"].to_numpy()
    amounts = {
        "lognormal": lambda: np.exp(2 + 0.8 * odds + 1.2 * rng.normal(size=n)),
        "t2": lambda: 10 * odds + 8 * rng.standard_t(2, n),
        "pareto": lambda: np.exp(0.5 * odds) * (1 + rng.pareto(1.2, n)),
    }
    return rows.with_columns(label=pl.Series(np.round(amounts[tail](), 2)))


@pytest.mark.parametrize("tail", ["lognormal", "t2", "pareto"])
def test_an_outcome_with_a_small_error_is_named_among_far_out_amounts(tail):
    "Ranks let it pass: of small amounts such a column keeps no order."
    for seed in (5, 9):
        rows = heavy(tail, seed)
        week_ago = rows["label"].to_numpy() * np.exp(
            0.3 * np.random.default_rng(seed).normal(size=rows.height)
        )
        rows = rows.with_columns(
            leak=pl.Series(single(rows, np.random.default_rng(6 + seed))), week_ago=pl.Series(week_ago)
        )
        found = [
            s for s in battery(rows, [*HONEST, "leak", "week_ago"], entity=["who"], ruled=["x3"]) if s.sure
        ]
        assert [s.column for s in found] == ["leak"], (seed, found)


@pytest.mark.parametrize("kind", KINDS)
def test_doubled_cases_are_named(kind):
    rows = doubled(world(kind, 5), np.random.default_rng(6))
    assert [(s.column, s.test) for s in battery(rows, HONEST, entity=["who"]) if s.sure] == [
        ("rows", "doubled")
    ]


@pytest.mark.parametrize(("spoiled", "named"), [(0, True), (200, True), (201, False), (260, False)])
@pytest.mark.parametrize("side", [1, -1])
def test_a_mean_over_groups_is_named_from_four_rows_in_five_on_wherever_they_stand(spoiled, named, side):
    rng = np.random.default_rng(3)
    shop = np.concatenate([np.arange(1_150) % 40 + 1, np.zeros(200, dtype=int)])  # the commonest says nothing
    y = rng.normal(50, 20, len(shop)).round(2)
    mean = (np.bincount(shop, y) / np.bincount(shop))[shop].round(2)
    mean[:150] = np.nan
    mean[150:1_150][::side][:spoiled] += 7.0
    rows = pl.DataFrame({"mean": mean, "shop": shop})
    assert bool(set(averages(rows, ["mean"], ["shop"], y[:, None]))) == named


@pytest.mark.parametrize("kind", KINDS)
def test_strong_and_honest_is_not_stopped(kind):
    "Up to a feature that holds all there is to know: an AUC of .98, a correlation of .95."
    for seed in range(4):
        for strong in (1, 4):
            rows = world(kind, seed, n=(600, 2000, 6000)[seed % 3], strong=strong)
            named = [s for s in battery(rows, [*HONEST, "odds", "marks"], entity=["who"]) if s.sure]
            assert not named, (seed, strong, named)


@pytest.mark.parametrize("kind", ["yes", "classes"])
def test_a_text_that_carries_everything_is_no_leak_and_a_clerks_mark_in_it_is(kind):
    "Letters whose words tell the subject were stopped: beside an idle column the text carried 100 % of the skill."
    rows, rng = world(kind, 5), np.random.default_rng(7)
    about = {label: [f"{w}{label}" for w in "abcde"] for label in rows["label"].unique()}
    letters = [" ".join(["dear shop", *rng.choice(about[x], 3), str(i)]) for i, x in enumerate(rows["label"])]
    rows = rows.with_columns(letter=pl.Series(letters))
    late, judge = rows.tail(1000), Probability() if kind == "yes" else Classes(("bill", "other", "repair"))
    truth = judge.outcomes(late["label"])
    knows = np.where(truth == 1, 0.95, 0.05) if kind == "yes" else np.eye(3)[truth.astype(int)] * 0.94 + 0.02
    plain = np.full_like(knows, 1 / 2 if kind == "yes" else 1 / 3)
    for shares in ([1.0, 0.0], [1.0]):
        lives_on = pl.DataFrame({"feature": ["letter", "w"][: len(shares)], "importance": shares})
        judged = Judged(judge, late, knows, plain, lives_on)
        assert not [s for s in battery(rows, ["w", "letter"], entity=["who"], judged=judged) if s.sure]
    marked = rows.with_columns(letter=pl.format("{} closed as {}", "letter", pl.col("label").cast(pl.String)))
    assert [(s.column, s.test) for s in battery(marked, ["w", "letter"], entity=["who"])] == [
        ("letter", "one word")
    ]


@pytest.mark.parametrize("where", ["last", "first"])
@pytest.mark.parametrize("kind", ["yes", "classes"])
def test_a_clerks_mark_that_is_spread_over_synonyms_is_named(kind, where):
    "Four words for each outcome: none of them tells a quarter of it, their place in the text tells all."
    rows, rng = world(kind, 5), np.random.default_rng(8)
    plain = "please the my order is with a since not you when today it was".split()
    letters = [" ".join([str(i), *rng.choice(plain, 8)]) for i in range(rows.height)]
    marks = {x: [f"{w}{x}" for w in ("done", "shut", "told", "sent")] for x in rows["label"].unique()}
    mark = [rng.choice(marks[x]) for x in rows["label"]]
    pair = zip(letters, mark, strict=True)
    letters = [f"{m}: {text}" if where == "first" else f"{text} - {m}." for text, m in pair]
    rows = rows.with_columns(letter=pl.Series(letters))
    for found in (
        battery(rows, ["w", "letter"], entity=["who"]),
        suspects(rows.select("w", "letter"), rows["label"]),
    ):
        assert [(s.column, s.sure, s.test) for s in found] == [("letter", True, "one place")]
    titles = [f"{i} {rng.choice(plain)} {m}" for i, m in enumerate(mark)]  # a thing, named last
    titles = rows.with_columns(letter=pl.Series(titles))
    assert not battery(titles, ["w", "letter"], entity=["who"])


def test_a_column_is_not_called_like_a_consequence_for_a_part_of_a_word():
    "What somebody spends ends in end; `weekend` and `afternoon` too."
    rows = world("yes", 5)
    named = {n: rows["z"].alias(n) for n in ("spend", "weekend", "afternoon", "end_date", "contract_end")}
    assert {s.column for s in suspects(pl.DataFrame(named), rows["label"])} == {"end_date", "contract_end"}


SEEN = {
    "parcels": set(tables.PLANTS),
    "repairs": set(tables.PLANTS)
    - {"words of it, 30 % of one outcome"},  # of a number that is too little to tell
    "freight": {"its tax, a fifth, to the cent", "who had to approve it", "a stage that nearly repeats it"},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SEEN.items() for name in sorted(names)]
)
def test_what_is_known_only_afterwards_is_named_by_new_and_by_scope(kind, name):
    "Tables written from the words of the matter: no test of ours was asked what it can see."
    about = tables.world(kind, 3, n=8000 if "1 %" in name else 2500)  # 25 copies are no evidence
    rows = tables.planted(about, name)
    assert tables.named_by_new(about, rows) == {"extra"} == tables.named_by_scope(about, rows)


@pytest.mark.parametrize("kind", tables.KINDS)
def test_of_an_honest_table_nothing_is_named(kind):
    "With a text that tells something, an amount that is mostly nought, a voucher that few have, dates of birth."
    about = tables.world(kind, 11, n=2500)
    assert not tables.named_by_new(about, about.rows) and not tables.named_by_scope(about, about.rows)


# the whole way: an own column of the calls that was written when the answer was known ------------------------------------------


def leaky(problem, accepted=None):
    "The help desk's problem with a column `code` of the call itself."
    contract = replace(
        w.calls_contract, columns=(*w.calls_contract.columns, Column("code", "category", nullable=True))
    )
    columns = {**w.calls.columns, "code": "text"}
    calls = Events("calls", keys={"client": "int"}, time="at", columns=columns)
    source = replace(problem.sources[0], contract=contract)
    features = FeatureSet(problem.name, (request("code", "text"), *problem.features.features))
    about = replace(problem.population, events=calls)
    return replace(
        problem,
        sources=(source, *problem.sources[1:]),
        features=features,
        population=about,
        accepted=accepted or {},
    )


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    "Calls; one in twenty has a code that somebody wrote after the answer."
    settings = w.make(tmp_path_factory.mktemp("desk"), n=2_400)
    calls, answers = (pl.read_parquet(settings.raw / f"{name}.parquet") for name in ("calls", "answers"))
    told = calls.join(answers, on="call", how="left", maintain_order="left")
    some = pl.Series(np.random.default_rng(1).random(calls.height) < 0.05)
    for name, column in {"calls": "again", "hours": "hours", "desk": "desk"}.items():
        code = pl.select(
            pl.when(some).then(told[column].cast(pl.String)).otherwise(pl.lit("none"))
        ).to_series()
        (settings.raw / name).mkdir()
        calls.with_columns(code=code).write_parquet(settings.raw / name / "calls.parquet")
        for other in settings.raw.glob("*.parquet"):
            if other.name != "calls.parquet":
                (settings.raw / name / other.name).write_bytes(other.read_bytes())
    return settings


def at_desk(settings, name, accepted=None):
    own = replace(settings, raw=settings.raw / name, root=settings.root / name)
    problem = leaky({"calls": w.history, "hours": w.hours, "desk": w.desk}[name], accepted)
    at = Context(own, problem, datetime(2024, 3, 25, tzinfo=UTC))
    ingest_due(at)
    return at


@pytest.mark.parametrize("name", ["calls", *["desk"] * FULL])
def test_a_leak_stops_a_promotion_until_somebody_answers_for_it(desk, name):
    at = at_desk(desk, name)
    suspected = {s.column for s in leaks(at.problem, training_set(at).frame) if s.sure}
    assert suspected == {"code"}
    stopped = train(at, n_trials=1)
    assert stopped.decision == "refused" and "this looks like a leak: code" in stopped.reason, stopped.reason
    assert "accepted={'code'" in stopped.reason and at.champion.version != stopped.release.version
    why = "written by the client before the call"
    known = at_desk(desk, name, {"code": why})
    passed = train(known, n_trials=1, seed=1)
    assert "leak" not in passed.reason
    manifest = passed.candidate.package.manifest
    assert manifest["accepted"] == {"code": why}
    [check] = [c for c in manifest["verdict"]["checks"] if c["name"] == "leakage"]
    assert check["passed"] and why in check["meaning"] and why in json.dumps(passed._repr_html_())


# poisoning: one batch of many --------------------------------------------------------------------------------------------------


def gym_with(folder, visits):
    "The gym on day 61; a person has promoted what was trained on day 50, whatever the gate said of it."
    settings = gym.make(folder, visits)
    ingest_due(at_gym(settings))
    trained = train(at_gym(settings), n_trials=2)
    holder, made = champion(at_gym(settings).control, "visits"), trained.release.version
    if holder.version != made:
        said = {"at": at_gym(settings).now, "actor": "ann", "reason": "to see"}
        promote(at_gym(settings).control, "visits", made, expected_epoch=holder.epoch, **said)
    ingest_due(at_gym(settings, 11))
    return at_gym(settings, 11)


@pytest.mark.parametrize("poisoned", [True, False])
def test_a_batch_that_lied_is_named_and_honest_ones_are_not(tmp_path, poisoned, capsys):
    "On one day an importer said that everybody had come: who stays away looks like who comes, for every window that day lies in."
    visits, day = gym.rows(), gym.START + 38 * gym.DAY
    if poisoned:
        all_of_them = pl.DataFrame({"member": np.arange(1, 601), "at": [day + 20 * HOUR] * 600})
        all_of_them = all_of_them.with_columns(
            pl.col("at").dt.replace_time_zone(None).cast(visits.schema["at"]),
            minutes=pl.lit(60, pl.Int64),
            branch=pl.lit("north"),
        )
        visits = pl.concat([visits, all_of_them.select(visits.columns)]).sort("at", "member")
    place = gym_with(tmp_path, visits)
    found = attribution(place, most=12)
    batches = found.table.filter(pl.col("by") == "batch of visits")
    assert batches.height == 12 and f"{day:%Y-%m-%d}" in batches["value"].to_list()
    named = found.table.filter(pl.col("low") > 0)["value"].to_list()
    assert named == ([f"{day:%Y-%m-%d}"] if poisoned else []), found.table
    if poisoned:
        assert (
            batches["harm"][0] == batches["harm"].max() > 0.002
            and f"without batch of visits {named[0]}" in found.sentences[0]
        )
        assert "Fitted without" in found._repr_html_() and named[0] in found._repr_html_()


def test_leaving_a_batch_out_changes_nothing_of_the_system(tmp_path):
    place = at_gym(lived(tmp_path), 11)
    before = {
        p: p.stat().st_mtime_ns
        for p in place.settings.root.rglob("*")
        if p.is_file() and "control" not in p.name
    }
    one, other = attribution(place, most=2), attribution(place, most=2)
    assert one.table.equals(other.table)
    assert before == {p: p.stat().st_mtime_ns for p in before}
