"""How tests that speak the wire by themselves begin a connection, on either side."""

from __future__ import annotations

import socket
from uuid import UUID

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.formats import wire
from distfs.formats.hello import Key, Keys
from distfs.peers.greeting import Greeting, NodeSocket
from distfs.storage.disk.store import DiskStore
from distfs.storage.greeting import examine
from distfs.wire_socket import WireSocket

#: The cluster key of every node that a test makes in its own process, and of every MetaDB that a fixture does.
KEYS = (Key(b"a cluster key of tests, 32 bytes"),)
LIMIT = Seconds(30)


def known_keys(_: Deadline) -> Keys:
    """As a NodeClient is given them."""
    return KEYS


def greet_node(wire: NodeSocket, store: DiskStore, keys: Keys = KEYS) -> None:
    """Begin a connection to a node as a service does."""
    assert Greeting(wire, keys, store.cluster, store.node, lambda *_: None).go_on(Deadline(LIMIT))


def welcome_service(connection: socket.socket, cluster: UUID, node: UUID) -> bool:
    """Begin a connection as a node does; whether a service is there."""
    try:
        sock, deadline = WireSocket(connection, "service", LIMIT), Deadline(LIMIT)
        welcome, _ = examine(sock, KEYS, cluster, node, deadline)
        sock.send(welcome, limit=deadline)
        head = connection.recv(wire.PREFIX_SIZE, socket.MSG_WAITALL)  # of its name; then its request follows
        _, _, kind, _, length, _ = wire.PREFIX.unpack(head)
        assert kind == wire.Type.NAME
        connection.recv(length, socket.MSG_WAITALL)
    except DistfsError:
        return False
    return True
