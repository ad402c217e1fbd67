"""What the fragments of a disk say of themselves, page by page: for a MetaDB that is made anew from it."""

from __future__ import annotations

import contextlib
import os

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NewerFormat, NotFound
from distfs.formats.fragment import MAX_HEADER, FragmentHeader
from distfs.formats.heads import Head, HeadOf, encode
from distfs.fragment_store import Listed
from distfs.storage.disk.reader import DiskReader
from distfs.storage.disk.store import DiskStore
from distfs.storage.disk.tree import Translated

#: Bytes of a page: it ends with the fragment that reaches them.
_MOST = 256 << 10


def heads_page(store: DiskStore, cursor: str, limit: int, deadline: Deadline) -> tuple[str | None, bytes]:
    """At most ``limit`` fragments in use after ``cursor``; -> where the next page begins, None: there is none, and
    the page. Raises NodeUnavailable when anything but a fragment itself cannot be read, TooSlow."""
    page = store.list(cursor, limit, deadline)
    lines: list[bytes] = []
    size = 0
    for listed in page.fragments:
        deadline.remaining("reading what fragments say")
        with contextlib.suppress(NotFound):  # it has just been deleted
            lines.append(encode(_head_of(store, listed)))
            size += len(lines[-1])
        if size >= _MOST and listed is not page.fragments[-1]:
            return str(listed.id), b"".join(lines)
    return page.cursor, b"".join(lines)


def _head_of(store: DiskStore, listed: Listed) -> HeadOf:
    try:
        with contextlib.closing(DiskReader(store.path(listed.id), listed.id, 0)) as reader:
            with Translated("read", listed.id, reading=True):
                header, _ = FragmentHeader.unpack(os.pread(reader.fd, MAX_HEADER, 0))
            head = Head.of(header, reader.table)
    except (Corrupt, NewerFormat) as e:
        return HeadOf(listed.id, listed.size, listed.age, None, str(e))
    return HeadOf(listed.id, listed.size, listed.age, head)
