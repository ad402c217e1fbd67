"""Numbers that several processes share: forked here, since the kernel's part in it is the point."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from distfs.config.settings import BandwidthConfig, BytesPerSecond, CallersConfig, Config
from distfs.errors import Busy, Unavailable
from distfs.limits.bandwidth import Bandwidth
from distfs.limits.gate import Gate
from distfs.limits.tally import Held, SharedTally, Tally
from distfs.local.reload import Reload
from distfs.process import shared_table
from distfs.process.shared_table import WAYS, SharedTable
from tests.contract.litter import eventually

UPLOADS = Held("uploads", "someone")
#: Of a machine that is busy with other things.
PATIENCE_S = 60


@contextlib.contextmanager
def forked(table: SharedTable, row: int, act: Callable[[SharedTally], object]) -> Iterator[int]:
    """A process that has done ``act`` and stays, until it is killed at the end."""
    done, tell = os.pipe()
    if not (pid := os.fork()):
        try:
            table.mine(row)
            act(SharedTally(table))
            os.write(tell, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(done, 1), "it has failed"
        yield pid
    finally:
        os.close(done)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        table.clear(row)


def hold_the_lock(table: SharedTable, kept: list[object] = []) -> None:  # noqa: B006 - for as long as it lives
    holding = table.locked()
    kept.append(holding)  # who forgets it lets go
    holding.__enter__()


def test_what_one_process_has_counts_in_all_and_what_a_killed_one_had_no_more() -> None:
    table = SharedTable(2)
    table.mine(0)
    tally = SharedTally(table)
    assert tally.take(UPLOADS, 2, 5) is None
    with forked(table, 1, lambda other: other.take(UPLOADS, 3, 5)):
        assert tally.total(UPLOADS) == 5
        assert tally.take(UPLOADS, 1, 5) == 5
    assert tally.total(UPLOADS) == 2
    assert tally.take(UPLOADS, 3, 5) is None
    tally.give_back(UPLOADS, 5)
    assert tally.total(UPLOADS) == 0
    assert not tally.of("uploads")


def test_the_gate_is_the_services_not_the_processes() -> None:
    table = SharedTable(2)
    table.mine(0)
    gate = Gate(2, 100, SharedTally(table))
    with forked(table, 1, lambda other: Gate(2, 100, other).enter(60)):
        with pytest.raises(Busy, match=r"http\.max_bytes_in_flight"):
            gate.enter(41)
        assert (gate.uploads, gate.bytes) == (1, 60), "what was refused holds nothing"
        with gate.enter(40), pytest.raises(Busy, match=r"http\.max_uploads"):
            gate.enter(0)
    assert (gate.uploads, gate.bytes) == (0, 0)


def test_never_more_are_let_in_than_may_be_whoever_asks() -> None:
    """Four processes that take and give back; each counts what it took while all of them hold it."""
    table = SharedTable(4)
    most, processes = 3, []
    start = os.pipe()

    def most_let_in(row: int) -> int:
        table.mine(row)
        tally, found = SharedTally(table), 0
        os.close(start[1])
        os.read(start[0], 1)
        for _ in range(3000):
            if tally.take(UPLOADS, 1, most) is None:
                found = max(found, tally.total(UPLOADS))
                tally.give_back(UPLOADS, 1)
        return found

    for row in range(4):
        if not (pid := os.fork()):
            worst = 99
            try:
                worst = most_let_in(row)
            finally:
                os._exit(worst)
        processes.append(pid)
    os.close(start[1])
    found = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in processes]
    os.close(start[0])
    assert 1 <= max(found) <= most
    assert table.total("\0".join(UPLOADS)) == 0


def test_a_lock_whose_holder_is_killed_is_free() -> None:
    table = SharedTable(2)

    with forked(table, 1, lambda _: hold_the_lock(table)) as pid:
        assert not table._lock()
        os.kill(pid, signal.SIGKILL)
        eventually(table._lock, "it is free")


def test_nobody_waits_long_for_one_that_holds_the_lock_and_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_table, "_LOCK_WITHIN_S", 0.02)
    table = SharedTable(2)
    table.mine(0)
    with forked(table, 1, lambda _: hold_the_lock(table)):
        tally = SharedTally(table)
        assert tally.take(UPLOADS, 1, 1) is None
        assert tally.take(UPLOADS, 1, 1) == 1
        tally.give_back(UPLOADS, 1)
        assert tally.total(UPLOADS) == 0


def test_names_that_nobody_holds_give_their_columns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SharedTable(1)
    table.mine(0)
    monkeypatch.setattr(table, "_hash", lambda name: (hash(name) | 1, len(name), 0))  # all in one place
    tally = SharedTally(table)
    held = [Held("uploads", f"{number:02}") for number in range(WAYS + 2)]
    for each in held:
        assert tally.take(each, 1, 1) is None, "what has no column is counted here"
        assert tally.take(each, 1, 1) == 1
    assert len(tally._columns) == WAYS
    for each in held:
        tally.give_back(each, 1)
    assert not tally._held
    assert not tally._columns
    late = Held("uploads", "zz")
    assert tally.take(late, 7, 0) is None
    assert (tally.total(late), len(tally._columns)) == (7, 1)


def test_threads_of_one_process_count_right() -> None:
    table = SharedTable(1)
    table.mine(0)
    tallies: list[Tally] = [SharedTally(table), Tally()]
    for tally in tallies:

        def work(tally: Tally = tally) -> None:
            for _ in range(300):
                if tally.take(UPLOADS, 1, 2) is None:
                    assert 1 <= tally.total(UPLOADS) <= 2
                    tally.give_back(UPLOADS, 1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert tally.total(UPLOADS) == 0


@contextlib.contextmanager
def busy_with_a_column(table: SharedTable, make: Callable[[SharedTable], int]) -> Iterator[Callable[[], int]]:
    """Another process is just making a column: it has found a free one, holds the lock and stands still.
    -> what has it go on, and tells which one it has made."""
    found, tell = os.pipe()
    go, let_go = os.pipe()

    column = table.column

    def stands_still(name: str) -> int | None:
        at = column(name)
        os.write(tell, b".")
        os.read(go, 1)
        return at

    if not (pid := os.fork()):
        try:
            table.mine(1)
            table.column = stands_still  # type: ignore[method-assign]
            os.write(tell, b"%08d" % make(table))
            signal.pause()
        finally:
            os._exit(1)
    assert os.read(found, 1)

    def go_on() -> int:
        os.write(let_go, b".")
        return int(os.read(found, 8))

    try:
        yield go_on
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        table.clear(1)
        for end in (found, tell, go, let_go):
            os.close(end)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> SharedTable:
    """Row 0 of two; every name may have the same columns; nobody is waited for long."""
    monkeypatch.setattr(shared_table, "_LOCK_WITHIN_S", 0.02)
    table = SharedTable(2)
    table.mine(0)
    monkeypatch.setattr(table, "_hash", lambda name: (zlib.crc32(name.encode()) | 1, len(name), 0))
    return table


def numbers(table: SharedTable) -> list[int]:
    return [
        cell for row in range(3) for cell in table._cells[table._at(row, 0) : table._at(row, WAYS)] if cell
    ]


def test_a_column_that_another_is_just_making_is_left_to_it(crowded: SharedTable) -> None:
    theirs = Held("uploads", "theirs")

    def make(table: SharedTable) -> int:
        tally = SharedTally(table)
        assert tally.take(theirs, 1, 0) is None
        return tally._columns[theirs]

    tally = SharedTally(crowded)
    with busy_with_a_column(crowded, make) as go_on:
        assert tally.take(UPLOADS, 1, 0) is None
        go_on()
        assert tally.total(theirs) == 1
        assert tally.total(UPLOADS) == 1
        assert tally.take(UPLOADS, 1, 2) is None
        assert tally.take(UPLOADS, 1, 2) == 2
        tally.give_back(UPLOADS, 2)
        assert (tally.total(theirs), tally.total(UPLOADS)) == (1, 0)
    assert not numbers(crowded), "all was given back"


def test_two_that_make_columns_for_good_at_once_have_two(crowded: SharedTable) -> None:
    with (
        ThreadPoolExecutor(1) as threads,
        busy_with_a_column(crowded, lambda table: table.keep("theirs")) as go_on,
    ):
        tried, lock = threading.Semaphore(0), crowded._lock

        def seen() -> bool:
            held = lock()
            tried.release()
            return held

        crowded._lock = seen  # type: ignore[method-assign]
        mine = threads.submit(crowded.keep, "mine")
        assert tried.acquire(timeout=PATIENCE_S), "it has found the lock held"
        assert go_on() != mine.result(PATIENCE_S)
        assert mine.result() == crowded.keep("mine")


def test_a_column_for_good_that_is_there_is_had_without_the_lock(crowded: SharedTable) -> None:
    kept = crowded.keep("mine")
    with forked(crowded, 1, lambda _: hold_the_lock(crowded)):
        assert crowded.keep("mine") == kept


def test_a_column_for_good_is_refused_when_the_lock_is_not_to_be_had(
    crowded: SharedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_table, "_KEEP_WITHIN_S", 0.05)
    with forked(crowded, 1, lambda _: hold_the_lock(crowded)):
        with pytest.raises(Unavailable, match="stands still"):
            crowded.keep("mine")
    assert not numbers(crowded)


def test_who_stands_still_with_the_lock_is_not_waited_for_by_each_call(
    crowded: SharedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept, sleep = [], time.sleep

    def noted(seconds: float) -> None:
        slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    tally = SharedTally(crowded)
    with forked(crowded, 1, lambda _: hold_the_lock(crowded)):
        assert tally.take(UPLOADS, 1, 0) is None
        assert slept, "it was waited for once"
        slept.clear()
        for _ in range(5):
            assert tally.take(UPLOADS, 1, 0) is None
            tally.give_back(UPLOADS, 1)
        assert not slept
        assert crowded.total("\0".join(UPLOADS)) == 0
    tally.give_back(UPLOADS, 1)
    assert tally.take(UPLOADS, 1, 0) is None
    assert crowded.total("\0".join(UPLOADS)) == 1, "when it has gone all is as before"


def test_one_that_has_its_turn_after_another_is_waited_for_anew() -> None:
    table = SharedTable(2)
    with forked(table, 1, lambda _: hold_the_lock(table)):
        assert not table._lock()
        stuck = table._stuck
    with forked(table, 1, lambda _: hold_the_lock(table)):
        assert not table._lock()
        assert table._stuck == stuck + 1


def test_what_has_its_column_counts_for_all_without_the_lock_too(crowded: SharedTable) -> None:
    tally = SharedTally(crowded)
    assert tally.take(UPLOADS, 1, 0) is None
    with forked(crowded, 1, lambda _: hold_the_lock(crowded)):
        assert tally.take(UPLOADS, 1, 2) is None
        assert tally.take(UPLOADS, 1, 2) == 2
        assert crowded.total("\0".join(UPLOADS)) == 2
        tally.give_back(UPLOADS, 2)
        assert not numbers(crowded)


def test_what_others_hold_is_seen_without_the_lock(crowded: SharedTable) -> None:
    def hold(tally: SharedTally) -> None:
        assert tally.take(UPLOADS, 2, 0) is None
        hold_the_lock(crowded)

    with forked(crowded, 1, hold):
        tally = SharedTally(crowded)
        assert tally.take(UPLOADS, 1, 2) == 2
        assert tally.take(UPLOADS, 1, 3) is None
        assert tally.take(UPLOADS, 1, 3) == 3


def test_a_reload_that_cannot_make_its_columns_says_so_and_may_be_done_again(
    crowded: SharedTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_table, "_KEEP_WITHIN_S", 0)
    bandwidth = Bandwidth(BandwidthConfig(), CallersConfig(), table=crowded)
    capped = Config(bandwidth=BandwidthConfig(cap_out=BytesPerSecond(1 << 20)))
    services: Any = SimpleNamespace(
        reconfigure=lambda config: bandwidth.configure(config.bandwidth, config.callers)
    )
    reload = Reload(lambda: capped, Config(), services)
    with caplog.at_level("INFO"):
        with forked(crowded, 1, lambda _: hold_the_lock(crowded)):
            reload.now()
        assert "then send SIGHUP again" in caplog.text
        assert not bandwidth.capped("out")
        monkeypatch.undo()
        reload.now()
        assert "bandwidth.cap_out" in caplog.text
        assert bandwidth.capped("out")
