"""What a client is told of an error: a line of text, or problem+json (RFC 9457) where it asks for JSON."""

from __future__ import annotations

import json
from http import HTTPStatus

from distfs.headers import accept as accept_header

PROBLEM = "application/problem+json"
JSON = "application/json"


def asks_for(accept: str, kind: str) -> bool:
    """Whether Accept names this type itself and likes plain text no better."""
    return accept_header.names(accept, kind, instead_of="text/plain")


def explained(accept: str, status: int, detail: str, request_id: str) -> tuple[str, str]:
    """-> the content type and the body of an error's answer. ``accept``: the request's header, or nothing."""
    if not (asks_for(accept, PROBLEM) or asks_for(accept, JSON)):
        return "text/plain; charset=utf-8", f"{detail}\n"
    problem = {"title": phrase(status), "status": status, "detail": detail, "request_id": request_id}
    return PROBLEM, json.dumps(problem, indent=2) + "\n"


def phrase(status: int) -> str:
    """The status in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"  # 499, the only one that is not HTTP's own
