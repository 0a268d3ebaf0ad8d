"""The outputs that notebooks save: what is kept of a run, when a saved one is stale, and what stands in the repository."""

import base64
import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from lessons import BIGGEST, CHAPTERS, NBS, VOLATILE, difference, kept, plain, text

MOST = 3_000_000  # bytes of all saved outputs
FEWEST = 270  # cells that keep an output; raise it when `make outputs` has saved more
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


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: f"{p.parent.stem}-{p.stem}")
def test_a_notebook_is_one_by_the_book(path):
    nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize(
    "path", [*CHAPTERS, *(NBS.parent / f"{n}.md" for n in ("README", "CONTRIBUTING"))], ids=lambda p: p.name
)
def test_links_lead_to_files(path):
    body = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
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
