"""What a rebuild asks of MetaDB. What was found is kept there, so a run that ends goes on where it was, and needs no
memory for it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from distfs.deadline import Deadline
from distfs.formats.heads import HeadOf
from distfs.meta import MetaDB, storable_content_type, storable_name
from distfs.model import FragmentId, NewFile
from distfs.recovery.judge import Found

_START = UUID(int=0)
_PAGE = 200
_TABLES = "begin_rebuild_nodes", "begin_rebuild_fragments", "begin_rebuild_index"


class Read(NamedTuple):
    """How far a node's listing is read. ``cursor`` None: to its end."""

    cursor: str | None
    fragments: int


class RecoveryDB:
    """Thread-safe."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta

    def take_identity(self, cluster: UUID, deadline: Deadline) -> bool:
        """Become the MetaDB of a cluster that is there; False, and nothing is done, where this one is in use."""
        return bool(self._meta.write("take_identity", deadline, cluster=cluster))

    def begin(self, deadline: Deadline) -> None:
        """From now on upkeep takes nothing for garbage, until ``end``."""
        for each in _TABLES:
            self._meta.write(each, deadline)

    def end(self, deadline: Deadline) -> None:
        self._meta.write("end_rebuild", deadline)

    def is_begun(self, deadline: Deadline) -> bool:
        [[begun]] = self._meta.read("is_rebuilding", deadline)
        return bool(begun)

    def nodes_read(self, deadline: Deadline) -> dict[int, Read]:
        """By node: those that were begun with."""
        rows = self._meta.read("rebuild_nodes", deadline)
        return {node: Read(cursor, fragments) for node, cursor, fragments in rows}

    def save(
        self, node: int, found: Sequence[HeadOf], cluster: UUID, cursor: str | None, deadline: Deadline
    ) -> None:
        """A page of a node's fragments, and where to go on. What is of another cluster cannot be read here."""
        given = json.dumps([_row(each, cluster) for each in found])
        self._meta.write("save_rebuild_page", deadline, node=node, found=given, cursor=cursor)

    def files(self, deadline: Deadline) -> Iterator[tuple[UUID, list[Found], float]]:
        """Each file that was found and MetaDB does not have: its fragments, and when the last slice was written, in
        seconds since 1970. ``deadline``: of each page."""
        after = _START
        while rows := self._meta.read("rebuild_files", deadline, after=after, limit=_PAGE):
            ids = [id for [id] in rows]
            found: dict[UUID, list[Found]] = defaultdict(list)
            first: dict[UUID, dict[UUID, float]] = defaultdict(dict)
            for slice_, index, node, head, at, file in self._meta.read(
                "rebuild_fragments_of", deadline, files=ids
            ):
                found[file].append(_found(slice_, index, node, head))
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
        }
    return {
        "slice_id": fragment.id.slice.hex,
        "index": fragment.id.index,
        "file_id": head and head.file.hex,
        "age": fragment.age,
        "head": said,
        "wrong": wrong.replace("\0", ""),
    }


def _found(slice_: UUID, index: int, node: int, said: Mapping[str, Any]) -> Found:
    shape = said["ordinal"], said["k"], said["m"], said["block"]
    of_file = said["sha256"] and bytes.fromhex(said["sha256"])
    digest = bytes.fromhex(said["digest"])
    texts = said["name"], said["type"]
    return Found(slice_, index, node, *shape, *texts, said["size"], said["last"], digest, of_file)


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
        "written_at": written_at,
        "slices": slices,
    }
