"""Which bytes of a file a request wants (RFC 9110, 14), and how several ranges are one answer."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from werkzeug.exceptions import RequestedRangeNotSatisfiable

from distfs.headers import byte_ranges
from distfs.headers.byte_ranges import Asked

#: A request for more ranges than this gets the whole file: each costs a part's header, and a read of its own.
MAX_RANGES = 64


class Span(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file, the latter not included."""

    start: int
    stop: int


#: How the bytes of a span are read.
Read = Callable[[Span], Iterator[memoryview]]


def wanted(header: str, size: int) -> list[Span]:
    """The ranges a ``Range`` header asks for, in its order, of a file of ``size`` bytes.

    Empty: send the whole, as for what is no list of byte ranges, overlaps, runs backwards, or comes to more than
    the file. Raises RequestedRangeNotSatisfiable (416) when the file has none of these bytes.
    """
    ranges = byte_ranges.read(header)
    if ranges is None or len(ranges) > MAX_RANGES or not _ascend(ranges):
        return []
    spans = [span for asked in ranges if (span := _within(asked, size))]
    if not spans:
        if not size and any(asked.first is None and asked.last for asked in ranges):
            return []  # the last bytes of nothing: they are there (14.1.2), and no Content-Range can say so
        raise RequestedRangeNotSatisfiable(size)
    overlapping = len(spans) > 1 and sum(stop - start for start, stop in spans) > size
    return [] if overlapping else spans


def _ascend(ranges: list[Asked]) -> bool:
    """Whether each begins behind the one before; behind one up to the end there is nothing."""
    return all(
        before.first is not None
        and before.last is not None
        and (after.first is None or after.first > before.last)
        for before, after in pairwise(ranges)
    )


def _within(asked: Asked, size: int) -> Span | None:
    """What there is of a range."""
    if asked.first is None:
        start, stop = max(0, size - (asked.last or 0)), size
    else:
        start, stop = asked.first, size if asked.last is None else min(asked.last + 1, size)
    return Span(start, stop) if start < size else None


def content_range(span: Span, size: int) -> str:
    return f"bytes {span.start}-{span.stop - 1}/{size}"


class ByteRanges:
    """Several spans of a file as one ``multipart/byteranges`` body."""

    def __init__(self, spans: list[Span], size: int, content_type: str) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        self._parts = [
            (
                span,
                f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\n"
                f"Content-Range: {content_range(span, size)}\r\n"
                "X-Content-Type-Options: nosniff\r\n\r\n".encode("latin-1"),
            )
            for span in spans
        ]
        self._end = f"\r\n--{boundary}--\r\n".encode()
        self.length = sum(len(head) + span.stop - span.start for span, head in self._parts) + len(self._end)

    def body(self, read: Read, at: int = 0) -> Iterator[memoryview]:
        """The bytes from ``at`` on. A part's header is given only when its first bytes have been read."""
        for span, head in self._parts:
            size = len(head) + span.stop - span.start
            if at < size:
                yield from self._part(read, span, head, at)
            at = max(0, at - size)
        yield memoryview(self._end)[at:]

    def _part(self, read: Read, span: Span, head: bytes, at: int) -> Iterator[memoryview]:
        with contextlib.ExitStack() as ends:
            blocks = read(Span(span.start + max(0, at - len(head)), span.stop))
            ends.callback(getattr(blocks, "close", lambda: None))
            first = next(blocks)
            if at < len(head):
                yield memoryview(head)[at:]
            yield first
            yield from blocks
