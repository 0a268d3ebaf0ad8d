"""What `mlsys diff` names as the cause, on shipped cases in a folder of one's own: ten planted causes, and nothing where nothing was planted.

`python tests/causes.py [cases, all three if none; --null=20]`: each training begins in a copy of the same system, so that only what was
planted differs. A cause counts as named when it is told and nothing else is.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlsys_nb.jobs import run_artifacts
from mlsys_nb.jobs.run_comparison import compare_runs
from mlsys_nb.jobs.runner import Runner
from mlsys_nb.system.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
NEW_YORK = '__import__("zoneinfo").ZoneInfo("America/New_York")'
LIMITS = '__import__("mlsys_nb.evaluation.gate_limits", fromlist=["Limits"]).Limits'
# Of each case: a day before the last batch, the day of training, and what is written otherwise: (before, after, what is to be named).
CASES: Mapping[str, tuple[str, str, dict[str, tuple[str, str, str]]]] = {
    "churn": ("2010-04-28", "2010-04-29", {
        "code": ('amount=pl.col("price") * pl.col("quantity")', 'amount=pl.col("price") * (pl.col("quantity") + 1)', "code"),
        "label delay": ("slices=(", 'maturity="2d", slices=(', "declaration maturity"),
        "feature": ('f.count(lines, "90d", where=lines["cancelled"])', 'f.count(lines, "60d", where=lines["cancelled"])', "declaration feature cancelled_90d"),
        "threshold": ("false_negative=2.0", "false_negative=4.0", "declaration costs"),
        "zone": ('zone="Europe/London"', 'zone="America/New_York"', "declaration .*zone"),
        "limit": ("slices=(", f"limits={LIMITS}(entities=40), slices=(", "declaration limits.entities"),
    }),
    "loans": ("1990-07-31", "1990-08-01", {
        "code": ('pl.col("amount") / pl.col("price")', 'pl.col("amount") / (pl.col("price") + 1)', "code"),
        "label delay": ("slices=(", 'maturity="2d", slices=(', "declaration maturity"),
        "feature": ("for name in names)", 'for name in names if name != "units")', "declaration feature units"),
        "threshold": ("false_negative=200.0", "false_negative=400.0", "declaration costs"),
        "zone": ('"time", zone="UTC"', '"time", zone="America/New_York"', "declaration .*zone"),
        "limit": ("slices=(", f"limits={LIMITS}(entities=40), slices=(", "declaration limits.entities"),
    }),
    "demand": ("2010-04-11", "2010-04-12", {
        "code": ('bought = ~lines["cancelled"]', 'bought = ~lines["cancelled"]  # not sent back', "code"),
        "label delay": ("slices=(", 'maturity="2d", slices=(', "declaration maturity"),
        "feature": ('(pieces_in(84) / 12)', '(pieces_in(70) / 10)', "declaration feature weekly_84d"),
        "threshold": ("under=0.3", "under=0.6", "declaration costs"),
        "zone": ("start=datetime(2010, 1, 4, tzinfo=UTC)", f"start=datetime(2010, 1, 4, tzinfo={NEW_YORK})", "declaration population.start"),
        "limit": ("slices=(", f"limits={LIMITS}(entities=40), slices=(", "declaration limits.entities"),
    }),
}  # fmt: skip


def written(home: Path, case: str, before: str = "", after: str = "") -> None:
    "The case as a notebook of one's own, with something written otherwise."
    notebook = json.loads((ROOT / f"nbs/cases/{case}.ipynb").read_text())
    found = 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if before and cell["cell_type"] == "code" and before in source and "#| export" in source:
            found, source = found + 1, source.replace(before, after, 1)
        cell["source"] = source
    assert found == bool(before), f"{case}: {before!r} stands in {found} cells"
    (home / f"notebooks/{case}.ipynb").write_text(json.dumps(notebook))


def trained(settings: Settings, place: Path, case: str, now: str, **given: Any) -> Path:
    "The report of a training in a copy of a system."
    shutil.copytree(settings.root, place / "root", dirs_exist_ok=True)
    apart = replace(settings, root=place / "root")
    with Runner(apart, preload=()) as runner:
        run = runner.run("train", {"problem": case, "now": now, "n_trials": 1, **given})
    return apart.root / run.report


def named(base: Path, other: Path, wanted: str) -> tuple[bool, str]:
    "Whether what differs is what was planted, and what is told."
    found = compare_runs(base, other)
    told = [f"{cause.kind} {cause.name}" for cause in found.causes]
    return bool(told) and all(
        re.search(wanted, cause) for cause in told
    ), f"{', '.join(told)}; {found.finding}"


def tried(case: str, nulls: int, folder: Path) -> tuple[int, int]:
    "How many planted causes are named, and in how many trainings without one something differs."
    early, now, edits = CASES[case]
    home = folder / case
    subprocess.run([str(Path(sys.executable).with_name("mlsys")), "init", str(home)], check=True, capture_output=True)  # fmt: skip
    ini = home / "settings.ini"
    text = ini.read_text().replace("raw = data/raw", f"raw = {ROOT}/data/raw")
    ini.write_text(f"{text}\n{case} = notebooks.{case}:problem\n")
    written(home, case)
    settings = replace(load_settings(home=home), tracking_uri="off")
    with Runner(settings, preload=()) as runner:
        runner.run("ingest", {"problem": case, "now": early})
        shutil.copytree(settings.root, folder / "early")
        runner.run("ingest", {"problem": case, "now": now})
    base, right = trained(settings, folder / "base", case, now), 0
    known = run_artifacts.libraries()
    planted = {
        "data batch": ("^data ", {}),
        "parameter": ("^parameter n_trials$", {"n_trials": 2}),
        "seed": ("^parameter seed$", {"seed": 7}),
        "library": ("^library polars$", {}),
        **{name: (edit[2], {}) for name, edit in edits.items()},
    }
    for i, (name, (wanted, given)) in enumerate(planted.items()):
        place = folder / f"planted{i}"
        written(home, case, *edits[name][:2] if name in edits else ())
        whose = replace(settings, root=folder / "early") if name == "data batch" else settings
        if name == "library":
            run_artifacts.libraries = lambda: {**known, "polars": "9.9.9"}
        good, told = named(base, trained(whose, place, case, now, **given), wanted)
        run_artifacts.libraries = lambda: known
        written(home, case)
        right += good
        print(f"{case:8} {name:12} {'named' if good else 'NOT NAMED':10} {told[:300]}", flush=True)
        shutil.rmtree(place)
    differing = 0
    for i in range(nulls):
        found = compare_runs(base, trained(settings, folder / f"null{i}", case, now))
        differing += not found.same
        if not found.same:
            print(f"{case:8} without a cause: {found.finding}: {[d.sentence for d in (*found.causes, *found.effects)][:4]}")  # fmt: skip
        shutil.rmtree(folder / f"null{i}")
    print(f"== {case}: {right} of {len(planted)} planted causes named, and nothing else; {differing} of {nulls} trainings again differ in anything", flush=True)  # fmt: skip
    return len(planted) - right, differing


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    many = next((int(word[7:]) for word in sys.argv[1:] if word.startswith("--null=")), 20)
    missed = 0
    for one in words or list(CASES):
        with tempfile.TemporaryDirectory() as folder:
            unnamed, differing = tried(one, many, Path(folder))
            missed += max(unnamed - 1, 0) + differing
    sys.exit(bool(missed))
