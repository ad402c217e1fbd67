"""Repr-Digest and Content-Digest (RFC 9530): structured dictionaries (RFC 9651), whose last entry counts."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import NamedTuple

from distfs.errors import Refused
from distfs.headers import fields
from distfs.quantity import counted

#: What an upload's bytes are checked against. Other algorithms in a header are nothing to us.
ALGORITHMS: dict[str, Callable[[], hashlib._Hash]] = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
#: Of an upload both are about the whole body: no content coding, and no part of a file, is taken.
NAMES = ("Repr-Digest", "Content-Digest")

#: Possessive are only repeats of one character: Python before 3.11.5 goes wrong with those of groups.
_KEY = r"[a-z*][a-z0-9_.*-]*+"
_BARE_ITEM = (
    r"(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|%?\"(?:[ !#-\[\]-~]|\\[\"\\])*\"|[A-Za-z*][!#$%&'*+.^_`|~:/0-9A-Za-z-]*+"
    r"|:[A-Za-z0-9+/=]*+:|\?[01]|@-?[0-9]{1,15})"
)
_PARAMETERS = rf"(?:; *+{_KEY}(?:={_BARE_ITEM})?)*"
_ITEM = _BARE_ITEM + _PARAMETERS
_VALUE = rf"(?:\( *+(?:{_ITEM}(?: ++{_ITEM})*)? *+\){_PARAMETERS}|{_ITEM})"
_MEMBER = re.compile(rf"({_KEY})(?:=(?=:([^:]*+):)?{_VALUE}|{_PARAMETERS})")
_COMMA = re.compile(r"[ \t]*+,[ \t]*+")


class Claim(NamedTuple):
    """What a client says of its bytes."""

    header: str
    algorithm: str
    digest: bytes


def dictionary(text: str) -> dict[str, bytes | None] | None:
    """Of a structured field's dictionary the byte sequences, None for other values. None: it is no dictionary."""
    found: dict[str, bytes | None] = {}
    text = text.strip(" ")
    at = 0
    while at < len(text):
        member = _MEMBER.match(text, at)
        if member is None:
            return None
        found[member[1]] = None
        if member[2] is not None:
            try:
                found[member[1]] = b64decode(member[2] + "=" * (-len(member[2]) % 4), validate=True)
            except ValueError:
                return None
        comma = _COMMA.match(text, member.end())
        at = comma.end() if comma else member.end()
        if (at == len(text)) == (comma is not None):
            return None  # a comma and nothing behind it, or something behind no comma
    return found


def stated(header: Callable[[str], str | None]) -> Iterator[Claim]:
    """What is said in any header. Raises Refused for what cannot be read: who sends a digest wants it checked."""
    for name in NAMES:
        text = header(name)
        if text is None:
            continue
        entries = dictionary(text)
        if entries is None:
            raise Refused(
                f"{name} cannot be read: it is like sha-256=:BASE64:, the name in small letters (RFC 9530)"
            )
        for algorithm, new in ALGORITHMS.items():
            if algorithm in entries:
                digest, size = entries[algorithm], new().digest_size
                if digest is None or len(digest) != size:
                    raise Refused(
                        f"{name} has no {algorithm} in it: it is {algorithm}=:BASE64:, "
                        f"of the {counted(size, 'byte')}"
                    )
                yield Claim(name, algorithm, digest)


def announced(trailer: str) -> bool:
    """Whether ``Trailer`` says that a digest comes behind the body."""
    return bool(trailer) and not {name.lower() for name in NAMES}.isdisjoint(fields.words(trailer))
