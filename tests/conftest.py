"What several test files share: real servers, started on 127.0.0.1 and stopped by whoever started them."

import glob
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(ready, process, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return ready()
        except Exception:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory):
    psycopg = pytest.importorskip("psycopg")
    found = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    real = shutil.which("postgres")
    found += [str(Path(os.path.realpath(real)).parent)] if real else []
    homes = [f for f in found if Path(f, "initdb").exists()]
    if not homes:
        pytest.skip("no postgres here")
    port, folder = free_port(), tmp_path_factory.mktemp("postgres")
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # the server refuses to run as root
    if user:
        for part in [folder, *folder.parents][:4]:
            part.chmod(0o755)
        shutil.chown(folder, "postgres")
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    initdb = [f"{homes[0]}/initdb", "-D", f"{folder}/db", "-A", "trust", "-U", "mlsys"]
    made = subprocess.run(initdb, capture_output=True, text=True, env=env, cwd="/", **user)
    assert made.returncode == 0, made.stderr
    command = [
        f"{homes[0]}/postgres",
        "-D",
        f"{folder}/db",
        "-p",
        str(port),
        "-k",
        str(folder),
        "-h",
        "127.0.0.1",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd="/", **user
    )
    url = f"postgresql://mlsys@127.0.0.1:{port}/postgres"
    wait_for(lambda: psycopg.connect(url).close(), process)
    yield url
    process.send_signal(signal.SIGINT)  # a fast shutdown: it does not wait for open connections
    process.wait()
