"""Requests with bytes changed at random, at every route, into the real connection of a service: in process, or over a socket.

    python tests/fuzz.py --seconds 60            # of processor, in process
    python tests/fuzz.py --seconds 60 --socket

Each begins as a good request; some of its bytes go, come twice, change, or are another request's. Whatever comes back is an answer of HTTP
below 500 (or a 503 that says when to come again: who hangs up leaves work behind, of which there is only so much), without a traceback, and
never holds the key that was sent. Nothing at all is right for what is no whole request.
"""

import argparse
import asyncio
import logging
import os
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from mlsys_nb.serving import service
from mlsys_nb.serving.api_keys import first_key, local_key
from mlsys_nb.serving.fast_path import StraightLine
from mlsys_nb.system.settings import Settings

WORDS = [b"null", b"NaN", b"1e999", b"-0", b"9" * 40, b'"', b"\\", b"\\ud800", b"\x00", b"\xff\xfe", b"[" * 40, b"{}", b"\r\n", b"\r\n\r\n",
         b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"true", b"<script>", b"%00", b"../", b" "]  # fmt: skip
BODIES = (b'{"customer_id": 13080}', b'{"customer_id": 13080, "features": true}', b'{"customer_id": 12980, "request_id": "r"}', b'{"entities": [{"customer_id": 13080}]}',
          b'{"customer_id": 13080, "explain": true}', b'{"decision_id": "h1-1-00", "outcome": 1}', b'{"inputs": [{"name": "customer_id", "shape": [1], "datatype": "INT64", "data": [13080]}]}')  # fmt: skip
POSTS = (
    "/v1/churn/predictions",
    "/v1/churn/outcomes",
    "/v1/churn/explanations",
    "/v2/models/churn/infer",
    "/invocations",
    "/v1/events/lines",
    "/v1/churn/batches",
)
GETS = ("/healthz", "/readyz", "/v1/churn/model", "/v1/churn/decisions/h1-1-00", "/v2/models/churn", "/ping", "/v1/churn/contradictions", "/v1/churn/batches/x")  # fmt: skip


def seeds(key: str) -> list[bytes]:
    "Good requests."
    head = f"Host: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    posts = [f"POST {p} HTTP/1.1\r\n{head}Content-Length: {len(b)}\r\n\r\n".encode() + b for p in POSTS for b in BODIES]  # fmt: skip
    return posts + [f"GET {p} HTTP/1.1\r\n{head}\r\n".encode() for p in GETS]


def changed(good: list[bytes], rng: random.Random) -> bytes:
    "One of them with some bytes changed; half of them with a length that is true again."
    text = bytearray(rng.choice(good))
    begin = text.find(b"\r\n\r\n") + 4 if rng.random() < 0.6 else 0  # mostly within the body
    for _ in range(rng.randint(1, 4)):
        a = rng.randint(min(begin, len(text)), len(text))
        b = min(len(text), a + rng.choice((0, 1, 1, 2, 8)))
        text[a:b] = rng.choice((b"", bytes(text[a:b] * 2), rng.choice(WORDS), rng.randbytes(1), rng.choice(good)[a:b]))  # fmt: skip
    cut = text.find(b"\r\n\r\n")
    if cut > 0 and rng.random() < 0.8:
        body = len(text) - cut - 4
        return re.sub(rb"(?i)content-length: *\d+", b"Content-Length: %d" % body, bytes(text), count=1)
    return bytes(text)


def wrong(answer: bytes, key: str) -> str:
    "What is wrong with what came back; empty when nothing is."
    if not answer:
        return ""
    told = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    if told is None:
        return "no answer of HTTP"
    if told[1] >= b"500" and not (told[1] == b"503" and b"retry-after" in answer):
        return f"status {told[1].decode()}"
    return "a traceback" if b"Traceback" in answer else "the key" if key.encode() in answer else ""


class Line(asyncio.Transport):
    "A connection that keeps what is written."

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 6)})
        self.out, self.closed = b"", False

    def write(self, data: bytes) -> None:
        self.out += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def set_protocol(self, protocol: object) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None: ...

    resume_reading = pause_reading


async def inside(here: Settings, wanted: Iterator[bytes]) -> AsyncIterator[tuple[bytes, bytes]]:
    "Each request and what came back, in this process."
    from uvicorn.server import ServerState

    life = service._Life(here, ("churn",))
    life.open()
    config = service._config(service._application(life), here)
    config.load()
    straight = {"straight": StraightLine(life.served, life.access, here)}
    for text in wanted:
        line, state = Line(), ServerState()
        made = config.http_protocol_class(
            config=config, server_state=state, app_state=straight, _loop=asyncio.get_running_loop()
        )
        made.connection_made(line)
        made.data_received(text)
        for n in range(4000):
            waits = getattr(made.cycle, "more_body", False)  # for a body that never comes
            if line.closed or waits or not (state.tasks or (made.cycle and not made.cycle.response_complete)):
                break
            await asyncio.sleep(0 if n < 50 else 0.0005)
        yield text, line.out
        made.connection_lost(None)
        while state.tasks:
            await asyncio.sleep(0.0005)
    life.close()


def over(port: int, text: bytes) -> bytes:
    "What comes back from a socket."
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(text)
        line.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while piece := line.recv(65_536):
                found += piece
                top, cut, rest = found.partition(b"\r\n\r\n")
                size = re.search(rb"(?i)content-length: (\d+)", top)
                if cut and size and len(rest) >= int(size[1]):
                    break
        except ConnectionError:
            pass
        return found


def fuzzed(
    here: Settings, seconds: float, seed: int, at_socket: bool = False, most: int = 10**7
) -> tuple[int, Counter[str]]:
    "How many requests were made within so much processor of this process, and what came back, by status."
    first_key(here, "fuzz")
    key, rng = local_key(here), random.Random(seed)
    good, found, until = seeds(key), Counter[str](), time.process_time() + seconds

    def wanted() -> Iterator[bytes]:
        while time.process_time() < until and found.total() < most:
            yield changed(good, rng)

    def judge(text: bytes, answer: bytes) -> None:
        assert not (why := wrong(answer, key)), (why, text, answer[:600])
        found[answer[9:12].decode() or "none"] += 1

    async def all_inside() -> None:
        async for text, answer in inside(here, wanted()):
            judge(text, answer)

    if at_socket:
        with service.running(here, "churn") as url:
            for text in wanted():
                judge(text, over(int(url.rpartition(":")[2]), text))
    else:
        asyncio.run(all_inside())
    return found.total(), found


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from serving_world import make

    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--seconds", type=float, default=60.0, help="of processor")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--socket", action="store_true")
    asked = words.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        n, found = fuzzed(make(Path(folder)), asked.seconds, asked.seed, asked.socket)
    where = "over a socket" if asked.socket else "in process"
    print(
        f"== {n:,} changed requests {where}, load {os.getloadavg()[0]:.0f}: 0 above 499 but 503 with Retry-After, 0 tracebacks, 0 keys told; {dict(found.most_common())}"
    )


if __name__ == "__main__":
    main()
