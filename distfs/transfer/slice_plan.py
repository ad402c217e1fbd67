"""What a slice is to be: whose it is, which node gets which fragment of it, and its row once it is written."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from distfs.deadline import Deadline
from distfs.formats.coding import Code
from distfs.formats.compression import Packer
from distfs.formats.features import COMPRESSED, PLAIN, TELLS_OF_FILE, Extra, Features
from distfs.formats.fragment import RAW, ZSTD, CellEntry, FragmentHeader, checksum, pack_headers, slice_digest
from distfs.fragment_store import FragmentWriter
from distfs.model import Buffer, Slice
from distfs.peers.directory import Stores
from distfs.peers.versioned import fitting
from distfs.telemetry.metrics import RETRIES

_HOUR_S = 3600
#: Of a fragment whose blocks may be compressed.
PACKED = Extra(Features(incompat=COMPRESSED))
EXTENDED_SINCE = 29  # services that know this migration read fragments of format version 2
_WRITE = RETRIES.index("write")

#: Nobody else seeds it. The system does, once for each process.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What every fragment says of its file."""

    cluster: UUID
    id: UUID
    name: str
    content_type: str
    code: Code
    block_size: int
    packer: Packer | None = None  # None: blocks are kept as they are

    @property
    def beside(self) -> int:
        """Bytes that the cells of a block take beside it, of whatever it may become."""
        packed = self.block_size if self.packer is not None else 0
        return packed + self.code.beside(self.block_size)

    def header(self, slice_id: UUID, ordinal: int, index: int, extra: Extra = PLAIN) -> FragmentHeader:
        shape = slice_id, index, self.code.policy, self.block_size
        return FragmentHeader(self.cluster, *shape, self.id, ordinal, self.name, self.content_type, extra)


def new_id(now: float) -> UUID:
    """Of a slice: random, but for its second byte, which the hour decides.

    Nodes keep a fragment in a folder that the first two bytes name, and MetaDB's indexes are in the order of ids. So
    what is written within an hour goes to 256 places that are soon warm, and not to 65,536: no folder is made for
    it, and no page read. The first byte stays random, since by it the slices of a node are counted and shared out.

    It is no secret, so a generator that takes no system call does.
    """
    raw = bytearray(_random.randbytes(16))
    raw[1] = int(now / _HOUR_S) & 0xFF
    return UUID(bytes=bytes(raw), version=4)


class SlicePlan:
    """A slice to be: its id, who gets which fragment, and what has been written so far."""

    def __init__(
        self,
        file: FileIdentity,
        ordinal: int,
        nodes: Sequence[int],
        size_hint: int,
        packer: Packer | None = None,
        extends: bool = True,
    ) -> None:
        """``nodes``: for the first fragments; when they are fewer than k+m, nobody gets the others. ``packer``: what
        compresses its blocks; ``extends``: its fragments may be of format version 2."""
        self.file, self.ordinal, self.size_hint = file, ordinal, size_hint
        self.packer, self._extends = packer, extends
        self.id = new_id(time.time())
        self.nodes = list(nodes)
        self.size = 0
        self.plains: list[int] = []
        self.saved: list[int] = []  # bytes, of each block that was compressed
        self.tells = False  # whether its fragments' ends may tell of the file
        self.telling: set[int] = set()  # those whose nodes take that
        self.ended: set[int] = set()  # whose nodes were told the end: no other node can keep its fragment

    def cells(self, block: memoryview) -> list[tuple[CellEntry, Buffer]]:
        """The next block's cells in fragment order, as it is."""
        return self._raw_cells(block, self.take(block))

    def cells_at_once(self, block: memoryview) -> list[tuple[CellEntry, Buffer]]:
        """Of the only block of a file, compressed if that pays."""
        packer = self.packer
        if packer is None or not packer.worth(block):
            cells = self.cells(block)
        else:
            cells = self.packed_cells(block, self.take(block), packer)
        if not self.saved:
            self.packer = None  # its fragments need not say that it may be compressed
        return cells

    @property
    def extra(self) -> Extra:
        """What each of its fragments says at its beginning."""
        return PLAIN if self.packer is None else PACKED

    def take(self, block: memoryview) -> int:
        """The next block -> its checksum, of the plain bytes: they enter here."""
        plain = checksum(block)
        self.plains.append(plain)
        self.size += len(block)
        return plain

    def _raw_cells(self, block: memoryview, plain: int) -> list[tuple[CellEntry, Buffer]]:
        coded = self.file.code.encode(block)
        sums = [plain if cell is block else checksum(cell) for cell in coded]
        return [(CellEntry(len(c), RAW, s, plain), c) for c, s in zip(coded, sums, strict=True)]

    def packed_cells(self, block: memoryview, plain: int, packer: Packer) -> list[tuple[CellEntry, Buffer]]:
        """Of a block that was taken, compressed if that pays; in any thread. Coded is what it was compressed to."""
        frame, code = packer.pack(block), self.file.code
        if frame is None:
            return self._raw_cells(block, plain)
        wrapped = memoryview(code.wrapped(frame))
        if len(wrapped) >= len(block):
            return self._raw_cells(block, plain)
        self.saved.append(len(block) - len(wrapped))
        coded = code.encode(wrapped)
        sums = [checksum(cell) for cell in (coded[:1] if code.policy.k == 1 else coded)]
        sums *= len(coded) // len(sums)  # copies are all alike
        return [(CellEntry(len(c), ZSTD, s, plain), c) for c, s in zip(coded, sums, strict=True)]

    def packed_headers(self) -> list[bytes]:
        """Of all its fragments."""
        file, indexes = self.file, range(len(self.nodes))
        shape = file.id, self.ordinal, file.code.policy, file.block_size
        return pack_headers(
            file.cluster, self.id, *shape, file.name, file.content_type, indexes, 1, self.extra
        )

    def begin(self, index: int, stores: Stores, deadline: Deadline) -> FragmentWriter:
        """Start the PUT of fragment ``index``."""
        store, extra = stores(self.nodes[index], deadline), self.extra
        if self.tells and self._extends and fitting(TELLS_OF_FILE, store, deadline) is not PLAIN:
            self.telling.add(index)
            extra |= TELLS_OF_FILE
        header = self.file.header(self.id, self.ordinal, index, extra)
        return store.put(header, self.file.code.cell_size(self.size_hint), deadline)

    def done(self, failed: Collection[int] = ()) -> Slice:
        """The row for MetaDB. ``failed``: indexes of fragments that are nowhere, and are to be made anew."""
        if failed:
            RETRIES.add(len(failed), _WRITE)
        digest = slice_digest(self.plains, self.size, self.file.block_size)
        kept = [0 if i in failed else node for i, node in enumerate(self.nodes)]
        nodes = tuple(kept + [0] * (self.file.code.policy.width - len(kept)))
        return Slice(self.id, self.ordinal, self.size, digest, nodes)


def moved(piece: Slice, index: int, to: int) -> Slice:
    """The slice with fragment ``index`` on node ``to``; 0: on none."""
    return replace(piece, nodes=tuple(to if i == index else node for i, node in enumerate(piece.nodes)))
