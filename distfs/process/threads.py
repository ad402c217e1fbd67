"""Threads: one that cannot start is refused in words, and whoever waits for one hears of its end, whatever it was."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

from distfs.errors import Busy, DistfsError

P = ParamSpec("P")
R = TypeVar("R")

_Work = tuple["Future[Any]", Callable[[], Any]]


def begin(thread: threading.Thread) -> None:
    """Start it. Raises Busy when the system allows no further one."""
    try:
        thread.start()
    except (RuntimeError, MemoryError) as e:
        raise _none_left(thread.name, e) from e


def start(target: Callable[..., object], name: str, *args: Any) -> threading.Thread:
    """A thread that does not keep its process alive. Raises Busy when the system allows no further one."""
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    begin(thread)
    return thread


def stacks() -> str:
    """Where each thread of this process is just now, the newest call last; no values of variables are told."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = [
        f"thread {names.get(ident, '?')} ({ident}):\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    return "\n".join(told)


def as_ours(error: BaseException) -> DistfsError:
    """What ended a thread, for those who wait for it. What nobody thought of is a bug: who caught it logs it."""
    if isinstance(error, DistfsError):
        return error
    if isinstance(error, MemoryError):
        return Busy(
            "the service is out of memory: give it more, or lower storage.memory_budget or http.threads"
        )
    return DistfsError(f"a thread ended by a bug: {error!r}")


class Threads(Executor):
    """Up to ``most`` threads, started as they are needed. What finds all of them busy waits for one.

    The standard library's queues work before it starts the thread for it. When that fails, another comes to the
    work some day, though its caller has been told that it failed; and from then on it counts one thread too many as
    idle, so that work waits behind work that never ends.
    """

    def __init__(self, most: int, thread_name_prefix: str) -> None:
        self._most, self._name = most, thread_name_prefix
        self._changed = threading.Condition()
        self._waiting: deque[_Work] = deque()
        self._threads = self._idle = 0
        self._closed = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Raises Busy when no thread can be started for it; then it is never done."""
        future: Future[R] = Future()
        work = future, partial(fn, *args, **kwargs)
        with self._changed:
            if self._closed:
                raise Busy("this service is stopping")
            if len(self._waiting) < self._idle or self._threads == self._most:
                self._waiting.append(work)
                self._changed.notify()
                return future
            self._threads += 1
        try:
            start(self._run, self._name, work)
        except BaseException:
            with self._changed:
                self._threads -= 1
            raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further work; ``cancel_futures``: nor begin what waits for a thread."""
        with self._changed:
            self._closed = True
            if cancel_futures:
                for future, _ in self._waiting:
                    if future.cancel():
                        future.set_running_or_notify_cancel()  # else who waits for it is not woken
                self._waiting.clear()
            self._changed.notify_all()
            while wait and self._threads:
                self._changed.wait()

    def _run(self, work: _Work | None) -> None:
        while work is not None:
            future, do = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(do())
                except BaseException as e:  # noqa: BLE001 - the thread's outermost edge: who waits is told
                    future.set_exception(e)
            del work, future, do  # while it is idle it holds nothing
            work = self._next()

    def _next(self) -> _Work | None:
        """The next work; None: there will be none any more."""
        with self._changed:
            self._idle += 1
            while not (self._waiting or self._closed):
                self._changed.wait()
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            self._changed.notify_all()
            return None


def _none_left(name: str, error: BaseException) -> Busy:
    return Busy(
        f"{name} cannot be started ({error}): raise the limit of threads (`ulimit -u`, a container's pids limit) "
        "or of memory, or lower http.threads"
    )
