"""When a read is late, and how many may be asked twice."""

from __future__ import annotations

import threading
from random import Random

import pytest

from distfs.peers.hedge import HedgeBudget, LatencyHistory


def test_p95_is_that_of_the_recent_past() -> None:
    history = LatencyHistory()
    assert history.p95 == 0
    for n in range(1, 101):
        history.add(n / 1000)  # the last 64: 37 to 100 ms
    assert history.p95 == pytest.approx(0.097)
    for _ in range(64):
        history.add(0.002)
    assert history.p95 == 0.002


def test_a_few_late_ones_are_not_typical_and_many_are() -> None:
    history = LatencyHistory()
    for _ in range(20):
        history.add(0.001)
    for _ in range(4):
        history.add(0.2)
    assert history.typical == 0.001
    history.add(0.2)
    assert history.typical == 0.2
    for _ in range(4):
        history.add(0.001)
    assert history.typical == 0.001


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_no_more_than_the_share_and_the_burst_is_ever_spent(share: float) -> None:
    budget = HedgeBudget(share, burst=10)
    random = Random(1)
    for _ in range(20_000):
        budget.count(random.randint(1, 3))
        budget.spend()
        assert budget.hedged <= share * budget.reads + 10
    assert budget.hedged >= share * budget.reads - 1, "what was earned can be spent"


def test_what_is_not_spent_is_kept_up_to_the_burst_only() -> None:
    budget = HedgeBudget(0.05, burst=3)
    budget.count(10_000)
    assert [budget.spend() for _ in range(5)] == [True] * 3 + [False] * 2
    assert budget.snapshot() == {"reads": 10_000, "hedged": 3, "won": 0, "refused": 2}


def test_a_share_of_nothing_allows_nothing() -> None:
    budget = HedgeBudget(0.0)
    budget.count(1000)
    assert not budget.spend()


def test_threads_together_spend_no_more_than_one_could() -> None:
    budget = HedgeBudget(0.05, burst=5)

    def work() -> None:
        for _ in range(2000):
            budget.count()
            budget.spend()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.reads == 8000
    assert budget.hedged <= 0.05 * 8000 + 5
