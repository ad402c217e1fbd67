"""The fragment format: what one storage node keeps of one slice, as bytes. Pure: no files, no sockets.

    header · cells, contiguous · table (one entry a cell) · footer (fixed size, last)

Integers are little-endian; every checksum is xxh3-64 unless said otherwise. The header is padded so that
the cells of a fragment written with O_DIRECT start aligned. Header and footer hold enough to rebuild MetaDB
from the nodes' disks alone; the footer comes last because a slice's size is known only at its end.

End to end: the plain blocks' checksums are taken where the bytes enter, kept in every fragment's table, and
``slice_digest`` over them is kept in MetaDB. A table is believed only if it matches that digest, and a block
is sent only if it matches the table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple
from uuid import UUID

import xxhash

from distfs.errors import Corrupt
from distfs.model import MAX_NAME_BYTES, MAX_TYPE_BYTES, Buffer, FragmentId, Policy

VERSION = 1
#: Codecs: what a cell is of: the block itself; a frame that it was compressed to.
RAW, ZSTD = 0, 1

MAX_BLOCK = 16 << 20
MAX_CELLS = 1 << 18  # 1 GiB slices of 4 KiB blocks

_HEADER_MAGIC = b"DFSFRAG\n"
_FOOTER_MAGIC = b"DFSFOOT\n"
# magic, version, header length, cluster, slice, file, ordinal, index, k, m, block size, name and type lengths
_HEADER = struct.Struct("<8sHI16s16s16sIBBBIHH")
_CHECKSUM = struct.Struct("<Q")
_SHAPE = struct.Struct("<QI")  # of what a slice's digest is of: size, block size
_ENTRY = struct.Struct("<IBQQ")
# magic, version, last?, cells, table offset, slice size, checksum of header, checksum of table
_FOOTER = struct.Struct("<8sHBIQQQQ")

ENTRY_SIZE = _ENTRY.size
FOOTER_SIZE = _FOOTER.size + _CHECKSUM.size
MAX_HEADER = 4096  # a header, padding included, never exceeds this
MIN_HEADER = _HEADER.size + _CHECKSUM.size


#: xxh3-64 of the bytes; what stands in tables and on the wire.
checksum: Callable[[Buffer], int] = xxhash.xxh3_64_intdigest


class CellEntry(NamedTuple):
    """One table entry: what is stored of one block."""

    length: int  # bytes stored
    codec: int
    checksum: int  # of the stored bytes
    plain: int  # of the whole plain block, the same in every fragment of the slice

    def pack(self) -> bytes:
        return _ENTRY.pack(*self)

    @classmethod
    def unpack(cls, data: Buffer) -> CellEntry:
        try:
            return tuple.__new__(cls, _ENTRY.unpack(data))  # a NamedTuple's own is a function in Python
        except struct.error as e:
            raise Corrupt(f"a cell entry of {memoryview(data).nbytes} bytes, {ENTRY_SIZE} expected") from e


@dataclass(frozen=True, slots=True)
class FragmentHeader:
    """What a fragment says of itself, and of the file it is part of."""

    cluster: UUID
    slice: UUID
    index: int
    policy: Policy
    block_size: int
    file: UUID
    ordinal: int
    name: str  # of the file; cut to MAX_NAME_BYTES
    content_type: str

    @property
    def id(self) -> FragmentId:
        return FragmentId(self.slice, self.index)

    def pack(self, align: int = 1) -> bytes:
        """The header's bytes, zero-padded to a multiple of ``align``."""
        said = self.cluster, self.slice, self.file, self.ordinal, self.policy, self.block_size
        return pack_headers(*said, self.name, self.content_type, (self.index,), align)[0]

    @classmethod
    def unpack(cls, data: Buffer) -> tuple[FragmentHeader, int]:
        """The header at the start of ``data`` and its padded length. Raises Corrupt."""
        data = bytes(memoryview(data)[:MAX_HEADER])
        fields, length, end = _checked_header(data)
        cluster, slice_, file, ordinal, index, k, m, block_size, name_length, _ = fields
        type_at = _HEADER.size + name_length
        name = data[_HEADER.size : type_at].decode("utf-8", "replace")
        kind = data[type_at:end].decode("utf-8", "replace")
        ids = UUID(bytes=cluster), UUID(bytes=slice_)
        return cls(*ids, index, Policy(k, m), block_size, UUID(bytes=file), ordinal, name, kind), length


def pack_headers(
    cluster: UUID,
    slice_: UUID,
    file: UUID,
    ordinal: int,
    policy: Policy,
    block_size: int,
    name: str,
    content_type: str,
    indexes: Iterable[int],
    align: int = 1,
) -> list[bytes]:
    """Of fragments of a slice, which differ in their index alone, without making a FragmentHeader of each."""
    title, kind = bounded(name, MAX_NAME_BYTES), bounded(content_type, MAX_TYPE_BYTES)
    length = -(-(MIN_HEADER + len(title) + len(kind)) // align) * align
    ids = cluster.bytes, slice_.bytes, file.bytes
    shape = policy.k, policy.m, block_size, len(title), len(kind)
    packed = []
    for index in indexes:
        fixed = _HEADER.pack(_HEADER_MAGIC, VERSION, length, *ids, ordinal, index, *shape)
        body = fixed + title + kind
        packed.append((body + _CHECKSUM.pack(checksum(body))).ljust(length, b"\0"))
    return packed


class Outline(NamedTuple):
    """Of a header, what a node must know to keep its fragment."""

    cluster: bytes
    slice: bytes
    number: int  # the fragment's index in it
    k: int
    m: int
    block_size: int

    @property
    def id(self) -> FragmentId:
        return FragmentId(UUID(bytes=self.slice), self.number)


def outline(packed: bytes) -> Outline:
    """Of the header that these bytes are, to the last of them. Raises Corrupt."""
    fields, length, end = _checked_header(packed)
    if not end + _CHECKSUM.size == length == len(packed):
        raise Corrupt("a fragment header with something behind it")
    cluster, slice_, _, _, index, k, m, block_size, *_ = fields
    return Outline(cluster, slice_, index, k, m, block_size)


def named(packed: bytes) -> str:
    """Which fragment a header says it is of, for people: also of one that is no good."""
    try:
        header, _ = FragmentHeader.unpack(packed)
    except Corrupt:
        return "of no good header"
    return str(header.id)


def _checked_header(data: bytes) -> tuple[tuple[Any, ...], int, int]:
    """What a header has between its length and its texts, its padded length, and where its checksum is."""
    if len(data) < MIN_HEADER or not data.startswith(_HEADER_MAGIC):
        raise Corrupt("no fragment header")
    _, version, length, *fields = _HEADER.unpack_from(data)
    if version != VERSION:
        raise Corrupt(f"fragment format version {version}; this distfs reads {VERSION}")
    end = _HEADER.size + fields[-2] + fields[-1]
    if end + _CHECKSUM.size > min(length, len(data)) or length > MAX_HEADER:
        raise Corrupt("fragment header lengths are out of bounds")
    if _CHECKSUM.unpack_from(data, end)[0] != checksum(data[:end]):
        raise Corrupt("fragment header fails its checksum")
    return tuple(fields), length, end


@dataclass(frozen=True)
class FragmentTable:
    """Everything about the cells of one fragment, and the slice's own size."""

    entries: tuple[CellEntry, ...]
    slice_size: int  # plain bytes
    last: bool  # whether the slice is the file's last

    def pack(self) -> bytes:
        return b"".join(e.pack() for e in self.entries)

    @classmethod
    def unpack(cls, data: Buffer, slice_size: int, last: bool) -> FragmentTable:
        try:
            entries = tuple(map(CellEntry._make, _ENTRY.iter_unpack(data)))
        except struct.error as e:
            raise Corrupt("a fragment table of a broken length") from e
        return cls(entries, slice_size, last)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each cell starts, counted from the first; one more than there are cells: the end."""
        known: tuple[int, ...] | None = self.__dict__.get(
            "_offsets"
        )  # functools.cached_property takes a lock
        if known is None:
            known = self.__dict__["_offsets"] = tuple(accumulate([e.length for e in self.entries], initial=0))
        return known

    def digest(self, block_size: int) -> bytes:
        return slice_digest([e.plain for e in self.entries], self.slice_size, block_size)

    def check(self, digest: bytes, block_size: int) -> None:
        """Raises Corrupt unless it is of the slice that has this digest."""
        if self.digest(block_size) != digest:
            raise Corrupt("its table is not the slice's")


def slice_digest(plains: Iterable[int], size: int, block_size: int) -> bytes:
    """xxh3-128 over the plain blocks' checksums, the slice's size and the block size; 16 bytes."""
    return xxhash.xxh3_128_digest(_SHAPE.pack(size, block_size) + b"".join(map(_CHECKSUM.pack, plains)))


def pack_whole(header: bytes, entry: CellEntry, cell: Buffer, slice_size: int, last: bool) -> bytes:
    """A fragment of one cell, from its packed header on."""
    packed = entry.pack()
    footer = _footer(1, slice_size, last, packed, len(header) + len(cell), header)
    return b"".join((header, cell, packed, footer))


def pack_footer(table: FragmentTable, packed_table: bytes, table_offset: int, header: bytes) -> bytes:
    """The fragment's last FOOTER_SIZE bytes. ``header`` is the padded header as it was written."""
    return _footer(len(table.entries), table.slice_size, table.last, packed_table, table_offset, header)


def _footer(
    cells: int, slice_size: int, last: bool, packed_table: bytes, table_offset: int, header: bytes
) -> bytes:
    counts, sums = (cells, table_offset, slice_size), (checksum(header), checksum(packed_table))
    body = _FOOTER.pack(_FOOTER_MAGIC, VERSION, last, *counts, *sums)
    return body + _CHECKSUM.pack(checksum(body))


class Footer(NamedTuple):
    last: bool
    cells: int
    table_offset: int
    slice_size: int
    header_checksum: int
    table_checksum: int

    @classmethod
    def unpack(cls, data: bytes) -> Footer:
        """Raises Corrupt when these are not the last bytes of a whole fragment."""
        if len(data) != FOOTER_SIZE or not data.startswith(_FOOTER_MAGIC):
            raise Corrupt("no fragment footer: cut short or overwritten")
        if _CHECKSUM.unpack_from(data, _FOOTER.size)[0] != checksum(data[: _FOOTER.size]):
            raise Corrupt("fragment footer fails its checksum")
        _, version, last, *rest = _FOOTER.unpack_from(data)
        if version != VERSION:
            raise Corrupt(f"fragment format version {version}; this distfs reads {VERSION}")
        return cls(bool(last), *rest)


class Layout(NamedTuple):
    """What a fragment consists of, checked to be whole."""

    said: tuple[bytes, int]  # of which slice it says it is, and which fragment
    table: FragmentTable
    packed: bytes  # the table as it is stored
    cells_at: int


def read_layout(size: int, pread: Callable[[int, int], bytes]) -> Layout:
    """Parse a whole fragment of ``size`` bytes through ``pread(length, offset) -> bytes``.

    Raises Corrupt unless header, table and footer agree with each other and with ``size``; the cells themselves are
    not read.
    """
    if size < MIN_HEADER + FOOTER_SIZE:
        raise Corrupt(f"a fragment of {size} bytes is cut short")
    footer = Footer.unpack(pread(FOOTER_SIZE, size - FOOTER_SIZE))
    table_size = footer.cells * ENTRY_SIZE
    if footer.cells > MAX_CELLS or footer.table_offset + table_size + FOOTER_SIZE != size:
        raise Corrupt("fragment footer does not fit the fragment's length")
    head = pread(min(MAX_HEADER, footer.table_offset), 0)
    fields, length, _ = _checked_header(head)
    if checksum(head[:length]) != footer.header_checksum:
        raise Corrupt("fragment header is not the one the footer was made for")
    packed = pread(table_size, footer.table_offset)
    if checksum(packed) != footer.table_checksum:
        raise Corrupt("fragment table fails its checksum")
    table = FragmentTable.unpack(packed, footer.slice_size, footer.last)
    if length + table.offsets[-1] != footer.table_offset:
        raise Corrupt("fragment table does not fit the cells")
    return Layout((fields[1], fields[4]), table, packed, length)


@lru_cache(maxsize=64)  # each fragment of a file names the same
def bounded(text: str, limit: int) -> bytes:
    """UTF-8 cut to ``limit`` bytes at a character's edge."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode("utf-8")
