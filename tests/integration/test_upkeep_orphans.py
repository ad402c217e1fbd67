"""The orphan sweep deletes what nobody wants, in its own time, and nothing else, whatever goes wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.errors import NodeUnavailable, Unavailable
from distfs.fragment_store import Page
from distfs.model import FragmentId
from distfs.upkeep.model import Claim
from tests.contract.samples import header, put
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import DAY, HOUR, UpkeepCluster, bytes_of, drive, flip

OLD = 26 * HOUR  # over upload_ttl + sweep_margin
YOUNG = 24 * HOUR


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


def stray(cluster: UpkeepCluster, number: int, age: float) -> FragmentId:
    """A fragment no row knows."""
    store = cluster.store(number)
    id = put(store, replace(header(uuid4()), cluster=store.cluster), b"x" * 5000)
    cluster.age(id, number, age)
    return id


def test_an_old_orphan_is_put_aside_and_a_young_one_is_left(cluster: UpkeepCluster) -> None:
    node = cluster.id(0)
    old, young = stray(cluster, node, OLD), stray(cluster, node, YOUNG)
    step = drive(cluster.orphans())
    assert step.detail["quarantined"] == 1
    assert set(cluster.quarantined(node)) == {old}
    assert cluster.on_disk(node) == {young}


def test_an_orphan_is_deleted_only_when_its_quarantine_is_over(cluster: UpkeepCluster) -> None:
    node = cluster.id(0)
    orphan = stray(cluster, node, OLD)
    drive(cluster.orphans())
    cluster.age_quarantine(orphan, node, 6.9 * DAY)
    assert drive(cluster.orphans()).detail["deleted"] == 0
    cluster.age_quarantine(orphan, node, 7.1 * DAY)
    assert drive(cluster.orphans()).detail["deleted"] == 1
    assert not cluster.quarantined(node)


def test_what_is_wanted_is_never_touched(cluster: UpkeepCluster) -> None:
    kept, deleted = cluster.upload(bytes_of(6)), cluster.upload(bytes_of(3, 2))
    cluster.meta.delete_file(deleted.id, soon())
    cluster.age_all(400 * DAY)
    before = {n: cluster.on_disk(n) for n in map(cluster.id, cluster.nodes)}
    step = drive(cluster.orphans())
    done = {"adopted": 0, "quarantined": 0, "deleted": 0, "released": 0, "missing": 0, "newer": 0}
    assert step.detail == {"swept": 3, **done}
    assert {n: cluster.on_disk(n) for n in before} == before
    cluster.meta.undelete_file(deleted.id, soon())
    cluster.assert_whole(kept, deleted)


def test_a_fragment_that_moved_away_is_an_orphan_where_it_was(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    lost = cluster.stop_node(cluster.node(node))
    drive(cluster.repair())
    cluster.start_node(0 if 0 not in cluster.nodes else next(i for i in range(3) if i not in cluster.nodes))
    assert lost == node
    assert id in cluster.on_disk(node)
    cluster.age_all(OLD)
    assert drive(cluster.orphans()).detail["quarantined"] == 1
    assert id in cluster.quarantined(node)
    cluster.assert_whole(file)


def test_what_is_wanted_comes_back_from_quarantine(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(2))
    id, node = cluster.fragments(file)[0]
    cluster.store(node).quarantine(id, 0, soon())
    cluster.age_quarantine(id, node, 400 * DAY)
    step = drive(cluster.orphans())
    assert (step.detail["released"], step.detail["deleted"]) == (1, 0)
    cluster.assert_whole(file)


def test_a_missing_fragment_is_noted_for_repair(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(4))
    gone = cluster.fragments(file)[::3]
    for id, node in gone:
        cluster.path(id, node).unlink()
    step = drive(cluster.orphans())
    assert step.detail["missing"] == len(gone)
    noted = cluster.sql("SELECT slice_id, index, node_id FROM damage")
    assert sorted(map(tuple, noted)) == sorted((id.slice, id.index, node) for id, node in gone)
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_a_bad_copy_leaves_quarantine_when_the_one_made_in_its_place_is_good(
    tmp_path: Path, metadb_url: str
) -> None:
    with UpkeepCluster(tmp_path, metadb_url, nodes=2) as cluster:
        file = cluster.upload(bytes_of(1))
        (id, node), *_ = cluster.fragments(file)
        flip(cluster.path(id, node), 3)
        drive(cluster.scrub())
        drive(cluster.repair())
        cluster.assert_whole(file)
        cluster.age_quarantine(id, node, 6.9 * DAY)
        assert drive(cluster.orphans()).detail["deleted"] == 0
        cluster.age_quarantine(id, node, 7.1 * DAY)
        flip(cluster.path(id, node), 10_000)
        assert drive(cluster.orphans()).detail["deleted"] == 0, "the one in use is bad, too"
        flip(cluster.path(id, node), 10_000)
        assert drive(cluster.orphans()).detail["deleted"] == 1
        assert not cluster.quarantined(node)
        cluster.assert_whole(file)


# --- unknown is never missing --------------------------------------------------------------------------


def test_a_listing_cut_in_the_middle_condemns_nothing(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distfs.upkeep.orphans.PAGE", 4)
    node = cluster.id(0)
    orphans = {stray(cluster, node, OLD) for _ in range(12)}
    store = cluster.store(node)
    listing = store.list

    def cut(cursor: str, *rest: object) -> Page:
        if cursor and cursor > sorted(map(str, orphans))[6]:
            raise NodeUnavailable("gone in the middle")
        return listing(cursor, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(store, "list", cut)
        step = drive(cluster.orphans())
    assert "gone in the middle" in str(step.detail["stuck"])
    assert step.detail["swept"] == 2
    assert cluster.on_disk(node) == orphans
    assert cluster.db.damage_count(soon()) == 0
    assert drive(cluster.orphans()).detail["quarantined"] == 12


@pytest.mark.parametrize("query", ["claims", "fragments_on", "clock"])
def test_a_metadb_that_cannot_answer_condemns_nothing(
    cluster: UpkeepCluster, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = cluster.id(0)
    orphan, aside = stray(cluster, node, OLD), stray(cluster, node, OLD)
    cluster.store(node).quarantine(aside, 0, soon())
    cluster.age_quarantine(aside, node, 30 * DAY)

    def away(*_: object, **__: object) -> None:
        raise Unavailable("MetaDB is away")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.db, query, away)
        step = drive(cluster.orphans())
    assert "MetaDB is away" in str(step.detail["stuck"])
    assert step.detail["quarantined"] == 0
    assert cluster.on_disk(node) == {orphan}
    if query != "fragments_on":  # that one is asked only after the quarantine was gone through
        assert set(cluster.quarantined(node)) == {aside}


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
def test_a_clock_in_doubt_stops_the_sweep_of_that_node(
    cluster: UpkeepCluster, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = cluster.id(0), cluster.id(1)
    orphan = stray(cluster, node, OLD)
    elsewhere = stray(cluster, other, OLD)
    store = cluster.store(node)
    info = store.info
    monkeypatch.setattr(store, "info", lambda d: replace(info(d), clock=time.time() + ahead))
    step = drive(cluster.orphans())
    assert "run NTP" in str(step.detail["stuck"])
    assert cluster.on_disk(node) == {orphan}
    assert set(cluster.quarantined(other)) == {elsewhere}


def test_what_becomes_wanted_during_the_sweep_stays(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(1))
    cluster.age_all(OLD)
    id, node = cluster.fragments(file)[0]
    claims = cluster.db.claims
    looked: list[int] = []

    def late(number: int, *asked: object) -> dict[FragmentId, Claim]:
        """The first look at each node misses what a transaction is just about to commit."""
        answer = claims(number, *asked)  # type: ignore[arg-type]
        looked.append(number)
        return dict.fromkeys(answer, Claim(False, False, 0)) if looked.count(number) == 1 else answer

    monkeypatch.setattr(cluster.db, "claims", late)
    assert drive(cluster.orphans()).detail["quarantined"] == 0
    assert looked.count(node) == 2
    assert id in cluster.on_disk(node)
    cluster.assert_whole(file)


def test_a_fragment_written_anew_during_the_sweep_stays(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebalance may bring a fragment back to a node just when the sweep has decided about its old copy."""
    node = cluster.id(0)
    orphan = stray(cluster, node, OLD)
    store = cluster.store(node)
    quarantine = store.quarantine

    def rewritten(id: FragmentId, *rest: object) -> bool:
        put(store, replace(header(id.slice), cluster=store.cluster), b"the new one")
        return quarantine(id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "quarantine", rewritten)
    assert drive(cluster.orphans()).detail["quarantined"] == 0
    assert cluster.on_disk(node) == {orphan}


def test_a_folder_that_cannot_be_read_is_not_empty(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.upload(bytes_of(4))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("distfs.storage.disk.tree.os.listdir", refuse)
        step = drive(cluster.orphans())
    assert step.detail["missing"] == 0
    assert "Permission denied" in str(step.detail["stuck"])
    assert cluster.db.damage_count(soon()) == 0


def test_many_orphans_are_swept_page_by_page(cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("orphans", "listing"):
        monkeypatch.setattr(f"distfs.upkeep.{module}.PAGE", 5)
    monkeypatch.setattr("distfs.upkeep.orphans._MOST_SUSPECTS", 12)
    node = cluster.id(0)
    file = cluster.upload(bytes_of(7))
    cluster.age_all(OLD)
    orphans = {stray(cluster, node, OLD) for _ in range(30)}
    assert drive(cluster.orphans()).detail["quarantined"] == 30
    assert set(cluster.quarantined(node)) == orphans
    cluster.assert_whole(file)
