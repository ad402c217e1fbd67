"""A node that does what a script says, and a client of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

from distfs.config.settings import BytesPerSecond, PeersConfig, Seconds
from distfs.formats import wire
from distfs.formats.fixed import Cells
from distfs.formats.wire import Type
from distfs.model import Address, FragmentId
from distfs.peers.client import NodeClient
from tests.contract.nodes import PEERS
from tests.contract.samples import CLUSTER
from tests.faults.ledger import of_the_test
from tests.greetings import known_keys, welcome_service

ID = FragmentId(uuid4(), 0)
#: Slow is known soon.
IMPATIENT = replace(
    PEERS,
    base_timeout=Seconds(0.15),
    stall_timeout=Seconds(0.3),
    min_rate=BytesPerSecond(1 << 40),
    connect_timeout=Seconds(0.2),
)


@contextlib.contextmanager
def scripted(
    *scripts: Callable[[socket.socket], object], config: PeersConfig = PEERS
) -> Iterator[NodeClient]:
    """A client of a node that does what the scripts say, one a connection, and then closes it. Each has to come."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended, node = threading.Event(), uuid4()
    ours: set[object] = set()
    planned = [(script, of_the_test(f"script {n} of a node")) for n, script in enumerate(scripts, 1)]

    def serve() -> None:
        for script, met in planned:
            connection, peer = listener.accept()
            if peer not in ours:
                met()
            with connection, contextlib.suppress(OSError):
                if welcome_service(connection, CLUSTER, node):
                    script(connection)
        ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    client = NodeClient(node, Address("127.0.0.1", listener.getsockname()[1]), CLUSTER, config, known_keys)
    try:
        yield client
    finally:
        client.close()
        while not ended.is_set():  # scripts that nobody came for
            with contextlib.suppress(OSError), socket.socket() as nobody:
                nobody.bind(("127.0.0.1", 0))
                ours.add(nobody.getsockname())
                nobody.settimeout(1)
                nobody.connect(listener.getsockname())
            ended.wait(0.02)
        thread.join()
        listener.close()


def answering(*data: bytes) -> Callable[[socket.socket], None]:
    """Reads a request, sends the bytes, waits for the client to close."""

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        for each in data:
            connection.sendall(each)
        while connection.recv(1 << 16):
            pass

    return script


def trickling(data: bytes) -> Callable[[socket.socket], None]:
    """Reads a request, then sends the bytes one by one, with pauses."""

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        pause = threading.Event()
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])
            pause.wait(0.01)

    return script


def ok(header: dict[str, Any] | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return wire.encode(Type.OK, header, len(body) if length is None else length) + body


def cells(said: Cells, body: bytes = b"", length: int | None = None) -> bytes:
    """What a node says of a table and cells, and how much of them comes."""
    return wire.encode(Type.CELLS, said.encode(), len(body) if length is None else length) + body
