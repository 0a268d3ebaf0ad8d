"""A small root with rows of every covered kind, a writer that stops in the middle of one, and a command that ends before a deed.

`python vault_world.py write KIND FOLDER` writes one more row and waits, with the key in its hand, until FOLDER/go is there.
`python vault_world.py cuts FOLDER ROTATE FIRST STEP` ends `mlsys encrypt` before every STEP-th deed on the disk, each time in a
copy of FOLDER/root, and says what it found wrong.
"""

import json
import os
import shutil
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cutting import CUT, cut_before

from mlsys_nb.decisions.decision_record import Decision
from mlsys_nb.decisions.log_writer import DecisionLog
from mlsys_nb.decisions.outcomes import Ledger, Outcome
from mlsys_nb.doors.privacy.encrypt_existing import covered_files, encrypt_root
from mlsys_nb.doors.recovery.integrity_check import findings
from mlsys_nb.serving.batch_queue import BatchWanted, accept, keep_answers
from mlsys_nb.system import control_tables, encryption, file_operations, registry_journal, runs_table  # noqa: F401  (loaded once, for all forks)
from mlsys_nb.system.durable import Log, remove_tree, verify_folder, write_folder
from mlsys_nb.system.encryption import COVERED
from mlsys_nb.system.line_checksum import plain_content
from mlsys_nb.system.settings import Settings, load_settings
from mlsys_nb.system.temporary_files import TEMPORARY

MAY = datetime(2010, 5, 1, tzinfo=UTC)
ROW = "ZQROW"


def at(folder: Path) -> Settings:
    return load_settings(root=folder / "root", home=folder)


def decision(n: int) -> Decision:
    return Decision("", "p", {"client": ROW}, MAY, 1, 0.6, 0.2, "call", True, {"note": f"{ROW}-{n}"}, "f00d")


def lake(here: Settings, n: int) -> None:
    write_folder(here.lake / "visits" / f"{n:04d}", {"rows": f"{ROW}-{n}".encode()}, {"n": n})


def inbox(here: Settings, n: int) -> None:
    Log(here.data / "inbox" / "visits" / "00000001.log").append([{"row": f"{ROW}-{n}"}])


def outcomes(here: Settings, n: int) -> None:
    Ledger(here, "p").post([Outcome(f"d{n}", 1, MAY, f"{ROW}-{n}")])


def batch(here: Settings, n: int) -> None:
    wanted = BatchWanted("p", f"key {n}", [({"client": ROW}, {})], request_id=f"{ROW}-{n}")
    keep_answers(accept(here, wanted, MAY), 0, [{"index": 0, "entity": {"client": f"{ROW}-{n}"}}])


def decisions(here: Settings, n: int) -> None:
    log = DecisionLog(here, "p")
    log.append([decision(n)])
    log.close()


KINDS = {word.__name__: word for word in (lake, inbox, outcomes, batch, decisions)}


def filled(folder: Path) -> Settings:
    for n in range(3):
        for write in KINDS.values():
            write(at(folder), n)
    remove_tree(at(folder).lake / "visits" / "0002")
    return at(folder)


def told(here: Settings) -> dict[str, bytes]:
    "Every covered file in the clear; of catalogs only their first bytes, since what happened is added there."
    files = [p for p in covered_files(here) if not any(part.startswith(TEMPORARY) for part in p.parts)]
    found = {str(p.relative_to(here.data)): plain_content(p, p.read_bytes()) for p in files}
    lines = {
        n: b"\n".join(line[9:] for line in c.split(b"\n")) for n, c in found.items() if n.endswith(".log")
    }
    return {n: b"" if n.endswith("catalog.log") else c for n, c in (found | lines).items()}


def written_halfway(kind: str, folder: Path) -> None:
    "Write a row, and stop before its last deed until somebody says go."

    def wait(verb: str, path: Path, content: bytes) -> None:
        last = (verb == "written" and path.suffix == ".log") or (verb == "renamed" and bool(content) is False)
        if not last or not set(COVERED) & set(path.parts) or (folder / "held").exists():
            return
        (folder / "held").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)

    file_operations.FAULTS.append(wait)
    KINDS[kind](at(folder), 77)


def forked(deed: Callable[..., int], *words: object) -> int:
    "What a process of its own says, which knows no key of before."
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        encryption._OPEN.clear()
        encryption._KNOWN.clear()
        code = deed(*words)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)


def encrypted(here: Settings, rotate: bool, number: int = 0) -> int:
    "Encrypt, and end before a deed of that number with half of what it was to write."
    cut_before(number, logs=False)
    return encrypt_root(here, Namespace(rotate=rotate))


def faults(here: Settings, before: dict[str, bytes]) -> int:
    "How much is not as it was, or is found wrong by `mlsys verify`."
    found = [f for f in findings(here) if f["part"] not in ("lake", "inbox")]  # their rows are not real ones
    for place in (here.lake / "visits").glob("[!.]*"):
        verify_folder(place)
    now = told(here)
    found += [name for name in sorted({*now, *before}) if now.get(name) != before.get(name)]
    print(*found, sep="\n", flush=True)
    return len(found)


def cuts(folder: Path, rotate: bool, first: int, step: int) -> int:
    "End the command before many deeds; how many it were."
    here, number = at(folder), first
    before = told(here)
    while True:
        copy = folder / "copies" / f"{number}"
        shutil.copytree(here.root, copy)
        there = load_settings(root=copy, home=folder)
        code = forked(encrypted, there, rotate, number)
        assert forked(faults, there, before) == 0, f"after deed {number}"
        if code == 0:
            return number
        assert code == CUT, (number, code)
        again = forked(encrypted, there, False)
        assert again == 0 and forked(faults, there, before) == 0, f"again after deed {number}"
        keys = json.loads((there.data / encryption.VAULT).read_bytes())["keys"]
        assert len(keys) == 1, f"a key stays after deed {number}"
        assert not list(there.data.rglob(".tmp-*")), f"halves stay after deed {number}"
        shutil.rmtree(copy)
        number += step


if __name__ == "__main__":
    what, rest = sys.argv[1], sys.argv[2:]
    if what == "write":
        written_halfway(rest[0], Path(rest[1]))
    elif what == "stream":
        here, place = at(Path(rest[1])), Path(rest[1]) / f"{rest[0]}.said"
        for n in range(1000, 1_000_000):
            KINDS[rest[0]](here, n)
            with place.open("a") as file:
                file.write(f"{n}\n")
            time.sleep(0.2)
    elif what == "encrypt":
        print("at work", flush=True)
        encrypt_root(at(Path(rest[0])), Namespace(rotate=rest[1] == "rotate"))
    elif what == "hold":
        log = DecisionLog(at(Path(rest[0])), "p")
        print("at work", flush=True)
        sys.stdin.read()
    elif what == "cuts":
        print(cuts(Path(rest[0]), rest[1] == "rotate", int(rest[2]), int(rest[3])))
    elif what == "told":
        here = at(Path(rest[0]))
        print(len([p for p in covered_files(here) if plain_content(p, p.read_bytes())]))
