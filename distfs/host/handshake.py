"""A client that comes to no TLS connection, and one that speaks plain HTTP on the port of HTTPS."""

from __future__ import annotations

import time
from typing import Any, Protocol

from distfs.headers import safety
from distfs.host.ending import Ending
from distfs.host.host import Host
from distfs.host.response import logger
from distfs.tls.stream import AnySocket, PlainText, TlsSocket, in_words

_BODY = b"this port speaks HTTPS, and that was plain HTTP: write https:// into the URL\n"
_HEAD = [
    "HTTP/1.1 400 Bad Request",
    "Content-Type: text/plain; charset=utf-8",
    *map(": ".join, safety.OURS.items()),
    f"Content-Length: {len(_BODY)}",
    "Connection: close",
]
_ANSWER = "\r\n".join([*_HEAD, "", ""]).encode("latin-1") + _BODY


class Connection(Protocol):
    """What it changes of one."""

    loop: Host
    socket: AnySocket
    address: Any
    unsent: bytes
    ending: Ending | None
    answered: float

    @property
    def shakes_hands(self) -> bool:
        """TLS is not established yet."""


def broke(connection: Connection, error: OSError) -> None:
    """Nothing can be received any more. In the loop.

    Plain HTTP has one line for an answer. A redirect would hide that what was sent, such as a password, went in plain
    text, and let it go so each time.
    """
    if isinstance(error, PlainText) and isinstance(connection.socket, TlsSocket):
        connection.socket = connection.socket.raw
        if error.said[:1].isalpha():
            connection.unsent, connection.ending = _ANSWER, Ending.LINGER
            connection.answered = time.monotonic()
            connection.loop.arm(connection)
            return
    elif connection.shakes_hands:
        who = connection.address[0] if connection.address else "-"
        logger.info("a client at %s comes to no TLS connection: %s", who, in_words(error))
    connection.loop.close(connection)
