"""When a read is late, and how many may be asked twice (Dean, Barroso: The Tail at Scale). Pure, no I/O."""

from __future__ import annotations

import math
import threading
import time
from collections import deque

from distfs.telemetry.metrics import HEDGES

_WINDOW = 64  # samples of a node's recent history
_RANK_EVERY = 4  # samples
_RECENT = 8  # of those, what it is like now
#: A burst of hedges allowed before any reads have earned them: a node that vanishes meets all who read from it.
BURST = 32
_ASKED, _WON, _REFUSED = (HEDGES.index(what) for what in ("asked", "won", "refused"))


class LatencyHistory:
    """A node's recent latencies to the first byte, in seconds. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: deque[float] = deque(maxlen=_WINDOW)
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._unranked = 0
        self.p95 = 0.0  # 95 of 100 of the recent ones were at most this; 0 without any
        self.typical = 0.0  # the median of the last few; 0 without any
        self.heard_at = float("-inf")

    def add(self, seconds: float, now: float | None = None) -> None:
        """One request's latency; of one given up, what was waited. ``now``: if somebody has looked at the clock."""
        with self._lock:
            self._samples.append(seconds)
            self._recent.append(seconds)
            self._unranked += 1
            # Sorting costs more than a small read's worth: not for each, but at once for one that stands out.
            if self._unranked >= _RANK_EVERY or seconds > self.p95:
                self._rank()
            recent = sorted(self._recent)
            self.typical = recent[(len(recent) - 1) // 2]
            self.heard_at = time.monotonic() if now is None else now

    def _rank(self) -> None:
        self._unranked = 0
        ranked = sorted(self._samples)
        self.p95 = ranked[math.ceil(0.95 * len(ranked)) - 1]


class HedgeBudget:
    """At most ``share`` of all reads may be asked a second time, and a burst. A counter; thread-safe."""

    def __init__(self, share: float, burst: float = BURST) -> None:
        self._share, self._burst = share, burst if share > 0 else 0.0
        self._lock = threading.Lock()
        self._left = self._burst
        self.reads = self.hedged = self.refused = self.won = 0

    def count(self, reads: int = 1) -> None:
        """So many reads were asked for once."""
        with self._lock:
            self.reads += reads
            if self._left < self._burst:
                self._left = min(self._burst, self._left + reads * self._share)

    def spend(self) -> bool:
        """Whether one more read may be asked twice; then it is counted."""
        with self._lock:
            allowed = self._left >= 1
            if allowed:
                self._left -= 1
                self.hedged += 1
            else:
                self.refused += 1
            HEDGES.add(at=_ASKED if allowed else _REFUSED)
            return allowed

    def win(self) -> None:
        """The second one was first."""
        with self._lock:
            self.won += 1
            HEDGES.add(at=_WON)

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return {"reads": self.reads, "hedged": self.hedged, "won": self.won, "refused": self.refused}
