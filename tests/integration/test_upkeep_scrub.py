"""Scrub finds every kind of damage, and repair heals it; readers tell of what they meet."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distfs.commands.nodes import show_nodes
from distfs.commands.operator import Operator
from distfs.commands.status import show_status
from distfs.config.settings import BytesPerSecond, Seconds
from distfs.deadline import Deadline
from distfs.errors import NodeUnavailable, TooSlow
from distfs.model import FragmentId, Policy
from distfs.telemetry import metrics
from distfs.upkeep.step import Pace
from tests.contract.litter import eventually
from tests.contract.samples import header, put
from tests.integration.meta_examples import soon
from tests.integration.upkeep_cluster import FAST, UpkeepCluster, bytes_of, drive, flip

RS = Policy(2, 1)


@pytest.fixture
def cluster(tmp_path: Path, metadb_url: str) -> Iterator[UpkeepCluster]:
    with UpkeepCluster(tmp_path, metadb_url, nodes=4) as running:
        yield running


def cut(path: Path) -> None:
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size - 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a byte of a cell": lambda path: flip(path, 30_000),
    "a byte of the table": lambda path: flip(path, -60),
    "a byte of the footer": lambda path: flip(path, -20),
    "a byte of the header": lambda path: flip(path, 30),
    "cut short": cut,
    "emptied": empty,
    "deleted": os.unlink,
}


@pytest.mark.parametrize("policy", [Policy(1, 1), RS], ids=str)
@pytest.mark.parametrize("kind", DAMAGE)
def test_scrub_finds_it_and_repair_heals_it(cluster: UpkeepCluster, kind: str, policy: Policy) -> None:
    data = bytes_of(2)
    file, other = cluster.upload(data, policy), cluster.upload(bytes_of(1, 5), policy)
    id, node = cluster.fragments(file)[1]
    DAMAGE[kind](cluster.path(id, node))
    metrics.share()
    assert drive(cluster.scrub()).detail["bad"] == 1
    for counted in (metrics.CHECKSUMS.value("scrub"), metrics.STORE_CHECKSUMS.value("disk")):
        assert counted == (kind != "deleted"), "by who asked, and where it lies"
    assert cluster.sql("SELECT slice_id, index, node_id FROM damage") == [[id.slice, id.index, node]]
    assert cluster.download(file) == data
    drive(cluster.repair())
    cluster.assert_whole(file, other)
    assert cluster.download(file) == data


def test_two_fragments_that_were_swapped_are_both_found(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(5))
    on: dict[int, list[FragmentId]] = {}
    for id, node in cluster.fragments(file):
        on.setdefault(node, []).append(id)
    node, ids = next((node, ids) for node, ids in on.items() if len(ids) > 1)
    first, second = (cluster.path(id, node) for id in ids[:2])
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    assert drive(cluster.scrub()).detail["bad"] == 2
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_what_no_reader_can_use_goes_into_quarantine_at_once(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    flip(cluster.path(id, node), 30)
    drive(cluster.scrub())
    assert id in cluster.quarantined(node)
    assert id not in cluster.on_disk(node)


def test_one_bad_cell_does_not_take_the_good_ones_from_readers(cluster: UpkeepCluster) -> None:
    data = bytes_of(1)
    file = cluster.upload(data)
    (first, one), (second, two) = cluster.fragments(file)
    flip(cluster.path(first, one), 5000)
    flip(cluster.path(second, two), 200_000)
    assert drive(cluster.scrub()).detail["bad"] == 2
    assert cluster.download(file) == data
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_a_whole_disk_of_fragments_deleted_is_noticed(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(12))
    node = cluster.id(0)
    count = len(cluster.on_disk(node))
    shutil.rmtree(cluster.store(node).folder / "data")
    assert drive(cluster.scrub()).detail["bad"] == count > 0
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_a_healthy_cluster_is_read_once_a_period(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(6))
    count = len(cluster.fragments(file))
    scrub = cluster.scrub()
    step = drive(scrub)
    assert (step.detail["checked"], step.detail["bad"]) == (count, 0)
    assert drive(scrub).detail["checked"] == count
    assert drive(cluster.scrub()).detail["checked"] == 0, "another service knows that it was done"
    states = [cluster.db.scrub_state(cluster.id(i), soon()) for i in cluster.nodes]
    assert sum(s.checked for s in states) == count
    assert all(s.round_age is None and s.last_round_age is not None for s in states)
    cluster.sql("UPDATE node_scrub SET last_round_started_at = last_round_started_at - interval '31 days'")
    assert drive(cluster.scrub()).detail["checked"] == count


def test_a_round_goes_on_in_another_service(cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distfs.upkeep.scrub._PIECE_FRAGMENTS", 1)
    file = cluster.upload(bytes_of(12))
    count = len(cluster.fragments(file))
    first = cluster.scrub()
    for _ in range(5):
        done = first.step(soon()).detail["checked"]
    assert isinstance(done, int)
    rest = drive(cluster.scrub()).detail["checked"]
    assert isinstance(rest, int)
    assert 0 < done < count
    assert rest < count, "what the first had read is not read again"
    assert count <= done + rest
    assert sum(cluster.db.scrub_state(cluster.id(i), soon()).checked for i in cluster.nodes) == count


def test_a_node_that_is_down_is_left_out_and_nothing_is_concluded(cluster: UpkeepCluster) -> None:
    cluster.upload(bytes_of(6))
    down = cluster.stop_node(0)
    drive(cluster.scrub())
    assert cluster.sql("SELECT count(*) FROM damage") == [[0]]
    assert cluster.db.scrub_state(down, soon()).last_round_age is None


@pytest.mark.parametrize("call", ["list and info", "verify", "stat"])
def test_errors_of_a_node_are_no_damage(
    cluster: UpkeepCluster, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(6))
    if call == "stat":  # asked only for what a listing does not show
        id, node = cluster.fragments(file)[0]
        cluster.path(id, node).unlink()

    def refuse(*_: object, **__: object) -> None:
        raise NodeUnavailable("the disk is having a bad day")

    node = cluster.fragments(file)[0][1]
    with monkeypatch.context() as patch:
        target = cluster.store(node)
        for name in ["get"] if call == "stat" else call.split(" and "):
            patch.setattr(target, name, refuse)
        drive(cluster.scrub())
    assert cluster.sql("SELECT count(*) FROM damage") == [[0]]
    assert cluster.db.scrub_state(node, soon()).last_round_age is None


def test_a_fragment_that_cannot_be_verified_does_not_hold_up_the_others(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(8))
    id, node = cluster.fragments(file)[0]
    store = cluster.store(node)
    verify = store.verify

    def slow(asked: FragmentId, *rest: object) -> tuple[int, ...]:
        if asked == id:
            raise TooSlow("this one takes for ever")
        return verify(asked, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "verify", slow)
    scrub = cluster.scrub()

    def done() -> bool:
        scrub.step(Deadline(30))
        return cluster.db.scrub_state(node, soon()).last_round_age is not None

    eventually(done, "the round ends")
    assert cluster.sql("SELECT slice_id, index, node_id FROM damage") == [[id.slice, id.index, node]]
    assert cluster.db.health(file.id, soon()).missing == 1, "nobody takes it for verified"
    monkeypatch.undo()
    assert drive(cluster.repair()).detail["proved_good"] == 1


def test_a_node_that_verifies_nothing_and_does_not_answer_proves_nothing_bad(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = cluster.upload(bytes_of(8))
    node = cluster.fragments(file)[0][1]

    def refuse(*_: object) -> None:
        raise TooSlow("the disk hangs")

    for call in ("verify", "info"):
        monkeypatch.setattr(cluster.store(node), call, refuse)
    scrub = cluster.scrub()
    for _ in range(30):
        scrub.step(Deadline(30))
        scrub._backoff.clear()
    assert cluster.sql("SELECT count(*) FROM damage") == [[0]]


def test_a_folder_that_cannot_be_listed_does_not_end_the_scrub_of_its_node(cluster: UpkeepCluster) -> None:
    data = bytes_of(24)
    file = cluster.upload(data, Policy(1, 2))
    node = cluster.id(0)
    folders = Counter(cluster.path(id, node).parent for id in cluster.on_disk(node))
    ids = sorted((id for id in cluster.on_disk(node) if folders[cluster.path(id, node).parent] == 1), key=str)
    lost, gone, bad = ids[1], ids[2], ids[-1]
    folder = cluster.path(lost, node).parent
    shutil.rmtree(folder)
    folder.write_text("")  # as a damaged entry of a file system may say
    cluster.path(gone, node).unlink()
    flip(cluster.path(bad, node), 30_000)
    step = drive(cluster.scrub())
    assert (step.detail["checked"], step.detail["bad"]) == (len(cluster.fragments(file)), 3)
    assert f"node {node} could not list what it keeps" in str(step.detail["stuck"])
    noted = cluster.sql("SELECT slice_id, index, node_id FROM damage")
    assert sorted(map(tuple, noted)) == sorted((i.slice, i.index, node) for i in (lost, gone, bad))
    drive(cluster.repair())
    assert cluster.download(file) == data
    assert cluster.db.damage_count(soon()) == 0


def test_a_fragment_that_is_right_in_itself_and_not_the_slices_is_found(cluster: UpkeepCluster) -> None:
    data = bytes_of(1)
    file = cluster.upload(data)
    id, node = cluster.fragments(file)[0]
    store = cluster.store(node)
    other = replace(header(id.slice, id.index), cluster=store.cluster)
    put(store, other, b"x" * 5000)
    assert store.verify(id, soon()) == ()
    assert drive(cluster.scrub()).detail["bad"] == 1
    assert id in cluster.quarantined(node)
    drive(cluster.repair())
    cluster.assert_whole(file)
    assert cluster.download(file) == data


def test_what_is_unknown_or_about_to_leave_the_trash_is_not_repaired(cluster: UpkeepCluster) -> None:
    file, unknown = cluster.upload(bytes_of(1)), cluster.upload(bytes_of(1, 2))
    for id, node in (cluster.fragments(file)[0], cluster.fragments(unknown)[0]):
        flip(cluster.path(id, node), 30)
    cluster.meta.delete_file(file.id, soon())
    cluster.sql("UPDATE trash SET purge_at = now()")
    cluster.sql("DELETE FROM slice")
    assert drive(cluster.scrub()).detail["bad"] == 0
    assert cluster.sql("SELECT count(*) FROM damage") == [[0]]


def test_scrub_keeps_to_its_rate_on_each_node(tmp_path: Path, metadb_url: str) -> None:
    slow = replace(FAST, scrub_rate=BytesPerSecond(100_000), interval=Seconds(60))
    with UpkeepCluster(tmp_path, metadb_url, nodes=2, upkeep=slow) as cluster:
        cluster.upload(bytes_of(8))  # two megabytes on each node
        scrub = cluster.scrub()
        step = scrub.step(soon())
        while step.pace is Pace.BUSY:
            step = scrub.step(soon())
        assert step.pace is Pace.THROTTLED
        assert 15 < step.pause < 25


def test_a_node_that_heartbeats_and_does_not_answer_is_shown(
    cluster: UpkeepCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = cluster.id(0)
    scrub = cluster.scrub()
    assert "unreachable" not in drive(scrub).detail
    cluster.cut_off(node)
    scrub._reach._every = 0.0
    scrub.step(soon())
    assert scrub.step(soon()).detail["unreachable"] == [node]
    assert cluster.alive(node)
    cluster.db.save_worker("scrub", "idle", scrub.step(soon()).detail, soon())
    operator = Operator(cluster.config, cluster.config, cluster.meta, cluster.db, cluster.directory)
    show_nodes(operator, as_json=False)
    *lines, remedy = capsys.readouterr().out.splitlines()[1:]
    assert not any("up, unreachable" in line for line in lines), "who answers nobody is not up"
    states = {line.split()[0]: "unreachable" in line for line in lines}
    assert f"unreachable: node {node} tells" in remedy
    assert "`distfs doctor` says why" in remedy
    assert states == {str(cluster.id(i)): i == 0 for i in cluster.nodes}
    show_status(operator, ["http://127.0.0.1:9"], as_json=False)
    assert "3 up, 1 unreachable; " in capsys.readouterr().out


# --- readers -------------------------------------------------------------------------------------------


def test_a_download_notes_what_it_found_and_repair_heals_it(cluster: UpkeepCluster) -> None:
    data = bytes_of(3)
    file = cluster.upload(data)
    hurt = []
    for id, node in cluster.fragments(file):
        if id.index == id.slice.int % 2:  # the copy that is read first
            flip(cluster.path(id, node), 100_000)
            hurt.append((id, node))

    def all_noted() -> bool:
        assert cluster.download(file) == data  # a node that is slow just now is not the first to be read
        return cluster.db.damage_count(soon()) == len(hurt)

    eventually(all_noted, "the notes are written")
    noted = cluster.sql("SELECT slice_id, index, node_id FROM damage")
    assert sorted(map(tuple, noted)) == sorted((id.slice, id.index, node) for id, node in hurt)
    drive(cluster.repair())
    cluster.assert_whole(file)


def test_a_reader_that_comes_late_notes_nothing_against_a_moved_fragment(cluster: UpkeepCluster) -> None:
    file = cluster.upload(bytes_of(1))
    id, node = cluster.fragments(file)[0]
    stale = cluster.file(file)
    cluster.path(id, node).unlink()
    drive(cluster.scrub())
    drive(cluster.repair())
    for _ in range(10):
        b"".join(map(bytes, cluster.downloader.read(stale, 0, stale.size, soon())))
    cluster.damage.close()
    assert cluster.db.damage_count(soon()) == 0
