"""Expect and Connection, as the host reads them (RFC 9110, 10.1.1 and 7.6.1; RFC 9112, 9.3)."""

from __future__ import annotations

import pytest

from distfs.config.settings import HttpConfig
from distfs.host.head import Head
from distfs.host.http1 import Parser


def parsed(*headers: str, version: str = "1.1") -> Head:
    lines = [f"PUT /upload/x HTTP/{version}", "Host: x", "Content-Length: 5", *headers, "", ""]
    parser = Parser(HttpConfig())
    parser.receive("\r\n".join(lines).encode("latin-1"))
    head = parser.next_event()
    assert isinstance(head, Head)
    return head


@pytest.mark.parametrize(
    ("headers", "goes_on"),
    [
        ([], True),
        (["Connection: keep-alive"], True),
        (["Connection: close"], False),
        (["connection:CLOSE"], False),
        (["Connection: \t close \t"], False),
        (["Connection: keep-alive, close"], False),
        (["Connection: , ,close,"], False),
        (["Connection: keep-alive", "Connection: close"], False),
        (["Connection: Upgrade, HTTP2-Settings"], True),
        (["Connection: closed"], True),
        (["Connection: close-not"], True),
        (["Connection: not close"], True),
        (["Connection: close;x"], True),
        (['Connection: "close"'], True),
        (["Connection:"], True),
        (["Proxy-Connection: close"], True),
    ],
)
def test_a_connection_goes_on_unless_the_client_says_close(headers: list[str], goes_on: bool) -> None:
    assert parsed(*headers).goes_on == goes_on


@pytest.mark.parametrize(
    ("headers", "goes_on"),
    [
        ([], False),
        (["Connection: Keep-Alive"], True),
        (["Connection: x, keep-alive"], True),
        (["Connection: keep-alive, close"], False),
        (["Connection: keep alive"], False),
        (["Keep-Alive: timeout=5"], False),
    ],
)
def test_one_of_http_1_0_ends_unless_the_client_says_keep_alive(headers: list[str], goes_on: bool) -> None:
    assert parsed(*headers, version="1.0").goes_on == goes_on


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ([], False),
        (["Expect: 100-continue"], True),
        (["EXPECT:100-Continue"], True),
        (["Expect: , 100-continue,"], True),
        (["Expect: x=y, 100-continue"], True),
        (["Expect: x=y", "Expect: 100-continue"], True),
        (["Expect: 100"], False),
        (["Expect: 100-continued"], False),
        (["Expect: 100 continue"], False),
        (['Expect: "100-continue"'], False),
        (['Expect: x="a, 100-continue"'], False),
        (["Expect:"], False),
    ],
)
def test_a_client_waits_for_a_100_that_says_so(headers: list[str], waits: bool) -> None:
    assert parsed(*headers).expects_continue == waits
    assert not parsed(*headers, version="1.0").expects_continue


@pytest.mark.parametrize(
    "name",
    ["X_Forwarded_For", "X_Forwarded-Proto", "X_Team", "Content_Length", "X_Request_Id", "Want_Max-Size"],
)
def test_a_name_with_an_underscore_is_not_taken_for_one_with_a_dash(name: str) -> None:
    """A proxy that sets the one lets a client's other pass."""
    assert parsed(f"{name}: 7").header(name.replace("_", "-")) != "7"
