"Encryption at rest: nothing is read from the rows of a root by whoever lacks its key, and everything works for who has it."

import json
import os
import shutil
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path

import forget_world as world
import httpx
import polars as pl
import pytest
from caller import head, post
from conftest import until
from test_forget import at, everywhere, fill, filled, forget, others, shop  # noqa: F401
from test_problems import served

from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.privacy.encrypt_existing import READABLE, encrypt_root
from mlsys_nb.doors.recovery.integrity_check import findings
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.serving.service import running
from mlsys_nb.system import file_operations
from mlsys_nb.system.durable import Log, SealError
from mlsys_nb.system.encryption import COVERED, MAGIC, VAULT, Box, boxes_of
from mlsys_nb.system.line_checksum import plain_content
from mlsys_nb.system.settings import Settings, load_settings


def in_clear(here: Settings) -> dict[str, str]:
    "Covered files of a root in which one of the words is read as they are on the disk, by whoever has no key."
    return {p: token for p, token in everywhere(here.data, hidden=True).items() if p.split("/")[0] in COVERED}


@pytest.fixture(scope="module")
def locked(tmp_path_factory) -> Path:
    "The same root, encrypted from its first day."
    folder = tmp_path_factory.mktemp("locked")
    os.environ["MLSYS_MASTER_KEY"] = str(folder / "master.key")
    try:
        here = world.make(folder)
        assert main(["encrypt", "--root", str(here.root)]) == 0
        return fill(folder)
    finally:
        del os.environ["MLSYS_MASTER_KEY"]


@pytest.fixture
def vault(locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    "A copy of it, opened by its key."
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("MLSYS_MASTER_KEY", str(locked / "master.key"))
    shutil.copytree(locked, tmp_path / "shop")
    monkeypatch.setenv("MLSYS_HOME", str(tmp_path / "shop"))
    return load_settings(root=tmp_path / "shop" / "root", home=tmp_path / "shop")


def test_nothing_is_read_from_the_rows_of_an_encrypted_root(vault, monkeypatch, tmp_path, capsys):
    assert in_clear(vault) == {} and findings(vault) == [], capsys.readouterr()
    seen = everywhere(vault.root, hidden=True)
    assert len(seen) > 2 and not [p for p in seen if not p.startswith(tuple(READABLE))], "more than is said"
    for secret in (vault.data / VAULT, Path(os.environ["MLSYS_MASTER_KEY"])):
        assert secret.stat().st_mode & 0o777 == 0o600, "it is its owner's alone"
    assert read(vault, snapshot(vault, "orders")).filter(pl.col("client") == world.ADA).height > 10
    assert read_decisions(vault, "buyers").filter(pl.col("client") == world.ADA).height > 0
    before = others(vault)
    assert main(["encrypt", "--rotate", "--root", str(vault.root)]) == 0, capsys.readouterr()
    assert len(boxes_of(vault.data)) == 1, "the old key has left"
    assert others(vault) == before and findings(vault) == [] and in_clear(vault) == {}
    assert forget(vault, "--yes") == 0, capsys.readouterr()
    assert others(vault) == before and findings(vault) == []
    assert everywhere(vault.root) == {}, "nor behind the key"
    for text, said in (("", "No such file"), ("zz", "64 hexadecimal"), ("00" * 32, "the right one back")):
        other = tmp_path / "other.key"
        other.write_text(text) if text else None
        monkeypatch.setenv("MLSYS_MASTER_KEY", str(other))
        code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(sys.argv[1:]))"
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        made = subprocess.run(
            [sys.executable, "-c", code, "verify", "--root", str(vault.root)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert (
            made.returncode != 0
            and said in made.stdout + made.stderr
            and "master_key in" in made.stdout + made.stderr
        )
        assert "Traceback" not in made.stderr


def test_a_root_in_the_clear_comes_under_a_key_whatever_stops_it(shop, tmp_path, monkeypatch, capsys):  # noqa: F811
    before = others(shop)
    monkeypatch.setenv("MLSYS_MASTER_KEY", str(tmp_path / "master.key"))
    here, deeds = load_settings(root=shop.root, home=shop.home), []

    class Cut(Exception):
        pass

    def cut(verb, path, content):
        deeds.append(verb)
        if len(deeds) in stops:
            raise Cut

    for stops in ({2}, {9}, {30}, {55}):
        deeds.clear()
        with monkeypatch.context() as m:
            m.setattr(file_operations, "FAULTS", [cut])
            with pytest.raises(Cut):
                encrypt_root(here, Namespace(rotate=bool(stops & {30, 55})))
        assert others(here) == before and findings(here) == [], "half of it is read like the whole"
    assert main(["encrypt", "--root", str(here.root)]) == 0
    said = capsys.readouterr().out
    assert others(here) == before and findings(here) == [] and len(boxes_of(here.data)) == 1
    assert all(p.endswith(".log") and p in said for p in in_clear(here)), "what stays in the clear is named"
    assert not [p for p in in_clear(here) if p.startswith("lake")] or "ledger" in str(in_clear(here))


def test_hostile_records_behind_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSYS_MASTER_KEY", str(tmp_path / "master.key"))
    here = load_settings(root=tmp_path / "root", home=tmp_path)
    encrypt_root(here, Namespace(rotate=False))
    path = here.labels / "p" / "outcomes.log"
    log = Log(path)
    texts = ["x" * 10_000_000, "\u202eBob\u2066", "\ud800", "\x00\n~", ""]
    for text in texts:
        log.append([{"said": text}])
    assert [r["said"] for r in Log.read(path)] == texts
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])  # torn
    assert [r["said"] for r in Log.read(path)] == texts[:-1]
    log.append([{"said": "after"}])
    assert [r["said"] for r in Log.read(path)][-1] == "after"
    at = len(path.read_bytes()) - 20
    broken = bytearray(path.read_bytes())
    broken[at] ^= 1
    path.write_bytes(bytes(broken))
    with pytest.raises(SealError, match="line 5"):
        Log.read(path)
    empty = here.labels / "p" / "empty.log"
    Log(empty)
    assert Log.read(empty) == []


def test_what_is_hidden_is_shown_whatever_its_bytes_look_like(tmp_path):
    "A hidden file in which a blank stood before the mark of a hidden line was taken for a log, and searched as it was."
    box, place = Box.of(bytes(32)), tmp_path / "rows"
    boxes = {box.id: box}
    content = next(c for c in (MAGIC + box.id + box.close(b"told") for _ in range(10**6)) if b" ~" in c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlsys_nb.system.encryption._KNOWN", boxes)
        assert plain_content(place, content) == b"told"
    assert plain_content(place, b"12345678 ~ in a picture\nand\n") == b"12345678 ~ in a picture\nand\n"


def asked_until(
    stop: threading.Event, url: str, head: dict[str, str], told: list[tuple[str, int, dict]]
) -> None:
    "Somebody who asks about two people, says what became of it, and tells events of both."
    n = 0
    with httpx.Client(base_url=url, headers=head, timeout=60) as client:
        while not stop.is_set():
            n += 1
            who = (world.ADA, "123")[n % 2]
            said = {
                "client": who,
                "request_id": f"{'ZQHTTP' if who == world.ADA else 'r'} {threading.get_ident()} {n}",
            }
            answer = client.post("/v1/buyers/predictions", json=said)
            told.append((who, answer.status_code, answer.json()))
            if answer.status_code == 200:
                body = {"decision_id": answer.json()["decision_id"], "outcome": n % 4 // 2}
                told.append((who, client.post("/v1/buyers/outcomes", json=body).status_code, {}))
            if n % 4 < 2:
                note = "ZQHTTP" if who == world.ADA else "hm"
                event = {"Order": f"{note}-{n}", "Client": who, "at": "2024-02-19T10:00:00Z", "note": note, "agent": "kim", "late": False, "pence": 9}  # fmt: skip
                told.append((who, client.post("/v1/events/orders", json=[event]).status_code, {}))
            if n % 10 == 1:
                entities = [{"client": who}, {"client": "12"}]
                answer = client.post(
                    "/v1/buyers/batches", json={"entities": entities, "request_id": said["request_id"]}
                )
                told.append((who, answer.status_code, {}))


@pytest.mark.parametrize("root", ["vault", *["shop"] * ("TEST_MLSYS_FULL" in os.environ)])
def test_several_workers_at_work_forget_and_nothing_comes_back(root, request, monkeypatch):
    here = request.getfixturevalue(root)
    stop, told, before = threading.Event(), list[tuple[str, int, dict]](), others(here)
    with served(here, "buyers", "notes", workers=3) as (client, _):
        given = (stop, str(client.base_url), head(here.root), told)
        threads = [threading.Thread(target=asked_until, args=given) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: sum(status == 200 for _, status, _ in told) > 40)
            code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(sys.argv[1:]))"
            words = [
                "forget",
                "buyers",
                "--entity",
                world.ADA,
                "--reason",
                "asked",
                "--yes",
                "--root",
                str(here.root),
            ]
            env = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
                "MLSYS_RELOAD_SECONDS": "0.1",
            }
            made = subprocess.run(
                [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True
            )
            done = len(told)
            assert made.returncode == 0, made.stdout + made.stderr
            until(lambda: len(told) > done + 30)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert everywhere(here.root) == {}, "while they are at work"
    assert everywhere(here.root) == {}, "nor what they wrote when they ended"
    assert not [t for t in told if t[1] >= 500], "nobody heard of it as an error of the service"
    assert any(who == world.ADA and status == 200 for who, status, _ in told[:done]), (
        "she was asked about before"
    )
    assert not any(who == world.ADA and status == 200 for who, status, _ in told[done + 6 :])
    kept = set(read_decisions(here, "buyers")["decision_id"])
    mine = {
        t["decision_id"] for who, status, t in told if who == "123" and status == 200 and "decision_id" in t
    }
    assert len(mine) > 10 and mine <= kept, "what others were told is there"
    assert findings(here) == []
    left, now = ("early", "lake"), others(here)
    assert {k: now[k] for k in left} == {k: before[k] for k in left}


def by_command(here: Settings, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    "A command in a process of its own, which knows no key of before."
    code = "import sys; from mlsys_nb.doors.cli import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    told = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run([sys.executable, "-c", code, *words], env=told, capture_output=True, text=True)


def test_a_backup_of_an_encrypted_root_is_brought_back_with_the_key_only(vault, tmp_path):
    place, again = tmp_path / "copies", tmp_path / "again"
    assert by_command(vault, "backup", str(place), "--root", str(vault.root)).returncode == 0
    assert by_command(vault, "encrypt", "--rotate", "--root", str(vault.root)).returncode == 0
    listed = json.loads(next((place / "backups").glob("*/files.json")).read_text())
    covered = [about for name, about in listed.items() if name.split("/")[1] in COVERED]
    (shown := tmp_path / "shown").mkdir()
    for about in covered:
        shutil.copy(place / "objects" / about["sha256"][:2] / about["sha256"], shown)
    assert len(covered) > 20 and everywhere(shown, hidden=True) == {}, "what lies in the backup tells nothing"
    said = by_command(
        vault, "restore", str(place), "--to", str(tmp_path / "no"), MLSYS_MASTER_KEY=str(tmp_path / "gone")
    )
    assert (
        said.returncode != 0
        and "cannot be used" in said.stdout + said.stderr
        and "Traceback" not in said.stderr
    )
    made = by_command(vault, "restore", str(place), "--to", str(again))
    assert made.returncode == 0 and "all of it is sound" in made.stdout, made
    there = load_settings(root=again, home=vault.home)
    for name in ("buyers", "notes"):
        ingest_due(at(there, name))
    assert others(there) == others(vault) and findings(there) == []
    answers = []
    for root in (vault, there):
        with running(root, "buyers") as url:
            status, told = post(url, "/v1/buyers/predictions", {"client": "123"})
            assert status == 200, told
            answers.append(
                {k: told[k] for k in ("prediction", "action", "version", "threshold") if k in told}
            )
    assert answers[0] == answers[1] and answers[0]["prediction"]


def test_runs_of_before_the_key_and_of_an_older_key_are_made_again(shop, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("MLSYS_MASTER_KEY", str(tmp_path / "master.key"))
    for job in ("ingest", "score"):
        made = by_command(shop, job, "buyers", "--root", str(shop.root))
        assert made.returncode == 0, made.stdout + made.stderr
    for more in ([], ["--rotate"]):
        assert by_command(shop, "encrypt", *more, "--root", str(shop.root)).returncode == 0
    made = by_command(shop, "reproduce", "--all", "--root", str(shop.root))
    assert made.returncode == 0 and "2 of 2 came out the same" in made.stdout, made.stdout + made.stderr
