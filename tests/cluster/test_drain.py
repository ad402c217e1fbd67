"""Nodes that leave: drain, undrain and forget, as an operator runs them, and when a node may be unplugged."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

from distfs.commands.drain import drain
from distfs.commands.operator import operator
from distfs.config import file as configuration
from distfs.config.settings import MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.meta import MetaDB
from distfs.metadb.link import Link
from distfs.metadb.url import MetaURL
from distfs.process.output import FORGOTTEN
from distfs.upkeep.db import UpkeepDB
from tests.cluster import Cluster, MakeCluster
from tests.cluster.operating import BY_HAND, QUICK, all_read_back, distfs, fill, kill_and_notice, url_of
from tests.contract.litter import eventually
from tests.postgres import run_sql


@contextmanager
def no_commits(url: str) -> Iterator[Callable[[], object]]:
    """No file is committed meanwhile, until what is given here is called."""
    parsed = MetaURL.parse(url)
    with closing(Link(parsed, parsed.hosts[0], Deadline(60), statement_timeout=60)) as link:
        link.raw.run("BEGIN")
        link.raw.run("LOCK TABLE file IN SHARE MODE")
        yield lambda: link.raw.run("COMMIT")


def test_a_drained_node_is_empty_safe_to_unplug_and_can_be_forgotten(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)
    files = fill(cluster)
    node = cluster.node(0)
    ended = distfs(cluster, "drain", str(node.address))
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        f"node {node.id} ({node.address}) is empty: safe to unplug. "
        f"Stop it with SIGTERM, then take it off the list: `distfs forget {node.id}`\n"
    )
    cluster.kill_node(0)
    eventually(lambda: not cluster.node(0).alive, "it is down")
    assert all_read_back(cluster, files)
    assert distfs(cluster, "forget", str(node.id)).code == 0
    assert len(distfs(cluster, "nodes", "--json").entry) == 2
    assert distfs(cluster, "fsck", "--deep").code == 0


def test_a_drained_node_is_not_named_by_an_upload_that_saw_it_before(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)
    url = cluster.metadb_url
    with ThreadPoolExecutor(1) as uploads, no_commits(url) as let_commit:
        upload = uploads.submit(cluster.upload, b"on its way")
        waiting = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        eventually(lambda: run_sql(url, waiting), "its commit is under way")
        node = next(cluster.node(i).id for i in range(3) if cluster.fragments(i))
        threading.Timer(0.3, let_commit).start()
        with operator(configuration.load(str(cluster.folder / "config.yml"))) as one:
            assert drain(one, str(node), wait=True, patience=60) == 0
        uuid = upload.result()
        assert run_sql(url, "SELECT FROM slice WHERE :id = ANY(nodes)", id=node) == []
        assert run_sql(url, "SELECT count(*) FROM slice WHERE 0 <> ALL(nodes)") == [[1]], "on another instead"
    assert cluster.download(uuid) == b"on its way"


def test_a_move_that_waits_since_before_the_drain_keeps_the_node_from_being_unplugged(
    by_hand: Cluster,
) -> None:
    """However long its locks last: `drain`, `nodes` and `status` say no sooner that it is safe."""
    by_hand.upload(b"moved")
    url = url_of(by_hand)
    [[piece, places]] = run_sql(url, "SELECT id, nodes FROM slice")
    node = next(n for n in (by_hand.node(i) for i in range(3)) if n.id not in places)
    parsed = MetaURL.parse(url)
    with (
        closing(MetaDB(MetaDBConfig(url=url, statement_timeout=Seconds(600)))) as meta,
        closing(Link(parsed, parsed.hosts[0], Deadline(60), statement_timeout=600)) as lock,
        ThreadPoolExecutor(1) as threads,
    ):
        lock.raw.run("BEGIN")
        lock.raw.run("SELECT FROM slice FOR UPDATE")
        move = threads.submit(UpkeepDB(meta).move_fragment, piece, 0, places[0], node.id, Deadline(600))
        waiting = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        eventually(lambda: run_sql(url, waiting), "the move waits for the slice")
        ended = distfs(by_hand, "drain", str(node.id), "--patience", "6")
        assert (ended.code, ended.out) == (1, "")
        assert "is empty, but a change in MetaDB that began before it drained may still put" in ended.err
        assert "do not unplug it" in ended.err
        words = "draining: waiting for a change in MetaDB that began before"
        assert words in distfs(by_hand, "nodes").out
        assert words in distfs(by_hand, "status").out
        assert distfs(by_hand, "status", "--json").entry["safe_to_unplug"] == []
        lock.raw.run("COMMIT")
        assert move.result(), "it began before, and nobody was told yet that the node is empty"
    assert "draining: 1 fragment left" in distfs(by_hand, "nodes").out
    run_sql(url, "UPDATE slice SET nodes = :nodes", nodes=places)
    assert "empty: safe to unplug" in distfs(by_hand, "nodes").out
    assert distfs(by_hand, "status", "--json").entry["safe_to_unplug"] == [node.id]
    ended = distfs(by_hand, "drain", str(node.id))
    assert (ended.code, ended.out.split(". ")[0]) == (
        0,
        f"node {node.id} ({node.address}) is empty: safe to unplug",
    )


def test_a_drain_that_cannot_end_says_why_and_can_be_taken_back(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, config=QUICK)
    files = fill(cluster)
    node = cluster.node(0)
    ended = distfs(cluster, "drain", str(node.id), "--patience", "1")
    assert (ended.code, ended.out) == (1, "")
    assert f"node {node.id} ({node.address}) still keeps " in ended.err
    assert "do not unplug it" in ended.err
    assert distfs(cluster, "undrain", str(node.id)).code == 0
    assert cluster.node(0).writable
    assert all_read_back(cluster, files)


def test_a_drain_that_nobody_does_says_so(by_hand: Cluster) -> None:
    fill(by_hand, files=2)
    busy = next(i for i in range(3) if by_hand.fragments(i))
    ended = distfs(by_hand, "drain", str(by_hand.node(busy).id), "--patience", "0.5")
    assert ended.code == 1
    assert "no service runs the worker 'rebalance': start one (`distfs serve`)" in ended.err


def test_a_node_that_is_down_is_not_drained_but_repaired_from_the_others(by_hand: Cluster) -> None:
    node = kill_and_notice(by_hand, 0)
    ended = distfs(by_hand, "drain", str(node))
    assert (ended.code, by_hand.node(0).state) == (1, "active")
    assert "is down, so it cannot be drained: start it, or have `distfs repair --now` make anew" in ended.err


def test_a_live_node_is_not_forgotten_and_a_dead_one_is(make_cluster: MakeCluster) -> None:
    by_hand = make_cluster(config=BY_HAND)
    files = fill(by_hand)
    node = by_hand.node(0)
    refused = distfs(by_hand, "forget", str(node.id))
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith(f"distfs: node {node.id} is alive at {node.address}: drain it")
    kill_and_notice(by_hand, 0)
    forgotten = distfs(by_hand, "forget", str(node.uuid))
    assert forgotten.code == 0, forgotten.err
    assert f"node {node.id} ({node.address}) is forgotten: repair makes its " in forgotten.out
    assert all_read_back(by_hand, files)


@pytest.mark.parametrize("remedy", ["an emptied folder", "undo"])
def test_a_forgotten_node_that_is_started_again_stops_for_good(
    make_cluster: MakeCluster, remedy: str
) -> None:
    cluster = make_cluster(config=BY_HAND)
    files = fill(cluster)
    old = cluster.node(0)
    assert cluster.stop_node(0) == 0
    assert distfs(cluster, "forget", str(old.id)).code == 0
    cluster.nodes[0].start()
    assert cluster.nodes[0].wait() == FORGOTTEN
    last = cluster.logs().count(f"storage_server: this was node {old.id}, which was forgotten: ")
    assert last == 1, cluster.logs()
    assert old.uuid not in {node.uuid for node in cluster.meta.nodes(Deadline(30))}
    if remedy == "undo":
        undone = distfs(cluster, "forget", "--undo", str(old.id))
        assert (undone.code, undone.out.startswith(f"what was node {old.id} may join again")) == (0, True)
    else:
        shutil.rmtree(cluster.node_folder(0))
    cluster.nodes[0].start()  # with --init, which makes a new node of an empty folder alone
    eventually(lambda: cluster.is_registered(0), "node 0 is registered")
    new = cluster.node(0)
    assert (new.id > old.id, new.uuid == old.uuid) == (True, remedy == "undo")
    assert all_read_back(cluster, files)


@pytest.mark.parametrize("named", ["1", "elsewhere:9", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_what_was_not_forgotten_is_said_when_it_is_taken_back(by_hand: Cluster, named: str) -> None:
    ended = distfs(by_hand, "forget", "--undo", named)
    assert (ended.code, ended.out) == (1, "")
    assert named in ended.err


def test_a_node_with_the_only_fragment_of_a_file_is_not_forgotten(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(
        nodes=1, config={**BY_HAND, "storage": {**BY_HAND["storage"], "policies": {"default": "1+0"}}}
    )
    cluster.upload(b"the only one")
    node = kill_and_notice(cluster, 0)
    refused = distfs(cluster, "forget", str(node))
    assert refused.code == 1
    assert f"without node {node} there is not enough left to read 1 slices of 1 files" in refused.err


@pytest.mark.parametrize("command", ["drain", "undrain", "forget"])
def test_a_node_nobody_knows_is_said_in_words(by_hand: Cluster, command: str) -> None:
    ended = distfs(by_hand, command, "elsewhere:9")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        "distfs: there is no node 'elsewhere:9': `distfs nodes` lists ids, UUIDs and addresses\n"
    )
