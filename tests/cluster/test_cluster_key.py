"""The key by which the parts of a cluster know each other, with real processes: changed, kept, lost, damaged."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from distfs.deadline import Deadline
from tests.cluster.harness import Cluster, MakeCluster
from tests.cluster.operating import distfs
from tests.contract.litter import eventually
from tests.postgres import run_sql

DATA = bytes(range(256)) * 1000


def soon() -> Deadline:
    return Deadline(60)


def key_file(cluster: Cluster, node: int) -> Path:
    return cluster.node_folder(node) / "cluster.key"


def kept(cluster: Cluster, node: int) -> list[str]:
    return key_file(cluster, node).read_text().split()


def known(cluster: Cluster) -> list[str]:
    """As MetaDB has them, the newest first."""
    return [key.secret.hex() for key in cluster.meta.cluster_keys(soon())]


def agrees(cluster: Cluster, node: int) -> bool:
    return kept(cluster, node) == known(cluster)


def test_keys_are_changed_twice_while_files_come_and_go(make_cluster: MakeCluster) -> None:
    """Each node connection is made anew, so that each begins with what holds just then."""
    cluster = make_cluster(nodes=2, config={"peers": {"connections": 0}})
    first = known(cluster)
    stop, done = threading.Event(), list[str]()

    def work() -> None:
        while not stop.wait(0.05):  # no faster than the test needs: others run beside it
            uuid = cluster.upload(DATA)
            assert cluster.download(uuid) == DATA
            done.append(uuid)

    def goes_on() -> None:
        before = len(done)
        eventually(lambda: len(done) > before + 5 or any(w.done() for w in working), "files come and go")

    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(work) for _ in range(3)]
        try:
            goes_on()
            for _ in range(2):
                old = known(cluster)
                told = distfs(cluster, "cluster-key", "rotate")
                assert told.code == 0, told.err
                assert not any(key in told.out for key in known(cluster))
                refused = distfs(cluster, "cluster-key", "retire")
                assert refused.code == 1
                assert "yet" in refused.err
                for node in range(2):
                    eventually(partial(agrees, cluster, node), "the node has both")
                goes_on()
                run_sql(cluster.metadb_url, "UPDATE cluster_key SET made_at = made_at - interval '2 min'")
                eventually(lambda: distfs(cluster, "cluster-key", "retire").code == 0, "it is retired")
                assert not set(old) & set(known(cluster))
                for node in range(2):
                    eventually(partial(agrees, cluster, node), "the old one is gone")
                goes_on()
        finally:
            stop.set()
        for each in working:
            each.result(60)
    assert first != known(cluster)
    assert "does not let us in" not in cluster.service.log.read_text()


def test_a_node_starts_and_serves_while_metadb_is_away(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2)
    uuid = cluster.upload(DATA)
    port, before = cluster.node(0).address.port, cluster.settings
    cluster.stop_node(0)
    cluster.kill_node(1)
    cluster.settings = {**before, "metadb": {"url": "postgresql://distfs@127.0.0.1:1/none"}}
    cluster.write_settings()
    argv = cluster.nodes[0].argv
    argv[argv.index("--port") + 1] = str(port)
    cluster.nodes[0].start()
    eventually(lambda: "no heartbeat" in cluster.nodes[0].log.read_text(), "it has nobody to register with")
    assert cluster.download(uuid) == DATA
    cluster.settings = before
    cluster.write_settings()


def test_a_key_file_that_is_damaged_lost_or_open_is_mended_at_the_next_start(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(nodes=2)
    uuid, file = cluster.upload(DATA), key_file(cluster, 0)
    cluster.kill_node(1)
    right = file.read_text()
    for damaged in ("", "not hexadecimal\n", right[:30], right * 3, "ff" * 31 + "\n", None):
        cluster.stop_node(0)
        if damaged is None:
            file.unlink()
        else:
            file.write_text(damaged)
        cluster.start_node(0)
        assert agrees(cluster, 0)
        assert cluster.download(uuid) == DATA
    log = cluster.nodes[0].log
    assert "cluster.key cannot be used: it is damaged; MetaDB is asked" in log.read_text()
    assert right.strip() not in log.read_text()
    cluster.stop_node(0)
    file.chmod(0o644)
    cluster.start_node(0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "was open to others, and is not any more" in log.read_text()
