"""Fragments on their way to and from a node, over one exchange each."""

from __future__ import annotations

import time

import xxhash

from distfs.errors import DistfsError, ProtocolError
from distfs.formats import wire
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fixed import Cells, End, Put, Whole
from distfs.formats.fragment import ENTRY_SIZE, CellEntry, FragmentTable
from distfs.formats.wire import Type
from distfs.fragment_store import check_length
from distfs.model import Buffer
from distfs.peers.late_read import OnlyCell
from distfs.peers.link import REPLAY_MOST, Exchange
from distfs.peers.whole_put import check_stored
from distfs.telemetry.metrics import NODE_RECEIVED, NODE_SECONDS

#: A writer looks for a refusal before every so many cells; each look costs a system call.
_LISTEN_EVERY = 8
#: An answer that is first looked for later than this after it was asked for tells nothing of its node's speed.
_PROMPT_S = 0.005


class RemoteWriter:
    """A fragment on its way to a node."""

    def __init__(self, exchange: Exchange, begin: Put, block_size: int) -> None:
        """``begin`` leaves with the first cell, in one packet where that is small."""
        self._exchange, self._begin, self._block_size = exchange, begin, block_size
        self._held: tuple[CellEntry, bytes] | None = None  # a short cell, until it is known what follows
        self._begun, self._unsent = False, b""  # frames that leave with the next
        self._cells = 0
        self._said = xxhash.xxh3_64()

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        check_length(entry, len(data), self._cells)  # or the node would take the next frame for the rest
        self._let_go()
        self._cells += 1
        if self._cells % _LISTEN_EVERY == 0:
            self._exchange.check_refusal()
        if len(data) < min(self._block_size, REPLAY_MOST):
            # Of a copy it is the last cell: it leaves with the end.
            self._held = entry, bytes(data)
        else:
            self._send_cell(entry, data)

    def finish(self, slice_size: int, last: bool, extra: Extra = PLAIN) -> None:
        if self._held is not None and self._cells == 1 and extra is PLAIN:
            self._send_whole(*self._held, slice_size, last)
            return
        self._begin_once()
        if self._held is not None:
            entry, data = self._held
            self._unsent += self._frame(Type.CELL, entry.pack(), entry.length) + data
        self._send(self._frame(Type.END, End(slice_size, last, extra).encode()))

    def commit(self) -> None:
        check_stored(self._exchange, self._exchange.answer(Type.STORED), self._said.digest())

    def abort(self) -> None:
        self._exchange.close()  # the node sees the connection end in the middle and removes what it has

    def _let_go(self) -> None:
        """What is held is not all."""
        if self._held is not None:
            held, self._held = self._held, None
            self._send_cell(*held)

    def _begin_once(self) -> None:
        if not self._begun:
            self._begun = True
            self._unsent = self._frame(Type.PUT, self._begin.encode())

    def _send_cell(self, entry: CellEntry, data: Buffer) -> None:
        self._begin_once()
        # A short one has more behind it, at least the end: it shares a packet.
        self._send(
            self._frame(Type.CELL, entry.pack(), entry.length), data, more=len(data) < self._block_size
        )

    def _send_whole(self, entry: CellEntry, data: bytes, slice_size: int, last: bool) -> None:
        """In one frame, which its node stores in one go."""
        to, deadline, _, packed, request, trace = self._begin
        whole = Whole(to, deadline, slice_size, last, entry, packed, request, trace)
        self._exchange.send(self._frame(Type.WHOLE, whole.encode(), entry.length), data)

    def _frame(self, type_: Type, header: bytes, body: int = 0) -> bytes:
        """Its head, of which the node hears."""
        self._said.update(header)
        return wire.encode(type_, header, body)

    def _send(self, head: bytes, *data: Buffer, more: bool = False) -> None:
        head, self._unsent = self._unsent + head, b""
        self._exchange.send(head, *data, more=more)


class RemoteReader:
    """Cells on their way from a node. ``table`` is there once ``start`` has returned."""

    table: FragmentTable

    def __init__(
        self, exchange: Exchange, asked_at: float, *, waited: bool = False, late: bool = False
    ) -> None:
        """``asked_at``: when they were asked for; ``waited``: somebody has waited for them since, and they are
        ``late`` or not: that is said once."""
        self._exchange, self._asked_at, self._late = exchange, asked_at, late
        self._timed: bool | None = True if waited else None
        self._shape: tuple[int, bool, Extra] | None = None  # of the slice: size, last?; what else there is
        self._packed = bytearray()
        self._done = 0  # bytes of the table, then of the present cell, that have come
        self._left = 0  # bytes of cells still to come
        self._started = False

    # --- FragmentReader, and waiting with an eye on the clock ------------------------------------------

    def start(self) -> None:
        """Wait for the table. Raises NotFound, Corrupt."""
        while not self.start_or_late():
            pass

    def start_or_late(self) -> bool:
        """The same; False when the node has been silent for as long as makes it late: call again."""
        if self._started:
            return True
        if not self.begin_or_late() or self._shape is None:
            return False
        view = memoryview(self._packed)
        self._done = self._exchange.receive_or_late(view, self._done)
        if self._done < len(view):
            return False
        self._accept_table(*self._shape)
        return True

    def begin_or_late(self) -> bool:
        """Wait for the first bytes of the answer, as ``start_or_late``."""
        if self._late:
            self._late = False
            return False
        if self._shape is None:
            now = None
            if self._timed is None:
                now = time.monotonic()
                self._timed = now - self._asked_at < _PROMPT_S or self._exchange.sock.idle
            self._shape = self._receive_shape(now)
        return self._shape is not None

    def only_cell(self, size: int) -> OnlyCell | None:
        """As SmallReader's. All of a small answer comes with its first bytes, most of the time."""
        if self._shape is None or self._started or self._done:
            return None
        if len(self._packed) != ENTRY_SIZE or self._left != size:
            return None
        body = self._exchange.sock.take_bytes(ENTRY_SIZE + size)
        if body is None:
            return None
        self._started, self._left = True, 0
        return OnlyCell(self._shape[0], body[:ENTRY_SIZE], body[ENTRY_SIZE:])

    def read_cell(self, view: memoryview) -> None:
        while not self.read_cell_or_late(view):
            pass

    def read_cell_or_late(self, view: memoryview) -> bool:
        """The same; False when the node is late: call again with the same view."""
        if len(view) > self._left:
            raise self._exchange.protocol_error("the answer has no more cells")
        self._done = self._exchange.receive_or_late(view, self._done)
        if self._done < len(view):
            return False
        self._left -= len(view)
        self._done = 0
        return True

    def fileno(self) -> int:
        """To poll for bytes."""
        return self._exchange.sock.sock.fileno()

    def waited(self, seconds: float) -> None:
        """It was polled for so long and gave nothing. Raises TooSlow when that is too much."""
        self._exchange.waited(seconds)

    def abandon(self, waited: float) -> None:
        """After it was late, it was waited for so many seconds more, and another was first."""
        link = self._exchange.link
        link.latency.add(link.hedge_delay + waited)
        if not self._exchange.deadline.cancelled:
            link.breaker.failed()
        self._exchange.close()

    def close(self) -> None:
        if self._started and not self._left:
            self._exchange.done()
        else:
            self._exchange.close()

    # --- the answer's beginning --------------------------------------------------------------------------

    def _receive_shape(self, now: float | None) -> tuple[int, bool, Extra] | None:
        """The slice's size, whether it is the last, and what else its fragment has; None: late."""
        exchange = self._exchange
        frame = exchange.frame_or_late(now)
        if frame is None:
            return None
        if self._timed:
            took = exchange.heard_at - self._asked_at
            exchange.link.latency.add(took, exchange.heard_at)
            NODE_SECONDS.observe(took)
        if frame.type is not Type.CELLS:
            self._exchange.accept(frame, Type.CELLS)
        try:
            slice_size, last, size, extra = Cells.decode(frame.raw)
        except ProtocolError as e:
            raise self._exchange.protocol_error(str(e)) from e
        if size > frame.body_length or size > wire.MAX_TABLE:
            raise self._exchange.protocol_error(
                f"a table of {size} bytes in an answer of {frame.body_length}"
            )
        self._packed = bytearray(size)
        self._left = frame.body_length - size
        NODE_RECEIVED.add(frame.body_length, self._exchange.link.series)
        return slice_size, last, extra

    def _accept_table(self, slice_size: int, last: bool, extra: Extra) -> None:
        try:
            self.table = FragmentTable.unpack(self._packed, slice_size, last, extra)
        except DistfsError:
            self._exchange.close()
            raise
        self._started, self._done = True, 0
