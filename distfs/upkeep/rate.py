"""Rates: arithmetic on a clock, without a thread or a sleep."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

Clock = Callable[[], float]

#: How far back a meter looks.
WINDOW_S = 60.0
#: What a worker failed at is tried again after so long, however often it failed.
_BACKOFF_MOST_S = 600.0


class TokenBucket:
    """At most ``rate`` bytes a second on average; 0: no limit.

    Work is of any size and is not cut: what was spent is waited for afterwards. Time that nobody used is not
    saved up, so there is never a burst longer than one piece of work.
    """

    def __init__(self, rate: float, clock: Clock = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._free_at = clock()

    def spend(self, amount: float) -> None:
        """``amount`` bytes were moved."""
        if self._rate > 0:
            self._free_at = max(self._free_at, self._clock()) + amount / self._rate

    def wait(self) -> float:
        """Seconds until the next piece of work may begin; 0: now."""
        return max(0.0, self._free_at - self._clock())


class Meter:
    """What was moved lately, in bytes a second."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()
        self._since = clock()

    def add(self, amount: float) -> None:
        now = self._clock()
        if not self._seen:
            self._since = now
        self._seen.append((now, amount))
        self._forget(now)

    def rate(self) -> float:
        """Over the last minute, or since the first of it; 0 when nothing was moved."""
        now = self._clock()
        self._forget(now)
        moved = sum(amount for _, amount in self._seen)
        return moved / max(now - max(self._since, now - WINDOW_S), 1.0)

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()


class Backoff:
    """What failed is left alone for a while: twice as long after each failure, up to ``most`` seconds."""

    def __init__(self, first: float, most: float, clock: Clock = time.monotonic, keep: int = 100_000) -> None:
        self._first, self._most, self._clock, self._keep = first, most, clock, keep
        self._until: dict[object, tuple[float, float]] = {}  # key -> when, and the pause that led there

    @classmethod
    def of(cls, interval: float) -> Backoff:
        """That of a worker that looks again every ``interval`` seconds."""
        return cls(2 * interval, max(2 * interval, _BACKOFF_MOST_S))

    def failed(self, key: object) -> None:
        _, pause = self._until.pop(key, (0.0, self._first / 2))
        pause = min(pause * 2, self._most)
        self._until[key] = self._clock() + pause, pause
        if len(self._until) > self._keep:  # the one that failed longest ago
            del self._until[next(iter(self._until))]

    def succeeded(self, key: object) -> None:
        self._until.pop(key, None)

    def clear(self) -> None:
        """Try everything again at once."""
        self._until.clear()

    def wait(self, key: object) -> float:
        """Seconds for which to leave ``key`` alone; 0: try it."""
        until, _ = self._until.get(key, (0.0, 0.0))
        return max(0.0, until - self._clock())

    @property
    def waiting(self) -> int:
        """How many are being left alone now."""
        now = self._clock()
        return sum(until > now for until, _ in self._until.values())
