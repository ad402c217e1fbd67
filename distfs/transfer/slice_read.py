"""One slice on its way out: checked blocks, from whatever fragments answer.

A cell that fails its check is read again from another fragment, and only that cell; a node that is gone or has
the wrong table is replaced for the rest of the slice. Beside a node that is late another is asked, and the first
good answer wins. The caller sees none of it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from distfs.deadline import Deadline
from distfs.errors import Cancelled, Corrupt, DistfsError, NewerFormat, NotFound, TooSlow, Unavailable
from distfs.formats.coding import Code
from distfs.formats.compression import library, unpack
from distfs.formats.fragment import RAW, CellEntry, FragmentTable, checksum
from distfs.fragment_store import check_cell
from distfs.model import FragmentId, Slice
from distfs.peers.directory import Stores
from distfs.peers.hedge import HedgeBudget
from distfs.peers.late_read import Attempt, LateReader, SecondFailed, ask, race
from distfs.telemetry import tracing
from distfs.telemetry.metrics import CHECKSUMS, RETRIES
from distfs.telemetry.tracing import traced
from distfs.transfer.block_read import BlockRead, Rooms, StoredBlock, Stranger
from distfs.transfer.blocks import BlockPool
from distfs.transfer.remains import Remains, Remnant

log = logging.getLogger("distfs.download")

#: How often one fragment may fail as a stream before it is given up for this read.
_TRIES = 2

#: Told of every fragment that proved bad or missing, with the node it is on and what was wrong.
NoteDamage = Callable[[FragmentId, int, DistfsError], None]


def not_noted(fragment: FragmentId, node: int, error: DistfsError) -> None:
    """For readers of fragments that nobody but them knows yet."""


_READ = CHECKSUMS.index("read")
_AGAIN = RETRIES.index("read")


class Hedging(NamedTuple):
    """What it takes to ask a second fragment beside a late one."""

    budget: HedgeBudget  # how many may be
    memory: BlockPool  # of which the second is borrowed


class SliceReader:
    """Blocks ``first`` to ``stop`` of a slice, in order. Used by one thread at a time."""

    def __init__(
        self,
        piece: Slice,
        block_size: int,
        code: Code,
        stores: Stores,
        order: Sequence[int],
        span: tuple[int, int],
        deadline: Deadline,
        note_damage: NoteDamage = not_noted,
        hedging: Hedging | None = None,
        remains: Remains | None = None,
    ) -> None:
        """``order``: fragment indexes, the preferred first; ``span``: first block and the one after the last;
        ``hedging``: what may be read twice when a node is late; None: it is waited for; ``remains``: what else is
        left of the slice, for when these do not give a block."""
        self._slice, self._block_size, self._code = piece, block_size, code
        self._stores, self._order, self._deadline = stores, order, deadline
        self._first, self._stop = span
        self._note_damage, self._hedging, self._remains = note_damage, hedging, remains
        self._remnants: list[Remnant] | None = None  # None: not looked for
        self.last = False  # whether the slice is its file's last; known from the first block on
        self._table: FragmentTable | None = None  # one that is the slice's
        self._plains: list[int] = []  # the plain blocks' checksums, from the same tables
        self._open: dict[int, LateReader] = {}  # by fragment index, all before the same block
        self._vouched: set[LateReader] = set()  # those whose tables are the slice's
        self._rooms = Rooms(code, block_size)
        self._known_late: LateReader | None = None  # it was waited for already
        self._failures: dict[int, int] = {}
        self._outruns: dict[int, int] = {}  # how often each was late
        self._errors: dict[int, DistfsError] = {}
        self._decoding: list[tuple[float, float]] = []  # begin and seconds, by block, while that is traced

    @property
    def piece(self) -> Slice:
        """What it reads."""
        return self._slice

    @property
    def remains(self) -> Remains | None:
        """What it reads when the fragments that it was told of are not enough."""
        return self._remains

    @property
    def span(self) -> tuple[int, int]:
        """The first block and the one after the last."""
        return self._first, self._stop

    @property
    def compressed(self) -> bool:
        """Whether some block of the slice is; known from the first block on."""
        return self._table is not None and any(entry.codec != RAW for entry in self._table.entries)

    def open(self) -> None:
        """Ask k nodes for their fragments, so that bytes are on their way; answers and failures are left to
        ``blocks``. Raises Cancelled; then it is closed."""
        try:
            while len(self._open) < self._code.policy.k:
                index = self._candidate(set(self._open))
                if index is None:
                    return
                self._start(index, self._first)
        except BaseException:
            self.close()
            raise

    def begin_with(self, index: int, reader: LateReader | DistfsError) -> None:
        """A fragment that was asked for already, from the first block on, and is late; or could not be. Raises
        Cancelled."""
        if isinstance(reader, DistfsError):
            self._note(index, reader, stream=True)
        else:
            self._open[index] = self._known_late = reader

    def close(self) -> None:
        """Release the connections, also in the middle."""
        for reader in self._open.values():
            reader.close()
        if self._decoding:
            facts = {
                "distfs.blocks": len(self._decoding),
                "distfs.busy_seconds": sum(s for _, s in self._decoding),
            }
            tracing.past("decode", self._decoding[0][0], facts)
            self._decoding.clear()
        self._open.clear()
        self._rooms.clear()

    def blocks(self, buffer: memoryview) -> Iterator[memoryview]:
        """The plain blocks, checked; each valid only until the next. Raises Corrupt, Unavailable, NewerFormat.

        Cells have checksums, too, but the block's own covers them: they are looked at when that one fails.
        """
        for number in range(self._first, self._stop):
            yield self._block(number, buffer)[1]

    def stored_blocks(self, buffer: memoryview) -> Iterator[StoredBlock]:
        """As ``blocks``, the blocks as they are stored: what is made anew of them fits what there is, whatever would
        be made of the plain ones today. Where nothing can unpack them, their cells' checksums must do."""
        for number in range(self._first, self._stop):
            block, _ = self._block(number, buffer, unpacked=False)
            yield StoredBlock(block.out, block.codec, self._plains[number])

    def _block(self, number: int, buffer: memoryview, unpacked: bool = True) -> tuple[BlockRead, memoryview]:
        """-> what came of it, the plain block. Without ``unpacked`` one that cannot be unpacked here is as it is."""
        size = min(self._block_size, self._slice.size - number * self._block_size)
        block = BlockRead(number, buffer[:size], self._rooms)
        k = self._code.policy.k
        if self._hedging is not None:
            self._hedging.budget.count(k)
        for index in list(self._open):
            self._read(index, self._open[index], block)
        while True:
            while len(block.cells) < k:
                self._read_another(block)
            began = time.monotonic() if tracing.on and k > 1 else 0.0
            plain = block.out = self._code.decode(block.cells, block.out)
            if began:
                self._decoding.append((began, time.monotonic() - began))
            if block.codec != RAW:
                if unpacked or library() is not None:
                    plain = self._unpacked(block)
                elif not block.bad_cells():
                    return block, plain
            if checksum(plain) == self._plains[number]:
                for index in block.strangers:
                    self._note(index, Corrupt(f"cell {number} is not of its block"))
                return block, plain
            self._sort_out(block)

    def _unpacked(self, block: BlockRead) -> memoryview:
        """The plain block; what cannot be one, when it is none. Raises NoZstd."""
        try:
            return memoryview(unpack(self._code.unwrapped(block.out), len(block.whole)))
        except Corrupt:
            return memoryview(b"")

    def _sort_out(self, block: BlockRead) -> None:
        """The block fails its checksum: cells that fail theirs are not used again; if none does, all of them."""
        bad = block.bad_cells()
        for index in bad or list(block.cells):
            if index in block.remnants:  # another of them may be good
                block.remnants.discard(index)
                del block.cells[index]
                continue
            self._note(index, Corrupt(f"{'cell' if bad else 'block'} {block.number} fails its checksum"))
            del block.cells[index]
            block.spent.add(index)

    def _read(self, index: int, reader: LateReader, block: BlockRead) -> None:
        """The next cell of one fragment; when it is late, perhaps of another.

        A stream that breaks is closed and forgotten.
        """
        is_late, self._known_late = reader is self._known_late, None
        try:
            if is_late or not self._advance(reader, index, block, block.whole):
                late = Attempt(reader, lambda: self._advance(reader, index, block, block.whole))
                first = self._outrun(index, late, block)
                if first not in (None, index):
                    return
                while first is None and not late.advance():
                    pass  # its stall limit ends it
        except Stranger:
            reader.close()
            self._open.pop(index, None)
            block.strangers.add(index)
            return
        except DistfsError as e:
            reader.close()
            self._open.pop(index, None)
            self._note(index, e, stream=True)
            block.spent.add(index)
            return
        block.take(index, reader.table.entries[block.number])

    def _advance(self, reader: LateReader, index: int, block: BlockRead, whole: memoryview) -> bool:
        """Receive what there is of a cell, into its place in ``whole``; whether that is all of it. False: the node is
        late."""
        if reader not in self._vouched:
            if not reader.start_or_late():
                return False
            self._accept(reader.table)
            self._vouched.add(reader)
        return reader.read_cell_or_late(block.place(index, reader.table.entries[block.number], whole))

    def _accept(self, table: FragmentTable) -> None:
        """Raises Corrupt unless a fragment's table is the slice's."""
        table.check(self._slice.digest, self._block_size)
        self._table = table
        self._plains = [entry.plain for entry in table.entries]
        self.last = table.last

    # --- a node that is late ----------------------------------------------------------------------------

    def _outrun(self, index: int, late: Attempt, block: BlockRead) -> int | None:
        """Ask another fragment for the cell too; -> which of the two was first: that cell is here, whole.

        None: ``late`` is to be read on, it is all there is, or all that the budget allows. Raises what ends it.
        """
        other = self._candidate(block.asked | set(self._open) | {index})
        if other is None or self._hedging is None:
            return None
        with self._spare(block) as room:
            if room is None or not self._hedging.budget.spend():
                return None
            return self._race(index, late, other, block, room)

    @traced("hedge")
    def _race(self, index: int, late: Attempt, other: int, block: BlockRead, room: memoryview) -> int | None:
        """As ``_outrun``, with fragment ``other`` into ``room``."""
        started = time.monotonic()
        second = self._request(other, block.number, 1)
        if second is None:
            return None
        with contextlib.closing(second):
            try:
                ahead = Attempt(second, lambda: self._advance_good(second, other, block, room))
                if not race(late, ahead, self._deadline):
                    return index
            except SecondFailed as e:
                self._note(other, e.error, stream=True)
                return None
        if self._hedging is not None:
            self._hedging.budget.win()
        self._replace_late(index, late.reader, time.monotonic() - started)
        entry = second.table.entries[block.number]
        view = block.take(other, entry)
        if room is not block.whole:
            view[:] = room[: len(view)]  # who was late receives no more
        block.late.add(index)
        return other

    @contextlib.contextmanager
    def _spare(self, block: BlockRead) -> Iterator[memoryview | None]:
        """Room for the block in which a second cell may be received beside the late one; None: there is no memory.

        Of copies both are the whole block, and the late one may be half there.
        """
        if self._code.policy.k > 1:
            yield block.whole
        elif self._hedging is not None and self._hedging.memory.borrow(len(block.whole)):
            try:
                yield memoryview(bytearray(len(block.whole)))
            finally:
                self._hedging.memory.repay(len(block.whole))
        else:
            yield None

    def _advance_good(self, reader: LateReader, index: int, block: BlockRead, whole: memoryview) -> bool:
        """As ``_advance``; raises Corrupt for a cell that is whole and not good."""
        if not self._advance(reader, index, block, whole):
            return False
        entry = reader.table.entries[block.number]
        check_cell(entry, checksum(block.place(index, entry, whole)), block.number)
        return True

    def _replace_late(self, index: int, reader: LateReader, waited: float) -> None:
        """Who was late is asked last from now on."""
        reader.abandon(waited)
        self._open.pop(index, None)
        self._outruns[index] = self._outruns.get(index, 0) + 1
        node = self._slice.nodes[index]
        self._errors[index] = TooSlow(f"node {node} was late")
        log.info("fragment %s.%d on node %d is late; another was read", self._slice.id, index, node)

    # --- which fragment -----------------------------------------------------------------------------------

    def _read_another(self, block: BlockRead) -> None:
        """One cell more of this block, from a fragment not asked for it yet."""
        index = self._candidate(block.asked)
        if index is None:
            block.late.clear()  # there is nobody else: they are waited for
            index = self._candidate(block.asked)
        if index is None:
            if self._read_remnant(block) or self._believe_others(block):
                return
            raise self._exhausted(block.number)
        if len(self._open) < self._code.policy.k:
            if self._start(index, block.number):
                self._read(index, self._open[index], block)
            return
        reader = self._request(index, block.number, 1)
        if reader is not None:
            with contextlib.closing(reader):
                self._read(index, reader, block)

    def _believe_others(self, block: BlockRead) -> bool:
        """Nobody has more of the code word that came first: then it is another's turn, if there is one."""
        if not block.strangers:
            return False
        for index in block.cells:
            self._note(index, Corrupt(f"cell {block.number} is of another code word than others"))
        block.spent.update(block.cells)
        block.cells.clear()
        block.strangers.clear()
        return True

    def _read_remnant(self, block: BlockRead) -> bool:
        """One cell more of this block, a good one, from all that is left of the slice; whether there was one."""
        if self._remnants is None and self._remains is not None:
            self._remnants = self._remains.after(self._errors.values(), self._deadline)
        left = self._remnants or []
        for each in list(left):
            if each in block.tried or each.number in block.cells:
                continue
            block.tried.add(each)
            try:
                entry = self._read_cell_of(each, block)
            except Cancelled:
                raise
            except DistfsError as e:
                fragment = FragmentId(self._slice.id, each.number)
                log.info("fragment %s on node %d gives no block %d: %s", fragment, each.node, block.number, e)
                if not isinstance(e, Corrupt):
                    left.remove(each)
                continue
            block.take(each.number, entry)
            block.remnants.add(each.number)
            return True
        return False

    def _read_cell_of(self, remnant: Remnant, block: BlockRead) -> CellEntry:
        """-> what it is. Raises Corrupt when it is not good."""
        number = block.number
        store, id = self._stores(remnant.node, self._deadline), FragmentId(self._slice.id, remnant.number)
        with contextlib.closing(store.get(id, number, 1, self._deadline, aside=remnant.aside)) as reader:
            self._accept(reader.table)
            entry = reader.table.entries[number]
            view = block.place(remnant.number, entry, block.whole)
            reader.read_cell(view)
            check_cell(entry, checksum(view), number)
        return entry

    def _candidate(self, excluded: set[int]) -> int | None:
        """The best fragment left: of those that failed or were late least, the first in order."""
        usable = [i for i in self._order if i not in excluded and self._failures.get(i, 0) < _TRIES]
        return min(usable, key=self._troubles, default=None)

    def _troubles(self, index: int) -> int:
        return self._failures.get(index, 0) + self._outruns.get(index, 0)

    def _start(self, index: int, number: int) -> bool:
        """Begin a stream of a fragment from block ``number`` to the end of the span."""
        reader = self._request(index, number, self._stop - number)
        if reader is not None:
            self._open[index] = reader
        return reader is not None

    def _request(self, index: int, first: int, count: int) -> LateReader | None:
        """A fragment asked for, if its node can be reached: soon, as long as there are others to try."""
        hasty = self._hedging is not None and not self._troubles(index) and len(self._order) > 1
        try:
            store = self._stores(self._slice.nodes[index], self._deadline)
            return ask(store, FragmentId(self._slice.id, index), first, count, self._deadline, hasty)
        except DistfsError as e:
            self._note(index, e, stream=True)
            return None

    def _note(self, index: int, error: DistfsError, stream: bool = False) -> None:
        """Remember what failed. A whole fragment that is gone or wrong is not asked again.

        Raises Cancelled when nobody waits for it any more: then no node is to blame.
        """
        if isinstance(error, Corrupt):
            CHECKSUMS.add(at=_READ)
        self._deadline.check_cancelled()
        hopeless = stream and isinstance(error, Corrupt | NotFound | NewerFormat)
        self._failures[index] = self._failures.get(index, 0) + (_TRIES if hopeless else stream)
        self._errors[index] = error
        where = f"fragment {self._slice.id}.{index} on node {self._slice.nodes[index]}"
        log.warning("%s: %s; reading another", where, error)
        RETRIES.add(at=_AGAIN)
        if isinstance(error, Corrupt | NotFound):
            self._note_damage(FragmentId(self._slice.id, index), self._slice.nodes[index], error)

    def _exhausted(self, number: int) -> DistfsError:
        reasons = "; ".join(f"fragment {i}: {e}" for i, e in sorted(self._errors.items()))
        what = f"slice {self._slice.id} block {number} cannot be read"
        text = f"{what}: {reasons or 'no fragment is left'}"
        errors = self._errors.values()
        newer = any(isinstance(e, NewerFormat) for e in errors)
        if newer and all(isinstance(e, Corrupt | NotFound | NewerFormat) for e in errors):
            public = f"{what}: it was written by a newer distfs than read it: its operator is to upgrade the others"
            return NewerFormat(text, public=public)
        if all(isinstance(e, Corrupt | NotFound) for e in errors):
            gone = not self._remnants and all(isinstance(e, NotFound) for e in errors)
            left = "nothing is left of it" if gone else "what is left of it is damaged"
            return Corrupt(text, public=f"{what}: {left}; its operator is told")
        return Unavailable(
            text, public=f"{what}: too few of its storage nodes can be reached, try again soon"
        )
