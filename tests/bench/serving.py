"""How near the service is to what this machine can answer at all: the full path beside a bare echo, in one run.

    python tests/bench/serving.py              # 5 s a measurement
    python tests/bench/serving.py --seconds 1  # quicker, coarser

The full path is what a caller gets: parse, read fourteen features with windows from the store, the model, the decision by its costs, the
record on the log, the answer; in each term of durability, with the mean time of each stage as the service counts it. The echo is an ASGI
application that answers the same bytes, in the same server, loop and venv. Each is asked once more with a busy neighbour a core, and two
peers answer from features that come with the request.
"""

import argparse
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

SERVE = """
import sys
from mlsys_nb.system.settings import load_settings
from mlsys_nb.serving.service import serve
serve(load_settings(root=sys.argv[1], home=sys.argv[2]), "churn", port=int(sys.argv[3]))
"""
ECHO = """
import sys, uvicorn
async def app(scope, receive, send):
    if scope["type"] == "http":
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=int(sys.argv[3]), log_level="warning", access_log=False, lifespan="off")
"""
FASTAPI = """
import sys, joblib, pandas as pd, uvicorn
from fastapi import FastAPI
model, app = joblib.load(sys.argv[1] + "/peer/joblib"), FastAPI()
@app.post("/invocations")
def invocations(asked: dict) -> dict:
    return {"prediction": float(model.predict_proba(pd.DataFrame(asked["dataframe_records"]))[0, 1])}
uvicorn.run(app, port=int(sys.argv[3]), log_level="critical", access_log=False)
"""
MLFLOW = """
import sys, mlflow, uvicorn
from mlflow.pyfunc.scoring_server import init
app = init(mlflow.pyfunc.load_model(sys.argv[1] + "/peer/mlflow"))
uvicorn.run(app, port=int(sys.argv[3]), log_level="critical", access_log=False)
"""
PEERS = {"FastAPI, joblib": FASTAPI, "MLflow's server": MLFLOW}


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(code: str, root: str, **environment: str) -> Iterator[tuple[int, subprocess.Popen, float]]:
    "A server that answers: its port, its process, and the seconds that its start took."
    port = free()
    command = [sys.executable, "-c", code, root, str(TESTS.parent), str(port)]
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=root, env={**os.environ, **environment})
    try:
        while True:
            assert child.poll() is None, "the server ended"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.01)
        yield port, child, time.perf_counter() - started
    finally:
        child.terminate()
        child.wait(30)


def asked(
    port: int, bodies: list[bytes], path: str, connections: int, seconds: float, heads: dict[str, str]
) -> tuple[float, float, float]:
    "Requests a second, median and 99th percentile in ms, of callers that each wait for their answer."
    said = "".join(f"{name}: {value}\r\n" for name, value in heads.items())
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{said}Content-Length: %d\r\n\r\n".encode()
    requests = [head % len(body) + body for body in bodies]
    poll, times, sent, n = selectors.DefaultSelector(), [], {}, 0
    for _ in range(connections):
        made = socket.create_connection(("127.0.0.1", port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(made, selectors.EVENT_READ)
        made.sendall(requests[n % len(requests)])
        sent[made], n = time.perf_counter(), n + 1
    start = time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        for key, _ in poll.select(1):
            made = key.fileobj
            answer = made.recv(65_536)
            while (cut := answer.find(b"\r\n\r\n")) < 0 or len(answer) < cut + 4 + int(
                answer[: cut + 2].lower().partition(b"content-length:")[2].partition(b"\r")[0]
            ):
                answer += made.recv(65_536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(answer.decode()[:600])
            now = time.perf_counter()
            times.append(now - sent[made])
            made.sendall(requests[n % len(requests)])
            sent[made], n = now, n + 1
    took = time.perf_counter() - start
    for made in list(sent):
        made.close()
    if not times:
        return 0.0, 1000 * took, 1000 * took
    times.sort()
    return len(times) / took, 1000 * statistics.median(times), 1000 * times[int(0.99 * len(times))]


def today(here) -> None:
    "The same events, shifted to now: a service in real time does not look at a clock file."
    import shutil
    from datetime import UTC, datetime

    import polars as pl
    from serving_world import JUNE, lines, problem

    from mlsys_nb.features.store_sync import open_online

    shutil.rmtree(here.online)
    here.clock_file.unlink()
    shift = pl.lit(datetime.now(UTC) - JUNE)
    with open_online(here.online) as store:
        store.keep(problem.features)
        store.write(
            problem.features.events[0], lines().with_columns(pl.col("invoice_ts", "known_at") + shift)
        )


def spent(pid: int) -> float:
    "Seconds of CPU that a process has used; a busy machine takes a server's time away, not its work."
    told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def fsync_ms(folder: Path, pause: float = 0.0, n: int = 300) -> float:
    "One write of a record with its fsync on this disk, median; one right after the other, or with other work between them, as between two requests."
    handle, times = os.open(folder / "probe", os.O_CREAT | os.O_WRONLY), []
    for _ in range(n):
        busy = time.perf_counter() + pause
        while time.perf_counter() < busy:
            pass
        start = time.perf_counter()
        os.write(handle, b"x" * 700)
        os.fdatasync(handle)
        times.append(time.perf_counter() - start)
    os.close(handle)
    return 1000 * statistics.median(times)


def stages(port: int, heads: dict[str, str]) -> list[tuple[str, float]]:
    "Mean microseconds of each stage, as the service itself counts them."
    from urllib.request import Request, urlopen

    with urlopen(Request(f"http://127.0.0.1:{port}/metrics", headers=heads)) as answer:
        told = re.findall(
            r'^mlsys_stage_seconds_(sum|count)\{.*stage="(\w+)"\} (\S+)$', answer.read().decode(), re.M
        )
    found = {(kind, stage): float(n) for kind, stage, n in told}
    return [(stage, 1e6 * n / found["count", stage]) for (kind, stage), n in found.items() if kind == "sum"]


def resident(pid: int) -> float:
    said = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(next(line for line in said.splitlines() if line.startswith("Pss:")).split()[1]) / 1024


def peers(folder: Path, family: str) -> list[bytes]:
    "A pipeline of scikit-learn as two peers serve it, and requests that bring the features along: they keep no events and no log."
    import json

    import joblib
    import mlflow.sklearn
    from bulk import pipeline_of

    pipeline, table = pipeline_of(family, True)
    (folder / "peer").mkdir()
    joblib.dump(pipeline, folder / "peer" / "joblib")
    mlflow.sklearn.save_model(
        pipeline, str(folder / "peer" / "mlflow"), pip_requirements=[], serialization_format="cloudpickle"
    )
    rows = json.loads(table.head(500).to_json(orient="records"))
    return [json.dumps({"dataframe_records": [row]}).encode() for row in rows]


@contextmanager
def neighbours() -> Iterator[None]:
    "One busy neighbour a core."
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for child in busy:
            child.kill()
            child.wait()


def main() -> None:
    from caller import head
    from serving_world import lines, make

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--family", default="boosting", help="linear or boosting")
    parser.add_argument("--durable", default="", help="only this mode")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        today(make(Path(folder), families=(given.family,)))
        customers = lines()["customer_id"].drop_nulls().unique().sort().to_list()
        bodies = [b'{"customer_id": %d}' % c for c in customers]
        path, heads = "/v1/churn/predictions", head(folder)  # the key's check is part of the path
        sync, paused = (fsync_ms(Path(folder), pause) for pause in (0.0, 0.0003))
        table: list[tuple[str, int, float, float, float, float]] = []
        about: list[str] = []  # What is said of each below the table
        for name, code, environment in (
            ("echo", ECHO, {}),
            ("before answer", SERVE, {}),
            ("within 5 ms", SERVE, {"MLSYS_DURABLE": "within 5 ms"}),
            ("by the OS", SERVE, {"MLSYS_DURABLE": "by the OS"}),
        ):
            if given.durable and name not in ("echo", given.durable):
                continue
            with process(code, folder, **environment) as (port, child, start):
                asked(port, bodies, path, 4, 1.0, heads)
                for connections in (1, 8, 32):
                    before = spent(child.pid)
                    rate, p50, p99 = asked(port, bodies, path, connections, given.seconds, heads)
                    each = 1e6 * (spent(child.pid) - before) / max(rate * given.seconds, 1)
                    table.append((name, connections, rate, p50, p99, each))
                    line = "   {:14} {:3} connections {:8.0f} a second, p50 {:.3f} ms, p99 {:.3f} ms, {:.0f} us of CPU"
                    print(line.format(*table[-1]), flush=True)
                memory = resident(child.pid)
                if name != "echo":
                    told = ", ".join(f"{stage} {us:.0f}" for stage, us in stages(port, heads))
                    about.append(f"{name:14} us by stage, mean: {told}")
                alone = next(p50 for who, c, _, p50, *_ in table if (who, c) == (name, 1))
                with neighbours():
                    _, p50, p99 = asked(port, bodies, path, 1, given.seconds, heads)
                about.append(
                    f"{name:14} started in {start:.2f} s, {memory:.0f} MiB; beside a busy neighbour a core p50 {p50:.3f} ms ({p50 / alone:.1f}x), p99 {p99:.3f}"
                )
        rows, json_head = peers(Path(folder), given.family), {"Content-Type": "application/json"}
        for name, code in PEERS.items():
            with process(code, folder) as (port, child, _):
                asked(port, rows, "/invocations", 1, 0.5, json_head)
                before = spent(child.pid)
                rate, p50, p99 = asked(port, rows, "/invocations", 8, given.seconds, json_head)
                each = 1e6 * (spent(child.pid) - before) / max(rate * given.seconds, 1)
                times = ", ".join(
                    f"{who} {ours / max(rate, 1 / given.seconds):.0f}x, {each / cost:.0f}x by CPU"
                    for who, c, ours, _, _, cost in table
                    if c == 8 and who != "echo"
                )
                about.append(
                    f"{name:16} {rate:8.0f} a second at 8 connections, p50 {p50:.3f} ms, {each:.0f} us of CPU; as many requests a second: {times}"
                )
    echo = {c: (rate, each) for name, c, rate, _, _, each in table if name == "echo"}
    print(
        f"== serving, load {os.getloadavg()[0]:.1f}; one fsync of this disk {sync:.3f} ms, {paused:.3f} after .3 ms of other work; requests a second and CPU a request, both also against the echo"
    )
    for name, connections, rate, p50, p99, each in table:
        of, less = rate / echo[connections][0], echo[connections][1] / each
        told = f"p50 {p50:.3f} ms, p99 {p99:.3f} ms, {each:.0f} us of CPU ({less:.0%})"
        print(f"{name:14} {connections:3} connections {rate:8.0f} a second ({of:.0%}), {told}")
    print(*about, sep="\n")


if __name__ == "__main__":
    main()
