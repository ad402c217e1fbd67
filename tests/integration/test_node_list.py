"""The list of nodes is looked at anew aside, by one, and who runs already waits for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.errors import Cancelled, DistfsError, NodeUnavailable
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.peers.node_list import MAX_AGE_S, STALE_MOST_S, NodeList
from distfs.transfer.download import _LIST_AGE_S
from tests.contract.litter import eventually
from tests.contract.samples import random_bytes, soon
from tests.integration.byte_ways import SLICE, Ways, byte_ways
from tests.integration.meta_proxy import Proxy, proxied_url
from tests.starving import no_threads

DATA = random_bytes(6 * SLICE + 77)
MANY = 30


@pytest.fixture
def ways(metadb_url: str, proxy: Proxy, tmp_path: Path) -> Iterator[Ways]:
    """MetaDB is behind ``proxy``, and nobody gives it up soon."""
    with byte_ways(proxied_url(proxy, metadb_url), tmp_path) as ways:
        ways.services.meta._budget = 3600
        yield ways
        ways.assert_clean()


@pytest.fixture
def nodes(ways: Ways) -> NodeList:
    ways.services.directory.nodes(soon())
    return ways.services.directory._list


def expire(nodes: NodeList, age: float = STALE_MOST_S - 0.5) -> None:
    """Older than one that is only used, not too old to be used meanwhile."""
    assert age > MAX_AGE_S
    nodes._read_at = time.monotonic() - age


def at_once(ask: Callable[[Deadline], object]) -> list[object]:
    """What MANY threads get that ask at the same moment."""
    together = threading.Barrier(MANY)

    def one(_: int) -> object:
        together.wait()
        try:
            return ask(soon())
        except DistfsError as e:
            return str(e)

    with ThreadPoolExecutor(MANY) as executor:
        return list(executor.map(one, range(MANY)))


def test_a_download_that_runs_waits_for_no_metadb_that_hangs(
    ways: Ways, nodes: NodeList, proxy: Proxy
) -> None:
    file = ways.upload(DATA)
    reading = ways.services.downloader.read(file, 0, file.size, soon())
    came = bytes(next(reading))
    with ThreadPoolExecutor(1) as client, proxy.hanging():
        expire(nodes, 3600)
        rest = client.submit(lambda: b"".join(bytes(view) for view in reading))
        assert came + rest.result(30) == DATA
        eventually(lambda: len(proxy.held) == 1, "MetaDB was asked, once, and hangs")


def test_of_many_that_find_the_list_old_one_asks_and_nobody_waits(nodes: NodeList, proxy: Proxy) -> None:
    before = nodes._begun
    with proxy.hanging():
        expire(nodes)
        assert at_once(lambda deadline: nodes.recent(deadline).keys()) == [nodes._nodes.keys()] * MANY
        eventually(lambda: len(proxy.held) == 1, "it is asked")
        assert (nodes._begun, nodes._ended) == (before + 1, before)
    eventually(lambda: nodes.age < MAX_AGE_S, "it is a new one")


def test_of_many_that_must_wait_for_a_list_one_asks(nodes: NodeList, proxy: Proxy) -> None:
    before = nodes._begun
    expire(nodes, 3600)
    assert at_once(lambda deadline: nodes.recent(deadline).keys()) == [nodes._nodes.keys()] * MANY
    assert nodes._begun == before + 1


def test_of_many_that_wait_for_the_first_list_one_asks(ways: Ways, proxy: Proxy) -> None:
    first = NodeList(ways.services.meta, lambda: None)
    proxy.connections = 0
    assert at_once(lambda deadline: len(first.known(deadline))) == [3] * MANY
    assert (first._begun, proxy.connections) == (1, 0), "by a connection that there was"


def test_without_a_first_list_all_who_wait_hear_why() -> None:
    nowhere = "postgresql://distfs@127.0.0.1:1/distfs"
    nobody = MetaDB(MetaDBConfig(url=nowhere, connect_timeout=Seconds(30), patience=Seconds(1)))
    told = at_once(NodeList(nobody, lambda: None).known)
    nobody.close()
    assert all("MetaDB cannot be used" in str(text) for text in told)


def test_who_waits_for_the_list_hears_of_its_end(ways: Ways, nodes: NodeList, proxy: Proxy) -> None:
    first = NodeList(ways.services.meta, lambda: None)
    with ThreadPoolExecutor(1) as client, proxy.hanging(), Deadline(600).scope() as scope:
        waits = client.submit(first.known, scope)
        eventually(lambda: len(proxy.held) == 1, "MetaDB hangs")
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled, match="hung up"):
            waits.result(30)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError(), SystemExit(1)], ids=repr)
def test_a_look_that_dies_is_followed_by_another(
    ways: Ways, nodes: NodeList, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def dies(_: Deadline) -> list[Node]:
        raise error

    first = NodeList(ways.services.meta, lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(ways.services.meta, "nodes", dies)
        with pytest.raises(DistfsError):
            first.known(soon())
        assert len(nodes.fresh(soon())) == 3, "as MetaDB said last"
    assert len(first.known(soon())) == 3
    nodes.fresh(soon())
    assert nodes.snapshot()["refused"] is False


def test_without_a_thread_the_list_is_used_and_who_must_wait_looks_itself(nodes: NodeList) -> None:
    before = nodes._read_at
    with no_threads():
        expire(nodes)
        assert len(nodes.known(soon())) == 3
        assert nodes.age > MAX_AGE_S
        assert len(nodes.fresh(soon())) == 3
        assert nodes.age < MAX_AGE_S
    assert nodes._read_at > before
    expire(nodes)
    nodes.known(soon())
    eventually(lambda: nodes.age < MAX_AGE_S, "with a thread again, it is looked at aside")


def test_a_look_that_began_before_is_not_what_metadb_says_now(
    ways: Ways, nodes: NodeList, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta, real, read, on = ways.services.meta, ways.services.meta.nodes, threading.Event(), threading.Event()

    def late(deadline: Deadline) -> list[Node]:
        found = real(deadline)
        read.set()
        on.wait()
        return found

    monkeypatch.setattr(meta, "nodes", late)
    expire(nodes)
    nodes.known(soon())
    read.wait()
    number, server = next(iter(ways.nodes.items()))
    meta.node_leave(server.store.node, server.address, soon())
    with ThreadPoolExecutor(1) as client:
        fresh = client.submit(nodes.fresh, soon())
        on.set()
        assert not fresh.result(60)[number].alive


def test_a_read_that_goes_wrong_does_not_wait_for_metadb_to_end(
    ways: Ways, nodes: NodeList, proxy: Proxy
) -> None:
    with proxy.hanging():
        assert len(nodes.glance(soon())) == 3
        assert len(nodes.glance(soon(), MAX_AGE_S)) == 3
        expire(nodes)
        with pytest.raises(NodeUnavailable, match="left the cluster"):
            ways.services.directory.store(999, soon())
        assert len(proxy.held) == 1


def test_downloads_that_wait_for_nodes_share_one_list(
    ways: Ways, nodes: NodeList, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, downloader = ways.services.directory, ways.services.downloader
    directory._config = replace(directory._config, patience=Seconds(300))
    tries, asked = [], []
    order, find = downloader._order, downloader._find

    def counted(*args: Any) -> list[int]:
        tries.append(args)
        return order(*args)

    def counted_find(*args: Any) -> Any:
        asked.append(args)
        assert find is not None
        return find(*args)

    file = ways.upload(DATA[:SLICE])
    monkeypatch.setattr(downloader, "_order", counted)
    monkeypatch.setattr(downloader, "_find", counted_find)
    for number in ways.nodes:
        ways.kill(number)
    began, looks, clients = time.monotonic(), nodes._begun, 6
    with Deadline(600).scope() as scope, ThreadPoolExecutor(clients) as executor:
        reading = [executor.submit(next, downloader.read(file, 0, file.size, scope)) for _ in range(clients)]
        eventually(lambda: len(tries) >= 5 * clients, "all have tried again")
        most = (time.monotonic() - began) / _LIST_AGE_S + 1
        scope.cancel("seen enough")
        for each in reading:
            with pytest.raises(Cancelled):
                each.result(60)
    assert len(asked) == clients, "where its slice is, each asks once"
    assert nodes._begun - looks <= most + clients


def test_status_says_how_old_the_list_is_and_may_be(ways: Ways, nodes: NodeList) -> None:
    expire(nodes)
    told = ways.services.directory.snapshot()["list"]
    assert (told["age_s"] >= 1.5, told["at_most_s"], told["refused"]) == (True, STALE_MOST_S, False)
    assert NodeList(ways.services.meta, lambda: None).snapshot()["age_s"] is None
