"""A node as a store: its pool, and a node that is gone or refuses in the middle."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.config.settings import Bytes, Seconds
from distfs.deadline import Deadline
from distfs.errors import Full, NodeUnavailable, NotFound, ProtocolError, TooSlow
from distfs.fragment_store import FragmentReader, FragmentWriter
from distfs.model import Address
from distfs.peers.client import NodeClient
from distfs.storage_server import StorageServer
from distfs.telemetry import metrics
from distfs.wire_socket import WireSocket
from tests.contract.litter import assert_no_litter, eventually
from tests.contract.nodes import NODE, PEERS, KillableServer, client_of, serving
from tests.contract.samples import CLUSTER, MIB, entry_of, header, listed, put, random_bytes, soon, whole
from tests.greetings import known_keys
from tests.integration.scripted_node import ID, IMPATIENT, answering, ok, scripted
from tests.ports import refusing
from tests.small_disk import SMALL, small_disk

# --- the pool ---------------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests(server: KillableServer) -> None:
    with client_of(server) as client:
        for number in range(10):
            fragment = put(client, header(), random_bytes(number * 1000))
            whole(client, fragment)
            client.stat(fragment, soon())
            client.verify(fragment, soon())
            with pytest.raises(NotFound):  # the answer was read to its end: the connection is good
                client.stat(ID, soon())
            client.info(soon())
            client.delete(fragment, soon())
    # A refusal closes its connection, as everything that is not the usual course.
    assert len(server.connections) <= 11


def test_no_more_connections_are_kept_than_configured(server: KillableServer) -> None:
    config = replace(PEERS, connections=2)
    with client_of(server, config) as client:
        fragment = put(client, header(), random_bytes(10_000))
        readers = [client.get(fragment, 0, 3, soon()) for _ in range(5)]
        for reader in readers:
            for entry in reader.table.entries:
                reader.read_cell(memoryview(bytearray(entry.length)))
            reader.close()
        assert client.link.pool.snapshot().idle == 2


def test_a_reader_closed_in_the_middle_gives_no_dirty_connection_back(server: KillableServer) -> None:
    with client_of(server) as client:
        data = random_bytes(40_000)
        fragment = put(client, header(), data)
        reader = client.get(fragment, 0, 10, soon())
        reader.read_cell(memoryview(bytearray(4096)))
        reader.close()
        assert whole(client, fragment) == data


def test_a_node_that_restarts_on_its_port_is_found_again(tmp_path: Path) -> None:
    with serving(tmp_path / "node") as first, client_of(first) as client:
        fragment = put(client, header(), b"kept")
        port, node = first.address.port, first.store.node
        client.info(soon())
        first.shutdown()
        first.server_close()
        first.cut()
        first.store.close()
        with contextlib.ExitStack() as stack:
            # The same folder on the same port, as a restarted process has it.
            store = stack.enter_context(
                contextlib.closing(type(first.store)(tmp_path / "node", CLUSTER, NODE))
            )
            assert store.node == node
            second = KillableServer("127.0.0.1", port, store, NODE)
            thread = threading.Thread(target=second.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            assert whole(client, fragment) == b"kept"
            second.shutdown()
            second.server_close()
            second.cut()
            thread.join()
        first.store._lock = os.open(os.devnull, os.O_RDONLY)  # for its second close


def test_a_reused_connection_that_the_node_closes_is_replaced_once() -> None:
    info = ok({"cursor": None})

    def one_answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(info)
        connection.recv(1 << 16)  # the second request, never answered

    with scripted(one_answer, answering(info)) as client:
        assert client.list("", 5, soon()).cursor is None
        before = metrics.RETRIES.value("request")
        assert client.list("", 5, soon()).cursor is None
        assert metrics.RETRIES.value("request") == before + 1


def test_a_fresh_connection_that_the_node_closes_is_an_error() -> None:
    with scripted(lambda connection: connection.recv(1 << 16)) as client:
        with pytest.raises(NodeUnavailable, match="closed the connection"):
            client.list("", 5, soon())


def test_connections_idle_for_long_are_not_trusted(server: KillableServer) -> None:
    with client_of(server, replace(PEERS, connection_idle=Seconds(0))) as client:
        client.info(soon())
        client.info(soon())
        assert len(server.connections) == 2
        assert client.link.pool.snapshot().expired == 1


def test_a_closed_client_keeps_nothing(server: KillableServer) -> None:
    with client_of(server) as client:
        fragment = put(client, header(), b"x")
        reader = client.get(fragment, 0, 1, soon())
        reader.read_cell(memoryview(bytearray(1)))
        client.close()
        reader.close()
        assert client.link.pool.snapshot().idle == 0
        assert reader.fileno() == -1  # type: ignore[attr-defined]


def test_descriptors_over_a_thousand_are_no_trouble(server: KillableServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    null = os.open(os.devnull, os.O_RDONLY)
    held: list[int] = []
    try:
        while not held or held[-1] <= 1100:
            held.append(os.dup(null))
        with client_of(server) as client:
            fragment = put(client, header(), random_bytes(20_000))
            assert whole(client, fragment) == random_bytes(20_000)
            client.info(soon())
    finally:
        for fd in (*held, null):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a node that is not there -------------------------------------------------------------------------------


def test_a_node_that_does_not_listen_is_unavailable() -> None:
    with refusing() as port:
        client = NodeClient(uuid4(), Address("127.0.0.1", port), CLUSTER, PEERS, known_keys)
        with pytest.raises(NodeUnavailable, match="cannot connect"):
            client.info(soon())
        with pytest.raises(NodeUnavailable, match="cannot connect"):
            client.put(header(), 10, soon())


def test_a_node_whose_name_nobody_knows_is_unavailable() -> None:
    client = NodeClient(uuid4(), Address("no-such-host.invalid", 9), CLUSTER, PEERS, known_keys)
    with pytest.raises((NodeUnavailable, TooSlow)):
        client.info(soon())


def test_a_node_that_does_not_accept_is_too_slow() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        for _ in range(4):  # fill its queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        client = NodeClient(uuid4(), Address(*listener.getsockname()), CLUSTER, IMPATIENT, known_keys)
        with pytest.raises(TooSlow, match=r"connect: no connection within 0\.20 s"):
            client.info(soon())


def test_a_deadline_that_has_passed_takes_no_connection(server: KillableServer) -> None:
    with client_of(server) as client:
        client.info(soon())
        for ask in (
            lambda: client.put(header(), 10, Deadline(0)),
            lambda: client.get(ID, 0, 1, Deadline(0)),
            lambda: client.info(Deadline(0)),
        ):
            with pytest.raises(TooSlow):
                ask()
        client.info(soon())
        assert len(server.connections) == 1


def test_another_node_at_the_address_is_not_taken_for_this_one(server: KillableServer) -> None:
    client = NodeClient(uuid4(), server.address, CLUSTER, PEERS, known_keys)
    with pytest.raises(ProtocolError, match="another node than this one"):
        client.info(soon())
    with pytest.raises(ProtocolError, match="another node than this one"):
        put(client, header(), b"x")
    client.close()


# --- refusals in the middle -----------------------------------------------------------------------------------


def test_a_disk_that_fills_up_ends_the_put_soon_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder, serving(folder / "node") as server:
        with client_of(server) as client:
            block = random_bytes(MIB)
            writer = client.put(header(block_size=MIB), 0, soon())
            sent: list[int] = []
            with pytest.raises(Full, match="full"):
                _write_until_refused(writer, block, sent)
            writer.abort()
            assert SMALL // MIB <= len(sent) < 100
            assert_no_litter(server.store)
            assert listed(client) == []


def _write_until_refused(writer: FragmentWriter, block: bytes, sent: list[int]) -> None:
    for number in range(200):
        sent.append(number)
        writer.write_cell(entry_of(block), memoryview(block))


def test_a_node_killed_in_the_middle_of_a_put_is_unavailable(server: KillableServer) -> None:
    with client_of(server) as client:
        block = random_bytes(MIB)
        writer = client.put(header(block_size=MIB), 10 * MIB, soon())
        writer.write_cell(entry_of(block), memoryview(block))
        eventually(lambda: server.connections, "the node has accepted")
        server.cut()
        with pytest.raises(NodeUnavailable):
            _write_on(writer, block)
        writer.abort()
        assert_no_litter(server.store)


def _write_on(writer: FragmentWriter, block: bytes) -> None:
    for _ in range(9):
        writer.write_cell(entry_of(block), memoryview(block))
    writer.finish(10 * MIB, True)
    writer.commit()


def test_a_node_killed_in_the_middle_of_a_get_is_unavailable(server: KillableServer) -> None:
    data = random_bytes(16 * MIB)
    fragment = put(server.store, header(block_size=MIB), data)
    with client_of(server) as client, contextlib.closing(client.get(fragment, 0, 16, soon())) as reader:
        cell = bytearray(MIB)
        reader.read_cell(memoryview(cell))
        server.cut()
        with pytest.raises(NodeUnavailable):
            _read_on(reader, cell)


def _read_on(reader: FragmentReader, cell: bytearray) -> None:
    for _ in range(15):
        reader.read_cell(memoryview(cell))


def test_a_socket_that_cannot_be_set_up_is_closed() -> None:
    one, other = socket.socketpair()  # no TCP
    with other:
        with pytest.raises(NodeUnavailable):
            WireSocket(one, "peer", 1)
        assert one.fileno() == -1


def test_the_pool_of_a_large_write_buffer_is_given_back(tmp_path: Path) -> None:
    config = replace(NODE, write_buffer=Bytes(MIB), direct_io_threshold=Bytes(0))
    with serving(tmp_path / "n", config) as server, client_of(server) as client:
        assert isinstance(server, StorageServer)
        writers = [client.put(header(), MIB, soon()) for _ in range(6)]
        for writer in writers:  # more than there are buffers for: the last are written plainly
            writer.write_cell(entry_of(b"abc"), memoryview(b"abc"))
        for writer in writers[:3]:
            writer.abort()
        for writer in writers[3:]:
            writer.finish(3, True)
            writer.commit()
        assert_no_litter(server.store)
        assert len(listed(client)) == 3
