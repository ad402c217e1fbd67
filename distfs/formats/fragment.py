"""The fragment format: what one storage node keeps of one slice, as bytes. Pure: no files, no sockets.

    header · cells, contiguous · table (one entry a cell) · records · footer (fixed size, last)

A fragment without features (``features``) is format version 1, as the first distfs wrote it. Any other is version 2,
which has feature bits in header and footer, and records in either. From there on features make the format grow, and
not its version: where a header's bits are, and a footer's, is the same for ever, under a checksum of their own, so
that an older distfs tells what is newer from what is damaged.

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

from distfs.errors import Corrupt, DistfsError
from distfs.formats.features import MAX_RECORDS, PLAIN, Extra, Features, newer, read_records
from distfs.model import MAX_NAME_BYTES, MAX_TYPE_BYTES, Buffer, FragmentId, Policy

VERSION, EXTENDED = 1, 2
#: Codecs: what a cell is of: the block itself; a frame that it was compressed to.
RAW, ZSTD = 0, 1
#: Those that this distfs can read.
CODECS = frozenset((RAW, ZSTD))

MAX_BLOCK = 16 << 20
MAX_CELLS = 1 << 18  # 1 GiB slices of 4 KiB blocks

_HEADER_MAGIC = b"DFSFRAG\n"
_FOOTER_MAGIC = b"DFSFOOT\n"
# magic, version, header length, cluster, slice, file, ordinal, index, k, m, block size, name and type lengths
_HEADER = struct.Struct("<8sHI16s16s16sIBBBIHH")
#: Before the same fields in version 2: magic, version, header length, feature bits of each kind; and their checksum.
_BITS = struct.Struct("<8sHIIII")
_CHECKSUM = struct.Struct("<Q")
#: From the cluster on, in version 2: as in _HEADER; length of the records, which stand behind the texts.
_FIELDS = struct.Struct("<16s16s16sIBBBIHHH")
_SHAPE = struct.Struct("<QI")  # of what a slice's digest is of: size, block size
_ENTRY = struct.Struct("<IBQQ")
# magic, version, last?, cells, table offset, slice size, checksum of header, checksum of table
_FOOTER = struct.Struct("<8sHBIQQQQ")
#: The same in version 2, with feature bits of each kind, length of the records before it, checksum of them.
_FOOTER_EXTENDED = struct.Struct("<8sHBIQQQQIIIIQ")

ENTRY_SIZE = _ENTRY.size
FOOTER_SIZE = _FOOTER.size + _CHECKSUM.size
FOOTER_EXTENDED_SIZE = _FOOTER_EXTENDED.size + _CHECKSUM.size
MAX_FOOTER = MAX_RECORDS + FOOTER_EXTENDED_SIZE  # records included
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
    extra: Extra = PLAIN  # what is known when it begins

    @property
    def id(self) -> FragmentId:
        return FragmentId(self.slice, self.index)

    def pack(self, align: int = 1) -> bytes:
        """The header's bytes, zero-padded to a multiple of ``align``."""
        said = self.cluster, self.slice, self.file, self.ordinal, self.policy, self.block_size
        return pack_headers(*said, self.name, self.content_type, (self.index,), align, self.extra)[0]

    @classmethod
    def unpack(cls, data: Buffer) -> tuple[FragmentHeader, int]:
        """The header at the start of ``data`` and its padded length. Raises Corrupt, NewerFormat."""
        data = bytes(memoryview(data)[:MAX_HEADER])
        fields, length, _, extra = _checked_header(data)
        cluster, slice_, file, ordinal, index, k, m, block_size, name_length, type_length, *_ = fields
        name_at = _HEADER.size if extra is PLAIN else _FIELDS_AT + _FIELDS.size
        type_at = name_at + name_length
        name = data[name_at:type_at].decode("utf-8", "replace")
        kind = data[type_at : type_at + type_length].decode("utf-8", "replace")
        ids = UUID(bytes=cluster), UUID(bytes=slice_)
        return cls(
            *ids, index, Policy(k, m), block_size, UUID(bytes=file), ordinal, name, kind, extra
        ), length


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
    extra: Extra = PLAIN,
) -> list[bytes]:
    """Of fragments of a slice, which differ in their index alone, without making a FragmentHeader of each."""
    title, kind = bounded(name, MAX_NAME_BYTES), bounded(content_type, MAX_TYPE_BYTES)
    if extra is not PLAIN and extra == PLAIN:
        extra = PLAIN  # whoever made it: what has nothing more is of version 1
    least = MIN_HEADER + len(title) + len(kind)
    if extra is not PLAIN:
        least += _FIELDS_AT + _FIELDS.size - _HEADER.size + len(extra.records)
    length = -(-least // align) * align
    ids = cluster.bytes, slice_.bytes, file.bytes
    shape: tuple[int, ...] = policy.k, policy.m, block_size, len(title), len(kind)
    if extra is not PLAIN:
        begin, texts = _bits(length, extra), title + kind + extra.records
        shape = *shape, len(extra.records)
    packed = []
    for index in indexes:
        if extra is PLAIN:
            fixed = _HEADER.pack(_HEADER_MAGIC, VERSION, length, *ids, ordinal, index, *shape)
            body = fixed + title + kind
        else:
            body = begin + _FIELDS.pack(*ids, ordinal, index, *shape) + texts
        packed.append((body + _CHECKSUM.pack(checksum(body))).ljust(length, b"\0"))
    return packed


def _bits(length: int, extra: Extra) -> bytes:
    """What a header of version 2 begins with."""
    if len(extra.records) > MAX_RECORDS:
        raise ValueError(f"a header's records have {len(extra.records)} bytes, at most {MAX_RECORDS} can be")
    bits = _BITS.pack(_HEADER_MAGIC, EXTENDED, length, *extra.features)
    return bits + _CHECKSUM.pack(checksum(bits))


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

    @property
    def name(self) -> str:
        """Its ``id`` as text, without making one."""
        digits = self.slice.hex()
        parts = digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]
        return f"{'-'.join(parts)}.{self.number}"


def outline(packed: bytes) -> Outline:
    """Of the header that these bytes are, to the last of them. Raises Corrupt, NewerFormat."""
    fields, length, end, extra = _checked_header(packed)
    if extra is not PLAIN:
        extra.features.check_changeable()  # who keeps it answers for it
    if not end + _CHECKSUM.size == length == len(packed):
        raise Corrupt("a fragment header with something behind it")
    cluster, slice_, _, _, index, k, m, block_size, *_ = fields
    return tuple.__new__(Outline, (cluster, slice_, index, k, m, block_size))


def named(packed: bytes) -> str:
    """Which fragment a header says it is of, for people: also of one that is no good."""
    try:
        header, _ = FragmentHeader.unpack(packed)
    except DistfsError:
        return "of no good header"
    return str(header.id)


def _checked_header(data: bytes) -> tuple[tuple[Any, ...], int, int, Extra]:
    """What a header has between its length and its texts, its padded length, where its checksum is, and what else a
    header of version 2 says. Raises Corrupt, NewerFormat."""
    if len(data) < MIN_HEADER or not data.startswith(_HEADER_MAGIC):
        raise Corrupt("no fragment header")
    _, version, length, *fields = _HEADER.unpack_from(data)
    if version != VERSION:
        return _checked_extended(data, version, length)
    end = _HEADER.size + fields[-2] + fields[-1]
    _check_header(data, length, end)
    return tuple(fields), length, end, PLAIN


def _checked_extended(data: bytes, version: int, length: int) -> tuple[tuple[Any, ...], int, int, Extra]:
    """The same of any later version. Where its bits are, and what covers them, is the same for all."""
    if _CHECKSUM.unpack_from(data, _BITS.size)[0] != checksum(data[: _BITS.size]):
        raise Corrupt(f"fragment header of version {version} fails its checksum")
    features = Features(*_BITS.unpack_from(data)[3:])
    if version != EXTENDED:
        raise newer(f"fragment format version {version}")
    features.check_readable()
    if len(data) < _FIELDS_AT + _FIELDS.size:
        raise Corrupt("fragment header is cut short")
    *fields, records = _FIELDS.unpack_from(data, _FIELDS_AT)
    records_at = _FIELDS_AT + _FIELDS.size + fields[-2] + fields[-1]
    end = records_at + records
    _check_header(data, length, end)
    kept = data[records_at:end]
    read_records(kept)
    return tuple(fields), length, end, Extra(features, kept)


_FIELDS_AT = _BITS.size + _CHECKSUM.size


def _check_header(data: bytes, length: int, end: int) -> None:
    """Raises Corrupt. ``length``: with its padding; ``end``: where its checksum is."""
    if end + _CHECKSUM.size > min(length, len(data)) or length > MAX_HEADER:
        raise Corrupt("fragment header lengths are out of bounds")
    if _CHECKSUM.unpack_from(data, end)[0] != checksum(data[:end]):
        raise Corrupt("fragment header fails its checksum")


@dataclass(frozen=True)
class FragmentTable:
    """Everything about the cells of one fragment, and the slice's own size."""

    entries: tuple[CellEntry, ...]
    slice_size: int  # plain bytes
    last: bool  # whether the slice is the file's last
    extra: Extra = PLAIN  # of its fragment; a GET over the wire does not tell it

    def pack(self) -> bytes:
        return b"".join(e.pack() for e in self.entries)

    @classmethod
    def unpack(cls, data: Buffer, slice_size: int, last: bool, extra: Extra = PLAIN) -> FragmentTable:
        try:
            entries = tuple(map(CellEntry._make, _ENTRY.iter_unpack(data)))
        except struct.error as e:
            raise Corrupt("a fragment table of a broken length") from e
        return cls(entries, slice_size, last, extra)

    def check_changeable(self) -> None:
        """Raises NewerFormat for a fragment that takes a newer distfs to make it anew, or to take it away."""
        self.extra.features.check_changeable()
        for entry in self.entries:
            check_codec(entry)

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


def pack_footer(
    table: FragmentTable, packed_table: bytes, table_offset: int, header: bytes, extra: Extra = PLAIN
) -> bytes:
    """The fragment's end, behind its table. ``header`` is the padded header as it was written; ``extra``: what is
    known only now, which takes a header of version 2. Raises Corrupt."""
    return _footer(
        len(table.entries), table.slice_size, table.last, packed_table, table_offset, header, extra
    )


def _footer(
    cells: int,
    slice_size: int,
    last: bool,
    packed_table: bytes,
    table_offset: int,
    header: bytes,
    extra: Extra = PLAIN,
) -> bytes:
    counts, sums = (cells, table_offset, slice_size), (checksum(header), checksum(packed_table))
    if header[8] == VERSION:
        if extra is not PLAIN:
            raise Corrupt("a fragment's end says more than its header has room for")
        body = _FOOTER.pack(_FOOTER_MAGIC, VERSION, last, *counts, *sums)
        return body + _CHECKSUM.pack(checksum(body))
    records = extra.records
    if len(records) > MAX_RECORDS:
        raise Corrupt(f"a fragment's end with records of {len(records)} bytes, at most {MAX_RECORDS} can be")
    features = (a | b for a, b in zip(_BITS.unpack_from(header)[3:], extra.features, strict=True))
    more = *features, len(records), checksum(records)
    body = _FOOTER_EXTENDED.pack(_FOOTER_MAGIC, EXTENDED, last, *counts, *sums, *more)
    return records + body + _CHECKSUM.pack(checksum(body))


class Footer(NamedTuple):
    last: bool
    cells: int
    table_offset: int
    slice_size: int
    header_checksum: int
    table_checksum: int
    features: Features = PLAIN.features
    records: int = 0  # bytes of them, before it
    records_checksum: int = 0

    @classmethod
    def unpack(cls, data: bytes, *, extended: bool = False) -> Footer:
        """Raises Corrupt when these are not the last bytes of a whole fragment, NewerFormat. ``extended``: of one
        whose header is of version 2."""
        form, expected = (_FOOTER_EXTENDED, EXTENDED) if extended else (_FOOTER, VERSION)
        if len(data) != form.size + _CHECKSUM.size or not data.startswith(_FOOTER_MAGIC):
            raise Corrupt("no fragment footer: cut short or overwritten")
        if _CHECKSUM.unpack_from(data, form.size)[0] != checksum(data[: form.size]):
            raise Corrupt("fragment footer fails its checksum")
        _, version, last, *rest = form.unpack_from(data)
        if version != expected:
            raise Corrupt(f"fragment footer of version {version}, its header is of {expected}")
        if not extended:
            return cls(bool(last), *rest)
        features, (records, sum_) = Features(*rest[5:8]), rest[8:]
        features.check_readable()
        cells, table_offset, slice_size, header_sum, table_sum = rest[:5]
        return cls(
            bool(last), cells, table_offset, slice_size, header_sum, table_sum, features, records, sum_
        )


class Layout(NamedTuple):
    """What a fragment consists of, checked to be whole."""

    said: tuple[bytes, int]  # of which slice it says it is, and which fragment
    table: FragmentTable
    packed: bytes  # the table as it is stored
    cells_at: int


def read_layout(size: int, pread: Callable[[int, int], bytes]) -> Layout:
    """Parse a whole fragment of ``size`` bytes through ``pread(length, offset) -> bytes``.

    Raises Corrupt unless header, table and footer agree with each other and with ``size``; the cells themselves are
    not read. Raises NewerFormat.
    """
    if size < MIN_HEADER + FOOTER_SIZE:
        raise Corrupt(f"a fragment of {size} bytes is cut short")
    head = pread(min(MAX_HEADER, size), 0)
    fields, length, _, extra = _checked_header(head)
    extended = extra is not PLAIN
    footer_size = FOOTER_EXTENDED_SIZE if extended else FOOTER_SIZE
    footer = Footer.unpack(pread(footer_size, max(0, size - footer_size)), extended=extended)
    table_size = footer.cells * ENTRY_SIZE
    if (
        footer.cells > MAX_CELLS
        or footer.table_offset + table_size + footer.records + footer_size != size
        or footer.records > MAX_RECORDS
    ):
        raise Corrupt("fragment footer does not fit the fragment's length")
    if length > footer.table_offset or checksum(head[:length]) != footer.header_checksum:
        raise Corrupt("fragment header is not the one the footer was made for")
    packed = pread(table_size, footer.table_offset)
    if checksum(packed) != footer.table_checksum:
        raise Corrupt("fragment table fails its checksum")
    if extended:
        extra |= _tail(footer, pread)
    table = FragmentTable.unpack(packed, footer.slice_size, footer.last, extra)
    if length + table.offsets[-1] != footer.table_offset:
        raise Corrupt("fragment table does not fit the cells")
    return Layout((fields[1], fields[4]), table, packed, length)


def _tail(footer: Footer, pread: Callable[[int, int], bytes]) -> Extra:
    """What a footer of version 2 says beside counts and checksums. Raises Corrupt."""
    records = pread(footer.records, footer.table_offset + footer.cells * ENTRY_SIZE)
    if checksum(records) != footer.records_checksum:
        raise Corrupt("a fragment's records fail their checksum")
    read_records(records)
    return Extra(footer.features, records)


def check_codec(entry: CellEntry) -> None:
    """Raises NewerFormat for a cell that takes a newer distfs to read."""
    if entry.codec not in CODECS:
        raise newer(f"cells of codec {entry.codec}")


@lru_cache(maxsize=64)  # each fragment of a file names the same
def bounded(text: str, limit: int) -> bytes:
    """UTF-8 cut to ``limit`` bytes at a character's edge."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore").encode("utf-8")
