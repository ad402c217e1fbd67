"""Numbers that several processes share: by name, one for each process, in memory that all of them have.

Each process writes the numbers of its own row, which it may therefore read without asking; the sum of a column is
what all have together. A name has a column as long as any of its numbers is not 0. Row 0 is nobody's: it is written
under the lock.

The lock is one of fcntl(2): the kernel gives it back when its holder is killed. Whoever finds it held for long, as by
a process that stands still, goes on without, from then on at once: it changes the numbers it has already and makes
no column. So a limit may be passed, but no number is ever lost, nor anybody else's.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from distfs.errors import Unavailable

#: A name may have any of so many columns, which of them is told by its hash; there are so many in all.
WAYS, COLUMNS = 8, 1 << 16
_CELL = 8
#: What is in a column that is kept before anything else is.
NOTHING = 1e-300
_KEYS = 2 * COLUMNS * _CELL
_LOCK_WITHIN_S = 0.2
#: A column for good is asked for when a service begins or is configured, by who can wait.
_KEEP_WITHIN_S = 10.0


class SharedTable:
    """Made before the processes are forked; ``mine`` says whose row is written here. Thread-safe."""

    def __init__(self, rows: int) -> None:
        self._rows = rows + 1
        self._turn = 2 * COLUMNS + self._rows * COLUMNS  # where it is counted who has had the lock
        size = (self._turn + 1) * _CELL
        self._file = os.memfd_create("distfs") if hasattr(os, "memfd_create") else _temp_file()
        os.truncate(self._file, size)
        self._map = mmap.mmap(self._file, size)
        self._cells = memoryview(self._map).cast("q")
        self._reals = memoryview(self._map).cast("d")
        self._secret = os.urandom(16)
        self._thread = threading.Lock()
        self._mine = 0
        self._stuck = -1  # the turn that was waited for in vain
        self._hash = lru_cache(maxsize=1 << 14)(self._hash_of)

    def mine(self, row: int) -> None:
        """From now on this process is number ``row``, from 0 on."""
        self._mine = row + 1

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Nobody else of this process is between these, nor of another one. False: of another one somebody may be."""
        with self._thread:
            held = self._lock()
            try:
                yield held
            finally:
                if held:
                    fcntl.lockf(self._file, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        """Waits as long as others take turns, but not for one that stands still: callers may be a loop that has
        others to serve."""
        turn, ends = -1, 0.0
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if (theirs := self._cells[self._turn]) != turn:
                    turn, ends = theirs, time.monotonic() + _LOCK_WITHIN_S
                elif time.monotonic() >= ends:
                    self._stuck = turn
                if turn == self._stuck:
                    return False
                time.sleep(0.0001)
            else:
                self._cells[self._turn] += 1
                return True

    def column(self, name: str) -> int | None:
        """The name's, made if it has none. None: there is none to be had. Under the lock."""
        if (found := self._find(name)) is not None:
            return found
        high, low, first = self._hash(name)
        free = next((column for column in range(first, first + WAYS) if self._is_free(column)), None)
        if free is not None:
            self._cells[2 * free], self._cells[2 * free + 1] = high, low
        return free

    def _find(self, name: str) -> int | None:
        high, low, first = self._hash(name)
        for column in range(first, first + WAYS):
            if self._cells[2 * column] == high and self._cells[2 * column + 1] == low:
                return column
        return None

    def sum(self, column: int) -> int:
        """Of all processes."""
        return sum(self._cells[self._at(row, column)] for row in range(1, self._rows))

    def total(self, name: str) -> int:
        """The same, of a name that may have no column."""
        column = self._find(name)
        return 0 if column is None else self.sum(column)

    def add(self, column: int, amount: int) -> None:
        """To this process's number. Under the lock, or when it is not 0 before nor afterwards."""
        self._cells[self._at(self._mine, column)] += amount

    # --- numbers of any kind, in columns that are kept for good

    def keep(self, name: str) -> int:
        """A column for good. Raises RuntimeError when there is none to be had, Unavailable when another process
        holds the lock for long."""
        found = self._find(name)
        if found is not None and self._cells[self._at(0, found)]:
            return found  # that it stays needs no lock
        ends = time.monotonic() + _KEEP_WITHIN_S
        while True:
            with self.locked() as alone:
                if alone:
                    return self._keep(name)
            if time.monotonic() >= ends:
                raise Unavailable(
                    "another process of this service stands still: end it, another will take its place"
                )
            time.sleep(0.001)

    def _keep(self, name: str) -> int:
        column = self.column(name)
        if column is None:
            raise RuntimeError(f"no column is free for {name!r}")
        if not self._cells[self._at(0, column)]:
            self._reals[self._at(0, column)] = NOTHING
        return column

    def common(self, column: int) -> float:
        """Of row 0."""
        return self._reals[self._at(0, column)]

    def set_common(self, column: int, value: float) -> None:
        """Under the lock; ``value`` is not 0."""
        self._reals[self._at(0, column)] = value

    def say(self, column: int, value: float) -> None:
        """As this process's number."""
        self._reals[self._at(self._mine, column)] = value

    def others(self, column: int) -> dict[int, float]:
        """What other processes said last, where that is not 0, by their rows."""
        said = {row: self._reals[self._at(row, column)] for row in range(1, self._rows) if row != self._mine}
        return {row: value for row, value in said.items() if value}

    def clear(self, row: int) -> None:
        """That process has ended. By who never uses a row."""
        begin = _KEYS + (row + 1) * COLUMNS * _CELL
        if hasattr(mmap, "MADV_REMOVE"):
            self._map.madvise(mmap.MADV_REMOVE, begin, COLUMNS * _CELL)
        else:
            self._map[begin : begin + COLUMNS * _CELL] = bytes(COLUMNS * _CELL)

    def _at(self, row: int, column: int) -> int:
        return 2 * COLUMNS + row * COLUMNS + column

    def _is_free(self, column: int) -> bool:
        return not any(self._cells[self._at(row, column)] for row in range(self._rows))

    def _hash_of(self, name: str) -> tuple[int, int, int]:
        digest = hashlib.blake2b(name.encode(), digest_size=16, key=self._secret).digest()
        high, low = (int.from_bytes(half, "little", signed=True) for half in (digest[:8], digest[8:]))
        return high | 1, low, (low % (COLUMNS // WAYS)) * WAYS


def _temp_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
