"""Where a request's body ends: by Content-Length or by chunks (RFC 9112, 6 and 7). No I/O.

Both are one thing to those who read a body: ``data_left`` bytes of data come next; when there are none and
the body is not ``ended``, ``feed`` takes framing.
"""

from __future__ import annotations

import re
from typing import Protocol

from distfs.errors import Refused, TooLarge
from distfs.quantity import counted
from distfs.quantity import size as readable

MAX_LINE = 4096  # a chunk's size and its extensions, or one trailer
MAX_TRAILERS = 8192  # all trailers of a body
#: What chunk headers may take beyond 16 bytes each and twice their data: extensions on tiny chunks would
#: otherwise make a server read thousands of bytes for each that counts (CVE-2023-39326).
MAX_EXCESS = 16384

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?[ \t]*")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class Framing(Protocol):
    """``exact``: the data is one run, so nothing beyond it is read by reading ``data_left`` bytes."""

    exact: bool
    data_left: int

    @property
    def ended(self) -> bool: ...

    def took(self, count: int) -> None:
        """``count`` of the ``data_left`` bytes were read."""

    def feed(self, data: bytes | bytearray, at: int, end: int) -> int:
        """Take framing from ``data[at:end]``; where it stopped. Only while there is no data left.

        Raises Refused when it is malformed, TooLarge when the data it announces passes the limit.
        """
        ...


class LengthFraming:
    """``length`` bytes, by Content-Length."""

    exact = True

    def __init__(self, length: int) -> None:
        self.data_left = length

    @property
    def ended(self) -> bool:
        return self.data_left == 0

    def took(self, count: int) -> None:
        self.data_left -= count

    def feed(self, data: bytes | bytearray, at: int, end: int) -> int:
        return at


class ChunkFraming:
    """Chunks of at most ``limit`` data bytes in all. Extensions are ignored, trailers kept, both bounded."""

    exact = False

    def __init__(self, limit: int) -> None:
        self.data_left = 0
        self.ended = False
        self._limit = limit
        self._announced = 0
        self._partial = bytearray()  # of a line whose end has not come yet
        self._take = self._take_size
        self.trailers: dict[str, str] = {}  # by name in small letters; several lines are one, as in a header
        self._trailers = 0
        self._excess = 0

    def took(self, count: int) -> None:
        self.data_left -= count
        if not self.data_left:
            self._take = self._take_end_of_chunk

    def feed(self, data: bytes | bytearray, at: int, end: int) -> int:
        while at < end and not self.data_left and not self.ended:
            stop = min(end, at + MAX_LINE)
            newline = data.find(b"\n", at, stop)
            cut = stop if newline < 0 else newline + 1
            self._partial += data[at:cut]
            at = cut
            if newline >= 0:
                line = bytes(self._partial)
                self._partial.clear()
                if not line.endswith(b"\r\n"):
                    raise Refused("malformed chunked body: a line does not end in CR LF")
                self._take(line[:-2])
            elif len(self._partial) >= MAX_LINE:
                raise Refused(f"malformed chunked body: a line is longer than {readable(MAX_LINE)}")
        return at

    def _take_size(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        if not match:
            raise Refused("malformed chunked body: a chunk's size is not a hexadecimal number")
        size = int(match[1], 16)
        self._excess = max(0, self._excess + len(line) - 16 - 2 * size)
        if self._excess > MAX_EXCESS:
            raise Refused("chunked body with too much in chunk extensions: send it without them")
        self._announced += size
        if self._announced > self._limit:
            raise TooLarge(f"the body is larger than {counted(self._limit, 'byte')}: send a smaller one")
        self.data_left = size
        if not size:
            self._take = self._take_trailer

    def _take_end_of_chunk(self, line: bytes) -> None:
        if line:
            raise Refused("malformed chunked body: a chunk is longer than its size says")
        self._take = self._take_size

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self.ended = True
            return
        self._trailers += len(line)
        if self._trailers > MAX_TRAILERS:
            raise Refused(f"the body's trailers are longer than {readable(MAX_TRAILERS)}: send fewer")
        if not _TRAILER.fullmatch(line):
            raise Refused("malformed chunked body: a trailer is not of the form Name: value")
        name, _, value = line.decode("latin-1").partition(":")
        name, value = name.lower(), value.strip(" \t")
        self.trailers[name] = f"{self.trailers[name]}, {value}" if name in self.trailers else value
