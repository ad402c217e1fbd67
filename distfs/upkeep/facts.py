"""What MetaDB knows of the whole cluster, for who measures: looked at off everybody's way, now and then."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.meta import MetaDB
from distfs.model import Strangers
from distfs.process.threads import start
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import ClusterStatus, HurtCount, WorkerState

log = logging.getLogger("distfs.upkeep")

#: It is looked at again after so long, and no sooner than so many times of how long the last look took: what is lost
#: with a large node is many pages.
EVERY_S, REST = 15.0, 20
_LIMIT_S = 10.0
#: The same of what goes through everything.
COUNT_EVERY_S, COUNT_REST, _COUNT_LIMIT_S = 60.0, 50, 600.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one moment."""

    at: float  # on the monotonic clock
    workers: tuple[WorkerState, ...]
    hurt: tuple[HurtCount, ...]
    damaged: int  # fragments that are noted and not repaired yet
    oldest: float  # seconds since the first loss of all that is not repaired yet; 0: there is none
    backup_age: float  # seconds since MetaDB was backed up last; infinite: it never was
    to_erase: int  # files of the trash whose end has begun
    strangers: tuple[Strangers, ...]  # whom nodes have refused lately
    clock_offset: float  # seconds by which our clock is ahead of MetaDB's


@dataclass(frozen=True, slots=True)
class Inventory:
    """All there is, of one moment: who counts it goes through all files and slices."""

    at: float  # on the monotonic clock
    status: ClusterStatus
    fragments: Mapping[int, int]  # by node


T = TypeVar("T")


class Finder(Generic[T]):
    """Thread-safe. A thread of its own looks, whenever somebody asks and the last look is old."""

    def __init__(self, find: Callable[[Deadline], T], every: float, rest: int, limit: float) -> None:
        """``find`` is called no sooner than ``every`` seconds after it was last, and ``rest`` times of how long that
        took; it has ``limit`` seconds."""
        self._find, self._every, self._rest, self._limit = find, every, rest, limit
        self._lock = threading.Lock()
        self._looking = False
        self._due = float("-inf")
        self._last: T | None = None

    def last(self) -> T | None:
        """As it was when it was looked at last; None: not yet. Never waits, never raises."""
        with self._lock:
            if not self._looking and time.monotonic() >= self._due:
                with contextlib.suppress(Busy):  # no thread is to be had
                    start(self._look, "facts")
                    self._looking = True
        return self._last

    def known(self) -> T | None:
        """The same; nobody looks for its sake."""
        return self._last

    def _look(self) -> None:
        began = time.monotonic()
        try:
            self._last = self._find(Deadline(self._limit))
        except DistfsError as e:
            log.info("how the cluster is cannot be told to who measures it: %s", e)
        finally:
            now = time.monotonic()
            with self._lock:
                self._due = now + max(self._every, self._rest * (now - began))
                self._looking = False


def finders(meta: MetaDB, db: UpkeepDB) -> tuple[Finder[Facts], Finder[Inventory]]:
    """Of the cluster whose MetaDB that is; ``db`` is over it."""
    return (
        Finder(lambda deadline: _facts(meta, db, deadline), EVERY_S, REST, _LIMIT_S),
        Finder(lambda deadline: _inventory(db, deadline), COUNT_EVERY_S, COUNT_REST, _COUNT_LIMIT_S),
    )


def _facts(meta: MetaDB, db: UpkeepDB, deadline: Deadline) -> Facts:
    before = time.time()
    theirs = db.clock(deadline)
    offset = (before + time.time()) / 2 - theirs
    return Facts(
        time.monotonic(),
        tuple(db.workers(deadline)),
        tuple(db.hurt_counts(deadline)),
        db.damage_count(deadline),
        db.oldest_loss(deadline),
        db.backup_age(deadline),
        db.trash_to_erase(deadline),
        tuple(meta.strangers(deadline)),
        offset,
    )


def _inventory(db: UpkeepDB, deadline: Deadline) -> Inventory:
    status = db.status(deadline)
    fragments = {node.id: db.fragments_left(node.id, deadline) for node in status.nodes}
    return Inventory(time.monotonic(), status, fragments)
