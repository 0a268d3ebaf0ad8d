"""The README's commands, run as printed in a filled demo: each ends well and says something.

`python tests/readme.py [root]`: without a root the demo's year is played into a folder of its own first (about two minutes). What is not run here: `make demo` and
`make test`, which are what brings one this far. ID is the newest decision's, the port is a free one.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from ports import free_port
from test_guide import FENCE
from walks import until_ready

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("make demo", "make test", ". .venv")


def commands() -> list[str]:
    "What the README gives to type, a command each; a block of Python is one."
    found = []
    for language, _, code in FENCE.findall((ROOT / "README.md").read_text()):
        if language == "python":
            found.append(f"python -c {shlex.quote(code)}")
        for line in code.splitlines() if language == "sh" else ():
            typed = re.sub(r"\s+#\s.*", "", line).strip()
            found += [part.strip() for part in (re.split(r";\s+(?=mlsys )", typed))]
    return [one for one in found if one and not one.startswith(LEFT_OUT)]


def said(command: str, root: str, port: int) -> tuple[int, str]:
    environment = {**os.environ, "MLSYS_ROOT": root, "MLSYS_PORT": str(port)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    typed = command.replace("localhost:8100", f"localhost:{port}").replace(
        "cat data/key", f"cat {root}/data/key"
    )
    done = subprocess.run(["sh", "-c", typed], capture_output=True, text=True, timeout=1800, cwd=ROOT, env=environment)  # fmt: skip
    return done.returncode, done.stderr + done.stdout


def main(root: str) -> int:
    "How many of the commands failed."
    port = free_port()
    environment, wrong, service, name = {**os.environ, "MLSYS_ROOT": root}, 0, None, "ID"
    every = commands()
    for command in every:
        if command == "make serve":  # what it starts, by the environment that is here
            told = subprocess.run(
                ["make", "-n", "serve"], capture_output=True, text=True, check=True, cwd=ROOT
            )
            words = [
                str(Path(sys.executable).with_name("mlsys")),
                *shlex.split(told.stdout.splitlines()[-1])[1:],
                "--port",
                str(port),
            ]
            service = subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
            until_ready(port, service)
            continue
        code, text = said(re.sub(r"\bID\b", name, command), root, port)
        good = code == 0 and (text.strip() != "" or command.startswith("python"))
        wrong += not good
        print(
            f"{'runs' if good else 'FAILS'}  {command[:110]}" + ("" if good else f"\n{text[-2000:]}"),
            flush=True,
        )
        if command == "mlsys decisions churn":
            name = re.findall(r"\b[a-z]:\S+|\b[0-9a-f-]{36}\b", text)[-1]
    if service:
        service.terminate()
        service.wait(20)
    print(f"== {len(every) - wrong} of {len(every)} commands of the README run as printed")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        played = str(Path(folder) / "root")
        command = (str(Path(sys.executable).with_name("mlsys")), "demo")
        subprocess.run(command, check=True, env={**os.environ, "MLSYS_ROOT": played})
        sys.exit(main(played))
