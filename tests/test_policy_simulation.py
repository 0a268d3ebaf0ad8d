"Whole policies over recorded history: nobody sees what was not known yet, and the same history gives the same figures."

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from claims_world import PERIOD, START, Plan, declared, lake_of

from mlsys_nb.loop.baseline_policies import BASELINES, Baseline, Fits, live
from mlsys_nb.loop.dry_run import rehearse
from mlsys_nb.loop.policy_simulation import simulate, worse_than_rule
from mlsys_nb.loop.simulated_history import Recorded, looks_of, recorded
from mlsys_nb.problem.dataset import Lake
from mlsys_nb.system.settings import load_settings

SMALL = Plan(periods=11, a_period=250, begins=7, unmarked=9, tripled=40, recovered=40)
END = START + SMALL.periods * PERIOD


def history(plan: Plan = SMALL, lake: Lake | None = None) -> Recorded:
    problem = declared(plan)
    lake = lake or lake_of(plan)[0]
    return recorded(problem, lake, looks_of(problem, lake, START + plan.periods * PERIOD))


def scrambled(lake: Lake, after) -> Lake:
    "The same history up to a moment; whatever becomes known later says the opposite."
    told = lake.events["answers"]
    other = told.with_columns(
        fraud=pl.when(pl.col("known_at") > after).then(~pl.col("fraud")).otherwise("fraud")
    )
    return replace(lake, events={**lake.events, "answers": other})


def answers(past: Recorded, baseline: Baseline, until) -> list[list[float]]:
    "What each act of a policy, made by a moment, says of every claim."
    acts = live(baseline, Fits(past, n_trials=2))
    return [act.predict(past.decided).tolist() for act in acts if act.at <= until]


def differ(baseline: Baseline) -> bool:
    "Whether answers up to a moment depend on what became known after it."
    lake, then = lake_of(SMALL)[0], START + 9 * PERIOD
    found = [answers(history(lake=one), baseline, then) for one in (lake, scrambled(lake, then))]
    return found[0] != found[1]


@pytest.mark.parametrize("name", BASELINES)
def test_no_policy_sees_what_was_not_known_yet(name):
    assert not differ(BASELINES[name])


def test_a_policy_that_peeks_is_caught(monkeypatch):
    "The same check with a fault planted: labels count as soon as their claim was made."

    def peeking(self: Recorded, now):
        return self.learnable.filter(pl.col("period") <= now)

    monkeypatch.setattr(Recorded, "known", peeking)
    assert differ(BASELINES["monthly"])


def test_a_policy_that_looks_one_look_ahead_is_caught():
    "And with another: it fits on what is known at the next look."

    def ahead(outlook, before):
        return BASELINES["monthly"].act(replace(outlook, now=outlook.now + PERIOD), before)

    past = history()
    acts = live(Baseline("ahead", "peeks", ahead), Fits(past))
    honest = live(BASELINES["monthly"], Fits(past))
    assert [a.learnt for a in acts][:-1] == [a.learnt for a in honest][1:]
    assert differ(Baseline("ahead", "peeks", lambda o, b: replace(ahead(o, b), at=o.now)))


def test_labels_come_with_their_true_delays():
    past, told = history(), lake_of(SMALL)[0].events["answers"]
    for now in past.looks:
        known = past.known(now)
        late = known.join(told.select("claim", "known_at"), on="claim", how="left")
        assert late["known_at"].max() <= now
        assert (known["moment"] + past.problem.matures_after).max() <= now


def test_the_declared_loop_decides_alike_whatever_comes_later(tmp_path):
    lake, then = lake_of(SMALL)[0], START + 8 * PERIOD
    settings = load_settings(tmp_path)
    looks = [START + k * PERIOD for k in (7, 8, 9)]
    lived = [
        list(rehearse(settings, recorded(declared(SMALL), one, looks), n_trials=1))[:2]
        for one in (lake, scrambled(lake, then))
    ]
    assert [(m.at, m.decision, m.reason, m.version, m.alerts) for m in lived[0]] == [
        (m.at, m.decision, m.reason, m.version, m.alerts) for m in lived[1]
    ]
    assert lived[0][1].decided["score"].to_list() == lived[1][1].decided["score"].to_list()
    assert not list(tmp_path.iterdir()), "a rehearsal leaves nothing in the system it rehearses"


def test_the_same_history_gives_the_same_figures():
    ways = ["never", "monthly", "weekly", "oracle"]
    found = [simulate(past, Fits(past, n_trials=2), ways).to_dict() for past in (history(), history())]
    assert found[0] == found[1]


def test_losses_are_those_of_the_decisions_and_the_truth_loses_least():
    past, truth = history(), lake_of(SMALL)[1]
    found = simulate(past, Fits(past, n_trials=2), ["never", "monthly", "oracle"])
    y = past.decided["label"].to_numpy().astype(float)
    q = np.array([truth[c] for c in past.decided["claim"]])
    known = -(y * np.log(q) + (1 - y) * np.log(1 - q))
    assert found.decisions == past.decided.height == sum(found.periods.filter(policy="never")["n"])
    assert found.row("oracle")["loss"] <= min(
        found.row(name)["loss"] for name in ("never", "monthly", "rule")
    )
    assert found.row("rule")["loss"] > known.mean() - 0.01
    assert 0 <= worse_than_rule(found, "never") <= len(past.looks)


def test_a_way_that_forgets_is_the_rule_where_it_leaves_one_kind_of_outcome():
    past = history()
    last, label = past.learnable["period"].max(), past.learnable.schema["label"]
    quiet = pl.when(pl.col("period") >= last - 3 * PERIOD).then(pl.lit(0, label)).otherwise("label")
    past = replace(past, learnable=past.learnable.with_columns(label=quiet))
    days = 2 * PERIOD.total_seconds() / 86400
    ways = {"linear": {}, "rule": {"lookback_days": days}}
    assert [Fits(past).fitted(("linear", way), past.looks[-1]).family for way in ways.values()] == [*ways]
