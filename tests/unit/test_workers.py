"""The threads of the HTTP host: each task has one, and those without work end."""

from __future__ import annotations

import threading
import time

import pytest

from distfs.errors import Busy
from distfs.host import workers
from distfs.host.workers import Workers
from tests.contract.litter import eventually
from tests.starving import no_threads


class Task:
    """Counts that it was served, and waits for ``go``; then, without its turn, for ``client``."""

    in_transit = False

    def __init__(
        self, pool: Workers[Task], go: threading.Event | None = None, client: threading.Event | None = None
    ) -> None:
        self.begun, self.served = threading.Event(), threading.Event()
        self._pool, self._go, self._client = pool, go, client

    def serve(self) -> None:
        self.begun.set()
        if self._go is not None:
            self._go.wait(60)
        if self._client is not None:
            self._pool.end_turn(self, done=False)
            self._client.wait(60)
        else:
            self._pool.end_turn(self, done=True)
        self.served.set()


class Dawdling:
    """A lock; who has let go of it does nothing for a moment, in which others have their turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
        threading.Event().wait(0.0005)


def known(pool: Workers[Task]) -> int:
    with pool._lock:
        return len(pool._all)


def test_a_task_that_comes_while_the_only_worker_ends_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must find that worker idle or gone: else it waits in line, and nobody looks there any more."""
    monkeypatch.setattr(workers, "IDLE_S", 0.0005)
    pool: Workers[Task] = Workers(most=1)
    monkeypatch.setattr(pool, "_lock", Dawdling())
    pause = threading.Event()
    for number in range(300):
        task = Task(pool)
        pool.run(task)
        assert task.served.wait(30), f"task {number} is not served"
        pause.wait(0.0001 * (number % 12))
    eventually(lambda: known(pool) == 0, "an idle worker ended")


def test_all_workers_end_after_close_idle_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_S", 3600.0)
    pool: Workers[Task] = Workers(most=3)
    go = threading.Event()
    busy, idle, waiting = Task(pool, go), Task(pool), Task(pool, go)
    pool.run(busy)
    pool.run(idle)
    assert idle.served.wait(60)
    eventually(lambda: len(pool._idle) == 1, "one is idle")
    second = Task(pool, go)
    for each in (second, Task(pool, go), waiting):
        pool.run(each)
    assert pool.all_busy
    pool.close()
    go.set()
    assert waiting.served.wait(60)
    eventually(lambda: known(pool) == 0, "all have ended")


def test_close_wakes_the_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_S", 3600.0)
    pool: Workers[Task] = Workers(most=3)
    task = Task(pool)
    pool.run(task)
    assert task.served.wait(60)
    eventually(lambda: len(pool._idle) == 1, "it is idle")
    pool.close()
    eventually(lambda: known(pool) == 0, "it has ended")


def test_who_has_no_turn_waits_without_a_thread_until_another_waits_for_its_client() -> None:
    pool: Workers[Task] = Workers(most=50, turns=2)
    go, client = threading.Event(), threading.Event()
    tasks = [Task(pool, go, client) for _ in range(6)]
    for task in tasks:
        pool.run(task)
    eventually(lambda: sum(task.begun.is_set() for task in tasks) == 2, "two have begun")
    assert (known(pool), pool.others_wait, pool.all_busy, pool.no_thread) == (2, True, True, False)
    another = Task(pool)
    assert not pool.next_turn(another), "who has a thread already waits as well"
    assert pool.withdraw(tasks[-1])
    go.set()
    eventually(lambda: all(task.begun.is_set() for task in tasks[:5]), "the others have their turns")
    assert not any(task.served.is_set() for task in tasks), "the first still wait for their clients"
    assert pool.next_turn(another)
    pool.end_turn(another, done=True)
    client.set()
    for task in tasks[:5]:
        assert task.served.wait(60)
    assert not tasks[-1].begun.is_set()
    pool.close()
    eventually(lambda: known(pool) == 0, "all have ended")
    assert pool._turns == 2


def test_who_no_thread_can_be_started_for_in_line_is_served_by_one_that_comes_free() -> None:
    pool: Workers[Task] = Workers(most=50, turns=1)
    go, client = threading.Event(), threading.Event()
    first, second = Task(pool, go, client), Task(pool)
    pool.run(first)
    pool.run(second)
    assert first.begun.wait(60)
    with no_threads():
        go.set()
        eventually(lambda: pool._turns == 1, "a thread was tried")
        with pytest.raises(Busy):
            Workers[Task](most=1).run(Task(pool))
    assert not second.begun.is_set()
    client.set()
    assert second.served.wait(60)
    pool.close()


def test_who_comes_when_a_turn_is_free_does_not_pass_those_who_wait() -> None:
    pool: Workers[Task] = Workers(most=50, turns=1)
    go, later = threading.Event(), threading.Event()
    first, second, third = Task(pool), Task(pool, go), Task(pool, later)
    assert pool.next_turn(Task(pool))
    pool.run(second)
    pool._turns += 1  # as between a worker's last request and its rest
    pool.run(third)
    assert second.begun.wait(60)
    assert not third.begun.is_set()
    with no_threads():
        pool.run(first)
    go.set()
    assert third.begun.wait(60)
    later.set()
    assert first.served.wait(60)
    assert pool._turns == 1
    pool.close()


def test_others_begin_beside_who_has_his_turn_for_long_but_no_more_than_so_many() -> None:
    pool: Workers[Task] = Workers(most=50, turns=2, beside=1)
    go = threading.Event()
    tasks = [Task(pool, go) for _ in range(6)]
    for task in tasks:
        pool.run(task)
    assert tasks[0].begun.wait(60)
    assert tasks[1].begun.wait(60)
    pool.pass_by_late(0)
    assert known(pool) == 2, "nobody is late"
    for _ in range(3):
        pool.pass_by_late(time.monotonic() + 1)
    assert tasks[2].begun.wait(60)
    assert (known(pool), pool.all_busy) == (3, True)
    go.set()
    for task in tasks:
        assert task.served.wait(60)
    eventually(lambda: (pool._turns, pool._beside) == (2, 1), "all turns are given back")
    pool.close()
