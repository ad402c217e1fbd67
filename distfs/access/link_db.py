"""What is asked of MetaDB about links: each has a row from when it is made, by which it is listed and revoked.

The row has what the link says, not what signs it: nobody can use a link who reads it there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from distfs.access.db import Token
from distfs.access.link import Link, Sealed, read, sealed, text_of, unseal
from distfs.access.link_terms import ForUpload
from distfs.access.terms import check_policies
from distfs.deadline import Deadline
from distfs.errors import Forbidden
from distfs.meta import MetaDB

GOOD, USED_UP, REVOKED, ENDED = "good", "used up", "revoked", "its token or its key is gone"


@dataclass(frozen=True, slots=True)
class MadeLink:
    """One that has not expired, as its owner and operators see it."""

    id: UUID
    owner: str
    link: Link
    made_at: datetime
    most: int  # uses; 0: any number
    used: int
    state: str

    @classmethod
    def new(cls, id: UUID, owner: str, link: Link, most: int) -> MadeLink:
        """Just made."""
        return cls(id, owner, link, datetime.now(UTC), most, 0, GOOD)

    @property
    def expires_at(self) -> datetime:
        return datetime.fromtimestamp(self.link.expires, UTC)

    @property
    def until(self) -> str:
        """In words."""
        return f"{self.expires_at:%Y-%m-%d %H:%M} UTC"

    def entry(self) -> dict[str, object]:
        """For programs."""
        link = self.link
        return {
            "id": str(self.id),
            "owner": self.owner,
            "for": "download" if link.file else "upload",
            "file": str(link.file) if link.file else None,
            "state": self.state,
            "made_at": self.made_at.isoformat(),
            "expires_at": self.expires_at.isoformat(),
            "uses": self.most or None,
            "used": self.used,
            "range": f"{link.span[0]}-{link.span[1]}" if link.span else None,
            "network": str(link.network) if link.network else None,
            "name": link.name or None,
            "max_size": link.max_size or None,
            "policy": link.policy or None,
            "token": str(link.token),
        }


class LinkDB:
    """Thread-safe."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta

    def make(self, token: Token, link: Link, most: int, deadline: Deadline) -> Sealed:
        """With the newest of the token's keys. ``most``: how often it may be used; 0: any number. What is known of it
        is kept until its end."""
        key, _ = token.link_keys[0]
        made = sealed(link, key)
        id = UUID(bytes=made.id)
        self._meta.write(
            "create_link",
            deadline,
            id=link.uses or id,
            most=most or None,
            expires=float(link.expires),
            sealed_id=id,
            owner=token.owner,
            token=token.id,
            body=made.body,
        )
        return made

    def listed(self, after: UUID | None, limit: int, deadline: Deadline, owner: str | None) -> list[MadeLink]:
        """Those that have not expired, by id. ``owner``: whose; None: everybody's."""
        begin = after or UUID(int=0)
        if owner is None:
            rows = self._meta.read("links_after", deadline, after=begin, limit=limit)
        else:
            rows = self._meta.read("links_of", deadline, after=begin, limit=limit, owner=owner)
        return [_made(row) for row in rows]

    def named(self, text: str, maker: Callable[[bytes], Token | None], deadline: Deadline) -> Sealed | None:
        """The link with that URL, or that id. One that no key opens, for an id that no link has; None: it is neither.

        ``maker``: finds a token by its id.
        """
        if (found := unseal(text_of(text))) is not None:
            return found
        try:
            id = UUID(text.strip())
        except ValueError:
            return None
        rows = self._meta.read("link_by_id", deadline, id=id)
        if not rows:
            return Sealed.of_id(id, b"", UUID(int=0), ())
        [[body, token]] = rows
        known = maker(token.bytes)
        return Sealed.of_id(
            id, bytes.fromhex(body), token, [key for key, _ in known.link_keys] if known else ()
        )


def for_upload(asked: ForUpload, token: Token, policies: Collection[str], now: float) -> Link:
    """``policies``: all that there are, by name. Raises Refused, Forbidden for one that the token's uploads may not
    have."""
    if asked.policy:
        check_policies([asked.policy], policies)
    if not token.allows(asked.policy):
        allowed = ", ".join(sorted(token.policies))
        raise Forbidden(f"uploads by this token, and by its links, may have the policies {allowed}: name one")
    return asked.link(token.id, now)


def _made(row: Sequence[Any]) -> MadeLink:
    id, owner, body, made_at, most, used, revoked, *keys = row
    there = bytes.fromhex(body)
    link = read(there)
    good_keys = [bytes.fromhex(key) for key in keys if key]
    if revoked:
        state = REVOKED
    elif Sealed.of_id(id, there, link.token, good_keys).open(good_keys) is None:
        state = ENDED
    else:
        state = USED_UP if most and used >= most else GOOD
    return MadeLink(id, owner, link, made_at, most, used, state)
