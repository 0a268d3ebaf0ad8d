"""The three engines behind one interface, against real servers that the test starts; skipped where a server is missing.

Servers come from Debian's packages (redis-server, postgresql), clients from PyPI (redis, psycopg).
"""

import shutil
import subprocess
import threading

import pytest
from conftest import wait_for
from feature_sets import features
from ports import free_port

from mlsys_nb.features.generated_test_cases import world
from mlsys_nb.features.key_value_engine import LmdbEngine
from mlsys_nb.features.parity import bits, by_reference, frame_of, read_all
from mlsys_nb.features.redis_postgres_store import PostgresEngine, RedisEngine
from mlsys_nb.features.store_sync import online_store


@pytest.fixture(scope="module")
def redis_port(tmp_path_factory):
    pytest.importorskip("redis")
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server here")
    import redis

    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: redis.Redis(port=port).ping(), process)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture(params=["lmdb", "redis", "postgres"])
def make(request, tmp_path):
    "A function that opens the same table again and again, as replicas would."
    if request.param == "lmdb":
        return lambda: LmdbEngine(tmp_path / "store")
    if request.param == "redis":
        import_redis = pytest.importorskip("redis")
        port = request.getfixturevalue("redis_port")
        return lambda: RedisEngine(import_redis.Redis(port=port), f"{request.node.name}:")
    psycopg = pytest.importorskip("psycopg")
    url, table = (
        request.getfixturevalue("postgres_url"),
        "t_" + "".join(c for c in request.node.name if c.isalnum()).lower(),
    )
    return lambda: PostgresEngine(psycopg.connect(url), table)


def test_four_methods(make):
    engine, other = make(), make()
    engine.change(lambda get, put: [put(b"a1", b"one"), put(b"a\xff*", b"\x00"), put(b"b", b"three")])
    assert other.look([b"a1", b"zz"], lambda found, get: [v and bytes(v) for v in found]) == [b"one", None]
    assert other.look([], lambda found, get: bytes(get(b"b"))) == b"three"
    assert [(bytes(k), bytes(v)) for k, v in other.scan(b"a")] == [(b"a1", b"one"), (b"a\xff*", b"\x00")]

    def mistake(get, put):
        put(b"a2", b"two")
        assert bytes(get(b"a2")) == b"two", "a change sees its own puts"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.change(mistake)
    engine.change(lambda get, put: put(b"b", None))
    assert other.look([b"a2", b"b"], lambda found, get: found) == [None, None]
    engine.close()
    other.close()


def test_writers_take_turns(make):
    "Forty increments by four writers are forty."

    def work():
        engine = make()
        for _ in range(10):
            engine.change(lambda get, put: put(b"n", str(int(bytes(get(b"n") or b"0")) + 1).encode()))
        engine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    engine = make()
    assert engine.look([b"n"], lambda found, get: bytes(found[0])) == b"40"
    engine.close()


def test_the_store_gives_the_same_bits(make):
    invented = world(features, 250, seed=21)
    with online_store(make()) as store, online_store(make()) as replica:
        store.keep(features)
        for events in features.events:
            rows = frame_of(events, invented.rows[events.name])
            for i in range(0, len(rows), 400):
                store.write(events, rows[i : i + 400])
            assert store.write(events, rows) == 0
        truth = by_reference(features, invented)
        for mine, right in zip(read_all(replica, features, invented.moments), truth, strict=True):
            assert {k: bits(v) for k, v in mine.items()} == {k: bits(v) for k, v in right.items()}


def test_a_redis_that_forgets_is_refused(redis_port):
    import redis

    client = redis.Redis(port=redis_port)
    client.config_set("appendfsync", "everysec")
    with pytest.raises(ValueError, match="must be on disk"):
        RedisEngine(client)
    RedisEngine(client, lossy=True)
    client.config_set("appendfsync", "always")
