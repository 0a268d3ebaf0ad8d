"A person is forgotten: no file of the root tells of them, everything else is as it was, and a kill anywhere is made good."

import gzip
import html
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import forget_world as world
import numpy as np
import polars as pl
import psycopg
import pytest
import redis
from caller import post
from conftest import until
from cutting import CUT
from test_engines import redis_port  # noqa: F401

from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.decisions.human_reviews import Opinion, give_opinion
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.privacy.document_erasure import mirror_file
from mlsys_nb.doors.recovery.backup import take
from mlsys_nb.doors.recovery.integrity_check import audit_trail, findings
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.jobs.run_start_state import brought_back, found_by, note_found
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import score, train
from mlsys_nb.loop.step_context import context
from mlsys_nb.monitoring.binning import lens_from
from mlsys_nb.monitoring.histogram_sketch import Belonging, sketched
from mlsys_nb.monitoring.training_profile import reference_profile
from mlsys_nb.release.mlflow_sync import catch_up
from mlsys_nb.release.package_erasure import blurred
from mlsys_nb.release.registry import champion, load_version, promote
from mlsys_nb.serving.batch_queue import find_batch, page_of, progress_of, queued_batches
from mlsys_nb.serving.service import running
from mlsys_nb.system import file_operations
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.control_tables import get_document, open_control, put_document
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.line_checksum import plain_content
from mlsys_nb.system.runs_table import Run, finish_run
from mlsys_nb.system.settings import Settings, load_settings
from mlsys_nb.system.tracking import open_tracking

TOKENS = ("ZQORDER-", "ZQNOTE-", "zoé", "7731>", "ZQHTTP", "77310000", "773,100,00")
FORGET = ["forget", "buyers", "--entity", world.ADA, "--reason", f"asked by {world.ADA}"]


def everywhere(root: Path, hidden: bool = False) -> dict[str, str]:
    "Every file of a root that has a token, found by other means than the product's: bytes, unpacked, column by column, behind the key or not."
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        content = path.read_bytes()
        parts = [content, content := content if hidden else plain_content(path, content)]
        if content[:2] == b"\x1f\x8b":
            parts.append(gzip.decompress(content))
        if (at := content.find(b"PAR1")) >= 0 and content.endswith(b"PAR1"):
            frame = pl.read_parquet(io.BytesIO(content[at:]), glob=False)
            parts.append(json.dumps(frame.to_dicts(), default=str, ensure_ascii=False).encode())
        if content[:6] == b"\x93NUMPY":
            parts.append(json.dumps(np.load(io.BytesIO(content)).tolist()).encode())
        for token in TOKENS:
            forms = {token, json.dumps(token)[1:-1], html.escape(token)}
            if any(form.encode() in part for form in forms for part in parts):
                found[str(path.relative_to(root))] = token
    return found


def at(here: Settings, problem: str):
    return context(problem, world.NOW.date().isoformat(), here)


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    "A small root with all that may tell of somebody; built once."
    return fill(tmp_path_factory.mktemp("shop"))


def fill(folder: Path, **where: str) -> Path:
    here = replace(world.make(folder), **where)
    with pytest.MonkeyPatch.context() as m:
        m.syspath_prepend(str(Path(__file__).parent))
        write_json(here.clock_file, {"now": world.NOW.isoformat()})
        for name in ("buyers", "notes"):
            ingest_due(at(here, name))
            train(at(here, name), n_trials=1)
            control = open_control(here)
            if champion(control, name).version is None:
                promote(control, name, 1, expected_epoch=0, at=world.NOW, actor="test", reason="test")
            score(at(here, name))
        put_document(
            open_control(here),
            "look",
            f"buyers/{world.ADA}",
            {
                "slice": {"client": world.ADA},
                "said": next(n for n in world.rows()["note"] if n.startswith("ZQ")),
            },
        )
        told = {
            "Order": "ZQHTTP-1",
            "Client": world.ADA,
            "at": "2024-02-19T10:00:00Z",
            "note": "ZQHTTP said zoé",
            "agent": "kim",
            "late": False,
            "pence": 9,
        }
        with running(here, "buyers", "notes") as url:
            for event in (
                told,
                {**told, "Order": "ZQHTTP-2", "pence": "ZQHTTP none"},
                {**told, "Order": "o-9", "Client": "123", "note": "hm"},
            ):
                assert post(url, "/v1/events/orders", [event])[0] in (202, 422), event
            for client in (world.ADA, "12", "123"):
                status, made = post(
                    url,
                    "/v1/buyers/predictions",
                    {"client": client, "request_id": f"ZQHTTP {client}" if client == world.ADA else client},
                )
                assert status == 200, made
                assert (
                    post(url, "/v1/buyers/outcomes", {"decision_id": made["decision_id"], "outcome": 1})[0]
                    == 200
                )
                give_opinion(here, world.buyers, Opinion(made["decision_id"], 1, "kim", world.NOW))
            asked = {"entities": [{"client": world.ADA}, {"client": "12"}], "request_id": "of the day"}
            status, told = post(url, "/v1/buyers/batches", asked)
            assert status == 202, told
            batch = find_batch(here, "buyers", told["batch"])
            until(lambda: progress_of(batch).ended == "done")
        put_document(open_control(here), "look", "wire", {"said": "ZQHTTP said zoé"})  # told over HTTP only
        for run, word in (
            ("early", next(n for n in world.rows()["note"] if n.startswith("ZQ"))),
            ("late", ""),
        ):
            put_document(
                open_control(here),
                "look",
                "old",
                {"slice": {"client": world.ADA if word else "12"}, "said": word},
            )
            note_found(here, run)
        write_json(folder / "told.json", {"decision": made["decision_id"]})
        main(["monitor", "buyers", "--root", str(here.root)]) if os.environ.get("TEST_MLSYS_FULL") else None
    return folder


@pytest.fixture
def shop(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    "A copy of it."
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    shutil.copytree(filled, tmp_path / "shop")
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "shop"))
    return load_settings(root=tmp_path / "shop" / "root", home=tmp_path / "shop")


def others(here: Settings) -> dict[str, object]:
    "What is to be seen of everybody else."
    lake = read(here, snapshot(here, "orders")).filter(pl.col("client") != world.ADA)
    early = read(here, snapshot(here, "orders", world.START + 20 * world.DAY))
    made = {n: read_decisions(here, n) for n in ("buyers", "notes")}
    made["buyers"] = made["buyers"].filter(pl.col("client") != world.ADA)
    made["notes"] = made["notes"].filter(~pl.col("order").str.starts_with("ZQ"))
    with open_online(here.online_url) as store:
        reader = store.reader(world.buyers.features)
        names = [{"client": c} for c in sorted(set(lake["client"]))]
        served = reader.read_many(names, world.NOW).frame
    sets = {
        f"{n} {i}": value
        for n, frame in made.items()
        for i, value in enumerate(frame.sort("decision_id").to_dicts())
    }
    for batch in queued_batches(here, "buyers"):
        rows = [
            json.loads(line)
            for part in progress_of(batch).parts
            for line in page_of(batch, part).splitlines()
        ]
        sets["batch"] = [row for row in rows if row["entity"] == {"client": "12"}]
    return {
        "lake": lake.to_dicts(),
        "early": early.filter(pl.col("client") != world.ADA).to_dicts(),
        "served": served.to_dicts(),
        **sets,
    }


def forget(here: Settings, *more: str, who: str = world.ADA, name: str = "buyers") -> int:
    return main(
        ["forget", name, "--entity", who, "--reason", f"asked by {who}", *more, "--root", str(here.root)]
    )


def test_no_file_tells_of_who_was_forgotten_and_all_else_is_as_it_was(shop, capsys):
    assert {p.split("/")[1] for p in everywhere(shop.root)} >= {
        "lake",
        "inbox",
        "online",
        "decisions",
        "control.db",
        "batches",
        "chronicle.log",
    }
    before = others(shop)
    assert forget(shop) == 0 and "nothing was changed" in capsys.readouterr().out
    assert forget(shop, "--yes") == 0, capsys.readouterr()
    assert everywhere(shop.root) == {}
    assert others(shop) == before
    assert findings(shop) == [] and audit_trail(shop).broken is None
    early = replace(shop, root=shop.root.parent / "early")
    brought_back(shop, found_by(shop, "early"), early.root)
    assert everywhere(early.root) == {}, "a moment of the past does not have them either"
    assert "[forgotten]" in json.dumps(get_document(open_control(early), "look", "old"))
    line = audit_log(open_control(shop))[-1]
    assert (
        line.action == "forget" and line.detail["left"] == 0 and any("->" in s for s in line.detail["seals"])
    )
    assert forget(shop) == 0 and "was forgotten on" in capsys.readouterr().out
    ingest_due(at(shop, "buyers"))  # the same file, read again
    assert everywhere(shop.root) == {} and findings(shop) == []
    for name in ("buyers", "notes"):
        made = champion(open_control(shop), name).version
        load_version(open_control(shop), shop, getattr(world, name), made)
    train(at(shop, "buyers"), n_trials=1)
    assert everywhere(shop.root) == {}


def test_a_service_at_work_forgets_too(shop, filled):
    theirs = json.loads((filled / "told.json").read_text())["decision"]
    with running(shop, "buyers", "notes") as url:
        ask = lambda i: urllib.request.urlopen(f"{url}/v1/buyers/decisions/{i}", timeout=60).status
        status, hers = post(url, "/v1/buyers/predictions", {"client": world.ADA})
        assert status == 200 and ask(hers["decision_id"]) == 200
        assert forget(shop, "--yes") == 0
        for path, body in (
            ("predictions", {"client": world.ADA}),
            ("outcomes", {"decision_id": hers["decision_id"], "outcome": 1}),
        ):
            assert post(url, f"/v1/buyers/{path}", body)[0] == 404
        with pytest.raises(urllib.request.HTTPError, match="404"):
            ask(hers["decision_id"])
        assert ask(theirs) == 200
        event = {
            "Order": "ZQHTTP-5",
            "Client": world.ADA,
            "at": "2024-02-19T10:00:00Z",
            "note": "ZQHTTP",
            "agent": "kim",
            "late": False,
            "pence": 9,
        }
        status, told = post(url, "/v1/events/orders", [event])
        assert "forgotten" in json.dumps(told), (status, told)
        assert post(url, "/v1/buyers/predictions", {"client": "123"})[0] == 200
    assert everywhere(shop.root) == {} and findings(shop) == []


@pytest.mark.parametrize("who", ["12", "1"])
def test_an_id_that_begins_another_or_is_a_value_elsewhere_takes_nothing_else(shop, who):
    rest = lambda: read(shop, snapshot(shop, "orders")).filter(pl.col("client") != who)
    before, agents = rest(), rest()["agent"].value_counts().sort("agent")
    assert forget(shop, "--yes", who=who) == 0
    now = read(shop, snapshot(shop, "orders"))
    assert now.equals(before) and who not in set(now["client"])
    assert now["agent"].value_counts().sort("agent").equals(agents) and "12" in set(now["agent"])
    assert read_decisions(shop, "buyers").filter(pl.col("client") == "123").height > 0
    assert findings(shop) == []


def test_nobody_is_forgotten_by_mistake(shop, capsys):
    for who, name, said in (
        ("nobody", "buyers", "check the id"),
        ("x", "sellers", "known: buyers"),
        ("order=9", "notes", "check the id"),
    ):
        assert forget(shop, "--yes", who=who, name=name) == 2 and said in capsys.readouterr().err
    assert not (shop.data / "forgotten.log").exists()


def test_who_may_return_is_taken_in_again_but_what_was_here_is_not(shop, capsys):
    assert forget(shop, "--yes", "--may-return") == 0
    ingest_due(at(shop, "buyers"))
    assert everywhere(shop.root) == {}
    later = context("buyers", (world.NOW + 3 * world.DAY).date().isoformat(), shop)
    ingest_due(later)
    assert set(read(shop, snapshot(shop, "orders"))["client"]) >= {world.ADA}, (
        "what came after is theirs again"
    )


def cut_at(here: Settings, number: int) -> int:
    "The exit code of a process of its own: a fork of one that has threads may wait for ever."
    words = [sys.executable, Path(__file__).with_name("cutting.py"), str(number), *FORGET, "--yes"]
    env = {**os.environ, "MLSYS_HOME": str(here.home)}
    words += ["--root", here.root]
    return subprocess.run(list(map(str, words)), env=env, stdout=subprocess.DEVNULL, timeout=120).returncode


def test_a_kill_at_any_write_is_made_good_by_the_same_command(shop, tmp_path, monkeypatch, capsys):
    before, deeds, place = others(shop), [], shop.root.parent
    shutil.copytree(place, tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(file_operations, "FAULTS", [lambda verb, path, content: deeds.append(verb)])
        assert forget(load_settings(root=tmp_path / "whole" / "root", home=place), "--yes") == 0
    last = len(deeds)  # the work's own note goes at the very end
    for number in range(2, last + 1) if os.environ.get("TEST_MLSYS_FULL") else (2, last * 2 // 3, last - 1):
        root = tmp_path / f"cut-{number}"
        shutil.copytree(shop.root, root)
        here = load_settings(root=root, home=place)
        assert cut_at(here, number) == CUT, number
        assert forget(here, "--yes") == 0, (number, deeds[number - 1], capsys.readouterr())
        assert everywhere(root) == {}, (number, deeds[number - 1])
        assert others(here) == before, number
        assert findings(here) == [], (number, deeds[number - 1])
        shutil.rmtree(root)


def test_a_backup_of_before_is_forgotten_in_when_it_is_brought_back(shop, tmp_path, capsys):
    place, again = tmp_path / "copies", tmp_path / "again"
    old = take(shop, place, world.NOW)
    assert forget(shop, "--yes") == 0
    take(shop, place, world.NOW + world.DAY)
    told = ["restore", str(place), "--to", str(again), "--at", f"{old.at:%Y-%m-%dT%H:%M:%SZ}"]
    assert main(told) == 0, capsys.readouterr()
    assert everywhere(again) == {}


def test_the_mirror_forgets_and_goes_on(shop, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow")
    for place in ("", f"sqlite:///{tmp_path / 'elsewhere' / 'mirror.db'}"):
        monkeypatch.setenv("MLSYS_TRACKING_URI", place)
        root = tmp_path / ("there" if place else "here")
        shutil.copytree(shop.root, root)
        here = load_settings(root=root, home=shop.home)
        said = {"client": world.ADA, "note": "ZQHTTP said zoé"}
        told = Run(
            "told",
            "score",
            "buyers",
            "told",
            "succeeded",
            world.NOW,
            said,
            world.NOW,
            world.NOW,
            1.0,
            "",
            {},
            "",
        )
        finish_run(open_control(here), told)
        catch_up(here)
        path = mirror_file(here)
        assert b"ZQHTTP" in path.read_bytes()
        assert forget(here, "--yes") == 0, capsys.readouterr()
        assert everywhere(root) == {} and everywhere(path.parent) == {}
        catch_up(here)
        assert open_tracking(here).search_experiments(), "it goes on"


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_stores_and_tables_on_servers_forget(tmp_path, monkeypatch, request, capsys, kind):
    server = request.getfixturevalue("postgres_url")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE forget_{kind}")
    base = server.replace("/postgres", f"/forget_{kind}")
    if kind == "redis":
        port = request.getfixturevalue("redis_port")
        online = f"redis://127.0.0.1:{port}/5"
    else:
        online = base
    where = {"control_uri": base.replace("postgresql://", "postgresql+psycopg://"), "online_uri": online}
    for name, value in where.items():
        monkeypatch.setenv(f"MLSYS_{name.upper()}", value)
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    fill(tmp_path)
    here = load_settings(root=tmp_path / "root", home=tmp_path)
    before = others(here)
    assert any("ZQHTTP" in said for said in on_servers(here, base))
    assert forget(here, "--yes") == 0, capsys.readouterr()
    assert everywhere(here.root) == {}
    assert not [said for said in on_servers(here, base) for token in TOKENS if token in said]
    assert others(here) == before and findings(here) == []
    if kind == "redis":
        folder = Path(redis.Redis(port=port).config_get("dir")["dir"])
        assert not [p for p in folder.rglob("*.aof") if b"ZQHTTP" in p.read_bytes()], "nor its file"


def on_servers(here: Settings, base: str) -> list[str]:
    "All that the servers hold, as text."
    with psycopg.connect(base, autocommit=True) as connection:
        names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        told = [
            str(row) for (name,) in names for row in connection.execute(f"SELECT * FROM {name}").fetchall()
        ]
    with open_online(here.online_url) as store:
        told += [bytes(value).decode("utf-8", "replace") for _, value in store.engine.scan(b"")]
    return told


def test_bounds_of_a_profile_are_no_values_of_rows():
    rng = np.random.default_rng(0)
    values = np.r_[rng.lognormal(6, 1, 3000), np.zeros(900), 88123456.78]
    frame = pl.DataFrame({"amount": values, "moment": [world.NOW] * len(values)})
    before = reference_profile(frame, ["amount"]).to_json()
    now = blurred(json.loads(json.dumps(before)), {88123456.78})
    (old,), (new,) = before["lenses"], now["lenses"]
    rows = set(values.tolist()) - {0.0}
    assert rows & set(old["edges"]) and not rows & set(new["edges"]), "the values of rows stood there"
    assert not any("88123456"[:3] in f"{edge:.17g}" for edge in new["edges"])
    assert 0.0 in new["edges"] and new["edges"] == sorted(new["edges"]), (
        "what many rows hold has its own cell"
    )
    counts = sketched(lens_from(new), frame, Belonging(np.zeros(len(values), int), 1))[0, 0]
    told = sketched(lens_from(old), frame, Belonging(np.zeros(len(values), int), 1))[0, 0]
    moved = np.abs(np.cumsum(counts - told)).max() / len(values)
    assert moved < 1 / 128, "a bound moves by less than half a cell"
    assert blurred(now, {88123456.78}) == now
