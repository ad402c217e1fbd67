"""The threads of the HTTP host: each task has one, and those without work end."""

from __future__ import annotations

import threading

import pytest

from distfs.host import workers
from distfs.host.workers import Workers
from tests.contract.litter import eventually


class Task:
    """Counts that it was served, and waits for ``go``."""

    def __init__(self, go: threading.Event | None = None) -> None:
        self.served, self._go = threading.Event(), go

    def serve(self) -> None:
        if self._go is not None:
            self._go.wait(60)
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
        task = Task()
        pool.run(task)
        assert task.served.wait(30), f"task {number} is not served"
        pause.wait(0.0001 * (number % 12))
    eventually(lambda: known(pool) == 0, "an idle worker ended")


def test_all_workers_end_after_close_idle_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_S", 3600.0)
    pool: Workers[Task] = Workers(most=3)
    go = threading.Event()
    busy, idle, waiting = Task(go), Task(), Task(go)
    pool.run(busy)
    pool.run(idle)
    assert idle.served.wait(60)
    eventually(lambda: len(pool._idle) == 1, "one is idle")
    second = Task(go)
    for each in (second, Task(go), waiting):
        pool.run(each)
    assert pool.all_busy
    pool.close()
    go.set()
    assert waiting.served.wait(60)
    eventually(lambda: known(pool) == 0, "all have ended")


def test_close_wakes_the_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_S", 3600.0)
    pool: Workers[Task] = Workers(most=3)
    task = Task()
    pool.run(task)
    assert task.served.wait(60)
    eventually(lambda: len(pool._idle) == 1, "it is idle")
    pool.close()
    eventually(lambda: known(pool) == 0, "it has ended")
