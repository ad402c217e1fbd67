"""The headers of a form's part (RFC 7578), as browsers and curl really write them.

In a quoted name they differ. HTML's rule, of today's browsers and curl: ``"`` is %22, a line break %0D%0A, and a
backslash is itself, also before the closing quote. Older curl, Go and others put a backslash before each quote and
each backslash. So a name all of whose backslashes stand in such pairs means the latter, and any other the former.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from distfs.errors import Refused
from distfs.headers import fields

_PAIRED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_PLAIN = re.compile(r'"([^"]*+)"')
_MIXED = re.compile(r'"((?:[^"\\]|\\["\\]|\\(?!["\\]))*)"')
_PAIR = re.compile(r'\\(["\\])')
_BARE = re.compile(r'[^";]*+')
_NAME = re.compile(r"[ \t;]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)[ \t]*+=[ \t]*+")
_END = re.compile(r"[ \t]*+(?:;|\Z)")
#: What old browsers sent: where the file was, with a drive or a server in front.
_WHOLE_PATH = re.compile(r"(?:[A-Za-z]:\\|\\\\)(?:.*\\)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PartHead:
    """A part's headers. ``filename`` None: it has none; empty: an input left empty in a browser, or none to tell."""

    name: str
    filename: str | None
    content_type: str | None


def read(block: bytes) -> PartHead:
    """A part's header lines, each with its CRLF. Raises Refused."""
    headers = _headers(block.decode("utf-8", "replace"))  # a name in another charset must not cost the upload
    disposition = headers.get("content-disposition", [])
    if not disposition:
        raise Refused("a part of the form has no Content-Disposition header (RFC 7578)")
    if len(disposition) > 1:
        raise Refused("a part of the form has two Content-Disposition headers: send one")
    parameters = _parameters(disposition[0])
    if "name" not in parameters:
        raise Refused("a part of the form has no name: curl -F file=@NAME URL/upload gives it one")
    encoding = ", ".join(headers.get("content-transfer-encoding", [])).lower()
    if encoding not in ("", "7bit", "8bit", "binary"):
        raise Refused(
            f"Content-Transfer-Encoding {encoding[:20]} is not for forms (RFC 7578): send the bytes as they are"
        )
    filename = parameters.get("filename")
    if filename is not None:
        filename = _WHOLE_PATH.sub("", filename, count=1) if _WHOLE_PATH.match(filename) else filename
    elif any(name.startswith("filename*") for name in parameters):
        filename = ""  # RFC 7578 has no such names; but it is a file
    kinds = headers.get("content-type")
    return PartHead(parameters["name"], filename, ", ".join(kinds) if kinds else None)


def _headers(text: str) -> dict[str, list[str]]:
    """By name in small letters; folded lines are one."""
    lines: list[str] = []
    for line in text.split("\r\n"):
        if "\r" in line or "\n" in line:
            raise Refused("the headers of a part of the form do not end with CRLF (RFC 2046)")
        if line[:1] in (" ", "\t") and lines:
            lines[-1] += " " + line.strip(" \t")
        elif line:
            lines.append(line)
    found: dict[str, list[str]] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not fields.is_token(name.rstrip(" \t")):
            raise Refused(f"a part of the form has the line {line[:40]!r}, which is no header (RFC 2046)")
        found.setdefault(name.rstrip(" \t").lower(), []).append(value.strip(" \t"))
    return found


def _parameters(disposition: str) -> dict[str, str]:
    kind, _, rest = disposition.partition(";")
    if kind.strip(" \t").lower() != "form-data":
        raise Refused("a part of the form has a Content-Disposition that is not form-data (RFC 7578)")
    # The first way in which all of it makes sense: see the module.
    for way in (_PAIRED, _PLAIN, _MIXED):
        if (found := _taken_apart(rest, way)) is not None:
            return found
    raise Refused(
        "a part of the form has a Content-Disposition that cannot be read: write a quote in a name as %22"
    )


def _taken_apart(text: str, quoted: re.Pattern[str]) -> dict[str, str] | None:
    """Parameters by names in small letters. None: not all of it can be read so."""
    found: dict[str, str] = {}
    at, end = 0, len(text.rstrip(" \t;"))
    while at < end:
        name = _NAME.match(text, at)
        if name is None:
            return None
        value = (quoted if text.startswith('"', name.end()) else _BARE).match(text, name.end())
        after = value and _END.match(text, value.end())
        if value is None or after is None or name[1].lower() in found:
            return None
        found[name[1].lower()] = _meant(value, quoted)
        at = after.end()
    return found


def _meant(value: re.Match[str], quoted: re.Pattern[str]) -> str:
    if value.re is _BARE:
        return value[0].strip(" \t")
    text = value[1] if quoted is _PLAIN else _PAIR.sub(r"\1", value[1])
    return text.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")
