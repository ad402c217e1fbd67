"""MetaDB made anew from the storage nodes' disks: all fragments' headers, tables and footers are read into MetaDB,
then each file is judged by its fragments, and written if nothing of it is in doubt.

It is done in steps that can be repeated; one that is killed goes on where it was. A node that comes later is read by
the next run, and may complete what lacked something.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.formats.heads import HeadOf
from distfs.model import NewFile, Node, is_copy
from distfs.peers.directory import NodeDirectory
from distfs.process.threads import Threads
from distfs.recovery.db import RecoveryDB
from distfs.recovery.judge import Judged, judge
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader

_AT_ONCE = 8  # nodes
_PAGE = 500  # fragments of a node that are asked for at once
_BATCH = 100  # files that are written at once
_CALL_LIMIT_S = 120.0
_READ_LIMIT_S = 24 * 3600.0

#: Called for each file that is not written, with its id, its name and why.
Tell = Callable[[UUID, str, Judged], object]


@dataclass
class Made:
    """What became of the files that were found and that MetaDB did not have."""

    files: int = 0
    bytes: int = 0
    short: int = 0  # of them: those that lack fragments, which repair makes anew
    read: int = 0  # of them: those whose bytes had to be read, for no fragment has their sha-256
    incomplete: int = 0
    disagree: int = 0
    deleted: int = 0
    slices: int = 0


@dataclass
class Scanned:
    """What the nodes that answered keep."""

    fragments: int = 0
    read: frozenset[int] = frozenset()  # nodes, to their end
    failed: dict[int, str] = field(default_factory=dict)  # by node: why it was not read to its end


def scan(
    db: RecoveryDB,
    directory: NodeDirectory,
    cluster: UUID,
    nodes: Sequence[Node],
    advanced: Callable[[int], object],
    *,
    copies: bool = False,
) -> Scanned:
    """Read what each node keeps; those that were read to their end are not asked again. ``advanced`` is told of more
    fragments, by several threads. ``copies``: keep only what is of MetaDB's copies."""
    known = db.nodes_read(Deadline(_CALL_LIMIT_S))
    scanned = Scanned()

    def read(node: Node) -> None:
        cursor = known.get(node.id, "")
        try:
            store = directory.client(node.id, Deadline(_CALL_LIMIT_S))
            while cursor is not None:
                page = store.heads(cursor, _PAGE, Deadline(_CALL_LIMIT_S))
                found = [each for each in page.fragments if not copies or _of_copy(each)]
                at = "" if copies else page.cursor  # what was left out is read another time
                db.save(node.id, found, cluster, at, Deadline(_CALL_LIMIT_S))
                advanced(len(page.fragments))
                cursor = page.cursor
        except DistfsError as e:
            scanned.failed[node.id] = str(e)

    with Threads(_AT_ONCE, thread_name_prefix="rebuild") as executor:
        for walk in [executor.submit(read, node) for node in nodes]:
            walk.result()
    scanned.fragments = db.count(Deadline(_CALL_LIMIT_S))
    done = db.nodes_read(Deadline(_CALL_LIMIT_S))
    scanned.read = frozenset(node for node, cursor in done.items() if cursor is None)
    return scanned


def _of_copy(fragment: HeadOf) -> bool:
    return fragment.head is not None and is_copy(fragment.head.file)


def write_files(
    db: RecoveryDB,
    directory: NodeDirectory,
    tell: Tell,
    advanced: Callable[[int], object],
    *,
    dry: bool,
    deleted: Container[UUID] = (),
) -> Made:
    """Write each file that is whole, and tell of all others. ``dry``: only count. ``deleted``: known to be so."""
    made = Made()
    batch: list[tuple[NewFile, float]] = []

    def flush() -> None:
        if batch and not dry:
            db.write(batch, Deadline(_CALL_LIMIT_S))
        batch.clear()

    for count, (id, found, at) in enumerate(db.files(Deadline(_READ_LIMIT_S)), 1):
        judged = judge(id, found) if id not in deleted else Judged(None, "it was deleted", deleted=True)
        if judged.file is not None and not judged.file.sha256:
            made.read += 1
            judged = judged if dry else _with_sha256(directory, judged.file)
        if (file := judged.file) is None:
            made.disagree += judged.disagree
            made.deleted += judged.deleted
            made.incomplete += not (judged.disagree or judged.deleted)
            tell(id, found[0].name, judged)
            continue
        made.files += 1
        made.bytes += file.size
        made.slices += len(file.slices)
        made.short += any(0 in piece.nodes for piece in file.slices)
        batch.append((file, at))
        if len(batch) >= _BATCH:
            flush()
        advanced(count)
    flush()
    return made


def _with_sha256(directory: NodeDirectory, file: NewFile) -> Judged:
    """Of all its bytes, each checked. A file that cannot be read is not there."""
    digest = hashlib.sha256()
    downloader = Downloader(directory, BlockPool(file.block_size, 4 * file.policy.width))
    try:
        for view in downloader.read(file, 0, file.size, Deadline(_READ_LIMIT_S)):
            digest.update(view)
    except DistfsError as e:
        return Judged(None, f"it cannot be read, and no fragment has its sha-256: {e}")
    return Judged(replace(file, sha256=digest.digest()))
