"""What goes through all files, or all slices of a node, and is too long for ``db``: page by page, as all of it there.

Nothing holds the pages together: what changes between them would be different a second later anyway.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Refused
from distfs.meta import MetaDB
from distfs.model import FragmentId
from distfs.upkeep.model import ShortFile

_START = UUID(int=0)
_PAGE = 5000  # slices that one statement judges
_SHORT = 10_000  # slices that would be lost: enough of a reason
_COUNTED = 20_000  # rows that one statement counts


class Totals(NamedTuple):
    """What there is, whether or not something of it is lost."""

    files: int
    bytes: int
    stored: int  # of these bytes, after compression
    slices: Counter[int]  # of files that can be read, by m
    trash_files: int
    trash_bytes: int
    trash_stored: int


def totals(meta: MetaDB, deadline: Deadline) -> Totals:
    """Everything counted."""
    slices = Counter[int]()
    after: UUID | None = _START
    while after is not None:
        rows = meta.read("slice_totals", deadline, after=after, limit=_COUNTED)
        for _, m, count in rows:
            slices[m] += count
        after = rows[0][0] if sum(row[2] for row in rows) == _COUNTED else None
    return Totals(*_sums(meta, "file_totals", deadline), slices, *_sums(meta, "trash_totals", deadline))


def _sums(meta: MetaDB, query: str, deadline: Deadline) -> tuple[int, int, int]:
    files = size = stored = 0
    after: UUID | None = _START
    while after is not None:
        [[last, count, more, kept]] = meta.read(query, deadline, after=after, limit=_COUNTED)
        files, size, stored = files + count, size + more, stored + kept
        after = last if count == _COUNTED else None
    return files, size, stored


class _Named(NamedTuple):
    """A file, in the order in which people are told."""

    trashed: bool
    created_at: datetime
    id: UUID
    name: str


def short_files(
    meta: MetaDB, nodes: Sequence[int], bad: Sequence[FragmentId], deadline: Deadline
) -> list[ShortFile]:
    """See ``UpkeepDB.short_files``. Each slice counts where it is met first: on the first of ``nodes`` that it is on,
    among ``bad``, or as damaged; so nobody has to remember which were counted."""
    indexes = defaultdict[UUID, list[int]](list)
    for each in bad:
        indexes[each.slice].append(each.index)
    short = Counter[_Named]()

    def judge(pages: Iterable[Sequence[UUID]], counted: Sequence[int]) -> None:
        for ids in pages:
            named = [(id, index) for id in ids for index in indexes.get(id, ())]
            params: dict[str, Any] = {"ids": list(ids), "nodes": list(nodes), "counted": list(counted)}
            params |= {"slices": [id for id, _ in named], "indexes": [index for _, index in named]}
            short.update(_Named(*row) for row in meta.read("short_among", deadline, **params))

    for done, node in enumerate(nodes):
        judge(_pages(meta, "kept_ids", deadline, node=node), nodes[:done])
    named = sorted(indexes)
    judge((named[i : i + _PAGE] for i in range(0, len(named), _PAGE)), nodes)
    damaged = _pages(meta, "damaged_ids", deadline)
    judge(([id for id in page if id not in indexes] for page in damaged), nodes)
    return [ShortFile(file.id, file.name, file.trashed, count) for file, count in sorted(short.items())]


def require_spare(meta: MetaDB, node: int, deadline: Deadline, seen: Callable[[int], object]) -> None:
    """Raises Refused when there are slices that cannot be read without a node. ``seen``: how many it judged."""
    slices, judged, files, after = 0, 0, set[UUID](), _START
    while slices < _SHORT:
        params: dict[str, Any] = {"node": node, "after": after, "limit": _PAGE}
        rows = meta.read("short_without", deadline, down_after=meta.silence, **params)
        short = [file for _, file in rows if file]
        slices, judged, files = slices + len(short), judged + len(rows), files.union(short)
        seen(judged)
        if len(rows) < _PAGE:
            break
        after = rows[-1][0]
    if slices:
        least = "at least " if slices >= _SHORT else ""
        raise Refused(
            f"without node {node} there is not enough left to read {least}{slices} slices of {len(files)} files "
            "(deleted ones that can be undeleted count): start it again, wait for repair, or delete those files "
            "first; `distfs fsck` names them"
        )


def _pages(meta: MetaDB, query: str, deadline: Deadline, **where: Any) -> Iterator[list[UUID]]:
    """All ids of slices that ``query`` tells of."""
    after: UUID | None = _START
    while after is not None:
        page = [row[0] for row in meta.read(query, deadline, **where, after=after, limit=_PAGE)]
        yield page
        after = page[-1] if len(page) == _PAGE else None
