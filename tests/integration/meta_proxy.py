"""A TCP proxy before a PostgreSQL that cuts connections exactly where a test says."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from distfs.metadb.url import MetaURL
from tests.faults.ledger import of_the_test


class Cut(Enum):
    """What happens to the message that contains the needle."""

    BEFORE = "the server never gets it"
    AFTER = "the server acts on it, its answer is lost"


class _TwoWays:
    """A TLS socket that one thread reads and another writes. OpenSSL's object bears one of them at a time, and Python
    has a lock for it only from 3.13 on: without one the whole process may be aborted."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        sock.setblocking(False)
        self._sock, self._lock = sock, threading.Lock()
        self.shutdown, self.close = sock.shutdown, sock.close

    def recv(self, most: int) -> bytes:
        while True:
            with self._lock, contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return self._sock.recv(most)
            self._wait([self._sock], [])

    def sendall(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            with self._lock, contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                left = left[self._sock.send(left) :]
                continue
            self._wait([], [self._sock])

    @staticmethod
    def _wait(to_read: list[ssl.SSLSocket], to_write: list[ssl.SSLSocket]) -> None:
        try:
            select.select(to_read, to_write, [], 0.2)
        except ValueError as e:  # it was closed meanwhile
            raise OSError(str(e)) from e


class Proxy:
    """Listens on 127.0.0.1 and passes on to a Unix socket; with ``tls`` it speaks TLS to the client."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream
        self._tls = tls
        self._needle: bytes | None = None
        self._cut = Cut.BEFORE
        self._then: Callable[[], None] = lambda: None
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.refuses = False  # new connections are closed at once
        self.refused = 0  # so many
        self.refuses_after_cut = False
        self.connections = 0
        self._lets_on: threading.Event | None = None
        self._hangs: Callable[[], None] = lambda: None
        self.held: set[socket.socket] = set()  # whose client sent what is held
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def cut(
        self,
        needle: str,
        where: Cut,
        refuse_afterwards: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Cut the next connection on which the client sends ``needle``.

        ``then`` is called first, while the client still waits: nothing of that message has reached the server, or
        all that follows from it is done.
        """
        self._cut, self.refuses_after_cut, self._then = where, refuse_afterwards, then
        self._needle = needle.encode()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Within it, nothing that clients send arrives, and nobody is told. Somebody has to send something."""
        self._hangs = of_the_test("something that is sent while MetaDB hangs")
        self._lets_on = lets_on = threading.Event()
        try:
            yield
        finally:
            self._lets_on = None
            lets_on.set()

    @property
    def has_cut(self) -> bool:
        return self._needle is None

    def close(self) -> None:
        """Ends every connection and thread. Fails when what was to be cut never came."""
        self.refuses = True
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in list(self._open):
            self._end(sock)
        for thread in self._threads:
            thread.join()
        self._listener.close()
        assert self.has_cut, f"nobody sent {self._needle!r}"

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.refuses:
                self.refused += 1
                client.close()
            else:
                self._start(self._serve, client)

    def _serve(self, client: Any) -> None:
        server = socket.socket(socket.AF_UNIX)
        self._open |= {client, server}
        with contextlib.suppress(OSError):
            if self._tls is not None and client.recv(8, socket.MSG_PEEK) == _SSL_REQUEST:
                client.recv(8)
                client.sendall(b"S")
                client.getpeername()  # of one that was reset, Python's ssl leaves a socket open
                self._open.discard(client)
                client = _TwoWays(self._tls.wrap_socket(client, server_side=True))
                self._open.add(client)
            server.connect(self._upstream)
            swallow = threading.Event()
            answers = threading.Thread(target=self._pass_back, args=(server, client, swallow))
            answers.start()
            self._pass_on(client, server, swallow)
            answers.join()
        for sock in (client, server):
            self._end(sock)
            sock.close()
            self._open.discard(sock)

    def _pass_on(self, client: Any, server: socket.socket, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 20):
                if (lets_on := self._lets_on) is not None:
                    self.held.add(client)
                    self._hangs()
                    lets_on.wait()
                    self.held.discard(client)
                if self._needle is not None and self._needle in data:
                    self._needle = None
                    self.refuses = self.refuses_after_cut
                    if self._cut is Cut.BEFORE:
                        self._then()
                        break
                    swallow.set()
                server.sendall(data)
        self._end(server)

    def _pass_back(self, server: socket.socket, client: Any, swallow: threading.Event) -> None:
        with contextlib.suppress(OSError):
            answer = b""
            while data := server.recv(1 << 20):
                if not swallow.is_set():
                    client.sendall(data)
                elif (answer := answer + data).endswith(_READY_FOR_QUERY):
                    self._then()
                    break  # the statement is committed; nobody will hear of it
        self._end(client)

    @staticmethod
    def _end(sock: Any) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


# https://www.postgresql.org/docs/current/protocol-message-formats.html
_READY_FOR_QUERY = b"Z\0\0\0\x05I"
_SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"


MakeProxy = Callable[..., Proxy]


@pytest.fixture
def make_proxy() -> Iterator[MakeProxy]:
    """-> a function: a server's URL, and perhaps a TLS context -> a proxy before it."""
    proxies: list[Proxy] = []

    def make(url: str, tls: ssl.SSLContext | None = None) -> Proxy:
        path = MetaURL.parse(url).hosts[0].socket_path
        assert path is not None
        proxies.append(Proxy(path, tls))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def proxy(make_proxy: MakeProxy, metadb_url: str) -> Proxy:
    """A proxy before this test's database."""
    return make_proxy(metadb_url)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ],
            *("-keyout", str(path), "-out", f"{path}.crt"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def tls_proxy(metadb_url: str, certificate: Path, make_proxy: MakeProxy) -> Proxy:
    """A proxy before this test's database that speaks TLS: the PostgreSQL that tests bring along was made without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return make_proxy(metadb_url, context)


@pytest.fixture
def tls_url(metadb_url: str, tls_proxy: Proxy) -> str:
    """The URL of this test's database behind TLS, without sslmode."""
    return proxied_url(tls_proxy, metadb_url)


def proxied_url(proxy: Proxy, metadb_url: str) -> str:
    """The database of ``metadb_url``, through ``proxy``."""
    return f"postgresql://distfs@127.0.0.1:{proxy.port}/{MetaURL.parse(metadb_url).database}"
