"Alerts reach people: signed, once by id whenever the sender is killed, past a dead channel; a person takes them over."

import hashlib
import hmac
import json
import os
import signal
import socketserver
import subprocess
import threading
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlsys_nb.doors.cli import main
from mlsys_nb.monitoring.alert_delivery import deliver_due
from mlsys_nb.monitoring.alerts import Alert, open_alerts, record
from mlsys_nb.system.audit import audit_log
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import load_settings

MAY = instant("2010-05-01")


class Receiver(BaseHTTPRequestHandler):
    "Notes what comes; answers what `answers` says next, else 200; kills whom it is told to."

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
        if self.server.victims:
            os.kill(self.server.victims.pop(), signal.SIGKILL)
        code, heads = self.server.answers.pop(0) if self.server.answers else (200, {})
        self.send_response(code)
        for name, value in heads.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *given):
        pass


@pytest.fixture
def hook():
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.got, server.answers, server.victims = [], [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}/"
        yield server
        server.shutdown()


def project(folder, monkeypatch, **channels):
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    told = "".join(f"{name.replace('__', '.')} = {line}\n" for name, line in channels.items())
    problems = "[problems]\nchurn = mlsys_nb.cases.churn:problem\nreturns = mlsys_nb.cases.returns:problem\n"
    (folder / "settings.ini").write_text(f"[system]\ntracking_uri = off\n[deliver]\n{told}{problems}")
    monkeypatch.setenv("MLSYS_HOME", str(folder))
    settings = load_settings()
    write_json(settings.clock_file, {"now": MAY.isoformat()})
    return settings


def found(subject="orders", problem="churn", severity="warning"):
    return Alert(
        problem,
        "drift",
        subject,
        severity,
        "typical value 3 -> 9",
        "a unit changed",
        "look at the source",
        MAY,
    )


def opened(settings, *subjects, at=MAY, problem="churn"):
    record(open_control(settings), problem, [found(s, problem) for s in subjects], at)


def later(settings, **by):
    now = MAY + timedelta(**by)
    write_json(settings.clock_file, {"now": now.isoformat()})
    return now


def test_a_webhook_is_signed_and_grouped(tmp_path, monkeypatch, hook):
    settings = project(tmp_path, monkeypatch, ops=f"webhook {hook.url} secret=env:HOOK_SECRET")
    opened(settings, "orders", "prices", "returns")
    assert main(["deliver"]) == 0
    [(heads, body)] = hook.got
    stamp, mac = (part.partition("=")[2] for part in heads["x-mlsys-signature"].split(","))
    assert mac == hmac.new(b"s3cret", stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    told = json.loads(body)
    assert told["id"] == heads["idempotency-key"] and len(told["events"]) == 3
    assert {e["likely_cause"] for e in told["events"]} == {"a unit changed"} and b"s3cret" not in body
    assert main(["deliver"]) == 0 and len(hook.got) == 1


def test_killed_while_sending_each_message_arrives_once_by_its_id(tmp_path, monkeypatch, hook):
    settings = project(tmp_path, monkeypatch, ops=f"webhook {hook.url} secret=env:HOOK_SECRET")
    for n, (problem, subject) in enumerate([("churn", "a"), ("returns", "b")]):
        opened(settings, subject, at=MAY + timedelta(minutes=n), problem=problem)
    for _ in range(3):
        process = subprocess.Popen(["mlsys", "deliver"])
        hook.victims.append(process.pid)
        assert process.wait(60) in (-signal.SIGKILL, 0)
        hook.victims.clear()
    assert main(["deliver"]) == 0
    ids = [heads["idempotency-key"] for heads, _ in hook.got]
    by_id = {heads["idempotency-key"]: json.loads(body)["events"] for heads, body in hook.got}
    told = [event["event"] for events in by_id.values() for event in events]
    assert len(told) == len(set(told)) == 2 and len(ids) > len(by_id), "some came again, under the same id"


def test_a_busy_receiver_is_asked_again_when_it_said(tmp_path, monkeypatch, hook):
    settings = project(tmp_path, monkeypatch, ops=f"webhook {hook.url} secret=env:HOOK_SECRET")
    opened(settings, "orders")
    hook.answers += [(503, {"retry-after": "120"}), (302, {"location": "http://127.0.0.1:9/"})]
    assert main(["deliver"]) == 1
    later(settings, seconds=119)
    assert main(["deliver"]) == 1 and len(hook.got) == 1
    later(settings, seconds=121)
    assert main(["deliver"]) == 1 and len(hook.got) == 2  # a redirect is not followed
    later(settings, seconds=300)
    assert main(["deliver"]) == 0 and len({heads["idempotency-key"] for heads, _ in hook.got}) == 1


def test_a_dead_channel_harms_itself_only_and_is_named(tmp_path, monkeypatch, hook, capsys):
    settings = project(
        tmp_path, monkeypatch,
        dead="webhook http://127.0.0.1:9/ secret=env:HOOK_SECRET", bare="webhook http://127.0.0.1:9/ secret=env:NOT_SET",
        team=f"webhook {hook.url} secret=env:HOOK_SECRET",
    )  # fmt: skip
    opened(settings, "orders")
    assert main(["deliver"]) == 1 and len(hook.got) == 1
    said = capsys.readouterr().out
    assert "dead (webhook): 0 sent, 1 waiting, 0 given up: channel dead: nobody answers" in said
    assert "env:NOT_SET is empty or not set" in said and "team (webhook): 1 sent" in said


class Mailbox(socketserver.StreamRequestHandler):
    "As much of SMTP as a client needs."

    def handle(self):
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper().strip()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                letter = b""
                while (line := self.rfile.readline()) != b".\r\n":
                    letter += line
                self.server.letters.append(letter.decode())
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 fine\r\n")


def test_a_mail_arrives(tmp_path, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Mailbox) as server:
        server.letters = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"smtp://127.0.0.1:{server.server_address[1]}"
        settings = project(
            tmp_path, monkeypatch, boss=f"email {where} from=ml@example.org to=a@example.org,b@example.org",
            safe=f"email {where} from=ml@example.org to=a@example.org user=me password=env:HOOK_SECRET",
        )  # fmt: skip
        opened(settings, "orders")
        boss, safe = deliver_due(settings, MAY)
        server.shutdown()
    [letter] = server.letters
    assert "Subject: [warning] churn: opened: orders: typical value 3 -> 9" in letter and "@mlsys>" in letter
    assert "mlsys alerts churn --ack " in letter
    assert (boss.sent, safe.sent) == (1, 0) and "a password is not said in clear" in safe.trouble


def test_slack_gets_its_own_form_and_only_its_problem(tmp_path, monkeypatch, hook):
    monkeypatch.setenv("SLACK_URL", hook.url)
    settings = project(tmp_path, monkeypatch, churn__team="slack env:SLACK_URL severity=warning")
    opened(settings, "<orders>", problem="churn")
    opened(settings, "others", problem="returns")
    assert main(["deliver"]) == 0
    [(_, body)] = hook.got
    told = json.loads(body)
    assert [b["type"] for b in told["blocks"]] == [
        "header",
        "section",
        "context",
    ] and "&lt;orders&gt;" in told["text"]


def test_a_person_takes_an_alert_over_and_nobody_is_woken(tmp_path, monkeypatch, hook, capsys):
    line = f"webhook {hook.url} secret=env:HOOK_SECRET"
    settings = project(tmp_path, monkeypatch, boss=f"{line} after=24h")
    opened(settings, "orders", "prices")
    control = open_control(settings)
    names = {a.subject: a.id for a in open_alerts(control, "churn")}
    assert main(["alerts", "churn", "--ack", names["orders"]]) == 2  # without a note
    assert main(["alerts", "churn", "--ack", names["orders"], "--note", "the till was changed"]) == 0
    later(settings, hours=25)
    assert main(["deliver"]) == 0
    [(_, body)] = hook.got
    assert [(e["subject"], e["what"]) for e in json.loads(body)["events"]] == [("prices", "not acknowledged")]
    assert main(["alerts", "churn", "--resolve", names["prices"], "--note", "a wrong price list"]) == 0
    assert [a.subject for a in open_alerts(control, "churn")] == ["orders"]
    assert json.loads(hook.got[-1][1])["events"][0]["what"] == "closed"
    capsys.readouterr()
    assert main(["alerts", "churn"]) == 0 and "acknowledged by" in capsys.readouterr().out
    deeds = [line.action for line in audit_log(control, "alert/churn")]
    assert "acknowledged alert" in deeds and "resolved alert" in deeds


def test_a_test_message_finds_a_wrong_address(tmp_path, monkeypatch, hook):
    project(tmp_path, monkeypatch, ops=f"webhook {hook.url} secret=env:HOOK_SECRET")
    assert main(["deliver", "--test"]) == 0 and len(hook.got) == 1
    hook.answers.append((404, {}))
    assert main(["deliver", "--test"]) == 1


def test_a_secret_in_the_settings_is_refused(tmp_path, monkeypatch, capsys):
    project(tmp_path, monkeypatch, ops="webhook https://example.org/ secret=hunter2")
    assert main(["deliver"]) == 2
    said = capsys.readouterr().err
    assert "it is named and not written" in said and "hunter2" not in said
