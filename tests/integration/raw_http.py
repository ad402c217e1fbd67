"""For tests of the HTTP host: a server in this process, and a client that decides every byte and packet."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from distfs.config.settings import Bytes, HttpConfig, Seconds
from distfs.host.server import Server
from distfs.transfer.blocks import BlockPool

Environ = dict[str, Any]
App = Callable[[Environ, Callable[..., Any]], Iterable[Any]]

PATIENCE = 60.0  # seconds after which a test is stuck, not slow

#: Small limits, so that little data takes every way.
THRESHOLD = 16 * 1024
CONFIG = HttpConfig(
    port=0,
    threads=4,
    max_file_size=Bytes(8 << 20),
    max_form_overhead=Bytes(0),
    stream_threshold=Bytes(THRESHOLD),
)
#: For tests that wait for a time limit to pass.
HASTY = replace(CONFIG, client_stall_timeout=Seconds(1), idle_timeout=Seconds(1))
#: Small bodies may be large: they are received whole before the app is called.
WHOLE = replace(CONFIG, stream_threshold=CONFIG.max_file_size)


@contextmanager
def serving(app: App, config: HttpConfig = CONFIG, pool: BlockPool | None = None) -> Iterator[Server]:
    server = Server(app, config, pool)
    thread = threading.Thread(target=server.run, name="loop")
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "run() did not end"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes


class RawClient:
    """One connection. Nothing is sent or read but what the test says."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(server.address, timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def send_bytewise(self, data: bytes) -> None:
        for byte in data:
            self.socket.sendall(bytes([byte]))

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Vanish: the server's next read or write fails."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def read(self, size: int) -> bytes:
        while len(self._read) < size:
            self._fill()
        data, self._read = self._read[:size], self._read[size:]
        return data

    def read_line(self) -> bytes:
        while b"\r\n" not in self._read:
            self._fill()
        line, self._read = self._read.split(b"\r\n", 1)
        return line

    def _fill(self) -> None:
        data = self.socket.recv(1 << 20)
        if not data:
            raise EOFError(f"the server closed after {self._read[:200]!r}")
        self._read += data

    def head(self) -> Answer:
        """A status line and headers; the body is left to the test."""
        version, status, _ = self.read_line().decode().split(" ", 2)
        assert version in ("HTTP/1.1", "HTTP/1.0")
        headers = {}
        while line := self.read_line().decode("latin-1"):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return Answer(int(status), headers, b"")

    def answer(self, *, to_head: bool = False) -> Answer:
        """A whole answer. ``to_head``: the request was HEAD."""
        answer = self.head()
        if to_head or answer.status in (204, 304) or answer.status < 200:
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while size := int(self.read_line(), 16):
                answer.body += self.read(size)
                assert self.read(2) == b"\r\n"
            assert self.read_line() == b""
        elif "content-length" in answer.headers:
            answer.body = self.read(int(answer.headers["content-length"]))
        else:
            answer.body = self.rest()
        return answer

    def rest(self) -> bytes:
        """Everything up to the server's clean close; ConnectionResetError when it is not one."""
        while True:
            try:
                self._fill()
            except EOFError:
                data, self._read = self._read, b""
                return data

    def is_silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing has come, a moment after everything sent could have been answered."""
        self.socket.settimeout(seconds)
        try:
            self._fill()
        except TimeoutError:
            return not self._read
        finally:
            self.socket.settimeout(PATIENCE)
        return False


def request(method: str = "GET", path: str = "/", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode()


def put(body: bytes, *headers: str, path: str = "/") -> bytes:
    return request("PUT", path, f"Content-Length: {len(body)}", *headers) + body


def chunked(body: bytes, sizes: Iterable[int]) -> bytes:
    """``body`` in chunks of ``sizes``, over and over."""
    parts: list[bytes] = []
    at, sizes = 0, list(sizes)
    while at < len(body):
        piece = body[at : at + sizes[len(parts) % len(sizes)]]
        parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        at += len(piece)
    return b"".join(parts) + b"0\r\n\r\n"


def put_chunked(body: bytes, sizes: Iterable[int], *headers: str) -> bytes:
    return request("PUT", "/", "Transfer-Encoding: chunked", *headers) + chunked(body, sizes)


def read_all(environ: Environ, size: int = 10_000) -> bytes:
    """The body by readinto into one reused view, as an upload does it."""
    view = memoryview(bytearray(size))
    parts: list[bytes] = []
    while count := environ["wsgi.input"].readinto(view):
        parts.append(bytes(view[:count]))
        assert count == size or not environ["wsgi.input"].readinto(view), "a view was left unfilled"
    return b"".join(parts)


def echo(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """Answers with the request's body."""
    body = read_all(environ)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Held:
    """An app that tells when it was called and goes on when it is let; ``/free`` is answered at once."""

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)
        self.go = threading.Event()
        self.error: BaseException | None = None
        self.ended = threading.Event()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] == "/free":
            return echo(environ, start_response)
        self.called.release()
        assert self.go.wait(PATIENCE)
        try:
            return echo(environ, start_response)
        except BaseException as e:
            self.error = e
            raise
        finally:
            self.ended.set()


def noise(size: int) -> bytes:
    return os.urandom(size)


def open_files() -> set[str]:
    """What this process has open, by what it is; sockets and pipes by number."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found.add(str(link.readlink()))
    return found


class Endless:
    """An app whose transfer ends by nothing but being cut."""

    def __init__(self, way: str) -> None:
        """``way``: ``reading`` or ``writing``."""
        self._way, self.called, self.ended = way, threading.Event(), threading.Event()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        self.called.set()
        try:
            write = start_response("200 OK", [])
            while self._way == "writing":
                write(bytes(1 << 20))
            environ["wsgi.input"].read()
            yield b""
        finally:
            self.ended.set()
