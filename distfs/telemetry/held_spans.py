"""Spans of a node whose trace nobody wanted yet: that something in it failed, or that it took long, a service knows
only at its end, and says so then. A bounded number waits for that; the oldest go first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

MOST_SPANS, MOST_WANTED = 5000, 1000
S = TypeVar("S")


class Held(Generic[S]):
    """Thread-safe."""

    def __init__(self, send: Callable[[Sequence[S]], object]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._traces: OrderedDict[int, list[Callable[[], list[S]]]] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._count = 0
        self._wanted: OrderedDict[int, None] = OrderedDict()

    def add(self, trace: int, count: int, spans: Callable[[], list[S]]) -> None:
        """Hold ``count`` spans, which ``spans`` makes ready; or send them, if the trace is wanted already."""
        with self._lock:
            wanted = trace in self._wanted
            if not wanted:
                self._traces.setdefault(trace, []).append(spans)
                self._sizes[trace] = self._sizes.get(trace, 0) + count
                self._count += count
                while self._count > MOST_SPANS:
                    oldest, _ = self._traces.popitem(last=False)
                    self._count -= self._sizes.pop(oldest)
        if wanted:
            self._send(spans())

    def want(self, traces: Iterable[int]) -> None:
        """Send what is held of these, and what comes of them yet."""
        found: list[Callable[[], list[S]]] = []
        with self._lock:
            for trace in traces:
                self._wanted[trace] = None
                if trace in self._traces:
                    found += self._traces.pop(trace)
                    self._count -= self._sizes.pop(trace)
            while len(self._wanted) > MOST_WANTED:
                self._wanted.popitem(last=False)
        for spans in found:
            self._send(spans())
