"The outcome ledger: whatever arrives, in whatever pieces, is kept once and resolved by one rule."

import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.decisions.outcomes import Ledger, Outcome, OutcomeError, conflicts, read_outcomes, standings
from mlsys_nb.system.clock import instant
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
