"A service asked over HTTP as a client asks it; who must show a key for that shows the one of these heads."

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import httpx

from mlsys_nb.serving.api_keys import first_key, local_key
from mlsys_nb.system.settings import load_settings


def head(root: Path | str) -> dict[str, str]:
    "What whoever runs a system sends with every request; its first key is made where there is none."
    here = load_settings(root=root)
    first_key(here, "test")
    return {"authorization": f"Bearer {local_key(here)}", "content-type": "application/json"}


def client_of(root: Path | str, url: str, **more: Any) -> httpx.Client:
    "A client that carries the key."
    return httpx.Client(base_url=url, headers=head(root), **{"timeout": 20, **more})


def post(address: str, path: str, body: object) -> tuple[int, dict]:
    "Status and body of one answer of a service that asks for no key."
    asked = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def undescribed(described: dict, problem: str, answered: dict, kept: dict) -> set[str]:
    "What an answer, and the decision as it is kept, say of which the interface's description knows nothing."
    left = set()
    for path, told in (("predictions", answered), ("decisions/{decision_id}", kept)):
        (operation,) = described["paths"][f"/v1/{problem}/{path}"].values()
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        left |= set(told) - set(schema.get("anyOf", [schema])[0]["properties"])
    return left
