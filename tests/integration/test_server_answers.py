"""Answers: small and large, of every framing; cut and never ended falsely; and clients that do not take them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from distfs.errors import ClientGone
from distfs.telemetry.context import current_request_id
from tests.contract.litter import eventually
from tests.integration.raw_http import (
    HASTY,
    PATIENCE,
    THRESHOLD,
    App,
    Environ,
    RawClient,
    echo,
    noise,
    request,
    serving,
)

StartResponse = Callable[..., Any]
BLOCK = 1 << 20


def giving(*blocks: Any, length: int | None = None, status: str = "200 OK") -> App:
    """An app that answers with ``blocks``, one at a time; an exception among them is raised."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[Any]:
        start_response(status, [] if length is None else [("Content-Length", str(length))])
        for block in blocks:
            if isinstance(block, Exception):
                raise block
            yield block

    return app


class Closing:
    """Wraps an app so that one can wait for its iterable's close()."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.closed = threading.Semaphore(0)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterator[Any]:
        try:
            yield from self._app(environ, start_response)
        finally:
            self.closed.release()


@pytest.mark.parametrize(
    "sizes", [[10, 20, 30], [BLOCK, BLOCK, 100], [63_000] * 20, [100, BLOCK, 100]], ids=str
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_blocks_of_any_size_arrive_in_order(sizes: list[int], framing: str) -> None:
    blocks = [noise(size) for size in sizes]
    app = giving(*blocks, length=sum(sizes) if framing == "length" else None)
    with serving(app) as server, RawClient(server) as client:
        for _ in range(2):
            client.send(request())
            answer = client.answer()
            assert answer.body == b"".join(blocks)
            assert ("transfer-encoding" in answer.headers) == (framing == "chunked")


@pytest.mark.parametrize("size", [1000, THRESHOLD, 300_000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_view_may_be_reused_as_soon_as_the_next_is_asked_for(size: int, framing: str) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[memoryview]:
        assert environ["distfs.writes_views"] is True
        start_response("200 OK", [("Content-Length", str(9 * size))] if framing == "length" else [])
        buffer = bytearray(size)
        for number in range(9):
            buffer[:] = bytes([number]) * size
            yield memoryview(buffer)
            buffer[:] = b"\xff" * size

    with serving(app) as server, RawClient(server) as client:
        client.send(request())
        assert client.answer().body == b"".join(bytes([number]) * size for number in range(9))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_connection_goes_on_as_its_version_and_header_say(version: str) -> None:
    with serving(echo) as server:
        for asked, goes_on in [
            ([], version == "1.1"),
            (["Connection: close"], False),
            (["Connection: Keep-Alive"], True),
        ]:
            with RawClient(server) as client:
                client.send(request("PUT", "/", "Content-Length: 3", *asked, version=version), b"abc")
                assert client.answer().body == b"abc"
                if goes_on:
                    client.send(request("GET", "/", "Connection: close", version=version))
                    assert client.answer().body == b""
                assert client.rest() == b""


def test_without_a_length_an_answer_to_http_1_0_ends_with_the_connection() -> None:
    with serving(giving(b"a", b"b")) as server, RawClient(server) as client:
        client.send(request("GET", "/", "Connection: keep-alive", version="1.0"))
        answer = client.answer()
        assert answer.body == b"ab"
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_answers_that_have_no_body_send_none_and_keep_the_connection(status: str) -> None:
    with serving(giving(b"not to be sent", length=14, status=status)) as server, RawClient(server) as client:
        for _ in range(2):
            client.send(request())
            answer = client.answer()
            assert answer.status == int(status[:3])
            assert not answer.headers.keys() & {"content-length", "transfer-encoding", "connection"}


@pytest.mark.parametrize("length", [None, 1 << 40])
def test_head_has_the_header_of_get_and_no_body(length: int | None) -> None:
    app = Closing(endless(BLOCK) if length else giving(*[noise(BLOCK)] * 3))
    with serving(app) as server, RawClient(server) as client:
        for _ in range(2):
            client.send(request("HEAD"))
            answer = client.answer(to_head=True)
            assert answer.headers.get("content-length") == (str(length) if length else None)
            assert "connection" not in answer.headers
            assert app.closed.acquire(timeout=PATIENCE)


@pytest.mark.parametrize("blocks", [[], [b""], [b"", b"", b"ab"]], ids=["none", "empty", "late"])
def test_empty_blocks_do_not_end_an_answer(blocks: list[bytes]) -> None:
    with serving(giving(*blocks)) as server, RawClient(server) as client:
        for _ in range(2):
            client.send(request())
            assert client.answer().body == b"".join(blocks)


def test_a_single_block_in_a_list_has_a_length() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])(b"")
        return [b"one"]

    def plain(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [b"one"]

    for each, length in [(plain, "3"), (app, None)]:
        with serving(each) as server, RawClient(server) as client:
            client.send(request())
            answer = client.answer()
            assert (answer.body, answer.headers.get("content-length")) == (b"one", length)


def test_the_servers_own_headers_are_added_where_the_app_has_none() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("date", "today"), ("ETag", '"x"')])
        return [b""]

    with serving(app) as server, RawClient(server) as client:
        client.send(request())
        headers = client.answer().headers
        assert (headers["date"], headers["etag"], headers["server"]) == ("today", '"x"', "distfs")


@pytest.mark.parametrize(
    "header",
    [("A", "b\r\nC: d"), ("A\nB", "c"), ("A", "\0"), ("Connection", "close"), ("Transfer-Encoding", "x")],
)
def test_headers_an_app_may_not_send_are_a_bug(header: tuple[str, str]) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [header])
        return [b"sent"]

    with serving(app) as server, RawClient(server) as client:
        client.send(request())
        assert client.answer().status == 500


# --- never a fake end ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, BLOCK])
@pytest.mark.parametrize("kind", ["length", "chunked", "until close"])
def test_an_answer_that_fails_midway_is_cut_and_logged_once(
    kind: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    ids = []

    class Ids(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            ids.append((record.levelno, current_request_id()))

    handler = Ids()
    logging.getLogger("distfs.server").addHandler(handler)
    app = Closing(giving(noise(size), ValueError("midway"), length=3 * size if kind == "length" else None))
    version = "1.0" if kind == "until close" else "1.1"
    try:
        with serving(app) as server, RawClient(server) as client:
            client.send(request("GET", "/", "X-Request-Id: the-id", version=version))
            with pytest.raises(ConnectionResetError):
                client.answer()
            assert app.closed.acquire(timeout=PATIENCE)
    finally:
        logging.getLogger("distfs.server").removeHandler(handler)
    assert ids == [(logging.ERROR, "the-id")]
    assert "midway" in caplog.text


@pytest.mark.parametrize("size", [10, BLOCK])
def test_an_answer_shorter_than_its_length_is_cut(size: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving(giving(noise(size), length=size + 1)) as server, RawClient(server) as client:
        client.send(request())
        with pytest.raises(ConnectionResetError):
            client.answer()
    assert f"{size} of the {size + 1} bytes" in caplog.text


@pytest.mark.parametrize("size", [10, BLOCK])
def test_an_answer_longer_than_its_length_ends_with_it(size: int, caplog: pytest.LogCaptureFixture) -> None:
    body = noise(size)
    with serving(giving(body, b"more", length=size - 1)) as server, RawClient(server) as client:
        for _ in range(2):
            client.send(request())
            assert client.answer().body == body[:-1]
    assert f"longer than its Content-Length of {size - 1}" in caplog.text


# --- clients that go ----------------------------------------------------------------------------------


def endless(size: int) -> App:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[memoryview]:
        start_response("200 OK", [("Content-Length", str(1 << 40))])
        block = memoryview(bytearray(size))
        while True:
            yield block

    return app


@pytest.mark.parametrize("leave", ["reset", "close"])
@pytest.mark.parametrize("block", [5000, BLOCK])
def test_a_client_that_leaves_midway_ends_its_answer(leave: str, block: int) -> None:
    app = Closing(endless(block))
    with serving(app) as server:
        client = RawClient(server)
        client.send(request())
        client.read(3 * BLOCK)
        client.reset() if leave == "reset" else client.socket.close()
        assert app.closed.acquire(timeout=PATIENCE)


@pytest.mark.parametrize("block", [100, 5000, BLOCK])
def test_a_client_that_takes_nothing_ends_its_answer(block: int) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield bytes(block)

    closing = Closing(app)
    with serving(closing, HASTY) as server, RawClient(server) as client:
        client.send(request())
        assert closing.closed.acquire(timeout=PATIENCE)


def test_the_write_callable_tells_the_app_that_the_client_is_gone() -> None:
    seen: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [])
        try:
            while True:
                write(bytes(BLOCK))
        except ClientGone as e:
            seen.append(e)
            raise

    with serving(app) as server:
        client = RawClient(server)
        client.send(request())
        client.read(BLOCK)
        client.reset()
        eventually(lambda: bool(seen), "the app was not told")


def test_small_answers_that_nobody_takes_hold_no_worker_and_end_in_time() -> None:
    """The loop keeps what the socket does not take; a worker is free as soon as the app is done."""
    body = noise(60_000)
    config = replace(HASTY, threads=1)
    with serving(giving(body, length=len(body)), config) as server, RawClient(server) as deaf:
        deaf.socket.setblocking(False)
        with suppress(BlockingIOError, ConnectionError):  # or it is cut already
            while True:  # until the server reads no more, having answers that wait
                deaf.socket.send(request() * 20)
        with RawClient(server) as client:
            client.send(request())
            assert client.answer().body == body

        def is_cut() -> bool:
            try:
                deaf.socket.send(b"x")
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            return False

        eventually(is_cut, "the connection that takes nothing is still open")


def test_answers_that_wait_for_a_slow_client_stay_in_order() -> None:
    """What the socket did not take of one goes out before the next, which a worker writes itself."""
    served = 0

    def body(number: int) -> bytes:
        return b"%4d" % number * (20 if number % 10 == 9 else 12_500)

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        nonlocal served
        served += 1
        start_response("200 OK", [])
        return [body(int(environ["PATH_INFO"][1:]))]

    def is_stuck() -> bool:
        before = served
        threading.Event().wait(0.2)
        return 0 < served == before

    with serving(app) as server, RawClient(server) as client:
        count = 300
        client.send(*(request("GET", f"/{number}") for number in range(count)))
        eventually(is_stuck, "the socket took everything")
        for number in range(count):
            assert client.answer().body == body(number)
