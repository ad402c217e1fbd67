"""The orphan sweep: fragments no row of MetaDB knows are put aside, and deleted long after.

Unknown is never missing. Nothing is done to a node's fragments before its whole listing was read without an
error; what nobody wants is asked for again just before it is put aside, and once more before it is deleted; any
error, or a clock in doubt, ends the sweep of that node with nothing more done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Sequence

from distfs.config import UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, NodeUnavailable
from distfs.fragment_store import FragmentStore, Listed
from distfs.meta_upkeep import UpkeepDB
from distfs.model import FragmentId
from distfs.node_directory import NodeDirectory
from distfs.upkeep.decisions import clock_in_doubt
from distfs.upkeep.listing import PAGE, Missing
from distfs.upkeep.rate import Backoff
from distfs.upkeep.step import Step, paced

log = logging.getLogger("distfs.upkeep")

#: Remembered in one sweep of one node; what is beyond is found by the next.
_MOST_SUSPECTS = 10_000

#: Bounded pieces of one node's sweep; is sent the deadline of the next piece. Ends with whether it had to leave
#: out something.
Sweep = Generator[None, Deadline, bool]


class Orphans:
    """A step reads one page of one node's listing, or acts on one page of suspects."""

    name = "orphans"

    def __init__(self, db: UpkeepDB, directory: NodeDirectory, config: UpkeepConfig) -> None:
        self._db, self._directory, self._config = db, directory, config
        self._min_age = config.upload_ttl + config.sweep_margin
        self._due: dict[int, float] = {}  # by node: when to sweep it again, on the monotonic clock
        self._backoff = Backoff.of(config.interval)
        self._running: tuple[int, Sweep] | None = None
        self._counts = {"swept": 0, "quarantined": 0, "deleted": 0, "released": 0, "missing": 0}
        self._stuck: dict[int, str] = {}  # by node: why its last sweep ended before its end

    def step(self, deadline: Deadline) -> Step:
        if self._running is None:
            node = self._next(deadline)
            if node is None:
                return paced(0.0, False, self._detail())
            sweep = self._sweep(node)
            next(sweep)
            self._running = node, sweep
        self._advance(*self._running, deadline)
        return paced(0.0, True, self._detail())

    def _detail(self) -> dict[str, object]:
        detail: dict[str, object] = dict(self._counts)
        if self._stuck:
            detail["stuck"] = "; ".join(self._stuck.values())
        return detail

    def _next(self, deadline: Deadline) -> int | None:
        now = time.monotonic()
        able = [n.id for n in self._directory.nodes(deadline) if n.alive and not self._backoff.wait(n.id)]
        due = [node for node in able if self._due.get(node, now) <= now]
        return min(due, key=lambda node: self._due.get(node, now), default=None)

    def _advance(self, node: int, sweep: Sweep, deadline: Deadline) -> None:
        try:
            sweep.send(deadline)
            return
        except StopIteration as end:
            self._due[node] = time.monotonic() + (0.0 if end.value else self._config.sweep_interval)
            self._backoff.succeeded(node)
            self._counts["swept"] += 1
            self._stuck.pop(node, None)
        except DistfsError as e:
            log.warning("the sweep of node %d ends here, nothing is concluded from it: %s", node, e)
            self._backoff.failed(node)
            self._stuck[node] = f"node {node}: {e}"
        self._running = None

    def _sweep(self, node: int) -> Sweep:
        deadline = yield
        store = self._directory.store(node, deadline)
        self._check_clock(node, store, deadline)
        some_left = yield from self._sweep_quarantine(node, store)
        more_left = yield from self._sweep_fragments(node, store)
        return some_left or more_left

    # --- what is in use ------------------------------------------------------------------------------

    def _sweep_fragments(self, node: int, store: FragmentStore) -> Sweep:
        suspects: list[FragmentId] = []
        cursor: str | None = ""
        while cursor is not None:
            deadline = yield
            page = store.list(cursor, PAGE, deadline)
            old = [f.id for f in page.fragments if f.age >= self._min_age]
            suspects += self._unwanted(node, old, deadline)
            missing = Missing(self._db, store, node, cursor, page)
            while not missing.done:
                missing.step(deadline)
                deadline = yield
            self._counts["missing"] += missing.noted
            del suspects[_MOST_SUSPECTS:]
            cursor = page.cursor
        for some in _pages(suspects):
            deadline = yield
            self._check_clock(node, store, deadline)
            for id in self._unwanted(node, some, deadline):
                if store.quarantine(id, self._min_age, deadline):
                    log.info("orphan %s on node %d is put aside", id, node)
                    self._counts["quarantined"] += 1
        return len(suspects) == _MOST_SUSPECTS

    # --- what was put aside ----------------------------------------------------------------------------

    def _sweep_quarantine(self, node: int, store: FragmentStore) -> Sweep:
        suspects: list[FragmentId] = []
        cursor: str | None = ""
        while cursor is not None:
            deadline = yield
            page = store.list_quarantine(cursor, PAGE, deadline)
            suspects += self._judge(node, store, page.fragments, deadline)
            del suspects[_MOST_SUSPECTS:]
            cursor = page.cursor
        for some in _pages(suspects):
            deadline = yield
            self._check_clock(node, store, deadline)
            for id in self._unwanted(node, some, deadline):
                if store.discard(id, self._config.quarantine_ttl, deadline):
                    log.info("orphan %s on node %d is deleted", id, node)
                    self._counts["deleted"] += 1
        return len(suspects) == _MOST_SUSPECTS

    def _judge(
        self, node: int, store: FragmentStore, aside: Sequence[Listed], deadline: Deadline
    ) -> list[FragmentId]:
        """Bring back what is wanted and good; -> what nobody wants, and has been there for long enough."""
        unwanted = set(self._unwanted(node, [f.id for f in aside], deadline))
        for id in (f.id for f in aside if f.id not in unwanted):
            try:
                if store.release(id, deadline):
                    log.warning("fragment %s on node %d was in quarantine and is wanted", id, node)
                    self._counts["released"] += 1
            except Corrupt as e:
                # It stays aside until repair has replaced it and nobody wants it here any more.
                log.debug("fragment %s on node %d: %s", id, node, e)
        return [f.id for f in aside if f.id in unwanted and f.age >= self._config.quarantine_ttl]

    def _unwanted(self, node: int, ids: Sequence[FragmentId], deadline: Deadline) -> list[FragmentId]:
        if not ids:
            return []
        wanted = self._db.wanted(node, ids, deadline)
        return [id for id in ids if not wanted[id]]

    def _check_clock(self, node: int, store: FragmentStore, deadline: Deadline) -> None:
        """Raises NodeUnavailable when ages on this node mean nothing."""
        before = self._db.clock(deadline)
        clock = store.info(deadline).clock
        after = self._db.clock(deadline)
        if clock_in_doubt(clock, before, after):
            raise NodeUnavailable(
                f"the clocks of node {node} and MetaDB are {abs(clock - before):.0f} s apart: run NTP on both"
            )


def _pages(ids: Sequence[FragmentId]) -> Iterable[Sequence[FragmentId]]:
    return (ids[at : at + PAGE] for at in range(0, len(ids), PAGE))
