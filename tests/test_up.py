"`mlsys up`: all of it at once, started again when it dies, and nothing left behind."

import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import serving_world as world
from conftest import wait_for
from ports import free_port


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(c): Path(f"/proc/{c}/cmdline").read_bytes().decode() for c in text.split()}


def alive(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:  # it wants a key or a token: somebody is there
        return error.code


def test_everything_starts_is_started_again_and_ends(tmp_path):
    settings = world.make(tmp_path, ("linear",))
    project = tmp_path / "project"
    project.mkdir()
    text = "[system]\ntracking_uri = off\n[problems]\nchurn = mlsys_nb.cases.churn:problem\n[schedule]\nchurn.score = 0 6 * * 1\n"
    (project / "settings.ini").write_text(text)
    service, window = free_port(), free_port()
    words = [
        "mlsys",
        "up",
        "--port",
        str(service),
        "--dashboard-port",
        str(window),
        "--root",
        str(settings.root),
    ]
    process = subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: alive(f"http://127.0.0.1:{service}/v1/churn/model"), process, 120)
        wait_for(lambda: alive(f"http://127.0.0.1:{window}/"), process, 120)
        parts = children(process.pid)
        assert len(parts) == 3, parts
        victim = next(pid for pid, words in parts.items() if "\0serve\0" in words)
        os.killpg(victim, signal.SIGKILL)
        time.sleep(1)
        wait_for(lambda: alive(f"http://127.0.0.1:{service}/v1/churn/model"), process, 120)
        parts = {**parts, **children(process.pid)}
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=90)[0]
    assert process.returncode == 130 and "service ended with exit code -9" in said
    urls = re.findall(r"^(?:service|dashboard|schedule) .*?((?:http|file)://\S+)", said, re.M)
    assert len(urls) == 3 and not [pid for pid in parts if Path(f"/proc/{pid}").exists()]
