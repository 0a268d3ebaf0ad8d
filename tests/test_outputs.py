"""The outputs that notebooks save: what is kept of a run, when a saved one is stale, and what stands in the repository."""

import base64
import json
import re
import subprocess
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import polars as pl
import pytest
import values
from execnb.shell import CaptureShell
from fastcore.nbio import mk_cell
from lessons import BIGGEST, CHAPTERS, NBS, VOLATILE, difference, kept, plain, text
from values import Seen, agreed

MOST = 3_000_000  # bytes of all saved outputs
FEWEST = 270  # cells that keep an output; raise it when `make outputs` has saved more
KEPT = 130  # chapters whose calls keep their values; raise it when `make outputs` has written more
HIDDEN = ("#| export", "#| hide", "#| default_exp", "#| eval: false", "#| slow", "#| notest")


def shown(**data):
    return {"data": data, "metadata": {}, "output_type": "execute_result", "execution_count": 7}


def printed(line, name="stdout"):
    return {"name": name, "output_type": "stream", "text": [line]}


def test_the_best_form_of_a_value_is_kept_without_its_count():
    found, refused = kept([shown(**{"text/plain": "Frame()", "text/html": "<table>\n</table>"})])
    assert refused == [] and found == [
        {"data": {"text/html": ["<table>\n", "</table>"]}, "metadata": {}, "output_type": "execute_result",
         "execution_count": None}
    ]  # fmt: skip


def test_a_warning_is_not_kept():
    assert kept([printed("careful", "stderr"), printed("done\n")]) == (
        [{"name": "stdout", "output_type": "stream", "text": ["done\n"]}],
        [],
    )


@pytest.mark.parametrize("word", ["/tmp/tmpab12/x.csv", "'/home/me/a'", "<Thing at 0x7f3a2b1c9d10>", "\x1b[31mred", "x" * (BIGGEST + 1)])  # fmt: skip
def test_what_is_of_this_machine_is_refused(word):
    found, refused = kept([printed(f"wrote {word}\n"), printed("fine\n")])
    assert [o["text"] for o in found] == [["fine\n"]] and len(refused) == 1


@pytest.mark.parametrize(
    "word", ["/v1/churn/predictions", "https://example.org/usr/share", "../tmp/x", "0x1F"]
)
def test_what_only_looks_like_it_is_kept(word):
    assert len(kept([printed(f"see {word}\n")])[0]) == 1


def test_a_changed_output_is_stale():
    old = kept([printed("auc 0.71, 12 rows\n")])[0]
    assert difference(old, kept([printed("auc 0.71, 12 rows\n")])[0]) == ""
    assert "auc 0.72" in difference(old, kept([printed("auc 0.72, 12 rows\n")])[0])
    assert "saved 12, now 13" in difference(old, kept([printed("auc 0.71, 13 rows\n")])[0])
    assert "auc: 0.71" in difference(old, kept([printed("auc: 0.71, 12 rows\n")])[0])
    assert difference(old, []) == "1 saved outputs, the code gives 0"


def test_the_last_digits_of_a_float_may_differ_between_machines():
    old, new = (kept([shown(**{"text/plain": f"{x!r}"})])[0] for x in (0.1 + 0.2, 0.3))
    assert old != new and difference(old, new) == ""


def test_a_picture_is_compared_by_what_it_draws():
    def page(svg):
        packed = base64.b64encode(svg.encode()).decode()
        return kept([shown(**{"text/html": f'<img src="data:image/svg+xml;base64,{packed}" alt="a line">'})])[
            0
        ]

    old = page('<path d="M 1.0000000001 2" stroke="red"/>')
    assert difference(old, page('<path d="M 1 2" stroke="red"/>')) == "" or "M 1" in plain(old[0])
    assert difference(old, page('<path d="M 1.0000000002 2" stroke="red"/>')) == ""
    assert "blue" in difference(old, page('<path d="M 1.0000000001 2" stroke="blue"/>'))


def saved():
    for path in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                if cell.get("outputs"):
                    yield path, cell


def test_saved_outputs_are_clean():
    for path, cell in saved():
        where = f"{path.name}, cell {cell['id']}; python tests/outputs.py {path.name}"
        assert path in CHAPTERS, f"{where}: only chapters, cases and the tour keep outputs"
        assert not text(cell["source"]).startswith(HIDDEN), f"{where}: a hidden cell has no output"
        assert cell["execution_count"] is None, where
        assert kept(cell["outputs"]) == (cell["outputs"], []), f"{where}: not what the command saves"
        assert not any(p.search(plain(o)) for p in VOLATILE.values() for o in cell["outputs"]), where


def test_enough_outputs_are_saved():
    count = sum(1 for _ in saved())
    assert count >= FEWEST, f"{count} cells keep an output, at least {FEWEST} did; run make outputs"


def test_saved_outputs_are_small():
    size = sum(len(json.dumps(cell["outputs"])) for _, cell in saved())
    assert size <= MOST, f"{size:,} bytes of saved outputs, at most {MOST:,}; draw less, show fewer rows"


@pytest.mark.parametrize(
    "path", [*CHAPTERS, *(NBS.parent / f"{n}.md" for n in ("README", "CONTRIBUTING"))], ids=lambda p: p.name
)
def test_a_notebook_is_one_by_the_book_and_links_lead_to_files(path):
    body = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        nbformat.validate(nbformat.reads(body, as_version=4))
        body = "\n".join(text(c["source"]) for c in json.loads(body)["cells"] if c["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md|py))(?:#[\w-]+)?\)", body):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


def test_nbdev_clean_keeps_saved_outputs(tmp_path):
    (tmp_path / "pyproject.toml").write_text(Path(NBS.parent / "pyproject.toml").read_text())
    cell = {"cell_type": "code", "id": "a1b2c3d4", "metadata": {}, "source": ["1 + 1"], "execution_count": None,
            "outputs": kept([shown(**{"text/plain": "2"})])[0]}  # fmt: skip
    body = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path = tmp_path / "nbs" / "one.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps(body))
    subprocess.run(["nbdev-clean", "--fname", str(path)], check=True, cwd=tmp_path, capture_output=True)
    assert json.loads(path.read_text())["cells"][0]["outputs"] == cell["outputs"]


def seen_in(source, **names):
    shell, seen = CaptureShell(mpl_format=None), Seen()
    seen.watch(shell)
    seen.cell = "a1"
    shell.user_ns.update(names)
    shell.cell(mk_cell(source))
    shell.close()
    assert not shell.exc, shell.exc
    return seen.cells.get("a1", {})


def test_what_the_calls_of_a_lesson_give_is_seen_also_within_asserts():
    def told(x):
        return {"share": x / 3, "at": datetime(2010, 5, 1), "in": Path("/tmp/a1b2"), "to": "/tmp/a1b2/x.csv"}

    found = seen_in(
        "assert told(1)['share'] < 1\nassert len(str(told(2))) > 3\ndef inner(): return told(9)\ninner()",
        told=told,
    )
    assert set(found) == {"told(1)", "told(2)", "inner()"}, "builtins are plain, and no function is changed"
    assert (
        "share=0.333333" in values.shown(told(1))
        and "/tmp" not in values.shown(told(1))
        and len(values.shown(told(1))) < 120
    )
    assert found["told(1)"] != found["told(2)"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pl.DataFrame({"n": [1, 2]}), pl.DataFrame({"n": [1, 3]})),
        (pl.DataFrame({"n": [1]}), pl.DataFrame({"n": [1]}, schema={"n": pl.Int8})),
        (pl.Series([0.1]), pl.Series([0.2])),
        (np.array([1.0]), np.array([[1.0]])),
        (np.float64(1.5), np.float64(1.25)),
        ([1, {"a": (2, None)}], [1, {"a": (2, 0)}]),
        ({3, 4}, {3, 5}),
        (timedelta(days=1), timedelta(days=2)),
        (VOLATILE, {}),
        ("x" * 300, "x" * 301),
        (b"<svg/>", b"<svg />"),
        (ValueError("a"), ValueError("b")),
        (True, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_differ_are_kept_differently(one, other):
    assert values.shown(one) == values.shown(deepcopy(one)) != values.shown(other)


def test_the_last_digits_paths_and_digests_are_not_kept():
    assert values.shown(0.1 + 0.2 - 0.3) == values.shown(0.0) != values.shown(1e-5)
    assert values.shown(0.1 + 0.2) == values.shown(0.3) and values.shown(
        "0.30000000000000004 s"
    ) == values.shown("0.3 s")
    assert values.shown("in /tmp/a/b.csv") == values.shown("in /home/me/b.csv") and values.shown(
        "9f" * 8
    ) == values.shown("e0" * 8)
    assert values.shown(range(10**12)) == values.shown(range(5)), "what is not read is only named"


def test_what_two_runs_gave_otherwise_is_not_kept():
    one = {"a": {"f(1)": ["5"], "g()": ["now"], "h()": ["None"]}, "b": {"f(2)": ["1"]}}
    assert agreed(one, {"a": {"f(1)": ["5"], "g()": ["later"], "h()": ["None"]}}) == {"a": {"f(1)": ["5"]}}


def test_a_value_that_nobody_asserts_is_held_until_the_chapter_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "NBS", tmp_path)
    monkeypatch.setattr(values, "HERE", tmp_path)
    path, seen = tmp_path / "10_one.ipynb", Seen()
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["price(3)"]}]}))
    values.write(path, {"a1": {"price(3)": ["300"]}})
    seen.cells = {"a1": {"price(3)": ["300"]}}
    assert values.differing(path, seen) == []
    seen.cells = {"a1": {"price(3)": ["301"]}}
    assert values.differing(path, seen) == ["cell a1: price(3) gave 300; now 301"]
    seen.cells = {}
    assert values.differing(path, seen) == ["cell a1: price(3) gave 300; now "]
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["price(4)"]}]}))
    assert values.differing(path, seen) == [], "written again with the outputs of the changed chapter"


def test_values_of_other_versions_are_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "NBS", tmp_path)
    monkeypatch.setattr(values, "HERE", tmp_path)
    path = tmp_path / "10_one.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["price(3)"]}]}))
    values.write(path, {"a1": {"price(3)": ["300"]}})
    assert values.held(path) == {"a1": {"price(3)": ["300"]}} and "polars" in values.read(path)["with"]
    monkeypatch.setattr(values, "computed_with", lambda: "another machine")
    assert values.held(path) == {}


def test_the_values_of_chapters_are_kept_and_small():
    held = [path for path in CHAPTERS if path.parent.name not in values.FREE]
    count = sum(1 for path in held if values.read(path))
    assert count >= KEPT, f"the values of {count} chapters are kept, of {KEPT} they were; run make outputs"
    files = set((values.HERE / "values").rglob("*/*.json"))
    assert sum(f.stat().st_size for f in files) <= MOST
    assert files <= {values.file_of(path) for path in held}, "of a chapter that is gone"
