"""Trash: of what was deleted long ago the fragments are put aside, then the rows go; what was deleted lately can come
back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distfs.errors import NotFound, Unavailable
from distfs.model import File
from distfs.upkeep.step import Worker
from distfs.upkeep.trash import purge
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of, drive, flip


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


def delete(cluster: UpkeepCluster, file: File, days_ago: float) -> None:
    cluster.meta.delete_file(file.id, soon())
    cluster.sql(
        "UPDATE trash SET deleted_at = now() - make_interval(secs => :s) WHERE id = :id",
        s=days_ago * 86400,
        id=file.id,
    )


def everything_on_disk(cluster: UpkeepCluster) -> int:
    return sum(len(cluster.on_disk(cluster.id(i))) for i in cluster.nodes)


def everything_aside(cluster: UpkeepCluster) -> int:
    return sum(len(cluster.quarantined(cluster.id(i))) for i in cluster.nodes)


def purge_whose_commits_are_lost(cluster: UpkeepCluster, file: File) -> None:
    """Its end, and a MetaDB that fails over to a standby to which neither the mark nor the end had come."""
    cluster.sql("CREATE TABLE standby AS SELECT * FROM trash")
    cluster.sql("CREATE TABLE standby_slice AS SELECT * FROM trash_slice")
    assert drive(cluster.trash()).detail["files"] == 1
    assert everything_on_disk(cluster) == 0
    cluster.sql("INSERT INTO trash SELECT * FROM standby")
    cluster.sql("INSERT INTO trash_slice SELECT * FROM standby_slice")


def test_fragments_and_rows_go_when_the_time_is_over(cluster: UpkeepCluster) -> None:
    old, kept = cluster.upload(bytes_of(3)), cluster.upload(bytes_of(2, 2))
    delete(cluster, old, 7.1)
    step = drive(cluster.trash())
    assert step.detail == {"files": 1, "fragments": 6}
    assert cluster.sql("SELECT (SELECT count(*) FROM trash), (SELECT count(*) FROM trash_slice)") == [[0, 0]]
    assert everything_on_disk(cluster) == 4
    cluster.assert_whole(kept)
    with pytest.raises(NotFound):
        cluster.meta.undelete_file(old.id, soon())


def test_what_was_purged_is_aside_until_its_quarantine_is_over(cluster: UpkeepCluster) -> None:
    delete(cluster, cluster.upload(bytes_of(2)), 7.1)
    drive(cluster.trash())

    def sweep_after(days: float) -> object:
        for node in map(cluster.id, cluster.nodes):
            for id in cluster.quarantined(node):
                cluster.age_quarantine(id, node, days * 86400)
        return drive(cluster.orphans()).detail["deleted"]

    assert (sweep_after(6.9), everything_aside(cluster)) == (0, 4)
    assert (sweep_after(7.1), everything_aside(cluster)) == (4, 0)


@pytest.mark.parametrize("heal", ["repair", "scrub", "orphans"])
def test_a_purge_whose_commits_are_lost_can_be_undeleted(cluster: UpkeepCluster, heal: str) -> None:
    data = bytes_of(3)
    file = cluster.upload(data)
    delete(cluster, file, 7.1)
    purge_whose_commits_are_lost(cluster, file)
    cluster.meta.undelete_file(file.id, soon())
    if heal == "repair":  # a reader found nothing, and noted it
        for id, node in cluster.fragments(file):
            assert cluster.db.note_damage(id.slice, id.index, node, "no such fragment", soon())
    workers: dict[str, Callable[[], Worker]]
    workers = {"repair": cluster.repair, "scrub": cluster.scrub, "orphans": cluster.orphans}
    drive(workers[heal]())
    cluster.assert_whole(file)
    assert everything_aside(cluster) == 0
    assert cluster.download(file) == data


@pytest.mark.parametrize("aside", [False, True])
def test_a_purge_for_good_frees_the_room_at_once(cluster: UpkeepCluster, aside: bool) -> None:
    """Also of what a step put aside that was killed before it was done."""
    file = cluster.upload(bytes_of(3))
    delete(cluster, file, 8)
    [trashed] = cluster.db.expired_trash(7 * 86400, 1, soon())
    if aside:
        assert purge(cluster.directory, trashed, set(), soon(), for_good=False) == 6
    assert purge(cluster.directory, trashed, set(), soon(), for_good=True) == 6
    assert (everything_on_disk(cluster), everything_aside(cluster)) == (0, 0)
    assert cluster.db.drop_trash(file.id, soon())


def test_until_then_a_file_can_be_undeleted(cluster: UpkeepCluster) -> None:
    data = bytes_of(3)
    file = cluster.upload(data)
    delete(cluster, file, 6.9)
    assert drive(cluster.trash()).detail["files"] == 0
    cluster.meta.undelete_file(file.id, soon())
    assert cluster.download(file) == data


def test_a_node_lost_meanwhile_is_made_up_for_before_a_file_comes_back(cluster: UpkeepCluster) -> None:
    data = bytes_of(3)
    file = cluster.upload(data)
    delete(cluster, file, 3)
    gone = cluster.stop_node(0)
    drive(cluster.repair())
    other = cluster.id(1)
    assert cluster.sql("SELECT count(*) FROM trash_slice WHERE :n = ANY (nodes)", n=gone) == [[0]]
    cluster.nodes.pop(cluster.node(other)).stop()
    cluster.meta.undelete_file(file.id, soon())
    assert cluster.download(file) == data


def test_damage_known_or_found_in_the_trash_is_mended_there(cluster: UpkeepCluster) -> None:
    data = bytes_of(2)
    file = cluster.upload(data)
    (known, a), _, _, (found, b) = cluster.fragments(file)
    flip(cluster.path(known, a), 3)
    drive(cluster.scrub())
    assert cluster.db.damage_count(soon()) == 1
    delete(cluster, file, 3)
    flip(cluster.path(found, b), 3)
    cluster.sql("DELETE FROM node_scrub")
    drive(cluster.scrub())
    assert cluster.sql("SELECT count(*) FROM damage") == [[2]]
    drive(cluster.repair())
    assert cluster.sql("SELECT count(*) FROM damage") == [[0]]
    cluster.meta.undelete_file(file.id, soon())
    cluster.assert_whole(file)
    assert cluster.download(file) == data


def test_what_the_trash_removes_at_this_moment_is_not_missing(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fragments go before their rows: neither scrub nor sweep may have repair make them anew."""
    file = cluster.upload(bytes_of(2))
    delete(cluster, file, 8)

    def killed(*_: object) -> bool:
        raise Unavailable("killed here")

    monkeypatch.setattr(cluster.db, "drop_trash", killed)
    with pytest.raises(Unavailable):
        cluster.trash().step(soon())
    drive(cluster.scrub())
    drive(cluster.orphans())
    assert cluster.sql("SELECT count(*) FROM damage") == [[0]]
    assert drive(cluster.repair()).detail["made"] == 0
    assert everything_on_disk(cluster) == 0


def test_a_file_whose_end_has_begun_cannot_come_back_half(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the fragments and the rows: the next step ends it, and nobody gets it back meanwhile."""
    file = cluster.upload(bytes_of(3))
    delete(cluster, file, 8)

    def killed(*_: object) -> bool:
        raise Unavailable("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.db, "drop_trash", killed)
        with pytest.raises(Unavailable):
            cluster.trash().step(soon())
    with pytest.raises(NotFound):
        cluster.meta.undelete_file(file.id, soon())
    assert drive(cluster.trash()).detail["files"] == 1
    assert everything_on_disk(cluster) == 0


def test_nodes_that_are_down_hold_nothing_up_and_are_swept_later(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(6))
    down = cluster.stop_node(0)
    delete(cluster, file, 8)
    assert drive(cluster.trash()).detail["files"] == 1
    assert everything_on_disk(cluster) == 0
    cluster.start_node(0)
    left = cluster.on_disk(down)
    assert left
    for id in left:
        cluster.age(id, down, 30 * 86400)
    drive(cluster.orphans())
    assert set(cluster.quarantined(down)) == left


def test_many_files_go_in_many_steps(cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distfs.upkeep.trash._FILES", 3)
    for seed in range(7):
        delete(cluster, cluster.upload(b"small" * seed), 8)
    trash = cluster.trash()
    assert trash.step(soon()).detail["files"] == 3
    assert drive(trash).detail["files"] == 7
    assert everything_on_disk(cluster) == 0
