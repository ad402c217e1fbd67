"""Times that the whole cluster must hold to: who is configured with others does nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.harness import Cluster, MakeCluster, Process, clean_environment
from tests.cluster.operating import distfs
from tests.contract.litter import eventually

ONE_DAY = {"upkeep": {"upload_ttl": "24h", "interval": "100ms"}}


def start_another(cluster: Cluster, module: str, *flags: str) -> Process:
    argv = [sys.executable, "-m", module, *flags]
    process = Process("another", argv, cluster.folder, cluster.folder / "another.log")
    process.start()
    return process


def refused(cluster: Cluster, module: str, *flags: str) -> str:
    """What a process says that must not start."""
    process = start_another(cluster, module, *flags)
    try:
        assert process.wait() == 2
    finally:
        process.kill()
    return process.log.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("key", "agreed", "other"),
    [
        ("upload_ttl", "1d", "1h"),
        ("sweep_margin", "1h", "1s"),
        ("repair_delay", "10min", "1h"),
        ("quarantine_ttl", "7d", "1d"),
        ("trash_ttl", "7d", "1d"),
    ],
)
def test_a_service_with_other_times_than_the_cluster_refuses_to_start(
    agreement: Cluster, key: str, agreed: str, other: str
) -> None:
    agreement.settings["upkeep"] = {**ONE_DAY["upkeep"], key: other}
    agreement.write_settings()
    line = refused(agreement, "distfs", "serve", "--port", "0")
    assert line.startswith(f"distfs: the cluster agreed on upkeep.{key} {agreed} and not ")
    assert "`distfs settings --adopt`" in line
    shown = distfs(agreement, "settings")
    assert shown.code == 1
    assert f"they differ in upkeep.{key}: correct config.yml" in shown.out
    agreement.settings["upkeep"] = dict(ONE_DAY["upkeep"])
    agreement.write_settings()
    assert distfs(agreement, "settings").code == 0


@pytest.fixture(scope="module")
def agreement(share_cluster: MakeCluster) -> Cluster:
    return share_cluster(config=ONE_DAY)


def test_a_node_with_another_down_after_refuses_to_start(agreement: Cluster) -> None:
    agreement.settings["node"] = {"down_after": "1min"}
    agreement.write_settings()
    line = refused(agreement, "distfs.storage_server", "--init", "--port", "0", "--data", "another")
    assert "storage_server: the cluster agreed on node.down_after 10s and not 1min" in line
    del agreement.settings["node"]
    agreement.write_settings()


def test_commands_go_by_what_the_cluster_agreed_on(agreement: Cluster) -> None:
    """One who is configured by default must not call nodes down that are up for everybody else."""
    told = distfs(agreement, "nodes", "--json", DISTFS_NODE_HEARTBEAT="1ms", DISTFS_NODE_DOWN_AFTER="3ms")
    assert told.code == 0
    assert '"down"' not in told.out


def test_what_is_adopted_holds_for_all_and_stops_who_runs_with_the_old(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=ONE_DAY)
    cluster.upload(b"by the old ones")
    cluster.settings["upkeep"] = {**ONE_DAY["upkeep"], "upload_ttl": "2h"}
    cluster.write_settings()
    adopted = distfs(cluster, "settings", "--adopt")
    assert adopted.code == 0
    assert "changed: upkeep.upload_ttl" in adopted.out

    def refuses() -> bool:
        return cluster.request("PUT", "/upload/x", b"x").status == 503

    eventually(refuses, "the service that runs takes no uploads")
    words = "the cluster agreed on upkeep.upload_ttl 2h and not 1d"
    assert words in cluster.request("PUT", "/upload/x", b"x").text
    eventually(lambda: cluster.request("GET", "/readyz").status == 503, "it is not ready")
    assert words in cluster.request("GET", "/readyz").text
    eventually(lambda: f"upkeep orphans: {words}" in cluster.logs(), "nor does it do upkeep")
    cluster.stop_service()
    cluster.start_service()
    assert cluster.download(cluster.upload(b"by the new ones")) == b"by the new ones"


def test_a_service_starts_while_metadb_is_away(agreement: Cluster) -> None:
    """It does nothing by its own times before it was told that they are everybody's."""
    flags = ["--metadb", "postgresql://nobody@127.0.0.1:1/none", "--port", "0"]
    done = start_another(agreement, "distfs", "serve", *flags)
    try:
        assert done.stdout.readline().startswith("http://")
    finally:
        done.kill()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"DISTFS_UPKEEP_REPAIR_DELAY": "9s"}, "upkeep.repair_delay must be at least node.down_after"),
        ({"DISTFS_NODE_DOWN_AFTER": "11min"}, "upkeep.repair_delay must be at least node.down_after"),
        ({"DISTFS_UPKEEP_QUARANTINE_TTL": "0"}, "upkeep.quarantine_ttl must be more than 0"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distfs", "serve"],
        env=clean_environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
