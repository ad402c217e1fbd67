"""Compression of single blocks: the one place that knows zstd, from the extra ``compression`` or the standard library
of Python 3.14.

Each block is a frame of its own, so that a range is unpacked without what is before it. A frame says how long its
content is, and needs no dictionary.
"""

from __future__ import annotations

import importlib
import struct
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Protocol

from distfs.errors import ConfigError, Corrupt, NoZstd
from distfs.model import Buffer, Compression

REMEDY = "pip install 'distfs[compression]'"

#: Bytes of a frame that a client must be able to hold (RFC 9659): a larger one is not for it.
MAX_WINDOW = 8 << 20
_RAW_FRAME = struct.Struct("<4sBI")  # magic, descriptor, size of the content
_MAGIC, _ONE_SEGMENT, _RAW_PIECE = b"\x28\xb5\x2f\xfd", 0xA0, 128 << 10

#: Bytes of a block that are tried at each of so many places, to see whether it is worth all of it.
_PIECE, _PIECES = 8 << 10, 3
#: A block that is shorter saves no page of a disk, or one.
LEAST = 16 << 10
#: With less of the processors to spare a block is left as it is: to compress it takes as long as all else together.
_SPARE = 0.25
#: So many blocks are left alone at most, after others that were not worth it.
_MOST_LEFT_ALONE = 32


#: Of one frame, part by part: what the next part gives. Raises Corrupt, also for a window of more than MAX_WINDOW.
Unpacker = Callable[[bytes], bytes]


class Zstd(Protocol):
    """A library. Thread-safe."""

    def compress(self, data: Buffer, level: int) -> bytes:
        """-> a frame that says how long its content is."""

    def content(self, frame: Buffer) -> tuple[int, int]:
        """How long a frame says its content is, -1: it does not say; and the dictionary it needs, 0: none. Raises
        Corrupt."""

    def decompress(self, frame: Buffer, size: int) -> bytes:
        """All of a frame whose content is ``size`` bytes. Raises Corrupt; makes no more bytes than that."""

    def unpackers(self) -> Callable[[], Unpacker]:
        """For the frames of one stream: each call is for the next one, when that before it is over."""


@cache
def library() -> Zstd | None:
    """The one there is."""
    for make in (_FromExtra, _FromPython):
        try:
            return make()
        except ImportError:
            continue
    return None


def required() -> Zstd:
    """Raises ConfigError when there is none."""
    found = library()
    if found is None:
        raise ConfigError(f"compressed blocks need zstd: {REMEDY}")
    return found


def check_installed(ways: Iterable[Compression]) -> None:
    """Raises ConfigError where one of these asks for what is not there."""
    if any(how.mode == "zstd" for how in ways) and library() is None:
        raise ConfigError(f"storage.compression is zstd, which needs an extra: {REMEDY}")


def unpack(frame: Buffer, size: int) -> bytes:
    """A block of ``size`` bytes from its frame, which may be anything. Raises Corrupt, NoZstd."""
    zstd = library()
    if zstd is None:
        raise NoZstd(f"the file is compressed, and this service has no zstd: its operator can {REMEDY}")
    told, dictionary = zstd.content(frame)
    if dictionary:
        raise Corrupt("a compressed block that needs a dictionary: distfs makes none such")
    if told != size:  # before anything is unpacked: a few bytes may stand for any number of them
        raise Corrupt(f"a compressed block says it has {told} bytes, {size} expected")
    return zstd.decompress(frame, size)


def as_frame(block: memoryview) -> memoryview:
    """A block that is not compressed, as a frame (RFC 8878, 3.1.1) of raw pieces."""
    parts: list[Buffer] = [_RAW_FRAME.pack(_MAGIC, _ONE_SEGMENT, len(block))]
    for at in range(0, len(block), _RAW_PIECE):
        piece = block[at : at + _RAW_PIECE]
        parts += [(len(piece) << 3 | (at + _RAW_PIECE >= len(block))).to_bytes(3, "little"), piece]
    return memoryview(b"".join(parts))


class Packer:
    """Compresses what is worth it of one file, block by block. ``worth`` is asked in the blocks' order, by one
    thread; ``pack`` is called by any.

    By itself (``auto``) it is not to make an upload slower: while nobody has a processor to spare, blocks are kept
    as they are. Most files are alike all through, so after a block that was not worth it more and more are left
    alone, and one is looked at now and then.
    """

    def __init__(self, zstd: Zstd, how: Compression, min_saving: float, spare: Callable[[], float]) -> None:
        self._zstd, self._level, self._looks = zstd, how.level, how.mode == "auto"
        self._spare = spare
        self._keep = 1 - min_saving
        self._alone = self._next_alone = (
            0  # blocks not to be looked at from now on, and after the next bad one
        )

    def worth(self, block: memoryview) -> bool:
        """Whether to try: by a few pieces of it, and what came before."""
        if len(block) < LEAST:
            return False
        if not self._looks:
            return True
        if self._alone:
            self._alone -= 1
            return False
        if self._spare() < _SPARE:
            return False
        step = (len(block) - _PIECE) // (_PIECES - 1)
        pieces = b"".join([block[at : at + _PIECE] for at in range(0, step * _PIECES, step)])
        good = len(self._zstd.compress(pieces, 1)) <= self._keep * len(pieces)
        if good:
            self._next_alone = 0
        else:
            self._next_alone = min(2 * self._next_alone + 1, _MOST_LEFT_ALONE)
            self._alone = self._next_alone
        return good

    def pack(self, block: memoryview) -> bytes | None:
        """Its frame; None: it saves too little."""
        frame = self._zstd.compress(block, self._level)
        return frame if len(frame) <= self._keep * len(block) else None


def packer(how: Compression, min_saving: float, spare: Callable[[], float]) -> Packer | None:
    """For one file; None: nothing of it is compressed. ``spare``: the share of the processors that nobody uses.
    Raises ConfigError where zstd is asked for and not there."""
    if how.mode == "off":
        return None
    zstd = library() if how.mode == "auto" else required()
    return Packer(zstd, how, min_saving, spare) if zstd is not None else None


class _FromExtra:
    """``zstandard``, whose compressors are used by one thread at a time."""

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("zstandard")
        self._mine = threading.local()

    def compress(self, data: Buffer, level: int) -> bytes:
        made = getattr(self._mine, f"level{level}", None)
        if made is None:
            made = self._library.ZstdCompressor(level=level)
            setattr(self._mine, f"level{level}", made)
        frame: bytes = made.compress(data)
        return frame

    def content(self, frame: Buffer) -> tuple[int, int]:
        try:
            found = self._library.get_frame_parameters(frame)
        except self._library.ZstdError as e:
            raise Corrupt("no frame of zstd") from e
        size = found.content_size
        return (-1 if size == self._library.CONTENTSIZE_UNKNOWN else size), found.dict_id

    def decompress(self, frame: Buffer, size: int) -> bytes:
        made = getattr(self._mine, "decompressor", None)
        if made is None:
            made = self._mine.decompressor = self._library.ZstdDecompressor()
        try:
            data: bytes = made.decompress(frame, max_output_size=size, allow_extra_data=False)
        except self._library.ZstdError as e:
            raise Corrupt(f"a compressed block is damaged: {e}") from e
        if len(data) != size:
            raise Corrupt(f"a compressed block has {len(data)} bytes, {size} expected")
        return data

    def unpackers(self) -> Callable[[], Unpacker]:
        shared = self._library.ZstdDecompressor(max_window_size=MAX_WINDOW)  # dear to make

        def unpacker() -> Unpacker:
            made = shared.decompressobj()
            return lambda part: _unpacked(made, part, self._library.ZstdError)

        return unpacker


class _FromPython:
    """``compression.zstd``, from Python 3.14 on."""

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("compression.zstd")

    def compress(self, data: Buffer, level: int) -> bytes:
        made = self._library.ZstdCompressor(level=level)
        made.set_pledged_input_size(len(data))
        frame: bytes = made.compress(data, made.FLUSH_FRAME)
        return frame

    def content(self, frame: Buffer) -> tuple[int, int]:
        try:
            found = self._library.get_frame_info(frame)
        except self._library.ZstdError as e:
            raise Corrupt("no frame of zstd") from e
        size = found.decompressed_size
        return (-1 if size is None else size), found.dictionary_id

    def decompress(self, frame: Buffer, size: int) -> bytes:
        made = self._library.ZstdDecompressor()
        try:
            data: bytes = made.decompress(frame, size)
            if not made.eof and made.decompress(b"", 1):
                raise Corrupt("a compressed block has more bytes than it says")
        except (self._library.ZstdError, EOFError) as e:
            raise Corrupt(f"a compressed block is damaged: {e}") from e
        if len(data) != size or not made.eof or made.unused_data:
            raise Corrupt(
                f"a compressed block has {len(data)} bytes and an end that is wrong, {size} expected"
            )
        return data

    def unpackers(self) -> Callable[[], Unpacker]:
        limit = {self._library.DecompressionParameter.window_log_max: MAX_WINDOW.bit_length() - 1}

        def unpacker() -> Unpacker:
            made = self._library.ZstdDecompressor(options=limit)
            return lambda part: _unpacked(made, part, self._library.ZstdError)

        return unpacker


def _unpacked(made: Any, part: bytes, error: type[Exception]) -> bytes:
    try:
        data: bytes = made.decompress(part)
        return data
    except error as e:
        raise Corrupt(str(e)) from e
