"""A connection to a storage node, byte by byte."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distfs.errors import (
    DistfsError,
)
from distfs.formats import wire
from distfs.formats.fixed import Cells, End, Get, Put, Stored, Whole
from distfs.formats.fragment import CellEntry, FragmentHeader
from distfs.formats.hello import Keys
from distfs.formats.wire import Type
from distfs.model import FragmentId
from distfs.peers.greeting import NodeSocket
from tests.contract.litter import assert_no_litter
from tests.contract.nodes import KillableServer, client_of, serving
from tests.contract.samples import entry_of, header, put, soon, whole
from tests.greetings import KEYS, greet_node


class Raw:
    """A connection to a node, byte by byte."""

    def __init__(self, server: KillableServer, keys: Keys = KEYS, greet: bool = True) -> None:
        self.server, self._keys = server, keys
        self.sock = socket.create_connection((server.address.host, server.address.port), 10)
        self.wire = NodeSocket(self.sock, "node", 10)
        if greet:
            self.greet()

    def greet(self) -> None:
        """Prove to be a service, before the first request."""
        try:
            greet_node(self.wire, self.server.store, self._keys)
        except BaseException:
            self.sock.close()
            raise

    def request(self, **fields: Any) -> dict[str, Any]:
        store = self.server.store
        return {"cluster": store.cluster.hex, "node": store.node.hex, "deadline": 30, "request": "t"} | fields

    @property
    def to(self) -> bytes:
        return self.server.store.cluster.bytes + self.server.store.node.bytes

    def get(self, id: FragmentId, first: int, many: int, deadline: float = 30) -> bytes:
        """The frame that asks for cells."""
        return wire.encode(Type.GET, Get(self.to, deadline, id, first, many, False, b"t").encode())

    def cells(self, id: FragmentId, first: int, many: int) -> bytes:
        """What a node answers to that, without the table."""
        self.sock.sendall(self.get(id, first, many))
        return self.read_cells()

    def read_cells(self) -> bytes:
        frame = self.wire.accept_answer(self.wire.receive_frame(), Type.CELLS)
        body = bytearray(frame.body_length)
        self.wire.receive_body(memoryview(body))
        return bytes(body[Cells.decode(frame.raw).table :])

    def ask(self, kind: Type, **fields: Any) -> tuple[dict[str, Any], bytes]:
        self.sock.sendall(wire.encode(kind, self.request(**fields)))
        answer, length = self.answer()
        body = bytearray(length)
        self.wire.receive_body(memoryview(body))
        return answer, bytes(body)

    def answer(self) -> tuple[dict[str, Any], int]:
        """The header of what is answered, and its body's length. Raises the error that is answered."""
        frame = self.wire.accept_answer(self.wire.receive_frame(), Type.OK)
        return frame.header(), frame.body_length

    def put(self, head: FragmentHeader, hint: int = 0, deadline: float = 30) -> bytes:
        """The frame that begins one."""
        return wire.encode(Type.PUT, Put(self.to, deadline, hint, head.pack(), b"t").encode())

    def begin_put(self, head: FragmentHeader, hint: int = 0, deadline: float = 30) -> None:
        self.sock.sendall(self.put(head, hint, deadline))

    def cell(self, data: bytes, entry: CellEntry | None = None) -> None:
        self.sock.sendall(wire.encode(Type.CELL, (entry or entry_of(data)).pack(), len(data)) + data)

    def end(self, slice_size: int, last: bool = True) -> None:
        self.sock.sendall(wire.encode(Type.END, End(slice_size, last).encode()))

    def whole(self, head: FragmentHeader, data: bytes, entry: CellEntry | None = None, **other: Any) -> bytes:
        """The frame of a fragment of one cell, with other values if told."""
        said = Whole(self.to, 30, len(data), True, entry or entry_of(data), head.pack(), b"t")
        return wire.encode(Type.WHOLE, said._replace(**other).encode(), len(data)) + data

    def stored(self) -> bytes:
        """The node has it; -> what it heard."""
        frame = self.wire.accept_answer(self.wire.receive_frame(), Type.STORED)
        assert frame.body_length == 0
        return Stored.decode(frame.raw).heard

    def error(self) -> DistfsError:
        """The node's refusal."""
        with pytest.raises(DistfsError) as caught:
            self.answer()
        return caught.value

    def is_closed(self) -> bool:
        """By the node, after it may have said something."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        return True

    def reset(self) -> None:
        """Close so that the node gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KillableServer]:
    """A node of this test's own, with nothing left of what was not finished."""
    with serving(tmp_path / "node") as server:
        yield server
        assert_no_litter(server.store)


@pytest.fixture
def raw(server: KillableServer) -> Iterator[Raw]:
    raw = Raw(server)
    yield raw
    raw.sock.close()


def handlers(server: KillableServer) -> int:
    return server._connections


def assert_serves(server: KillableServer) -> None:
    """It still does its work, for everybody else."""
    with client_of(server) as client:
        fragment = put(client, header(), b"fine")
        assert whole(client, fragment) == b"fine"
        client.delete(fragment, soon())
