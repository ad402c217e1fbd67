"""What a token is good for: whose it is, what it may, until when, within which limits. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast
from uuid import UUID

from distfs.config.callers import CallerMatch
from distfs.config.file import parse_as
from distfs.config.settings import Bytes, BytesPerSecond, CallerRule, Seconds, Weight, Words
from distfs.errors import ConfigError, Refused
from distfs.quantity import counted, size

SCOPES = ("upload", "download", "list", "delete", "admin")
_MOST_BYTES = 255  # of an owner, and of a name
_NOTHING: Mapping[str, str] = {}
_NEVER, _LIKE_OTHERS, _NO_CAP, _NO_LIMIT, _ALL = Seconds(0), Weight(1), BytesPerSecond(0), Bytes(0), Words(())
_LONGEST = 100 * 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Terms:
    """As a token is asked for. Its limits are those of ``callers.rules``, and a few that only a token can have."""

    owner: str
    scopes: Words
    name: str = ""  # for people who read lists
    expires: Seconds = _NEVER  # from now; 0: never
    weight: Weight = _LIKE_OTHERS
    cap_in: BytesPerSecond = _NO_CAP
    cap_out: BytesPerSecond = _NO_CAP
    max_file_size: Bytes = _NO_LIMIT
    max_uploads: int = 0
    quota: Bytes = _NO_LIMIT  # of all files of the owner together
    policies: Words = _ALL  # that its uploads may have; none: all

    def rule(self, token: UUID) -> CallerRule:
        """Its limits, as those of any other caller."""
        return CallerRule(
            CallerMatch.of_token(str(token)),
            self.weight,
            self.cap_in,
            self.cap_out,
            self.max_file_size,
            self.max_uploads,
        )


T = TypeVar("T")


def read_as(cls: type[T], given: Mapping[str, Any], what: str, needs: Mapping[str, str] = _NOTHING) -> T:
    """What somebody asks for, as a dataclass of ours, with sizes and times as the configuration has them.

    ``what`` that is, in words; ``needs``: what has to be given, and what for. Raises Refused.
    """
    known = {each.name for each in fields(cast(Any, cls))}
    for key in given:
        if key not in known:
            raise Refused(f"{what} has no {key[:60]!r}; it has: {', '.join(sorted(known))}")
    for key, meaning in needs.items():
        if not given.get(key):
            raise Refused(f"{what} needs {key}: {meaning}")
    try:
        return cast(T, parse_as(cls, given))
    except ConfigError as e:
        raise Refused(str(e).removeprefix("config: ")) from e


def read_terms(given: Mapping[str, Any]) -> Terms:
    """As they are asked for. Raises Refused."""
    needed = f"whose it is, and what it may ({', '.join(SCOPES)})"
    terms = read_as(Terms, given, "a token", {"owner": needed, "scopes": needed})
    if not terms.scopes:
        raise Refused(f"a token needs scopes: what it may ({', '.join(SCOPES)})")
    for text in (terms.owner, terms.name, *terms.policies):
        if len(text.encode("utf-8", "replace")) > _MOST_BYTES or not _is_plain(text):
            raise Refused(
                f"owner, name and policies of a token are text on one line, of at most {size(_MOST_BYTES)}, "
                "without spaces around it"
            )
    if unknown := set(terms.scopes) - set(SCOPES):
        raise Refused(f"there is no scope {min(unknown)[:60]!r}; there are: {', '.join(SCOPES)}")
    if terms.expires > _LONGEST:
        raise Refused("expires: at most 100 years; 0: never")
    if max(terms.cap_in, terms.cap_out, terms.max_file_size, terms.max_uploads, terms.quota) >= 1 << 31:
        _check_large(terms)
    return terms


def check_policies(asked: Collection[str], known: Collection[str]) -> None:
    """By their names. Raises Refused for one that is not known."""
    if unknown := set(asked) - set(known):
        raise Refused(f"there is no policy {min(unknown)[:60]!r}; there are: {', '.join(known)}")


def _is_plain(text: str) -> bool:
    """One line that looks like no other."""
    return text.isprintable() and text == text.strip()


def _check_large(terms: Terms) -> None:
    large = max(terms.cap_in, terms.cap_out, terms.max_file_size, terms.quota)
    if terms.max_uploads >= 1 << 31 or large >= 1 << 63:
        raise Refused("a limit of a token is larger than can be kept: 0 means none")


def of_first() -> Terms:
    """Of the token that lets its owner make all others."""
    return Terms("admin", Words(("admin",)), "first")


def in_words(terms: Terms) -> str:
    """What it is good for."""
    sizes = {
        "files up to": terms.max_file_size,
        "quota": terms.quota,
        "in a second": terms.cap_in,
        "out a second": terms.cap_out,
    }
    said = [", ".join(terms.scopes), *(f"{what} {size(limit)}" for what, limit in sizes.items() if limit)]
    if terms.max_uploads:
        said.append(f"{counted(terms.max_uploads, 'upload')} at once")
    if float(terms.weight) != 1:
        said.append(f"weight {terms.weight:g}")
    if terms.policies:
        said.append(f"policies {', '.join(terms.policies)}")
    return "; ".join(said)


def as_entry(terms: Terms) -> dict[str, object]:
    """For programs, with sizes in bytes."""
    return {
        each.name: list(value) if isinstance(value := getattr(terms, each.name), tuple) else value
        for each in fields(Terms)
        if each.name != "expires"
    }
