"""For administrators: tokens, made, listed, rotated and revoked."""

from __future__ import annotations

from uuid import UUID

from werkzeug.wrappers import Response

from distfs.access.db import TokenDB
from distfs.access.terms import check_policies, in_words, read_terms
from distfs.config.file import parse_seconds
from distfs.errors import Refused
from distfs.routes.messages import Answer, Request, as_json, parse_uuid
from distfs.services import Services

#: What is said of a token is nobody's to keep.
_NOWHERE = {"Cache-Control": "no-store"}


def create_token(services: Services, request: Request) -> Answer:
    """A JSON object with its terms -> 201 with the token, which nobody can be told again."""
    terms = read_terms(request.json_object())
    check_policies(terms.policies, services.config.storage.policies)
    deadline = services.answer_deadline(request.hang_up)
    id, text = _db(services).create(terms, deadline)
    request.change = f"{terms.owner}: {in_words(terms)}"
    return _made(request, id, _db(services).made(id, text, terms, deadline), 201)


def list_tokens(services: Services, request: Request) -> Answer:
    """Those that are good; with ``?all=1`` also those that expired or were revoked. Never their texts."""
    everything = request.flag("all")
    found = _db(services).listed(services.answer_deadline(request.hang_up), all=everything)
    return as_json({"tokens": [each.entry() for each in found]})


def rotate_token(services: Services, request: Request, uuid: str) -> Answer:
    """A JSON object with ``overlap``, for how long the old text holds (nothing: no longer) -> the new one."""
    id, wanted = parse_uuid(uuid, "token"), request.json_object() if request.has_body else {}
    if unknown := wanted.keys() - {"overlap"}:
        raise Refused(f"rotating a token takes no {min(unknown)[:60]!r}, only an overlap")
    try:
        overlap = parse_seconds(wanted.get("overlap", 0))
    except ValueError as e:
        raise Refused(f"overlap: {e}") from e
    text = _db(services).rotate(id, overlap, services.answer_deadline(request.hang_up))
    return _made(request, id, {"id": str(id), "token": text}, 200)


def revoke_token(services: Services, request: Request, uuid: str) -> Response:
    """From now on nobody can use it: within a second, whatever service they ask."""
    id = parse_uuid(uuid, "token")
    _db(services).revoke(id, services.answer_deadline(request.hang_up))
    request.changed = [str(id)]
    return Response(status=204)


def _made(request: Request, id: UUID, entry: dict[str, object], status: int) -> Answer:
    request.changed = [str(id)]
    answer = as_json(entry, status)
    answer.headers.update(_NOWHERE)
    return answer


def _db(services: Services) -> TokenDB:
    return TokenDB(services.meta)
