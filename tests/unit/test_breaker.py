"""A breaker opens after failures in a row, is probed once a pause, and closes with a success."""

from __future__ import annotations

from distfs.peers.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(3, 5, clock)
    for _ in range(3):
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 5, Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state.name == "CLOSED"
    for _ in range(3):
        breaker.failed()
    assert breaker.state.name == "OPEN"
    assert breaker.opened == 1


def test_one_probe_is_allowed_when_the_pause_is_over() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 4.9
    assert not breaker.may_probe()
    clock.now += 0.2
    assert breaker.may_probe()
    assert not breaker.may_probe()
    assert breaker.state.name == "PROBING"


def test_a_probe_that_succeeds_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    assert breaker.may_probe()
    breaker.succeeded()
    assert breaker.state.name == "CLOSED"
    breaker.failed()
    breaker.failed()
    assert breaker.state.name == "CLOSED", "it counts from the beginning"


def test_pauses_double_to_a_bound_and_begin_anew_after_a_success() -> None:
    clock = Clock()
    breaker = opened(clock)
    pauses = []
    for _ in range(6):
        start = clock.now
        while not breaker.may_probe():
            clock.now += 1
        pauses.append(clock.now - start)
        breaker.failed()
    assert pauses == [5, 10, 20, 40, 60, 60]
    breaker.succeeded()
    for _ in range(3):
        breaker.failed()
    clock.now += 5
    assert breaker.may_probe()


def test_a_probe_of_which_nothing_is_heard_is_followed_by_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 5
    assert breaker.may_probe()
    clock.now += 5
    assert breaker.may_probe()


def test_failures_while_it_is_open_do_not_prolong_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 3
    breaker.failed()
    clock.now += 2
    assert breaker.may_probe()


def test_a_request_that_succeeds_beside_the_probes_closes_it() -> None:
    breaker = opened(Clock())
    breaker.succeeded()
    assert breaker.state.name == "CLOSED"
    assert not breaker.may_probe()
