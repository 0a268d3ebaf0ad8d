"The description of the service is what the service does."

import re
from pathlib import Path

import pytest

from mlsys_nb.cases.churn import problem
from mlsys_nb.serving.openapi import operations

SOURCES = Path(__file__).resolve().parents[1] / "mlsys_nb" / "serving"
TOLD = operations(problem)


def statuses(name):
    return {int(status) for status in TOLD[name]["responses"]}


def test_every_status_that_the_rooms_raise_is_described():
    text = "".join(
        (SOURCES / f"{room}.py").read_text()
        for room in ("tenant_access", "endpoints", "predictor", "request_guard", "service_readiness")
    )
    raised = set(map(int, re.findall(r"Refusal\(\s*(\d{3}),", text))) - {500}
    assert raised >= {400, 404, 408, 409, 410, 413, 422, 503}
    assert raised <= set().union(*map(statuses, TOLD))


def test_what_a_client_can_do_wrong_is_told_of_everything_it_posts():
    for name in ("predictions", "outcomes"):
        assert statuses(name) >= {400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503}, name


@pytest.mark.parametrize("name", sorted(TOLD))
def test_every_answer_has_an_example_of_its_shape(name):
    for status, response in TOLD[name]["responses"].items():
        if name == "metrics" or (name == "answers" and status == 200):
            continue
        kind = "application/json" if int(status) < 400 or name == "readyz" else "application/problem+json"
        content = response["content"][kind]
        if int(status) >= 400 and name != "readyz":
            assert set(content["example"]["error"]) == {"rule", "got", "remedy"}, (name, status)
        schema = content["schema"]
        required = schema.get("anyOf", [schema])[0].get("required", [])
        assert set(required) <= set(content["example"]), (name, status)


def test_what_a_prediction_takes_follows_the_keys_of_the_problem():
    ask = TOLD["predictions"]["openapi_extra"]["requestBody"]["content"]["application/json"]
    one, many = ask["schema"]["oneOf"]
    assert set(one["required"]) == set(problem.keys) and one["additionalProperties"] is False
    assert {"request_id", "features"} < set(one["properties"]) and many["required"] == ["entities"]
    assert set(problem.keys) < set(ask["example"])
