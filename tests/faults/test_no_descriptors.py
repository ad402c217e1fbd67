"""Out of file descriptors: who is connected is served, who comes waits, nobody else is blamed, nothing stays."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from uuid import UUID

import pytest

from distfs.errors import Busy, NodeUnavailable
from distfs.formats import wire
from distfs.formats.wire import Type
from distfs.model import Address, FragmentId
from distfs.peers.breaker import State
from distfs.peers.client import NodeClient
from distfs.process.descriptors import WANTED
from tests.cluster.harness import Cluster, MakeCluster
from tests.contract.litter import assert_no_litter, eventually
from tests.contract.nodes import PEERS, KillableServer, serving
from tests.contract.samples import header, put, soon, whole
from tests.greetings import known_keys
from tests.integration.raw_http import RawClient, echo, noise, put_chunked, request
from tests.integration.raw_http import put as put_body
from tests.integration.raw_http import serving as serving_http
from tests.integration.raw_wire import Raw
from tests.starving import starved, wait_until_calm

REMEDY = "ulimit -Hn"
USUAL = 1024
BLOCK, SLICE = 64 * 1024, 256 * 1024
#: No connection to a node is kept: each request needs a new one.
SETTINGS = {
    "storage": {"block_size": BLOCK, "slice_size": SLICE, "window": 8 * BLOCK, "parallel_slices": 2},
    "node": {"reserve": 0},
    "peers": {"connections": 0},
    "http": {"stream_threshold": BLOCK},
    "upkeep": {"enabled": False},
}
DATA = random.Random(5).randbytes(3 * SLICE)


@pytest.fixture
def few(make_cluster: MakeCluster) -> Cluster:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL, hard))  # as a login shell has it
    try:
        return make_cluster(nodes=2, config=SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def raw(cluster: Cluster, stack: contextlib.ExitStack) -> Raw:
    """A connection to node 0, byte by byte."""
    node = cluster.node(0)
    store = SimpleNamespace(cluster=cluster.meta.cluster_id(soon()), node=node.uuid)
    at = cast(KillableServer, SimpleNamespace(address=node.address, store=store))
    made = Raw(at, cluster.meta.cluster_keys(soon()), greet=False)
    stack.callback(made.sock.close)
    return made


def kept(cluster: Cluster) -> list[Path]:
    """What nodes have on their disks, whole or not."""
    folders = [cluster.node_folder(i) / name for i in range(2) for name in ("data", "tmp", "quarantine")]
    return [path for folder in folders for path in folder.rglob("*.*")]


def test_every_server_takes_as_many_descriptors_as_it_may_have(few: Cluster) -> None:
    for process in (*few.nodes, few.service):
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(hard, WANTED)


# --- a node ---------------------------------------------------------------------------------------------------


def test_a_node_without_descriptors_serves_who_is_connected_and_the_others_later(few: Cluster) -> None:
    uuid = few.upload(DATA)
    slice_id, _, index = few.fragments(0)[0].name.partition(".")
    of_it = wire.encode_id(FragmentId(UUID(slice_id), int(index)))
    log, pid = few.nodes[0].log, few.nodes[0].pid
    with contextlib.ExitStack() as stack:
        before = raw(few, stack)
        before.greet()
        assert before.ask(Type.INFO)[0]["state"] == "active"
        with starved(pid):
            waiting = [raw(few, stack) for _ in range(3)]
            eventually(lambda: "new connections have to wait" in log.read_text(), "it says so")
            wait_until_calm(pid)
            for _ in range(5):
                before.sock.sendall(before.get(FragmentId(UUID(slice_id), int(index)), 0, 1))
                error = before.error()
                assert isinstance(error, NodeUnavailable), "neither damaged nor missing"
                assert REMEDY in str(error)
            assert before.ask(Type.INFO)[0]["state"] == "active", "the disk is not to blame"
        for each in waiting:
            each.greet()
            assert each.ask(Type.INFO)[0]["state"] == "active"
        assert before.ask(Type.VERIFY, **of_it)[0] == {"bad": []}
    [line] = [line for line in log.read_text().splitlines() if "new connections have to wait" in line]
    assert REMEDY in line
    assert "no new fragments are taken" not in log.read_text()
    assert few.download(uuid) == DATA


def test_a_put_that_finds_no_descriptor_leaves_nothing(tmp_path: Path) -> None:
    """Neither at its beginning nor at its end, when the fragment is to get its name."""
    with serving(tmp_path / "node") as node:
        for _ in range(5):
            with starved(), pytest.raises(NodeUnavailable, match=REMEDY):
                put(node.store, header(), b"a fragment")
            writer = node.store.put(late := header(), 0, soon())
            writer.finish(0, True)
            with contextlib.ExitStack() as stack, pytest.raises(NodeUnavailable, match=REMEDY):
                writer.commit(lambda: stack.enter_context(starved()))
            assert not node.store.path(late.id).exists()
        assert_no_litter(node.store)
        assert node.store.info(soon()).state == "active"
        fragment = put(node.store, header(), b"a fragment")
        for act in (node.store.delete, lambda *a: node.store.quarantine(a[0], 0, a[1])):
            with starved(), pytest.raises(NodeUnavailable, match=REMEDY):
                act(fragment, soon())
            assert whole(node.store, fragment) == b"a fragment"


# --- a service ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_service_without_descriptors_does_not_blame_its_nodes(tmp_path: Path, host: str) -> None:
    with serving(tmp_path / "node") as node:
        address = Address(host, node.address.port)
        client = NodeClient(
            node.store.node, address, node.store.cluster, replace(PEERS, connections=0), known_keys
        )
        with contextlib.closing(client):
            client.info(soon())
            eventually(lambda: all(each.fileno() < 0 for each in node.connections), "the node has let it go")
            with starved():
                for _ in range(2 * PEERS.breaker_failures):
                    with pytest.raises(Busy, match=REMEDY):
                        client.info(soon())
            assert client.link.breaker.state is State.CLOSED
            client.info(soon())


def connected(cluster: Cluster) -> http.client.HTTPConnection:
    """A connection that the service has taken."""
    connection = cluster.connect()
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok\n"
    return connection


def assert_refused(cluster: Cluster, answer: http.client.HTTPResponse) -> None:
    """In words that name no part of the cluster; what is to be done about it is in the log, under its id."""
    text, id = answer.read().decode(), answer.headers["X-Request-Id"]
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5"), text
    assert "127.0.0.1" not in text
    log = cluster.service.log
    eventually(
        lambda: any(id in line and REMEDY in line for line in log.read_text().splitlines()),
        "the log says why",
    )


def assert_well(cluster: Cluster) -> None:
    """It said what to do, has nothing against its nodes, and works."""
    assert REMEDY in cluster.service.log.read_text()
    nodes = json.loads(cluster.request("GET", "/status").body)["nodes"]["nodes"]
    assert {node["breaker_opened"] for node in nodes.values()} == {0}
    assert cluster.download(cluster.upload(DATA)) == DATA


def test_a_service_without_descriptors_answers_who_is_connected_and_the_others_later(few: Cluster) -> None:
    uuid, pid, log = few.upload(DATA), few.service.pid, few.service.log
    with contextlib.closing(connected(few)) as before, contextlib.closing(few.connect()) as waiting:
        with starved(pid):
            waiting.request("GET", "/healthz")
            eventually(lambda: "new connections have to wait" in log.read_text(), "it says so")
            wait_until_calm(pid)
            for method, path, body in (("GET", f"/download/{uuid}", None), ("PUT", "/upload/a", b"small")):
                before.request(method, path, body)
                assert_refused(few, before.getresponse())
        assert waiting.getresponse().status == 200
    assert log.read_text().count("new connections have to wait") == 1
    assert_well(few)


def test_an_upload_whose_service_runs_out_of_descriptors_in_its_middle_leaves_nothing(few: Cluster) -> None:
    """The first slice is on its way when there is no socket for the second."""
    with contextlib.closing(connected(few)) as client, ThreadPoolExecutor(1) as threads:
        client.putrequest("PUT", "/upload/large")
        client.putheader("Content-Length", str(len(DATA)))
        client.endheaders()
        client.send(DATA[: 2 * BLOCK])
        eventually(lambda: len(kept(few)) == 2, "the first slice is on its way to both nodes")
        with starved(few.service.pid):
            for i in range(2):
                few.pause_node(i)  # so that no connection comes free
            sending = threads.submit(client.send, DATA[2 * BLOCK :])
            try:
                eventually(lambda: REMEDY in few.service.log.read_text(), "the second has failed")
            finally:
                for i in range(2):
                    few.resume_node(i)
            assert_refused(few, client.getresponse())
            with contextlib.suppress(OSError):  # it is told before it has sent all
                sending.result()
    eventually(lambda: not kept(few), "nothing is left")
    assert_well(few)


def test_a_large_body_and_a_large_answer_need_no_descriptor_of_their_own() -> None:
    data = noise(3_000_000)
    with serving_http(echo) as server, RawClient(server) as client:
        client.send(request())
        assert client.answer().status == 200
        with starved():
            for message in (put_body(data), put_chunked(data, [9000])):
                sender = threading.Thread(target=client.send, args=[message])
                sender.start()
                assert client.answer().body == data
                sender.join()
