"""A fragment store that breaks on purpose: one of the seams for faults. Injecting nothing, it keeps the contract."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from random import Random
from typing import Any, Protocol

from distfs.deadline import Deadline
from distfs.errors import DistfsError, NodeUnavailable, TooSlow
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fragment import CellEntry, FragmentHeader, FragmentTable
from distfs.fragment_store import FragmentReader, FragmentStore, FragmentWriter, Page, StoreInfo
from distfs.model import FragmentId
from tests.faults.ledger import of_the_test


class Faults(Protocol):
    """What goes wrong."""

    def error(self, call: str) -> DistfsError | None:
        """What this call raises instead of being done; None: it is done."""

    def spoil(self, cell: int, view: memoryview) -> None:
        """A cell that was read, to be damaged or not."""


class NoFaults:
    """Nothing goes wrong."""

    def error(self, call: str) -> DistfsError | None:
        return None

    def spoil(self, cell: int, view: memoryview) -> None:
        pass


class SeededFaults:
    """Each call fails, and each cell is damaged, with a probability; the same ones for the same seed.

    ``met`` is called when something went wrong.
    """

    def __init__(self, seed: float, failing: float, damaging: float, met: Callable[[], object]) -> None:
        self._random, self._met = Random(seed), met
        self._failing, self._damaging = failing, damaging

    def error(self, call: str) -> DistfsError | None:
        if self._random.random() >= self._failing:
            return None
        kind = self._random.choice((NodeUnavailable, TooSlow))
        self._met()
        return kind(f"{call} fails on purpose")

    def spoil(self, cell: int, view: memoryview) -> None:
        if len(view) and self._random.random() < self._damaging:
            self._met()
            view[self._random.randrange(len(view))] ^= 1 << self._random.randrange(8)


class PlannedFaults:
    """Calls of the name ``call`` fail as ``kind`` and cells are damaged, by their numbers from 0.

    Of a range, the first one has to come; of other numbers each.
    """

    def __init__(
        self,
        call: str = "",
        numbers: Collection[int] = (),
        kind: type[DistfsError] = NodeUnavailable,
        flips: Collection[int] = (),
    ) -> None:
        self._call, self._numbers, self._kind, self._flips = call, numbers, kind, flips
        self._calls = itertools.count()
        self._failed = {n: of_the_test(f"{call} {n} fails") for n in _have_to_come(numbers)}
        self._flipped = {n: of_the_test(f"a flip in cell {n}") for n in _have_to_come(flips)}

    def error(self, call: str) -> DistfsError | None:
        if call != self._call or (number := next(self._calls)) not in self._numbers:
            return None
        if number in self._failed:
            self._failed[number]()
        return self._kind("on purpose")

    def spoil(self, cell: int, view: memoryview) -> None:
        if cell in self._flips:
            if cell in self._flipped:
                self._flipped[cell]()
            view[len(view) // 2] ^= 0x10


def _have_to_come(numbers: Collection[int]) -> Collection[int]:
    return numbers[:1] if isinstance(numbers, range) else numbers


class FaultyStore:
    """A FragmentStore around another. ``calls`` notes every call with what it asked for."""

    def __init__(self, inner: FragmentStore, faults: Faults | None = None) -> None:
        self.inner, self.faults = inner, faults or NoFaults()
        self.calls: list[tuple[Any, ...]] = []
        self.readers_open = self.writers_open = 0

    def put(self, header: FragmentHeader, size_hint: int, deadline: Deadline) -> FragmentWriter:
        self._strike("put", header.id, size_hint)
        return _FaultyWriter(self, self.inner.put(header, size_hint, deadline))

    def get(
        self, id: FragmentId, first: int, count: int, deadline: Deadline, *, aside: bool = False
    ) -> FragmentReader:
        self._strike("get", id, first, count)
        return _FaultyReader(self, self.inner.get(id, first, count, deadline, aside=aside), first)

    def stat(self, id: FragmentId, deadline: Deadline) -> FragmentTable:
        self._strike("stat", id)
        return self.inner.stat(id, deadline)

    def verify(self, id: FragmentId, deadline: Deadline) -> tuple[int, ...]:
        self._strike("verify", id)
        return self.inner.verify(id, deadline)

    def delete(self, id: FragmentId, deadline: Deadline) -> bool:
        self._strike("delete", id)
        return self.inner.delete(id, deadline)

    def list(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        self._strike("list", cursor, limit)
        return self.inner.list(cursor, limit, deadline)

    def quarantine(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        self._strike("quarantine", id, min_age)
        return self.inner.quarantine(id, min_age, deadline)

    def release(self, id: FragmentId, deadline: Deadline) -> bool:
        self._strike("release", id)
        return self.inner.release(id, deadline)

    def discard(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        self._strike("discard", id, min_age)
        return self.inner.discard(id, min_age, deadline)

    def list_quarantine(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        self._strike("list_quarantine", cursor, limit)
        return self.inner.list_quarantine(cursor, limit, deadline)

    def info(self, deadline: Deadline) -> StoreInfo:
        self._strike("info")
        return self.inner.info(deadline)

    def _strike(self, call: str, *asked: Any) -> None:
        self.calls.append((call, *asked))
        error = self.faults.error(call)
        if error is not None:
            raise error


class _FaultyWriter:
    def __init__(self, store: FaultyStore, inner: FragmentWriter) -> None:
        self._store, self._inner = store, inner
        self._open = True
        store.writers_open += 1

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        self._store._strike("write_cell")
        self._inner.write_cell(entry, data)

    def finish(self, slice_size: int, last: bool, extra: Extra = PLAIN) -> None:
        self._store._strike("finish")
        self._inner.finish(slice_size, last, extra)

    def commit(self) -> None:
        try:
            self._store._strike("commit")
        except DistfsError:
            self.abort()
            raise
        self._inner.commit()
        self._ended()

    def abort(self) -> None:
        self._inner.abort()
        self._ended()

    def _ended(self) -> None:
        self._store.writers_open -= self._open
        self._open = False


class _FaultyReader:
    def __init__(self, store: FaultyStore, inner: FragmentReader, first: int) -> None:
        self._store, self._inner = store, inner
        self._cells = itertools.count(first)
        self.table = inner.table
        self._closed = False
        store.readers_open += 1

    def read_cell(self, view: memoryview) -> None:
        self._store._strike("read_cell")
        self._inner.read_cell(view)
        self._store.faults.spoil(next(self._cells), view)

    def close(self) -> None:
        self._inner.close()
        if not self._closed:
            self._closed = True
            self._store.readers_open -= 1
