"""If-Match and If-None-Match (RFC 9110, 13.1): lists of entity tags, or any."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*+)"')
_BETWEEN = re.compile(r"[ \t,]*+")
_COMMA = re.compile(r"[ \t]*+(?:,|\Z)")


@dataclass(frozen=True, slots=True)
class Tags:
    """``any``: ``*``, whatever there is."""

    any: bool
    strong: frozenset[str] = frozenset()
    weak: frozenset[str] = frozenset()

    def has(self, tag: str) -> bool:
        """By strong comparison: byte for byte the same."""
        return self.any or tag in self.strong

    def has_weakly(self, tag: str) -> bool:
        return self.has(tag) or tag in self.weak


def read(text: str) -> Tags | None:
    """None: it is no list of entity tags. Commas in a tag are the tag's."""
    text = text.strip(" \t")
    if text == "*":
        return Tags(any=True)
    found: dict[bool, set[str]] = {False: set(), True: set()}
    at = _BETWEEN.match(text).end()  # type: ignore[union-attr]  # it matches anywhere
    while at < len(text):
        tag = _TAG.match(text, at)
        comma = tag and _COMMA.match(text, tag.end())
        if not tag or not comma:
            return None
        found[bool(tag[1])].add(tag[2])
        at = _BETWEEN.match(text, comma.end()).end()  # type: ignore[union-attr]
    return Tags(any=False, strong=frozenset(found[False]), weak=frozenset(found[True]))
