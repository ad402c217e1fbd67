"""A thread that others wait for ends, of whatever cause: they hear of it at once, and nothing stays taken."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distfs.errors import Busy, DistfsError, Unavailable
from distfs.peers.client import NodeClient
from distfs.process.dial import dial
from distfs.process.threads import Threads
from distfs.storage.disk.writer import BufferPool, DirectSink, PlainSink, open_sink
from distfs.transfer.blocks import BlockPool
from distfs.transfer.slice_plan import SlicePlan
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes, soon
from tests.integration.byte_ways import BLOCK, SLICE, Source, Ways, byte_ways
from tests.starving import no_threads

LONG = random_bytes(5 * SLICE)
CAUSES = [MemoryError(), SystemExit(1), RuntimeError("can't start new thread"), ZeroDivisionError("a bug")]


@pytest.fixture
def ways(metadb_url: str, tmp_path: Path) -> Iterator[Ways]:
    with byte_ways(metadb_url, tmp_path) as ways:
        yield ways
        ways.assert_clean()
        for client in clients(ways):
            assert client.link.pool.snapshot().lent == 0


def clients(ways: Ways) -> list[NodeClient]:
    found = [ways.services.directory.store(node, soon()) for node in ways.nodes]
    return [client for client in found if isinstance(client, NodeClient)]


class _Ends:
    """Each call from the ``first`` on raises; until then the real one is called."""

    def __init__(self, real: Callable[..., Any], cause: BaseException, first: int = 1) -> None:
        self._real, self._cause, self._first = real, cause, first
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls >= self._first:
            raise self._cause
        return self._real(*args, **kwargs)


def kind_of(cause: BaseException) -> type[DistfsError]:
    return Unavailable if isinstance(cause, MemoryError) else DistfsError


@pytest.mark.parametrize("size", [len(LONG), BLOCK // 2], ids=["large", "small"])
@pytest.mark.parametrize("cause", CAUSES, ids=repr)
def test_connections_that_cannot_be_made_end_an_upload(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, cause: BaseException, size: int
) -> None:
    connects = []
    for client in clients(ways):
        client.link.pool.close()  # nothing idle is left to be used again
        connects.append(_Ends(client.link.pool._connect, cause))
        monkeypatch.setattr(client.link.pool, "_connect", connects[-1])
    with pytest.raises(BaseException) as raised:
        ways.upload(LONG[:size])
    assert any(connect.calls for connect in connects)
    expected = kind_of(cause) if size > BLOCK else type(cause)
    assert isinstance(raised.value, expected)
    assert (
        getattr(raised.value, "status", 503) == (503 if isinstance(cause, MemoryError) else 500)
        or size < BLOCK
    )
    ways.assert_clean()
    monkeypatch.undo()
    assert ways.download(ways.upload(LONG)) == LONG


def test_one_connection_that_cannot_be_made_costs_its_fragment_only(
    ways: Ways, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients(ways)[0]
    connect = _Ends(client.link.pool._connect, MemoryError())
    monkeypatch.setattr(client.link.pool, "_connect", connect)
    while not connect.calls:
        file = ways.upload(LONG)
        assert ways.download(file) == LONG


@pytest.mark.parametrize("cause", CAUSES, ids=repr)
def test_what_was_placed_is_given_back_when_its_nodes_cannot_be_asked(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    monkeypatch.setattr("distfs.transfer.upload.all_take", _Ends(lambda *_: True, cause))
    with pytest.raises(type(cause)):
        ways.upload(LONG)
    ways.assert_clean()


@pytest.mark.parametrize("cause", CAUSES, ids=repr)
def test_a_file_that_cannot_be_coded_gives_its_blocks_back(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    cells = _Ends(SlicePlan.cells, cause, 3)

    def of_a_block(plan: SlicePlan, block: memoryview) -> object:
        return cells(plan, block)

    monkeypatch.setattr(SlicePlan, "cells", of_a_block)
    with pytest.raises(type(cause)):
        ways.upload(LONG)
    assert cells.calls == 3
    ways.assert_clean()


@pytest.mark.parametrize("cause", CAUSES, ids=repr)
def test_a_file_that_cannot_be_hashed_ends(
    ways: Ways, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    class Hash:
        update = _Ends(lambda *_: None, cause, 2)

        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr("distfs.transfer.file_upload.hashlib.sha256", Hash)
    source = Source(LONG)
    with pytest.raises(Busy if isinstance(cause, MemoryError) else DistfsError):
        ways.upload(source)
    assert source.given < len(LONG), "it did not read to its end"
    ways.assert_clean()


def test_an_upload_without_threads_is_refused_and_the_next_one_is_not(ways: Ways) -> None:
    small = random_bytes(100)
    assert ways.download(ways.upload(small)) == small  # connections to the nodes, and their threads
    for already in range(4):
        executor = ways.services.uploader.resources.executor
        for _ in range(already):
            executor.submit(threading.Event().wait, 0.3)  # so many threads there are
        with no_threads(), pytest.raises(Busy, match="ulimit -u"):
            ways.upload(LONG)
        eventually(lambda: ways.blocks_out() == 0, "every block came back")
    assert ways.download(ways.upload(LONG)) == LONG


def test_what_was_not_started_is_not_done_later() -> None:
    done: list[int] = []
    with Threads(2, "test") as executor:
        release = threading.Event()
        executor.submit(release.wait, 60)
        with no_threads(), pytest.raises(Busy):
            executor.submit(done.append, 1)
        release.set()
        executor.submit(done.append, 2).result(60)
    assert done == [2]


def test_memory_that_is_not_there_is_not_counted_as_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BlockPool(1 << 50, 1)  # no machine has so much
    with pytest.raises(MemoryError):
        pool.take(soon(), beside=5)
    assert pool.usage().blocks == 0


def test_a_name_whose_look_up_ends_of_anything_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def asked(host: str, *args: Any, **kwargs: Any) -> Any:
        if threading.current_thread().name == "look-up":
            raise MemoryError
        return real(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    with pytest.raises(Busy, match="memory"):
        dial("a-name.invalid", 1, 3600)


def test_a_name_is_not_looked_up_without_threads() -> None:
    with no_threads(), pytest.raises(Busy, match="ulimit -u"):
        dial("a-name.invalid", 1, 3600)


def test_a_disk_is_written_to_without_threads_too(tmp_path: Path) -> None:
    pool = BufferPool(4096, 3)
    with no_threads():
        sink = open_sink(tmp_path / "f", 10_000, pool)
        sink.space(5)[:] = b"bytes"
        sink.advance(5)
        assert (sink.close(), type(sink)) == (5, PlainSink)
    assert pool.in_use == 0
    assert (tmp_path / "f").read_bytes() == b"bytes"


@pytest.mark.parametrize("cause", CAUSES, ids=repr)
def test_whoever_fills_buffers_hears_of_the_end_of_the_thread_that_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException
) -> None:
    pool = BufferPool(4096, 3)
    sink = open_sink(tmp_path / "f", 10_000, pool)
    assert isinstance(sink, DirectSink)
    monkeypatch.setattr("distfs.storage.disk.writer._write_all", _Ends(lambda *_: None, cause))

    def fill() -> None:
        for _ in range(10):
            sink.advance(len(sink.space(4096)))

    with pytest.raises(type(cause)):
        fill()
    sink.discard()
    assert pool.in_use == 0


def test_a_node_that_accepts_nothing_any_more_says_so(ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    server = next(iter(ways.nodes.values()))
    heard: list[DistfsError] = []
    monkeypatch.setattr(server, "serve_forever", _Ends(lambda: None, MemoryError()))
    server.accept(heard.append)
    assert [error.status for error in heard] == [503]
