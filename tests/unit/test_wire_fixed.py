"""The headers that are no JSON: each comes out as it went in, and what is cut, longer or out of bounds is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distfs.errors import Corrupt, DistfsError, ProtocolError
from distfs.formats import wire
from distfs.formats.features import PLAIN, Extra, Features, pack_records
from distfs.formats.fixed import MAX_REQUEST, TO_SIZE, Cells, End, Get, Put, Stored, Whole
from distfs.formats.fragment import (
    MAX_BLOCK,
    CellEntry,
    FragmentHeader,
    FragmentTable,
    checksum,
    pack_footer,
    pack_whole,
    read_layout,
)
from distfs.formats.wire import Type
from distfs.headers.traceparent import PACKED_SIZE
from distfs.model import MAX_K, MAX_M, MAX_NAME_BYTES, FragmentId, Policy

CLUSTER, NODE, SLICE, FILE = UUID(int=1), UUID(int=4), UUID(int=2), UUID(int=3)
TO = CLUSTER.bytes + NODE.bytes
HEADER = FragmentHeader(CLUSTER, SLICE, 1, Policy(4, 2), 1 << 20, FILE, 7, "naïve \ud83d.txt", "text/plain")

counts = st.integers(0, (1 << 63) - 1)
seconds = st.floats(allow_nan=False)
requests = st.binary(max_size=MAX_REQUEST)
tos = st.binary(min_size=TO_SIZE, max_size=TO_SIZE)
ids = st.builds(FragmentId, st.uuids(), st.integers(0, MAX_K + MAX_M - 1))
entries = st.builds(
    CellEntry,
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
packed = st.binary(max_size=5000)
traces = st.just(b"") | st.binary(min_size=PACKED_SIZE, max_size=PACKED_SIZE)
bits = st.integers(0, 2**32 - 1)
records = st.dictionaries(st.integers(0, 2**16 - 1), st.binary(max_size=60), max_size=8).map(pack_records)
extras = st.just(PLAIN) | st.builds(Extra, st.builds(Features, bits, bits, bits), records)
headers: st.SearchStrategy[Any] = st.one_of(
    st.builds(Get, tos, seconds, ids, counts, counts, st.booleans(), requests, traces),
    st.builds(Put, tos, seconds, counts, packed, requests, traces),
    st.builds(Whole, tos, seconds, counts, st.booleans(), entries, packed, requests, traces),
    st.builds(End, counts, st.booleans(), extras),
    st.builds(Stored, st.binary(min_size=8, max_size=8)),
    st.builds(Cells, counts, st.booleans(), counts, extras),
)


@given(headers)
def test_a_header_comes_out_as_it_went_in(header: Any) -> None:
    raw = header.encode()
    assert type(header).decode(raw) == header
    wire.encode(Type.PUT, raw)  # it is no longer than a header may be


@given(headers, st.data())
def test_a_header_that_is_cut_or_longer_is_refused(header: Any, data: st.DataObject) -> None:
    assume(getattr(header, "extra", PLAIN) is PLAIN)  # of records each is a few bytes more
    raw = header.encode()
    shorter = raw[: data.draw(st.integers(0, len(raw) - 1))]
    most = 11 if isinstance(header, End | Cells) else 20  # feature bits may follow these
    longer = raw + data.draw(st.binary(min_size=1, max_size=most))
    for wrong in (shorter, longer):
        assume(len(raw) - len(wrong) != PACKED_SIZE)  # as whole, without a trace
        with pytest.raises(ProtocolError, match="wrong length"):
            type(header).decode(wrong)


@pytest.mark.parametrize("kind", [Get, Put, Whole, End, Stored, Cells])
@given(st.binary(max_size=300))
def test_whatever_bytes_come_are_a_header_or_refused(kind: Any, raw: bytes) -> None:
    try:
        read = kind.decode(raw)
    except ProtocolError:
        return
    again = kind.decode(read.encode())
    assert again[2:] == read[2:]  # a deadline may be no number, which is not even what it is itself


@given(st.binary(min_size=TO_SIZE + 8 + 8, max_size=TO_SIZE + 16), packed)
def test_whatever_a_put_says_is_a_fragment_or_refused(start: bytes, header: bytes) -> None:
    for said in (Put(TO, 1, 5, header, b""), Whole(TO, 1, 5, True, CellEntry(5, 0, 6, 7), header, b"")):
        with pytest.raises((ProtocolError, Corrupt)):
            said.fragment()
        assert said.name == "of no good header"


@given(st.integers(0, 7), st.data())
def test_a_fragments_header_with_a_wrong_bit_is_refused(bit: int, data: st.DataObject) -> None:
    raw = bytearray(HEADER.pack())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << bit
    with pytest.raises((Corrupt, ProtocolError)):
        Put(TO, 1, 5, bytes(raw), b"").fragment()


def test_a_fragment_header_survives_the_round_trip() -> None:
    put = Put.decode(Put(TO, 2.5, 9, HEADER.pack(), b"r").encode())
    assert put.fragment().pack() == HEADER.pack()
    assert put.name == str(HEADER.id)
    long = FragmentHeader(CLUSTER, SLICE, 1, Policy(1, 1), 4096, FILE, 0, "\u20ac" * 30_000, "x" * 70_000)
    received = Put.decode(Put(TO, 2.5, 9, long.pack(), b"r").encode()).fragment()
    assert received.pack() == long.pack()
    assert len(received.name.encode()) <= MAX_NAME_BYTES


def changed(**fields: Any) -> bytes:
    return HEADER.__class__(**{s: getattr(HEADER, s) for s in HEADER.__slots__} | fields).pack()


WRONG = {
    "an index beyond the policy": changed(index=6),
    "no k": changed(policy=Policy(0, 2)),
    "a k that is too large": changed(policy=Policy(MAX_K + 1, 2)),
    "an m that is too large": changed(policy=Policy(4, MAX_M + 1)),
    "no block": changed(block_size=0),
    "a huge block": changed(block_size=MAX_BLOCK + 1),
    "another cluster": changed(cluster=NODE),
    "padding": HEADER.pack(4096),
    "more behind it": HEADER.pack() + b"\0",
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=WRONG)
def test_a_fragment_out_of_bounds_is_refused(raw: bytes) -> None:
    for said in (Put(TO, 1, 5, raw, b""), Whole(TO, 1, 5, True, CellEntry(5, 0, 6, 7), raw, b"")):
        with pytest.raises((ProtocolError, Corrupt), match="out of bounds|another cluster|behind it"):
            said.fragment()


HUGE = 1 << 63
OUT_OF_BOUNDS: dict[str, Callable[[], object]] = {
    "GET's first": lambda: Get.decode(Get(TO, 1, HEADER.id, HUGE, 1, False, b"").encode()),
    "GET's many": lambda: Get.decode(Get(TO, 1, HEADER.id, 0, HUGE, False, b"").encode()),
    "GET's index": lambda: Get.decode(Get(TO, 1, FragmentId(SLICE, 16), 0, 1, False, b"").encode()),
    "PUT's size": lambda: Put.decode(Put(TO, 1, HUGE, b"", b"").encode()),
    "WHOLE's size": lambda: Whole.decode(Whole(TO, 1, HUGE, True, CellEntry(0, 0, 0, 0), b"", b"").encode()),
    "END's size": lambda: End.decode(End(HUGE, True).encode()),
    "CELLS' size": lambda: Cells.decode(Cells(HUGE, True, 0).encode()),
}


@pytest.mark.parametrize("decode", OUT_OF_BOUNDS.values(), ids=OUT_OF_BOUNDS)
def test_a_number_out_of_bounds_is_refused(decode: Callable[[], object]) -> None:
    with pytest.raises(DistfsError, match="what cannot be"):
        decode()


def test_a_requests_id_that_is_too_long_is_cut() -> None:
    assert Get.decode(Get(TO, 1, HEADER.id, 0, 1, False, b"x" * 500).encode()).request == b"x" * MAX_REQUEST


def test_the_bytes_on_the_wire_have_not_changed() -> None:
    to = bytes(range(TO_SIZE))
    get = Get(to, 1.5, HEADER.id, 2, 3, True, b"req").encode()
    assert get == to + struct.pack(">d16sBQQBB", 1.5, SLICE.bytes, 1, 2, 3, 1, 3) + b"req"
    put = Put(to, 1.5, 9, b"head", b"req").encode()
    assert put == to + struct.pack(">dQBH", 1.5, 9, 3, 4) + b"headreq"
    entry = CellEntry(5, 0, 6, 7)
    whole = Whole(to, 1.5, 9, True, entry, b"head", b"req").encode()
    assert whole == to + struct.pack(">dQB", 1.5, 9, 1) + entry.pack() + struct.pack(">BH", 3, 4) + b"headreq"
    assert End(9, True).encode() == struct.pack(">QB", 9, 1)
    assert Stored(b"12345678").encode() == b"12345678"
    assert Cells(9, False, 21).encode() == struct.pack(">QBQ", 9, 0, 21)


@given(st.binary(min_size=1, max_size=500), st.booleans())
def test_a_fragment_of_one_cell_is_laid_out_as_any_other(cell: bytes, last: bool) -> None:
    entry = CellEntry(len(cell), 0, checksum(cell), checksum(cell))
    table = FragmentTable((entry,), len(cell), last)
    header = HEADER.pack()
    whole = pack_whole(header, entry, cell, len(cell), last)
    footer = pack_footer(table, table.pack(), len(header) + len(cell), header)
    assert whole == header + cell + table.pack() + footer
    layout = read_layout(len(whole), lambda length, offset: whole[offset : offset + length])
    assert (layout.table, layout.cells_at) == (table, len(header))
    assume(len(cell) > 1)
    with pytest.raises(Corrupt):
        read_layout(len(whole) - 1, lambda length, offset: whole[offset : offset + length])
