"""Every lesson of every chapter, against the installed package, and its saved output against what the code gives now."""

import json
import os

import pytest
from lessons import CHAPTERS, difference, kept, run
from values import Seen, differing


def own_variables():
    return {name: value for name, value in os.environ.items() if name.startswith("MLSYS_")}


@pytest.mark.parametrize(
    "path", CHAPTERS, ids=lambda p: p.stem if p.stem != "00_index" else f"{p.parent.stem}_index"
)
def test_chapter(path, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.chdir(path.parent)
    for name in own_variables():
        monkeypatch.delenv(name)
    before = own_variables()
    seen = Seen()
    saved = {c["id"]: c.get("outputs", []) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]}
    stale = [
        f"cell {cell.id}: {found}"
        for cell, outputs in run(path, seen)
        if saved[cell.id] and (found := difference(saved[cell.id], kept(outputs)[0]))
    ]
    assert own_variables() == before, "a lesson leaves the environment as it found it"
    assert not stale, (
        f"saved outputs are not what the code gives; python tests/outputs.py {path.name}\n" + "\n".join(stale)
    )
    others = differing(path, seen)
    if others:  # what is not the same twice was never there to be held
        again = Seen()
        list(run(path, again))
        others = [told for told in differing(path, again) if told in others]
    assert not others, (
        f"calls of lessons give other values than they did; if that is meant, python tests/outputs.py {path.name}\n"
        + "\n".join(others)
    )
