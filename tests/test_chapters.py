"""Every lesson of every chapter, against the installed package: exported cells are skipped, the module is imported."""

import importlib
import os
from pathlib import Path

import pytest
from execnb.shell import CaptureShell
from nbdev.process import NBProcessor

NBS = Path(__file__).resolve().parents[1] / "nbs"
CHAPTERS = sorted(
    p
    for p in [*NBS.glob("*.ipynb"), *NBS.glob("[0-9]*/*.ipynb"), *NBS.glob("cases/*.ipynb")]
    if p.name[0] not in "_."
)
SKIPPED = {"export", "exporti", "exports", "default_exp", "notest", "slow"}


def module_of(nb):
    "The module that a chapter exports to; None for a chapter that only tells."
    for cell in nb.cells:
        named = (cell.directives_ or {}).get("default_exp")
        if named:
            return importlib.import_module(f"mlsys_nb.{named if isinstance(named, str) else named[0]}")
    return None


def own_variables():
    return {name: value for name, value in os.environ.items() if name.startswith("MLSYS_")}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_chapter(path, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.chdir(path.parent)
    for name in own_variables():
        monkeypatch.delenv(name)
    before = own_variables()
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    shell = CaptureShell(path)
    module = module_of(nb)
    if module is not None:
        shell.user_ns.update({k: v for k, v in vars(module).items() if not k.startswith("__")})
    for cell in nb.cells:
        marks = cell.directives_ or {}
        if cell.cell_type != "code" or SKIPPED & marks.keys() or str(marks.get("eval")).lower() == "false":
            continue
        shell.cell(cell)
        if shell.exc:
            raise AssertionError(f"{path.name}, cell {cell.id}:\n{cell.source}") from shell.exc
    assert own_variables() == before, "a lesson leaves the environment as it found it"
