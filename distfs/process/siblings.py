"""Several processes that do the same work: forked from one that supervises them, each replaced when it dies.

Their parent has one thread, so that it can fork at any time, and nothing to do but to wait: for a child's end, for a
signal to pass on, for its own parent's end. A child that dies is replaced at once, or after a pause that grows while
its successors die young. One that ends before all have been ready once ends all, with its code: what is wrong then is
rather a setting.

Children lead sessions of their own: Ctrl-C reaches the parent alone, which passes it on as SIGTERM. When the parent
is gone, whatever ended it, they see the end of a pipe (``parent_watch``), and stop.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from distfs.process import parent_watch
from distfs.process.forked import ended
from distfs.process.output import BUG, DONE, FAILED

log = logging.getLogger("distfs.processes")

#: Seconds before a process that died is replaced: the first time, and at most. One that lived for SETTLED_S died for
#: a new reason, and the pause begins anew.
PAUSE_FIRST_S, PAUSE_MOST_S, SETTLED_S = 0.1, 15.0, 30.0

_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass
class Hooks:
    """What else the parent does, when something happens to its children. None of it may start a thread."""

    ready: Callable[[], object]  # all have been ready once
    reload: Callable[[], object]  # before SIGHUP is passed on
    hung_up: Callable[[], bool]  # whether SIGHUP means that the terminal is gone
    stop: Callable[[], object]  # before they are told to stop, once
    died: Callable[[int], object]  # the one of this number, before it is replaced


class Sibling:
    """One of them, as it knows itself."""

    def __init__(self, number: int, life: int, ready: int, parent: int, state: mmap.mmap) -> None:
        """``life``: how many of this number there were before."""
        self.number, self.life = number, life
        self._ready, self._parent, self._state = ready, parent, state

    def begin(self) -> None:
        """It does its work from now on, and handles SIGTERM, SIGINT and SIGHUP."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        parent_watch.exit_with_parent(pipe=self._parent)
        with contextlib.suppress(OSError):  # the parent is gone
            os.write(self._ready, bytes([self.number % 256]))
        os.close(self._ready)

    @property
    def all_stop(self) -> bool:
        """Whether all were told to stop, not only this one."""
        return self._state[0] != 0

    def others_work(self, busy: bool) -> bool:
        """Whether any of the others still has something to do; ``busy``: whether this one has."""
        self._state[1 + self.number] = busy
        return any(self._state[1 + other] for other in range(len(self._state) - 1) if other != self.number)


@dataclass
class _Place:
    """Of one child and its successors."""

    number: int
    pid: int = 0  # 0: there is none
    ready: bool = False
    started: float = 0.0
    due: float = 0.0  # when the next one is started
    pause: float = PAUSE_FIRST_S
    lives: int = 0


class Siblings:
    """The parent's side. ``run`` once, from the main thread of a process without others."""

    def __init__(self, name: str, count: int, work: Callable[[Sibling], int], hooks: Hooks) -> None:
        """``work``: what each does, until it is told to stop; -> its exit code. It raises nothing."""
        self._name, self._work, self._hooks = name, work, hooks
        self._places = [_Place(number) for number in range(count)]
        self._state = mmap.mmap(
            -1, 1 + count
        )  # shared: whether all stop, and whether each has something to do
        self._settled = False  # all have been ready once
        self._worst = DONE
        self._end_at = float("inf")

    def run(self, *, exit_with_parent: bool = False) -> int:
        """-> the worst exit code of those that ended since they were to stop.

        ``exit_with_parent``: stop when standard input ends.
        """
        self._life, self._lives = os.pipe()  # the end that nobody writes to closes with the parent
        self._readable, self._ready = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._readable, select.POLLIN)
        self._stdin = parent_watch.standard_input() if exit_with_parent else -1
        if exit_with_parent:
            self._poll.register(self._stdin, select.POLLIN)
        gc.collect()
        gc.freeze()  # what all share is not written to by who looks for garbage
        try:
            with self._signals() as self._heard:
                self._poll.register(self._heard, select.POLLIN)
                self._start(self._places[0])  # what is wrong is said by one
                while any(place.pid or place.due for place in self._places):
                    self._turn()
        finally:
            gc.unfreeze()
        return self._worst

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """-> where the number of each that comes can be read."""
        heard, self._tells = os.pipe()
        for end in (heard, self._tells, self._readable):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, lambda *_: None) for number in _HEARD}
        told = signal.set_wakeup_fd(self._tells, warn_on_full_buffer=False)
        try:
            yield heard
        finally:
            signal.set_wakeup_fd(told)
            for number, handler in before.items():
                signal.signal(number, handler)
            for end in (heard, self._tells, self._readable, self._ready, self._life, self._lives):
                os.close(end)

    def _turn(self) -> None:
        now = time.monotonic()
        until = min([self._end_at, *(place.due for place in self._places if place.due)])
        wait = None if until == float("inf") else max(0.0, until - now) * 1000
        ready = {fd for fd, _ in self._poll.poll(wait)}
        if self._heard in ready:
            self._hear(os.read(self._heard, 4096))
        if self._readable in ready:
            self._note_ready(os.read(self._readable, 4096))
        if self._stdin in ready and not self._read_stdin():
            self._poll.unregister(self._stdin)
            self._end_at = time.monotonic() + parent_watch.GRACE
            self._stop()
        now = time.monotonic()
        if now >= self._end_at:
            self._signal(signal.SIGKILL)
        for place in self._places:
            if place.due and now >= place.due:
                self._start(place)

    def _read_stdin(self) -> bool:
        try:
            return bool(os.read(self._stdin, 4096))
        except OSError:  # it cannot be read: a parent that is gone
            return False

    def _hear(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT) or (
                number == signal.SIGHUP and self._hooks.hung_up()
            ):
                self._stop()
            elif number == signal.SIGHUP:
                self._hooks.reload()
                self._signal(signal.SIGHUP)
        for place in self._places:
            self._look_at(place)

    def _note_ready(self, numbers: bytes) -> None:
        for place in self._places:
            place.ready = place.ready or place.number % 256 in numbers
        if self._settled or self._state[0]:
            return
        if all(place.ready for place in self._places):
            self._settled = True
            self._hooks.ready()
        for place in self._places:
            if not place.pid and not place.due:
                self._start(place)

    def _look_at(self, place: _Place) -> None:
        """Whether it has ended."""
        if not place.pid:
            return
        pid = place.pid
        code = ended(pid, os.WNOHANG)
        if code is None:
            return
        place.pid = self._state[1 + place.number] = 0
        self._hooks.died(place.number)
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
        if self._state[0]:
            if code == -signal.SIGTERM:  # it had not begun to handle that
                code = DONE
            self._worst = max(self._worst, code if code >= 0 else FAILED)
            if code:
                log.error("%s process %d %s", self._name, pid, how)
        elif not self._settled:
            log.error("%s process %d %s before it was ready", self._name, pid, how)
            self._worst = code if code > 0 else FAILED
            self._stop()
        else:
            self._put_off(place, f"process {pid} {how}")

    def _put_off(self, place: _Place, why: str) -> None:
        now = time.monotonic()
        if now - place.started > SETTLED_S:
            place.pause = PAUSE_FIRST_S
        log.error("%s %s; another is started in %g s", self._name, why, place.pause)
        place.due = now + place.pause
        place.pause = min(2 * place.pause, PAUSE_MOST_S)

    def _stop(self) -> None:
        """All; for the second time: at once."""
        if not self._state[0]:
            self._state[0] = 1
            self._hooks.stop()
        for place in self._places:
            place.due = 0.0
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(place.pid, number)

    def _start(self, place: _Place) -> None:
        place.due, place.started, place.lives = 0.0, time.monotonic(), place.lives + 1
        self._state[1 + place.number] = 1
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        try:
            place.pid = os.fork() or self._live(place.number, place.lives - 1)
        except OSError as e:
            self._state[1 + place.number] = 0
            self._put_off(place, f"process cannot be started ({e.strerror})")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _live(self, number: int, life: int) -> NoReturn:
        """A child's life."""
        code = BUG
        try:
            code = self._work(self._become(number, life))
        except BaseException:  # noqa: BLE001 - the process's outermost edge
            traceback.print_exc()
        finally:
            os._exit(code)  # what is below on the stack is the parent's

    def _become(self, number: int, life: int) -> Sibling:
        """A child, which a signal ends until it handles it; SIGHUP waits for that."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        for each in _HEARD:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_HEARD) - {signal.SIGHUP})
        for end in (self._lives, self._readable, self._heard, self._tells):
            os.close(end)
        return Sibling(number, life, self._ready, self._life, self._state)
