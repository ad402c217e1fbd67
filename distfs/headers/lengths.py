"""Content-Length (RFC 9110, 8.6), and what else is a number of bytes."""

from __future__ import annotations

#: No number is read as larger: it is over every limit, and reading more digits takes ever longer.
ENDLESS = 10**30
_DIGITS = 30


def number(text: str) -> int | None:
    """A whole number of bytes; None: it is none."""
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0")
    return int(digits or "0") if len(digits) <= _DIGITS else ENDLESS


def content_length(text: str) -> int | None:
    """The same number several times, as a list, is that number. None: it is none, or there are two."""
    if "," not in text:
        return number(text.strip(" \t"))
    first, *more = (part.strip(" \t") for part in text.split(","))
    return None if any(part != first for part in more) else number(first)
