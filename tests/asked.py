"A running service, asked over HTTP as a client asks it."

import json
import urllib.error
import urllib.request


def post(address: str, path: str, body: object) -> tuple[int, dict]:
    asked = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)
