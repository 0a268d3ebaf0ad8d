"Encryption at rest: nothing is read from the rows of a root by whoever lacks its key, and everything works for who has it."

import io
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import forget_world as world
import polars as pl
import pytest
from test_forget import everywhere, fill, filled, forget, others, shop  # noqa: F401

from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.encrypting import encrypt_root
from mlsys_nb.doors.verification import findings
from mlsys_nb.system import disk
from mlsys_nb.system.checked import plain_content
from mlsys_nb.system.durable import Log, SealError
from mlsys_nb.system.settings import Settings, load_settings
from mlsys_nb.system.vault import COVERED, MAGIC, Box, boxes_of


def in_clear(here: Settings) -> dict[str, str]:
    "Covered files of a root in which one of the words is read, by other means than the product's."
    return {p: token for p, token in everywhere(here.data).items() if p.split("/")[0] in COVERED}


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
    assert read(vault, snapshot(vault, "orders")).filter(pl.col("client") == world.ADA).height > 10
    assert read_decisions(vault, "buyers").filter(pl.col("client") == world.ADA).height > 0
    before = others(vault)
    assert main(["encrypt", "--rotate", "--root", str(vault.root)]) == 0, capsys.readouterr()
    assert len(boxes_of(vault.data)) == 1, "the old key has left"
    assert others(vault) == before and findings(vault) == [] and in_clear(vault) == {}
    assert forget(vault, "--yes") == 0, capsys.readouterr()
    assert others(vault) == before and findings(vault) == []
    assert of_her(vault) == [], "nor behind the key"
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


def of_her(here: Settings) -> list[str]:
    "Covered files that tell of her to whoever has the key."
    files = [p for part in COVERED for p in (here.data / part).rglob("*") if p.is_file()]
    told = {str(p): plain_content(p, p.read_bytes()) for p in files}
    tables = {
        n: str(pl.read_parquet(io.BytesIO(c)).to_dicts()).encode()
        for n, c in told.items()
        if c[:4] == b"PAR1"
    }
    return [n for n, c in (told | tables).items() if b"ZQ" in c]


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
            m.setattr(disk, "FAULTS", [cut])
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
        patch.setattr("mlsys_nb.system.vault._KNOWN", boxes)
        assert plain_content(place, content) == b"told"
    assert plain_content(place, b"12345678 ~ in a picture\nand\n") == b"12345678 ~ in a picture\nand\n"
