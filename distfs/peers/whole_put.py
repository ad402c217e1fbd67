"""A fragment of one cell on its way to a node, all of it in one send. A small one is one frame, which its node stores
in one go.

Most uploads are that, twice, so nothing is made for it that only a larger one needs. What goes wrong ends as it does
for every exchange.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import xxhash

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NodeUnavailable, TooSlow
from distfs.formats import wire
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fixed import STORED_BEGINS, End, Put, Stored, encode_whole, frame_of_whole
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
    now = deadline.expires_at - left
    if (sock := link.pool.lend(now)) is None:
        return None
    request = current_request_id().encode()
    small = entry.length <= MOST
    frames: Sequence[Buffer]
    if small and not tracing.on:
        frame = frame_of_whole(to, left, slice_size, entry, packed, request)
        heard = xxhash.xxh3_64_digest(memoryview(frame)[wire.PREFIX_SIZE :])
        return WholePut(link, sock, deadline, left, (frame, cell), heard)
    span = span_of(link, "WHOLE" if small else "PUT", named(packed)) if tracing.on else None
    trace = span.carried.pack() if span is not None else b""
    if small:
        header = encode_whole(to, left, slice_size, True, entry, packed, request, trace)
        frames = wire.encode(Type.WHOLE, header, entry.length), cell
    else:
        put = Put(to, left, entry.length, packed, request, trace).encode()
        packed_entry, end = entry.pack(), End(slice_size, True).encode()
        begin = wire.encode(Type.PUT, put) + wire.encode(Type.CELL, packed_entry, entry.length)
        frames, header = (begin, cell, wire.encode(Type.END, end)), put + packed_entry + end
    return WholePut(link, sock, deadline, left, frames, xxhash.xxh3_64_digest(header), span)


class WholePut(Exchange):
    """A FragmentWriter that was told all there is. It sends again what a stale connection did not take.

    What an exchange is beside that is made only when it goes otherwise than nearly all do.
    """

    def __init__(
        self,
        link: NodeLink,
        sock: NodeSocket,
        deadline: Deadline,
        left: float,
        frames: Sequence[Buffer],
        heard: bytes,
        span: Span | None = None,
    ) -> None:
        """``sock``: just lent by the pool of ``link``; ``left``: of the deadline; ``heard``: what its node answers
        when it has all of it.

        Raises as ``send``.
        """
        self.link, self.sock, self.deadline = link, sock, deadline
        self._heard, self._ended, self._is_any, self.span = heard, False, False, span
        self._kept, self._size, self._sent_at = [], sum(map(len, frames)), deadline.expires_at - left
        self._unwatch = deadline.watch(sock.interrupt)
        base: float = link.config.base_timeout
        try:
            try:
                sock.begin(link.config.stall_timeout, min(base, left), None)
                if self._size <= REPLAY_MOST:  # as in Exchange.send
                    sock.send(*frames, limit=deadline)
                else:
                    self._become_any()
                    with self.budget.waiting(self._size) as limit:
                        sock.send(*frames, limit=limit)
            except (NodeUnavailable, TooSlow) as e:
                self._become_any()
                self._send_again(e, *frames)
        except BaseException as e:
            self._fail(e)
            raise
        self._kept = list(frames)

    def _become_any(self) -> None:
        """An exchange as any other, which goes on where this one is."""
        if not self._is_any:
            self._is_any = True
            self.budget = WaitBudget(self.link.config, self.deadline)
            self._notice, self._patient, self._for_disk = None, False, True
            self._reused, self._unsent = True, ()

    def commit(self) -> None:
        if self._size <= REPLAY_MOST:
            try:
                stored = self.sock.hear(STORED_BEGINS + self._heard)
            except BaseException as e:
                self._fail(e)
                raise
            if stored:
                self.done()
                return
            self._become_any()
            self.budget.spend(time.monotonic() - self._sent_at)
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
