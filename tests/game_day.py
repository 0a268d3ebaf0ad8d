"""The whole game day on a filled demo: every planted fault told at the first look with its cause, closed once mended.

`python tests/game_day.py [root [problem]]`: without a root the demo's year is played into a folder of its own first (about two minutes).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlsys_nb.doors.game_day.drill import drill, said_of_drill
from mlsys_nb.system.settings import load_settings


def main(root: str, problem: str = "churn") -> int:
    "How many faults were not told or not mended as they should be."
    done = drill(load_settings(root=root), problem, echo=lambda line: print(line, flush=True))
    wrong = [one for one in done if not one.well]
    print(f"== {said_of_drill(done)}")
    for one in wrong:
        print(f"{one.fault}: right {one.right}, mended {one.mended}, look {one.looks}: {one.told[:400]}")
    return len(wrong)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(*sys.argv[1:]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        command = (str(Path(sys.executable).with_name("mlsys")), "demo")
        subprocess.run(command, check=True, env={**os.environ, "MLSYS_ROOT": str(root)})
        sys.exit(main(str(root)))
