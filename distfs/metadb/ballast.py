"""Room for the embedded MetaDB on a disk that it shares with nodes: what they leave it, and a file to give up.

PostgreSQL that finds no room for its next 16 MiB of log stops at once, and does not start again. Then nothing can be
deleted through distfs, so no room can be made. So nodes on that disk leave it some, its log is kept small on a small
disk, and a ballast file is kept for what nobody foresaw (as CockroachDB does).
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from distfs.quantity import size as readable

log = logging.getLogger("distfs.metadb")

#: PostgreSQL's log (WAL) grows by files of this length.
SEGMENT = 16 << 20
_MOST_LOG = 256 << 20
_MOST_LEFT = 1 << 30
#: What says, in PostgreSQL's words, that there is no room.
_NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def log_limit(capacity: int) -> int:
    """How much log PostgreSQL may keep on a disk of ``capacity`` bytes (max_wal_size; at least two segments)."""
    return max(2 * SEGMENT, min(_MOST_LOG, capacity // 20))


def reserve(capacity: int) -> int:
    """What nodes on the same disk leave free: 1 GiB, 10 % of a small disk, and what the log may grow by."""
    return min(_MOST_LEFT, capacity // 10) + log_limit(capacity)


def shares_disk(metadb: Path | None, folder: Path) -> bool:
    """Whether MetaDB's folder, if it is on this machine, is on the disk of ``folder``."""
    try:
        return metadb is not None and metadb.stat().st_dev == folder.stat().st_dev
    except OSError:
        return False


def trouble(folder: Path) -> str:
    """What is to be said of the disk when no MetaDB runs in ``folder``; empty: there is room enough."""
    try:
        free = _free(folder)
    except OSError:
        return ""
    if free >= SEGMENT:
        return ""
    return (
        f"its disk is full ({readable(free)} free in {folder}): free {readable(SEGMENT)} on that disk, "
        "outside of distfs, and it starts again by itself where `distfs up` runs"
    )


def is_for_want_of_room(reason: str) -> bool:
    """Whether what PostgreSQL said when it stopped names a full disk."""
    return any(words in reason for words in _NO_ROOM)


class Ballast:
    """The file in one embedded MetaDB's folder. Used by the process that supervises it, by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "ballast"

    def look(self) -> None:
        """Keep it, unless there is no room for the next segment of the log. Never raises."""
        try:
            free = _free(self._folder)
            if free < SEGMENT:
                self.give_up(f"only {readable(free)} are free on the disk of {self._folder}")
                return
            size = log_limit(capacity(self._folder))
            if free >= size + 2 * SEGMENT and self._length() < size:
                self._make(size)
        except OSError as e:
            log.debug("the ballast of %s is left as it is: %s", self._folder, e)

    def give_up(self, why: str) -> bool:
        """Let PostgreSQL have its bytes; whether there were any."""
        try:
            size = self._length()
            self._file.unlink()
        except OSError:
            return False
        log.error(
            "MetaDB IS ABOUT TO STOP FOR WANT OF ROOM: %s. Its ballast file of %s was given up, so that files can be "
            "deleted: delete some, run `distfs trash empty`, or free room outside of distfs. Uploads wait for that",
            why,
            readable(size),
        )
        return size > 0

    def _make(self, size: int) -> None:
        fd = os.open(self._file, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
        except OSError:
            self._file.unlink()
            raise
        finally:
            os.close(fd)
        log.info(
            "a ballast file of %s is kept in %s, to give up when the disk is full",
            readable(size),
            self._folder,
        )

    def _length(self) -> int:
        try:
            return self._file.stat().st_size
        except FileNotFoundError:
            return 0


def _free(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def capacity(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_blocks * disk.f_frsize
