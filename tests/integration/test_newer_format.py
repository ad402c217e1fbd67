"""Fragments that a newer distfs wrote, beside this one: read where that is possible, and never taken for damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from distfs.commands.fsck import fsck
from distfs.commands.operator import Operator
from distfs.errors import NewerFormat, Unavailable
from distfs.formats import hello
from distfs.formats.features import PLAIN, Extra, Features, pack_records
from distfs.model import File, FragmentId, Policy
from distfs.process.output import NOT_TOLD
from tests.contract.newer import NEWER_AND_NO_MATTER, NEWER_TO_CHANGE, UNREADABLE, remade, rewrite
from tests.contract.samples import get
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import DAY, UpkeepCluster, bytes_of, drive

CODEC = {"a codec": lambda fragment: remade(fragment, PLAIN, codec=77)}
KINDS = UNREADABLE | CODEC
RECORDS = pack_records({900: b"kept"})


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=3) as running:
        yield running


def damage(cluster: UpkeepCluster) -> object:
    return cluster.sql("SELECT count(*) FROM damage")[0][0]


def drain(cluster: UpkeepCluster, node: int) -> Mapping[str, object]:
    cluster.db.set_node_state(node, "draining", soon())
    cluster.directory.nodes(soon(), fresh=True)
    return drive(cluster.rebalance()).detail


def as_newer(cluster: UpkeepCluster, file: File, kind: str, index: int = 0) -> list[tuple[FragmentId, int]]:
    """All fragments of that index."""
    chosen = [(id, node) for id, node in cluster.fragments(file) if id.index == index]
    for id, node in chosen:
        rewrite(cluster.path(id, node), KINDS[kind])
    return chosen


@pytest.mark.parametrize("kind", KINDS)
def test_one_fragment_is_newer_and_nothing_is_done_about_it(
    cluster: UpkeepCluster, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytes_of(2)
    file = cluster.upload(data)
    small = cluster.upload(b"small")
    newer = as_newer(cluster, file, kind) + as_newer(cluster, small, kind)
    before = {(id, node): cluster.path(id, node).read_bytes() for id, node in newer}
    assert cluster.download(file) == data, "the other copy is read"
    assert cluster.download(small) == b"small"

    scrubbed = drive(cluster.scrub()).detail
    assert scrubbed["bad"] == 0
    assert (scrubbed["newer"] == len(newer)) == (kind != "a codec"), "what a node keeps, it need not read"
    swept = drive(cluster.orphans()).detail
    assert (swept["missing"], swept["quarantined"]) == (0, 0)
    drive(cluster.repair())
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    told = fsck(operator, deep=True, note=True, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["missing"], report["corrupt"], report["noted"]) == ([], [], 0)
    if kind != "a codec":
        assert told == NOT_TOLD
        assert len(report["newer"]) == len(newer)
    cluster.damage.close()
    assert damage(cluster) == 0
    assert {each: cluster.path(*each).read_bytes() for each in newer} == before


@pytest.mark.parametrize("policy", [Policy(1, 1), Policy(2, 1)], ids=str)
@pytest.mark.parametrize("size", [5, 700_000], ids=["small", "slices"])
def test_a_file_that_only_a_newer_one_reads_is_refused_in_words(
    cluster: UpkeepCluster, policy: Policy, size: int
) -> None:
    file = cluster.upload(bytes(size), policy)
    for index in range(policy.width - policy.k + 1):
        as_newer(cluster, file, "a codec" if index else "a bit of the header", index)
    with pytest.raises(NewerFormat, match="upgrade this part") as raised:
        cluster.download(file)
    assert raised.value.status == 503
    assert "written by a newer distfs" in raised.value.for_client
    cluster.damage.close()
    assert damage(cluster) == 0


def test_what_was_noted_as_damage_and_is_newer_is_not_made_anew(cluster: UpkeepCluster) -> None:
    """As an older service may have noted it."""
    file = cluster.upload(bytes_of(1))
    [(id, node)] = as_newer(cluster, file, "a bit of the footer")
    cluster.db.note_damage(id.slice, id.index, node, "it looks wrong", soon())
    before = cluster.path(id, node).read_bytes()
    detail = drive(cluster.repair()).detail
    assert (detail["made"], detail["proved_good"]) == (0, 0)
    assert "upgrade this part" in str(detail["stuck"])
    assert cluster.path(id, node).read_bytes() == before
    assert (id, node) in cluster.fragments(file)


def test_nobodys_newer_fragment_is_neither_put_aside_nor_deleted(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(2))
    newer = as_newer(cluster, file, "a bit of the header") + as_newer(cluster, file, "a codec", 1)
    cluster.sql("DELETE FROM slice")
    cluster.sql("DELETE FROM file")
    for _ in range(2):
        cluster.age_all(30 * DAY)
        drive(cluster.orphans())
    assert all(cluster.path(id, node).exists() for id, node in newer)
    for id, node in newer:  # put aside by hand, as by who was older
        store = cluster.store(node)
        assert store._files.move_to(store._aside, id)
        cluster.age_quarantine(id, node, 30 * DAY)
    drive(cluster.orphans())
    assert all(id in cluster.quarantined(node) for id, node in newer)


def test_a_drain_leaves_a_newer_fragment_and_says_why(cluster: UpkeepCluster) -> None:
    """Also where another copy could be read: one that is made of that may lack what this one has."""
    data = bytes_of(1)
    file = cluster.upload(data)
    [(id, node)] = as_newer(cluster, file, "a bit of the header")
    detail = drain(cluster, node)
    assert detail["moved"] == 0
    assert "upgrade this part" in str(detail["stuck"])
    assert damage(cluster) == 0
    assert (id, node) in cluster.fragments(file)
    assert cluster.path(id, node).exists()
    assert cluster.download(file) == data


def test_what_may_only_be_read_is_neither_copied_nor_used_to_make_another(cluster: UpkeepCluster) -> None:
    data = bytes_of(1)
    file = cluster.upload(data)
    for id, node in cluster.fragments(file):
        rewrite(cluster.path(id, node), lambda fragment: remade(fragment, NEWER_TO_CHANGE))
    assert cluster.download(file) == data
    (_, drained), (lost, other) = cluster.fragments(file)
    assert "upgrade this part" in str(drain(cluster, drained)["stuck"])
    cluster.path(lost, other).unlink()
    assert drive(cluster.scrub()).detail["bad"] == 1
    assert drive(cluster.repair()).detail["made"] == 0
    assert cluster.download(file) == data


def test_one_that_may_only_be_read_keeps_others_from_being_made_whichever_it_is(
    cluster: UpkeepCluster,
) -> None:
    data = bytes_of(1)
    file = cluster.upload(data, Policy(1, 2))
    some = cluster.fragments(file)
    rewrite(cluster.path(*some[1]), lambda fragment: remade(fragment, NEWER_TO_CHANGE))
    for lost in (some[2], some[0]):
        kept = cluster.path(*lost).read_bytes()
        cluster.path(*lost).unlink()
        cluster.db.note_damage(lost[0].slice, lost[0].index, lost[1], "it is gone", soon())
        detail = drive(cluster.repair()).detail
        assert detail["made"] == 0
        assert "upgrade this part" in str(detail["stuck"])
        cluster.path(*lost).write_bytes(kept)
        assert drive(cluster.repair()).detail["proved_good"] == 1
    assert cluster.download(file) == data


def test_what_is_lost_beside_a_newer_one_is_made_anew(tmp_path: Path, metadb_url: str) -> None:
    """Also where an older service noted that one as damage, and it comes first."""
    with UpkeepCluster(tmp_path, metadb_url, nodes=6) as cluster:
        data = bytes_of(1)
        file = cluster.upload(data, Policy(2, 2))
        [(newer, at)] = as_newer(cluster, file, "a bit of the header", 0)
        lost, node = cluster.fragments(file)[2]
        cluster.path(lost, node).unlink()
        for id, where in ((newer, at), (lost, node)):
            cluster.db.note_damage(id.slice, id.index, where, "it looks wrong", soon())
        repair = cluster.repair()
        detail = drive(repair).detail
        assert (detail["made"], detail["postponed"]) == (1, 1)
        assert "upgrade this part" in str(detail["stuck"])
        assert repair._meter.rate() > 0, "what was written counts"
        assert (newer, at) in cluster.fragments(file)
        assert damage(cluster) == 1
        assert cluster.download(file) == data


def test_records_that_one_made_here_has_no_room_for_are_newer(cluster: UpkeepCluster) -> None:
    """Header and footer have room for as much each; one that is copied has all of it in its header."""
    data = bytes_of(1)
    file = cluster.upload(data)
    head, foot = (Extra(Features(), pack_records({kind: bytes(900)})) for kind in (900, 901))
    for each in cluster.fragments(file):
        rewrite(cluster.path(*each), lambda fragment: remade(fragment, head, foot))
    (_, drained), (lost, other) = cluster.fragments(file)
    assert "upgrade this part" in str(drain(cluster, drained)["stuck"])
    cluster.path(lost, other).unlink()
    cluster.db.note_damage(lost.slice, lost.index, other, "it is gone", soon())
    detail = drive(cluster.repair()).detail
    assert (detail["made"], "upgrade this part" in str(detail["stuck"])) == (0, True)
    assert cluster.download(file) == data


def test_a_copy_keeps_what_the_fragment_has_beside_its_cells(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    [id, node], _ = cluster.fragments(file)
    extra = Extra(Features(compat=NEWER_AND_NO_MATTER.features.compat), RECORDS)
    rewrite(cluster.path(id, node), lambda fragment: remade(fragment, extra))
    assert drive(cluster.scrub()).detail["bad"] == 0
    assert drain(cluster, node)["moved"] == 1
    [moved, there], _ = cluster.fragments(file)
    assert (moved, there != node) == (id, True)
    assert cluster.directory.store(there, soon()).stat(moved, soon()).extra == extra
    cluster.assert_whole(file)


def test_who_does_not_know_a_feature_gets_no_cell_of_it(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that knows more than the service: the service would take the cells for damaged."""
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    rewrite(cluster.path(id, node), lambda fragment: remade(fragment, Extra(Features(incompat=1 << 5))))
    with monkeypatch.context() as patch:
        patch.setattr("distfs.formats.features.INCOMPAT", 1 << 5)  # of this process, so of the node
        store = cluster.directory.store(node, soon())
        with pytest.raises(NewerFormat):
            get(store, id)
        assert store.verify(id, soon()) == ()
        assert store.stat(id, soon()).extra.features.incompat == 1 << 5
        # Of the release before, that knows of no features: to it the error is one that it knows.
        cluster.directory.close()
        patch.setattr(hello, "FEATURES", 0)
        store = cluster.directory.store(node, soon())
        with pytest.raises(Unavailable) as raised:
            get(store, id)
        assert type(raised.value) is Unavailable
        assert store.stat(id, soon()).extra is PLAIN
