"""TLS to MetaDB, cut or silent at any byte: a clear error in time, and the next statement works on a new link."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import distfs.metadb.transactions
from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Cancelled, OutcomeUnknown, Unavailable
from distfs.meta import MetaDB
from distfs.metadb.db_socket import DBSocket, start_tls
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.model import Address
from tests.contract.litter import eventually
from tests.faults.ledger import FaultMetNobody
from tests.faults.proxy import Flow, Proxy
from tests.integration import meta_proxy
from tests.integration.meta_examples import new_file, soon

LIMIT = 0.5
OWNED = {"owner": None, "visibility": "public", "quota": 0}
#: What the user reads; nothing of OpenSSL's own.
SAYS = (
    r": (no answer in time|it closed the connection|Connection reset by peer|Broken pipe)$"
    r"|passed its deadline of [\d.]+ s$"
)


@dataclass
class Line:
    """A MetaDB behind TLS, and the cable to it. ``ends``: the TLS that ends there."""

    url: str
    meta: MetaDB
    cable: Proxy
    ends: meta_proxy.Proxy
    threads: ThreadPoolExecutor

    def ask(self, call: Callable[..., Any], *args: object) -> Any:
        """What ``call`` says, in a thread, so that one that never ends is a failure."""
        return self.threads.submit(call, *args).result(30)

    def fail(self, how: str, flow: Flow, after: int) -> None:
        """After so many bytes nothing arrives any more; and nobody is told, or both sides are, or it looks closed."""

        def act() -> None:
            self.cable.blackhole()
            if how == "reset":
                self.cable.reset()
            elif how == "closed":
                self.cable.down.end()

        flow.at(after, act)


@contextmanager
def made(url: str, ends: meta_proxy.Proxy) -> Iterator[Line]:
    with ThreadPoolExecutor(4) as threads, Proxy(Address("127.0.0.1", ends.port)) as cable:
        url = f"postgresql://distfs@{cable.address}/{MetaURL.parse(url).database}?sslmode=require"
        patient = Seconds(30)  # on a busy machine; what is to be late has the limit of its deadline
        config = MetaDBConfig(url=url, pool_size=1, connect_timeout=patient, statement_timeout=patient)
        with closing(MetaDB(config)) as meta:
            yield Line(url, meta, cable, ends, threads)


@pytest.fixture
def line(tls_proxy: meta_proxy.Proxy, metadb_url: str) -> Iterator[Line]:
    with made(metadb_url, tls_proxy) as line:
        yield line


def test_a_connection_that_is_reset_just_before_tls_begins_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
        peer.sendall(b"S")

        class Reset(DBSocket):
            """The answer comes, and then the reset."""

            def recv_into(self, *args: Any) -> int:
                count = super().recv_into(*args)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                (hung_up := select.poll()).register(self, 0)
                assert hung_up.poll(10_000)
                return count

        number = client.detach()
        with Reset(fileno=number) as sock, pytest.raises(ConnectionError) as raised:
            start_tls(sock, ssl.create_default_context(), "localhost")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        assert "it closed the connection" in str(raised.value)


HOWS = pytest.mark.parametrize("how", ["silent", "reset", "closed"])


@HOWS
def test_a_link_that_fails_anywhere_in_its_beginning_is_given_up_and_the_next_works(
    line: Line, metadb_url: str, how: str
) -> None:
    line.meta.ping(soon())
    whole = line.cable.down.passed  # the handshake, PostgreSQL's welcome, and the first answer
    assert whole > 1000
    for after in (0, 1, 100, whole // 2, whole - 300):
        # A busy machine may not have come so far in time: then the fault is known to have met nobody.
        tries = (
            has_failed_at(line, metadb_url, how, after, limit) for limit in (LIMIT, 4 * LIMIT, 16 * LIMIT)
        )
        assert any(tries)


def has_failed_at(line: Line, metadb_url: str, how: str, after: int, limit: float) -> bool:
    with made(metadb_url, line.ends) as other:
        other.fail(how, other.cable.down, after)
        with pytest.raises(Unavailable, match=SAYS) as raised:
            other.ask(other.meta.ping, Deadline(limit))
        assert not isinstance(raised.value, OutcomeUnknown)
        try:
            other.cable.heal()
        except FaultMetNobody:
            return False
        other.ask(other.meta.ping, soon())
        return True


@HOWS
@pytest.mark.parametrize("after", [0, 3, 30])
def test_a_link_that_fails_in_an_answer_is_given_up_and_the_next_statement_has_a_new_one(
    line: Line, how: str, after: int
) -> None:
    for _ in range(2):
        assert line.meta.nodes(soon()) == []
    assert line.ends.connections == 1, "TLS alone makes no link stale"
    line.fail(how, line.cable.down, after)
    with pytest.raises(Unavailable, match=SAYS):
        line.ask(line.meta.nodes, Deadline(LIMIT))
    line.cable.heal()
    before = line.ends.connections
    assert line.ask(line.meta.nodes, soon()) == []
    assert line.ends.connections > before


@HOWS
def test_a_commit_whose_link_fails_while_it_is_sent_or_answered_is_unknown_and_may_be_said_again(
    line: Line, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        distfs.metadb.transactions, "_GRACE_S", 3.0
    )  # a busy machine is not to have time for a shorter limit only
    for flow, after in ((line.cable.up, 50_000), (line.cable.down, 10)):
        file = new_file((1,) * 2000)
        with closing(
            MetaDB(MetaDBConfig(url=line.url, statement_timeout=Seconds(1), patience=Seconds(1)))
        ) as hasty:
            hasty.commit_files([new_file()], soon())  # so that it is prepared
            line.fail(how, flow, after)
            with pytest.raises(OutcomeUnknown, match=SAYS):
                line.ask(hasty.commit_files, [file], soon())
        line.cable.heal()
        assert line.ask(line.meta.commit_files, [file], soon()) == [line.meta.file(file.id, soon())]


def test_a_statement_that_the_line_takes_only_in_part_ends_in_time(line: Line) -> None:
    url = MetaURL.parse(line.url)
    link = Link(url, url.hosts[0], soon(), 0)
    with closing(link):
        assert list(link.run("commit_files", soon(), {"files": "[]", **OWNED})) == []
        line.cable.blackhole()
        large = " " * (32 << 20)  # more than the cable and the sockets hold: sending it has to wait
        with pytest.raises(OutcomeUnknown, match=SAYS):
            line.ask(
                link.run, "commit_files", Deadline(10 * LIMIT), {"files": large, **OWNED}
            )  # time to begin it
        assert link.broken
    line.cable.heal()
    line.ask(line.meta.ping, soon())


def test_an_answer_that_trickles_ends_with_the_deadline(line: Line) -> None:
    [file] = line.meta.commit_files([new_file((1,) * 2000)], soon())
    line.cable.down.rate = 500
    with pytest.raises(Unavailable, match=SAYS):
        line.ask(line.meta.file, file.id, Deadline(LIMIT))
    line.cable.heal()
    assert line.ask(line.meta.file, file.id, soon()) == file


def test_a_question_whose_request_is_cancelled_ends_at_once(line: Line) -> None:
    assert line.meta.nodes(soon()) == []
    line.cable.down.hold()
    with Deadline(60).scope() as scope:
        passed = line.cable.up.passed
        asking = line.threads.submit(line.meta.nodes, scope)
        eventually(lambda: line.cable.up.passed > passed, "it has asked")
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled, match="hung up"):
            asking.result(4)  # the statement's own limit is over later
    line.cable.heal()
    assert line.ask(line.meta.nodes, soon()) == []
