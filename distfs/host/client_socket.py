"""An HTTP client's connection while a worker waits for its client: blocking reads and writes, bounded.

The descriptor itself blocks; every call here says that it does not wait. A wait is a poll that also looks at the one
descriptor by which a host that stops wakes all who wait.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distfs.errors import ClientGone, Stopping
from distfs.quantity import size as readable
from distfs.tls.stream import AnySocket, TlsSocket, waiting_in

Bytes = bytes | bytearray | memoryview

#: A socket that takes no byte for so long is full: its client reads slowly. Sooner when others need memory.
FULL_S, FULL_CROWDED_S = 0.5, 0.05
#: Of a body that comes slowly as much is gathered by the kernel before its thread is woken, for at most so long: a
#: thousand clients that send 10 kB five times a second would else wake 5,000 threads a second.
GATHERED, GATHER_S = 128 << 10, 1.0


class ClientSocket:
    """One request's waits. Reading and writing raise ClientGone when the client reset or stalled; Stopping."""

    __slots__ = ("_cut", "_min_rate", "_patience", "_socket", "_stall_timeout", "_waited", "moved")

    def __init__(self, sock: AnySocket, stall_timeout: float, min_rate: int, cut: int) -> None:
        """A client that moves no byte for ``stall_timeout`` seconds counts as gone, and so does one for which
        we waited longer than that in all and that moved fewer than ``min_rate`` bytes for each of those seconds.
        ``cut``: a descriptor that becomes readable when nothing is to be moved any more.
        """
        self._socket = sock
        self._stall_timeout = self._patience = stall_timeout
        self._min_rate = min_rate
        self._waited = 0.0
        self.moved = 0  # bytes received and sent until now; any thread may look
        self._cut = cut

    def receive_into(self, view: memoryview, coming: int = 1) -> int:
        """At least one byte into ``view``; 0 when the client has closed its sending side.

        ``coming``: bytes that are sure to come, so that there may be a wait for more than one.
        """
        while True:
            try:
                count = self._socket.recv_into(view, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._check_rate()  # pieces of a record of TLS end each wait, and no byte comes of them
                if coming > 1:
                    self.gather(coming)
                    coming = 1
                elif not self.wait(select.POLLIN, self._patience):
                    raise ClientGone(
                        f"the client sent no byte for {self._patience:g} s: send the request again"
                    ) from None
                continue
            except OSError as e:
                raise ClientGone(f"the client's connection broke: {e.strerror}") from e
            self.moved += count
            self._check_rate()
            return count

    def gather(self, coming: int) -> None:
        """Wait a while for ``coming`` bytes, or for as many of them as are worth a look. Raises Stopping."""
        if isinstance(self._socket, TlsSocket):
            if self._socket.pending:
                return
            coming -= self._socket.waiting()  # a part of a record is here: the rest may be all that comes
        enough = max(1, min(coming, GATHERED))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
        try:
            self.wait(select.POLLIN, min(GATHER_S, self._patience))
        finally:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def send(self, views: list[memoryview], *, full_after: float | None = None) -> list[memoryview]:
        """All of ``views`` in order, none copied; they may be reused afterwards.

        ``full_after``: give up when the socket takes no more for so many seconds; -> what is left, else nothing.
        """
        while views:
            try:
                sent = self._socket.sendmsg(views, (), socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._check_rate()
                if self.wait(select.POLLOUT, self._stall_timeout if full_after is None else full_after):
                    continue
                if full_after is None:
                    raise ClientGone(f"the client took no byte for {self._stall_timeout:g} s") from None
                self._check_rate()
                break
            except OSError as e:
                raise ClientGone(f"the client's connection broke: {e.strerror}") from e
            self.moved += sent
            self._check_rate()
            views = beyond(views, sent)
        return views

    def sent_by_loop(self, count: int, seconds: float) -> None:
        """So many bytes, which were waited for so long. Raises ClientGone."""
        self.moved += count
        self._waited += seconds
        self._check_rate()

    def waiting(self) -> int:
        """Bytes that have come and were not received."""
        return waiting_in(self._socket)

    def check(self) -> None:
        """Raises ClientGone when the connection was reset; Stopping."""
        if self.wait(0, 0):
            raise ClientGone("the client hung up")

    def wait(self, event: int, seconds: float) -> bool:
        """Until the client is ready; False: it was not in time. Raises Stopping."""
        poll = select.poll()
        poll.register(self._socket, event)
        poll.register(self._cut, select.POLLIN)
        began = time.monotonic()
        found = poll.poll(seconds * 1000)
        self._waited += time.monotonic() - began
        if any(number == self._cut for number, _ in found):
            raise Stopping("this service is stopping: send the request again, or to another one")
        return bool(found)

    def _check_rate(self) -> None:
        """Time the app takes between two calls is not the client's."""
        if self._waited > self._stall_timeout and self.moved < self._min_rate * self._waited:
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


def beyond(views: list[memoryview], count: int) -> list[memoryview]:
    """``views`` without their first ``count`` bytes."""
    for at, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[at + 1 :]]
        count -= len(view)
    return []
