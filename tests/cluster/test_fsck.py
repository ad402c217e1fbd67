"""``distfs fsck`` on deleted files, and on files of which too little is left."""

from __future__ import annotations

import os

from tests.cluster import MakeCluster
from tests.cluster.operating import BY_HAND, SLICE, distfs, kill_and_notice, url_of
from tests.cluster.test_commands import damaged_slices
from tests.postgres import run_sql


def test_fsck_looks_at_deleted_files_until_their_end_has_begun(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=BY_HAND)
    uuid = cluster.upload(os.urandom(SLICE), "precious")
    holders = [i for i in range(3) if cluster.fragments(i)]
    cluster.request("DELETE", f"/files/{uuid}")
    run_sql(url_of(cluster), "UPDATE trash_slice SET nodes[2] = 0")
    for i in holders:
        cluster.fragments(i)[0].unlink()
    ended = distfs(cluster, "fsck", "--json")
    assert ended.code == 1
    assert [(f["file"], f["deleted"]) for f in ended.entry["missing"]] == [(uuid, True)] * 2
    assert ended.entry["unreadable"] == [{"file": uuid, "name": "precious", "deleted": True, "slices": 1}]
    assert (ended.entry["noted"], len(damaged_slices(cluster))) == (1, 1)
    assert f" of deleted file {uuid} (precious): " in distfs(cluster, "fsck").out
    run_sql(url_of(cluster), "UPDATE trash SET purge_at = now()")
    ended = distfs(cluster, "fsck", "--json")
    assert (ended.code, ended.entry["missing"], ended.entry["unreadable"]) == (0, [], [])


def test_fsck_names_the_files_for_which_a_node_is_not_forgotten(make_cluster: MakeCluster) -> None:
    """Those with too few fragments on the nodes that answer; damage that was noted counts as forget counts it."""
    cluster = make_cluster(nodes=2, config=BY_HAND)
    one, other, _ = (cluster.upload(os.urandom(3 * SLICE), name) for name in ("one", "other", "safe"))
    damage = (
        "INSERT INTO damage SELECT id, array_position(nodes, :node) - 1, :node, 'corrupt' FROM slice "
        "WHERE file_id = :id AND ordinal < :slices"
    )
    for uuid, slices in ((one, 2), (other, 1)):
        run_sql(url_of(cluster), damage, node=cluster.node(1).id, id=uuid, slices=slices)
    cluster.request("DELETE", f"/files/{other}")
    node = kill_and_notice(cluster, 0)
    refused = distfs(cluster, "forget", str(node))
    assert "not enough left to read 3 slices of 2 files" in refused.err
    assert "`distfs fsck` names them" in refused.err
    ended = distfs(cluster, "fsck")
    assert (ended.code, "missing" in ended.out) == (3, False)
    assert "unreadable: 2 files with too few fragments on the nodes that answer; whether what " in ended.out
    assert f"  file {one} (one): 2 slices\n  deleted file {other} (other): 1 slice\n" in ended.out
    assert distfs(cluster, "fsck", "--json").entry["unreadable"] == [
        {"file": one, "name": "one", "deleted": False, "slices": 2},
        {"file": other, "name": "other", "deleted": True, "slices": 1},
    ]


def test_a_file_that_is_known_to_be_unreadable_is_no_success(make_cluster: MakeCluster) -> None:
    """Its fragments are there by name, and noted as corrupt: all of them."""
    cluster = make_cluster(config=BY_HAND)
    uuid = cluster.upload(os.urandom(SLICE))
    sql = "INSERT INTO damage SELECT id, i, nodes[i + 1], 'corrupt' FROM slice, generate_series(0, 1) AS i"
    run_sql(url_of(cluster), sql)
    ended = distfs(cluster, "fsck", "--json")
    assert (ended.code, ended.entry["missing"]) == (1, [])
    assert [file["file"] for file in ended.entry["unreadable"]] == [uuid]
