"""The guide does what it says: each page is a script that runs here, block after block, as printed, and says what the page shows.

A fence `sh` is run, `python` as well (all of a page's between two other blocks as one program); one that names a file is written to it;
`text` is what the block before said, `...` standing for anything. `sh elsewhere` is meant for another machine: its commands are
held to the parser by tests/test_remedies.py. The only thing changed is the port, since others use 8100 too.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import PLACE, loop
from ports import free_port

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "nbs/guide"
PAGES = sorted(GUIDE.rglob("*.md"))
FENCE = re.compile(r"^```(\w+)(?: ([^\n]+))?\n(.*?)^```$", re.M | re.S)
SAID = "@@ said:"


def script(text: str) -> tuple[str, list[str]]:
    "A page as one shell script that marks where each block begins, and what each is expected to say."
    lines, expected = ["set -eu"], [""]
    for language, more, code in FENCE.findall(text):
        if language == "text" and not more:
            expected[-1] = code
            continue
        if more == "elsewhere" or (language not in ("sh", "python") and not more):
            continue
        if more:
            lines.append(f"cat > {more} <<'@@'\n{code}@@")
            continue
        lines.append(f"echo '{SAID}'")
        lines.append(code if language == "sh" else f"python - <<'@@'\n{code}@@")
        expected.append("")
    return "\n".join(lines), expected


PROGRESS = re.compile(r"^\.\.\. .*\(\d+ s\)\n", re.M)  # a slow machine says more of it than a quick one


def fits(said: str, shown: str) -> bool:
    "Whether something that was said is what a page shows; a line `...` stands for any lines, or none."
    lines, anything = f"\n{shown.strip()}\n", re.escape("...")
    shape = re.escape(lines).replace(re.escape("\n") + anything + re.escape("\n"), "\n(?:[\\s\\S]*\n)?")
    shape = shape.replace(anything, "[\\s\\S]*?")
    return re.fullmatch(shape, f"\n{PROGRESS.sub('', said).strip()}\n") is not None


RUN = [p for p in PAGES if SAID in script(p.read_text())[0]]


@pytest.mark.parametrize("path", RUN, ids=lambda p: p.stem)
def test_a_page_runs_as_printed(path, tmp_path):
    if shutil.which("curl") is None and "curl" in path.read_text():
        pytest.skip("curl is not installed here")
    port = str(free_port())
    text, expected = script(path.read_text())
    text = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + text.replace(":8100", f":{port}")
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLSYS_", "PYTHONPATH"))}
    own |= {"PATH": f"{Path(sys.executable).parent}:{own['PATH']}", "MLSYS_PORT": port}
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    said = done.stdout.split(f"{SAID}\n")
    assert done.returncode == 0, f"{path.name}, its block {len(said) - 1}:\n{said[-1][-3000:]}"
    wrong = [
        f"shown:\n{e}\nsaid:\n{s[-2000:]}"
        for s, e in zip(said, expected, strict=True)
        if e and not fits(s, e)
    ]
    assert not wrong, f"{path.name} shows what is not said:\n" + "\n".join(wrong)


def test_the_comparison_of_outputs_can_fail():
    assert (
        fits("a\nb 7\nc\n", "a\n...\nc")
        and fits("ready: yes", "ready: ...")
        and fits("a\nc", "...\na\n...\nc\n...")
    )
    assert fits("... at work (2 s)\na\n", "a")
    assert (
        not fits("a\nb\nc", "a\nc")
        and not fits("a\nbc", "a\n...\nc")
        and not fits("ready: no", "ready: yes")
        and not fits("more\na", "a")
    )


def test_the_guide_is_run_where_it_can_be():
    "A page is quickly written with nothing on it that runs; the tutorial, at least, is not such a page."
    assert {"01_tutorial", "10_own_data", "11_sql"} <= {p.stem for p in RUN}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_a_page_has_its_form(path):
    assert re.match(r"# .+\n> .+\n", path.read_text()), "open with '# Title' and '> one sentence'"


def test_the_picture_of_the_loop_is_fresh():
    assert PLACE.read_text() == loop(), "python tests/pictures.py"
