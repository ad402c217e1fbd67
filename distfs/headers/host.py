"""Host (RFC 9112, 3.2): what clients call this service. RFC 3986, 3.2.2 says what a host may be."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

#: A name may have more in it than DNS allows: underscores above all. An IPv4 address is such a name, too.
_NAME = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")
_FUTURE = re.compile(r"v[0-9a-f]++\.[A-Za-z0-9._~!$&'()*+,;=:-]++", re.IGNORECASE)
_HEX = re.compile(r"0x[0-9a-f]*")
MAX_PORT = 65535
_USUAL = 255  # characters; what is longer is hardly a host, and nothing to remember
_DEFAULT_PORTS = {"http": "80", "https": "443"}

REMEDY = "send one Host header, such as `Host: files.example:8080`"


def is_host(text: str) -> bool:
    """Whether it is ``name``, ``name:port``, ``[IPv6]`` or ``[IPv6]:port``; empty too, of a URL without a host.

    Two Host headers, which servers join with a comma, are none. A comma is legal in a name, and nobody has one.
    """
    return _is_known_host(text) if len(text) <= _USUAL else _is_host(text)


def _is_host(text: str) -> bool:
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_literal(address) or (rest and not rest.startswith(":")):
            return False
        port = rest[1:]
    else:
        name, _, port = text.partition(":")
        if "," in name or not _NAME.fullmatch(name) or (port and not name):
            return False
    return not port or (port.isascii() and port.isdecimal() and int(port.lstrip("0")[:6] or 0) <= MAX_PORT)


_is_known_host = lru_cache(maxsize=256)(_is_host)  # most requests name the same


def _is_literal(address: str) -> bool:
    try:
        IPv6Address(address)
    except AddressValueError:
        return _FUTURE.fullmatch(address) is not None
    return "%" not in address


def name_in(text: str) -> str:
    """The name or address in a Host, in small letters, without port, brackets or a dot at its end."""
    text = text.lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


def is_address(name: str) -> bool:
    """Whether that is an address. What ends in a number is one to every browser, and never looked up (URL, 3.5)."""
    last = name.rpartition(".")[2]
    return ":" in name or (last.isascii() and (last.isdecimal() or _HEX.fullmatch(last) is not None))


def in_url(host: str, scheme: str) -> str:
    """As a URL has it: without the port that the scheme has anyway, or an empty one."""
    name, colon, port = host.rpartition(":")
    return name if colon and "]" not in port and port in ("", _DEFAULT_PORTS.get(scheme)) else host
