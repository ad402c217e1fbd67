"""A bounded pool of connections to one peer. What to do is decided under the lock and done outside it.

After httpcore's ``_sync/connection_pool.py``. Whoever finds none idle connects one while there are fewer than
allowed, else waits in line; a connection that comes free goes to who has waited longest.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Generic, Protocol, TypeVar

from distfs.deadline import Deadline
from distfs.errors import Busy


class Connection(Protocol):
    """What is pooled."""

    @property
    def idle(self) -> bool:
        """Nothing to read from it: neither stray bytes nor the peer's end."""

    def close(self) -> None:
        """Never raises."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one pool."""

    most: int  # connections in all: lent, idle and being made
    idle: int  # kept while nobody uses them
    idle_s: float  # one unused for longer is closed
    age_s: float  # as is one that was made longer ago
    setting: str  # which sets ``most``


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a pool holds now, and what it did since it was made."""

    lent: int
    idle: int
    waiting: int
    made: int  # connections
    reused: int  # times one was lent again
    stale: int  # found closed by the peer when they were to be lent again
    expired: int  # closed for their age, or for being idle too long
    broken: int  # not fit to be lent again
    waited: int  # times somebody had to wait
    gave_up: int  # of those, waited in vain

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


C = TypeVar("C", bound=Connection)

#: One that was used so lately is lent by ``lend`` without a look whether its peer has closed it since.
JUST_S = 0.1


class _Waiter(Generic[C]):
    """Somebody in line. Once ``served``, ``granted`` is a connection, or with None the right to make one."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.served = False
        self.granted: C | None = None


class ConnectionPool(Generic[C]):
    """Thread-safe. Every connection taken is either given back or discarded, once."""

    def __init__(
        self,
        peer: str,
        connect: Callable[[Deadline], C],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.peer = peer
        self._connect, self._limits, self._clock = connect, limits, clock
        self._lock = threading.Lock()
        self._idle: list[tuple[C, float]] = []  # and since when; the most recently used last
        self._born: dict[C, float] = {}  # every connection there is
        self._waiters: deque[_Waiter[C]] = deque()
        self._count = 0  # lent, idle and being made
        self._closed = False
        self._counts = dict.fromkeys(("made", "reused", "stale", "expired", "broken", "waited", "gave_up"), 0)

    def lend(self, now: float | None = None) -> C | None:
        """One that was just used, for who can do without if its peer has closed it meanwhile: no system call is made
        to see that. None: there is none, see ``take``. ``now``: by the clock, if that was asked."""
        with self._lock:
            if self._idle:
                found, since = self._idle[-1]
                if now is None:
                    now = self._clock()
                if now - since < JUST_S and now - self._born[found] < self._limits.age_s:
                    self._idle.pop()
                    self._counts["reused"] += 1
                    return found
        return None

    def take(self, deadline: Deadline) -> tuple[C, bool]:
        """A connection, and whether it was used before: the peer may have closed such a one just now.

        Raises Busy when all stay lent until the deadline, and what ``connect`` raises.
        """
        found = self._find_or_wait(deadline)
        if found is not None:
            if found.idle:
                with self._lock:
                    self._counts["reused"] += 1
                return found, True
            self._forget_stale(found)
            found.close()
        return self._make(deadline), False

    def replace(self, broken: C, deadline: Deadline) -> C:
        """A fresh connection in the place of one that proved stale after all. Raises what ``connect`` raises."""
        self._forget_stale(broken)
        broken.close()
        return self._make(deadline)

    def give_back(self, connection: C, now: float | None = None) -> None:
        """One whose last answer was read to its end: it may be lent again. ``now``: as ``lend``."""
        with self._lock:
            if now is None:
                now = self._clock()
            keep = connection in self._born and not self._closed
            if keep and now - self._born[connection] > self._limits.age_s:
                self._counts["expired"] += 1
                keep = False
            if keep and self._waiters:
                self._grant(connection)
                return
            if keep and len(self._idle) < self._limits.idle:
                self._idle.append((connection, now))
                return
            known = self._born.pop(connection, None) is not None
            if known:
                self._release_place()
        connection.close()

    def discard(self, connection: C) -> None:
        """One that is not fit to be lent again. A second call does nothing."""
        with self._lock:
            if self._born.pop(connection, None) is not None:
                self._counts["broken"] += 1
                self._release_place()
        connection.close()

    def tidy(self) -> None:
        """Close what has been idle for too long, or is too old."""
        with self._lock:
            expired = self._pop_expired()
        for connection in expired:
            connection.close()

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back. Whoever asks later gets one to use once."""
        with self._lock:
            self._closed = True
            idle = [connection for connection, _ in self._idle]
            self._idle.clear()
            for connection in idle:
                del self._born[connection]
                self._release_place()
        for connection in idle:
            connection.close()

    def snapshot(self) -> PoolState:
        """For people to look at."""
        with self._lock:
            idle = len(self._idle)
            return PoolState(self._count - idle, idle, len(self._waiters), **self._counts)

    # --- under the lock -----------------------------------------------------------------------------

    def _are_fit(self) -> bool:
        idle, now = self._idle, self._clock()
        return not idle or (self._is_fit(*idle[0], now) and self._is_fit(*idle[-1], now))

    def _is_fit(self, connection: C, since: float, now: float) -> bool:
        return now - since < self._limits.idle_s and now - self._born[connection] < self._limits.age_s

    def _pop_expired(self) -> list[C]:
        now = self._clock()
        kept: list[tuple[C, float]] = []
        expired: list[C] = []
        for connection, since in self._idle:
            if self._is_fit(connection, since, now):
                kept.append((connection, since))
            else:
                expired.append(connection)
        self._idle = kept
        for connection in expired:
            del self._born[connection]
            self._counts["expired"] += 1
            self._release_place()
        return expired

    def _release_place(self) -> None:
        """There is one connection less; who has waited longest may make another."""
        self._count -= 1
        if self._waiters:
            self._count += 1
            self._grant(None)

    def _grant(self, connection: C | None) -> None:
        waiter = self._waiters.popleft()
        waiter.served, waiter.granted = True, connection
        waiter.woken.set()

    # --- outside it -----------------------------------------------------------------------------------

    def _find_or_wait(self, deadline: Deadline) -> C | None:
        """A connection that was used before, or None and with it the right to make one."""
        timeout = deadline.remaining(f"{self.peer}: waiting for a connection")
        waiter: _Waiter[C] | None = None
        found: C | None = None
        with self._lock:
            # If the one that was used last and that which is idle for longest are fit, ``tidy`` has the others.
            expired = [] if self._are_fit() else self._pop_expired()
            if self._idle:
                found, _ = self._idle.pop()
            elif self._count < self._limits.most:
                self._count += 1
            else:
                waiter = _Waiter()
                self._waiters.append(waiter)
                self._counts["waited"] += 1
        for connection in expired:
            connection.close()
        if waiter is None:
            return found
        unwatch = deadline.watch(waiter.woken.set)
        waiter.woken.wait(timeout)
        unwatch()
        with self._lock:
            if waiter.served:  # perhaps since the wait ended
                return waiter.granted
            self._waiters.remove(waiter)
            self._counts["gave_up"] += 1
        deadline.check_cancelled()
        raise Busy(
            f"{self.peer}: all {self._limits.most} connections stayed in use for {timeout:.1f} s; "
            f"{self._limits.setting} sets how many there may be",
            public="every connection that the request needs is in use: try again soon",
        )

    def _make(self, deadline: Deadline) -> C:
        """Connect, in a place that is ours already."""
        try:
            made = self._connect(deadline)
        except BaseException:
            with self._lock:
                self._release_place()
            raise
        with self._lock:
            self._born[made] = self._clock()
            self._counts["made"] += 1
        return made

    def _forget_stale(self, connection: C) -> None:
        """Its place stays ours."""
        with self._lock:
            self._born.pop(connection, None)
            self._counts["stale"] += 1
