"""The log of a cluster's processes, as its operator reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import BY_HAND, Ended, distfs
from tests.contract.litter import eventually
from tests.otlp import Collector, Span, assert_one_tree, collector

UNKNOWN = "00000000-0000-4000-8000-000000000000"
#: What a client may ask for in vain: method, path, headers, status.
REFUSED = [
    ("GET", "/download/no-uuid", {}, 400),
    ("GET", f"/download/{UNKNOWN}", {}, 404),
    ("GET", f"/files/{UNKNOWN}", {}, 404),
    ("DELETE", f"/files/{UNKNOWN}", {}, 404),
    ("GET", "/nothing/there", {}, 404),
    ("PATCH", "/upload", {}, 405),
    ("POST", "/upload", {"Content-Length": "0"}, 400),
    ("PUT", "/upload/x", {"Content-Length": "99999999999999"}, 413),
    ("PUT", "/upload/x", {"Content-Length": "nonsense"}, 400),
]


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(
    share_cluster: MakeCluster, tmp_path_factory: pytest.TempPathFactory, traces: Collector
) -> Cluster:
    folder = tmp_path_factory.mktemp("logged") / "logs"
    tracing = {"endpoint": traces.url, "ratio": "0%", "slow": "1d"}
    log = {"dir": str(folder), "level": "DEBUG", "store": "metadb"}
    return share_cluster(config={**BY_HAND, "log": log, "tracing": tracing})


def from_files(cluster: Cluster, *words: str) -> Ended:
    """MetaDB has it all, too: it is read where a test says so."""
    return distfs(cluster, *words, DISTFS_LOG_STORE="files")


def lines(cluster: Cluster, request: str, *flags: str) -> list[dict[str, object]]:
    """What ``distfs logs`` tells of a request; a process writes its lines within moments."""
    told = from_files(cluster, "logs", "--request", request, "--json", *flags)
    return [json.loads(line) for line in told.out.splitlines()]


@pytest.mark.parametrize(("method", "path", "headers", "status"), REFUSED)
def test_what_a_client_saw_is_in_the_log_under_the_id_it_saw(
    cluster: Cluster, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = cluster.request(method, path, None, headers)
    assert answer.status == status, answer.text
    seen = answer.headers["x-request-id"]
    eventually(lambda: bool(lines(cluster, seen)), "the request is in the log")
    assert status in [line.get("status") for line in lines(cluster, seen)]


def test_a_node_logs_under_the_id_of_the_request(cluster: Cluster) -> None:
    uuid = cluster.upload(b"gone soon")
    for number in range(3):
        for path in cluster.fragments(number):
            path.unlink()
    answer = cluster.request("GET", f"/download/{uuid}", headers={"X-Request-Id": "way-of-one"})
    assert answer.status >= 500
    eventually(
        lambda: len({line["part"] for line in lines(cluster, "way-of-one")}) > 1, "a node logs it, too"
    )
    told = lines(cluster, "way-of-one")
    assert {"service"} < {line["part"] for line in told} <= {"service", "node0", "node1", "node2"}
    assert {"request", "node.request"} <= {line["event"] for line in told}
    assert [line["time"] for line in told] == sorted(str(line["time"]) for line in told)


def test_a_trace_is_of_all_processes_and_so_are_its_lines_of_the_log(
    cluster: Cluster, traces: Collector
) -> None:
    id = uuid4().hex
    uuid = cluster.upload(b"to be lost")
    for path in (path for number in range(3) for path in cluster.fragments(number)):
        path.write_bytes(b"no fragment")
    headers = {"traceparent": f"00-{id}-00f067aa0ba902b7-00"}  # not sampled, but it fails
    assert cluster.request("GET", f"/download/{uuid}", headers=headers).status >= 500
    spans = traces.awaited(id, {"GET /download/<uuid>", "GET", "file"})
    root = next(span for span in spans if span.name == "GET /download/<uuid>")
    assert (root.parent, root.resource["service.name"]) == ("00f067aa0ba902b7", "distfs")
    first = id

    def of_nodes() -> list[Span]:
        return [s for s in traces.trace(first) if s.resource["service.name"] == "distfs-node"]

    eventually(lambda: any(s.failed for s in of_nodes()), "a node tells of what failed there")
    found: list[dict[str, object]] = []

    def told() -> bool:
        lines = from_files(cluster, "logs", "--trace", first.upper(), "--json").out.splitlines()
        found[:] = [json.loads(line) for line in lines]
        return {"request", "node.request"} <= {line["event"] for line in found}

    eventually(told, "service and nodes have logged it")
    assert {line["trace"] for line in found} == {first}
    id = uuid4().hex
    headers = {"traceparent": f"00-{id}-00f067aa0ba902b7-01"}
    assert cluster.request("PUT", "/upload/x", b"x", headers).status == 201
    eventually(lambda: len({s.resource["service.instance.id"] for s in traces.trace(id)}) == 3, "of each")
    spans = traces.awaited(id, {"write and fsync", "commit_file", "PUT /upload/<name>"})
    assert assert_one_tree(spans, "00f067aa0ba902b7").name == "PUT /upload/<name>"
    on_nodes = {s.name for s in spans if s.resource["service.name"] == "distfs-node"}
    assert on_nodes >= {"write and fsync", "publish"}


def test_what_nodes_did_well_of_a_trace_that_failed_elsewhere_is_sent_too(
    cluster: Cluster, traces: Collector
) -> None:
    """They sent what their disks had; that it was wrong the service has found. Nobody had drawn the trace."""
    content = b"sent as it is, and wrong"
    uuid = cluster.upload(content)
    damaged = 0
    for path in (path for number in range(3) for path in cluster.fragments(number)):
        data = path.read_bytes()
        if content in data:
            path.write_bytes(data.replace(content, content.upper()))
            damaged += 1
    assert damaged == 2
    id = uuid4().hex
    headers = {"traceparent": f"00-{id}-00f067aa0ba902b7-00"}
    assert cluster.request("GET", f"/download/{uuid}", headers=headers).status >= 500

    def of_nodes() -> list[Span]:
        return [s for s in traces.trace(id) if s.resource["service.name"] == "distfs-node"]

    eventually(lambda: {"GET"} <= {s.name for s in of_nodes()}, "the nodes' spans are sent")
    assert not any(s.failed for s in of_nodes())
    told = {s.id for s in traces.awaited(id, {"GET /download/<uuid>"})}
    assert {s.parent for s in of_nodes() if s.name == "GET"} <= told


def test_one_requests_way_is_told_over_the_service_and_all_nodes_it_came_to(cluster: Cluster) -> None:
    """A line for each fragment, with what an operator asks for by name."""
    answer = cluster.request("PUT", "/upload/x", bytes(1000), {"X-Request-Id": "way-up"})
    uuid = answer.text.strip()

    def served() -> list[dict[str, object]]:
        return [line for line in lines(cluster, "way-up") if line["event"] == "fragment.served"]

    eventually(lambda: len(served()) == 2, "both nodes have logged it")
    assert len({line["part"] for line in served()}) == 2
    assert len({line["slice"] for line in served()}) == 1
    assert {line["index"] for line in served()} == {"0", "1"}
    for line in served():
        assert (line["type"], line["bytes"], line["level"]) == ("WHOLE", 1000, "DEBUG")
        assert isinstance(line["duration"], float)
    [access] = [line for line in lines(cluster, "way-up") if line["event"] == "request"]
    assert (access["file"], access["status"], access["received"]) == (uuid, 201, 1000)
    assert isinstance(access["duration"], float)
    assert cluster.request("GET", f"/download/{uuid}", headers={"X-Request-Id": "way-down"}).status == 200
    eventually(
        lambda: "GET" in [line.get("type") for line in lines(cluster, "way-down")], "a node has logged it"
    )
    assert cluster.request("GET", "/files/x", headers={"X-Request-Id": "wrong"}).status == 400
    eventually(lambda: bool(lines(cluster, "wrong")), "it is in the log")
    assert "refused" in {line.get("error_class") for line in lines(cluster, "wrong")}


def test_a_node_that_was_killed_goes_on_in_its_file(cluster: Cluster) -> None:
    cluster.kill_node(0)
    cluster.start_node(0)
    started = ["logs", "--event", "node.started", "--node", "node0", "--json"]
    eventually(lambda: from_files(cluster, *started).out.count("serves") == 2, "it logs in its file again")
    folder = Path(str(cluster.settings["log"]["dir"]))
    assert sorted(path.name for path in folder.iterdir()) == [
        "node0.log",
        "node1.log",
        "node2.log",
        "service.log",
    ]


def test_a_request_is_found_in_metadb_as_it_is_in_the_files(cluster: Cluster) -> None:
    """Whichever machine a part logged on."""
    answer = cluster.request("PUT", "/upload/x", bytes(1000), {"X-Request-Id": "stored"})
    assert answer.status == 201

    def told() -> list[str]:
        return distfs(cluster, "logs", "--request", "stored", "--json").out.splitlines()

    eventually(lambda: len(told()) == 3, "the service and two nodes have stored it")
    files = from_files(cluster, "logs", "--request", "stored", "--json").out.splitlines()
    assert sorted(told()) == sorted(files)
    through = cluster.request("GET", "/logs?request=stored").text.splitlines()
    assert sorted(through) == sorted(files)
    assert distfs(cluster, "logs", "--request", "unknown").code == 1
    assert "fragment.served" in distfs(cluster, "logs", "--event", "fragment.served", "--since", "1h").out
