"""Heads that two readers could understand differently, over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.raw_http import HASTY, PATIENCE, Environ, RawClient, echo, put, read_all, serving

LONG = 60_000


def told(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """Answers with what the app was told."""
    body = read_all(environ)
    names = ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "HTTP_X", "HTTP_HOST")
    start_response("200 OK", [])
    facts = {name: environ.get(name) for name in names} | {"body": body.decode("latin-1")}
    return [json.dumps(facts).encode()]


def never(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    raise AssertionError("the app was called")


CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
HOST = b"\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("message", "status", "remedy"),
    [
        (b"PUT /x HTTP/1.0 " + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, 400, "first line"),
        (b"PUT /x HTTP/1.0" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, 400, "HTTP/1.0 has no"),
        (b"PUT /x HTTP/1.1 " + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, 400, "first line"),
        (b"PUT /x HTTP/1.0\t" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, 400, "first line"),
        (b"PUT /x HTTP/1.0\x0b" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, 400, "0x0b"),
        (b"GET /down\tload HTTP/1.1" + HOST + b"\r\n", 400, "%20"),
        (b"GET /x?a\tb HTTP/1.1" + HOST + b"\r\n", 400, "%20"),
        (b"GET\t/x HTTP/1.1" + HOST + b"\r\n", 400, "%20"),
        (b"GET /a b HTTP/1.1" + HOST + b"\r\n", 400, "%20"),
        (b"GET /a#b HTTP/1.1" + HOST + b"\r\n", 400, "%23"),
        (b"GET download/x HTTP/1.1" + HOST + b"\r\n", 400, "begins with /"),
        (b"GET download/x HTTP/1.0\r\n\r\n", 400, "begins with /"),
        (b"GET * HTTP/1.1" + HOST + b"\r\n", 400, "begins with /"),
        (b"get / HTTP/1.1" + HOST + b"\r\n", 400, "capitals"),
        (b"G" * 33 + b" / HTTP/1.1" + HOST + b"\r\n", 501, "method"),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "CR LF"),
        (b"GET / HTTP/1.1\rHost: x\r\r", 400, "CR LF"),
        (b"GET / HTTP/1.1" + HOST + b"A: b\rB: c\r\n\r\n", 400, "CR LF"),
        (b"GET / HTTP/1.1" + HOST + b"A: b\x00\r\n\r\n", 400, "0x00"),
        (b"GET /\x00 HTTP/1.1" + HOST + b"\r\n", 400, "0x00"),
        (b"GET /\x7f HTTP/1.1" + HOST + b"\r\n", 400, "0x7f"),
        (b"GET / HTTP/1.1" + HOST + b"A : b\r\n\r\n", 400, "colon"),
        (b"GET / HTTP/1.1" + HOST + b": b\r\n\r\n", 400, "colon"),
        (b"GET / HTTP/1.1\r\n A: b" + HOST + b"\r\n", 400, "folded"),
        (b"GET / HTTP/1.1" + HOST + b"A:" + b" " * LONG + b"\x00\r\n\r\n", 400, "0x00"),
        (b"GET / HTTP/1.1" + HOST + b"A: b\r\n" * 300 + b"\r\n", 431, "http.max_header_lines"),
        (b"GET /" + b"b" * 70_000, 414, "http.max_header_line"),
        (b"GET / HTTP/1.1" + HOST + b"A: b\r\n" * 11_000, 431, "http.max_header)"),
        (b"\r\n" * 33_000, 431, "empty lines"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_a_remedy(
    message: bytes, status: int, remedy: str
) -> None:
    with serving(never) as server, RawClient(server) as client:
        client.send(message)
        answer = client.answer()
        assert answer.status == status
        assert remedy in answer.body.decode()
        assert answer.body.count(b"\n") == 1
        assert client.rest() == b"", "nothing behind it is taken for a request"


@pytest.mark.parametrize(
    ("target", "path", "query", "uri"),
    [
        ("/upload/dätei", "/upload/dätei", "", "/upload/d%C3%A4tei"),
        ("/upload/d%C3%A4tei", "/upload/dätei", "", "/upload/d%C3%A4tei"),
        ("/x?name=ä", "/x", "name=%C3%A4", "/x?name=%C3%A4"),
        ("http://x/ä", "/ä", "", "http://x/%C3%A4"),
        ("/%09%00", "/\t\x00", "", "/%09%00"),
        ("/100%", "/100%", "", "/100%"),
        ('/{a}|b^\\"<>`', '/{a}|b^\\"<>`', "", '/{a}|b^\\"<>`'),
        ("//a//b", "/a//b", "", "//a//b"),
        ("http://x?a", "/", "a", "http://x?a"),
    ],
)
def test_a_target_is_taken_as_it_would_be_percent_encoded(
    target: str, path: str, query: str, uri: str
) -> None:
    with serving(told) as server, RawClient(server) as client:
        client.send(b"GET " + target.encode() + b" HTTP/1.1" + HOST + b"\r\n")
        facts = json.loads(client.answer().body)
    assert facts["PATH_INFO"].encode("latin-1").decode() == path
    assert (facts["QUERY_STRING"], facts["REQUEST_URI"]) == (query, uri)


def test_an_octet_that_is_no_utf_8_stays_that_octet() -> None:
    with serving(told) as server, RawClient(server) as client:
        client.send(b"GET /\xe4 HTTP/1.1" + HOST + b"\r\n")
        facts = json.loads(client.answer().body)
    assert (facts["PATH_INFO"], facts["REQUEST_URI"]) == ("/\xe4", "/%E4")


def test_a_refusal_logs_the_path_as_the_app_would(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "distfs.access")
    with serving(never) as server, RawClient(server) as client:
        client.send("PUT /upload/dätei HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n".encode())
        assert client.answer().status == 400
    assert [record.__dict__["path"] for record in caplog.records] == ["/upload/dätei"]


@pytest.mark.parametrize("before", [b"", put(b"x")], ids=["new", "kept alive"])
def test_empty_lines_keep_no_connection_open(before: bytes) -> None:
    """They are no request; so the connection is as idle as one that says nothing."""
    with serving(echo, HASTY) as server, RawClient(server) as client:
        client.send(before)
        if before:
            assert client.answer().body == b"x"
        deadline = threading.Event()
        timer = threading.Timer(PATIENCE, deadline.set)
        timer.start()
        try:
            while client.is_silent(0.05) and not deadline.is_set():
                client.send(b"\r\n")
        except (EOFError, ConnectionError):
            pass
        finally:
            timer.cancel()
        assert not deadline.is_set(), "it is still open"


def test_an_error_in_a_body_ends_the_connection_and_not_the_service() -> None:
    chunks = b"PUT /x HTTP/1.1" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!"
    with serving(told) as server, RawClient(server) as client, RawClient(server) as other:
        client.send(chunks)
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert client.rest() == b""
        other.send(b"GET /y HTTP/1.1" + HOST + b"\r\n")
        assert json.loads(other.answer().body)["PATH_INFO"] == "/y"


def test_a_thousand_requests_in_one_packet_are_answered_in_order() -> None:
    with serving(told) as server, RawClient(server) as client:
        requests = b"".join(b"GET /%d HTTP/1.1" % number + HOST + b"\r\n" for number in range(1000))
        sender = threading.Thread(target=client.send, args=[requests])
        sender.start()
        paths = [json.loads(client.answer().body)["PATH_INFO"] for _ in range(1000)]
        sender.join()
    assert paths == [f"/{number}" for number in range(1000)]
