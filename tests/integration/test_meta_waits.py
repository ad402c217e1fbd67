"""No wait for MetaDB outlasts its deadline, whatever trickles in, nor its request, but for a change that was sent."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Cancelled, Unavailable
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.pool import Pool
from distfs.metadb.url import MetaURL
from tests.contract.litter import eventually
from tests.integration.meta_examples import new_file, soon
from tests.postgres import run_sql

# --- servers that trickle -------------------------------------------------------------------------------------

# https://www.postgresql.org/docs/current/protocol-message-formats.html
_WELCOME = b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I"  # authenticated; ready for a query
_NOTICE = b"N\0\0\x40\0"  # 16 KiB of it to come
_TLS_RECORD = b"\x16\x03\x03\x40\0"  # 16 KiB of a handshake
_IN_TIME = "no answer in time|passed its deadline"  # where the machine is slow, before it has asked
_TRICKLE_S = 30.0  # whoever waits to its end hears that the connection was closed


@contextlib.contextmanager
def trickling(*answers: bytes) -> Iterator[int]:
    """-> the port of a server that answers the first messages so, and from then on sends a byte at a time."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # nobody came
            return
        with connection, contextlib.suppress(OSError):
            for answer in answers:
                connection.recv(1 << 16)
                connection.sendall(answer)
            ends = time.monotonic() + _TRICKLE_S
            while time.monotonic() < ends and not ended.wait(0.05):
                connection.sendall(b"\0")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("query", "answers"),
    [("", [_NOTICE]), ("?sslmode=require", [b"S", _TLS_RECORD])],
    ids=["authentication", "TLS"],
)
def test_a_server_that_trickles_cannot_hold_the_start_of_a_connection(
    query: str, answers: list[bytes]
) -> None:
    with trickling(*answers) as port:
        url = MetaURL.parse(f"postgresql://distfs@127.0.0.1:{port}/distfs{query}")
        pool = Pool(lambda: url, size=1, connect_timeout=2, statement_timeout=5)
        with pytest.raises(Unavailable, match=_IN_TIME):
            pool.connect(soon(), 5)


def test_a_server_that_trickles_cannot_hold_a_statement_beyond_its_deadline() -> None:
    with trickling(_WELCOME, _NOTICE) as port:
        url = MetaURL.parse(f"postgresql://distfs@127.0.0.1:{port}/distfs")
        link = Link(url, url.hosts[0], soon(), 0)
        with pytest.raises(Unavailable, match=_IN_TIME):
            link.run("nodes", Deadline(2), {})
        assert link.broken
        link.close()


# --- requests that are given up -------------------------------------------------------------------------------


@pytest.fixture
def single(metadb_url: str) -> Iterator[MetaDB]:
    """A MetaDB with one connection, which has committed a file: that statement is prepared."""
    meta = MetaDB(MetaDBConfig(url=metadb_url, pool_size=1, statement_timeout=Seconds(60)))
    meta.commit_files([new_file()], soon())
    yield meta
    meta.close()


@pytest.fixture
def lock(metadb_url: str) -> Iterator[Link]:
    """A connection that holds every file: no statement about files ends before its ROLLBACK."""
    url = MetaURL.parse(metadb_url)
    link = Link(url, url.hosts[0], soon(), 0)
    link.raw.run("BEGIN; LOCK TABLE file IN ACCESS EXCLUSIVE MODE")
    yield link
    link.close()


def _wait_for_lock(url: str) -> None:
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname ="
    )
    eventually(lambda: run_sql(url, f"{waiting} current_database()") == [[1]], "it waits for the lock")


def _called(threads: ThreadPoolExecutor, call: Callable[..., Any], *args: object) -> Any:
    """-> (future, cancel) of a call in a thread of its own."""
    scope = Deadline(30).scope()
    deadline = scope.__enter__()
    future = threads.submit(call, *args, deadline)
    future.add_done_callback(lambda _: scope.__exit__(None, None, None))
    return future, lambda: deadline.cancel("the client hung up")


def test_a_statement_ends_with_the_request_it_is_for_and_its_connection_is_closed(
    single: MetaDB, lock: Link, metadb_url: str
) -> None:
    with ThreadPoolExecutor(1) as threads:
        reading, cancel = _called(threads, single.list_files, None, 10)
        _wait_for_lock(metadb_url)
        cancel()
        with pytest.raises(Cancelled, match="the client hung up"):
            reading.result(20)
    lock.raw.run("ROLLBACK")
    with single._pool.link(soon()) as link:
        assert not link.reused
    assert len(single.list_files(None, 10, soon())) == 1


def test_a_commit_of_a_request_that_was_given_up_is_not_sent_on_a_connection_at_hand(single: MetaDB) -> None:
    with soon().scope() as scope:
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled, match="the client hung up"):
            single.commit_files([new_file()], scope)
    assert len(single.list_files(None, 10, soon())) == 1


def test_a_commit_that_was_sent_is_seen_through_after_its_request_was_given_up(
    single: MetaDB, lock: Link, metadb_url: str
) -> None:
    file = new_file()
    with ThreadPoolExecutor(1) as threads:
        committing, cancel = _called(threads, single.commit_files, [file])
        _wait_for_lock(metadb_url)
        cancel()
        time.sleep(0.1)
        assert not committing.done()
        lock.raw.run("ROLLBACK")
        [committed] = committing.result(50)
    assert committed == single.file(file.id, soon())
