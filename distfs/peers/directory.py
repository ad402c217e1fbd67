"""Which nodes there are, how to reach them and how well they do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any
from uuid import UUID

from distfs.config.settings import PeersConfig
from distfs.deadline import Deadline
from distfs.errors import Busy, NodeUnavailable
from distfs.formats.hello import Keys
from distfs.fragment_store import FragmentStore
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.peers.breaker import State
from distfs.peers.client import NodeClient
from distfs.peers.hedge import HedgeBudget
from distfs.peers.node_list import MAX_AGE_S, NodeList
from distfs.process.threads import start
from distfs.tls.contexts import Peers

log = logging.getLogger("distfs.nodes")

#: A node that is read last for being slow is asked how it is this often; the answer may take as long.
PROBE_EVERY_S = 1.0
#: So many times slower than the quickest of those to choose from is slow.
_SLOW = 2.0

#: A fragment store by node id: what the ways of the bytes need of a directory.
Stores = Callable[[int, Deadline], FragmentStore]


class Standing(IntEnum):
    """How well a node does, the best first."""

    GOOD = 0
    SLOW = 1
    LEFT_ALONE = 2  # its breaker is open


class NodeDirectory:
    """Thread-safe. Keeps nothing that another service needs. ``hedging``: the service's budget of extra reads."""

    def __init__(self, meta: MetaDB, config: PeersConfig, tls: Peers | None = None) -> None:
        self._meta, self._config, self._tls = meta, config, tls
        self.hedging = HedgeBudget(config.hedge_budget)
        self._lock = threading.Lock()
        self._list = NodeList(meta, self._look_after_clients)
        self._clients: dict[UUID, NodeClient] = {}
        #: By id, with the node as it was listed: most ask for one of which nothing has changed.
        self._known: dict[int, tuple[Node, NodeClient]] = {}

    def last(self) -> list[Node]:
        """As MetaDB said last; nobody is asked."""
        return self._list.last()

    def seen(self) -> list[Node]:
        """The same, for who watches: what is old is looked at again, for the next time. Waits for nobody."""
        return self._list.seen()

    def nodes(self, deadline: Deadline, *, fresh: bool = False) -> list[Node]:
        """Every node the cluster knows, as MetaDB said at most two seconds ago; ``fresh``: as it says now. As it said
        last while it cannot be asked.

        Raises Unavailable when it never could.
        """
        return list((self._list.fresh if fresh else self._list.recent)(deadline).values())

    def known(self, deadline: Deadline) -> list[Node]:
        """The same as MetaDB said last, without a wait for it: for what runs already."""
        return list(self._list.known(deadline).values())

    def glance(self, deadline: Deadline, max_age: float = 0.0) -> list[Node]:
        """The same, at most ``max_age`` old if MetaDB says it quickly: for a read that goes wrong."""
        return list(self._list.glance(deadline, max_age).values())

    def store(self, node_id: int, deadline: Deadline) -> FragmentStore:
        """The node's fragment store. Raises NodeUnavailable for a node nobody knows any more."""
        return self.client(node_id, deadline)

    def client(self, node_id: int, deadline: Deadline) -> NodeClient:
        """The same, with what else it can be asked."""
        node = self._list.known(deadline).get(node_id)
        if node is None:  # it may be new
            node = self._list.glance(deadline, MAX_AGE_S).get(node_id)
        if node is None:
            raise NodeUnavailable(f"node {node_id} has left the cluster")
        if (before := self._known.get(node_id)) is not None and before[0] is node:
            return before[1]
        cluster = self._meta.cluster_id(deadline)
        with self._lock:
            known = self._clients.get(node.uuid)
            if known is not None and known.address == node.address:
                self._known[node_id] = node, known
                return known
            fresh = self._clients[node.uuid] = NodeClient(
                node.uuid, node.address, cluster, self._config, self._cluster_keys, self._tls, node_id
            )
        if known is not None:  # it listens elsewhere now
            known.close()
        return fresh

    def well(self, node_id: int, deadline: Deadline) -> NodeClient | None:
        """A node's store, if it was asked before and is up and well: to be read first, whatever the others do."""
        node = self._list.known(deadline).get(node_id)
        if node is None or not node.alive:
            return None
        if (before := self._known.get(node_id)) is not None and before[0] is node:
            client = before[1]
        else:
            found = self._clients.get(node.uuid)
            if found is None or found.address != node.address:
                return None
            client = found
            self._known[node_id] = node, client
        link = client.link
        well = link.breaker.state is State.CLOSED and link.latency.typical < self._config.hedge_min
        return client if well else None

    def may_return(self, ids: Iterable[int], deadline: Deadline) -> int:
        """How many of these nodes heartbeat, or did so lately: one that is restarted is back within seconds."""
        lately = self._meta.down_after + self._config.patience
        known = self._list.known(deadline)
        return sum(id in known and known[id].heartbeat_age < lately for id in ids)

    @property
    def patience(self) -> float:
        """Seconds for which a transfer waits for them."""
        return self._config.patience

    def standing(self, ids: Iterable[int]) -> dict[int, Standing]:
        """How well nodes do, as far as this service knows; slow only beside a quicker one of them."""
        with self._lock:
            clients = {id: self._clients.get(n.uuid) for id in ids if (n := self._list.get(id))}
        typical = {id: client.link.latency.typical if client else 0.0 for id, client in clients.items()}
        slow = max(self._config.hedge_min, _SLOW * min(typical.values(), default=0.0))
        found = dict.fromkeys(ids, Standing.GOOD)
        for id, client in clients.items():
            if client is not None and not client.trusted:
                found[id] = Standing.LEFT_ALONE
            elif typical[id] >= slow:
                found[id] = Standing.SLOW
        return found

    def willing(self, nodes: Sequence[Node], width: int) -> list[Node]:
        """Those of ``nodes`` to write to: without the ones left alone, unless ``width`` cannot do without."""
        well = []
        for node in nodes:
            before = self._known.get(node.id)  # most were asked before
            asked = before[1] if before is not None and before[0] is node else self._clients.get(node.uuid)
            if asked is None or asked.link.breaker.state is State.CLOSED:
                well.append(node)
        enough = len(well) == len(nodes) or sum(node.writable for node in well) >= width
        return well if enough else list(nodes)

    def snapshot(self) -> dict[str, Any]:
        """What this service knows of nodes and of its connections to them, for people to look at."""
        with self._lock:
            names = {node.uuid: str(node.id) for node in self._list.last()}
            # Without those that were forgotten: strangers may read this, and a UUID is nothing for them.
            clients = {names[uuid]: client for uuid, client in self._clients.items() if uuid in names}
        nodes = {name: client.snapshot() for name, client in sorted(clients.items())}
        return {"nodes": nodes, "list": self._list.snapshot(), "hedging": self.hedging.snapshot()}

    def asked(self) -> list[NodeClient]:
        """Of the nodes that somebody here has asked something."""
        return [client for _, client in list(self._known.values())]

    def close(self) -> None:
        self._list.close()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
            self._known.clear()
        for client in clients:
            client.close()

    def _cluster_keys(self, deadline: Deadline) -> Keys:
        """To prove with that this process is of the cluster; asked for with the list of nodes. Raises Unavailable."""
        self._list.known(deadline)
        return self._list.keys

    def _look_after_clients(self) -> None:
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            client.link.pool.tidy()
            self._probe_if_due(client)

    def _probe_if_due(self, client: NodeClient) -> None:
        """Ask a node that is left alone, or read last, how it is; nobody's request waits for the answer."""
        latency = client.link.latency
        silent = time.monotonic() - latency.heard_at > PROBE_EVERY_S
        slow = latency.typical >= self._config.hedge_min and silent
        if slow:
            latency.heard_at = time.monotonic()  # one probe at a time
        if client.link.breaker.may_probe() or slow:
            try:
                start(client.probe, "probe", PROBE_EVERY_S)
            except Busy as e:
                log.warning("a node that does badly is not asked how it is: %s", e)
