"""A fragment's file as a node finds it, of either version: it is read, or told to be damaged or newer."""

from __future__ import annotations

import dataclasses
from uuid import UUID

from distfs.errors import DistfsError
from distfs.formats import fragment
from distfs.formats.features import Extra, Features, pack_records
from distfs.formats.fragment import CellEntry, FragmentHeader
from distfs.model import Policy

HEADER = FragmentHeader(
    UUID(int=1), UUID(int=2), 0, Policy(1, 1), 65536, UUID(int=3), 0, "a name", "text/plain"
).pack()
CELL = b"cell" * 8
ENTRY = CellEntry(len(CELL), fragment.RAW, fragment.checksum(CELL), fragment.checksum(CELL))
FRAGMENT = fragment.pack_whole(HEADER, ENTRY, CELL, len(CELL), True)
EXTRA = Extra(Features(compat=1), pack_records({1: b"record"}))
EXTENDED_HEADER = dataclasses.replace(FragmentHeader.unpack(HEADER)[0], extra=EXTRA).pack()
EXTENDED = fragment.pack_whole(EXTENDED_HEADER, ENTRY, CELL, len(CELL), True)


def fragment_file(data: bytes) -> None:
    """A file as a node finds it. With a first byte that is odd all checksums are made right, so that what is behind
    them is read."""
    if data[:1] and data[0] % 2:
        data = repaired(data[1:])

    def pread(size: int, at: int) -> bytes:
        assert 0 <= size <= len(data), "no more is asked for than there is"
        return data[at : at + size]

    for read in (
        lambda: fragment.read_layout(len(data), pread),
        lambda: FragmentHeader.unpack(data),
        lambda: fragment.outline(data),
        lambda: fragment.named(data),
        lambda: fragment.FragmentTable.unpack(data, 1, True),
    ):
        try:
            read()
        except DistfsError as e:
            if type(e) is DistfsError:
                raise AssertionError(f"an error that is not classified: {e}") from e


def repaired(data: bytes) -> bytes:
    """With the checksums of header, table and footer as they should be, where they can be told."""
    if len(data) < fragment.MIN_HEADER + fragment.FOOTER_SIZE:
        return data
    made = bytearray(data)
    if made[8] == fragment.EXTENDED:
        return repaired_extended(made)
    foot = len(made) - fragment.FOOTER_SIZE
    _, _, length, *_, name, kind = fragment._HEADER.unpack_from(made)
    end = fragment._HEADER.size + name + kind
    if end + 8 <= foot:
        made[end : end + 8] = fragment._CHECKSUM.pack(fragment.checksum(bytes(made[:end])))
    magic, version, last, cells, offset, size, _, _ = fragment._FOOTER.unpack_from(made, foot)
    sums = (
        fragment.checksum(bytes(made[: min(length, offset)])),
        fragment.checksum(bytes(made[offset : offset + cells * fragment.ENTRY_SIZE])),
    )
    body = fragment._FOOTER.pack(magic, version, last, cells, offset, size, *sums)
    made[foot:] = body + fragment._CHECKSUM.pack(fragment.checksum(body))
    return bytes(made)


def repaired_extended(made: bytearray) -> bytes:
    """The same of version 2: of the bits and the records, too."""
    foot, fields_at = len(made) - fragment.FOOTER_EXTENDED_SIZE, fragment._BITS.size + 8
    if foot < fields_at + fragment._FIELDS.size:
        return bytes(made)
    made[fields_at - 8 : fields_at] = fragment._CHECKSUM.pack(fragment.checksum(bytes(made[: fields_at - 8])))
    length = fragment._BITS.unpack_from(made)[2]
    end = fields_at + fragment._FIELDS.size + sum(fragment._FIELDS.unpack_from(made, fields_at)[-3:])
    if end + 8 <= foot:
        made[end : end + 8] = fragment._CHECKSUM.pack(fragment.checksum(bytes(made[:end])))
    magic, version, last, cells, offset, size, _, _, *bits, records, _ = (
        fragment._FOOTER_EXTENDED.unpack_from(made, foot)
    )
    behind = offset + cells * fragment.ENTRY_SIZE
    sums = (
        fragment.checksum(bytes(made[: min(length, offset)])),
        fragment.checksum(bytes(made[offset:behind])),
    )
    tail = records, fragment.checksum(bytes(made[behind : behind + records]))
    body = fragment._FOOTER_EXTENDED.pack(magic, version, last, cells, offset, size, *sums, *bits, *tail)
    made[foot:] = body + fragment._CHECKSUM.pack(fragment.checksum(body))
    return bytes(made)


SEEDS = (b"\0" + FRAGMENT, b"\x01" + FRAGMENT, b"\x01" + FRAGMENT[:-1], b"\x01" + EXTENDED)
PARTS = (HEADER, ENTRY.pack(), FRAGMENT[-fragment.FOOTER_SIZE :], CELL, b"\0" * 8, b"\xff" * 8)
