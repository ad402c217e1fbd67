"""Memory for bytes in flight: one counted pool for all transfers of a service, as reused blocks and as spools."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distfs.body.source import Source
from distfs.deadline import Deadline
from distfs.errors import Unavailable

#: With this share of the pool in use it is crowded.
CROWDED_SHARE = 8
#: Spools may have this share of the pool. A spooled body waits for a worker that then needs blocks to store it:
#: with all of the pool in spools, nobody would ever go on.
SPOOL_SHARE = 2


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """What a pool has given out, in bytes."""

    limit: int
    blocks: int  # in use, with what their cells take beside
    idle: int  # in blocks that are kept for the next who asks
    spooled: int
    most: int  # blocks in use and spools, at their height
    waiting: int  # how many threads wait for a block


class BlockPool:
    """At most ``limit`` buffers of ``size`` bytes, or others of as many bytes. When all are in use, whoever wants
    one waits: reading from client sockets pauses, and TCP tells the clients. Spools borrow from the same bytes and
    never wait, nor does a read that is hedged."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self._condition = threading.Condition(threading.Lock())
        self._free: list[bytearray] = []
        self._limit = size * limit
        self._blocks = 0  # bytes of buffers that exist, free or in use
        self._spooled = 0
        self._most = 0
        self._beside = 0  # bytes of cells that are no part of their block
        self._line: deque[object] = deque()  # who waits for a block, first come first served

    def take(
        self,
        deadline: Deadline,
        freed: Callable[[], object] | None = None,
        beside: int = 0,
        size: int | None = None,
    ) -> Block:
        """A block with one holder, for who has waited longest; ``freed`` is called when the last lets go.

        ``beside``: bytes that its cells take, as long as it is held; ``size``: of a block of another size,
        of a file that was written under another configuration. Raises TooSlow, Unavailable.
        """
        size = self.size if size is None else size
        with self._condition:
            at_once = not self._line and self._has_room(size + beside)
            buffer = self._lend(size, beside) if at_once else None
        if not at_once:
            with deadline.waking(self._condition), self._condition:
                self._wait_in_line(deadline, size + beside)
                buffer = self._lend(size, beside)
        try:
            return Block(self, bytearray(size) if buffer is None else buffer, freed, beside)
        except MemoryError:
            self._forget(size, beside)
            raise

    def _lend(self, size: int, beside: int) -> bytearray | None:
        """Count one more block as in use; -> an idle one, or None: it has to be made."""
        buffer = self._free.pop() if self._free and size == self.size else None
        if buffer is None:
            self._blocks += size
        self._beside += beside
        self._make_room_for(0)
        self._note_most()
        return buffer

    def _has_room(self, count: int) -> bool:
        """For ``count`` bytes more; who is alone gets them however many."""
        used = self._used()
        return used == 0 or used + count <= self._limit

    def _used(self) -> int:
        return self._blocks - len(self._free) * self.size + self._beside + self._spooled

    def _make_room_for(self, count: int) -> None:
        """Let go of idle blocks, so that ``count`` more bytes are within the limit."""
        while self._free and self._blocks + self._beside + self._spooled + count > self._limit:
            self._free.pop()
            self._blocks -= self.size

    def _wait_in_line(self, deadline: Deadline, count: int) -> None:
        me = object()
        self._line.append(me)
        try:
            while self._line[0] is not me or not self._has_room(count):
                left = deadline.remaining("waiting for a free block")
                if not self._condition.wait(left) and not (self._line[0] is me and self._has_room(count)):
                    raise Unavailable(
                        "too many transfers at once: no memory for another block came free (storage.memory_budget): "
                        "try again soon"
                    )
        finally:
            self._line.remove(me)
            self._condition.notify_all()

    @property
    def crowded(self) -> bool:
        """Whether who takes a block for long takes it from others."""
        return bool(self._line) or self._used() * CROWDED_SHARE >= self._limit

    @property
    def most_spooled(self) -> int:
        """Bytes that may be borrowed in all."""
        return self._limit // SPOOL_SHARE

    def borrow(self, count: int) -> bool:
        """Count ``count`` more bytes of a spool, or of a cell that is read twice, if there is room for them now."""
        with self._condition:
            if self._spooled + count > self.most_spooled:
                return False
            self._make_room_for(count)
            if self._used() + count > self._limit:
                return False
            self._spooled += count
            self._note_most()
            return True

    def repay(self, count: int) -> None:
        """``count`` borrowed bytes are no longer used."""
        with self._condition:
            self._spooled -= count
            self._tell_line()

    def usage(self) -> PoolUsage:
        with self._condition:
            idle = len(self._free) * self.size
            return PoolUsage(
                self._limit,
                self._blocks - idle + self._beside,
                idle,
                self._spooled,
                self._most,
                len(self._line),
            )

    def _note_most(self) -> None:
        self._most = max(self._most, self._used())

    @contextlib.contextmanager
    def lent(self, deadline: Deadline, beside: int = 0, size: int | None = None) -> Iterator[memoryview]:
        """A block's memory for the length of a ``with``; as ``take``."""
        block = self.take(deadline, beside=beside, size=size)
        try:
            yield block.view
        finally:
            block.release()

    def _give_back(self, buffer: bytearray, beside: int) -> None:
        with self._condition:
            if len(buffer) == self.size:
                self._free.append(buffer)
            else:
                self._blocks -= len(buffer)
            self._beside -= beside
            self._tell_line()

    def _forget(self, size: int, beside: int) -> None:
        """A block that was counted and could not be made."""
        with self._condition:
            self._blocks -= size
            self._beside -= beside
            self._tell_line()

    def _tell_line(self) -> None:
        if self._line:
            self._condition.notify_all()


class Block:
    """A buffer from the pool, shared by those who send, hash or read it; the last to let go returns it."""

    __slots__ = ("_beside", "_buffer", "_freed", "_holders", "_lock", "_pool", "view")

    def __init__(
        self, pool: BlockPool, buffer: bytearray, freed: Callable[[], object] | None, beside: int
    ) -> None:
        self._pool, self._buffer, self._freed, self._beside = pool, buffer, freed, beside
        self._holders = 1
        self._lock = threading.Lock()
        self.view = memoryview(buffer)

    def cut(self, n: int) -> None:
        """Only the first ``n`` bytes are the block."""
        self.view = self.view[:n]

    def fill(self, source: Source) -> None:
        """With what comes next of a source. Let go of when that fails."""
        try:
            self.cut(source.readinto(self.view))
        except BaseException:
            self.release()
            raise

    def hold(self, more: int = 1) -> None:
        """``more`` further holders."""
        with self._lock:
            self._holders += more

    def release(self) -> None:
        """One holder less; the last must not touch ``view`` afterwards."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._pool._give_back(self._buffer, self._beside)
        if self._freed is not None:
            self._freed()
