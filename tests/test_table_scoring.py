"A whole table scored: the bits of the service, whatever the table is kept in; bad rows, kills, changes in between."

import json
import subprocess
import sys
import time
from pathlib import Path

import calls_world as world
import polars as pl
import pytest
from caller import post

from mlsys_nb.doors.cli import main
from mlsys_nb.loop.ingest_step import ingest_due
from mlsys_nb.loop.pipeline import train
from mlsys_nb.loop.step_context import context
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.release.registry import champion, load_version
from mlsys_nb.serving.service import running
from mlsys_nb.serving.table_scoring import TableJob, score_table
from mlsys_nb.serving.table_validation import NoQuestions
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.durable import write_json

NOW = world.START + 70 * world.DAY
TESTS = Path(__file__).parent


@pytest.fixture(scope="module", params=["calls", "hours", "desk"])
def lived(request, tmp_path_factory):
    "A root with a champion, and a table of calls that come."
    here = world.make(tmp_path_factory.mktemp(request.param), 3_000)
    write_json(here.clock_file, {"now": NOW.isoformat()})
    ingest_due(context(request.param, NOW.isoformat(), here))
    train(context(request.param, NOW.isoformat(), here), n_trials=2)
    problem = load_problem(here, request.param)
    assert champion(open_control(here), problem.name).version, "a version serves"
    coming = world.rows(3_000)[0].filter(pl.col("at").dt.replace_time_zone("UTC") > NOW).head(60)
    strange = coming.head(1).with_columns(client=pl.lit(-5, dtype=pl.Int64), call=pl.lit("from a stranger"))
    return here, problem, pl.concat([coming, strange]).select("call", "client", "topic", "minutes", "parts")


def written(folder: Path, table: pl.DataFrame) -> dict[str, str]:
    "The same table, as people keep tables."
    text = table.with_columns(
        parts=pl.col("parts").map_elements(lambda v: json.dumps(v.to_list()), pl.String)
    )
    table.write_parquet(folder / "t.parquet")
    text.write_csv(folder / "t.csv")
    table.write_ndjson(folder / "t.jsonl")
    text.write_database("t", f"sqlite:///{folder}/t.db")
    return {
        "parquet": f"{folder}/t.parquet",
        "csv": f"{folder}/t.csv",
        "jsonl": f"{folder}/t.jsonl",
        "sql": f"sqlite:///{folder}/t.db#t",
    }


def asked_one_by_one(here, problem, table: pl.DataFrame) -> list[dict]:
    "What the service says of the rows."
    with running(here, problem.name) as address:
        found = [post(address, f"/v1/{problem.name}/predictions", row) for row in table.to_dicts()]
    assert {status for status, _ in found} == {200}, found[-1]
    return [told for _, told in found]


def told(row: dict) -> tuple:
    answer = row.get("answer")
    answer = json.loads(answer) if isinstance(answer, str) else answer
    return row["prediction"], row["action"], row["eligible"], row["version"], answer


def test_a_table_gets_the_bits_of_the_service_whatever_it_is_kept_in(lived, tmp_path):
    here, problem, table = lived
    served = [told(row) for row in asked_one_by_one(here, problem, table)]
    for kind, given in written(tmp_path, table).items():
        for form in (".parquet", ".jsonl"):
            out = tmp_path / f"{kind}{form}"
            done = score_table(here, problem, TableJob(given, out, rows=17))
            assert (done.rows, done.rejected, done.moment) == (table.height, 0, NOW)
            found = (
                pl.read_parquet(out) if form == ".parquet" else pl.read_ndjson(out, infer_schema_length=None)
            )
            assert [told(row) for row in found.to_dicts()] == served, kind
            assert found["row"].to_list() == list(range(1, table.height + 1))
            assert not out.with_name(f"{out.name}.parts").exists()


def test_features_themselves_give_the_bits_of_the_model(lived, tmp_path):
    here, problem, _ = lived
    control = open_control(here)
    model = load_version(control, here, problem, champion(control, problem.name).version)
    rows = pl.DataFrame(model.background, infer_schema_length=None).select(model.features.names)
    rows.write_parquet(tmp_path / "features.parquet")
    done = score_table(
        here, problem, TableJob(f"{tmp_path}/features.parquet", tmp_path / "out.parquet", given=True)
    )
    assert done.rows == rows.height
    expected = problem.target.choices(model.predict(rows), problem.costs)["score"].to_list()
    assert pl.read_parquet(tmp_path / "out.parquet")["prediction"].to_list() == expected


def test_a_bad_row_harms_only_itself_and_is_named(lived, tmp_path, capsys):
    here, problem, table = lived
    rows = table.select("call", "client", "topic", "minutes").to_dicts()
    text = [
        "call,client,topic,minutes,parts",
        *(f"{r['call']},{r['client']},{r['topic'] or ''},{r['minutes']}," for r in rows),
    ]
    text[4] = text[4].replace(f",{rows[3]['minutes']},", ",ten,")
    text[9], text[10] = f"c9,{2**63},line,5,", f"c10,{-(2**63)},line,5,"
    text.insert(12, "one,field,too,many,of,them")
    (tmp_path / "t.csv").write_text("\n".join(text) + "\n")
    out = tmp_path / "scores.csv"
    words = [
        "score",
        problem.name,
        "--over",
        f"{tmp_path}/t.csv",
        "--out",
        str(out),
        "--root",
        str(here.root),
    ]
    (here.home / "settings.ini").exists()
    done = score_table(here, problem, TableJob(f"{tmp_path}/t.csv", out))
    assert (done.rows, done.rejected) == (table.height - 3, 4), words
    bad = pl.read_csv(tmp_path / "scores.rejected.csv")
    assert sorted(bad.rows(), key=str) == sorted([
        (4, "minutes is of type int, or null", "'ten'"),
        (9, "client is of type int", f"'{2**63}'"),
        (10, "client is of type int", f"'{-(2**63)}'"),
        (None, "line 13: has 6 fields, the header has 5", "one,field,too,many,of,them"),
    ], key=str)  # fmt: skip
    assert set(pl.read_csv(out)["row"]) == set(range(1, table.height + 1)) - {4, 9, 10}


def test_a_table_without_a_column_that_is_asked_for_is_refused_as_a_whole(lived, tmp_path):
    here, problem, table = lived
    table.drop("minutes").write_parquet(tmp_path / "t.parquet")
    with pytest.raises(NoQuestions, match=r"\['minutes'\] are missing"):
        score_table(here, problem, TableJob(f"{tmp_path}/t.parquet", tmp_path / "o.parquet"))
    for out, said in (
        (tmp_path / "o.xls", "written as one of"),
        (tmp_path / "no" / "o.csv", "that is there"),
    ):
        with pytest.raises(NoQuestions, match=said):
            score_table(here, problem, TableJob(f"{tmp_path}/t.parquet", out))
    (tmp_path / "o.csv").write_text("mine")
    with pytest.raises(NoQuestions, match="written once"):
        score_table(here, problem, TableJob(f"{tmp_path}/t.parquet", tmp_path / "o.csv"))
    assert (tmp_path / "o.csv").read_text() == "mine"


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from mlsys_nb.problem.declaration import load_problem
from mlsys_nb.serving.table_scoring import TableJob, score_table
from mlsys_nb.system.settings import load_settings
here = load_settings(root=sys.argv[1], home=sys.argv[2])
done = score_table(here, load_problem(here, "calls"), TableJob(sys.argv[3], Path(sys.argv[4]), rows=25))
print(done.rows, done.kept)
"""


def run(here, given: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, *map(str, (here.root, here.home, given, out, TESTS))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_behind_its_last_block(lived, tmp_path):
    "kill -9 in the middle, again and again; the end is that of a run that nobody disturbed, and the moment that of the first."
    here, problem, table = lived
    if problem.name != "calls":
        pytest.skip("once is enough")
    many = pl.concat([table.with_columns(call=pl.col("call") + f"-{i}") for i in range(40)])
    many.write_parquet(tmp_path / "many.parquet")
    whole = score_table(
        here, problem, TableJob(f"{tmp_path}/many.parquet", tmp_path / "whole.parquet", rows=25)
    )
    out, log = tmp_path / "out.parquet", tmp_path / "out.parquet.parts" / "done.log"
    try:
        for least in (3, 20):
            child = run(here, tmp_path / "many.parquet", out)
            while child.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < least):
                time.sleep(0.005)
            child.kill()
            child.wait()
            assert not out.exists(), "nothing is there before all of it is"
            write_json(here.clock_file, {"now": (NOW + world.DAY).isoformat()})
        last = run(here, tmp_path / "many.parquet", out)
        rows, kept = map(int, last.communicate(timeout=120)[0].split())
    finally:
        write_json(here.clock_file, {"now": NOW.isoformat()})
    assert rows == whole.rows == many.height and kept >= 20 * 25
    assert pl.read_parquet(out).equals(pl.read_parquet(tmp_path / "whole.parquet"))


def test_a_run_that_finds_another_moment_or_other_rows_scores_them_anew(lived, tmp_path, monkeypatch):
    here, problem, table = lived
    out, given = tmp_path / "o.parquet", tmp_path / "t.parquet"

    def stopped_after(blocks: int) -> None:
        import mlsys_nb.serving.table_scoring as bulk

        real, left = bulk._one_block, [blocks]

        def one(*asked):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*asked)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(bulk, "_one_block", one)
            score_table(here, problem, TableJob(str(given), out, rows=20))

    table.write_parquet(given)
    stopped_after(2)
    table.with_columns(
        minutes=pl.when(pl.int_range(pl.len()) == 30).then(59).otherwise("minutes")
    ).write_parquet(given)
    done = score_table(here, problem, TableJob(str(given), out, rows=20))
    assert (done.rows, done.kept) == (table.height, 20), "the first block is the same, the second is not"
    out.unlink()
    stopped_after(2)
    earlier = NOW - world.DAY
    done = score_table(here, problem, TableJob(str(given), out, rows=20), earlier)
    assert (done.kept, done.moment) == (0, earlier)
    assert set(pl.read_parquet(out)["moment"]) == {earlier}


def test_each_row_may_have_its_own_moment_and_none_to_come(lived, tmp_path):
    here, problem, table = lived
    moments = [NOW - world.DAY * (i % 30) for i in range(table.height - 1)] + [NOW + world.DAY]
    table.with_columns(moment=pl.Series(moments)).write_parquet(tmp_path / "t.parquet")
    done = score_table(here, problem, TableJob(f"{tmp_path}/t.parquet", tmp_path / "o.parquet"))
    assert (done.rows, done.rejected) == (table.height - 1, 1)
    found = pl.read_parquet(tmp_path / "o.parquet")
    assert found["moment"].to_list() == moments[:-1]
    alone = tmp_path / "alone.parquet"
    table[[7]].write_parquet(tmp_path / "one.parquet")
    score_table(here, problem, TableJob(f"{tmp_path}/one.parquet", alone), moments[7])
    assert pl.read_parquet(alone)["prediction"][0] == found["prediction"][7]


def test_the_command_scores_a_table(lived, tmp_path, capsys, monkeypatch):
    here, problem, table = lived
    table.write_parquet(tmp_path / "t.parquet")
    monkeypatch.chdir(here.home)
    monkeypatch.setattr(sys, "path", [str(TESTS), *sys.path])
    words = ["--over", f"{tmp_path}/t.parquet", "--out", f"{tmp_path}/o.csv", "--root", str(here.root)]
    code = main(["score", problem.name, *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"{table.height} rows scored, by version" in said.out and "rows a second" in said.out
    assert main(["score", problem.name, *words]) == 2
    assert "written once" in capsys.readouterr().err
    assert main(["score", problem.name, "--out", "x.csv", "--root", str(here.root)]) == 2
    assert "go with --over" in capsys.readouterr().err
