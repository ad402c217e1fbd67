"""A small durable write now and then: what it does tells whether the disk is fit to be written to."""

from __future__ import annotations

import logging
import threading

from distfs.process.threads import start
from distfs.storage.disk.store import DiskStore

log = logging.getLogger("distfs.disk")

#: A disk in trouble is tried so many times as often: it is to be used again soon.
_OFTENER = 5


class DiskWatch:
    """A thread of its own, since a write to a disk in trouble may never end."""

    def __init__(self, store: DiskStore, interval: float) -> None:
        self._store, self._interval = store, interval
        self._stopping = threading.Event()
        self._told = ""
        start(self._run, "disk-watch")

    def stop(self) -> None:
        """No further probes. One that hangs is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._store.probe()
                self._tell(self._store.trouble)
            except Exception:  # the thread's outermost edge
                log.exception("%s: the disk was not probed, by a bug", self._store.folder)
            self._stopping.wait(self._interval / _OFTENER if self._told else self._interval)

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            words = f"no new fragments are taken: {trouble}" if trouble else "the disk is well again"
            log.warning("%s: %s", self._store.folder, words)
            self._told = trouble
