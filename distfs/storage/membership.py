"""A node's membership in the cluster: it registers itself in MetaDB and says that it lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from distfs.agreement import DOWN_AFTER, require_same
from distfs.config.settings import NodeConfig
from distfs.deadline import Deadline
from distfs.errors import (
    Busy,
    DistfsError,
    NodeForgotten,
    NodeUnavailable,
    OtherSettings,
    Refused,
    Unavailable,
)
from distfs.formats.hello import Keys
from distfs.meta import MetaDB
from distfs.model import Address, NodeReport
from distfs.process.threads import start
from distfs.storage.disk.home import require_identity
from distfs.storage.disk.store import DiskStore
from distfs.storage.strangers import Refused as Refusals

log = logging.getLogger("distfs.node")

_CALL_LIMIT_S = 5.0
_LEAVE_LIMIT_S = 1.0

T = TypeVar("T")


def cluster_of(folder: Path, meta: MetaDB, stopping: threading.Event) -> UUID:
    """The cluster a node's folder belongs to; a new one joins MetaDB's, which is waited for.

    Raises Unavailable only when ``stopping`` is set first; NotHome, ConfigError for the folder.
    """
    if (known := require_identity(folder).cluster) is not None:
        return known
    return _from_metadb(meta.cluster_id, "joining a cluster", stopping)


def await_keys(store: DiskStore, meta: MetaDB, stopping: threading.Event) -> None:
    """Have the cluster's keys: of MetaDB, which is waited for, where the folder has none. Without them the node would
    take every service for a stranger. Raises Unavailable only when ``stopping`` is set first; OSError."""
    if not store.keys.known:
        store.keys.keep(_from_metadb(meta.cluster_keys, "serving, for the cluster's keys", stopping))


def _from_metadb(ask: Callable[[Deadline], T], before: str, stopping: threading.Event) -> T:
    reported = ""
    while True:
        try:
            return ask(Deadline(_CALL_LIMIT_S))
        except (Unavailable, Busy) as e:
            if str(e) != reported:
                log.warning("waiting for MetaDB before %s: %s", before, e)
                reported = str(e)
            if stopping.wait(1.0):
                raise


class OtherCluster(Refused):
    """Waiting does not help: the folder and MetaDB belong to different clusters."""


class OtherTimes(Refused):
    """Waiting does not help: this node is configured with another ``down_after`` than the cluster."""


class Membership:
    """Heartbeats from a thread. ``refused`` is called, once, when the cluster will not have this node."""

    def __init__(
        self,
        store: DiskStore,
        meta: MetaDB,
        address: Address,
        config: NodeConfig,
        refused: Callable[[DistfsError], None],
        strangers: Callable[[], Refusals] = Refusals,
    ) -> None:
        """``strangers``: whom the node has refused."""
        self._store, self._meta, self._address, self._config = store, meta, address, config
        self._refused, self._strangers = refused, strangers
        self._told = 0  # strangers, of whom MetaDB knows
        self._agreed = False
        self._said: Keys = ()  # the cluster's keys that MetaDB knows this node to take
        self._stopping = threading.Event()
        self._thread = start(self._run, "heartbeat")

    def stop(self) -> None:
        """No heartbeats from now on. The cluster is told, so that nothing more is placed here."""
        self._stopping.set()
        self._thread.join(_CALL_LIMIT_S)
        try:
            self._meta.node_leave(
                self._store.node, self._address, Deadline(_LEAVE_LIMIT_S), self._store.secret
            )
        except DistfsError as e:
            log.info("MetaDB was not told that this node stops, it will notice: %s", e)

    def _run(self) -> None:
        # Killed and started again at another port, a node is refused for as long as its last heartbeat looks
        # alive. One that is refused for longer has a double that really is.
        patience = time.monotonic() + self._config.down_after + 3 * self._config.heartbeat
        registered = False
        trouble = ""
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                number = self._beat()
                if not registered or trouble:
                    log.info("registered as node %d at %s", number, self._address)
                registered, trouble = True, ""
            except DistfsError as e:
                final = isinstance(e, OtherCluster | OtherTimes | NodeForgotten)
                final = final or registered or time.monotonic() > patience
                if isinstance(e, Refused) and final:
                    self._refused(e)
                    return
                if str(e) != trouble:
                    log.warning("no heartbeat: %s", e)
                trouble = str(e)
            except Exception as e:  # the thread's outermost edge
                if repr(e) != trouble:
                    log.exception("no heartbeat, by a bug; the next one tries again")
                trouble = repr(e)
            self._stopping.wait(max(0.0, started + self._config.heartbeat - time.monotonic()))

    def _beat(self) -> int:
        deadline = Deadline(_CALL_LIMIT_S)
        cluster = self._meta.cluster_id(deadline)
        if cluster != self._store.cluster:
            raise OtherCluster(
                f"data folder {self._store.folder} belongs to cluster {self._store.cluster}, but this MetaDB "
                f"is of {cluster}: name another folder with --data, or another MetaDB with --metadb"
            )
        self._agree(deadline)
        self._store.keys.keep(self._meta.cluster_keys(deadline))
        if away := self._store.away:
            # Nobody can read what is kept here: it counts as lost, and is made anew if this lasts.
            self._meta.node_leave(self._store.node, self._address, deadline, self._store.secret)
            raise NodeUnavailable(away)
        info = self._store.info(deadline)
        sizes = info.capacity, info.used, info.free
        report = NodeReport(
            info.node, self._address, self._config.zone, *sizes, info.state, self._store.disk()
        )
        number = self._meta.heartbeat(report, deadline, self._store.secret)
        if self._said != (keys := self._store.keys.known):
            self._meta.node_holds_keys(info.node, keys, deadline, self._store.secret)
            self._said = keys
        if self._told != (met := self._strangers()).ever:
            self._meta.node_refused(info.node, met.lately, met.address, deadline, self._store.secret)
            self._told = met.ever
        return number

    def _agree(self, deadline: Deadline) -> None:
        """Once a cluster with services has a ``down_after``, it must be this node's, too. Raises OtherTimes."""
        if self._agreed:
            return
        agreed = self._meta.settings(deadline)
        try:
            require_same(agreed, {DOWN_AFTER: self._config.down_after})
        except OtherSettings as e:
            raise OtherTimes(str(e)) from e
        self._agreed = DOWN_AFTER in agreed
