"""The body of an answer that is a file, or ranges of one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack

from distfs.deadline import Deadline
from distfs.model import File
from distfs.routes.messages import Request
from distfs.routes.ranges import ByteRanges, Span
from distfs.services import Services

#: Of the last two blocks: no more than one view is ever unsent.
_ENDS = 3


class FileBody:
    """The bytes of an answer, each block checked before it leaves. The first is read when it is made.

    Views for our own server, bytes for others, which may keep them for a while. A client that reads slowly holds no
    block and no connection to a node: our server calls ``rewind``, and what was not sent is read again. From then on
    so much is asked of a node at a time as was taken before, beginning with one block, or nodes would fill their
    sockets for nothing.
    """

    def __init__(
        self,
        services: Services,
        request: Request,
        file: File,
        spans: list[Span],
        parts: ByteRanges | None,
        deadline: Deadline,
    ) -> None:
        """Raises TooMany, and what Downloader.read raises."""
        self._services, self._file, self._spans, self._parts = services, file, spans, parts
        self._deadline = deadline
        self._share = services.bandwidth.transfer(request.caller, "out")
        self._as_views = bool(request.environ.get("distfs.writes_views"))
        self._given = self._last = 0  # bytes in all, and by the last view
        self._counted = ExitStack()
        # Blocks to ask for at a time; 0: all there are. While others wait, theirs come before a second of this.
        self._stretch = 1 if request.environ.get("distfs.crowded") else 0
        self._views: Iterator[memoryview] | None = None
        self._first: bytes | memoryview | None = None
        try:
            self._counted.enter_context(services.admission.callers.download(request.caller))
            self._first = next(self, None)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes | memoryview]:
        return self

    def __next__(self) -> bytes | memoryview:
        view, self._first = self._first, None
        if view is not None:
            return view
        if self._views is None:
            self._views = self._open(self._given)
        view = next(self._views)
        self._last = len(view)
        self._given += self._last
        return view if self._as_views else bytes(view)

    def rewind(self, count: int) -> None:
        """The last ``count`` bytes were not sent: let go of everything, and give them again when asked."""
        self._let_go()
        self._given -= count
        self._share.give_back(min(count, self._last))
        self._stretch = 1

    def close(self) -> None:
        """Whoever hangs up early gets the nodes' connections released."""
        self._let_go()
        self._share.close()
        self._counted.close()

    def _let_go(self) -> None:
        views, self._views = self._views, None
        if close := getattr(views, "close", None):
            close()

    def _open(self, at: int) -> Iterator[memoryview]:
        """The bytes from ``at`` on."""
        if self._parts:
            views = self._parts.body(self._read, at)
        else:
            start, stop = self._spans[0]
            views = self._read(Span(start + at, stop))
        return self._services.bandwidth.outgoing(views, self._share, self._deadline)

    def _read(self, span: Span) -> Iterator[memoryview]:
        start, size = span.start, self._file.block_size
        while start < span.stop:
            stop = (start // size + self._stretch) * size if self._stretch else span.stop
            stop = min(stop, span.stop)
            yield from self._services.downloader.read(self._file, start, stop, self._deadline)
            start, self._stretch = stop, 2 * self._stretch


class FramesBody(FileBody):
    """A whole file as it is stored: a frame of zstd for each block. Bytes are counted as they leave."""

    def __init__(self, services: Services, request: Request, file: File, deadline: Deadline) -> None:
        self._oldest = 0  # a block
        self._ends = [0]  # where in the body it begins, and where it and those behind it end that were given
        super().__init__(services, request, file, [Span(0, file.size)], None, deadline)

    def _open(self, at: int) -> Iterator[memoryview]:
        views = self._frames(at)
        return self._services.bandwidth.outgoing(views, self._share, self._deadline)

    def _frames(self, at: int) -> Iterator[memoryview]:
        if at < self._ends[0]:
            self._oldest, self._ends = 0, [0]
        known = bisect_right(self._ends, at) - 1
        del self._ends[known + 1 :]
        number = self._oldest + known
        size, blocks = self._file.block_size, -(-self._file.size // self._file.block_size)
        while number < blocks:
            stop = min(number + self._stretch, blocks) if self._stretch else blocks
            span = number * size, min(stop * size, self._file.size)
            for frame in self._services.downloader.frames(self._file, *span, self._deadline):
                begins = self._ends[-1]
                self._ends.append(begins + len(frame))
                if len(self._ends) > _ENDS:
                    del self._ends[0]
                    self._oldest += 1
                yield frame[max(0, at - begins) :]
            number, self._stretch = stop, 2 * self._stretch
