"""SIGTERM: what runs ends well, nothing new begins, a second SIGTERM does not wait. Real processes."""

from __future__ import annotations

import http.client
import os
import random
import signal
from contextlib import closing
from pathlib import Path

import pytest

from tests.cluster.harness import Cluster, MakeCluster
from tests.contract.litter import eventually
from tests.postgres import run_sql

MIB = 1 << 20
BODY = random.Random(5).randbytes(3 * MIB)

#: Many blocks a file, so that a transfer can be held in its middle.
SMALL_BLOCKS = {"block_size": "64KiB", "slice_size": "256KiB", "window": "1MiB", "memory_budget": "16MiB"}


class HeldUpload:
    """A PUT of BODY that has begun: its first half is sent."""

    def __init__(self, cluster: Cluster) -> None:
        self.connection = cluster.connect()
        self.connection.putrequest("PUT", "/upload/held")
        self.connection.putheader("Content-Length", str(len(BODY)))
        self.connection.endheaders()
        self.connection.send(BODY[: len(BODY) // 2])

    def end(self) -> tuple[http.client.HTTPResponse, str]:
        self.connection.send(BODY[len(BODY) // 2 :])
        response = self.connection.getresponse()
        return response, response.read().decode().strip()


def unfinished(cluster: Cluster, i: int) -> list[Path]:
    """What node i receives; the small writes by which it looks after its disk are no fragments."""
    return [p for p in (cluster.node_folder(i) / "tmp").iterdir() if not p.name.startswith("probe.")]


def on_disk(cluster: Cluster) -> int:
    """Fragments on all nodes, unfinished ones too."""
    return sum(len(cluster.fragments(i)) + len(unfinished(cluster, i)) for i in range(len(cluster.nodes)))


def term(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def test_a_service_that_stops_ends_the_upload_that_runs_and_takes_no_other(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"storage": SMALL_BLOCKS, "http": {"drain_timeout": "60s"}})
    known = cluster.upload(b"small")
    idle = cluster.connect()
    idle.request("GET", "/healthz")
    assert idle.getresponse().read() == b"ok\n"
    held = HeldUpload(cluster)
    eventually(lambda: on_disk(cluster) > 2, "the upload is on its way")
    term(cluster.service.pid)
    eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it drains")
    ready = cluster.request("GET", "/readyz")
    assert "draining" in ready.text
    assert ready.headers["connection"] == "close"
    assert cluster.request("GET", "/healthz").status == 200
    for answer in (cluster.request("GET", f"/download/{known}"), cluster.request("PUT", "/upload/x", BODY)):
        assert answer.status == 503
        assert "stopping" in answer.text
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["retry-after"]) > 0
    idle.request("GET", f"/download/{known}")
    assert idle.getresponse().status == 503, "a connection from before takes no new request either"
    idle.close()
    response, uuid = held.end()
    assert response.status == 201
    assert response.headers["Connection"] == "close"
    held.connection.close()
    assert cluster.service.wait() == 0
    cluster.start_service()
    assert cluster.download(uuid) == BODY


def test_a_download_that_runs_is_sent_to_its_end(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"storage": SMALL_BLOCKS, "http": {"drain_timeout": "60s"}})
    large = random.Random(6).randbytes(24 * MIB)  # more than the sockets hold
    uuid = cluster.upload(large)
    with closing(cluster.connect()) as connection:
        connection.request("GET", f"/download/{uuid}")
        response = connection.getresponse()
        got = response.read(MIB)
        term(cluster.service.pid)
        eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it drains")
        assert got + response.read() == large
    assert cluster.service.wait() == 0


def test_a_service_without_requests_stops_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"http": {"drain_timeout": "1h"}})
    with closing(cluster.connect()) as idle:
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        assert cluster.stop_service() == 0


@pytest.mark.parametrize("way", ["a second SIGTERM", "drain_timeout"])
def test_what_does_not_end_is_cut(way: str, make_cluster: MakeCluster) -> None:
    """And leaves nothing behind: neither a file nor a fragment."""
    timeout = "1h" if way == "a second SIGTERM" else "1s"
    cluster = make_cluster(config={"storage": SMALL_BLOCKS, "http": {"drain_timeout": timeout}})
    held = HeldUpload(cluster)
    eventually(lambda: on_disk(cluster) > 0, "the upload is on its way")
    term(cluster.service.pid)
    if way == "a second SIGTERM":
        eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it drains")
        term(cluster.service.pid)
    answer = held.connection.getresponse()
    assert answer.status == 503, "an upload hears who ended it"
    assert b"stop" in answer.read()
    assert int(answer.headers["Retry-After"]) > 0
    held.connection.close()
    assert cluster.service.wait() == 0
    eventually(lambda: on_disk(cluster) == 0, "what was written is removed")
    assert lines_of(cluster, "PUT") == [503]
    cluster.start_service()
    assert cluster.request("GET", "/files").text.count("uuid") == 0


def test_a_small_body_that_does_not_end_is_told_so_too(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"http": {"drain_timeout": "1s"}})
    with closing(cluster.connect()) as held:
        held.putrequest("PUT", "/upload/held")
        held.putheader("Content-Length", "1000")
        held.endheaders()
        held.send(b"some of it")
        eventually(lambda: cluster.request("GET", "/healthz").status == 200, "the service reads")
        term(cluster.service.pid)
        answer = held.getresponse()
        assert answer.status == 503
        assert b"stop" in answer.read()
    assert cluster.service.wait() == 0


def test_a_download_that_is_cut_by_the_end_is_logged_as_the_service_s_doing(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(config={"storage": SMALL_BLOCKS, "http": {"drain_timeout": "1s"}})
    uuid = cluster.upload(random.Random(6).randbytes(24 * MIB))
    with closing(cluster.connect()) as connection:
        connection.request("GET", f"/download/{uuid}")
        response = connection.getresponse()
        response.read(MIB)
        term(cluster.service.pid)
        assert cluster.service.wait() == 0
        with pytest.raises((OSError, http.client.HTTPException)):
            response.read()
    [line] = [
        line for line in cluster.service.log.read_text().splitlines() if f"path=/download/{uuid}" in line
    ]
    assert "outcome=cut" in line
    assert "service stopped" in line
    assert (
        "client" not in cluster.service.log.read_text().split("the answer was cut short")[1].splitlines()[0]
    )


def lines_of(cluster: Cluster, method: str) -> list[int]:
    """The statuses of the access log's lines about a method."""
    lines = [line for line in cluster.service.log.read_text().splitlines() if f" method={method} " in line]
    return [int(line.split(" status=")[1].split()[0]) for line in lines]


# --- nodes ------------------------------------------------------------------------------------------


def test_a_node_that_stops_ends_what_it_sends_and_receives(make_cluster: MakeCluster) -> None:
    """Two nodes and two copies: nothing can go elsewhere, so that both transfers prove it."""
    cluster = make_cluster(nodes=2, config={"node": {"drain_timeout": "60s", "down_after": "10min"}})
    held = HeldUpload(cluster)
    eventually(lambda: on_disk(cluster) == 2, "both nodes receive")
    term(cluster.nodes[0].pid)
    eventually(lambda: not cluster.node(0).alive, "the node has left the cluster")
    assert cluster.nodes[0].alive
    # A commit a second after the nodes were chosen asks who is there still, and would be refused.
    run_sql(cluster.metadb_url, "UPDATE node SET stopped = false WHERE id = :id", id=cluster.node(0).id)
    response, uuid = held.end()
    assert response.status == 201
    held.connection.close()
    assert cluster.nodes[0].wait() == 0
    cluster.kill_node(1)
    cluster.start_node(0)
    assert cluster.download(uuid) == BODY, "the node that stopped has all of it"


def test_a_second_sigterm_stops_a_node_now(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"node": {"drain_timeout": "1h"}})
    held = HeldUpload(cluster)
    eventually(lambda: on_disk(cluster) == 2, "two nodes receive")
    [first, *_] = [i for i in range(3) if unfinished(cluster, i)]
    term(cluster.nodes[first].pid)
    eventually(lambda: not cluster.node(first).alive, "the node has left the cluster")
    assert cluster.nodes[first].alive
    term(cluster.nodes[first].pid)
    assert cluster.nodes[first].wait() == 0
    response, uuid = held.end()
    assert response.status == 201, "the third node takes its place"
    held.connection.close()
    assert cluster.download(uuid) == BODY


def test_a_node_that_stops_takes_nothing_new(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={"node": {"drain_timeout": "60s"}})
    held = HeldUpload(cluster)
    eventually(lambda: on_disk(cluster) == 2, "two nodes receive")
    [first, *_] = [i for i in range(3) if unfinished(cluster, i)]
    term(cluster.nodes[first].pid)
    eventually(lambda: not cluster.node(first).alive, "the node has left the cluster")
    uuids = [cluster.upload(b"%d" % number) for number in range(6)]
    assert cluster.fragments(first) == []
    for number, uuid in enumerate(uuids):
        assert cluster.download(uuid) == b"%d" % number
    assert held.end()[0].status == 201
    held.connection.close()
    assert cluster.nodes[first].wait() == 0
