"""What a node tells of its own log, as a service takes it: line by line, and nothing is kept."""

from __future__ import annotations

from collections.abc import Iterator

from distfs.formats.wire import Type
from distfs.peers.link import Exchange
from distfs.telemetry.log_search import Line, Wanted

_LONGEST = 1 << 20  # of a line, which has about 64 KiB at most


class RemoteLog:
    """Lines in order of time; the node was asked. ``close`` it."""

    def __init__(self, exchange: Exchange, wanted: Wanted) -> None:
        self._exchange, self._lines = exchange, _lines(exchange, wanted)

    def __iter__(self) -> Iterator[Line]:
        """Raises what reading from a node raises."""
        return self._lines

    def close(self) -> None:
        self._exchange.close()


def _lines(exchange: Exchange, wanted: Wanted) -> Iterator[Line]:
    more, rest = True, b""
    while more:
        frame = exchange.answer(Type.OK)
        body = bytearray(frame.body_length)
        exchange.receive(memoryview(body))
        with exchange:
            more = frame.header().get("more") is True
        *whole, rest = (rest + body).split(b"\n")
        if len(rest) > _LONGEST:
            raise exchange.protocol_error("a line of its log that has no end")
        if not more:
            exchange.done()
        yield from filter(None, map(wanted.read, whole))
