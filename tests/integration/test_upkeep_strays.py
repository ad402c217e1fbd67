"""Strays: lost where MetaDB has them, good where the sweep finds them. They are kept, and adopted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distfs.commands.fsck import fsck
from distfs.commands.operator import Operator
from distfs.deadline import Deadline
from distfs.errors import NodeUnavailable
from distfs.model import File, FragmentId
from distfs.upkeep.model import MoveTask
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import DAY, HOUR, UpkeepCluster, bytes_of, drive, flip

OLD = 26 * HOUR  # over upload_ttl + sweep_margin


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


def return_with_the_last_copy(cluster: UpkeepCluster) -> tuple[File, FragmentId, int]:
    """A node falls silent, what it kept is made anew on a third, and the two others die for good; -> the file, the
    fragment on the node that is back, and that node."""
    file = cluster.upload(bytes_of(1))
    (id, back), _ = cluster.fragments(file)
    number = cluster.node(back)
    cluster.stop_node(number)
    drive(cluster.repair())
    for _, node in cluster.fragments(file):
        cluster.stop_node(cluster.node(node))
    cluster.start_node(number)
    return file, id, back


def moved_since_the_backup(cluster: UpkeepCluster, *, emptied: bool) -> File:
    """Every fragment moved to another node, and MetaDB knows nothing of it. ``emptied``: so long ago that the old
    copies are deleted."""
    file = cluster.upload(bytes_of(1))
    old = [node for _, node in cluster.fragments(file)]
    for node in old:
        cluster.db.set_node_state(node, "draining", soon())
    cluster._nodes()
    drive(cluster.rebalance(parallel=1))
    for node in old:
        cluster.db.set_node_state(node, "active", soon())
        for id in cluster.quarantined(node) if emptied else ():
            assert cluster.store(node).discard(id, 0, soon())
    cluster._nodes()
    cluster.sql("UPDATE slice SET nodes = CAST(:old AS integer[])", old=old)
    return file


def stray_copy(cluster: UpkeepCluster, file: File, index: int, age: float = OLD) -> tuple[FragmentId, int]:
    """A copy of a fragment on a node that keeps none of the slice."""
    (id, source), held = cluster.fragments(file)[index], [node for _, node in cluster.fragments(file)]
    node = next(n for n in map(cluster.id, cluster.nodes) if n not in held)
    task = next(t for t in cluster.db.slices_on(source, None, 100, soon()) if t.fragment == id)
    cluster.maker().copy(task, index, source, node, soon())
    cluster.age(id, node, age)
    return id, node


def test_fsck_says_of_a_stray_what_becomes_of_it(
    cluster: UpkeepCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    keeper = cluster.fragments(file)[0][1]

    def told() -> str:
        fsck(operator, deep=False, note=False, as_json=False)
        lines = capsys.readouterr().out.splitlines()
        return next((line for line in lines if line.startswith(f"  {id} on node {node}")), "")

    assert ": no file needs it (" in told()
    cluster.sql("UPDATE slice SET nodes[2] = 0")
    assert ": upkeep leaves it while its slice lacks a fragment (" in told()
    cluster.sql("UPDATE slice SET nodes[1] = 0")
    assert f" of file {file.id} (a.bin): lost where MetaDB has it: upkeep takes this one in" in told()
    cluster.path(id, keeper).unlink()  # or the first of the two to be swept is taken in
    drive(cluster.orphans())
    assert (id, node) in cluster.fragments(file)
    assert told() == ""


def test_the_last_good_copy_on_a_node_that_returns_is_kept_and_read(cluster: UpkeepCluster) -> None:
    file, id, back = return_with_the_last_copy(cluster)
    cluster.age(id, back, OLD)
    step = drive(cluster.orphans())
    assert (step.detail["adopted"], step.detail["quarantined"], step.detail["deleted"]) == (1, 0, 0)
    assert (id, back) in cluster.fragments(file)
    assert cluster.download(file) == bytes_of(1)
    cluster.start_node(7)
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_the_last_good_copy_comes_back_from_quarantine(cluster: UpkeepCluster) -> None:
    file, id, back = return_with_the_last_copy(cluster)
    cluster.store(back).quarantine(id, 0, soon())
    cluster.age_quarantine(id, back, 30 * DAY)
    step = drive(cluster.orphans())
    assert (step.detail["adopted"], step.detail["deleted"]) == (1, 0)
    assert not cluster.quarantined(back)
    assert cluster.download(file) == bytes_of(1)


def test_a_node_that_returns_heals_without_a_copy(cluster: UpkeepCluster) -> None:
    """However young its fragments are: it was away for an hour."""
    file = cluster.upload(bytes_of(1))
    (id, back), _ = cluster.fragments(file)
    number = cluster.node(back)
    cluster.stop_node(number)
    drive(cluster.repair())
    instead = next(node for fragment, node in cluster.fragments(file) if fragment == id)
    cluster.start_node(number)
    cluster.stop_node(cluster.node(instead))
    assert drive(cluster.orphans()).detail["adopted"] == 1
    assert (id, back) in cluster.fragments(file)
    cluster.assert_whole(file)
    assert drive(cluster.repair()).detail["made"] == 0


@pytest.mark.parametrize("emptied", [False, True])
def test_a_metadb_from_before_the_moves_finds_every_fragment_again(
    tmp_path: Path, metadb_url: str, emptied: bool
) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as cluster:
        file = moved_since_the_backup(cluster, emptied=emptied)
        cluster.age_all(OLD)
        sweep = cluster.orphans()
        drive(sweep)  # it finds what is missing before or after the strays: as the nodes come
        sweep._due.clear()
        step = drive(sweep)
        found = "adopted" if emptied else "released"
        assert {name: step.detail[name] for name in ("deleted", found)} == {"deleted": 0, found: 2}
        assert drive(cluster.repair()).detail["made"] == 0
        cluster.assert_whole(file)
        assert cluster.download(file) == bytes_of(1)


def test_nothing_of_a_slice_is_deleted_while_a_node_is_down(cluster: UpkeepCluster) -> None:
    """It may be gone for good: that is known only after ``repair_delay``."""
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    cluster.store(node).quarantine(id, 0, soon())
    cluster.age_quarantine(id, node, 30 * DAY)
    down = cluster.node(cluster.fragments(file)[1][1])
    cluster.stop_node(down, silent_for=60)
    step = drive(cluster.orphans())
    assert (step.detail["adopted"], step.detail["deleted"]) == (0, 0)
    cluster.start_node(down)
    assert drive(cluster.orphans()).detail["deleted"] == 1
    cluster.assert_whole(file)


def test_a_fragment_is_an_orphan_only_if_the_one_in_use_is_there(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MetaDB does not know yet that the one in use is gone."""
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    keeper = cluster.fragments(file)[0][1]
    cluster.path(id, keeper).unlink()
    sweep = cluster.orphans()
    monkeypatch.setattr(sweep, "_next", lambda _: None if sweep._counts["swept"] else node)
    assert drive(sweep).detail["quarantined"] == 0
    assert id in cluster.on_disk(node)
    assert cluster.sql("SELECT slice_id, index, node_id FROM damage") == [[id.slice, id.index, keeper]]
    assert drive(cluster.orphans()).detail["adopted"] == 1
    cluster.assert_whole(file)


def test_a_keeper_that_does_not_answer_condemns_nothing(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)

    def away(*_: object) -> None:
        raise NodeUnavailable("its disk hangs")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.store(cluster.fragments(file)[0][1]), "get", away)
        assert drive(cluster.orphans()).detail["quarantined"] == 0
    assert id in cluster.on_disk(node)
    assert drive(cluster.orphans()).detail["quarantined"] == 1
    cluster.assert_whole(file)


@pytest.mark.parametrize("aside", [False, True])
def test_a_bad_stray_stays_until_its_slice_lacks_nothing(cluster: UpkeepCluster, aside: bool) -> None:
    """Its good blocks may be what heals the slice."""
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    flip(cluster.path(id, node), 10_000)
    cluster.age(id, node, OLD)
    gone = cluster.node(cluster.fragments(file)[0][1])
    cluster.stop_node(gone)
    if aside:
        cluster.store(node).quarantine(id, 0, soon())
        cluster.age_quarantine(id, node, 8 * DAY)
    step = drive(cluster.orphans())
    assert (step.detail["adopted"], step.detail["quarantined"], step.detail["deleted"]) == (0, 0, 0)
    assert id in (cluster.quarantined(node) if aside else cluster.on_disk(node))
    cluster.start_node(gone)
    step = drive(cluster.orphans())
    assert step.detail["deleted" if aside else "quarantined"] == 1
    assert id not in cluster.on_disk(node)
    assert cluster.download(file) == bytes_of(1)


def test_a_node_does_not_adopt_a_second_fragment_of_a_slice_nor_lose_it(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    (lost, gone), (kept, node) = cluster.fragments(file)
    task = next(t for t in cluster.db.slices_on(gone, None, 100, soon()) if t.fragment == lost)
    cluster.maker().copy(task, 0, gone, node, soon())
    cluster.age(lost, node, OLD)
    cluster.stop_node(cluster.node(gone))
    step = drive(cluster.orphans())
    assert (step.detail["adopted"], step.detail["quarantined"]) == (0, 0)
    assert cluster.on_disk(node) == {lost, kept}
    drive(cluster.repair())
    cluster.assert_whole(file)
    assert drive(cluster.orphans()).detail["quarantined"] == 1
    assert set(cluster.quarantined(node)) == {lost}


@pytest.mark.parametrize("rival", ["repair", "delete"])
def test_whoever_is_quicker_than_an_adoption_wins(
    cluster: UpkeepCluster, rival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    gone = cluster.fragments(file)[0][1]
    cluster.start_node(7)
    other = cluster.id(7)
    cluster.stop_node(cluster.node(gone))
    sweep = cluster.orphans()
    check = sweep._maker.check
    rows: list[list[object]] = []

    def late(task: MoveTask, index: int, number: int, deadline: Deadline) -> None:
        check(task, index, number, deadline)
        if rival == "repair":
            assert cluster.db.move_fragment(id.slice, 0, gone, other, deadline)
        else:
            cluster.sql("DELETE FROM slice")
            cluster.sql("DELETE FROM file")
        rows.extend(cluster.sql("SELECT nodes FROM slice"))

    monkeypatch.setattr(sweep._maker, "check", late)
    assert drive(sweep).detail["adopted"] == 0
    assert cluster.sql("SELECT nodes FROM slice") == rows
    assert id in cluster.on_disk(node)


def test_repair_and_adoption_at_once_end_with_one_of_each(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adoption comes first; repair, which has written the fragment elsewhere, then loses the comparison."""
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    cluster.start_node(7)
    cluster.stop_node(cluster.node(cluster.fragments(file)[0][1]))
    repair = cluster.repair()
    confirm = repair._maker.confirm

    def late(*asked: Any) -> None:
        confirm(*asked)
        assert drive(cluster.orphans()).detail["adopted"] == 1

    monkeypatch.setattr(repair._maker, "confirm", late)
    assert drive(repair).detail["made"] == 0
    assert (id, node) in cluster.fragments(file)
    cluster.assert_whole(file)


def test_a_stray_of_a_deleted_file_is_kept_until_its_purge(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    gone = cluster.fragments(file)[0][1]
    cluster.meta.delete_file(file.id, soon())
    cluster.stop_node(cluster.node(gone))
    assert drive(cluster.orphans()).detail["adopted"] == 1
    cluster.meta.undelete_file(file.id, soon())
    assert (id, node) in cluster.fragments(file)
    cluster.assert_whole(file)


def test_a_stray_of_a_file_that_is_being_purged_is_an_orphan(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = stray_copy(cluster, file, 0)
    gone = cluster.fragments(file)[0][1]
    cluster.meta.delete_file(file.id, soon())
    cluster.stop_node(cluster.node(gone))
    cluster.sql("UPDATE trash SET purge_at = now()")
    step = drive(cluster.orphans())
    assert (step.detail["adopted"], step.detail["quarantined"]) == (0, 1)
    assert set(cluster.quarantined(node)) == {id}
