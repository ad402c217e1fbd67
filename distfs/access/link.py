"""A signed link: what its text says, and that nobody else has written it. Pure.

The text is base64url of: version (1 byte), which parts there are (1), the token that it was made with (16), its end
in Unix seconds (8), random bytes (6), so that no two are alike and one can be revoked alone, the parts, in the order
of their bits, zeros up to a multiple of 3, so that no digit is spare, and an HMAC-SHA-256 of all that (32). The key
is one of the token's: its id is the key's id. A number is big-endian; a text has its length before it, in a byte.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from ipaddress import ip_network
from secrets import token_bytes
from typing import NamedTuple
from uuid import UUID

from distfs.config.callers import IPAddress, Network
from distfs.errors import Forbidden

VERSION = 1
#: Of a name, or a policy's, in bytes.
MOST_TEXT = 255
#: Unix seconds: the end of the year 9999, the last that Python has.
LATEST = 253402300799

_HEAD = struct.Struct(">BB16sQ6s")
_RANDOM = 6
_SIZE, _SPAN = struct.Struct(">Q"), struct.Struct(">QQ")
_UUID, _MAC, _SHA_BLOCK = 16, 32, 64
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
_LINK_IN_URL = re.compile(r"[?&]link=([^&#\s]*)")
_FROM_URLSAFE = bytes.maketrans(b"-_+/=", b"+/!!!")  # ! is no digit
_FILE, _USES, _SPAN_BIT, _NETWORK, _NAME, _MAX_SIZE, _POLICY = (1 << bit for bit in range(7))
_LONGEST = 1024  # characters; the longest that is sealed has fewer

#: What anybody is told of a link that is none: the same whatever it was, and whether there is such a file or token.
NOT_GOOD = "this link is not good: it was changed, or who made it may make none any more; ask for a new one"

#: What who may not revoke one is told: the same whether it is good.
NOT_YOURS = "a link is revoked with a token of its maker, or an administrator's"


class Link(NamedTuple):
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

    @property
    def is_plain(self) -> bool:
        """It opens all of a file, however often, as it is."""
        return self.uses is None and self.span is None and not self.name

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

    token: bytes  # its id
    body: bytes
    mac: bytes

    @property
    def id(self) -> bytes:
        """16 bytes, which nobody can choose: by this it is revoked."""
        return self.mac[:_UUID]

    @property
    def text(self) -> str:
        """What opens it."""
        return urlsafe_b64encode(self.body + self.mac).decode()

    def open(self, keys: Iterable[bytes]) -> Link | None:
        """None: none of the token's ``keys`` has signed it."""
        for key in keys:
            if hmac.compare_digest(_mac(key, self.body), self.mac):
                return read(self.body)
        return None

    @classmethod
    def of_id(cls, id: UUID, body: bytes, token: UUID, keys: Iterable[bytes]) -> Sealed:
        """A link of which only its id and its body are known, if one of ``keys`` has signed it; else one that no key
        opens."""
        made = (cls(token.bytes, body, _mac(key, body)) for key in keys)
        return next(
            (each for each in made if each.id == id.bytes), cls(token.bytes, body, id.bytes + bytes(_UUID))
        )


def sealed(link: Link, key: bytes) -> Sealed:
    """Another each time."""
    body = _written(link)
    return Sealed(link.token.bytes, body, _mac(key, body))


def seal(link: Link, key: bytes) -> str:
    """A text of it, another each time."""
    return sealed(link, key).text


def text_of(url: str) -> str:
    """Of a link's URL what is signed; of anything else, itself."""
    found = _LINK_IN_URL.search(url)
    return found[1] if found else url.strip()


def unseal(text: str) -> Sealed | None:
    """None: it is no link of this version."""
    if len(text) > _LONGEST:
        return None
    try:
        data = a2b_base64(text.encode("ascii").translate(_FROM_URLSAFE), strict_mode=True)
    except ValueError:
        return None
    if len(data) < _HEAD.size + _MAC or data[0] != VERSION or len(data) % 3:
        return None
    return Sealed(data[2:18], data[:-_MAC], data[-_MAC:])


def _mac(key: bytes, body: bytes) -> bytes:
    """HMAC-SHA-256 (RFC 2104), with what depends on the key alone done before.

    Not by hmac.digest, which lets other threads run meanwhile: getting one's turn back takes longer than this. Nor by
    hmac.new, whose copies are made in Python.
    """
    inner, outer = _begun(key)
    inside, outside = inner.copy(), outer.copy()
    inside.update(body)
    outside.update(inside.digest())
    return outside.digest()


@lru_cache(maxsize=1024)
def _begun(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """``key``: no longer than a block of the hash."""
    padded = key.ljust(_SHA_BLOCK, b"\0")
    return sha256(padded.translate(_INNER)), sha256(padded.translate(_OUTER))


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
    head = _HEAD.pack(VERSION, sum(there), link.token.bytes, link.expires, token_bytes(_RANDOM))
    body = head + b"".join(there.values())
    return body + bytes(-(len(body) + _MAC) % 3)


def _text(text: str) -> bytes:
    data = text.encode()
    return bytes((len(data),)) + data


def read(body: bytes) -> Link:
    """Of what is ours: nobody else has signed it."""
    _, there, id, expires, _ = _HEAD.unpack_from(body)
    at, token = _HEAD.size, _uuid(id)
    if there == _FILE:  # as most have
        return Link(token, expires, _uuid(body[at : at + _UUID]))

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
        token,
        expires,
        _uuid(file) if file else None,
        _uuid(uses) if uses else None,
        _SPAN.unpack(span) if span else None,
        ip_network((take(_NETWORK, network[1]), network[0])) if network else None,
        take_text(_NAME),
        _SIZE.unpack(size)[0] if (size := take(_MAX_SIZE, _SIZE.size)) else 0,
        take_text(_POLICY),
    )


def _uuid(data: bytes) -> UUID:
    return UUID(int=int.from_bytes(data))
