"""A storage node in threads of the test's process, without a MetaDB: a DiskStore behind real sockets."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from distfs.config.settings import Bytes, Fraction, NodeConfig, PeersConfig, Seconds
from distfs.peers.client import NodeClient
from distfs.storage.disk.home import make_home, read_identity
from distfs.storage.disk.store import DiskStore
from distfs.storage_server import StorageServer
from distfs.tls.contexts import Peers
from tests.contract.samples import CLUSTER
from tests.greetings import KEYS, known_keys

#: No reserve, so that tests need no disk of a certain size.
NODE = NodeConfig(reserve=Fraction(0), reserve_bytes=Bytes(0))
#: Nobody is waited for who was killed.
PEERS = PeersConfig(patience=Seconds(0.1))


_RESET = struct.pack("ii", 1, 0)  # linger: for no time


class KillableServer(StorageServer):
    """Can end the way a killed process does: every connection cut at once, nothing finished."""

    def __init__(
        self,
        host: str,
        port: int,
        store: DiskStore,
        config: NodeConfig,
        stall_timeout: Seconds = PEERS.stall_timeout,
        tls: Peers | None = None,
    ) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(host, port, store, config, stall_timeout, tls)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def cut(self) -> None:
        """Cut every connection there has been."""
        for connection in self.connections:
            try:
                # Closing it then resets it, or a peer that waits for room to send on would not hear of it.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it ended by itself


def new_store(folder: Path, cluster: UUID = CLUSTER, config: NodeConfig = NODE) -> DiskStore:
    """A store over a folder that becomes a node's unless it is one."""
    if read_identity(folder) is None:
        make_home(folder)
    store = DiskStore(folder, cluster, config)
    store.keys.keep(KEYS)
    return store


K = TypeVar("K", bound=KillableServer)


@contextmanager
def running(server: K) -> Iterator[K]:
    """It serves, until it is cut; its store is closed then."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        server.cut()
        thread.join()
        server.store.close()


@contextmanager
def serving(
    folder: Path,
    config: NodeConfig = NODE,
    cluster: UUID = CLUSTER,
    stall_timeout: Seconds = PEERS.stall_timeout,
) -> Iterator[KillableServer]:
    """A node on a free port."""
    store = new_store(folder, cluster, config)
    with running(KillableServer("127.0.0.1", 0, store, config, stall_timeout)) as server:
        yield server


@contextmanager
def client_of(server: StorageServer, config: PeersConfig = PEERS) -> Iterator[NodeClient]:
    client = NodeClient(server.store.node, server.address, server.store.cluster, config, known_keys)
    try:
        yield client
    finally:
        client.close()
