"""Where a body ends: the same for every way its bytes are cut into packets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.errors import Refused, TooLarge
from distfs.host.body_framing import ChunkFraming, Framing, LengthFraming

NEXT = b"GET /next HTTP/1.1\r\n"


def decode(framing: Framing, packets: list[bytes]) -> tuple[bytes, bytes]:
    """(the body, what follows it), as a reader of ``packets`` finds them."""
    body, rest = b"", b""
    for packet in packets:
        at = 0
        while at < len(packet) and not framing.ended:
            if framing.data_left:
                piece = packet[at : at + framing.data_left]
                framing.took(len(piece))
                body += piece
                at += len(piece)
            else:
                at = framing.feed(packet, at, len(packet))
        rest += packet[at:]
    return body, rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    extension=st.sampled_from([b"", b";a=b", b' ; quoted="x;y"', b";\xff"]),
    trailers=st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c\r\n"]),
    places=st.lists(st.integers(0, 1000), max_size=12),
)
def test_chunks_decode_the_same_however_they_are_cut(
    chunks: list[bytes], extension: bytes, trailers: bytes, places: list[int]
) -> None:
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    message = framed + b"0" + extension + b"\r\n" + trailers + b"\r\n" + NEXT
    framing = ChunkFraming(limit=1000)
    assert decode(framing, cut(message, places)) == (b"".join(chunks), NEXT)
    assert framing.ended


@given(body=st.binary(max_size=50), places=st.lists(st.integers(0, 1000), max_size=12))
def test_a_length_ends_where_it_says_however_it_is_cut(body: bytes, places: list[int]) -> None:
    framing = LengthFraming(len(body))
    assert decode(framing, cut(body + NEXT, places)) == (body, NEXT)
    assert framing.ended


PIECES = [b"0", b"2", b"5", b"a", b";", b" ", b"hello", b"\r\n", b"\r", b"\n", b"A: b", b"\x00"]


@given(
    junk=st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join),
    places=st.lists(st.integers(0, 1000), max_size=6),
)
def test_anything_is_a_body_or_refused_the_same_however_it_is_cut(junk: bytes, places: list[int]) -> None:
    def outcome(packets: list[bytes]) -> object:
        framing = ChunkFraming(limit=100)
        try:
            return (*decode(framing, packets), framing.ended)
        except Refused as e:
            return type(e)

    whole = outcome([junk])
    bytewise = outcome([bytes([byte]) for byte in junk])
    assert outcome(cut(junk, places)) == bytewise == whole


def test_a_chunk_over_the_limit_is_refused_before_its_data() -> None:
    for head in (b"b\r\n", b"5\r\nhello\r\n6\r\n", b"ffffffffffffffff\r\n"):
        with pytest.raises(TooLarge):
            decode(ChunkFraming(limit=10), [head])
    framing = ChunkFraming(limit=10)
    assert decode(framing, [b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"]) == (b"helloworld", b"")


def test_extensions_may_be_long_where_their_chunks_are() -> None:
    """A few kilobytes with each chunk of a few kilobytes are not an attack; with each byte they are."""
    chunk = b"1000;" + b"x" * 4000 + b"\r\n" + bytes(4096) + b"\r\n"
    body, _ = decode(ChunkFraming(limit=1 << 20), [chunk * 50 + b"0\r\n\r\n"])
    assert len(body) == 50 * 4096
    with pytest.raises(Refused):
        decode(ChunkFraming(limit=1 << 20), [(b"1;" + b"x" * 4000 + b"\r\ny\r\n") * 50])
