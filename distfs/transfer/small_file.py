"""The bytes of a small file, which are all there before a node is asked to take any."""

from __future__ import annotations

import hashlib

from distfs.body.source import Source

#: Bytes of a body that is read into memory of its own: it is in memory already, and a block of the pool is larger.
SMALL_BODY = 64 << 10
#: Bytes for which hashlib keeps the interpreter lock, and up to how many a file is hashed so.
_HASHED_LOCKED, _HASHED_IN_PIECES = 2047, 16 << 10


def read_small(source: Source, most: int) -> tuple[memoryview | None, Source]:
    """All that ``source`` has, which is to be no more than ``most`` bytes. None: it has more, and is to be read on by
    what comes beside, which has all of it."""
    buffer = bytearray(most + 1)
    count = source.readinto(memoryview(buffer))
    return (memoryview(buffer)[:count], source) if count <= most else (None, Behind(buffer, source))


def hash_small(digest: hashlib._Hash, view: memoryview) -> None:
    """In pieces for which hashlib keeps the interpreter lock: to give it to others and get it back takes longer than
    to hash."""
    piece = _HASHED_LOCKED if len(view) <= _HASHED_IN_PIECES else len(view)
    for at in range(0, len(view), piece):
        digest.update(view[at : at + piece])


class Behind:
    """A source of which the first bytes were read already."""

    def __init__(self, data: bytearray, source: Source) -> None:
        self._data, self._source = data, source

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._data))
        view[:count] = self._data[:count]
        del self._data[:count]
        return count + (self._source.readinto(view[count:]) if count < len(view) else 0)
