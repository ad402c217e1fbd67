"""A signed link: what its text says, and that nobody else has written it. Pure.

The text is base64url, without padding, of: version (1 byte), which parts there are (1), the token that it was made
with (16), its end in Unix seconds (8), the parts, in the order of their bits, and an HMAC-SHA-256 of all that (32).
The key is one of the token's: its id is the key's id. A number is big-endian; a text has its length before it, in a
byte.
"""

from __future__ import annotations

import binascii
import hmac
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import NamedTuple
from uuid import UUID

from distfs.config.callers import IPAddress, Network
from distfs.errors import Forbidden

VERSION = 1
#: Of a name, or a policy's, in bytes.
MOST_TEXT = 255
#: Unix seconds: the end of the year 9999, the last that Python has.
LATEST = 253402300799

_HEAD = struct.Struct(">BB16sQ")
_SIZE, _SPAN = struct.Struct(">Q"), struct.Struct(">QQ")
_UUID, _MAC = 16, 32
_FILE, _USES, _SPAN_BIT, _NETWORK, _NAME, _MAX_SIZE, _POLICY = (1 << bit for bit in range(7))
_LONGEST = 1024  # characters; the longest that is sealed has fewer

#: What anybody is told of a link that is none: the same whatever it was, and whether there is such a file or token.
NOT_GOOD = "this link is not good: it was changed, or who made it may make none any more; ask for a new one"


@dataclass(frozen=True, slots=True)
class Link:
    """What one may do who has it, with the rights and limits of a token."""

    token: UUID
    expires: int  # Unix seconds, by the clock of the service that is asked
    file: UUID | None = None  # that may be downloaded; None: files may be uploaded
    uses: UUID | None = None  # by what these are counted; None: they are not
    span: tuple[int, int] | None = None  # first and last byte of those that may be had
    network: Network | None = None  # of clients
    name: str = ""  # under which a download is saved
    max_size: int = 0  # of an upload, in bytes; 0: the token's
    policy: str = ""  # of an upload

    def check(self, now: float, address: IPAddress | None) -> None:
        """Whether it may be used by who is at ``address``. Raises Forbidden."""
        if now >= self.expires:
            at = f"{datetime.fromtimestamp(self.expires, UTC):%Y-%m-%d %H:%M:%S} UTC"
            raise Forbidden(f"this link has expired, at {at}: ask for a new one")
        if self.network is not None and (address is None or address not in self.network):
            raise Forbidden(f"this link is not for clients at {address or 'no address'}: ask for one that is")

    def check_span(self, first: int, last: int) -> None:
        """Raises Forbidden for bytes that are not of it."""
        if self.span is not None and not self.span[0] <= first <= last <= self.span[1]:
            ours = f"{self.span[0]}-{self.span[1]}"
            raise Forbidden(f"this link is for bytes {ours} of the file: ask for no others (curl -r {ours})")


class Sealed(NamedTuple):
    """A link that came from anywhere: nothing of it is believed but whose key would have to open it."""

    token: UUID
    body: bytes
    mac: bytes

    def open(self, keys: Iterable[bytes]) -> Link | None:
        """None: none of the token's ``keys`` has signed it."""
        for key in keys:
            if hmac.compare_digest(hmac.digest(key, self.body, "sha256"), self.mac):
                return _read(self.body)
        return None


def seal(link: Link, key: bytes) -> str:
    """Its text."""
    body = _written(link)
    return urlsafe_b64encode(body + hmac.digest(key, body, "sha256")).rstrip(b"=").decode()


def unseal(text: str) -> Sealed | None:
    """None: it is no link of this version."""
    if len(text) > _LONGEST or not text.isascii():
        return None
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    if len(data) < _HEAD.size + _MAC or data[0] != VERSION:
        return None
    if urlsafe_b64encode(data).rstrip(b"=").decode() != text:  # one link has one text
        return None
    return Sealed(UUID(int=int.from_bytes(data[2:18])), data[:-_MAC], data[-_MAC:])


def _written(link: Link) -> bytes:
    network = link.network
    parts = {
        _FILE: link.file and link.file.bytes,
        _USES: link.uses and link.uses.bytes,
        _SPAN_BIT: link.span and _SPAN.pack(*link.span),
        _NETWORK: network
        and bytes((network.prefixlen, len(network.network_address.packed))) + network.network_address.packed,
        _NAME: link.name and _text(link.name),
        _MAX_SIZE: link.max_size and _SIZE.pack(link.max_size),
        _POLICY: link.policy and _text(link.policy),
    }
    there = {bit: part for bit, part in parts.items() if part}
    return _HEAD.pack(VERSION, sum(there), link.token.bytes, link.expires) + b"".join(there.values())


def _text(text: str) -> bytes:
    data = text.encode()
    return bytes((len(data),)) + data


def _read(body: bytes) -> Link:
    """Of what is ours: nobody else has signed it."""
    _, there, token, expires = _HEAD.unpack_from(body)
    at = _HEAD.size

    def take(bit: int, size: int) -> bytes:
        nonlocal at
        if not there & bit:
            return b""
        at += size
        return body[at - size : at]

    def take_text(bit: int) -> str:
        size = take(bit, 1)
        return take(bit, size[0]).decode() if size else ""

    file, uses, span = take(_FILE, _UUID), take(_USES, _UUID), take(_SPAN_BIT, _SPAN.size)
    network = take(_NETWORK, 2)
    return Link(
        UUID(bytes=token),
        expires,
        UUID(bytes=file) if file else None,
        UUID(bytes=uses) if uses else None,
        _SPAN.unpack(span) if span else None,
        ip_network((take(_NETWORK, network[1]), network[0])) if network else None,
        take_text(_NAME),
        _SIZE.unpack(size)[0] if (size := take(_MAX_SIZE, _SIZE.size)) else 0,
        take_text(_POLICY),
    )
