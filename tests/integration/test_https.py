"""HTTPS in the service itself: all that plain HTTP does, by Python's own TLS and by curl; and who comes to none."""

from __future__ import annotations

import http.client
import random
import resource
import select
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from distfs.commands.running_service import ask_service
from distfs.config.settings import HttpConfig, Seconds
from distfs.errors import Busy
from distfs.host.server import Server
from distfs.tls.contexts import https
from tests.certificates import Certificates, replace_pair
from tests.contract.litter import eventually
from tests.recorder import Recorder
from tests.service import TestService, running_service, small_config

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
DATA = random.Random(1).randbytes(2_500_000)


@dataclass
class Secure:
    """One that speaks HTTPS, beside the shared service."""

    port: int
    certificates: Certificates
    service: TestService

    def connect(self, version: ssl.TLSVersion | None = None) -> http.client.HTTPSConnection:
        context = self.certificates.client(version)
        return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=context)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def tls(self, **more: object) -> ssl.SSLSocket:
        sock = socket.create_connection(("127.0.0.1", self.port), 60)
        return self.certificates.client().wrap_socket(sock, server_hostname="localhost")

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "ca")


@contextmanager
def under_tls(
    service: TestService, certificates: Certificates, name: str, **http_keys: object
) -> Iterator[Secure]:
    """The shared service's app, once more, under TLS."""
    made = https(certificates.https(certificates.service(name)))
    config = replace(service.config.http, port=0, **http_keys)  # type: ignore[arg-type]
    server = Server(service.app, config, service.app.services.pool, tls=made)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Secure(server.address[1], certificates, service)
    finally:
        server.close()
        thread.join()


@pytest.fixture(scope="module")
def secure(service: TestService, certificates: Certificates) -> Iterator[Secure]:
    with under_tls(service, certificates, "service") as made:
        yield made


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    found: ssl.TLSVersion = request.param
    return found


def test_files_pass_both_ways_on_one_connection(secure: Secure, version: ssl.TLSVersion) -> None:
    with closing(secure.connect(version)) as connection:
        for data in (DATA, b"small", b"", DATA[:70_000]):
            connection.request("PUT", "/upload/x", data)
            answer = connection.getresponse()
            assert answer.status == 201
            uuid = answer.read().decode().strip()
            connection.request("GET", f"/download/{uuid}")
            assert connection.getresponse().read() == data
            connection.request("GET", f"/download/{uuid}", headers={"Range": "bytes=1-3"})
            assert connection.getresponse().read() == data[1:4] or not data
        assert connection.sock.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


def test_a_chunked_upload_and_a_form_by_curl(secure: Secure, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    curl = ["curl", "-sS", "--cacert", secure.certificates.ca]
    url = f"https://localhost:{secure.port}"
    for flags in (["-F", f"file=@{tmp_path}/x", f"{url}/upload"], ["-T", "-", f"{url}/upload/x"]):
        done = subprocess.run([*curl, *flags], input=DATA, capture_output=True, check=True)
        got = subprocess.run(
            [*curl, f"{url}/download/{done.stdout.decode().strip()}"], capture_output=True, check=True
        )
        assert got.stdout == DATA


def test_urls_are_of_https(secure: Secure) -> None:
    assert f"https://localhost:{secure.port}/upload".encode() in secure.ask("GET", "/")[1]


def test_distfs_status_says_how_a_certificate_comes_to_be_believed(
    secure: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://localhost:{secure.port}"
    assert "set SSL_CERT_FILE" in ask_service(url)["error"]
    monkeypatch.setenv("SSL_CERT_FILE", secure.certificates.ca)
    assert "memory" in ask_service(url)


def test_requests_that_come_in_one_record_and_bytes_that_come_in_many(secure: Secure) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    put = b"PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
    with secure.tls() as sock:
        sock.sendall(get * 50 + put + get * 50)
        assert answers(sock, 101) == [200] * 50 + [201] + [200] * 50
        for byte in get:
            sock.sendall(bytes([byte]))
        assert answers(sock, 1) == [200]


def answers(sock: ssl.SSLSocket, count: int) -> list[int]:
    statuses: list[int] = []
    came = b""
    while len(statuses) < count:
        head, found, rest = came.partition(b"\r\n\r\n")
        if found:
            [length] = [
                int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
            ]
            if len(rest) >= length:
                statuses.append(int(head.split()[1]))
                came = rest[length:]
                continue
        piece = sock.recv(65536)
        assert piece, came
        came += piece
    return statuses


def test_who_reads_slowly_gets_all_of_it(secure: Secure) -> None:
    uuid = secure.ask("PUT", "/upload/x", DATA)[1].decode().strip()
    with closing(secure.raw()) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        with secure.certificates.client().wrap_socket(raw, server_hostname="localhost") as sock:
            sock.sendall(f"GET /download/{uuid} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            time.sleep(1.5)  # so that what does not fit was taken back, and is read again
            response = http.client.HTTPResponse(sock)
            response.begin()
            assert response.read() == DATA


def test_a_client_that_asks_first_is_invited(secure: Secure) -> None:
    with secure.tls() as sock:
        head = f"PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(DATA)}\r\n"
        sock.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(DATA)
        assert answers(sock, 1) == [201]


def test_what_is_agreed_on(secure: Secure) -> None:
    context = secure.certificates.client()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(secure.raw(), server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"
    old = secure.certificates.client()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError), closing(secure.raw()) as raw:
        old.wrap_socket(raw, server_hostname="localhost")


def test_a_session_is_taken_up_again(secure: Secure, version: ssl.TLSVersion) -> None:
    context, session = secure.certificates.client(version), None
    reused = []
    for _ in range(2):
        with context.wrap_socket(secure.raw(), server_hostname="localhost", session=session) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answers(sock, 1) == [200]
            session = sock.session
            reused.append(sock.session_reused)
    assert reused == [False, True]


def test_plain_http_is_told_so_and_other_things_are_cut(secure: Secure) -> None:
    with closing(secure.raw()) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        said = b"".join(iter(lambda: sock.recv(4096), b""))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert b"write https:// into the URL" in said
    for other in (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x16\x03\x01\x00\x05hello"):
        with closing(secure.raw()) as sock:
            sock.sendall(other)
            assert b"HTTP" not in received(sock)
    assert secure.ask("GET", "/healthz")[0] == 200


def received(sock: socket.socket) -> bytes:
    """Until its end, however it comes."""
    came = b""
    try:
        while piece := sock.recv(4096):
            came += piece
    except ConnectionResetError:
        pass
    return came


def hello(certificates: Certificates) -> bytes:
    """The first message of a client."""
    out = ssl.MemoryBIO()
    tls = certificates.client().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


def test_a_handshake_has_no_more_time_than_a_head(service: TestService, certificates: Certificates) -> None:
    with under_tls(service, certificates, "slow", client_stall_timeout=Seconds(1)) as secure:
        first = hello(certificates)
        quiet, half, trickling = (secure.raw() for _ in range(3))
        half.sendall(first)  # and not a word after the server's answer
        trickling.settimeout(0.1)
        ended = False
        for byte in first[:-1]:
            try:
                trickling.sendall(bytes([byte]))
                ended = not trickling.recv(1)
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
        assert ended
        assert received(quiet) == b""
        assert received(half)  # the server's part
        for sock in (quiet, half, trickling):
            sock.close()
        assert secure.ask("GET", "/healthz")[0] == 200


def test_a_thousand_handshakes_that_trickle_stop_nobody_and_are_ended(
    service: TestService, certificates: Certificates
) -> None:
    """Each sends a byte now and then, of a message that would take minutes."""
    first = hello(certificates)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))  # both ends are here
        secure = stack.enter_context(
            under_tls(service, certificates, "many", client_stall_timeout=Seconds(2))
        )
        uuid = secure.ask("PUT", "/upload/x", DATA)[1].decode().strip()
        trickling = {sock.fileno(): sock for sock in (stack.enter_context(secure.raw()) for _ in range(1000))}
        poll = select.poll()
        for number in trickling:
            poll.register(number, select.POLLIN | select.POLLRDHUP)
        answered_beside = 0
        for byte in first[:-1]:
            for sock in trickling.values():
                with suppress(OSError):
                    sock.sendall(bytes([byte]))
            everyone = len(trickling) == 1000
            assert secure.ask("GET", f"/download/{uuid}") == (200, DATA)
            answered_beside += everyone
            for number, _ in poll.poll(100):
                poll.unregister(number)
                del trickling[number]
            if not trickling:
                break
        assert not trickling
        assert answered_beside
        assert secure.ask("GET", f"/download/{uuid}") == (200, DATA)


def test_the_certificate_is_that_of_the_name(service: TestService, certificates: Certificates) -> None:
    names = ("localhost", "files.example", "*.wild.example")
    pairs = [certificates.service(f"sni-{at}", name) for at, name in enumerate(names)]
    server = Server(service.app, HttpConfig(port=0), tls=https(certificates.https(*pairs)))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for name in ("localhost", "files.example", "a.wild.example", "FILES.example"):
            sock = socket.create_connection(server.address, 60)
            with certificates.client().wrap_socket(sock, server_hostname=name) as tls:
                assert tls.selected_alpn_protocol() is None
        sock = socket.create_connection(server.address, 60)
        with closing(sock), pytest.raises(ssl.SSLCertVerificationError):
            certificates.client().wrap_socket(sock, server_hostname="other.example")
    finally:
        server.close()
        thread.join()


@pytest.mark.parametrize(
    "what", ["expired", "not yet valid", "wrong host", "wrong CA", "self-signed", "revoked"]
)
def test_curl_believes_no_wrong_certificate(service: TestService, tmp_path: Path, what: str) -> None:
    certificates = Certificates(tmp_path / "ca")
    made = https(certificates.https(certificates.wrong(what)))
    server = Server(service.app, HttpConfig(port=0), tls=made)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        lists = ["--crlfile", certificates.crl]
        curl = ["curl", "-sS", "--cacert", certificates.ca, *lists]
        done = subprocess.run([*curl, f"https://localhost:{server.address[1]}/healthz"], capture_output=True)
    finally:
        server.close()
        thread.join()
    assert done.returncode == 60
    assert done.stdout == b""


def test_a_new_certificate_comes_while_an_upload_runs_and_a_broken_one_does_not(
    metadb_url: str, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path / "ca")
    pair, second = certificates.service("service"), certificates.service("second")
    config = replace(small_config(metadb_url), tls=certificates.https(pair))
    with running_service(config, tmp_path / "nodes", 2) as service:
        secure = Secure(service.port, certificates, service)
        files = service.app.services.https
        assert files is not None

        def shown() -> bytes:
            with secure.tls() as sock:
                return sock.getpeercert(binary_form=True) or b""

        first = shown()
        with secure.tls() as upload:
            upload.sendall(
                b"PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2500000\r\n\r\n"
                + DATA[:1_000_000]
            )
            Path(pair.cert).write_text("broken")
            eventually(lambda: b"trouble: " in secure.ask("GET", "/readyz")[1], "readyz says so")
            assert pair.cert.encode() not in secure.ask("GET", "/readyz")[1], "but to strangers no path"
            assert pair.cert.encode() in secure.ask("GET", "/status")[1]
            assert shown() == first
            assert files.generation == 0
            replace_pair(pair, second)
            eventually(lambda: shown() != first, "the new one is shown")
            assert b"trouble" not in secure.ask("GET", "/readyz")[1]
            upload.sendall(DATA[1_000_000:])
            assert answers(upload, 1) == [201]
            assert upload.getpeercert(binary_form=True) == first


class Waiting:
    """An app that answers when it is told to, and knows whether its client is there."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.go_on = threading.Event()

    def __call__(self, environ: dict[str, Any], start: Callable[..., object]) -> list[bytes]:
        self.scopes.append(environ["distfs.hang_up"])
        while not self.go_on.wait(0.02) and self.scopes[-1].reason is None:
            pass
        start("200 OK", [("Content-Length", "4")])
        return [b"done"]


@pytest.fixture
def waiting(certificates: Certificates, tmp_path: Path) -> Iterator[tuple[Waiting, Secure]]:
    app, own = Waiting(), Certificates(tmp_path / "ca")
    config = HttpConfig(port=0, idle_timeout=Seconds(0.8))  # so that clients are looked at often
    server = Server(app, config, tls=https(own.https(own.service())))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield app, Secure(server.address[1], own, cast(Any, None))
    finally:
        app.go_on.set()
        server.close()
        thread.join()


def test_a_client_that_goes_is_noticed_under_tls(waiting: tuple[Waiting, Secure]) -> None:
    app, secure = waiting
    sock = secure.tls()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    eventually(lambda: app.scopes, "it is asked")
    sock.close()
    eventually(lambda: app.scopes[0].reason is not None, "it is cancelled")


def test_who_only_closes_his_sending_side_is_asked_and_answered_under_tls(
    waiting: tuple[Waiting, Secure],
) -> None:
    app, secure = waiting
    with secure.tls() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: app.scopes, "it is asked")
        socket.socket.shutdown(sock, socket.SHUT_WR)  # TCP's alone: TLS goes on
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        app.go_on.set()
        assert answers(sock, 1) == [200]


def test_one_in_between_reads_nothing_of_https(secure: Secure) -> None:
    data = b"nobody in between is to read this; " * 2000
    with Recorder("127.0.0.1", secure.port) as tap:
        through = replace(secure, port=tap.port)
        uuid = through.ask("PUT", "/upload/a-secret-name", data)[1].decode().strip()
        assert through.ask("GET", f"/download/{uuid}") == (200, data)
    assert len(tap.seen) > 2 * len(data)
    assert not tap.read(data[:20], b"a-secret-name", uuid.encode(), b"HTTP/1.1")


def test_one_address_too_many_is_closed_without_a_word(
    service: TestService, certificates: Certificates
) -> None:
    def turned_away(address: str) -> None:
        raise Busy("too many of yours")

    app: Any = Waiting()
    app.connected = turned_away
    server = Server(app, HttpConfig(port=0), tls=https(certificates.https(certificates.service("busy"))))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        with closing(socket.create_connection(server.address, 60)) as sock:
            assert received(sock) == b""
    finally:
        server.close()
        thread.join()


def test_an_answer_that_is_cut_is_no_whole_one(certificates: Certificates) -> None:
    """Nothing but the close tells its end: whoever cuts the connection, a client knows that it was cut."""

    def app(environ: dict[str, Any], start: Callable[..., object]) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"half"
        if environ["PATH_INFO"] == "/cut":
            raise RuntimeError("a bug of the app's")
        yield b" and half"

    server = Server(app, HttpConfig(port=0), tls=https(certificates.https(certificates.service("cut"))))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        url = f"https://localhost:{server.address[1]}"
        curl = ["curl", "-sS", "--http1.0", "--cacert", certificates.ca]
        whole, cut = (
            subprocess.run([*curl, f"{url}/{path}"], capture_output=True) for path in ("whole", "cut")
        )
    finally:
        server.close()
        thread.join()
    assert (whole.returncode, whole.stdout) == (0, b"half and half")
    assert cut.returncode == 56


def test_what_tls_has_opened_already_is_not_waited_for(
    service: TestService, certificates: Certificates
) -> None:
    """No poll shows it. All of two long heads comes at once, and then nothing any more."""
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 60_000 + b"\r\n\r\n"
    with under_tls(service, certificates, "at-hand", client_stall_timeout=Seconds(5)) as secure:
        with secure.tls() as sock:
            for _ in range(10):
                sock.sendall(get * 2)
                assert answers(sock, 2) == [200, 200]
