"A team's own problem: the wholesaler's churn, replayed for a few months only."

from dataclasses import replace
from datetime import UTC, datetime

from mlsys_nb.cases.churn import problem as churn
from mlsys_nb.problem.replay_plan import ReplayPlan

plan = ReplayPlan(datetime(2010, 4, 1, tzinfo=UTC), datetime(2010, 6, 1, tzinfo=UTC), "1mo")
problem = replace(churn, name="short", title="A short year", replay=plan)
