"""Rebalance and drain: healthy fragments move to other nodes, by zones and free bytes; copied, verified, switched,
put aside.

The moves of one step are of different slices: two fragments of one could be copied to the same node, and MetaDB
names it for one of them only. A node keeps one fragment of a slice, so a step takes from one node, and the next
node's slices are read when those moves have ended.

What was put aside takes up room until the orphan sweep deletes it. A plan counts that room as free: else a node
would still be too full after it gave what it should, and give the rest as well.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from uuid import UUID

from distfs.config.settings import UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, NotFound
from distfs.model import FragmentId, Node
from distfs.peers.directory import NodeDirectory
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import (
    Balance,
    Candidate,
    Move,
    Spread,
    Spreadable,
    Stay,
    plan_drain,
    plan_moves,
)
from distfs.upkeep.listing import PAGE
from distfs.upkeep.maker import FragmentMaker, SourceUnreadable
from distfs.upkeep.model import MoveTask
from distfs.upkeep.rate import Backoff, Meter, TokenBucket
from distfs.upkeep.step import PARALLEL, Pace, Step, Tally, WakeUp, all_of, paced

log = logging.getLogger("distfs.upkeep")

_PAGE = 64
_PAGE_OF_PLAN = 1000  # nothing is done with it, and there are many
_REST = 200  # times as long as it took to go through all slices
_SCAN = 5000  # slices whose zones are counted by one statement, in a tenth of a second
#: A round of rebalancing is planned anew after so long: meanwhile files came and went.
_ROUND_S = 600.0
#: After a round, nodes must have told how full they are now.
_HEARTBEATS = 3
_ASIDE_LIMIT_S = 20.0  # for a node to list what it has put aside
#: Nodes that will be equally full when their quarantines are over are looked at again after so long.
_AS_SWEPT_S = 60.0


class Walk:
    """Every fragment a node keeps, by slice, a page at a time."""

    def __init__(self, db: UpkeepDB, node: int, page: int = _PAGE) -> None:
        self._db, self.node, self._limit = db, node, page
        self._after: UUID | None = None
        self._page: list[MoveTask] = []
        self._ended = False

    def next(self, deadline: Deadline) -> MoveTask | None:
        """None at the end."""
        if not self._page and not self._ended:
            self._page = self._db.slices_on(self.node, self._after, self._limit, deadline)
            self._ended = len(self._page) < self._limit
            self._page.reverse()
        if not self._page:
            return None
        task = self._page.pop()
        self._after = task.piece.id
        return task


class CrowdedWalk:
    """Every slice with a more crowded zone than another that has nodes, a page at a time."""

    def __init__(self, db: UpkeepDB, zones: Collection[str]) -> None:
        self._db, self._zones = db, zones
        self._after: UUID | None = None
        self._page: list[MoveTask] = []
        self._last = False  # page

    @property
    def ended(self) -> bool:
        return self._last and not self._page

    def next(self, deadline: Deadline) -> MoveTask | None:
        """None when a page has none, or at the end. The task's index is to be chosen."""
        if not self._page and not self._last:
            self._page, self._after = self._db.crowded_slices(
                self._zones, self._after, _SCAN, _PAGE, deadline
            )
            self._page.reverse()
            self._last = self._after is None
        return self._page.pop() if self._page else None


@dataclass(frozen=True, slots=True)
class _Job:
    task: MoveTask
    source: int
    target: int | None  # None: whoever has room
    booked: bool = False  # by the balance


class Rebalance:
    """A step moves a few fragments at once: off draining nodes, else out of crowded zones, else off full nodes."""

    name = "rebalance"

    def __init__(
        self,
        maker: FragmentMaker,
        config: UpkeepConfig,
        heartbeat: float,
        executor: Executor,
        parallel: int = PARALLEL,
    ) -> None:
        self._maker, self._config, self._executor, self._parallel = maker, config, executor, parallel
        self._settle_s = _HEARTBEATS * heartbeat
        self._bucket = TokenBucket(config.rebalance_rate)
        self._meter = Meter()
        self._backoff = Backoff.of(config.interval)
        self._drains: dict[int, Walk] = {}
        self._balance: Balance | None = None
        self._plan_at = time.monotonic()  # not before
        self._round_ends = 0.0
        self._walk: Walk | None = None
        self._spent: set[int] = set()  # givers gone through in this round
        self._places: set[tuple[int, str]] = set()  # nodes that were written to, and their zones
        self._crowded: CrowdedWalk | None = None
        self._spread_at = time.monotonic()  # when crowded slices are looked for again
        self._spread_began = 0.0
        self._spread_any = False  # in this walk
        self._tally = Tally("moved")
        self._stuck = ""
        self._wake_up = WakeUp(maker.db, self.name)

    def step(self, deadline: Deadline) -> Step:
        wait = self._bucket.wait()
        if wait > 0:
            return Step(Pace.THROTTLED, self._detail(), wait)
        if self._wake_up.came(
            deadline
        ):  # what was postponed is tried again, and a round that runs planned anew
            self._backoff.clear()
            self._round_ends = 0.0
            self._plan_at = min(self._plan_at, time.monotonic() + self._settle_s)
            self._spread_at = time.monotonic()
        nodes = self._maker.nodes(deadline)
        jobs = (
            self._draining(nodes, deadline)
            or self._spreading(nodes, deadline)
            or self._balancing(nodes, deadline)
        )
        results = all_of(self._executor, lambda job: self._move_or_postpone(job, deadline), jobs)
        for job, moved in zip(jobs, results, strict=True):
            if moved is None and job.booked and job.target is not None and self._balance is not None:
                self._balance.unbook(job.source, job.target, job.task.fragment_size)
            self._bucket.spend(moved or 0)
            self._meter.add(moved or 0)
        return paced(self._bucket.wait(), bool(jobs) or self._crowded is not None, self._detail())

    def _detail(self) -> dict[str, object]:
        detail = self._tally.as_detail()
        if self._balance is not None:
            detail["bytes_left"] = self._balance.left
        if rate := round(self._meter.rate()):
            detail["bytes_per_second"] = rate
        if self._stuck:
            detail["stuck"] = self._stuck
        return detail

    # --- what to move ---------------------------------------------------------------------------------

    def _draining(self, nodes: dict[int, Node], deadline: Deadline) -> list[_Job]:
        """The next few fragments of the nodes that are to become empty. A node that is down is repair's."""
        draining = [n.id for n in nodes.values() if n.state == "draining" and n.alive]
        self._drains = {n: self._drains.get(n) or Walk(self._maker.db, n) for n in draining}
        if not draining:
            self._stuck = ""
        jobs: list[_Job] = []
        for node, walk in list(self._drains.items()):
            if jobs:
                break
            while len(jobs) < self._parallel and not self._backoff.wait(node):
                task = walk.next(deadline)
                if task is None:
                    self._end_of_drain(node, deadline)
                    break
                if not self._backoff.wait(task.piece.id):
                    jobs.append(_Job(task, node, None))
        return jobs

    def _end_of_drain(self, node: int, deadline: Deadline) -> None:
        """Once through. What is left (it failed, or came meanwhile) is gone through again after a while."""
        left = self._maker.db.fragments_left(node, deadline)
        if left:
            log.info("node %d is draining: %d fragments are left", node, left)
        else:
            self._stuck = ""
        del self._drains[node]
        if left:
            self._backoff.failed(node)
        else:
            self._backoff.succeeded(node)

    def _spreading(self, nodes: dict[int, Node], deadline: Deadline) -> list[_Job]:
        """The next few fragments of slices that are more crowded in a zone than they need be.

        All slices are gone through when there are other nodes than before, and now and then: repair and adoption
        take what they can get. A page of them a step, until nothing is left to move.
        """
        spread, now = Spread(list(nodes.values())), time.monotonic()
        places = {(n.id, n.zone) for n in nodes.values() if n.writable}
        if not places <= self._places:
            self._places |= places
            self._crowded, self._spread_at = None, now
        if self._crowded is None:
            if now < self._spread_at or not spread.possible:
                return []
            self._crowded, self._spread_began = CrowdedWalk(self._maker.db, spread.zones), now
        jobs: list[_Job] = []
        for _ in range(_PAGE):  # a step is bounded, also when nothing can be moved
            task = self._crowded.next(deadline) if len(jobs) < self._parallel else None
            if task is None:
                break
            moves = [] if self._backoff.wait(task.piece.id) else spread.moves(_spreadable(task))
            if moves:  # one at a time: the others are found again
                move = moves[0]
                jobs.append(_Job(replace(task, index=move.id.index), move.source, move.target))
        self._spread_any |= bool(jobs)
        if self._crowded.ended and not jobs:
            again, self._spread_any = self._spread_any, False
            self._crowded = CrowdedWalk(self._maker.db, spread.zones) if again else None
            self._spread_at = now + max(_ROUND_S, _REST * (now - self._spread_began))
            self._spread_began = now
        return jobs

    def _balancing(self, nodes: dict[int, Node], deadline: Deadline) -> list[_Job]:
        now = time.monotonic()
        if self._balance is None:
            if now < self._plan_at:
                return []
            self._balance = self._plan(list(nodes.values()), deadline)
            self._round_ends, self._walk = now + _ROUND_S, None
            self._spent = set()
        jobs: list[_Job] = []
        while len(jobs) < self._parallel:
            job = self._next_of_round(self._balance, not jobs, deadline) if now < self._round_ends else None
            if job is None:
                if not jobs:  # the moves of the last step have ended, too
                    self._balance = None
                    self._plan_at = max(self._plan_at, now + max(self._settle_s, self._config.interval))
                break
            jobs.append(job)
        return jobs

    def _plan(self, nodes: list[Node], deadline: Deadline) -> Balance:
        """Quarantines are listed only when there is something to move without them."""
        balance = Balance(nodes, self._config.rebalance_threshold)
        if not balance.done:
            swept = as_if_swept(self._maker.directory, nodes, self._executor, deadline)
            balance = Balance(swept, self._config.rebalance_threshold)
            if balance.done:
                self._plan_at = time.monotonic() + _AS_SWEPT_S
        return balance

    def _next_of_round(self, balance: Balance, any_node: bool, deadline: Deadline) -> _Job | None:
        """``any_node``: another node may begin to give."""
        while not balance.done:
            if self._walk is None:
                if not any_node:
                    return None
                giver = balance.giver(self._spent)
                if giver is None:
                    return None
                self._walk = Walk(self._maker.db, giver)
            source = self._walk.node
            task = self._walk.next(deadline) if balance.surplus[source] > 0 else None
            if task is None:
                self._spent.add(source)
                self._walk = None
                continue
            if not self._backoff.wait(task.piece.id):
                target = balance.taker(_candidate(task), source)
                if target is not None:
                    return _Job(task, source, target, booked=True)
        return None

    # --- moving -----------------------------------------------------------------------------------------

    def _move_or_postpone(self, job: _Job, deadline: Deadline) -> int | None:
        """Bytes moved; None: it failed, and is left alone for a while."""
        try:
            moved = self._move(job, deadline)
        except DistfsError as e:
            log.warning("fragment %s.%d is not moved: %s", job.task.piece.id, job.task.index, e)
            self._stuck = str(e)
            self._backoff.failed(job.task.piece.id)
            return None
        return job.task.fragment_size if moved else 0

    def _move(self, job: _Job, deadline: Deadline) -> bool:
        maker, task, piece = self._maker, job.task, job.task.piece
        id = FragmentId(piece.id, task.index)
        began = time.monotonic()
        readable = True

        def write(target: int) -> None:
            nonlocal readable
            try:
                if readable:
                    maker.copy(task, task.index, job.source, target, deadline)
            except (Corrupt, NotFound) as e:
                maker.db.note_damage(id.slice, id.index, job.source, str(e), deadline)
                readable = False
            except SourceUnreadable as e:
                log.warning("%s; making it anew from the others", e)
                readable = False
            if not readable:
                maker.rebuild(task, task.index, (task.index,), target, deadline)
            maker.confirm(task, task.index, target, deadline)

        target = maker.place(task, task.index, write, self._choice(job, deadline))
        if not maker.db.move_fragment(piece.id, task.index, job.source, target, deadline):
            log.info(
                "fragment %s was moved or deleted by somebody else, or its new node drains or keeps one of its slice",
                id,
            )
            return False
        maker.put_aside(id, job.source, began, deadline)
        self._tally.add("moved")
        return True

    def _choice(self, job: _Job, deadline: Deadline) -> Callable[[set[int]], int | None]:
        if job.target is None:
            return self._maker.anywhere(job.task, job.task.index, deadline, own=False)
        return lambda refused: None if job.target in refused else job.target


def as_if_swept(
    directory: NodeDirectory, nodes: list[Node], executor: Executor, deadline: Deadline
) -> list[Node]:
    """Nodes as full as they will be when what is in quarantine now is deleted.

    Without those that do not tell: what is unknown is not nothing. Nodes of one disk share what any of them frees.
    All are asked at once, and none for longer than ``_ASIDE_LIMIT_S``, however it answers.
    """
    aside: Counter[str] = Counter()
    told = []
    sizes = all_of(executor, lambda node: _bytes_aside(directory, node, deadline), nodes)
    for node, size in zip(nodes, sizes, strict=True):
        if size is not None:
            aside[node.disk_key] += size
            told.append(node)
    return [replace(n, free=min(n.capacity, n.free + aside[n.disk_key])) for n in told]


def _bytes_aside(directory: NodeDirectory, node: Node, deadline: Deadline) -> int | None:
    """None: it does not tell."""
    total, limit = 0, deadline.sooner(_ASIDE_LIMIT_S)
    cursor: str | None = "" if node.alive else None
    try:
        store = directory.store(node.id, limit)
        while cursor is not None:
            page = store.list_quarantine(cursor, PAGE, limit)
            total += sum(listed.size for listed in page.fragments)
            cursor = page.cursor
    except DistfsError as e:
        log.info("node %d is left out of rebalancing: %s", node.id, e)
        return None
    return total


def dry_run(
    db: UpkeepDB, nodes: list[Node], threshold: float, deadline: Callable[[], Deadline]
) -> Iterator[Move]:
    """What a round of rebalancing would move now, and where; nothing is moved. ``deadline``: for each page."""
    slices = map(_spreadable, _crowded(db, Spread(nodes).zones, deadline))
    return plan_moves(nodes, threshold, partial(_fragments_on, db, deadline=deadline), slices)


def dry_drain(
    db: UpkeepDB, nodes: list[Node], node: int, deadline: Callable[[], Deadline]
) -> Iterator[Move | Stay]:
    """Where the fragments of a node would go if it were drained now, by the same chance every time."""
    return plan_drain(nodes, node, _fragments_on(db, node, deadline), Random(node))


def _fragments_on(db: UpkeepDB, node: int, deadline: Callable[[], Deadline]) -> Iterator[Candidate]:
    walk = Walk(db, node, _PAGE_OF_PLAN)
    while (task := walk.next(deadline())) is not None:
        yield _candidate(task)


def _crowded(db: UpkeepDB, zones: Collection[str], deadline: Callable[[], Deadline]) -> Iterator[MoveTask]:
    walk = CrowdedWalk(db, zones)
    while not walk.ended:
        while (task := walk.next(deadline())) is not None:
            yield task


def _spreadable(task: MoveTask) -> Spreadable:
    return Spreadable(task.piece.id, task.piece.nodes, task.fragment_size)


def _candidate(task: MoveTask) -> Candidate:
    return Candidate(FragmentId(task.piece.id, task.index), task.piece.nodes, task.fragment_size)
