"""Who a request comes from, as far as it may be believed, and which row of a table is about them.

A proxy says in X-Forwarded-For whom it speaks for, and anybody can say it: it is believed only from addresses
that are listed as proxies, and of its entries only the last that is no such proxy (RFC 7239, 7.4, of its
successor). Other headers a proxy sets, such as who has logged in, or X-Forwarded-Proto, are believed from the
same ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

Network = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address

LOOPBACK: tuple[Network, ...] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))

FORWARDED_FOR = "X-Forwarded-For"
FORWARDED_PROTO = "X-Forwarded-Proto"

_HEADER_IS = re.compile(r"([A-Za-z0-9-]+)=(.+)")
_IN_BRACKETS = re.compile(r"^\[([0-9A-Fa-f:.]+)\]")
#: An address as proxies write it: some add a port.
_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9]+(?:\.[0-9]+){3}):[0-9]{1,5}")
_LONGEST = 64  # characters; longer ones are hardly addresses
#: An address of IPv6 that nobody else has is a network of so many bits: who has it has all of its addresses.
_IPV6_BITS = 64
#: Around a header's value, and nothing else is.
_BLANKS = " \t"


class CallerMatch(NamedTuple):
    """A row's condition: an address range, or a header's value from a trusted proxy."""

    network: Network | None
    header: str = ""
    value: str = ""

    @classmethod
    def of_token(cls, id: str) -> CallerMatch:
        """Who has a token. Nothing that ``parse`` gives is equal to it."""
        return cls(None, "", id)

    @property
    def is_token(self) -> bool:
        return self.network is None and not self.header

    @classmethod
    def parse(cls, text: str) -> CallerMatch:
        """``10.0.0.0/8``, ``2001:db8::1`` or ``X-Team=gold``. Raises ValueError."""
        if given := _HEADER_IS.fullmatch(text.strip()):
            return cls(None, given[1], given[2].strip())
        return cls(parse_network(text))

    def __str__(self) -> str:
        if self.network is not None:
            return str(self.network)
        return f"{self.header}={self.value}" if self.header else f"token {self.value}"


@dataclass(frozen=True, slots=True)
class Caller:
    """The other end of the connection, and how to get at a header it sent."""

    address: str
    header: Callable[[str], str | None]

    def identify(self, proxies: Sequence[Network]) -> Identity:
        """Whom ``proxies`` let us believe this is."""
        at = parse_address(self.address)
        trusted = bool(proxies) and is_in(at, proxies)
        if trusted:
            for entry in reversed(_entries(self.header(FORWARDED_FOR))):
                before = parse_address(entry)
                if before is None:
                    break  # nothing further to the left can be believed
                at = before
                if not is_in(at, proxies):
                    break
        return Identity(at, self.header if trusted else _no_header)


@dataclass(frozen=True, slots=True)
class Identity:
    """The client's address, None where there is none (a Unix socket), and the headers that may be believed."""

    address: IPAddress | None
    header: Callable[[str], str | None]
    shown: str = field(
        init=False, repr=False, compare=False
    )  # as the log has the address; empty: there is none

    def __post_init__(self) -> None:
        object.__setattr__(self, "shown", shown(self.address) if self.address else "")

    def matches(self, match: CallerMatch) -> bool:
        if match.network is not None:
            return self.address is not None and self.address in match.network
        return (self.header(match.header) or "").strip(_BLANKS) == match.value

    def scheme(self, here: str) -> str:
        """``http`` or ``https``, as the client speaks it to the proxy; ``here``: as it came to us."""
        if self.header is _no_header or (given := self.header(FORWARDED_PROTO)) is None:
            return here
        said = [entry.lower() for entry in _entries(given)]
        return said[-1] if said and said[-1] in ("http", "https") else here


def direct(address: str) -> Identity:
    """Who has no proxy before him that is believed."""
    return _direct(address) if len(address) <= _LONGEST else _direct.__wrapped__(address)


@lru_cache(maxsize=1024)
def _direct(address: str) -> Identity:
    return Identity(parse_address(address), _no_header)


def parse_network(text: str) -> Network:
    """``10.0.0.0/8`` or one address. Raises ValueError."""
    try:
        return ip_network(_IN_BRACKETS.sub(r"\1", text.strip()))
    except ValueError as e:
        raise ValueError(f"{text!r} is not an address range such as 10.0.0.0/8 or 2001:db8::/32") from e


def parse_address(text: str) -> IPAddress | None:
    """An address, a port after it left out; an IPv4 one in IPv6's clothes is the IPv4 one. None: it is none."""
    return _read(text) if len(text) <= _LONGEST else _read.__wrapped__(text)


@lru_cache(maxsize=1024)  # the same ones come again and again, and what is kept is bounded
def _read(text: str) -> IPAddress | None:
    text = text.strip(_BLANKS)
    if found := _WITH_PORT.fullmatch(text):
        text = found[1] or found[2]
    try:
        address = ip_address(text.partition("%")[0] if ":" in text else text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=1024)
def shown(address: IPAddress) -> str:
    """An address as the log has it."""
    return str(address)


def whose_is(address: IPAddress | None) -> str:
    """Who is counted as one."""
    if isinstance(address, IPv6Address):
        return str(ip_network((int(address), _IPV6_BITS), strict=False))
    return str(address or "a client without an address")


def is_in(address: IPAddress | None, networks: Sequence[Network]) -> bool:
    """Whether one of them has it."""
    return address is not None and any(address in network for network in networks)


def _entries(text: str | None) -> list[str]:
    """Of a list. A quote is nothing here: a client's own, to the left, must not swallow what the proxy has added."""
    return [entry for part in (text or "").split(",") if (entry := part.strip(_BLANKS))]


def _no_header(name: str) -> str | None:
    return None
