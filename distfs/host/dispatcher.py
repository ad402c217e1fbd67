"""The worker threads of the HTTP host, and who may have one.

A large upload or a download keeps its worker for as long as its client takes. Those never get the last few, the
reserve: whatever such clients do, a small request finds a worker. Small ones may wait, too, for bandwidth, MetaDB or
nodes: there is one worker more for what is answered at once, a health check or a refusal.
"""

from __future__ import annotations

import enum
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from waitress.task import ThreadedTaskDispatcher

from distfs.process.threads import start

#: How long a request may wait for a worker before it is told to come again.
WAIT_LIMIT_S = 20.0


class Lane(enum.Enum):
    """Which workers a request may have."""

    AT_ONCE = enum.auto()  # any
    SHORT = enum.auto()  # all but the one more
    LONG = enum.auto()  # nor those of the reserve


class Task(Protocol):
    """A connection with a request that is ready; waitress has the rest of it."""

    @property
    def lane(self) -> Lane: ...

    @property
    def gone(self) -> bool:
        """Nobody waits for the answer any more."""

    def refuse_busy(self) -> None:
        """The request has waited for a worker for too long."""


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """The threads, and how many of them channels have claimed, queued or running."""

    def __init__(self, threads: int, reserve: int) -> None:
        super().__init__()
        self._free = threads
        self._reserve = reserve
        self._most = {Lane.LONG: max(1, threads - reserve), Lane.SHORT: threads}
        self._running = Counter[Lane]()
        self._lane_of: dict[Task, Lane] = {}  # of those that run
        self._waiting: dict[Lane, deque[tuple[float, Task]]] = {lane: deque() for lane in self._most}
        self.set_thread_count(threads + 1)

    def start_new_thread(self, target: Callable[[int], None], thread_no: int) -> None:
        """Raises Busy."""
        start(target, f"worker-{thread_no}", thread_no)

    def claim(self) -> None:
        with self.lock:
            self._free -= 1

    def release(self) -> None:
        with self.lock:
            self._free += 1

    def may_stream(self, *, claimed: bool) -> bool:
        """Whether a worker may be kept busy by a large body; ``claimed``: its channel has one already."""
        with self.lock:
            return self._free + claimed > self._reserve

    def add_task(self, task: Task) -> None:
        """Run it as soon as a worker of its lane is free; those of a lane in the order they came."""
        with self.lock:
            lane = task.lane
            if lane is Lane.AT_ONCE:
                self._run(task, lane)
            else:
                self._waiting[lane].append((time.monotonic() + WAIT_LIMIT_S, task))
                self._start_waiting()

    def end_task(self, task: Task) -> None:
        """Its request is served: others may begin."""
        with self.lock:
            self._running[self._lane_of.pop(task, Lane.AT_ONCE)] -= 1
            self._start_waiting()

    def end_waits(self, now: float) -> None:
        """Answer those that waited for too long, and end those whose clients are gone; any worker does that."""
        with self.lock:
            for waiting in self._waiting.values():
                over = [(until, task) for until, task in waiting if until <= now or task.gone]
                for until, task in over:
                    waiting.remove((until, task))
                    if not task.gone:
                        task.refuse_busy()
                    self._run(task, Lane.AT_ONCE)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        with self.lock:
            for waiting in self._waiting.values():
                self.queue.extend(task for _, task in waiting)
                waiting.clear()
        return bool(super().shutdown(cancel_pending, timeout))

    def _start_waiting(self) -> None:
        """Run those that may run now, who has waited longest first."""
        while able := [lane for lane, waiting in self._waiting.items() if waiting and self._has_worker(lane)]:
            lane = min(able, key=lambda lane: self._waiting[lane][0][0])
            self._run(self._waiting[lane].popleft()[1], lane)

    def _has_worker(self, lane: Lane) -> bool:
        both = self._running[Lane.LONG] + self._running[Lane.SHORT]
        return self._running[lane] < self._most[lane] and both < self._most[Lane.SHORT]

    def _run(self, task: Task, lane: Lane) -> None:
        """Without waitress's warning for each task that has to wait."""
        self._lane_of[task] = lane
        self._running[lane] += 1
        self.queue.append(task)
        self.queue_cv.notify()
