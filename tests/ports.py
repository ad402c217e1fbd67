"""Ports for servers that cannot be told to take any free one, and ports where nobody listens."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Below those that a system gives to whoever wants any: nobody gets one of these in between.
_FROM, _TO = 15_000, 32_000
_random = random.SystemRandom()


def free_port() -> int:
    """One that is free, and very likely still is in a minute."""
    while True:
        port = _random.randrange(_FROM, _TO)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def refusing() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses every connection, and that nobody else gets meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # without listening
        yield bound.getsockname()[1]
