"""Range (RFC 9110, 14.2): which bytes a client asks for, of a file of any size."""

from __future__ import annotations

import re
from typing import NamedTuple

from distfs.headers import fields, lengths

_RANGE = re.compile(r"([0-9]*+)-([0-9]*+)")


class Asked(NamedTuple):
    """Bytes ``first`` to ``last``, both included; ``last`` None: to the end; ``first`` None: so many of the end."""

    first: int | None
    last: int | None


def read(text: str) -> list[Asked] | None:
    """None: it is no list of byte ranges, and is as if it were not there."""
    unit, _, listed = text.strip(" \t").partition("=")
    if unit.lower() != "bytes":
        return None
    found = []
    for element in fields.elements(listed):
        numbers = _RANGE.fullmatch(element)
        if numbers is None:
            return None
        asked = Asked(*map(lengths.number, numbers.groups()))
        if asked.last is None and asked.first is None:
            return None
        if asked.last is not None and asked.first is not None and asked.last < asked.first:
            return None
        found.append(asked)
    return found or None
