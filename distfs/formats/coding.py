"""From a block to k+m cells and back. Pure. A copy is a cell of a k=1 code: one idea, one code path."""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Protocol

from distfs.errors import ConfigError, Corrupt
from distfs.formats.isal import Parity, library
from distfs.model import Buffer, Policy

log = logging.getLogger("distfs.coding")


class Code(Protocol):
    """How blocks of one policy are coded. Thread-safe."""

    policy: Policy

    def cell_size(self, length: int) -> int:
        """Bytes of each cell of a block of ``length`` plain bytes; the same for every cell."""

    def encode(self, block: memoryview) -> Sequence[Buffer]:
        """The k+m cells of ``block``, in fragment order. They may alias it."""

    def beside(self, length: int) -> int:
        """Bytes that the cells of a block of ``length`` take beside the block itself."""

    def wrapped(self, frame: bytes) -> Buffer:
        """What is coded instead of a block that was compressed to ``frame``: as long as all its data cells."""

    def unwrapped(self, coded: memoryview) -> memoryview:
        """The frame again. Raises Corrupt."""

    def coded(self, cell: int) -> int:
        """Bytes of what was coded, if it was ``wrapped`` and its cells have so many."""

    def landing(self, index: int, out: memoryview) -> memoryview | None:
        """Where in ``out``, the block to be, cell ``index`` may be received; None: it needs room of its own."""

    def decode(self, cells: Mapping[int, memoryview], out: memoryview) -> memoryview:
        """The plain block from any k cells by fragment index, each where ``landing`` said. May use ``out``."""


class Copies:
    """k = 1: every cell is the block itself."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def cell_size(self, length: int) -> int:
        return length

    def encode(self, block: memoryview) -> Sequence[Buffer]:
        return [block] * self.policy.width

    def beside(self, length: int) -> int:
        return 0

    def wrapped(self, frame: bytes) -> Buffer:
        return frame

    def unwrapped(self, coded: memoryview) -> memoryview:
        return coded

    def coded(self, cell: int) -> int:
        return cell

    def landing(self, index: int, out: memoryview) -> memoryview | None:
        return out

    def decode(self, cells: Mapping[int, memoryview], out: memoryview) -> memoryview:
        return next(iter(cells.values()))


class ReedSolomon:
    """k > 1: ``isa_l_rs_cauchy`` of liberasurecode, systematic: the first k cells are the block, cut and padded.

    The library wants a header of its own before each cell. It depends on the cell's index and the block's
    length alone, so it is not stored: a header made once for that length is put back before decoding.

    The library takes and gives copies, of about two blocks, while it works. It does not let go of the
    interpreter lock then, so one at a time is as fast, and all the copies there are at any time are those of one.
    Cells are made by ISA-L itself, where it is found and makes the same: a block is coded both ways to see it, since
    what is read is decoded by the library.
    """

    def __init__(self, policy: Policy) -> None:
        try:
            from pyeclib.ec_iface import ECDriver
        except ImportError as e:
            raise ConfigError(f"policy {policy} needs Reed-Solomon codes: pip install 'distfs[codes]'") from e
        self.policy = policy
        # It will not do without parity; what was not asked for is dropped.
        self._driver = ECDriver(k=policy.k, m=max(1, policy.m), ec_type="isa_l_rs_cauchy", chksum_type="none")
        self._lock = threading.Lock()  # one call of the library, with its copies
        self.cell_size = lru_cache(maxsize=1024)(self._cell_size)
        self._headers = lru_cache(maxsize=256)(self._make_headers)
        isal = library()
        self._parity = Parity(isal, policy.k, policy.m) if isal and policy.m else None
        if self._parity is not None and not self._same_both_ways():
            log.error("policy %s: ISA-L and liberasurecode make different parity: the latter is used", policy)
            self._parity = None

    def _same_both_ways(self) -> bool:
        block = memoryview(bytearray(i * i % 251 for i in range(self.policy.k * 64)))
        return [*map(bytes, self.encode(block))] == [
            *map(bytes, self._encode(block, self.cell_size(len(block))))
        ]

    def _cell_size(self, length: int) -> int:
        with self._lock:
            info = self._driver.get_segment_info(length, length)
        size: int = info["fragment_size"] - _LIBRARY_HEADER
        return size

    def encode(self, block: memoryview) -> Sequence[Buffer]:
        size = self.cell_size(len(block))
        if self._parity is not None and size and not block.readonly:
            cells = [self._data_cell(block, i * size, size) for i in range(self.policy.k)]
            return [*cells, *self._parity.of(cells, size)]
        with self._lock:
            return self._encode(block, size)

    @staticmethod
    def _data_cell(block: memoryview, at: int, size: int) -> Buffer:
        """A part of the block; padded with zeros behind its end."""
        part = block[at : at + size]
        if len(part) == size:
            return part
        padded = bytearray(size)
        padded[: len(part)] = part
        return padded

    def _encode(self, block: memoryview, size: int) -> list[Buffer]:
        coded = self._driver.encode(bytes(block))
        whole = len(block) // size  # data cells without padding need no copy of their own
        return [
            block[i * size : (i + 1) * size] if i < whole else memoryview(coded[i])[_LIBRARY_HEADER:]
            for i in range(self.policy.width)
        ]

    def beside(self, length: int) -> int:
        size = self.cell_size(length)
        return (self.policy.width - length // size) * size if size else 0

    def wrapped(self, frame: bytes) -> Buffer:
        """Its length, the frame, and zeros to the end of the last cell: cells alone do not tell where it ends."""
        packed = bytearray(self.policy.k * self.cell_size(_LENGTH.size + len(frame)))
        _LENGTH.pack_into(packed, 0, len(frame))
        packed[_LENGTH.size : _LENGTH.size + len(frame)] = frame
        return packed

    def unwrapped(self, coded: memoryview) -> memoryview:
        end = _LENGTH.size + (_LENGTH.unpack_from(coded)[0] if len(coded) > _LENGTH.size else 0)
        if not _LENGTH.size < end <= len(coded):
            raise Corrupt(f"a compressed block of a wrong length in {len(coded)} coded bytes")
        return coded[_LENGTH.size : end]

    def coded(self, cell: int) -> int:
        return self.policy.k * cell

    def landing(self, index: int, out: memoryview) -> memoryview | None:
        size = self.cell_size(len(out))
        whole = index < self.policy.k and (index + 1) * size <= len(out)
        return out[index * size : (index + 1) * size] if whole else None

    def decode(self, cells: Mapping[int, memoryview], out: memoryview) -> memoryview:
        size = self.cell_size(len(out))
        whole = len(out) // size  # data cells that were received in their places
        missing = [i for i in range(self.policy.k) if i not in cells]
        for i in range(whole, self.policy.k):
            if i in cells:
                room = out[i * size : (i + 1) * size]
                room[:] = cells[i][: len(room)]
        if missing:
            headers = self._headers(len(out))
            with self._lock:
                self._reconstruct(cells, missing, headers, out)
        return out

    def _reconstruct(
        self, cells: Mapping[int, memoryview], missing: list[int], headers: list[bytes], out: memoryview
    ) -> None:
        """Only the ``missing`` are computed: a whole decode takes five times as long."""
        chosen = [headers[i] + cells[i] for i in sorted(cells)[: self.policy.k]]
        made = self._driver.reconstruct(chosen, missing)
        size = len(made[0]) - _LIBRARY_HEADER
        for i, cell in zip(missing, made, strict=True):
            room = out[i * size : (i + 1) * size]
            room[:] = memoryview(cell)[_LIBRARY_HEADER : _LIBRARY_HEADER + len(room)]

    def _make_headers(self, length: int) -> list[bytes]:
        """Each cell's library header, for blocks of ``length`` bytes."""
        with self._lock:
            cells = self._driver.encode(bytes(length))
        return [cell[:_LIBRARY_HEADER] for cell in cells]


_LENGTH = struct.Struct("<I")  # of a frame, in front of it
_LIBRARY_HEADER = 80  # bytes: sizeof(fragment_header_t) in liberasurecode's erasurecode.h, format version 1


@cache
def code_for(policy: Policy) -> Code:
    """The code of a policy. Raises ConfigError when the package it needs is not installed."""
    return Copies(policy) if policy.k == 1 else ReedSolomon(policy)
