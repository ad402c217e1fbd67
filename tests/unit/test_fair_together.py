"""Processes that have one cap together: what becomes of turns that one does not take. Shares: ``test_fairshare``."""

from __future__ import annotations

import time

import pytest

from distfs.config.settings import MIB, BandwidthConfig, BytesPerSecond, CallersConfig
from distfs.deadline import Deadline
from distfs.limits.bandwidth import Bandwidth
from distfs.limits.fair_together import PATIENCE_S, SharedSchedule
from distfs.limits.fairshare import EXPRESS, Group, Transfer
from distfs.process.shared_table import SharedTable
from tests.unit.test_bandwidth import PATIENCE_S as LONG_S
from tests.unit.test_bandwidth import caller, take_all

CAP = 10 * MIB


class Two:
    """Two processes with a transfer each, on one clock."""

    def __init__(self) -> None:
        self.table = SharedTable(2)
        self.schedules = []
        for row in range(2):
            self.table.mine(row)
            self.schedules.append(SharedSchedule(CAP, "fair", self.table, "out"))
        self.transfers = [Transfer(row, group=Group(0)) for row in range(2)]

    def ask(self, row: int, now: float) -> None:
        self.table.mine(row)
        self.schedules[row].ask(self.transfers[row], MIB, now)

    def grant(self, row: int, now: float) -> int:
        """Bytes."""
        self.table.mine(row)
        granted = self.schedules[row].grant(now)
        return granted.granted if granted else 0

    def wait(self, row: int, now: float) -> float:
        self.table.mine(row)
        return self.schedules[row].wait(now)

    def all_ask(self, now: float) -> float:
        """One was served, and has asked again: it is the other's turn. -> when."""
        self.ask(0, now)
        while self.grant(0, now):  # also what the pace has saved up
            self.ask(0, now)
        self.ask(1, now)
        assert not self.grant(1, now), "the cap is used for now"
        return now + self.wait(1, now)


def test_the_earlier_turn_is_taken_first_in_whichever_process_it_is() -> None:
    two = Two()
    now = two.all_ask(100.0)
    assert not two.grant(0, now), "it has had one more"
    assert 0 < two.wait(0, now) < 0.01
    assert two.grant(1, now)


def test_a_process_that_stands_still_is_waited_for_once() -> None:
    two = Two()
    now = two.all_ask(100.0)
    assert not two.grant(0, now)
    now += PATIENCE_S * 1.01
    amount = two.grant(0, now)
    assert amount
    for _ in range(5):
        two.ask(0, now)
        now += two.wait(0, now)
        assert two.grant(0, now) == amount
    two.ask(0, now)
    now += two.wait(0, now)
    assert two.grant(1, now), "when it goes on it has what it missed"


def test_a_killed_process_is_waited_for_by_nobody() -> None:
    two = Two()
    now = two.all_ask(100.0)
    two.table.clear(1)
    assert two.grant(0, now)


def test_who_has_withdrawn_is_waited_for_by_nobody() -> None:
    two = Two()
    now = two.all_ask(100.0)
    two.table.mine(1)
    two.schedules[1].withdraw(two.transfers[1])
    assert two.grant(0, now)


def test_another_cap_begins_without_what_the_last_one_left() -> None:
    table = SharedTable(1)
    table.mine(0)
    slow = SharedSchedule(1, "fair", table, "out")
    first = Transfer(0, group=Group(0))
    slow.ask(first, MIB, 100.0)
    assert slow.grant(100.0) is first
    assert slow.grant(101.0) is None
    fast = SharedSchedule(CAP, "fair", table, "out")
    second = Transfer(1, group=Group(0))
    fast.ask(second, MIB, 101.0)
    assert fast.grant(101.0) is second


@pytest.mark.parametrize("mode", ["fair", "batch"])
def test_threads_wait_for_their_turns_as_in_one_process(mode: str) -> None:
    table = SharedTable(1)
    table.mine(0)
    config = BandwidthConfig(cap_out=BytesPerSecond(50 * MIB), mode=mode)
    bandwidth = Bandwidth(config, CallersConfig(), table=table)
    began = time.monotonic()
    take_all(bandwidth.transfer(caller(), "out"), 10 * MIB, Deadline(LONG_S))
    assert time.monotonic() - began > 0.1, "never sooner than the cap allows"
    bandwidth.close()


def served(table: SharedTable, by: SharedSchedule) -> list[dict[int, float]]:
    """Which transfers of other processes are served, as the one of row 1 sees it."""
    table.mine(1)
    return [table.others(column) for column in by._served_here]


def test_whoever_was_served_in_batch_mode_is_not_when_that_has_ended_and_begins_anew() -> None:
    table = SharedTable(2)
    table.mine(0)
    batch = SharedSchedule(CAP, "batch", table, "out")
    large = Transfer(6, group=Group(0), taken=EXPRESS)
    batch.ask(large, MIB, 100.0)
    assert batch.grant(100.0) is large
    assert served(table, batch) == [{1: 7}, {}]
    table.mine(0)
    for mode in ("fair", "batch"):
        SharedSchedule(CAP, mode, table, "out")
    assert served(table, batch) == [{}, {}]
