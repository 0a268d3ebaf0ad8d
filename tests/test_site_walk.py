"""A site's own database, its behaviour by HTTP, four questions in one root, asked from PHP and from Node: the functions that
nbs/guide/howto/20_backend.md prints are the ones that ask. The site is SIMULATED (tests/site_world.py), so that the truth is known."""

import json
import os
import re
import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import site_world
from site_problems import CLASSES, DAY

from mlsys_nb.data.event_inbox import Inbox
from mlsys_nb.data.lake import read, snapshot
from mlsys_nb.decisions.log import read_decisions
from mlsys_nb.decisions.outcomes import labelled
from mlsys_nb.doors.cli import main
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import monitor, retrain, score, train
from mlsys_nb.loop.step_context import context
from mlsys_nb.loop.training_serving_skew import served_again
from mlsys_nb.release.registry import champion, promote
from mlsys_nb.serving.api_keys import KeyWanted, add_key
from mlsys_nb.serving.service import running
from mlsys_nb.system.durable import write_json
from mlsys_nb.system.settings import load_settings

HERE, NAMES = Path(__file__).resolve().parent, ("leaves", "subscribes", "next_tool", "opened_tomorrow")
NOW = site_world.NOW
EVENING = NOW + DAY
SCORED = {
    7: ("subscribes", "next_tool"),
    13: ("opened_tomorrow",),
}  # On which nights later, beside the first evening
# What a test puts behind the printed function: a line of JSON in, path, body and service; a line of JSON out.
LOOPS = {
    "php": """while (($line = fgets(STDIN)) !== false) {
    [$path, $body, $service] = json_decode($line, true);
    try { $told = mlsys($path, $body, $service); } catch (RuntimeException $e) { $told = ['failed' => $e->getMessage()]; }
    echo json_encode($told), "\\n";
}""",
    "js": """import { createInterface } from 'node:readline';
for await (const line of createInterface({ input: process.stdin })) {
  const told = await mlsys(...JSON.parse(line)).catch((e) => ({ failed: e.message }));
  console.log(JSON.stringify(told));
}""",
}


def printed(language: str) -> str:
    "The function that the guide prints, without what it prints as its use."
    [block] = re.findall(
        rf"```{language}\n(.*?)```", (HERE.parent / "nbs/guide/howto/20_backend.md").read_text(), re.DOTALL
    )
    function, use = block.split("\n\n", 1)
    assert "/predictions" in use and "/outcomes" in use and "/v1/events/" in use
    return function


def has_curl() -> bool:
    return "curl" in subprocess.run(["php", "-m"], capture_output=True, text=True).stdout.split()


class Client:
    "A program of the site, in its own language and its own process."

    def __init__(self, language: str, folder: Path, key: str) -> None:
        program, ending = {"php": ("php", "php"), "js": ("node", "mjs")}[language]
        if shutil.which(program) is None or (program == "php" and not has_curl()):
            pytest.skip(f"{program} is not installed, or lacks curl; CI installs it (.ci/run)")
        path = folder / f"site.{ending}"
        path.write_text(f"{printed(language)}\n{LOOPS[language]}\n")
        known = {**os.environ, "PREDICTION_KEY": key}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.language, self._process = language, subprocess.Popen([program, str(path)], env=known, **pipes)

    def ask(self, service: str, path: str, body: object) -> dict:
        self._process.stdin.write(json.dumps([path, body, service]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


def begin(folder: Path):
    "What `mlsys init` makes, with the four questions in its package and the site's database beside it."
    home = folder / "webtools"
    assert main(["init", str(home)]) == 0
    package = next(home.glob("*/__init__.py")).parent
    shutil.copy(HERE / "site_problems.py", package / "questions.py")
    said = home / "settings.ini"
    said.write_text(
        said.read_text() + "".join(f"{name} = {package.name}.questions:{name}\n" for name in NAMES)
    )
    site = site_world.Site(home / "site.db")
    site.lives(NOW)
    return site, load_settings(home=home)


def at(settings, name, moment):
    write_json(settings.clock_file, {"now": moment.isoformat()})
    return context(name, "", settings)


def opened_on(site, day: datetime) -> list[dict]:
    "The visits of one day as the site tells them while they happen."
    names = ("visit", "visitor", "tool", "class", "member", "seconds", "at")
    rows = site.between("visits", *(str(m.replace(tzinfo=None)) for m in (day, day + DAY)))
    return [{**dict(zip(names, row, strict=True)), "member": bool(row[4])} for row in rows]


class Lived:
    "What became of the walk."

    def __init__(self, folder: Path) -> None:
        self.site, begun = begin(folder)
        self.settings = replace(begun, open="nobody")  # asked with a key, or not at all
        key = add_key(self.settings, KeyWanted("site", ("predict", "outcome")), "test")
        self.clients = [Client("php", folder, key), Client("js", folder, key)]
        self.trained = {}
        for name in NAMES:
            ingest_due(at(self.settings, name, NOW))
        for name in NAMES:
            self.trained[name] = self._trained(name)
        self.day = opened_on(self.site, NOW)
        with ExitStack() as stack:
            self.url = {name: stack.enter_context(running(self.settings, name)) for name in NAMES}
            self.told = self._behave()
            self._wait_until_visible()
            write_json(self.settings.clock_file, {"now": EVENING.isoformat()})
            self.asked = {client.language: self._ask(client) for client in self.clients}
            self.outcomes = self._tell()
        for client in self.clients:
            client.close()

    def _trained(self, name: str):
        here = at(self.settings, name, NOW)
        done = train(here, n_trials=2)
        if (
            champion(here.control, name).version is None
        ):  # the gate refuses; somebody who knows better promotes
            said = {"at": NOW, "actor": "test", "reason": "the walk is about the way, not about the gain"}
            promote(here.control, name, done.release.version, expected_epoch=0, **said)
        return done

    def _behave(self) -> list[dict]:
        "The day's visits by HTTP: half of them from PHP, half from Node, one post as a list, and one that is broken."
        php, node = self.clients
        told, many = [], len(self.day) // 2
        told.append(php.ask(self.url["leaves"], "/v1/events/visits", self.day[:many]))
        told += [node.ask(self.url["next_tool"], "/v1/events/visits", e) for e in self.day[many : many + 10]]
        told.append(node.ask(self.url["subscribes"], "/v1/events/visits", self.day[many + 10 :]))
        self.again = php.ask(self.url["subscribes"], "/v1/events/visits", self.day[:5])
        self.broken = node.ask(self.url["leaves"], "/v1/events/visits", {**self.day[0], "class": "sound"})
        return told

    def _wait_until_visible(self) -> None:
        "The day's clock stands still, so it must not move on before what was posted is there."
        box, until = Inbox(self.settings, "visits", remember=0), time.monotonic() + 180
        while box.at.visible < len(self.day) and time.monotonic() < until:
            time.sleep(0.05)
            box.catch_up()
        assert box.at.visible >= len(self.day)

    def bodies(self, language: str) -> dict[str, dict]:
        "About the newest visit, and in each language another one where a decision is about a visit."
        e = self.day[-1]
        visit = [v for v in self.day if v["member"] is False][-1 if language == "php" else -2]
        named = {"visitor": visit["visitor"], "visit": visit["visit"], "kind": visit["class"]}
        return {
            "leaves": {"visitor": e["visitor"]},
            "subscribes": {**named, "seconds": visit["seconds"]},
            "next_tool": {"visitor": e["visitor"]},
            "opened_tomorrow": {"tool": e["tool"]},
        }

    def _ask(self, client: Client) -> dict[str, dict]:
        return {
            name: client.ask(self.url[name], f"/v1/{name}/predictions", {**body, "features": True})
            for name, body in self.bodies(client.language).items()
        }

    def _tell(self) -> list[dict]:
        "Whoever was predicted to subscribe did, says PHP; and Node says which tool came next."
        php, node = self.clients
        self.posted, told = {"subscribes": 1, "next_tool": "pdf-0"}, []
        for client, name, outcome in (
            (php, "subscribes", 1),
            (node, "next_tool", "pdf-0"),
            (node, "next_tool", 7),
        ):
            body = {"decision_id": self.asked["php"][name]["decision_id"], "outcome": outcome}
            told.append(client.ask(self.url[name], f"/v1/{name}/outcomes", body))
        return told


def behaviour_comes_in_from_both_languages_and_counts_once(lived):
    assert sum(t["accepted"] for t in lived.told) == len(lived.day) > 50
    assert lived.again["repeated"] == 5 and "422" in lived.broken["failed"], lived.broken


def each_question_is_answered_in_both_languages_from_what_was_just_posted(lived):
    for language, answers in lived.asked.items():
        for name, made in answers.items():
            assert made.get("problem") == name and made["moment"] == EVENING.isoformat(), (language, made)
    leaves, following, tomorrow = (lived.asked["php"][n] for n in ("leaves", "next_tool", "opened_tomorrow"))
    newest = lived.day[-1]
    mine = [v for v in lived.day if v["visitor"] == newest["visitor"]]
    assert leaves["features"]["visits_7d"] >= len(mine) and leaves["features"]["days_since_visit"] < 1
    shown = following["answer"]["candidates"]
    assert len(shown) == 5 and {c["item"].rsplit("-", 1)[0] for c in shown} <= set(CLASSES), shown
    assert tomorrow["answer"]["low"] <= tomorrow["prediction"] <= tomorrow["answer"]["high"]
    same = sum(v["tool"] == newest["tool"] for v in lived.day)
    assert tomorrow["features"]["opened_1d"] == same and tomorrow["features"]["weekday"] == 2
    for name in ("leaves", "next_tool", "opened_tomorrow"):  # asked about the same
        php, node = lived.asked["php"][name], lived.asked["js"][name]
        assert php["prediction"] == node["prediction"] and php["decision_id"] != node["decision_id"]


def the_answers_are_those_of_the_batch_to_the_bit(lived):
    for name in NAMES:
        here = at(lived.settings, name, EVENING)
        report = ingest_due(here)
        batch = score(context(name, "", lived.settings)).batch.frame
        made = [lived.asked[language][name] for language in ("php", "js")]
        if "visit" in batch.columns:  # decided about already, so not again
            visits = {a["entity"]["visit"] for a in made}
            assert len(batch) > 20 and not visits & set(batch["visit"]), report.outputs
            decided = read_decisions(lived.settings, name).filter(
                pl.col("decision_id").is_in([a["decision_id"] for a in made])
            )
            model = context(name, "", lived.settings).model
            again = here.problem.target.choices(model.predict(decided), here.problem.costs)["score"]
            assert sorted(again) == sorted(a["prediction"] for a in made)
        else:
            [key] = set(made[0]["entity"])
            found = batch.filter(pl.col(key) == made[0]["entity"][key])
            assert found["score"].to_list() == [made[0]["prediction"]] == [made[1]["prediction"]]
        skew = served_again(context(name, "", lived.settings))
        assert skew.rows >= len(batch) and skew.share == 1, skew


def what_was_posted_and_then_stands_in_the_database_too_is_one_visit(lived):
    lived.site.lives(EVENING)
    ingest_due(at(lived.settings, "leaves", EVENING + timedelta(hours=1)))
    rows = read(lived.settings, snapshot(lived.settings, "visits"))
    assert rows["event_id"].n_unique() == len(rows) == len(lived.site.between("visits", "", lived.site.until))


def an_outcome_from_either_language_is_taken_or_refused_with_the_rule(lived):
    assert [bool(told.get("failed")) for told in lived.outcomes] == [False, False, True]
    assert "422" in lived.outcomes[2]["failed"] and "text" in lived.outcomes[2]["failed"], lived.outcomes[2]


def two_weeks_later_monitor_and_retrain_know_what_came_true(lived, capsys):
    for night in range(1, 16):
        lived.site.lives(EVENING + night * DAY)
        ingest_due(at(lived.settings, "leaves", EVENING + night * DAY + timedelta(hours=1)))
        for name in SCORED.get(night, ()):
            ingest_due(here := context(name, "", lived.settings))
            score(here)
    said, later = [], EVENING + 15 * DAY + timedelta(hours=2)
    for name in NAMES:
        ingest_due(at(lived.settings, name, later))
        seen, done = monitor(here := context(name, "", lived.settings)), retrain(here, n_trials=1)
        assert done.decision in ("promoted", "refused", "kept", "not enough data")
        told = f"{seen.outputs['labels']} outcomes, {len(seen.alerts)} alerts, then {done.decision}"
        said.append(f"{name}: {lived.trained[name].decision}; {told}")
        assert seen.outputs["labels"] > 0, name
        truth = labelled(lived.settings, here.problem, later, here.lake)
        if name in lived.posted:
            [one] = truth.filter(decision_id=lived.asked["php"][name]["decision_id"]).to_dicts()
            assert (one["label"], one["label_source"]) == (lived.posted[name], "posted"), one
        if name == "leaves":
            early = truth.filter(pl.col("moment") == EVENING).sort("score")
            unlikely, likely = early["label"][: len(early) // 2], early["label"][len(early) // 2 :]
            assert likely.mean() > 1.5 * unlikely.mean(), "who leaves is among the likely ones"
    assert main(["verify", "--root", str(lived.settings.root)]) == 0
    with capsys.disabled():
        print("\n== SIMULATED site: " + " | ".join(said))


def test_a_site_is_lived_through_from_the_first_visit_to_the_second_model(tmp_path, capsys):
    "The parts above, each of them after the one before it."
    lived = Lived(tmp_path)
    behaviour_comes_in_from_both_languages_and_counts_once(lived)
    each_question_is_answered_in_both_languages_from_what_was_just_posted(lived)
    the_answers_are_those_of_the_batch_to_the_bit(lived)
    what_was_posted_and_then_stands_in_the_database_too_is_one_visit(lived)
    an_outcome_from_either_language_is_taken_or_refused_with_the_rule(lived)
    two_weeks_later_monitor_and_retrain_know_what_came_true(lived, capsys)
