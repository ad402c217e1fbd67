"""HTTPS of the whole, as users run it: one command, its certificate, and a service of several processes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.certificates import Certificates, replace_pair
from tests.cluster.harness import clean_environment
from tests.cluster.test_up import StartUp, curl
from tests.contract.litter import eventually


def written(folder: Path, text: str) -> None:
    (folder / "config.yml").write_text(text)


def test_everything_on_one_machine_speaks_https(up: StartUp, tmp_path: Path, data: Path) -> None:
    certificates = Certificates(tmp_path / "ca")
    pair, next_one = certificates.service("service"), certificates.service("next")
    written(tmp_path, f"tls:\n  mode: on\n  certificates: [{{cert: {pair.cert}, key: {pair.key}}}]\n")
    (tmp_path / "x").write_bytes(bytes(3_000_000))
    running = up().wait_ready()
    assert running.url.startswith("https://127.0.0.1:")
    believe = ("--cacert", certificates.ca)
    uuid = curl(*believe, "-F", f"file=@{tmp_path}/x", f"{running.url}/upload").decode().strip()
    assert curl(*believe, f"{running.url}/download/{uuid}") == bytes(3_000_000)

    def serial() -> str:
        said = subprocess.run(
            ["openssl", "s_client", "-connect", running.url.removeprefix("https://")],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        shown = subprocess.run(
            ["openssl", "x509", "-noout", "-serial"], input=said.stdout, capture_output=True, text=True
        )
        return shown.stdout

    before = serial()
    replace_pair(pair, next_one)
    running.signal(signal.SIGHUP)
    eventually(lambda: serial() not in ("", before), "the new certificate is shown")
    assert running.stop() == 0


def test_several_processes_share_a_port_of_https_and_status_asks_there(
    up: StartUp, tmp_path: Path, data: Path
) -> None:
    certificates = Certificates(tmp_path / "ca")
    pair = certificates.service("service")
    written(
        tmp_path,
        f"tls:\n  mode: on\n  certificates: [{{cert: {pair.cert}, key: {pair.key}}}]\nhttp: {{processes: 2}}\n",
    )
    running = up().wait_ready()
    environ = clean_environment(SSL_CERT_FILE=certificates.ca)
    argv = [sys.executable, "-m", "distfs", "status", "--service", running.url]
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert re.search(rf"service {running.url}: .*2 processes", done.stdout), done
    assert running.stop() == 0


def test_a_process_that_is_killed_under_tls_takes_no_upload_that_was_acknowledged(
    up: StartUp, tmp_path: Path, data: Path
) -> None:
    certificates = Certificates(tmp_path / "ca")
    pair = certificates.service("service")
    certificate = f"{{cert: {pair.cert}, key: {pair.key}}}"
    written(tmp_path, f"tls:\n  mode: on\n  certificates: [{certificate}]\nhttp: {{processes: 2}}\n")
    (tmp_path / "x").write_bytes(content := random.Random(7).randbytes(2_000_000))
    running = up().wait_ready()
    curl_there = ["curl", "-sf", "--cacert", certificates.ca]
    kept: list[str] = []
    broken: list[str] = []
    stop = threading.Event()

    def put() -> None:
        while not stop.is_set():
            argv = [*curl_there, "-T", str(tmp_path / "x"), f"{running.url}/upload/x"]
            done = subprocess.run(argv, capture_output=True, text=True)
            (broken if done.returncode else kept).append(done.stdout.strip())

    def pids() -> list[int]:
        told = subprocess.run([*curl_there, f"{running.url}/status"], capture_output=True)
        return list(json.loads(told.stdout)["processes"]["pids"]) if told.returncode == 0 else []

    with ThreadPoolExecutor(3) as threads:
        putting = [threads.submit(put) for _ in range(3)]
        try:
            eventually(lambda: len(kept) > 3 and len(pids()) == 2, "uploads run")
            before = pids()
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: broken, "one was cut")
            after = len(kept)
            eventually(lambda: len(kept) > after + 3 and not set(pids()) & set(before), "others serve")
        finally:
            stop.set()
        for each in putting:
            each.result(60)
    for uuid in kept:
        assert curl("--cacert", certificates.ca, f"{running.url}/download/{uuid}") == content
    assert running.stop() == 0


def test_a_certificate_that_cannot_be_used_is_one_line_at_the_start(up: StartUp, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "ca")
    pair, other = certificates.service("service"), certificates.service("other")
    written(tmp_path, f"tls:\n  mode: on\n  certificates: [{{cert: {pair.cert}, key: {other.key}}}]\n")
    running = up()
    assert running.wait() == 2
    assert f"{other.key} is not the key of {pair.cert}" in running.log


def test_nodes_of_distfs_up_have_no_certificates_of_their_own(up: StartUp, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "ca")
    pair = certificates.service("service")
    written(tmp_path, f"tls: {{ca: {certificates.ca}, cert: {pair.cert}, key: {pair.key}}}\n")
    running = up()
    assert running.wait() == 2
    assert "the nodes of `distfs up` have no certificates of their own" in running.log
