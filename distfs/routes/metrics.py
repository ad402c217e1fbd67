"""What Prometheus asks for: the counts, and what the service holds at this moment."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from distfs.deadline import Deadline
from distfs.errors import NotFound
from distfs.routes.messages import Answer, Request
from distfs.services import Services
from distfs.telemetry import metrics
from distfs.telemetry.metrics import Sample
from distfs.telemetry.metrics_told import rendered
from distfs.tls.contexts import first_end
from distfs.upkeep.model import Backlog

_STATES = ("lent", "idle", "waiting")
#: Characters of what a scraper says it takes: a node is asked by it, too.
_MOST_ACCEPT = 1000


def get_metrics(services: Services, request: Request) -> Answer:
    """Of all processes of this service. Waits neither for MetaDB nor for a node: it answers when those are away.

    ``?node=ID``: of that node, which is asked, where nobody else can reach it. Raises NotFound, Unsupported, and what
    asking a node raises.
    """
    if not services.config.metrics.enabled:
        raise NotFound("there are no metrics here: metrics.enabled is false")
    accept = request.environ.get("HTTP_ACCEPT", "")[:_MOST_ACCEPT]
    if (node := request.argument("node")) is not None:
        kind, data = _of_node(services, node, accept, services.answer_deadline(request.hang_up))
    else:
        kind, data = rendered(accept, [*looked_at(services), *_inventory(services)])
    headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Cache-Control": "no-store"}
    return Answer(200, headers, [data])


def looked_at(services: Services) -> Iterator[Sample]:
    """What there is to see at this moment, beside what is counted; without what goes through everything."""
    status = services.status_of_all()
    yield from _held(status)
    yield from _nodes(services, status)
    yield from _metadb(services, status)
    yield from _cluster(services)


def _of_node(services: Services, id: str, accept: str, deadline: Deadline) -> tuple[str, bytes]:
    known = [node.id for node in services.directory.nodes(deadline) if str(node.id) == id]
    if not known:
        raise NotFound("there is no such node: `distfs nodes` lists their ids")
    return services.directory.client(known[0], deadline).metrics(accept, deadline)


def _held(status: Mapping[str, Any]) -> Iterator[Sample]:
    memory, uploads = status["memory"], status["uploads"]
    yield Sample(metrics.PROCESSES, len(status.get("processes", {"pids": [0]})["pids"]))
    yield Sample(metrics.MEMORY_LIMIT, memory["limit"])
    yield Sample(metrics.MEMORY_USED, memory["blocks"] + memory["spooled"])
    yield Sample(metrics.MEMORY_WAITING, memory["waiting"])
    yield Sample(metrics.UPLOADS, uploads["large_uploads"])
    yield Sample(metrics.DECLARED, uploads["declared_bytes"])
    yield Sample(metrics.PROMISES, uploads["reservations"])
    for direction, count in status["waiting_for_bandwidth"].items():
        yield Sample(metrics.WAITING, count, (direction,))
    if (age := status["nodes"]["list"]["age_s"]) is not None:
        yield Sample(metrics.LIST_AGE, age)
    yield Sample(metrics.THREADS, status["threads"])
    yield Sample(metrics.AUDIT_WAITING, status["audit"]["waiting"])


def _nodes(services: Services, status: Mapping[str, Any]) -> Iterator[Sample]:
    """By the list there is, however old: of its age tells another metric. Where nobody else asks for nodes, a scrape
    has them looked at for the next one: else a node that is lost would stay up here."""
    for node in services.directory.seen():
        name = (str(node.id),)
        yield Sample(metrics.NODE_UP, node.alive, name)
        yield Sample(metrics.NODE_CAPACITY, node.capacity, name)
        yield Sample(metrics.NODE_FREE, node.free, name)
        yield Sample(metrics.NODE_AGE, node.heartbeat_age, name)
    yield Sample(metrics.NODE_MOST, services.of_all.peers.max_connections)
    for id, client in status["nodes"]["nodes"].items():
        yield Sample(metrics.NODE_BREAKER, client["breaker"] == "open", (id,))
        yield Sample(metrics.NODE_LATENCY, client["latency_ms"] / 1e3, (id,))
        for state in _STATES:
            yield Sample(metrics.NODE_CONNECTIONS, client["connections"][state], (id, state))


def _metadb(services: Services, status: Mapping[str, Any]) -> Iterator[Sample]:
    yield Sample(metrics.METADB_UP, services.meta.is_there)
    yield Sample(metrics.METADB_MOST, services.of_all.metadb.pool_size)
    for state in _STATES:
        yield Sample(metrics.METADB_CONNECTIONS, status["metadb"]["connections"][state], (state,))
    if (ends := first_end(services.certificates)) is not None:
        yield Sample(metrics.CERTIFICATE, ends)


def _cluster(services: Services) -> Iterator[Sample]:
    """As it was when it was last looked at."""
    if (facts := services.facts.last()) is None:
        return
    yield Sample(metrics.FACTS_AGE, time.monotonic() - facts.at)
    yield Sample(metrics.CLOCK_OFFSET, facts.clock_offset)
    yield Sample(metrics.DAMAGED, facts.damaged)
    yield Sample(metrics.OLDEST, facts.oldest)
    yield Sample(metrics.BACKUP_AGE, facts.backup_age)
    yield Sample(metrics.TO_ERASE, facts.to_erase)
    for met in facts.strangers:
        yield Sample(metrics.NODE_STRANGERS, met.count, (str(met.node),))
    backlog, left = Backlog.of(facts.hurt), Counter({0: 0})
    for hurt in facts.hurt:
        left[max(-1, hurt.redundancy_left)] += 0 if hurt.trashed else hurt.slices
    for redundancy, slices in left.items():
        yield Sample(metrics.HURT, slices, (str(redundancy),))
    yield Sample(metrics.TO_REPAIR, backlog.fragments)
    yield Sample(metrics.TO_REPAIR_BYTES, backlog.bytes)
    for worker in facts.workers:
        name = (worker.name,)
        yield Sample(metrics.WORKER_AGE, worker.age, name)
        yield Sample(metrics.WORKER_STUCK, bool(worker.detail.get("stuck")), name)
        for figure, value in worker.detail.items():
            if isinstance(value, int | float):
                yield Sample(metrics.WORKER_FIGURES, value, (worker.name, figure))


def _inventory(services: Services) -> Iterator[Sample]:
    """As it was when it was last counted."""
    if (found := services.inventory.last()) is None:
        return
    status = found.status
    yield Sample(metrics.INVENTORY_AGE, time.monotonic() - found.at)
    yield Sample(metrics.FILES, status.files)
    yield Sample(metrics.FILE_BYTES, status.bytes)
    yield Sample(metrics.TRASH_FILES, status.trash_files)
    yield Sample(metrics.TRASH_BYTES, status.trash_bytes)
    for redundancy, slices in status.slices.items():
        yield Sample(metrics.SLICES, slices, (str(redundancy),))
    for node, fragments in found.fragments.items():
        yield Sample(metrics.NODE_FRAGMENTS, fragments, (str(node),))
