"A drill tells what the system tells: each fault is planted in a small system, told with its cause, mended by its printed remedy."

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import calls_world as calls
import pytest
import visits_world as world
from test_each import frames

from mlsys_nb.doors.game_day.drill import PLANTED, Noticed, drill, said_of_drill
from mlsys_nb.doors.game_day.fault_injection import _on_duty, _whole, rehearsed
from mlsys_nb.doors.game_day.redelivery import as_batch, year_before
from mlsys_nb.doors.recovery.backup import take
from mlsys_nb.doors.recovery.integrity_check import findings
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import score, train
from mlsys_nb.loop.step_context import Context
from mlsys_nb.problem.dataset import build_dataset
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import put_document
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import Settings, load_settings

END = world.START + 75 * world.DAY
problem = replace(world.problem, sources=(replace(world.problem.sources[0], fresh="36h"),))
DATA = ("no fault", "stuck column", "vanished category", "base rate up", "broken promise")
ARRIVING = ("duplicated batch", "silent source")
MACHINE = ("damaged champion", "damaged lake", "damaged decisions", "lost tables", "full disk", "no scheduler", "failing job", "dead channel")  # fmt: skip


@pytest.fixture(scope="module")
def gym(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    "A gym that has been scored twice; nothing has happened to it."
    folder = tmp_path_factory.mktemp("gym")
    world.make(folder)
    told = (folder / "settings.ini").read_text().replace("visits_world:problem", "test_drill:problem")
    (folder / "settings.ini").write_text(told)
    here = load_settings(root=folder / "root", home=folder)
    put_document(
        Context(here, world.problem, END).control,
        "parity",
        world.problem.features.hash,
        {"passed": True, "differing": []},
    )
    for days in (0, 3):
        at = Context(here, world.problem, END + days * world.DAY)
        ingest_due(at)
        if not days:
            assert train(at, n_trials=3).decision == "promoted"
        score(at)
    write_json(here.clock_file, {"now": at.now.isoformat(), "kind": "replayed history"})
    return here


@pytest.fixture(scope="module")
def done(gym: Settings) -> dict[str, Noticed]:
    return {one.fault: one for one in drill(gym, "visits", [*DATA, *ARRIVING, *MACHINE])}


@pytest.mark.parametrize("name", [*DATA, *ARRIVING, *MACHINE])
def test_a_fault_is_told_at_the_first_look_with_its_cause_and_closed_when_it_is_mended(
    done: dict[str, Noticed], name: str
) -> None:
    one = done[name]
    assert not one.left_out and one.right and one.mended and one.looks == 1, one
    assert bool(one.told) == (name != "no fault")


def test_the_system_itself_is_only_read(gym: Settings, done: dict[str, Noticed]) -> None:
    assert done and findings(gym) == []


def test_a_job_that_was_done_is_told_by_nobody(gym: Settings, tmp_path: Path) -> None:
    now = END + 3 * world.DAY
    with rehearsed(gym, "visits", take(gym, tmp_path, now), now) as copy:
        assert _on_duty(copy, "done") == []


def test_there_are_enough_faults_and_each_has_a_name_of_its_own() -> None:
    told: list[Any] = [fault for fault in PLANTED if fault.teller]
    assert len({fault.name for fault in PLANTED}) == len(PLANTED) and len(told) >= 12
    assert all(fault.words for fault in told), "a fault that any message would fit tests nothing"


def test_a_fault_that_cannot_be_here_is_left_out_and_said_to_be(gym: Settings, tmp_path: Path) -> None:
    "Nobody has promised that this source brings news, so nobody can miss them."
    patient = replace(gym, problems={**gym.problems, "visits": "visits_world:problem"})
    (one,) = drill(patient, "visits", ["silent source"])
    assert "says how fresh it is (fresh=)" in one.left_out and not one.told
    assert (
        said_of_drill([one])
        == "0 of 0 told at the first look and closed once mended; left out: silent source"
    )


def test_whoever_waits_reads_which_fault_is_planted_and_no_news_of_the_exercise(
    gym: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mlsys_nb")
    drill(gym, "visits", ["no scheduler", "dead channel"])
    lines = [record.getMessage() for record in caplog.records]
    told = [line for line in lines if "fault" in line]
    assert told == ["planting fault 1 of 2: no scheduler", "planting fault 2 of 2: dead channel"]
    assert not [line for line in lines if "{" in line], lines


@pytest.mark.parametrize(
    "today", ["1990-12-01", "1990-12-03"]
)  # within a period of four weeks, and at its end
def test_a_batch_is_planted_in_a_period_of_its_own(today: str) -> None:
    "Beside the sound decisions of a period that has begun, it would be told later, and nobody would be wrong."
    by_periods, daily = (
        Context(load_settings(), load_problem(load_settings(), name), instant(today))
        for name in ("loans", "churn")
    )
    assert [f"{_whole(by_periods, number):%Y-%m-%d}" for number in (1, 2)] == ["1990-12-31", "1991-01-28"]
    assert _whole(daily, 2) == instant(today) + 2 * world.DAY


def test_a_period_of_another_season_holds_what_came_a_year_before() -> None:
    "Several periods of the newest rows would be no sound ones: half a year of Septembers is news."
    problem, lake = calls.history, frames(1_500)
    now = calls.START + 60 * calls.DAY
    periods = problem.population.periods(now)
    model: Any = SimpleNamespace(
        among=None, feature_names=problem.features.names, feature_set_hash=problem.features.hash
    )
    at: Any = SimpleNamespace(problem=problem, lake=lake, now=now, matured=periods, model=model)
    of = lambda period: as_batch(at, build_dataset(problem, lake, [period], now).frame)
    newest, then = of(periods[-1]), periods[3]
    assert year_before(at, newest, then + 364 * calls.DAY).equals(of(then)) and not newest.equals(of(then))
    assert year_before(at, newest, then + 365 * calls.DAY) is newest, "nothing is known of that"
    grid: Any = SimpleNamespace(problem=world.problem, matured=periods)
    assert year_before(grid, newest, then + 364 * calls.DAY) is newest, "cases there have no periods"
