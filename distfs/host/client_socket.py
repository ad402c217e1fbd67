"""An HTTP client's connection while a worker thread has it: plain blocking reads and writes, bounded.

The descriptor is a `dup`, so that a worker never finds the number of its socket closed and given to someone
else. O_NONBLOCK belongs to both descriptors, and the loop could not bear it cleared: so a wait is a poll, and the
call comes after it. The poll also looks at the one descriptor by which a host that stops wakes all who wait.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distfs.errors import Busy, ClientGone, Stopping
from distfs.process import descriptors
from distfs.quantity import size as readable

Bytes = bytes | bytearray | memoryview


class ClientSocket:
    """The worker's end. Reading and writing raise ClientGone when the client reset or stalled; Stopping."""

    def __init__(self, sock: socket.socket, stall_timeout: float, min_rate: int, cut: int) -> None:
        """A client that moves no byte for ``stall_timeout`` seconds counts as gone, and so does one for which
        we waited longer than that in all and that moved fewer than ``min_rate`` bytes for each of those seconds.
        ``cut``: a descriptor that becomes readable when nothing is to be moved any more. Raises Busy when this
        process may not open another descriptor.
        """
        self._stall_timeout = self._patience = stall_timeout
        self._min_rate = min_rate
        self._waited = 0.0
        self._moved = 0
        try:
            self._socket = sock.dup()
        except OSError as e:
            raise Busy(f"no socket for the transfer: {descriptors.in_words(e)}") from e
        self._socket.setblocking(False)
        self._readable, self._writable = select.poll(), select.poll()
        for poll, event in ((self._readable, select.POLLIN), (self._writable, select.POLLOUT)):
            poll.register(self._socket, event)
            poll.register(cut, select.POLLIN)
        self._cut = cut

    @property
    def moved(self) -> int:
        """Bytes received and sent until now; any thread may look."""
        return self._moved

    def receive_into(self, view: memoryview) -> int:
        """At least one byte into ``view``; 0 when the client has closed its sending side."""
        began = time.monotonic()
        if not self._wait(self._readable):
            raise ClientGone(f"the client sent no byte for {self._patience:g} s: send the request again")
        try:
            count = self._socket.recv_into(view)
        except OSError as e:
            raise ClientGone(f"the client's connection broke: {e.strerror}") from e
        self._check_rate(began, count)
        return count

    def send(self, *buffers: Bytes) -> None:
        """All of ``buffers`` in order, none copied. They may be reused once this returns."""
        views = [memoryview(b) for b in buffers if len(b)]
        try:
            while views:
                began = time.monotonic()
                if not self._wait(self._writable):
                    raise ClientGone(f"the client took no byte for {self._stall_timeout:g} s")
                sent = self._socket.sendmsg(views)
                self._check_rate(began, sent)
                while views and sent >= len(views[0]):
                    sent -= len(views.pop(0))
                if sent:
                    views[0] = views[0][sent:]
        except OSError as e:
            raise ClientGone(f"the client's connection broke: {e.strerror}") from e

    def _wait(self, ready: select.poll) -> bool:
        """Until the client is ready; False: it was not in time. Raises Stopping."""
        found = ready.poll(self._patience * 1000)
        if any(number == self._cut for number, _ in found):
            raise Stopping("this service is stopping: send the request again, or to another one")
        return bool(found)

    def _check_rate(self, began: float, moved: int) -> None:
        """Time the app takes between two calls is not the client's."""
        self._waited += time.monotonic() - began
        self._moved += moved
        if self._waited > self._stall_timeout and self._moved < self._min_rate * self._waited:
            raise ClientGone(
                f"the client was slower than {readable(self._min_rate)}/s (http.client_min_rate)"
            )

    @contextmanager
    def impatient(self, seconds: float) -> Iterator[None]:
        """Inside, a wait of ``seconds`` is already a stall."""
        self._patience = seconds
        try:
            yield
        finally:
            self._patience = self._stall_timeout

    def close(self) -> None:
        self._socket.close()
