"""Request bodies: in the loop, streamed by a worker, spooled; with every packet boundary that matters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from distfs.errors import BodyCutShort, ClientGone, Refused
from distfs.host.request import PARTS
from distfs.transfer.blocks import BlockPool
from tests.contract.litter import eventually
from tests.integration.raw_http import (
    CONFIG,
    HASTY,
    PATIENCE,
    THRESHOLD,
    WHOLE,
    Environ,
    Held,
    RawClient,
    echo,
    noise,
    put,
    put_chunked,
    read_all,
    request,
    serving,
)

SMALL = noise(300)
LARGE = noise(3 * THRESHOLD + 1)


@pytest.mark.parametrize("body", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_a_request_may_come_a_byte_at_a_time(body: bytes) -> None:
    with serving(echo) as server, RawClient(server) as client:
        head, data = put(body)[: -len(body) or None], body
        client.send_bytewise(head)
        client.send_bytewise(data[:500])
        client.send(data[500:])
        assert client.answer().body == body


@pytest.mark.parametrize("body", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
def test_header_and_body_may_come_in_one_packet(body: bytes) -> None:
    with serving(echo) as server, RawClient(server) as client:
        client.send(put(body))
        assert client.answer().body == body


@pytest.mark.parametrize("more", [0, 1])
def test_a_body_of_many_parts_is_received_by_its_worker_though_it_is_not_large(more: int) -> None:
    """The loop has one thread for all, and would copy it part by part."""
    app, body = Held(), noise(PARTS + more)
    with serving(app, WHOLE) as server, RawClient(server) as client:
        client.send(put(body)[:-1])
        if more:
            assert app.called.acquire(timeout=PATIENCE)
        else:
            assert not app.called.acquire(timeout=0.1)
        app.go.set()
        client.send(body[-1:])
        assert client.answer().body == body


def test_a_large_body_is_served_while_it_still_comes() -> None:
    app = Held()
    with serving(app) as server, RawClient(server) as client:
        client.send(put(LARGE)[:-1])
        assert app.called.acquire(timeout=PATIENCE)
        app.go.set()
        client.send(LARGE[-1:])
        assert client.answer().body == LARGE


def test_a_small_body_waits_in_the_loop_until_it_is_complete() -> None:
    app = Held()
    app.go.set()
    with serving(app) as server, RawClient(server) as client, RawClient(server) as other:
        client.send(put(SMALL)[:-1])
        other.send(put(b"x", path="/free"))
        assert other.answer().body == b"x"
        assert not app.called.acquire(blocking=False)
        client.send(SMALL[-1:])
        assert client.answer().body == SMALL


@pytest.mark.parametrize("sizes", [[1], [1, 2, 3, 17], [997], [THRESHOLD], [1 << 20]], ids=str)
def test_chunks_of_any_size_make_the_same_body(sizes: list[int]) -> None:
    body = noise(30_001)
    with serving(echo) as server, RawClient(server) as client:
        client.send(put_chunked(body, sizes))
        assert client.answer().body == body


def test_chunks_may_come_a_byte_at_a_time_with_extensions_and_trailers() -> None:
    framed = (
        b'5;name=value;q="a;b"\r\nhello\r\n006 ; x\r\n world\r\n0;last\r\nTrailer: dropped\r\nOther:\r\n\r\n'
    )
    with serving(echo) as server, RawClient(server) as client:
        client.send_bytewise(request("PUT", "/", "Transfer-Encoding: Chunked") + framed)
        assert client.answer().body == b"hello world"
        client.send(put(b"next"))
        assert client.answer().body == b"next"


def test_a_chunked_body_larger_than_any_buffer_arrives_whole() -> None:
    body = noise(5 << 20)
    with serving(echo) as server, RawClient(server) as client:
        sender = threading.Thread(target=client.send, args=[put_chunked(body, [65_000, 700_000, 3])])
        sender.start()
        assert client.answer().body == body
        sender.join()


@pytest.mark.parametrize(
    "framed",
    [
        b"\r\n",
        b"g\r\n",
        b"-5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b" 5\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"11111111111111111\r\n",
        b"5;\x00\r\nhello\r\n0\r\n\r\n",
        b"5;" + b"x" * 5000,
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n" + b"A: b\r\n" * 3000 + b"\r\n",
        (b"1;" + b"x" * 3000 + b"\r\ny\r\n") * 10,
    ],
)
def test_malformed_chunks_are_refused(framed: bytes) -> None:
    with serving(echo) as server, RawClient(server) as client:
        client.send(request("PUT", "/", "Transfer-Encoding: chunked"), framed)
        answer = client.answer()
        assert answer.status == 400
        assert answer.headers["connection"] == "close"
        assert answer.body.endswith(b"\n")
        assert answer.body.count(b"\n") == 1
        assert client.rest() == b""


@pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
def test_the_connection_serves_small_large_and_chunked_bodies_in_turn(whole: bool) -> None:
    config = WHOLE if whole else CONFIG
    with serving(echo, config) as server, RawClient(server) as client:
        for _ in range(3):
            for message, body in [
                (put(SMALL), SMALL),
                (put(LARGE), LARGE),
                (put_chunked(LARGE, [1000]), LARGE),
                (request(), b""),
            ]:
                client.send(message)
                assert client.answer().body == body


@pytest.mark.parametrize("whole", [False, True], ids=["streamed", "whole"])
def test_pipelined_requests_are_answered_in_order(whole: bool) -> None:
    config = WHOLE if whole else CONFIG
    wanted = [SMALL, LARGE, b"", LARGE, SMALL, LARGE, LARGE, b"end"]
    messages = [put(b) if i % 2 else put_chunked(b, [5000]) for i, b in enumerate(wanted)]
    with serving(echo, config) as server, RawClient(server) as client:
        client.send(*messages)
        assert [client.answer().body for _ in wanted] == wanted


def test_pipelined_requests_survive_any_packet_boundary() -> None:
    stream = put(SMALL) + put(LARGE) + put_chunked(b"abc", [1]) + put(b"end")
    with serving(echo) as server, RawClient(server) as client:
        for cut in (1, 60, len(put(SMALL)) + 10, len(put(SMALL)) + 100, len(stream) - 60, len(stream) - 20):
            client.send(stream[:cut])
            client.is_silent()
            client.send(stream[cut:])
            assert [client.answer().body for _ in range(4)] == [SMALL, LARGE, b"abc", b"end"]


@pytest.mark.parametrize("way", ["small", "streamed", "whole"])
def test_generic_apps_may_read_lines_and_iterate(way: str) -> None:
    lines = [b"first\n", b"\n", b"x" * 9000 + b"\n", b"no end"]
    fill = [b"filler\n"] * (0 if way == "small" else 5000)

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        body = environ["wsgi.input"]
        assert [body.readline() for _ in lines[:3]] == lines[:3]
        assert body.read(3) == b"no "
        assert body.readline() == b"end" + (b"filler\n" if fill else b"")
        assert list(body) == fill[1:]
        assert body.read() == body.read(5) == body.readline() == b""
        start_response("200 OK", [])
        return [b"read"]

    config = WHOLE if way == "whole" else CONFIG
    with serving(app, config) as server, RawClient(server) as client:
        client.send(put(b"".join(lines + fill)))
        assert client.answer().body == b"read"


def test_read_without_a_size_gives_all_of_a_streamed_body() -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    with serving(app) as server, RawClient(server) as client:
        client.send(put(LARGE))
        assert client.answer().body == LARGE


# --- memory ---------------------------------------------------------------------------------------


def test_a_small_body_that_there_is_no_memory_for_is_left_to_a_worker() -> None:
    """It comes slowly, and others have what there is: the app is called, and the rest stays in the socket."""
    app, pool = Held(), BlockPool(64 * 1024, 4)
    assert pool.borrow(pool.most_spooled)
    with serving(app, WHOLE, pool) as server, RawClient(server) as client:
        client.send(put(LARGE)[:-1])
        assert app.called.acquire(timeout=PATIENCE)
        app.go.set()
        client.send(LARGE[-1:])
        assert client.answer().body == LARGE
        client.send(put(SMALL))
        assert client.answer().body == SMALL
    assert pool.usage().spooled == pool.most_spooled


def test_small_bodies_of_which_little_came_need_no_worker() -> None:
    pool = BlockPool(1 << 20, 2)
    with serving(echo, WHOLE, pool) as server, ExitStack() as stack, RawClient(server) as other:
        clients = [stack.enter_context(RawClient(server)) for _ in range(200)]
        for client in clients:
            client.send(request("PUT", "/", "Content-Length: 60000"), b"x")
        other.send(put(SMALL))
        assert other.answer().body == SMALL
        eventually(lambda: pool.usage().spooled >= 200_000, "they have come")
        eventually(lambda: not server._loop.workers.busy(), "none of them has a worker")


def test_memory_for_small_bodies_is_borrowed_as_they_come_and_given_back() -> None:
    pool = BlockPool(1 << 20, 8)
    with serving(echo, WHOLE, pool) as server, RawClient(server) as client, RawClient(server) as announced:
        announced.send(request("PUT", "/", "Content-Length: 4000000"), b"x")
        client.send(put(LARGE)[:-1])
        eventually(lambda: pool.usage().spooled > len(LARGE), "it is borrowed")
        assert pool.usage().spooled < 300_000, "what is only announced takes a little"
        client.send(LARGE[-1:])
        assert client.answer().body == LARGE
        announced.reset()
        eventually(lambda: pool.usage().spooled == 0, "it is given back")


# --- clients that go ------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_cut_short_is_said_to_app_and_client(framing: str) -> None:
    app = Held()
    app.go.set()
    message = put(LARGE) if framing == "length" else put_chunked(LARGE, [1000])
    with serving(app) as server, RawClient(server) as client:
        client.send(message[:-3])
        client.half_close()
        answer = client.answer()
        assert answer.status == 400
        assert b"before the body's end" in answer.body
        assert isinstance(app.error, BodyCutShort)
        assert client.rest() == b""


@pytest.mark.parametrize("whole", [False, True], ids=["small", "whole"])
def test_a_body_cut_short_in_the_loop_never_reaches_the_app(whole: bool) -> None:
    app = Held()
    config = WHOLE if whole else CONFIG
    with serving(app, config) as server, RawClient(server) as client:
        client.send(put(LARGE if whole else SMALL)[:-3])
        client.half_close()
        answer = client.answer()
        assert (answer.status, client.rest()) == (400, b"")
        assert not app.called.acquire(blocking=False)


def test_a_client_that_closes_its_sending_side_after_the_request_is_answered() -> None:
    with serving(echo) as server, RawClient(server) as client:
        client.send(put(LARGE))
        client.half_close()
        assert client.answer().body == LARGE
        assert client.rest() == b""


def test_a_client_that_resets_ends_the_read() -> None:
    app = Held()
    with serving(app) as server:
        client = RawClient(server)
        client.send(put(LARGE)[:-1])
        assert app.called.acquire(timeout=PATIENCE)
        client.reset()
        app.go.set()
        assert app.ended.wait(PATIENCE)
        assert isinstance(app.error, ClientGone)


def test_a_client_that_stalls_ends_the_read() -> None:
    app = Held()
    app.go.set()
    with serving(app, HASTY) as server, RawClient(server) as client:
        client.send(put(LARGE)[:-1])
        assert app.ended.wait(PATIENCE)
        assert isinstance(app.error, ClientGone)


@pytest.mark.parametrize("fault", ["cut short", "malformed"])
def test_an_error_of_the_body_is_raised_again_at_every_read(fault: str) -> None:
    seen = []
    message = put(LARGE)[:-3]
    if fault == "malformed":  # and then well-formed again
        message = put_chunked(b"", [1])[:-5] + b"zzz\r\n5\r\nhello\r\n0\r\n\r\n"

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        for read in (lambda: read_all(environ), environ["wsgi.input"].read, environ["wsgi.input"].readline):
            with pytest.raises(BodyCutShort if fault == "cut short" else Refused):
                read()
            seen.append(read)
        start_response("400 Bad Request", [])
        return [b"cut"]

    with serving(app) as server, RawClient(server) as client:
        client.send(message)
        client.half_close()
        assert client.answer().body == b"cut"
        assert len(seen) == 3
