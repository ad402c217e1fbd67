"""The examples of docs/https-by-a-proxy.md, by the real Caddy and nginx: HTTPS before a service on loopback."""

from __future__ import annotations

import http.client
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.certificates import Certificates
from tests.cluster import Cluster, MakeCluster
from tests.cluster.harness import ROOT
from tests.cluster.streaming import upload_as_it_comes
from tests.contract.litter import eventually
from tests.ports import free_port
from tests.privileges import do_without

MIB = 1 << 20
CONFIG = {"http": {"allowed_hosts": ["localhost"]}, "callers": {"trusted_proxies": ["127.0.0.1"]}}


def shown(language: str) -> str:
    text = (ROOT / "docs" / "https-by-a-proxy.md").read_text()
    [block] = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(block)


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        do_without(f"the example wants {name}")
    return found


class Front:
    """A proxy with HTTPS before a service."""

    def __init__(self, argv: list[str], folder: Path, port: int, certificates: Certificates) -> None:
        self.port, self._certificates = port, certificates
        environ = os.environ | {
            "HOME": str(folder),
            "XDG_DATA_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
        }
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(argv, stdout=self._log, stderr=self._log, env=environ)
        try:
            eventually(self._listens, lambda: f"it listens; {(folder / 'log').read_text()[-2000:]}")
        except BaseException:
            self.close()
            raise

    def connect(self) -> http.client.HTTPSConnection:
        context = self._certificates.client()
        return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=context)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _listens(self) -> bool:
        assert self._process.poll() is None
        try:
            return self.ask("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._log.close()


def caddy(folder: Path, service: int, certificates: Certificates) -> Front:
    pair, port, name = certificates.service("caddy"), free_port(), program("caddy")
    text = shown("caddy")
    assert "127.0.0.1:8080" in text
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{service}")
    text = text.replace(
        "files.example.org {", f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {pair.cert} {pair.key}"
    )
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{text}")
    argv = [name, "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    return Front(argv, folder, port, certificates)


def nginx(folder: Path, service: int, certificates: Certificates) -> Front:
    pair, port, plain, name = certificates.service("nginx"), free_port(), free_port(), program("nginx")
    text = shown("nginx")
    for old, new in (
        ("127.0.0.1:8080", f"127.0.0.1:{service}"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/letsencrypt/live/files.example.org/fullchain.pem", pair.cert),
        ("/etc/letsencrypt/live/files.example.org/privkey.pem", pair.key),
        ("server_name files.example.org;", "server_name localhost;"),
    ):
        assert old in text
        text = text.replace(old, new)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temps = "".join(f"{kind}_temp_path {folder}/{kind}; " for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"pid {folder}/pid; error_log {folder}/error.log; events {{}}\nhttp {{ access_log off; {temps}\n{text}\n}}\n"
    )
    flags = ["-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    return Front([name, *flags, "-g", "daemon off; master_process off;"], folder, port, certificates)


@pytest.fixture(scope="module")
def cluster(share_cluster: MakeCluster) -> Cluster:
    return share_cluster(config=CONFIG)


@pytest.fixture(params=[caddy, nginx], ids=["caddy", "nginx"])
def front(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Front]:
    folder = tmp_path / "front"
    folder.mkdir()
    port = urlsplit(cluster.url).port or 0
    running: Front = request.param(folder, port, Certificates(tmp_path / "ca"))
    yield running
    running.close()


def test_files_pass_as_they_come_and_urls_are_of_https(front: Front, cluster: Cluster) -> None:
    data = random.Random(1).randbytes(24 * MIB)
    with closing(front.connect()) as connection:
        uuid = upload_as_it_comes(connection, cluster, data)
    assert front.ask("GET", f"/download/{uuid}") == (200, data)
    assert f"https://localhost:{front.port}/upload".encode() in front.ask("GET", "/")[1]
