"""A request's body as `wsgi.input`: read by its worker from the client's socket, or received whole before.

Both fill a caller's view entirely unless the body ends inside it, as Source says.
"""

from __future__ import annotations

import io
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any, Protocol

from distfs.config.settings import KIB, HttpConfig
from distfs.errors import BodyCutShort, ClientGone, ConfigError, DistfsError
from distfs.host.client_socket import ClientSocket
from distfs.host.http1 import Parser
from distfs.host.http1_events import Failed

#: Chunks are read through a buffer, so that small ones do not cost a system call each. It grows for who fills it.
LEAST_BUFFER, RAW_BUFFER = 16 * KIB, 256 * KIB
#: What is put aside at once.
PIECE = 64 * KIB
#: What is read of a body its app left unread, to keep the connection: its end is often all that is missing.
LOOK_AHEAD = 64 * KIB
LOOK_AHEAD_SECONDS = 0.1
PEEK = 8 * KIB
#: Memory for a body that comes slowly is borrowed in steps as its bytes come, each as long as all before it, from the
#: first size to the second: what was only announced takes none, so that clients who send slowly, or nothing, cannot
#: use it up.
LEAST_STEP, STEP = 2 * KIB, 64 * KIB

#: A body of which as much is under way within so long comes fast.
FAST, FAST_S = 64 * KIB, 0.06
_LOOK_S = 0.01
#: So many bodies are received where they are wanted, however slowly they come; the others are put aside, and so many
#: of those are stored at once.
DIRECT, STORING = 32, 32
_STORING_LOOK_S = 1.0  # how often who waits for that looks whether his client is there

CUT_SHORT = "the connection closed before the body's end: send it again, all of it"


class Memory(Protocol):
    """What bodies on their way in share with whatever else is in flight. Thread-safe."""

    @property
    def crowded(self) -> bool:
        """Whether who takes some for long takes it from others."""

    def borrow(self, count: int) -> bool:
        """Count so many bytes more, if there is room for them."""

    def repay(self, count: int) -> None: ...


class OwnMemory(Memory):
    """For an app that brings none: so much, for nothing else."""

    def __init__(self, most: int) -> None:
        self._most, self.used = most, 0
        self._lock = threading.Lock()

    @property
    def crowded(self) -> bool:
        return False

    def borrow(self, count: int) -> bool:
        with self._lock:
            fits = self.used + count <= self._most
            self.used += count if fits else 0
            return fits

    def repay(self, count: int) -> None:
        with self._lock:
            self.used -= count


class PutAside:
    """Where bodies that come slowly are put aside, and when that is to be done."""

    def __init__(self, http: HttpConfig, memory: Memory) -> None:
        """Raises ConfigError when the folder takes no file."""
        self._memory = memory
        self._lock = threading.Lock()
        self._direct = 0  # bodies that have entered
        self.storing = threading.Semaphore(STORING)
        self._folder = http.spool_dir or tempfile.gettempdir()
        try:
            self._open().close()
        except OSError as e:
            raise ConfigError(
                f"bodies cannot be put aside in {self._folder}: {e.strerror}; set http.spool_dir to a folder "
                "this process may write to"
            ) from e

    @property
    def crowded(self) -> bool:
        return self._memory.crowded

    def enter(self) -> bool:
        """Whether a body may be received where it is wanted, however slowly it comes; until ``leave``."""
        with self._lock:
            if self._direct >= DIRECT:
                return False
            self._direct += 1
            return True

    def leave(self) -> None:
        with self._lock:
            self._direct -= 1

    def open(self) -> IO[bytes] | None:
        """A nameless temp file; None: there is none to be had."""
        try:
            return self._open()
        except OSError:
            return None

    def _open(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder, buffering=0)


def _is_written(file: IO[bytes], data: memoryview) -> bool:
    """All of it. Else none of it: the disk is full."""
    at = file.tell()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.seek(at)
        return False
    return True


class StreamedBody(io.RawIOBase):
    """The body of a request whose worker has the client's socket. ``invite`` sends `100 Continue`.

    ``readinto`` is Source's; read, readline and iteration come from it, for any WSGI app. An error stays: every
    later read raises it again.
    """

    def __init__(
        self,
        client: ClientSocket,
        parser: Parser,
        begun: bytes,
        invite: Callable[[], None] | None,
        put: PutAside,
        waits: Callable[[], None],
    ) -> None:
        """``begun``: data that was taken from the parser already; ``put``: where ``collect`` may put more; ``waits``:
        called before it waits for the client."""
        super().__init__()
        self._client = client
        self._parser = parser
        self._buffer: bytearray | None = None
        self._seen = begun  # data looked at and not yet asked for
        self._put, self._waits = put, waits
        self._aside: IO[bytes] | None = None  # what was collected; _aside_left bytes of it are to be read
        self._aside_left = 0
        self._behind = b""  # data that comes behind that
        self._invite = None if begun or parser.has_more else invite
        self._error: DistfsError | None = None
        self._leave: Callable[[], object] | None = None  # gives back its place among DIRECT or STORING

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        target = memoryview(view)
        got = min(len(target), len(self._seen))
        if got:
            target[:got] = self._seen[:got]
            self._seen = self._seen[got:]
        while got < len(target) and (count := self._next(target[got:])):
            got += count
        return got

    def readall(self) -> bytes:
        parts = []
        while part := self.read(LOOK_AHEAD):
            parts.append(part)
        return b"".join(parts)

    def peek(self, _size: int = 0) -> bytes:
        """Data that comes next, without taking it; readline asks for it, to find the line's end."""
        if not self._seen:
            data = bytearray(PEEK)
            count = self._next(memoryview(data))
            self._seen = bytes(data[:count])
        return self._seen

    def look_ahead(self) -> bool:
        """Whether all of the body has come, after reading a little of what the app has left unread."""
        parser = self._parser
        if self._invite or self._error or (parser.exact and parser.data_left > LOOK_AHEAD):
            return parser.ended
        give_up = time.monotonic() + LOOK_AHEAD_SECONDS
        data, got = memoryview(bytearray(LOOK_AHEAD)), 0
        try:
            while not parser.ended and got < len(data) and (left := give_up - time.monotonic()) > 0:
                with self._client.impatient(left):
                    got += self._some(data[got:])
        except ClientGone:
            pass  # it has not come in that time
        except DistfsError as e:
            self._error = e
        self._seen += bytes(data[:got])
        return parser.ended

    def _next(self, view: memoryview) -> int:
        if self._aside_left and self._aside is not None:
            count = self._aside.readinto(view[: self._aside_left])  # type: ignore[attr-defined]
            self._aside_left -= count
            return int(count)
        if self._behind:
            count = min(len(view), len(self._behind))
            view[:count] = self._behind[:count]
            self._behind = self._behind[count:]
            return count
        if self._error:
            raise self._error
        return self._some_or_fail(view)

    def _some_or_fail(self, view: memoryview) -> int:
        """``_some``, whose error stays."""
        try:
            return self._some(view)
        except DistfsError as e:
            self._error = e
            raise

    # --- a body that comes slowly -----------------------------------------------------------------

    def collect(self, size: int, begins: bool) -> None:
        """Before memory is taken for the next ``size`` bytes; ``begins``: and nodes. When there are too many that
        hold those while their clients send, or these bytes come slowly and others need memory, they are put aside,
        in a temp file, until all of them are there.

        Raises what reading them raises.
        """
        if self._aside_left or self._behind or self._error or self._parser.ended:
            return
        if begins:
            self._give_back_place()
            if self._put.enter():
                self._leave = self._put.leave
                if not self._put.crowded or self._comes_fast():
                    return
        elif not self._put.crowded or (self._leave is not None and self._comes_fast()):
            return  # all of what is no longer than a block is put aside: who is quick at first may be slow then
        aside = self._aside = self._aside or self._put.open()
        if aside is None:
            return  # then they are received where they are wanted
        aside.seek(0)
        aside.truncate()
        try:
            self._collect(size, aside)
        finally:
            aside.seek(0)
        if self._leave is None:  # who is a file of one block, too: a thousand of them may end at once
            while not self._put.storing.acquire(timeout=_STORING_LOOK_S):
                self._client.check()
            self._leave = self._put.storing.release

    def _give_back_place(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def _comes_fast(self) -> bool:
        parser = self._parser
        enough = (min(FAST, parser.data_left) if parser.exact else FAST) - parser.at_hand
        give_up = time.monotonic() + FAST_S
        while self._client.waiting() < enough:
            if time.monotonic() >= give_up:
                return False
            time.sleep(_LOOK_S)
        return True

    def _collect(self, size: int, aside: IO[bytes]) -> None:
        while (left := size - self._aside_left) > 0:
            self._await(left)
            piece = memoryview(bytearray(min(left, PIECE)))
            count = self._some_or_fail(piece)
            if not count:
                return
            if not _is_written(aside, piece[:count]):
                self._behind = bytes(piece[:count])
                return
            self._aside_left += count
            del piece

    def _await(self, size: int) -> None:
        """Wait for the next of ``size`` bytes before there is memory for them: a thousand may wait."""
        parser = self._parser
        if parser.exact and not parser.has_more:
            self._ask()
            self._client.gather(min(size, parser.data_left))

    def close(self) -> None:
        self._give_back_place()
        if self._aside is not None:
            self._aside.close()
        super().close()

    def _some(self, view: memoryview) -> int:
        """At least one byte of data into ``view``; 0 at the body's end."""
        parser = self._parser
        while not parser.ended:
            if not parser.has_more:
                wanted = min(parser.data_left, len(view))
                if wanted and (parser.exact or wanted >= RAW_BUFFER):
                    count = self._receive(view[:wanted], wanted)
                    parser.took(count)
                    return count
                self._refill()
            event = parser.next_event(len(view))
            if isinstance(event, memoryview):
                view[: len(event)] = event
                return len(event)
            if isinstance(event, Failed):
                raise event.error
        return 0

    def _refill(self) -> None:
        if self._buffer is None:
            self._buffer = bytearray(LEAST_BUFFER)
        count = self._receive(memoryview(self._buffer))
        self._parser.receive(self._buffer, count)
        if count == len(self._buffer) < RAW_BUFFER:
            self._buffer = bytearray(4 * count)  # for the next time

    def _ask(self) -> None:
        self._waits()
        if self._invite:
            invite, self._invite = self._invite, None
            invite()

    def _receive(self, view: memoryview, coming: int = 1) -> int:
        """``coming``: bytes that belong to the body for sure."""
        self._ask()
        count = self._client.receive_into(view, coming)
        if not count:
            raise BodyCutShort(CUT_SHORT)
        return count


class SmallBody:
    """A body on its way in, in memory: of what is lent to it, once it has to wait for more."""

    __slots__ = ("_borrowed", "_data", "_memory")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._borrowed = 0
        self._data: bytes | bytearray = b""

    @property
    def received(self) -> int:
        return len(self._data)

    def add(self, data: memoryview) -> None:
        if not self._data:
            self._data = bytes(data)
        elif isinstance(self._data, bytes):
            self._data = bytearray(self._data) + data
        else:
            self._data += data

    def borrow(self, left: int) -> bool:
        """Before it waits, for what it has and some of the ``left`` bytes that come; whether there was as much."""
        needed = self.received + min(STEP, left, max(LEAST_STEP, self.received))
        needed += needed >> 3  # what it takes in advance when it grows
        if needed > self._borrowed:
            if not self._memory.borrow(needed - self._borrowed):
                return False
            self._borrowed = needed
        return True

    def value(self) -> bytes:
        """All that came; it keeps none of it."""
        data, self._data = bytes(self._data), b""
        return data

    def close(self) -> None:
        """Once or more often."""
        borrowed, self._borrowed = self._borrowed, 0
        self._data = b""
        if borrowed:
            self._memory.repay(borrowed)
