"""Thousands of tenants in one process: memory, the first answer of each, and later ones.

`python tests/bench/tenants.py [8000] [open]` trains a generated world (tests/tenants_world.py) with so many more shops, gives each of them a
sealed version of its own, and asks about each twice in one process that answers as a worker of the service does, without the socket. `open` is `tenants_open` of
the settings: how many the process may hold.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))
import tenants_world as world

from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import train
from mlsys_nb.loop.step_context import context
from mlsys_nb.loop.tenant_training import noted_round
from mlsys_nb.problem.tenant_key import partition_of
from mlsys_nb.release.package import Package
from mlsys_nb.release.registry import get_version
from mlsys_nb.system.database import row_of
from mlsys_nb.system.durable import json_bytes, read_folder_manifest, read_sealed
from mlsys_nb.system.pointers import Move, move_in
from mlsys_nb.system.registry_journal import journalled
from mlsys_nb.system.settings import Settings
from mlsys_nb.system.versions_table import VERSIONS, VersionRow

ASK = """
import asyncio, json, os, sys, time
import numpy as np
from pathlib import Path
from mlsys_nb.serving.endpoints import predict
from mlsys_nb.serving.served_problems import Problems
from mlsys_nb.system.settings import load_settings

def pss():
    said = Path("/proc/self/smaps_rollup").read_text()
    return int(next(line for line in said.splitlines() if line.startswith("Pss:")).split()[1]) / 1024

async def ask(service, n):
    wall, cpu = [], []
    for i in range(n):
        body = json.dumps({"shop": f"shop {i}", "customer": 1_000_000 + 2 * i}).encode()
        begun, spent = time.perf_counter(), time.process_time()
        answer = await predict(service, body)
        wall.append(1000 * (time.perf_counter() - begun))
        cpu.append(1000 * (time.process_time() - spent))
        assert answer["served_by"] == "tenant", answer
    return wall, cpu

served = Problems(load_settings(root=sys.argv[1], home=sys.argv[1]), ["orders"])
begun = time.perf_counter()
served.open()
print(f"opened in {time.perf_counter() - begun:.1f} s, {pss():.0f} MiB", flush=True)
for what in ("cold", "warm"):
    for name, took in zip(("", " of processor"), asyncio.run(ask(served.of("orders"), int(sys.argv[2]))), strict=True):
        p50, p99, most = np.percentile(took, (50, 99, 100))
        print(f"{what}: p50 {p50:.2f} ms{name}, p99 {p99:.2f}, longest {most:.0f}; load {os.getloadavg()[0]:.0f}, {pss():.0f} MiB", flush=True)
served.close()
"""


def crowd(n: int, seed: int = 1) -> pl.DataFrame:
    "Two customers of each of n shops, with three orders each in the last two weeks."
    rng = np.random.default_rng(seed)
    shop = np.repeat(np.arange(n), 6)
    hours = rng.integers(0, 14 * 24, len(shop))
    return pl.DataFrame(
        {
            "shop": [f"shop {i}" for i in shop],
            "customer": 1_000_000 + 2 * shop + np.tile([0, 0, 0, 1, 1, 1], n),
            "at": [world.END - timedelta(hours=int(h) + 1) for h in hours],
            "basket": rng.integers(5, 90, len(shop)).astype(float),
        },
        schema={
            "shop": pl.String,
            "customer": pl.Int64,
            "at": pl.Datetime("us", "UTC"),
            "basket": pl.Float64,
        },
    ).unique(["shop", "customer", "at"])


def give_each(here: Settings, n: int, version: int) -> float:
    "A version of its own for each shop of the crowd: the numbers of one that was trained, sealed anew for each; bytes on disk."
    at = context("orders", world.END.isoformat(), here)
    one = get_version(at.control, here, "orders", version)
    manifest = read_folder_manifest(one.path)
    files = {name: read_sealed(one.path, name, manifest) for name in manifest["files"] if name != "card.md"}
    told = {k: v for k, v in manifest.items() if k not in ("files", "seal")}
    rows, moves = [], []
    for i in range(n):
        package = Package.of(files, {**told, "tenant": {"of": "shop", "name": f"shop {i}"}})
        path = f"orders/{package.digest[:16]}"
        (here.models / path).mkdir()
        for name, content in {**package.files, "manifest.json": json_bytes(package.manifest)}.items():
            (here.models / path / name).write_bytes(content)  # no fsync: what is measured is reading
        number = 1000 + i
        summary = {**one.summary, "tenant": {"of": "shop", "name": f"shop {i}"}}
        rows.append(VersionRow("orders", number, package.digest, path, at.now, "bench", summary=summary))
        name = f"{partition_of('orders', f'shop {i}')}/champion"
        moves.append(Move(name, 1, str(number), at.now, "bench", "one of many"))
    with journalled(at.control), at.control.writing() as connection:
        connection.execute(VERSIONS.insert(), [row_of(row) for row in rows])
        for move in moves:
            move_in(connection, move, "promote")
    return package.size


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    most = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        place = world.folder(
            Path(folder) / "here", pl.concat([world.written(world.SHOPS), crowd(n)]).sort("at")
        )
        here = world.settings_of(place)
        at = context("orders", world.END.isoformat(), here)
        ingest_due(at)
        begun = time.process_time()
        train(at, n_trials=1)
        tenants = noted_round(at.control, "orders")["tenants"]
        print(
            f"trained: {len(tenants):,} tenants, {time.process_time() - begun:.1f} s of processor", flush=True
        )
        own = next(row["version"] for row in tenants if row["tenant"] == "north")
        begun = time.perf_counter()
        size = give_each(here, n, own)
        print(
            f"{n:,} versions sealed in {time.perf_counter() - begun:.0f} s, {size:,} bytes each", flush=True
        )
        terms = {**os.environ, "MLSYS_TENANTS_OPEN": str(most), "MLSYS_DURABLE": "by the OS"}
        subprocess.run([sys.executable, "-c", ASK, str(place), str(n)], env=terms, check=True, cwd=place)


if __name__ == "__main__":
    main()
