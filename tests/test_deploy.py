"""What `mlsys deploy` writes is read by the rules of whom it is for, and its programs run: units as plain processes, the health check of
the image, objects against the schema of Kubernetes; no secret is in any of it, whatever folders and settings are called."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ports import free_port
from serving_world import make

from mlsys_nb.doors.cli import main, parser
from mlsys_nb.doors.commands.deploying import deploy_files
from mlsys_nb.system.settings import load_settings

HOSTILE = """it's 100% "our" $HOME; ünï"""
SECRETS = ("hunter2", "s3cr3t-word")
INI = """[system]
root = {root}
control_uri = {control}
tracking_uri = off
[service]
port = {port}
hosts = api.example.org
[deliver]
ops = webhook https://ops.example.org/hook secret=env:HOOK_SECRET
boss = slack env:SLACK_URL
[schedule]
churn.monitor = 30 6 * * 1-5 Europe/London
[problems]
churn = mlsys_nb.cases.churn:problem
"""


def declared(home: Path, control: str = "", port: int = 8100) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / "settings.ini").write_text(INI.format(root="state", control=control, port=port))
    return home


def words_of(line: str, credentials: str = "") -> list[str]:
    "A command line as systemd.syntax(7) and systemd.service(5) split and expand it."
    words, word, quote, i = [], None, "", 0
    while i < len(line):
        c = line[i]
        if c == "\\":
            word, i = (word or "") + line[i + 1], i + 1
            assert line[i] in "\\\"'", "another escape than those of a quote or a backslash"
        elif quote:
            quote, word = ("", word) if c == quote else (quote, word + c)
        elif c in "\"'" and word is None:
            quote, word = c, ""
        elif c.isspace():
            words, word = words + ([word] if word is not None else []), None
        else:
            assert c not in "\"'", "a quote stands at the beginning of a word"
            word = (word or "") + c
        i += 1
    assert not quote, "a quote that is not closed"
    return [expanded(w, credentials) for w in words + ([word] if word is not None else [])]


def expanded(text: str, credentials: str = "", command: bool = True) -> str:
    def meant(found):
        known = {"%%": "%", "%d": credentials, **({"$$": "$"} if command else {})}
        assert found[0] in known, f"{found[0]} would be expanded in {text!r}"
        return known[found[0]]

    return re.sub(r"%.?|\$\$|\$(?=\w|\{)" if command else r"%.?", meant, text)


def lines_of(unit: str) -> dict[str, list[str]]:
    "The lines of a unit by their key."
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        assert not line.endswith("\\"), "a line that goes on"
        if line and line[0] not in "#[":
            key, equals, value = line.partition("=")
            assert equals and re.fullmatch(r"[A-Za-z]+", key), line
            found.setdefault(key, []).append(value)
    return found


def environment_of(unit: dict[str, list[str]], credentials: str) -> dict[str, str]:
    told = [
        word.partition("=")
        for line in unit["Environment"]
        for word in words_of(line.replace("$", "$$"), credentials)
    ]
    return {name: value for name, _, value in told}


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()
    except OSError:
        return 0, b""


def test_the_units_command_serves_says_that_it_is_ready_and_drains_in_time(tmp_path):
    home, port = tmp_path / HOSTILE, free_port()
    declared(home, port=port)
    make(home / "state", families=("linear",))
    units = deploy_files(load_settings(home=home), "systemd", tmp_path)
    unit = lines_of(units["mlsys-serve.service"])
    [command], [folder], [stop] = unit["ExecStart"], unit["WorkingDirectory"], unit["TimeoutStopSec"]
    words, place = words_of(command), expanded(folder, command=False)
    assert words[1:] == ["serve", "--root", str(home / "state")] and place == str(home)
    assert set(words_of(unit["ReadWritePaths"][0].replace("$", "$$"))) == {
        str(home / "state" / n) for n in ("data", "reports")
    }
    plain = {n: v for n, v in os.environ.items() if not n.startswith("MLSYS_")} | environment_of(unit, "")
    assert plain["MLSYS_HOME"] == str(home)
    running = subprocess.Popen(words, cwd=place, env=plain, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and get(f"http://127.0.0.1:{port}/readyz")[0] != 200:
            assert running.poll() is None, running.stderr.read().decode()
            time.sleep(0.1)
        assert json.loads(get(f"http://127.0.0.1:{port}/readyz")[1]) == {"ready": True}
        other = subprocess.run(words, cwd=place, env=plain, capture_output=True, text=True, timeout=120)
        assert other.returncode == 2 and "cannot be had" in other.stderr, (
            "a port in use is one line and a failure"
        )
        image = deploy_files(load_settings(home=home), "compose", home / "deploy")["Containerfile"]
        check = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", image, re.M)[1])
        assert subprocess.run([sys.executable, *check[1:]], timeout=60).returncode == 0
        running.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        code = running.wait(float(stop))
        assert time.monotonic() - begun < float(stop)
        good = {0, -signal.SIGTERM, *map(int, unit["SuccessExitStatus"][0].split())}
        assert code in good, running.stderr.read().decode()
        assert subprocess.run([sys.executable, *check[1:]], capture_output=True, timeout=60).returncode != 0
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("name", ["plain", HOSTILE], ids=["plain", "hostile"])
def test_systemd_reads_the_units(tmp_path, name):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    home = declared(tmp_path / name)
    (tmp_path / "out").mkdir()
    units = deploy_files(load_settings(home=home), "systemd", tmp_path / "out")
    for file, text in units.items():
        (tmp_path / "out" / file).write_text(text)
    given = [str(tmp_path / "out" / file) for file in units if file.endswith((".service", ".target"))]
    said = subprocess.run(["systemd-analyze", "verify", *given], capture_output=True, text=True)
    about = [line for line in said.stderr.splitlines() if "mlsys" in line]
    assert said.returncode == 0 and not about, said.stderr


@pytest.mark.parametrize(
    "broken",
    [("100%%", "100%"), ("$$HOME", "$HOME"), ('\\"our\\"', '"our"')],
    ids=["percent", "dollar", "quote"],
)
def test_a_word_that_is_not_quoted_would_be_found(tmp_path, broken):
    units = deploy_files(load_settings(home=declared(tmp_path / HOSTILE)), "systemd", tmp_path)
    command = lines_of(units["mlsys-serve.service"])["ExecStart"][0]
    assert broken[0] in command
    with pytest.raises(AssertionError):
        words = words_of(command.replace(*broken))
        assert words[1:] == ["serve", "--root", str(tmp_path / HOSTILE / "state")]


def test_a_folder_that_no_unit_can_name_is_refused(tmp_path, capsys, monkeypatch):
    home = declared(tmp_path / "two\nExecStartPost=+rm")
    monkeypatch.setenv("MLSYS_HOME", str(home))
    assert main(["deploy", "systemd", str(tmp_path / "out")]) == 2
    assert "one line of printable characters" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["systemd", "compose", "kubernetes"])
def test_no_secret_is_written(tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOOK_SECRET", SECRETS[1])
    home = declared(tmp_path, control=f"postgresql+psycopg://mlsys:{SECRETS[0]}@db/mlsys")
    text = json.dumps(deploy_files(load_settings(home=home), form, home / "deploy"))
    assert not [word for word in SECRETS if word in text]
    assert all(name in text for name in ("HOOK_SECRET", "SLACK_URL", "MLSYS_CONTROL_URI"))


SERVICE = {
    "image": {"type": "string"}, "command": {"type": "array", "items": {"type": "string"}}, "init": {"type": "boolean"},
    "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]}, "read_only": {"type": "boolean"},
    "tmpfs": {"type": "array", "items": {"type": "string"}}, "user": {"type": "string", "pattern": r"^\d+:\d+$"},
    "cap_drop": {"type": "array"}, "security_opt": {"type": "array"}, "stop_grace_period": {"type": "string", "pattern": r"^\d+s$"},
    "volumes": {"type": "array", "items": {"type": "string", "pattern": r"^state:/"}},
    "environment": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    "deploy": {"type": "object", "required": ["resources"]}, "ports": {"type": "array", "items": {"pattern": r"^127\.0\.0\.1:\d+:\d+$"}},
    "secrets": {"type": "array", "items": {"type": "string"}}, "healthcheck": {"const": {"disable": True}},
    "depends_on": {"type": "object"},
    "build": {"type": "object", "required": ["context", "dockerfile"], "additionalProperties": {"type": "string"}},
}  # fmt: skip
COMPOSE = {
    "type": "object", "required": ["services"], "additionalProperties": False,
    "properties": {
        "name": {"pattern": r"^[a-z0-9][a-z0-9_-]*$"}, "volumes": {"type": "object"},
        "secrets": {"additionalProperties": {"type": "object", "required": ["file"], "additionalProperties": False, "properties": {"file": {}}}},
        "services": {"additionalProperties": {"type": "object", "required": ["image"], "additionalProperties": False, "properties": SERVICE}},
    },
}  # fmt: skip


def test_compose_and_the_container_file_say_what_their_readers_know(tmp_path, capsys, monkeypatch):
    home = declared(tmp_path / "site")
    monkeypatch.setenv("MLSYS_HOME", str(home))
    assert main(["deploy", "compose", str(home / "ops/docker")]) == 0
    told = yaml.safe_load((home / "ops/docker/compose.yaml").read_text())
    jsonschema.validate(told, COMPOSE)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {**told, "services": {"serve": {**told["services"]["serve"], "restrat": "always"}}}, COMPOSE
        )
    assert list(told["services"]) == ["serve", "schedule", "dashboard"]
    for name, service in told["services"].items():
        assert set(service.get("secrets", [])) <= set(told["secrets"]), name
    built = told["services"]["serve"]["build"]
    context = (home / "ops/docker" / built["context"]).resolve()
    assert context == home and (context / built["dockerfile"]).is_file()
    text = (context / built["dockerfile"]).read_text()
    steps = [line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    known = {
        "FROM",
        "ARG",
        "RUN",
        "COPY",
        "WORKDIR",
        "ENV",
        "USER",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert steps[0][0] == "FROM" and {name for name, _ in steps} == known
    order = [name for name, _ in steps]
    assert order.index("USER") < order.index("ENTRYPOINT") and dict(steps)["USER"] not in ("root", "0", "0:0")
    for name, what in steps:
        if name == "COPY":
            assert (context / what.split()[0]).exists(), what
        if name == "CMD":
            assert parser().parse_args(json.loads(what)).command == "serve"
    assert (
        dict(n.split("=", 1) for n in re.findall(r'\w+="[^"]*"', dict(steps)["ENV"]))["MLSYS_ROOT"]
        == '"/data"'
    )
    capsys.readouterr()
    assert main(["deploy", "compose", str(tmp_path / "elsewhere")]) == 2
    assert "below that of settings.ini" in capsys.readouterr().err


def test_kubernetes_takes_every_object(tmp_path):
    home = declared(tmp_path, control="postgresql+psycopg://mlsys:hunter2@db/mlsys")
    (home / "settings.ini").write_text((home / "settings.ini").read_text() + f"# {HOSTILE}\n")
    files = deploy_files(load_settings(home=home), "kubernetes", home / "deploy")
    objects = [o for name, text in files.items() if name.endswith(".yaml") for o in yaml.safe_load_all(text)]
    for one in objects:
        kubernetes_validate.validate(one, "1.32", strict=True)
    kinds = [o["kind"] for o in objects]
    assert kinds == ["ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "CronJob"]
    by = dict(zip(kinds, objects, strict=True))
    pod = by["Deployment"]["spec"]["template"]
    job = by["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    claims = {by["PersistentVolumeClaim"]["metadata"]["name"]}
    for part in (pod["spec"], job["spec"]):
        [box] = part["containers"]
        named = {v["name"] for v in part["volumes"]}
        assert {m["name"] for m in box["volumeMounts"]} == named
        assert {
            v["persistentVolumeClaim"]["claimName"] for v in part["volumes"] if "persistentVolumeClaim" in v
        } == claims
        assert part["securityContext"]["runAsNonRoot"] and box["securityContext"]["readOnlyRootFilesystem"]
        secret = {
            e["name"]: e["valueFrom"]["secretKeyRef"]["key"]
            for e in box["env"]
            if "secretKeyRef" in e.get("valueFrom", {})
        }
        assert secret.keys() == {"HOOK_SECRET", "SLACK_URL", "MLSYS_CONTROL_URI"}
    box, port = pod["spec"]["containers"][0], {"name": "http", "containerPort": 8100}
    assert (box["readinessProbe"]["httpGet"]["path"], box["livenessProbe"]["httpGet"]["path"]) == (
        "/readyz",
        "/healthz",
    )
    assert box["ports"] == [port] and by["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert by["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert not by["Service"]["spec"]["selector"].items() <= job.get("metadata", {}).get("labels", {}).items()
    assert job["spec"]["containers"][0]["args"] == ["run", "monitor", "-p", "problem=churn"]
    names = {e["name"]: e.get("value") for e in box["env"]}["MLSYS_HOSTS"].split(",")
    assert {"api.example.org", by["Service"]["metadata"]["name"]} <= set(names), (
        "asked under its name in the cluster"
    )
    broken = json.loads(json.dumps(by["Deployment"]).replace("containerPort", "containerport"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.32", strict=True)


def test_the_exported_units_of_the_schedule_quote_by_systemds_rules(tmp_path, capsys, monkeypatch):
    home = declared(tmp_path / HOSTILE)
    text = (home / "settings.ini").read_text().replace("Europe/London", "Europe/London -p 'note=50% $off'")
    (home / "settings.ini").write_text(text)
    monkeypatch.setenv("MLSYS_HOME", str(home))
    if main(["schedule", "--export", "systemd", "--out", str(tmp_path / "out")]) == 0:
        unit = lines_of((tmp_path / "out/mlsys-churn-monitor.service").read_text())
        assert words_of(unit["ExecStart"][0])[-1] == "note=50% $off"
        assert expanded(unit["WorkingDirectory"][0], command=False) == str(home)
    else:
        raise AssertionError(capsys.readouterr().err)


def test_no_watchdog_is_promised_that_nobody_feeds():
    source = (Path(__file__).resolve().parents[1] / "mlsys_nb/serving/service.py").read_text()
    feeds = any(
        "WATCHDOG" in str(n.value) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)
    )
    units = (Path(__file__).resolve().parents[1] / "mlsys_nb/doors/deploy/systemd.py").read_text()
    assert feeds == ("WatchdogSec" in units)
