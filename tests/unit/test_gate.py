"""The gate counts what is in flight and refuses what is too much."""

from __future__ import annotations

import pytest

from distfs.errors import Busy
from distfs.limits.gate import Gate


def test_as_many_uploads_run_as_may() -> None:
    gate = Gate(max_uploads=2)
    first, second = gate.enter(1), gate.enter(10**15)
    with pytest.raises(Busy, match=r"http\.max_uploads") as refused:
        gate.enter(1)
    assert (refused.value.status, refused.value.retry_after) == (503, 5)
    first.leave()
    with gate.enter(1):
        assert gate.uploads == 2
    second.leave()
    assert (gate.uploads, gate.bytes) == (0, 0)


def test_declared_bytes_are_counted() -> None:
    gate = Gate(max_bytes=100)
    held = gate.enter(60)
    with pytest.raises(Busy, match=r"http\.max_bytes_in_flight"):
        gate.enter(41)
    gate_of_a_service = Gate(max_bytes=10**12)
    gate_of_a_service.enter(999 * 10**9)
    with pytest.raises(Busy) as refused:
        gate_of_a_service.enter(3 * 1024**3)
    assert str(refused.value) == (
        "uploads of 930.4 GiB run already, 3.0 GiB more would pass 931.3 GiB (http.max_bytes_in_flight): "
        "try again soon"
    )
    with gate.enter(40), gate.enter(0):
        assert gate.bytes == 100
    held.leave()


def test_a_ticket_is_given_back_once() -> None:
    gate = Gate(max_uploads=5)
    ticket, other = gate.enter(7), gate.enter(3)
    ticket.leave()
    ticket.leave()
    assert (gate.uploads, gate.bytes) == (1, 3)
    other.leave()


def test_without_limits_all_come_in() -> None:
    gate = Gate()
    assert len([gate.enter(10**18) for _ in range(1000)]) == gate.uploads
