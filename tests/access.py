"What axe-core finds on a page that keeps a person out: the engine comes with a package, nothing is fetched."

import importlib.util
from functools import cache
from pathlib import Path

GRAVE = ("serious", "critical")
ASK = "() => axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)"


@cache
def engine():
    "axe-core, as its package ships it; empty where that is not installed."
    found = importlib.util.find_spec("axe_playwright_python")
    places = found.submodule_search_locations if found else None
    return (Path(places[0]) / "axe.min.js").read_text(encoding="utf-8") if places else ""


def barriers(page):
    "Each grave finding, with where it is; folded parts are opened first."
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
    page.evaluate(f"() => {{ {engine()} }}")
    return [
        f"{v['impact']} {v['id']}: {v['help']}; {len(v['nodes'])} times, as in {v['nodes'][0]['html'][:160]}"
        for v in page.evaluate(ASK)
        if v["impact"] in GRAVE
    ]
