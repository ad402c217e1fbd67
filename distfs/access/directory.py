"""All tokens there are, as one process of a service has them: asking MetaDB for each request would cost more than the
request.

Nobody is told of changes. Who is about to believe a token looks whether MetaDB was asked for changes within the last
second, and if it was not, asks: one statement, which finds what has changed by its revision, mostly nothing. So a
token that was revoked is believed for a second at most, whatever becomes of notifications, threads and connections;
a service that nobody asks anything asks nothing. A token that nobody knows is looked for at once, together with all
others that are looked for at the moment: however many there are, MetaDB is asked no more often than LOOK_S allows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from distfs.access.db import Change, Token, TokenDB
from distfs.config.settings import CallerRule
from distfs.deadline import Deadline
from distfs.errors import Busy, OutcomeUnknown, Unavailable

log = logging.getLogger("distfs.access")

#: What was known longer ago counts for nothing, unless MetaDB is away.
FRESH_S = 1.0
#: From this age on it is asked anew, while others still go by what is known.
_RENEW_S = 0.5
#: Between two looks for tokens that nobody knows, at least: short, for who waits has one of the host's few turns. And
#: how long each may take.
LOOK_S, _ASK_LIMIT_S = 0.002, 2.0
#: MetaDB did not answer: known tokens go on, and it is left alone for so long.
_PAUSE_S = 0.5
_NEVER = float("-inf")
_NONE = None, 0.0  # and until when


class _Seen(NamedTuple):
    """What was known at a moment of the monotonic clock: never changed, but replaced."""

    tokens: dict[bytes, tuple[Token, float]]  # by the hash of its text, or by its id, and until when by that
    as_of: float  # when MetaDB was asked

    def good(self, by: bytes) -> Token | None:
        """The token, unless it has expired."""
        token, until = self.tokens.get(by, _NONE)
        return token if time.monotonic() < until else None


class Tokens:
    """Thread-safe. Connects when the first token is shown."""

    def __init__(
        self, db: TokenDB, grace: float, paced: Callable[[Collection[CallerRule]], None] = lambda rules: None
    ) -> None:
        """``grace``: seconds for which known tokens are believed while MetaDB is away. ``paced``: hears of the limits
        of those that are to be kept to a pace, whenever these change."""
        self._db, self._grace, self._paced = db, grace, paced
        self._seen = _Seen({}, _NEVER)
        self._found_by: dict[UUID, tuple[bytes, ...]] = {}  # of each token
        self._revision = 0
        self._failed_at, self._failure = _NEVER, ""  # when MetaDB did not answer
        self._away = False  # and was not there
        self._turn = threading.Condition()
        self._asking = False
        self._rules: frozenset[CallerRule] = frozenset()
        self.asked = 0  # times

    def __len__(self) -> int:
        return len(self._found_by)

    def known(self, by: bytes) -> Token | None:
        """The token with that hash, or that id, as most are found: nobody has to be asked. None: ``find`` it."""
        seen, now = self._seen, time.monotonic()
        if now - seen.as_of >= _RENEW_S:
            return None
        token, until = seen.tokens.get(by, _NONE)
        return token if now < until else None

    def find(self, by: bytes, deadline: Deadline) -> Token | None:
        """The token with that hash, or that id; None: there is none. So MetaDB has said since this was called, or up
        to a second before of one that it knows; of such a one, while MetaDB is away, up to ``grace`` before.

        Raises Unavailable when that cannot be told.
        """
        now = time.monotonic()
        age = now - self._seen.as_of
        if age >= FRESH_S and not self._away:
            self._renew(now - FRESH_S, deadline)
        elif age >= _RENEW_S and not self._asking:
            self._renew_early()
        oldest = now - (self._grace if self._away else FRESH_S)
        seen = self._seen
        if by in seen.tokens and seen.as_of > oldest:
            if self._away:
                self._db.waited_since(now)
            return seen.good(by)
        self._renew(now, deadline)
        seen = self._seen
        if seen.as_of < now:
            log.info("a token cannot be judged: %s", self._failure)
            raise Unavailable("MetaDB cannot say at this moment whether the token is good: try again soon")
        return seen.good(by)

    def owned(self, owner: str, deadline: Deadline) -> int:
        """Bytes that an owner's files have, of whom a token has a quota."""
        return self._db.owned(owner, deadline)

    def peek(self, digest: bytes) -> Token | None:
        """The token as it was known last: nobody is asked, and nothing may rest on it but a limit."""
        known = self._seen.tokens.get(digest)
        return known[0] if known else None

    # --- what has changed -----------------------------------------------------------------------------

    def _renew(self, since: float, deadline: Deadline) -> None:
        """Have what is known be what MetaDB has said since then; it is left as it is while MetaDB does not answer."""
        with self._turn:
            while self._seen.as_of < since:
                now = time.monotonic()
                if self._failed_at > self._seen.as_of and now - self._failed_at < _PAUSE_S:
                    return
                pause = max(self._seen.as_of + LOOK_S - now, 0.0)
                if not self._asking and not pause:
                    break
                self._turn.wait(deadline.bound(pause or _ASK_LIMIT_S, "waiting for what tokens there are"))
            else:
                return
            self._asking = True
        self._ask()

    def _renew_early(self) -> None:
        """Before others have to wait for it."""
        with self._turn:
            now = time.monotonic()
            if self._asking or now - self._seen.as_of < _RENEW_S or now - self._failed_at < _PAUSE_S:
                return
            self._asking = True
        self._ask()

    def _ask(self) -> None:
        """With a time of its own: others wait for it, too."""
        try:
            began, anew = time.monotonic(), not self._revision
            changes = self._db.since(self._revision, Deadline(_ASK_LIMIT_S))
            if not (
                anew or changes
            ):  # not even its last change is there: it is another MetaDB, or an older state
                anew, changes = True, self._db.since(0, Deadline(_ASK_LIMIT_S))
            self._learn(changes, began, anew=anew)
        except (Unavailable, Busy, OutcomeUnknown) as e:
            with self._turn:
                self._failed_at, self._failure = time.monotonic(), str(e)
                self._away = not isinstance(e, Busy)
        finally:
            with self._turn:
                self._asking = False
                self.asked += 1
                self._turn.notify_all()

    def _learn(self, changes: Sequence[Change], as_of: float, *, anew: bool) -> None:
        with self._turn:
            before = self._revision
            if anew:
                self._found_by, self._revision = {}, 0
            changed = anew or (bool(changes) and changes[-1].revision != before)
            tokens = dict({} if anew else self._seen.tokens) if changed else self._seen.tokens
            for change in changes if changed else ():
                for by in self._found_by.pop(change.token.id, ()):
                    del tokens[by]
                if change.found_by:
                    self._found_by[change.token.id] = tuple(change.found_by)
                    tokens |= {by: (change.token, until) for by, until in change.found_by.items()}
                self._revision = change.revision
            self._seen, self._away = _Seen(tokens, as_of), False
            self._turn.notify_all()
        if changed:
            self._tell_paced()

    def _tell_paced(self) -> None:
        """By who asks, so one at a time."""
        rules = frozenset(token.rule for token, _ in self._seen.tokens.values() if token.rule.paces)
        if rules != self._rules:
            self._rules = rules
            self._paced(rules)
