"""A slice is healed block by block, from all that is left of it anywhere; nothing of it is deleted before that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

import distfs.transfer.remains
from distfs.commands.fsck import fsck
from distfs.commands.operator import Operator
from distfs.commands.repair import repair
from distfs.deadline import Deadline
from distfs.errors import Corrupt, Unavailable
from distfs.fragment_store import Page
from distfs.model import File, FragmentId, Policy
from distfs.storage.disk.store import DiskStore
from distfs.transfer.remains import search_of
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import DAY, HOUR, UpkeepCluster, bytes_of, drive, flip

#: Where in a fragment's file its first cell is, behind a header of 4096 bytes at most, and its last.
FIRST, LAST = 5000, -3000
OLD = 26 * HOUR


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=6) as running:
        yield running


def copy_to(
    cluster: UpkeepCluster, file: File, index: int, node: int, bad: int, *, aside: bool
) -> FragmentId:
    """A copy of a fragment with one bad cell on a node that keeps none of the slice."""
    id, source = cluster.fragments(file)[index]
    task = next(t for t in cluster.db.slices_on(source, None, 100, soon()) if t.fragment == id)
    cluster.maker().copy(task, index, source, node, soon())
    flip(cluster.path(id, node), bad)
    assert len(cluster.store(node).verify(id, soon())) == 1
    cluster.age(id, node, OLD)
    if aside:
        assert cluster.store(node).quarantine(id, 0, soon())
        cluster.age_quarantine(id, node, 30 * DAY)
    return id


def left_in_pieces(
    cluster: UpkeepCluster, policy: Policy, same: bool, aside: bool, last: int = LAST
) -> tuple[File, set[tuple[int, FragmentId]]]:
    """Nobody who is named is left but for k-1 of them; two others have a fragment each, with different bad cells."""
    file = cluster.upload(bytes_of(1), policy)
    named = [node for _, node in cluster.fragments(file)]
    one, other = [node for node in map(cluster.id, cluster.nodes) if node not in named][:2]
    left = {(one, copy_to(cluster, file, 0, one, FIRST, aside=aside))}
    left.add((other, copy_to(cluster, file, 0 if same else 1, other, last, aside=False)))
    for id, node in cluster.fragments(file)[: len(named) - (policy.k - 1)]:
        cluster.path(id, node).unlink()  # a connection that is open yet cannot give it either
        cluster.stop_node(cluster.node(node))
    return file, left


@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize(
    ("policy", "same"), [(Policy(1, 1), True), (Policy(1, 1), False), (Policy(2, 1), True)]
)
def test_two_copies_with_different_bad_cells_are_one_whole_slice(
    cluster: UpkeepCluster, policy: Policy, same: bool, aside: bool
) -> None:
    file, left = left_in_pieces(cluster, policy, same, aside)
    assert cluster.download(file) == bytes_of(1)
    step = drive(cluster.orphans())
    assert (step.detail["quarantined"], step.detail["deleted"]) == (0, 0)
    for node, id in left:
        assert id in cluster.on_disk(node) | set(cluster.quarantined(node))
    assert cast(int, drive(cluster.repair()).detail["made"]) > 0
    cluster.assert_whole(file)
    assert cluster.download(file) == bytes_of(1)


def test_a_block_that_is_bad_in_all_that_is_left_is_no_wrong_byte(cluster: UpkeepCluster) -> None:
    file, left = left_in_pieces(cluster, Policy(1, 1), True, False, last=FIRST)
    with pytest.raises((Corrupt, Unavailable)):
        cluster.download(file)
    assert drive(cluster.repair()).detail["made"] == 0
    assert drive(cluster.orphans()).detail["quarantined"] == 0
    for node, id in left:
        assert id in cluster.on_disk(node)


def test_a_bad_copy_that_repair_replaces_where_it_is_stays_aside(tmp_path: Path, metadb_url: str) -> None:
    """The new one may turn out bad, and it was healed from the old one."""
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:
        file = cluster.upload(bytes_of(1))
        (id, node), (other_id, other) = cluster.fragments(file)
        flip(cluster.path(id, node), FIRST)
        flip(cluster.path(other_id, other), LAST)
        old = cluster.path(id, node).read_bytes()
        drive(cluster.scrub())
        drive(cluster.repair())
        cluster.assert_whole(file)
        assert cluster.quarantined(node)[id].read_bytes() == old


def test_all_nodes_are_asked_for_what_is_left_side_by_side(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(1))
    all_ask = threading.Barrier(len(cluster.nodes))
    listing, counted = DiskStore.list, []

    def list_when_all_do(store: DiskStore, cursor: str, limit: int, deadline: Deadline) -> Page:
        counted.append(all_ask.wait(60))
        return listing(store, cursor, limit, deadline)

    monkeypatch.setattr(DiskStore, "list", list_when_all_do)
    monkeypatch.setattr(distfs.transfer.remains, "_NODE_LIMIT_S", 60.0)
    monkeypatch.setattr(distfs.transfer.remains, "_LIMIT_S", 60.0)
    found = search_of(cluster.directory)(file.slices[0], soon())
    assert {each.node for each in found} == {node for _, node in cluster.fragments(file)}
    assert len(counted) == len(cluster.nodes)


@pytest.mark.parametrize(("last", "lost"), [(LAST, False), (FIRST, True)])
def test_fsck_calls_unreadable_only_what_no_block_is_left_of(
    cluster: UpkeepCluster, last: int, lost: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    left_in_pieces(cluster, Policy(1, 1), True, False, last=last)
    fsck(operator, deep=True, note=False, as_json=False)
    assert ("unreadable: 1 file" in capsys.readouterr().out) == lost
    fsck(operator, deep=False, note=False, as_json=False)
    assert "gives them back is told by --deep" in capsys.readouterr().out


@pytest.mark.parametrize(("last", "lost"), [(LAST, False), (FIRST, True)])
def test_repair_names_for_deletion_only_what_cannot_be_read(
    cluster: UpkeepCluster, last: int, lost: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    file, _ = left_in_pieces(cluster, Policy(1, 1), True, False, last=last)
    cluster.db.give_up_silent_nodes(soon())
    cluster.db.save_worker("repair", "idle", {}, soon())
    assert repair(operator, now=False, wait=True, patience=0.1) == 1
    told = capsys.readouterr().err
    assert (f"delete the files: {file.id}" in told) == lost
    assert (f"{file.id}: read by what is left of slices elsewhere" in told) != lost
