"""How much is held of what, and by whom: by one process, or by all of a service together."""

from __future__ import annotations

import threading
from typing import NamedTuple

from distfs.process.shared_table import SharedTable


class Held(NamedTuple):
    """Who has how much of what."""

    what: str
    who: str


class Tally:
    """How much is held. Thread-safe; what is 0 is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Held, int] = {}

    def take(self, held: Held, amount: int, most: int) -> int | None:
        """``amount`` more, if that is ``most`` at most (0: no limit) or nothing is held -> None, or what is held."""
        with self._lock:
            before = self._held.get(held, 0)
            if most and before and before + amount > most:
                return before
            self._held[held] = before + amount
            return None

    def give_back(self, held: Held, amount: int) -> None:
        """Some of what was taken."""
        with self._lock:
            left = self._held.get(held, 0) - amount
            if left > 0:
                self._held[held] = left
            else:
                self._held.pop(held, None)

    def total(self, held: Held) -> int:
        """How much is held now."""
        return self._held.get(held, 0)

    def of(self, what: str) -> dict[str, int]:
        """By who has it, of this process."""
        with self._lock:
            return {held.who: count for held, count in self._held.items() if held.what == what}


class SharedTally(Tally):
    """The same of all processes of a service. What one has that is killed is held no more.

    For what the table has no place, or none can be made at the moment, it counts what this process has.
    """

    def __init__(self, table: SharedTable) -> None:
        super().__init__()
        self._table = table
        self._columns: dict[Held, int] = {}

    def take(self, held: Held, amount: int, most: int) -> int | None:
        with self._table.locked() as alone:
            column, here = self._columns.get(held), self._held.get(held, 0)
            before = (
                self._table.sum(column) if column is not None else self._table.total("\0".join(held)) + here
            )
            if most and before and before + amount > most:
                return before
            if (
                column is None and not here and alone
            ):  # what was counted here goes on so until all is given back
                column = self._table.column("\0".join(held))
            super().take(held, amount, 0)
            if column is not None:
                self._table.add(column, amount)
                self._columns[held] = column
            return None

    def give_back(self, held: Held, amount: int) -> None:
        with self._table.locked():
            before = self._held.get(held, 0)
            super().give_back(held, amount)
            after = self._held.get(held, 0)
            if (column := self._columns.get(held)) is not None:
                self._table.add(column, after - before)
                if not after:
                    del self._columns[held]

    def total(self, held: Held) -> int:
        return max(self._table.total("\0".join(held)), super().total(held))
