"""Requests that are refused: before their body where possible, in one line, and so that the client can read it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from distfs.config.settings import Seconds
from distfs.errors import DistfsError, Full, NotFound
from tests.integration.raw_http import (
    CONFIG,
    HASTY,
    PATIENCE,
    THRESHOLD,
    WHOLE,
    Answer,
    Environ,
    RawClient,
    echo,
    noise,
    put,
    put_chunked,
    read_all,
    request,
    serving,
)

TOO_LARGE = (8 << 20) + 1
LARGE = noise(3 * THRESHOLD)
#: For clients that send a little now and then: a busy machine may hold them up for longer than they mean to pause.
CRAWLING = replace(CONFIG, client_stall_timeout=Seconds(3), idle_timeout=Seconds(3))


def refusing(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """An app that looks at no body."""
    start_response("403 Forbidden", [("Content-Length", "3")])
    return [b"no\n"]


def never(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    raise AssertionError("the app was called")


def is_one_line_with_an_id(answer: Answer) -> bool:
    return (
        answer.headers["content-type"] == "text/plain; charset=utf-8"
        and answer.headers["x-content-type-options"] == "nosniff"
        and len(answer.headers["x-request-id"]) > 8
        and answer.body.endswith(b"\n")
        and answer.body.count(b"\n") == 1
    )


# --- 100-continue -----------------------------------------------------------------------------------


def test_continue_is_sent_when_the_app_first_reads() -> None:
    go = threading.Event()

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[Any]:
        assert go.wait(PATIENCE)
        return echo(environ, start_response)

    with serving(app) as server, RawClient(server) as client:
        client.send(request("PUT", "/", f"Content-Length: {len(LARGE)}", "Expect: 100-continue"))
        assert client.is_silent()
        go.set()
        assert client.head().status == 100
        client.send(LARGE)
        assert client.answer().body == LARGE
        client.send(put(b"next"))
        assert client.answer().body == b"next"


def test_an_app_that_refuses_early_gets_no_body_byte() -> None:
    with serving(refusing) as server, RawClient(server) as client:
        client.send(request("PUT", "/", f"Content-Length: {len(LARGE)}", "Expect: 100-continue"))
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert client.rest() == b""


@pytest.mark.parametrize("way", ["small", "whole", "chunked"])
def test_a_body_of_any_size_is_invited(way: str) -> None:
    config = CONFIG if way == "small" else WHOLE
    body = b"few" if way == "small" else LARGE
    message = put_chunked(body, [999]) if way.startswith("chunked") else put(body)
    head, _, data = message.partition(b"\r\n\r\n")
    with serving(echo, config) as server, RawClient(server) as client:
        client.send(head, b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.head().status == 100
        client.send(data)
        assert client.answer().body == body


def test_a_pipelined_request_that_expects_is_invited_after_the_answer_before_it() -> None:
    with serving(echo) as server, RawClient(server) as client:
        for body in (b"few", LARGE):
            expecting = request("PUT", "/", f"Content-Length: {len(body)}", "Expect: 100-continue")
            client.send(put(b"first"), expecting)
            assert client.answer().body == b"first"
            assert client.head().status == 100
            client.send(body)
            assert client.answer().body == body


@pytest.mark.parametrize("body", [b"few", LARGE], ids=["small", "large"])
def test_a_client_that_did_not_wait_is_not_invited(body: bytes) -> None:
    with serving(echo) as server, RawClient(server) as client:
        message = put(body, "Expect: 100-continue")
        client.send(message[:-2])
        client.is_silent()
        client.send(message[-2:])
        assert client.answer().body == body


# --- refusal before the body ------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_early_answer_reaches_a_client_that_goes_on_sending(framing: str) -> None:
    body = noise(4 << 20)
    message = put(body) if framing == "length" else put_chunked(body, [60_000])
    with serving(refusing) as server, RawClient(server) as client:
        client.send(message)
        answer = client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (403, b"no\n", "close")
        assert client.rest() == b""


def test_a_body_left_unread_does_not_cost_the_connection_when_its_end_is_near() -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start = environ["wsgi.input"].read(THRESHOLD)
        start_response("200 OK", [])
        return [b"%d" % len(start)]

    with serving(app) as server, RawClient(server) as client:
        for message in (put(LARGE[: THRESHOLD + 2]), put_chunked(LARGE[: THRESHOLD + 2], [5000])):
            client.send(message)
            answer = client.answer()
            assert answer.body == b"%d" % THRESHOLD
            assert "connection" not in answer.headers


def test_what_was_looked_at_beyond_the_reading_is_still_there_for_the_app() -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterable[Any]:
        yield from ()
        write = start_response("200 OK", [])
        parts = [environ["wsgi.input"].read(100)]
        write(b"begun:")  # decides about the connection, and so looks ahead
        parts.append(read_all(environ))
        yield b"".join(parts)

    body = noise(THRESHOLD + 100)
    with serving(app) as server, RawClient(server) as client:
        for message in (put(body), put_chunked(body, [700])):
            client.send(message)
            assert client.answer().body == b"begun:" + body


@pytest.mark.parametrize("expecting", [True, False], ids=["expecting", "sending"])
def test_a_content_length_over_the_limit_is_refused_before_the_body(expecting: bool) -> None:
    with serving(never) as server, RawClient(server) as client:
        expect = ["Expect: 100-continue"] if expecting else []
        client.send(request("PUT", "/", f"Content-Length: {TOO_LARGE}", *expect))
        if not expecting:
            client.send(noise(TOO_LARGE))
        answer = client.answer()
        assert answer.status == 413
        assert b"larger than the 8.0 MiB that are taken (http.max_file_size)" in answer.body
        assert is_one_line_with_an_id(answer)
        assert client.rest() == b""


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    body = noise(TOO_LARGE - 1)
    with serving(echo) as server, RawClient(server) as client:
        for message in (put(body), put_chunked(body, [1 << 20])):
            sender = threading.Thread(target=client.send, args=[message])
            sender.start()
            assert client.answer().body == body
            sender.join()


def test_a_chunked_body_is_refused_at_the_limit() -> None:
    with serving(echo) as server, RawClient(server) as client:
        client.send(put_chunked(noise(TOO_LARGE), [100_000]))
        answer = client.answer()
        assert answer.status == 413
        assert is_one_line_with_an_id(answer)
        assert client.rest() == b""


BAD_HOSTS = ["a b", "x/y", "x:abc", "x:99999", "[::1", "me@x", "a, b"]


# --- malformed requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET  /two-spaces HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET /\r\nHost: a\r\n\r\n", 400),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (request("GET", "/", "Bad Header: x"), 400),
        (request("GET", "/", "A: b", " folded"), 400),
        (request("PUT", "/", "Content-Length: -1"), 400),
        (request("PUT", "/", "Content-Length: +1"), 400),
        (request("PUT", "/", "Content-Length: 1, 2"), 400),
        (request("PUT", "/", "Content-Length:"), 400),
        *((request("PUT", "/", f"Content-Length: {n}"), 413) for n in (2**63 - 1, 2**63, 10**18, "9" * 5000)),
        (request("PUT", "/", "Transfer-Encoding: chunked", "X-Upload-Length: " + "9" * 5000), 413),
        *((f"GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n".encode(), 400) for bad in BAD_HOSTS),
        (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
        (b"GET http://a%zz/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://me@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (request("PUT", "/", "Content-Length: 1", "Content-Length: 2"), 400),
        (request("PUT", "/", "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (request("PUT", "/", "Transfer-Encoding: chunked", version="1.0"), 400),
        (request("PUT", "/", "Transfer-Encoding: gzip, chunked"), 501),
        (request("PUT", "/", "Transfer-Encoding: chunked, chunked"), 501),
        (request("PUT", "/", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 501),
        (request("PUT", "/", "Transfer-Encoding: identity"), 501),
        (request("PUT", "/", "Transfer-Encoding:"), 501),
        (request("GET", "/", "Large: " + "x" * 70_000), 431),
    ],
)
def test_a_malformed_header_is_refused_in_one_line(message: bytes, status: int) -> None:
    with serving(never) as server, RawClient(server) as client:
        client.send(message, b"trailing bytes that belong to nobody")
        answer = client.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert is_one_line_with_an_id(answer)
        assert client.rest() == b""


def test_a_header_of_blanks_is_refused_at_once() -> None:
    """waitress alone takes half a minute for it."""
    with serving(never) as server, RawClient(server) as client:
        client.send(request("GET", "/", *["A:" + " " * 60_000 + "\x01"]))
        assert client.answer().status == 400


def test_a_length_said_twice_is_a_length() -> None:
    with serving(echo) as server, RawClient(server) as client:
        for lines in (["Content-Length: 4, 4"], ["Content-Length: 4", "content-length: 4"]):
            client.send(request("PUT", "/", *lines), b"body")
            assert client.answer().body == b"body"


@pytest.mark.parametrize(
    ("message", "host", "path"),
    [
        (b"GET /x HTTP/1.1\r\nHost: my_files:80\r\n\r\n", "my_files:80", "/x"),
        (b"GET http://other:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "other:81", "/x"),
        (b"GET HTTP://other HTTP/1.1\r\nHost: a\r\n\r\n", "other", "/"),
        (b"GET /x HTTP/1.1\r\nHost:\r\n\r\n", "", "/x"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "a", "*"),
    ],
)
def test_the_host_is_the_targets_or_else_the_headers(message: bytes, host: str, path: str) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [f"{environ['HTTP_HOST']} {environ['PATH_INFO']}".encode()]

    with serving(app) as server, RawClient(server) as client:
        client.send(message)
        assert client.answer().body.decode() == f"{host} {path}"


@pytest.mark.parametrize(
    ("hello", "name"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "TLS"),
        (b"SSH-2.0-OpenSSH_9\r\n", "SSH"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\n", "the PROXY protocol"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21", "no HTTP"),
        (b"\x03\x00\x00\x13", "no HTTP"),
    ],
)
@pytest.mark.parametrize("before", [b"", put(b"x")], ids=["first", "after a request"])
def test_who_speaks_something_else_is_sent_away_at_once(
    caplog: pytest.LogCaptureFixture, hello: bytes, name: str, before: bytes
) -> None:
    caplog.set_level("INFO", "distfs.server")
    with serving(echo) as server, RawClient(server) as client:
        client.send(before, hello)
        if before:
            assert client.answer().body == b"x"
        with suppress(ConnectionResetError):
            assert client.rest() == b""
    assert f"127.0.0.1 speaks {name} on the port of HTTP" in caplog.text


def test_stray_bytes_behind_a_body_do_not_take_its_answer_away() -> None:
    """As of a client that counted characters for its Content-Length, and not bytes."""
    with serving(echo) as server, RawClient(server) as client:
        client.send(put("aä".encode())[:-1], b"\xa4}")
        answer = client.answer()
        assert answer.status == 200
        client.send(b"more")
        assert client.rest() == b"", "closed, and not reset"


@pytest.mark.parametrize(
    ("pieces", "name"),
    [
        ([b"SS", b"H-2.0-OpenSSH_9\r\n"], "SSH"),
        ([b"PRI * HT", b"TP/", b"2.0\r\n\r\nSM\r\n\r\n"], "HTTP/2"),
        ([b"P", b"ROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\n"], "the PROXY protocol"),
        ([b"\r\n", b"\r\nSSH", b"-2.0-x\r\n"], "SSH"),
    ],
)
def test_who_speaks_something_else_in_small_packets_is_sent_away_too(
    caplog: pytest.LogCaptureFixture, pieces: list[bytes], name: str
) -> None:
    caplog.set_level("INFO", "distfs.server")
    with serving(echo) as server, RawClient(server) as client:
        for piece in pieces[:-1]:
            client.send(piece)
            assert client.is_silent(), "it could still be a request"
        client.send(pieces[-1])
        with suppress(ConnectionResetError):
            assert client.rest() == b""
    assert f"127.0.0.1 speaks {name} on the port of HTTP" in caplog.text


def test_what_follows_a_malformed_request_is_not_served() -> None:
    with serving(echo) as server, RawClient(server) as client:
        client.send(b"nonsense\r\n\r\n", request())
        assert client.answer().status == 400
        assert client.rest() == b""


def test_empty_lines_before_a_request_are_skipped() -> None:
    with serving(echo) as server, RawClient(server) as client:
        for _ in range(2):
            client.send(b"\r\n\r\n\r\n", put(b"body"))
            assert client.answer().body == b"body"


# --- time -------------------------------------------------------------------------------------------


def test_a_header_that_does_not_end_is_refused_in_time() -> None:
    with serving(never, CRAWLING) as server, RawClient(server) as client:
        stop = threading.Event()

        def drip() -> None:
            client.send(b"GET / HTTP/1.1\r\n")
            while not stop.wait(0.02):
                try:
                    client.send(b"A: b\r\n")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = client.answer()
        finally:
            stop.set()
            dripping.join()
        assert answer.status == 408
        assert is_one_line_with_an_id(answer)


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_body_that_stalls_in_the_loop_is_refused_in_time(large: bool) -> None:
    config = replace(HASTY, stream_threshold=WHOLE.stream_threshold)
    with serving(never, config) as server, RawClient(server) as client:
        client.send(put(LARGE if large else b"few")[:-1])
        answer = client.answer()
        assert answer.status == 408
        assert is_one_line_with_an_id(answer)
        assert client.rest() == b""


@pytest.mark.parametrize("first", [b"", put(b"x"), b"\r\n\r\n"], ids=["new", "kept alive", "empty lines"])
def test_an_idle_connection_is_closed_without_a_word(first: bytes) -> None:
    with serving(echo, CRAWLING) as server, RawClient(server) as client:
        client.send(first)
        if first.startswith(b"PUT"):
            assert client.answer().body == b"x"
        assert client.rest() == b""


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_body_that_crawls_in_the_loop_is_refused(large: bool) -> None:
    config = replace(CRAWLING, stream_threshold=WHOLE.stream_threshold)
    with serving(never, config) as server, RawClient(server) as client:
        message = put(LARGE if large else LARGE[:THRESHOLD])
        client.send(message[:1000])
        with suppress(OSError):  # which of them fails is not known
            for byte in message[1000:]:
                client.send(bytes([byte]))
                if not client.is_silent(0.02):  # far from a stall
                    break
        answer = client.answer()
        assert answer.status == 408
        assert b"slower than" in answer.body


def test_urgent_data_ends_the_connection() -> None:
    with serving(echo) as server, RawClient(server) as client:
        client.socket.send(b"!", socket.MSG_OOB)
        with suppress(ConnectionResetError):
            assert client.rest() == b""


def test_a_transfer_that_crawls_is_ended() -> None:
    seen: list[BaseException] = []

    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        try:
            return echo(environ, start_response)
        except DistfsError as e:
            seen.append(e)
            raise

    with serving(app, CRAWLING) as server, RawClient(server) as client:
        message = put(LARGE)
        client.send(message[:1000])
        with suppress(OSError):  # which of them fails is not known
            for byte in message[1000:]:
                client.send(bytes([byte]))
                threading.Event().wait(0.02)
        assert "slower than" in str(seen[0])


# --- what the app raises ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "retry_after"), [(NotFound("no such file"), 404, None), (Full("full"), 507, None)]
)
def test_an_error_of_ours_that_escapes_the_app_is_answered_as_itself(
    error: DistfsError, status: int, retry_after: str | None
) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        raise error

    with serving(app) as server, RawClient(server) as client:
        client.send(request("GET", "/", "X-Request-Id: from-the-client"))
        answer = client.answer()
        assert answer.status == status
        assert answer.body == f"{error}\n".encode()
        assert answer.headers["x-request-id"] == "from-the-client"
        assert answer.headers.get("retry-after") == retry_after


def test_a_bug_of_the_app_is_a_500_without_a_traceback() -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("X-Request-Id", "of-the-app"), ("Content-Length", "5")])
        raise ZeroDivisionError("secret")

    with serving(app) as server, RawClient(server) as client:
        client.send(put(LARGE))
        answer = client.answer()
        assert answer.status == 500
        assert answer.headers["x-request-id"] == "of-the-app"
        assert b"of-the-app" in answer.body
        assert b"secret" not in answer.body
        assert is_one_line_with_an_id(answer)
