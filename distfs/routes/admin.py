"""For people and load balancers: how to use the service, whether it is alive, whether it is ready."""

from __future__ import annotations

import logging

from distfs.errors import NotFound, Unavailable
from distfs.process.threads import stacks
from distfs.routes.messages import Answer, Request, as_json, text
from distfs.services import Services

log = logging.getLogger("distfs.http")

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
    draining = bool(request.environ.get("distfs.draining"))
    return as_json({**services.status_of_all(), "troubles": services.troubles, "draining": draining})


def get_history(services: Services, request: Request) -> Answer:
    """The last hour of all processes of this service. Raises NotFound where nothing is counted."""
    if not services.config.metrics.enabled:
        raise NotFound("there is no history here: metrics.enabled is false")
    services.history.begin()  # a host that is not ours did not
    return as_json(services.history.as_json())


def get_stacks(services: Services, request: Request) -> Answer:
    """Where each thread of this process is: what to look at when it seems to hang."""
    return text(stacks())


def get_ready(services: Services, request: Request) -> Answer:
    """200 when MetaDB has this version's schema and enough nodes take writes, else 503 and what is missing.

    A cluster that is full says so and is ready: what is in it must be read, and deleted. So does a service whose new
    certificate is broken.
    """
    seen = services.readiness.now()
    missing = list(seen.missing)
    if request.environ.get("distfs.draining"):
        missing.insert(0, "draining: this service ends the requests that run, and stops")
    status = 503 if missing else 200
    troubles = [_TROUBLED] if services.troubles else []  # which files, is for administrators
    if request.wants_json:
        entry = {
            "ready": not missing,
            "missing": missing,
            "full": seen.full,
            "troubles": troubles,
            "nodes_up": seen.nodes_up,
            "nodes_needed": seen.nodes_needed,
        }
        response = as_json(entry, status)
    else:
        lines = missing or ["ready", *([f"full: {seen.full}"] if seen.full else [])]
        lines += [f"trouble: {trouble}" for trouble in troubles]
        response = text("".join(f"{line}\n" for line in lines), status)
    if missing:
        response.headers["Retry-After"] = str(Unavailable.retry_after)
    return response
