"""The whole game day on a filled demo: every planted fault told at the first look with its cause, closed once mended.

`python tests/game_day.py [root]`: without a root the demo's year is played into a folder of its own first (about two minutes).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlsys_nb.doors.drill import drill
from mlsys_nb.system.settings import load_settings


def main(root: str) -> int:
    "How many faults were not told or not mended as they should be."
    done = drill(load_settings(root=root), "churn", echo=lambda line: print(line, flush=True))
    wrong = [one for one in done if not (one.right and one.mended)]
    print(
        f"== {len(done) - len(wrong)} of {len(done)} as they should be, {sum(bool(one.left_out) for one in done)} left out"
    )
    for one in wrong:
        print(f"{one.fault}: right {one.right}, mended {one.mended}, look {one.looks}: {one.told[:400]}")
    return len(wrong)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        command = (str(Path(sys.executable).with_name("mlsys")), "demo")
        subprocess.run(command, check=True, env={**os.environ, "MLSYS_ROOT": str(root)})
        sys.exit(main(str(root)))
