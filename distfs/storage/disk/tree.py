"""Fragment files by name under one folder: ``ROOT/ab/cd/<slice-uuid>.<index>``. No bytes of them are read here."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from distfs.errors import Corrupt, DistfsError, Full, NodeUnavailable, NotFound
from distfs.fragment_store import Listed, Page, parse_name
from distfs.model import FragmentId
from distfs.process import descriptors
from distfs.storage.disk import space

#: Errors of reading that say: these bytes are lost, as a bad sector's are. Not EACCES: what an operator's mistake
#: with a whole folder makes unreadable is all there, and scrub tells of a single file that stays so.
_DAMAGE = frozenset(
    (
        errno.EIO,
        errno.EUCLEAN,  # the file system's own structures fail their checks (ext4, XFS)
        errno.EBADMSG,  # as do their checksums
        errno.ENODATA,  # what a disk calls a sector it cannot read
        errno.EREMOTEIO,
        errno.EILSEQ,  # an integrity check below the file system
        errno.EISDIR,  # damaged entries: there is another kind of file by that name
        errno.ENOTDIR,
        errno.ELOOP,
    )
)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_LEVEL = re.compile(r"[0-9a-f]{2}")


class Translated:
    """The one place where the disk's own errors become ours. ``reading``: a bad sector is damage like any other.

    What is done is put into words only when it failed: to write an id takes as long as some system calls.
    """

    __slots__ = ("_doing", "_id", "_reading")

    def __init__(self, doing: str, id: FragmentId | None = None, *, reading: bool = False) -> None:
        self._doing, self._id, self._reading = doing, id, reading

    @property
    def doing(self) -> str:
        return self._doing if self._id is None else f"{self._doing} {self._id}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError):
            raise self._ours(error) from error

    def _ours(self, error: OSError) -> DistfsError:
        if isinstance(error, FileNotFoundError):
            return NotFound(f"{self.doing}: no such fragment")
        if error.errno == errno.ENOSPC:
            return Full(f"{self.doing}: {space.in_words(error.filename)}")
        if error.errno == errno.EDQUOT:
            return Full(f"{self.doing}: the disk quota of the node's user is used up")
        if self._reading and error.errno in _DAMAGE:
            return Corrupt(f"{self.doing}: the disk cannot read it: {error.strerror}")
        return NodeUnavailable(f"{self.doing}: {descriptors.in_words(error)}")


class FragmentTree:
    """The files of one folder. Thread-safe; every change is durable when its call returns."""

    def __init__(self, root: Path, renaming: threading.Lock | None = None) -> None:
        """``renaming``: one lock for all trees between which files are moved."""
        self.root = root
        self._root = str(root)
        self._known: set[str] = (
            set()
        )  # of the upper levels: those that exist durably, with all that was in them
        self._fresh: set[str] = set()  # folders for files that are just made, and maybe not durable yet
        self._renaming = renaming or threading.Lock()  # what is judged by its age is not replaced meanwhile

    def path(self, id: FragmentId) -> Path:
        return Path(self.where(id))

    def where(self, id: FragmentId) -> str:
        """The same as text: to put a Path together takes longer than to open what is there."""
        return self.where_named(str(id))

    def where_named(self, name: str) -> str:
        """By the id as text."""
        return f"{self._root}/{name[:2]}/{name[2:4]}/{name}"

    def take_in(self, source: str | Path, id: FragmentId) -> None:
        """Give a finished, fsynced file its name here; one that is there already is replaced."""
        self.take_in_at(source, self.where(id))

    def take_in_at(self, source: str | Path, path: str) -> None:
        """The same, by ``where`` it is to be."""
        folder = self._made(path)
        try:
            with self._renaming:
                os.rename(source, path)  # noqa: PTH104 - see where
            os.fsync(folder)
        finally:
            os.close(folder)

    def move_to(self, other: FragmentTree, id: FragmentId, min_age: float = 0.0, over: float = 0.0) -> bool:
        """Move a file that is at least ``min_age`` seconds old (0: any) to ``other``, where its age begins anew.

        False when there is none so old. One that is there already is replaced if it is at least ``over`` seconds old
        (0: any, inf: none); else this is False, too.
        """
        source, target = self.path(id), other.path(id)
        if not source.exists():
            return False
        try:
            with _closing(other._made(str(target))) as new, _opened(source.parent) as old:
                with self._renaming:
                    if _too_young(source, min_age) or _too_young(target, over):
                        return False
                    # Before the move: a crash in between leaves a young fragment, which nobody takes for garbage.
                    os.utime(source)
                    source.rename(target)
                os.fsync(new)
                os.fsync(old)
        except FileNotFoundError:
            return False
        return True

    def identity(self, id: FragmentId) -> tuple[int, int] | None:
        """Tells a file from another that takes its name; None when there is none."""
        return identity(self.where(id))

    def remove(self, id: FragmentId, min_age: float = 0.0, identity: tuple[int, int] | None = None) -> bool:
        """Whether there was such a file, at least ``min_age`` seconds old (0: any); then it is there no more.

        ``identity``: of the only one that may be removed.
        """
        path = self.path(id)
        try:
            with _opened(path.parent) as folder:
                with self._renaming:
                    if _too_young(path, min_age) or identity not in (None, self.identity(id)):
                        return False
                    path.unlink()
                os.fsync(folder)
        except FileNotFoundError:
            return False
        return True

    def page(self, cursor: str, limit: int) -> Page:
        """At most ``limit`` files after ``cursor`` in name order; ages by this machine's clock."""
        now, listed, walk = time.time(), [], self._walk(cursor)
        for path, fragment in walk:
            with contextlib.suppress(FileNotFoundError):  # deleted since the walk saw it
                stat = path.stat()
                listed.append(Listed(fragment, stat.st_size, now - stat.st_mtime))
            if len(listed) >= limit:
                break
        more = next(walk, None) is not None
        return Page(tuple(listed), str(listed[-1].id) if more else None)

    def _made(self, path: str) -> int:
        """The folder of a file to come, opened and durable; made where it is missing, also when it was removed."""
        folder = path.rpartition("/")[0]
        upper = folder.rpartition("/")[0]
        if upper in self._known:  # mostly that is all
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(folder, _FOLDER)
                if folder not in self._fresh:
                    return fd
                os.close(fd)
        try:
            return self._make_and_open(upper, folder)
        except FileNotFoundError:  # what is known is not so any more
            self._known.difference_update((self._root, upper))
            return self._make_and_open(upper, folder)

    def _make_and_open(self, upper: str, folder: str) -> int:
        for level in (self._root, upper):
            if level not in self._known:
                make_folder(Path(level))
                fsync_folder(level)  # what a process before this one made there
                self._known.add(level)
        try:
            fd = _open(folder)
        except FileNotFoundError:
            self._fresh.add(folder)  # first: who finds it made finds it here until it is durable
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)  # noqa: PTH102 - see where
            fd = _open(folder)
        if folder in self._fresh:
            try:
                fsync_folder(upper)
            except BaseException:
                os.close(fd)
                raise
            self._fresh.discard(folder)
        return fd

    def _walk(self, cursor: str) -> Iterator[tuple[Path, FragmentId]]:
        """Files after ``cursor`` in name order. A folder that cannot be read raises: it is not empty."""
        if not self.root.exists():
            return
        for first in _names(self.root, cursor[:2]):
            for second in _names(self.root / first, cursor[2:4] if first == cursor[:2] else ""):
                folder = self.root / first / second
                for name in sorted(os.listdir(folder)):
                    fragment = parse_name(name)
                    if fragment is not None and name > cursor:
                        yield folder / name, fragment


def identity(path: str) -> tuple[int, int] | None:
    """See ``FragmentTree.identity``."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - a Path takes as long as the call
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def page_of_both(one: FragmentTree, other: FragmentTree, cursor: str, limit: int) -> Page:
    """At most ``limit`` files after ``cursor`` of two trees, in name order; of two of a name, the one of ``one``."""
    first, second = one.page(cursor, limit), other.page(cursor, limit)
    listed = {each.id: each for each in second.fragments + first.fragments}
    some = sorted(listed.values(), key=lambda each: str(each.id))[: max(1, limit)]
    more = len(some) < len(listed) or first.cursor or second.cursor
    return Page(tuple(some), str(some[-1].id) if more else None)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, durably."""
    missing: list[Path] = []
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError:  # nor is the one above it there
        missing = list(itertools.takewhile(lambda p: not p.exists(), folder.parents))
        folder.mkdir(parents=True, exist_ok=True)
    # The last always: another thread may have made it and not have come to its own fsync.
    for made in {folder, *missing}:
        fsync_folder(made.parent)


def fsync_folder(folder: str | Path) -> None:
    """Make the names in ``folder`` durable."""
    fd = _open(folder)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _opened(folder: str | Path) -> contextlib.AbstractContextManager[int]:
    """To make durable what is done inside. Opened before: without a descriptor to be had, nothing is done."""
    return _closing(_open(folder))


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _open(folder: str | Path) -> int:
    return os.open(folder, _FOLDER)


def _too_young(path: Path, min_age: float) -> bool:
    """Whatever the clock says, nothing is too young for an age of 0; nor is what is not there for any."""
    try:
        return min_age > 0 and time.time() - path.stat().st_mtime < min_age
    except FileNotFoundError:
        return False


def _names(folder: Path, start: str) -> list[str]:
    """Our folders in one of ours, by name from ``start``: two hex digits. Whatever else is there is not ours."""
    return sorted(name for name in os.listdir(folder) if name >= start and _LEVEL.fullmatch(name))
