"""What a client is told of an error: a line of text, or problem+json (RFC 9457) where it asks for JSON."""

from __future__ import annotations

import json
from http import HTTPStatus

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

PROBLEM = "application/problem+json"
JSON = "application/json"


def asks_for(accept: MIMEAccept, kind: str) -> bool:
    """Whether Accept names this type itself and likes plain text no better."""
    named = any(value.lower() == kind and quality > 0 for value, quality in accept)
    return named and accept.quality(kind) >= accept.quality("text/plain")


def explained(accept: str, status: int, detail: str, request_id: str) -> tuple[str, str]:
    """-> the content type and the body of an error's answer. ``accept``: the request's header, or nothing."""
    wanted = parse_accept_header(accept, MIMEAccept)
    if not (asks_for(wanted, PROBLEM) or asks_for(wanted, JSON)):
        return "text/plain; charset=utf-8", f"{detail}\n"
    problem = {"title": phrase(status), "status": status, "detail": detail, "request_id": request_id}
    return PROBLEM, json.dumps(problem, indent=2) + "\n"


def phrase(status: int) -> str:
    """The status in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"  # 499, the only one that is not HTTP's own
