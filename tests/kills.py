"""SIGKILL at random moments: nothing acknowledged is lost, nothing counts twice, nothing hangs, and the end is the same.

    python tests/kills.py --kills 1500 --seed 1          # about half an hour
    python tests/kills.py --kills 60 --seed 2 --only lake decisions

Each workload is a program that can be started again after any kill and goes on to the same end. It runs in a forked
process of its own process group, which is killed at a moment drawn evenly from the time that an undisturbed run takes.
After some kills it may finish; then its end is compared with that of the undisturbed run, and the next round begins in a new root.
"""

import argparse
import hashlib
import os
import random
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic

import numpy as np
import polars as pl

from mlsys_nb import features as f
from mlsys_nb.data.column_schema import Column
from mlsys_nb.data.contract import Contract
from mlsys_nb.data.event_inbox import InboxSource
from mlsys_nb.data.event_validation import Intake, Post
from mlsys_nb.data.inbox_files import verify_inbox
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.data.sources import FilesSource
from mlsys_nb.decisions.decision_record import Decision
from mlsys_nb.decisions.log import keep_decisions, read_decisions, verify_decisions
from mlsys_nb.decisions.log_writer import DecisionLog
from mlsys_nb.features.events import Events
from mlsys_nb.features.feature_set import FeatureSet
from mlsys_nb.features.inbox_to_store import materialize
from mlsys_nb.features.point_in_time_join import as_of
from mlsys_nb.features.store_sync import open_online, sync
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.clock import instant, open_clock
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.pointers import Move, get_pointer, move_pointer, pointer_history
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
HANGS = 120.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    "A program that survives kills, and what its end looks like."

    name: str
    prepare: Callable[[Settings, int], None]
    run: Callable[[Settings, Say], None]
    end: Callable[[Settings, set[str]], str]  # Given all that was acknowledged; raises on a loss or a double
    share: float  # Of all kills


def system(root: Path) -> Settings:
    (root / "raw").mkdir(parents=True, exist_ok=True)
    return replace(load_settings(root=root, home=HOME), raw=root / "raw")


# Lake and store ------------------------------------------------------------------------------------------------------

SALE = Contract("till", (Column("sale", "int"), Column("customer", "int"), Column("price", "decimal", unit="GBP"),
                         Column("at", "time")), id="sale")  # fmt: skip
TILL = FilesSource("till", SALE, "till", known=lambda path: instant(path.stem))
SALES = Events("till", keys={"customer": "int"}, time="at", columns={"price": "int"})
FEATURES = FeatureSet(
    "till", [f.count(SALES, "lifetime"), f.sum(SALES, "price", "3d"), f.last(SALES, "price")]
)
NOW = datetime(2011, 2, 1, tzinfo=UTC)


def deliveries(here: Settings, seed: int) -> None:
    "Ten days of sales, with corrections, withdrawals and bad rows."
    rng = np.random.default_rng(seed)
    (here.raw / "till").mkdir()
    for day in range(10):
        sales = [day * 40 + i for i in range(40)] + rng.integers(0, day * 40 + 1, 8).tolist()
        rows = ["sale,customer,price,at,retracted"]
        for sale in dict.fromkeys(sales):
            at = datetime(2011, 1, 1, tzinfo=UTC) + timedelta(hours=sale % 240)
            price = "free" if rng.random() < 0.03 else f"{rng.integers(1, 9999) / 100:.2f}"
            rows.append(
                f"{sale},{sale % 17},{price},{at:%Y-%m-%d %H:%M},{'true' if rng.random() < 0.05 else 'false'}"
            )
        (here.raw / "till" / f"2011-01-{day + 11:02d}.csv").write_text("\n".join(rows) + "\n")


def take(here: Settings, say: Say) -> None:
    for day in range(10):
        report = ingest(here, TILL, datetime(2011, 1, 11 + day, 12, tzinfo=UTC))
        if report.batches:  # a try that was killed after its end leaves nothing to report
            say(f"{','.join(report.batches)} {report.set_aside}")

    with open_online(here.online) as store:
        store.keep(FEATURES)
        for day in range(10):
            sync(store, here, SALES, snapshot(here, "till", datetime(2011, 1, 11 + day, 12, tzinfo=UTC)))


def lake_end(here: Settings, said: set[str]) -> str:
    seen = snapshot(here, "till", NOW)
    rows = read(here, seen)
    standing = rows.filter(pl.col("retracted_at").is_null())
    assert standing["event_id"].is_unique().all(), "a sale counts twice"
    days: dict[str, str] = {}
    for line in said:
        batch, quarantined = line.split()
        assert days.setdefault(batch, quarantined) == quarantined, (
            f"{batch} was reported with {days[batch]} and with {quarantined}"
        )
    with open_online(here.online) as store:
        reader = store.reader(FEATURES)
        for moment in (datetime(2011, 1, 12, tzinfo=UTC), datetime(2011, 1, 20, 8, tzinfo=UTC), NOW):
            asked = pl.DataFrame({"customer": list(range(17))}).with_columns(moment=pl.lit(moment))
            served = reader.read_many([{"customer": n} for n in range(17)], moment).frame
            assert served.equals(as_of(FEATURES, asked, {"till": rows})), (
                f"the store differs from the lake at {moment}"
            )
    return hashlib.sha256(f"{seen.digest} {rows.sort(rows.columns).write_csv()}".encode()).hexdigest()


# Decisions -----------------------------------------------------------------------------------------------------------

DECIDED = 240


def decide(here: Settings, say: Say) -> None:
    "Answer what has no answer yet, in fours, over four days; the days that are over become Parquet."
    log = DecisionLog(here, "churn", rotate=30)
    there = set(read_decisions(here, "churn")["request_id"])
    wanted = [n for n in range(DECIDED) if f"r{n}" not in there]
    for i in range(0, len(wanted), 4):
        group = [decision(n) for n in wanted[i : i + 4]]
        for done in log.append(group):
            say(f"{done.decision_id} {done.request_id}")
        if i % 60 == 0:
            keep_decisions(here, "churn", group[-1].moment)
    log.close()
    keep_decisions(here, "churn", NOW)


def decision(n: int) -> Decision:
    moment = datetime(2011, 1, 1, tzinfo=UTC) + timedelta(minutes=24 * n)
    return Decision("", "churn", {"customer_id": n % 7}, moment, 1, n / DECIDED, 0.5, "none", True, {"orders": n}, "h",
                    request_id=f"r{n}")  # fmt: skip


def decisions_end(here: Settings, said: set[str]) -> str:
    rows = read_decisions(here, "churn")
    assert rows["decision_id"].is_unique().all(), "one id was given twice"
    told = dict(zip(rows["decision_id"], rows["request_id"], strict=True))
    lost = [line for line in said if told.get(line.split()[0]) != line.split()[1]]
    assert not lost, f"{len(lost)} acknowledged answers are lost or are others now, such as {lost[0]}"
    assert not verify_decisions(here), verify_decisions(here)[:1]
    once = rows.unique("request_id").sort("score")
    assert once.height == DECIDED, f"{once.height} of {DECIDED} answers"
    return once.select("request_id", "score", "orders").write_csv()


# Pointers and their audit --------------------------------------------------------------------------------------------


def move(here: Settings, say: Say) -> None:
    "Move a pointer sixty times, each from the epoch that was seen."
    control = open_control(here)
    seen = get_pointer(control, "champion")
    for epoch in range(seen.epoch + 1 if seen else 1, 61):
        move_pointer(control, Move("champion", epoch, str(epoch), NOW, "kills", "a test"))
        say(str(epoch))


def pointers_end(here: Settings, said: set[str]) -> str:
    control = open_control(here)
    now, lines = get_pointer(control, "champion"), audit_log(control, "champion")
    epochs = [line.detail["epoch"] for line in lines]
    assert now and now.epoch == 60 and epochs == list(range(1, 61)), f"pointer {now}, audit {epochs}"
    assert [m.epoch for m in pointer_history(control, "champion")] == epochs
    assert {int(s) for s in said} <= set(epochs)
    return str(now)


# The inbox ------------------------------------------------------------------------------------------------------------

VIEWED = InboxSource(
    "views",
    Contract("views", (Column("view", "text"), Column("visitor", "int"), Column("at", "time")), id="view"),
)
VIEWS = Events("views", keys={"visitor": "int"}, time="at", columns={"view": "text"})
SEEN = FeatureSet("views", [f.count(VIEWS, "lifetime")])
POSTED, QUICKLY = (
    90,
    15,
)  # Events; how many until the next one is made visible, and twice as many until an ingest


def viewed(n: int) -> dict[str, object]:
    return {"view": f"e{n}", "visitor": n % 7, "at": "2011-01-01T10:00:00Z"}


def stand_still(here: Settings, seed: int) -> None:
    "It is noon, and stays so: what an undisturbed run and a killed one do is the same."
    write_json(here.clock_file, {"now": NOW.isoformat()})


def receive(here: Settings, say: Say) -> None:
    "Send everything again from the beginning, as a client does that heard no answer; make it visible, and ingest it."
    intake, clock = Intake(here, VIEWED, lambda: NOW), open_clock(here.clock_file)
    with open_online(here.online) as store:
        store.keep(SEEN)
        for n in range(0, POSTED, 3):
            intake.submit(Post([viewed(i) for i in range(n, n + 3)])).result()
            say(" ".join(str(i) for i in range(n, n + 3)))
            if n % QUICKLY == 0:
                materialize(intake.box, VIEWED, store, clock)
            if n % (2 * QUICKLY) == 0:
                ingest(here, VIEWED, NOW + timedelta(hours=1))
        materialize(intake.box, VIEWED, store, clock)
        ingest(here, VIEWED, NOW + timedelta(hours=1))


def inbox_end(here: Settings, said: set[str]) -> str:
    rows = read(here, snapshot(here, "views"))
    assert rows["event_id"].is_unique().all(), "an event counts twice"
    lost = {f"e{n}" for line in said for n in line.split()} - set(rows["event_id"])
    assert not lost, f"{len(lost)} acknowledged events are not in the lake, such as {min(lost)}"
    assert not verify_inbox(here), verify_inbox(here)[:1]
    with open_online(here.online) as store:
        assert sync(store, here, VIEWS, snapshot(here, "views")) == 0, "the store had them all"
        asked = [{"visitor": n} for n in range(7)]
        served = store.reader(SEEN).read_many(asked, NOW + timedelta(days=1)).frame[SEEN.names[0]]
    assert served.sum() == POSTED == len(rows), f"{served.sum()} in the store, {len(rows)} in the lake"
    return rows.sort("event_id").select("view", "visitor", "at").write_csv()


def nothing(here: Settings, seed: int) -> None:
    "A root to begin in."


LAKE = Workload("lake", deliveries, take, lake_end, 0.3)
DECISIONS = Workload("decisions", nothing, decide, decisions_end, 0.3)
POINTERS = Workload("pointers", nothing, move, pointers_end, 0.1)
INBOX = Workload("inbox", stand_still, receive, inbox_end, 0.3)
WORKLOADS = [LAKE, DECISIONS, POINTERS, INBOX]


# The harness ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    "One run of a workload: what it acknowledged, whether it came to its end, how long it lived."

    said: list[str]
    finished: bool
    seconds: float


def live(workload: Workload, root: Path, kill_after: float | None) -> Life:
    "Run a workload in a process of its own, and kill it."
    out, into = os.pipe()
    start, pid = monotonic(), os.fork()
    if pid == 0:
        os.setsid()
        os.close(out)
        code = 1
        try:
            workload.run(system(root), lambda text: os.write(into, text.encode() + b"\n") and None)
            os.write(into, b"end\n")
            code = 0
        except BaseException as e:
            os.write(into, f"failed {type(e).__name__}: {e}\n".replace("\n", " ").encode() + b"\n")
        finally:
            os._exit(code)
    os.close(into)
    said, killed, deadline = b"", False, start + HANGS
    due = start + kill_after if kill_after is not None else deadline
    while True:
        ready, _, _ = select.select([out], [], [], max(0.0, min(due, deadline) - monotonic()))
        if ready:
            part = os.read(out, 65536)
            said += part
            if not part:
                break
            continue
        if monotonic() >= deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"{workload.name} hangs after {HANGS:.0f} s")
        if monotonic() >= due and not killed:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            killed, due = True, deadline
    os.waitpid(pid, 0)
    os.close(out)
    lines = [line for line in said.decode().split("\n")[:-1] if line]  # a torn last line was not said
    failed = [line for line in lines if line.startswith("failed ")]
    assert not failed, f"{workload.name}: {failed[0]}"
    return Life([line for line in lines if line != "end"], "end" in lines, monotonic() - start)


def apart(function: Callable[[], str | None]) -> str:
    "What a function returns, worked out in a process of its own: a polars that has worked here would hang after a fork."
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(into, b"." + (function() or "").encode())
        except BaseException as e:
            os.write(into, f"{type(e).__name__}: {e}".encode()[:60_000])
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as told:
        text = told.read().decode()
    os.waitpid(pid, 0)
    assert text.startswith("."), text
    return text[1:]


def rounds(workload: Workload, kills: int, seed: int, folder: Path) -> tuple[int, int]:
    "Kill a workload so often; how many roots came to their end, and how many kills there were."
    rng, ended, killed = random.Random(seed), 0, 0
    world = seed
    while killed < kills:
        plain, root = folder / "plain", folder / "killed"
        for place in (plain, root):
            shutil.rmtree(place, ignore_errors=True)
            apart(partial(workload.prepare, system(place), world))
        whole = live(workload, plain, None)
        assert whole.finished, f"{workload.name} does not come to its end by itself"
        wanted = apart(partial(workload.end, system(plain), set(whole.said)))
        said, here = set[str](), 0
        while True:
            patient = killed >= kills or here >= 25
            life = live(workload, root, None if patient else rng.uniform(0, whole.seconds * 1.1))
            said |= set(life.said)
            if life.finished:
                break
            killed, here = killed + 1, here + 1
        found = apart(partial(workload.end, system(root), said))
        assert found == wanted, f"{workload.name}, world {world}: another end after {here} kills"
        ended, world = ended + 1, world + 1
    return ended, killed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="names of workloads")
    given = parser.parse_args()
    chosen = [w for w in WORKLOADS if not given.only or w.name in given.only]
    whole, rows = sum(w.share for w in chosen), []
    for workload in chosen:
        start = monotonic()
        with tempfile.TemporaryDirectory() as folder:
            ended, killed = rounds(
                workload, round(given.kills * workload.share / whole), given.seed, Path(folder)
            )
        rows.append(
            f"{workload.name:10} {killed:6} kills {ended:5} roots came to the same end, {monotonic() - start:.0f} s"
        )
        print(rows[-1], flush=True)
    print(f"== seed {given.seed}: nothing lost, doubled or hung")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
