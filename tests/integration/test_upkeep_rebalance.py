"""Rebalance and drain: fragments move without a moment in which one is not safe, and end where they should."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from distfs.config.settings import BytesPerSecond, Seconds
from distfs.deadline import Deadline
from distfs.errors import NodeUnavailable, Refused, Unavailable
from distfs.model import File, FragmentId, Policy
from distfs.storage.disk.reader import DiskReader
from distfs.storage.disk.store import DiskStore
from distfs.upkeep.decisions import fullness
from distfs.upkeep.model import SliceTask
from distfs.upkeep.rebalance import Rebalance, dry_run
from distfs.upkeep.step import Pace
from tests.contract.litter import eventually
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import FAST, UpkeepCluster, bytes_of, drive, flip

CAPACITY = 6 << 20  # of each node's disk


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as running:
        yield running


@pytest.fixture
def small(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    """Nodes with disks of their own."""
    with UpkeepCluster(tmp_path, metadb_url, nodes=3, capacity=CAPACITY) as running:
        yield running


def drain(cluster: UpkeepCluster, number: int) -> None:
    cluster.db.set_node_state(number, "draining", soon())
    cluster._nodes()


def spread(cluster: UpkeepCluster) -> float:
    """By what the nodes themselves say at this moment; what is in quarantine is as good as gone."""
    full = []
    for node in cluster.nodes.values():
        info, aside = node.store.info(soon()), node.store.list_quarantine("", 10_000, soon()).fragments
        full.append(1 - (info.free + sum(listed.size for listed in aside)) / info.capacity)
    return max(full) - min(full)


def settled(cluster: UpkeepCluster) -> None:
    """Until MetaDB has heard how full every node is."""

    def heard() -> bool:
        known = {n.uuid: n.free for n in cluster._nodes()}
        return all(known[n.store.node] == n.store.info(soon()).free for n in cluster.nodes.values())

    eventually(heard, "MetaDB knows how full the nodes are")


# --- drain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(2, 1), Policy(1, 0)], ids=str)
def test_a_drained_node_ends_empty_and_may_be_forgotten(cluster: UpkeepCluster, policy: Policy) -> None:
    data = bytes_of(8)
    file, trashed = cluster.upload(data, policy), cluster.upload(bytes_of(3, 2), policy)
    cluster.meta.delete_file(trashed.id, soon())
    node = cluster.id(0)
    with pytest.raises(Refused):
        cluster.db.forget_node(node, soon())
    kept = cluster.on_disk(node)
    drain(cluster, node)
    drive(cluster.rebalance())
    assert cluster.db.fragments_left(node, soon()) == 0
    assert cluster.on_disk(node) == set()
    assert set(cluster.quarantined(node)) == kept, "a MetaDB that loses its last commits names them again"
    cluster.assert_whole(file)
    cluster.meta.undelete_file(trashed.id, soon())
    cluster.assert_whole(trashed)
    with pytest.raises(Refused, match="is alive"):
        cluster.db.forget_node(node, soon())
    assert cluster.download(file) == data


def test_undrain_stops_it(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(12))
    node = cluster.id(0)
    drain(cluster, node)
    worker = cluster.rebalance(parallel=1)
    worker.step(soon())
    cluster.db.set_node_state(node, "active", soon())
    cluster._nodes()
    drive(worker)
    assert cluster.db.fragments_left(node, soon()) > 0
    cluster.assert_whole(file)


def test_a_bad_fragment_on_a_draining_node_is_made_from_the_others(cluster: UpkeepCluster) -> None:
    data = bytes_of(2)
    file = cluster.upload(data, Policy(2, 1))
    id, node = cluster.fragments(file)[0]
    flip(cluster.path(id, node), 20_000)
    drain(cluster, node)
    drive(cluster.rebalance())
    assert cluster.db.fragments_left(node, soon()) == 0
    cluster.assert_whole(file)


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(2, 1)], ids=str)
def test_a_draining_node_that_nobody_can_reach_is_emptied_from_the_others(
    cluster: UpkeepCluster, policy: Policy
) -> None:
    data = bytes_of(2)
    file = cluster.upload(data, policy)
    node = cluster.fragments(file)[0][1]
    drain(cluster, node)
    cluster.cut_off(node)
    assert cluster.alive(node)
    drive(cluster.rebalance())
    assert cluster.db.fragments_left(node, soon()) == 0
    assert cluster.db.damage_count(soon()) == 0, "a node that is away proves nothing bad"
    cluster.assert_whole(file)
    assert cluster.download(file) == data


def test_a_source_that_breaks_off_in_the_middle_is_not_the_targets_fault(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(2))
    node = cluster.fragments(file)[0][1]
    drain(cluster, node)
    monkeypatch.setattr(DiskReader, "extent", _broken_for(cluster.store(node)))
    drive(cluster.rebalance())
    assert cluster.db.fragments_left(node, soon()) == 0
    cluster.assert_whole(file)


def _broken_for(store: DiskStore) -> Callable[[DiskReader, int, int], tuple[int, int]]:
    """A node that promises bytes its disk has not got: the connection ends in their middle."""
    extent = DiskReader.extent

    def longer(reader: DiskReader, first: int, count: int) -> tuple[int, int]:
        offset, length = extent(reader, first, count)
        ours = Path(f"/proc/self/fd/{reader.fd}").readlink().is_relative_to(store.folder)
        return (1 << 40 if ours and length else offset), length

    return longer


def test_what_only_a_node_that_nobody_can_reach_keeps_stays_with_it(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1), Policy(1, 0))
    [(_, node)] = cluster.fragments(file)
    drain(cluster, node)
    cluster.cut_off(node)
    step = drive(cluster.rebalance())
    assert "cannot be read" in str(step.detail["stuck"])
    assert [n for _, n in cluster.fragments(file)] == [node]


def test_with_nowhere_to_go_a_drain_says_so_and_loses_nothing(tmp_path: Path, metadb_url: str) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:
        file = cluster.upload(bytes_of(2))
        drain(cluster, cluster.id(0))
        step = drive(cluster.rebalance())
        assert "start another storage node" in str(step.detail["stuck"])
        cluster.assert_whole(file)
        cluster.start_node(7)
        drive(cluster.rebalance())
        assert cluster.db.fragments_left(cluster.id(0), soon()) == 0
        cluster.assert_whole(file)


def test_woken_it_tries_again_what_it_had_postponed(tmp_path: Path, metadb_url: str) -> None:
    patient = replace(FAST, interval=Seconds(3600))
    with UpkeepCluster(tmp_path, metadb_url, nodes=2, upkeep=patient) as cluster:
        file, node = cluster.upload(bytes_of(2)), cluster.id(0)
        cluster.db.save_worker("rebalance", "idle", {}, soon())
        drain(cluster, node)
        worker = cluster.rebalance()
        drive(worker)
        cluster.start_node(7)
        drive(worker)
        assert cluster.db.fragments_left(node, soon()) == 2, "it was to be left alone for hours"
        cluster.db.wake_worker("rebalance", soon())
        drive(worker)
        assert cluster.db.fragments_left(node, soon()) == 0
        cluster.assert_whole(file)


def test_the_old_fragment_goes_only_after_the_new_one_was_verified_and_switched_to(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(3))
    node = cluster.id(0)
    before = cluster.on_disk(node)
    drain(cluster, node)
    maker = cluster.maker()
    order: list[tuple[str, int]] = []  # the call, and how many fragments were on the old node when it ended

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def called(*args: object, **kwargs: object) -> object:
            answer = original(*args, **kwargs)
            order.append((name, len(cluster.on_disk(node))))
            return answer

        monkeypatch.setattr(owner, name, called)

    for name in ("copy", "confirm", "put_aside"):
        watch(maker, name)
    watch(cluster.db, "move_fragment")
    drive(Rebalance(maker, cluster.config.upkeep, 0.01, cluster.executor, 1))
    expected = []
    for left in range(len(before), 0, -1):
        expected += [("copy", left), ("confirm", left), ("move_fragment", left), ("put_aside", left - 1)]
    assert order == expected
    cluster.assert_whole(file)


def test_a_copy_that_does_not_verify_is_not_switched_to(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(2))
    node = cluster.fragments(file)[0][1]
    drain(cluster, node)
    maker = cluster.maker()
    copy = maker.copy
    spoiled: list[int] = []

    def spoil(task: SliceTask, index: int, source: int, target: int, deadline: Deadline) -> None:
        copy(task, index, source, target, deadline)
        if not spoiled:
            spoiled.append(target)
            flip(cluster.path(FragmentId(task.piece.id, index), target), 10_000)

    monkeypatch.setattr(maker, "copy", spoil)
    drive(Rebalance(maker, cluster.config.upkeep, 0.01, cluster.executor, 1))
    assert spoiled
    assert cluster.db.fragments_left(node, soon()) == 0
    cluster.assert_whole(file)


def test_metadb_lost_at_the_switch_leaves_both_copies(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(2))
    node = cluster.fragments(file)[0][1]
    before = cluster.on_disk(node)
    drain(cluster, node)

    def away(*_: object) -> bool:
        raise Unavailable("MetaDB is away")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.db, "move_fragment", away)
        drive(cluster.rebalance())
    assert cluster.on_disk(node) == before
    cluster.assert_whole(file)
    drive(cluster.rebalance())
    assert cluster.on_disk(node) == set()
    cluster.assert_whole(file)


def test_a_file_deleted_in_the_middle_of_a_move_is_no_error(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(1))
    node = cluster.fragments(file)[0][1]
    drain(cluster, node)
    maker = cluster.maker()
    confirm = maker.confirm

    def delete_then(task: SliceTask, index: int, target: int, deadline: Deadline) -> None:
        confirm(task, index, target, deadline)
        cluster.sql("DELETE FROM slice")
        cluster.sql("DELETE FROM file")

    monkeypatch.setattr(maker, "confirm", delete_then)
    step = drive(Rebalance(maker, cluster.config.upkeep, 0.01, cluster.executor))
    assert step.detail["moved"] == 0
    assert "stuck" not in step.detail


def test_two_drains_at_once_move_everything_once(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(10))
    node = cluster.id(0)
    drain(cluster, node)
    workers = [threading.Thread(target=drive, args=(cluster.rebalance(),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert cluster.db.fragments_left(node, soon()) == 0
    cluster.assert_whole(file)


def test_a_download_goes_on_while_everything_moves_away_from_under_it(cluster: UpkeepCluster) -> None:
    data = bytes_of(12)
    file = cluster.upload(data, Policy(1, 0))
    stream = cluster.downloader.read(cluster.file(file), 0, len(data), soon())
    got = [bytes(next(stream))]
    for number in {node for _, node in cluster.fragments(file)[6:]}:
        drain(cluster, number)
        drive(cluster.rebalance())
        cluster.db.set_node_state(number, "active", soon())
        cluster._nodes()
    got += map(bytes, stream)
    assert b"".join(got) == data
    cluster.damage.close()
    assert cluster.db.damage_count(soon()) == 0


# --- rebalance -----------------------------------------------------------------------------------------


def fill(cluster: UpkeepCluster) -> list[File]:
    files = [cluster.upload(bytes_of(3, seed)) for seed in range(9)]
    settled(cluster)
    return files


def assert_each_move_came_about(cluster: UpkeepCluster, refused: Sequence[object]) -> None:
    """Nothing was copied in vain: a node has what MetaDB says, and no more."""
    assert refused == []
    for number in map(cluster.id, cluster.nodes):
        assert len(cluster.on_disk(number)) == cluster.db.fragments_left(number, soon())


@pytest.fixture
def pair(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    """Two nodes, so that each has a fragment of every slice."""
    with UpkeepCluster(tmp_path, metadb_url, nodes=2, capacity=CAPACITY) as running:
        yield running


def refusals(cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The moves that MetaDB refuses from now on."""
    refused: list[object] = []
    move = cluster.db.move_fragment

    def watched(*args: Any, **kwargs: Any) -> bool:
        done = move(*args, **kwargs)
        if not done:
            refused.append(args[:4])
        return done

    monkeypatch.setattr(cluster.db, "move_fragment", watched)
    return refused


def test_two_full_nodes_never_give_two_fragments_of_one_slice_to_one_node(
    pair: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both give a few of the same slices, in the same order, and there is one node to take them."""
    file = pair.upload(bytes_of(12))
    pair.start_node(2)
    settled(pair)
    refused = refusals(pair, monkeypatch)
    assert cast(int, drive(pair.rebalance(parallel=12)).detail["moved"]) > 1
    assert {node for _, node in pair.fragments(file)} == {pair.id(i) for i in range(3)}
    assert_each_move_came_about(pair, refused)
    pair.assert_whole(file)


def test_two_nodes_that_are_drained_at_once_never_give_two_fragments_of_one_slice_to_one_node(
    pair: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pair.upload(bytes_of(6))
    pair.start_nodes([2, 3])
    for number in (leaving := [pair.id(0), pair.id(1)]):
        drain(pair, number)
    refused = refusals(pair, monkeypatch)
    drive(pair.rebalance(parallel=12))
    assert [pair.db.fragments_left(number, soon()) for number in leaving] == [0, 0]
    assert_each_move_came_about(pair, refused)
    pair.assert_whole(file)


def test_a_new_node_takes_its_share(small: UpkeepCluster) -> None:
    files = fill(small)
    small.start_node(3)
    settled(small)
    assert spread(small) > 0.3
    worker = small.rebalance()

    def balanced() -> bool:
        settled(small)
        drive(worker)
        return spread(small) < 0.1

    eventually(balanced, "the nodes are about equally full")
    settled(small)
    small.assert_whole(*files)
    for number in map(small.id, small.nodes):
        assert len(small.on_disk(number)) == small.db.fragments_left(number, soon())
    before, moved = small.fragments(*files), drive(worker).detail["moved"]
    assert moved == sum(len(small.quarantined(number)) for number in map(small.id, small.nodes))
    worker = small.rebalance()  # another service leads now: it knows only what the nodes tell
    assert drive(worker).detail["moved"] == 0, "what is put aside takes no room in the plan"
    assert small.fragments(*files) == before


def test_a_node_that_does_not_tell_what_is_put_aside_is_left_out(
    small: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fill(small)
    small.start_node(3)
    settled(small)
    silent = small.id(0)

    def away(*_: object) -> None:
        raise NodeUnavailable("its disk hangs")

    monkeypatch.setattr(small.store(silent), "list_quarantine", away)
    kept = small.db.fragments_left(silent, soon())
    assert cast(int, drive(small.rebalance()).detail["moved"]) > 0
    assert small.db.fragments_left(silent, soon()) == kept
    small.assert_whole(*files)


def test_a_move_that_metadb_forgets_loses_nothing(cluster: UpkeepCluster) -> None:
    """It failed over to a standby that had not heard of the last commits."""
    data = bytes_of(2)
    file = cluster.upload(data, Policy(1, 0))
    before = cluster.sql("SELECT id, nodes FROM slice")
    for number in {node for _, node in cluster.fragments(file)}:
        drain(cluster, number)
        drive(cluster.rebalance())
    assert cluster.sql("SELECT id, nodes FROM slice") != before
    for piece, nodes in before:
        cluster.sql("UPDATE slice SET nodes = CAST(:n AS integer[]) WHERE id = :id", n=nodes, id=piece)
    assert drive(cluster.orphans()).detail["released"] == 2
    assert cluster.download(file) == data


def test_a_dry_run_tells_the_plan_and_moves_nothing(small: UpkeepCluster) -> None:
    files = fill(small)
    small.start_node(3)
    settled(small)
    before = small.fragments(*files)
    nodes = small._nodes()
    moves = list(dry_run(small.db, nodes, 0.05, soon))
    assert small.fragments(*files) == before
    new = small.id(3)
    assert moves
    assert {move.target for move in moves} == {new}
    assert len({move.id for move in moves}) == len(moves)
    where = dict(before)
    assert all(where[move.id] == move.source for move in moves)
    capacity = nodes[0].capacity
    after = {n.id: fullness(n) for n in nodes}
    for move in moves:
        after[move.source] -= move.size / capacity
        after[move.target] += move.size / capacity
    rounding = 2 * max(move.size for move in moves) / capacity  # a whole fragment at either end
    assert max(after.values()) - min(after.values()) < 0.05 + rounding


def test_equally_full_nodes_are_left_alone(small: UpkeepCluster) -> None:
    files = fill(small)
    before = small.fragments(*files)
    assert spread(small) < 0.15
    small.config = replace(small.config, upkeep=replace(FAST, rebalance_threshold=0.2))  # type: ignore[arg-type]
    assert drive(small.rebalance()).detail["moved"] == 0
    assert small.fragments(*files) == before


def test_rebalance_keeps_to_its_rate(cluster: UpkeepCluster) -> None:
    slow = replace(cluster.config.upkeep, rebalance_rate=BytesPerSecond(1000))
    cluster.config = replace(cluster.config, upkeep=slow)
    file = cluster.upload(bytes_of(4))
    drain(cluster, cluster.fragments(file)[0][1])
    worker = cluster.rebalance(parallel=1)
    step = worker.step(soon())
    assert step.pace is Pace.THROTTLED
    assert 200 < step.pause < 300
    assert worker.step(soon()).detail["moved"] == 1
