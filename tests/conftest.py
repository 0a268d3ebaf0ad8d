"What several test files share: real servers, started on 127.0.0.1 and stopped by whoever started them."

import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from ports import free_port

# Services that tests start let programs of this machine in without a key, but where a test is about keys, or about what is printed for
# people: those say MLSYS_OPEN=nobody, and ask with the heads of caller.py.
os.environ.setdefault("MLSYS_OPEN", "loopback")

# The mirror in MLflow takes seconds of each command; test_mlflow.py has it.
os.environ.setdefault("MLSYS_TRACKING_URI", "off")

# A shell lets what it begins in the background ignore SIGINT, and so would everything that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time: a change is judged by its own faults. `make long` draws new ones.
settings.register_profile("same", derandomize=True)
if "DRAW_ANEW" not in os.environ:
    settings.load_profile("same")


# `make long` walks all of it; CI a part that is drawn once for all.
FULL = bool(os.environ.get("TEST_MLSYS_FULL"))

DEAR = "own_problem replay parity_mutants guide site_walk wheel forget site kills parity".split()


def pytest_collection_modifyitems(items):
    "Files of a minute and more first, chapters last, so two processes that share the work end together."
    name = lambda item: item.path.stem.removeprefix("test_")
    items.sort(key=lambda item: (name(item) == "chapters", name(item) not in DEAR))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "A process takes a whole file, so that what its tests share is made once; chapters share nothing."
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return nodeid if file.endswith("test_chapters.py") else file

    config.option.loadscopereorder = False
    return Files(config, log)


@pytest.fixture(autouse=True, scope="module")
def trained_on_few_cases(request):
    "A training proves its features on 60 generated cases, not on 1,000: test_parity.py has those, and `make long` has 5,000."
    with pytest.MonkeyPatch.context() as m:
        if not FULL and request.path.name != "test_chapters.py":  # lessons show what a certificate says
            from mlsys_nb.loop.training_serving_skew import certificate

            m.setattr(certificate, "__defaults__", (60, *certificate.__defaults__[1:]))
        yield


def until(question, seconds=180):
    "The first answer that is true."
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)
    return answer


def wait_for(ready, process, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return ready()
        except Exception:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


def own_folder(user):
    "Where a server's user may work: pytest closes its own folders to others whenever a session begins."
    folder = Path(tempfile.mkdtemp(prefix=f"mlsys-{user}-"))
    if os.getuid() == 0:
        shutil.chown(folder, user)
    return folder


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def picture(page, name):
    "Kept where a variable names a place for pictures; drawing whole pages is half of what looking at them costs."
    if place := os.environ.get("TEST_MLSYS_SCREENSHOTS"):
        page.screenshot(path=Path(place) / f"{name}.png", full_page=True)


# Each width and each scheme once; what hangs on both together, `make long` looks for.
SCREENS = [(1280, "dark"), (390, "light"), *([(1280, "light"), (390, "dark")] if FULL else [])]


@pytest.fixture(scope="module")
def browser():
    "A real one; no longer than a file, since its loop would be in the way of others."
    playwright = pytest.importorskip("playwright.sync_api")
    found = chromium()
    if found is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as play:
        window = play.chromium.launch(executable_path=found, args=FLAGS)
        yield window
        window.close()


@pytest.fixture(scope="session")
def postgres_url():
    psycopg = pytest.importorskip("psycopg")
    found = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    real = shutil.which("postgres")
    found += [str(Path(os.path.realpath(real)).parent)] if real else []
    homes = [f for f in found if Path(f, "initdb").exists()]
    if not homes:
        pytest.skip("no postgres here")
    port, folder = free_port(), own_folder("postgres")
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # the server refuses to run as root
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    initdb = [f"{homes[0]}/initdb", "-D", f"{folder}/db", "-A", "trust", "-U", "mlsys"]
    made = subprocess.run(initdb, capture_output=True, text=True, env=env, cwd="/", **user)
    assert made.returncode == 0, made.stderr
    command = [
        f"{homes[0]}/postgres",
        "-D",
        f"{folder}/db",
        "-p",
        str(port),
        "-k",
        str(folder),
        "-h",
        "127.0.0.1",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env, cwd="/", **user
    )
    url = f"postgresql://mlsys@127.0.0.1:{port}/postgres"
    wait_for(lambda: psycopg.connect(url).close(), process)
    yield url
    process.send_signal(signal.SIGINT)  # a fast shutdown: it does not wait for open connections
    process.wait()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def mariadb_url():
    pymysql = pytest.importorskip("pymysql")
    server = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if server is None:
        pytest.skip("no mariadbd here")
    port, folder = free_port(), own_folder("mysql")
    user = {"user": "mysql"} if os.getuid() == 0 else {}
    common = ["--no-defaults", f"--datadir={folder}/db", f"--tmpdir={folder}"]
    made = subprocess.run(
        ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
        capture_output=True, text=True, cwd="/", **user,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    command = [
        server, *common, f"--socket={folder}/socket", f"--port={port}", "--bind-address=127.0.0.1",
        f"--pid-file={folder}/pid", "--default-time-zone=+09:00", "--innodb-buffer-pool-size=16M",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **user)
    wait_for(lambda: pymysql.connect(unix_socket=f"{folder}/socket", user="root").close(), process)
    with pymysql.connect(unix_socket=f"{folder}/socket", user="root") as connection:
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE shop CHARACTER SET utf8mb4")
            cursor.execute("CREATE USER 'mlsys'@'127.0.0.1'")
            cursor.execute("GRANT ALL ON shop.* TO 'mlsys'@'127.0.0.1' WITH GRANT OPTION")
            cursor.execute("GRANT CREATE USER, RELOAD ON *.* TO 'mlsys'@'127.0.0.1'")
    yield f"mysql://mlsys@127.0.0.1:{port}/shop"
    process.terminate()
    process.wait()
    shutil.rmtree(folder)
