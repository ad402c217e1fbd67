"""Every reader of a header, and what must hold of what it gives back."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC

from werkzeug.exceptions import RequestedRangeNotSatisfiable

from distfs.access import token
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
    origin,
)
from distfs.headers.authorization import shown_token
from distfs.problem import explained
from distfs.process.redact import redacted
from distfs.routes.messages import parse_uuid
from distfs.routes.ranges import ByteRanges, wanted
from distfs.telemetry.context import enter_request, leave_request

Reader = Callable[[str], object]
_PROXIES = (parse_network("10.0.0.0/8"),)
_PLAIN = re.compile(r"[ -~]*")


def _accept(text: str) -> None:
    assert all(0 <= weight <= 1 for weight in accept.read(text).values())
    kind, body = explained(text, 400, "no", "id")
    assert "\n" not in kind
    assert body.endswith("\n")


def _ranges(text: str) -> None:
    for size in (0, 1, 1000):
        with suppress(RequestedRangeNotSatisfiable):
            spans = wanted(text, size)
            assert all(0 <= start < stop <= size for start, stop in spans)
            assert sum(stop - start for start, stop in spans) <= size
            if len(spans) > 1:
                assert ByteRanges(spans, size, "a/b").length > 0
    byte_ranges.read(text)


def _dates(text: str) -> None:
    found = dates.read(text)
    if found is not None:
        assert dates.read(dates.write(found)) == found
        assert found.tzinfo is UTC


def _digests(text: str) -> None:
    digests.announced(text)
    digests.dictionary(text)
    for claim in digests.stated(lambda _: text):
        assert len(claim.digest) in (32, 64)


def _disposition(text: str) -> None:
    for shown in (True, False):
        said = disposition.for_download(text, shown=shown)
        assert _PLAIN.fullmatch(said)
        assert said.startswith('inline; filename="' if shown else 'attachment; filename="')
        name = said.split('"')[1]
        assert name.strip(". ")
        assert not set("/\\") & set(name)
        assert said.count('"') == 2


def _etags(text: str) -> None:
    found = etags.read(text)
    assert found is None or found.any or not any('"' in tag for tag in found.strong | found.weak)


def _fields(text: str) -> None:
    assert fields.split(text, ",")
    assert all(word == word.lower() for word in fields.words(text))
    found = fields.parameters(fields.split(text, ";"))
    for name, value in found or ():
        assert fields.parameters([f"{name}={fields.quoted(value)}"]) == ((name, value),)


def _form_part(text: str) -> None:
    with suppress(Refused):
        head = form_part.read(text.encode("latin-1", "replace"))
        assert isinstance(head.name, str)


def _host(text: str) -> None:
    if host.is_host(text):
        name = host.name_in(text)
        assert "/" not in name
        assert "@" not in name
        assert host.is_host(host.in_url(text, "http"))
        host.is_address(name)


def _origin(text: str) -> None:
    found = origin.normal(text)
    if found is not None:
        assert origin.normal(found) == found
        assert not found.endswith("/")
    if not origin.is_foreign(text, None, "localhost:8080", "http", ()):
        assert text.lower() in ("http://localhost:8080", "https://localhost:8080")


def _lengths(text: str) -> None:
    for found in (lengths.number(text), lengths.content_length(text)):
        assert found is None or found >= 0


def _media_type(text: str) -> None:
    found = media_type.read(text)
    assert media_type.read(str(found)) == found
    assert _PLAIN.fullmatch(str(found)) or "\t" in str(found)
    assert "," not in str(found.plain())
    assert not found.shown or found.essence.split("/")[0] in ("text", "image", "audio", "video")
    assert not found.shown or found.essence not in ("text/html", "image/svg+xml", "text/xml")
    media_type.announces_form(text)


def _caller(text: str) -> None:
    caller = Caller("10.0.0.9", lambda _: text)
    identity = caller.identify(_PROXIES)
    assert identity.scheme("http") in ("http", "https")
    identity.matches(CallerMatch.parse("X-Team=gold"))
    parse_address(text)
    with suppress(ValueError):
        parse_network(text)
    with suppress(ValueError):
        CallerMatch.parse(text)


def _request_id(text: str) -> None:
    given = enter_request(text)
    leave_request()
    assert re.fullmatch(r"[\w.:=+/@-]{1,128}", given, re.ASCII), given


def _token(text: str) -> None:
    shown = shown_token(text)
    for each in (text, shown or ""):
        digest = token.hash_of(each)
        assert digest is None or len(digest) == 32
        assert digest is None or each.startswith(token.PREFIX)


def _others(text: str) -> None:
    redacted(text)
    with suppress(Refused):
        parse_uuid(text)


TOKEN = token.new_token().encode()
#: Name, inputs to begin with, reader: which one it is, is an input's first byte.
READERS: list[tuple[str, tuple[bytes, ...], Reader]] = [
    ("accept", (b"application/json;q=0.5, */*", b'a/b;a="b,c";q=1'), _accept),
    ("ranges", (b"bytes=0-1,5-,-3", b"bytes=-0"), _ranges),
    ("dates", (b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT"), _dates),
    ("digests", (b"sha-256=:" + b"A" * 43 + b"=:", b'a;b="c";d=?1, e=(1 2.5 "x")'), _digests),
    ("disposition", (b"a.txt", b"../a\\b", b"n\xe4me\r\n"), _disposition),
    ("etags", (b'"a", W/"b"', b"*"), _etags),
    ("fields", (b'a="b;c\\"";d=e', b"a, b"), _fields),
    ("form_part", (b'Content-Disposition: form-data; name="file"; filename="a\\"b"',), _form_part),
    ("host", (b"a.example:80", b"[::1]:8080", b"127.1"), _host),
    ("origin", (b"https://a.example:443", b"null", b"http://localhost:8080"), _origin),
    ("lengths", (b"12", b"12, 12"), _lengths),
    ("media_type", (b'text/plain; charset="utf-8"; a=b', b"text/plain, text/html"), _media_type),
    ("caller", (b"198.51.100.7, [::1]:80", b"https", b"10.0.0.0/8", b"X-Team=gold"), _caller),
    ("request_id", (b"abc-123",), _request_id),
    ("token", (b"Bearer " + TOKEN, b"Basic " + b64encode(b"a:" + TOKEN), TOKEN), _token),
    ("others", (b"postgresql://a:b@c/d", b"00000000-0000-0000-0000-000000000000"), _others),
]
WORDS = (
    *(b",", b";", b"=", b'"', b"\\", b" ", b"\t", b":", b"-", b"/", b"*", b"(", b")", b"?1", b"@", b"'"),
    *(b"\r\n", b"\0", b"[", b"]"),
    *(b"bytes=", b"q=0.", b"sha-256=:", b"W/", b"form-data", b"filename*=", b"UTF-8''", b"text/html", b"://"),
    *(b"9" * 40, b"\xe2\x80\xae", b"%00", b"::ffff:", b"\xb2", b"charset=", b"GMT", b"1-", b"a/b"),
)  # fmt: skip


def readers(data: bytes) -> None:
    if data:
        _, _, reader = READERS[data[0] % len(READERS)]
        reader(data[1:].decode("latin-1"))
