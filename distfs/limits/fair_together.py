"""``fairshare`` of several processes that have one cap together.

What one schedule knows of all its transfers is shared: when the next portion may go, and the virtual times by which
turns are compared. Each process says which turn is the next of its own; it grants that one when no other process has
an earlier one. So there is one order of all transfers, as if one process had them, and nobody divides a cap.

Who is told to go first and does not come, because its process stands still, is waited for once, for PATIENCE_S. What
goes unused meanwhile is made up for, since a pace saves up more than that.
"""

from __future__ import annotations

import heapq

from distfs.config.settings import KIB
from distfs.limits.fairshare import (
    AT_ONCE,
    EXPRESS,
    SLACK_S,
    TURN_S,
    Group,
    Level,
    Pace,
    Schedule,
    Transfer,
)
from distfs.process.shared_table import NOTHING, SharedTable

PATIENCE_S = 0.4 * SLACK_S
#: So often it is looked whether another process has had its turn.
LOOK_S = 0.001
#: batch: behind every turn of those that are served at once. Turns are in bytes.
_LATER = float(KIB**5)


class _SharedPace(Pace):
    def __init__(self, rate: float, saves_s: float, table: SharedTable, name: str) -> None:
        self.rate, self._saves_s = rate, saves_s
        self._table, self._column = table, table.keep(f"{name} free")
        self.free_at = NOTHING  # whatever an earlier rate has left

    @property
    def free_at(self) -> float:
        return self._table.common(self._column)

    @free_at.setter
    def free_at(self, at: float) -> None:
        self._table.set_common(self._column, at or NOTHING)


class _SharedLevel(Level):
    def __init__(self, credit: float, table: SharedTable, name: str) -> None:
        self.credit = credit
        self._table, self._column = table, table.keep(f"{name} time")

    @property
    def time(self) -> float:
        return self._table.common(self._column)

    @time.setter
    def time(self, time: float) -> None:
        self._table.set_common(self._column, time or NOTHING)


class _SharedGroup(Group):
    """Transfers of one caller in all processes."""

    def __init__(self, cap: float, table: SharedTable, name: str) -> None:
        self._table, self._column = table, table.keep(f"{name} offset")
        self.turns = table.keep(f"{name} turn")
        self.pace = _SharedPace(cap, TURN_S, table, name)
        self.level = _SharedLevel(Group(cap).level.credit, table, name)

    @property
    def offset(self) -> float:
        return self._table.common(self._column)

    @offset.setter
    def offset(self, offset: float) -> None:
        self._table.set_common(self._column, offset or NOTHING)


class SharedSchedule(Schedule):
    """One direction in this process, beside those of the others. As a Schedule."""

    def __init__(self, cap: float, mode: str, table: SharedTable, name: str) -> None:
        super().__init__(cap, mode)
        self._table, self._name = table, name
        self._pace = _SharedPace(cap, SLACK_S, table, name)
        self._level = _SharedLevel(self._level.credit, table, name)
        self._turns = table.keep(f"{name} turn")  # of those that no cap of their own holds back
        self._served_here = [table.keep(f"{name} served {place}") for place in range(AT_ONCE)]
        self._say_served([])  # whoever was, in what this one replaces
        self._groups: list[_SharedGroup] = []
        self._said: dict[int, float] = {}
        self._late: dict[tuple[int, int], float] = {}  # whose turn was waited for in vain, by column and row
        self._yields_since = 0.0  # another's turn is waited for; 0: none is

    def group(self, cap: float, name: str) -> Group:
        """Of transfers that have ``cap`` together, in whatever process; 0: they have none."""
        if not cap:
            return Group(0)
        group = _SharedGroup(cap, self._table, f"{self._name} {name}")
        self._groups.append(group)
        return group

    def ask(self, transfer: Transfer, amount: int, now: float) -> None:
        with self._table.locked():
            super().ask(transfer, amount, now)

    def _waits(self, group: Group) -> bool:
        elsewhere = isinstance(group, _SharedGroup) and bool(self._table.others(group.turns))
        return elsewhere or super()._waits(group)

    def withdraw(self, transfer: Transfer) -> None:
        super().withdraw(transfer)
        if not self._waiting:
            self._say({})

    def leave(self, transfer: Transfer) -> None:
        super().leave(transfer)
        if not self._live:
            self._say_served([])

    def grant(self, now: float) -> Transfer | None:
        """Asked again until it is nobody's turn: what is said then holds."""
        with self._table.locked():
            self._say(self._next_turns())
            transfer = self._next(now)
            if transfer is None or self._pace.free_at > now:
                self._yields_since = 0.0
                return None
            return None if self._others_first(self._turn_of(transfer), now) else self._give(transfer, now)

    def give_back(self, transfer: Transfer, amount: int) -> None:
        with self._table.locked():
            super().give_back(transfer, amount)

    def wait(self, now: float) -> float:
        left = super().wait(now)
        return max(left, LOOK_S) if self._yields_since else left

    def _next_turns(self) -> dict[int, float]:
        """By the column where it is said: of each group, since its cap holds it back here as anywhere."""
        turns: dict[int, float] = {}
        for transfer in self._waiting:
            group, turn = transfer.group, self._turn_of(transfer)
            column = group.turns if isinstance(group, _SharedGroup) else self._turns
            turns[column] = min(turn, turns.get(column, turn))
        return turns

    def _say(self, turns: dict[int, float]) -> None:
        for column in self._said.keys() - turns.keys():
            self._table.say(column, 0)
        for column, turn in turns.items():
            self._table.say(column, turn)
        self._said = turns

    def _turn_of(self, transfer: Transfer) -> float:
        """For others to compare; more than 0."""
        if not self._batch:
            return 1 + max(0.0, self._turn(transfer)[0])
        served = transfer.taken < EXPRESS or transfer in self._served()
        return 1 + max(0.0, transfer.start) if served else _LATER + transfer.order

    def _others_first(self, mine: float, now: float) -> bool:
        """Whether to wait for another process."""
        free = [self._turns, *(group.turns for group in self._groups if group.pace.free_at <= now)]
        first = {
            (column, row): turn
            for column in free
            for row, turn in self._table.others(column).items()
            if turn < mine and self._late.get((column, row)) != turn
        }
        if not first:
            self._yields_since = 0.0
            return False
        if not self._yields_since:
            self._yields_since = now
        if now - self._yields_since < PATIENCE_S:
            return True
        self._late |= first
        self._yields_since = 0.0
        return False

    def _served(self) -> list[Transfer]:
        here = super()._served()
        self._say_served([transfer.order + 1 for transfer in here])
        others = (order for column in self._served_here for order in self._table.others(column).values())
        last = heapq.nsmallest(AT_ONCE, [*others, *(transfer.order + 1 for transfer in here)])[-1:]
        return [transfer for transfer in here if transfer.order + 1 <= last[0]]

    def _say_served(self, orders: list[int]) -> None:
        for place, column in enumerate(self._served_here):
            self._table.say(column, orders[place] if place < len(orders) else 0)
