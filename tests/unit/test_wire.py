"""The wire, sans-IO: frames come out as they went in, however the bytes are cut, and nothing else comes out."""

from __future__ import annotations

import struct
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.errors import Corrupt, ProtocolError
from distfs.formats import wire
from distfs.formats.fixed import End
from distfs.formats.fragment import ENTRY_SIZE, CellEntry
from distfs.formats.wire import Decoder, Frame, Type

CLUSTER, SLICE, FILE = UUID(int=1), UUID(int=2), UUID(int=3)
BODIES = {
    Type.CELL: wire.MAX_CELL,
    Type.WHOLE: wire.MAX_WHOLE,
    Type.CELLS: wire.MAX_FRAGMENT,
    Type.OK: wire.MAX_LISTED * wire.LISTED.size,
}

small_values = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
json_headers = st.dictionaries(st.text(max_size=10), small_values, max_size=6)
frames = st.one_of(
    st.tuples(st.sampled_from([t for t in Type if t not in BODIES]), json_headers, st.just(b"")),
    st.tuples(st.just(Type.OK), json_headers, st.binary(max_size=200)),
    st.tuples(
        st.just(Type.CELL), st.binary(min_size=ENTRY_SIZE, max_size=ENTRY_SIZE), st.binary(max_size=200)
    ),
)


def test_what_is_no_json_is_in_no_header() -> None:
    with pytest.raises(TypeError, match="UUID"):
        wire.encode(Type.INFO, {"node": SLICE})


def prefix(
    magic: bytes = b"DFSW", version: int = 2, kind: int = Type.INFO, header: int = 2, body: int = 0
) -> bytes:
    return struct.pack(">4sBBHIQ", magic, version, kind, 0, header, body)


def decode(data: bytes) -> Frame:
    decoder = Decoder()
    decoder.feed(data)
    frame = decoder.next_frame()
    assert frame is not None
    return frame


def read_all(decoder: Decoder, pieces: list[bytes]) -> list[tuple[Frame, bytes]]:
    """Every frame with its body, fed piece by piece."""
    done: list[tuple[Frame, bytes]] = []
    frame: Frame | None = None
    body = bytearray()
    for piece in pieces:
        decoder.feed(piece)
        while True:
            frame = frame or decoder.next_frame()
            if frame is None:
                break
            part = bytearray(frame.body_length - len(body))
            body += part[: decoder.take(memoryview(part))]
            if len(body) < frame.body_length:
                break
            done.append((frame, bytes(body)))
            frame, body = None, bytearray()
    assert decoder.buffered == 0
    return done


def test_the_bytes_on_the_wire_have_not_changed() -> None:
    assert wire.encode(Type.INFO, {}).hex() == "44465357020900000000000200000000000000007b7d"
    cell = wire.encode(Type.CELL, CellEntry(5, 0, 6, 7).pack(), 5)
    assert cell.hex() == (
        "4446535702020000000000150000000000000005"  # the prefix
        "05000000"
        "00"
        "0600000000000000"
        "0700000000000000"
    )
    assert wire.encode(Type.OK, {"cursor": None}, 33).hex() == (
        "44465357024000000000000f0000000000000021" + b'{"cursor":null}'.hex()
    )
    assert {t.name: t.value for t in Type} == {
        "PUT": 1, "CELL": 2, "END": 3, "GET": 4, "STAT": 5, "DELETE": 6, "LIST": 7, "VERIFY": 8, "INFO": 9,
        "QUARANTINE": 10, "RELEASE": 11, "DISCARD": 12, "WHOLE": 13, "METRICS": 14, "LOGS": 15, "HEADS": 16,
        "NAME": 17, "TRACES": 18, "OK": 64, "ERROR": 65, "STORED": 66, "CELLS": 67,
    }  # fmt: skip


@given(st.lists(frames, max_size=6), st.data())
def test_frames_survive_being_cut_anywhere(
    sent: list[tuple[Type, dict[str, object] | bytes, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(wire.encode(kind, header, len(body)) + body for kind, header, body in sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    edges = [0, *cuts, len(stream)]
    received = read_all(Decoder(), [stream[a:b] for a, b in pairwise(edges)])
    assert len(received) == len(sent)
    for (kind, header, body), (frame, got) in zip(sent, received, strict=True):
        assert (frame.type, frame.body_length, got) == (kind, len(body), body)
        assert (frame.raw if isinstance(header, bytes) else frame.header()) == header


def test_frames_come_out_when_fed_byte_by_byte() -> None:
    cell = CellEntry(3, 0, 1, 2)
    stream = wire.encode(Type.CELL, cell.pack(), 3) + b"abc" + wire.encode(Type.END, End(3, True).encode())
    (first, body), (second, none) = read_all(Decoder(), [bytes([b]) for b in stream])
    assert (first.type, CellEntry.unpack(first.raw), body) == (Type.CELL, cell, b"abc")
    assert (second.type, End.decode(second.raw), none) == (Type.END, End(3, True), b"")


def test_no_frame_comes_before_its_whole_header() -> None:
    stream = wire.encode(Type.LIST, {"cursor": "", "limit": 5})
    decoder = Decoder()
    for at in range(len(stream)):
        assert decoder.next_frame() is None
        decoder.feed(stream[at : at + 1])
    assert decoder.next_frame() is not None


def test_a_decoder_keeps_nothing_of_what_was_consumed() -> None:
    frame = wire.encode(Type.INFO, {})
    stream = frame * 3000
    decoder = Decoder()
    count = 0
    for at in range(0, len(stream), 1000):  # never at a frame's edge
        decoder.feed(stream[at : at + 1000])
        while decoder.next_frame() is not None:
            count += 1
        assert len(decoder._data) <= 2000
    assert count == 3000


@pytest.mark.parametrize("kind", list(Type))
def test_every_length_is_bounded_before_it_is_believed(kind: Type) -> None:
    most = BODIES.get(kind, 0)
    assert decode(prefix(kind=kind, body=most) + b"{}").body_length == most
    for bad in (prefix(kind=kind, body=most + 1), prefix(kind=kind, header=wire.MAX_HEADER + 1)):
        decoder = Decoder()
        decoder.feed(bad)
        with pytest.raises(ProtocolError, match="out of bounds"):
            decoder.next_frame()


@pytest.mark.parametrize("kind", [0, 19, 63, 68, 255])
def test_an_unknown_type_is_refused(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"type {kind}"):
        decode(prefix(kind=kind))


def test_another_version_is_refused_in_words() -> None:
    with pytest.raises(ProtocolError, match="version 1, this distfs 2: run one release"):
        decode(prefix(version=1))


def test_another_protocol_is_refused_in_words() -> None:
    with pytest.raises(ProtocolError, match="is this a storage node's port"):
        decode(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")


@given(st.binary(min_size=20, max_size=200).filter(lambda data: not data.startswith(b"DFSW\x02")))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


DEEP = b"[" * 30_000
NOT_OBJECTS = [b"", b"[]", b'"text"', b"1", b"null", b"{", b"\xff\xfe", b'{"a":1}x', DEEP, b"1" * 10_000]


@pytest.mark.parametrize("raw", NOT_OBJECTS, ids=range(len(NOT_OBJECTS)))
def test_a_header_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="not"):
        Frame(Type.INFO, raw, 0).header()


def test_a_header_over_the_limit_is_not_sent() -> None:
    wire.encode(Type.INFO, b"x" * wire.MAX_HEADER)
    with pytest.raises(ProtocolError):
        wire.encode(Type.INFO, b"x" * (wire.MAX_HEADER + 1))


def test_a_cell_frame_with_another_header_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        CellEntry.unpack(decode(prefix(kind=Type.CELL) + b"{}").raw)


@given(json_headers | st.dictionaries(st.sampled_from(["slice", "index"]), small_values | st.floats()))
def test_a_request_that_names_no_fragment_is_refused(header: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_id(header)
