"""Fragments that an upload has stored and nobody wants, taken away again as far as nodes answer."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Sequence
from concurrent.futures import Executor, Future, wait
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.model import FragmentId
from distfs.peers.directory import NodeDirectory
from distfs.telemetry.context import in_context

log = logging.getLogger("distfs.upload")

#: How long removing the fragments of a failed upload may take; the orphan sweep finds what is left.
DISCARD_LIMIT_S = 5.0


def discard(
    directory: NodeDirectory,
    those: Sequence[tuple[int, FragmentId]],
    executor: Executor,
    committed: Container[UUID] = (),
    sent_at: float = 0.0,
) -> list[Future[None]]:
    """On all nodes at once, within a bound. Of slices that are ``committed``, as was told at ``sent_at`` on the
    monotonic clock, they are put aside, and not deleted."""
    deadline = Deadline(DISCARD_LIMIT_S)
    jobs = []
    for node, fragment in those:
        since = sent_at if fragment.slice in committed else None
        work = directory, node, fragment, since, deadline
        try:
            jobs.append(executor.submit(in_context(_take_away), *work))
        except Busy:  # no thread to be had: one after the other
            _take_away(*work)
    return jobs


def finish(jobs: list[Future[None]]) -> None:
    """Wait for them, within the bound."""
    wait(jobs, DISCARD_LIMIT_S)


def _take_away(
    directory: NodeDirectory, node: int, fragment: FragmentId, since: float | None, deadline: Deadline
) -> None:
    try:
        store = directory.store(node, deadline)
        if since is None:
            store.delete(fragment, deadline)
        else:
            # MetaDB may name it here by now, if what was made anew elsewhere was lost soon. Then the sweep brings it
            # back. What was written since the commit is another's, and stays.
            store.quarantine(fragment, time.monotonic() - since, deadline)
    except DistfsError as e:
        log.info("fragment %s on node %d is left to the orphan sweep: %s", fragment, node, e)
