"""What a rebuild asks of MetaDB. What was found is kept there, so a run that ends goes on where it was, and needs no
memory for it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from distfs.deadline import Deadline
from distfs.formats.heads import HeadOf
from distfs.meta import MetaDB, storable_content_type, storable_name
from distfs.model import FragmentId, NewFile
from distfs.recovery.judge import Found

_START = UUID(int=0)
_PAGE = 200
BEGIN = "begin_rebuild_nodes", "begin_rebuild_fragments", "begin_rebuild_index", "begin_rebuild_copy"
#: In the transaction that loads a copy.
BEGIN_WITH_COPY = *BEGIN, "note_rebuild_copy"


class RecoveryDB:
    """Thread-safe."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta

    def take_identity(self, cluster: UUID, deadline: Deadline) -> bool:
        """Become the MetaDB of a cluster that is there; False, and nothing is done, where this one is in use."""
        return bool(self._meta.write("take_identity", deadline, cluster=cluster))

    def begin(self, deadline: Deadline) -> None:
        """From now on upkeep takes nothing for garbage, until ``end``."""
        for each in BEGIN:
            self._meta.write(each, deadline)

    def end(self, deadline: Deadline) -> None:
        self._meta.write("end_rebuild", deadline)

    def is_begun(self, deadline: Deadline) -> bool:
        return self._meta.is_rebuilding(deadline)

    def copy_loaded(self, deadline: Deadline) -> float | None:
        """When the copy was taken that this MetaDB was made of, in seconds since 1970; None: of none, or all is
        done."""
        if not self.is_begun(deadline):
            return None
        self.begin(deadline)  # by a release that knew fewer of these tables
        rows = self._meta.read("rebuild_copy", deadline)
        return float(rows[0][0]) if rows else None

    def copies(self, deadline: Deadline) -> tuple[list[tuple[UUID, str]], float, float]:
        """MetaDB's copies in the cluster and the lists of deletions, by id and name, the newest first; now, in
        seconds since 1970; and how old the cluster is."""
        rows = self._meta.read("copies_kept", deadline)
        return [(id, name) for id, name, *_ in rows if id is not None], rows[0][2], rows[0][3]

    def deleted_since(self, since: float, deadline: Deadline) -> tuple[int, float]:
        """How many files were deleted then or later, and when the last one was; in seconds since 1970."""
        [[count, last]] = self._meta.read("deleted_since", deadline, since=since)
        return count, last

    def deleted_ids(self, since: float, deadline: Deadline) -> Iterator[UUID]:
        """Of these files."""
        after = _START
        while rows := self._meta.read("deleted_ids", deadline, since=since, after=after, limit=10_000):
            yield from (id for [id] in rows)
            after = rows[-1][0]

    def forget_purged(self, before: float, deadline: Deadline) -> None:
        """Files that were deleted before a copy was begun, in seconds since 1970: it does not have them."""
        self._meta.write("forget_purged", deadline, before=before)

    def has_files(self, deadline: Deadline) -> bool:
        [[there]] = self._meta.read("has_files", deadline)
        return bool(there)

    def nodes_read(self, deadline: Deadline) -> dict[int, str | None]:
        """By node: those that were begun with, and where to go on; None: it was read to its end."""
        return {node: cursor for node, cursor in self._meta.read("rebuild_nodes", deadline)}  # noqa: C416

    def count(self, deadline: Deadline) -> int:
        """Of fragments that were found."""
        [[count]] = self._meta.read("rebuild_count", deadline)
        return int(count)

    def save(
        self, node: int, found: Sequence[HeadOf], cluster: UUID, cursor: str | None, deadline: Deadline
    ) -> None:
        """A page of a node's fragments, and where to go on. What is of another cluster cannot be read here."""
        given = json.dumps([_row(each, cluster) for each in found])
        self._meta.write("save_rebuild_page", deadline, node=node, found=given, cursor=cursor)

    def files(self, deadline: Deadline, *, copies: bool = False) -> Iterator[tuple[UUID, list[Found], float]]:
        """Each file that was found and MetaDB does not have: its fragments, and when the last slice was written, in
        seconds since 1970; ``deadline``: of each page. ``copies``: instead, MetaDB's copies, also those it has."""
        after, query = _START, "rebuild_copies" if copies else "rebuild_files"
        while rows := self._meta.read(query, deadline, after=after, limit=_PAGE):
            ids = [id for [id] in rows]
            found: dict[UUID, list[Found]] = defaultdict(list)
            first: dict[UUID, dict[UUID, float]] = defaultdict(dict)
            for slice_, index, node, head, at, file in self._meta.read(
                "rebuild_fragments_of", deadline, files=ids
            ):
                found[file].append(_found(slice_, index, node, head, at))
                first[file][slice_] = min(at, first[file].get(slice_, at))
            for id in ids:
                yield id, found[id], max(first[id].values(), default=0.0)
            after = ids[-1]

    def unreadable(self, deadline: Deadline) -> Iterator[tuple[FragmentId, int, str]]:
        """Each fragment whose header, table or footer cannot be read: on which node, and why."""
        at: dict[str, Any] = {"after": _START, "index": -1, "node": 0}
        while rows := self._meta.read("rebuild_unreadable", deadline, **at, limit=_PAGE):
            for slice_, index, node, wrong in rows:
                yield FragmentId(slice_, index), node, wrong
            at = {"after": rows[-1][0], "index": rows[-1][1], "node": rows[-1][2]}

    def gone(self, deadline: Deadline) -> Iterator[tuple[UUID, str]]:
        """Files that MetaDB has and that cannot be read of what was found, with their names."""
        after = _START
        while rows := self._meta.read("rebuild_gone", deadline, after=after, limit=_PAGE):
            yield from ((id, name) for id, name, gone in rows if gone)
            after = rows[-1][0]

    def delete(self, id: UUID, deadline: Deadline) -> str | None:
        """Put a file into the trash; -> its name, None: there is none such."""
        rows = self._meta.read("rebuild_is_file", deadline, id=id)
        if not rows:
            return None
        self._meta.delete_file(id, deadline)
        return str(rows[0][0])

    def write(self, files: Sequence[tuple[NewFile, float]], deadline: Deadline) -> int:
        """Files that can be read from now on, with when they were written. -> how many were not there before."""
        given = json.dumps([_facts(file, at) for file, at in files])
        [[made]] = self._meta.write("rebuild_write", deadline, files=given)
        return int(made)


def _row(fragment: HeadOf, cluster: UUID) -> dict[str, Any]:
    head, wrong = fragment.head, fragment.wrong
    if head is not None and head.cluster != cluster:
        wrong = f"it is of another cluster, {head.cluster}"
        head = None
    said = None
    if head is not None:
        said = {
            "ordinal": head.ordinal,
            "k": head.k,
            "m": head.m,
            "block": head.block_size,
            "name": storable_name(head.name),
            "type": storable_content_type(head.content_type),
            "size": head.size,
            "last": head.last,
            "digest": head.digest.hex(),
            "sha256": head.sha256 and head.sha256.hex(),
            "saved": head.saved,
        }
    return {
        "slice_id": fragment.id.slice.hex,
        "index": fragment.id.index,
        "file_id": head and head.file.hex,
        "age": fragment.age,
        "head": said,
        "wrong": wrong.replace("\0", ""),
    }


def _found(slice_: UUID, index: int, node: int, said: Mapping[str, Any], at: float) -> Found:
    shape = said["ordinal"], said["k"], said["m"], said["block"]
    of_file = said["sha256"] and bytes.fromhex(said["sha256"])
    digest = bytes.fromhex(said["digest"])
    texts = said["name"], said["type"]
    return Found(
        slice_, index, node, *shape, *texts, said["size"], said["last"], digest, of_file, said["saved"], at
    )


def _facts(file: NewFile, written_at: float) -> dict[str, Any]:
    slices = [
        {
            "id": str(piece.id),
            "ordinal": piece.ordinal,
            "size": piece.size,
            "digest": f"\\x{piece.digest.hex()}",
            "nodes": piece.nodes,
        }
        for piece in file.slices
    ]
    return {
        "id": str(file.id),
        "name": file.name,
        "content_type": file.content_type,
        "size": file.size,
        "sha256": f"\\x{file.sha256.hex()}",
        "k": file.policy.k,
        "m": file.policy.m,
        "block_size": file.block_size,
        "stored": file.stored,
        "written_at": written_at,
        "slices": slices,
    }
