"""A fragment of one cell on its way to a node, all of it in one send. A small one is one frame, which its node stores
in one go.

Most uploads are that, twice, so nothing is made for it that only a larger one needs. What goes wrong ends as it does
for every exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NodeUnavailable, TooSlow
from distfs.formats import wire
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fixed import End, Put, Stored, encode_whole
from distfs.formats.fragment import MAX_HEADER, CellEntry, named
from distfs.formats.wire import Frame, Type
from distfs.fragment_store import FragmentWriter
from distfs.model import Buffer
from distfs.peers.greeting import NodeSocket
from distfs.peers.link import REPLAY_MOST, Exchange, NodeLink, WaitBudget, span_of
from distfs.telemetry import tracing
from distfs.telemetry.context import current_request_id
from distfs.telemetry.metrics import CHECKSUMS
from distfs.telemetry.tracing import Span

#: Bytes of a cell that fits into one frame, with all that is beside it.
MOST = min(wire.MAX_WHOLE, REPLAY_MOST - 2 * MAX_HEADER)

_SENT = CHECKSUMS.index("sent")


class TakesWhole:
    """A store to which a fragment of one cell can be sent in one go. Its stores say so by inheriting."""

    def send_whole(
        self, packed: bytes, entry: CellEntry, cell: Buffer, slice_size: int, deadline: Deadline
    ) -> FragmentWriter | None:
        """``put`` of the only cell of a file's last slice, and ``finish``; ``packed``: the header's bytes. ``cell``
        is at hand until the end. None: nothing was done, go the long way. Raises what they raise."""
        raise NotImplementedError


def send_whole(
    link: NodeLink,
    to: bytes,
    packed: bytes,
    entry: CellEntry,
    cell: Buffer,
    slice_size: int,
    deadline: Deadline,
) -> WholePut | None:
    """See ``TakesWhole``: on a connection that was just used; None: there is none."""
    left = deadline.remaining(link.peer)
    request = current_request_id().encode()
    sock = link.pool.lend()
    if sock is None:
        return None
    small = entry.length <= MOST
    span = span_of(link, "WHOLE" if small else "PUT", named(packed)) if tracing.on else None
    trace = span.carried.pack() if span is not None else b""
    frames: Sequence[Buffer]
    if small:
        header = encode_whole(to, left, slice_size, True, entry, packed, request, trace)
        frames = wire.encode(Type.WHOLE, header, entry.length), cell
    else:
        put = Put(to, left, entry.length, packed, request, trace).encode()
        packed_entry, end = entry.pack(), End(slice_size, True).encode()
        begin = wire.encode(Type.PUT, put) + wire.encode(Type.CELL, packed_entry, entry.length)
        frames, header = (begin, cell, wire.encode(Type.END, end)), put + packed_entry + end
    return WholePut(link, sock, deadline, frames, xxhash.xxh3_64_digest(header), span)


class WholePut(Exchange):
    """A FragmentWriter that was told all there is. It sends again what a stale connection did not take."""

    def __init__(
        self,
        link: NodeLink,
        sock: NodeSocket,
        deadline: Deadline,
        frames: Sequence[Buffer],
        heard: bytes,
        span: Span | None,
    ) -> None:
        """``sock``: just lent by the pool of ``link``; ``heard``: what its node answers when it has all of it.

        Raises as ``send``.
        """
        self.link, self.sock, self.deadline = link, sock, deadline
        self.budget = WaitBudget(link.config, deadline)
        self._notice, self._patient, self._for_disk = None, False, True
        self._reused, self._ended, self._unsent = True, False, ()
        self._kept, self._size = [], sum(map(len, frames))
        self._heard, self.span = heard, span
        self._prepare()
        try:
            try:
                if self._size <= REPLAY_MOST:  # as in Exchange.send
                    sock.send(*frames, limit=deadline)
                else:
                    with self.budget.waiting(self._size) as limit:
                        sock.send(*frames, limit=limit)
            except (NodeUnavailable, TooSlow) as e:
                self._send_again(e, *frames)
        except BaseException as e:
            self._fail(e)
            raise
        self._kept = list(frames)

    def commit(self) -> None:
        check_stored(self, self.answer(Type.STORED), self._heard)

    def abort(self) -> None:
        self.close()

    def write_cell(self, entry: CellEntry, data: memoryview) -> None:
        raise NotImplementedError("it has its only cell")

    def finish(self, slice_size: int, last: bool, extra: Extra = PLAIN) -> None:
        raise NotImplementedError("it was told its end")


def check_stored(exchange: Exchange, frame: Frame, heard: bytes) -> None:
    """End a PUT that was answered. ``heard``: what its node was told. Raises Corrupt when it heard something else."""
    if frame.raw != Stored(heard).encode():
        peer = exchange.link.peer
        exchange.close()
        CHECKSUMS.add(at=_SENT)
        raise Corrupt(f"{peer}: stored something else than it was told; the request was damaged on its way")
    exchange.done()
