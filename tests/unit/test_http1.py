"""The parser of HTTP/1: its table of states, any cuts, its limits, and that nothing costs more than it weighs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from distfs.config.settings import Bytes, HttpConfig
from distfs.errors import DistfsError
from distfs.host import http1
from distfs.host.head import Head
from distfs.host.http1 import Parser
from distfs.host.http1_events import TRANSITIONS, End, Failed, OtherProtocol, Pause, Read, State
from tests.unit.http1_requests import HAND_MADE, generated
from tests.unit.test_header_hostile import LONG, SHORT, in_proportion

HOST = b"\r\nHost: x\r\n"
GET = b"GET /a HTTP/1.1" + HOST + b"\r\n"
PUT = b"PUT /b HTTP/1.1" + HOST + b"Content-Length: 5\r\n\r\nhello"
CHUNKS = (
    b"PUT /c HTTP/1.1"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n3;x\r\nhel\r\n2\r\nlo\r\n0\r\nA: b\r\n\r\n"
)
SMALL = replace(
    HttpConfig(),
    max_header=Bytes(400),
    max_header_line=Bytes(100),
    max_header_lines=8,
    max_chunk_line=Bytes(40),
    max_trailer=Bytes(60),
)


def seen(packets: list[bytes], config: HttpConfig = SMALL) -> list[object]:
    """The events, with the data of a body in one; until the parser wants more, or nothing."""
    parser, events = Parser(config), list[object]()
    for packet in packets:
        if parser.state is State.FAILED:
            break
        parser.receive(packet)
        for event in told(parser):
            if isinstance(event, bytes) and events and isinstance(events[-1], bytes):
                events[-1] += event
            else:
                events.append(event)
    return events


def told(parser: Parser) -> Iterator[object]:
    while not isinstance(event := parser.next_event(), Pause):
        if isinstance(event, Head):
            yield event.method, event.target, event.path, event.version, event.headers
        elif isinstance(event, memoryview):
            yield bytes(event)
        elif isinstance(event, End):
            yield dict(event.trailers)
            if parser.state is State.DONE:
                parser.next_request()
        elif isinstance(event, Failed):
            yield type(event.error), event.error.status, str(event.error)
            return
        else:
            yield event
            return


def data_of(parser: Parser, most: int = http1.ENDLESS) -> bytes:
    event = parser.next_event(most)
    assert isinstance(event, memoryview)
    return bytes(event)


#: Requests as they should and should not be, and pieces of both; in any order.
PIECES = [
    *(
        GET,
        PUT,
        CHUNKS,
        b"GET /a HTTP/1.0\r\n\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"\x00",
        b"\x16\x03\x01",
    ),
    *(
        b"GET ",
        b"/x ",
        b"HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"X: y\r\n",
        b" folded\r\n",
        b"X : y\r\n",
        b": y\r\n",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"hello",
        b"5\r\n",
    ),
    *(b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"PROXY ", b"SSH-", b"PRI * HTTP/2.0\r\n"),
    *(
        b"X: " + b"y" * 101 + b"\r\n",
        b"Y: " + b"y" * 90 + b"\r\n",
        b"/" + b"z" * 450,
        b"X: y\r\n" * 9,
        b"\xe4",
    ),
]


@pytest.mark.parametrize("seed", range(40))
def test_events_are_the_same_however_the_bytes_are_cut(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        data = b"".join(draw.choices(PIECES, k=draw.randint(1, 8)))
        whole = seen([data])
        assert seen([bytes([octet]) for octet in data]) == whole, data
        for _ in range(3):
            edges = sorted(
                {0, len(data), *(draw.randrange(len(data) + 1) for _ in range(draw.randint(1, 6)))}
            )
            assert seen([data[a:b] for a, b in pairwise(edges)]) == whole, (data, edges)


@pytest.mark.parametrize("seed", range(3))
def test_headers_that_come_again_say_what_they_would_say_the_first_time(seed: int) -> None:
    """They are not read again; whatever first line they follow."""
    lines = [b"GET /a HTTP/1.1", b"GET /b HTTP/1.0", b"PUT /%20?x HTTP/1.1", b"GET http://h/x HTTP/1.1"]
    lines += [
        b"GET /a  HTTP/1.1",
        b"GET /\x01 HTTP/1.1",
        b"GET /a HTTP/1.1\r",
        b"BREW / HTTP/1.1",
        b"GET / HTTP/2",
    ]
    lines += [
        b"",
        b"GET /" + b"x" * SMALL.max_header_line + b" HTTP/1.1",
        b"HEAD /a#b HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
    ]
    again = straight = 0
    waiting = b"GET / HTTP/1.1" + HOST + b"Expect: 100-continue\r\nConnection: keep-alive\r\n\r\n"
    for request in [waiting, *HAND_MADE, *generated(seed)]:
        head, _, _ = request.partition(b"\r\n\r\n")
        same = b"\r\n" + head.partition(b"\r\n")[2] + b"\r\n\r\n"
        for line in lines:
            parser, alone = Parser(SMALL), Parser(SMALL)
            parser.receive(lines[0] + same)
            list(told(parser))
            if parser.state is not State.IDLE:
                break
            again += parser._alike is not None
            parser.receive(line + same)
            alone.receive(line + same)
            one, other = parser.next_event(), alone.next_event()
            if isinstance(one, Head) and isinstance(other, Head):
                assert all(getattr(one, name) == getattr(other, name) for name in Head.__slots__)
            else:
                assert type(one) is type(other)
            assert list(told(parser)) == list(told(alone)), line + same
            assert parser.state is alone.state
            straight += taken_at_once(lines[0] + same, line + same, other, alone.state)
    assert again > 100
    assert straight > 50


def test_only_the_whole_of_the_same_is_taken_at_once() -> None:
    get = b"GET / HTTP/1.1" + HOST + b"\r\n"
    others = [get + b"G", get[:-1], get.replace(b"x", b"y"), get.replace(b"Host", b"HOST"), b"\r\n" + get]
    for other in others:
        parser = Parser(SMALL)
        parser.receive(get)
        list(told(parser))
        assert parser.again(bytearray(get), len(get)) is not None
        parser.next_request()
        assert parser.again(bytearray(other), len(other)) is None
    parser.receive(get + get)
    assert isinstance(parser.next_event(), Head)
    assert isinstance(parser.next_event(), End)
    parser.next_request()
    assert parser.has_more
    assert parser.again(bytearray(get), len(get)) is None


def test_what_follows_one_that_was_taken_at_once_is_read_from_the_beginning() -> None:
    get = b"GET / HTTP/1.1" + HOST + b"\r\n"
    chunked = b"PUT / HTTP/1.1" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nDigest: x\r\n\r\n"
    parser = Parser(SMALL)
    for data in (get, chunked, get):
        parser.receive(data)
        list(told(parser))
        assert parser.trailers == {}
        if parser.again(bytearray(get), len(get)) is not None:
            parser.next_request()


def taken_at_once(before: bytes, data: bytes, other: object, state: State) -> bool:
    """Whether ``again`` took it: then as ``other``, which a new parser has made of it, and whatever follows."""
    parser = Parser(SMALL)
    parser.receive(before)
    list(told(parser))
    for _ in range(3):
        buffer = bytearray(data + b"left from before")
        head = parser.again(buffer, len(data))
        if head is None:
            assert parser.state is State.IDLE
            assert not parser.has_more
            return False
        assert isinstance(other, Head)
        assert all(getattr(head, name) == getattr(other, name) for name in Head.__slots__)
        assert not head.length
        assert not head.chunked
        assert list(told(parser)) == []
        assert parser.ended
        if parser.state is State.DONE:
            parser.next_request()
        assert parser.state is state
        if state is not State.IDLE:
            break
    return True


def test_requests_follow_each_other_in_any_packet() -> None:
    headers = {"HTTP_HOST": "x"}
    assert seen([PUT + GET + CHUNKS + b"\r\n" + GET], HttpConfig()) == [
        ("PUT", "/b", "/b", "1.1", headers | {"CONTENT_LENGTH": "5"}),
        b"hello",
        {},
        ("GET", "/a", "/a", "1.1", headers),
        {},
        ("PUT", "/c", "/c", "1.1", headers | {"HTTP_TRANSFER_ENCODING": "chunked"}),
        b"hello",
        {"a": "b"},
        ("GET", "/a", "/a", "1.1", headers),
        {},
    ]


def test_what_follows_a_request_waits_for_the_next() -> None:
    parser = Parser(HttpConfig())
    parser.receive(GET + PUT)
    assert isinstance(parser.next_event(), Head)
    assert isinstance(parser.next_event(), End)
    parser.receive(GET)
    assert [parser.next_event() for _ in range(3)] == [Pause.DONE] * 3
    assert parser.has_more
    parser.next_request()
    assert [type(parser.next_event()) for _ in range(3)] == [Head, memoryview, End]
    parser.next_request()
    assert [type(parser.next_event()) for _ in range(2)] == [Head, End]
    parser.next_request()
    assert not parser.has_more


@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1" + HOST + b"Connection: close\r\n\r\n"]
)
def test_nothing_follows_a_request_that_is_the_last(head: bytes) -> None:
    parser = Parser(HttpConfig())
    parser.receive(head + GET)
    assert [type(parser.next_event()) for _ in range(2)] == [Head, End]
    assert parser.state is State.LAST
    assert parser.next_event() is Pause.DONE
    with pytest.raises(KeyError):
        parser.next_request()


def test_after_an_error_there_is_nothing_but_the_error() -> None:
    parser = Parser(HttpConfig())
    parser.receive(b"nonsense\r\n\r\n" + GET)
    first = parser.next_event()
    assert isinstance(first, Failed)
    parser.receive(GET)
    assert parser.next_event() is first


def test_what_was_read_before_the_error_is_told() -> None:
    parser = Parser(HttpConfig())
    parser.receive(b"PUT /x?y HTTP/1.1" + HOST + b"Accept: a/b\r\nContent-Length: no\r\n\r\n")
    failed = parser.next_event()
    assert isinstance(failed, Failed)
    head = failed.head
    assert (head.method, head.path, head.query, head.header("Accept")) == ("PUT", "/x", "y", "a/b")


def test_bytes_may_go_past_it_straight_to_where_they_are_wanted() -> None:
    for head, body, rest in (
        (b"Content-Length: 9", b"hello", b""),
        (b"Transfer-Encoding: chunked", b"9\r\nhello", b"\r\n0\r\n\r\n"),
    ):
        parser = Parser(HttpConfig())
        buffer = bytearray(b"PUT / HTTP/1.1" + HOST + head + b"\r\n\r\n" + body + b"unread")
        parser.receive(buffer, len(buffer) - len(b"unread"))
        assert isinstance(parser.next_event(), Head)
        assert [data_of(parser, 3), data_of(parser, 3)] == [b"hel", b"lo"]
        assert parser.next_event() is Pause.NEED_DATA
        assert (parser.data_left, parser.exact) == (4, not rest)
        parser.took(3)
        parser.took(1)
        parser.receive(rest + GET)
        assert parser.next_event() == End({})
        parser.next_request()
        assert isinstance(parser.next_event(), Head)


def test_what_was_received_into_is_free_for_others_after_a_request() -> None:
    parser, buffer = Parser(HttpConfig()), bytearray(GET + GET)
    parser.receive(buffer)
    assert [type(parser.next_event()) for _ in range(2)] == [Head, End]
    parser.next_request()
    buffer[:] = bytes(len(buffer))
    assert isinstance(parser.next_event(), Head)


# --- the table ----------------------------------------------------------------------------------------


def test_every_state_has_a_reader_and_is_reached() -> None:
    assert set(TRANSITIONS) == set(State) == set(http1._READERS)
    reached = {state for row in TRANSITIONS.values() for state in row.values()}
    assert reached == set(State) - {State.FAILED}
    assert {read for row in TRANSITIONS.values() for read in row} == set(Read)


def test_what_takes_framing_can_fail() -> None:
    chunked = b"PUT / HTTP/1.1" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    failing = {
        State.IDLE: b"\r!",
        State.HEAD: b"G\x00",
        State.SIZE: chunked + b"x\r\n",
        State.DATA_END: chunked + b"1\r\nab",
        State.TRAILER: chunked + b"0\r\nx\r\n",
    }
    for state, data in failing.items():
        parser = Parser(HttpConfig())
        states = []
        for octet in data:
            states.append(parser.state)
            parser.receive(bytes([octet]))
            while not isinstance(event := parser.next_event(), Pause | Failed):
                pass
        assert isinstance(event, Failed)
        assert states[-1] is state


@pytest.mark.parametrize(
    ("beginning", "name"),
    [
        (b"\x16", "TLS"),
        (b"SSH-", "SSH"),
        (b"PRI * HTTP/2", "HTTP/2"),
        (b"PROXY ", "the PROXY protocol"),
        (b"{", "no HTTP"),
    ],
)
def test_who_speaks_something_else_is_known_by_the_first_bytes(beginning: bytes, name: str) -> None:
    assert seen([b"\r\n", beginning]) == [OtherProtocol(name)]


# --- limits, to the byte ------------------------------------------------------------------------------

_LINE = b"GET /%s HTTP/1.1"


def limit_cases() -> Iterator[tuple[str, Callable[[int], bytes], int, int]]:
    """(setting, a request with so many of what it bounds, the most, status of one more)"""
    filler = [b"X: " + b"y" * 85 + b"\r\n"] * 3

    def of_size(count: int) -> bytes:
        head = GET[:-2] + b"".join(filler) + b"Y: "
        return head + b"z" * (count - len(head) - 4) + b"\r\n\r\n"

    yield "max_header", of_size, 400, 431
    yield "max_header_line", lambda n: GET[:-2] + b"X: " + b"y" * (n - 3) + b"\r\n\r\n", 100, 431
    yield "max_header_line", lambda n: b"GET /" + b"y" * (n - 14) + b" HTTP/1.1" + HOST + b"\r\n", 100, 414
    yield "max_header_lines", lambda n: GET[:-2] + b"X: y\r\n" * (n - 2) + b"\r\n", 8, 431
    chunked = CHUNKS[: CHUNKS.index(b"3;x")]
    yield "max_chunk_line", lambda n: chunked + b"1;" + b"x" * (n - 4) + b"\r\na\r\n0\r\n\r\n", 40, 400
    yield "max_trailer", lambda n: chunked + b"0\r\nA: " + b"b" * (n - 5) + b"\r\n\r\n", 60, 400


@pytest.mark.parametrize(("setting", "request_of", "most", "status"), list(limit_cases()))
def test_a_limit_holds_to_the_byte(
    setting: str, request_of: Callable[[int], bytes], most: int, status: int
) -> None:
    assert isinstance(seen([request_of(most)])[-1], dict)
    last = seen([request_of(most + 1)])[-1]
    assert isinstance(last, tuple)
    assert last[1] == status
    assert f"http.{setting}" in last[2]
    assert seen([bytes([octet]) for octet in request_of(most + 1)])[-1] == last


def test_data_in_chunks_is_bounded() -> None:
    parser = Parser(HttpConfig())
    parser.receive(CHUNKS)
    parser.next_event()
    parser.limit_body(4)
    assert data_of(parser) == b"hel"
    failed = parser.next_event()
    assert isinstance(failed, Failed)
    assert failed.error.status == 413


# --- time ---------------------------------------------------------------------------------------------

REPEATED = [
    *(
        b" ",
        b"\t",
        b"a",
        b"a ",
        b"\r\n",
        b"\r",
        b"\n",
        b"\x00",
        b"A: b\r\n",
        b"A:b,\r\n",
        b"Connection: a,\r\n",
    ),
    *(b"A_b: c\r\n", b":", b",", b'"', b"%", b"%41", b"x://", b"/", b"?", b"\xe4", b" \r\n", b"X: \xe4\r\n"),
]
BEGINNINGS = [
    b"",
    b"GET /",
    b"GET http://",
    b"GET / HTTP/1.1\r\nHost: ",
    b"GET / HTTP/1.1" + HOST + b"X:",
    b"GET / HTTP/1.1" + HOST + b"Connection:",
    b"GET / HTTP/1.1" + HOST + b"Expect: ",
    b"PUT / HTTP/1.1" + HOST + b"Content-Length: ",
    CHUNKS[: CHUNKS.index(b"3;x")] + b"5",
    CHUNKS[: CHUNKS.index(b"3;x")] + b"5;",
    CHUNKS[: CHUNKS.index(b"3;x")] + b"1\r\na\r\n" * 100 + b"0\r\n",
]
WIDE = replace(
    HttpConfig(),
    max_header=Bytes(4 * LONG),
    max_header_line=Bytes(4 * LONG),
    max_header_lines=4 * LONG,
    max_chunk_line=Bytes(4 * LONG),
    max_trailer=Bytes(4 * LONG),
)


@pytest.mark.parametrize("piece", [1, 1000, LONG * 2], ids=["bytewise", "in packets", "whole"])
@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_what_is_eight_times_as_long_is_read_in_about_eight_times_the_steps(
    beginning: bytes, piece: int
) -> None:
    def read(text: str) -> None:
        data = text.encode("latin-1")
        seen([data[at : at + piece] for at in range(0, len(data), piece)], WIDE)

    most, endings = (16, [b""]) if piece == 1 else (1, [b"\x00", b"\r\n\r\n"])
    for repeated in REPEATED:
        for ending in endings:
            short, long = (
                (beginning + repeated * (size // most // len(repeated)) + ending).decode("latin-1")
                for size in (SHORT, LONG)
            )
            assert in_proportion(read, short, long), (repeated, ending)


def test_errors_are_one_line_with_a_status() -> None:
    for piece in PIECES:
        for event in seen([piece, b"\r\n\r\n"]):
            if isinstance(event, tuple) and isinstance(event[0], type):
                assert issubclass(event[0], DistfsError)
                assert 400 <= event[1] < 600
                assert "\n" not in event[2]
