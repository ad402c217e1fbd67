"""Whether a disk is fit to be written to, from what its writes did lately. Pure, on a clock.

A disk that fails writes, has turned read-only, or takes seconds for a small durable one gets no new fragments: its
node says so. What it keeps can still be read and deleted. Small writes of the node's own show when it is well again.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

_ERRORS = 3  # in a row: it is the disk, not one bad sector
_SLOW = 3  # probes in a row
_GOOD = 3  # probes in a row, before it is trusted again
#: Errors that are not the disk's fault, or are told otherwise.
_OTHERS = (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DiskHealth:
    """Thread-safe."""

    def __init__(self, slow_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``slow_after``: seconds that a small durable write may take."""
        self._slow_after, self._clock = slow_after, clock
        self._lock = threading.Lock()
        self._errors = self._slow = self._good = 0  # each in a row
        self._reason = ""
        self._probing_since: float | None = None

    @property
    def trouble(self) -> str:
        """Why it is not fit, in words; empty: it is. A probe that hangs tells as soon as it is too late."""
        with self._lock:
            hangs = self._probing_since is not None and self._clock() - self._probing_since
            if not self._reason and hangs and hangs > self._slow_after * _SLOW:
                return f"a small write has not ended for {hangs:.0f} s"
            return self._reason

    def wrote(self) -> None:
        """A fragment became durable."""
        if self._errors:
            with self._lock:
                self._errors = 0

    def failed(self, error: OSError) -> None:
        """A write failed."""
        if error.errno in _OTHERS:
            return
        with self._lock:
            self._errors += 1
            self._good = 0
            if self._errors >= _ERRORS:
                self._reason = f"writes fail: {error.strerror or error}"

    def probe_begins(self) -> None:
        with self._lock:
            self._probing_since = self._clock()

    def probe_failed(self, error: OSError) -> None:
        """As ``failed``; the probe hangs no more, whatever ended it."""
        with self._lock:
            self._probing_since = None
        self.failed(error)

    def lost(self, reason: str) -> None:
        """There is no such disk any more: nothing to count. Good probes end it as they end any trouble."""
        with self._lock:
            self._probing_since = None
            self._reason, self._good = reason, 0

    def probe_ended(self) -> None:
        """The small write is durable."""
        with self._lock:
            took = self._clock() - (self._probing_since if self._probing_since is not None else self._clock())
            self._probing_since = None
            if took > self._slow_after:
                self._slow, self._good = self._slow + 1, 0
                if self._slow >= _SLOW:
                    self._reason = f"a small write took {took:.1f} s, {self._slow_after:.1f} s are the limit"
                return
            self._slow, self._good = 0, self._good + 1
            if self._good >= _GOOD:
                self._errors, self._reason = 0, ""
