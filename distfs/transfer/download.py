"""The way out: MetaDB's slices in order, the next one asked for ahead, each block checked before it leaves."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple, TypeVar
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, NewerFormat, NoZstd, TooSlow, Unavailable
from distfs.formats.coding import Code, code_for
from distfs.formats.compression import as_frame, unpack
from distfs.formats.fragment import RAW, ZSTD, CellEntry, check_codec, checksum, slice_digest
from distfs.fragment_store import check_length
from distfs.model import FragmentId, NewFile, Node, Slice
from distfs.peers.directory import NodeDirectory
from distfs.peers.late_read import LateReader, SmallReader
from distfs.peers.small_read import SmallAsk, read_small
from distfs.transfer.block_read import StoredBlock
from distfs.transfer.blocks import BlockPool
from distfs.transfer.remains import Remains, search_of
from distfs.transfer.slice_read import Hedging, NoteDamage, SliceReader, not_noted

log = logging.getLogger("distfs.download")

_T = TypeVar("_T")

#: How to ask MetaDB for a file.
Find = Callable[[UUID, Deadline], NewFile]


#: A fragment of a file, by index, that was asked for; or the error that it gave.
First = tuple[int, LateReader | DistfsError]

#: Bytes of a file that is read at once.
SMALL = 64 << 10

#: A client that has nothing yet can be told to come again: it waits for a part of the patience only.
_BEFORE_THE_FIRST = 3
_LOOK_S, _LOOK_MOST_S = 0.1, 1.0  # between two tries
#: All that wait go by one list of nodes; one that is younger does.
_LIST_AGE_S = 0.25
#: By which a small file has its slice's size, its cell's entry that agrees with its digest, and the block's checksum.
_ENTRY = "entry"


class _Stuck:
    """A read that cannot go on, and how long it was waited for nodes since its last block."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._until: float | None = None
        self._pause = _LOOK_S

    @property
    def first(self) -> bool:
        return self._until is None

    @property
    def over(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def wait(self, deadline: Deadline, at_once: bool) -> None:
        """Before the next try; ``at_once``: not before the first. Raises Cancelled, TooSlow."""
        if self._until is None:
            self._until = time.monotonic() + self._patience
            if at_once:
                return
        deadline.pause(self._pause, "waiting for storage nodes to come back")
        self._pause = min(2 * self._pause, _LOOK_MOST_S)


class Downloader:
    """What all downloads of a service share. Thread-safe."""

    def __init__(
        self,
        directory: NodeDirectory,
        pool: BlockPool,
        note_damage: NoteDamage = not_noted,
        find: Find | None = None,
    ) -> None:
        """``note_damage`` is called on the way, for every fragment that proves bad or missing: it must not wait.

        ``find``: a file as MetaDB has it now; for long downloads, whose fragments may be moved meanwhile.
        """
        self._directory, self._pool = directory, pool
        self._hedging = Hedging(directory.hedging, pool)
        self._note_damage, self._find, self._search = note_damage, find, search_of(directory)

    def read(self, file: NewFile, start: int, stop: int, deadline: Deadline) -> Iterator[memoryview]:
        """Bytes ``start`` to ``stop`` of a file, in order; each view is valid only until the next is asked for.

        Raises Corrupt or Unavailable, at any view, when too few fragments of a slice answer; never yields a
        byte that fails its check.
        """
        with self._pool.lent(deadline, self._beside(file), file.block_size) as buffer:
            if start < stop and is_one_block(file):
                yield self._one_block(file, buffer[: file.size], deadline)[start:stop]
            else:
                yield from self._read(file, start, stop, buffer, deadline, None)

    def frames(self, file: NewFile, start: int, stop: int, deadline: Deadline) -> Iterator[memoryview]:
        """The same, from a block's beginning to another's, or the end: each block as a frame of zstd, as it is stored
        where it is stored as one. Each was unpacked and checked."""
        code = code_for(file.policy)
        with self._pool.lent(deadline, self._beside(file), file.block_size) as buffer:

            def stored(reader: SliceReader) -> Iterator[StoredBlock]:
                return reader.stored_blocks(buffer)

            with contextlib.closing(self._in_order(file, start, stop, stored, deadline, None)) as blocks:
                for coded, codec, _ in blocks:
                    yield code.unwrapped(coded) if codec == ZSTD else as_frame(coded)

    def _beside(self, file: NewFile) -> int:
        """Bytes that the cells of a block take beside it, and the block that is unpacked."""
        unpacked = file.block_size if file.stored is not None else 0
        return unpacked + code_for(file.policy).beside(file.block_size)

    def _one_block(self, file: NewFile, out: memoryview, deadline: Deadline) -> memoryview:
        """As ``whole``, of any file that ``is_one_block``, into ``out``."""
        first = self._first(file, deadline, out)
        if isinstance(first, memoryview | bytes):
            return memoryview(first)
        try:
            with contextlib.closing(self._read(file, 0, file.size, out, deadline, first)) as blocks:
                return next(blocks)
        finally:
            _let_go(first)

    def whole(self, file: NewFile, deadline: Deadline) -> bytes:
        """All bytes of a file that ``is_small``. Raises as ``read``.

        Most are here with the first answer of the node that is asked first. What is not so is read as any other, from
        where it is: a node that is late is outrun at once, one whose fragment is damaged or gone is not asked again.
        """
        first = self._first(file, deadline)
        if isinstance(first, memoryview | bytes):
            return bytes(first)
        try:
            with self._pool.lent(deadline, size=file.size) as buffer:
                return b"".join(map(bytes, self._read(file, 0, file.size, buffer, deadline, first)))
        finally:
            _let_go(first)

    def _first(
        self, file: NewFile, deadline: Deadline, out: memoryview | None = None
    ) -> bytes | memoryview | First | None:
        """A file of one block as it is on the node that is asked first, in ``out`` if there is one; or what came of
        asking. None: another is better."""
        asked: _Asked = file.kept.get(_Asked) or _asked_first(file)
        store = self._directory.well(asked.node, deadline)
        if store is None:
            return None
        delay = store.link.hedge_delay
        try:
            came = read_small(store, asked.small, deadline, delay) if out is None else None
            if isinstance(came, tuple):
                data: bytes | memoryview | None = _good(file, file.size, *came)
            else:
                reader = came
                if reader is None:
                    hasty = delay if asked.several else None
                    reader = store.ask(asked.id, 0, 1, deadline, hasty, late=delay)
                data = _taken(reader, file, out)
                if data is None:
                    return asked.id.index, reader
        except NoZstd:  # of another copy nothing else would come
            raise
        except DistfsError as e:
            return asked.id.index, e
        self._hedging.budget.count()
        return data

    def _read(
        self,
        file: NewFile,
        start: int,
        stop: int,
        buffer: memoryview,
        deadline: Deadline,
        first: First | None,
    ) -> Generator[memoryview]:
        """``first``: a fragment of the first slice that was asked for, or what came of that."""
        at = start // file.block_size * file.block_size  # where the next block begins

        def plain(reader: SliceReader) -> Iterator[memoryview]:
            return reader.blocks(buffer)

        with contextlib.closing(self._in_order(file, start, stop, plain, deadline, first)) as blocks:
            for block in blocks:
                yield block[max(0, start - at) : stop - at]
                at += len(block)

    def _in_order(
        self,
        file: NewFile,
        start: int,
        stop: int,
        read: Callable[[SliceReader], Iterator[_T]],
        deadline: Deadline,
        first: First | None,
    ) -> Generator[_T]:
        """What ``read`` makes of the blocks in which those bytes are."""
        known = self._directory.nodes(deadline)
        wanted = self._readers(file, start, stop, deadline)
        if first is not None:
            wanted = _beginning_with(first, wanted)
        reader, upcoming = _opened(wanted), None
        begun = False
        try:
            while reader is not None:
                for block in self._blocks(file, reader, known, read, deadline, begun):
                    begun = True
                    yield block
                    # Asked for here, not by a thread: at each hand-over of the interpreter lock a busy machine
                    # keeps both waiting, and with k fragments a slice that took a third of the time.
                    upcoming = upcoming or _opened(wanted)
                reader.close()
                reader, upcoming = upcoming, None
        finally:
            for each in (reader, upcoming):
                if each is not None:
                    each.close()

    def _blocks(
        self,
        file: NewFile,
        reader: SliceReader,
        known: list[Node],
        read: Callable[[SliceReader], Iterator[_T]],
        deadline: Deadline,
        begun: bool,
    ) -> Iterator[_T]:
        """What ``read`` makes of the blocks of ``reader``; when it cannot go on and its fragments are elsewhere by
        now, from there. Nodes that may only be restarting are waited for, where it was.

        ``known``: the nodes as they were when the download began; ``begun``: bytes of it have left already.
        """
        number, stop = reader.span
        remains = reader.remains or self._remains(reader.piece)
        code = code_for(file.policy)
        patience = self._directory.patience / (1 if begun else _BEFORE_THE_FIRST)
        stuck = _Stuck(patience)
        while True:
            try:
                with contextlib.closing(reader):
                    for block in read(reader):
                        yield block
                        number += 1
                        stuck = _Stuck(self._directory.patience)
                return
            except (Corrupt, Unavailable) as e:
                piece = self._moved(file, reader.piece, known, deadline) if stuck.first else None
                lately = self._directory.may_return(filter(None, reader.piece.nodes), deadline)
                final = isinstance(e, Corrupt | NewerFormat)  # waiting does not help
                gone = final or lately < code.policy.k
                if not piece and (gone or stuck.over):
                    if final or not remains.begin_last_resort():
                        raise
                else:
                    if stuck.first:
                        log.warning("file %s: a download waits for storage nodes: %s", file.id, e)
                    stuck.wait(deadline, at_once=bool(piece))
                    self._directory.glance(deadline, _LIST_AGE_S)
            reader = self._reader(file, piece or reader.piece, (number, stop), deadline, remains)

    def _moved(self, file: NewFile, piece: Slice, known: list[Node], deadline: Deadline) -> Slice | None:
        """The slice as it is now, if a fragment of it, or a node that has one, is not where it was."""
        if self._find is None:
            return None
        try:
            fresh = self._find(file.id, deadline).slices[piece.ordinal]
            nodes = self._directory.glance(deadline)
        except DistfsError as e:
            log.info("file %s: whether slice %s was moved cannot be told: %s", file.id, piece.id, e)
            return None
        before = {node.id: node.address for node in known}
        away = {node.id for node in nodes if node.address != before.get(node.id)}
        return fresh if fresh.nodes != piece.nodes or away.intersection(fresh.nodes) else None

    def _readers(self, file: NewFile, start: int, stop: int, deadline: Deadline) -> Iterator[SliceReader]:
        """A reader a slice that the range touches, for just the blocks it touches."""
        at = 0
        for piece in file.slices:
            first, last = max(start - at, 0), min(stop - at, piece.size)
            if first < last:
                span = first // file.block_size, -(-last // file.block_size)
                yield self._reader(file, piece, span, deadline)
            at += piece.size

    def _remains(self, piece: Slice) -> Remains:
        return Remains(self._search, piece, last_resort=False)

    def _reader(
        self,
        file: NewFile,
        piece: Slice,
        span: tuple[int, int],
        deadline: Deadline,
        remains: Remains | None = None,
    ) -> SliceReader:
        """``remains``: those of the try before, if there was one."""
        code, directory = code_for(file.policy), self._directory
        order = self._order(piece, code, deadline)
        shape = piece, file.block_size, code
        how = self._note_damage, self._hedging, remains or self._remains(piece)
        return SliceReader(*shape, directory.store, order, span, deadline, *how)

    def _order(self, piece: Slice, code: Code, deadline: Deadline) -> list[int]:
        """Fragment indexes: nodes that are up and well first."""
        alive = {node.id for node in self._directory.known(deadline) if node.alive}
        standing = self._directory.standing(piece.nodes)
        held = _held(piece, code.policy.k)
        return sorted(held, key=lambda i: (piece.nodes[i] not in alive, standing[piece.nodes[i]]))


class _Asked(NamedTuple):
    """Of a file of one block, what is asked for first."""

    node: int
    id: FragmentId
    several: bool  # there are others
    small: SmallAsk


def _asked_first(file: NewFile) -> _Asked:
    [piece] = file.slices
    held = _held(piece, file.policy.k)
    id = FragmentId(piece.id, held[0] if held else 0)
    asked = file.kept[_Asked] = _Asked(piece.nodes[id.index], id, len(held) > 1, SmallAsk(id, file.size))
    return asked


def _held(piece: Slice, k: int) -> list[int]:
    """Indexes of the fragments that a node has.

    Of copies a slice has one that all services prefer, which comes first: slices share the nodes evenly, and what is
    read again is in one node's page cache, not half of it in each.
    """
    held = [index for index, node in enumerate(piece.nodes) if node]
    if k == 1 and held:  # with k > 1 data cells come first: they need no decoding
        preferred = piece.id.int % len(held)
        held = held[preferred:] + held[:preferred]
    return held


def is_one_block(file: NewFile) -> bool:
    """Whether it is copies of one block."""
    return len(file.slices) == 1 and 0 < file.size <= file.block_size and file.policy.k == 1


def is_small(file: NewFile) -> bool:
    """Whether it is read at once, by ``whole``."""
    return file.size <= SMALL and is_one_block(file)


def _let_go(first: First | None) -> None:
    """Nothing, when it was read to its end or given up."""
    if first is not None and not isinstance(first[1], DistfsError):
        first[1].close()


def _taken(reader: SmallReader, file: NewFile, out: memoryview | None) -> bytes | memoryview | None:
    """The one block of a file, in ``out`` if there is one, checked; None: its node is late, and is to be read on, all
    of it. Raises what the reader does, TooSlow, Corrupt."""
    late = False
    try:
        data = _at_once(reader, file) if out is None else _into(reader, file, out)
        late = data is None
    finally:
        if not late:
            reader.close()
    return data


def _into(reader: LateReader, file: NewFile, out: memoryview) -> memoryview | None:
    """As ``_taken``."""
    if not reader.start_or_late():
        return None
    table = reader.table
    table.check(file.slices[0].digest, file.block_size)
    [entry] = table.entries
    data = out
    if entry.codec == RAW:
        check_length(entry, file.size, 0)
    else:
        check_codec(entry)
        data = _packed(entry, out)
    if not reader.read_cell_or_late(data):
        return None
    if entry.codec != RAW:
        data = memoryview(unpack(data, file.size))
    if checksum(data) != entry.plain:
        raise _damaged()
    return data


def _packed(entry: CellEntry, out: memoryview) -> memoryview:
    """Where in ``out``, room for a block, what it was compressed to is received. Raises Corrupt."""
    if not 0 < entry.length < len(out):
        raise Corrupt(f"cell 0 has {entry.length} compressed bytes of a block of {len(out)}")
    return out[: entry.length]


def _at_once(reader: SmallReader, file: NewFile) -> bytes | None:
    """As ``_taken``, of a small file."""
    if not reader.begin_or_late():
        return None
    if (only := reader.only_cell(file.size)) is not None:
        return _good(file, *only)
    if not reader.start_or_late():
        return None
    data = _into(reader, file, memoryview(bytearray(file.size)))
    if data is None:
        raise TooSlow("it was late in the middle of a cell")
    return bytes(data)


def _good(file: NewFile, slice_size: int, packed: bytes, data: bytes) -> bytes:
    """``data``, the one block of a small file; ``packed``: its entry. Raises Corrupt."""
    known: tuple[int, bytes, int] | None = file.kept.get(_ENTRY)
    if known is None or known[:2] != (slice_size, packed):  # it says other than a read that was good
        entry = CellEntry.unpack(packed)
        if slice_digest((entry.plain,), slice_size, file.block_size) != file.slices[0].digest:
            raise Corrupt("its table is not the slice's")
        if entry.codec != RAW:
            check_codec(entry)
            raise _damaged()  # it would be shorter
        check_length(entry, file.size, 0)
        known = file.kept[_ENTRY] = slice_size, packed, entry.plain
    if checksum(data) != known[2]:
        raise _damaged()
    return data


def _damaged() -> Corrupt:
    return Corrupt("cell 0 fails its checksum")


def _beginning_with(first: First, wanted: Iterator[SliceReader]) -> Iterator[SliceReader]:
    for number, reader in enumerate(wanted):
        if not number:
            reader.begin_with(*first)
        yield reader


def _opened(wanted: Iterator[SliceReader]) -> SliceReader | None:
    """The next one, its fragments asked for; None after the last."""
    reader = next(wanted, None)
    if reader is not None:
        reader.open()
    return reader
