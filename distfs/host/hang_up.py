"""Whether the client of a request that waits or is served is still there, though nobody reads from it then."""

from __future__ import annotations

import socket
import threading
import time

from distfs.deadline import Scope
from distfs.tls.stream import AnySocket

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: How often a client is asked whether it is still there, at most.
ASK_AGAIN_SECONDS = 5.0

_asking = threading.Lock()  # the one thing that the loop may send while a worker has a connection


class HangUp(Scope):
    """Cancelled when the client is gone. The loop looks, and asks; the worker says when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_ask = False  # from a request's beginning to its answer's
        self._ask_from = 0.0  # not before, on the monotonic clock
        self._moved = -1  # bytes, at the last look
        self._rest = b""  # of a question that was sent in part

    def begin(self, may_ask: bool) -> None:
        """A request: of a version that knows a 100."""
        self.may_ask, self._ask_from = may_ask, 0.0

    def stop_asking(self) -> bytes:
        """From now on only the worker sends, and this first. What it sends asks as well."""
        with _asking:
            self.may_ask = False
            rest, self._rest = self._rest, b""
            return rest

    def stands_still(self, moved: int) -> bool:
        """Whether as much was moved at the last look."""
        before, self._moved = self._moved, moved
        return before == moved

    def ask(self, sock: AnySocket) -> None:
        """Is it gone, or does it wait for its answer? It may have closed only its sending side, having said all.

        The two look the same until something is sent: TCP answers with a reset when nobody is there. A 100 is what
        every client of HTTP/1.1 has to overlook (RFC 9110, 15.2).
        """
        with _asking:
            now = time.monotonic()
            if self.may_ask and not self._rest and now >= self._ask_from:
                self._ask_from = now + ASK_AGAIN_SECONDS
                try:
                    self._rest = CONTINUE[sock.send(CONTINUE, socket.MSG_DONTWAIT) :]
                except BlockingIOError:  # under TLS, a part of its record may have gone
                    self._rest = CONTINUE
                except OSError:
                    pass
