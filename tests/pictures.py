"""The picture of the loop, drawn: `python tests/pictures.py` writes nbs/pictures/loop.svg, and tests/test_guide.py holds it fresh.

It is read on a forge by day and by night, so it brings its own background, and is text, not an image of text.
"""

from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "nbs/pictures/loop.svg"
INK, SOFT, LINE, BACK, ACCENT, TINT = "#17202b", "#566373", "#8fa0b3", "#ffffff", "#0f766e", "#e3f3f0"
WIDE, HIGH, BOX, TALL = 1160, 400, 132, 54
# Name, what it is, column (0 to 6), row (0 to 2), whether it is a door to the outside
ROOMS = (
    ("sources", "files, SQL, HTTP, events", 0, 0, True),
    ("contract", "checked, or set aside", 1, 0, False),
    ("lake", "two times a row", 2, 0, False),
    ("features", "declared once", 3, 0, False),
    ("training", "as known then", 4, 0, False),
    ("gate", "with stated odds", 5, 0, False),
    ("package", "sealed, replayed", 6, 0, False),
    ("requests", "PHP, Node, Java", 0, 1, True),
    ("serving store", "the same bits", 3, 1, False),
    ("service", "every answer has an id", 6, 1, False),
    ("policy", "the cheapest that helps", 2, 2, False),
    ("alerts", "sentence, cost, cause", 3, 2, True),
    ("monitors", "odds of false alarm", 4, 2, False),
    ("decisions", "on disk, made again", 5, 2, False),
    ("outcomes", "as they mature", 6, 2, True),
)
AT = {name: (24 + column * 163, 66 + row * 118) for name, _, column, row, _ in ROOMS}


def way(start: str, end: str, leave: str = "right", arrive: str = "left") -> str:
    "An arrow between two rooms."

    def side(name: str, where: str) -> tuple[float, float]:
        x, y = AT[name]
        places = {
            "right": (x + BOX, y + TALL / 2),
            "left": (x, y + TALL / 2),
            "top": (x + BOX / 2, y),
            "bottom": (x + BOX / 2, y + TALL),
        }
        return places[where]

    (x1, y1), (x2, y2) = side(start, leave), side(end, arrive)
    if leave in ("top", "bottom") and arrive in ("left", "right"):
        path = f"M{x1:g} {y1:g}V{y2:g}H{x2:g}"
    elif x1 != x2 and y1 != y2 and leave in ("top", "bottom"):
        middle = (y1 + y2) / 2
        path = f"M{x1:g} {y1:g}V{middle:g}H{x2:g}V{y2:g}"
    else:
        path = f"M{x1:g} {y1:g}L{x2:g} {y2:g}"
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6" marker-end="url(#end)"/>'


def room(name: str, said: str, door: bool) -> str:
    x, y = AT[name]
    fill, edge = (TINT, ACCENT) if door else (BACK, LINE)
    return (
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{TALL}" rx="8" fill="{fill}" stroke="{edge}" stroke-width="1.4"/>'
        f'<text x="{x + BOX / 2:g}" y="{y + 23}" font-size="14" font-weight="600" fill="{INK}">{escape(name)}</text>'
        f'<text x="{x + BOX / 2:g}" y="{y + 41}" font-size="10.5" fill="{SOFT}">{escape(said)}</text>'
    )


def loop() -> str:
    "The picture, as SVG."
    line = ("sources", "contract", "lake", "features", "training", "gate", "package")
    ways = [way(a, b) for a, b in zip(line, line[1:], strict=False)]
    ways += [
        way("package", "service", "bottom", "top"),
        way("service", "outcomes", "bottom", "top"),
        way("features", "serving store", "bottom", "top"),
    ]
    ways += [
        way("requests", "serving store"),
        way("serving store", "service"),
        way("outcomes", "decisions", "left", "right"),
    ]
    ways += [
        way("decisions", "monitors", "left", "right"),
        way("monitors", "alerts", "left", "right"),
        way("alerts", "policy", "left", "right"),
    ]
    x, y = AT["policy"]
    back = f"M{x} {y + TALL / 2:g}H{x - 40}V{AT['training'][1] + TALL + 22:g}H{AT['training'][0] + BOX / 2:g}V{AT['training'][1] + TALL:g}"
    ways.append(
        f'<path d="{back}" fill="none" stroke="{ACCENT}" stroke-width="2" stroke-dasharray="6 4" marker-end="url(#again)"/>'
    )
    words = "The loop: sources pass a contract into the lake; features, training, gate, package; the service answers requests from the same features; decisions and outcomes feed monitors, alerts and the policy, which trains again."
    end = '<marker id="{}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{}"/></marker>'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escape(words)}" font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif" text-anchor="middle">',
        f"<title>{escape(words)}</title><defs>{end.format('end', LINE)}{end.format('again', ACCENT)}</defs>",
        f'<rect width="{WIDE}" height="{HIGH}" rx="14" fill="{BACK}"/>',
        f'<text x="24" y="36" text-anchor="start" font-size="13" fill="{SOFT}">Every arrow into the lake is one commit; every model can be traced; every answer can be made again.</text>',
        f'<text x="{AT["policy"][0] - 46}" y="{AT["policy"][1] - 10}" text-anchor="end" font-size="12" font-weight="600" fill="{ACCENT}">learn again</text>',
        *ways,
        *(room(name, said, door) for name, said, _, _, door in ROOMS),
        "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":
    PLACE.write_text(loop(), encoding="utf-8")
