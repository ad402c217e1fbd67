"""Room that is promised in steps, while the nodes' free bytes fall as bytes come. Real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import distfs.limits.ledger
import distfs.limits.promises
from distfs.deadline import Deadline
from distfs.errors import Full
from distfs.limits.promises import Admission
from tests.contract.litter import eventually
from tests.integration.test_admission_promises import MIB, TWO_COPIES, Services, admit
from tests.integration.test_admission_trash import going, service, thrown_away


@pytest.fixture
def services(metadb_url: str) -> Iterator[Services]:
    with ExitStack() as stack:
        yield Services(metadb_url, stack)


class Nodes:
    """Two nodes, which report again and again what they had free a little earlier."""

    def __init__(self, services: Services, free: int) -> None:
        self.free = self.told = free
        self._services, self._ends = services, threading.Event()
        self._thread = threading.Thread(target=self._report)

    def __enter__(self) -> Nodes:
        self._services.nodes_have(self.free, self.free)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._ends.is_set():
            earlier = self.free
            self._ends.wait(0.02)
            self._services.nodes_have(earlier, earlier)
            self.told = earlier

    def store(self, size: int) -> None:
        """So much more; the last two MiB of it are in no report yet."""
        self.free -= size
        eventually(lambda: self.told <= self.free + 2 * MIB, "the nodes have reported")


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "of unknown length"])
def test_an_upload_that_fits_is_taken_to_its_end_and_no_trash_gives_way(
    declared: bool, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own steps show in the nodes' reports sooner than they shrink in MetaDB: that is no shortage."""
    monkeypatch.setattr(distfs.limits.promises, "STEP", 10 * MIB)
    thrown_away(services, 3, 2, 1)
    monkeypatch.setattr(distfs.limits.ledger, "RENEW_S", 60.0)
    monkeypatch.setattr(distfs.limits.promises, "STATE_AGE_S", 0.0)
    with Nodes(services, 53 * MIB) as nodes:
        with admit(service(services), 50 * MIB if declared else None) as promise:
            for _ in range(50):
                promise.received(MIB)
                nodes.store(MIB)
            promise.keep()
    assert not going(services)


def test_two_that_fit_together_are_both_taken_to_their_end(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distfs.limits.promises, "STEP", 10 * MIB)
    monkeypatch.setattr(distfs.limits.ledger, "RENEW_S", 60.0)
    monkeypatch.setattr(distfs.limits.promises, "STATE_AGE_S", 0.0)
    admission = services.service()
    with Nodes(services, 65 * MIB) as nodes:
        with admit(admission, 30 * MIB) as first, admit(admission, 30 * MIB) as second:
            for _ in range(30):
                first.received(MIB)
                second.received(MIB)
                nodes.store(2 * MIB)


def test_what_came_and_is_in_no_report_yet_counts(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its bytes would be promised a second time."""
    monkeypatch.setattr(distfs.limits.promises, "STEP", 10 * MIB)
    monkeypatch.setattr(distfs.limits.promises, "REPORTED_S", 0.5)
    services.nodes_have(53 * MIB, 53 * MIB)
    with admit(services.service(), 50 * MIB) as promise:
        promise.received(10 * MIB)
        with admit(services.service(), 8 * MIB), pytest.raises(Full, match="no room for"):
            promise.received(1)


def test_who_may_not_be_ahead_costs_few_rows(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is a decision that all others have to make anew; and those that are used up go."""
    monkeypatch.setattr(distfs.limits.ledger, "RENEW_S", 0.2)
    monkeypatch.setattr(distfs.limits.promises, "STEP", 8000 * MIB)
    services.nodes_have(10_000 * MIB, 10_000 * MIB)
    admission = services.service()
    with (
        admission.admit(6000 * MIB, TWO_COPIES, Deadline(60), whose=["198.51.100.7"]),
        admission.admit(1000 * MIB, TWO_COPIES, Deadline(60), whose=["198.51.100.7"]) as promise,
    ):
        before = grants(admission)
        for received in range(1, 1001):
            promise.received(MIB)
            assert promise.ahead <= min(received, 32) * MIB
        assert grants(admission) - before <= 40
        eventually(lambda: services.rows() <= 2, "what is used up has no row")
        with pytest.raises(Full):
            admit(services.service(), 4000 * MIB)
    eventually(lambda: not services.rows(), "nothing is left")


def grants(admission: Admission) -> int:
    return admission._db.state(Deadline(20)).grants
