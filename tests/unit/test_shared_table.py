"""Numbers that several processes share: forked here, since the kernel's part in it is the point."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from distfs.errors import Busy
from distfs.limits.gate import Gate
from distfs.limits.tally import Held, SharedTally, Tally
from distfs.process import shared_table
from distfs.process.shared_table import WAYS, SharedTable
from tests.contract.litter import eventually

UPLOADS = Held("uploads", "someone")


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

    def hold_it(tally: SharedTally) -> None:
        table.locked().__enter__()

    with forked(table, 1, hold_it) as pid:
        os.kill(pid, signal.SIGKILL)
        eventually(table._lock, "it is free")


def test_nobody_waits_long_for_one_that_holds_the_lock_and_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_table, "_LOCK_WITHIN_S", 0.02)
    table = SharedTable(2)
    table.mine(0)
    with forked(table, 1, lambda tally: table.locked().__enter__()):
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
