"""A fragment store that breaks on purpose: one of the seams for faults. Injecting nothing, it keeps the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from random import Random
from typing import Any, Protocol

from distfs.deadline import Deadline
from distfs.errors import DistfsError, NodeUnavailable, TooSlow
from distfs.fragment import CellEntry, FragmentHeader, FragmentTable
from distfs.fragment_store import FragmentReader, FragmentStore, FragmentWriter, Page, StoreInfo
from distfs.model import FragmentId


class Faults(Protocol):
    """What goes wrong."""

    def error(self, call: str) -> DistfsError | None:
        """What this call raises instead of being done; None: it is done."""

    def spoil(self, call: str, view: memoryview) -> None:
        """Bytes that were read, to be damaged or not."""


class NoFaults:
    """Nothing goes wrong."""

    def error(self, call: str) -> DistfsError | None:
        return None

    def spoil(self, call: str, view: memoryview) -> None:
        pass


class SeededFaults:
    """Each call fails, and each cell is damaged, with a probability; the same ones for the same seed."""

    def __init__(self, seed: int, failing: float = 0.0, damaging: float = 0.0) -> None:
        self._random = Random(seed)
        self._failing, self._damaging = failing, damaging

    def error(self, call: str) -> DistfsError | None:
        if self._random.random() >= self._failing:
            return None
        kind = self._random.choice((NodeUnavailable, TooSlow))
        return kind(f"{call} fails on purpose")

    def spoil(self, call: str, view: memoryview) -> None:
        if len(view) and self._random.random() < self._damaging:
            view[self._random.randrange(len(view))] ^= 1 << self._random.randrange(8)


class PlannedFaults:
    """``errors[call, n]``: what the n-th call of that name raises, from 0; ``flips``: which cells are damaged."""

    def __init__(self, errors: Mapping[tuple[str, int], DistfsError], flips: Collection[int] = ()) -> None:
        self._errors, self._flips = errors, flips
        self._seen: Counter[str] = Counter()

    def error(self, call: str) -> DistfsError | None:
        self._seen[call] += 1
        return self._errors.get((call, self._seen[call] - 1))

    def spoil(self, call: str, view: memoryview) -> None:
        if self._seen[call] - 1 in self._flips:
            view[len(view) // 2] ^= 0x10


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
        return _FaultyReader(self, self.inner.get(id, first, count, deadline, aside=aside))

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

    def finish(self, slice_size: int, last: bool) -> None:
        self._store._strike("finish")
        self._inner.finish(slice_size, last)

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
    def __init__(self, store: FaultyStore, inner: FragmentReader) -> None:
        self._store, self._inner = store, inner
        self.table = inner.table
        self._closed = False
        store.readers_open += 1

    def read_cell(self, view: memoryview) -> None:
        self._store._strike("read_cell")
        self._inner.read_cell(view)
        self._store.faults.spoil("read_cell", view)

    def close(self) -> None:
        self._inner.close()
        if not self._closed:
            self._closed = True
            self._store.readers_open -= 1
