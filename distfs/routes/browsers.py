"""What pages of others may not do through a browser that reaches this service: by its name, and by their origin.

A page whose name is resolved anew to an address of here (DNS rebinding) is our own to the browser, so a request must
name us by a name that nobody else can have. A page of another origin can send forms, and the password that a browser
keeps for us, wherever it comes from.
"""

from __future__ import annotations

import socket
from functools import lru_cache

from werkzeug.wrappers import Response

from distfs.config.callers import LOOPBACK, is_in, parse_address
from distfs.config.settings import HttpConfig
from distfs.errors import ForeignPage, Misdirected
from distfs.headers import host, origin
from distfs.routes.changes import SAFE
from distfs.routes.messages import Answer, Request

#: What a page of a listed origin may send, and read of an answer.
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_MAY_SEND = (
    "Accept, Authorization, Content-Digest, Content-Type, If-Match, If-Modified-Since, If-None-Match, If-Range, "
    "If-Unmodified-Since, Range, Repr-Digest, Upload-Length, Want-Max-Size, X-Distfs-Policy, "
    "X-Distfs-Visibility, X-Request-Id, X-Upload-Length"
)
_MAY_READ = (
    "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag, Last-Modified, Location, Repr-Digest, "
    "Retry-After, X-Request-Id"
)
_PREFLIGHT_HOLDS_S = 7200


class Browsers:
    """Thread-safe."""

    def __init__(self, config: HttpConfig) -> None:
        self._origins = frozenset(config.cors_origins)
        self.shares = bool(self._origins)
        self._knows = lru_cache(maxsize=256)(Hosts(config).has)
        self._shared = {each: _shared_with(each) for each in self._origins}

    def check(self, request: Request) -> None:
        """Raises Misdirected for a host that we are not; ForeignPage for what a page of others may not."""
        environ = request.environ
        called = environ.get("HTTP_HOST", "")
        if not self._knows(called):
            raise Misdirected(
                f"this service does not go by the name {host.name_in(called)[:60]!r}: its operator can add that to "
                "http.allowed_hosts"
            )
        page, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
        if page is None and site is None:
            return
        if not origin.is_foreign(page, site, called, request.scheme, self._origins):
            return
        if request.method not in SAFE:
            raise ForeignPage(f"{_named(page)} may not change anything here: {_remedy(page)}")
        if _has_kept_password(request) and not _opens_window(request):
            raise ForeignPage(
                f"{_named(page)} may not use a password that the browser keeps: {_remedy(page)}"
            )

    def preflight(self, request: Request) -> Answer | None:
        """The answer to a browser that asks what a page may send (Fetch, 3.2.2); None: it does not ask.

        Raises ForeignPage.
        """
        environ = request.environ
        page = environ.get("HTTP_ORIGIN")
        if page is None or "HTTP_ACCESS_CONTROL_REQUEST_METHOD" not in environ:
            return None
        if page not in self._origins:
            raise ForeignPage(f"{_named(page)} may not ask for this: {_remedy(page)}")
        may = {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _MAY_SEND,
            "Access-Control-Max-Age": str(_PREFLIGHT_HOLDS_S),
        }
        return Answer(204, may, ())

    def share(self, request: Request, answer: Answer | Response) -> None:
        """Let a page of a listed origin read the answer; tell caches that others may not. While it ``shares``."""
        vary = answer.headers.get("Vary")
        answer.headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
        answer.headers.update(self._shared.get(request.environ.get("HTTP_ORIGIN", ""), {}))


class Hosts:
    """The names of this service. Addresses always are: nobody can resolve them anew."""

    def __init__(self, config: HttpConfig) -> None:
        given = {_plain(each) for each in config.allowed_hosts}
        self._any = "*" in given
        self._suffixes = tuple(each[1:] for each in given if each.startswith("*."))
        own = socket.gethostname().lower()
        loopback = config.host == "localhost" or is_in(parse_address(config.host), LOOPBACK)
        # Names without a dot are in no public DNS. For loopback that is not enough: a laptop's network tells it any.
        self._without_dot = not loopback
        beyond = set() if loopback else {own, f"{own.partition('.')[0]}.local"}
        self._names = frozenset(given | beyond | {"localhost", _plain(config.host)})

    def has(self, called: str) -> bool:
        """``called``: a Host header."""
        name = host.name_in(called)
        return (
            not name  # no browser sends that
            or name in self._names
            or host.is_address(name)
            or name.endswith((".localhost", *self._suffixes))
            or (self._without_dot and "." not in name)
            or self._any
        )


def _plain(name: str) -> str:
    try:
        name = name.encode("idna").decode()
    except UnicodeError:
        pass
    return name.lower().removesuffix(".")


def _shared_with(page: str) -> dict[str, str]:
    return {"Access-Control-Allow-Origin": page, "Access-Control-Expose-Headers": _MAY_READ}


def _has_kept_password(request: Request) -> bool:
    said: str = request.environ.get("HTTP_AUTHORIZATION", "")
    return said[:6].lower() == "basic "


def _opens_window(request: Request) -> bool:
    """A link that somebody followed: what comes is shown to him, and no page gets at it."""
    environ = request.environ
    return (
        "HTTP_ORIGIN" not in environ
        and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        and environ.get("HTTP_SEC_FETCH_DEST") == "document"
    )


def _named(page: str | None) -> str:
    if page is None:
        return "a page of another site"
    return "a page without an origin (null)" if page == "null" else f"a page of {page[:100]!r}"


def _remedy(page: str | None) -> str:
    if page is None or origin.normal(page) is None:
        return "send it from a page of this service, or not by a browser"
    return "the service's operator can add it to http.cors_origins"
