"""Content-Type (RFC 9110, 8.3.1): what it is, what of it may be said again, and what a browser may show of it.

A type is given back only as it was read here, never as it was sent: browsers read a list, and take its last type.
"""

from __future__ import annotations

from dataclasses import dataclass

from distfs.headers import fields
from distfs.model import MAX_TYPE_BYTES

#: What a browser shows and does not execute; only what is named here. All others are served as attachments.
_SHOWN = frozenset(
    [
        "text/plain",
        *(f"image/{kind}" for kind in ("png", "jpeg", "gif", "webp", "avif", "bmp")),
        *(f"audio/{kind}" for kind in ("mpeg", "mp4", "aac", "ogg", "flac", "wav", "webm")),
        *(f"video/{kind}" for kind in ("mp4", "webm", "ogg", "mpeg", "quicktime")),
    ]
)
#: In a parameter's value, some readers take these for its end, or for that of the whole type.
_RISKY = frozenset('",\\')


@dataclass(frozen=True, slots=True)
class MediaType:
    """``essence``: type and subtype, in lower case."""

    essence: str
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def shown(self) -> bool:
        """Whether a browser may show it on this service's pages."""
        return self.essence in _SHOWN

    def plain(self) -> MediaType:
        """Without the parameters that somebody might read otherwise."""
        return MediaType(self.essence, tuple(p for p in self.parameters if _RISKY.isdisjoint(p[1])))

    def __str__(self) -> str:
        if not self.parameters:
            return self.essence
        return "; ".join([self.essence, *(f"{n}={fields.quoted(v)}" for n, v in self.parameters)])


UNTYPED = MediaType("application/octet-stream")


def announces_form(text: str) -> bool:
    """Whether a body of this type is a form, though its parameters may be none."""
    return text.partition(";")[0].strip(" \t").lower() == "multipart/form-data"


def read(text: str) -> MediaType:
    """UNTYPED for what is no media type: a list of them, other than ASCII, parameters that are none; or too long."""
    if not text:
        return UNTYPED
    essence, *rest = fields.split(text, ";")
    kind, slash, subtype = essence.partition("/")
    parameters = fields.parameters(rest)
    if not (slash and fields.is_token(kind) and fields.is_token(subtype)) or parameters is None:
        return UNTYPED
    found = MediaType(essence.lower(), parameters)
    return found if len(str(found)) <= MAX_TYPE_BYTES else UNTYPED
