"""tests/integration-test.sh itself, with small files: it passes, it fails when it should, it leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.cluster.harness import ROOT, clean_environment
from tests.contract.litter import eventually
from tests.processes import commands_naming

SCRIPT = ROOT / "tests" / "integration-test.sh"
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def temp(tmp_path: Path) -> Path:
    """Where the script keeps its files; empty when it has ended."""
    folder = tmp_path / "script"
    folder.mkdir()
    return folder


def start(temp: Path, url: str, sizes: str = "1 3") -> subprocess.Popen[str]:
    env = clean_environment(DISTFS_URL=url, SIZES_MB=sizes, TMPDIR=str(temp), PYTHON=sys.executable)
    pipe = subprocess.PIPE
    return subprocess.Popen([SCRIPT], env=env, text=True, stdout=pipe, stderr=pipe, start_new_session=True)


def run(temp: Path, url: str) -> tuple[int, str, str]:
    with start(temp, url) as script:
        out, err = script.communicate(timeout=120)
        return script.returncode, out, err


def test_it_passes_against_a_service_and_removes_what_it_stored(cluster: Cluster, temp: Path) -> None:
    code, out, err = run(temp, cluster.url)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith("PASSED")
    assert out.count("sha256 is right") == 2
    assert list(temp.iterdir()) == []
    assert cluster.request("GET", "/files").text.count('"uuid"') == 0


def test_it_starts_a_distfs_of_its_own_where_nothing_answers(temp: Path) -> None:
    code, out, _ = run(temp, NOBODY)
    assert code == 0
    assert f"nothing answers at {NOBODY}" in out
    assert out.splitlines()[-1].startswith("PASSED")
    assert list(temp.iterdir()) == []


def test_it_cleans_up_when_it_is_ended_in_the_middle(temp: Path) -> None:
    with start(temp, NOBODY, sizes="1 1 1 1 2000") as script:
        assert script.stdout is not None
        assert any(line.startswith("up") for line in script.stdout)
        script.send_signal(signal.SIGTERM)
        assert script.wait(60) == 143
    eventually(lambda: not commands_naming(temp), "its processes are gone")
    assert list(temp.iterdir()) == []


@contextmanager
def service_that_changes_a_byte() -> Iterator[str]:
    """Takes anything, and gives back as many bytes of something else."""
    sizes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = bytes(1_000_000) if "/download/" in self.path else b"ready"
            self.answer(200, body)

        def do_POST(self) -> None:
            sizes.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(201, b"8f0c0c6e-0000-4000-8000-000000000000\n")

        def do_DELETE(self) -> None:
            self.answer(200, b"")

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_it_fails_when_a_file_comes_back_changed(temp: Path) -> None:
    with service_that_changes_a_byte() as url:
        code, _, err = run(temp, url)
    assert code == 1
    assert "came back changed" in err
    assert list(temp.iterdir()) == []


def test_it_fails_with_the_reason_when_an_upload_is_refused(cluster: Cluster, temp: Path) -> None:
    for i in range(3):
        cluster.kill_node(i)
    code, _, err = run(temp, cluster.url)
    assert code == 1
    assert "upload of 1 MB: 503" in err
    assert list(temp.iterdir()) == []
