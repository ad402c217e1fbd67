"""A fragment that is read from a disk: opened, checked to be whole, its cells in order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NotFound
from distfs.formats.fragment import MAX_HEADER, Layout, checksum, read_layout
from distfs.fragment_store import failing_cells, go_on
from distfs.model import FragmentId
from distfs.storage.disk.tree import Translated

#: A fragment of so many bytes is read as a whole: its cells, up to 64 KiB, and what is around them.
SMALL = (64 << 10) + MAX_HEADER
_TINY = 16 << 10  # bytes that are tried first


class DiskReader:
    """An open fragment, checked to be whole and to be the one its name says. Cells follow in order."""

    def __init__(self, path: str | Path, id: FragmentId, first: int) -> None:
        with Translated("read", id, reading=True):
            self.fd = os.open(path, os.O_RDONLY)
            try:
                said, self.table, self.packed, self.cells_at = self._read_layout()
                if said != (id.slice.bytes, id.index):
                    raise Corrupt(
                        f"fragment {id} says it is {UUID(bytes=said[0])}.{said[1]}: files were swapped"
                    )
            except BaseException:
                os.close(self.fd)
                raise
        self._next = first
        self._id = id

    def _read_layout(self) -> Layout:
        """Of a small fragment all bytes are read at once, and kept; not of one of which the disk cannot read a part.

        Of what it cannot read it gives no error when there are good pages before: it gives these.
        """
        self.all: bytes | None = None
        with contextlib.suppress(OSError, Corrupt):
            data = self._read_small()
            if data is not None:
                layout = read_layout(len(data), lambda length, offset: data[offset : offset + length])
                self.all = data
                return layout
        return read_layout(self._size(), lambda length, offset: os.pread(self.fd, length, offset))

    def _read_small(self) -> bytes | None:
        data = os.pread(self.fd, _TINY, 0)
        if len(data) < _TINY:  # so far as is known, that is all: how long it is need not be asked
            return data
        size = self._size()
        return os.pread(self.fd, size, 0) if size <= SMALL else None

    def _size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)  # fstat(2) tells more, and Python makes objects of it

    def extent(self, first: int, count: int) -> tuple[int, int]:
        """Offset in the file and length in bytes of a run of cells: raw bytes for ``sendfile``."""
        offsets = self.table.offsets
        first = min(first, len(offsets) - 1)
        end = min(first + count, len(offsets) - 1)
        return self.cells_at + offsets[first], offsets[end] - offsets[first]

    def read_cell(self, view: memoryview) -> None:
        at = self.cells_at + self.table.offsets[self._next]
        self._next += 1
        done = 0
        with Translated("read", self._id, reading=True):
            while done < len(view):
                n = os.preadv(self.fd, [view[done:]], at + done)
                if not n:
                    raise Corrupt(f"fragment {self._id} is cut short")
                done += n

    def is_good(self, number: int) -> bool:
        """Whether that cell passes its check; it is the next to be read all the same."""
        before, self._next = self._next, number
        try:
            entry = self.table.entries[number]
            view = memoryview(bytearray(entry.length))
            self.read_cell(view)
            return checksum(view) == entry.checksum
        except (Corrupt, IndexError):
            return False
        finally:
            self._next = before

    def verify(self, deadline: Deadline, between: Callable[[], object] = go_on) -> tuple[int, ...]:
        """The numbers of the cells that fail, read from the disk itself; the page cache keeps none of them."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            return failing_cells(self, deadline, between)
        finally:
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def check_changeable(path: Path, id: FragmentId) -> None:
    """Raises NewerFormat for a fragment that takes a newer distfs to judge. Damaged ones, and none, are not newer."""
    with contextlib.suppress(Corrupt, NotFound), contextlib.closing(DiskReader(path, id, 0)) as reader:
        reader.table.check_changeable()


def passes(path: Path, id: FragmentId, deadline: Deadline) -> bool:
    """Whether a file is all of that fragment, every cell good. Raises NewerFormat."""
    try:
        with contextlib.closing(DiskReader(path, id, 0)) as reader:
            return not reader.verify(deadline)
    except (Corrupt, NotFound):
        return False
