"Whatever is put into a table, a card or a page is text; whatever comes from outside cannot run."

from html.parser import HTMLParser
from unicodedata import bidirectional, category

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsys_nb.system.markup import card, escape, figure, link, page, sanitize, table

PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></table><svg onload=alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "\x00<b\x00>",
    "\u202efdp.exe\u2066",
    "\x1b]0;x\x07" + "9" * 20_000,
    "&#x202e;&#8238;\ud800",
]
texts = st.text() | st.sampled_from(PAYLOADS)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


def acting(text: str) -> set[str]:
    "What a reader would not see, and would be led astray by."
    steers = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {c for c in set(text) - set("\n\t") if bidirectional(c) in steers or category(c) in ("Cc", "Cs")}


@given(texts, texts, texts, texts)
@settings(max_examples=200, deadline=None)
def test_text_stays_text(title: str, name: str, value: str, caption: str) -> None:
    rows = [{name: value, "n": 1}]
    drawn = page(
        title, card(title, {name: value}, table(rows, caption=caption)), subtitle=caption, footer=value
    )
    harmless = page(
        "t", card("t", {"n": "v"}, table([{"m": "v", "n": 1}], caption="c")), subtitle="c", footer="v"
    )
    names = set(parsed(drawn).tags)
    assert names <= set(parsed(harmless).tags)
    assert not any(a.startswith("on") for a, _ in parsed(drawn).attributes)
    assert not acting(drawn)


@given(st.sampled_from(PAYLOADS), texts)
@settings(max_examples=100, deadline=None)
def test_foreign_html_cannot_run(payload: str, text: str) -> None:
    found = parsed(sanitize(f"<h2>{payload}</h2>{payload}{text}<p>{payload}</p>"))
    assert not {"script", "svg", "style", "iframe", "object", "form", "input", "link", "meta", "base"} & set(
        found.tags
    )
    for name, value in found.attributes:
        assert not name.startswith("on")
        if name == "src":
            assert (value or "").startswith("data:image/")
        if name == "href":
            assert not (value or "").lower().replace("\t", "").startswith(("javascript", "data", "vbscript"))


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_foreign_html_does_not_turn_its_lines_around(text: str) -> None:
    assert not acting(sanitize(f"<p>{text}&#x202e;&#8295;</p><pre>{text}</pre>"))


def test_sanitize_keeps_what_shows() -> None:
    kept = '<h3 id="months">Months</h3><pre><code class="py">x</code></pre><table><tbody><tr><td colspan="2">1</td></tr></tbody></table>'
    assert sanitize(kept) == kept
    drawn = figure(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "a chart", "by month")
    assert "data:image/svg+xml;base64," in sanitize(drawn) and 'alt="a chart"' in sanitize(drawn)
    shown = sanitize(card("Champion", {"version": 2}, table([{"auc": 0.74}]), tone="good"))
    assert "mls-card" in shown and "border-left" in shown and "text-align:right" in shown.replace(": ", ":")


def test_pages_ask_for_nothing() -> None:
    found = parsed(page("t", figure(b"\x89PNG", "p") + link("../index.html", "all runs")))
    assert "script" not in found.tags and "link" not in found.tags
    assert all((v or "").startswith(("data:", "../")) for a, v in found.attributes if a in ("src", "href"))


@pytest.mark.parametrize(
    "target",
    ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", " javascript:x", "vbscript:x"],
)
def test_links_lead_to_pages(target: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        link(target)


def test_frames_and_odd_values() -> None:
    frame = pl.DataFrame({"a": [1, None], "b": [[1, 2], []], "c": [float("nan"), 1e300]})
    drawn = table(frame)
    assert "nan" in drawn and "1, 2" in drawn and "–" in drawn
    assert table(pl.DataFrame()) and table([{}]) and escape(None) == "–"
