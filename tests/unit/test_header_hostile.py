"""No header, whatever is in it, keeps a reader for longer than its length is worth."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from distfs.config.callers import Caller, CallerMatch, parse_address, parse_network
from distfs.errors import Refused
from distfs.headers import (
    accept,
    byte_ranges,
    dates,
    digests,
    disposition,
    etags,
    fields,
    form_part,
    host,
    lengths,
    media_type,
)
from distfs.problem import explained
from distfs.routes.ranges import wanted
from distfs.telemetry.context import enter_request

#: Half of what the whole of a request's header may be, and an eighth of that.
LONG, SHORT = 32768, 4096
#: What is linear takes 8 times as long for the former, what is quadratic 64 times.
MOST = 24
#: Seconds that are nothing, whatever the length.
SLACK = 0.01
ROUNDS = 5

PROXIES = (parse_network("10.0.0.0/8"),)


def caller(text: str) -> Caller:
    return Caller("10.0.0.9", lambda _: text)


#: Each with how its header begins, where what comes then would else not be looked at.
READERS: list[tuple[str, Callable[[str], Any]]] = [
    ("", accept.read),
    ("a/b;q=0.", lambda text: explained(text, 400, "no", "id")),
    ('a/b;a="', accept.read),
    ("bytes=", byte_ranges.read),
    ("bytes=", lambda text: wanted(text, LONG)),
    ("", dates.read),
    ("Sun, ", dates.read),
    ("", lambda text: list(digests.stated(lambda _: text))),
    ("a=", digests.dictionary),
    ("", lambda text: disposition.for_download(text, shown=True)),
    ("", etags.read),
    ("", fields.words),
    ("a=1;", lambda text: fields.parameters(fields.split(text, ";"))),
    ('"', fields.unquoted),
    ("Content-Disposition: form-data; name=", lambda text: form_part.read(text.encode())),
    ("", host.is_host),
    ("[", host.is_host),
    ("1", lengths.number),
    ("1", lengths.content_length),
    ("a/b;", media_type.read),
    ("", media_type.announces_form),
    ("", lambda text: caller(text).identify(PROXIES)),
    ("", lambda text: caller(text).identify(PROXIES).scheme("http")),
    ("", lambda text: caller(text).identify(PROXIES).matches(CallerMatch.parse("X-Team=gold"))),
    ("[", parse_address),
    ("9", enter_request),
]
#: What then comes over and over.
REPEATED = [
    ",",
    " ",
    "\t,",
    "9",
    "0-",
    "9.",
    ":",
    ";",
    "-",
    '"',
    '""',
    "\\",
    '\\"',
    '"a"b',
    "a,",
    "a/b,",
    "a/b;",
    "a/b;q=1,",
    'a="b";',
    "=",
    "(",
    "1 ",
    "%41",
    "%",
    "10.0.0.2,",
    "1-2,",
    'W/"a",',
    "a=:YQ==:,",
    "Sun, ",
    "é",
]


@pytest.mark.parametrize(("beginning", "reader"), READERS)
def test_a_header_eight_times_as_long_is_read_in_about_eight_times_the_steps(
    beginning: str, reader: Callable[[str], Any]
) -> None:
    for repeated in REPEATED:
        for ending in ("", "x"):
            short, long = (beginning + repeated * (size // len(repeated)) + ending for size in (SHORT, LONG))
            assert in_proportion(reader, short, long), (repeated, ending)


def in_proportion(reader: Callable[[str], Any], short: str, long: str) -> bool:
    """By this thread's own time on the processor, the least of several: others on the machine do not count."""
    least, most = math.inf, float(SLACK)
    for _ in range(ROUNDS):
        least = min(least, effort(reader, long))
        if least <= most:
            return True
        most = max(SLACK, MOST * effort(reader, short))
    return False


def effort(reader: Callable[[str], Any], text: str) -> float:
    began = time.thread_time()
    with suppress(Refused):
        reader(text)
    return time.thread_time() - began


def test_what_is_quadratic_would_be_noticed() -> None:
    """Such as a pattern that tries again from each blank; as some headers were read once."""
    pattern = re.compile(r" *x")
    assert not in_proportion(pattern.search, " " * (SHORT // 4), " " * (LONG // 4))
