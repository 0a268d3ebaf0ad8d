"""A process that ends before one of its deeds on the disk, with half of what it was to write: a cut of the power, tried anywhere.

python cutting.py NUMBER WORDS...    # `mlsys WORDS...`, ended before its deed of that number
"""

import os
import sys
from pathlib import Path

from mlsys_nb.system import file_operations

CUT = 9  # The exit code of whoever was cut


def cut_before(number: int, logs: bool = True) -> list[int]:
    "Let this process end before that deed, or never before 0; how many there were is counted in what is returned. `logs`: these are halved, too."
    count = [0]

    def fault(verb: str, path: Path, content: bytes) -> None:
        count[0] += 1
        if count[0] == number:
            if verb == "written" and content and (logs or path.suffix != ".log"):
                with path.open("ab") as file:
                    file.write(content[: len(content) // 2])
            os._exit(CUT)

    file_operations.FAULTS.append(fault)
    return count


if __name__ == "__main__":
    from mlsys_nb.doors.cli import main

    cut_before(int(sys.argv[1]), logs=False)
    sys.exit(main(sys.argv[2:]))
