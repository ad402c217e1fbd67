"""Dry runs of drain and rebalance, as an operator runs them: the plan is what MetaDB's rows ask for, and no more."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from tests.cluster import Cluster, MakeCluster
from tests.cluster.harness import Settings
from tests.cluster.operating import BY_HAND, QUICK, SLICE, distfs, fill, url_of
from tests.contract.litter import eventually
from tests.postgres import run_sql

MIB = 1 << 20

#: Nodes tell how full they are once, so that a test may say it in their place.
TOLD_ONCE: Settings = {
    **BY_HAND,
    "node": {"heartbeat": "10min", "down_after": "1h"},
    "upkeep": {**BY_HAND["upkeep"], "repair_delay": "1h"},
}

#: Slices, in the trash or not: their nodes and their size.
Rows = list[tuple[list[int], int]]


def rows(cluster: Cluster) -> Rows:
    found = run_sql(
        url_of(cluster),
        "SELECT id, nodes, size FROM slice UNION ALL SELECT id, nodes, size FROM trash_slice ORDER BY id",
    )
    return [(nodes, size) for _, nodes, size in found]


def everything(cluster: Cluster) -> tuple[object, ...]:
    """All that a dry run must not change: rows, files on the disks, states of the nodes."""
    nodes = range(len(cluster.nodes))
    return rows(cluster), [cluster.fragments(i) for i in nodes], [cluster.node(i).state for i in nodes]


def say_full(cluster: Cluster, i: int, capacity: int, free: int) -> int:
    """Node i has such a disk of its own; -> its id."""
    node = cluster.node(i).id
    sql = "UPDATE node SET capacity = :capacity, used = :used, free = :free, disk = '' WHERE id = :node"
    run_sql(url_of(cluster), sql, capacity=capacity, used=capacity - free, free=free, node=node)
    return node


def printed_moves(out: str) -> dict[tuple[int, int], int]:
    """The table of a plan: fragments by source and target."""
    lines = out.split("\n\n", maxsplit=1)[0].splitlines()
    assert lines[0].split() == ["FROM", "TO", "FRAGMENTS", "BYTES"]
    cells = [line.split() for line in lines[1:]]
    return {(int(row[0]), int(row[1])): int(row[2]) for row in cells}


# --- drain ----------------------------------------------------------------------------------------------


def test_a_dry_drain_tells_where_each_fragment_would_go(by_hand: Cluster) -> None:
    fill(by_hand, files=8)
    by_hand.request("DELETE", f"/files/{by_hand.upload(os.urandom(2 * SLICE))}")
    node, ids = by_hand.node(0), {by_hand.node(i).id for i in range(3)}
    expected: Counter[tuple[int, int]] = Counter()
    size = 0
    for nodes, length in rows(by_hand):
        if node.id in nodes:
            [target] = ids - set(nodes)  # the only one that keeps no fragment of the slice
            expected[node.id, target] += 1
            size += length
    before = everything(by_hand)
    ended = distfs(by_hand, "drain", str(node.id), "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert printed_moves(ended.out) == expected
    assert (
        f"\n\n{sum(expected.values())} fragments, {size / 1024:.1f} KiB to move: at least 0 s at 50.0 MiB/s"
        in (ended.out)
    )
    assert ended.out.endswith(
        f"node {node.id} ({node.address}) can be emptied: there is room for all of it\n"
    )
    assert everything(by_hand) == before


def test_a_dry_drain_of_what_has_nowhere_to_go_says_why(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, config=BY_HAND)
    fill(cluster)
    before, node = everything(cluster), cluster.node(0)
    kept = sum(size for _, size in rows(cluster))
    ended = distfs(cluster, "drain", str(node.id), "--dry-run")
    assert ended.code == 1
    assert ended.err == (
        f"distfs: node {node.id} ({node.address}) would not get empty. {len(rows(cluster))} fragments, "
        f"{kept / 1024:.1f} KiB: every other node that takes anything keeps a fragment of the same slice. "
        "Start another storage node\n"
    )
    assert "FROM" not in ended.out
    assert everything(cluster) == before


def test_a_dry_drain_counts_the_room_that_its_own_moves_take(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=TOLD_ONCE)
    for _ in range(12):
        cluster.upload(os.urandom(SLICE))
    busy = max(range(3), key=lambda i: len(cluster.fragments(i)))
    others = [i for i in range(3) if i != busy]
    node = cluster.node(busy).id
    for i in others:
        say_full(cluster, i, 100 * MIB, 2 * SLICE + 1)
    # Each of the others may take all that it does not keep already, and has room for two of them.
    fit = sum(
        min(2, sum(node in nodes and cluster.node(i).id not in nodes for nodes, _ in rows(cluster)))
        for i in others
    )
    left = sum(node in nodes for nodes, _ in rows(cluster)) - fit
    before = everything(cluster)
    ended = distfs(cluster, "drain", str(node), "--dry-run")
    assert ended.code == 1
    assert sum(printed_moves(ended.out).values()) == fit
    assert f" would not get empty. {left} fragment" in ended.err
    assert "no node that may keep it has the room. Start another storage node\n" in ended.err
    assert everything(cluster) == before


def test_a_dry_drain_of_an_empty_node_and_of_one_that_is_down(by_hand: Cluster) -> None:
    node = by_hand.node(0)
    ended = distfs(by_hand, "drain", str(node.id), "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith(f"node {node.id} ({node.address}) is empty: nothing to move\n")
    by_hand.kill_node(0)
    eventually(lambda: not by_hand.node(0).alive, "node 0 is down")
    ended = distfs(by_hand, "drain", str(node.id), "--dry-run")
    assert (ended.code, ended.out) == (1, "")
    assert "is down, so it cannot be drained" in ended.err


def test_a_plan_names_what_drains_meanwhile(by_hand: Cluster) -> None:
    fill(by_hand)
    first, second = by_hand.node(0).id, by_hand.node(1).id
    assert distfs(by_hand, "drain", str(first), "--no-wait").code == 0
    drained = distfs(by_hand, "drain", str(second), "--dry-run")
    assert f"not counted: what has to leave node {first}, draining as well\n" in drained.out
    balanced = distfs(by_hand, "rebalance", "--dry-run")
    assert (
        f"node {first} is draining, which comes first: `distfs drain {first} --dry-run` plans it\n"
        in balanced.out
    )


# --- rebalance ------------------------------------------------------------------------------------------


def test_a_dry_rebalance_tells_the_plan_and_moves_nothing(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=TOLD_ONCE)
    for _ in range(24):
        cluster.upload(os.urandom(SLICE))
    full, middle, empty = (
        say_full(cluster, i, 4 * MIB, free) for i, free in enumerate((3 * MIB // 2, 2 * MIB, 5 * MIB // 2))
    )
    before = everything(cluster)
    entry = distfs(cluster, "rebalance", "--dry-run", "--json").entry
    [move] = entry["moves"]
    able = sum(full in nodes and empty not in nodes for nodes, _ in rows(cluster))
    count = move["fragments"]
    assert move == {"source": full, "target": empty, "fragments": count, "bytes": count * SLICE}
    assert 0 < count <= able
    assert abs(entry["bytes"] - entry["bytes_wanted"]) <= SLICE
    assert (entry["fragments"], entry["bytes_per_second"]) == (count, 50 * MIB)
    told = {node["id"]: (node["fullness"], node["fullness_then"]) for node in entry["nodes"]}
    moved = count * SLICE / (4 * MIB)
    assert told == {
        full: (0.625, pytest.approx(0.625 - moved, abs=1e-3)),
        middle: (0.5, 0.5),
        empty: (0.375, pytest.approx(0.375 + moved, abs=1e-3)),
    }
    assert told[full][1] - told[empty][1] <= 0.05 + 2 * SLICE / (4 * MIB)  # a whole fragment at either end
    words = distfs(cluster, "rebalance", "--dry-run")
    assert (words.code, words.err) == (0, "")
    assert printed_moves(words.out) == {(full, empty): count}
    assert re.search(rf"(?m)^ *{full}  \S+ +up +62\.5% +{told[full][1]:.1%}$", words.out)
    assert words.out.endswith(
        f"\n{count} fragments, {count * SLICE / 1024:.1f} KiB to move: at least 0 s at 50.0 MiB/s "
        "(upkeep.rebalance_rate)\n"
    )
    assert everything(cluster) == before


def test_a_dry_rebalance_of_equally_full_nodes_has_nothing_to_move(by_hand: Cluster) -> None:
    fill(by_hand)
    ended = distfs(by_hand, "rebalance", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith(
        "\nnothing to move: the nodes that take part are equally full, within upkeep.rebalance_threshold, and no "
        "slice has more fragments in one zone than it must\n"
    )
    entry = distfs(by_hand, "rebalance", "--dry-run", "--json").entry
    assert (entry["moves"], entry["fragments"], entry["bytes"], entry["bytes_wanted"]) == ([], 0, 0, 0)


def test_a_dry_rebalance_says_when_no_fragment_may_go(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, config=TOLD_ONCE)
    fill(cluster)
    for i, free in enumerate((MIB, 3 * MIB)):
        say_full(cluster, i, 4 * MIB, free)
    ended = distfs(cluster, "rebalance", "--dry-run")
    assert ended.code == 0
    assert ended.out.endswith(
        "\nnothing can be moved: no fragment on the fuller nodes may go to an emptier one\n"
    )


def test_rebalance_wakes_the_worker(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(config=QUICK)

    def woken() -> object:
        return run_sql(url_of(cluster), "SELECT woken_at FROM worker WHERE name = 'rebalance'")

    eventually(lambda: woken() == [[None]], "the worker has shown itself")
    ended = distfs(cluster, "rebalance")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("rebalance is woken: ")
    assert woken() != [[None]]


def test_rebalance_that_nobody_does_says_so(by_hand: Cluster) -> None:
    ended = distfs(by_hand, "rebalance")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("distfs: no service runs the worker 'rebalance': start one (`distfs serve`)")
    ended = distfs(by_hand, "rebalance", "--json")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "distfs: --json is for the plan: give --dry-run, too\n"
