"""Uploads and downloads with a proxy of our own before every node."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distfs.config.settings import BytesPerSecond, PeersConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Unavailable
from distfs.model import File, FragmentId, Node, NodeReport, Policy
from distfs.peers.client import NodeClient
from distfs.services import build
from tests.contract.litter import eventually
from tests.contract.nodes import serving
from tests.contract.samples import soon
from tests.faults.ledger import Ledger
from tests.faults.proxy import Proxy
from tests.integration.byte_ways import Ways, config_of

#: Waits for ever, as far as a test is concerned: what ends in time did not wait for this.
NEVER = Seconds(3600)
#: No node is given up for being slow; only a hedge helps.
PATIENT: dict[str, Any] = {"stall_timeout": NEVER, "base_timeout": NEVER}
#: Slow is known soon, and yet not where a busy machine holds up a node that is well. The rate is of no account.
IMPATIENT: dict[str, Any] = {
    "stall_timeout": Seconds(1),
    "base_timeout": Seconds(2),
    "min_rate": BytesPerSecond(1 << 30),
}


@dataclass
class Proxied(Ways):
    """``proxies``: by the number of the node behind."""

    proxies: dict[int, Proxy]

    def client(self, node: int) -> NodeClient:
        store = self.services.directory.store(node, soon())
        assert isinstance(store, NodeClient)
        return store

    def heal(self) -> None:
        for proxy in self.proxies.values():
            proxy.heal()

    def stored(self, data: bytes, policy: Policy) -> File:
        """Upload, again where a node was late on a busy machine: for tests of what comes after."""
        files: list[File] = []

        def is_stored() -> bool:
            with suppress(Unavailable):
                files.append(self.upload(data, policy))
            return bool(files)

        eventually(is_stored, "it is stored")
        return files[0]

    @contextmanager
    def struck(self, flow: str, phase: int, how: Callable[[Proxy], object]) -> Iterator[None]:
        """In the body, break the network of the first node that has ``phase`` bytes more, once; then heal it.

        Raises FaultMetNobody when no node has had so many.
        """
        first = threading.Lock()

        def strike(proxy: Proxy) -> None:
            if first.acquire(blocking=False):
                how(proxy)

        for proxy in self.proxies.values():
            getattr(proxy, flow).at(phase, partial(strike, proxy))
        yield
        self.heal()

    def assert_redundant(self, file: File, data: bytes) -> None:
        """Every fragment of every slice is on a disk, whole, and good, and the copies read back alike."""
        for piece in file.slices:
            assert all(piece.nodes)
            assert len(set(piece.nodes)) == len(piece.nodes)
            for index, node in enumerate(piece.nodes):
                store = self.nodes[node].store
                assert store.verify(FragmentId(piece.id, index), soon()) == ()
                assert store.stat(FragmentId(piece.id, index), soon()).digest(file.block_size) == piece.digest
        assert self.download(file) == data

    def let_go(self) -> None:
        """Close what is kept for the next request."""
        self.services.directory.close()
        eventually(lambda: not any(p.connections for p in self.proxies.values()), "every connection ended")

    def held(self) -> tuple[int, int]:
        """Descriptors and threads of this process, which is services, nodes and proxies in one.

        The executor's are left out: it makes them as it needs them, and ``assert_clean`` shows that they are free.
        """
        threads = [t for t in threading.enumerate() if not t.name.startswith("fragment")]
        return len(os.listdir("/proc/self/fd")), len(threads)


@contextmanager
def proxied(url: str, folder: Path, count: int = 3, **peers: Any) -> Iterator[Proxied]:
    """``peers``: settings of the service about nodes; the nodes themselves have the usual ones."""
    config = config_of(url)
    changed: PeersConfig = replace(config.peers, **peers)
    services = build(replace(config, peers=changed))
    cluster = services.meta.cluster_id(soon())
    ledger = Ledger()
    with ExitStack() as stack:
        nodes, proxies = {}, {}
        for number in range(count):
            server = stack.enter_context(
                serving(folder / f"n{number}", config.node, cluster, config.peers.stall_timeout)
            )
            proxy = stack.enter_context(Proxy(server.address, ledger))
            info = server.store.info(Deadline(60))
            sizes = info.capacity, info.used, info.free
            report = NodeReport(info.node, proxy.address, "", *sizes, "active")
            id = services.meta.heartbeat(report, soon())
            nodes[id], proxies[id] = server, proxy
        stack.callback(services.close)  # first, so that nodes have nobody to wait for
        yield Proxied(services, nodes, proxies)


def known(ways: Proxied) -> list[Node]:
    """The nodes as the directory has them now, read again."""
    return ways.services.directory.nodes(soon(), fresh=True)
