"""Bodies drawn from the service's own description, and bodies that it forbids: nothing undeclared comes back, whatever is sent.

schemathesis draws them; each answer is held against the description: its status, its content type, its shape. What the description allows
is not refused for its shape, and what it forbids is refused. The draws are the same in each run; `DRAWS=500` draws more.
"""

import json
import os
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
import serving_world as world
from caller import client_of, head

from mlsys_nb.serving.service import running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra dev)")
from schemathesis import checks  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402

DRAWS = int(os.environ.get("DRAWS", "12"))
FEW = [int(c) for c in world.lines()["customer_id"].unique().sort().head(7)]
SHAPES = [
    getattr(checks, name)
    for name in ("not_a_server_error", "status_code_conformance", "content_type_conformance",
                 "response_schema_conformance", "response_headers_conformance")
]  # fmt: skip
EXACT = ("predictions", "outcomes", "explanations")  # Whose bodies the description tells to the bound


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    here = replace(world.make(tmp_path_factory.mktemp("described"), ("linear",)), open="nobody")
    with running(here, "churn") as url, client_of(here.root, url) as client:
        made = client.post("/v1/churn/predictions", json={"customer_id": FEW[0]}).raise_for_status().json()
        described = client.get("/openapi.json").raise_for_status().json()
        yield url, head(here.root), described, made["decision_id"]


def whole(value: Any) -> Any:
    "JSON schema calls 7.0 a whole number; JSON of a whole number has no point."
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [whole(x) for x in value]
    return {k: whole(x) for k, x in value.items()} if isinstance(value, dict) else value


def known(body: Any, number: int) -> Any:
    "Every second body is about somebody whom the service knows."
    if isinstance(body, dict) and number % 2:
        return {
            k: FEW[number % 7] if k == "customer_id" and type(v) is int else known(v, number)
            for k, v in body.items()
        }
    return [known(x, number) for x in body] if isinstance(body, list) else body


def operations(described: dict) -> list[str]:
    return [f"{method.upper()} {path}" for path, methods in described["paths"].items() for method in methods]


def asked(served, label: str, mode: GenerationMode, judged) -> dict[int, int]:
    "Draw cases of an operation; how often each status came."
    url, heads, described, decision_id = served
    schema = schemathesis.openapi.from_dict(described)
    operation = next(op.ok() for op in schema.get_all_operations() if op.ok().label == label)
    counts: dict[int, int] = {}

    @hypothesis.settings(max_examples=DRAWS, deadline=None, database=None, derandomize=True,
                         suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        number = sum(counts.values())
        if mode == GenerationMode.POSITIVE:
            case.body = known(whole(case.body), number) if isinstance(case.body, dict | list) else case.body
        if "name" in case.path_parameters and number % 2:
            case.path_parameters["name"] = "lines"
        if "decision_id" in case.path_parameters and number % 2:
            case.path_parameters["decision_id"] = decision_id
        answer = case.call(base_url=url, headers={**heads, "authorization": heads["authorization"]})
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        judged(case, answer)

    one()
    return counts


def test_every_route_that_takes_a_body_is_described(served):
    _, _, described, _ = served
    posts = {label for label in operations(described) if label.startswith("POST")}
    assert {f"POST /v1/churn/{name}" for name in (*EXACT, "invocations")} | {
        "POST /v2/models/churn/infer"
    } <= posts
    json.dumps(described, allow_nan=False)


LABELS = ["predictions", "outcomes", "explanations", "invocations", "infer", "events/{name}", "decisions/{decision_id}", "model",
          "contradictions", "models/churn", "healthz", "readyz", "metrics"]  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_what_comes_back_is_what_is_described(served, name):
    label = next(label for label in operations(served[2]) if label.endswith(f"/{name}"))

    def judged(case, answer):
        case.validate_response(answer, checks=SHAPES)
        if name in EXACT:
            assert answer.status_code not in (400, 422), (case.body, answer.text)

    counts = asked(served, label, GenerationMode.POSITIVE, judged)
    assert counts and not any(status >= 500 for status in counts)
    if name in ("predictions", "explanations", "metrics", "models/churn"):
        assert counts.get(200), counts


@pytest.mark.parametrize("name", EXACT)
def test_what_the_description_forbids_is_refused(served, name):
    label = next(label for label in operations(served[2]) if label.endswith(f"/{name}"))

    def judged(case, answer):
        case.validate_response(answer, checks=SHAPES)
        assert 400 <= answer.status_code < 500, (case.body, answer.status_code, answer.text)

    asked(served, label, GenerationMode.NEGATIVE, judged)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("predictions", {"customer_id": FEW[0], "request_id": "r" * 201}),
        ("predictions", {"customer_id": FEW[0], "request_id": ""}),
        ("predictions", {"customer_id": 2**63}),
        ("predictions", {"customer_id": -(2**63)}),
        ("predictions", {"entities": [{"customer_id": -(2**63)}]}),
        ("explanations", {"customer_id": -(2**63)}),
        ("predictions", {"customer_id": None}),
        ("predictions", {"entities": [{"customer_id": 1}] * 501}),
        ("predictions", {"entities": [{"customer_id": 1}], "request_id": "r"}),
        ("outcomes", {"decision_id": "x" * 201, "outcome": 1}),
        ("outcomes", {"decision_id": "h1-1-0", "outcome": 2}),
        ("outcomes", {"decision_id": "h1-1-0", "outcome": None}),
        ("explanations", {"customer_id": FEW[0], "changed": {"nothing": 1}}),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:40],
)
def test_bounds_that_the_service_holds_stand_in_the_description(served, name, body):
    "They were held, and the description did not say so: a generated client ran into them."
    import jsonschema

    url, heads, described, _ = served
    schema = described["paths"][f"/v1/churn/{name}"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    import httpx

    answer = httpx.post(f"{url}/v1/churn/{name}", json=body, headers=heads, timeout=60)
    assert answer.status_code == 422, answer.text
    assert not jsonschema.Draft202012Validator(schema).is_valid(body)


def test_true_is_an_outcome_and_the_description_says_so(served):
    import httpx
    import jsonschema

    url, heads, described, decision_id = served
    body = {"decision_id": decision_id, "outcome": True}
    schema = described["paths"]["/v1/churn/outcomes"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert jsonschema.Draft202012Validator(schema).is_valid(body)
    assert httpx.post(f"{url}/v1/churn/outcomes", json=body, headers=heads, timeout=60).status_code in (
        200,
        409,
    )
