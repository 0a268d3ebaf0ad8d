"""How calm the service stays: honest callers beside hostile ones, and five times as many as it can serve.

    python tests/bench/hostile.py              # 3 s a measurement

A third of 500 hostile clients sends a head letter by letter, a third a body, a third asks and never reads; 1,000 more are connected and
say nothing. Four honest callers are timed alone and beside them. Then eight callers, and forty: what is answered, and how soon after.
"""

import argparse
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]


class Hostile:
    "Clients that keep a service busy with nothing."

    def __init__(self, port: int, heads: dict[str, str], body: bytes, n: int = 500, idle: int = 1000) -> None:
        said = "".join(f"{name}: {value}\r\n" for name, value in heads.items())
        head = f"POST /v1/churn/predictions HTTP/1.1\r\nHost: 127.0.0.1\r\n{said}"
        whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        slow = f"{head}Content-Length: 60000\r\n\r\n".encode()
        self.port, self.kinds = (
            port,
            [(head.encode(), 0, 1), (slow + b" " * 500, len(slow), 1), (whole, None, 10)],
        )
        self.over, self.n, self.turned_away = threading.Event(), n, 0
        self.idle = [made for made in (self.connected() for _ in range(idle)) if made]
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def connected(self) -> socket.socket | None:
        try:
            made = socket.create_connection(("127.0.0.1", self.port), 5)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            made.setblocking(False)
            return made
        except OSError:
            return None

    def work(self) -> None:
        "Each comes again when it is let go, two letters a second."
        all_of_them: list[list] = [[None, i % 3, 0] for i in range(self.n)]
        while not self.over.wait(0.5):
            for one in all_of_them:
                content, begin, times = self.kinds[one[1]]
                if one[0] is None:
                    one[0], one[2] = self.connected(), 0
                    if one[0] is None:
                        continue
                try:
                    if begin is None and not one[2]:
                        one[0].send(content * times)  # and reads none of the answers
                        one[2] = 1
                    elif begin is None:
                        pass
                    else:
                        at = one[2]
                        one[0].send(
                            content[:begin] if begin and not at else content[begin + at : begin + at + 1]
                        )
                        one[2] += 1
                except BlockingIOError:
                    pass
                except OSError:
                    one[0].close()
                    one[0], self.turned_away = None, self.turned_away + 1
        for one in all_of_them:
            if one[0] is not None:
                one[0].close()

    def end(self) -> None:
        self.over.set()
        self.thread.join()
        for made in self.idle:
            made.close()


def main() -> None:
    import os
    import resource

    from caller import head
    from serving import SERVE, asked, process, spent, today
    from serving_world import lines, make

    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(8192, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2
    )
    with tempfile.TemporaryDirectory() as folder:
        today(make(Path(folder), families=("linear",)))
        bodies = [b'{"customer_id": %d}' % c for c in lines()["customer_id"].drop_nulls().unique().sort()]
        path, heads = "/v1/churn/predictions", head(folder)
        settings = {
            "MLSYS_DURABLE": "within 5 ms",
            "MLSYS_CONNECTIONS_OF_ONE": "2048",
        }  # all callers have one address here
        with process(SERVE, folder, **settings) as (port, child, _):
            asked(port, bodies, path, 4, 1.0, heads)
            alone = asked(port, bodies, path, 4, given.seconds, heads)
            enemies = Hostile(port, heads, bodies[0])
            time.sleep(6)  # by then those that read nothing have been given what they asked
            beside = asked(port, bodies, path, 4, given.seconds, heads)
            enemies.end()
            time.sleep(1)
            costs = [spent(child.pid)]
            peak = asked(port, bodies, path, 8, given.seconds, heads)
            costs.append(spent(child.pid))
            many = asked(port, bodies, path, 40, given.seconds, heads)
            costs.append(spent(child.pid))
            after = asked(port, bodies, path, 8, 1.0, heads)
    print(f"== hostile, load {os.getloadavg()[0]:.1f}")
    for name, (rate, p50, p99) in (
        ("4 alone", alone),
        ("4 beside 1,500", beside),
        ("8", peak),
        ("40", many),
        ("8 after", after),
    ):
        print(f"{name:16} {rate:8.0f} a second, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    eight, forty = (costs[i + 1] - costs[i] for i in (0, 1))
    each = [1e6 * cpu / (told[0] * given.seconds) for cpu, told in ((eight, peak), (forty, many))]
    print(
        f"CPU of a request {each[0]:.0f} us from 8, {each[1]:.0f} us from 40: goodput {each[0] / each[1]:.0%} of the peak where nobody else works"
    )
    print(f"p99 beside hostile clients {beside[2] / alone[2]:.1f}x, goodput at 5x {many[0] / peak[0]:.0%} of the peak, "
          f"just after {after[0] / peak[0]:.0%}; hostile clients let go {enemies.turned_away} times")  # fmt: skip


if __name__ == "__main__":
    main()
