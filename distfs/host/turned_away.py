"""Connections that are one too many: told why in one answer, and closed.

A close while the client's request is under way would reset the connection, and take the answer from the client. So
some of them linger as others do, and the others have to do without.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from http import HTTPStatus

from distfs.errors import DistfsError
from distfs.headers import safety
from distfs.host.connection import Connection
from distfs.host.ending import Ending

logger = logging.getLogger("distfs.server")

#: So many linger at once.
LINGERING = 64
#: They are logged so often at most.
SAY_AGAIN_S = 10.0


class TurnedAway:
    """Those of one loop, in its thread."""

    def __init__(self) -> None:
        self._lingering: set[Connection] = set()
        self._said = float("-inf")

    def __len__(self) -> int:
        return len(self._lingering)

    def may_linger(self, sock: socket.socket | None, error: DistfsError) -> bool:
        """Send it the answer; whether ``linger`` is to be called, else it is to be closed.
        None: nothing can be said before a TLS handshake."""
        if time.monotonic() - self._said >= SAY_AGAIN_S:
            self._said = time.monotonic()
            logger.warning("a connection was turned away: %s", error)
        if sock is None:
            return False
        with contextlib.suppress(OSError):
            sock.send(_answer(error), socket.MSG_DONTWAIT)
        return len(self._lingering) < LINGERING

    def linger(self, connection: Connection) -> None:
        """What comes on it is thrown away, for a while."""
        self._lingering.add(connection)
        connection.ending = Ending.LINGER
        connection.park()

    def forget(self, connection: Connection) -> bool:
        """It is closed; whether it was one of them."""
        found = connection in self._lingering
        self._lingering.discard(connection)
        return found


def _answer(error: DistfsError) -> bytes:
    body = f"{error.for_client}\n".encode()
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        "Content-Type: text/plain; charset=utf-8",
        *map(": ".join, safety.OURS.items()),
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if error.retry_after is not None:
        lines.append(f"Retry-After: {error.retry_after}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
