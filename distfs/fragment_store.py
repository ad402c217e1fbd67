"""The fragment store: the one interface behind which fragments are kept.

On this machine's disk (``disk.store``), on another machine (``peers.client``), in memory for tests, or wrapped by
something that throttles, retries or breaks on purpose: all are FragmentStore, and one contract suite
(``tests/contract``) runs against each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Corrupt, ProtocolError
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fragment import CellEntry, FragmentHeader, FragmentTable, checksum
from distfs.model import MAX_K, MAX_M, FragmentId

#: How many bad cells of a fragment a message names.
_NAMED = 10


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
    """A run of a listing in the order of names. ``cursor`` fetches the next; None: the listing is complete."""

    fragments: tuple[Listed, ...]
    cursor: str | None


class FragmentWriter(Protocol):
    """One fragment on its way in. Nothing of it can be read before ``commit`` returns."""

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        """Append a cell. Raises Corrupt when ``data`` is not what ``entry`` says (now, or at commit)."""

    def finish(self, slice_size: int, last: bool, extra: Extra = PLAIN) -> None:
        """No more cells. Does not wait for durability. Raises Corrupt when they cannot be a slice of that size
        (now, or at commit). ``extra``: beside the header's, which must have some, too."""

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
    """Keeps fragments by id. Every call may raise NodeUnavailable or TooSlow; the rest as said.

    What reads a fragment, or takes one away by anybody's decision but its file's owner's, raises NewerFormat for one
    that a newer distfs wrote, and nothing is done: whether it is good cannot be told.
    """

    def put(self, header: FragmentHeader, size_hint: int, deadline: Deadline) -> FragmentWriter:
        """Begin a fragment of about ``size_hint`` bytes (0: not known). Raises Full."""

    def get(
        self, id: FragmentId, first: int, count: int, deadline: Deadline, *, aside: bool = False
    ) -> FragmentReader:
        """Read ``count`` cells from cell ``first`` (cut to what there is); of one that was put ``aside``, if asked.
        Raises NotFound, Corrupt."""

    def stat(self, id: FragmentId, deadline: Deadline) -> FragmentTable:
        """The table, without the cells, and what else the fragment has. Raises NotFound, Corrupt."""

    def verify(self, id: FragmentId, deadline: Deadline) -> tuple[int, ...]:
        """Re-read every cell; the numbers of those that fail. Raises NotFound, Corrupt (no cell is good)."""

    def delete(self, id: FragmentId, deadline: Deadline) -> bool:
        """Whether there was such a fragment; afterwards there is none, and a PUT of it that runs will fail."""

    def list(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        """At most ``limit`` fragments after ``cursor`` ("" is the start)."""

    def quarantine(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        """Put a fragment aside: no longer read or listed, not deleted either. Replaces what is aside by that id,
        unless this one is bad: then it is deleted if that one is good, and stays where it is if not. Of two bad
        ones each may have what the other lacks.

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


def check_page(page: Page, after: str, limit: int) -> None:
    """Raise ProtocolError unless a page can be what comes ``after`` a cursor in a listing that comes to an end.

    Whoever pages through a listing trusts in this: each page goes on behind the last, each fragment comes once.
    """
    if len(page.fragments) > max(1, limit):
        raise ProtocolError(f"{len(page.fragments)} fragments where {limit} were asked for")
    at = after
    for listed in page.fragments:
        if not 0 <= listed.id.index < MAX_K + MAX_M or not math.isfinite(listed.age):
            raise ProtocolError(f"fragment {listed.id}, {listed.age} s old: there is none such")
        if str(listed.id) <= at:
            raise ProtocolError(f"fragment {listed.id} after {at}: out of order, or twice")
        at = str(listed.id)
    if page.cursor is None:
        return
    if not page.fragments:
        raise ProtocolError(f"no fragment after {after!r}, and yet there is more")
    if parse_name(page.cursor) is None or page.cursor < at:
        raise ProtocolError(f"a cursor that does not go on from {at}: {page.cursor[:100]!r}")


@contextmanager
def committed(writer: FragmentWriter) -> Iterator[None]:
    """What is written within, all of it, is durable afterwards; or nothing is left when that fails."""
    try:
        yield
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def fault(
    store: FragmentStore, id: FragmentId, digest: bytes | None, block_size: int, deadline: Deadline
) -> str:
    """What is wrong with a fragment of which some cells are good, read in full where it is; empty: nothing.

    ``digest``: of its slice; None: nobody knows it. Raises Corrupt when none of it is good, and what the store does.
    """
    if digest is not None:
        store.stat(id, deadline).check(digest, block_size)
    bad = store.verify(id, deadline)
    more = ", ..." if len(bad) > _NAMED else ""
    return f"cells {', '.join(map(str, bad[:_NAMED]))}{more} fail their checksums" if bad else ""


def parse_name(name: str) -> FragmentId | None:
    """What ``str`` of a fragment's id says; None for any other text."""
    slice_, _, index = name.partition(".")
    try:
        fragment = FragmentId(UUID(slice_), int(index))
    except ValueError:
        return None
    return fragment if str(fragment) == name and 0 <= fragment.index < MAX_K + MAX_M else None


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
