"""A node that is slow or wrong, as its client sees it: told soon, in the right class, without a dirty connection."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import (
    Busy,
    Cancelled,
    Corrupt,
    DistfsError,
    Full,
    NodeUnavailable,
    OutcomeUnknown,
    ProtocolError,
    TooSlow,
    Unavailable,
)
from distfs.formats import wire
from distfs.formats.fixed import Cells
from distfs.formats.wire import Type
from distfs.model import Address
from distfs.peers.client import NodeClient
from distfs.peers.link import Exchange
from tests.contract.nodes import PEERS, KillableServer, client_of
from tests.contract.samples import MIB, cut, entry_of, header, put, random_bytes, soon
from tests.integration.scripted_node import ID, IMPATIENT, answering, cells, ok, scripted, trickling
from tests.ports import refusing

# --- patience -------------------------------------------------------------------------------------------------


def test_a_node_that_says_nothing_is_too_slow() -> None:
    config = replace(PEERS, stall_timeout=Seconds(0.1))
    with scripted(answering(), config=config) as client:
        with pytest.raises(TooSlow, match=r"first byte: receive made no progress for 0\.1 s"):
            client.info(soon())


def test_a_node_that_answers_a_byte_now_and_then_is_too_slow(server: KillableServer) -> None:
    fragment = put(server.store, header(), random_bytes(20_000))
    table = server.store.stat(fragment, soon())
    get = cells(Cells(20_000, True, len(table.pack())), table.pack(), len(table.pack()) + 20_000)
    listing = ok({"cursor": None}, bytes(wire.LISTED.size * 100))
    with scripted(trickling(listing), trickling(get + bytes(20_000)), config=IMPATIENT) as client:
        with pytest.raises(TooSlow):
            client.list("", 100, soon())
        with pytest.raises(TooSlow):
            client.get(fragment, 0, 5, soon())


def test_cells_that_come_a_byte_now_and_then_are_too_slow(server: KillableServer) -> None:
    fragment = put(server.store, header(), random_bytes(4096))
    table = server.store.stat(fragment, soon())
    answer = Cells(4096, True, len(table.pack()))

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(cells(answer, table.pack(), len(table.pack()) + 4096))
        pause = threading.Event()
        for _ in range(4096):
            connection.sendall(b"x")
            pause.wait(0.01)

    config = replace(
        IMPATIENT, base_timeout=Seconds(2), stall_timeout=Seconds(2)
    )  # enough for the answer itself
    with scripted(script, config=config) as client:
        with contextlib.closing(client.get(fragment, 0, 1, soon())) as reader:
            with pytest.raises(TooSlow):
                reader.read_cell(memoryview(bytearray(4096)))


def test_a_node_that_takes_a_little_now_and_then_is_too_slow() -> None:
    def script(connection: socket.socket) -> None:
        pause = threading.Event()
        for _ in range(100):
            connection.recv(2000)
            pause.wait(0.01)

    with scripted(script, config=IMPATIENT) as client:
        writer = client.put(header(block_size=16 * MIB), 0, soon())
        block = bytes(16 * MIB)
        with pytest.raises(TooSlow):
            writer.write_cell(entry_of(block), memoryview(block))
        writer.abort()


def test_a_node_that_never_acknowledges_is_too_slow() -> None:
    with scripted(answering(), config=IMPATIENT) as client:
        writer = client.put(header(), 0, soon())
        writer.write_cell(entry_of(b"x"), memoryview(b"x"))
        writer.finish(1, True)
        with pytest.raises(TooSlow):
            writer.commit()
        assert client.link.pool.snapshot().idle == 0


def test_a_cancelled_request_says_nothing_of_its_node() -> None:
    """It did not answer: whoever gave up must not close the breaker of a node that is silent."""
    config = replace(PEERS, breaker_failures=1)
    with scripted(answering(), config=config) as client:
        client.link.breaker.failed()
        with Deadline(60).scope() as deadline:
            exchange = Exchange(client.link, deadline)
            exchange.send(b"x" * 100)
            deadline.cancel("another part failed")
            with pytest.raises(Cancelled):
                exchange.answer(Type.OK)
        assert not client.trusted


def test_a_node_that_went_between_two_requests_has_failed_once() -> None:
    config = replace(PEERS, breaker_failures=2)
    with scripted(answering(ok({"cursor": None})), config=config) as client, refusing() as port:
        client.list("", 5, soon())
        [(idle, _)] = client.link.pool._idle
        client.link.address = Address("127.0.0.1", port)
        exchange = Exchange(client.link, soon())
        assert exchange.sock is idle
        idle.sock.shutdown(socket.SHUT_RD)  # as if the node had closed it just now
        exchange.send(b"x" * 100)
        with pytest.raises(NodeUnavailable, match="cannot connect"):
            exchange.answer(Type.OK)
        assert client.trusted, "the breaker opens at two"
        assert client.link.pool.snapshot().lent == 0


def test_a_user_who_pauses_is_not_the_nodes_fault(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's time limit counts what it kept us waiting, not what we kept it waiting."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a busy disk would be the node's fault
    config = replace(PEERS, base_timeout=Seconds(2), stall_timeout=Seconds(2), min_rate=IMPATIENT.min_rate)
    pause = threading.Event()
    blocks = cut(random_bytes(2 * 4096), 4096)
    with client_of(server, config) as client:
        head = header()
        writer = client.put(head, 2 * 4096, soon())
        for block in blocks:
            writer.write_cell(entry_of(block), memoryview(block))
            pause.wait(1.1)
        writer.finish(2 * 4096, True)
        writer.commit()
        with contextlib.closing(client.get(head.id, 0, 2, soon())) as reader:
            for block in blocks:
                pause.wait(1.1)
                cell = bytearray(4096)
                reader.read_cell(memoryview(cell))
                assert cell == block


def test_a_transfer_ends_with_its_own_deadline_at_the_latest() -> None:
    with scripted(answering(), answering()) as client:
        with pytest.raises(TooSlow):
            client.info(Deadline(1))
        with pytest.raises(TooSlow):
            _put_nothing(client, Deadline(1))


def _put_nothing(client: NodeClient, deadline: Deadline) -> None:
    writer = client.put(header(), 0, deadline)
    writer.finish(0, True)
    writer.commit()


# --- a node that is wrong -----------------------------------------------------------------------------------


WRONG_ANSWERS = {
    "no fields": ok({}),
    "no numbers": ok({"table": "x", "slice_size": "y", "bad": 1}),
    "no object": ok(b"[]"),
    "no json": ok(b"\xff"),
    "a table larger than the body": cells(Cells(1, True, 42), b"x" * 21),
    "a slice of no sane size": cells(Cells(1 << 63, True, 21), b"x" * 21),
    "no table": wire.encode(Type.CELLS, b""),
    "a byte less": wire.encode(Type.CELLS, Cells(1, True, 0).encode()[:-1]),
    "a byte more": wire.encode(Type.CELLS, Cells(1, True, 0).encode() + b"x"),
    "a huge table": cells(Cells(1, True, wire.MAX_TABLE + 1), length=wire.MAX_FRAGMENT),
    "a huge body": ok({"cursor": None, "bad": [], "deleted": True}, length=wire.MAX_FRAGMENT),
    "another frame": wire.encode(Type.INFO, {}),
    "another version": b"DFSW\x01" + bytes(15),
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "an error without words": wire.encode(Type.ERROR, b"[]"),
}


@pytest.mark.parametrize("answer", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_a_wrong_answer_is_a_protocol_error_and_its_connection_is_dropped(answer: bytes) -> None:
    asks: list[Callable[[NodeClient], object]] = [
        lambda client: client.get(ID, 0, 1, soon()),
        lambda client: client.stat(ID, soon()),
        lambda client: client.list("", 5, soon()),
        lambda client: client.info(soon()),
        lambda client: client.verify(ID, soon()),
        lambda client: client.delete(ID, soon()),
    ]
    for ask in asks:
        with scripted(answering(answer)) as client:
            with pytest.raises(ProtocolError):
                ask(client)


@pytest.mark.parametrize(
    ("bodies", "field"), [(b"x" * 10, "a listing of a broken length"), (b"x" * 34, "one byte too many")]
)
def test_a_listing_of_a_broken_length_is_a_protocol_error(bodies: bytes, field: str) -> None:
    with scripted(answering(ok({"cursor": None}, bodies))) as client:
        with pytest.raises(ProtocolError):
            client.list("", 5, soon())


def test_a_table_of_a_broken_length_is_corrupt() -> None:
    with scripted(answering(cells(Cells(1, True, 20), b"x" * 20))) as client:
        with pytest.raises(Corrupt):
            client.stat(ID, soon())
        assert client.link.pool.snapshot().idle == 0


def test_an_answer_with_more_than_it_said_is_not_reused() -> None:
    info = ok({"cursor": None})
    with scripted(answering(info + b"and more"), answering(info)) as client:
        client.list("", 5, soon())
        client.list("", 5, soon())


def test_more_cells_than_the_answer_has_cannot_be_read(server: KillableServer) -> None:
    with client_of(server) as client:
        fragment = put(client, header(), random_bytes(9000))
        with contextlib.closing(client.get(fragment, 0, 1, soon())) as reader:
            reader.read_cell(memoryview(bytearray(4096)))
            with pytest.raises(ProtocolError, match="no more cells"):
                reader.read_cell(memoryview(bytearray(4096)))


def test_an_error_keeps_its_class_and_its_words() -> None:
    error = wire.encode(Type.ERROR, {"kind": "full", "message": "the disk is full"})
    with scripted(answering(error)) as client:
        with pytest.raises(Full, match="the disk is full"):
            client.info(soon())


def _all(cls: type[DistfsError]) -> list[type[DistfsError]]:
    return [cls, *(c for sub in cls.__subclasses__() for c in _all(sub))]


#: What concerns a service alone, or nobody yet.
NOT_SAYABLE = [cls.kind for cls in _all(DistfsError) if cls.kind not in wire.ERRORS]


@pytest.mark.parametrize("kind", [*NOT_SAYABLE, "of a later version", None, ["full"], {}], ids=str)
def test_a_kind_of_error_that_no_node_may_raise_is_held_against_it(kind: object) -> None:
    assert {"busy", "cancelled", "client_gone", "outcome_unknown", "too_many"} <= set(NOT_SAYABLE)
    said = wire.encode(Type.ERROR, {"kind": kind, "message": "who knows"})
    with scripted(*[answering(said)] * PEERS.breaker_failures) as client:
        for _ in range(PEERS.breaker_failures):
            assert client.trusted
            with pytest.raises(ProtocolError, match="no node may raise.*who knows"):
                client.info(soon())
        assert not client.trusted


def test_answers_that_make_no_sense_are_held_against_their_node() -> None:
    with scripted(*[answering(ok({"node": 5}))] * PEERS.breaker_failures) as client:
        for _ in range(PEERS.breaker_failures):
            client.close()
            with pytest.raises(ProtocolError):
                client.info(soon())
        assert not client.trusted


def test_what_a_node_may_not_say_it_says_as_the_nearest_that_it_may() -> None:
    for cls in _all(DistfsError):
        error = cls.__new__(cls)
        DistfsError.__init__(error, "why")  # some want more than words
        decoder = wire.Decoder()
        decoder.feed(wire.encode_error(error))
        frame = decoder.next_frame()
        assert frame is not None
        heard = wire.decode_error(frame.header(), "node")
        later = isinstance(error, Busy | Cancelled | OutcomeUnknown)
        assert type(heard) is Unavailable if later else isinstance(error, type(heard))
        assert str(heard) == "node: why"
