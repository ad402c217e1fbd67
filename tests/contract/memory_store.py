"""The fragment store that needs no disk and no socket: the simplest one that keeps the contract."""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_right
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Corrupt, Full, NodeUnavailable, NotFound
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fragment import (
    MAX_CELLS,
    CellEntry,
    FragmentHeader,
    FragmentTable,
    checksum,
    pack_footer,
    read_layout,
)
from distfs.fragment_store import (
    FragmentReader,
    FragmentWriter,
    Listed,
    Page,
    StoreInfo,
    check_cell,
    check_counts,
    check_length,
    failing_cells,
)
from distfs.model import FragmentId


class MemoryStore:
    """Fragments in a dict, in the same format as on disk; bounded by ``capacity`` bytes."""

    def __init__(self, node: UUID, cluster: UUID, capacity: int = 1 << 30) -> None:
        self._info = (node, cluster, capacity)
        self._lock = threading.Lock()
        self.fragments: dict[FragmentId, tuple[bytearray, float]] = {}
        self.aside: dict[FragmentId, tuple[bytearray, float]] = {}
        self._writing: list[_MemoryWriter] = []

    def put(self, header: FragmentHeader, size_hint: int, deadline: Deadline) -> FragmentWriter:
        free = self.info(deadline).free
        if size_hint > free:
            raise Full(f"put {header.id}: {size_hint} bytes do not fit, {free} are free")
        with self._lock:
            self._writing.append(writer := _MemoryWriter(self, header))
        return writer

    def get(
        self, id: FragmentId, first: int, count: int, deadline: Deadline, *, aside: bool = False
    ) -> FragmentReader:
        return _reader(self._data(id, self.aside if aside else self.fragments), first)

    def stat(self, id: FragmentId, deadline: Deadline) -> FragmentTable:
        return self.get(id, 0, 0, deadline).table

    def verify(self, id: FragmentId, deadline: Deadline) -> tuple[int, ...]:
        return failing_cells(self.get(id, 0, MAX_CELLS, deadline), deadline)

    def delete(self, id: FragmentId, deadline: Deadline) -> bool:
        with self._lock:
            self._writing = [writer for writer in self._writing if writer.id != id]
            return self.fragments.pop(id, None) is not None

    def list(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        with self._lock:
            return _page(self.fragments, cursor, limit)

    def quarantine(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        with self._lock:
            _check_changeable(self.fragments, id)
            bad = id in self.aside and not _passes(self.fragments, id, deadline)
            if bad and not _passes(self.aside, id, deadline):
                return False
            return _move(self.fragments, {} if bad else self.aside, id, min_age)

    def release(self, id: FragmentId, deadline: Deadline) -> bool:
        with self._lock:
            if id in self.fragments or id not in self.aside:
                return False
            if bad := failing_cells(_reader(self.aside[id][0], 0), deadline):
                raise Corrupt(f"fragment {id} stays in quarantine: cells {bad} fail their checksums")
            return _move(self.aside, self.fragments, id, 0)

    def discard(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        with self._lock:
            _check_changeable(self.aside, id)
            return _move(self.aside, {}, id, min_age)

    def list_quarantine(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        with self._lock:
            return _page(self.aside, cursor, limit)

    def info(self, deadline: Deadline) -> StoreInfo:
        node, cluster, capacity = self._info
        used = sum(len(data) for kept in (self.fragments, self.aside) for data, _ in kept.values())
        return StoreInfo(node, cluster, capacity, used, capacity - used, "active", time.time())

    def _data(self, id: FragmentId, kept: _Kept) -> bytearray:
        with self._lock:
            if id not in kept:
                raise NotFound(f"no fragment {id}")
            return kept[id][0]

    def _keep(self, writer: _MemoryWriter, data: bytearray) -> None:
        with self._lock:
            if writer not in self._writing:
                raise NodeUnavailable(f"store {writer.id}: deleted while it was written")
            self._writing.remove(writer)
            self.fragments[writer.id] = (data, time.monotonic())

    def _give_up(self, writer: _MemoryWriter) -> None:
        with self._lock:
            if writer in self._writing:
                self._writing.remove(writer)


_Kept = dict[FragmentId, tuple[bytearray, float]]


def _page(kept: _Kept, cursor: str, limit: int) -> Page:
    by_name = {str(key): key for key in kept}
    names = sorted(by_name)
    start = bisect_right(names, cursor)
    chosen = names[start : start + limit]
    now = time.monotonic()
    listed = (Listed(key, len(kept[key][0]), now - kept[key][1]) for key in map(by_name.get, chosen) if key)
    return Page(tuple(listed), chosen[-1] if start + limit < len(names) else None)


def _move(source: _Kept, target: _Kept, id: FragmentId, min_age: float) -> bool:
    if id not in source or (min_age > 0 and time.monotonic() - source[id][1] < min_age):
        return False
    target[id] = source.pop(id)[0], time.monotonic()
    return True


def _check_changeable(kept: _Kept, id: FragmentId) -> None:
    with contextlib.suppress(Corrupt):
        if id in kept:
            _reader(kept[id][0], 0).table.check_changeable()


def _passes(kept: _Kept, id: FragmentId, deadline: Deadline) -> bool:
    try:
        return id in kept and not failing_cells(_reader(kept[id][0], 0), deadline)
    except Corrupt:
        return False


def _reader(data: bytearray, first: int) -> _MemoryReader:
    _, table, _, cells_at = read_layout(len(data), lambda n, at: bytes(data[at : at + n]))
    return _MemoryReader(table, data, cells_at, first)


class _MemoryWriter:
    def __init__(self, store: MemoryStore, header: FragmentHeader) -> None:
        self._store, self.id, self._block_size = store, header.id, header.block_size
        self._packed = header.pack()
        self._data = bytearray(self._packed)
        self._entries: list[CellEntry] = []
        self._finished = False

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        check_length(entry, len(data), len(self._entries))
        check_cell(entry, checksum(data), len(self._entries))
        self._data += data
        self._entries.append(entry)

    def finish(self, slice_size: int, last: bool, extra: Extra = PLAIN) -> None:
        check_counts(len(self._entries), slice_size, self._block_size)
        self._finished = True
        table = FragmentTable(tuple(self._entries), slice_size, last)
        at = len(self._data)
        packed = table.pack()
        self._data += packed + pack_footer(table, packed, at, self._packed, extra)

    def commit(self) -> None:
        if not self._finished:
            raise Corrupt(f"fragment {self.id} was not finished")
        self._store._keep(self, self._data)

    def abort(self) -> None:
        self._store._give_up(self)
        self._data = bytearray()


class _MemoryReader:
    def __init__(self, table: FragmentTable, data: bytearray, cells_at: int, first: int) -> None:
        self.table = table
        self._data, self._cells_at, self._next = data, cells_at, first

    def read_cell(self, view: memoryview) -> None:
        at = self._cells_at + self.table.offsets[self._next]
        view[:] = self._data[at : at + len(view)]
        self._next += 1

    def close(self) -> None:
        pass
