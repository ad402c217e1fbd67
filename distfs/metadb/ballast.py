"""Room for the embedded MetaDB on a disk that it shares with nodes: what they leave it, and a file to give up.

PostgreSQL that finds no room for its next 16 MiB of log stops at once, and does not start again. Then nothing can be
deleted through distfs, so no room can be made. So nodes on that disk leave it some, its log is kept small on a small
disk and made ahead, and a ballast file is kept for what nobody foresaw (as CockroachDB does). Something else may take
what the ballast gives up, so the last of it is kept for a start.
"""

from __future__ import annotations

import errno
import logging
import os
from functools import lru_cache
from pathlib import Path

from distfs.quantity import size as readable

log = logging.getLogger("distfs.metadb")

#: PostgreSQL's log (WAL) grows by files of this length.
SEGMENT = 16 << 20
#: With so many it goes round: one is full, one is filled while a checkpoint makes the first free, one is to spare.
LEAST_SEGMENTS = 3
_MOST_LOG = 256 << 20
_MOST_LEFT = 1 << 30
#: Of the ballast, for a start: its processes share memory by files, and the first connection writes what it caches.
_FOR_A_START = 4 << 20
#: What says, in PostgreSQL's words, that there is no room.
_NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def log_limit(capacity: int) -> int:
    """How much log PostgreSQL may keep on a disk of ``capacity`` bytes (max_wal_size)."""
    return max(LEAST_SEGMENTS * SEGMENT, min(_MOST_LOG, capacity // 20))


@lru_cache(maxsize=16)  # on some filesystems the capacity is another each time
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
        disk = os.statvfs(folder)
        free = _free(folder)
    except OSError:
        return ""
    then = "on that disk, outside of distfs, and it starts again by itself where `distfs up` runs"
    if disk.f_files and not disk.f_favail:
        return f"its disk has no inodes left ({readable(free)} free in {folder}): delete files {then}"
    if free >= SEGMENT:
        return ""
    return f"its disk is full ({readable(free)} free in {folder}): free {readable(2 * SEGMENT)} {then}"


def is_for_want_of_room(reason: str, folder: Path) -> bool:
    """Whether PostgreSQL stopped because of a full disk, by what it said; it may have found no room for saying it."""
    return any(words in reason for words in _NO_ROOM) or bool(trouble(folder))


class Ballast:
    """The file in one embedded MetaDB's folder. Used by the process that supervises it, by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "ballast"

    def look(self) -> None:
        """Keep it, unless there is no room for the next segment of the log. Never raises."""
        try:
            free, length = _free(self._folder), self._length()
            if free < SEGMENT:
                if length > _FOR_A_START:
                    os.truncate(self._file, _FOR_A_START)
                    why = f"only {readable(free)} are free on the disk of {self._folder}"
                    self._tell(why, length - _FOR_A_START)
                return
            for size in (log_limit(capacity(self._folder)), _FOR_A_START):
                if length < size and free >= size + 2 * SEGMENT:
                    self._make(size)
                    return
        except OSError as e:
            log.debug("the ballast of %s is left as it is: %s", self._folder, e)

    def before_a_start(self) -> None:
        """Give up the last of it where a start, or the first connection, would find no room. Never raises."""
        try:
            if (free := _free(self._folder)) < _FOR_A_START:
                self.give_up(f"it starts, and only {readable(free)} are free on the disk of {self._folder}")
        except OSError as e:
            log.debug("the ballast of %s is left as it is: %s", self._folder, e)

    def give_up(self, why: str) -> bool:
        """Let PostgreSQL have all of its bytes; whether there were any."""
        try:
            size = self._length()
            self._file.unlink()
        except OSError:
            return False
        self._tell(why, size)
        return size > 0

    def _tell(self, why: str, size: int) -> None:
        log.error(
            "MetaDB IS ABOUT TO STOP FOR WANT OF ROOM: %s. %s of its ballast file were given up, so files can be "
            "deleted: delete some, run `distfs trash empty`, or free room outside of distfs; uploads wait for it",
            why,
            readable(size),
        )

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
