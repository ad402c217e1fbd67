"""The fragment store: the one interface behind which fragments are kept.

On this machine's disk (``disk_store``), on another machine (``node_client``), in memory (here), or wrapped by
something that throttles, retries or breaks on purpose: all are FragmentStore, and one contract suite
(``tests/contract``) runs against each.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Corrupt, Full, NodeUnavailable, NotFound
from distfs.fragment import (
    MAX_CELLS,
    CellEntry,
    FragmentHeader,
    FragmentTable,
    checksum,
    pack_footer,
    read_layout,
)
from distfs.model import FragmentId


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Who keeps the fragments and how much room there is, in bytes."""

    node: UUID
    cluster: UUID
    capacity: int
    used: int
    free: int  # what may still be put: the reserve is subtracted
    state: str  # 'active' or 'readonly'
    clock: float = 0.0  # seconds since 1970, by the store's own clock; what it says of ages is by that


@dataclass(frozen=True, slots=True)
class Listed:
    """One fragment in a listing."""

    id: FragmentId
    size: int  # bytes stored
    age: float  # seconds since it was written, by the store's own clock


@dataclass(frozen=True, slots=True)
class Page:
    """A run of a listing in id order. ``cursor`` fetches the next; None: the listing is complete."""

    fragments: tuple[Listed, ...]
    cursor: str | None


class FragmentWriter(Protocol):
    """One fragment on its way in. Nothing of it can be read before ``commit`` returns."""

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        """Append a cell. Raises Corrupt when ``data`` is not what ``entry`` says (now, or at commit)."""

    def finish(self, slice_size: int, last: bool) -> None:
        """No more cells. Does not wait for durability. Raises Corrupt when they cannot be a slice of that size
        (now, or at commit)."""

    def commit(self) -> None:
        """Wait until the fragment is checked, complete and durable. Raises and leaves nothing otherwise, except
        that a node which was lost after ``finish`` may have kept it: who gives up deletes it, too."""

    def abort(self) -> None:
        """Give up: nothing of the fragment remains, with the same exception. Does nothing after a commit."""


class FragmentReader(Protocol):
    """A run of cells on their way out, in order."""

    table: FragmentTable

    def read_cell(self, view: memoryview) -> None:
        """The next cell's bytes, *unchecked*; ``view`` has the length its table entry says."""

    def close(self) -> None:
        """Release what the reader holds, also in the middle; closing twice is fine."""


class FragmentStore(Protocol):
    """Keeps fragments by id. Every call may raise NodeUnavailable or TooSlow; the rest as said."""

    def put(self, header: FragmentHeader, size_hint: int, deadline: Deadline) -> FragmentWriter:
        """Begin a fragment of about ``size_hint`` bytes (0: not known). Raises Full."""

    def get(self, id: FragmentId, first: int, count: int, deadline: Deadline) -> FragmentReader:
        """Read ``count`` cells from cell ``first`` (cut to what there is). Raises NotFound, Corrupt."""

    def stat(self, id: FragmentId, deadline: Deadline) -> FragmentTable:
        """The table, without the cells. Raises NotFound, Corrupt."""

    def verify(self, id: FragmentId, deadline: Deadline) -> tuple[int, ...]:
        """Re-read every cell; the numbers of those that fail. Raises NotFound, Corrupt (no cell is good)."""

    def delete(self, id: FragmentId, deadline: Deadline) -> bool:
        """Whether there was such a fragment; afterwards there is none, and a PUT of it that runs will fail."""

    def list(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        """At most ``limit`` fragments after ``cursor`` ("" is the start)."""

    def quarantine(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        """Put a fragment aside: no longer read or listed, not deleted either. Replaces what is aside by that id.

        False, and nothing is done, unless there is one that was written at least ``min_age`` seconds ago: one
        that came after the caller's decision is not what was decided about.
        """

    def release(self, id: FragmentId, deadline: Deadline) -> bool:
        """Bring a fragment back from quarantine, if all its cells are good and no other has its place.

        False when none is aside, or a fragment of that id is in use. Raises Corrupt: it stays aside.
        """

    def discard(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        """Delete from quarantine a fragment that was put there at least ``min_age`` seconds ago."""

    def list_quarantine(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        """As ``list``, of what was put aside; ages count from then."""

    def info(self, deadline: Deadline) -> StoreInfo:
        """Who this is, how much room there is, and what time it is there."""


def check_counts(cells: int, slice_size: int, block_size: int) -> None:
    """Raise Corrupt unless a slice of ``slice_size`` bytes has so many blocks, one cell each."""
    if -(-slice_size // block_size) != cells:
        raise Corrupt(f"a slice of {slice_size} bytes in {cells} cells of {block_size}: some were lost")


def check_length(entry: CellEntry, actual: int, number: int) -> None:
    """Raise Corrupt unless a cell is as long as its entry says."""
    if actual != entry.length:
        raise Corrupt(f"cell {number}: {actual} bytes, {entry.length} expected")


def check_cell(entry: CellEntry, actual: int, number: int) -> None:
    """Raise Corrupt unless a cell's computed checksum is its entry's."""
    if actual != entry.checksum:
        raise Corrupt(f"cell {number} fails its checksum: {actual:016x}, {entry.checksum:016x} expected")


class MemoryStore:
    """Fragments in a dict, in the same format as on disk; bounded by ``capacity`` bytes. For tests."""

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

    def get(self, id: FragmentId, first: int, count: int, deadline: Deadline) -> FragmentReader:
        return _reader(self._data(id), first)

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
            return _move(self.fragments, self.aside, id, min_age)

    def release(self, id: FragmentId, deadline: Deadline) -> bool:
        with self._lock:
            if id in self.fragments or id not in self.aside:
                return False
            if bad := failing_cells(_reader(self.aside[id][0], 0), deadline):
                raise Corrupt(f"fragment {id} stays in quarantine: cells {bad} fail their checksums")
            return _move(self.aside, self.fragments, id, 0)

    def discard(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        with self._lock:
            return _move(self.aside, {}, id, min_age)

    def list_quarantine(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        with self._lock:
            return _page(self.aside, cursor, limit)

    def info(self, deadline: Deadline) -> StoreInfo:
        node, cluster, capacity = self._info
        used = sum(len(data) for kept in (self.fragments, self.aside) for data, _ in kept.values())
        return StoreInfo(node, cluster, capacity, used, capacity - used, "active", time.time())

    def _data(self, id: FragmentId) -> bytearray:
        with self._lock:
            if id not in self.fragments:
                raise NotFound(f"no fragment {id}")
            return self.fragments[id][0]

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


def _reader(data: bytearray, first: int) -> _MemoryReader:
    _, table, cells_at = read_layout(len(data), lambda n, at: bytes(data[at : at + n]))
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

    def finish(self, slice_size: int, last: bool) -> None:
        check_counts(len(self._entries), slice_size, self._block_size)
        self._finished = True
        table = FragmentTable(tuple(self._entries), slice_size, last)
        at = len(self._data)
        packed = table.pack()
        self._data += packed + pack_footer(table, packed, at, self._packed)

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


def go_on() -> None:
    """Between two cells: nothing to wait for."""


def failing_cells(
    reader: FragmentReader, deadline: Deadline, between: Callable[[], object] = go_on
) -> tuple[int, ...]:
    """Read every cell of a reader that starts at cell 0; the numbers of those that fail their checksum.

    ``between`` is called before each.
    """
    buffer = bytearray(max((e.length for e in reader.table.entries), default=0))
    bad = []
    for number, entry in enumerate(reader.table.entries):
        between()
        deadline.remaining("verifying a fragment")
        view = memoryview(buffer)[: entry.length]
        try:
            reader.read_cell(view)
            good = checksum(view) == entry.checksum
        except Corrupt:
            good = False
        if not good:
            bad.append(number)
    return tuple(bad)
