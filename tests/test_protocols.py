"Clients of other protocols get the bits, the log and the refusals of the own one; explanations add up, and nothing of them is logged."

import json
import math
from dataclasses import replace

import httpx
import numpy as np
import pandas as pd
import pytest
import serving_world as world
from caller import client_of, head

from mlsys_nb.decisions.log import find_decision, read_decisions
from mlsys_nb.serving.api_keys import KeyWanted, add_key
from mlsys_nb.serving.service import running

FEW = [int(c) for c in world.lines()["customer_id"].unique().sort().head(30)]
TWO = FEW[:2]


@pytest.fixture(scope="module", params=["linear", "boosting"])
def served(request, tmp_path_factory):
    here = world.make(tmp_path_factory.mktemp(request.param), (request.param,))
    with running(here, "churn") as url, client_of(here.root, url) as client:
        yield here, url, client


def own(client: httpx.Client, customers: list[int]) -> list[dict]:
    "What the own protocol says, one by one."
    return [
        client.post("/v1/churn/predictions", json={"customer_id": c}).raise_for_status().json()
        for c in customers
    ]


def tensor(customers: list, **more) -> dict:
    return {"name": "customer_id", "shape": [len(customers)], "datatype": "INT64", "data": customers, **more}


def outputs(answer: dict) -> dict[str, list]:
    return {one["name"]: one["data"] for one in answer["outputs"]}


# Open Inference Protocol --------------------------------------------------------------------------------------------


def test_a_server_and_a_model_say_what_they_are(served):
    _, _, client = served
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert set(client.get("/v2").json()) == {"name", "version", "extensions"}
    told = client.get("/v2/models/churn").raise_for_status().json()
    assert told["versions"] == ["1"] and told["inputs"] == [
        {"name": "customer_id", "datatype": "INT64", "shape": [-1]}
    ]
    assert client.get("/v2/models/churn/versions/1").json() == told
    assert client.get("/v2/models/churn/ready").json()["ready"] is True
    for path in ("/v2/models/other", "/v2/models/churn/versions/2", "/v2/models/other/ready"):
        answer = client.get(path)
        assert answer.status_code == 404 and isinstance(answer.json()["error"], str), path


def test_an_inference_is_a_decision_of_the_log_with_the_bits_of_the_own_protocol(served):
    here, _, client = served
    single = own(client, FEW)
    body = {"id": "seven", "inputs": [tensor([[c] for c in FEW], shape=[len(FEW), 1])]}
    told = client.post("/v2/models/churn/infer", json=body).raise_for_status().json()
    assert (told["model_name"], told["model_version"], told["id"]) == ("churn", "1", "seven")
    found = outputs(told)
    assert found["prediction"] == [one["prediction"] for one in single]
    assert found["action"] == [one["action"] for one in single] and set(found["error"]) == {""}
    made = find_decision(here, "churn", found["decision_id"][3])
    assert (made.entity["customer_id"], made.score) == (FEW[3], found["prediction"][3])
    some = client.post(
        "/v2/models/churn/versions/1/infer", json={**body, "outputs": [{"name": "action"}]}
    ).json()
    assert list(outputs(some)) == ["action"]


def test_a_row_that_is_refused_says_so_and_the_others_are_answered(served):
    _, _, client = served
    found = outputs(client.post("/v2/models/churn/infer", json={"inputs": [tensor([FEW[0], -7])]}).json())
    assert (
        found["prediction"][1] is None
        and "has been seen before" in found["error"][1]
        and found["decision_id"][1] == ""
    )
    assert found["prediction"][0] is not None and found["error"][0] == ""


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "a list of inputs"),
        ([7], "name, shape, datatype and data"),
        ([tensor(TWO, name="other")], "inputs are named"),
        ([tensor(TWO, datatype="FP64")], "is one of"),
        ([tensor(TWO, datatype=["INT64"])], "is one of"),
        ([tensor(TWO, shape=[3])], "has the shape"),
        ([tensor(TWO, shape=[1, 2])], "has the shape"),
        ([tensor(TWO, shape="2")], "has the shape"),
        ([{**tensor(TWO), "data": None}], "has the shape"),
        ([tensor(["a", "b"])], "customer_id is of type int"),
        ([tensor(TWO), tensor(TWO)], "each once"),
        ([tensor(FEW * 20)], "1 to 500 rows"),
    ],
)
def test_a_wrong_tensor_is_refused_in_one_sentence(served, inputs, said):
    _, _, client = served
    answer = client.post("/v2/models/churn/infer", json={"inputs": inputs})
    assert answer.status_code == 422 and said in answer.json()["error"], answer.text


def test_outputs_that_nobody_has_are_refused(served):
    _, _, client = served
    for wrong in ([{"name": "logits"}], [{"name": ["x"]}], {"name": "action"}, "action", [7]):
        answer = client.post("/v2/models/churn/infer", json={"inputs": [tensor(TWO)], "outputs": wrong})
        assert answer.status_code == 422 and "outputs are named" in answer.json()["error"], wrong


def test_tritons_client_gets_the_same_bits(served):
    triton = pytest.importorskip(
        "tritonclient.http", reason="tritonclient[http] is not installed (extra dev)"
    )
    here, url, client = served
    sent = {"Authorization": head(here.root)["authorization"], "Content-Type": "application/json"}
    asker = triton.InferenceServerClient(url.removeprefix("http://"))
    assert asker.is_server_live() and asker.is_server_ready() and asker.is_model_ready("churn", headers=sent)
    assert asker.get_model_metadata("churn", headers=sent)["platform"] == "mlsys_nb"
    asked = triton.InferInput("customer_id", [len(FEW)], "INT64")
    asked.set_data_from_numpy(np.array(FEW, dtype=np.int64), binary_data=False)
    wanted = [
        triton.InferRequestedOutput(n, binary_data=False) for n in ("prediction", "decision_id", "action")
    ]
    found = asker.infer("churn", [asked], outputs=wanted, headers=sent, request_id="r-1")
    single = own(client, FEW)
    assert found.as_numpy("prediction").tolist() == [one["prediction"] for one in single]
    assert [str(a) for a in found.as_numpy("action")] == [one["action"] for one in single]
    ids = {str(name) for name in found.as_numpy("decision_id")}
    assert ids <= {*read_decisions(here, "churn")["decision_id"]}
    asked.set_data_from_numpy(np.array([-7] * len(FEW), dtype=np.int64), binary_data=False)
    assert np.isnan(asker.infer("churn", [asked], headers=sent).as_numpy("prediction").astype(float)).all()
    with pytest.raises(
        triton.InferenceServerException if hasattr(triton, "InferenceServerException") else Exception,
        match="answers for churn",
    ):
        asker.infer("other", [asked], headers=sent)
    asker.close()


# MLflow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["customer_id"], "index": [0, 1], "data": [[c] for c in TWO]}},
        {"dataframe_records": [{"customer_id": c} for c in TWO]},
        {"instances": [{"customer_id": c} for c in TWO]},
        {"inputs": {"customer_id": TWO}},
    ],
    ids=lambda body: next(iter(body)),
)
@pytest.mark.parametrize("path", ["/invocations", "/v1/churn/invocations"])
def test_mlflows_invocations_are_decisions_too(served, body, path):
    here, _, client = served
    assert client.get("/ping").status_code == 200
    found = client.post(path, json=body).raise_for_status().json()["predictions"]
    assert [one["prediction"] for one in found] == [one["prediction"] for one in own(client, TWO)]
    assert find_decision(here, "churn", found[1]["decision_id"]).entity == {"customer_id": TWO[1]}


@pytest.mark.parametrize(
    "body",
    [{}, {"instances": []}, {"instances": [[1]]}, {"inputs": {"customer_id": [1, 2], "x": [1]}}, {"inputs": {"customer_id": 7}},
     {"dataframe_split": {"columns": ["customer_id"], "data": [[1, 2]]}}, {"dataframe_split": [1]}, {"instances": [{"other": 1}]},
     {"dataframe_records": [{"customer_id": 1}], "params": {"k": 2}}],
    ids=str,
)  # fmt: skip
def test_a_wrong_frame_is_refused(served, body):
    _, _, client = served
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["remedy"], answer.text


def test_mlflows_own_client_gets_the_same_bits(tmp_path):
    scoring = pytest.importorskip(
        "mlflow.pyfunc.scoring_server.client", reason="mlflow is not installed (extra tracking)"
    )
    here = replace(world.make(tmp_path, ("linear",)), open="loopback")  # that client sends no key
    with running(here, "churn") as url:
        host, port = url.removeprefix("http://").split(":")
        asker = scoring.ScoringServerClient(host, int(port))
        asker.ping()  # raises where nobody answers
        found = asker.invoke(pd.DataFrame({"customer_id": FEW})).get_predictions()
        with httpx.Client(base_url=url, timeout=60) as client:
            single = own(client, FEW)
    assert found["prediction"].tolist() == [one["prediction"] for one in single]
    assert {*found["decision_id"]} <= {*read_decisions(here, "churn")["decision_id"]}


def test_who_may_not_predict_may_not_by_another_protocol(tmp_path):
    here = replace(world.make(tmp_path, ("linear",)), open="nobody")
    asked = {"/v2/models/churn/infer": {"inputs": [tensor(TWO)]}, "/invocations": {"instances": [{"customer_id": TWO[0]}]},
             "/v1/churn/explanations": {"customer_id": TWO[0]}, "/v1/churn/invocations": {"instances": [{"customer_id": TWO[0]}]}}  # fmt: skip
    keys = {role: f"Bearer {add_key(here, KeyWanted(role, (role,)), 'test')}" for role in ("predict", "view")}
    with running(here, "churn") as url, httpx.Client(base_url=url, timeout=60) as client:
        for path, body in asked.items():
            assert client.post(path, json=body).status_code == 401
            told = {
                role: client.post(path, json=body, headers={"authorization": key}).status_code
                for role, key in keys.items()
            }
            assert told == {"predict": 200, "view": 403}, path
        assert client.get("/v2/models/churn").status_code == client.get("/v2").status_code == 401
        assert client.get("/v2/models/churn", headers={"authorization": keys["predict"]}).status_code == 200
        assert {
            client.get(path).status_code for path in ("/v2/health/live", "/v2/health/ready", "/ping")
        } == {200}
    assert read_decisions(here, "churn").height == 4, (
        "two by tensors, one by each frame, none by an explanation"
    )


# Explanations -------------------------------------------------------------------------------------------------------


def test_an_explanation_adds_up_to_the_bit_and_is_not_logged(served):
    here, _, client = served
    before = read_decisions(here, "churn").height
    for customer in FEW[:10]:
        told = client.post("/v1/churn/explanations", json={"customer_id": customer}).raise_for_status().json()
        why = told["because"]
        assert math.fsum([why["usual"], *why["parts"].values()]) == why["margin"]
        assert "decision_id" not in told and "if" not in told
        assert set(why["parts"]) == set(told["features"]) or len(why["parts"]) <= len(told["features"])
    assert read_decisions(here, "churn").height == before
    (said,) = own(client, [FEW[9]])
    assert (said["prediction"], said["action"]) == (told["prediction"], told["action"])


def test_what_if_some_features_were_others(served):
    _, _, client = served
    asked = {"customer_id": FEW[0], "changed": {"orders_30d": 40, "country": None}}
    names = client.post("/v1/churn/explanations", json={"customer_id": FEW[0]}).json()["features"]
    number = next(n for n, v in names.items() if isinstance(v, int) and not isinstance(v, bool))
    asked["changed"] = {number: 40}
    told = client.post("/v1/churn/explanations", json=asked).raise_for_status().json()
    assert (
        told["features"] == names
        and told["if"]["features"] == {**names, number: 40}
        and told["changed"] == asked["changed"]
    )
    why = told["if"]["because"]
    assert math.fsum([why["usual"], *why["parts"].values()]) == why["margin"]
    same = client.post(
        "/v1/churn/explanations", json={"customer_id": FEW[0], "changed": {number: names[number]}}
    ).json()
    assert same["if"]["prediction"] == same["prediction"]
    assert (
        told["if"]["prediction"] != told["prediction"]
        or names[number] == 40
        or why["parts"].get(number, 0) == told["because"]["parts"].get(number, 0)
    )


@pytest.mark.parametrize("changed", [7, [], {"other": 1}, {"orders_30d": "x"}, {"customer_id": 1}], ids=str)
def test_a_change_of_what_the_model_does_not_read_is_refused(served, changed):
    _, _, client = served
    answer = client.post("/v1/churn/explanations", json={"customer_id": FEW[0], "changed": changed})
    assert answer.status_code == 422, answer.text
    assert client.post("/v1/churn/explanations", json={"customer_id": -7}).status_code == 404
    assert json.loads(answer.content)["error"]["remedy"]
