"""What readers find wrong on their way is told to MetaDB, off that way: repair does the rest."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.model import FragmentId
from distfs.process.threads import start
from distfs.upkeep.db import UpkeepDB

log = logging.getLogger("distfs.upkeep")

_MOST_WAITING = 1000
_REPEAT_AFTER_S = 60.0
_NOTE_LIMIT_S = 5.0


class DamageNotes:
    """Call it with what was found. Never waits and never raises; its thread starts with the first note.

    The same fragment is told once a minute at most. What cannot be told (too much at once, MetaDB away) is
    found again by the next reader, or by scrub.
    """

    def __init__(self, db: UpkeepDB) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._told: dict[tuple[FragmentId, int], float] = {}
        self._waiting: queue.Queue[tuple[FragmentId, int, str] | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._closed = False

    def __call__(self, fragment: FragmentId, node: int, error: DistfsError) -> None:
        """``error``: what reading ``fragment`` on ``node`` raised: Corrupt or NotFound."""
        key, now = (fragment, node), time.monotonic()
        with self._lock:
            if self._closed or now - self._told.get(key, float("-inf")) < _REPEAT_AFTER_S:
                return
            if len(self._told) >= _MOST_WAITING:
                self._told = {k: at for k, at in self._told.items() if now - at < _REPEAT_AFTER_S}
            try:
                self._waiting.put_nowait((fragment, node, str(error)))
            except queue.Full:
                return
            self._told[key] = now
            if self._thread is None or not self._thread.is_alive():
                with contextlib.suppress(Busy):  # the next note tries again, and this one waits for it
                    self._thread = start(self._run, "damage-notes")

    def close(self) -> None:
        """Tell what waits, within a bound, and end."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            try:
                self._waiting.put(None, timeout=_NOTE_LIMIT_S)
            except queue.Full:
                return
            thread.join(_NOTE_LIMIT_S)

    def _run(self) -> None:
        while (note := self._waiting.get()) is not None:
            fragment, node, reason = note
            try:
                noted = self._db.note_damage(
                    fragment.slice, fragment.index, node, reason, Deadline(_NOTE_LIMIT_S)
                )
            except DistfsError as e:
                log.info("damage of fragment %s on node %d is not noted: %s", fragment, node, e)
                with self._lock:
                    self._told.pop((fragment, node), None)
                continue
            except Exception:  # the thread's outermost edge
                log.exception("damage of fragment %s on node %d is not noted, by a bug", fragment, node)
                continue
            if noted:
                log.warning("fragment %s on node %d is to be made anew: %s", fragment, node, reason)
