"""What is stored: facts about files, listing, deleting."""

from __future__ import annotations

from dataclasses import replace

from werkzeug.wrappers import Response

from distfs.body.ingest import clean_name
from distfs.errors import Refused
from distfs.routes.conditions import check_before_change
from distfs.routes.file_facts import etag, facts
from distfs.routes.messages import Answer, Request, as_json, asked_page
from distfs.routes.seen import read_visibility, the_file
from distfs.services import Services
from distfs.upkeep.db import UpkeepDB


def get_facts(services: Services, request: Request, uuid: str) -> Answer:
    """All there is to know of one file, and, for its owner, how safe it is now.

    ``health.redundancy_left``: how many more nodes every one of its slices survives, the least over the slices;
    below 0 some of it cannot be read. ``missing_fragments``: damaged, on nodes that are down, or kept by nobody
    yet; repair makes them anew. ``nodes``: the ids of all that keep a part of it. ``last_verified``: each of its
    fragments was written, or read again and checked, at this time or later.
    """
    deadline = services.answer_deadline(request.hang_up)
    file = the_file(services, request, uuid, deadline)
    known = facts(request, file) | {"slices": len(file.slices)}
    if not request.actor.knows_all_of(file):
        return as_json(known)
    health = UpkeepDB(services.meta).health(file.id, deadline)
    entry = {
        "redundancy_left": health.redundancy_left,
        "missing_fragments": health.missing,
        "nodes": health.nodes,
        "last_verified": health.last_verified.isoformat(),
    }
    return as_json(known | {"health": entry})


def list_files(services: Services, request: Request) -> Answer:
    """Files in the order of their ids, ``limit`` at a time. ``next``: what to ask for ``after``; null at the end.

    Who is no administrator sees their own, and public ones.
    """
    after, limit = asked_page(request)
    deadline = services.answer_deadline(request.hang_up)
    found = services.meta.list_files(after, limit, deadline, request.actor.seen_by)
    following = str(found[-1].id) if len(found) == limit else None
    return as_json({"files": [facts(request, file) for file in found], "next": following})


def delete_file(services: Services, request: Request, uuid: str) -> Response:
    """From now on nobody can read the file."""
    deadline = services.answer_deadline(request.hang_up)
    # Its bytes and its owner never change: what holds now holds when it goes.
    file = the_file(services, request, uuid, deadline)
    check_before_change(request.headers, etag(file), file.created_at)
    services.meta.delete_file(file.id, deadline)
    request.changed = [str(file.id)]
    return Response(status=204)


def change_file(services: Services, request: Request, uuid: str) -> Answer:
    """Who may read a file, and its name: a JSON object with ``visibility``, ``name`` or both. -> its facts."""
    deadline = services.answer_deadline(request.hang_up)
    file = the_file(services, request, uuid, deadline)
    wanted = request.json_object()
    if unknown := wanted.keys() - {"visibility", "name"}:
        raise Refused(f"a file's {min(unknown)[:60]!r} cannot be changed, only its visibility and its name")
    visibility = read_visibility(wanted["visibility"]) if "visibility" in wanted else None
    name = wanted.get("name")
    if not isinstance(name, str | None) or (name is None and "name" in wanted):
        raise Refused("a file's name is text")
    name = None if name is None else clean_name(name)
    check_before_change(request.headers, etag(file), file.created_at)
    request.change = ", ".join(
        f"visibility {visibility}" if key == "visibility" else key for key in sorted(wanted)
    )
    visibility, name = services.meta.change_file(file.id, deadline, visibility=visibility, name=name)
    request.changed = [str(file.id)]
    return as_json(facts(request, replace(file, visibility=visibility, name=name)))
