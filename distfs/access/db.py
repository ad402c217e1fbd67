"""What is asked of MetaDB about tokens. Tokens themselves never get there, only their hashes.

The rules of ``meta`` hold: one statement is one transaction, every time is the database's clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any
from uuid import UUID, uuid4

from distfs.access.link import Sealed
from distfs.access.terms import Terms, as_entry
from distfs.access.token import hash_of, new_token
from distfs.config.settings import Bytes, BytesPerSecond, CallerRule, Seconds, Weight, Words
from distfs.deadline import Deadline
from distfs.errors import NotFound, Refused
from distfs.meta import MetaDB

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Token:
    """One that was issued, as a service knows it. Times are of the monotonic clock."""

    id: UUID
    owner: str
    scopes: frozenset[str]
    rule: CallerRule
    quota: int
    policies: frozenset[str]
    shown: str  # as logs say it
    link_keys: tuple[tuple[bytes, float], ...] = field(
        default=(), repr=False
    )  # each with its end; the newest first
    revoked_links: frozenset[bytes] = frozenset()  # ids of those that are good no more

    def allows(self, policy: str) -> bool:
        """``policy``: the name that an upload gives; empty: none."""
        return not self.policies or (policy or "default") in self.policies


@dataclass(frozen=True, slots=True)
class Change:
    """A token as its last change left it: ``found_by``, and until when by each: the hashes of its texts, and its id,
    by which links name it. None: it is revoked."""

    revision: int
    token: Token
    found_by: Mapping[bytes, float]


@dataclass(frozen=True, slots=True)
class Listed:
    """A token as operators see it."""

    id: UUID
    terms: Terms
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    owned: int  # bytes of its owner's files; 0: nobody counts them

    def entry(self) -> dict[str, object]:
        """For programs."""
        times = {"created_at": self.created_at, "expires_at": self.expires_at, "revoked_at": self.revoked_at}
        told = {name: at and at.isoformat() for name, at in times.items()}
        return {"id": str(self.id), **as_entry(self.terms), **told, "owned": self.owned}


class TokenDB:
    """Thread-safe."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta

    # --- for services -------------------------------------------------------------------------------

    def since(self, revision: int, deadline: Deadline) -> list[Change]:
        """What has changed since ``revision``, and that change itself, oldest first; 0: all tokens that are good."""
        found: list[Change] = []
        while True:
            began = time.monotonic()  # before MetaDB's own "now": nothing lasts longer than there
            rows = self._meta.read("tokens_since", deadline, known=revision, limit=_PAGE)
            found += [_change(row, began) for row in rows]
            if len(rows) < _PAGE:
                return found
            revision = found.pop().revision  # which comes again, as the first of the next page

    def waited_since(self, since: float) -> None:
        """As MetaDB's."""
        self._meta.waited_since(since)

    def owned(self, owner: str, deadline: Deadline) -> int:
        """Bytes that an owner's files have, of whom a token has a quota."""
        rows = self._meta.read("owned_bytes", deadline, owner=owner)
        return int(rows[0][0]) if rows else 0

    # --- for operators ------------------------------------------------------------------------------

    def create(self, terms: Terms, deadline: Deadline, *, first: bool = False) -> tuple[UUID, str]:
        """-> its id, and its text, which nobody can be told again. Raises Refused; with ``first`` also when there are
        others."""
        id, text = uuid4(), new_token()
        [[made]] = self._meta.write(
            "create_token",
            deadline,
            id=id,
            hash=hash_of(text),
            name=terms.name,
            owner=terms.owner,
            scopes=list(terms.scopes),
            weight=terms.weight,
            cap_in=terms.cap_in,
            cap_out=terms.cap_out,
            max_file_size=terms.max_file_size,
            max_uploads=terms.max_uploads,
            quota=terms.quota,
            policies=list(terms.policies),
            expires=terms.expires,
            first=first,
        )
        if not made:
            raise Refused("there are tokens already: `distfs token list` shows them")
        return id, text

    def made(self, id: UUID, text: str, terms: Terms, deadline: Deadline) -> dict[str, object]:
        """For programs, what ``create`` has made, its text included."""
        rows = self._meta.read("token_expiry", deadline, id=id)
        ends = rows[0][0] if rows else None  # it may be gone by now, and its text is told all the same
        return {"id": str(id), "token": text, **as_entry(terms), "expires_at": ends and ends.isoformat()}

    def revoke(self, id: UUID, deadline: Deadline) -> None:
        """From now on nobody can use it; services that run know it within a second. Raises NotFound."""
        if not self._meta.write("revoke_token", deadline, again="is_revoked", id=id):
            raise NotFound(f"there is no token {id} that could be revoked")

    def good(self, by: bytes, deadline: Deadline) -> Token | None:
        """The token with that hash, or that id, for who does not know all tokens anyway; None: it is good no more, or
        there is none."""
        return next((each.token for each in self.since(0, deadline) if by in each.found_by), None)

    def revoke_link(self, sealed: Sealed, maker: Token | None, deadline: Deadline) -> None:
        """From now on nobody can use that link; services that run know it within a second. Raises Refused for one
        that its ``maker`` has not made, or that is good no more by itself."""
        link = maker and sealed.open(key for key, _ in maker.link_keys)
        if not link:
            raise Refused(
                "this is no link of this cluster, or its token may make none any more: it opens nothing"
            )
        id, until = UUID(bytes=sealed.id), float(link.expires)
        if not self._meta.write("revoke_link", deadline, id=link.token, link=id, until=until):
            raise Refused(
                "its token has 1000 links that were revoked: `distfs token rotate`, which ends all that it made"
            )

    def rotate(self, id: UUID, overlap: float, deadline: Deadline) -> str:
        """Give it another text, -> which nobody can be told again; that of before holds for ``overlap`` seconds.

        Raises NotFound.
        """
        text = new_token()
        given = {"id": id, "hash": hash_of(text), "overlap": float(overlap)}
        if not self._meta.write("rotate_token", deadline, again="has_hash", **given):
            raise NotFound(f"there is no token {id} that could be rotated")
        return text

    def listed(self, deadline: Deadline, *, all: bool = False) -> list[Listed]:
        """All that are good, oldest first; ``all``: also those that expired or were revoked."""
        return [_listed(row) for row in self._meta.read("tokens", deadline, all=all)]


def _change(row: Sequence[Any], began: float) -> Change:
    id, digest, before, before_for, lives_for, revoked, revision, key, key_before, gone, *terms = row
    asked = _terms(terms)
    ends = inf if lives_for is None else began + lives_for
    before_ends = min(ends, began + before_for)
    token = Token(
        id,
        asked.owner,
        frozenset(asked.scopes),
        asked.rule(id),
        asked.quota,
        frozenset(asked.policies),
        f"token {id} of {asked.owner}",
        tuple(
            (bytes.fromhex(each), until) for each, until in ((key, ends), (key_before, before_ends)) if each
        ),
        frozenset(UUID(each).bytes for each in gone),
    )
    found_by = {} if revoked else {bytes.fromhex(digest): ends, id.bytes: ends}
    if found_by and before:
        found_by[bytes.fromhex(before)] = before_ends
    return Change(revision, token, found_by)


def _terms(row: Sequence[Any]) -> Terms:
    name, owner, scopes, weight, cap_in, cap_out, max_file_size, max_uploads, quota, policies = row
    return Terms(
        owner,
        Words(tuple(scopes)),
        name,
        Seconds(0),
        Weight(weight),
        BytesPerSecond(cap_in),
        BytesPerSecond(cap_out),
        Bytes(max_file_size),
        max_uploads,
        Bytes(quota),
        Words(tuple(policies)),
    )


def _listed(row: Sequence[Any]) -> Listed:
    id, *terms, created_at, expires_at, revoked_at, owned = row
    return Listed(id, _terms(terms), created_at, expires_at, revoked_at, owned)
