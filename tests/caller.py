"Somebody who may ask: every test that asks a closed service does so with these heads."

from pathlib import Path
from typing import Any

import httpx

from mlsys_nb.serving.keys import first_key, local_key
from mlsys_nb.system.settings import load_settings


def head(root: Path | str) -> dict[str, str]:
    "What whoever runs a system sends with every request; its first key is made where there is none."
    here = load_settings(root=root)
    first_key(here, "test")
    return {"authorization": f"Bearer {local_key(here)}", "content-type": "application/json"}


def client_of(root: Path | str, url: str, **more: Any) -> httpx.Client:
    "A client that carries the key."
    return httpx.Client(base_url=url, headers=head(root), **{"timeout": 20, **more})
