"""What is stored: facts about files, listing, deleting."""

from __future__ import annotations

from werkzeug.wrappers import Response

from distfs.errors import Refused
from distfs.routes.conditions import check_before_change
from distfs.routes.file_facts import etag, facts
from distfs.routes.messages import Answer, Request, as_json, parse_uuid
from distfs.services import Services
from distfs.upkeep.db import UpkeepDB

DEFAULT_LIMIT, MAX_LIMIT = 100, 1000


def get_facts(services: Services, request: Request, uuid: str) -> Answer:
    """All there is to know of one file, and how safe it is now.

    ``health.redundancy_left``: how many more nodes every one of its slices survives, the least over the slices;
    below 0 some of it cannot be read. ``missing_fragments``: damaged, on nodes that are down, or kept by nobody
    yet; repair makes them anew. ``nodes``: the ids of all that keep a part of it. ``last_verified``: each of its
    fragments was written, or read again and checked, at this time or later.
    """
    deadline = services.answer_deadline(request.hang_up)
    file = services.meta.file(parse_uuid(uuid), deadline)
    health = UpkeepDB(services.meta).health(file.id, deadline)
    entry = {
        "redundancy_left": health.redundancy_left,
        "missing_fragments": health.missing,
        "nodes": health.nodes,
        "last_verified": health.last_verified.isoformat(),
    }
    return as_json(facts(request, file) | {"slices": len(file.slices), "health": entry})


def list_files(services: Services, request: Request) -> Answer:
    """Files in the order of their ids, ``limit`` at a time. ``next``: what to ask for ``after``; null at the end."""
    after = request.args.get("after")
    limit = request.args.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MAX_LIMIT):
        raise Refused(f"limit must be 1 to {MAX_LIMIT}")
    start = parse_uuid(after) if after else None
    found = services.meta.list_files(start, int(limit), services.answer_deadline(request.hang_up))
    following = str(found[-1].id) if len(found) == int(limit) else None
    return as_json({"files": [facts(request, file) for file in found], "next": following})


def delete_file(services: Services, request: Request, uuid: str) -> Response:
    """From now on nobody can read the file."""
    id, deadline = parse_uuid(uuid), services.answer_deadline(request.hang_up)
    if any(name in request.headers for name in ("If-Match", "If-None-Match", "If-Unmodified-Since")):
        file = services.meta.file(id, deadline)  # its bytes never change: what holds now holds when it goes
        check_before_change(request.headers, etag(file), file.created_at)
    services.meta.delete_file(id, deadline)
    request.changed = [str(id)]
    return Response(status=204)
