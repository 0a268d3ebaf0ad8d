"""What the pictures say: read back from the SVG, so that a swapped colour, line or order is seen."""

import re
from datetime import UTC, datetime
from html import unescape
from xml.etree import ElementTree

import polars as pl
import pytest

from mlsys_nb.doors.figures import (
    ALARMED,
    MOVED,
    STAYED,
    WAYS,
    champion_figure,
    draw,
    drift_figure,
    months_figure,
    reliability_figure,
)
from mlsys_nb.evaluation.probability import Probability
from mlsys_nb.system.markup import TONES, card, escape, figure

MONTHS = [datetime(2010, m, 1, tzinfo=UTC) for m in range(11, 13)] + [datetime(2011, 1, 1, tzinfo=UTC)]


def texts(picture):
    "Every word that stands in the picture."
    tree = ElementTree.fromstring(picture.svg)
    return ["".join(e.itertext()).strip() for e in tree.iter("{http://www.w3.org/2000/svg}text")]


def filled(picture, color):
    "How many shapes are filled with a colour."
    return len(re.findall(rf"fill: {color}[;\"]", picture.svg.decode(), re.I))


def months(**loss):
    return pl.concat(
        pl.DataFrame(
            {"moment": MONTHS, "who": who, "mean_label": [0.6, 0.7, 0.8], "mean_prediction": [0.5] * 3, "log_loss": values}
        )
        for who, values in loss.items()
    )  # fmt: skip


def drifted(**size):
    rows = [
        {
            "feature": f, "slice": "all", "part": "location", "size": s, "statistic": abs(s) * 10, "limit": 4.0,
            "drifted": abs(s) * 10 > 4, "alert": abs(s) * 10 > 8,
        }  # fmt: skip
        for f, s in size.items()
    ]  # fmt: skip
    return pl.DataFrame(rows)


def test_the_same_input_gives_the_same_bytes():
    table = months(champion=[0.5, 0.5, 0.6], rule=[0.7, 0.7, 0.7])
    assert months_figure(Probability(), table).svg == months_figure(Probability(), table.reverse()).svg


def test_each_way_of_deciding_has_its_own_line_and_name():
    found = months_figure(
        Probability(), months(champion=[0.5, 0.5, 0.6], frozen=[0.5, 0.6, 0.9], rule=[0.7, 0.7, 0.7])
    )
    assert {"champion", "first model, frozen", "simplest rule", "what happened"} <= set(texts(found))
    assert found.alt == (
        "champion: log-loss from 0.500 to 0.600; first model, frozen: log-loss from 0.500 to 0.900; "
        "simplest rule: log-loss from 0.700 to 0.700"
    )
    assert (
        len({tuple(way.values()) for way in WAYS.values()}) == len({w["marker"] for w in WAYS.values()}) == 4
    )
    assert "frozen" not in months_figure(Probability(), months(champion=[0.5, 0.5, 0.6])).alt


def test_the_year_stands_where_it_is_new():
    words = texts(months_figure(Probability(), months(champion=[0.5, 0.5, 0.6])))
    assert words.count("2010") == 2 and words.count("2011") == 2 and words.count("Dec") == 2  # two axes


def test_what_drifted_is_coloured_as_such_and_named_worst_first():
    found = drift_figure(drifted(a=0.1, b=0.9, c=-0.5))
    assert found.alt == "2 of 3 features beyond their limit: b, c"
    assert [filled(found, color) for color in (ALARMED, MOVED, STAYED)] == [
        1,
        1,
        1,
    ]  # an alert, a mark, neither
    assert {"+0.90 sd", "-0.50 sd", "+0.10 sd"} <= {t.replace("\N{MINUS SIGN}", "-") for t in texts(found)}
    assert drift_figure(drifted(a=0.1)).alt == "0 of 1 features beyond their limit"


def test_a_feature_too_many_is_not_drawn_but_counted():
    found = drift_figure(drifted(**{f"f{i:02}": 0.5 + i / 100 for i in range(20)}), most=3)
    assert found.alt.startswith("20 of 20 features beyond their limit: f19, f18, f17")
    assert "f16" not in texts(found)


def test_reliability_says_how_far_from_the_diagonal():
    bins = pl.DataFrame({"n": [10, 20], "mean_prediction": [0.8, 0.2], "mean_label": [0.5, 0.25], "low": [0.4, 0.1],
                         "high": [0.6, 0.4]})  # fmt: skip
    found = reliability_figure(bins)
    assert found.alt == "2 groups of decisions; largest distance from the diagonal 0.30"
    assert found.caption.startswith("30 decisions in 2 groups")
    empty = reliability_figure(bins.clear())
    assert empty.alt.startswith("0 groups")


def test_a_version_serves_until_the_next():
    history = pl.DataFrame({"version": [1, 2], "at": MONTHS[:2], "reason": ["", ""]})
    found = champion_figure(history.reverse(), MONTHS[2])
    assert found.alt == "version 1 from 2010-11-01; version 2 from 2010-12-01"
    assert [t for t in texts(found) if t in ("1", "2")] == ["1", "2"]
    assert champion_figure(history, MONTHS[0]).svg  # a clock behind the last move does not break the page


@pytest.mark.parametrize("words", ['3 > 2 & "quoted"', "it's <b>", "plain"])
def test_the_words_of_a_picture_are_text(words):
    def paint(canvas):
        canvas.subplots()
        return words

    found = draw(paint, caption=words)
    title = ElementTree.fromstring(found.svg).find("{http://www.w3.org/2000/svg}title")
    assert title is not None and title.text == words
    alt = re.search(r'alt="([^"]*)"', found._repr_html_())
    assert alt and unescape(alt[1]) == words and "<b>" not in found._repr_html_()


def test_quotes_are_escaped_in_attributes():
    assert escape("\"'<>&") == "&#34;&#39;&lt;&gt;&amp;" or escape("\"'<>&") == "&quot;&#x27;&lt;&gt;&amp;"
    assert '"a' not in figure(b"<svg/>", '"a" onload="x').replace('alt="', "")


@pytest.mark.parametrize("tone", TONES)
def test_a_card_has_the_colour_of_its_tone(tone):
    shown = card("t", {"a": 1}, tone=tone)
    assert f"mls-{tone}" in shown and f"border-left:4px solid {TONES[tone]}" in shown
    assert not any(color in shown for other, color in TONES.items() if other != tone)
    assert (f">{tone}</small>" in shown) == (tone != "plain")
    assert TONES["good"] == "#2e9e5b" and TONES["bad"] == "#d2453d"  # green is good, red is bad
