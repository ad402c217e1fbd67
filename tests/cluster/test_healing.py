"""Nodes are lost, also for ever and in the middle of a transfer: no byte is, and redundancy comes back by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse

import pytest

from tests.cluster import Cluster, MakeCluster
from tests.cluster.healing import health, is_whole, noise, settings, wait_whole
from tests.contract.litter import eventually

#: Bytes of the file that goes through the losses.
SIZE = int(os.environ.get("HEALING_MB", "50")) * 1_000_000
_PART = 64 * 1024

LARGE = {"slice_size": "2MiB", "block_size": "256KiB", "window": "8MiB"}


@pytest.fixture(scope="module")
def data() -> bytes:
    return noise(SIZE)


def test_two_copies_survive_a_node_lost_for_ever_and_then_another(
    make_cluster: MakeCluster, data: bytes
) -> None:
    cluster = make_cluster(nodes=3, config=settings("1+1", storage=LARGE))
    uuid = cluster.upload(data)
    assert is_whole(cluster, uuid, m=1)
    cluster.kill_node(0)
    assert cluster.download(uuid) == data
    fresh = cluster.add_node()
    eventually(lambda: not cluster.node(0).alive, "the loss is noticed")
    wait_whole(cluster, [uuid], m=1)
    assert cluster.node(0).id not in health(cluster, uuid)["nodes"]

    def takes_part() -> bool:
        cluster.upload(b"more")
        return bool(cluster.fragments(fresh))

    eventually(takes_part, "the new node takes part")
    cluster.kill_node(1)
    assert cluster.download(uuid) == data


def test_a_coded_file_survives_any_two_nodes_lost_while_it_is_read(
    make_cluster: MakeCluster, data: bytes
) -> None:
    """Nothing may repair meanwhile: each pair must be survived by reading alone."""
    config = settings("4+2", storage=LARGE, upkeep={"repair_delay": "10min"})
    cluster = make_cluster(nodes=7, config=config)
    uuid = cluster.upload(data)
    for pair in ((0, 1), (2, 3), (4, 5)):

        def lose(pair: tuple[int, int] = pair) -> None:
            for i in pair:
                cluster.kill_node(i)

        assert slow_download(cluster, uuid, lose) == data, f"nodes {pair} were lost"
        for i in pair:
            cluster.start_node(i)


def test_a_node_lost_during_an_upload_does_not_stop_it(make_cluster: MakeCluster, data: bytes) -> None:
    cluster = make_cluster(nodes=7, config=settings("4+2", storage=LARGE))
    half = SIZE // 2

    def losing_one() -> Iterator[bytes]:
        yield data[:half]
        eventually(lambda: all(cluster.fragments(i) for i in range(7)), "every node keeps a fragment")
        cluster.kill_node(0)
        yield data[half:]

    answer = cluster.request("PUT", "/upload/x", losing_one())
    assert answer.status == 201, answer.text
    uuid = answer.text.strip()
    eventually(lambda: not cluster.node(0).alive, "the loss is noticed")
    wait_whole(cluster, [uuid], m=2)
    assert cluster.node(0).id not in health(cluster, uuid)["nodes"]
    for i in (1, 2):
        cluster.kill_node(i)
    assert cluster.download(uuid) == data


def test_a_node_that_comes_back_is_the_same_and_its_surplus_goes(make_cluster: MakeCluster) -> None:
    """What was made anew while it was away is on its disk still: it is found, put aside, and deleted."""
    ages = {"upload_ttl": "500ms", "sweep_margin": "0s", "sweep_interval": "300ms", "quarantine_ttl": "500ms"}
    cluster = make_cluster(nodes=3, config=settings("1+1", upkeep=ages))
    files = {cluster.upload(noise(300_000, seed)): noise(300_000, seed) for seed in range(6)}
    before, kept = cluster.node(0).id, {p.name for p in cluster.fragments(0)}
    cluster.kill_node(0)
    eventually(lambda: not cluster.node(0).alive, "the loss is noticed")
    wait_whole(cluster, files, m=1)
    assert kept
    argv = cluster.nodes[0].argv
    argv[argv.index("--port") + 1] = "0"
    cluster.start_node(0)
    assert cluster.node(0).id == before

    def surplus() -> set[str]:
        aside = (cluster.node_folder(0) / "quarantine").rglob("*.*")
        return kept & ({p.name for p in cluster.fragments(0)} | {p.name for p in aside})

    eventually(lambda: not surplus(), "nothing is left of what others keep now")
    for uuid, data in files.items():
        assert cluster.download(uuid) == data
        assert is_whole(cluster, uuid, m=1)


def slow_download(cluster: Cluster, uuid: str, midway: Callable[[], None]) -> bytes:
    """Download with a small socket buffer; ``midway`` is called when a little has come and much has not."""
    with closing(_connect_narrow(cluster)) as connection:
        connection.request("GET", f"/download/{uuid}")
        response: HTTPResponse = connection.getresponse()
        assert response.status == 200
        begun = response.read(_PART)
        midway()
        return begun + response.read()


def _connect_narrow(cluster: Cluster) -> HTTPConnection:
    """So narrow that the service cannot have sent more than its own socket holds: at most 4 MiB."""
    connection = cluster.connect()
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PART)  # before connecting: it bounds the window
    narrow.settimeout(connection.timeout)
    narrow.connect((connection.host, connection.port))
    connection.sock = narrow
    return connection
