"""What stands in a picture, read back from its SVG, and the colours of a card."""

import re
from html import unescape
from xml.etree import ElementTree

import pytest

from mlsys_nb.doors.figures.matplotlib_image import draw
from mlsys_nb.system.markup import TONES, card, escape, figure


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
