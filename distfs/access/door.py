"""Who asks, and whether they may: where every request is let in, and every file that it asks for is judged.

What is decided is told, each time, to whoever keeps the records (``told``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, TypeVar
from uuid import UUID

from distfs.access.authorize import ADMIN, Action, Relation, Verdict, Visibility, authorize, missing, of_file
from distfs.access.db import Token
from distfs.access.directory import Tokens
from distfs.access.failures import Failures
from distfs.access.link import NOT_GOOD, NOT_YOURS, Link, Sealed, unseal
from distfs.access.token import hash_at_once, is_whole
from distfs.config.callers import IPAddress
from distfs.config.reach import is_here
from distfs.config.settings import AuthConfig
from distfs.deadline import Deadline
from distfs.errors import BadToken, Forbidden, NotFound, Unauthorized
from distfs.model import File

K = TypeVar("K")
V = TypeVar("V")

#: The same few questions come again and again.
_authorize = lru_cache(maxsize=1024)(authorize)
_EVERYTHING = frozenset([ADMIN])
_VISIBILITY = {each.value: each for each in Visibility}
#: Links, and tokens, of which is remembered who has them; all are forgotten when there are more.
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. ``all``: nobody is asked for a token, and everybody may do everything. ``link``: somebody who has it,
    and for that has the rights of who has the token."""

    token: Token | None = None
    all: bool = False
    link: Link | None = None
    scopes: frozenset[str] = field(init=False, repr=False)
    #: Whose what they store is; None: nobody's.
    owner: str | None = field(init=False, repr=False)
    #: As MetaDB is asked for what this one may see; None: everything.
    seen_by: str | None = field(init=False, repr=False)
    name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """All of it once: who has a token, or a link, is the same for all requests that come with it."""
        token = self.token
        scopes = _EVERYTHING if self.all else token.scopes if token else frozenset()
        owner = token.owner if token else None
        name = token.shown if token else "anybody" if self.all else "nobody"
        object.__setattr__(self, "scopes", scopes)
        object.__setattr__(self, "owner", owner)
        object.__setattr__(self, "seen_by", None if ADMIN in scopes else owner or "")
        object.__setattr__(self, "name", f"a link of {name}" if token and self.link else name)

    def __str__(self) -> str:
        return self.name

    def knows_all_of(self, file: File) -> bool:
        """Whether it may know whose a file is, and where it is kept."""
        return self.link is None and (ADMIN in self.scopes or self.relation(file) is Relation.OWN)

    def relation(self, file: File | None) -> Relation:
        if self.token is None:
            return Relation.OWN if self.all else Relation.STRANGER
        own = file is None or file.owner == self.token.owner
        return Relation.OWN if own else Relation.OTHER


ANYBODY, NOBODY = Actor(all=True), Actor()

_NO_LINKS = (
    "a link is made with a token, and here nobody needs one: everybody may do everything without (auth)"
)
#: What nobody does who needs no token, and why.
_MAKES = {
    Action.TOKENS: "who needs no token may make none: `distfs token create` does, while auth is not on",
    Action.SHARE: _NO_LINKS,
    Action.INVITE: _NO_LINKS,
    Action.UNLINK: _NO_LINKS,
    Action.LINKS: _NO_LINKS,
}


#: Nothing is judged before the file is known.
LATER = frozenset(action for action in Action if of_file(action) and action not in _MAKES)


class _Opened(NamedTuple):
    """A link whose signature was found to be right."""

    sealed: Sealed
    actor: Actor  # whose token was known as this object: another one may have other keys
    until: float  # its key is good, on the monotonic clock


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided: may ``actor`` do ``action``, to ``file`` if it is about one."""

    actor: Actor
    action: Action
    file: UUID | None
    verdict: Verdict

    @property
    def allowed(self) -> bool:
        return self.verdict is Verdict.ALLOW


class Door:
    """Of a service. Thread-safe."""

    def __init__(
        self,
        auth: AuthConfig,
        tokens: Tokens,
        failures: Failures | None = None,
        told: Callable[[Decision], None] | None = None,
    ) -> None:
        """``failures``: counted with other processes of the service. ``told``: hears of every decision."""
        self.guarded = auth.mode == "on"
        self._here_alone = auth.mode == "off"
        self.tokens, self.told = tokens, told
        self.failures = failures or Failures()
        self._actors: dict[bytes, Actor] = {}  # by what their token is found by
        self._opened: dict[str, _Opened] = {}  # by its text

    def enter(self, shown: str | None, address: IPAddress | None, deadline: Callable[[], Deadline]) -> Actor:
        """``shown``: what is said to be a token; None: nothing is. ``deadline``: of a wait, should there be one.

        Raises Unauthorized for what is none, TooMany when too many came from there; Unavailable when nobody can tell.
        """
        if shown is None:
            return NOBODY
        digest = hash_at_once(shown)
        token = None if digest is None else self.tokens.known(digest)
        if token is None and digest is not None and is_whole(shown):
            token = self.tokens.find(digest, deadline())
        if token is None:  # only now: whoever has a good one is let in, whatever others did
            self.failures.failed(address)
            raise BadToken("the token that was shown is not good: it is none, has expired or was revoked")
        return self._actor(digest, token)

    def _actor(self, digest: bytes | None, token: Token) -> Actor:
        """The same as long as nothing of the token has changed."""
        actor = self._actors.get(digest) if digest else None
        if actor is None or actor.token is not token:
            actor = Actor(token)
            if digest:
                _remember(self._actors, digest, actor)
        return actor

    def enter_freely(self, peer: str) -> Actor:
        """Where nobody needs a token. ``peer``: the address at the other end of the connection. Raises Forbidden for
        one of elsewhere while auth is off: another host than ours may listen where it must not."""
        if self._here_alone and not is_here(peer):
            raise Forbidden(
                "auth is off, so only this machine is answered: the operator can write `auth: on`, or `auth: open` "
                "where everybody may do everything"
            )
        return ANYBODY

    def usage(self) -> dict[str, int]:
        """For operators: how often MetaDB was asked for tokens, and how often something shown was none."""
        return {"lookups": self.tokens.asked, "refused": self.failures.total}

    def follow(
        self, text: str, action: Action, address: IPAddress | None, deadline: Callable[[], Deadline]
    ) -> Actor:
        """Who came by what is said to be a link. Raises Forbidden for what is none, or not for this; TooMany,
        Unavailable as ``enter``."""
        opened = self._opened.get(text)
        sealed = opened.sealed if opened else unseal(text)
        token = sealed and (self.tokens.known(sealed.token) or self.tokens.find(sealed.token, deadline()))
        if opened is None or opened.actor.token is not token or time.monotonic() >= opened.until:
            opened = _open(sealed, token) if sealed and token else None
            if opened is not None:
                _remember(self._opened, text, opened)
        if opened is None or sealed is None or token is None or (link := opened.actor.link) is None:
            self.failures.failed(address)
            raise Forbidden(NOT_GOOD)
        if token.revoked_links and sealed.id in token.revoked_links:
            raise Forbidden("this link was revoked: ask for a new one")
        if action is not (Action.DOWNLOAD if link.file else Action.UPLOAD):
            does = "downloads one file: GET it" if link.file else "takes a file: POST a form, or PUT it"
            raise Forbidden(f"this link only {does}")
        link.check(time.time(), address)
        return opened.actor

    def judge_link(self, actor: Actor, sealed: Sealed, deadline: Deadline) -> Token | None:
        """Whether it may revoke that link. -> The link's maker, if any. Raises Forbidden, also for a link of none."""
        maker = self.tokens.find(sealed.token, deadline)
        own = maker is not None and actor.token is not None and maker.owner == actor.token.owner
        relation = Relation.OWN if own else Relation.OTHER
        if authorize(Action.UNLINK, relation, actor.scopes) is not Verdict.ALLOW:
            raise Forbidden(NOT_YOURS)
        return maker

    def glance(self, shown: str | None) -> Token | None:
        """The token as far as it is known without asking anybody: nothing but a limit may rest on it."""
        digest = hash_at_once(shown) if shown else None
        return None if digest is None else self.tokens.peek(digest)

    def judge(self, actor: Actor, action: Action, id: UUID | None = None, file: File | None = None) -> None:
        """Of an action that is done to a file: the one with that ``id``; None for ``file``: there is none.

        Raises Unauthorized, Forbidden, NotFound.
        """
        visibility = _VISIBILITY[file.visibility] if file else None
        verdict = _authorize(action, actor.relation(file), actor.scopes, visibility)
        if self.told is not None:
            self.told(Decision(actor, action, id, verdict))
        if verdict is Verdict.ALLOW:
            return
        match verdict:
            case Verdict.LOGIN:
                raise Unauthorized(
                    "a token is needed: send it as `Authorization: Bearer TOKEN`, or as a password (curl -u :TOKEN)"
                )
            case Verdict.FORBIDDEN:
                raise Forbidden(missing(action, actor.relation(file)))
            case Verdict.HIDDEN:
                raise NotFound(f"no file {id}")

    def judge_before(self, actor: Actor, action: Action) -> None:
        """The same before anything is known but the action, as far as that is enough."""
        if action in _MAKES and not self.guarded:  # they would be good once auth is on
            if self.told is not None:
                self.told(Decision(actor, action, None, Verdict.FORBIDDEN))
            raise Forbidden(_MAKES[action])
        if not of_file(action):
            self.judge(actor, action)


def _open(sealed: Sealed, token: Token) -> _Opened | None:
    """None: none of the token's keys that are good has signed it."""
    now = time.monotonic()
    for key, until in token.link_keys:
        if now < until and (link := sealed.open([key])) is not None:
            return _Opened(sealed, Actor(token, link=link), until)
    return None


def _remember(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= _MOST:
        known.clear()
    known[key] = value
