"""Memory for bytes in flight: one counted pool for all transfers of a service, as reused blocks and as spools."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distfs.deadline import Deadline
from distfs.errors import Unavailable

#: Spools may have this share of the pool. A spooled body waits for a worker that then needs blocks to store it:
#: with all of the pool in spools, nobody would ever go on.
SPOOL_SHARE = 2


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """What a pool has given out, in bytes."""

    limit: int
    blocks: int  # in use
    idle: int  # in blocks that are kept for the next who asks
    spooled: int
    most: int  # blocks in use and spools, at their height
    waiting: int  # how many threads wait for a block


class BlockPool:
    """At most ``limit`` buffers of ``size`` bytes. When all are in use, whoever wants one waits: reading from
    client sockets pauses, and TCP tells the clients. Spools borrow from the same bytes and never wait."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self._condition = threading.Condition(threading.Lock())
        self._free: list[bytearray] = []
        self._limit = size * limit
        self._blocks = 0  # bytes of buffers that exist, free or in use
        self._spooled = 0
        self._most = 0
        self._waiting = 0

    def take(self, deadline: Deadline, freed: Callable[[], object] | None = None) -> Block:
        """A block with one holder; ``freed`` is called when the last lets go. Raises TooSlow, Unavailable."""
        with self._condition:
            while not self._free and self._blocks + self._spooled + self.size > self._limit:
                if (
                    not self._wait(deadline) and not self._free
                ):  # else a block came just now, only we were told
                    raise Unavailable("too many transfers at once: no memory for another block came free")
            buffer = self._free.pop() if self._free else None
            if buffer is None:
                self._blocks += self.size
            self._note_most()
        return Block(self, bytearray(self.size) if buffer is None else buffer, freed)

    def borrow(self, count: int) -> bool:
        """Count ``count`` more bytes of a spool, if there is room for them now."""
        with self._condition:
            if self._spooled + count > self._limit // SPOOL_SHARE:
                return False
            while self._free and self._blocks + self._spooled + count > self._limit:
                self._free.pop()
                self._blocks -= self.size
            if self._blocks + self._spooled + count > self._limit:
                return False
            self._spooled += count
            self._note_most()
            return True

    def repay(self, count: int) -> None:
        """``count`` borrowed bytes are no longer used."""
        with self._condition:
            self._spooled -= count
            if self._waiting:
                self._condition.notify_all()

    def usage(self) -> PoolUsage:
        with self._condition:
            idle = len(self._free) * self.size
            return PoolUsage(self._limit, self._blocks - idle, idle, self._spooled, self._most, self._waiting)

    def _wait(self, deadline: Deadline) -> bool:
        left = deadline.remaining("waiting for a free block")
        self._waiting += 1
        try:
            return self._condition.wait(left)
        finally:
            self._waiting -= 1

    def _note_most(self) -> None:
        self._most = max(self._most, self._blocks - len(self._free) * self.size + self._spooled)

    @contextlib.contextmanager
    def lent(self, deadline: Deadline) -> Iterator[memoryview]:
        """A block's memory for the length of a ``with``."""
        block = self.take(deadline)
        try:
            yield block.view
        finally:
            block.release()

    def _give_back(self, buffer: bytearray) -> None:
        with self._condition:
            self._free.append(buffer)
            self._condition.notify()


class Block:
    """A buffer from the pool, shared by those who send, hash or read it; the last to let go returns it."""

    __slots__ = ("_buffer", "_freed", "_holders", "_lock", "_pool", "view")

    def __init__(self, pool: BlockPool, buffer: bytearray, freed: Callable[[], object] | None) -> None:
        self._pool, self._buffer, self._freed = pool, buffer, freed
        self._holders = 1
        self._lock = threading.Lock()
        self.view = memoryview(buffer)

    def cut(self, n: int) -> None:
        """Only the first ``n`` bytes are the block."""
        self.view = self.view[:n]

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
        self._pool._give_back(self._buffer)
        if self._freed is not None:
            self._freed()
