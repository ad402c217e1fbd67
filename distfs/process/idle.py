"""How much of the machine's processors nobody uses just now. See proc_stat(5)."""

from __future__ import annotations

import os
import time

_PATH = "/proc/stat"
_AGAIN_S, _STALE_S = 0.1, 2.0


class Idle:
    """Looked at when it is asked for, at most ten times a second. What waits for a disk leaves its processor idle.
    Thread-safe: two that look at once find the same."""

    def __init__(self) -> None:
        self._looked = float("-inf")
        self._before = (0, 0)
        self._share = 1.0

    def share(self) -> float:
        """From 0 to 1, since the look before. 1 where nobody can tell, and after a while in which nobody asked: what
        was then says nothing of now."""
        now = time.monotonic()
        if now - self._looked < _AGAIN_S:
            return self._share
        first, self._looked = now - self._looked > _STALE_S, now
        idle, all_ = _ticks()
        passed = all_ - self._before[1]
        if all_ == 0 or first:
            self._share = 1.0
        elif passed > 0:
            self._share = min(1.0, max(0.0, (idle - self._before[0]) / passed))
        self._before = idle, all_
        return self._share


def _ticks() -> tuple[int, int]:
    """Idle, and in all, of all processors since the system began; zeros where nobody can tell."""
    try:
        fd = os.open(_PATH, os.O_RDONLY)
        try:
            words = os.read(fd, 256).split(b"\n", 1)[0].split()
        finally:
            os.close(fd)
        counts = [int(word) for word in words[1:9]]  # guests are counted among users
    except (OSError, ValueError):
        return 0, 0
    return sum(counts[3:5]), sum(counts)
