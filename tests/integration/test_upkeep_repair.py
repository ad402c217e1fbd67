"""Repair: what is lost is made anew, in the right order, and nothing that happens meanwhile does harm."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from distfs.config.settings import BytesPerSecond
from distfs.deadline import Deadline
from distfs.errors import Busy, Cancelled, DistfsError, Full, ProtocolError, TooSlow, Unavailable
from distfs.model import Policy
from distfs.upkeep.model import SliceTask
from distfs.upkeep.repair import Repair
from distfs.upkeep.step import Pace
from tests.contract.litter import eventually
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of, drive, flip

RS = Policy(4, 2)


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as running:
        yield running


@pytest.fixture
def wide(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    """Enough nodes for 4+2 and two to spare."""
    with UpkeepCluster(tmp_path, metadb_url, nodes=8) as running:
        yield running


def test_a_healthy_cluster_gives_repair_nothing_to_do(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(3))
    before = cluster.fragments(file)
    assert drive(cluster.repair()).detail["made"] == 0
    assert cluster.fragments(file) == before


def test_copies_of_a_lost_node_are_made_anew_elsewhere(cluster: UpkeepCluster) -> None:
    data = bytes_of(8)
    file = cluster.upload(data)
    lost = cluster.stop_node(0)
    held = [node for _, node in cluster.fragments(file)].count(lost)
    assert drive(cluster.repair()).detail["made"] == held > 0
    assert all(node != lost for _, node in cluster.fragments(file))
    cluster.assert_whole(file)
    cluster.stop_node(1)
    assert cluster.download(file) == data


def test_cells_of_two_lost_nodes_are_computed_anew(wide: UpkeepCluster) -> None:
    data = bytes_of(4)
    file = wide.upload(data, RS)
    gone = {wide.stop_node(0), wide.stop_node(1)}
    drive(wide.repair())
    assert not gone & {node for _, node in wide.fragments(file)}
    wide.assert_whole(file)
    wide.stop_node(2)
    wide.stop_node(3)
    assert wide.download(file) == data


def test_a_silent_node_is_given_time_to_return(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(4))
    before = cluster.fragments(file)
    cluster.stop_node(0, silent_for=60)
    assert drive(cluster.repair()).detail["made"] == 0
    assert cluster.fragments(file) == before


def test_what_a_degraded_write_left_out_is_added(cluster: UpkeepCluster) -> None:
    data = bytes_of(2)
    file = cluster.upload(data, Policy(1, 2))
    cluster.sql("UPDATE slice SET nodes[1] = 0")
    drive(cluster.repair())
    cluster.assert_whole(file)
    assert cluster.download(file) == data


def test_the_slices_at_the_greatest_risk_come_first(wide: UpkeepCluster) -> None:
    files = [wide.upload(bytes_of(1, seed), RS) for seed in range(6)]
    for n, file in enumerate(files):
        for i in range(1, n % 3 + 1):  # 0, 1 or 2 fragments lost
            wide.sql("UPDATE slice SET nodes[CAST(:i AS integer)] = 0 WHERE file_id = :id", i=i, id=file.id)
    repair = wide.repair(parallel=1)
    done: list[UUID] = []
    while repair.step(soon()).pace is not Pace.IDLE:
        done += [f.id for f in files if f.id not in done and all(n for _, n in wide.fragments(f))]
    hurt_twice, hurt_once = {files[2].id, files[5].id}, {files[1].id, files[4].id}
    order = [id for id in done if id in hurt_twice | hurt_once]
    assert set(order[:2]) == hurt_twice
    assert set(order[2:]) == hurt_once
    wide.assert_whole(*files)


@pytest.mark.parametrize("index", [0, 1])
def test_a_bad_copy_is_replaced_and_put_aside(cluster: UpkeepCluster, index: int) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[index]
    flip(cluster.path(id, node), 5000)
    cluster.db.note_damage(id.slice, id.index, node, "a test's word", soon())
    drive(cluster.repair())
    cluster.assert_whole(file)
    [new] = [n for f, n in cluster.fragments(file) if f == id]
    assert new != node
    assert id in cluster.quarantined(node)
    assert id not in cluster.on_disk(node)


def test_with_no_node_to_spare_a_bad_copy_is_made_anew_in_place(tmp_path: Path, metadb_url: str) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:
        data = bytes_of(2)
        file = cluster.upload(data)
        id, node = cluster.fragments(file)[1]
        flip(cluster.path(id, node), 70_000)
        cluster.db.note_damage(id.slice, id.index, node, "a test's word", soon())
        drive(cluster.repair())
        cluster.assert_whole(file)
        assert (id, node) in cluster.fragments(file)


def test_two_copies_with_different_bad_cells_still_make_a_good_one(cluster: UpkeepCluster) -> None:
    data = bytes_of(1)
    file = cluster.upload(data)
    for (id, node), offset in zip(cluster.fragments(file), (5000, 200_000), strict=True):
        flip(cluster.path(id, node), offset)
        cluster.db.note_damage(id.slice, id.index, node, "a test's word", soon())
    drive(cluster.repair())
    cluster.assert_whole(file)
    assert cluster.download(file) == data


def test_damage_that_proves_none_is_forgotten_without_a_copy(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    cluster.db.note_damage(id.slice, id.index, node, "the network's fault", soon())
    assert drive(cluster.repair()).detail["made"] == 0
    assert (id, node) in cluster.fragments(file)
    assert cluster.db.damage_count(soon()) == 0


def test_a_good_fragment_in_quarantine_is_brought_back(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    cluster.store(node).quarantine(id, 0, soon())
    cluster.db.note_damage(id.slice, id.index, node, "missing", soon())
    assert drive(cluster.repair()).detail["made"] == 0
    cluster.assert_whole(file)


def test_what_is_damaged_on_a_node_that_nobody_can_reach_is_made_anew_elsewhere(
    cluster: UpkeepCluster,
) -> None:
    data = bytes_of(2)
    file = cluster.upload(data)
    id, node = cluster.fragments(file)[0]
    cluster.db.note_damage(id.slice, id.index, node, "bad", soon())
    cluster.cut_off(node)
    assert cluster.alive(node)
    step = drive(cluster.repair())
    assert (step.detail["made"], step.detail["postponed"]) == (1, 0)
    assert dict(cluster.fragments(file))[id] != node
    assert cluster.db.damage_count(soon()) == 0
    assert cluster.download(file) == data


@pytest.mark.parametrize("error", [TooSlow, ProtocolError, Unavailable])
def test_a_node_that_cannot_prove_a_fragment_good_has_it_made_anew(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch, error: type[DistfsError]
) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    cluster.db.note_damage(id.slice, id.index, node, "bad", soon())

    def refuse(*_: object) -> None:
        raise error("not now")

    monkeypatch.setattr(cluster.store(node), "verify", refuse)
    assert drive(cluster.repair()).detail["made"] == 1
    assert dict(cluster.fragments(file))[id] != node


@pytest.mark.parametrize("error", [Busy, Cancelled])
def test_a_node_that_could_not_be_asked_for_a_reason_of_ours_has_nothing_made_anew(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch, error: type[DistfsError]
) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    cluster.db.note_damage(id.slice, id.index, node, "bad", soon())

    def refuse(*_: object) -> None:
        raise error("no socket")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.directory.store(node, soon()), "verify", refuse)
        step = drive(cluster.repair())
    assert (step.detail.get("made", 0), step.detail["postponed"]) == (0, 1)
    assert dict(cluster.fragments(file))[id] == node
    assert drive(cluster.repair()).detail["proved_good"] == 1


def test_a_file_deleted_meanwhile_is_no_error(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(3))
    cluster.sql("UPDATE slice SET nodes[1] = 0")
    repair = cluster.repair(parallel=1)
    repair.step(soon())
    cluster.meta.delete_file(file.id, soon())
    assert "stuck" not in drive(repair).detail
    cluster.sql("DELETE FROM trash")
    assert "stuck" not in drive(cluster.repair()).detail


def test_a_move_by_somebody_else_wins(cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cluster.upload(bytes_of(1))
    (id, _), (_, other) = cluster.fragments(file)
    cluster.sql("UPDATE slice SET nodes[1] = 0")
    maker = cluster.maker()
    confirm = maker.confirm
    winner: list[int] = []

    def lose_the_race(task: SliceTask, index: int, node: int, deadline: Deadline) -> None:
        confirm(task, index, node, deadline)
        winner.append(next(n for n in map(cluster.id, cluster.nodes) if n not in (node, other)))
        cluster.sql("UPDATE slice SET nodes[1] = :n", n=winner[0])

    monkeypatch.setattr(maker, "confirm", lose_the_race)
    drive(Repair(maker, cluster.config.upkeep, cluster.executor))
    assert cluster.fragments(file)[0] == (id, winner[0])


def test_a_target_whose_disk_is_full_is_passed_over(
    tmp_path: Path, metadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3, capacity=2 << 20) as cluster:
        file = cluster.upload(bytes_of(2))
        lost = cluster.stop_node(cluster.node(cluster.fragments(file)[0][1]))
        cluster.start_node(8, 1 << 30)  # so much room that it is the first to be chosen
        cluster.start_node(9)
        full = cluster.nodes[8].store

        def refuse(header: object, size_hint: int, deadline: Deadline) -> object:
            raise Full("no room after all")

        monkeypatch.setattr(full, "put", refuse)
        drive(cluster.repair())
        assert lost not in {node for _, node in cluster.fragments(file)}
        assert cluster.id(8) not in {node for _, node in cluster.fragments(file)}
        cluster.assert_whole(file)


def test_what_cannot_be_repaired_does_not_hold_up_the_rest(cluster: UpkeepCluster) -> None:
    lost = [cluster.upload(bytes_of(1, seed)) for seed in range(3)]
    for file in lost:
        for id, node in cluster.fragments(file):
            cluster.path(id, node).unlink()
            cluster.db.note_damage(id.slice, id.index, node, "missing", soon())
    file = cluster.upload(bytes_of(2, 9))
    cluster.sql("UPDATE slice SET nodes[1] = 0 WHERE file_id = :id", id=file.id)
    step = drive(cluster.repair(parallel=1))
    assert "cannot be read" in str(step.detail["stuck"])
    assert step.detail["postponed"] == 3
    assert all(node for _, node in cluster.fragments(file))


def test_without_a_node_to_take_it_repair_says_so_and_waits(tmp_path: Path, metadb_url: str) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:
        file = cluster.upload(bytes_of(1))
        cluster.stop_node(0)
        step = drive(cluster.repair())
        assert "start another storage node" in str(step.detail["stuck"])
        cluster.start_node(5)
        drive(cluster.repair())
        cluster.assert_whole(file)


def test_two_repairs_at_once_leave_every_slice_whole(cluster: UpkeepCluster) -> None:
    files = [cluster.upload(bytes_of(2, seed)) for seed in range(4)]
    cluster.stop_node(0)
    first, second = cluster.repair(), cluster.repair()
    threads = [threading.Thread(target=drive, args=(worker,)) for worker in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.assert_whole(*files)


def test_a_new_repair_goes_on_where_the_last_one_stopped(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(8))
    cluster.stop_node(0)
    first = cluster.repair(parallel=1)
    first.step(soon())
    made = first.step(soon()).detail["made"]
    assert isinstance(made, int)
    rest = drive(cluster.repair()).detail["made"]
    assert isinstance(rest, int)
    cluster.assert_whole(file)
    assert made >= 1
    assert rest >= 1


def test_metadb_that_is_away_ends_the_step_and_harms_nothing(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(2))
    cluster.stop_node(0)
    repair = cluster.repair(parallel=1)

    def away(*_: object, **__: object) -> bool:
        raise Unavailable("MetaDB is away")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.db, "move_fragment", away)
        assert "MetaDB is away" in str(repair.step(soon()).detail["stuck"])
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_zones_are_kept_apart(tmp_path: Path, metadb_url: str) -> None:
    zones = ["a", "a", "b", "b"]
    with UpkeepCluster(tmp_path, metadb_url, nodes=4, zones=zones) as cluster:
        files = [cluster.upload(bytes_of(1, seed)) for seed in range(8)]
        cluster.stop_node(0)
        drive(cluster.repair())
        zone_of = {n.id: n.zone for n in cluster.directory.nodes(soon())}
        for file in files:
            assert len({zone_of[node] for _, node in cluster.fragments(file)}) == 2


def test_repair_keeps_to_its_rate(cluster: UpkeepCluster) -> None:
    slow = replace(cluster.config.upkeep, repair_rate=BytesPerSecond(1000))
    cluster.config = replace(cluster.config, upkeep=slow)
    cluster.upload(bytes_of(4))
    cluster.sql("UPDATE slice SET nodes[1] = 0")
    repair = cluster.repair(parallel=1)
    step = repair.step(soon())
    assert step.pace is Pace.THROTTLED
    assert 200 < step.pause < 300  # a slice of 256 KiB at 1000 bytes a second
    again = repair.step(soon())
    assert again.pace is Pace.THROTTLED
    assert again.detail["made"] == 1


def test_a_node_whose_folder_is_gone_is_down_until_it_is_back(cluster: UpkeepCluster) -> None:
    data = bytes_of(4)
    file = cluster.upload(data)
    node = cluster.id(0)
    before = cluster.fragments(file)
    folder, away = cluster.store(node).folder, cluster.folder / "away"
    folder.rename(away)
    folder.mkdir()  # as an unmounted disk leaves it
    eventually(lambda: not cluster.alive(node), "it is down")
    assert cluster.download(file) == data
    drive(cluster.scrub())
    assert cluster.db.damage_count(soon()) == 0, "what cannot be told is not missing"
    other = cluster.upload(bytes_of(4, 2))
    assert node not in {n for _, n in cluster.fragments(other)}
    assert list(folder.iterdir()) == []
    folder.rmdir()
    away.rename(folder)
    eventually(lambda: cluster.alive(node), "it is back")
    assert cluster.fragments(file) == before
    cluster.assert_whole(file)
