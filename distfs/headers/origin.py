"""Whose page a browser's request comes from: Origin (RFC 6454; Fetch, 3.1) and Sec-Fetch-Site (Fetch Metadata).

Browsers set both, and no page can. Who is no browser sends neither and is nobody's page.
"""

from __future__ import annotations

import re
from collections.abc import Container

from distfs.headers import host

#: As it is written in an origin: browsers leave out the port that the scheme has anyway.
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*+)://([^\s/?#@,]++)")
#: Of the page's own origin, or of the user, who typed a URL.
_OWN_SITES = (None, "same-origin", "none")


def normal(text: str) -> str | None:
    """An origin as browsers send it: in small letters, without the port that the scheme has anyway. None: it is
    none, as ``null`` or a URL with a path."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None or not host.is_host(found[2]) or found[2].startswith(":"):
        return None
    return f"{found[1]}://{host.in_url(found[2], found[1])}"


def is_foreign(
    origin: str | None, site: str | None, called: str, scheme: str, listed: Container[str]
) -> bool:
    """Whether a request comes from a page that is neither our own nor ``listed``.

    ``origin`` and ``site``: what it says in Origin and Sec-Fetch-Site; ``called``: its Host; ``scheme``: as it came.
    A page without an origin (``null``) may be anybody's.
    """
    if origin is not None:
        if origin in listed:
            return False
        if not _is_own(origin, called, scheme):
            return True
    return site not in _OWN_SITES


def _is_own(origin: str, called: str, scheme: str) -> bool:
    """Plain HTTP here may be HTTPS at a proxy before us; HTTPS here is nothing else to a browser."""
    there, separator, authority = origin.lower().partition("://")
    if not separator or there not in ("http", "https") or (scheme == "https" and there != "https"):
        return False
    return host.in_url(authority, there) == host.in_url(called.lower(), there)
