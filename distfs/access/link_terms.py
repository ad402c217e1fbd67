"""What somebody asks a link to be. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from distfs.access.link import LATEST, MOST_TEXT, Link
from distfs.access.terms import read_as
from distfs.config.callers import Network, parse_network
from distfs.config.settings import Bytes, Seconds
from distfs.errors import Refused
from distfs.headers import byte_ranges
from distfs.quantity import size

#: Of a link that may be used so often: each has its place in a row.
MOST_USES = 1000
_SUCH = "such a link"
#: Nobody can ask for less than none.
_NOT_SAID = Seconds(-1)
_A_DAY, _NO_LIMIT = 86400.0, Bytes(0)


@dataclass(frozen=True, slots=True)
class ForBoth:
    """What every link has."""

    expires_in: Seconds = _NOT_SAID  # from now; not said: a day
    expires: str = ""  # or a moment, as ISO 8601 has it
    network: str = ""  # of clients

    def end(self, now: float) -> int:
        """Unix seconds. Raises Refused."""
        if not self.expires:
            end = now + (_A_DAY if self.expires_in == _NOT_SAID else self.expires_in)
        elif self.expires_in != _NOT_SAID:
            raise Refused("a link has expires_in or expires, not both")
        else:
            try:
                moment = datetime.fromisoformat(self.expires)
            except ValueError as e:
                raise Refused(f"expires: no moment such as 2030-01-31T12:00:00Z: {e}") from e
            if moment.tzinfo is None:
                raise Refused("expires: say of what time zone, as in 2030-01-31T12:00:00Z")
            end = moment.timestamp()
        if not now < end <= LATEST:
            raise Refused("a link ends later than now, and before the year 10000")
        return math.ceil(end)

    @property
    def clients(self) -> Network | None:
        """Raises Refused."""
        try:
            return parse_network(self.network) if self.network else None
        except ValueError as e:
            raise Refused(f"network: {e}") from e


@dataclass(frozen=True, slots=True)
class ForDownload(ForBoth):
    """Of one file."""

    downloads: int = 0  # that may be; 0: any number
    range: str = ""  # the bytes that may be had, such as 0-1023; not said: all
    name: str = ""  # to save it under; not said: its own

    def link(self, token: UUID, file: UUID, size: int, now: float) -> Link:
        """``size``: of the file. Raises Refused."""
        return Link(
            token,
            self.end(now),
            file,
            _counted(self.downloads, "downloads"),
            _span(self.range, size) if self.range else None,
            self.clients,
            _short(self.name, "name"),
        )


@dataclass(frozen=True, slots=True)
class ForUpload(ForBoth):
    """Of files that somebody else sends."""

    files: int = 1  # that may be sent; 0: any number
    max_size: Bytes = _NO_LIMIT  # of each; 0: what the token may
    policy: str = ""

    def link(self, token: UUID, now: float) -> Link:
        """Raises Refused."""
        return Link(
            token,
            self.end(now),
            uses=_counted(self.files, "files"),
            network=self.clients,
            max_size=self.max_size,
            policy=_short(self.policy, "policy"),
        )


def read_download(given: Mapping[str, Any]) -> ForDownload:
    """Raises Refused."""
    return read_as(ForDownload, given, _SUCH)


def read_upload(given: Mapping[str, Any]) -> ForUpload:
    """Raises Refused."""
    return read_as(ForUpload, given, _SUCH)


def _counted(most: int, what: str) -> UUID | None:
    if most > MOST_USES:
        raise Refused(f"{what}: at most {MOST_USES}, or 0 for any number")
    return uuid4() if most else None


def _span(text: str, size: int) -> tuple[int, int]:
    found = byte_ranges.read(f"bytes={text}")
    if found is None or len(found) != 1:
        raise Refused(f"range: {text[:60]!r} is not one of bytes, such as 0-1023, 1024- or -512")
    [asked] = found
    first = max(0, size - (asked.last or 0)) if asked.first is None else asked.first
    last = size - 1 if asked.first is None or asked.last is None else min(asked.last, size - 1)
    if first > last:
        raise Refused(f"range: the file has none of the bytes {text[:60]}, only {size} in all")
    return first, last


def _short(text: str, what: str) -> str:
    if not text.isprintable() or len(text.encode("utf-8", "replace")) > MOST_TEXT:
        raise Refused(f"{what}: text on one line, of at most {size(MOST_TEXT)}")
    return text
