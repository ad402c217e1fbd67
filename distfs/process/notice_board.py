"""What each of several processes says of itself, for the others to read: the last word of each, in shared memory."""

from __future__ import annotations

import mmap
import struct
import zlib

#: So long a notice may be; memory is used as far as it is written.
MOST = 1 << 20
_HEAD = struct.Struct("<II")  # length, checksum
_TRIES = 3


class NoticeBoard:
    """Made before the processes are forked. Each writes its own notice, by one thread; anybody reads."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._map = mmap.mmap(-1, count * MOST)

    def post(self, number: int, notice: bytes) -> None:
        """Nothing, when it is too long."""
        at, notice = number * MOST, notice if len(notice) <= MOST - _HEAD.size else b""
        self._map[at + _HEAD.size : at + _HEAD.size + len(notice)] = notice
        self._map[at : at + _HEAD.size] = _HEAD.pack(len(notice), zlib.crc32(notice))

    def clear(self, number: int) -> None:
        """It says nothing any more."""
        self._map[number * MOST : number * MOST + _HEAD.size] = bytes(_HEAD.size)

    def read(self) -> dict[int, bytes]:
        """What is said, by who says it; without one that is written at this moment, again and again."""
        return {number: notice for number in range(self._count) if (notice := self._read(number))}

    def _read(self, number: int) -> bytes:
        at = number * MOST
        for _ in range(_TRIES):
            length, checksum = _HEAD.unpack(self._map[at : at + _HEAD.size])
            notice = self._map[at + _HEAD.size : at + _HEAD.size + min(length, MOST - _HEAD.size)]
            if zlib.crc32(notice) == checksum:
                return notice
        return b""
