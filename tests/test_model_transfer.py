"""A version is brought from staging into production: the same bytes with its evidence, checked there, promoted by the rule of that system,
refused with all reasons at once, done once however often it is cut."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import visits_world as world

from mlsys_nb.doors.cli import main
from mlsys_nb.doors.deploy import model_transfer
from mlsys_nb.doors.deploy.model_transfer import Deed, HandoverError, hand_over
from mlsys_nb.doors.privacy.encrypt_existing import encrypt_root
from mlsys_nb.learning.train import fit
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.promotion import Release
from mlsys_nb.loop.step_context import context
from mlsys_nb.loop.training_set import training_set
from mlsys_nb.problem.binary_target import Happens
from mlsys_nb.release.package import Evidence, build, load, with_verdict
from mlsys_nb.release.promotion_hold import Hold, hold
from mlsys_nb.release.registry import champion, promote, register, versions
from mlsys_nb.system.audit import audit_log, check_trail
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import get_document, open_control, put_document
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.encryption import key_of
from mlsys_nb.system.settings import load_settings

NOW = "2024-04-20T00:00:00+00:00"
SAID = {"decision": "promote", "reason": "better than the rule by .02 [.01, .03]", "checks": []}
DEED = Deed(instant(NOW), "anna", "judged in staging")


def sealed(at, family="linear", verdict=SAID, **params):
    "A version as a training leaves it: sealed with its verdict, noted with the champion that it was compared with."
    rows = training_set(at)
    fitted = fit(family, rows.frame, at.problem.features.names, rule=at.problem.rule, params=params)
    package = build(fitted, rows, Evidence(metrics={}))
    key = f"visits/train/{family}{len(params)}{verdict['decision'] if verdict else ''}"
    made = register(
        at.control, at.settings, with_verdict(package, verdict) if verdict else package, key, at.now
    )
    note = Release(made.version, True, "promote", SAID["reason"], champion(at.control, "visits").epoch)
    put_document(at.control, "release", key, vars(note))
    return made


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Two systems of the same data: one has versions, the other none."
    folder = tmp_path_factory.mktemp("stages")
    for name in ("staging", "production"):
        here = world.make(folder / name)
        at = context("visits", NOW, load_settings(home=folder / name))
        write_json(at.settings.clock_file, {"now": NOW})
        assert open_control(at.settings) and ingest_due(at)
        if name == "staging":
            sealed(at)
            sealed(at, "boosting")
            sealed(at, verdict=None)
        assert here.home == at.settings.home
    return folder


@pytest.fixture
def stages(pair, tmp_path, monkeypatch):
    shutil.copytree(pair, tmp_path / "it's 100% ours")
    folder = tmp_path / "it's 100% ours"
    monkeypatch.setenv("MLSYS_HOME", str(folder / "staging"))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return [load_settings(home=folder / name) for name in ("staging", "production")]


def of(settings, number=1):
    return next(v for v in versions(open_control(settings), settings, "visits") if v.version == number)


def handed(stages, number=1):
    staging, production = stages
    return hand_over(staging, of(staging, number), production, DEED)


def test_the_command_brings_it_with_its_evidence_and_the_gates_word_counts_there(stages, capsys):
    staging, production = stages
    words = ["promote", "visits", "1", "--to", str(production.home), "--reason", "judged in staging"]
    assert main(words) == 0
    assert "it serves there now" in capsys.readouterr().out
    control = open_control(production)
    [there] = versions(control, production, "visits")
    assert there.digest == of(staging).digest and champion(control, "visits").version == there.version == 1
    files = lambda v: {p.name: p.read_bytes() for p in v.path.iterdir() if p.is_file()}
    assert files(there) == files(of(staging)), "the same bytes"
    assert load(there.path, there.digest).manifest["verdict"]["reason"] == SAID["reason"]
    known = get_document(control, "received", "visits/1")
    assert (known["from"], known["digest"], known["verdict"]["decision"]) == (
        str(staging.root),
        there.digest,
        "promote",
    )
    lines = [(line.action, line.subject) for line in audit_log(control)]
    assert ("receive version", "visits/1") in lines and ("promote", "visits/champion") in lines
    assert [line.action for line in audit_log(open_control(staging), "visits/1")] == ["hand over"]
    assert check_trail(control).broken is None and champion(open_control(staging), "visits").version is None
    assert main(["verify", "--root", str(production.root)]) == 0
    trail = audit_log(control)
    assert main(words) == 0 and audit_log(control) == trail, "done twice is done once"


def test_a_version_waits_where_its_gate_saw_another_champion(stages, capsys):
    staging, production = stages
    assert handed(stages).serves
    control = open_control(staging)
    promote(control, "visits", 2, expected_epoch=0, at=instant(NOW), actor="bo", reason="why not")
    later = sealed(context("visits", NOW, staging), "linear", C=0.5)
    done = handed(stages, later.version)
    assert not done.serves and "another version than 1" in done.waits
    assert champion(open_control(production), "visits").version == 1
    assert (
        main(["promote", "visits", str(later.version), "--to", str(production.home), "--reason", "again"])
        == 0
    )
    told = capsys.readouterr().out
    assert (
        "it waits there" in told
        and f"mlsys promote visits {done.there} --reason" in told
        and "--root" in told
    )


def test_it_replaces_the_champion_that_its_gate_saw(stages):
    staging, production = stages
    promote(
        open_control(staging), "visits", 1, expected_epoch=0, at=instant(NOW), actor="gate", reason="first"
    )
    assert handed(stages).serves
    later = sealed(context("visits", NOW, staging), "linear", C=0.5)
    done = handed(stages, later.version)
    assert done.serves and champion(open_control(production), "visits").version == done.there == 2


@pytest.mark.parametrize("what", ["held", "never judged"])
def test_it_goes_there_and_waits_for_a_person(stages, what):
    _, production = stages
    if what == "held":
        hold(open_control(production), Hold("visits", instant(NOW), "cem", "audit week"))
    done = handed(stages, 1 if what == "held" else 3)
    assert not done.serves and ("audit week" if what == "held" else "never asked") in done.waits
    assert champion(open_control(production), "visits").version is None


def test_everything_against_it_is_said_at_once_and_noted_in_both(stages, monkeypatch, capsys):
    staging, production = stages
    late = "2024-09-01T00:00:00+00:00"
    write_json(production.clock_file, {"now": late})
    shutil.rmtree(production.online)
    few = Happens(world.count(world.visits, "7d").named("visits_next_7d"), "<=", 1, "one visit at most")
    other = replace(world.problem, target=few)
    real = model_transfer.context
    monkeypatch.setattr(
        model_transfer, "context", lambda name, **more: replace(real(name, **more), problem=other)
    )
    with pytest.raises(HandoverError) as refused:
        handed(stages)
    text = str(refused.value)
    assert all(f"{part}: " in text for part in ("question", "data", "serving store")), text
    for one in stages:
        [line] = [line for line in audit_log(open_control(one)) if line.action == "handover refused"]
        assert line.actor == "anna" and len(line.detail["against"]) >= 3
    assert versions(open_control(production), production, "visits") == []


def test_a_damaged_package_goes_nowhere(stages):
    staging, production = stages
    place = of(staging).path / "model.json"
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(bytes(content))
    assert main(["promote", "visits", "1", "--to", str(production.home), "--reason", "x"]) == 2
    assert versions(open_control(production), production, "visits") == []


@pytest.mark.parametrize("at", ["register", "put_document", "audit", "promote"])
def test_cut_anywhere_it_continues(stages, monkeypatch, at):
    staging, production = stages
    real = getattr(model_transfer, at)

    def cut(*args, **more):
        real(*args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(model_transfer, at, cut)
        with pytest.raises(KeyboardInterrupt):
            handed(stages)
    assert handed(stages).serves
    control = open_control(production)
    actions = [line.action for line in audit_log(control)]
    assert len(versions(control, production, "visits")) == 1 and champion(control, "visits").epoch == 1
    assert actions.count("receive version") == 1 and actions.count("promote") == 1
    assert [line.action for line in audit_log(open_control(staging), "visits/1")].count("hand over") == 1


@pytest.mark.parametrize("place, why", [("staging", "shares its root"), ("nowhere", "holds no system yet")])
def test_it_goes_into_another_system_only(stages, capsys, place, why):
    folder = stages[0].home.parent
    assert main(["promote", "visits", "1", "--to", str(folder / place), "--reason", "x"]) == 2
    assert why in capsys.readouterr().err


def test_between_two_roots_each_behind_a_key_of_its_own(stages, tmp_path):
    for here in stages:
        with (here.home / "settings.ini").open("a") as file:
            file.write(f"\n[security]\nmaster_key = {tmp_path / here.home.name}.key\n")
        assert encrypt_root(load_settings(home=here.home), Namespace(rotate=False)) == 0
        (batch, *_) = sorted(here.lake.glob("*/[!.]*/rows.parquet"))
        assert key_of(batch.read_bytes())
    staging, production = stages
    code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["promote", "visits", "1", "--to", str(production.home), "--reason", "judged in staging"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    made = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and "it serves there now" in made.stdout, made.stdout + made.stderr
    (tmp_path / f"{production.home.name}.key").rename(tmp_path / "gone")
    made = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2 and "cannot be used" in made.stderr and "Traceback" not in made.stderr, (
        made.stderr
    )
