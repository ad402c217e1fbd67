"""The worker threads of the HTTP host: made when a request finds none idle, up to a number, ended when idle.

A request has a thread from its beginning until its answer is taken, so a slow client costs a thread and nothing else:
others have theirs. Only so many have a turn, those that do not wait for their clients: what comes beyond that waits
in line, without a thread. A thousand questions at once are a thousand that are late, and a thousand threads that want
the interpreter. More than a few keep it busy, and take it from each other. Who has his turn for long waits for a disk
or the network, and another begins beside him.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Generic, Protocol, TypeVar

from distfs.errors import Busy
from distfs.process.threads import start
from distfs.telemetry.metrics import HTTP_THREADS, HTTP_WAITING, QUEUE_SECONDS

logger = logging.getLogger("distfs.server")

#: A worker that had nothing to do for so long ends.
IDLE_S = 10.0
#: So many requests go to MetaDB and nodes at once; and as long as each of them is soon done, only so many: a service
#: keeps no more connections to MetaDB unless it is told to, and more threads would wait for those as well.
TURNS, FEW_TURNS = 64, 8
#: Who has had a turn for so long is passed by.
LATE_S = 0.02


class Task(Protocol):
    """A connection with a request that is ready."""

    @property
    def in_transit(self) -> bool:
        """A part of its answer has left."""

    def serve(self) -> None:
        """In a worker; whatever happens, it gives back what it holds."""


T = TypeVar("T", bound=Task)


class Worker(Generic[T]):
    """One thread. ``task``: what it does now."""

    __slots__ = ("task", "wake")

    def __init__(self, task: T) -> None:
        self.task: T | None = task
        self.wake = threading.Lock()
        self.wake.acquire()


class Workers(Generic[T]):
    """Thread-safe. A task that is served has a turn until ``end_turn``, which it says itself."""

    def __init__(self, most: int, turns: int = FEW_TURNS, beside: int = TURNS - FEW_TURNS) -> None:
        """``most`` threads; ``turns``, and so many more ``beside`` those that are late."""
        self._most, self._turns, self._beside = most, turns, beside  # turns that nobody has
        self._begun: dict[T, float] = {}  # who has one and is not late, the first to begin first
        self._turnless: set[T] = set()  # in transit, and late
        self._lock = threading.Lock()
        self._idle: list[Worker[T]] = []  # the last to become so is the first to work again: the others end
        self.waiting: deque[tuple[float, T]] = deque()  # others look whether it is empty
        self._all: set[Worker[T]] = set()
        self._closed = False

    def run(self, task: T) -> None:
        """In a thread, as soon as it is its turn and there is one. Raises Busy when none can be made."""
        with self._lock:
            self.waiting.append((time.monotonic(), task))
            if self.all_busy:
                return
            first = self.waiting.popleft()  # others may have waited longer
            new = self._assign(first[1])
        try:
            self._start(new)
        except Busy:
            if first[1] is task:
                raise
            self._put_back(first)

    def next_turn(self, task: T) -> bool:
        """Whether a worker may go on with another request of its connection: nobody has waited for that longer."""
        with self._lock:
            if self.waiting or self._turns <= 0:
                return False
            self._turns -= 1  # as ``_begin``, in one call
            self._begun[task] = time.monotonic()
            return True

    def end_turn(self, task: T, *, done: bool) -> None:
        """What a worker serves waits for its client from now on: another begins. Or it is ``done``, and this worker
        is the next that looks who waits."""
        with self._lock:
            if self._begun.pop(task, None) is not None:  # as ``_end``, in one call
                self._turns += 1
            else:
                self._end(task)
        if not done:
            self._begin_first()

    def pass_by_late(self, now: float) -> None:
        """Others begin beside those whose turn has become long; of those in transit, in their place: there may be any
        number that wait for memory, for bandwidth or for a node."""
        with self._lock:
            for task in [each for each, since in self._begun.items() if since <= now - LATE_S]:
                if task.in_transit:
                    self._turnless.add(task)
                elif self._beside > 0:
                    self._beside -= 1
                else:
                    continue
                del self._begun[task]
                self._turns += 1
        while self._begin_first():
            pass

    def _begin_first(self) -> bool:
        """Whether one that waited has a turn and a thread now."""
        with self._lock:
            if not self.waiting or self.all_busy:
                return False
            first = self.waiting.popleft()
            new = self._assign(first[1])
        try:
            self._start(new)
        except Busy:
            self._put_back(first)
            return False
        QUEUE_SECONDS.observe(time.monotonic() - first[0])
        return True

    def _begin(self, task: T) -> None:
        """Under the lock, as all that follows."""
        self._turns -= 1
        self._begun[task] = time.monotonic()

    def _end(self, task: T) -> None:
        if self._begun.pop(task, None) is not None:
            self._turns += 1
        elif task in self._turnless:
            self._turnless.discard(task)
        else:  # it was passed by
            self._beside += 1

    def _put_back(self, first: tuple[float, T]) -> None:
        """No thread could be started for it: a worker that has done its work takes it."""
        with self._lock:
            self.waiting.appendleft(first)

    def _assign(self, task: T) -> Worker[T] | None:
        """It has a turn, and an idle worker; or -> a new one, to be started."""
        self._begin(task)
        if not self._idle:
            worker = Worker(task)
            self._all.add(worker)
            return worker
        worker = self._idle.pop()
        worker.task = task
        worker.wake.release()
        return None

    def _start(self, new: Worker[T] | None) -> None:
        if new is None:
            return
        try:
            start(self._work, "worker", new)
        except BaseException:
            with self._lock:
                self._all.discard(new)
                if new.task is not None:
                    self._end(new.task)
            raise

    @property
    def others_wait(self) -> bool:
        """Whether somebody waits for his turn."""
        return bool(self.waiting)

    @property
    def all_busy(self) -> bool:
        """Whether the next that comes has to wait."""
        return self._turns <= 0 or self.no_thread

    @property
    def no_thread(self) -> bool:
        """Whether what waits does so because every thread has something to do."""
        return not self._idle and len(self._all) >= self._most

    def busy(self) -> list[T]:
        """What has a worker, or waits for one."""
        with self._lock:
            running = [worker.task for worker in self._all if worker.task is not None]
            return running + [task for _, task in self.waiting]

    def measure(self) -> None:
        """Tell the metrics how many there are."""
        with self._lock:
            idle, waiting = len(self._idle), len(self.waiting)
            busy = len(self._all) - idle
        for metric, value, at in (
            (HTTP_THREADS, busy, 0),
            (HTTP_THREADS, idle, 1),
            (HTTP_WAITING, waiting, 0),
        ):
            metric.set(value, at)

    def withdraw(self, task: T) -> bool:
        """Whether it was still in line; now it is not."""
        with self._lock:
            for entry in self.waiting:
                if entry[1] is task:
                    self.waiting.remove(entry)
                    return True
            return False

    def overdue(self, since: float) -> list[T]:
        """Those that wait since then or longer; they are in line no more."""
        late = []
        with self._lock:
            while self.waiting and self.waiting[0][0] <= since:
                late.append(self.waiting.popleft()[1])
        return late

    def close(self) -> None:
        """Idle workers end, the others when they are done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.wake.release()

    def _work(self, worker: Worker[T]) -> None:
        while (task := worker.task) is not None:
            try:
                task.serve()
            except BaseException:  # the thread's outermost edge: it goes on with what others wait for
                logger.exception("a worker stumbled")
            del task
            self._rest(worker)

    def _rest(self, worker: Worker[T]) -> None:
        """Until there is something to do; no task: nothing came, it ends."""
        with self._lock:
            if self.waiting and self._turns > 0:
                since, worker.task = self.waiting.popleft()
                self._begin(worker.task)
                QUEUE_SECONDS.observe(time.monotonic() - since)
                return
            worker.task = None
            if not self._closed:
                self._idle.append(worker)
        woken = not self._closed and worker.wake.acquire(timeout=IDLE_S)
        self._end_or_go_on(worker, woken)

    def _end_or_go_on(self, worker: Worker[T], woken: bool) -> None:
        with self._lock:
            if worker.task is None:  # both in one step: else who comes would wait for a worker that ends
                self._all.discard(worker)
                if worker in self._idle:
                    self._idle.remove(worker)
            elif not woken:  # it was given something at the last moment
                worker.wake.acquire()
