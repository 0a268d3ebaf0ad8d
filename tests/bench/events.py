"""How many events a service takes in when they are posted one by one, and after how long predictions see them.

    python tests/bench/events.py                 # about a minute
    python tests/bench/events.py --posts 200     # quicker

Every post is acknowledged when it is on disk, so the disk's own fsync is the limit that is named beside the rates.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("MLSYS_OPEN", "loopback")  # what is measured here is the disk

import httpx
from pages_world import make
from test_event_endpoint import service, view

from mlsys_nb.system.clock import SystemClock

CLIENTS = (1, 4, 16)


def syncs(folder: Path, n: int = 200) -> float:
    "Appends of 300 bytes with an fsync that this disk does in a second, one after the other."
    with (folder / "probe").open("ab", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(n):
            file.write(b"x" * 300)
            os.fsync(file.fileno())
    return n / (time.perf_counter() - began)


def rate(url: str, clients: int, posts: int) -> float:
    "Single posts a second, each client with one connection, one post after the other."
    draw = random.Random(clients)
    events = [view(f"{clients}-{i}", draw) for i in range(posts)]

    def post(mine: list[dict]) -> None:
        with httpx.Client(base_url=url, timeout=20) as web:
            for event in mine:
                assert web.post("/v1/events/views", json=event).status_code == 202

    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        list(pool.map(post, [events[i::clients] for i in range(clients)]))
        return posts / (time.perf_counter() - began)


def seen_after(web: httpx.Client, n: int) -> list[float]:
    "Seconds from sending an event of a new visitor until a prediction counts it, asked without a pause."
    draw, took = random.Random(0), []
    for i in range(n):
        began = time.perf_counter()
        event = view(f"s{i}", draw, visitor=f"new{i}", at=SystemClock().now().isoformat())
        assert web.post("/v1/events/views", json=event).status_code == 202
        while True:
            answer = web.post("/v1/pages/predictions", json={"visitor": f"new{i}", "features": True})
            if answer.status_code == 200 and answer.json()["features"]["views"]:
                break
        took.append(time.perf_counter() - began)
    return sorted(took)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--posts", type=int, default=1_000, help="of each rate")
    posts = words.parse_args().posts
    with tempfile.TemporaryDirectory() as folder:
        here = make(Path(folder))
        print(f"{syncs(Path(folder)):8,.0f} appends with fsync a second: what the disk can do, one at a time")
        with service(here) as web:
            url = str(web.base_url)
            rate(url, 1, 50)
            for clients in CLIENTS:
                told = (
                    f"single posts a second, {clients} client{'s' * (clients > 1)}, each acknowledged on disk"
                )
                print(f"{rate(url, clients, posts):8,.0f} {told}")
            took = seen_after(web, 40)
        shares = (
            f"median {statistics.median(took):.2f} s, nine in ten {took[35]:.2f} s, slowest {took[-1]:.2f} s"
        )
        print(f"{'':8} an event is seen by predictions after {shares} (from before it is sent)")


if __name__ == "__main__":
    main()
