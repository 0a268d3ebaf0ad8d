"""Every command that a living system prints runs as printed: on its pages, in its lists, in its messages, and in what the commands themselves print.

What `tests/test_remedies.py` holds to the parser, with a word in the place of each value, is here read with its values, where a person would read it, and run in
a copy; what it prints is read in turn. Commands that train, replay or stay are held to the parser and to what they are asked about; the guide's pages run them.
"""

import html
import re
from pathlib import Path

import pytest
from dashboards_world import LOOKS, SEPTEMBER, lived
from test_remedies import as_typed, commands

from mlsys_nb.doors.cli import COMMANDS, PROBLEM, main, parser
from mlsys_nb.doors.dashboards.static_export import write_snapshot
from mlsys_nb.monitoring.alert_channels import News, slack_body
from mlsys_nb.monitoring.alert_delivery import _event
from mlsys_nb.monitoring.alerts import open_alerts
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.settings import load_settings

HOME = Path(__file__).resolve().parents[1]
LONG = {
    "demo",
    "run",
    "scope",
    "ingest",
    "score",
    "train",
    "monitor",
    "retrain",
    "simulate",
    "parity",
    "drill",
    "docs",
}


def read(page: str) -> str:
    "What stands on a page, a line for each piece."
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    within = re.sub(r"</?(span|b|a|small|strong|em)\b[^<>]*>", "", body)
    return html.unescape(re.sub(r"<[^<>]+>", "\n", within))


@pytest.fixture(params=["fresh", "lived"])
def printed(request, tmp_path, monkeypatch, capsys):
    "What a system prints on its pages, in messages and in answers, also to who asks too early; it is found without being told where it is."
    settings = load_settings(root=tmp_path / "system", home=HOME)
    if request.param == "lived":
        lived(settings)
    monkeypatch.setenv("MLSYS_ROOT", str(settings.root))
    monkeypatch.chdir(HOME)
    found = {page.name: read(page.read_text()) for page in write_snapshot(settings, tmp_path / "pages")}
    found |= {page.parent.name: read(page.read_text()) for page in HOME.glob("reports/*/*/*/report.html")}
    if request.param == "lived":
        told = [_event("opened", alert, "") for alert in open_alerts(open_control(settings), "churn")]
        found["message"] = "\n".join(
            part["text"]["text"] for part in slack_body(News("m1", "churn", told, SEPTEMBER))["blocks"][1:-1]
        )
    about = [f"{name} churn" for name, command in COMMANDS.items() if PROBLEM in command.options]
    for look in {*LOOKS, *about, *COMMANDS}:
        if look.split()[0] not in LONG and "stays" not in COMMANDS[look.split()[0]].kind:
            main(look.split())
            found[f"mlsys {look}"] = "".join(capsys.readouterr())
    return found


def runs(words: list[str], capsys) -> str:
    "What is wrong with a command; empty for nothing."
    try:
        options = parser().parse_args(words)
    except SystemExit as ended:  # --help
        return "" if ended.code == 0 else "cannot be typed"
    except ValueError as error:
        return (
            "" if len(words) == 1 and "required" in str(error) else f"cannot be typed: {error}"
        )  # merely named
    known = load_settings().problems
    named = (
        options.problem
        if isinstance(getattr(options, "problem", ""), list)
        else [getattr(options, "problem", None)]
    )
    if unknown := set(named) - {None, *known}:
        return f"there is no problem {unknown}"
    if options.command in LONG or "--swap" in words or "stays" in COMMANDS[options.command].kind:
        return ""
    code = main(words)
    said = capsys.readouterr()
    return (
        f"exit code {code}: {said.err}"
        if code not in (0, 1) or "error:" in said.err
        else f"@{said.out}{said.err}"
    )


def test_what_a_system_prints_runs_as_it_is_printed(printed, capsys):
    waiting = {where: list(commands(text)) for where, text in printed.items()}
    done: dict[str, str] = {}
    while waiting:
        where, found = waiting.popitem()
        for command in found:
            if (
                command and "[" not in command and command not in done
            ):  # how a command is to be called, in its help
                done[command] = runs(as_typed(command), capsys)
                if done[command].startswith("@"):
                    waiting[f"mlsys {command}"] = list(commands(done[command]))
                    done[command] = ""
                done[command] = done[command] and f"{where}: {done[command]}"
    wrong = {command: why for command, why in done.items() if why}
    assert not wrong, "\n".join(f"mlsys {command}: {why}" for command, why in wrong.items())
    assert len(done) > 25 and "train churn" in done
    assert "message" not in printed or any(c.startswith("alerts churn --ack") for c in done)
