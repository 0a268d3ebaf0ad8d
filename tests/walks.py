"""A walk of the tutorial over a strange table, by the commands that are printed on the way and by no others."""

import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_port
from strange_tables import Strange

LIMIT = 180  # seconds of machine time that the whole walk may take


def run(words: Sequence[Any], cwd: Path, ok: bool = True) -> str:
    "What a command says; it must succeed."
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLSYS_", "PYTHON"))}
    environment["JUPYTER_PATH"] = str(Path(sys.prefix) / "share/jupyter")  # templates are no Python files
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=300, cwd=cwd, env=environment
    )
    assert not ok or done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def code_of(folder: Path, name: str) -> str:
    "The declaration in a notebook."
    cells = json.loads((folder / f"notebooks/{name}.ipynb").read_text())["cells"]
    return "\n".join(c["source"] for c in cells if c["source"].startswith("#| export"))


def lines_of(code: str) -> int:
    "Lines of a declaration."
    return sum(bool(line.strip()) and not line.startswith("#|") for line in code.splitlines())


def printed(folder: Path, name: str) -> list[str]:
    "The commands with which the notebook ends."
    cells = json.loads((folder / f"notebooks/{name}.ipynb").read_text())["cells"]
    return re.findall(r"^    ((?:mlsys|curl) .*)$", cells[-1]["source"], re.MULTILINE)


def typed(line: str, folder: Path) -> list[str]:
    "The words that a printed curl is given by the shell, with what the line takes from files."
    shown = subprocess.run(
        ["sh", "-c", 'curl() { printf "%s\\0" "$@"; }; ' + line], capture_output=True, text=True, cwd=folder
    )
    assert shown.returncode == 0 and not shown.stderr, f"{line}\n{shown.stderr}"
    return shown.stdout.split("\0")[:-1]


def post(line: str, port: int, folder: Path, decision: str = "") -> dict[str, Any]:
    "What a printed curl would send, sent."
    words = typed(line, folder)
    body = json.loads(words[words.index("-d") + 1].replace("ITS decision_id", decision))
    heads = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    asked = urllib.request.Request(words[-1].replace(":8100/", f":{port}/"), json.dumps(body).encode(), heads)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as e:
        raise AssertionError(f"{line}\n{e.code} {e.read().decode()}") from e


def until_ready(port: int, service: subprocess.Popen[str]) -> None:
    "Wait for a service that was started, as long as it lives."
    for _ in range(720):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
            return
        except (OSError, urllib.error.HTTPError):
            assert service.poll() is None, service.stderr and service.stderr.read()
            time.sleep(0.25)


def served(mlsys: Any, folder: Path, line: str, posts: Sequence[str]) -> dict[str, Any]:
    "Start the service by its printed command, on a free port; ask it, and tell it what came of it."
    port = free_port()
    words = [str(mlsys), *shlex.split(line)[1:], "--port", str(port)]
    service = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        until_ready(port, service)
        answer = post(posts[0], port, folder)
        post(posts[1], port, folder, answer["decision_id"])
        return answer
    finally:
        service.terminate()
        service.wait(60)


def worked() -> float:
    "Seconds of processor that finished children have used: a busy machine makes nobody slower."
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


@dataclass
class Walked:
    "What a walk saw."

    said: dict[str, str] = field(default_factory=dict)  # By command
    took: dict[str, float] = field(default_factory=dict)  # Seconds of processor
    answer: dict[str, Any] = field(default_factory=dict)
    lines: int = 0


def walk(mlsys: Any, folder: Path, name: str, table: Strange, without: Sequence[str] = ()) -> Walked:
    "From a file to a monitored model: what `new` prints, then what its notebook prints."
    seen = Walked()

    def timed(word: str, *words: Any) -> None:
        began = worked()
        seen.said[word] = run([mlsys, *words], folder)
        seen.took[word] = round(worked() - began, 1)

    timed("new", "new", name, "--from", table.file, *table.options)
    seen.lines = lines_of(code_of(folder, name))
    lines = printed(folder, name)
    posts = [line for line in lines if line.startswith("curl")]
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] in without:
            continue
        if words[0] == "serve":
            began = worked()
            seen.answer = served(mlsys, folder, line, posts)
            seen.took["serve"] = round(worked() - began, 1)
        elif line.startswith("mlsys"):
            timed(words[0], *words)
    return seen
