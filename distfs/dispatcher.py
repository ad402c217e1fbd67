"""The worker threads of the HTTP host, and who may have one.

A large upload or a download keeps its worker for as long as its client takes. Those never get the last few, the
reserve: whatever such clients do, a health check or a small upload finds a worker.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from waitress.task import ThreadedTaskDispatcher

if TYPE_CHECKING:
    from distfs.channel import Channel

#: How long a download may wait for a worker before it is told to come again.
WAIT_LIMIT_S = 20.0


class Dispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """The threads, and how many of them channels have claimed, queued or running."""

    def __init__(self, threads: int, reserve: int) -> None:
        super().__init__()
        self._free = threads
        self._reserve = reserve
        self._long_free = max(1, threads - reserve)  # workers for requests that may take long
        self._waiting: deque[tuple[float, Channel]] = deque()  # such requests, with the time they give up
        self.set_thread_count(threads)

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

    def add_task(self, task: Channel) -> None:
        """Run it as soon as a worker is free; a long one, when that is not of the reserve."""
        with self.lock:
            task.long = task.may_take_long
            if task.long and not self._long_free:
                self._waiting.append((time.monotonic() + WAIT_LIMIT_S, task))
                return
            self._long_free -= task.long
            self._run(task)

    def end_task(self, task: Channel) -> None:
        """Its request is served: another long one may begin."""
        with self.lock:
            if task.long and self._waiting:
                self._run(self._waiting.popleft()[1])
            else:
                self._long_free += task.long
            task.long = False

    def end_waits(self, now: float) -> None:
        """Answer those that waited for too long; any worker does that."""
        with self.lock:
            while self._waiting and self._waiting[0][0] <= now:
                task = self._waiting.popleft()[1]
                task.long = False
                task.refuse_busy()
                self._run(task)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        with self.lock:
            self.queue.extend(task for _, task in self._waiting)
            self._waiting.clear()
        return bool(super().shutdown(cancel_pending, timeout))

    def _run(self, task: Channel) -> None:
        """Without waitress's warning for each task that has to wait."""
        self.queue.append(task)
        self.queue_cv.notify()
