"Champions exchanged under load: every request is answered, each by one version, and the log says which. `SWAPS=1000` is the full size."

import json
import os
import re
import selectors
import socket
import sys
import threading
import time

import pytest
from caller import head
from serving_world import HOME, JUNE, make
from test_service import service

from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.release.registry import champion, promote
from mlsys_nb.system.control_tables import open_control

SWAPS = int(os.environ.get("SWAPS", "12"))
REQUESTS = 100 * SWAPS
CUSTOMERS = (13080, 13100, 12980, 12360, 13400, 12840)
FORBIDDEN = (
    "sklearn",
    "pandas",
    "mlflow",
    "matplotlib",
    "optuna",
    "papermill",
    "IPython",
    "nbformat",
    "scipy",
)


def piece(heads, customer):
    body = b'{"customer_id": %d}' % customer
    said = {"host": "127.0.0.1", **heads, "content-length": len(body)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"POST /v1/churn/predictions HTTP/1.1\r\n{lines}\r\n".encode() + body


def read(line):
    came = line.recv(65_536)
    while (cut := came.find(b"\r\n\r\n")) < 0 or len(came) < cut + 4 + int(
        came[: cut + 2].lower().partition(b"content-length:")[2].partition(b"\r")[0]
    ):
        more = line.recv(65_536)
        assert more, came
        came += more
    return int(came.split()[1]), json.loads(came[cut + 4 :])


def ask(port, heads, customer):
    with socket.create_connection(("127.0.0.1", port), 30) as line:
        line.sendall(piece(heads, customer))
        return read(line)


def swap(here, version):
    control = open_control(here)
    epoch = champion(control, "churn").epoch
    promote(control, "churn", version, expected_epoch=epoch, at=JUNE, actor="test", reason="swap")


def served(port, heads, version):
    end = time.monotonic() + 180
    while ask(port, heads, CUSTOMERS[0])[1].get("version") != version:
        assert time.monotonic() < end, f"version {version} never served"
        time.sleep(0.02)


def under_load(port, heads, done, connections=8):
    "Whom each answer was about and what it said, asked by callers that each wait for theirs."
    poll, about, found, n = selectors.DefaultSelector(), {}, [], 0
    for i in range(connections):
        line = socket.create_connection(("127.0.0.1", port), 30)
        poll.register(line, selectors.EVENT_READ)
        about[line] = CUSTOMERS[i % len(CUSTOMERS)]
        line.sendall(piece(heads, about[line]))
    while about:
        for key, _ in poll.select(30):
            line = key.fileobj
            found.append((about[line], *read(line)))
            n += 1
            if done.is_set() and n >= REQUESTS:
                poll.unregister(line)
                line.close()
                del about[line]
            else:
                about[line] = CUSTOMERS[n % len(CUSTOMERS)]
                line.sendall(piece(heads, about[line]))
    return found


@pytest.mark.parametrize("durable", ["within 5 ms", "before answer"])
def test_champions_are_exchanged_under_load_and_no_request_fails(tmp_path, durable):
    here = make(tmp_path)
    heads = head(tmp_path)
    with service(tmp_path, MLSYS_DURABLE=durable, MLSYS_RELOAD_SECONDS="0.02") as (client, process, port):
        right = {}
        for version in (2, 1):
            swap(here, version)
            served(port, heads, version)
            right |= {(version, c): plain(ask(port, heads, c)) for c in CUSTOMERS}
        before, done, wrong = read_decisions(here, "churn").height, threading.Event(), []

        def swaps():
            try:
                for i in range(SWAPS):
                    swap(here, 2 - i % 2)
                    served(port, heads, 2 - i % 2)
            except BaseException as e:
                wrong.append(e)
            finally:
                done.set()

        thread = threading.Thread(target=swaps)
        thread.start()
        begun = time.monotonic()
        found = under_load(port, heads, done)
        thread.join()
        took = time.monotonic() - begun
        assert not wrong, wrong
        metrics = client.get("/metrics").text
        answered = sum(float(n) for n in re.findall(r"^mlsys_predictions_total\{.*\} (\S+)$", metrics, re.M))
        modules = imported(process.pid)
    assert len(found) >= REQUESTS and {status for _, status, _ in found} == {200}
    for customer, status, told in found:
        assert plain((status, told)) == right[told["version"], customer], (
            "an answer of a version that is not the one it names"
        )
    changes = sum(a[2]["version"] != b[2]["version"] for a, b in zip(found, found[1:], strict=False))
    assert changes >= SWAPS // 2
    rows = read_decisions(here, "churn")
    logged = dict(rows.select("decision_id", "version").iter_rows())
    assert all(logged[told["decision_id"]] == told["version"] for _, _, told in found)
    assert answered == rows.height > before + len(found), "each decision is counted once"
    assert not modules
    print(
        f"== {SWAPS} swaps in {took:.0f} s ({durable}): {len(found)} requests, 0 failed, {changes} changes of version seen"
    )


def plain(answer):
    status, told = answer
    return status, {name: value for name, value in told.items() if name != "decision_id"}


def imported(pid):
    "Engines whose machine code a process has mapped; what a worker needs none of."
    maps = open(f"/proc/{pid}/maps").read()
    return sorted({name for name in FORBIDDEN if f"/site-packages/{name}/" in maps})


WORKER = """
import json, sys
from mlsys_nb.serving.service import _Life
from mlsys_nb.serving.fast_path import StraightLine
from mlsys_nb.system.settings import load_settings
here = load_settings(root=sys.argv[1], home=sys.argv[2])
life = _Life(here, ["churn"])
life.open()
line, given = StraightLine(life.served, life.access, here), []
sent = [(name.encode(), value.encode()) for name, value in json.loads(sys.argv[3]).items()]
known = line.standing(b"/v1/churn/predictions", [(b"host", b"localhost"), *sent], ("127.0.0.1", 1))
for n in range(100):
    assert line(known, b'{"customer_id": 13080}', given.append, True)
assert [a.status for a in given] == [200] * 100
life.close()
told = open("/proc/self/smaps_rollup").read()
print(json.dumps([sorted(sys.modules), int(told.partition("Pss:")[2].split()[0]) / 1024]))
"""


def test_a_worker_carries_no_engine_of_training_after_a_hundred_requests(tmp_path):
    import subprocess

    make(tmp_path, families=("boosting",))
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(HOME), json.dumps(head(tmp_path))]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=HOME, env={**os.environ, "MLSYS_DURABLE": "by the OS"}
    )
    assert done.returncode == 0, done.stderr
    modules, size = json.loads(done.stdout)
    assert not {name.partition(".")[0] for name in modules} & set(FORBIDDEN)
    assert size <= 100, f"{size:.0f} MiB"
