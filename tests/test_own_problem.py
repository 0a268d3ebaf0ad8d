"""One's own data with the installed wheel only, in an empty folder: new, read, ingest, train, predict, outcome, monitor."""

import json
import os
import re
import shlex
import shutil
import site
import sys
from pathlib import Path

import polars as pl
import pytest
from own_tables import TABLES
from strange_tables import KINDS
from test_jobs import dangers
from test_markup import acting
from walks import LIMIT, printed, run, walk

from mlsys_nb.data import survey
from mlsys_nb.data.file_formats import read_table

ROOT = Path(__file__).resolve().parents[1]
UV = shutil.which("uv")


@pytest.fixture(scope="module")
def mlsys(tmp_path_factory):
    "The command of a fresh environment that holds the wheel, and the libraries of this one."
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "raw", "_docs", "_proc", "__pycache__", ".*_cache", "reports"
    )
    shutil.copytree(ROOT, place / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", place, place / "source"]
    run([*([UV, "build", "--quiet", "--wheel", "-o", place, place / "source"] if UV else pip)], place)
    [wheel] = place.glob("*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], place)
    python = place / "venv/bin/python"
    own = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip())
    into = [UV, "pip", "install", "--quiet", "--no-deps", "--python", python] if UV else [
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]  # fmt: skip
    run([*into, wheel], place)
    (own / "libraries.pth").write_text("\n".join(site.getsitepackages()))  # after its own: the wheel wins
    where = run([python, "-c", "import mlsys_nb; print(mlsys_nb.__file__)"], place).strip()
    assert where.startswith(str(own)), where
    return place / "venv/bin/mlsys"


@pytest.fixture(scope="module")
def folder(mlsys, tmp_path_factory):
    "A folder begun outside of every repository, with the tables beside it."
    place = tmp_path_factory.mktemp("away")
    for file, write in TABLES.values():
        write(place / file)
    run([mlsys, "init", place / "my-shop"], place)
    return place / "my-shop"


def cells(folder, name):
    return json.loads((folder / f"notebooks/{name}.ipynb").read_text())["cells"]


def declaration(folder, name):
    return "\n".join(c["source"] for c in cells(folder, name) if c["source"].startswith("#| export"))


@pytest.fixture(scope="module")
def declared(mlsys, folder):
    "What `mlsys new` says of each table, asked once."
    return {
        n: run([mlsys, "new", n, "--from", folder.parent / file], folder) for n, (file, _) in TABLES.items()
    }


@pytest.mark.parametrize("name", TABLES)
def test_a_declaration_is_short_and_its_notebook_runs(mlsys, folder, declared, name):
    code = [
        line for line in declaration(folder, name).splitlines() if line.strip() and not line.startswith("#|")
    ]
    assert len(code) <= 40, "\n".join(code)
    script = "\n\n".join(c["source"] for c in cells(folder, name) if c["cell_type"] == "code")
    (folder / f"notebooks/.{name}.py").write_text(script)
    run([mlsys.parent / "python", f".{name}.py"], folder / "notebooks")


def test_planted_leaks_are_named(declared):
    assert "LEAK? collection_agency" in declared["loans"]
    assert "LEAK? recovered_amount" in declared["loans"]
    assert "left out: country: it never varies" in declared["loans"]
    assert "collection_agency" not in re.sub(r".*beware.*|.*or perhaps.*|.*left out.*", "", declared["loans"])


def test_each_kind_of_table_is_seen_for_what_it_is(folder, declared):
    for name, words in {
        "loans": ('Happens.by(loans, "defaulted", 1', 'id="loan_id"'),
        "calls": ("Happens.by(calls_outcomes, \"success\", 'yes'", 'claims="outcome_at"'),
        "houses": ('Amount.by(houses, "price"', "OverUnder("),
        "tickets": ('OneOf.by(tickets, "topic"', 'f.request("message", "text")'),
        "visits": ("Everyone(", '"==", 0, "not seen'),
        "kredite": ("Happens.by(kredite, \"status\", 'Ausfall'", "formats=('%d/%m/%Y',)"),
    }.items():
        for word in words if "which is not there" not in declared[name] else ():
            assert word in declaration(folder, name), (name, word, declaration(folder, name))


def test_marks_and_money_of_a_dirty_table_are_read(mlsys, folder, declared):
    code = declaration(folder, "kredite")
    for word in (
        "as_='hoehe_des_kredits'",
        "decimal=',', thousands='.', money='€'",
        "missing=('?',)",
        "missing=('N/A',)",
    ):
        assert word in code, code


# `make long` walks several of each kind. In CI the guide's tutorial walks a row per decision, the site's walk visits;
# texts and a table of many marks are read, declared and their notebooks run above.
SEEDS = range(int(os.environ.get("TEST_MLSYS_WALKS", "1")))
WALKED = [kind for kind in KINDS if "TEST_MLSYS_WALKS" in os.environ or kind in ("outcomes", "amounts")]
SMALL = {"decisions": 1500, "outcomes": 2500, "amounts": 1500, "texts": 1200, "visits": 300, "dirty": 3000}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", WALKED)
def test_the_walk_of_the_tutorial(mlsys, folder, tmp_path, kind, seed):
    table, name = KINDS[kind](seed, tmp_path, SMALL[kind]), f"{kind}_{seed}"
    seen = walk(mlsys, folder, name, table, () if kind == "decisions" else ("scope",))
    print(
        f"== {name} ({table.file.suffix[1:]}): {seen.lines} lines, {sum(seen.took.values()):.0f} s; {seen.took}"
    )
    assert seen.lines <= 40
    assert sum(seen.took.values()) <= LIMIT
    for leak in table.leaks:
        assert re.search(rf"(LEAK\?|perhaps a leak:) {leak}:", seen.said["new"]), seen.said["new"]
    assert "champion: None" not in seen.said["train"]
    if isinstance(seen.answer["prediction"], float) and kind != "amounts":
        assert 0 <= seen.answer["prediction"] <= 1
    if kind == "amounts":  # of which some values are hostile
        answers, pages = tmp_path / "answers.csv", tmp_path / "pages"
        read_table(table.file).frame.write_csv(tmp_path / "again.csv")
        run([mlsys, "score", name, "--over", tmp_path / "again.csv", "--out", answers], folder)
        run([mlsys, "dashboard", "--static", pages], folder)
        assert not re.search(r'(?m)(^|,)"?[=+@]', answers.read_text()) and ",'=1+cmd" in answers.read_text()
        shown = {
            path: path.read_text() for path in (*pages.glob("*.html"), *folder.glob("reports/**/*.html"))
        }
        assert len(shown) > 10 and any("&lt;script&gt;" in page for page in shown.values())
        for path, page in shown.items():
            assert len(page) < 1_000_000 and not acting(page) and "\u200b" not in page, path
            ours = page.count("script-src 'sha256-")  # one script that the policy of the page names, or none
            assert page.count("<script") == ours <= 1, path
            assert not [d for d in dangers(page) if d not in ((("script",),) * ours) and d[0] != "form"], path


@pytest.mark.parametrize("kind", KINDS)
def test_strange_tables_are_seen_for_what_they_are(tmp_path, kind):
    for seed in range(8):
        table = KINDS[kind](seed, tmp_path, 800 if kind != "visits" else 200)
        look = survey(read_table(table.file).frame)
        expected = (table.time, table.entity or None, None if table.options else table.target or None)
        assert (look.time, look.entity, look.target) == expected, (kind, seed)


def test_a_column_that_was_known_later_is_named_by_scope_too(mlsys, folder, declared):
    path, now = folder / "notebooks/loans.ipynb", re.search(r"--now (\S+)", declared["loans"])[1]
    before = path.read_text()
    for old, new in (
        (r"""Column('age', \"int\"""", r"""Column('recovered_amount', \"float\", nullable=True),\n        Column('age', \"int\""""),
        (r'\"age\": \"int\"', r'\"recovered_amount\": \"float\", \"age\": \"int\"'),
        (r'f.request(\"age\", \"int\"),', r'f.request(\"recovered_amount\", \"float\"),\n    f.request(\"age\", \"int\"),'),
    ):  # fmt: skip
        assert old in path.read_text(), old
        path.write_text(path.read_text().replace(old, new, 1))
    try:
        run([mlsys, "ingest", "loans", "--now", now], folder)
        assert (
            "recovered_amount"
            in re.search(r"suspects: (.*)", run([mlsys, "scope", "loans", "--now", now], folder))[1]
        )
    finally:
        path.write_text(before)


def test_a_table_of_a_database_is_pulled_from_it(mlsys, folder):
    shop = f"sqlite:///{folder.parent / 'shop.db'}"
    pl.read_csv(folder.parent / "loans.csv").write_database("credits", shop)
    assert "LEAK? collection_agency" in run([mlsys, "new", "credits", "--from", f"{shop}#credits"], folder)
    code = declaration(folder, "credits")
    assert "SqlSource(" in code and "watermark='applied_at'" in code, code
    assert "rows: 4000" in run([mlsys, *shlex.split(printed(folder, "credits")[0])[1:]], folder)


def test_the_folder_tests_itself(mlsys, folder, declared):
    said = run([mlsys, "problems"], folder)
    assert "loans" in said and "BROKEN  (notebooks.loans" not in said
