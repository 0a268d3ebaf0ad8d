"""Every rate that the product states, measured anew by simulation: gate, performance, drift.

    python tests/bench/odds.py              # small: minutes
    python tests/bench/odds.py -n 200       # as `make long` runs it
    python tests/bench/odds.py --only gate

Each part (`odds_*.py` beside this file) draws worlds whose truth it knows and yields rows: the claim, the world, what was measured with a
95 % interval, what is aimed at, and in how many draws.
"""

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from rates import by_claim, printed  # noqa: E402


def main() -> None:
    parts = sorted(p.stem.removeprefix("odds_") for p in HERE.glob("odds_*.py"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-n", type=int, default=20, help="draws: each part takes as many worlds, or a multiple"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=parts, action="append", help="one part")
    given = parser.parse_args()
    rows = []
    for part in given.only or parts:
        print(part)
        rows += printed(importlib.import_module(f"odds_{part}").rows(given.n, given.seed))
    print(f"== {given.n} draws, seed {given.seed}\n{by_claim(rows)}")


if __name__ == "__main__":
    main()
