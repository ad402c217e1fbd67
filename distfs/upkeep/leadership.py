"""Who leads a worker: one service of all that run it, for as long as its connection to MetaDB lives."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from math import inf

from distfs.deadline import Deadline
from distfs.errors import DistfsError, TooSlow
from distfs.metadb.link import Link

#: A leader that does not speak for so long (frozen, or its machine is gone) is one no more.
LEADER_SILENCE_S = 120
_RELEASE_LIMIT_S = 2.0


class Leaders:
    """All that this process leads, on one connection: a server's process for each worker would be idle all the time.

    Thread-safe. When something is wrong with the connection it is closed, and nothing of it is led any more.
    """

    def __init__(
        self, connect: Callable[[Deadline], Link], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``connect``: a connection of our own. Raises Unavailable."""
        self._connect, self._clock = connect, clock
        self._one_at_a_time = threading.Lock()
        self._link: Link | None = None
        self._led: dict[int, Leadership] = {}  # by key

    def lead(self, key: int, deadline: Deadline) -> Leadership | None:
        """None: somebody else does. Raises Unavailable, TooSlow."""
        with self._alone(deadline) as link:
            self._end_silent(link, deadline)
            if key in self._led:
                return None
            [[leads, _]] = link.run("try_lead", deadline, {"key": key, "limit": f"{LEADER_SILENCE_S}s"})
            if not leads:
                return None
            leader = self._led[key] = Leadership(self, key)
            leader.spoke_at = self._clock()
        return leader

    def has(self, leader: Leadership) -> bool:
        """As far as is known here."""
        return self._led.get(leader.key) is leader

    def ask(self, leader: Leadership, deadline: Deadline) -> bool:
        """Whether it leads. Raises what ``lead`` does."""
        with self._alone(deadline) as link:
            if not self.has(leader):
                return False
            [[leads]] = link.run("still_leads", deadline, {"key": leader.key})
            if leads:
                leader.spoke_at = self._clock()
            else:
                del self._led[leader.key]
            self._end_silent(link, deadline)
            return bool(leads)

    def end_given_up(self) -> None:
        """Whoever has the connection at this moment does it else, when next it is asked for."""
        deadline = Deadline(_RELEASE_LIMIT_S)
        with contextlib.suppress(DistfsError), self._alone(deadline) as link:
            self._end_silent(link, deadline)

    def _end_silent(self, link: Link, deadline: Deadline) -> None:
        """Those given up, and those whose thread hangs: the server hears the others."""
        for key, leader in list(self._led.items()):
            if self._clock() - leader.spoke_at > LEADER_SILENCE_S:
                link.run("stop_leading", deadline, {"key": key})
                del self._led[key]

    @contextlib.contextmanager
    def _alone(self, deadline: Deadline) -> Iterator[Link]:
        """The connection, for this thread alone; closed when something went wrong, or nothing is led on it."""
        if not self._one_at_a_time.acquire(timeout=deadline.remaining("asking who leads")):
            raise TooSlow("MetaDB did not answer in time who leads other workers")
        try:
            link = self._link = self._link or self._connect(deadline)
            try:
                yield link
            except BaseException:
                self._led.clear()
                raise
            finally:
                if not self._led:
                    link.close()
                    self._link = None
        finally:
            self._one_at_a_time.release()


class Leadership:
    """The right to run one worker. Used by one thread."""

    def __init__(self, leaders: Leaders, key: int) -> None:
        self.key = key
        self.spoke_at = inf  # on the clock of ``leaders``; -inf: it was given up
        self._leaders = leaders

    def held(self, deadline: Deadline) -> bool:
        """Ask before every step, at least every LEADER_SILENCE_S. Once False it stays False."""
        if self.spoke_at == -inf or not self._leaders.has(self):
            return False
        try:
            return self._leaders.ask(self, deadline)
        except DistfsError:
            self.spoke_at = -inf
            return False

    def release(self) -> None:
        """Let another lead. May be called again."""
        self.spoke_at = -inf
        if self._leaders.has(self):
            self._leaders.end_given_up()
