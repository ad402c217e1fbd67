"""Rates on a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.upkeep.rate import WINDOW_S, Backoff, Meter, TokenBucket
from distfs.upkeep.runner import until_turn


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_was_spent_is_waited_for(clock: Clock) -> None:
    bucket = TokenBucket(100, clock)
    assert bucket.wait() == 0
    bucket.spend(250)
    assert bucket.wait() == pytest.approx(2.5)
    clock.now += 2
    assert bucket.wait() == pytest.approx(0.5)
    clock.now += 1
    assert bucket.wait() == 0


def test_idle_time_is_not_saved_up(clock: Clock) -> None:
    bucket = TokenBucket(100, clock)
    clock.now += 3600
    bucket.spend(100)
    assert bucket.wait() == pytest.approx(1)


def test_no_rate_is_no_limit(clock: Clock) -> None:
    bucket = TokenBucket(0, clock)
    bucket.spend(10**12)
    assert bucket.wait() == 0


@pytest.mark.parametrize("seed", range(5))
def test_work_of_any_sizes_keeps_to_the_rate(clock: Clock, seed: int) -> None:
    random = Random(seed)
    bucket, began, moved = TokenBucket(1000, clock), clock.now, 0
    for _ in range(500):
        clock.now += bucket.wait()
        size = random.randrange(1, 5000)
        bucket.spend(size)
        moved += size
        clock.now += random.random() * size / 2000  # doing it takes half as long as the rate allows
    clock.now += bucket.wait()
    assert moved / (clock.now - began) == pytest.approx(1000, rel=0.01)


def test_a_meter_tells_the_last_minute(clock: Clock) -> None:
    meter = Meter(clock)
    assert meter.rate() == 0
    for _ in range(200):
        meter.add(500)
        clock.now += 1
    assert meter.rate() == pytest.approx(500, rel=0.05)
    clock.now += WINDOW_S + 1
    assert meter.rate() == 0


def test_a_meter_that_just_began_does_not_divide_by_the_whole_minute(clock: Clock) -> None:
    meter = Meter(clock)
    clock.now += 1000
    meter.add(5000)
    clock.now += 10
    assert meter.rate() == pytest.approx(500)


def test_each_failure_doubles_the_pause_up_to_a_most(clock: Clock) -> None:
    backoff = Backoff(10, 60, clock)
    pauses = []
    for _ in range(5):
        backoff.failed("slice")
        pauses.append(backoff.wait("slice"))
    assert pauses == [10, 20, 40, 60, 60]
    assert backoff.wait("another") == 0
    assert backoff.waiting == 1
    clock.now += 60
    assert (backoff.wait("slice"), backoff.waiting) == (0, 0)


@pytest.mark.parametrize(("interval", "pauses"), [(100, [200, 400, 600, 600]), (3600, [7200, 7200])])
def test_a_worker_never_tries_again_before_it_looks_again(interval: float, pauses: list[float]) -> None:
    backoff = Backoff.of(interval)
    for pause in pauses:
        backoff.failed("slice")
        assert backoff.wait("slice") == pytest.approx(pause, abs=1)


def test_a_success_forgets_the_failures(clock: Clock) -> None:
    backoff = Backoff(10, 60, clock)
    backoff.failed("slice")
    backoff.failed("slice")
    backoff.succeeded("slice")
    assert backoff.wait("slice") == 0
    backoff.failed("slice")
    assert backoff.wait("slice") == 10


def test_no_more_is_remembered_than_there_is_room_for(clock: Clock) -> None:
    backoff = Backoff(10, 60, clock, keep=100)
    for n in range(1000):
        backoff.failed(n)
    assert backoff.waiting == 100
    assert backoff.wait(999) > 0
    assert backoff.wait(0) == 0


@given(st.floats(0, 1e7), st.floats(0.01, 3600), st.floats(0, 1, exclude_max=True))
def test_an_idle_worker_waits_for_its_turn_and_no_longer_than_an_interval(
    now: float, interval: float, share: float
) -> None:
    pause = until_turn(now, interval, share)
    assert 0 <= pause <= interval


def test_idle_workers_look_one_after_another_though_they_began_together() -> None:
    turns = sorted(until_turn(1234.5, 5.0, number / 5) for number in range(5))
    assert [later - sooner for sooner, later in pairwise(turns)] == pytest.approx([1.0] * 4)
