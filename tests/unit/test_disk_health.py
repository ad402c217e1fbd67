"""Whether a disk is fit to be written to, from what its writes did."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from distfs.disk_health import DiskHealth
from distfs.disk_store import DiskStore
from distfs.disk_watch import DiskWatch
from tests.contract.litter import eventually
from tests.contract.nodes import NODE
from tests.contract.samples import CLUSTER, soon


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
    store = DiskStore(tmp_path, CLUSTER, NODE)
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
