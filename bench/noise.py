"""Bytes to measure with: always the same, not compressible, made faster than a disk takes them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 20
_BLOCKS = 16  # made once, then used in turn with a number in front, so that no two blocks are equal


def blocks(size: int) -> Iterator[memoryview]:
    """``size`` bytes in blocks of at most 1 MiB; each is valid until the next one is asked for."""
    source = random.Random(_BLOCK)
    buffers = [memoryview(bytearray(source.randbytes(_BLOCK))) for _ in range(_BLOCKS)]
    for number, at in enumerate(range(0, size, _BLOCK)):
        buffer = buffers[number % _BLOCKS]
        buffer[:8] = number.to_bytes(8, "big")
        yield buffer[: min(_BLOCK, size - at)]


def write_file(path: Path, size: int) -> str:
    """``size`` bytes into ``path``, on the disk when this returns: no run pays for them. -> sha256, hex."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks(size):
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()
