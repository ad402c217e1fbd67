"""Connections of which nothing is read for a while: who shows wrong tokens there again and again costs no more."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator

from distfs.host.connection import Connection


class Resting:
    """Used by the loop's thread, but for ``add``."""

    def __init__(self) -> None:
        self._new: deque[Connection] = deque()
        self._until: list[tuple[float, int, Connection]] = []
        self._serial = itertools.count()

    def add(self, connection: Connection) -> None:
        """From any thread; the loop is to be woken."""
        self._new.append(connection)

    def first(self) -> float:
        """When to look again; infinite: not for any of these."""
        return self._until[0][0] if self._until else float("inf")

    def rested(self, now: float) -> Iterator[Connection]:
        """Those whose rest is over; of those that have come since the last look it begins."""
        while self._new:
            connection = self._new.popleft()
            heapq.heappush(self._until, (now + connection.rests, next(self._serial), connection))
        while self._until and self._until[0][0] <= now:
            yield heapq.heappop(self._until)[2]
