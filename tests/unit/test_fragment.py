"""The fragment format: what is written is read, and nothing else is."""

from __future__ import annotations

import struct
from itertools import pairwise
from uuid import UUID

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from distfs.errors import Corrupt
from distfs.formats.fragment import (
    ENTRY_SIZE,
    FOOTER_SIZE,
    MAX_HEADER,
    CellEntry,
    FragmentHeader,
    FragmentTable,
    checksum,
    pack_footer,
    read_layout,
    slice_digest,
)
from distfs.model import MAX_NAME_BYTES, MAX_TYPE_BYTES, Policy

CLUSTER, SLICE, FILE = UUID(int=1), UUID(int=2), UUID(int=3)
U64 = st.integers(0, 2**64 - 1)

headers = st.builds(
    FragmentHeader,
    cluster=st.uuids(),
    slice=st.uuids(),
    index=st.integers(0, 15),
    policy=st.builds(Policy, st.integers(1, 8), st.integers(0, 8)),
    block_size=st.integers(1, 16 << 20),
    file=st.uuids(),
    ordinal=st.integers(0, 2**32 - 1),
    name=st.text(max_size=200),
    content_type=st.text(max_size=60),
)
entries = st.builds(CellEntry, st.integers(0, 50), st.just(0), U64, U64)


def parse(data: bytes) -> tuple[FragmentHeader, FragmentTable, int]:
    said, table, packed, cells_at = read_layout(
        len(data), lambda length, offset: data[offset : offset + length]
    )
    header, length = FragmentHeader.unpack(data)
    assert said == (header.slice.bytes, header.index)
    assert (packed, cells_at) == (table.pack(), length)
    return header, table, length


def fragment(
    header: FragmentHeader, cells: list[bytes], slice_size: int, last: bool, align: int = 1
) -> bytes:
    """A whole fragment's bytes, each cell with its own checksum and, as its block's, one of it reversed."""
    table = FragmentTable(
        tuple(CellEntry(len(c), 0, checksum(c), checksum(c[::-1])) for c in cells), slice_size, last
    )
    head = header.pack(align)
    data, packed = b"".join(cells), table.pack()
    return head + data + packed + pack_footer(table, packed, len(head) + len(data), head)


TINY_HEADER = FragmentHeader(CLUSTER, SLICE, 1, Policy(2, 1), 4096, FILE, 7, "naïve.txt", "text/plain")
TINY = fragment(TINY_HEADER, [b"first cell", b"second"], 8000, True)

#: Version 1 on disk. If this changes, fragments that exist cannot be read: make a version 2 instead.
GOLDEN = (
    "444653465241470a01006900000000000000000000000000000000000001000000000000000000000000000000020000"
    "000000000000000000000000000307000000010201001000000a000a006e61c3af76652e747874746578742f706c6169"
    "6ee16252a3765b760a66697273742063656c6c7365636f6e640a00000000a7e110484458004f7fbee06c8e8d3eaf0600"
    "0000003a084b0511425830c978719b2e32f60b444653464f4f540a010001020000007900000000000000401f00000000"
    "00007f6b97cdec812c4b6d366cd578f5b4dbb707f59ca19fba39"
)


def test_the_format_on_disk_has_not_changed() -> None:
    assert TINY.hex() == GOLDEN
    head, table, cells_at = parse(bytes.fromhex(GOLDEN))
    assert head == TINY_HEADER
    assert (table.slice_size, table.last, table.offsets) == (8000, True, (0, 10, 16))
    assert bytes.fromhex(GOLDEN)[cells_at:][:16] == b"first cellsecond"


@given(headers, st.lists(st.binary(max_size=40), max_size=8), U64, st.booleans(), st.sampled_from([1, 4096]))
def test_a_fragment_survives_the_round_trip(
    header: FragmentHeader, cells: list[bytes], size: int, last: bool, align: int
) -> None:
    data = fragment(header, cells, size, last, align)
    head, table, cells_at = parse(data)
    assert head == header
    assert (table.slice_size, table.last) == (size, last)
    assert cells_at % align == 0
    starts = [cells_at + offset for offset in table.offsets]
    assert [data[a:b] for a, b in pairwise(starts)] == cells


@given(st.text(min_size=300, max_size=3000), st.text(min_size=300, max_size=500))
def test_long_names_are_cut_at_a_character(name: str, kind: str) -> None:
    header = FragmentHeader(CLUSTER, SLICE, 0, Policy(1, 0), 4096, FILE, 0, name, kind)
    packed = header.pack(4096)
    assert len(packed) <= MAX_HEADER
    kept, _ = FragmentHeader.unpack(packed)
    assert name.startswith(kept.name)
    assert kind.startswith(kept.content_type)
    assert len(kept.name.encode()) > MAX_NAME_BYTES - 4 or kept.name == name
    assert len(kept.content_type.encode()) > MAX_TYPE_BYTES - 4


def test_a_name_that_is_no_valid_unicode_is_kept_readable() -> None:
    header = FragmentHeader(CLUSTER, SLICE, 0, Policy(1, 0), 4096, FILE, 0, "a\ud800b", "x")
    assert FragmentHeader.unpack(header.pack())[0].name == "a?b"


def test_every_flipped_bit_of_header_table_and_footer_is_noticed() -> None:
    _, table, cells_at = parse(TINY)
    cells_end = cells_at + table.offsets[-1]
    for byte in [*range(cells_at), *range(cells_end, len(TINY))]:
        for bit in range(8):
            bad = bytearray(TINY)
            bad[byte] ^= 1 << bit
            with pytest.raises(Corrupt):
                parse(bytes(bad))


def test_every_flipped_bit_of_padding_is_noticed() -> None:
    data = fragment(TINY_HEADER, [b"cell"], 4, True, align=4096)
    for byte in range(200, 4096, 97):
        bad = bytearray(data)
        bad[byte] ^= 1
        with pytest.raises(Corrupt):
            parse(bytes(bad))


def test_every_flipped_bit_of_a_cell_fails_the_cell_checksum() -> None:
    _, table, cells_at = parse(TINY)
    for number, entry in enumerate(table.entries):
        start = cells_at + table.offsets[number]
        for bit in range(entry.length * 8):
            cell = bytearray(TINY[start : start + entry.length])
            cell[bit // 8] ^= 1 << bit % 8
            assert checksum(cell) != entry.checksum


def test_a_table_of_other_plain_blocks_has_another_digest() -> None:
    _, table, _ = parse(TINY)
    digest = table.digest(4096)
    for number, entry in enumerate(table.entries):
        for bit in range(64):
            other = CellEntry(entry.length, entry.codec, entry.checksum, entry.plain ^ 1 << bit)
            changed = (*table.entries[:number], other, *table.entries[number + 1 :])
            assert FragmentTable(changed, table.slice_size, table.last).digest(4096) != digest
    assert FragmentTable(table.entries, table.slice_size + 1, True).digest(4096) != digest
    assert FragmentTable(table.entries[::-1], table.slice_size, True).digest(4096) != digest
    assert FragmentTable(table.entries[:1], table.slice_size, True).digest(4096) != digest
    assert table.digest(8192) != digest


def test_the_digest_is_the_documented_one() -> None:
    plain = struct.pack("<QIQQ", 5000, 4096, 11, 22)
    assert slice_digest([11, 22], 5000, 4096) == xxhash.xxh3_128_digest(plain)


@pytest.mark.parametrize("length", range(len(TINY)))
def test_a_fragment_cut_short_anywhere_is_noticed(length: int) -> None:
    with pytest.raises(Corrupt):
        parse(TINY[:length])


def test_a_fragment_with_bytes_too_many_is_noticed() -> None:
    _, table, cells_at = parse(TINY)
    for at in (0, cells_at, cells_at + table.offsets[-1], len(TINY) - FOOTER_SIZE, len(TINY)):
        with pytest.raises(Corrupt):
            parse(TINY[:at] + b"\0" + TINY[at:])


def test_a_footer_of_another_fragment_is_noticed() -> None:
    other = fragment(
        FragmentHeader(CLUSTER, UUID(int=9), 1, Policy(2, 1), 4096, FILE, 7, "naïve.txt", "text/plain"),
        [b"first cell", b"second"],
        8000,
        True,
    )
    assert len(other) == len(TINY)
    with pytest.raises(Corrupt, match="header"):
        parse(TINY[:-FOOTER_SIZE] + other[-FOOTER_SIZE:])


def test_another_version_is_refused_in_words() -> None:
    body = bytearray(TINY_HEADER.pack())
    body[8:10] = struct.pack("<H", 2)
    with pytest.raises(Corrupt, match="version 2"):
        FragmentHeader.unpack(body)
    footer = bytearray(TINY[-FOOTER_SIZE:])
    footer[8:10] = struct.pack("<H", 2)
    footer[-8:] = struct.pack("<Q", checksum(footer[:-8]))
    with pytest.raises(Corrupt, match="version 2"):
        parse(TINY[:-FOOTER_SIZE] + bytes(footer))


def footer_of(cells: int, table_offset: int) -> bytes:
    body = struct.pack("<8sHBIQQQQ", b"DFSFOOT\n", 1, 1, cells, table_offset, 0, 0, 0)
    return body + struct.pack("<Q", checksum(body))


@pytest.mark.parametrize(
    ("cells", "offset"), [(2**32 - 1, 0), (0, 2**64 - 1), (1 << 18, 0), ((1 << 18) + 1, 0), (0, 0)]
)
def test_a_footer_with_counts_out_of_bounds_is_refused(cells: int, offset: int) -> None:
    with pytest.raises(Corrupt):
        parse(b"x" * 400 + footer_of(cells, offset))


@given(st.binary(max_size=600))
def test_garbage_is_no_fragment(data: bytes) -> None:
    with pytest.raises(Corrupt):
        parse(data)
    with pytest.raises(Corrupt):
        FragmentHeader.unpack(data)


@given(st.binary(max_size=100).filter(lambda data: len(data) != ENTRY_SIZE))
def test_a_cell_entry_of_another_length_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        CellEntry.unpack(data)


@given(st.lists(entries, max_size=20), U64, st.booleans())
def test_a_table_survives_the_round_trip(cells: list[CellEntry], size: int, last: bool) -> None:
    table = FragmentTable(tuple(cells), size, last)
    assert FragmentTable.unpack(table.pack(), size, last) == table
    assert all(CellEntry.unpack(e.pack()) == e for e in cells)


@given(st.binary(max_size=100).filter(lambda data: len(data) % ENTRY_SIZE))
def test_a_table_of_a_broken_length_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        FragmentTable.unpack(data, 0, True)
