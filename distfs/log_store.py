"""Lines of the log in MetaDB (``log.store: metadb``): in batches, off everybody's way, and read back from there.

A line waits in memory until a thread of its own has told MetaDB, over a connection of its own: no request waits for
it, for its connection or its transaction. While MetaDB is away the newest lines are dropped and counted.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from distfs.config.settings import Config, LogConfig, MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError, Refused
from distfs.meta import MetaDB
from distfs.process.threads import start
from distfs.telemetry.log_search import Line, Wanted
from distfs.telemetry.metrics import LOG_DROPPED

#: Lines that wait, at most, and their bytes; lines of one statement, and the longest.
MOST_LINES, MOST_BYTES, BATCH, LONGEST = 20_000, 16 << 20, 2000, 60_000
#: Seconds for which lines are gathered, after which a failure is tried again, of a statement, and of a process's end.
GATHER_S, _AGAIN_S, _LIMIT_S, _FLUSH_S = 0.5, 1.0, 10.0, 2.0
_FORGET_S = 3600.0
_TIME, _REQUEST = (re.compile(rf'"{name}": "([\w.:-]{{1,64}})"') for name in ("time", "request_id"))
_PAGE, _EVER_S = 5000, 1e9


def log_store(config: Config, *, forgets: bool = False) -> LogStore | None:
    """Where ``config`` has lines stored in MetaDB. ``forgets``: see LogStore."""
    return LogStore(config.metadb, config.log, forgets=forgets) if config.log.store == "metadb" else None


class LogStore:
    """A sink of the log, as its files are. One thread at a time writes."""

    def __init__(self, metadb: MetaDBConfig, config: LogConfig, *, forgets: bool = False) -> None:
        """``forgets``: days that are too old are removed by it, now and then; nodes have no right to."""
        self._forgets, self._forgot_at = forgets, -_FORGET_S
        self._metadb, self._config = metadb, config
        self._meta: MetaDB | None = None
        self._changed = threading.Condition()
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._busy = False  # a batch is on its way
        self._hurry = self._closed = False
        self._thread: threading.Thread | None = None
        self.dropped, self._untold, self.why = 0, 0, ""

    def write(self, text: str) -> int:
        """Never fails, never waits for MetaDB; -> how many lines were dropped before, which nobody was told yet."""
        lost = 0
        with self._changed:
            for line in text.splitlines():
                if len(self._lines) >= MOST_LINES or self._bytes >= MOST_BYTES or len(line) > LONGEST:
                    lost += 1
                    continue
                self._lines.append(line)
                self._bytes += len(line)
            if self._thread is None or not self._thread.is_alive():
                with contextlib.suppress(Busy):  # the next line tries again
                    self._thread = start(self._run, "log store")
            self._changed.notify_all()
        if lost:
            self._lost(lost, self.why or "MetaDB takes them too slowly")
            return 0
        told, self._untold = self._untold, 0
        return told

    def flush(self) -> None:
        """Return when all is told, or after a moment."""
        until = time.monotonic() + _FLUSH_S
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while (self._lines or self._busy) and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            self._hurry = False

    def close(self) -> None:
        """What still waits is lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _lost(self, count: int, why: str) -> None:
        self.dropped += count
        self._untold += count
        self.why = why
        LOG_DROPPED.add(count)

    def _run(self) -> None:
        self._meta = MetaDB(replace(self._metadb, pool_size=1))
        with contextlib.closing(self._meta):
            while batch := self._next():
                try:
                    self._tell(self._meta, batch)
                finally:
                    with self._changed:
                        self._busy = False
                        self._changed.notify_all()
                self._forget(self._meta)

    def _forget(self, meta: MetaDB) -> None:
        if self._forgets and time.monotonic() - self._forgot_at > _FORGET_S:
            self._forgot_at = time.monotonic()
            with contextlib.suppress(DistfsError):  # in an hour it is tried again
                keep, most = float(self._config.keep_for), int(self._config.max_bytes)
                meta.write("log_forget", Deadline(_LIMIT_S), keep=keep, most=most)

    def _next(self) -> list[str]:
        """The next lines to tell, after a moment for more to come; none: it is closed."""
        with self._changed:
            while not (self._lines or self._closed):
                self._changed.wait()
            until = time.monotonic() + GATHER_S
            while len(self._lines) < BATCH and not (self._hurry or self._closed):
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            if self._closed:
                return []
            batch = [self._lines.popleft() for _ in range(min(BATCH, len(self._lines)))]
            self._bytes -= sum(map(len, batch))
            self._busy = True
            return batch

    def _tell(self, meta: MetaDB, batch: list[str]) -> None:
        """Until MetaDB has it, or says that it does not take it. What may have come is told once more: rather twice
        than never."""
        columns: dict[str, Any] = {
            "most": int(self._config.max_bytes),
            "at": json.dumps([_found(_TIME, line) for line in batch]),
            "requests": json.dumps([_found(_REQUEST, line) for line in batch]),
            "texts": json.dumps([line.encode("utf-8", "replace").decode() for line in batch]),
        }
        while not self._closed:
            try:
                meta.write("log_add", Deadline(_LIMIT_S), **columns)
                return
            except Refused as e:
                self._lost(len(batch), str(e))
                return
            except DistfsError as e:
                self.why = str(e)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _AGAIN_S)


def _found(pattern: re.Pattern[str], line: str) -> str:
    found = pattern.search(line)
    return found[1] if found else "-"


def stored(metadb: MetaDBConfig, wanted: Wanted, since: float | None, deadline: Deadline) -> Iterator[Line]:
    """All that is wanted, in order of time. ``since``: a time of day before which nothing is. Raises Unavailable."""
    with contextlib.closing(MetaDB(replace(metadb, pool_size=1))) as meta:
        yield from _pages(meta, wanted, since, ("", ""), deadline)


def _pages(
    meta: MetaDB, wanted: Wanted, since: float | None, after: tuple[str, str], deadline: Deadline
) -> Iterator[Line]:
    age = (
        _EVER_S if since is None else max(0.0, time.time() - since) + 86400.0
    )  # clocks differ, and lines wait
    rows = [after]
    while rows:
        rows = [
            (at, text)
            for at, text in meta.read(
                "log_lines",
                deadline,
                age=age,
                request=wanted.request,
                needle=wanted.needle().decode(),
                since=wanted.since,
                until=wanted.until,
                after_at=rows[-1][0],
                after=rows[-1][1],
                limit=_PAGE,
            )
        ]
        for _, text in rows:
            line = wanted.read(text.encode())
            if line is not None:
                yield line
        if len(rows) < _PAGE:
            return
