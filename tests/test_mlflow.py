"MLflow as people use it: what a team looks for is there, in a file or a server, and nothing stops when it is away."

import json
import os
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import serving_world as world
from conftest import wait_for
from ports import free_port

from mlsys_nb.cases.churn import problem
from mlsys_nb.doors.cli import main
from mlsys_nb.release.fallback import last_sound
from mlsys_nb.release.mlflow_sync import catch_up, waiting
from mlsys_nb.release.package import PackageError
from mlsys_nb.system.control_tables import open_control
from mlsys_nb.system.tracking import open_tracking

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
pytest.importorskip("mlflow")


def answer(url):
    with urllib.request.urlopen(url, timeout=60) as said:
        return json.load(said)


def alias_at(url, alias="champion"):
    return answer(f"{url}/api/2.0/mlflow/registered-models/alias?name=churn&alias={alias}")["model_version"]


def stop(process):
    "By its pid; it takes everything that it started with it."
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) is not None


def tags_of(version):
    return {tag["key"]: tag["value"] for tag in version["tags"]}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.delenv("MLSYS_TRACKING_URI")
    return world.make(tmp_path, ("linear", "boosting", "rule"))


def aliases(settings):
    client = open_tracking(settings)
    found = client.get_registered_model("churn").aliases
    numbers = {str(v.version): v.tags["version"] for v in client.search_model_versions("name = 'churn'")}
    return {name: int(numbers[str(n)]) for name, n in found.items()}


def test_promotion_and_rollback_are_seen_in_mlflow(settings, capsys):
    root = str(settings.root)
    for words in (["promote", "churn", "2"], ["promote", "churn", "3"], ["rollback", "churn"]):
        assert main([*words, "--reason", "a test", "--root", root]) == 0, capsys.readouterr()
    assert aliases(settings) == {"champion": 2, "previous": 1}
    client = open_tracking(settings)
    left = next(v for v in client.search_model_versions("name = 'churn'") if v.tags["version"] == "2")
    assert "rollback from 3: a test" in left.tags["promoted"] and left.tags["status"] == "registered"
    assert main(["mlflow", "--sync", "--root", root]) == 0
    assert "0 runs and 0 versions written" in capsys.readouterr().out
    assert main(["retire", "churn", "3", "--reason", "a test", "--root", root]) == 0
    tags = {v.tags["version"]: v.tags["status"] for v in client.search_model_versions("name = 'churn'")}
    assert tags["3"] == "retired"


def test_a_model_from_mlflow_gives_the_same_bits(settings):
    import mlflow

    assert catch_up(settings).versions == 3
    mlflow.set_tracking_uri(settings.tracking_url)
    model = mlflow.pyfunc.load_model("models:/churn@champion")
    rows = world.dataset().frame.select(problem.features.names)
    served = last_sound(open_control(settings), settings, problem).model
    assert np.array_equal(model.predict(rows.to_pandas()), [served.predict_one(r) for r in rows.to_dicts()])
    client = open_tracking(settings)
    number = client.get_model_version_by_alias("churn", "champion")
    files = {f.path for f in client.list_artifacts(number.run_id, "version_1")}
    assert files >= {f"version_1/{n}" for n in ("MLmodel", "card.md", "package", "verdict.json")}
    data = {i.dataset.name for i in client.get_run(number.run_id).inputs.dataset_inputs}
    assert "training set" in data


def test_a_changed_copy_in_mlflow_is_refused(settings):
    import mlflow

    catch_up(settings)
    mlflow.set_tracking_uri(settings.tracking_url)
    place = next((settings.data / "mlartifacts").glob("*/artifacts/version_1/package/model.json"))
    place.write_bytes(place.read_bytes().replace(b"linear", b"Linear", 1))
    with pytest.raises(PackageError, match="model package"):
        mlflow.pyfunc.load_model("models:/churn@champion")


def test_a_killed_mirror_goes_on_where_it_was(settings, monkeypatch):
    "Killed at any write to MLflow: the next one finishes, and nothing is there twice."
    from mlflow.tracking import MlflowClient

    deeds = (
        "create_run",
        "log_batch",
        "set_terminated",
        "log_inputs",
        "log_artifacts",
        "create_model_version",
    )
    left = 0
    while True:
        left += 1
        with monkeypatch.context() as killed:
            countdown = [left]

            def guard(real, countdown=countdown):
                def done(*given, **named):
                    countdown[0] -= 1
                    if not countdown[0]:
                        raise KeyboardInterrupt
                    return real(*given, **named)

                return done

            for deed in deeds:
                killed.setattr(MlflowClient, deed, guard(getattr(MlflowClient, deed)))
            try:
                catch_up(settings)
                break
            except KeyboardInterrupt:
                assert waiting(open_control(settings), settings, "churn").many
    client = open_tracking(settings)
    assert sorted(v.tags["version"] for v in client.search_model_versions("name = 'churn'")) == [
        "1",
        "2",
        "3",
    ]
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    ours = [r.data.tags["mlsys_run_id"] for r in runs]
    assert left > 5 and len(ours) == len(set(ours)) == 3 and all(r.info.status == "FINISHED" for r in runs)


def test_a_damaged_version_holds_up_only_itself(settings):
    place = next(settings.models.glob("churn/*/manifest.json"))
    place.write_bytes(b"{}")
    done = catch_up(settings)
    assert (done.versions, done.waiting) == (2, 1) and "version" in done.trouble
    assert waiting(open_control(settings), settings, "churn").many == 1


def test_the_window_opens_and_ends_with_the_command(settings):
    port = free_port()
    command = ["mlsys", "mlflow", "--port", str(port), "--root", str(settings.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        version = wait_for(lambda: alias_at(url), process, 120)
        assert tags_of(version)["digest"] == world.package("linear").digest
        with urllib.request.urlopen(url, timeout=60) as page:
            assert b"<title>MLflow</title>" in page.read()
        assert main(["mlflow", "--port", str(port), "--root", str(settings.root)]) == 2  # the port is taken
    finally:
        stop(process)
    with pytest.raises(OSError):
        answer(url)


def test_a_server_that_was_away_gets_everything(settings, tmp_path_factory):
    import mlflow

    port, place = free_port(), tmp_path_factory.mktemp("server")
    url = f"http://127.0.0.1:{port}"
    there = replace(settings, tracking_uri=url)
    away = catch_up(there)
    assert (away.versions, away.waiting) == (0, 4) and "mlsys mlflow --sync" in away.trouble
    store = [
        "--backend-store-uri",
        f"sqlite:///{place}/m.db",
        "--artifacts-destination",
        str(place / "files"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, env=quiet, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(lambda: urllib.request.urlopen(f"{url}/health", timeout=5), process, 120)
        done = catch_up(there)
        assert (done.versions, done.waiting, done.trouble) == (3, 0, "")
        assert tags_of(alias_at(url))["version"] == "1"
        mlflow.set_tracking_uri(url)
        rows = world.dataset().frame.select(problem.features.names).head(20)
        said = mlflow.pyfunc.load_model("models:/churn@champion").predict(rows.to_pandas())
        assert np.array_equal(said, last_sound(open_control(settings), settings, problem).model.predict(rows))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(90)
