"""MetaDB's copies that are kept in the cluster, found on the nodes without a MetaDB, and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.metadb import copies
from distfs.model import NewFile, copied_at
from distfs.peers.directory import NodeDirectory
from distfs.recovery.db import RecoveryDB
from distfs.recovery.judge import judge
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader

_READ_LIMIT_S = 24 * 3600.0
_ID = 16


@dataclass(frozen=True, slots=True)
class Kept:
    """``files``: copies and lists of deletions of which all is there, the newest first; ``copies``: when each copy
    was begun of which anything is."""

    files: list[NewFile]
    copies: list[float]


def kept(db: RecoveryDB, deadline: Deadline) -> Kept:
    found = [(id, judge(id, fragments).file) for id, fragments, _ in db.files(deadline, copies=True)]
    files = [file for _, file in found if file is not None]
    files.sort(key=lambda file: copied_at(file.id)[0], reverse=True)
    return Kept(files, [at for at, is_list in (copied_at(id) for id, _ in found) if not is_list])


def fetch_copy(
    directory: NodeDirectory, found: Kept, out: IO[bytes], tell: Callable[[str], object]
) -> NewFile | None:
    """The newest copy that can be read is in ``out``; of those that cannot be it is told."""
    for file in found.files:
        if copied_at(file.id)[1]:
            continue
        try:
            out.seek(0)
            out.truncate()
            _read(directory, file, out.write)
            out.flush()
            copies.check(out)
            return file
        except DistfsError as e:
            tell(f"not read: the copy {file.id}: {e}")
    return None


def deletions(
    directory: NodeDirectory, found: Kept, loaded: float | None, tell: Callable[[str], object]
) -> frozenset[UUID]:
    """Files that were deleted since a copy, by the newest list that can be read. ``loaded``: when the copy was taken
    that MetaDB is made of; None: of none, or of one from elsewhere.

    A list begins with the newest copy of its time; of what no list has it is told.
    """
    whole = [at for at, is_list in (copied_at(file.id) for file in found.files) if not is_list]
    since = loaded if loaded is not None else max(whole, default=0.0)
    newest = max(found.copies, default=0.0) if loaded is not None else since
    for file in found.files:
        at, is_list = copied_at(file.id)
        if not is_list or at < since:
            continue
        data = bytearray()
        try:
            _read(directory, file, data.extend)
        except DistfsError as e:
            tell(f"not read: the list of what was deleted, {file.id}: {e}")
            continue
        _tell_gap(since, min(newest, max((each for each in found.copies if each <= at), default=0.0)), tell)
        _tell_gap(at, newest, tell)
        return frozenset(UUID(bytes=bytes(data[i : i + _ID])) for i in range(0, len(data) - _ID + 1, _ID))
    _tell_gap(since, newest, tell)
    return frozenset()


def _tell_gap(since: float, until: float, tell: Callable[[str], object]) -> None:
    if until <= since:
        return
    first, last = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}" for at in (since, until))
    tell(f"not known: what was deleted from {first} to {last} UTC, between two copies: it may be there again")


def _read(directory: NodeDirectory, file: NewFile, out: Callable[[memoryview], object]) -> None:
    downloader = Downloader(directory, BlockPool(file.block_size, 4 * file.policy.width))
    for view in downloader.read(file, 0, file.size, Deadline(_READ_LIMIT_S)):
        out(view)
