"""Nodes are told which traces are kept that only their end made worth it: they hold their spans for a while."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.peers.client import NodeClient
from distfs.process.threads import start

#: Seconds for which they are gathered, and that telling one node has; of them at once, and that wait.
_GATHER_S, _LIMIT_S, _BATCH, _MOST = 0.2, 2.0, 200, 1000


class WantedTraces:
    """Thread-safe. A thread tells, while there is something to tell; nobody waits for it."""

    def __init__(self, clients: Callable[[], Iterable[NodeClient]]) -> None:
        """``clients``: of the nodes that this process has asked something."""
        self._clients = clients
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque(maxlen=_MOST)
        self._tells = False

    def add(self, trace: str) -> None:
        """Its id. Never waits, never raises."""
        with self._lock:
            self._waiting.append(trace)
            if self._tells:
                return
            self._tells = True
        try:
            start(self._run, "wanted traces")
        except Busy:
            self._tells = False

    def _run(self) -> None:
        while True:
            time.sleep(_GATHER_S)
            with self._lock:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                if not batch:
                    self._tells = False
                    return
            for client in self._clients():
                with contextlib.suppress(DistfsError):  # its spans are missing then
                    client.want_traces(batch, Deadline(_LIMIT_S))
