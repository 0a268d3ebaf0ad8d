"The pages of the dashboards, read as HTML: what is open comes first, nothing hostile is live, every link leads somewhere."

import json
import re
from datetime import timedelta

import dashboards_world
import pytest
from dashboards_world import HOSTILE, LOOKS, MONTHS, PAGES, SEPTEMBER, lived, ran, run_at, told, training
from test_markup import acting

from mlsys_nb.decisions.human_reviews import Opinion, agreement, give_opinion, read_opinions
from mlsys_nb.decisions.outcomes import OutcomeError, conflicts, read_outcomes
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.dashboards.page_data import version_table, views
from mlsys_nb.doors.dashboards.review_queue_page import review_queue
from mlsys_nb.doors.dashboards.review_widget import ReviewDesk
from mlsys_nb.doors.dashboards.static_export import OVERVIEW, SHEETS, dashboard, write_snapshot
from mlsys_nb.monitoring.alerts import Alert, record
from mlsys_nb.problem.target import NoOutcome
from mlsys_nb.serving.slo import BOUNDS
from mlsys_nb.system.clock import SystemClock
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import Log
from mlsys_nb.system.settings import MlsysError, load_settings


@pytest.fixture
def system(tmp_path):
    settings = load_settings(root=tmp_path / "system")
    lived(settings)
    return settings


def tones(html):
    "The tone of each tile, in their order."
    return re.findall(r'class="mls-tile mls-(\w+)"', html)


def texts(html):
    return re.sub(r"<[^>]+>", " ", html)


def test_the_state_stands_first_and_says_what_is_wrong(system):
    shown = dashboard(views(system), OVERVIEW)
    assert tones(shown)[0] == "bad" and "the last score failed" in texts(shown)
    assert "version 3" in shown and "+83" in shown and "+402 against no model" in shown
    assert shown.index("mls-tiles") < shown.index("Open alerts") < shown.index("Not begun")
    ran(system, run_at("score", SEPTEMBER + timedelta(days=1), 8), headline="scored")
    again = dashboard(views(system), OVERVIEW)
    assert tones(again)[0] == "bad" and "1 open alert, the worst critical" in again
    record(open_control(system), "churn", [], SEPTEMBER + timedelta(days=1))
    assert tones(dashboard(views(system), OVERVIEW))[0] == "good"
    assert "Closed alerts" in dashboard(views(system), "drift", "churn")


def test_the_overview_says_how_much_of_the_error_budget_is_spent_once_the_service_was_asked(system):
    assert "error budget" not in dashboard(views(system), OVERVIEW)
    for failed, spent, tone in ((0, "0% spent", "good"), (3, "150% spent", "bad")):  # of 1,000, then of 2,000
        now, within = SystemClock().now(), {f"{bound:g}": 1000 for bound in BOUNDS}
        minute = {"format": 1, "at": now.isoformat(), "asked": 1000, "failed": failed, "within": within}
        Log(system.data / "service" / f"{now:%Y-%m-%d}.log").append([minute])
        shown = dashboard(views(system), OVERVIEW)
        assert spent in texts(shown) and tones(shown)[5] == tone


def test_figures_are_those_of_the_version_that_serves(system):
    "A training that trained nothing handed over no tables; the figures stay those of the version's own run."
    ran(system, run_at("retrain", SEPTEMBER, 97, outputs={"decision": "kept"}), headline="nothing to do")
    ran(
        system,
        run_at("retrain", SEPTEMBER, 98, outputs={"candidate": 4}),
        training(50),
        "version 4 was not better",
    )
    view = views(system)["churn"]
    shown = dashboard(views(system), "model", "churn")
    assert version_table(view, 3, "gain").run.as_of == MONTHS[4]
    assert "0.072 [0.036, 0.097]" in shown and "version 4 was not better" in shown


@pytest.mark.parametrize("name", [OVERVIEW, *SHEETS])
def test_hostile_text_is_text(system, name):
    shown = dashboard(views(system), name, "churn")
    assert HOSTILE not in shown
    assert "&lt;script&gt;" in shown or name in ("reviews", "kpi"), "these show no free text here"


def test_what_acts_unseen_or_never_ends_fills_no_page_and_no_terminal(tmp_path, monkeypatch, capsys):
    "Ten megabytes that begin by turning the line around, in every place that `HOSTILE` stands in."
    endless = "\u202e\x1b[2J<script>" + "x" * 10_000_000 + "\u2066"
    monkeypatch.setattr(dashboards_world, "HOSTILE", endless)
    monkeypatch.setitem(dashboards_world.PARTS["LabelFree"], "blind", endless)
    monkeypatch.setitem(dashboards_world.PARTS["OperatingPoint"]["ways"][1], "way", endless)
    settings = load_settings(root=tmp_path / "system")
    lived(settings)
    at, seen = ["--root", str(settings.root)], {}
    assert main([*at, "dashboard", "--static", str(tmp_path / "pages")]) == 0
    seen |= {page.name: page.read_text() for page in (tmp_path / "pages").glob("*.html")}
    capsys.readouterr()
    for look in LOOKS:
        main([*at, *look.split()])
        seen[look] = "".join(capsys.readouterr())
        main([*at, *look.split(), "--json"])
        assert json.loads(capsys.readouterr().out) is not None
    for name, text in seen.items():
        assert len(text) < 1_000_000, name
        assert not acting(text), name
        assert name in LOOKS or "<script>x" not in text, name
    assert (
        sum("[U+202E][U+001B]" in text and "characters are left out" in text for text in seen.values()) >= 10
    )


@pytest.mark.parametrize("name", [OVERVIEW, *SHEETS])
def test_an_empty_system_is_told_what_to_do_and_not_touched(tmp_path, name):
    settings = load_settings(root=tmp_path / "none")
    assert "mlsys " in dashboard(views(settings), name, "churn")
    assert not settings.root.exists()


def test_a_damaged_report_is_passed_over(system):
    broken = system.root / version_table(views(system)["churn"], 3, "gain").run.report / "gain.parquet"
    broken.write_bytes(broken.read_bytes()[:-3] + b"xyz")
    assert version_table(views(system)["churn"], 3, "gain") is None
    assert "not known yet" in dashboard(views(system), "model", "churn")


def test_what_cannot_be_shown_says_so_in_red(system, monkeypatch):
    def broken(view):
        raise MlsysError("the control tables cannot be used")

    monkeypatch.setitem(SHEETS, "model", ("Model", broken))
    shown = dashboard(views(system), "model", "churn")
    assert "mls-box mls-bad" in shown and "the control tables cannot be used" in shown


def test_every_link_of_a_snapshot_leads_to_a_file_and_nothing_is_fetched(system, tmp_path, capsys):
    folder = tmp_path / "pages"
    assert main(["dashboard", "--static", str(folder), "--root", str(system.root)]) == 0
    assert "overview.html" in capsys.readouterr().out
    pages = sorted(folder.glob("*.html"))
    assert len(pages) == 2 + len(SHEETS) * len(system.problems)
    for page in pages:
        text = page.read_text()
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//|@import|url\(", text)
        assert "script-src 'sha256-" in text and text.count("<script>") == 1
        for place in re.findall(r'href="([^"]+)"', text):
            assert (page.parent / place).is_file(), f"{page.name} leads to {place}, which is not there"


def test_an_alert_leads_to_the_page_about_it(system):
    alert = Alert("churn", "performance", "auc", "warning", "auc fell", "unknown", "retrain", SEPTEMBER)
    record(open_control(system), "churn", [alert], SEPTEMBER, kinds=("performance",))
    shown = dashboard(views(system), OVERVIEW)
    assert 'href="churn-performance.html"' in shown and 'href="churn-drift.html"' in shown
    assert shown.index("orders 90d, critical") < shown.index("auc, warning")


def test_a_snapshot_is_the_same_twice(system, tmp_path):
    first, second = (write_snapshot(system, tmp_path / name) for name in ("one", "two"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_pages_and_commands_say_what_they_said(system):
    "Every figure, word and mark of the planted system; what is meant to change is written by tests/outputs.py pages."
    now, kept = told(system), json.loads(PAGES.read_text(encoding="utf-8"))
    assert list(now) == list(kept)
    for name, lines in now.items():
        assert lines == kept[name], (
            f"{name} says something else; if that is meant: python tests/outputs.py pages"
        )


def test_an_answer_is_a_label_and_what_is_answered_leaves_the_queue(system):
    "Two reviewers at one queue: answers count at once, the second opinion is kept, a contradiction comes first."
    view = views(system)["churn"]
    queue = review_queue(view)
    assert queue.height == 40 and abs(queue["score"][0] - 0.6) < 0.03
    ann, bob = ReviewDesk(view, queue), ReviewDesk(view, queue)
    ann.answer(1)
    assert "say who you are" in ann.told.value and not read_outcomes(system, "churn"), (
        "an answer has an author"
    )
    ann.who.value, bob.who.value = "ann", "bob"
    for value in (1, 0, 1):
        ann.answer(value)
    for value in (1, 1):
        bob.answer(value)
    first, second, third = queue["decision_id"][:3].to_list()
    counts = {o.decision_id: (o.label, o.actor, o.reviewer) for o in reversed(read_outcomes(system, "churn"))}
    assert counts == {first: (1, "ann", True), second: (0, "ann", True), third: (1, "ann", True)}
    assert (
        conflicts(system, "churn")["decision_id"].to_list() == [second] and "said otherwise" in bob.told.value
    )
    (pair,) = agreement(read_opinions(system, "churn"))
    assert (pair["both"], pair["same"]) == (2, 1)
    left = review_queue(views(system)["churn"])
    assert left.height == 38 and left["decision_id"][0] == second, "what is contradicted comes first"
    shown = dashboard(views(system), "reviews", "churn")
    assert "ann and bob" in shown and "1 of 2" in shown and HOSTILE not in ann.case.value


def test_a_changed_mind_corrects_and_nonsense_is_refused(system):
    view = views(system)["churn"]
    number = review_queue(view)["decision_id"][0]
    say = lambda value, actor="ann", of=number: give_opinion(
        system, view.problem, Opinion(of, value, actor, SEPTEMBER)
    )
    assert (say(1), say(1), say(0), say(0)) == ("new", "repeated", "corrected", "repeated")
    assert [o.label for o in read_opinions(system, "churn")] == [1, 0]
    for wrong, kind in (
        ((2,), NoOutcome),
        (("yes",), NoOutcome),
        ((1, " "), OutcomeError),
        ((1, "ann", "nobody"), KeyError),
    ):
        with pytest.raises(kind):
            say(*wrong)
    assert len(read_opinions(system, "churn")) == 2


def test_what_outcomes_told_is_told_in_words(system):
    "Money in its unit, what was saved and not what would have been, delays in days."
    shown = texts(dashboard(views(system), "performance", "churn"))
    for words in (
        "cost per 1,000, GBP",
        "350 [294, 407]",
        "70 % [68 %, 72 %]",
        "They count as final after 30 days",
        "31 days",
        "0.56 [0.55, 0.58]",
    ):
        assert words in shown, words
    assert not {"q50", "maturity_days", "maturity days", "cost per 1000"} & set(
        re.findall(r"\w+(?: \w+)*", shown)
    )


def test_money_says_whether_to_go_on(system):
    shown = dashboard(views(system), "kpi", "churn")
    assert "continue" in shown and "mlsys upkeep churn" in shown and "162 GBP" in shown
    assert "continue" in dashboard(views(system), OVERVIEW)
