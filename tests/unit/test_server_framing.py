"""Where a body ends: the same for every way its bytes are cut into packets."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as changed
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.config.settings import Bytes, HttpConfig
from distfs.errors import DistfsError, Refused, TooLarge
from distfs.host.head import Head
from distfs.host.http1 import Parser
from distfs.host.http1_events import End, Failed, Pause

NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"


@dataclass
class Outcome:
    body: bytes = b""
    trailers: dict[str, str] | None = None  # None: the body has not ended
    following: str = ""  # the target of the request behind it
    error: DistfsError | None = None


def decode(framing: str, packets: list[bytes], limit: int = 1000) -> Outcome:
    """What a reader of ``packets`` finds behind a head with ``framing``."""
    parser = Parser(changed(HttpConfig(), max_file_size=Bytes(limit), max_form_overhead=Bytes(0)))
    parser.receive(f"PUT / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
    parser.next_event()
    outcome = Outcome()
    for packet in packets:
        parser.receive(packet)
        while not outcome.error and (event := parser.next_event()) is not Pause.NEED_DATA:
            if isinstance(event, memoryview):
                outcome.body += event
            elif isinstance(event, Failed):
                outcome.error = event.error
            elif isinstance(event, Head):
                outcome.following = event.target
            elif isinstance(event, End):
                outcome.trailers = outcome.trailers or dict(event.trailers)
                parser.next_request()
    return outcome


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    extension=st.sampled_from([b"", b";a=b", b' ; quoted="x;y"', b";\xff"]),
    trailers=st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c\r\na: d\r\n"]),
    places=st.lists(st.integers(0, 1000), max_size=12),
)
def test_chunks_decode_the_same_however_they_are_cut(
    chunks: list[bytes], extension: bytes, trailers: bytes, places: list[int]
) -> None:
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
    message = framed + b"0" + extension + b"\r\n" + trailers + b"\r\n" + NEXT
    outcome = decode(CHUNKED, cut(message, places))
    assert (outcome.body, outcome.following) == (b"".join(chunks), "/next")
    assert outcome.trailers == {b"": {}, b"A: b\r\n": {"a": "b"}}.get(trailers, {"a": ", d", "b": "c"})


@given(body=st.binary(min_size=1, max_size=50), places=st.lists(st.integers(0, 1000), max_size=12))
def test_a_length_ends_where_it_says_however_it_is_cut(body: bytes, places: list[int]) -> None:
    outcome = decode(f"Content-Length: {len(body)}", cut(body + NEXT, places))
    assert (outcome.body, outcome.following, outcome.trailers) == (body, "/next", {})


PIECES = [b"0", b"2", b"5", b"a", b";", b" ", b"hello", b"\r\n", b"\r", b"\n", b"A: b", b"\x00"]


@given(
    junk=st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join),
    places=st.lists(st.integers(0, 1000), max_size=6),
)
def test_anything_is_a_body_or_refused_the_same_however_it_is_cut(junk: bytes, places: list[int]) -> None:
    def outcome(packets: list[bytes]) -> object:
        found = decode(CHUNKED, packets, limit=100)
        return type(found.error), str(found.error), found.body, found.trailers

    whole = outcome([junk])
    bytewise = outcome([bytes([byte]) for byte in junk])
    assert outcome(cut(junk, places)) == bytewise == whole


def test_a_chunk_over_the_limit_is_refused_before_its_data() -> None:
    for head in (b"b\r\n", b"5\r\nhello\r\n6\r\n", b"ffffffffffffffff\r\n"):
        assert isinstance(decode(CHUNKED, [head], limit=10).error, TooLarge)
    outcome = decode(CHUNKED, [b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"], limit=10)
    assert (outcome.body, outcome.error) == (b"helloworld", None)


def test_extensions_may_be_long_where_their_chunks_are() -> None:
    """A few kilobytes with each chunk of a few kilobytes are not an attack; with each byte they are."""
    chunk = b"1000;" + b"x" * 4000 + b"\r\n" + bytes(4096) + b"\r\n"
    assert len(decode(CHUNKED, [chunk * 50 + b"0\r\n\r\n"], limit=1 << 20).body) == 50 * 4096
    outcome = decode(CHUNKED, [(b"1;" + b"x" * 4000 + b"\r\ny\r\n") * 50], limit=1 << 20)
    assert type(outcome.error) is Refused


@pytest.mark.parametrize(
    "size",
    [
        "",
        " ",
        "+5",
        "-5",
        "0x5",
        "5_0",
        "1_1",
        " 5",
        "5 ",
        "5\t",
        "g",
        "\xb2",
        "5,",
        "5 5",
    ],
)
def test_a_size_is_hexadecimal_digits_and_nothing_else(size: str) -> None:
    error = decode(CHUNKED, [size.encode("latin-1") + b"\r\nhello\r\n0\r\n\r\n"]).error
    assert type(error) is Refused
    assert "hexadecimal" in str(error)


@pytest.mark.parametrize("size", ["1" * 17, "f" * 21, "0" * 17 + "5"])
def test_a_size_of_more_than_sixteen_digits_is_too_long(size: str) -> None:
    error = decode(CHUNKED, [size.encode() + b"\r\nhello\r\n0\r\n\r\n"]).error
    assert type(error) is Refused
    assert "a chunk's size has more than 16 digits" in str(error)


@pytest.mark.parametrize(
    "size", ["5", "05", "0000000000000005", "5;a", "5 ;a", "5\t;a=b", "5;;", '5;a="\xff;"']
)
def test_a_size_may_have_zeros_and_extensions(size: str) -> None:
    assert decode(CHUNKED, [size.encode("latin-1") + b"\r\nhello\r\n0\r\n\r\n"]).body == b"hello"


@pytest.mark.parametrize(
    "framed",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\rhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5;a\x00\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n: b\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\nA: b\r\n c\r\n\r\n",
        b"0\r\nA: b\x00\r\n\r\n",
        b"0\r\nA: b\n\r\n",
        b"0\r\n\n",
    ],
)
def test_framing_that_could_be_read_in_two_ways_is_refused(framed: bytes) -> None:
    bytewise = [bytes([octet]) for octet in framed]
    assert type(decode(CHUNKED, [framed]).error) is type(decode(CHUNKED, bytewise).error) is Refused


@pytest.mark.parametrize(
    "name",
    ["Content-Length", "transfer-encoding", "HOST", "Connection", "Authorization", "If-Match", "Range"],
)
def test_what_frames_or_permits_a_request_comes_too_late_behind_it(name: str) -> None:
    outcome = decode(CHUNKED, [f"0\r\n{name}: 5\r\nA: b\r\n\r\n".encode(), NEXT])
    assert (outcome.trailers, outcome.following) == ({"a": "b"}, "/next")


def test_what_is_too_long_names_its_setting() -> None:
    for framed, setting in (
        (b"5;" + b"x" * 4100, "max_chunk_line"),
        (b"0\r\n" + b"A: b\r\n" * 1500, "max_trailer"),
    ):
        assert f"http.{setting}" in str(decode(CHUNKED, [framed]).error)


def test_lines_of_just_the_limit_are_taken() -> None:
    size = b"5;" + b"x" * (4096 - 4) + b"\r\n"
    trailer = b"A: " + b"b" * (8192 - 5) + b"\r\n"
    outcome = decode(CHUNKED, [size + b"hello\r\n0\r\n" + trailer + b"\r\n"])
    assert outcome.error is None
    assert len((outcome.trailers or {})["a"]) == 8192 - 5
