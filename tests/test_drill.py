"A drill tells what the system tells: faults of the machine, each planted in a small system and mended again."

import polars as pl
import pytest
import serving_world as world

from mlsys_nb.cases.churn import problem
from mlsys_nb.doors.drill import PLANTED, Rehearsed, _on_duty, _one
from mlsys_nb.doors.soundness import findings
from mlsys_nb.loop.step import Context

SMALL = ("damaged champion", "lost tables", "full disk", "no scheduler", "failing job", "dead channel")


@pytest.fixture
def copy(tmp_path):
    settings = world.make(tmp_path, ("linear",))
    return Rehearsed(Context(settings, problem, world.JUNE), pl.DataFrame())


def test_each_fault_of_the_machine_is_told_with_its_cause_and_mended(copy):
    before = findings(copy.settings)
    for fault in (f for f in PLANTED if f.name in SMALL):
        done = _one(fault, copy)
        assert done.right and done.told, done
    assert findings(copy.settings) == before, "every fault was mended again"


def test_without_a_fault_nothing_is_told(copy):
    assert _on_duty(copy, "done") == []


def test_there_are_enough_faults_and_each_has_a_name_of_its_own():
    assert len({fault.name for fault in PLANTED}) == len(PLANTED) >= 13
