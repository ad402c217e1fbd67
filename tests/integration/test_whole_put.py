"""A fragment of one cell that is sent in one go: stored as any other, and what goes wrong ends as it does then."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import Cancelled, Corrupt, DistfsError, Full, NodeUnavailable, ProtocolError, TooSlow
from distfs.formats import wire
from distfs.formats.fixed import STORED_BEGINS, Stored
from distfs.formats.fragment import FragmentHeader
from distfs.formats.wire import Type
from distfs.fragment_store import FragmentWriter
from distfs.model import File
from distfs.peers.client import NodeClient
from distfs.peers.whole_put import MOST, WholePut
from tests.contract.nodes import PEERS, KillableServer, client_of
from tests.contract.samples import entry_of, header, random_bytes, soon, whole
from tests.integration.byte_ways import BLOCK, COPIES, Source, Ways, byte_ways
from tests.integration.scripted_node import IMPATIENT, ok, scripted

MIB = 1 << 20
#: One frame, and three.
SIZES = [100, MIB]


def send(
    client: NodeClient, data: bytes, deadline: Deadline | None = None, head: FragmentHeader | None = None
) -> FragmentWriter | None:
    packed = (head or header(block_size=MIB)).pack()
    return client.send_whole(packed, entry_of(data), memoryview(data), len(data), deadline or soon())


def sent(client: NodeClient, data: bytes, deadline: Deadline | None = None) -> FragmentWriter:
    """On the connection of a request just before."""
    client.list("", 5, soon())
    writer = send(client, data, deadline)
    assert writer is not None
    return writer


def answering_then(*then: Callable[[socket.socket], object]) -> Callable[[socket.socket], None]:
    """Answers a listing, and then does each with a request."""

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(ok({"cursor": None}))
        for each in then:
            connection.recv(1 << 16)
            each(connection)

    return script


def saying(data: bytes) -> Callable[[socket.socket], object]:
    return lambda connection: connection.sendall(data)


def until(connection: socket.socket, left: int) -> None:
    """About so many bytes have come."""
    while left > 0 and (data := connection.recv(1 << 16)):
        left -= len(data)


def until_taken(connection: socket.socket) -> None:
    """Whoever receives has all that was sent."""
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]:
        threading.Event().wait(0.001)


def until_closed(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


@pytest.mark.parametrize("size", [1, 4096, MOST, MOST + 1, MIB])
def test_it_is_stored_as_any_other(server: KillableServer, size: int) -> None:
    data, head = random_bytes(size), header(block_size=MIB)
    with client_of(server) as client:
        assert send(client, data, head=head) is None, "there is no connection yet"
        client.info(soon())
        writer = send(client, data, head=head)
        assert isinstance(writer, WholePut)
        writer.commit()
        writer.abort()  # does nothing any more
        assert whole(client, head.id) == data
        assert len(server.connections) == 1
        assert client.link.pool.snapshot().lent == 0


def test_a_connection_that_was_idle_for_long_is_not_trusted_with_it(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.process.connection_pool.JUST_S", 0)
    with client_of(server) as client:
        client.info(soon())
        assert send(client, b"x") is None
        assert client.link.pool.snapshot().idle == 1


@pytest.mark.parametrize("size", SIZES)
def test_what_a_stale_connection_did_not_take_is_sent_again_on_a_fresh_one(
    server: KillableServer, size: int
) -> None:
    data, head = random_bytes(size), header(block_size=MIB)
    with client_of(server) as client:
        client.info(soon())
        [(idle, _)] = client.link.pool._idle
        idle.sock.shutdown(socket.SHUT_WR)  # as if the node had closed it just now
        writer = send(client, data, head=head)
        assert writer is not None
        writer.commit()
        assert whole(client, head.id) == data
        assert client.link.pool.snapshot().stale == 1


@pytest.mark.parametrize("size", SIZES)
def test_a_node_that_closes_before_it_answers_gets_it_again_once(size: int) -> None:
    asked: list[int] = []

    def taking_it(connection: socket.socket) -> None:
        asked.append(len(connection.recv(1 << 16)))
        until(connection, size - (1 << 16))

    with scripted(answering_then(lambda c: until(c, size - (1 << 16))), taking_it) as client:
        with pytest.raises(NodeUnavailable):
            sent(client, b"x" * size).commit()
        assert asked, "the second got it, too"
        assert client.link.pool.snapshot().lent == 0


@pytest.mark.parametrize("cuts", [[5], [20], list(range(1, 28))])
def test_an_acknowledgement_may_come_in_pieces(cuts: list[int]) -> None:
    answers: list[bytes] = []

    def acknowledge(connection: socket.socket) -> None:
        request = connection.recv(1 << 16)
        until(connection, 4096 - len(request))
        length = wire.PREFIX.unpack_from(request)[4]
        said = request[wire.PREFIX_SIZE : wire.PREFIX_SIZE + length]
        answer = STORED_BEGINS + xxhash.xxh3_64_digest(said)
        answers.append(answer)
        for begin, end in pairwise([0, *cuts, len(answer)]):
            connection.sendall(answer[begin:end])
            until_taken(connection)

    def script(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(ok({"cursor": None}))
        acknowledge(connection)
        until_closed(connection)

    with scripted(script) as client:
        sent(client, b"x" * 4096).commit()
        [answer] = answers
        assert len(answer) == 28
        assert client.link.pool.snapshot().idle == 1


ANSWERS = [
    (wire.encode_error(Full("no room")), Full, True),
    (wire.encode(Type.STORED, Stored(b"wrong123").encode()), Corrupt, False),
    (ok({}), ProtocolError, False),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(20), ProtocolError, False),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("answer", "error", "good"), ANSWERS)
def test_an_answer_that_is_no_acknowledgement_is_an_error(
    answer: bytes, error: type[DistfsError], good: bool, size: int
) -> None:
    """``good``: it says nothing against the node."""
    config = replace(PEERS, breaker_failures=1)
    with scripted(answering_then(saying(answer), until_closed), config=config) as client:
        writer = sent(client, b"x" * size)
        with pytest.raises(error):
            writer.commit()
        writer.abort()
        assert client.trusted or not good
        state = client.link.pool.snapshot()
        assert (state.lent, state.idle) == (0, 0)


@pytest.mark.parametrize("size", SIZES)
def test_a_node_that_never_acknowledges_is_too_slow_and_to_blame(size: int) -> None:
    config = replace(IMPATIENT, breaker_failures=1)
    with scripted(answering_then(until_closed), config=config) as client:
        writer = sent(client, b"x" * size)
        with pytest.raises(TooSlow):
            writer.commit()
        assert not client.trusted


@pytest.mark.parametrize("size", SIZES)
def test_who_is_cancelled_waits_for_it_no_longer(size: int) -> None:
    with scripted(answering_then(until_closed)) as client, soon().scope() as deadline:
        writer = sent(client, b"x" * size, deadline)
        deadline.cancel("the client hung up")
        with pytest.raises(Cancelled):
            writer.commit()
        assert client.trusted
        assert client.link.pool.snapshot().lent == 0


def test_no_time_left_takes_no_connection(server: KillableServer) -> None:
    config = replace(PEERS, stall_timeout=Seconds(5))
    with client_of(server, config) as client:
        client.info(soon())
        with pytest.raises(TooSlow):
            send(client, b"x", Deadline(0))
        assert client.link.pool.snapshot().idle == 1


def test_a_node_that_takes_no_more_of_a_large_one_is_too_slow() -> None:
    """Not to whoever sends the next."""
    stuck = threading.Event()
    with scripted(answering_then(lambda _: stuck.wait(60)), config=IMPATIENT) as client:
        client.list("", 5, soon())
        try:
            with pytest.raises(TooSlow):
                send(client, bytes(16 * MIB), head=header(block_size=16 * MIB))
        finally:
            stuck.set()
        state = client.link.pool.snapshot()
        assert (state.lent, state.idle) == (0, 0)


# --- an upload of them ----------------------------------------------------------------------------------------


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    with byte_ways(metadb_url, tmp_path) as ways:
        yield ways
        ways.assert_clean()


def test_small_files_take_no_block_of_the_pool_and_are_sent_in_one_go(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[WholePut] = []
    commit = WholePut.commit

    def noted(put: WholePut) -> None:
        sent.append(put)
        commit(put)

    monkeypatch.setattr(WholePut, "commit", noted)
    stored: list[tuple[File, bytes]] = []
    for size in (1, 1000, 4096):
        for _ in range(3):  # to each of three nodes there is a connection after two
            data = random_bytes(size, size)
            with ways.services.uploader.begin(soon(), most=size) as session:
                session.add(Source(data), name="x", content_type="", policy=COPIES)
                [file] = session.commit()
            stored.append((file, data))
    assert len(sent) >= 10
    assert not ways.services.uploader.resources.pool.usage().most, "none was taken"
    assert [ways.download(file) for file, _ in stored] == [data for _, data in stored]
    with ways.services.uploader.begin(soon(), most=0) as session:
        session.add(Source(b""), name="x", content_type="", policy=COPIES)
        session.commit()


@pytest.mark.parametrize("size", [1001, BLOCK, 3 * BLOCK + 5])
def test_a_body_that_brings_more_than_it_was_said_to_have_is_kept_whole(ways: Ways, size: int) -> None:
    """Another server's, that does not count."""
    data = random_bytes(size)
    with ways.services.uploader.begin(soon(), most=1000) as session:
        session.add(Source(data), name="x", content_type="", policy=COPIES)
        [file] = session.commit()
    assert ways.download(file) == data
