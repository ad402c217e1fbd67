"""A real network that is cut and healed: one node lives in a network namespace of its own.

Its link goes down silently: no reset, no refusal, while its heartbeats still reach MetaDB, which here is a Unix
socket. It is the half-dead node that hurts most.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from distfs.deadline import Deadline
from tests.cluster.harness import Cluster
from tests.contract.litter import eventually
from tests.privileges import need_root

DATA = random.Random(3).randbytes(3_000_000)
SETTINGS = {
    "storage": {"block_size": "64KiB", "slice_size": "512KiB", "window": "2MiB"},
    "peers": {"stall_timeout": "1s", "breaker_pause": "1s"},
}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass
class Island:
    """A network namespace with one cable to ours."""

    name: str
    cable: str  # its end of it
    address: str

    def cut(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "down")

    def heal(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "up")


@contextlib.contextmanager
def island() -> Iterator[Island]:
    number = os.getpid() % 60_000
    name, here, there = f"distfs-{number}", f"dfs{number}a", f"dfs{number}b"
    net = f"198.18.{number // 250}.{number % 250 // 4 * 4}".rpartition(
        "."
    )  # a network for benchmarks: RFC 2544
    ours, theirs = f"{net[0]}.{int(net[2]) + 1}", f"{net[0]}.{int(net[2]) + 2}"
    ip("netns", "add", name)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        try:
            ip("link", "set", there, "netns", name)
            ip("addr", "add", f"{ours}/30", "dev", here)
            ip("link", "set", here, "up")
            ip("-n", name, "addr", "add", f"{theirs}/30", "dev", there)
            ip("-n", name, "link", "set", there, "up")
            ip("-n", name, "link", "set", "lo", "up")
            yield Island(name, there, theirs)
        finally:
            ip("link", "del", here)
    finally:
        ip("netns", "del", name)


@pytest.fixture
def cut_off(tmp_path: Path, make_database: Callable[[str], str]) -> Iterator[tuple[Cluster, Island]]:
    """Three nodes and a service; node 0 is on the island."""
    need_root("a network of one's own", "ip")
    with island() as far:
        cluster = Cluster(tmp_path / "cluster", make_database("migrated"), 3, SETTINGS)
        node = cluster.nodes[0]
        node.argv = ["ip", "netns", "exec", far.name, *node.argv, "--host", far.address]
        with cluster:
            yield cluster, far


def nodes_of(cluster: Cluster, uuid: str) -> set[int]:
    file = next(f for f in cluster.meta.list_files(None, 1000, Deadline(30)) if str(f.id) == uuid)
    return {node for piece in cluster.meta.file(file.id, Deadline(30)).slices for node in piece.nodes}


def lands_on(cluster: Cluster, node: int) -> bool:
    return node in nodes_of(cluster, cluster.upload(DATA))


def test_a_cut_network_costs_no_request_and_its_node_is_used_again_when_it_is_healed(
    cut_off: tuple[Cluster, Island],
) -> None:
    cluster, far = cut_off
    number = cluster.node(0).id
    eventually(partial(lands_on, cluster, number), "the node on the island has fragments")
    before = [cluster.upload(DATA) for _ in range(3)]
    far.cut()
    for uuid in before:
        assert cluster.download(uuid) == DATA
    during = [cluster.upload(DATA) for _ in range(3)]
    assert cluster.node(0).alive, "its heartbeats go on: only its silence gives it away"
    for uuid in during:
        assert number not in nodes_of(cluster, uuid)
        assert 0 not in nodes_of(cluster, uuid), "redundancy is full"
    for uuid in (*before, *during):
        assert cluster.download(uuid) == DATA
    assert cluster.request("GET", "/healthz").status == 200
    far.heal()
    eventually(partial(lands_on, cluster, number), "the node is written to again")
    for uuid in (*before, *during):
        assert cluster.download(uuid) == DATA


def outrun(cluster: Cluster) -> int:
    """How often a node was so late that the one asked after it was first."""
    return int(json.loads(cluster.request("GET", "/status").body)["nodes"]["hedging"]["won"])


def test_a_network_cut_in_the_middle_of_a_download_does_not_end_it(cut_off: tuple[Cluster, Island]) -> None:
    """What the sockets on the way hold is little beside the file, so the service still reads it when the cable goes;
    but whether from that node is up to the service. A cut that it does not notice is made again."""
    cluster, far = cut_off
    number = cluster.node(0).id
    eventually(partial(lands_on, cluster, number), "the node on the island has fragments")
    data = random.Random(4).randbytes(16_000_000)
    uuid = cluster.upload(data)
    assert number in nodes_of(cluster, uuid)

    def a_cut_is_noticed() -> bool:
        before = outrun(cluster)
        with contextlib.closing(cluster.connect()) as connection:
            connection.connect()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            connection.request("GET", f"/download/{uuid}")
            response = connection.getresponse()
            came = response.read(100_000)
            far.cut()
            assert came + response.read() == data
        noticed = outrun(cluster) > before
        far.heal()
        cluster.kill_service()  # which would ask that node last from now on
        cluster.start_service()
        return noticed

    for _ in range(3):
        eventually(a_cut_is_noticed, "the service was reading from the node that was cut off", 200)
