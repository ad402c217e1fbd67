"""MetaDB's list of nodes as this process knows it: looked at anew aside, and served as it was meanwhile."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.formats.hello import Keys
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.process.threads import as_ours, start

log = logging.getLogger("distfs.nodes")

#: A list that is older is looked at anew, when somebody asks for it. After a look that failed the next is so far off.
MAX_AGE_S = 1.0
#: Who decides by the list where something new goes waits for one that is younger, as long as MetaDB can be asked.
STALE_MOST_S = 2.0
#: Who reads waits no longer than so for a newer list.
GLANCE_S = 1.0
#: A look ends by then whatever MetaDB does; its own limit is sooner.
_LOOK_LIMIT_S = 60.0

Nodes = dict[int, Node]


class NodeList:
    """Thread-safe; asks nothing before it is asked itself. However many ask, one look is under way at a time.

    Each look has a thread of its own, so a process that was forked needs nothing, and a look that dies is followed by
    another. Where no thread can be had, one of those who have to wait looks itself.
    """

    def __init__(self, meta: MetaDB, then: Callable[[], object]) -> None:
        """``then`` is called after each look, whatever came of it, while nobody waits."""
        self._meta, self._then = meta, then
        self._changed = threading.Condition()
        self._nodes: Nodes = {}
        #: Of the cluster, as MetaDB said last; there as soon as the list is.
        self.keys: Keys = ()
        self._read_at = self._failed_at = float("-inf")
        self._error: DistfsError | None = None  # of the last look
        self._begun = self._ended = 0  # looks; at most one more has begun than ended
        self._began_at = float("-inf")

    def known(self, deadline: Deadline) -> Nodes:
        """As MetaDB said last, however long ago. Waits only for the first list; raises Unavailable without one."""
        if time.monotonic() - self._read_at > MAX_AGE_S:
            if not self._nodes:
                self._look(deadline)
            elif not self._failed_lately:
                self._begin()
        return self._nodes if self._error is None else self._listed()

    def recent(self, deadline: Deadline) -> Nodes:
        """At most STALE_MOST_S old; as MetaDB said last while it cannot be asked. Raises Unavailable as ``known``."""
        if time.monotonic() - self._read_at > STALE_MOST_S and not self._failed_lately:
            self._look(deadline)
        return self.known(deadline)

    def fresh(self, deadline: Deadline) -> Nodes:
        """As it is now; as MetaDB said last when it cannot be asked. Raises Unavailable without a list."""
        self._look(deadline, anew=True)
        return self._listed()

    def glance(self, deadline: Deadline, max_age: float = 0.0) -> Nodes:
        """At most ``max_age`` old, if that can be had within GLANCE_S: who reads waits for MetaDB no longer."""
        if self.age > max_age and not (self._nodes and self._failed_lately):
            self._look(deadline, GLANCE_S if self._nodes else math.inf, anew=not max_age)
        return self._listed()

    def last(self) -> list[Node]:
        """As MetaDB said last; nobody is asked, and none are known before the first list."""
        return list(self._nodes.values())

    def seen(self) -> list[Node]:
        """``last``; what is old is looked at again, for who asks next. Waits for nobody."""
        if self.age > MAX_AGE_S and not self._failed_lately:
            self._begin()
        return self.last()

    def get(self, id: int) -> Node | None:
        """One of ``last``."""
        return self._nodes.get(id)

    def snapshot(self) -> dict[str, Any]:
        """How old the list is, and above which age nothing new is placed by it while MetaDB answers."""
        age = round(self.age, 3) if math.isfinite(self.age) else None
        return {"age_s": age, "at_most_s": STALE_MOST_S, "refused": self._error is not None}

    def close(self) -> None:
        """Wait for a look that is under way, a moment."""
        until = time.monotonic() + GLANCE_S
        with self._changed:
            while self._under_way and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    @property
    def age(self) -> float:
        return time.monotonic() - self._read_at

    @property
    def _failed_lately(self) -> bool:
        return time.monotonic() - self._failed_at <= MAX_AGE_S

    @property
    def _under_way(self) -> bool:
        return self._begun > self._ended

    def _listed(self) -> Nodes:
        error = self._error
        if error is not None and not self._nodes:
            raise error.with_traceback(None)
        return self._nodes

    def _look(self, deadline: Deadline, most: float = math.inf, anew: bool = False) -> None:
        """Have MetaDB asked and wait, up to ``most`` seconds since it was: by the look that is under way, unless
        ``anew``. One that fails meanwhile is answer enough. Raises TooSlow, Cancelled."""
        with self._changed:
            ended, under_way = self._ended, self._under_way
            wanted = self._begun + (anew or not under_way)
            until = most + (self._began_at if under_way else time.monotonic())

        def over() -> bool:
            told = self._ended >= wanted or (self._ended > ended and self._error is not None)
            return told or time.monotonic() >= until

        while not over():
            self._begin(waits=True)
            with deadline.waking(self._changed), self._changed:
                while self._under_way and not over():
                    self._changed.wait(deadline.bound(max(0.0, until - time.monotonic()), "asking MetaDB"))

    def _begin(self, waits: bool = False) -> None:
        """A look, unless one is under way. ``waits``: who asks does, and may as well look itself."""
        with self._changed:
            if self._under_way:
                return
            self._begun += 1
            self._began_at = time.monotonic()
        try:
            start(self._run, "node-list")
        except Busy:
            if waits:
                self._run()
            else:  # whoever asks next tries again
                self._end(self._nodes, self._read_at, self._error)
        except BaseException as e:
            self._end(self._nodes, self._read_at, as_ours(e))
            raise

    def _run(self) -> None:
        try:
            nodes = {node.id: node for node in self._meta.nodes(Deadline(_LOOK_LIMIT_S))}
            self.keys = self._meta.cluster_keys(Deadline(_LOOK_LIMIT_S)) or self.keys
        except BaseException as e:  # the thread's outermost edge: others wait for its end
            if not isinstance(e, DistfsError):
                log.exception("the list of storage nodes is not read, by a bug")
            elif self._error is None and self._nodes:
                log.warning("the list of storage nodes is that of %.1f s ago: %s", self.age, e)
            # Where nodes are changes rarely: what runs already can end well without MetaDB.
            self._end(self._nodes, self._read_at, as_ours(e))
        else:
            _tell_changes(self._nodes, nodes)
            self._end(nodes, time.monotonic(), None)
        self._then()

    def _end(self, nodes: Nodes, read_at: float, error: DistfsError | None) -> None:
        with self._changed:
            self._nodes, self._read_at, self._error = nodes, read_at, error
            if error is not None:
                self._failed_at = time.monotonic()
            self._ended = self._begun
            self._changed.notify_all()


def _tell_changes(before: Nodes, after: Nodes) -> None:
    """What of nodes an operator would like to know when he asks later."""
    if not before:  # it is the first list, and says nothing of when
        return
    for id in before.keys() - after.keys():
        log.info("node %d is forgotten", id)
    for id, node in after.items():
        was = before.get(id)
        if was is None:
            log.info("node %d at %s has joined", id, node.address)
        elif node.alive and not was.alive:
            log.info("node %d at %s is up again", id, node.address)
        elif was.alive and not node.alive:
            log.warning(
                "node %d at %s is down: it was heard of %.0f s ago", id, node.address, node.heartbeat_age
            )
