"""The operator's commands, as an operator runs them: processes that talk to a cluster of processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from distfs.deadline import Deadline
from tests.cluster import Cluster, MakeCluster
from tests.cluster.harness import clean_environment
from tests.cluster.operating import (
    BY_HAND,
    QUICK,
    SLICE,
    all_read_back,
    distfs,
    fill,
    kill_and_notice,
    url_of,
)
from tests.contract.litter import eventually
from tests.postgres import run_sql

# --- nodes, status --------------------------------------------------------------------------------------


def test_nodes_lists_who_is_up_down_or_draining(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config={**BY_HAND, "node": {**BY_HAND["node"], "zone": "cellar"}})
    fill(cluster)
    down, draining = kill_and_notice(cluster, 0), cluster.node(1)
    assert distfs(cluster, "drain", str(draining.uuid), "--no-wait").code == 0
    told = distfs(cluster, "nodes")
    lines = {int(line.split()[0]): line for line in told.out.splitlines()[1:]}
    assert told.code == 0
    assert told.out.split()[:4] == ["ID", "ADDRESS", "ZONE", "STATE"]
    assert "  down  " in lines[down]
    left = len(cluster.fragments(1))
    assert f"  draining: {left} fragment" in lines[draining.id]
    assert "  up  " in lines[cluster.node(2).id]
    assert all("cellar" in line for line in lines.values())
    entries = {entry["id"]: entry for entry in distfs(cluster, "nodes", "--json").entry}
    assert (entries[down]["alive"], entries[draining.id]["fragments_left"]) == (False, left)
    assert entries[draining.id]["uuid"] == str(draining.uuid)
    assert entries[draining.id]["used"] > 0


def test_who_looks_at_nodes_is_told_of_strangers(by_hand: Cluster) -> None:
    told = distfs(by_hand, "nodes").out
    assert "refused" not in told
    node = by_hand.node(1)
    for _ in range(2):
        with socket.create_connection((node.address.host, node.address.port), 60) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + bytes(200))
            while sock.recv(1 << 16):
                pass
    eventually(lambda: [met.count for met in by_hand.meta.strangers(Deadline(60))] == [2], "MetaDB is told")
    told = distfs(by_hand, "nodes").out
    assert f"node {node.id} refused 2 connections within an hour, the last " in told
    assert "ago from 127.0.0.1: who came could not prove to be of this cluster" in told
    assert f"`distfs logs --node {node.id}` says which" in told
    entries = {entry["id"]: entry["strangers"] for entry in distfs(by_hand, "nodes", "--json").entry}
    assert {id: met["refused"] for id, met in entries.items() if met} == {node.id: 2}
    assert f"strangers  2 by node {node.id} within an hour" in distfs(by_hand, "status").out
    [met] = distfs(by_hand, "status", "--json").entry["strangers"]
    assert (met["node"], met["count"], met["address"]) == (node.id, 2, "127.0.0.1")
    by_hand.request("GET", "/metrics")  # has the cluster be looked at
    shown = f'distfs_node_strangers{{node="{node.id}"}} 2.0'
    eventually(lambda: shown in by_hand.request("GET", "/metrics").text, "a scrape tells of it")


def test_status_tells_how_safe_the_files_are(by_hand: Cluster) -> None:
    uuid = by_hand.upload(os.urandom(3 * SLICE))
    by_hand.request("DELETE", f"/files/{by_hand.upload(b'deleted')}")
    told = distfs(by_hand, "status")
    assert told.code == 0
    assert "files      1 file, 192.0 KiB\n" in told.out
    assert "trash      1 file, 7 bytes\n" in told.out
    assert "slices     3 slices: 3 with 1 to spare\n" in told.out
    assert "to repair  nothing\n" in told.out
    assert "nodes      3 up; " in told.out
    assert "upkeep     has not run yet" in told.out
    for i in (0, 1):
        kill_and_notice(by_hand, i)
    nodes = [set(piece.nodes) for piece in by_hand.meta.file(UUID(uuid), Deadline(60)).slices]
    up = by_hand.node(2).id
    lost = sum(up not in on for on in nodes)
    entry = distfs(by_hand, "status", "--json").entry
    expected = {"-1": lost, "0": 3 - lost}
    assert entry["slices_by_redundancy_left"] == {left: count for left, count in expected.items() if count}
    assert entry["nodes"] == {"known": 3, "up": 1}
    assert entry["to_repair"]["slices"] == 0


def test_status_shows_the_workers(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)

    def workers() -> set[str]:
        return {worker["name"] for worker in distfs(cluster, "status", "--json").entry["workers"]}

    eventually(lambda: workers() >= {"repair", "rebalance"}, "the workers have shown themselves")
    assert "\nrepair " in distfs(cluster, "status").out


def test_status_shows_each_service_and_its_connections(by_hand: Cluster) -> None:
    by_hand.download(by_hand.upload(os.urandom(6 * SLICE)))  # every node keeps a few of its slices
    gone = "http://127.0.0.1:1"
    assert distfs(by_hand, "status", "--service", by_hand.url).code == 0
    told = distfs(by_hand, "status", "--service", by_hand.url, "--service", gone)
    assert told.code == 3
    assert f"service {by_hand.url}: 0 large uploads in flight, " in told.out
    assert f"service {gone} tells nothing: " in told.out
    services = {
        each["url"]: each
        for each in distfs(by_hand, "status", "--json", "--service", by_hand.url, "--service", gone).entry[
            "services"
        ]
    }
    nodes = services[by_hand.url]["nodes"]["nodes"]
    assert {node["address"] for node in nodes.values()} == {str(by_hand.node(i).address) for i in range(3)}
    assert sum(node["connections"]["made"] for node in nodes.values()) > 0
    assert all(node["connections"]["lent"] == 0 for node in nodes.values())
    assert all(node["address"] in told.out for node in nodes.values())
    assert services[by_hand.url]["waiting_for_bandwidth"] == {"in": 0, "out": 0}
    assert "refused" in services[gone]["error"]


def test_status_asks_what_is_no_service_and_says_so(cluster: Cluster) -> None:
    told = distfs(cluster, "status", "--service", f"{cluster.url}/files")
    assert told.code == 3
    assert "tells nothing: it answers 40" in told.out
    for wrong in ("localhost", "http://", "http://x:port", "http://[::1"):
        told = distfs(cluster, "status", "--service", wrong)
        assert (told.code, told.out) == (2, "")
        assert f"{wrong!r} is no URL such as http://127.0.0.1:8080" in told.err


# --- fsck -----------------------------------------------------------------------------------------------


def damaged_slices(cluster: Cluster) -> set[UUID]:
    return {row[0] for row in run_sql(url_of(cluster), "SELECT slice_id FROM damage")}


def slice_of(fragment: Path) -> UUID:
    return UUID(fragment.name.split(".")[0])


def test_fsck_of_a_healthy_cluster_finds_nothing(by_hand: Cluster) -> None:
    fill(by_hand)
    by_hand.request("DELETE", f"/files/{by_hand.upload(b'in the trash')}")
    for words in ((), ("--deep",)):
        ended = distfs(by_hand, "fsck", *words)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.endswith("every fragment is where it belongs\n")
    entry = distfs(by_hand, "fsck", "--json").entry
    assert entry["checked"] == sum(len(by_hand.fragments(i)) for i in range(3))
    assert entry["unreadable"] == []
    assert (entry["missing"], entry["corrupt"], entry["unknown"], entry["exit_code"]) == ([], [], [], 0)


def test_fsck_names_what_is_missing_and_notes_it_for_repair(by_hand: Cluster) -> None:
    uuid = by_hand.upload(os.urandom(SLICE), "precious")
    i = next(i for i in range(3) if by_hand.fragments(i))
    [gone] = by_hand.fragments(i)
    gone.unlink()
    assert distfs(by_hand, "fsck", "--no-note").code == 1
    assert damaged_slices(by_hand) == set()
    ended = distfs(by_hand, "fsck")
    assert ended.code == 1
    assert "missing: 1 fragment\n" in ended.out
    assert f"  {gone.name} on node {by_hand.node(i).id} of file {uuid} (precious): " in ended.out
    assert "noted 1 fragment for repair\n" in ended.out
    assert damaged_slices(by_hand) == {slice_of(gone)}


def test_only_a_deep_fsck_sees_a_flipped_byte(by_hand: Cluster) -> None:
    uuid = by_hand.upload(os.urandom(SLICE))
    i = next(i for i in range(3) if by_hand.fragments(i))
    [hurt] = by_hand.fragments(i)
    data = bytearray(hurt.read_bytes())
    data[len(data) // 2] ^= 1
    hurt.write_bytes(data)
    assert distfs(by_hand, "fsck").code == 0
    ended = distfs(by_hand, "fsck", "--deep", "--json")
    assert ended.code == 1
    [finding] = ended.entry["corrupt"]
    assert (finding["slice"], finding["file"]) == (str(slice_of(hurt)), uuid)
    assert finding["node"] == by_hand.node(i).id
    assert "fail their checksums" in finding["reason"]
    assert damaged_slices(by_hand) == {slice_of(hurt)}


def test_two_fragments_that_were_swapped_are_corrupt(by_hand: Cluster) -> None:
    for _ in range(8):
        by_hand.upload(os.urandom(SLICE))
    i = next(i for i in range(3) if len(by_hand.fragments(i)) >= 2)
    one, other = by_hand.fragments(i)[:2]
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    found = distfs(by_hand, "fsck", "--deep", "--json").entry
    assert {finding["slice"] for finding in found["corrupt"]} == {str(slice_of(one)), str(slice_of(other))}


def test_a_node_that_cannot_be_asked_is_unknown_and_never_missing(by_hand: Cluster) -> None:
    fill(by_hand)
    left_out = kill_and_notice(by_hand, 0)
    kept = len(by_hand.fragments(0))
    ended = distfs(by_hand, "fsck", "--json")
    assert ended.code == 3
    [entry] = ended.entry["not_asked"]
    assert (entry["node"], entry["fragments"]) == (left_out, kept)
    assert (ended.entry["missing"], damaged_slices(by_hand)) == ([], set())
    assert f"cannot be told: {kept} fragments on node {left_out} (" in distfs(by_hand, "fsck").out
    i = next(i for i in (1, 2) if by_hand.fragments(i))
    by_hand.fragments(i)[0].unlink()
    assert distfs(by_hand, "fsck").code == 1


def test_fsck_without_metadb_could_not_tell(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("metadb: {url: 'postgresql://distfs@127.0.0.1:1/distfs'}")
    command = [sys.executable, "-m", "distfs", "fsck"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=clean_environment())
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("distfs: MetaDB cannot be used: ")
    (tmp_path / "config.yml").write_text("nonsense: 1")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=clean_environment())
    assert (done.returncode, done.stdout) == (2, "")


def test_what_no_file_needs_is_unknown_once_it_is_old_enough(make_cluster: MakeCluster) -> None:
    config = {**BY_HAND, "upkeep": {"enabled": "false", "upload_ttl": "500ms", "sweep_margin": "0s"}}
    cluster = make_cluster(config=config)
    fill(cluster, files=3)
    orphaned = cluster.upload(b"its row is gone")
    run_sql(url_of(cluster), "DELETE FROM slice WHERE file_id = :id", id=orphaned)

    def unknown() -> list[Any]:
        ended = distfs(cluster, "fsck", "--json")
        assert (ended.code, ended.entry["missing"]) == (0, [])
        found: list[Any] = ended.entry["unknown"]
        assert len(found) + ended.entry["recent"] == 2
        return found

    eventually(lambda: len(unknown()) == 2, "the orphans are old enough to be called so")
    assert len({finding["node"] for finding in unknown()}) == 2


def test_what_nobody_keeps_is_missing(by_hand: Cluster) -> None:
    uuid = by_hand.upload(b"one copy too few")
    run_sql(url_of(by_hand), "UPDATE slice SET nodes[2] = 0 WHERE file_id = :id", id=uuid)
    ended = distfs(by_hand, "fsck", "--json")
    assert ended.code == 1
    [finding] = ended.entry["missing"]
    assert (finding["node"], finding["index"], finding["file"]) == (0, 1, uuid)
    assert ended.entry["noted"] == 0


# --- repair, undelete -----------------------------------------------------------------------------------


def test_repair_now_does_not_wait_for_a_dead_node(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)
    files = fill(cluster)
    dead = kill_and_notice(cluster, 0)
    lacking = len(cluster.fragments(0))
    watched = distfs(cluster, "repair")
    assert watched.code == 0
    assert "`distfs repair --now` does not wait for them" in watched.out
    ended = distfs(cluster, "repair", "--now")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        f"not waiting for node {dead}, down or unreachable now: what they kept is made anew\n"
        "every slice has its full redundancy\n"
    )
    assert lacking > 0
    cluster.kill_node(1)
    assert all_read_back(cluster, files)


def test_repair_that_cannot_end_says_why(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, config=QUICK)
    fill(cluster, files=2)
    kill_and_notice(cluster, 0)
    ended = distfs(cluster, "repair", "--now", "--patience", "1")
    assert ended.code == 1
    assert " cannot be repaired: " in ended.err
    assert "full redundancy" not in ended.out


def test_repair_says_what_is_lost(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=BY_HAND)
    uuid = cluster.upload(b"on two nodes")
    for i in range(3):
        if cluster.fragments(i):
            kill_and_notice(cluster, i)
    ended = distfs(cluster, "repair", "--now", "--patience", "0.5")
    assert ended.code == 1
    assert ended.err == (
        "distfs: 1 slice cannot be read: too few fragments are left. Start the nodes that kept them again, or "
        f"delete the files: {uuid}\n"
    )


def test_a_deleted_file_comes_back(by_hand: Cluster) -> None:
    uuid = by_hand.upload(b"deleted too soon", "näme")
    assert by_hand.request("DELETE", f"/files/{uuid}").status == 204
    ended = distfs(by_hand, "undelete", uuid)
    assert (ended.code, ended.out) == (0, f"{uuid} is back: näme, 16 bytes\n")
    assert by_hand.download(uuid) == b"deleted too soon"
    for wrong, reason in (
        (uuid, "in the trash"),
        (str(uuid4()), "in the trash"),
        ("nonsense", "is not a file's id"),
    ):
        ended = distfs(by_hand, "undelete", wrong)
        assert (ended.code, ended.out) == (1, "")
        assert reason in ended.err


# --- nodes that come and go -------------------------------------------------------------------------------


def test_a_node_that_is_stopped_says_so_and_may_start_at_another_port_at_once(
    make_cluster: MakeCluster,
) -> None:
    """With ten minutes of silence allowed, only its goodbye can make it down, and let it back in."""
    cluster = make_cluster(config={"node": {"down_after": "10min"}})
    before = cluster.node(0)
    cluster.stop_node(0)
    assert not cluster.node(0).alive
    argv = cluster.nodes[0].argv
    argv[argv.index("--port") + 1] = "0"
    cluster.nodes[0].start()
    eventually(lambda: cluster.node(0).alive, "the node is back")
    assert cluster.node(0).id == before.id
    assert "no heartbeat" not in cluster.nodes[0].log.read_text()
