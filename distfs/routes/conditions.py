"""Conditional requests (RFC 9110, 13): what a client that has the file, or a part of it, already need not be sent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from werkzeug.datastructures import Headers

from distfs.errors import ConditionFailed, Refused
from distfs.headers import dates, etags
from distfs.headers.etags import Tags

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_NONE = Tags(any=False)


def has_conditions(environ: WSGIEnvironment) -> bool:
    """Whether a request has any; most have none, and to look for each in its headers takes longer."""
    return (
        "HTTP_IF_NONE_MATCH" in environ
        or "HTTP_IF_MODIFIED_SINCE" in environ
        or "HTTP_IF_MATCH" in environ
        or "HTTP_IF_UNMODIFIED_SINCE" in environ
    )


def asks_for_less(environ: WSGIEnvironment, by_link: bool) -> bool:
    """Whether a request has anything by which it may get other than the whole file. ``by_link``: one thing in its
    query is that."""
    query = environ.get("QUERY_STRING")
    return bool(
        (query and (not by_link or "&" in query))
        or "HTTP_RANGE" in environ
        or "HTTP_WANT_MAX_SIZE" in environ
        or has_conditions(environ)
    )


def precondition(headers: Headers, etag: str, modified: datetime) -> int | None:
    """304 or 412, where the conditions of a GET or HEAD decide the answer; None: go on. In RFC 9110's order.

    Of a request that changes something, 304 means 412.
    """
    modified = _to_the_second(modified)
    since = dates.read(headers.get("If-Unmodified-Since"))
    if "If-Match" in headers:
        if not (etags.read(headers["If-Match"]) or _NONE).has(etag):
            return 412
    elif since is not None and modified > since:
        return 412
    since = dates.read(headers.get("If-Modified-Since"))
    if "If-None-Match" in headers:
        if (etags.read(headers["If-None-Match"]) or _NONE).has_weakly(etag):
            return 304
    elif since is not None and modified <= since:
        return 304
    return None


def check_nothing_there(headers: Headers) -> None:
    """The conditions of an upload: what it makes is always new, and nothing is there to match before.

    Raises ConditionFailed; Refused for a condition that cannot be read, since it may have been to prevent this.
    """
    for name in ("If-Match", "If-None-Match"):
        if name in headers and etags.read(headers[name]) is None:
            raise Refused(f'{name} is no list of entity tags: it is like "TAG", or * for any')
    if "If-Match" in headers:
        raise ConditionFailed("an upload makes a new file and replaces none (If-Match): send it without")


def check_before_change(headers: Headers, etag: str, modified: datetime) -> None:
    """The conditions of a request that changes a file. Raises ConditionFailed."""
    asked = Headers([(name, value) for name, value in headers if name.lower() != "if-modified-since"])
    if precondition(asked, etag, modified) is not None:
        raise ConditionFailed("the file is not as the request's conditions say: nothing was changed")


def same_as_before(if_range: str, etag: str, modified: datetime) -> bool:
    """Whether ``If-Range`` names just this file: its strong ETag, or exactly its date (13.1.5)."""
    if if_range.startswith(('"', "W/")):
        return if_range == f'"{etag}"'
    return dates.read(if_range) == _to_the_second(modified)


def _to_the_second(moment: datetime) -> datetime:
    """As precise as HTTP's dates are."""
    return moment.astimezone(UTC).replace(microsecond=0)
