"""For people and load balancers: how to use the service, whether it is alive, whether it is ready."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from distfs.deadline import Deadline
from distfs.errors import Busy, Unavailable
from distfs.peers.directory import Standing
from distfs.process.threads import stacks
from distfs.routes.messages import Answer, Request, as_json, text
from distfs.services import Services

log = logging.getLogger("distfs.http")

#: Load balancers ask often and wait briefly.
READY_WITHIN_S = 5.0

_TROUBLED = (
    "a certificate ends soon, or the one that is there now cannot be used: GET /status and the log tell which"
)

_USAGE = """\
distfs keeps files.

put a file in:        curl -F file=@NAME {url}upload
without a form:       curl -T NAME {url}upload/
from a pipe:          cat NAME | curl -T - {url}upload/NAME
get it back:          curl -OJ {url}download/UUID
all about it:         curl {url}files/UUID
all files:            curl {url}files
delete it:            curl -X DELETE {url}files/UUID
is the service well:  curl {url}readyz

An upload answers with the file's UUID; with "Accept: application/json" it answers in JSON.
"""

_GUARDED = """
All but the last needs a token: curl -u :TOKEN, or -H "Authorization: Bearer TOKEN".
"""


def get_usage(services: Services, request: Request) -> Answer:
    return text(_USAGE.format(url=request.url) + (_GUARDED if services.door.guarded else ""))


def get_alive(services: Services, request: Request) -> Answer:
    """This process answers; nothing else is looked at."""
    return text("ok\n")


def get_status(services: Services, request: Request) -> Answer:
    """What this service holds, in bytes, and how it finds the nodes; of the cluster tells `distfs status`."""
    entry: Mapping[str, Any] = services.status()
    if services.together is not None:
        entry = services.together.status(entry)
    return as_json({**entry, "draining": bool(request.environ.get("distfs.draining"))})


def get_stacks(services: Services, request: Request) -> Answer:
    """Where each thread of this process is: what to look at when it seems to hang."""
    return text(stacks())


def get_ready(services: Services, request: Request) -> Answer:
    """200 when MetaDB has this version's schema and enough nodes take writes, else 503 and what is missing.

    A cluster that is full says so and is ready: what is in it must be read, and deleted. So does a service whose new
    certificate is broken.
    """
    policy = services.config.storage.policy
    needed = services.config.storage.fewest(policy)
    up: int | None = None
    full, missing = "", []
    if request.environ.get("distfs.draining"):
        missing.append("draining: this service ends the requests that run, and stops")
    deadline = Deadline(READY_WITHIN_S, scope=request.hang_up)
    try:
        services.meta.ping(deadline)
        services.agreement.require(deadline)
        # By the list that uploads go by, looked at anew: a service that is ready knows the nodes that make it so.
        up, reached = _nodes(services, deadline)
    except (Unavailable, Busy) as e:
        log.info("not ready: %s", e)
        missing.append(f"MetaDB: {e.for_client}")
    else:
        if lacking := _lacking(up, reached, needed):
            missing.append(f"storage nodes: {lacking} (policy {policy})")
        else:
            full = _full(services, deadline)
    status = 503 if missing else 200
    troubles = [_TROUBLED] if services.troubles else []  # which files, is for administrators
    if request.wants_json:
        entry = {
            "ready": not missing,
            "missing": missing,
            "full": full,
            "troubles": troubles,
            "nodes_up": up,
            "nodes_needed": needed,
        }
        response = as_json(entry, status)
    else:
        lines = missing or ["ready", *([f"full: {full}"] if full else [])]
        lines += [f"trouble: {trouble}" for trouble in troubles]
        response = text("".join(f"{line}\n" for line in lines), status)
    if missing:
        response.headers["Retry-After"] = str(Unavailable.retry_after)
    return response


def _lacking(up: int, reached: int, needed: int) -> str:
    if up < needed:
        return f"{up} up that take files, an upload needs {needed}"
    if reached < needed:
        return f"{up} up, {reached} of them answer this service, an upload needs {needed}: its log has why"
    return ""


def _nodes(services: Services, deadline: Deadline) -> tuple[int, int]:
    """How many take files; how many of those do not fail this service again and again."""
    writable = [node.id for node in services.directory.nodes(deadline, fresh=True) if node.writable]
    standing = services.directory.standing(writable)
    return len(writable), sum(standing[id] is not Standing.LEFT_ALONE for id in writable)


def _full(services: Services, deadline: Deadline) -> str:
    """What cannot be told now is no reason to send downloads elsewhere."""
    try:
        return services.admission.full(deadline)
    except (Unavailable, Busy):
        return ""
