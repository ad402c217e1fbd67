"""Who may do what: one table, and nothing but it. Pure.

An action needs a scope, or the scope ``admin``, which has all of them. What is done to a file is done by its owner
or an administrator; a file may be made readable for others. Whoever may not even see a file is answered as if there
were none: with a token by 404, without one by 401, for a token may show it.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

ADMIN = "admin"


class Action(Enum):
    """What a request asks for; every route names one."""

    __hash__ = object.__hash__  # Enum's own is a function in Python, and called for each request

    USAGE = "usage"
    HEALTH = "health"
    STATUS = "status"  # and whatever else the service tells of its inside
    METRICS = "metrics"
    UPLOAD = "upload"
    LIST = "list"
    DOWNLOAD = "download"
    FACTS = "facts"
    DELETE = "delete"
    CHANGE = "change"
    TOKENS = "tokens"
    SHARE = "share"  # make a link that downloads a file
    INVITE = "invite"  # make one that takes uploads
    UNLINK = "unlink"  # revoke one
    LINKS = "links"  # list one's own


class Relation(Enum):
    """Whose a file is, seen from who asks."""

    __hash__ = object.__hash__  # as Action's

    OWN = "own"  # also what is no file's matter, of who has a token
    OTHER = "other"
    STRANGER = "stranger"  # who asks has no token


class Visibility(Enum):
    """Who may read a file."""

    __hash__ = object.__hash__  # as Action's

    PRIVATE = "private"  # its owner
    LINK = "link"  # who knows its id
    PUBLIC = "public"  # everybody, and it is listed


class Verdict(Enum):
    """What the answer is."""

    ALLOW = "allow"
    LOGIN = "login"  # a token may help: 401
    FORBIDDEN = "forbidden"  # this one does not: 403
    HIDDEN = "hidden"  # as if there were no such file: 404


class _Row(NamedTuple):
    """What an action needs."""

    scope: str  # of who has a token; empty: any
    of_file: bool = False  # it is done to one, by its owner
    open: bool = False  # nobody needs anything; if it is done to a file, where that is no private one


_TABLE = {
    Action.USAGE: _Row("", open=True),
    Action.HEALTH: _Row("", open=True),
    Action.STATUS: _Row(ADMIN),
    Action.METRICS: _Row(ADMIN),
    Action.TOKENS: _Row(ADMIN),
    Action.UPLOAD: _Row("upload"),
    Action.LIST: _Row("list"),
    Action.DOWNLOAD: _Row("download", of_file=True, open=True),
    Action.FACTS: _Row("download", of_file=True, open=True),
    Action.DELETE: _Row("delete", of_file=True),
    Action.CHANGE: _Row("upload", of_file=True),
    Action.SHARE: _Row("download", of_file=True),
    Action.INVITE: _Row("upload"),
    Action.UNLINK: _Row(""),
    Action.LINKS: _Row("list"),
}


#: For these nobody is even asked for a token.
FREE = frozenset(action for action, row in _TABLE.items() if row.open and not row.of_file)


def authorize(
    action: Action, relation: Relation, scopes: Collection[str], visibility: Visibility | None = None
) -> Verdict:
    """``visibility``: of the file; None: the action is done to none, or to one that is not there."""
    row = _TABLE[action]
    readable = visibility in (Visibility.LINK, Visibility.PUBLIC)
    if row.of_file:
        seen = ADMIN in scopes or relation is Relation.OWN or readable
        if visibility is None or not seen:
            return Verdict.LOGIN if relation is Relation.STRANGER else Verdict.HIDDEN
    if ADMIN in scopes or (row.open and (readable or not row.of_file)):
        return Verdict.ALLOW
    if relation is Relation.STRANGER:
        return Verdict.LOGIN
    return Verdict.ALLOW if relation is Relation.OWN and row.scope in ("", *scopes) else Verdict.FORBIDDEN


def missing(action: Action, relation: Relation) -> str:
    """What would help who has a token and is forbidden something, in words."""
    if relation is Relation.OTHER:
        return "this is another owner's file: only that owner, or an administrator, may change or share it"
    return f"this token lacks the scope {_TABLE[action].scope}: ask an administrator for one that has it"


def of_file(action: Action) -> bool:
    """Whether an action is done to a file, so that it cannot be judged without."""
    return _TABLE[action].of_file


def needs_nothing(action: Action) -> bool:
    """Whether nobody is even asked for a token."""
    return action in FREE
