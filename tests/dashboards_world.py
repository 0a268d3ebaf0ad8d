"A system as dashboards read it: versions, runs with their tables, alerts, decisions. Nothing is trained."

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from values import words

from mlsys_nb.decisions.batch_decisions import append_batch
from mlsys_nb.doors.cli import main
from mlsys_nb.doors.dashboards.page_data import views
from mlsys_nb.doors.dashboards.static_export import OVERVIEW, SHEETS, dashboard
from mlsys_nb.monitoring.alerts import Alert, record
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.system.clock import instant
from mlsys_nb.system.control_tables import open_control, put_document
from mlsys_nb.system.durable import frame_bytes, json_bytes, make_folder, sha256, write_folder, write_json
from mlsys_nb.system.pointers import Move, move_pointer
from mlsys_nb.system.runs_table import Run, finish_run, start_run
from mlsys_nb.system.settings import load_settings
from mlsys_nb.system.versions_table import VersionRow, add_version

DAY = timedelta(days=1)
APRIL, SEPTEMBER = instant("2010-04-01"), instant("2010-09-01")
MONTHS = [instant(f"2010-{m:02d}-01") for m in range(4, 10)]
PAGES = Path(__file__).resolve().parent / "values/pages.json"
HOSTILE = "<script>alert(1)</script>"


def ran(settings, run, tables=None, headline="", told=None):
    "Note a run, and leave its report as a job does; what else it noted is told."
    more = told or {}
    control = open_control(settings)
    start_run(control, replace(run, status="running"))
    finish_run(control, run)
    content = {name: frame_bytes(frame) for name, frame in (tables or {}).items()}
    sums = {n: {"sha256": sha256(c), "rows": tables[n].height} for n, c in content.items()}
    files = {
        "run_id": run.run_id,
        "job": run.job,
        "status": run.status,
        "started_at": run.started_at.isoformat(),
        "headline": headline,
        "tables": sums,
        "metrics": {"holdout_log_loss": 0.55},
        "parameters": dict(run.parameters),
        **more,
    }
    folder = {f"{name}.parquet": c for name, c in content.items()}
    page = b"<!doctype html><title>report</title><p>report"
    write_folder(settings.root / run.report, {**folder, "run.json": json_bytes(files), "report.html": page})
    return run


def run_at(job, at, number, status="succeeded", **more):
    name = f"{job[:2]}{number:06x}"
    place = f"reports/churn/{job}/{at:%Y%m%dT%H%M%SZ}-{name}"
    return Run(name, job, "churn", "", status, at, {}, at, at, 2.5, place, **more)


def cuts(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 1.4, n)
    y = rng.random(n) < p
    t = np.round(np.linspace(0, 1, 101), 2)
    acted = [(p >= x) for x in t]
    return pl.DataFrame({
        "threshold": t, "n": [n] * 101, "acted": [int(a.sum()) for a in acted],
        "true_positive": [int((a & y).sum()) for a in acted], "false_positive": [int((a & ~y).sum()) for a in acted],
        "false_negative": [int((~a & y).sum()) for a in acted], "true_negative": [int((~a & ~y).sum()) for a in acted],
    })  # fmt: skip


def training(version):
    "The tables of a training."
    shift = 0.002 * version
    money = "GBP per 1,000"
    gain = [
        ("champion", "log_loss", 0.014 + shift, 0.002, 0.04, "nats"), ("champion", "money", 21.0, -4.0, 46.0, money),
        ("rule", "log_loss", 0.066 + shift, 0.036, 0.097, "nats"), ("rule", "money", 83.0, 41.0, 125.0, money),
        ("none", "money", 402.0, 371.0, 433.0, money),
    ]  # fmt: skip
    p = np.linspace(0.08, 0.95, 10)
    kinds = ["days_since_last_order_of_the_customer", "orders_90d", "log_turnover", "country", HOSTILE]
    trials = [("boosting", "linear")[i % 2] for i in range(12)]
    return {
        "gain": pl.DataFrame(gain, schema=["against", "figure", "gain", "low", "high", "unit"], orient="row"),
        "reliability": pl.DataFrame({"group": range(10), "n": [200] * 10, "mean_prediction": p, "mean_label": p**1.1,
                                     "low": p**1.1 - 0.06, "high": p**1.1 + 0.06}),
        "importance": pl.DataFrame({"feature": kinds, "share": [0.41, 0.27, 0.18, 0.09, 0.05]}),
        "slices": pl.DataFrame({"slice": ["country = United Kingdom", "country = France", f"country = {HOSTILE}"],
                                "n": [1700, 90, 40], "loss": [0.55, 0.58, 0.61], "low": [0.53, 0.5, 0.48], "high": [0.57, 0.66, 0.74]}),
        "learning_curve": pl.DataFrame({"rows": [1000, 4000, 16000, 1000, 4000, 16000], "loss": [0.61, 0.57, 0.55, 0.6, 0.6, 0.6],
                                        "low": [0.59, 0.56, 0.54, 0.59, 0.59, 0.59], "high": [0.63, 0.58, 0.56, 0.61, 0.61, 0.61],
                                        "who": ["candidate"] * 3 + ["rule"] * 3}),
        "search": pl.DataFrame({"trial": range(12), "family": trials, "loss": [0.6 - 0.004 * i for i in range(12)],
                                "parameters": [f"max_iter={i}" for i in range(12)], "chosen": [i == 11 for i in range(12)]}),
        "cuts": cuts(seed=version),
    }  # fmt: skip


def monitoring(at):
    "The tables of a look."
    drift = pl.DataFrame({
        "feature": ["orders_90d", "country", "log_turnover"], "slice": ["all"] * 3, "part": ["location", "share", "location"],
        "size": [0.9, 0.1, 0.02], "statistic": [8.1, 2.0, 0.4], "limit": [4.0, 4.0, 4.0], "drifted": [True, False, False],
        "alert": [True, False, False], "cause": [f"batch 2010-08-15 {HOSTILE}", "", ""],
    })  # fmt: skip
    months = [m for m in MONTHS if m < at]
    history = pl.DataFrame([
        {"feature": f, "part": p, "period": m, "size": s * (1 if m == months[-1] else 0.1), "limit": 0.4}
        for f, p, s in (("orders_90d", "location", 0.9), ("country", "share", 0.1), ("log_turnover", "location", 0.02)) for m in months
    ])  # fmt: skip
    bins = [{"feature": "orders_90d", "bin": i, "low": float(i), "high": i + 1.0, "category": None, "reference": r, "current": c}
            for i, (r, c) in enumerate([(0.4, 0.1), (0.3, 0.2), (0.2, 0.3), (0.1, 0.4)])]  # fmt: skip
    bins += [{"feature": "country", "bin": i, "low": None, "high": None, "category": v, "reference": r, "current": c}
             for i, (v, r, c) in enumerate([("United Kingdom", 0.9, 0.88), (HOSTILE, 0.1, 0.12)])]  # fmt: skip
    kinds = {"low": pl.Float64, "high": pl.Float64, "category": pl.String}
    batches = pl.DataFrame({"feature": ["orders_90d", "orders_90d"], "source": ["lines"] * 2, "batch": ["2010-08-01", "2010-08-15"],
                            "rows": [2100, 1900], "size": [0.05, 2.4], "moved": [False, True]})  # fmt: skip
    periods = pl.DataFrame([
        {"version": 1 + i // 2, "period": m, "n": 1800 - 900 * (m == months[-1]), "promised": 0.55, "kept": 0.55 + 0.01 * i, "low": 0.53 + 0.01 * i,
         "high": 0.57 + 0.01 * i, "loss": 0.55 + 0.01 * i, "limit": 0.6, "labels_on_their_way": 900 * (m == months[-1]),
         "mean_label": 0.6, "mean_prediction": 0.58}
        for i, m in enumerate(months)
    ])  # fmt: skip
    worth = {"champion": 400.0, "frozen": 360.0, "rule": 310.0}
    paid = pl.DataFrame([
        {"moment": m, "who": who, "n": 1800, "mean_label": 0.6, "mean_prediction": 0.58, "loss": 0.56, "value": v - 5.0 * i, "unit": "GBP"}
        for i, m in enumerate(months) for who, v in worth.items()
    ])  # fmt: skip
    return {
        "drift": drift,
        "history": history,
        "profile": pl.DataFrame(bins, schema_overrides=kinds),
        "feature_batches": batches,
        "periods": periods,
        "months": paid,
    }


PARTS = {  # As `OperatingPoint`, `LabelFree` and `LabelDelay` write themselves
    "OperatingPoint": {
        "unit": "GBP",
        "better": [],
        "slices": [{"slice": "all", "n": 2496, "acted": 0.7, "acted_low": 0.68, "acted_high": 0.72, "cost_per_1000": 837.0,
                    "cost_per_1000_low": 785.0, "cost_per_1000_high": 888.0}],
        "ways": [{"way": "as decided", "cost_per_1000": 837.0, "saves": None, "low": None, "high": None},
                 {"way": HOSTILE, "cost_per_1000": 1187.0, "saves": -350.0, "low": -407.0, "high": -294.0}],
    },
    "LabelFree": {"n": 900, "name": "log_loss", "loss": {"value": 0.56, "low": 0.55, "high": 0.58}, "beyond": 0.01, "blind": HOSTILE,
                  "outcome": {"value": 0.6, "low": 0.5, "high": 0.7}, "cost_per_1000": {"value": 740.0, "low": 717.0, "high": 763.0}},
    "LabelDelay": {"maturity_days": 30.0, "missed": 0.02, "kinds": {"1": {"n": 88, "q50": 3.0, "q90": 9.0, "q99": 31.0}},
                   "young": {"value": None, "low": None, "high": None}},
}  # fmt: skip


def decided(settings, n=40):
    "Decisions of the version that serves, made a day ago."
    problem = load_problem(settings, "churn")
    score = np.round(np.linspace(0.05, 0.95, n), 3)
    rows = pl.DataFrame({
        "customer_id": np.arange(100, 100 + n), "moment": [SEPTEMBER - DAY] * n, "score": score, "version": [3] * n, "threshold": [0.6] * n,
        "action": ["write" if p >= 0.6 else "leave" for p in score], "eligible": [True] * n, "feature_set_hash": ["f" * 64] * n,
        "orders_30d": np.arange(n), "country": [HOSTILE] * n,
    }, schema_overrides={"moment": pl.Datetime("us", "UTC")})  # fmt: skip
    append_batch(settings, "churn", "september", rows, problem.keys)


def another_version(settings, number, at, promoted=True):
    "A training, its version, and its way to the champion's place or not."
    control = open_control(settings)
    how = {"decision": "promoted", "candidate": number, "reason": f"better than {HOSTILE}"}
    if not promoted:
        how = {"decision": "kept", "candidate": number, "reason": f"worse than {HOSTILE}"}
    headline = (
        f"version {number} was promoted: it beats the rule"
        if promoted
        else f"version {number} was not better"
    )
    made = ran(settings, run_at("train", at, number, outputs=how), training(number), headline)
    summary = {"family": "boosting", "log_loss": 0.55 - 0.01 * number, "auc": 0.7 + 0.01 * number}
    add_version(
        control, VersionRow("churn", 0, f"d{number}", f"churn/d{number}", at, made.run_id, summary=summary)
    )
    if promoted:
        move_pointer(control, Move("churn/champion", number, str(number), at, "gate", f"reason {number}"))


def lived(settings):
    "Three versions of churn, the last of which serves; one alert; a failed score."
    make_folder(settings.lake)
    write_json(settings.clock_file, {"now": SEPTEMBER.isoformat()})
    control = open_control(settings)
    for number in (1, 2, 3):
        at = MONTHS[2 * (number - 1)]
        ran(
            settings,
            run_at("ingest", at, number),
            {
                "freshness": pl.DataFrame(
                    {"source": ["lines"], "newest": [at - DAY], "hours": [24.0], "declared_hours": [None]},
                    schema_overrides={"declared_hours": pl.Float64},
                )
            },
            "new rows",
        )
        another_version(settings, number, at)
    look = ran(settings, run_at("monitor", SEPTEMBER, 9), monitoring(SEPTEMBER), "orders_90d moved: 1 alert")
    broken = run_at("score", SEPTEMBER, 7, "failed", error=f"the source {HOSTILE} is stale")
    ran(settings, broken)
    record(
        control,
        "churn",
        [
            Alert(
                "churn",
                "drift",
                "orders_90d",
                "critical",
                f"moved by 0.9 sd {HOSTILE}",
                "batch 2010-08-15 of lines",
                "look at that batch",
                SEPTEMBER,
                expected_cost="120 GBP per 1,000 decisions",
                version=3,
            )
        ],
        SEPTEMBER,
    )
    put_document(
        control,
        "follow_up",
        "churn",
        {
            "now": SEPTEMBER.isoformat(),
            "parts": PARTS,
        },
    )
    decided(settings)
    return look


LOOKS = (
    "runs", "champion churn", "versions churn", "alerts churn", "alerts churn --all", "audit", "upkeep churn", "conflicts churn",
    "schedule --list",
)  # fmt: skip


def told(settings):
    "What each page shows and each command that only looks prints: its words line by line, and a digest of how they stand there."
    shown = {
        f"page {name}": dashboard(views(settings), name, "churn" if name in SHEETS else "")
        for name in (OVERVIEW, *SHEETS)
    }
    at = ["--root", str(settings.root)]
    for look in LOOKS:
        for more in ([], ["--json"]):
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                code = main([*at, *more, *look.split()])
            shown[" ".join(["mlsys", *look.split(), *more])] = (
                f"{out.getvalue()}{err.getvalue()}exit code {code}"
            )
    return {name: _lines(text) for name, text in shown.items()}


def _lines(text):
    whole = words(text)
    plain = re.sub(r"<[^<>]+>", "\n", whole) if whole.lstrip().startswith("<") else whole
    return [
        *(" ".join(line.split()) for line in plain.splitlines() if line.strip()),
        sha256(whole.encode())[:12],
    ]


def write_told():
    "Keep what pages and commands say now."
    with TemporaryDirectory() as folder:
        settings = load_settings(root=Path(folder, "system"))
        lived(settings)
        text = json.dumps(told(settings), indent=1, ensure_ascii=False) + "\n"
    PAGES.write_text(text, encoding="utf-8")
