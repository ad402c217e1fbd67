"""The app gives the same answers under stock waitress, gunicorn and cheroot as under our own server.

Each host is a process of its own: one more service on the cluster of the shared one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.config.settings import Config
from tests.contract.litter import eventually
from tests.forms import FORM, FORM_TYPE, file_part, form, some_bytes
from tests.service import BLOCK, MAX_FILE, SLICE, Answer, HttpAddress, TestService

ROOT = Path(__file__).resolve().parents[2]

# Each takes the listening socket's descriptor, so that no port has to be guessed.
WAITRESS = """
import socket, sys, waitress
from distfs.http_app import create_app
waitress.serve(create_app(), sockets=[socket.socket(fileno=int(sys.argv[1]))], threads=4)
"""
CHEROOT = """
import os, socket, sys
from cheroot.wsgi import Server
from distfs.http_app import create_app
if sys.argv[1] != "3":
    os.dup2(int(sys.argv[1]), 3)  # where systemd's sockets begin
os.environ["LISTEN_PID"] = str(os.getpid())
Server(("127.0.0.1", 0), create_app(), numthreads=4).start()
"""
GUNICORN = ["-m", "gunicorn", "--worker-class", "gthread", "--threads", "4"]
HOSTS: dict[str, Callable[[int], list[str]]] = {
    "waitress": lambda fd: ["-c", WAITRESS, str(fd)],
    "gunicorn": lambda fd: [*GUNICORN, "--bind", f"fd://{fd}", "distfs.http_app:create_app()"],
    "cheroot": lambda fd: ["-c", CHEROOT, str(fd)],
}


@contextmanager
def hosted(name: str, config: Config, folder: Path) -> Iterator[HttpAddress]:
    """The app under another host, in a process of its own in ``folder``."""
    storage = config.storage
    (folder / "config.yml").write_text(
        json.dumps(
            {
                "metadb": {"url": config.metadb.url},
                "http": {"max_file_size": MAX_FILE},
                "auth": {"mode": config.auth.mode},
                "storage": {
                    key: getattr(storage, key)
                    for key in ("block_size", "slice_size", "window", "memory_budget")
                },
            }
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *HOSTS[name](listener.fileno())],
            cwd=folder,
            # gunicorn puts a socket of its own in one of the other two
            env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)},
            pass_fds=[listener.fileno()],
            stdout=log,
            stderr=log,
        )
        address = HttpAddress(*listener.getsockname()[:2])
    try:
        assert address.ask("GET", "/readyz").status == 200  # waits in the socket's queue until it listens
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module", params=HOSTS)
def host(
    request: pytest.FixtureRequest, service: TestService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HttpAddress]:
    with hosted(request.param, service.config, tmp_path_factory.mktemp(request.param)) as address:
        yield address


def same(one: Answer, other: Answer) -> None:
    """All that an answer says of its request, but not of its moment."""
    assert (one.status, one.body, one.whole) == (other.status, other.body, other.whole)
    hop_by_hop = {"connection", "keep-alive", "transfer-encoding", "server", "date", "via"}
    mine, others = (
        {k.lower(): v for k, v in answer.headers.items() if k.lower() not in hop_by_hop}
        for answer in (one, other)
    )
    assert mine == others


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * SLICE + 1000])
def test_files_go_in_and_come_out_by_every_way(host: HttpAddress, service: TestService, size: int) -> None:
    data = some_bytes(size)
    body = form(('name="note"', b"x"), file_part("a.bin", data))
    for answer in (
        host.ask("POST", "/upload", body, FORM),
        host.ask("POST", "/upload", iter([body[:100], body[100:]]), FORM),
        host.ask("PUT", "/upload/a.bin", data),
        host.ask("PUT", "/upload/a.bin", iter([piece for piece in (data[:10], data[10:]) if piece])),
    ):
        assert answer.status == 201, answer.text
        uuid = answer.text.strip()
        got = host.ask("GET", f"/download/{uuid}")
        assert (got.status, got.body) == (200, data)
        same(
            got,
            service.ask("GET", f"/download/{uuid}", headers={"X-Request-Id": got.headers["X-Request-Id"]}),
        )


def test_downloads_answer_as_under_our_own_server(host: HttpAddress, service: TestService) -> None:
    uuid = service.ask("PUT", "/upload/n%C3%A4me", some_bytes(2 * SLICE + 5)).text.strip()
    tag = service.ask("HEAD", f"/download/{uuid}").headers["ETag"]
    for method, path, headers in (
        ("HEAD", f"/download/{uuid}", {}),
        ("GET", f"/download?uuid={uuid}", {}),
        ("GET", f"/download/{uuid}", {"Range": f"bytes={SLICE - 3}-{SLICE + 3}"}),
        ("GET", f"/download/{uuid}", {"Range": "bytes=-10"}),
        ("GET", f"/download/{uuid}", {"Range": "bytes=99999999-"}),
        ("GET", f"/download/{uuid}", {"If-None-Match": tag}),
        ("GET", f"/files/{uuid}", {}),
        ("GET", f"/download/{uuid4()}", {}),
        ("GET", f"/download/{uuid4()}", {"Accept": "application/problem+json"}),
        ("GET", "/download/x", {}),
        ("GET", "/nothing", {}),
        ("BREW", "/upload", {}),
        ("GET", "/healthz", {}),
        ("GET", "/healthz", {"Host": "evil.example.net"}),
        ("DELETE", f"/files/{uuid}", {"Origin": "https://evil.example.net"}),
        ("DELETE", f"/files/{uuid}", {"Sec-Fetch-Site": "cross-site"}),
        ("GET", f"/download/{uuid}", {"Origin": "null", "Authorization": "Basic OnRva2Vu"}),
    ):
        headers = headers | {"X-Request-Id": "same"}
        same(host.ask(method, path, headers=headers), service.ask(method, path, headers=headers))


def test_bad_uploads_are_refused_as_under_our_own_server(host: HttpAddress, service: TestService) -> None:
    large = some_bytes(MAX_FILE + 1)
    whole = form(file_part("a", some_bytes(SLICE * 2)))
    before = service.fragments()
    for method, path, body, headers in (
        ("POST", "/upload", b"", FORM),
        ("POST", "/upload", form(), FORM),
        ("POST", "/upload", b"bytes", {}),
        ("POST", "/upload", form(('name="a"; filename="a"', b"1")), FORM),
        ("POST", "/upload", whole[:-9], FORM),
        ("PUT", "/upload/" + "n" * 1025, b"x", {}),
        ("PUT", "/upload/x", b"x", {"Content-Range": "bytes 1-1/2"}),
        ("PUT", "/upload/x", large, {}),
        ("POST", "/upload", form(file_part("a", large)), FORM),
    ):
        headers = headers | {"X-Request-Id": "same"}
        expected = service.ask(method, path, body, headers)
        assert expected.status in (400, 413)
        same(host.ask(method, path, body, headers), expected)
    assert host.ask("PUT", "/upload/x", iter([large])).status == 413
    # What an earlier upload left may go meanwhile: some hosts close a connection before the app has cleaned up.
    eventually(lambda: set(service.fragments()) <= set(before), "nothing of them is stored")


def test_a_body_in_another_coding_is_refused(host: HttpAddress) -> None:
    with socket.create_connection((host.host, host.port), timeout=30) as sock:
        head = "PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += "Transfer-Encoding: gzip, chunked\r\n\r\n"
        sock.sendall(head.encode() + b"3\r\nabc\r\n0\r\n\r\n")
        assert sock.makefile("rb").readline().split()[1] in (b"501", b"400"), (
            "by us, or by the host before us"
        )


@pytest.mark.parametrize("size", [10, 3 * SLICE])
@pytest.mark.parametrize("request_line", ["POST /upload", "PUT /upload/x"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_cut_short_stores_nothing(
    host: HttpAddress, service: TestService, request_line: str, size: int, framing: str
) -> None:
    before = service.fragments()
    body = form(file_part("x", some_bytes(size)))
    if framing == "length":
        head = f"Content-Length: {len(body) + 10}"
    else:
        head, body = "Transfer-Encoding: chunked", b"%x\r\n%s\r\n" % (len(body), body)
    with socket.create_connection((host.host, host.port), timeout=30) as sock:
        lines = f"{request_line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM_TYPE}\r\n{head}\r\n\r\n"
        sock.sendall(lines.encode() + body)
        answer = b""
        with suppress(OSError):  # a host may have refused it and gone
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(65536):
                answer += piece
    assert not answer or answer.split()[1] == b"400", answer
    # A host may close the connection before the app has cleaned up behind it.
    # What an earlier upload left may go meanwhile, too.
    eventually(lambda: set(service.fragments()) <= set(before), "nothing of it is stored")


def test_the_connection_is_cut_when_the_rest_of_a_file_cannot_be_trusted(
    host: HttpAddress, service: TestService
) -> None:
    data = some_bytes(2 * SLICE, host.port)
    uuid = host.ask("PUT", "/upload/x", data).text.strip()
    probe = data[SLICE + 10 : SLICE + 60]
    before: dict[Path, bytes] = {}
    for path in service.fragments():
        with suppress(FileNotFoundError):  # of an earlier upload, see above
            if probe in (kept := path.read_bytes()):
                before[path] = kept
    assert len(before) == 2
    for path, kept in before.items():
        path.write_bytes(kept.replace(probe, probe[::-1]))
    answer = host.ask("GET", f"/download/{uuid}")
    for path, kept in before.items():
        path.write_bytes(kept)
    assert (answer.status, answer.whole) == (200, False)
    assert data[:SLICE].startswith(answer.body)
    assert host.ask("GET", f"/download/{uuid}").body == data
