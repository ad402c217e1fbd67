"""Small fragments, and the way into and out of any fragment store in one call each."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from random import Random
from uuid import UUID, uuid4

from distfs.deadline import Deadline
from distfs.formats.fragment import RAW, CellEntry, FragmentHeader, checksum, outline
from distfs.fragment_store import FragmentStore
from distfs.model import FragmentId, Policy
from distfs.storage.disk.store import DiskStore

CLUSTER = UUID("0a0b0c0d-0000-4000-8000-00000000c1c1")
FILE = UUID("0a0b0c0d-0000-4000-8000-00000000f11e")
MIB = 1 << 20


def soon() -> Deadline:
    """Enough for anything a test does with one fragment."""
    return Deadline(120)


def header(
    slice_id: UUID | None = None,
    index: int = 0,
    *,
    policy: Policy = Policy(1, 1),  # noqa: B008 - immutable
    block_size: int = 4096,
    name: str = "a name.txt",
    content_type: str = "text/plain",
) -> FragmentHeader:
    """A fragment's header; of a slice of its own unless told."""
    shape = slice_id or uuid4(), index, policy, block_size
    return FragmentHeader(CLUSTER, *shape, FILE, 0, name, content_type)


def entry_of(data: bytes | memoryview) -> CellEntry:
    """The entry of a raw cell of a k=1 code."""
    return CellEntry(len(data), RAW, checksum(data), checksum(data))


def random_bytes(size: int, seed: int = 1) -> bytes:
    return Random(seed).randbytes(size)


def cut(data: bytes, block_size: int) -> list[bytes]:
    """The blocks of a slice."""
    return [data[at : at + block_size] for at in range(0, len(data), block_size)]


def put(store: FragmentStore, head: FragmentHeader, data: bytes, *, hint: int | None = None) -> FragmentId:
    """Store one fragment of a k=1 code, durably."""
    writer = store.put(head, len(data) if hint is None else hint, soon())
    try:
        for block in cut(data, head.block_size):
            writer.write_cell(entry_of(block), memoryview(block))
        writer.finish(len(data), True)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return head.id


def keep(store: DiskStore, head: FragmentHeader, data: bytes) -> FragmentId:
    """As ``put``, of one cell, in one go."""
    store.keep(outline(head.pack()), head.pack(), entry_of(data), data, len(data), True)
    return head.id


def get(store: FragmentStore, id: FragmentId, first: int = 0, count: int = 1 << 18) -> list[bytes]:
    """The cells of a run."""
    with contextlib.closing(store.get(id, first, count, soon())) as reader:
        cells = []
        for entry in reader.table.entries[first : first + count]:
            buffer = bytearray(entry.length)
            reader.read_cell(memoryview(buffer))
            cells.append(bytes(buffer))
        return cells


def whole(store: FragmentStore, id: FragmentId) -> bytes:
    return b"".join(get(store, id))


def listed(store: FragmentStore, limit: int = 1000) -> Sequence[FragmentId]:
    """Every id, page by page."""
    found: list[FragmentId] = []
    cursor: str | None = ""
    while cursor is not None:
        page = store.list(cursor, limit, soon())
        assert len(page.fragments) <= limit
        found.extend(f.id for f in page.fragments)
        cursor = page.cursor
    return found
