"""A data folder knows its cluster: what is left in the environment makes it no part of another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distfs.metadb.embedded_postgres import resolve
from distfs.storage.disk.home import read_identity
from tests import nursery
from tests.cluster.harness import PATIENCE_S, Cluster, MakeCluster, clean_environment
from tests.cluster.test_up import StartUp, curl, processes_in, refused
from tests.contract.litter import eventually
from tests.postgres import run_sql


@pytest.fixture
def elsewhere(make_cluster: MakeCluster) -> Cluster:
    """A cluster that the data folder has nothing to do with."""
    return make_cluster(nodes=2)


def known(cluster: Cluster) -> int:
    """How many nodes have ever registered."""
    [[count]] = run_sql(cluster.metadb_url, "SELECT count(*) FROM node")
    return int(count)


def test_a_new_folder_joins_no_cluster_that_the_environment_happens_to_name(
    up: StartUp, data: Path, elsewhere: Cluster
) -> None:
    line = refused(up(new=True, DISTFS_METADB_URL=elsewhere.metadb_url))
    assert "is of a cluster with storage nodes elsewhere" in line
    assert f"none in {data}: unset DISTFS_METADB_URL, or join that cluster with --join" in line
    assert known(elsewhere) == 2
    assert not list(data.glob("node*"))


def test_a_folder_of_a_cluster_is_started_with_no_other_ones_metadb(
    up: StartUp, data: Path, elsewhere: Cluster
) -> None:
    running = up().wait_ready()
    uuid = curl("-T", str(Path(__file__)), f"{running.url}/upload/x").decode().strip()
    running.stop()
    identity = read_identity(data / "node1")
    assert identity is not None
    line = refused(up(DISTFS_METADB_URL=elsewhere.metadb_url))
    assert f"the storage nodes in {data} are of cluster {identity.cluster}, and the MetaDB " in line
    assert "unset DISTFS_METADB_URL, or choose another folder with --data" in line
    assert known(elsewhere) == 2
    assert processes_in(data) == []
    again = up().wait_ready()
    assert curl(f"{again.url}/download/{uuid}") == Path(__file__).read_bytes()


def test_nodes_do_not_join_a_new_metadb_in_place_of_their_own(
    up: StartUp, data: Path, make_database: Callable[[str], str]
) -> None:
    up().wait_ready().stop()
    line = refused(up(DISTFS_METADB_URL=(url := make_database("template1"))))
    assert "is empty: unset DISTFS_METADB_URL" in line
    first, _, last = line.partition("if there is no copy")
    assert "your backup, or by `distfs metadb restore --from-nodes`" in first
    assert "`distfs metadb rebuild --from-nodes`" in last, "it brings back neither owners nor tokens"
    assert run_sql(url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [[0]]


def test_a_configuration_that_names_it_is_told_so(up: StartUp, elsewhere: Cluster, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(f"metadb: {{url: '{elsewhere.metadb_url}'}}")
    assert "correct metadb.url, or join that cluster with --join" in refused(up(new=True))


def test_who_asks_for_it_joins_and_need_not_ask_again(up: StartUp, data: Path, elsewhere: Cluster) -> None:
    environ = {"DISTFS_METADB_URL": elsewhere.metadb_url}
    up("--join", new=True, **environ).wait_ready().stop()
    assert known(elsewhere) == 5
    up(**environ).wait_ready()
    assert known(elsewhere) == 5


def test_a_migrated_metadb_without_a_node_is_nobodys_yet(
    up: StartUp, data: Path, make_database: Callable[[str], str]
) -> None:
    up(new=True, DISTFS_METADB_URL=make_database("migrated")).wait_ready()


def test_commands_that_change_something_want_to_know_which_cluster_is_meant(
    up: StartUp, data: Path, tmp_path: Path, elsewhere: Cluster
) -> None:
    up().wait_ready()
    own = resolve(f"embedded:{data / 'metadb'}")

    def run(*words: str, url: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "distfs", *words]
        environ = clean_environment(DISTFS_METADB_URL=url)
        return nursery.run(command, tmp_path, environ, PATIENCE_S)

    url = elsewhere.metadb_url
    meant = "unset DISTFS_METADB_URL, or say that you mean that MetaDB with --metadb"
    node = str(elsewhere.node(0).id)
    for words in (["drain", node, "--no-wait"], ["migrate"]):
        done = run(*words, url=url)
        assert done.returncode != 0
        assert meant in done.stderr
        assert done.stderr.count("\n") == 1
    assert elsewhere.node(0).state == "active"
    done = run("nodes", url=url)  # it only looks: it is enough to say so
    assert done.returncode == 0
    assert meant in done.stderr
    assert run("drain", node, "--no-wait", "--metadb", url, url="").returncode == 0
    assert elsewhere.node(0).state == "draining"
    assert run("nodes", url=own).stderr == ""


def test_a_drained_node_that_is_told_to_stop_is_not_started_again_and_can_be_forgotten(
    up: StartUp, data: Path, tmp_path: Path
) -> None:
    running = up(DISTFS_NODE_HEARTBEAT="0.2s", DISTFS_NODE_DOWN_AFTER="2s").wait_ready()
    address = f"127.0.0.1:{json.loads((data / 'ports.json').read_text())['node2']}"

    def distfs(*words: str) -> int:
        command = [sys.executable, "-m", "distfs", *words]
        environ = clean_environment(DISTFS_LOCAL_DATA=str(data))
        return nursery.run(command, tmp_path, environ, 120).returncode

    assert distfs("drain", address) == 0
    os.kill(running.children()["node2"], signal.SIGTERM)
    running.says("node2 ended while it is drained: it is not started again")
    eventually(lambda: distfs("forget", address) == 0, "it is forgotten")
    assert "node2" not in running.children()
