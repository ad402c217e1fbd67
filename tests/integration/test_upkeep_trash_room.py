"""The trash gives its room back: when somebody empties it, and before an upload is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.errors import NotFound
from tests.integration.meta_examples import soon
from tests.integration.test_upkeep_trash import delete, everything_on_disk
from tests.integration.upkeep_cluster import UpkeepCluster, bytes_of, drive


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


def aside(cluster: UpkeepCluster) -> int:
    return sum(len(cluster.quarantined(cluster.id(i))) for i in cluster.nodes)


def let_it_settle(cluster: UpkeepCluster) -> None:
    cluster.sql("UPDATE trash SET erase_at = now() WHERE erase_at IS NOT NULL")


def test_what_is_emptied_is_erased_and_not_put_aside(cluster: UpkeepCluster) -> None:
    one, other, kept = (cluster.upload(bytes_of(2, seed)) for seed in (1, 2, 3))
    for file in (one, other):
        delete(cluster, file, 1)
    assert cluster.db.empty_trash(one.id, soon()) == (1, 2 * one.size)
    with pytest.raises(NotFound):
        cluster.meta.undelete_file(one.id, soon())
    let_it_settle(cluster)
    assert drive(cluster.trash()).detail == {"files": 1, "fragments": 4}
    assert (everything_on_disk(cluster), aside(cluster)) == (8, 0)
    assert cluster.db.empty_trash(None, soon())[0] == 1
    assert cluster.db.trash_to_erase(soon()) == 1
    let_it_settle(cluster)
    drive(cluster.trash())
    assert (everything_on_disk(cluster), aside(cluster), cluster.db.trash_to_erase(soon())) == (4, 0, 0)
    cluster.assert_whole(kept)
    assert cluster.db.empty_trash(one.id, soon()) == (0, 0)


def test_bytes_go_only_when_no_standby_can_have_missed_the_word(cluster: UpkeepCluster) -> None:
    """A fail-over that loses it brings the file back, whole."""
    data = bytes_of(2)
    file = cluster.upload(data)
    delete(cluster, file, 1)
    cluster.db.empty_trash(None, soon())
    assert drive(cluster.trash()).detail["files"] == 0
    assert everything_on_disk(cluster) == 4
    cluster.sql("UPDATE trash SET purge_at = NULL, erase_at = NULL")  # what the standby knows
    assert drive(cluster.trash()).detail["files"] == 0
    cluster.meta.undelete_file(file.id, soon())
    assert cluster.download(file) == data


def test_the_trash_is_listed_page_by_page_oldest_first(cluster: UpkeepCluster) -> None:
    files = [cluster.upload(bytes_of(1, seed)) for seed in range(5)]
    for days, file in enumerate(files):
        delete(cluster, file, 5 - days)
    cluster.db.empty_trash(files[2].id, soon())
    found = cluster.db.trash_after(None, 2, soon())
    while page := cluster.db.trash_after(found[-1], 2, soon()):
        found += page
    assert [each.id for each in found] == [file.id for file in files]
    assert [each.ending for each in found] == [False, False, True, False, False]
    assert [each.bytes for each in found] == [2 * file.size for file in files]


def test_what_must_be_erased_goes_before_what_is_merely_old(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.upkeep.trash._FILES", 1)
    old, wanted = cluster.upload(bytes_of(1, 1)), cluster.upload(bytes_of(1, 2))
    delete(cluster, old, 30)
    delete(cluster, wanted, 1)
    cluster.db.empty_trash(wanted.id, soon())
    let_it_settle(cluster)
    trash = cluster.trash()
    trash.step(soon())
    assert [row[0] for row in cluster.sql("SELECT id FROM trash")] == [old.id]
    drive(trash)
    assert (everything_on_disk(cluster), aside(cluster)) == (0, 2)
