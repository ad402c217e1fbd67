"""Conditional requests (RFC 9110, 13): what a client that has the file, or a part of it, already need not be sent."""

from __future__ import annotations

from datetime import UTC, datetime

from werkzeug.datastructures import Headers
from werkzeug.http import parse_date, parse_etags


def precondition(headers: Headers, etag: str, modified: datetime) -> int | None:
    """304 or 412, where the conditions of a GET or HEAD decide the answer; None: go on. In RFC 9110's order."""
    modified = _to_the_second(modified)
    since = parse_date(headers.get("If-Unmodified-Since"))
    if "If-Match" in headers:
        if not parse_etags(headers["If-Match"]).contains(etag):
            return 412
    elif since is not None and modified > since:
        return 412
    since = parse_date(headers.get("If-Modified-Since"))
    if "If-None-Match" in headers:
        if parse_etags(headers["If-None-Match"]).contains_weak(etag):
            return 304
    elif since is not None and modified <= since:
        return 304
    return None


def same_as_before(if_range: str, etag: str, modified: datetime) -> bool:
    """Whether ``If-Range`` names just this file: its strong ETag, or exactly its date (13.1.5)."""
    if if_range.startswith(('"', "W/")):
        return if_range == f'"{etag}"'
    return parse_date(if_range) == _to_the_second(modified)


def _to_the_second(moment: datetime) -> datetime:
    """As precise as HTTP's dates are."""
    return moment.astimezone(UTC).replace(microsecond=0)
