"""Hostile bytes for signed links: what is shown as one, and what one is asked to be."""

from __future__ import annotations

import io
from uuid import UUID

from distfs.access.link import Link, seal, unseal
from distfs.access.link_terms import read_download, read_upload
from distfs.routes.messages import Request

#: Nobody else has it.
_LINK_KEY = b"k" * 32


def links(data: bytes) -> None:
    """What somebody shows as a link; and asks one to be, as JSON. What is taken comes back out of its text."""
    sealed = unseal(data.decode("latin-1"))
    assert sealed is None or sealed.open([_LINK_KEY]) is None
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/links",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(data),
        "CONTENT_LENGTH": str(len(data)),
    }
    given, id = Request(environ).json_object(), UUID(int=1)
    if "downloads" in given or "range" in given:
        link = read_download(given).link(id, id, 1000, 1e9)
    else:
        link = read_upload(given).link(id, 1e9)
    sealed = unseal(seal(link, _LINK_KEY))
    assert sealed is not None
    assert sealed.open([_LINK_KEY]) == link


SEEDS = (
    seal(Link(UUID(int=1), 1, UUID(int=2), UUID(int=3), (0, 1), None, "a"), bytes(32)).encode(),
    b'{"expires_in": "7d", "downloads": 5, "range": "0-9", "network": "::1", "name": "a"}',
    b'{"expires": "2030-01-31T12:00:00Z", "files": 0, "max_size": "1GB", "policy": "default"}',
)
SAID = (
    *(b'{"range": "-5", "', b'": ', b"[", b"{", b"}", b",", b"1e400", b"NaN", b"null", b"\\ud800", b"-1"),
    *(b"network", b"192.0.2.0/24", b"/129", b"expires", b"0001-01-01", b"+23:59", b"9" * 30, b"-", b"="),
)
