"""Compressed bytes from a disk or a client: never more is made of them than was to be, and what is wrong is told."""

from __future__ import annotations

import gzip

from distfs.body.decoded import DecodedSource
from distfs.errors import BodyCutShort, Corrupt, Refused
from distfs.formats.coding import code_for
from distfs.formats.compression import as_frame, required, unpack
from distfs.model import Policy

_PLAIN = b"some bytes of a block, " * 40
_FRAME = required().compress(_PLAIN, 1)
SEEDS = (
    b"\0" + _FRAME,
    b"\1" + bytes(code_for(Policy(2, 1)).wrapped(_FRAME)),
    b"\2" + gzip.compress(_PLAIN) * 2,
    b"\3" + _FRAME + bytes(as_frame(memoryview(_PLAIN))),
)
WORDS = (
    _FRAME[:4],
    b"\x50\x2a\x4d\x18\4\0\0\0",
    b"\x1f\x8b\x08\0",
    b"\xff" * 4,
    b"\0" * 4,
    b"\1\0\0",
    b"\xa0",
    b"\x20",
)
_MOST = 1 << 20


def packed(data: bytes) -> None:
    """The first byte says what the rest is: a frame, what was coded of one, a body in gzip or zstd."""
    kind, rest = data[:1], data[1:]
    if kind == b"\0":
        _unpacked(rest)
    elif kind == b"\1":
        try:
            frame = code_for(Policy(2, 1)).unwrapped(memoryview(rest))
        except Corrupt:
            return
        assert 0 < len(frame) <= len(rest)
        _unpacked(frame)
    else:
        coding = "gzip" if kind == b"\2" else "zstd"
        whole = _decoded(coding, rest, 1 << 16)
        assert _decoded(coding, rest, 3) == whole


def _unpacked(frame: bytes | memoryview) -> None:
    for size in (len(_PLAIN), 1, 1 << 16):
        try:
            assert len(unpack(frame, size)) == size
        except Corrupt:
            pass


class _Pieces:
    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    def readinto(self, view: memoryview) -> int:
        piece, self._data = self._data[: self._size], self._data[self._size :]
        view[: len(piece)] = piece
        return len(piece)


def _decoded(coding: str, data: bytes, step: int) -> tuple[bytes, str]:
    """What comes before the end or an error; no more of it than a limit."""
    source, view, out = DecodedSource(_Pieces(data, step), coding), memoryview(bytearray(5000)), b""
    try:
        while len(out) < _MOST and (count := source.readinto(view)):
            out += view[:count]
    except (Refused, BodyCutShort) as e:
        return b"", type(e).__name__
    return out, ""
