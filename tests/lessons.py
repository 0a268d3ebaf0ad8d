"""The lessons of a chapter, run against the installed package: exported cells are skipped, the module is imported.

`kept` is what of their outputs a notebook saves; `difference` holds a saved output against a new one.
"""

import base64
import html
import importlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from execnb.shell import CaptureShell
from nbdev.process import NBProcessor
from values import Seen

NBS = Path(__file__).resolve().parents[1] / "nbs"
CHAPTERS = sorted(
    p
    for p in [*NBS.glob("*.ipynb"), *NBS.glob("[0-9]*/**/[0-9]*.ipynb"), *NBS.glob("cases/*.ipynb")]
    if p.name[0] not in "_."
)
SKIPPED = {"export", "exporti", "exports", "default_exp", "notest", "slow"}
BIGGEST = 64_000  # bytes of one output; what is larger is not read on a forge
SHOWN = (
    "text/html",
    "image/svg+xml",
    "image/png",
    "text/markdown",
    "text/plain",
)  # the best form of a value is kept
VOLATILE = {
    "a path of this machine": re.compile(
        r"(?<![\w.:/])/(?:tmp|home|root|work|usr|var|opt|private|Users|mnt)/"
    ),
    "an address in memory": re.compile(r"\b0x[0-9a-f]{8,}"),
    "a colour of a terminal": re.compile("\x1b"),
}
PICTURE = re.compile(r'<figure class="mls-figure"><img src="data:image/svg\+xml;base64,([\w+/=]+)"[^>]*>(?:<figcaption>.*?</figcaption>)?</figure>', re.S)  # fmt: skip
PARTS = re.compile(r"\b[mp][0-9a-f]{10}\b")  # of a picture: named by a digest of their last digits
EACH_TIME = re.compile(  # the id of an answer, what one takes, the seal of a package, which changes with any code; whose Python
    r"""\bh\d+-\d+-[0-9a-f]{16}\b|[\d.]+(?= ms per prediction)|[\d,]+(?= bytes, at most)|(?<=>package</th><td style="text-align:left">)[0-9a-f]{12}|(?<=>python</th><td style="text-align:left">)[\d.]+"""
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def module_of(nb):
    "The module that a chapter exports to; None for a chapter that only tells."
    for cell in nb.cells:
        named = (cell.directives_ or {}).get("default_exp")
        if named:
            name = named if isinstance(named, str) else named[0]
            return importlib.import_module(f"mlsys_nb.{name}".removesuffix(".__init__"))
    return None


def run(path: Path, seen: Seen | None = None) -> Iterator[tuple[dict, list[dict]]]:
    "Each code cell of a chapter that is a lesson, run in the folder of the chapter, with its outputs; `seen` gets its values."
    nb = NBProcessor(path, rm_directives=False, process=True).nb
    shell = CaptureShell(path, mpl_format=None)
    module = module_of(nb)
    if module is not None:
        shell.user_ns.update({k: v for k, v in vars(module).items() if not k.startswith("__")})
    if seen is not None:
        seen.watch(shell)
    for cell in nb.cells:
        marks = cell.directives_ or {}
        if cell.cell_type != "code" or SKIPPED & marks.keys() or str(marks.get("eval")).lower() == "false":
            continue
        if seen is not None:
            seen.cell = cell.id
        shell.cell(cell)
        if shell.exc:
            raise AssertionError(f"{path.name}, cell {cell.id}:\n{cell.source}") from shell.exc
        yield cell, [] if "hide" in marks else json.loads(json.dumps(cell.outputs))
    shell.close()


def text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def best_form(data: dict) -> tuple[str, str]:
    "The richest form of a value; a picture of ours as the SVG it is, which a forge shows."
    form = next((f for f in SHOWN if f in data), "")
    content = text(data.get(form, ""))
    drawn = PICTURE.fullmatch(content.strip()) if form == "text/html" else None
    return ("image/svg+xml", base64.b64decode(drawn[1]).decode()) if drawn else (form, content)


def kept(outputs: list[dict]) -> tuple[list[dict], list[str]]:
    "The outputs that a notebook saves, and why others are left out. A warning is never saved."
    found: list[dict] = []
    refused: list[str] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] == "stderr":
                continue
            clean = {"name": "stdout", "output_type": "stream", "text": text(output["text"]).splitlines(True)}
            content = text(clean["text"])
        else:
            form, content = best_form(output["data"])
            if not form:
                continue
            data = {form: content.splitlines(True) if form != "image/png" else content.rstrip()}
            clean = {"data": data, "metadata": {}, "output_type": output["output_type"]}
            if clean["output_type"] == "execute_result":
                clean["execution_count"] = None
        why = [what for what, pattern in VOLATILE.items() if pattern.search(content)]
        if len(content.encode()) > BIGGEST:
            why.append(f"{len(content.encode()):,} bytes")
        refused += why
        if not why and content.strip():
            found.append(clean)
    return found, refused


def plain(output: dict) -> str:
    "An output as text that can be compared: pictures inside of pages are taken out of their wrapping."
    if output["output_type"] == "stream":
        return text(output["text"])
    form, content = next(iter(output["data"].items()))

    def unpacked(match: re.Match[str]) -> str:
        return base64.b64decode(match[1]).decode("utf-8", "replace")

    whole = re.sub(r"data:image/svg\+xml;base64,([\w+/=]+)", unpacked, text(content))
    return f"{form}\n{EACH_TIME.sub('#', PARTS.sub('#part', whole))}"


def difference(saved: list[dict], new: list[dict]) -> str:
    "What a reader of the saved outputs would see otherwise; empty for nothing. The last digits of a float may differ."
    if len(saved) != len(new):
        return f"{len(saved)} saved outputs, the code gives {len(new)}"
    for old, now in zip(map(plain, saved), map(plain, new), strict=True):
        if NUMBER.sub("#", old) != NUMBER.sub("#", now):
            return f"saved:\n{html.unescape(old)[:600]}\nnow:\n{html.unescape(now)[:600]}"
        for here, there in zip(NUMBER.finditer(old), NUMBER.finditer(now), strict=True):
            a, b = here[0], there[0]
            exact = a.isdigit() or b.isdigit()
            if a != b and (exact or not math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-9)):
                around = html.unescape(now[max(there.start() - 300, 0) : there.end() + 300])
                return f"saved {a}, now {b}, in:\n{around}"
    return ""
