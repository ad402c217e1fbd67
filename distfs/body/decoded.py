"""A body that is sent compressed and kept unpacked: a Source in front of a Source."""

from __future__ import annotations

import zlib
from typing import Protocol

from distfs.body.source import Source
from distfs.errors import BodyCutShort, Corrupt, Refused
from distfs.formats.zstd_stream import ZstdStream

#: Content codings (RFC 9110, 8.4.1; RFC 8878) and what unpacks them.
CODINGS = ("gzip", "zstd")
_PIECE = 64 << 10  # bytes of the body that are read at once


class Stream(Protocol):
    """Unpacks what comes, bit by bit. Raises Corrupt."""

    def decompress(self, data: bytes | memoryview, most: int) -> bytes:
        """Up to ``most`` bytes; what is left of ``data`` is kept, and is unpacked by the next call."""

    @property
    def hungry(self) -> bool:
        """Whether it has nothing left to unpack."""

    @property
    def whole(self) -> bool:
        """Whether what came ends where it may."""


class DecodedSource:
    """At most as many bytes as are asked for are in memory, whatever they were packed to."""

    def __init__(self, source: Source, coding: str) -> None:
        """``coding``: one of CODINGS. Raises ConfigError where it takes zstd and there is none."""
        self._source, self._coding = source, coding
        self._stream: Stream = _Gzip() if coding == "gzip" else ZstdStream()
        self._room = memoryview(bytearray(_PIECE))
        self._begun = self._ended = False

    def readinto(self, view: memoryview) -> int:
        """As Source says. Raises Refused for a body that is not what it says."""
        try:
            return self._read(view)
        except Corrupt as e:
            raise Refused(f"the body is not in {self._coding}, as Content-Encoding says: {e}") from e

    def _read(self, view: memoryview) -> int:
        stream, done = self._stream, 0
        while done < len(view):
            data: bytes | memoryview = b""
            if stream.hungry and not self._ended:
                count = self._source.readinto(self._room)
                self._ended, data = not count, self._room[:count]
                if self._ended and not self._begun:
                    raise BodyCutShort(
                        f"the body is empty, and no {self._coding}: send it without Content-Encoding"
                    )
                self._begun = True
            made = stream.decompress(data, len(view) - done)
            view[done : done + len(made)] = made
            done += len(made)
            if not made and self._ended and stream.hungry:
                if not stream.whole:
                    raise BodyCutShort(f"the body ends in the middle of its {self._coding}")
                break
        return done


class _Gzip:
    """Also of several members, one behind the other (RFC 1952, 2.2), and with zeros behind them, as tapes have."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(31)
        self._left = b""
        self._begun = False  # a byte of this member has come
        self._is_first = True

    @property
    def hungry(self) -> bool:
        return not self._left

    @property
    def whole(self) -> bool:
        return not self._begun

    def decompress(self, data: bytes | memoryview, most: int) -> bytes:
        data = self._left + bytes(data) if self._left else data
        if not (self._begun or self._is_first):
            data = bytes(data).lstrip(b"\0")
        self._begun = self._begun or bool(data)
        try:
            made = self._member.decompress(data, most)
        except zlib.error as e:
            raise Corrupt(str(e)) from e
        self._left = self._member.unconsumed_tail
        if self._member.eof:
            self._left = self._member.unused_data
            self._member, self._begun, self._is_first = zlib.decompressobj(31), False, False
        return made
