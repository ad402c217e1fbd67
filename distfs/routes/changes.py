"""A request that changes something, done or refused, as lines of the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from distfs.access.authorize import Action
from distfs.access.door import NOBODY
from distfs.audit import AuditLog, Entry
from distfs.routes.messages import Request

#: Methods that change nothing (RFC 9110, 9.2.1).
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
#: Method and first part of the path -> what that is called. A path may hold a name, or what opens a file, so no other
#: is said than by its first part.
_ACTIONS = {
    ("POST", "upload"): "upload",
    ("PUT", "upload"): "upload",
    ("DELETE", "files"): "delete",
    ("PATCH", "files"): "change",
    ("POST", "tokens"): "token",
    ("POST", "links"): "link.upload",
    ("GET", "download"): "download",  # by a link
    ("HEAD", "download"): "download.head",
    ("DELETE", "tokens"): "token.revoke",
}
#: Of one line: it stays short enough to be found at a file's end.
_MOST_OBJECTS = 100


def note(log: AuditLog, request: Request, status: int, request_id: str, sender: dict[str, str]) -> None:
    """Before the answer leaves."""
    outcome = _outcome(status)
    # Who was not let in has changed nothing, whatever failed; and there may be any number of them.
    idle = outcome == "deny" or (outcome == "fail" and request.actor is NOBODY)
    for entry in _entries(request, status, request_id, sender, outcome):
        log.write(entry, denied=idle)


def _entries(
    request: Request, status: int, request_id: str, sender: dict[str, str], outcome: str
) -> Iterator[Entry]:
    first, _, rest = request.path.lstrip("/").partition("/")
    action = (
        _by_its_end(request, rest)
        or _ACTIONS.get((request.method, first))
        or f"{request.method[:20]} /{first[:40]}"
    )
    about = rest.partition("/")[0] if first in ("files", "tokens") else ""
    objects = request.changed or ([about] if about else [])
    from_ = {"from": sender["client"]} | ({"via": sender["via"]} if "via" in sender else {})
    for some in _batches(objects):
        yield {
            "who": request.who or sender["client"],
            "action": action,
            "object": some if len(some) > 1 else "".join(some),
            **({"change": request.change} if request.change else {}),
            "outcome": outcome,
            "why": request.refused,
            "status": status,
            **from_,
            "request": request_id,
        }


def _by_its_end(request: Request, rest: str) -> str:
    if request.action is Action.SHARE:
        return "link.download"
    if request.action is Action.UNLINK:
        return "link.revoke"
    return "token.rotate" if request.action is Action.TOKENS and rest.endswith("/rotate") else ""


def _batches(objects: list[str]) -> Iterator[list[str]]:
    if not objects:
        yield []
    for start in range(0, len(objects), _MOST_OBJECTS):
        yield objects[start : start + _MOST_OBJECTS]


def _outcome(status: int) -> str:
    """``deny``: by a rule; ``fail``: it may have happened or not, for another reason."""
    if status < HTTPStatus.BAD_REQUEST:
        return "allow"
    gone = 499
    return "fail" if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == gone else "deny"
