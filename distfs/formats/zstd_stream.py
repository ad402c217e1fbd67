"""Frames of zstd (RFC 8878) that come bit by bit, unpacked block by block: never more bytes at once than a block has,
whatever it was packed to, and it is known where one may end."""

from __future__ import annotations

from distfs.errors import Corrupt, Refused
from distfs.formats.compression import MAX_WINDOW, Unpacker, required
from distfs.quantity import size as readable

_MAGIC, _SKIPPED = 0xFD2FB528, 0x184D2A50  # the latter's last four bits are anything
_MOST = 128 << 10  # bytes of a block, packed or not (3.1.1.2.4)
_RLE, _RESERVED = 1, 3
#: Heads and blocks in a row that give no byte: each takes time, and no limit of a file's size ends them.
_MOST_BARREN = 1 << 16


class ZstdStream:
    """Raises ConfigError where there is no zstd."""

    def __init__(self) -> None:
        self._next_unpacker = required().unpackers()
        self._left = bytearray()  # of what came, not yet a whole part of a frame
        self._made = memoryview(b"")
        self._unpack: Unpacker | None = None  # None: between frames
        self._checksum = 0  # bytes of it, behind the last block
        self._ending = False  # the last block is over
        self._to_skip = 0
        self._barren = 0

    @property
    def hungry(self) -> bool:
        """Whether it needs more to go on."""
        return not self._made and not self._next_part()

    @property
    def whole(self) -> bool:
        """Whether what came ends where it may."""
        return self._unpack is None and not self._left and not self._to_skip

    def decompress(self, data: bytes | memoryview, most: int) -> bytes:
        """Up to ``most`` bytes; what is left of ``data`` is kept. Raises Corrupt; Refused for a window that
        is too large."""
        self._left += data
        while not self._made and (length := self._next_part()):
            part = bytes(self._left[:length])
            del self._left[:length]
            self._made = memoryview(self._take(part))
            self._barren = 0 if self._made else self._barren + (not self._to_skip)
            if self._barren > _MOST_BARREN:
                raise Corrupt("it goes on and on without a byte")
        made = bytes(self._made[:most])
        self._made = self._made[most:]
        return made

    def _next_part(self) -> int:
        """How long the next part is, if all of it is here: the head of a frame, a block, a checksum; else 0."""
        left = self._left
        if self._to_skip:
            return min(self._to_skip, len(left))
        wanted = self._checksum if self._ending else self._of_block() if self._unpack else self._of_head()
        return wanted if 0 < wanted <= len(left) else 0

    def _of_head(self) -> int:
        left = self._left
        if len(left) < 5:
            return 0
        magic = int.from_bytes(left[:4], "little")
        if magic & ~0xF == _SKIPPED:
            return 8
        if magic != _MAGIC:
            raise Corrupt("no frame of zstd")
        flags = left[4]
        one_segment = flags >> 5 & 1
        size = (one_segment, 2, 4, 8)[flags >> 6]
        return 5 + (not one_segment) + (0, 1, 2, 4)[flags & 3] + size

    def _of_block(self) -> int:
        if len(self._left) < 3:
            return 0
        head = int.from_bytes(self._left[:3], "little")
        kind, size = head >> 1 & 3, head >> 3
        if kind == _RESERVED or size > _MOST:
            raise Corrupt("a block of zstd that cannot be")
        return 3 + (1 if kind == _RLE else size)

    def _take(self, part: bytes) -> bytes:
        if self._to_skip:
            self._to_skip -= len(part)
            return b""
        if self._unpack is None:
            if int.from_bytes(part[:4], "little") != _MAGIC:
                self._to_skip = int.from_bytes(part[4:8], "little")
                return b""
            if (window := _window(part)) > MAX_WINDOW:
                taken = f"at most {readable(MAX_WINDOW)} are taken: pack it without --long or --ultra"
                raise Refused(f"the body's zstd needs a window of {readable(window)}, and {taken}")
            self._unpack, self._checksum, self._ending = self._next_unpacker(), 4 * (part[4] >> 2 & 1), False
        elif self._ending or part[0] & 1:
            made = self._unpack(part)
            self._ending = not self._ending and self._checksum > 0
            if not self._ending:
                self._unpack = None
            return made
        return self._unpack(part)


def _window(head: bytes) -> int:
    """Bytes that whoever unpacks a frame must hold of it, by its head (3.1.1.1.2)."""
    flags = head[4]
    if flags >> 5 & 1:  # all of it
        size = (1, 2, 4, 8)[flags >> 6]
        return int.from_bytes(head[-size:], "little")
    base = 1 << 10 + (head[5] >> 3)
    return base + (base >> 3) * (head[5] & 7)
