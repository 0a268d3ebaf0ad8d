"""Every `mlsys ...` that the product prints or writes down is a command that the real parser takes (fault 21).

A command in prose ends where a backtick, a quote, a bracket, a semicolon, a colon, a comma, a comment or the line does.
"""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlsys_nb.doors.cli import parser

ROOT = Path(__file__).resolve().parents[1]
NBS = sorted(ROOT.glob("nbs/**/*.ipynb"))
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "settings.ini", "Makefile")]
TEXTS += sorted(ROOT.glob("nbs/guide/**/*.md"))
COMMAND = re.compile(
    r"(?<![\w./'-])(?:mlsys|\$\(BIN\)/mlsys) (?=[a-z-])([^`\n;,:()#|]*(?::[\w/][^`\n;,:()#|]*)*)"
)
PLACEHOLDER = "churn"  # what stands for a value in an f-string, and reads as a name


def said(node: ast.AST) -> str | None:
    "The text of a string or an f-string, each value in it a placeholder."
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        inner = [said(part) if isinstance(part, ast.Constant) else value(part) for part in node.values]
        return "".join(filter(None, inner))
    return None


def value(part: ast.FormattedValue) -> str:
    "A word for a value: a command where one stands first, nothing for an option that may be empty."
    text = ast.unparse(part.value)
    if text in ("job", "step"):
        return "train"
    if text.startswith("root_option"):
        return ""
    return "3" if text.endswith("version") else PLACEHOLDER


def strings(code: str) -> Iterator[str]:
    "Whole strings of a cell; the parts of an f-string belong together."
    tree = ast.parse(re.sub(r"^[%!].*$", "pass", code, flags=re.M))
    inner = {id(p) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for p in ast.walk(node)} - {
        id(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
    }
    for node in ast.walk(tree):
        if id(node) not in inner and (text := said(node)):
            yield text
    yield from re.findall(r"#\s(.*)$", code, flags=re.M)


def texts() -> Iterator[tuple[str, str]]:
    "Everything that a user may read: where it stands, and the text."
    for path in TEXTS:
        yield path.name, path.read_text()
    for path in NBS:
        for cell in json.loads(path.read_text())["cells"]:
            source = "".join(cell["source"])
            exported = re.search(r"^#\|\s*export", source, re.M) or path.parent.name in ("jobs", "dashboards")
            if cell["cell_type"] == "markdown":
                yield f"{path.stem}, {cell['id']}", source
            elif exported:
                yield from ((f"{path.stem}, {cell['id']}", text) for text in strings(source))


def commands(text: str) -> Iterator[str]:
    for found in COMMAND.finditer(text):
        words = re.split(
            r"""(?:(?<=\s)|^)(?:--? )|["']\)?$|\s{2,}|\. |\.$|(?:\s\d)?[<>]""", found[1].strip()
        )[0].strip()
        yield words.rstrip(".'\"")


def as_typed(words: str) -> list[str]:
    "The words of a command; where the pattern cut a quoted one short, it is closed."
    return shlex.split(words + next((q for q in ('"', "'") if words.count(q) % 2), ""))


FOUND = [(where, words) for where, text in texts() for words in commands(text)]
SMALL = [(w, c) for w, c in dict.fromkeys(FOUND) if c]


def test_there_are_commands_to_check():
    assert len(SMALL) > 25, "the pattern finds too little"
    assert {"train", "ingest", "serve", "runs", "reports"} <= {c.split()[0] for _, c in SMALL}


@pytest.mark.parametrize(("where", "words"), SMALL, ids=[f"{w}: {c}"[:90] for w, c in SMALL])
def test_fault_21_a_printed_command_can_be_typed(where, words):
    typed = as_typed(words)
    try:
        parser().parse_args(typed)
    except SystemExit as ended:
        assert ended.code == 0, words  # --help, --version
    except ValueError as error:
        if typed[:1] and len(typed) == 1 and "required" in str(error):
            return  # a command that is merely named, as in "see mlsys train"
        raise AssertionError(f"{where}: `mlsys {words}` cannot be typed: {error}") from None


@pytest.mark.parametrize(
    "wrong", ["run ingest problem=churn", "run monitor problem=x", "run train churn", "trian x"]
)
def test_the_old_remedies_would_be_found(wrong):
    assert list(commands(f"do this: mlsys {wrong}; then that")) == [wrong]
    with pytest.raises((ValueError, SystemExit)):
        parser().parse_args(shlex.split(wrong))
