"SQL sources on real servers: late rows arrive, none twice; exact values; a past that may be claimed; secrets that stand nowhere."

import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from conftest import FULL
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlsys_nb.data.contract import Column, Contract, RowRule
from mlsys_nb.data.csv_files import SourceError
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import quarantine, read, snapshot
from mlsys_nb.data.retry import Retry
from mlsys_nb.data.sql_source import SqlSource
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
TILL = Contract("till", (Column("sale", "int"), Column("price", "decimal"), Column("at", "time")), id="sale")
LOG = Contract("log", (Column("what", "text"), Column("at", "time")))
NAMES = itertools.count()
QUICK = Retry(tries=3, first=0.01)


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return load_settings(root=tmp_path / "root", home=HOME)


@pytest.fixture(params=["postgresql", "mariadb", "sqlite"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        (tmp_path / "shop.db").touch()
        yield f"sqlite:///{tmp_path}/shop.db"
    else:
        yield request.getfixturevalue({"postgresql": "postgres_url", "mariadb": "mariadb_url"}[request.param])


def engine(base: str) -> sa.Engine:
    driven = base.replace("postgresql://", "postgresql+psycopg://").replace("mysql://", "mysql+pymysql://")
    return sa.create_engine(driven, poolclass=sa.NullPool)


def run(base: str, *statements: str, rows: Any = None) -> None:
    with engine(base).begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement), *([rows] if rows is not None else []))


def table(base: str, columns: str) -> str:
    "A new table; a MOMENT is a time without zone."
    columns = columns.replace("MOMENT", "DATETIME" if base.startswith("mysql") else "TIMESTAMP")
    name = f"sold{os.getpid()}_{next(NAMES)}"
    run(base, f"CREATE TABLE {name} ({columns})")
    return name


def day(number: int, hour: int = 0) -> datetime:
    return datetime(2010, 3, number, hour)


def sold(base: str, name: str, *rows: tuple[int, str, datetime]) -> None:
    told = [{"s": s, "p": p, "a": str(a) if "sqlite" in base else a} for s, p, a in rows]
    run(base, f"INSERT INTO {name} VALUES (:s, :p, :a)", rows=told)


# --- one law for all three ---------------------------------------------------------------------------------------------


def test_a_row_later_than_the_watermark_arrives(base: str, here: Settings) -> None:
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    source = SqlSource("till", TILL, base, f"SELECT sale, price, at FROM {name}", "at", overlap="12h")
    sold(base, name, (1, "6.95", day(1, 10)), (2, "1.25", day(1, 20)))
    assert ingest(here, source, instant("2010-03-02")).rows == 2
    sold(
        base,
        name,
        (3, "2.00", day(1, 9)),
        (4, "3.00", day(1, 8) - timedelta(seconds=1)),
        (5, "4.00", day(2, 1)),
    )
    report = ingest(here, source, instant("2010-03-03"))
    assert report.rows == 2, "sale 3 is late by less than the overlap, sale 5 is new, sale 4 is too late"
    assert ingest(here, source, instant("2010-03-04")).rows == 0
    events = read(here, snapshot(here, "till"))
    assert sorted(events["sale"]) == [1, 2, 3, 5]
    late = events.filter(sale=3)["known_at"].item()
    assert late == instant("2010-03-03"), "a late row is known when it came"


def test_without_an_overlap_rows_of_the_last_instant_still_arrive(base: str, here: Settings) -> None:
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "at")
    for sale in range(1, 4):
        sold(base, name, (sale, "1.00", day(1, 10)))
        assert ingest(here, source, instant("2010-03-02") + timedelta(hours=sale)).rows == 1
    assert len(read(here, snapshot(here, "till"))) == 3


def test_ids_that_grow_and_ids_that_commit_late(base: str, here: Settings) -> None:
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "sale", overlap="10")
    sold(base, name, *((i, "1.00", day(1)) for i in range(1, 21) if i not in (5, 15)))
    assert ingest(here, source, instant("2010-03-02")).rows == 18
    sold(base, name, (15, "1.00", day(1)), (5, "1.00", day(1)), (21, "1.00", day(1)))
    assert ingest(here, source, instant("2010-03-03")).rows == 2, "5 is further back than ten ids"


def test_an_updated_row_is_a_new_version_and_so_is_the_way_back(base: str, here: Settings) -> None:
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "at", overlap="1d")
    sold(base, name, (1, "1.00", day(1)), (2, "9.00", day(1)))
    ingest(here, source, instant("2010-03-02"))
    for number, price in ((3, "2.00"), (4, "1.00")):
        run(base, f"UPDATE {name} SET price = {price}, at = at WHERE sale = 1")
        assert ingest(here, source, instant(f"2010-03-0{number}")).rows == 1
    events = read(here, snapshot(here, "till")).filter(sale=1)
    assert events["price"].to_list() == [100, 200, 100]


def test_equal_rows_count_where_twins_count(
    base: str, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlsys_nb.data.sql_source.ANSWER", 7)
    monkeypatch.setattr("mlsys_nb.data.incremental_pull.PART", 20)
    name = table(base, "what VARCHAR(20), at MOMENT NULL")
    source = SqlSource(
        "log", replace(LOG, twins="count"), base, f"SELECT what, at FROM {name}", "at", overlap="1h"
    )

    def note(what: str, hour: int, times: int) -> None:
        at = str(day(1, hour)) if "sqlite" in base else day(1, hour)
        run(base, f"INSERT INTO {name} VALUES (:w, :a)", rows=[{"w": what, "a": at}] * times)

    for hour in range(10):
        note("ping", hour, 5)
    note("ping", 9, 25)
    ingest(here, source, instant("2010-03-02"))
    assert len(read(here, snapshot(here, "log"))) == 75
    note("ping", 9, 2)
    ingest(here, source, instant("2010-03-03"))
    ingest(here, source, instant("2010-03-04"))
    assert len(read(here, snapshot(here, "log"))) == 77


def test_a_table_without_a_watermark_is_read_whole_and_brings_what_is_new(base: str, here: Settings) -> None:
    name = table(base, "what VARCHAR(20), at MOMENT NULL")
    source = SqlSource("log", LOG, base, f"SELECT what, at FROM {name}")
    for number, total in ((1, 2), (2, 4)):
        for k in range(2):
            run(base, f"INSERT INTO {name} VALUES ('w{number}{k}', '2010-03-01 10:00:00')")
        assert ingest(here, source, instant(f"2010-03-0{number + 1}")).rows == 2
        assert len(read(here, snapshot(here, "log"))) == total


def test_rows_without_a_watermark_are_counted_aloud(base: str, here: Settings) -> None:
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    sold(base, name, (1, "1.00", day(1)))
    run(
        base, f"INSERT INTO {name} (sale, price) VALUES (2, 1)", f"UPDATE {name} SET at = NULL WHERE sale = 2"
    )
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "at")
    report = ingest(here, source, instant("2010-03-02"))
    assert report.rows == 1 and any("1 rows without 'at' lie nowhere" in n for n in report.notes), (
        report.notes
    )


def test_the_memory_of_a_large_table_is_bounded(
    base: str, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlsys_nb.data.sql_source.ANSWER", 100)
    monkeypatch.setattr("mlsys_nb.data.incremental_pull.PART", 300)
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    sold(base, name, *((i, "1.00", day(1) + timedelta(seconds=i)) for i in range(1000)))
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "at")
    report = ingest(here, source, instant("2010-03-02"))
    assert report.rows == 1000 and len(report.batches) == 4, report.batches


# --- values ------------------------------------------------------------------------------------------------------------


def test_numbers_are_exact_and_monsters_are_rows(base: str, here: Settings) -> None:
    exact = Contract("till", (Column("sale", "int"), Column("price", "decimal", scale=4)), id="sale")
    kind = "TEXT" if "sqlite" in base else "NUMERIC(60, 4)"
    name = table(base, f"sale {'BIGINT' if 'sqlite' in base else 'NUMERIC(60)'}, price {kind}")
    rows = [(1, "0.1000"), (2, "123456789.0123"), (9007199254740993, "1.0"), (int("9" * 18 if "sqlite" in base else "9" * 50), "1.0"), (5, "9" * 30)]  # fmt: skip
    run(base, f"INSERT INTO {name} VALUES (:s, :p)", rows=[{"s": s, "p": p} for s, p in rows])
    report = ingest(here, SqlSource("till", exact, base, f"SELECT * FROM {name}"), instant("2010-03-02"))
    events = read(here, snapshot(here, "till"))
    assert dict(zip(events["sale"], events["price"], strict=True)) | {9007199254740993: 10000} == {
        1: 1000,
        2: 1234567890123,
        9007199254740993: 10000,
        **({int("9" * 18): 10000} if "sqlite" in base else {}),
    }
    assert report.set_aside == len(rows) - len(events)


def test_binary_columns_are_refused_by_name(base: str, here: Settings) -> None:
    photo = {"postgresql": "'\\x0001'::bytea", "mysql": "x'0001'", "sqlite": "x'0001'"}[base.split(":")[0]]
    source = SqlSource("log", LOG, base, f"SELECT {photo} AS what, '2010-03-01' AS at")
    with pytest.raises(SourceError, match="'what' holds binary"):
        ingest(here, source, instant("2010-03-02"))
    assert not (here.lake / "log").exists() and snapshot(here, "log").batches == ()


def test_words_of_every_alphabet_and_odd_queries(base: str, here: Settings) -> None:
    name = table(base, "what VARCHAR(200), at VARCHAR(40)")
    words = ["naïve £5", "日本語 🎉", "a:b :c %s %(x)s", "tab\tand\nnewline", "quote ' \" \\ end"]
    run(base, f"INSERT INTO {name} VALUES (:w, '2010-03-01 10:00')", rows=[{"w": w} for w in words])
    query = f"SELECT what, at FROM {name} WHERE what NOT LIKE 'x%' AND what <> ':c' -- a comment; :d"
    ingest(here, SqlSource("log", LOG, base, query), instant("2010-03-02"))
    assert sorted(read(here, snapshot(here, "log"))["what"]) == sorted(words)


# --- time zones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York", "UTC"])
def test_postgres_times_are_utc_whatever_the_servers_zone_is(
    postgres_url: str, here: Settings, zone: str
) -> None:
    name = table(postgres_url, "sale BIGINT, price NUMERIC, at TIMESTAMPTZ")
    run(
        postgres_url, f"ALTER ROLE mlsys SET timezone = '{zone}'", "ALTER ROLE mlsys SET datestyle = 'German'"
    )
    try:
        run(
            postgres_url,
            f"INSERT INTO {name} VALUES (1, 1, '2010-03-01 23:30:00+00'), (2, 1, '2010-03-02 00:30:00+00')",
        )
        source = SqlSource("till", TILL, postgres_url, f"SELECT * FROM {name}", "at")
        assert ingest(here, source, instant("2010-03-02")).rows == 1
        assert ingest(here, source, instant("2010-03-03")).rows == 1
    finally:
        run(postgres_url, "ALTER ROLE mlsys RESET ALL")
    events = read(here, snapshot(here, "till"))
    assert events.sort("sale")["at"].to_list() == [instant("2010-03-01T23:30"), instant("2010-03-02T00:30")]


def test_mariadb_timestamps_are_utc_although_the_server_lives_in_tokyo(
    mariadb_url: str, here: Settings
) -> None:
    name = table(mariadb_url, "sale BIGINT, price NUMERIC(9, 2), at TIMESTAMP NULL")
    run(mariadb_url, "SET time_zone = '+00:00'", f"INSERT INTO {name} VALUES (1, 1, '2010-03-01 23:30:00')")
    source = SqlSource("till", TILL, mariadb_url, f"SELECT * FROM {name}", "at")
    assert ingest(here, source, instant("2010-03-02")).rows == 1
    assert read(here, snapshot(here, "till"))["at"].item() == instant("2010-03-01T23:30")


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_local_times_have_the_declared_zone(
    request: pytest.FixtureRequest, here: Settings, server: str
) -> None:
    base = request.getfixturevalue(f"{server}_url")
    kind = {"postgres": "TIMESTAMP", "mariadb": "DATETIME"}[server]
    name = table(base, f"sale BIGINT, price NUMERIC(9, 2), at {kind}")
    local = replace(TILL, columns=(*TILL.columns[:2], Column("at", "time", zone="Europe/London")))
    run(base, f"INSERT INTO {name} VALUES (1, 1, '2010-07-01 12:30:00')")
    source = SqlSource("till", local, base, f"SELECT * FROM {name}", "at", zone="Europe/London")
    assert ingest(here, source, instant("2010-07-01T11:29:00")).rows == 0
    assert ingest(here, source, instant("2010-07-01T11:30:00")).rows == 1
    assert read(here, snapshot(here, "till"))["at"].item() == instant("2010-07-01T11:30")


def test_times_that_python_cannot_hold_harm_their_row_only(postgres_url: str, here: Settings) -> None:
    name = table(postgres_url, "sale BIGINT, price NUMERIC, at TIMESTAMP, day DATE")
    values = ["'infinity', 'infinity'", "'-infinity', '2010-03-01'", "'20000-01-01', '20000-01-01'", "'0044-03-15 BC', '0044-03-15 BC'"]  # fmt: skip
    rows = ", ".join(f"({i}, 'NaN', {v})" for i, v in enumerate(values))
    run(postgres_url, f"INSERT INTO {name} VALUES {rows}, (9, 1, '2010-03-01', '2010-03-01')")
    report = ingest(
        here, SqlSource("till", TILL, postgres_url, f"SELECT * FROM {name}"), instant("2010-03-02")
    )
    assert report.rows == 1 and report.set_aside == 4


def test_mariadb_zero_dates_harm_their_row_only(mariadb_url: str, here: Settings) -> None:
    name = table(mariadb_url, "sale BIGINT, price NUMERIC(9, 2), at DATETIME")
    run(
        mariadb_url,
        "SET sql_mode = ''",
        f"INSERT INTO {name} VALUES (1, 1, '0000-00-00'), (2, 1, '2010-02-01')",
    )
    report = ingest(
        here, SqlSource("till", TILL, mariadb_url, f"SELECT * FROM {name}"), instant("2010-03-02")
    )
    assert (report.rows, report.quarantined) == (1, {"at: unreadable": 1})


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S+00:00"])  # fmt: skip
def test_sqlite_times_in_any_iso_form(here: Settings, tmp_path: Path, form: str) -> None:
    base = f"sqlite:///{tmp_path}/shop.db"
    name = table(base, "sale INTEGER, price TEXT, at TEXT")
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "at", overlap="3h")
    counts = []
    for hour in range(0, 48, 4):
        late = datetime(2010, 3, 1) + timedelta(hours=hour - 2)
        now = datetime(2010, 3, 1) + timedelta(hours=hour)
        rows = [{"s": 2 * hour + k, "a": at.strftime(form)} for k, at in enumerate((late, now))]
        run(base, f"INSERT INTO {name} VALUES (:s, '1.00', :a)", rows=rows)
        counts.append(ingest(here, source, now.replace(tzinfo=UTC)).rows)
    assert counts == [2] * 12


# --- what a first load may claim ---------------------------------------------------------------------------------------


def test_history_pulled_by_sql_trains_where_its_contract_claims_the_past(base: str, here: Settings) -> None:
    from mlsys_nb import features as f
    from mlsys_nb.features import Events, FeatureSet
    from mlsys_nb.features.point_in_time_join import as_of

    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    sold(base, name, *((i, "1.00", day(1 + i // 4, 5 * (i % 4))) for i in range(40)))
    query, now = f"SELECT * FROM {name}", instant("2010-04-01")
    lines = Events("till", keys={"shop": "int"}, time="at", columns={"price": "int"})
    orders = FeatureSet("till", (f.count(lines, "lifetime").named("sales"),))
    moments = [instant(f"2010-03-0{d}") for d in (1, 3, 6)]
    rows = pl.DataFrame(
        {"shop": [7] * 3, "moment": moments}, schema_overrides={"moment": pl.Datetime("us", "UTC")}
    )
    found = {}
    for claims in (None, "at"):
        there = replace(here, root=here.root / str(claims))
        columns = (*TILL.columns, Column("shop", "int"))
        contract = replace(TILL, columns=columns, claims=claims)
        source = SqlSource(
            "till", contract, base, f"SELECT pulled.*, 7 AS shop FROM ({query}) AS pulled", "at"
        )
        report = ingest(there, source, now)
        events = {"till": read(there, snapshot(there, "till"))}
        found[claims] = as_of(orders, rows, events)["sales"].to_list()
        assert any("first load without claims" in n for n in report.notes) == (claims is None)
    assert found == {None: [0, 0, 0], "at": [1, 9, 21]}


def test_only_the_first_load_may_claim_the_past(base: str, here: Settings) -> None:
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL")
    source = SqlSource("till", replace(TILL, claims="at"), base, f"SELECT * FROM {name}", "at", overlap="30d")
    sold(base, name, (1, "1.00", day(1)))
    ingest(here, source, instant("2010-03-10"))
    sold(base, name, (2, "1.00", day(2)))
    ingest(here, source, instant("2010-03-11"))
    events = read(here, snapshot(here, "till")).sort("sale")
    assert events["known_at"].to_list() == [instant("2010-03-01"), instant("2010-03-11")]


# --- what fails --------------------------------------------------------------------------------------------------------


def test_nothing_is_written_over_there(base: str, here: Settings) -> None:
    name = table(base, "what VARCHAR(20), at MOMENT NULL")
    run(base, f"INSERT INTO {name} VALUES ('a', '2010-03-01')")
    for deed in (f"DELETE FROM {name}", f"SELECT 1) AS x; DELETE FROM {name}; SELECT * FROM (SELECT 1"):
        with pytest.raises(SourceError, match="the query failed"):
            ingest(here, SqlSource("log", LOG, base, deed), instant("2010-03-02"))
    assert ingest(here, SqlSource("log", LOG, base, f"SELECT * FROM {name}"), instant("2010-03-02")).rows == 1


def test_a_function_that_writes_is_stopped_by_the_read_only_transaction(
    postgres_url: str, here: Settings
) -> None:
    name = table(postgres_url, "what VARCHAR(20), at TIMESTAMP")
    run(postgres_url, f"CREATE FUNCTION f{name}() RETURNS text LANGUAGE sql AS $$ INSERT INTO {name} VALUES ('x', now()); SELECT 'x' $$")  # fmt: skip
    with pytest.raises(SourceError, match="read-only transaction"):
        ingest(
            here,
            SqlSource("log", LOG, postgres_url, f"SELECT f{name}() AS what, now() AS at"),
            instant("2010-03-02"),
        )


def test_a_server_that_is_not_there_is_tried_again_and_named(here: Settings) -> None:
    for scheme in ("postgresql", "mysql"):
        source = SqlSource("log", LOG, f"{scheme}://shop@127.0.0.1:1/x", "SELECT 1", retry=QUICK)
        with pytest.raises(
            SourceError, match=r"pull of source 'log' failed 3 times, at last: \w+://\*\*\*@127"
        ):
            ingest(here, source, instant("2010-03-02"))


def test_a_wrong_user_is_not_tried_again(base: str, here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sqlite" in base:
        pytest.skip("a file knows no users")
    monkeypatch.setattr("mlsys_nb.data.retry.pause", lambda seconds: pytest.fail("tried again"))
    source = SqlSource("log", LOG, base.replace("mlsys@", "nobody@"), "SELECT 1")
    with pytest.raises(SourceError, match="the query failed"):
        ingest(here, source, instant("2010-03-02"))


def test_a_connection_that_is_cut_in_the_middle_leaves_the_old_state(
    base: str, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sqlite" in base:
        pytest.skip("a file has no connection")
    from mlsys_nb.data import sql_source

    monkeypatch.setattr(sql_source, "ANSWER", 50)
    monkeypatch.setattr("mlsys_nb.data.incremental_pull.PART", 100)
    name = table(base, "sale BIGINT, price NUMERIC(20, 2), at MOMENT NULL, filler VARCHAR(2000)")
    run(base, f"INSERT INTO {name} VALUES (:s, 1, '2010-03-01', :f)", rows=[{"s": i, "f": "x" * 1900} for i in range(5000)])  # fmt: skip
    source = SqlSource("till", TILL, base, f"SELECT * FROM {name}", "sale", retry=QUICK)
    page, cuts = sql_source._page, [3]

    def cut(*given: Any) -> Any:
        if cuts[0] and len(given[2]) and given[2][0][0] == 200:
            cuts[0] -= 1
            kill = {
                "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'",
                "mysql": "BEGIN NOT ATOMIC FOR r IN (SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND user = 'mlsys') DO EXECUTE IMMEDIATE CONCAT('KILL ', r.id); END FOR; END",
            }[base.split(":")[0]]  # fmt: skip
            with engine(base).connect() as connection:
                connection.exec_driver_sql(kill)
        return page(*given)

    monkeypatch.setattr(sql_source, "_page", cut)
    with pytest.raises(SourceError, match="failed 3 times"):
        ingest(here, source, instant("2010-03-02"))
    assert snapshot(here, "till").batches == ()
    cuts[0] = 1  # the next one is cut once, and succeeds at the second try
    assert ingest(here, source, instant("2010-03-02")).rows == 5000
    assert read(here, snapshot(here, "till"))["sale"].n_unique() == 5000
    assert not list(here.lake.glob(".till.spool"))


def test_rows_that_are_written_while_a_pull_reads_wait_for_the_next(
    postgres_url: str, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlsys_nb.data import sql_source

    monkeypatch.setattr(sql_source, "ANSWER", 10)
    name = table(postgres_url, "sale BIGINT, price NUMERIC(20, 2), at TIMESTAMP")
    sold(postgres_url, name, *((i, "1.00", day(1)) for i in range(100)))
    source = SqlSource("till", TILL, postgres_url, f"SELECT * FROM {name}", "sale", overlap="1000")
    page, numbers = sql_source._page, itertools.count(1000)

    def busy(*given: Any) -> Any:
        writer = threading.Thread(target=sold, args=(postgres_url, name, (next(numbers), "1.00", day(1))))
        writer.start()
        writer.join()
        return page(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_source, "_page", busy)
        assert ingest(here, source, instant("2010-03-02")).rows == 100
    more = next(numbers) - 1000
    assert ingest(here, source, instant("2010-03-03")).rows == more > 5


# --- secrets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_a_password_stands_nowhere(
    request: pytest.FixtureRequest,
    here: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
) -> None:
    base, secret = request.getfixturevalue(f"{server}_url"), "Gr3en/h@use:tea"
    host = base.split("@")[1]
    role = f"shop{os.getpid()}{next(NAMES)}"
    if server == "postgres":
        run(base, f"CREATE ROLE {role} LOGIN PASSWORD '{secret.replace(':', chr(92) + ':')}'")
    else:
        with engine(base).begin() as connection:
            connection.exec_driver_sql(f"CREATE USER {role}@'127.0.0.1' IDENTIFIED BY '{secret}'")
            connection.exec_driver_sql(f"GRANT SELECT ON shop.* TO {role}@'127.0.0.1'")
    scheme = base.split(":")[0]
    source = SqlSource("log", LOG, f"{scheme}://{role}@{host}", "SELECT 'a' AS what, '2010-03-01' AS at", secret="env:SHOP", retry=QUICK)  # fmt: skip
    monkeypatch.setenv("SHOP", secret)
    assert ingest(here, source, instant("2010-03-02")).rows == 1
    said = [repr(source), source.origin]
    file = tmp_path / "secret"
    file.write_text(secret + "\n")
    broken = [
        replace(source, query="SELECT nothing FROM nowhere"),
        replace(source, uri=f"{scheme}://nobody@{host}"),
        replace(source, uri=f"{scheme}://nobody@127.0.0.1:1/x", secret=f"file:{file}"),
    ]
    for other in broken:
        with pytest.raises(SourceError) as caught:
            ingest(here, replace(other, name="other"), instant("2010-03-02"))
        said += [str(caught.value), repr(other)]
    assert not [s for s in said if secret in s or "h%40use" in s]
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p != file]
    assert files and not [
        p for p in files if secret.encode() in p.read_bytes() or b"h%40use" in p.read_bytes()
    ]


# --- any history -------------------------------------------------------------------------------------------------------

writes = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(0, 30)), max_size=4),
    min_size=1,
    max_size=6,
)


@given(writes, st.sampled_from(["2h", "30h"]), st.booleans())
@hypothesis_settings(
    max_examples=40 if FULL else 20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_what_is_visible_within_the_overlap_arrives_once(
    tmp_path_factory: pytest.TempPathFactory, days: list[Any], overlap: str, whole: bool
) -> None:
    "Rows (what, n, hours before the pull) on six days, against a model in a few lines."
    folder = tmp_path_factory.mktemp("any")
    here = load_settings(root=folder / "root", home=HOME)
    base = f"sqlite:///{folder}/shop.db"
    name = table(base, "what TEXT, n INTEGER, at TEXT")
    contract = Contract("log", (Column("what", "text"), Column("n", "int"), Column("at", "time")), rules=(RowRule("odd", pl.col("n") != 2),))  # fmt: skip
    source = SqlSource(
        "log", contract, base, f"SELECT * FROM {name}", None if whole else "at", overlap=overlap
    )
    expected: set[Any] = set()
    mark, refused, table_rows = None, 0, []
    seen: set[Any] = set()
    for number, rows in enumerate(days):
        now = datetime(2010, 3, 2) + timedelta(days=number)
        new = [(f"w{w}", n, now - timedelta(hours=h)) for w, n, h in rows]
        run(base, *(f"INSERT INTO {name} VALUES ('{w}', {n}, '{a}')" for w, n, a in new))
        table_rows += new
        low = datetime.min if whole or mark is None else mark - timedelta(hours=int(overlap[:-1]))
        visible = {r for r in table_rows if r[2] >= low}
        report = ingest(here, source, now.replace(tzinfo=UTC))
        fresh = visible - seen
        assert report.rows == len([r for r in fresh if r[1] != 2])
        assert report.set_aside >= len([r for r in fresh if r[1] == 2])
        seen |= visible
        expected |= {r for r in fresh if r[1] != 2}
        refused += len([r for r in fresh if r[1] == 2])
        marks = [r[2] for r in visible]
        mark = max([m for m in (mark, *marks) if m is not None], default=None)
    if not snapshot(here, "log").batches:
        assert not expected and not refused
        return
    events = read(here, snapshot(here, "log"))
    assert {
        (w, n, a.replace(tzinfo=None)) for w, n, a in events.select("what", "n", "at").iter_rows()
    } == expected
    assert len(events) == len(expected)
    assert (
        len(quarantine(here, snapshot(here, "log")).unique(["what", "n", "at"]) if refused else ()) == refused
    )
