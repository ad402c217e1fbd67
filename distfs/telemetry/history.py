"""The last hour of a service in rows of ten seconds, for pictures that need nothing installed.

Counts are of all processes, since their cells are shared: so each keeps the whole, and whoever is asked can answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from distfs.process.threads import start
from distfs.telemetry import metrics

EVERY_S, ROWS = 10, 360
COLUMNS = ("time", "requests", "errors", "received", "sent", "in_flight", "nodes_up", "slices")
_FAILED = metrics.CLASSES.index("5xx")

#: Seconds for which who has asked is thought to ask again.
WATCHED_S = 300.0
#: Is told whether somebody watches -> nodes that are up, and slices by redundancy left; None: that is not known.
Look = Callable[[bool], tuple[int | None, Mapping[str, int] | None]]

log = logging.getLogger("distfs.history")


class History:
    """Thread-safe."""

    def __init__(self, look: Look) -> None:
        """Nothing runs before ``begin``. ``look`` waits for nobody."""
        self._look = look
        self._rows: deque[list[Any]] = deque(maxlen=ROWS)
        self._before = [0.0] * 4
        self._lock = threading.Lock()
        self._runs = False
        self._asked_at = float("-inf")

    def begin(self) -> None:
        """Keep it from now on; does nothing the second time. Raises Busy."""
        with self._lock:
            if not self._runs:
                self._before = _counts(metrics.sums())
                start(self._run, "history")
                self._runs = True

    def as_json(self) -> dict[str, Any]:
        """``requests`` to ``sent`` are of the seconds up to ``time``, the others as they were then."""
        self._asked_at = time.monotonic()
        return {"every_s": EVERY_S, "columns": list(COLUMNS), "rows": list(self._rows)}

    def add(self) -> None:
        """One row more."""
        sums = metrics.sums()
        counts = _counts(sums)
        grown = [round(max(0.0, now - before)) for now, before in zip(counts, self._before, strict=True)]
        self._before = counts
        nodes, slices = self._look(time.monotonic() - self._asked_at < WATCHED_S)
        in_flight = round(sums[metrics.IN_FLIGHT.first])
        self._rows.append([round(time.time()), *grown, in_flight, nodes, slices])

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(EVERY_S)
            try:
                self.add()
            except Exception:  # the thread's outermost edge
                log.exception("a row of the history is missing, by a bug")


def _counts(sums: list[float]) -> list[float]:
    """Requests, those that failed, bytes received and sent."""
    requests, received, sent = (
        sums[metric.first : metric.first + len(metrics.ROUTES) * len(metrics.METHODS) * len(metrics.CLASSES)]
        for metric in (metrics.REQUESTS, metrics.RECEIVED, metrics.SENT)
    )
    return [sum(requests), sum(requests[_FAILED :: len(metrics.CLASSES)]), sum(received), sum(sent)]
