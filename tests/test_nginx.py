"The how-to of nginx, as printed, before a real nginx: TLS, the host, who is let in, what is too large; only names, ports and files are other ones."

import re
import shutil
import ssl
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from caller import head
from ports import free_port
from serving_world import make

from mlsys_nb.serving.service import running

PAGE = Path(__file__).resolve().parents[1] / "nbs/guide/howto/21_nginx.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def test_the_how_to_holds_before_a_real_nginx(tmp_path):
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=api.example.org",
            "-addext", "subjectAltName=DNS:api.example.org", "-keyout", "api.key", "-out", "api.pem"]  # fmt: skip
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    port, here = free_port(), make(tmp_path, families=("linear",))
    with running(replace(here, hosts="api.example.org", open="loopback"), "churn") as url:
        conf = re.search(r"^```nginx mlsys.conf\n(.*?)^```$", PAGE.read_text(), re.M | re.S)[1]
        for old, new in (
            ("127.0.0.1:8100", url[7:]),
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("/etc/ssl/", f"{tmp_path}/"),
        ):
            assert old in conf
            conf = conf.replace(old, new)
        temporary = "".join(
            f"{n}_temp_path {tmp_path}/t;" for n in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        whole = f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {temporary} {conf} }}"
        (tmp_path / "nginx.conf").write_text(whole)
        process = subprocess.Popen(
            [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], stderr=subprocess.PIPE
        )
        try:
            trusted = ssl.create_default_context(cafile=str(tmp_path / "api.pem"))
            place = f"https://127.0.0.1:{port}"
            named = {"extensions": {"sni_hostname": "api.example.org"}}
            asked = {"headers": {**head(tmp_path), "host": "api.example.org"}, **named}
            with httpx.Client(verify=trusted, base_url=place, timeout=60) as client:
                for _ in range(900):
                    assert process.poll() is None, process.stderr.read().decode()
                    try:
                        client.get("/readyz", **asked)
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                assert client.get("/readyz", **asked).json()["ready"] is True
                body, path = {"customer_id": 13080}, "/v1/churn/predictions"
                assert client.post(path, json=body, **asked).status_code == 200
                bare = {"host": "api.example.org"}
                assert client.post(path, json=body, headers=bare, **named).status_code == 401, (
                    "passed on is not loopback"
                )
                foreign = {**head(tmp_path), "host": "evil.example.net"}
                assert client.post(path, json=body, headers=foreign, **named).status_code == 421
                assert client.post(path, content=b"x" * 70_000, **asked).status_code == 413
                metrics = client.get("/metrics", **asked)
                assert metrics.status_code in (403, 404) and "mlsys_" not in metrics.text, (
                    "not passed on at all"
                )
            with pytest.raises(httpx.TransportError):
                httpx.get(f"https://127.0.0.1:{port}/readyz", timeout=5)  # whoever does not trust it
        finally:
            process.terminate()
            process.wait(60)
