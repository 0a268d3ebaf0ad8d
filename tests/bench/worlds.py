"""Three worlds, declared before looking: does the declared loop keep up with the best simple policy in each?

    python tests/bench/worlds.py                # all three, with all policies
    python tests/bench/worlds.py claims traffic # some of them

The wholesaler's year (churn), hourly traffic (an amount) and generated claims whose truth is known (a mark that is no longer
delivered, a quarter with three times as much fraud, recovery; `tests/claims_world.py`). In each the declared policy loses at
most .002 nats a decision to the best alternative, or as large a share of the loss of the best constant prediction where
losses are no nats; it is never worse than the rule for two periods in a row; and whatever asks somebody to act because
of drift names each subject at most as often as it says something new.
"""

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from math import log
from pathlib import Path
from time import monotonic

import polars as pl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from claims_world import PERIOD, START, Plan, declared, lake_of  # noqa: E402

from mlsys_nb.loop.baseline_policies import Fits  # noqa: E402
from mlsys_nb.loop.dry_run import rehearse  # noqa: E402
from mlsys_nb.loop.ingest_step import ingest_due  # noqa: E402
from mlsys_nb.loop.policy_simulation import Simulation, by_month, simulate, worse_than_rule  # noqa: E402
from mlsys_nb.loop.simulated_history import Recorded, looks_of, recorded  # noqa: E402
from mlsys_nb.loop.step_context import Context  # noqa: E402
from mlsys_nb.problem.declaration import load_problem  # noqa: E402
from mlsys_nb.system.settings import Settings, load_settings  # noqa: E402

WORLDS = ("churn", "traffic", "claims")
POLICIES = ("never", "recalibrate-monthly", "monthly", "newest", "declared", "oracle")
NATS = 0.002  # a decision, to the best alternative
PLAN = Plan()


@dataclass(frozen=True)
class Met:
    "What a world demanded, and what came."

    world: str
    found: Simulation
    lost: float
    allowed: float
    below_rule: int
    late: tuple[str, ...] = ()  # Alarms that did not come in time, or came again and again

    @property
    def passed(self) -> bool:
        return self.lost <= self.allowed and self.below_rule < 2 and not self.late

    def line(self) -> str:
        word = "met" if self.passed else "NOT MET"
        return f"{self.world:8} lost {self.lost:+.4f}, allowed {self.allowed:.4f}; worse than the rule in {self.below_rule} periods in a row; {'; '.join(self.late) or 'alarms in time'}: {word}"


def history(settings: Settings, world: str, plan: Plan = PLAN) -> Recorded:
    "The rows of a world."
    if world == "claims":
        problem, end, lake = declared(plan), START + plan.periods * PERIOD, lake_of(plan)[0]
    else:
        problem = load_problem(settings, world)
        at = Context(settings, problem, problem.replay.moments()[-1])
        ingest_due(at)
        end, lake = at.now, at.lake
    return recorded(problem, lake, looks_of(problem, lake, end))


def by_look(found: Simulation, begin, looks: int, kinds: tuple[str, ...]) -> bool:
    "Whether an alarm of some kinds was open at one of the first looks after something had changed."
    seen = [m for m in found.lived if begin < m.at <= begin + looks * PERIOD]
    return any(name.startswith(kinds) for m in seen for name in m.alerts)


def late_in(world: str, found: Simulation, plan: Plan) -> tuple[str, ...]:
    "What should have been said and was not, or was said too often."
    if world == "churn":
        about = [m for m in found.lived if "drift/tenure_days" in m.alerts]
        return (f"tenure asked somebody to act at {len(about)} looks",) if len(about) > 1 else ()
    if world != "claims":
        return ()
    missed = []
    # An outcome takes 27 days: of what changed in a period labels tell at the second look.
    for what, begin, kinds in (
        ("the mark that vanished", plan.unmarked, ("drift/mark", "performance/")),
        ("three times as much", plan.tripled, ("performance/",)),
    ):
        if not by_look(found, START + begin * PERIOD, 2, kinds):
            missed.append(f"no alarm about {what}")
    return tuple(missed)


def met(settings: Settings, world: str, past: Recorded, n_trials: int = 12, policies=POLICIES) -> Met:
    "One world."
    lived = rehearse(settings, past, n_trials=n_trials)
    found = simulate(past, Fits(past, n_trials), policies, lived)
    judge = past.problem.target.judge
    spread = judge.spread(judge.outcomes(past.decided["label"]))
    allowed = NATS if judge.unit == "nats" else NATS * spread / log(2)
    return Met(
        world,
        found,
        found.row("declared")["above"],
        allowed,
        worse_than_rule(found),
        late_in(world, found, PLAN),
    )


def told(one: Met) -> None:
    "What a world showed, for somebody who reads along."
    with pl.Config(
        tbl_cols=-1, tbl_rows=-1, tbl_width_chars=220, float_precision=4, tbl_hide_column_data_types=True
    ):
        print(
            one.found.policies.select(
                "policy", "loss", "above", "above_low", "above_high", "cost_per_1000", "dearer"
            )
        )
        print(by_month(one.found))
    for m in one.found.lived:
        print(
            f"  {m.at:%Y-%m-%d} version {m.version} {m.decision}; {m.performance}; {', '.join(m.alerts)}; {m.reason[:300]}"
        )
    print("  alerts:", dict(Counter(name for m in one.found.lived for name in m.alerts)))
    print(f"  {one.found.finding}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("worlds", nargs="*", choices=[[], *WORLDS], help="which; all of them")
    given, done = parser.parse_args(), []
    for world in given.worlds or WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            settings, began = load_settings(folder, home=ROOT), monotonic()
            past = history(settings, world)
            print(f"-- {world}: {past.decided.height:,} decisions, {len(past.looks)} looks", flush=True)
            done.append(met(settings, world, past))
            told(done[-1])
            print(f"  ({monotonic() - began:.0f} s)", flush=True)
    print(
        "== three worlds: the declared loop against the best of never, recalibrate-monthly, monthly, newest"
    )
    for one in done:
        print(one.line())
    return int(not all(one.passed for one in done))


if __name__ == "__main__":
    sys.exit(main())
