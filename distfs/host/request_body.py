"""A request's body as `wsgi.input`: read by a worker from the client's socket, or spooled by the loop.

Both fill a caller's view entirely unless the body ends inside it, as Source says.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import IO, Any

from distfs.config.settings import KIB, HttpConfig
from distfs.errors import BodyCutShort, Busy, ClientGone, ConfigError, DistfsError, Full
from distfs.host.client_socket import ClientSocket
from distfs.host.http1 import Failed, Parser, Pause
from distfs.process import descriptors
from distfs.transfer.blocks import SPOOL_SHARE, BlockPool

#: Chunks are read through a buffer of this size, so that small ones do not cost a system call each.
RAW_BUFFER = 256 * KIB
#: What is read of a body its app left unread, to keep the connection: its end is often all that is missing.
LOOK_AHEAD = 64 * KIB
LOOK_AHEAD_SECONDS = 0.1
PEEK = 8 * KIB
#: Without a service's pool, spooled bodies together take this many times ``memory_buffer``.
SPOOLS_IN_MEMORY = 4
#: Memory for a spool is borrowed in steps of this size, as its bytes come: a body that was only announced takes
#: none, so that clients who send slowly, or nothing, cannot use it up.
SPOOL_STEP = 64 * KIB

CUT_SHORT = "the connection closed before the body's end: send it again, all of it"


class StreamedBody(io.RawIOBase):
    """The body of a request whose worker has the client's socket. ``invite`` sends `100 Continue`.

    ``readinto`` is Source's; read, readline and iteration come from it, for any WSGI app. An error stays: every
    later read raises it again.
    """

    def __init__(self, client: ClientSocket, parser: Parser, invite: Callable[[], None] | None) -> None:
        """``parser``: has given the request's head, and may have more of what came with it."""
        super().__init__()
        self._client = client
        self._parser = parser
        self._buffer: bytearray | None = None
        self._seen = b""  # data looked at and not yet asked for
        self._invite = None if parser.has_more else invite
        self._error: DistfsError | None = None

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
        if parser.ended:
            parser.next_event()  # tells the end, where the app has not come to it
        return parser.ended

    def _next(self, view: memoryview) -> int:
        if self._error:
            raise self._error
        try:
            return self._some(view)
        except DistfsError as e:
            self._error = e
            raise

    def _some(self, view: memoryview) -> int:
        """At least one byte of data into ``view``; 0 at the body's end."""
        parser = self._parser
        while True:
            event = parser.next_event(len(view))
            if isinstance(event, memoryview):
                view[: len(event)] = event
                return len(event)
            if isinstance(event, Failed):
                raise event.error
            if event is not Pause.NEED_DATA:
                return 0
            wanted = min(parser.data_left, len(view))
            if wanted and (parser.exact or wanted >= RAW_BUFFER):
                count = self._receive(view[:wanted])
                parser.took(count)
                return count
            self._refill()

    def _refill(self) -> None:
        if self._buffer is None:
            self._buffer = bytearray(RAW_BUFFER)
        self._parser.receive(self._buffer, self._receive(memoryview(self._buffer)))

    def _receive(self, view: memoryview) -> int:
        if self._invite:
            invite, self._invite = self._invite, None
            invite()
        count = self._client.receive_into(view)
        if not count:
            raise BodyCutShort(CUT_SHORT)
        return count


class Spooler:
    """Keeps whole bodies until their request is served: in memory, or in nameless temp files."""

    def __init__(self, config: HttpConfig, pool: BlockPool | None = None) -> None:
        """``pool``: the memory; None: some of its own. Raises ConfigError when the spool folder takes no file."""
        self.pool = pool or BlockPool(config.memory_buffer, SPOOLS_IN_MEMORY * SPOOL_SHARE)
        self.memory_each = min(config.memory_buffer, self.pool.most_spooled)
        self._folder = config.spool_dir or tempfile.gettempdir()
        try:
            self.open_file().close()
        except OSError as e:
            raise ConfigError(
                f"bodies cannot be spooled in {self._folder}: {e.strerror}; set http.spool_dir to a folder "
                "this process may write to"
            ) from e

    def spool(self, length: int = 0) -> Spool:
        """A place for one body of ``length`` bytes; 0: not known.

        Raises Full, Busy when a temp file is needed and cannot be made.
        """
        return Spool(length, self)

    def open_file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._folder)


class Spool:
    """One body on its way into a Spooler.

    Its bytes are in memory for as long as the pool lends it some and it needs no more than ``memory_buffer``.
    """

    def __init__(self, length: int, spooler: Spooler) -> None:
        self._spooler = spooler
        self._file: io.BytesIO | IO[bytes] = io.BytesIO()
        self._in_memory = True
        self._borrowed = 0
        self._length = 0
        if length > spooler.memory_each:
            try:
                self._move_to_disk()
            except OSError as e:
                raise _no_room(e) from e

    def write(self, data: memoryview, to_come: int) -> None:
        """``to_come``: bytes that follow for certain. Raises Full, Busy."""
        try:
            self._make_room(len(data), to_come)
            self._file.write(data)
        except OSError as e:
            raise _no_room(e) from e
        self._length += len(data)

    def __len__(self) -> int:
        return self._length

    def getfile(self) -> Any:
        """The body from its beginning, with readinto."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Once or more often."""
        self._file.close()
        self._repay()

    def _make_room(self, more: int, to_come: int) -> None:
        """For ``more`` bytes, in memory if they may be there. Raises OSError."""
        if not self._in_memory:
            return
        needed = self._length + more
        needed += needed >> 3  # what BytesIO takes in advance when it grows
        step = min(SPOOL_STEP, more + to_come)
        if needed <= self._borrowed:
            return
        wanted = max(needed - self._borrowed, step)
        if self._length + more <= self._spooler.memory_each and self._spooler.pool.borrow(wanted):
            self._borrowed += wanted
        else:
            self._move_to_disk()

    def _move_to_disk(self) -> None:
        memory, self._file = self._file, self._spooler.open_file()
        self._in_memory = False
        memory.seek(0)
        shutil.copyfileobj(memory, self._file, SPOOL_STEP)
        memory.close()
        self._repay()

    def _repay(self) -> None:
        borrowed, self._borrowed = self._borrowed, 0
        if borrowed:
            self._spooler.pool.repay(borrowed)


def _no_room(error: OSError) -> DistfsError:
    if descriptors.used_up(error):
        return Busy(f"no file to keep the body in until a worker is free: {descriptors.in_words(error)}")
    return Full(f"no room to keep the body until a worker is free: {error.strerror}; try again later")
