"""The nginx of docs/machines.md, run by the real one: bytes pass, callers are told apart; restarts are unseen."""

from __future__ import annotations

import http.client
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster import Cluster, MakeCluster
from tests.cluster.harness import ROOT, Process
from tests.cluster.streaming import upload_as_it_comes
from tests.contract.litter import eventually
from tests.ports import free_port
from tests.privileges import need_commands

MIB = 1 << 20
TRUSTING = {
    "callers": {
        "trusted_proxies": ["127.0.0.1"],
        "rules": [{"match": "198.51.100.7", "max_file_size": "1MB"}],
    }
}


class Nginx:
    """The page's server before one or two services, as an ordinary process in a folder of its own."""

    def __init__(self, folder: Path, services: list[int]) -> None:
        [shown] = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/machines.md").read_text(), re.DOTALL)
        self.port = free_port()
        for example, port in zip((8080, 8081), services, strict=True):
            assert f"127.0.0.1:{example} " in shown
            shown = shown.replace(f"127.0.0.1:{example} ", f"127.0.0.1:{port} ")
        assert "listen 80;" in shown
        shown = shown.replace("listen 80;", f"listen 127.0.0.1:{self.port};")
        temps = "".join(
            f"{kind}_temp_path {folder}/{kind}; "
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; {temps}\n{shown}\n}}\n"
        )
        flags = ["-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        self.process = subprocess.Popen([_nginx(), *flags, "-g", "daemon off; master_process off;"])
        eventually(self._listens, "nginx listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None
        with closing(self.connect()) as connection:
            try:
                connection.connect()
            except OSError:
                return False
        return True

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def _nginx() -> str:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or "nginx"


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    need_commands("nginx", what="the proxy of docs/machines.md")
    return make_cluster(config=TRUSTING)


class Second:
    """Another service of the cluster; it stays where it listens."""

    def __init__(self, cluster: Cluster) -> None:
        argv = [sys.executable, "-m", "distfs", "serve", "--port", "0"]
        self.process = Process("second", argv, cluster.folder, cluster.folder / "second.log")
        self.start()

    def start(self) -> None:
        self.process.start()
        url = self.process.stdout.readline().strip()
        self.port = urlsplit(url).port or 0
        assert self.port, self.process.log.read_text()
        self.process.argv[-1] = str(self.port)


@pytest.fixture
def second(cluster: Cluster) -> Iterator[Second]:
    running = Second(cluster)
    yield running
    running.process.kill()


@pytest.fixture
def nginx(cluster: Cluster, second: Second, tmp_path: Path) -> Iterator[Nginx]:
    folder = tmp_path / "nginx"
    folder.mkdir()
    running = Nginx(folder, [urlsplit(cluster.url).port or 0, second.port])
    yield running
    running.close()


def test_files_of_any_size_pass_as_they_come(nginx: Nginx, cluster: Cluster) -> None:
    data = random.Random(1).randbytes(24 * MIB)
    with closing(nginx.connect()) as connection:
        uuid = upload_as_it_comes(connection, cluster, data)
    assert nginx.ask("GET", f"/download/{uuid}") == (200, data)


def test_urls_are_nginx_s_and_callers_those_before_it(nginx: Nginx, cluster: Cluster, second: Second) -> None:
    """nginx is 127.0.0.1 here, and so is its client: what that says of itself is believed, as of a proxy's."""
    assert f"http://127.0.0.1:{nginx.port}/upload".encode() in nginx.ask("GET", "/")[1]
    assert nginx.ask("PUT", "/upload/x", bytes(1_000_001), X_Forwarded_For="198.51.100.7")[0] == 413
    assert nginx.ask("PUT", "/upload/x", bytes(1_000_001), X_Forwarded_For="198.51.100.8")[0] == 201

    def logs() -> str:
        return cluster.service.log.read_text() + second.process.log.read_text()

    for number in (7, 8):
        line = f"client=198.51.100.{number} via=127.0.0.1"
        eventually(lambda line=line: line in logs(), "it is logged")  # type: ignore[misc]


def test_two_services_restarted_one_after_the_other_are_not_noticed(
    nginx: Nginx, cluster: Cluster, second: Second
) -> None:
    uuid = cluster.upload(b"there all the time")
    answers: Counter[object] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            status, body = nginx.ask("GET", f"/download/{uuid}")
            answers[status, body] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for stop, start in (
            (cluster.stop_service, cluster.start_service),
            (second.process.stop, second.start),
        ):
            assert stop() == 0
            asked_on(answers)
            start()
        asked_on(answers)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {(200, b"there all the time")}


def asked_on(answers: Counter[object]) -> None:
    """Wait for more of them."""
    before = answers.total()
    eventually(lambda: answers.total() > before + 50, "clients go on")
