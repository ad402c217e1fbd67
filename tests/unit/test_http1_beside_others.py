"""Our parser beside h11 and llhttp: whoever accepts a request, accepts the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from distfs.config.settings import KIB, Bytes, HttpConfig
from tests.unit.http1_others import Told, by_h11, by_llhttp, ours
from tests.unit.http1_requests import HAND_MADE, generated

CONFIG = replace(HttpConfig(), max_file_size=Bytes(1 << 50), max_header_line=Bytes(32 * KIB))
SEEDS = 60
OTHERS: dict[str, Callable[[bytes], Told]] = {"h11": by_h11, "llhttp": by_llhttp}

#: What we refuse and others take: by our words, and why.
STRICTER = {
    "ends in other than CR LF": "a proxy that goes by CR LF alone sees other lines than one that takes LF",
    "folded over lines": "obsolete (RFC 9112, 5.2), and joined in different ways",
    "control character": "RFC 9110, 5.5: dangerous where a log, a terminal or a C string comes next",
    "method in capitals": "methods are case-sensitive (RFC 9110, 9.1), and there is none in small letters",
    "longer than any there is": "RFC 9110, 9.1: 501",
    "CONNECT is for proxies": "its request is a tunnel's, without an end",
    "neither a path nor a URL": "RFC 9112, 3.2: the other two forms are for CONNECT and OPTIONS",
    "the host in its target is none": "RFC 9110, 4.2: an empty host, or user information, must be rejected",
    "has a # in it": "no target has a fragment: the rest of a name would be lost",
    "not METHOD, target and version": "RFC 9112, 3: without a version it is HTTP/0.9, which has no headers",
    "not HTTP/1.0 or HTTP/1.1": "there are no others, and HTTP/2 does not begin so",
    "its Host is missing": "RFC 9112, 3.2: 400 when it is missing, there twice, or no host",
    "both Content-Length and Transfer-Encoding": "RFC 9112, 6.3: the way of smuggling",
    "HTTP/1.0 has no Transfer-Encoding": "RFC 9112, 6.1: its framing is to be held faulty",
    "only Transfer-Encoding taken": "RFC 9112, 6.1: 501; others guess where such a body ends",
    "is not a hexadecimal number": "RFC 9112, 7.1: no blank behind a size",
    "more than 16 digits": "RFC 9112, 7.1: a size that is not understood is an error, and 16 digits are 64 bits",
    "extension has a control character": "as in a header",
    "line does not end in CR LF": "as in a head",
    "not of the form `Name: value`": "a trailer is a header, in another place",
    "http.max_chunk_line": "a limit",
    "http.max_trailer": "a limit",
    "http.max_header)": "a limit",
    "http.max_header_line)": "a limit",
    "http.max_header_lines": "a limit",
}
#: What we take and others refuse: by their words, and why.
LAXER = {
    "h11": {
        "no request line received": "RFC 9112, 2.2: empty lines before a request are skipped",
        "illegal request line": "people type names as they are: UTF-8 is taken as it would be percent-encoded",
        "the connection ends with HTTP/1.0": "RFC 9112, 9.3: keep-alive of HTTP/1.0; ab and older clients use it",
        "illegal chunk header": "RFC 9112, 7.1.1: blanks before a chunk's `;` must be read",
    },
    "llhttp": {
        "Invalid method encountered": "it has a list of methods; here the app says 405",
        "Expected space after method": "the same",
        "Invalid char in url": "people type names as they are",
        "Unexpected char in url server": "the same",
        "Invalid character in Content-Length": "RFC 9110, 8.6: a list of the same number may be taken as it",
        "Duplicate Content-Length": "the same",
        "Invalid character in chunk": "RFC 9112, 7.1.1: blanks before a `;` must be read; extensions are skipped",
        "can't be present with Transfer-Encoding": "RFC 9110, 6.5.1: such trailers are left out, and frame nothing",
        "upgrade": "RFC 9110, 7.8: who does not know the protocol goes on with this one",
    },
}


@pytest.fixture(scope="module")
def differences() -> list[tuple[str, str, str, bytes]]:
    """(whom, where we are, the words that refuse, the bytes), where one accepts and the other does not.

    Where both do, they have the same method, target, headers and body, and so the same end: the next request is
    compared as well.
    """
    found, together = [], 0
    for data in [*HAND_MADE, *(data for seed in range(SEEDS) for data in generated(seed))]:
        here = ours(data, CONFIG)
        for name, other in OTHERS.items():
            there = other(data)
            both = min(len(here.messages), len(there.messages))
            assert here.messages[:both] == there.messages[:both], (name, data)
            together += both
            if len(there.messages) > both:
                found.append((name, "stricter", here.error, data))
            elif len(here.messages) > both:
                found.append((name, "laxer", there.error, data))
    assert together > 5000, "most requests are right"
    return found


def test_a_table_says_why_we_refuse_what_others_accept(
    differences: list[tuple[str, str, str, bytes]],
) -> None:
    used = {why(error, STRICTER, data) for _, way, error, data in differences if way == "stricter"}
    assert set(STRICTER) - used == set(), "reasons for nothing"


@pytest.mark.parametrize("name", OTHERS)
def test_a_table_says_why_we_accept_what_others_refuse(
    differences: list[tuple[str, str, str, bytes]], name: str
) -> None:
    laxer = [row for row in differences if row[:2] == (name, "laxer")]
    used = {why(error, LAXER[name], data) for _, _, error, data in laxer}
    assert set(LAXER[name]) - used == set(), "reasons for nothing"


def why(error: str, reasons: dict[str, str], data: bytes) -> str:
    """The row of the table."""
    found = [words for words in reasons if words in error]
    assert found, f"no row of the table says why: {error!r}, for {data!r}"
    return max(found, key=len)
