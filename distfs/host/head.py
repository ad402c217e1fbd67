"""A request's head, its first line and headers, read strictly by RFC 9112. No I/O.

What two servers in a row could read differently (RFC 9112, 11.2) is refused: folded lines, lines that end in other
than CR LF, a body framed twice, codings other than one `chunked`. Everything splits and nothing searches back, so
that a head is read in time proportional to its length, whatever is in it.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from distfs.config.settings import HttpConfig
from distfs.errors import DistfsError, HeadersTooLarge, Refused, TargetTooLong, Unsupported
from distfs.headers import fields, host, lengths
from distfs.quantity import counted
from distfs.quantity import size as readable

CRLF = b"\r\n"
#: What lines may hold: HTAB, SP, VCHAR and obs-text (RFC 9110, 5.5).
TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
#: No method that there is comes near it (RFC 9110, 9.1: a longer one is not implemented).
MAX_METHOD = 32

_BAD_OCTET = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)|(?<!\r)\n")
_VERSIONS = {"HTTP/1.1": "1.1", "HTTP/1.0": "1.0"}
_METHODS = frozenset(("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"))
#: As RFC 3986 would have it: people type names as they are.
_ENCODED = {octet: f"%{octet:02X}" for octet in range(0x80, 0x100)}


def key(name: str) -> str:
    """What a header is called in ``Head.headers``: as PEP 3333 has it."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"


#: Names as they are nearly always spelt; others are checked one by one.
_USUAL = (
    *(
        "Accept",
        "Accept-Encoding",
        "Accept-Language",
        "Authorization",
        "Cache-Control",
        "Connection",
        "Cookie",
    ),
    *("Content-Digest", "Content-Disposition", "Content-Length", "Content-Type", "Expect", "Host", "Origin"),
    *(
        "If-Match",
        "If-Modified-Since",
        "If-None-Match",
        "If-Range",
        "If-Unmodified-Since",
        "Range",
        "Referer",
    ),
    *("Repr-Digest", "Transfer-Encoding", "Upload-Length", "User-Agent", "Want-Repr-Digest"),
    *(
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Real-IP",
        "X-Request-Id",
        "X-Upload-Length",
    ),
)
_KEYS = {spelt: key(name) for name in _USUAL for spelt in (name, name.lower())}


class Head:
    """What a request says before its body; as much of it as could be read, when that is refused."""

    __slots__ = (
        "authority",
        "chunked",
        "environ",
        "expects_continue",
        "goes_on",
        "headers",
        "length",
        "method",
        "path",
        "query",
        "target",
        "version",
    )

    def __init__(self) -> None:
        self.method = ""
        self.target = ""  # as it came, but ASCII: other octets are percent-encoded
        self.authority = ""  # of a target that is a whole URL
        self.path = ""  # decoded, an octet a character as PEP 3333 has it; begins with one slash, or is *
        self.query = ""
        self.version = "1.1"
        #: By ``key``; several of a name are one, with commas. None with an underscore: it would pass for a dash.
        self.headers: dict[str, str] = {}
        self.chunked = False
        self.length = 0  # of the body, unless it is chunked
        self.goes_on = False  # another request may follow on the connection
        self.expects_continue = False
        #: What a server made of the headers and of the connection, for requests that are ``alike``.
        self.environ: dict[str, Any] | None = None

    def header(self, name: str) -> str | None:
        return self.headers.get(key(name))


def first_bad_octet(data: bytes | bytearray, start: int, end: int) -> int:
    """Where between the two lines cannot go on; -1: nowhere. A CR at the end may be followed by an LF."""
    if end > start and data[end - 1] == 0x0D:
        end -= 1
    part = data[start:end]
    if not part.replace(CRLF, b"").translate(None, TEXT):
        return -1
    found = _BAD_OCTET.search(data, max(0, start - 1), end)
    return found.start() if found else -1


def bad_octet(octet: int) -> DistfsError:
    if octet in CRLF:
        return Refused("malformed request: a line of its head ends in other than CR LF")
    return Refused(f"malformed request: its head has the control character {octet:#04x} in it")


#: All of a head but its first line, as it came, and what was read of it.
Alike = tuple[bytes, Head]
#: A longer one is read anew.
_MOST_ALIKE = 1024


def read(raw: bytes, http: HttpConfig, head: Head, alike: Alike | None = None) -> Alike | None:
    """Fill ``head`` from ``raw``, all of it but the empty line at its end. -> what the next head may be like.

    ``alike``: what the last one of this connection was like. Raises what is to be answered; ``head`` then has what
    was read until there.
    """
    end = raw.find(CRLF)
    rest = raw[end:] if end > 0 else b""
    if (
        alike is not None
        and alike[0] == rest
        and len(raw) <= http.max_header_line
        and _read_alike(raw[:end], head, alike[1])
    ):
        return alike
    if (at := first_bad_octet(raw, 0, len(raw))) >= 0 or raw.endswith(b"\r"):
        raise bad_octet(raw[at])
    lines = raw.decode("latin-1").split("\r\n")
    if len(lines) > http.max_header_lines:
        most = counted(http.max_header_lines, "line")
        raise HeadersTooLarge(f"the request's head has more than {most} (http.max_header_lines): send fewer")
    if len(raw) > http.max_header_line:
        _check_lengths(lines, http.max_header_line)
    _read_request_line(lines[0], head)
    del lines[0]
    _read_fields(lines, head.headers)
    _find_host(head)
    if "CONTENT_LENGTH" in head.headers or "HTTP_TRANSFER_ENCODING" in head.headers:
        _frame(head)
    _read_options(head)
    if (
        not rest
        or len(rest) > _MOST_ALIKE
        or head.authority
        or head.chunked
        or "CONTENT_LENGTH" in head.headers
    ):
        return None
    return rest, head


def again(raw: bytes, http: HttpConfig, alike: Alike) -> Head | None:
    """The head of a request that is all of ``raw``, if it has no body and its headers are ``alike``; None: it is
    another, or is to be refused."""
    rest, before = alike
    end = raw.find(CRLF)
    if raw[end:-4] != rest or not raw.endswith(b"\r\n\r\n"):
        return None
    if len(raw) > http.max_header_line or len(raw) > http.max_header:
        return None
    head = Head()
    try:
        return head if _read_alike(raw[:end], head, before) else None
    except DistfsError:
        return None


def _read_alike(line: bytes, head: Head, before: Head) -> bool:
    """Whether what follows ``line`` says now what it said before."""
    if line.translate(None, TEXT):
        return False
    _read_request_line(line.decode("latin-1"), head)
    if head.version != before.version or head.authority:
        return False
    head.headers, head.environ = before.headers, before.environ  # nobody changes them
    head.goes_on, head.expects_continue = before.goes_on, before.expects_continue
    return True


def _check_lengths(lines: list[str], most: int) -> None:
    if len(lines[0]) > most:
        raise target_too_long(most)
    if any(len(line) > most for line in lines):
        raise HeadersTooLarge(
            f"a header is longer than {readable(most)} (http.max_header_line): send a shorter one"
        )


def target_too_long(most: int) -> DistfsError:
    return TargetTooLong(
        f"the request's first line is longer than {readable(most)} (http.max_header_line): send a shorter path"
    )


def _bad(reason: str) -> NoReturn:
    raise Refused(f"malformed request: {reason}")


def _read_request_line(line: str, head: Head) -> None:
    parts = line.split(" ")
    if len(parts) != 3 or "\t" in line:
        _bad(
            "its first line is not METHOD, target and version with one blank between: write blanks in a path as %20"
        )
    method, target, version = parts
    if method not in _METHODS:
        _check_method(method)
    head.method = method
    head.target = target if target.isascii() else target.translate(_ENCODED)
    if version not in _VERSIONS:
        _bad("the protocol version is not HTTP/1.0 or HTTP/1.1")
    head.version = _VERSIONS[version]
    if "#" in target:
        _bad("its target has a # in it: write it as %23")
    if target.startswith("/"):
        path = head.target
    elif target == "*" and method == "OPTIONS":
        head.path = target
        return
    else:
        path = _split_url(head)
    path, _, head.query = path.partition("?")
    if "%" in path:
        path = unquote_to_bytes(path).decode("latin-1")
    head.path = "/" + path.lstrip("/")


def _check_method(method: str) -> None:
    if len(method) > MAX_METHOD:
        raise Unsupported("the method is longer than any there is: send GET, HEAD, PUT, POST or DELETE")
    if not fields.is_token(method) or method != method.upper():
        _bad("its first line does not begin with a method in capitals, such as GET")
    if method == "CONNECT":
        _bad("CONNECT is for proxies, and this is none: send the request itself")


def _split_url(head: Head) -> str:
    """The path and query of a target that is a whole URL."""
    scheme, separator, rest = head.target.partition("://")
    if scheme.lower() not in ("http", "https") or not separator:
        _bad("its target is neither a path nor a URL: send one that begins with /")
    end = min((at for mark in "/?" if (at := rest.find(mark)) >= 0), default=len(rest))
    head.authority = rest[:end]
    if not head.authority or not host.is_host(head.authority):
        _bad("the host in its target is none: send a path, and the host in a Host header")
    return rest[end:]


def _read_fields(lines: list[str], headers: dict[str, str]) -> None:
    again: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        known = _KEYS.get(name)
        if known is None or not colon:
            known = _key_of(name, colon, line)
            if not known:
                continue
        if known not in headers:
            headers[known] = value.strip(" \t")
        else:
            again.setdefault(known, [headers[known]]).append(value.strip(" \t"))
    for known, values in again.items():
        headers[known] = ", ".join(values)


def _key_of(name: str, colon: str, line: str) -> str:
    """By which a header that is not among the usual ones is kept; empty: it is left out."""
    if line[:1] in (" ", "\t"):
        _bad("a header is folded over lines: send it in one")
    if not colon or not fields.is_token(name):
        _bad("a header is not of the form `Name: value`, without a blank before the colon")
    return "" if "_" in name else key(name)


def _find_host(head: Head) -> None:
    """By Host, or by a target that is a whole URL, whose word counts more (RFC 9112, 3.2)."""
    given = head.headers.get("HTTP_HOST")
    if (given is None and head.version == "1.1") or not host.is_host(given or ""):
        _bad(f"its Host is missing, there twice, or no host: {host.REMEDY}")
    if head.authority:
        head.headers["HTTP_HOST"] = head.authority


def _frame(head: Head) -> None:
    """Where the body ends (RFC 9112, 6.3)."""
    coding, declared = head.headers.get("HTTP_TRANSFER_ENCODING"), head.headers.get("CONTENT_LENGTH")
    if coding is not None:
        if coding.lower() != "chunked":
            raise Unsupported("the only Transfer-Encoding taken is one `chunked`")
        if declared is not None:
            _bad("the body has both Content-Length and Transfer-Encoding: send one of them")
        if head.version == "1.0":
            _bad("HTTP/1.0 has no Transfer-Encoding: send HTTP/1.1 or a Content-Length")
        head.chunked = True
    elif declared is not None:
        size = lengths.content_length(declared)
        if size is None:
            _bad("its Content-Length is not a whole number of bytes: let the client set it itself")
        head.length = size
        head.headers["CONTENT_LENGTH"] = str(size)  # though it was there twice


def _read_options(head: Head) -> None:
    """Connection and Expect (RFC 9110, 7.6.1 and 10.1.1; RFC 9112, 9.3)."""
    modern = head.version == "1.1"
    said = head.headers.get("HTTP_CONNECTION")
    options = fields.words(said) if said else ()
    head.goes_on = "close" not in options and (modern or "keep-alive" in options)
    expected = head.headers.get("HTTP_EXPECT")
    head.expects_continue = modern and expected is not None and "100-continue" in fields.words(expected)
