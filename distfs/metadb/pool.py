"""A few connections to MetaDB, shared by a service's threads: to the server that takes writes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from distfs.deadline import Deadline
from distfs.errors import Away, DistfsError, TooSlow, Unavailable
from distfs.metadb.link import AWAY, Link
from distfs.metadb.url import Host, MetaURL
from distfs.process.connection_pool import ConnectionPool, Limits, PoolState
from distfs.telemetry import tracing
from distfs.telemetry.metrics import METADB_FAILURES

#: A link that nobody needed for so long is closed when another is asked for: the server has a process for each.
IDLE_S = 20.0
#: A wait for a link that is longer is told in a trace.
_NOTABLE_S = 0.001


class Pool:
    """At most ``size`` links, made when needed; the most recently used is lent first, so what is not needed ages."""

    def __init__(
        self,
        where: Callable[[], MetaURL],
        size: int,
        connect_timeout: float,
        statement_timeout: float,
        trouble: Callable[[], str] = str,
    ) -> None:
        """``where`` is asked at each connect: an embedded MetaDB may come back at another socket; ``trouble``, when
        none was found to be well, for what else is known of it."""
        self._where, self._trouble = where, trouble
        self._connect_timeout = connect_timeout
        self._statement_timeout = statement_timeout
        limits = Limits(size, size, IDLE_S, inf, "metadb.pool_size")
        self._links: ConnectionPool[Link] = ConnectionPool("MetaDB", self._connect_shared, limits)
        self._closed = False
        #: One that was just used: nobody looks whether it is still there. None: see ``take``.
        self.lend = self._links.lend
        self._noting = threading.Lock()
        self._away_since: float | None = None  # the first of the connects that failed, on the monotonic clock
        self._heard_at = float("-inf")  # when a server last answered: to a connect or a statement
        self.may_be_back = False  # the last connect that failed met what looks like a restart
        self._back_at, self._was_away = float("-inf"), 0.0  # when that ended last, and how long it was
        self._writable: Host | None = None  # where the last connect found a server that takes writes

    @contextmanager
    def link(self, deadline: Deadline) -> Iterator[Link]:
        """Lend a link; it comes back by itself. Raises what ``take`` raises."""
        link = self.take(deadline)
        try:
            yield link
        finally:
            self.give_back(link)

    def take(self, deadline: Deadline, *, at_once: bool = False) -> Link:
        """A link, to be given back. ``at_once``: one that was just used is not looked at, whether it is still there.

        Raises Unavailable when no server takes writes, Busy when every link stayed lent until the deadline, TooSlow,
        Cancelled.
        """
        link = self.lend() if at_once else None
        reused = link is not None
        if link is None:
            link, reused = self._links.take(deadline) if not tracing.on else self._take_traced(deadline)
        link.reused = reused
        return link

    def _take_traced(self, deadline: Deadline) -> tuple[Link, bool]:
        """A wait that is worth telling is told."""
        began, error = time.monotonic(), None
        try:
            return self._links.take(deadline)
        except DistfsError as e:
            error = e
            raise
        finally:
            if error is not None or time.monotonic() - began > _NOTABLE_S:
                facts = {"db.system.name": "postgresql"}
                tracing.past("wait for a connection", began, facts, tracing.CLIENT, error)

    def give_back(self, link: Link) -> bool:
        """It is closed when it was left broken, -> False."""
        if link.broken:
            self._links.discard(link)
            return False
        if self._away_since is not None:
            self._heard(link)
        elif link.answered_at > self._heard_at:
            self._heard_at = link.answered_at
        self._links.give_back(link, link.answered_at)
        return True

    def snapshot(self) -> PoolState:
        """For people to look at."""
        return self._links.snapshot()

    def away_for(self) -> float:
        """Seconds since a connect failed; 0 when a server has answered since, on whatever link."""
        since = self._away_since
        return 0.0 if since is None else time.monotonic() - since

    def was_away(self, within: float) -> float:
        """For how long nobody could connect, if that ended no longer than ``within`` seconds ago; else 0."""
        return self._was_away if time.monotonic() - self._back_at < within else 0.0

    def connect(self, deadline: Deadline, statement_timeout: float) -> Link:
        """A link of the caller's own, to the first server that takes writes. Raises Unavailable; Away when one of
        them may only be restarting, or about to take writes.

        A server has ``connect_timeout`` for all of a connection's start-up.
        """
        began = time.monotonic()
        try:
            link = self._connect(deadline, statement_timeout)
        except TooSlow:  # the caller's own end: it says nothing of MetaDB
            raise
        except Unavailable as e:
            self._failed(began, may_be_back=isinstance(e, Away))
            e.public = AWAY
            raise
        self._heard(link, connected=True)
        return link

    def _failed(self, began: float, may_be_back: bool) -> None:
        """A connect that began then has failed. One that began before a server last answered says nothing new."""
        METADB_FAILURES.add()
        with self._noting:
            if began > self._heard_at:
                self._away_since = self._away_since or time.monotonic()
                self.may_be_back = may_be_back

    def _heard(self, link: Link, connected: bool = False) -> None:
        """A server has answered on ``link``, so it is there. On one from before it was never away, whatever became
        of a connect: perhaps it had no place for one more."""
        with self._noting:
            self._heard_at = max(self._heard_at, link.answered_at)
            since = self._away_since
            if since is not None and since < link.answered_at:
                self._away_since = None
                if connected:
                    self._back_at, self._was_away = link.answered_at, link.answered_at - since

    def _connect(self, deadline: Deadline, statement_timeout: float) -> Link:
        url = self._where()
        hosts = sorted(url.hosts, key=lambda host: host != self._writable)
        reasons: list[str] = []
        kind = Unavailable
        # Each host gets its turn even if those before it never answer, or never come to an end.
        timeout = min(self._connect_timeout, deadline.remaining("connecting to MetaDB") / len(hosts))
        for host in hosts:
            try:
                link = Link(url, host, deadline.sooner(timeout), statement_timeout)
            except Unavailable as e:
                reasons.append(str(e))
                kind = Away if isinstance(e, Away) else kind
                continue
            if link.writable:
                self._writable = host
                return link
            link.close()
            reasons.append(f"{host} takes no writes")
            kind = Away
        if trouble := self._trouble():
            reasons.append(trouble)
            kind = Unavailable
        raise kind(f"MetaDB cannot be used: {'; '.join(reasons)}")

    def _connect_shared(self, deadline: Deadline) -> Link:
        if self._closed:
            raise Unavailable("this service is stopping")
        return self.connect(deadline, self._statement_timeout)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        self._closed = True
        self._links.close()
