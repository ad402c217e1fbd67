"""Many clients that send or read next to nothing, moved on by one thread."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from distfs.process import descriptors

#: What each kind sends at its start; then a byte at a time, for ever.
HEADERS = b"GET /healthz HTTP/1.1\r\nX-Slow: "
SMALL_BODY = b"PUT /upload/small HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
LARGE_BODY = b"PUT /upload/large HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6000000\r\n\r\n"
CHUNKED_BODY = b"PUT /upload/pipe HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"


def reader(uuid: str) -> bytes:
    """Asks for a file; nothing of it is ever read."""
    return f"GET /download/{uuid} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


class SlowClients:
    """``openings``: what each of them sends first. Those that only read send no more."""

    def __init__(self, address: tuple[str, int], openings: list[bytes], pause: float) -> None:
        self._pause = pause
        self._stop = threading.Event()
        self.ended = 0  # how many the server has ended
        self._senders: list[socket.socket] = []
        self._readers: list[socket.socket] = []
        for opening in openings:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(60)
            sock.connect(address)
            sock.sendall(opening)
            sock.setblocking(False)
            (self._readers if opening.startswith(b"GET /download") else self._senders).append(sock)
        self._thread = threading.Thread(target=self._run, name="slow clients")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            for sock in self._senders[:]:
                try:
                    sock.send(b"x")
                except BlockingIOError:
                    continue
                except OSError:
                    self._drop(self._senders, sock)
            for sock in self._hung_up():
                self._drop(self._readers, sock)

    def _hung_up(self) -> list[socket.socket]:
        """Readers whose connection was reset: poll tells without a byte being read."""
        poll = select.poll()
        by_number = {sock.fileno(): sock for sock in self._readers}
        for number in by_number:
            poll.register(number, 0)
        return [by_number[number] for number, _ in poll.poll(0)]

    def _drop(self, kept: list[socket.socket], sock: socket.socket) -> None:
        kept.remove(sock)
        sock.close()
        self.ended += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for sock in (*self._senders, *self._readers):
            sock.close()


@contextmanager
def slow_clients(
    address: tuple[str, int], count: int, kinds: list[bytes], pause: float = 0.05
) -> Iterator[SlowClients]:
    """``count`` of them, of ``kinds`` in turn."""
    descriptors.raise_limit()
    clients = SlowClients(address, list(itertools.islice(itertools.cycle(kinds), count)), pause)
    with contextlib.closing(clients):
        yield clients
