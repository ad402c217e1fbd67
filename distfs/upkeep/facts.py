"""What MetaDB knows of the whole cluster, for who measures: looked at off everybody's way, now and then."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.process.threads import start
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import HurtCount, WorkerState

log = logging.getLogger("distfs.upkeep")

#: It is looked at again after so long, and no sooner than so many times of how long the last look took: what is lost
#: with a large node is many pages.
EVERY_S, REST = 15.0, 20
_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one moment."""

    at: float  # on the monotonic clock
    workers: tuple[WorkerState, ...]
    hurt: tuple[HurtCount, ...]
    damaged: int  # fragments that are noted and not repaired yet
    to_erase: int  # files of the trash whose end has begun
    clock_offset: float  # seconds by which our clock is ahead of MetaDB's


class FactFinder:
    """Thread-safe. A thread of its own looks, whenever somebody asks and the last look is old."""

    def __init__(self, db: UpkeepDB) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._looking = False
        self._due = float("-inf")
        self._last: Facts | None = None

    def last(self) -> Facts | None:
        """As they were when they were looked at last; None: not yet. Never waits, never raises."""
        with self._lock:
            if not self._looking and time.monotonic() >= self._due:
                with contextlib.suppress(Busy):  # no thread is to be had
                    start(self._look, "facts")
                    self._looking = True
        return self._last

    def _look(self) -> None:
        began = time.monotonic()
        try:
            self._last = self._found(Deadline(_LIMIT_S))
        except DistfsError as e:
            log.info("how the cluster is cannot be told to who measures it: %s", e)
        finally:
            now = time.monotonic()
            with self._lock:
                self._due = now + max(EVERY_S, REST * (now - began))
                self._looking = False

    def _found(self, deadline: Deadline) -> Facts:
        before = time.time()
        theirs = self._db.clock(deadline)
        offset = (before + time.time()) / 2 - theirs
        return Facts(
            time.monotonic(),
            tuple(self._db.workers(deadline)),
            tuple(self._db.hurt_counts(deadline)),
            self._db.damage_count(deadline),
            self._db.trash_to_erase(deadline),
            offset,
        )
