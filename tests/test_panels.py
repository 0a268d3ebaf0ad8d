"The tabs of the dashboard, read as HTML: what is open is told apart from what has passed, the newest stands first."

import re
from datetime import timedelta

import pytest

from mlsys_nb.doors.dashboard import PANELS, loops, panel
from mlsys_nb.monitoring.alerts import Alert, record
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control import open_control
from mlsys_nb.system.durable import make_folder
from mlsys_nb.system.pointers import Move, move_pointer
from mlsys_nb.system.settings import load_settings

MAY = instant("2010-05-01")


@pytest.fixture
def lived(tmp_path):
    "A system that has ingested something; who reads it wants the problem by its name."
    settings = load_settings(root=tmp_path)
    make_folder(settings.lake)
    return settings, open_control(settings)


def alert(subject, severity="critical"):
    return Alert("churn", "performance", subject, severity, f"{subject} moved", "unknown", "retrain", MAY)


def head(html):
    "The classes of the first card."
    return re.search(r'class="mls-card ([^"]*)"', html)[1]


def test_no_alert_is_good_and_an_open_one_warns(lived):
    settings, control = lived
    assert head(panel(loops(settings), "Alerts", "churn")) == "mls-good"
    record(control, "churn", [alert("auc"), alert("calibration_gap")], MAY)
    shown = panel(loops(settings), "Alerts", "churn")
    assert head(shown) == "mls-warn" and "Closed" not in shown
    record(control, "churn", [alert("auc")], MAY + timedelta(days=31))
    shown = panel(loops(settings), "Alerts", "churn")
    assert head(shown) == "mls-warn"
    assert re.search(r"open</th><td[^>]*>1<.*closed</th><td[^>]*>1<", shown)
    assert (
        "calibration_gap" in shown[shown.index("Closed") :] and "auc moved" in shown[: shown.index("Closed")]
    )
    record(control, "churn", [], MAY + timedelta(days=61))
    assert head(panel(loops(settings), "Alerts", "churn")) == "mls-good"


def test_champions_stand_newest_first(lived):
    settings, control = lived
    for epoch, version in enumerate(("1", "2", "1"), 1):
        at = MAY + timedelta(days=30 * epoch)
        move_pointer(control, Move("churn/champion", epoch, version, at, "ada", f"reason {epoch}"))
    shown = panel(loops(settings), "Champions", "churn")
    assert shown.index("reason 3") < shown.index("reason 2") < shown.index("reason 1")
    assert "version 1</td>" in shown and re.search(r"changes of champion</th><td[^>]*>3<", shown)
    assert "version 2 from 2010-06-30" in shown  # the words of the picture


def test_text_of_an_alert_is_text(lived):
    settings, control = lived
    record(control, "churn", [alert("<script>alert(1)</script>")], MAY)
    assert "<script>" not in panel(loops(settings), "Alerts", "churn")


def test_what_cannot_be_shown_says_so_in_red(lived, monkeypatch):
    settings, _ = lived
    from mlsys_nb.doors import dashboard
    from mlsys_nb.system.settings import MlsysError

    def broken(loop):
        raise MlsysError("the control tables cannot be used")

    monkeypatch.setitem(dashboard.PANELS, "Months", broken)
    shown = panel(loops(settings), "Months", "churn")
    assert head(shown) == "mls-bad" and "the control tables cannot be used" in shown


@pytest.mark.parametrize("tab", PANELS)
def test_an_empty_system_is_told_what_to_do(tmp_path, tab):
    shown = panel(loops(load_settings(root=tmp_path)), tab, "churn")
    assert "mlsys ingest churn" in shown and f"mlsys demo --root {tmp_path}" in shown
