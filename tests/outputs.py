"""Save the outputs of the lessons in the notebooks: `python tests/outputs.py [NAME ...]`, all chapters without a name.

A chapter is run three times, each time in a process of its own, with another temporary folder, on another day and with another
order of sets; what differs between them is not saved. What the calls of lessons give is written to tests/values/ (values.py); `pages` writes there what
the pages and commands of a planted system say (test_panels.py). Exported and hidden cells, jobs and dashboards have no outputs.
"""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import reduce
from pathlib import Path

from lessons import CHAPTERS, NBS, difference, kept, run
from values import Seen, agreed, write


def outputs_of(path: Path, days: int) -> dict[str, dict]:
    "Of each cell, by its id, what its lesson shows and what its calls give, on a machine whose clock is ahead by some days."
    from mlsys_nb.system.clock import SystemClock

    now = SystemClock.now
    SystemClock.now = lambda self: now(self) + timedelta(days=days)
    seen = Seen()
    return {"outputs": {cell.id: outputs for cell, outputs in run(path, seen)}, "values": seen.cells}


def in_child(path: Path, days: int) -> dict[str, dict]:
    with tempfile.TemporaryDirectory(prefix=f"lesson{days}-") as folder:
        out = Path(folder, "outputs.json")
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MLSYS_")}
        env = plain | {"IN_TEST": "1", "TMPDIR": folder, "MPLBACKEND": "agg", "PYTHONHASHSEED": str(days)}
        command = [sys.executable, __file__, "--child", str(path), str(days), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=path.parent)
        if done.returncode:
            raise RuntimeError(f"{path.name} does not run:\n{done.stdout}{done.stderr}")
        return json.loads(out.read_text(encoding="utf-8"))


def save(path: Path) -> str:
    "Run a chapter, write its outputs, and say what was left out."
    from fastcore.nbio import write_nb
    from nbdev.clean import clean_nb, read_nb

    runs = [in_child(path, days) for days in (0, 401, 802)]
    first, *others = (found["outputs"] for found in runs)
    notebook, said, count, size = read_nb(path), [], 0, 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        new, refused = kept(first.get(cell.id, []))
        if any(difference(new, kept(other.get(cell.id, []))[0]) for other in others):
            new, refused = [], ["not the same in three runs"]
        cell["outputs"] = new
        said += [f"\n    {cell.id}: {why}" for why in refused]
        count, size = count + bool(new), size + len(json.dumps(new))
    clean_nb(notebook)
    write_nb(notebook, path)
    write(path, reduce(agreed, (found["values"] for found in runs)))
    return f"{path.relative_to(NBS)}: {count} outputs, {size / 1000:.0f} kB{''.join(said)}"


def main(names: list[str]) -> int:
    if names == ["pages"]:
        from dashboards_world import write_told

        write_told()
        return 0
    chosen = [p for p in CHAPTERS if not names or {p.name, p.stem, p.parent.name, p.as_posix()} & set(names) or
              any(Path(n).exists() and Path(n).resolve() == p for n in names)]  # fmt: skip
    if not chosen:
        sys.stderr.write(
            f"no chapter named {' or '.join(names)}; a name is that of a notebook or of its folder\n"
        )
        return 2
    failed = 0
    with ThreadPoolExecutor(2) as pool:
        for work in [pool.submit(save, path) for path in chosen]:
            error = work.exception()
            failed += error is not None
            sys.stdout.write((f"FAILED {error}" if error else work.result()) + "\n")
            sys.stdout.flush()
    return min(failed, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        found = outputs_of(Path(sys.argv[2]), int(sys.argv[3]))
        Path(sys.argv[4]).write_text(json.dumps(found), encoding="utf-8")
    else:
        sys.exit(main(sys.argv[1:]))
