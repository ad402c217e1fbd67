"""The file that a request is about, for who may do that to it: nobody else learns whether it is there."""

from __future__ import annotations

from distfs.access.authorize import Visibility
from distfs.deadline import Deadline
from distfs.errors import Forbidden, NotFound, Refused
from distfs.model import File, is_copy
from distfs.routes.messages import Request, parse_uuid
from distfs.services import Services


def the_file(services: Services, request: Request, uuid: str, deadline: Deadline) -> File:
    """Raises NotFound, also for who may not see it; Unauthorized, Forbidden, Refused."""
    id = parse_uuid(uuid)
    if request.actor.link is not None:
        if request.actor.link.file != id:
            raise Forbidden("this link is for another file: ask for a link to this one")
        request.changed = [uuid]
    try:
        if is_copy(id):
            raise NotFound(f"no file {id}")
        file = services.meta.file(id, deadline, request.actor.seen_by)
    except NotFound:
        services.door.judge(request.actor, request.action, id)
        raise
    services.door.judge(request.actor, request.action, id, file)
    return file


def read_visibility(given: object) -> str:
    """As a client names it. Raises Refused."""
    known = [each.value for each in Visibility]
    if given not in known:
        raise Refused(f"visibility must be one of {', '.join(known)}")
    return str(given)
