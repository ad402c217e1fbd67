"""The cluster that other tests stand on: real processes that come, go, stand still and come back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.cluster import Cluster, MakeCluster


def test_a_file_goes_in_and_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(data := os.urandom(3_000_001))
    assert cluster.download(cluster.upload(tmp_path / "big", "büg/1")) == data
    assert cluster.download(cluster.upload(b"", "empty")) == b""
    assert sum(len(cluster.fragments(i)) for i in range(3)) == 2


def test_a_killed_node_does_not_stop_a_download_and_comes_back(cluster: Cluster) -> None:
    data = os.urandom(100_000)
    uuids = [cluster.upload(data) for _ in range(4)]
    before = cluster.node(0)
    cluster.kill_node(0)
    assert [cluster.download(u) for u in uuids] == [data] * 4
    cluster.start_node(0)
    assert (cluster.node(0).uuid, cluster.node(0).address) == (before.uuid, before.address)


def test_a_killed_service_comes_back_where_it_was(cluster: Cluster) -> None:
    uuid, url = cluster.upload(b"kept"), cluster.url
    cluster.kill_service()
    cluster.start_service()
    assert (cluster.url, cluster.download(uuid)) == (url, b"kept")


def test_a_stopped_process_ends_cleanly(cluster: Cluster) -> None:
    assert (cluster.stop_service(), cluster.stop_node(1)) == (0, 0)


def test_a_paused_node_is_served_around(cluster: Cluster) -> None:
    data = os.urandom(100_000)
    uuids = [cluster.upload(data) for _ in range(4)]
    cluster.pause_node(2)
    assert {hashlib.sha256(cluster.download(u)).digest() for u in uuids} == {hashlib.sha256(data).digest()}
    cluster.resume_node(2)
    assert cluster.nodes[2].alive


def test_settings_reach_every_process(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        nodes=1, config={"storage": {"policies": {"default": "1+0"}}, "node": {"zone": "z"}}
    )
    facts = cluster.request("GET", f"/files/{cluster.upload(b'x')}").text
    assert '"policy": "1+0"' in facts
    assert cluster.node(0).zone == "z"


def test_a_process_that_cannot_start_is_shown_with_its_reason(
    tmp_path: Path, metadb_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, metadb_url, nodes=1)
    (tmp_path / "node0").write_text("in the way")
    with pytest.raises(AssertionError, match="node0 ended"), cluster:
        pass
    assert "node0" in capfd.readouterr().err


def test_no_process_outlives_its_cluster(tmp_path: Path, metadb_url: str) -> None:
    with Cluster(tmp_path, metadb_url) as cluster:
        pids = [p.pid for p in (cluster.service, *cluster.nodes)]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
