"""Whoever cannot prove that he is of the cluster: told nothing, held for a moment, counted, logged now and then."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from distfs import __version__
from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import DistfsError, ProtocolError, TooSlow
from distfs.formats import hello, wire
from distfs.formats.hello import Asker, Key, Keys, Kind, Reason
from distfs.formats.wire import Type
from distfs.meta import MetaDB
from distfs.model import Address
from distfs.peers.client import NodeClient
from distfs.storage.strangers import LOG_EVERY_S, MOST_ADDRESSES, Strangers, network_of
from tests.contract.litter import eventually
from tests.contract.nodes import PEERS, KillableServer, client_of, serving
from tests.contract.samples import soon
from tests.greetings import KEYS
from tests.integration.meta_examples import report
from tests.integration.raw_wire import Raw, assert_serves
from tests.postgres import run_sql

FOREIGN = (Key(os.urandom(32)),)


@contextlib.contextmanager
def connected(server: KillableServer) -> Iterator[socket.socket]:
    with socket.create_connection((server.address.host, server.address.port), 60) as sock:
        yield sock


def rest(sock: socket.socket) -> bytes:
    """What the node says until it ends the connection."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            said += piece
    return said


def known(keys: Keys, _: Deadline) -> Keys:
    return keys


def asker_of(server: KillableServer, keys: Keys = KEYS, node: UUID | None = None) -> Asker:
    return Asker(keys, server.store.cluster, node or server.store.node, os.urandom(32))


def exactly(sock: socket.socket, size: int) -> bytes:
    said = sock.recv(size, socket.MSG_WAITALL)
    assert len(said) == size
    return said


def refusals(server: KillableServer) -> dict[Reason, int]:
    return dict(server.strangers.counts)


def counted(server: KillableServer, reason: Reason, times: int = 1) -> None:
    eventually(lambda: refusals(server).get(reason) == times, f"{reason.name} is counted")


def a_foreign_key(server: KillableServer, sock: socket.socket) -> Reason:
    sock.sendall(asker_of(server, FOREIGN).hello)
    return Reason.KEY


def a_key_of_which_only_the_id_is_known(server: KillableServer, sock: socket.socket) -> Reason:
    forged = Key(FOREIGN[0].secret)
    object.__setattr__(forged, "id", KEYS[0].id)
    asker = asker_of(server, (forged,))
    sock.sendall(asker.hello)
    sock.sendall(asker.prove(exactly(sock, hello.SIZES[Kind.CHALLENGE])))
    return Reason.PROOF


def another_node_is_meant(server: KillableServer, sock: socket.socket) -> Reason:
    asker = asker_of(server, node=uuid4())
    sock.sendall(asker.hello)
    sock.sendall(asker.prove(exactly(sock, hello.SIZES[Kind.CHALLENGE])))
    return Reason.PROOF


def a_replay(server: KillableServer, sock: socket.socket) -> Reason:
    """All that an honest service said, heard by somebody on the way."""
    asker = asker_of(server)
    with connected(server) as before:
        before.sendall(asker.hello)
        proof = asker.prove(exactly(before, hello.SIZES[Kind.CHALLENGE]))
        before.sendall(proof)
        asker.accept(exactly(before, hello.SIZES[Kind.WELCOME]))
    sock.sendall(asker.hello)
    exactly(sock, hello.SIZES[Kind.CHALLENGE])
    sock.sendall(proof)
    return Reason.PROOF


def a_reflection(server: KillableServer, sock: socket.socket) -> Reason:
    """What the node itself says on the connection comes back to it."""
    sock.sendall(asker_of(server).hello)
    sock.sendall(exactly(sock, hello.SIZES[Kind.CHALLENGE]))
    return Reason.FORM


def a_downgrade(server: KillableServer, sock: socket.socket) -> Reason:
    """Somebody on the way leaves the newest key, or version, out of what an honest service offers."""
    asker = asker_of(server, (FOREIGN[0], KEYS[0]))
    at = hello.HEAD_SIZE + 16
    sock.sendall(asker.hello[:at] + bytes(8) + asker.hello[at + 8 :])
    sock.sendall(asker.prove(exactly(sock, hello.SIZES[Kind.CHALLENGE])))
    return Reason.PROOF


def no_version_in_common(server: KillableServer, sock: socket.socket) -> Reason:
    said = asker_of(server).hello
    none = b"\xff\xfe\xff\xff" + bytes(4)  # versions, and features: who knows of none is not told why
    sock.sendall(said[: hello.HEAD_SIZE] + none + said[hello.HEAD_SIZE + 8 :])
    return Reason.VERSION


def a_request_at_once(server: KillableServer, sock: socket.socket) -> Reason:
    sock.sendall(wire.encode(Type.LIST, {"cursor": "", "limit": 5}))
    return Reason.FORM


def a_million_bytes(server: KillableServer, sock: socket.socket) -> Reason:
    with contextlib.suppress(OSError):  # it does not read them
        sock.sendall(b"x" * 1_000_000)
    return Reason.FORM


def a_million_bytes_behind_a_hello(server: KillableServer, sock: socket.socket) -> Reason:
    with contextlib.suppress(OSError):
        sock.sendall(asker_of(server).hello + b"x" * 1_000_000)
    return Reason.FORM


def a_cut_in_the_middle(server: KillableServer, sock: socket.socket) -> Reason:
    sock.sendall(asker_of(server).hello[:40])
    sock.shutdown(socket.SHUT_WR)
    return Reason.GONE


STRANGE: list[Callable[[KillableServer, socket.socket], Reason]] = [
    a_foreign_key,
    a_key_of_which_only_the_id_is_known,
    another_node_is_meant,
    a_replay,
    a_reflection,
    a_downgrade,
    no_version_in_common,
    a_request_at_once,
    a_million_bytes,
    a_million_bytes_behind_a_hello,
    a_cut_in_the_middle,
]


@pytest.mark.parametrize("strange", STRANGE, ids=lambda each: each.__name__)
def test_who_cannot_prove_himself_is_refused_and_counted(
    server: KillableServer,
    strange: Callable[[KillableServer, socket.socket], Reason],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "distfs.node")
    with connected(server) as sock:
        reason = strange(server, sock)
        said = rest(sock)
    if strange is a_million_bytes_behind_a_hello:
        said = said.removeprefix(said[: hello.SIZES[Kind.CHALLENGE]])
    assert said in (b"", hello.REFUSED)
    counted(server, reason)
    assert sum(refusals(server).values()) == 1
    [line] = [each.getMessage() for each in caplog.records if "not welcome" in each.getMessage()]
    assert line.startswith(f"127.0.0.1 is not welcome: {reason.value}")
    for id in (server.store.cluster, server.store.node):
        assert str(id) not in line
        assert id.hex not in line
    assert_serves(server)


def test_a_service_says_what_may_be_the_matter(server: KillableServer) -> None:
    """And nothing of its request is sent."""
    store = server.store
    for keys, node in ((FOREIGN, store.node), (KEYS, uuid4())):
        client = NodeClient(node, server.address, store.cluster, PEERS, partial(known, keys))
        for _ in range(PEERS.breaker_failures):
            assert client.trusted
            with pytest.raises(ProtocolError, match="does not let us in.*cluster-key show-id"):
                client.info(soon())
        assert not client.trusted
        client.close()


def test_a_service_tells_a_node_of_another_cluster_nothing(tmp_path: Path) -> None:
    """Who listens where a node is expected, and cannot prove to be that, hears a HELLO and a PROOF alone."""
    heard = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def impostor() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.extend(connection.recv(1 << 16))
                connection.sendall(hello._head(Kind.CHALLENGE, b"\0\0") + os.urandom(32))
                heard.extend(connection.recv(1 << 16))
                connection.sendall(hello._head(Kind.WELCOME) + bytes(8) + os.urandom(32))
                while piece := connection.recv(1 << 16):
                    heard.extend(piece)

        thread = threading.Thread(target=impostor)
        thread.start()
        node, cluster = uuid4(), uuid4()
        client = NodeClient(node, Address(*listener.getsockname()), cluster, PEERS, lambda _: KEYS)
        with pytest.raises(ProtocolError, match="not proved that it is the node"):
            client.list("", 5, soon())
        client.close()
        thread.join()
    assert len(heard) == hello.SIZES[Kind.HELLO] + hello.SIZES[Kind.PROOF]
    assert not any(id.bytes in heard or id.hex.encode() in heard for id in (node, cluster))


def test_a_service_and_a_node_without_a_version_in_common_tell_both(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service its operator, in words that name both; the node its log, and no stranger a thing."""
    later = partial(hello.Answerer, speaks=(hello.HIGHEST + 1, hello.HIGHEST + 2))
    monkeypatch.setattr("distfs.storage.greeting.Answerer", later)
    with client_of(server) as client:
        with pytest.raises(ProtocolError) as refused:
            client.info(soon())
    theirs = f"wire versions {hello.HIGHEST + 1} to {hello.HIGHEST + 2}"
    for words in (
        theirs,
        f"this is distfs {__version__}",
        f"wire version {hello.HIGHEST}:",
        "upgrade the older one",
    ):
        assert words in str(refused.value)
    counted(server, Reason.VERSION)


def test_each_side_knows_of_which_release_the_other_is(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By what they said when the connection began, which a reused one need not say again."""
    with client_of(server) as client:
        assert client.features(soon()) == hello.FEATURES
        client.info(soon())
        assert client.snapshot()["software"] == __version__
        assert client.link.pool.snapshot().made == 1
    monkeypatch.setattr("distfs.peers.greeting.__version__", "9.9.9\x1b")
    raw = Raw(server)
    raw.sock.sendall(b"no frame of the wire")
    rest(raw.sock)
    raw.sock.close()
    assert "(distfs 9.9.9?): the peer does not speak the distfs wire" in caplog.text


def test_a_node_that_takes_its_time_to_greet_is_too_slow() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the system accepts, nobody answers
        config = replace(PEERS, stall_timeout=Seconds(0.2), breaker_failures=1)
        client = NodeClient(uuid4(), Address(*listener.getsockname()), uuid4(), config, lambda _: KEYS)
        with pytest.raises(TooSlow):
            client.info(soon())
        assert not client.trusted
        assert client.link.pool.snapshot().lent == 0
        with Deadline(60).scope() as deadline:
            threading.Timer(0.05, deadline.cancel, ("nobody waits",)).start()
            with pytest.raises(DistfsError, match=r"nobody waits|progress"):
                client.info(deadline)
        client.close()


# --- many of them -------------------------------------------------------------------------------------------


def test_a_handshake_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """Also one that goes on, a byte now and then."""
    with serving(tmp_path / "node", stall_timeout=Seconds(0.5)) as server:
        with connected(server) as silent, connected(server) as slow:
            pause = threading.Event()
            said = asker_of(server).hello
            with contextlib.suppress(OSError):
                for byte in said + bytes(1000):
                    slow.sendall(bytes([byte]))
                    pause.wait(0.05)
            for each in (silent, slow):
                assert rest(each) == b""
            counted(server, Reason.SLOW, 2)
        assert_serves(server)


def test_strangers_that_wait_hold_no_thread_that_a_service_needs(server: KillableServer) -> None:
    server.strangers.most = 5
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(server)) for _ in range(5)]
        eventually(lambda: len(server.strangers._waiting) == 5, "all of them wait")
        assert_serves(server)
        counted(server, Reason.CROWDED)
        assert rest(held[0]) == b"", "the oldest was cut"
        more = [stack.enter_context(connected(server)) for _ in range(30)]  # some held may have left by now
        eventually(lambda: refusals(server)[Reason.CROWDED] >= 20, "those that were too many are cut")
        assert_serves(server)
        assert len(server.strangers._waiting) <= 5
        assert len(more) == 30


def test_of_many_that_wait_one_from_the_most_crowded_address_is_cut() -> None:
    strangers, cut = Strangers(most=3), list[str]()
    with contextlib.ExitStack() as stack:
        for name in ("a1", "b1", "b2"):
            stack.enter_context(strangers.waiting(name[0], partial(cut.append, name)))
        stack.enter_context(strangers.waiting("c", lambda: cut.append("c")))
        assert cut == ["b1"]
        stack.enter_context(strangers.waiting("c", lambda: cut.append("c2")))
        assert cut == ["b1", "c"]
    assert not strangers._waiting


def test_connections_that_have_proved_themselves_are_not_cut_for_strangers(server: KillableServer) -> None:
    raw = Raw(server)
    server.strangers.most = 1
    with connected(server), connected(server):
        counted(server, Reason.CROWDED)
        raw.ask(Type.INFO)
    raw.sock.close()


# --- what is written of them ----------------------------------------------------------------------------------


def test_of_an_address_a_line_a_minute_is_written(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    strangers = Strangers(clock=lambda: now[0])
    for _ in range(100):
        strangers.refused("10.0.0.1", Reason.KEY)
        strangers.refused("10.0.0.2", Reason.PROOF)
    assert [each.split()[0] for each in caplog.messages] == ["10.0.0.1", "10.0.0.2"]
    caplog.clear()
    now[0] += LOG_EVERY_S
    strangers.refused("10.0.0.1", Reason.KEY)
    [line] = caplog.messages
    assert "(99 more from there since the last such line, 201 in all" in line
    assert strangers.counts == {Reason.KEY: 101, Reason.PROOF: 100}


def test_a_million_addresses_fill_neither_memory_nor_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    strangers = Strangers(clock=lambda: 0.0)
    for number in range(20 * MOST_ADDRESSES):
        strangers.refused(f"10.0.{number // 256}.{number % 256}", Reason.FORM)
    assert len(caplog.records) == len(strangers._told) == MOST_ADDRESSES + 1
    assert strangers.counts[Reason.FORM] == 20 * MOST_ADDRESSES


def test_of_ipv6_what_one_machine_has_to_itself_is_one_address() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1") == "10.0.0.1"
    assert network_of("what") == "what"


def test_a_connection_is_greeted_once(server: KillableServer) -> None:
    with client_of(server) as client:
        for _ in range(50):
            client.info(soon())
        assert len(server.connections) == 1


# --- others are told ------------------------------------------------------------------------------


def test_what_is_told_is_of_an_hour_and_not_of_who_left_by_himself() -> None:
    now = [0.0]
    strangers = Strangers(clock=lambda: now[0])
    assert strangers.lately() == (0, 0, "")
    strangers.refused("192.0.2.1", Reason.KEY)
    now[0] = 1800
    strangers.refused("192.0.2.2", Reason.PROOF)
    strangers.refused("192.0.2.3", Reason.GONE)
    assert strangers.lately() == (2, 2, "192.0.2.2")
    now[0] = 3700
    assert strangers.lately() == (2, 1, "192.0.2.2")
    now[0] = 5500
    assert strangers.lately() == (2, 0, "192.0.2.2")


def test_an_hour_s_strangers_take_no_room() -> None:
    now = [0.0]
    strangers = Strangers(clock=lambda: now[0])
    for minute in range(1000):
        now[0] = minute * 60.0
        strangers.refused("192.0.2.1", Reason.KEY)
    assert len(strangers._minutes) == 60


def test_a_node_tells_for_itself_alone_whom_it_refused(meta: MetaDB, metadb_url: str) -> None:
    said, secret = report(), bytes(32)
    number = meta.heartbeat(said, soon(), secret)
    assert meta.strangers(soon()) == []
    for wrong in (None, bytes(31) + b"x"):
        meta.node_refused(said.uuid, 7, "192.0.2.1", soon(), wrong)
    assert meta.strangers(soon()) == []
    meta.node_refused(said.uuid, 7, "192.0.2.1", soon(), secret)
    [met] = meta.strangers(soon())
    assert (met.node, met.count, met.address) == (number, 7, "192.0.2.1")
    assert 0 <= met.seconds_ago < 60
    meta.heartbeat(said, soon(), secret)
    assert len(meta.strangers(soon())) == 1, "heartbeats keep it"
    run_sql(metadb_url, "UPDATE node SET stranger_at = now() - interval '61 minutes'")
    assert meta.strangers(soon()) == []
