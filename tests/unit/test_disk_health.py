"""Whether a disk is fit to be written to, from what its writes did."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from distfs.errors import NodeUnavailable
from distfs.storage.disk.health import DiskHealth
from distfs.storage.disk.home import Place
from distfs.storage.disk.watch import DiskWatch
from tests.contract.litter import eventually
from tests.contract.nodes import NODE, new_store
from tests.contract.samples import CLUSTER, header, put, soon, whole


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> DiskHealth:
    return DiskHealth(5.0, clock)


def error(number: int = errno.EIO) -> OSError:
    return OSError(number, os.strerror(number))


def probe(health: DiskHealth, clock: Clock, seconds: float = 0.01) -> None:
    health.probe_begins()
    clock.now += seconds
    health.probe_ended()


def test_errors_in_a_row_are_the_disks_and_a_success_between_is_not(health: DiskHealth) -> None:
    for _ in range(5):
        health.failed(error())
        health.failed(error())
        health.wrote()
    assert health.trouble == ""
    for _ in range(3):
        health.failed(error())
    assert health.trouble == "writes fail: Input/output error"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_a_full_disk_is_not_a_bad_one(health: DiskHealth, number: int) -> None:
    for _ in range(10):
        health.failed(error(number))
    assert health.trouble == ""


def test_slow_probes_in_a_row_are_trouble(health: DiskHealth, clock: Clock) -> None:
    probe(health, clock, 6)
    probe(health, clock, 6)
    probe(health, clock)
    assert health.trouble == ""
    for _ in range(3):
        probe(health, clock, 6)
    assert health.trouble == "a small write took 6.0 s, 5.0 s are the limit"


def test_a_probe_that_hangs_tells_before_it_ends(health: DiskHealth, clock: Clock) -> None:
    health.probe_begins()
    clock.now += 14
    assert health.trouble == ""
    clock.now += 2
    assert health.trouble == "a small write has not ended for 16 s"


def test_an_error_of_another_write_does_not_hide_a_probe_that_hangs(health: DiskHealth, clock: Clock) -> None:
    health.probe_begins()
    clock.now += 16
    health.failed(error())
    assert health.trouble == "a small write has not ended for 16 s"
    clock.now += 1000
    health.probe_ended()
    for _ in range(2):
        probe(health, clock, 6)
    assert health.trouble == "a small write took 6.0 s, 5.0 s are the limit", (
        "the one that hung was the first"
    )


def test_a_probe_that_failed_does_not_hang(health: DiskHealth, clock: Clock) -> None:
    for number in (errno.EIO, errno.ENOSPC):
        health.probe_begins()
        health.probe_failed(error(number))
        clock.now += 100
        assert health.trouble == ""


def test_a_folder_that_is_gone_is_trouble_at_once(health: DiskHealth, clock: Clock) -> None:
    probe(health, clock)
    health.probe_begins()
    health.lost("its folder is gone")
    assert health.trouble == "its folder is gone"
    for _ in range(3):
        assert health.trouble
        probe(health, clock)
    assert health.trouble == ""


@pytest.mark.parametrize("slow", [False, True])
def test_good_probes_in_a_row_end_the_trouble(health: DiskHealth, clock: Clock, slow: bool) -> None:
    for _ in range(3):
        if slow:
            probe(health, clock, 6)
        else:
            health.failed(error())
    probe(health, clock)
    probe(health, clock)
    assert health.trouble
    health.failed(error())
    for _ in range(2):
        probe(health, clock)
    assert health.trouble, "the error began the count anew"
    probe(health, clock)
    assert health.trouble == ""


def test_a_node_whose_writes_fail_says_so_and_says_when_they_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(tmp_path, CLUSTER, NODE)
    watch = DiskWatch(store, 0.01)
    fsync, broken = os.fsync, True

    def failing(fd: int) -> None:
        if broken and Path(f"/proc/self/fd/{fd}").readlink().parent == tmp_path / "tmp":
            raise error()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    try:
        eventually(lambda: store.info(soon()).state == "readonly", "the node says that it takes nothing")
        assert store.health.trouble == "writes fail: Input/output error"
        broken = False
        eventually(lambda: store.info(soon()).state == "active", "the node takes fragments again")
        assert not [p.name for p in (tmp_path / "tmp").iterdir() if not p.name.startswith("probe")]
    finally:
        watch.stop()
        monkeypatch.undo()
        eventually(lambda: not list((tmp_path / "tmp").iterdir()), "no probe is left")
        store.close()


@pytest.mark.parametrize("how", ["moved away", "left empty", "another's", "a copy of it on the disk below"])
def test_a_node_whose_folder_is_gone_writes_nothing_there_and_calls_nothing_missing(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "node", tmp_path / "away"
    store = new_store(folder, CLUSTER, NODE)
    kept = put(store, header(), b"kept")
    folder.rename(away)
    if how != "moved away":
        folder.mkdir()
    if how == "another's":  # a node was started here once, before the disk was mounted
        new_store(folder, CLUSTER, NODE).close()
    if how.startswith("a copy"):
        home = json.loads((away / "node.json").read_text())
        (folder / "node.json").write_text(json.dumps(home | {"filesystem": "other", "below": "."}))
        place = Place("this one", "node")
        monkeypatch.setattr("distfs.storage.disk.home.place_of", lambda _: place)
    before = sorted(folder.rglob("*"))
    assert store.away
    assert store.info(soon()).state == "readonly"
    with pytest.raises(NodeUnavailable, match="is its disk mounted"):
        put(store, header(), b"new")
    asked: list[Callable[[], object]] = [
        lambda: store.stat(kept, soon()),
        lambda: store.verify(kept, soon()),
        lambda: store.get(kept, 0, 1, soon()),
        lambda: store.delete(kept, soon()),
        lambda: store.quarantine(kept, 0, soon()),
        lambda: store.release(kept, soon()),
        lambda: store.discard(kept, 0, soon()),
        lambda: store.list("", 10, soon()),
        lambda: store.list_quarantine("", 10, soon()),
    ]
    for ask in asked:
        with pytest.raises(NodeUnavailable, match="is its disk mounted"):
            ask()
    store.probe()
    assert "is its disk mounted" in store.health.trouble
    assert sorted(folder.rglob("*")) == before
    monkeypatch.undo()
    shutil.rmtree(folder, ignore_errors=True)
    away.rename(folder)
    for _ in range(3):
        store.probe()
    assert (store.health.trouble, store.info(soon()).state) == ("", "active")
    assert whole(store, kept) == b"kept"
    put(store, header(), b"new")
    store.close()


def test_an_identity_brought_back_from_a_backup_is_the_same_folder(tmp_path: Path) -> None:
    store = new_store(tmp_path, CLUSTER, NODE)
    text = (tmp_path / "node.json").read_bytes()
    (tmp_path / "node.json").unlink()
    assert store.away
    (tmp_path / "node.json").write_bytes(text)
    assert not store.away
    put(store, header(), b"new")
    store.close()
