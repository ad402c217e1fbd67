"""How much room a disk has for fragments: free bytes and free inodes, less what is kept in reserve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from distfs.config.settings import NodeConfig
from distfs.metadb import ballast
from distfs.quantity import compared, counted, size

#: Of the inodes of a disk that MetaDB is on, too.
_FILES_FOR_METADB = 0.1


class Space(NamedTuple):
    """What statvfs(2) says of a disk, in bytes."""

    capacity: int
    used: int
    left: int  # free, but for what only root may use
    reserve: int
    files: (
        int | None
    )  # that can still be made, above the reserve of them; None: the file system knows no limit
    metadb: bool  # it is on the same disk

    @property
    def free(self) -> int:
        """What fragments may take."""
        return 0 if self.out_of_files else max(0, self.left - self.reserve)

    @property
    def out_of_files(self) -> str:
        """In words, why no file can be made though there are bytes; empty: one can."""
        if self.files is None or self.files > 0:
            return ""
        return (
            f"the disk has no inodes left for new files (above the reserve), though {size(self.left)} are free: "
            "delete files, or keep fragments on a file system that was made with more inodes"
        )

    def refusal(self, wanted: int) -> str:
        """Why ``wanted`` bytes do not fit."""
        if self.out_of_files:
            return self.out_of_files
        whose = "node.reserve, and room for MetaDB on the same disk" if self.metadb else "node.reserve"
        want, left, kept = compared(wanted, self.left, self.reserve)
        return f"no room for {want}: the disk has {left} free, and {kept} are kept in reserve ({whose})"


def space(folder: str | Path, config: NodeConfig, shared: bool) -> Space:
    """``shared``: with a MetaDB (``ballast.shares_disk``). Raises OSError."""
    disk = os.statvfs(folder)
    capacity = disk.f_blocks * disk.f_frsize
    reserve: int = min(int(capacity * config.reserve), config.reserve_bytes)
    files_kept = float(config.reserve)
    if shared:
        reserve, files_kept = max(reserve, ballast.reserve(capacity)), max(files_kept, _FILES_FOR_METADB)
    files = max(disk.f_favail, disk.f_ffree) - int(disk.f_files * files_kept) if disk.f_files else None
    used = capacity - disk.f_bfree * disk.f_frsize
    return Space(capacity, used, disk.f_bavail * disk.f_frsize, reserve, files, shared)


def in_words(path: str | Path | None) -> str:
    """What a write at ``path`` that found no room (ENOSPC) ran out of."""
    at = Path(path) if path else None
    while at is not None and not at.exists() and at != at.parent:
        at = at.parent
    if at is not None:
        disk = os.statvfs(at)
        if disk.f_files and not disk.f_ffree:
            free = counted(disk.f_bavail * disk.f_frsize, "byte")
            return f"the disk has no inodes left for new files, though {free} are free"
    return "the disk is full"
