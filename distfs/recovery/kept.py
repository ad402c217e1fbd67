"""MetaDB's copies that are kept in the cluster, found on the nodes without a MetaDB, and read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def kept(db: RecoveryDB, deadline: Deadline) -> list[NewFile]:
    """Copies and lists of deletions of which all is there, the newest first."""
    found = [judge(id, fragments).file for id, fragments, _ in db.files(deadline, copies=True)]
    return sorted((file for file in found if file), key=lambda file: copied_at(file.id)[0], reverse=True)


def fetch_copy(
    directory: NodeDirectory, found: Sequence[NewFile], out: IO[bytes], tell: Callable[[str], object]
) -> NewFile | None:
    """The newest copy that can be read is in ``out``; of those that cannot be it is told."""
    for file in found:
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
    directory: NodeDirectory, found: Sequence[NewFile], tell: Callable[[str], object]
) -> frozenset[UUID]:
    """Files that were deleted since the newest copy, by the newest list that can be read."""
    since = max((at for at, is_list in (copied_at(file.id) for file in found) if not is_list), default=0.0)
    for file in found:
        at, is_list = copied_at(file.id)
        if not is_list or at < since:
            continue
        data = bytearray()
        try:
            _read(directory, file, data.extend)
        except DistfsError as e:
            tell(f"not read: the list of what was deleted, {file.id}: {e}")
            continue
        return frozenset(UUID(bytes=bytes(data[i : i + _ID])) for i in range(0, len(data) - _ID + 1, _ID))
    return frozenset()


def _read(directory: NodeDirectory, file: NewFile, out: Callable[[memoryview], object]) -> None:
    downloader = Downloader(directory, BlockPool(file.block_size, 4 * file.policy.width))
    for view in downloader.read(file, 0, file.size, Deadline(_READ_LIMIT_S)):
        out(view)
