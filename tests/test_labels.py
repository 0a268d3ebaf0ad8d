"The outcome ledger: whatever arrives, in whatever pieces, is kept once and resolved by one rule."

import json
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import calls_world as desk
import numpy as np
import polars as pl
import pytest
import visits_world as gym
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.outcomes import Ledger, Outcome, OutcomeError, conflicts, read_outcomes, standings
from mlsys_nb.decisions.selection_bias import case_name, case_names
from mlsys_nb.doors.cli import main
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.matured_outcomes import newly_matured
from mlsys_nb.loop.pipeline import monitor, score, train
from mlsys_nb.loop.step_context import Context
from mlsys_nb.monitoring.label_delay import early_mean, label_delay
from mlsys_nb.problem.random_sampling import Lot, Lots
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import put_document
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import load_settings

START = instant("2010-05-01")
OUTCOMES = st.lists(
    st.builds(
        lambda d, label, hours, actor, correction: Outcome(
            d, label, START + timedelta(hours=hours), actor, correction
        ),
        st.sampled_from(["d1", "d2", "d3"]),
        st.integers(0, 1),
        st.integers(0, 50),
        st.sampled_from(["", "ann", "bob"]),
        st.booleans(),
    ),
    max_size=12,
)


def expected(outcomes):
    "The rule, said plainly: the first counts, unless somebody corrects."
    counts = {}
    for o in outcomes:
        if o.decision_id not in counts or o.correction:
            counts[o.decision_id] = o.label
    return counts


def unsettled(outcomes):
    "Decisions of which somebody said otherwise after the last correction (or after the first word)."
    return {
        d
        for d in ("d1", "d2", "d3")
        if (mine := [o for o in outcomes if o.decision_id == d])
        and any(
            o.label != expected(outcomes)[d]
            for o in mine[max([i for i, o in enumerate(mine) if o.correction] or [0]) :]
        )
    }


@settings(max_examples=40, deadline=None)
@given(OUTCOMES, st.integers(0, 12))
def test_rule_and_idempotence(outcomes, cut):
    with tempfile.TemporaryDirectory() as folder:
        here = load_settings(root=Path(folder))
        Ledger(here, "churn").post(outcomes[:cut])
        ledger = Ledger(here, "churn")  # As after a restart
        ledger.post(outcomes[cut:])
        kept = read_outcomes(here, "churn")
        assert {k: s.counts.label for k, s in standings(kept).items()} == expected(outcomes)
        assert set(conflicts(here, "churn")["decision_id"]) == unsettled(outcomes)
        open_before = conflicts(here, "churn")
        settled = ledger.post([o for o in outcomes if not o.correction])
        assert not settled.new and not settled.corrected
        assert (
            conflicts(here, "churn")
            .select("decision_id", "label")
            .unique()
            .sort("decision_id")
            .equals(open_before.select("decision_id", "label").unique().sort("decision_id"))
            or settled.conflicting
        )
        again = len(read_outcomes(here, "churn"))
        ledger.post([o for o in outcomes if not o.correction])
        assert len(read_outcomes(here, "churn")) == again


def test_a_torn_post_is_no_post(tmp_path):
    here = load_settings(root=tmp_path)
    Ledger(here, "churn").post([Outcome("d1", 1, START)])
    log = here.labels / "churn" / "outcomes.log"
    log.write_bytes(log.read_bytes() + b'1234abcd [{"decision_id"')
    assert [o.decision_id for o in read_outcomes(here, "churn")] == ["d1"]
    assert Ledger(here, "churn").post([Outcome("d2", 0, START)]).new == ("d2",)
    assert [o.decision_id for o in read_outcomes(here, "churn")] == ["d1", "d2"]


def test_a_torn_post_is_cut_and_a_halved_ledger_is_refused(tmp_path):
    here = load_settings(root=tmp_path)
    ledger = Ledger(here, "churn")
    ledger.post([Outcome(f"d{n}", 1, START) for n in range(20)])
    log = here.labels / "churn" / "outcomes.log"
    log.write_bytes(log.read_bytes()[:-300])
    assert "restore it" in ledger.damage()
    with pytest.raises(OutcomeError, match="acknowledged"):
        read_outcomes(here, "churn")


# --- a sample for somebody to find out: command, list, labels, estimate


CUT = desk.START + 55 * desk.DAY
SAMPLED = replace(desk.bare, lots=Lots(label=Lot(4)))


@pytest.fixture
def unanswered(tmp_path, monkeypatch):
    "A help desk whose answers stopped to come; its model has decided about three weeks of calls since."
    here = desk.make(tmp_path, n=4_000)
    answers = pl.read_parquet(here.raw / "answers.parquet")
    answers.filter(pl.col("at") < CUT.replace(tzinfo=None)).write_parquet(here.raw / "answers.parquet")
    monkeypatch.setattr("mlsys_nb.problem.declaration.load_problem", lambda settings, name: SAMPLED)

    def at(moment):
        found = Context(here, SAMPLED, moment)
        write_json(here.clock_file, {"now": moment.isoformat()})
        put_document(found.control, "parity", SAMPLED.features.hash, {"passed": True, "differing": []})
        ingest_due(found)
        return found

    train(at(CUT), n_trials=1)
    score(at(CUT))
    score(at(CUT + 21 * desk.DAY))
    return here, at, dict(desk.rows(4_000)[1].select("call", "again").rows())


def listed(here, capsys, *more):
    capsys.readouterr()
    assert main(["sample", "bare", "--limit", "5000", "--json", "--root", str(here.root), *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sample_is_listed_labelled_and_stands_for_all_while_complaints_do_not(unanswered, capsys):
    here, at, truth = unanswered
    later = CUT + 21 * desk.DAY
    drawn = listed(here, capsys)
    assert len(drawn) > 100 and {"decision_id", "call", "score", "action"} <= set(drawn[0])
    assert [row["decision_id"] for row in drawn] == [row["decision_id"] for row in listed(here, capsys)]
    made = read_decisions(here, "bare").filter("eligible", pl.col("moment") > CUT)
    inside = {row["decision_id"] for row in drawn}
    known = [row for row in drawn if row["call"] in truth]  # of one call in ten nobody ever hears
    told = [Outcome(r["decision_id"], int(truth[r["call"]]), later, "ann") for r in known]
    angry = made.filter(pl.col("call").is_in([c for c, again in truth.items() if again]))
    angry = [d for d in angry["decision_id"].to_list() if d not in inside][:150]
    told += [Outcome(d, 1, later, "a client") for d in angry]
    Ledger(here, "bare").post(told)
    left = {row["decision_id"] for row in listed(here, capsys)}
    assert left == inside - {r["decision_id"] for r in known}
    place = at(later + 10 * desk.DAY)
    judged = newly_matured(place, place.model).drop_nulls("label")
    posted = judged.filter(pl.col("label_source") == "posted")
    assert posted.height > 100 and set(posted["decision_id"]) <= inside
    of_all = np.mean([truth[c] for c in made["call"] if c in truth])
    seen, error = posted["label"].mean(), (of_all * (1 - of_all) / posted.height) ** 0.5
    everybody = np.mean([o.label for o in told])
    assert abs(seen - of_all) < 3 * error < abs(everybody - of_all), (seen, of_all, everybody)
    assert monitor(place).performance.evaluation.n == judged.height


def test_fault_whoever_asked_again_was_drawn_again():
    "The lot hung on the microsecond of the question: who asked ten times was spared by one of them."
    noon = desk.START + 40 * desk.DAY + timedelta(hours=12)

    explored = replace(gym.problem, lots=Lots(explore=Lot(4)))
    asked = [[noon + timedelta(minutes=k) for k in range(10)] for _ in range(400)]
    drawn = np.array(
        [explored.lots.spared([case_name(explored, {"member": i}, m) for m in asked[i]]) for i in range(400)]
    )
    assert (drawn.all(axis=1) == drawn.any(axis=1)).all() and 0.15 < drawn[:, 0].mean() < 0.35
    batch = pl.DataFrame({"member": range(400)}).with_columns(moment=pl.lit(noon))
    assert explored.lots.spared(case_names(explored, batch)).tolist() == drawn[:, 0].tolist()
    grid = explored.population.calendar.points(noon)[-1]  # a batch of the grid and the service after it agree
    assert [case_name(explored, {"member": i}, grid) for i in (1, 2)] == [
        case_name(explored, {"member": i}, noon) for i in (1, 2)
    ]
    with_id = replace(
        desk.history, lots=Lots(explore=Lot(4))
    )  # what has an id is one case, whenever it is asked about
    names = {case_name(with_id, {"client": 3, "call": "c1"}, m) for m in asked[0]}
    assert len(names) == 1


# --- delays, where the truth is known


@pytest.mark.parametrize("seed", range(5))
def test_delays_are_measured_as_they_are_though_the_long_ones_have_not_come_yet(seed):
    "Bad news travels 3 to 30 days, good news 3 to 12; only what has come by now is seen."
    rng, n, now, maturity = np.random.default_rng(seed), 20_000, 90.0, 25.0
    made, bad = rng.uniform(0, 90, n), rng.random(n) < 0.3
    took = np.where(bad, rng.uniform(3, 30, n), rng.uniform(3, 12, n))
    came = made + took <= now
    found = label_delay(bad[came].astype(int), took[came], (now - made)[came], timedelta(days=maturity))
    for kind, (low, high) in {0: (3, 12), 1: (3, 30)}.items():
        for share in (0.5, 0.9, 0.99):
            truth = low + share * (high - low)
            assert abs(found.curves[kind].quantile(share) - truth) < 0.04 * (high - low), (kind, share)
    assert abs(found.missed - (30 - maturity) / 27) < 0.03  # of bad news, what comes after the maturity
    naive = np.quantile(took[came & bad & (made > 60)], 0.9)
    assert naive < 0.9 * (3 + 0.9 * 27)  # what has come of the last month looks faster than it is
    young = came & (now - made < maturity)
    age, kind = (now - made)[young], bad[young].astype(int)
    estimate = early_mean(found, kind, age, kind.astype(float))
    assert abs(estimate.value - 0.3) < 0.04 < abs(kind.mean() - 0.3), (estimate, kind.mean())
