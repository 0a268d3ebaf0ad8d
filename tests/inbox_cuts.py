"""One life of an inbox, in a process of its own, that may be cut before one of its deeds on the disk.

    python inbox_cuts.py ROOT NUMBER    # NUMBER 0: not cut, and the number of deeds is printed

Events are posted, one of them twice and one corrected; then an ingest brings them into the lake and the store. A process of its own, and no fork:
a fork of a process in which polars has worked hangs, because the threads of its pool are not there in the child.
"""

import sys
from datetime import timedelta
from pathlib import Path

from cutting import cut_before
from pages_world import TODAY, features, problem, settings_of, source

from mlsys_nb.data.event_validation import Intake, Post
from mlsys_nb.features.store_sync import open_online
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.step_context import Context
from mlsys_nb.system.clock import SystemClock

NOW = TODAY - timedelta(hours=1)


def event(name: str, ms: int, visitor: str = "v-1") -> dict[str, object]:
    return {
        "view": name,
        "visitor": visitor,
        "page": "/tool1/use",
        "at": (NOW - timedelta(hours=2)).isoformat(),
        "ms": ms,
    }


POSTS = (
    [event("e1", 1), event("e2", 2, "v-2"), event("e1", 1)],
    [event("e2", 7, "v-2"), {"view": "bad", "page": "no"}, event("e3", 3)],
)
LAST = {"e1": 1, "e2": 7, "e3": 3}


def lived(root: Path) -> None:
    here = settings_of(root)
    (here.raw / "views" / "before.csv").write_text(
        f"view,visitor,page,at,ms,paid\nh0,v-1,/a,{TODAY - timedelta(days=3):%Y-%m-%d},5,\n"
    )
    with open_online(here.online_url) as store:
        store.keep(features)
    for number, post in enumerate(POSTS):
        intake = Intake(here, source, SystemClock().now)
        told = intake.submit(Post(post)).result(30)
        assert told.count("quarantined") == number and len(told.told) == len(post)
        intake.close()
    ingest_due(
        Context(here, problem, SystemClock().now() + timedelta(seconds=2))
    )  # behind the lead of what was promised


def main(root: Path, number: int) -> None:
    deeds = cut_before(number)
    lived(root)
    print(deeds[0])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
