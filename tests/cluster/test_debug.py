"""``distfs debug bundle``: everything that helps is in it, and no secret; what cannot be had is said."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import QUICK, distfs

NAMES = {
    "versions.json",
    "settings.txt",
    "doctor.json",
    "status.json",
    "nodes.json",
    "service.json",
    "stacks.txt",
}


@pytest.fixture(scope="module")
def cluster(share_cluster: MakeCluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    folder = tmp_path_factory.mktemp("logged")
    patient = {"node": {"heartbeat": "100ms", "down_after": "1min"}}  # on a busy machine all are up, too
    return share_cluster(config={**QUICK, **patient, "log": {"dir": str(folder)}})


def bundle(cluster: Cluster, file: Path, **environ: str) -> dict[str, str]:
    """Each file in it by its name."""
    port = str(urlsplit(cluster.url).port)
    told = distfs(cluster, "debug", "bundle", str(file), DISTFS_HTTP_PORT=port, **environ)
    assert told.code == 0, told.err
    assert file.stat().st_mode & 0o077 == 0
    with tarfile.open(file) as found:
        return {
            Path(each.name).name: data.read().decode()
            for each in found.getmembers()
            if (data := found.extractfile(each)) is not None
        }


def test_it_tells_of_everything(cluster: Cluster, tmp_path: Path) -> None:
    found = bundle(cluster, tmp_path / "b.tar.gz")
    assert found.keys() >= NAMES
    assert '"event": "request"' in found["service.log"]
    assert '"event": "node.started"' in found["node1.log"]
    assert [node["id"] for node in json.loads(found["nodes.json"])] == [1, 2, 3]
    assert json.loads(found["service.json"])["uploads"] is not None
    assert json.loads(found["status.json"])["nodes"]["up"] == 3
    assert "waitress" not in found["stacks.txt"]
    assert "distfs_http_requests_total" in found["metrics.txt"]
    assert "thread upkeep" in found["stacks.txt"]
    assert "upkeep.interval: 0.1" in found["settings.txt"]
    assert any(each["about"] == "nodes" for each in json.loads(found["doctor.json"]))


def test_no_secret_is_in_it(cluster: Cluster, tmp_path: Path) -> None:
    token = "distfs_" + "A" * 49
    secrets = {
        "DISTFS_METADB_URL": "postgresql://me:hunter2@127.0.0.1:1/none",
        "DISTFS_METADB_PASSWORD": "hunter3",
        "DISTFS_HTTP_SPOOL_DIR": f"/tmp/{token}",
    }
    found = "".join(bundle(cluster, tmp_path / "b.tar.gz", **secrets).values())
    for secret in ("hunter2", "hunter3", token):
        assert secret not in found
    assert "metadb.password: (set)" in found
    assert "/tmp/distfs_***" in found


def test_without_metadb_and_service_it_says_so_and_holds_the_rest(cluster: Cluster, tmp_path: Path) -> None:
    nobody = {"DISTFS_METADB_URL": "postgresql://me@127.0.0.1:1/none"}
    told = distfs(cluster, "debug", "bundle", str(tmp_path / "b.tar.gz"), DISTFS_HTTP_PORT="1", **nobody)
    assert told.code == 0
    with tarfile.open(tmp_path / "b.tar.gz") as found:
        names = {Path(each).name for each in found.getnames()}
    assert names >= NAMES - {"status.json", "nodes.json"} | {"metadb.txt"}


def test_a_file_that_is_there_is_kept_and_one_that_cannot_be_written_goes(
    cluster: Cluster, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    told = distfs(cluster, "debug", "bundle", str(kept))
    assert (told.code, "is there already: name another" in told.err) == (2, True)
    assert kept.read_text() == "mine"
    assert distfs(cluster, "debug", "bundle", str(tmp_path / "no" / "folder")).code == 2
