"""A breaker: whoever fails again and again is left alone for a while, then asked once. Pure, on a clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import Enum

from distfs.telemetry.metrics import OPENINGS

_LONGEST_PAUSE = 12  # times the first


class State(Enum):
    CLOSED = "closed"  # all is well
    OPEN = "open"  # left alone
    PROBING = "probing"  # asked once, to see


class Breaker:
    """Thread-safe. Opens after ``failures`` in a row; closes with the first success, whoever had it.

    It refuses nothing by itself: it says who should be asked last, and when to probe.
    """

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``pause``: seconds before the first probe; doubled by every probe that fails, to twelve times."""
        self._threshold, self._first_pause, self._clock = failures, pause, clock
        self._lock = threading.Lock()
        self._in_a_row = 0
        self._pause = pause
        self.state = State.CLOSED  # to be read by anybody
        self._since = 0.0  # when it opened, or the probe began
        self.opened = 0  # times

    def succeeded(self) -> None:
        """The peer answered."""
        if not self._in_a_row and self.state is State.CLOSED:
            return  # the usual case, without the lock
        with self._lock:
            self._in_a_row = 0
            self._pause = self._first_pause
            self.state = State.CLOSED

    def failed(self) -> None:
        """It did not, or broke off."""
        with self._lock:
            self._in_a_row += 1
            if self.state is State.PROBING:
                self._pause = min(2 * self._pause, _LONGEST_PAUSE * self._first_pause)
                self._open()
            elif self.state is State.CLOSED and self._in_a_row >= self._threshold:
                self.opened += 1
                OPENINGS.add()
                self._open()

    def may_probe(self) -> bool:
        """True once, when the pause is over: ask now. A probe of which nothing is heard is let go after as long."""
        if self.state is State.CLOSED:
            return False
        with self._lock:
            due = self._clock() - self._since >= self._pause
            if due:
                self.state, self._since = State.PROBING, self._clock()
            return due

    def _open(self) -> None:
        self.state, self._since = State.OPEN, self._clock()
