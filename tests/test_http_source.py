"A service over HTTP: hostile pages, late items, kills between pages, and a token that stands nowhere."

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from mlsys_nb.data import http_source as room
from mlsys_nb.data.contract import Column, Contract
from mlsys_nb.data.csv_files import SourceError
from mlsys_nb.data.http_source import HttpSource
from mlsys_nb.data.ingest import ingest
from mlsys_nb.data.lake import quarantine, read, snapshot
from mlsys_nb.data.paging import NextCursor, NextLink, NextNumber, NextOffset
from mlsys_nb.data.retry import Retry
from mlsys_nb.system.clock import instant
from mlsys_nb.system.settings import Settings, load_settings

HOME = Path(__file__).resolve().parents[1]
SALES = Contract("sales", (Column("id", "int"), Column("price", "decimal"), Column("at", "time")), id="id")
QUICK = Retry(tries=4, first=0.001, most=2.0)
NOW = instant("2010-04-01")
Answer = Callable[["Shop", str, dict[str, str]], Any]


class Shop(BaseHTTPRequestHandler):
    "Answers with what the test's function gives: plain data, or (status, headers, bytes)."

    protocol_version = "HTTP/1.1"
    answer: Answer
    seen: list[Any]

    def log_message(self, *told: Any) -> None: ...

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        self.seen.append((parts.path, query, dict(self.headers)))
        told = type(self).answer(self, parts.path, query)
        if told is None:
            return
        status, headers, body = told if isinstance(told, tuple) else (200, {}, json.dumps(told).encode())
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    monkeypatch.setenv("no_proxy", "*")
    servers = []

    def start(answer: Answer) -> str:
        handler = type("Shop", (Shop,), {"answer": staticmethod(answer), "seen": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        start.seen = handler.seen  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    return load_settings(root=tmp_path / "root", home=HOME)


def items(*ids: int) -> list[dict[str, Any]]:
    return [{"id": i, "price": 1.25, "at": f"2010-03-01T00:00:{i % 60:02}Z"} for i in ids]


def taken(here: Settings) -> list[int]:
    return sorted(read(here, snapshot(here, "sales"))["id"].to_list())


def source(url: str, **more: Any) -> HttpSource:
    return HttpSource("sales", SALES, url + "/sales", **{"retry": QUICK, **more})


# --- pages -------------------------------------------------------------------------------------------------------------


def numbered(shop: Any, path: str, query: dict[str, str]) -> Any:
    page = int(query["page"])
    return items(*range(3 * page, 3 * page + 3)) if page <= 4 else []


def offset(shop: Any, path: str, query: dict[str, str]) -> Any:
    begin = int(query.get("offset", 0))
    return {"rows": items(*range(begin + 3, min(begin + 8, 15)))}


def cursor(shop: Any, path: str, query: dict[str, str]) -> Any:
    at = int(query.get("after", 3))
    return {"rows": items(*range(at, at + 4)), "meta": {"next": at + 4 if at + 4 < 15 else None}}


def linked(shop: Any, path: str, query: dict[str, str]) -> Any:
    at = int(query.get("at", 3))
    following = [f"/sales?at={at + 4}", f"?at={at + 4}"][at % 2] if at + 4 < 15 else None
    return {"rows": items(*range(at, at + 4)), "links": {"next": following}}


def header(shop: Any, path: str, query: dict[str, str]) -> Any:
    at = int(query.get("at", 3))
    link = {"Link": f'</sales?at=3>; rel="first", </sales?at={at + 4}>; rel="next"'} if at + 4 < 15 else {}
    return 200, link, json.dumps(items(*range(at, at + 4))).encode()


@pytest.mark.parametrize(
    ("answer", "paging", "path"),
    [
        (numbered, NextNumber(), ""),
        (offset, NextOffset(), "rows"),
        (cursor, NextCursor("after", "meta.next"), "rows"),
        (linked, NextLink("links.next"), "rows"),
        (header, NextLink("Link"), ""),
    ],
)
def test_every_way_from_page_to_page(
    serve: Any, here: Settings, answer: Answer, paging: Any, path: str
) -> None:
    ingest(here, source(serve(answer), paging=paging, items=path), NOW)
    assert taken(here) == list(range(3, 15))


def test_a_busy_service_is_waited_for_and_a_dying_page_is_asked_again(
    serve: Any, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("mlsys_nb.data.retry.pause", waits.append)
    tried: dict[int, int] = {}
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)

    def answer(shop: Any, path: str, query: dict[str, str]) -> Any:
        page = int(query["page"])
        tried[page] = tried.get(page, 0) + 1
        body = json.dumps(numbered(shop, path, query)).encode()
        if page == 1 and tried[page] == 1:
            return 429, {"Retry-After": "1"}, b""
        if page == 1 and tried[page] == 2:
            return 503, {"Retry-After": soon}, b""
        if page == 2 and tried[page] == 1:
            shop.close_connection = True
            return 200, {"Content-Length": "9999"}, body  # says more than it sends
        if page == 2 and tried[page] == 2:
            return 200, {}, body[:30]
        if page == 3 and tried[page] == 1:
            shop.connection.close()
            return None
        if page == 4 and tried[page] == 1:
            shop.close_connection = True
            shop.wfile.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n[{"id": 1,')
            return None
        return 200, {}, body

    ingest(here, source(serve(answer), paging=NextNumber()), NOW)
    assert taken(here) == list(range(3, 15)) and tried == {1: 3, 2: 3, 3: 2, 4: 2, 5: 1}
    assert waits[0] == 1.0 and 0 < waits[1] <= 2.0 and len(waits) == 6


def test_a_service_that_stays_broken_leaves_the_old_state(serve: Any, here: Settings) -> None:
    broken = [False]

    def answer(shop: Any, path: str, query: dict[str, str]) -> Any:
        return (500, {}, b"") if broken[0] and query["page"] == "3" else numbered(shop, path, query)

    shop = source(serve(answer), paging=NextNumber())
    ingest(here, shop, NOW)
    before = snapshot(here, "sales")
    broken[0] = True
    with pytest.raises(
        SourceError, match="page 3 of source 'sales' failed 4 times, at last: .*/sales answered 500"
    ):
        ingest(here, shop, NOW + timedelta(days=1))
    assert snapshot(here, "sales") == before


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda *a: (404, {}, b""), "answered 404; correct the address"),
        (lambda *a: (429, {"Retry-After": "86400"}, b""), "asks to wait 86400 s"),
        (lambda *a: {"data": []}, r"its items are a list at ''; the answer has keys \['data'\]"),
        (lambda *a: (200, {}, b"<html>"), "no JSON, or half of it"),
        (lambda *a: (200, {}, b"[" * 100_000), "no JSON, or half of it"),
        (lambda *a: (200, {}, b" " * 300_000), "at most 200,000 bytes"),
        (lambda *a: (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10**7)), "too large, or broke off"),
        (lambda *a: (302, {"Location": "http://localhost:1/steal"}, b""), "leads to http://localhost:1/steal; a source stays"),
    ],
)  # fmt: skip
def test_hostile_answers_are_told_in_one_line(
    serve: Any, here: Settings, monkeypatch: pytest.MonkeyPatch, reply: Answer, told: str
) -> None:
    monkeypatch.setattr(room, "MOST_BYTES", 200_000)
    with pytest.raises(SourceError, match=told) as caught:
        ingest(here, source(serve(reply)), NOW)
    assert "\n" not in str(caught.value) and snapshot(here, "sales").batches == ()


def test_a_page_that_leads_back_and_one_that_stays_the_same(serve: Any, here: Settings) -> None:
    url = serve(lambda shop, path, query: {"rows": items(len(shop.seen)), "next": "/sales?at=1"})
    with pytest.raises(SourceError, match="page 3 leads back to an earlier one"):
        ingest(here, source(url, paging=NextLink(), items="rows"), NOW)
    url = serve(lambda shop, path, query: items(1, 2))
    with pytest.raises(SourceError, match="page 2 is the same as the one before it"):
        ingest(here, source(url, paging=NextNumber("seite")), NOW)


def test_the_token_stays_on_its_host(serve: Any, here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "t0p")
    other = serve(lambda *a: items(1))
    seen = serve.seen
    for reply in (
        lambda *a: (302, {"Location": f"{other}/sales"}, b""),
        lambda *a: {"rows": items(1), "next": f"{other}/sales"},
    ):
        with pytest.raises(SourceError, match="stays on its own host"):
            ingest(here, source(serve(reply), secret="env:TOKEN", paging=NextLink(), items="rows"), NOW)
    assert seen == []


def test_a_service_that_drips_is_left(serve: Any, here: Settings) -> None:
    def answer(shop: Any, path: str, query: dict[str, str]) -> Any:
        shop.close_connection = True
        shop.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(100):
            shop.wfile.write(b" ")
            time.sleep(0.02)

    begun = time.monotonic()
    with pytest.raises(SourceError, match="took longer than 0 s|broke"):
        ingest(here, source(serve(answer), timeout=0.04, retry=Retry(tries=1)), NOW)
    assert time.monotonic() - begun < 5


def test_compressed_answers_and_items_that_are_none(serve: Any, here: Settings) -> None:
    body = [*items(1), 7, None, {"id": "\ud800"}, {"id": 2, "price": 1e400, "at": "noon"}, {"id": 3}]
    packed = gzip.compress(json.dumps(body).encode())
    report = ingest(here, source(serve(lambda *a: (200, {"Content-Encoding": "gzip"}, packed))), NOW)
    assert taken(here) == [1] and report.quarantined["unreadable item"] == 3
    assert len(quarantine(here, snapshot(here, "sales"))) == 5


# --- what is new, and what is late -------------------------------------------------------------------------------------


def test_items_later_than_the_watermark_arrive_once(serve: Any, here: Settings) -> None:
    "Sixty days of a shop whose sales become visible up to five hours late, by a model in a few lines."
    draw = random.Random(7)
    rows: list[tuple[datetime, dict[str, Any]]] = []
    for i in range(400):
        at = datetime(2010, 3, 1) + timedelta(minutes=draw.randrange(60 * 24 * 20))
        rows.append(
            (
                at + timedelta(hours=draw.choice((0, 0, 1, 5))),
                {"id": i, "price": "1.00", "at": at.isoformat() + "Z"},
            )
        )
    now = [datetime(2010, 3, 1)]

    def answer(shop: Any, path: str, query: dict[str, str]) -> Any:
        since = query.get("since", "")
        seen = [r for visible, r in rows if visible <= now[0] and r["at"] >= since.replace("+00:00", "Z")]
        page = int(query["page"])
        return {"rows": seen[10 * page - 10 : 10 * page]}

    shop = source(
        serve(answer), items="rows", paging=NextNumber(), watermark="at", since="since", overlap="6h"
    )
    total = 0
    for hour in range(0, 24 * 21, 12):
        now[0] = datetime(2010, 3, 1) + timedelta(hours=hour)
        total += ingest(here, shop, now[0].replace(tzinfo=UTC)).rows
    assert total == 400 and taken(here) == list(range(400))
    asked = [q.get("since") for _, q, _ in serve.seen]
    assert asked[0] is None and len({a for a in asked if a}) > 20


def test_numbers_that_grow_are_watermarks_too(serve: Any, here: Settings) -> None:
    there = [items(*range(1, 8))]
    url = serve(lambda shop, path, query: [i for i in there[0] if i["id"] >= int(query.get("min", 0))])
    shop = source(url, watermark="id", since="min", overlap="2")
    assert ingest(here, shop, NOW).rows == 7
    there[0] = [i for i in items(*range(1, 10)) if i["id"] != 6] + items(6)
    assert ingest(here, shop, NOW + timedelta(days=1)).rows == 2
    assert serve.seen[-1][1] == {"min": "5"}
    with pytest.raises(SourceError, match="order of one watermark; it was 'id' .id., now 'at'"):
        ingest(here, replace(shop, watermark="at"), NOW + timedelta(days=2))


# --- kills -------------------------------------------------------------------------------------------------------------

CHILD = """
    import sys
    from mlsys_nb.data.contract import Column, Contract
    from mlsys_nb.data.http_source import HttpSource
    from mlsys_nb.data.paging import NextNumber
    from mlsys_nb.data.ingest import ingest
    from mlsys_nb.data import incremental_pull
    from mlsys_nb.system.clock import instant
    from mlsys_nb.system.settings import load_settings
    incremental_pull.PART = 4
    root, home, url, now = sys.argv[1:]
    SALES = Contract("sales", (Column("id", "int"), Column("price", "decimal"), Column("at", "time")), id="id")
    shop = HttpSource("sales", SALES, url + "/sales", paging=NextNumber(), watermark="id", since="min", overlap="5")
    print("ready", flush=True)
    ingest(load_settings(root=root, home=home), shop, instant(now))
"""


def test_kills_between_pages_lose_and_double_nothing(
    serve: Any, here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = [0]

    def answer(shop: Any, path: str, query: dict[str, str]) -> Any:
        time.sleep(0.01)
        new = range(max(1, int(query.get("min", 0))), last[0] + 1)
        page = int(query["page"])
        return items(*new[3 * page - 3 : 3 * page])

    url = serve(answer)
    draw, kills = random.Random(11), 0
    for number in range(6):
        last[0] += 30
        now = (NOW + timedelta(days=number)).isoformat()
        for wait in (draw.uniform(0.0, 0.3), draw.uniform(0, 0.5), None):
            command = [sys.executable, "-c", textwrap.dedent(CHILD), str(here.root), str(HOME), url, now]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "no_proxy": "*"})
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            if wait is not None:
                time.sleep(wait)
                process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert process.returncode == 0
    found = taken(here)
    assert found == list(range(1, 181)), "lost or doubled"
    assert sum(snapshot(here, "sales").rows for _ in "1") == 180, "no row is in two batches"
    assert kills >= 6 and not list(here.lake.glob(".sales.spool"))


@pytest.mark.parametrize("step", range(1, 9))
def test_a_kill_at_any_write_of_a_pull(
    serve: Any, here: Settings, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    "Dying before each folder of spool and lake in turn; then once more; then through."
    from importlib import import_module

    from mlsys_nb.data import incremental_pull

    there = import_module("mlsys_nb.data.ingest")
    monkeypatch.setattr(incremental_pull, "PART", 3)
    last = [9]
    shop = source(
        serve(lambda s, p, query: items(*range(max(1, int(query.get("min", 0))), last[0] + 1))[3 * int(query["page"]) - 3 :][:3]),
        paging=NextNumber(), watermark="id", since="min", overlap="3",
    )  # fmt: skip
    for day in range(2):
        for left in ([step], [max(1, step - 2)], [99]):

            def dying(
                *given: Any, left: list[int] = left, write: Any = incremental_pull.write_folder, **more: Any
            ) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return write(*given, **more)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(incremental_pull, "write_folder", dying)
                patch.setattr(there, "write_folder", dying)
                try:
                    ingest(here, shop, NOW + timedelta(days=day))
                except KeyboardInterrupt:
                    assert left[0] < 0
        last[0] += 4
    assert taken(here) == list(range(1, 14)) and snapshot(here, "sales").rows == 13


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_a_token_stands_nowhere(
    serve: Any, here: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "s3cr3t/t0ken+x")
    bad = [False]

    def answer(shop: Any, path: str, query: dict[str, str]) -> Any:
        told = (
            query.get("key")
            or shop.headers.get("X-Key")
            or shop.headers.get("Authorization", "").removeprefix("Bearer ")
        )
        assert told == "s3cr3t/t0ken+x"
        return (403, {}, told.encode()) if bad[0] else {"rows": items(1), "next": None}

    url, said = serve(answer), []
    for place in ({}, {"headers": {"X-Key": "{secret}"}}, {"parameters": {"key": "{secret}"}}):
        shop = source(url, items="rows", secret="env:SHOP_TOKEN", paging=NextLink(), **place)
        bad[0] = False
        report = ingest(here, replace(shop, name=f"s{len(said)}"), NOW)
        assert report.rows == 1
        bad[0] = True
        with pytest.raises(SourceError, match="answered 403") as caught:
            ingest(here, replace(shop, name="sales"), NOW)
        said += [repr(shop), repr(report), report._repr_html_(), str(caught.value), shop.origin]
    assert not [s for s in said if "s3cr3t" in s]
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 5 and not [p for p in files if b"s3cr3t" in p.read_bytes()]
