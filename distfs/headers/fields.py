"""What most header fields are made of (RFC 9110, 5.6): tokens, quoted strings, lists, parameters."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: A quoted string, also one that does not end; or a separator outside of one.
_SEPARATORS = {mark: re.compile(rf'"(?:[^"\\]|\\.)*"?+|{mark}', re.DOTALL) for mark in ",;"}
_QUOTED = re.compile(r'"((?:[\t !#-\[\]-~]|\\[\t -~])*)"')
_PAIR = re.compile(r"\\(.)")


def is_token(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that are in no quoted string, without the blanks around them."""
    if separator not in text:
        return [text.strip(" \t")]
    parts, start = [], 0
    for found in _SEPARATORS[separator].finditer(text):
        if found[0] == separator:
            parts.append(text[start : found.start()])
            start = found.end()
    return [part.strip(" \t") for part in [*parts, text[start:]]]


def elements(text: str) -> list[str]:
    """A list's elements; empty ones do not count (5.6.1.2)."""
    return [part for part in split(text, ",") if part]


def words(text: str) -> set[str]:
    """A list of words whose case does not count: Connection, Expect, Content-Encoding, Trailer."""
    return set(elements(text.lower()))


def unquoted(text: str) -> str | None:
    """What a quoted string means; None: it is none, or has other than ASCII in it."""
    found = _QUOTED.fullmatch(text)
    return _PAIR.sub(r"\1", found[1]) if found else None


def quoted(text: str) -> str:
    """As a token where it is one, else as a quoted string."""
    return text if is_token(text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def parameters(parts: list[str]) -> tuple[tuple[str, str], ...] | None:
    """``name=value`` each, names in lower case; empty ones do not count (5.6.6). None: one is bad, or twice."""
    found: dict[str, str] = {}
    for part in filter(None, parts):
        name, equals, value = part.partition("=")
        meant = value if is_token(value) else unquoted(value)
        name = name.lower()
        if not equals or not is_token(name) or meant is None or name in found:
            return None
        found[name] = meant
    return tuple(found.items())
