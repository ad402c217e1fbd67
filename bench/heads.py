"""Microseconds of the processor to read a request's head: our parser beside waitress's, h11 and llhttp."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import h11
import httptools
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser

from bench.report import Goal, Options, judge, spread, table
from distfs.config.settings import HttpConfig
from distfs.host.http1 import Parser

#: More is more than a small request may spend on it; it takes half of that on the machine of docs/measurements.md.
MOST_US = 15.0
_ROUNDS, _EACH = 9, 2000

_TARGET = b"/download/0b7b2a62-3a0e-4b44-a8c1-0d0e6b9a3c55"
_WRK = b"GET " + _TARGET + b" HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"
_CURL = _WRK[:-2] + b"User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
_BROWSER = (
    _WRK[:-2] + b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en,de;q=0.5\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nReferer: http://127.0.0.1:8080/\r\nConnection: keep-alive\r\n"
    b"Cookie: a=b; c=d\r\nUpgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n"
    b"Sec-Fetch-Site: same-origin\r\nSec-Fetch-User: ?1\r\nPriority: u=0, i\r\n\r\n"
)
_HEADS = {"wrk": _WRK, "curl": _CURL, "a browser": _BROWSER}


@dataclass(slots=True)
class Head:
    of: str
    parser: str
    microseconds: list[float]  # of each round


def run(options: Options, cleanup: ExitStack) -> list[Head]:
    """Rounds of all in turns. Raises GoalMissed when ours takes longer than MOST_US for what curl sends."""
    results = [Head(of, parser, []) for of in _HEADS for parser in _PARSERS]
    for _ in range(_ROUNDS):
        for result in results:
            result.microseconds.append(_time(_PARSERS[result.parser](), _HEADS[result.of]))
    print("\na request's head, of one packet: microseconds of the processor; medians, least and most")
    rows = [[of, *(spread(r.microseconds, 1) for r in results if r.of == of)] for of in _HEADS]
    table([["", *_PARSERS], *rows])
    [ours] = [r for r in results if (r.of, r.parser) == ("curl", "distfs")]
    took = statistics.median(ours.microseconds)
    judge([Goal("the head of curl's GET", took, MOST_US, least=False, unit=" us", digits=1)], results)
    return results


def _time(read: Callable[[bytes], None], head: bytes) -> float:
    began = time.thread_time()
    for _ in range(_EACH):
        read(head)
    return (time.thread_time() - began) / _EACH * 1e6


def _ours() -> Callable[[bytes], None]:
    parser = Parser(HttpConfig())

    def read(head: bytes) -> None:
        parser.receive(head)
        parser.next_event()
        parser.next_event()
        parser.next_request()

    return read


def _waitress() -> Callable[[bytes], None]:
    adjustments = Adjustments()

    def read(head: bytes) -> None:
        HTTPRequestParser(adjustments).received(head)

    return read


def _h11() -> Callable[[bytes], None]:
    def read(head: bytes) -> None:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(head)
        connection.next_event()
        connection.next_event()

    return read


class _Nothing:
    """What httptools calls."""

    def on_url(self, url: bytes) -> None:
        pass

    def on_header(self, name: bytes, value: bytes) -> None:
        pass


def _llhttp() -> Callable[[bytes], None]:
    parser = httptools.HttpRequestParser(_Nothing())

    def read(head: bytes) -> None:
        parser.feed_data(head)

    return read


_PARSERS: dict[str, Callable[[], Callable[[bytes], None]]] = {
    "distfs": _ours,
    "waitress": _waitress,
    "h11": _h11,
    "llhttp, in C": _llhttp,
}
