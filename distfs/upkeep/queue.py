"""What repair is to do next: found a page at a time, those at the greatest risk first.

Nobody asks MetaDB for all that is lost at once: with a large disk gone one such question took seconds, was asked for
every few slices, and in the end took longer than any statement may. The nodes that lost something are gone through a
page at a time. Who has found enough of what one loss more would destroy need not look any further, since nothing is
more urgent; else all is looked at: for a bounded time before the first repair, and beside the repairs after it.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from distfs.deadline import Deadline
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import by_risk
from distfs.upkeep.model import Hurt, RepairTask

_PAGE = 2000  # slices judged by one statement
_KEPT = 20_000  # of the slices found, those at the greatest risk are remembered
_LOOK_S = 5.0  # before the first repair, while too little of the greatest risk was found
_LOOK_ON_S = 0.00025  # for each slice that was handed out, after that
_AGAIN_S = 10.0  # after so long it is asked whether more was lost since
_REST, _LONG_S = 20, 1.0  # a look at everything that took long is not repeated before so many times as long

_FIRST = datetime.min.replace(tzinfo=UTC)


@dataclass
class _Look:
    """One walk through everything that may be hurt: the damage noted, then nodes whose fragments are lost."""

    nodes: list[int]
    noted_at: datetime | None  # the last damage
    places: list[int | None]  # still to go through; None: damage
    after: UUID | None = None  # in the first of them
    took: float = 0.0  # seconds
    may_take: float = 0.0
    ended_at: float = 0.0


class RepairQueue:
    """Used by one thread. What it remembers is only where to look: a task is read anew when it is handed out."""

    def __init__(self, db: UpkeepDB, repair_delay: float, look: float = _LOOK_S) -> None:
        """``look``: seconds to look for what is at the greatest risk before anything else is handed out."""
        self._db, self._delay, self._look_s = db, repair_delay, look
        self._found: list[Hurt] = []  # a heap
        self._ids: set[UUID] = set()  # of these
        self._dropped: Hurt | None = None  # the first in order of those that were found and not remembered
        self._urgent = 0  # among these: one loss more would destroy them
        self._look: _Look | None = None
        self._asked_at = float("-inf")

    def next(self, limit: int, left_alone: Callable[[UUID], object], deadline: Deadline) -> list[RepairTask]:
        """The next ``limit`` slices to repair; fewer, or none: there are no more now.

        Those ``left_alone`` are found again by a later look.
        """
        if not self._next_is_known():
            self._remember([])
            self._dropped = self._look = None
        self._begin_look(deadline)
        if self._look is not None:
            self._go_on(self._look, limit, deadline)
        tasks: list[RepairTask] = []
        while self._found and self._next_is_known() and len(tasks) < limit:
            chosen: list[UUID] = []
            while self._found and self._next_is_known() and len(chosen) < limit - len(tasks):
                chosen.append(self._pop())
            if ids := [id for id in chosen if not left_alone(id)]:
                tasks += self._db.hurt_among(ids, self._delay, deadline)
        if self._look is not None:
            self._look.may_take += len(tasks) * _LOOK_ON_S
        return by_risk(tasks)

    def give_back(self, tasks: Iterable[RepairTask]) -> None:
        """What was handed out and not begun is handed out again, first of its kind."""
        for task in tasks:
            left = task.redundancy_left
            self._push(Hurt(left < 0, task.trashed, left, _FIRST, task.piece.id))

    def look_anew(self) -> None:
        """Something that was left alone need not be any more."""
        self._look, self._asked_at = None, float("-inf")

    def _begin_look(self, deadline: Deadline) -> None:
        """Ask what is lost now; look anew when that changed, or when what was found is done."""
        now, before = time.monotonic(), self._look
        if self._found and now - self._asked_at < _AGAIN_S:
            return
        nodes, noted_at = self._db.hurt_places(self._delay, deadline)
        self._asked_at = now
        if before is not None and (before.nodes, before.noted_at) == (nodes, noted_at):
            rest = _REST * before.took if before.took > _LONG_S else 0.0
            if self._found or before.places or now < before.ended_at + rest:
                return
        known = bool(self._found) and before is not None and before.nodes == nodes
        damage: list[int | None] = [] if noted_at is None else [None]
        self._look = _Look(nodes, noted_at, [*damage, *nodes], may_take=0.0 if known else self._look_s)

    def _go_on(self, look: _Look, limit: int, deadline: Deadline) -> None:
        """Look at the next page; at more while too little is urgent, for a while, or as long as nothing is found."""
        while look.places and not (self._found and (self._urgent >= limit or look.took > look.may_take)):
            began = time.monotonic()
            hurt, look.after = self._db.hurt_page(look.places[0], look.after, _PAGE, self._delay, deadline)
            for each in hurt:
                self._push(each)
            look.ended_at = time.monotonic()
            look.took += look.ended_at - began
            if look.after is None:
                look.places.pop(0)

    def _next_is_known(self) -> bool:
        """Whether the next of those remembered comes before all that were not."""
        return self._dropped is None or bool(self._found and self._found[0] <= self._dropped)

    def _push(self, hurt: Hurt) -> None:
        if hurt.id in self._ids:
            return
        heapq.heappush(self._found, hurt)
        self._ids.add(hurt.id)
        self._urgent += hurt.urgent
        if len(self._found) > 2 * _KEPT:
            inorder = sorted(self._found)
            self._dropped = min(inorder[_KEPT], self._dropped or inorder[_KEPT])
            self._remember(inorder[:_KEPT])

    def _remember(self, inorder: list[Hurt]) -> None:
        self._found, self._ids = inorder, {each.id for each in inorder}
        self._urgent = sum(each.urgent for each in inorder)

    def _pop(self) -> UUID:
        hurt = heapq.heappop(self._found)
        self._ids.discard(hurt.id)
        self._urgent -= hurt.urgent
        return hurt.id
