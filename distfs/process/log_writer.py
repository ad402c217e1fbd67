"""Log lines written aside: who logs hands a line over, and a thread writes what has come together at once.

A request would else wait for whoever reads the log, and pay for each line with system calls and a switch of threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO

from distfs.errors import Busy
from distfs.process.threads import start

#: Lines that come within so long are written together.
GATHER_S = 0.02
#: Lines that wait to be written, at most: some MB. What comes on top is dropped, and counted.
MOST_LINES = 10_000
#: So many bytes a pipe takes at once, or nothing of them: lines of several processes are not mixed.
_AT_ONCE = 4096
#: Seconds that a process's end waits for a slow reader, besides those for the piece that is on its way.
FLUSH_S = 2.0
#: The attribute of a record that says which request it is of: another thread writes it.
REQUEST_ID = "_request_id"


_PLAIN = logging.Formatter()


class File(Protocol):
    """Where lines are kept. ``write`` never fails; -> how many lines were dropped before, and ``why``."""

    why: str

    @property
    def dropped(self) -> int: ...

    def write(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that has each line, too, as ``formatter`` makes it."""

    file: File
    formatter: logging.Formatter


#: What makes a line by a formatter.
Facts = Callable[[logging.Formatter], str]
#: What waits: what a line is made of, or a line as the stream has it, and as it is kept.
Entry = logging.LogRecord | Facts | tuple[str, str]


class LineWriter(logging.Handler):
    """Thread-safe; keeps the order in which lines were handed over. Its thread starts with the first.

    ``flush`` returns when all that came before is written, or dropped because its reader is too slow; the interpreter
    calls it at its end.
    """

    def __init__(
        self,
        stream: TextIO,
        context: Callable[[], str],
        kept: Kept | None = None,
        lost: Callable[[], object] = lambda: None,
    ) -> None:
        """``context``: the id of the request that the calling thread works for. ``kept``: where lines go, too;
        ``lost`` is called for each that is dropped before it comes there."""
        super().__init__()
        self._stream, self._context, self._kept, self._lost = stream, context, kept, lost
        self._keep: list[str] = []  # lines on their way there; under ``_writing``
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lines: deque[Entry] = deque()
        self._waking = False  # the thread was told, and has not begun to look
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be put to by a signal's handler
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a signal's handler may log
        self._dropped = 0  # lines in all; changed under it
        self._told = 0  # of how many of them; changed under ``_writing``
        os.register_at_fork(after_in_child=self._forked)

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the handler's lock: who logs adds to a deque, mostly nothing else."""
        wanted = not self.filters or bool(self.filter(record))
        if wanted:
            self.emit(record)
        return wanted

    def emit(self, record: logging.LogRecord) -> None:
        record.__dict__[REQUEST_ID] = self._context()
        # What a line is about may be another by the time it is written; an access log's facts stay.
        at_once = record.args or record.exc_info
        self.add(self._made(record) if at_once else record)

    def add(self, entry: Entry) -> None:
        """One more line: as it is, or what it is made of when it is written."""
        if len(self._lines) >= MOST_LINES:
            with self._lock:
                self._dropped += 1
            self._lost()
            return
        self._lines.append(entry)
        if not self._waking:
            self._waking = True
            self._wake.put(None)
            with self._lock:
                self._begin()

    def flush(self) -> None:
        end = time.monotonic() + FLUSH_S
        while (left := end - time.monotonic()) > 0 and self._writing.acquire(timeout=left):
            if not self._write_and_release():
                return
        self._drop()
        if self._writing.acquire(blocking=False):  # else its holder says it
            self._write_and_release()

    def _begin(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        try:
            self._thread = start(self._run, "log")
        except Busy:  # no thread to be had: who logs writes, and the next one tries again
            self._waking = False
            self.flush()

    def _run(self) -> None:
        while True:
            self._wake.get()
            time.sleep(GATHER_S)
            self._waking = False
            more = True
            while more:
                self._writing.acquire()
                more = self._write_and_release()

    def _write_and_release(self) -> bool:
        """Write what goes out at once; -> whether there was anything. Who calls has the lock ``_writing``."""
        try:
            text = self._next()
            if text:
                self._out(text)
            return bool(text)
        finally:
            self._writing.release()

    def _next(self) -> str:
        """The lines that are written next, as many as go at once; nothing when all are."""
        text, size = "", 0
        while self._lines:
            try:
                entry = self._lines.popleft()
            except IndexError:  # they were dropped just now
                break
            line, keep = made = entry if isinstance(entry, tuple) else self._made(entry)
            size += len(line) if line.isascii() else len(line.encode(self._encoding, "backslashreplace"))
            if text and size > _AT_ONCE:
                self._lines.appendleft(made)
                return text
            text += line
            self._keep.append(keep)
        if dropped := self._dropped - self._told:
            self._told += dropped
            text += self._add_now(
                _said("%d lines of the log were dropped here: it is read too slowly", dropped)
            )
        return text

    def _add_now(self, record: logging.LogRecord) -> str:
        line, keep = self._made(record)
        self._keep.append(keep)
        return line

    def _drop(self) -> None:
        """Give up what waits to be written."""
        with self._lock, contextlib.suppress(IndexError):
            while True:
                self._lines.popleft()
                self._dropped += 1
                self._lost()

    def _made(self, entry: logging.LogRecord | Facts) -> tuple[str, str]:
        """A line as the stream has it, and as it is kept."""
        shown = self._line(entry, self.formatter or _PLAIN)
        if self._kept is None or self._kept.formatter is self.formatter:
            return shown, shown
        return shown, self._line(entry, self._kept.formatter)

    def _line(self, entry: logging.LogRecord | Facts, formatter: logging.Formatter) -> str:
        try:
            return (
                formatter.format(entry) if isinstance(entry, logging.LogRecord) else entry(formatter)
            ) + "\n"
        except Exception as e:  # noqa: BLE001 - one line must neither end the log nor who logs
            return f"a line of the log cannot be written, by a bug: {e!r}\n"

    def _out(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody is there to be told
        kept, self._keep = "".join(self._keep), []
        if self._kept is not None and (dropped := self._kept.file.write(kept)):
            self._lines.appendleft(self._made(drops(dropped, self._kept.file.why)))

    @property
    def dropped(self) -> int:
        """How many lines were, in all: by who reads too slowly, or by the disk."""
        return self._dropped + (self._kept.file.dropped if self._kept is not None else 0)

    def _forked(self) -> None:
        """The thread stayed with the parent, and so did what it is to write."""
        self._lines.clear()
        self._keep = []
        self._waking, self._thread = False, None
        self._dropped = self._told = 0
        self._wake, self._writing, self._lock = queue.SimpleQueue(), threading.Lock(), threading.RLock()


def drops(lines: int, why: str) -> logging.LogRecord:
    """What is said when lines can be written again."""
    return _said("%d lines of the log were dropped here: %s", lines, why)


def _said(message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord("distfs.log", logging.WARNING, "", 0, message, values, None)
