"""Who shows what is no token: told to wait, longer each time, by address, and forgiven."""

from __future__ import annotations

import os
from ipaddress import ip_address

import pytest

from distfs.access.failures import FORGIVE_S, FREE, MOST_S, REMEMBERED, Failures
from distfs.errors import TooMany

HOSTILE, OTHER = ip_address("198.51.100.7"), ip_address("198.51.100.8")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(failures: Failures, address: object = HOSTILE) -> int:
    """Seconds; 0: none."""
    try:
        failures.failed(address)  # type: ignore[arg-type]
    except TooMany as e:
        return e.retry_after or -1
    return 0


def test_some_are_free_and_then_it_takes_longer_each_time() -> None:
    failures = Failures(Clock())
    assert [waits(failures) for _ in range(FREE)] == [0] * FREE
    told = [waits(failures) for _ in range(30)]
    assert told[0] > 0
    assert told == sorted(told)
    assert told[-1] == MOST_S
    assert waits(failures, OTHER) == 0
    assert failures.total == FREE + 31


def test_who_waits_as_long_as_told_is_forgiven() -> None:
    clock = Clock()
    failures = Failures(clock)
    for _ in range(FREE):
        failures.failed(HOSTILE)
    wait = waits(failures)
    clock.now += wait
    assert waits(failures) == wait, "as before: what was too much is forgiven, and this is one more"
    clock.now += 2 * MOST_S + FREE * FORGIVE_S
    assert [waits(failures) for _ in range(FREE)] == [0] * FREE


def test_a_network_of_ipv6_is_one() -> None:
    failures = Failures(Clock())
    for last in range(FREE):
        failures.failed(ip_address(f"2001:db8::{last:x}"))
    with pytest.raises(TooMany, match="2001:db8::/64"):
        failures.failed(ip_address("2001:db8::ffff"))


def test_any_number_of_addresses_makes_nobody_wait_and_nobody_who_waits_forgotten() -> None:
    failures = Failures(Clock())
    while not waits(failures):
        pass
    told = [waits(failures, ip_address(number + (10 << 24))) for number in range(3 * REMEMBERED)]
    assert not any(told)
    assert waits(failures) > 0


def test_processes_of_a_service_count_together() -> None:
    failures = Failures()
    for _ in range(FREE - 1):
        failures.failed(HOSTILE)
    if not (pid := os.fork()):
        try:
            waited = waits(failures)
        finally:
            os._exit(waited)
    assert os.waitpid(pid, 0)[1] == 0
    assert waits(failures) > 0, "what the other one counted"
