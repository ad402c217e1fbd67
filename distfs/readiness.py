"""Whether this service can do its work: looked at once a second, however many ask, for anybody may."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from distfs.agreement import Agreement
from distfs.config.settings import StorageConfig
from distfs.deadline import Deadline
from distfs.errors import Busy, Unavailable
from distfs.limits.promises import Admission
from distfs.meta import MetaDB
from distfs.peers.directory import NodeDirectory, Standing

log = logging.getLogger("distfs.http")

#: Load balancers ask often and wait briefly.
READY_WITHIN_S = 5.0
#: How old what is told may be.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Ready:
    """``missing``: why it is not ready, for anybody; None of nodes: nobody can tell."""

    missing: tuple[str, ...]
    full: str
    nodes_up: int | None
    nodes_needed: int


class Readiness:
    """Of one process. Thread-safe."""

    def __init__(
        self,
        meta: MetaDB,
        agreement: Agreement,
        directory: NodeDirectory,
        admission: Admission,
        storage: StorageConfig,
    ) -> None:
        self._meta, self._agreement, self._directory = meta, agreement, directory
        self._admission, self._storage = admission, storage
        self._lock = threading.Lock()
        self._seen: Ready | None = None
        self._looked = 0.0

    def now(self) -> Ready:
        """Who comes while another looks waits for what that one sees, at most as long as a look takes."""
        with self._lock:
            if self._seen is None or time.monotonic() - self._looked >= LOOK_EVERY_S:
                self._seen = self._look(Deadline(READY_WITHIN_S))
                self._looked = time.monotonic()
            return self._seen

    def _look(self, deadline: Deadline) -> Ready:
        needed = self._storage.fewest(self._storage.policy)
        try:
            self._meta.ping(deadline)
            self._agreement.require(deadline)
            # By the list that uploads go by, looked at anew: a service that is ready knows the nodes that make it so.
            up, reached = self._nodes(deadline)
        except (Unavailable, Busy) as e:
            log.info("not ready: %s", e)
            return Ready((f"MetaDB: {e.for_client}",), "", None, needed)
        if lacking := _lacking(up, reached, needed):
            return Ready((f"storage nodes: {lacking} (policy {self._storage.policy})",), "", up, needed)
        return Ready((), self._full(deadline), up, needed)

    def _nodes(self, deadline: Deadline) -> tuple[int, int]:
        """How many take files; how many of those do not fail this service again and again."""
        writable = [node.id for node in self._directory.nodes(deadline, fresh=True) if node.writable]
        standing = self._directory.standing(writable)
        return len(writable), sum(standing[id] is not Standing.LEFT_ALONE for id in writable)

    def _full(self, deadline: Deadline) -> str:
        """What cannot be told now is no reason to send downloads elsewhere."""
        try:
            return self._admission.full(deadline)
        except (Unavailable, Busy):
            return ""


def _lacking(up: int, reached: int, needed: int) -> str:
    if up < needed:
        return f"{up} up that take files, an upload needs {needed}"
    if reached < needed:
        return f"{up} up, {reached} of them answer this service, an upload needs {needed}: its log has why"
    return ""
