"""What the fragments of a disk say of themselves, page by page: for a MetaDB that is made anew from it."""

from __future__ import annotations

import contextlib
import hashlib
import os

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NewerFormat, NotFound
from distfs.formats.features import sha256_in
from distfs.formats.fragment import MAX_HEADER, RAW, FragmentHeader
from distfs.formats.heads import Head, HeadOf, encode
from distfs.fragment_store import Listed
from distfs.storage.disk.reader import SMALL, DiskReader
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


def _sha256(header: FragmentHeader, reader: DiskReader) -> bytes | None:
    """Of a small file's only cell, which is all of it: what is as quickly made need not be kept. None: it is not
    such, or the cell is bad."""
    table = reader.table
    if header.ordinal or not table.last or len(table.entries) != 1 or header.policy.k > 1:
        return None
    [entry] = table.entries
    if entry.codec != RAW or entry.length > SMALL or not reader.is_good(0):
        return None
    cell = memoryview(bytearray(entry.length))
    reader.read_cell(cell)
    return hashlib.sha256(cell).digest()


def _head_of(store: DiskStore, listed: Listed) -> HeadOf:
    try:
        with contextlib.closing(DiskReader(store.path(listed.id), listed.id, 0)) as reader:
            with Translated("read", listed.id, reading=True):
                header, _ = FragmentHeader.unpack(os.pread(reader.fd, MAX_HEADER, 0))
            head = Head.of(header, reader.table, sha256_in(reader.table.extra) or _sha256(header, reader))
    except (Corrupt, NewerFormat) as e:
        return HeadOf(listed.id, listed.size, listed.age, None, str(e))
    return HeadOf(listed.id, listed.size, listed.age, head)
