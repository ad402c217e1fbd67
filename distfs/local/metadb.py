"""``distfs up``'s own MetaDB: an embedded PostgreSQL, kept running, with room on its disk.

All is done by the one thread of ``up``, between other things. A process between the two would cost as much memory as
a storage node; PostgreSQL is told by the system when ``up`` has ended (``metadb/unprivileged.py``).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

from distfs.deadline import Deadline
from distfs.errors import ConfigError, DistfsError
from distfs.local.supervisor import BACKOFF_FIRST_S, BACKOFF_MOST_S
from distfs.metadb.ballast import LEAST_SEGMENTS, Ballast, is_for_want_of_room
from distfs.metadb.driver import DatabaseError
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import BROKEN, Link
from distfs.metadb.url import MetaURL

log = logging.getLogger("distfs.metadb")

_LOOK_EVERY_S = 0.25
_LOG_NAME = 24  # hexadecimal digits
_LAY_LIMIT_S = 10.0


class OwnMetaDB:
    """PostgreSQL in one folder, for as long as this process."""

    def __init__(self, folder: Path, lock: int, pause: Callable[[float], object]) -> None:
        """``lock``: a descriptor that PostgreSQL inherits. ``pause``: how a start waits; what it raises ends it."""
        self._postgres = EmbeddedPostgres(folder, follow=[lock], pause=pause)
        self._ballast = Ballast(folder)
        self._look_at = self._due = 0.0
        self._backoff = BACKOFF_FIRST_S

    def start(self) -> None:
        """Raises ConfigError when it cannot be started, and what ``pause`` raises."""
        self._with_room(self._postgres.start)
        self._ballast.look()  # a new folder had none: the disk may be full before there is time for the next look

    def keep_running(self) -> None:
        """One look at its disk, and at PostgreSQL: start it again when it died."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        self._ballast.look()
        if self._postgres.running() or now < self._due:
            return
        log.warning("PostgreSQL died; starting it again")
        try:
            self._with_room(self._postgres.ensure_running)
            self._backoff = BACKOFF_FIRST_S
        except (ConfigError, OSError) as e:
            log.error("%s; trying again in %g s", e, self._backoff)
            self._due = time.monotonic() + self._backoff
            self._backoff = min(2 * self._backoff, BACKOFF_MOST_S)

    def stop(self) -> None:
        """Within 20 s, with every process of it."""
        self._postgres.stop()

    def lay_log_ahead(self) -> None:
        """Have as many files of the log (WAL) as it goes round in: checkpoints use the old ones again, so that
        PostgreSQL goes on where the disk has not a byte left. A new one has one file, and would make the next ones
        too late."""
        try:
            there = sum(len(file.name) == _LOG_NAME for file in (self._postgres.data / "pg_wal").iterdir())
            if there >= LEAST_SEGMENTS:
                return
            url = MetaURL.parse(self._postgres.url)
            link = Link(url, url.hosts[0], Deadline(_LAY_LIMIT_S), _LAY_LIMIT_S)
            with contextlib.closing(link):
                for _ in range(LEAST_SEGMENTS - there):
                    link.raw.run(
                        "SELECT pg_logical_emit_message(false, 'distfs', 'a file without this is not left')"
                    )
                    link.raw.run("SELECT pg_switch_wal()")
                link.raw.run("CHECKPOINT")
            log.info("PostgreSQL's log is laid ahead: a full disk does not end it")
        except (DistfsError, DatabaseError, *BROKEN) as e:
            log.warning("PostgreSQL's log could not be laid ahead, the next start tries it again: %s", e)

    def _with_room(self, start: Callable[[], object]) -> None:
        """Start PostgreSQL; when it finds no room, once more in that of the ballast."""
        self._ballast.look()
        self._ballast.before_a_start()
        try:
            start()
        except ConfigError as e:
            if not (is_for_want_of_room(str(e), self._postgres.folder) and self._ballast.give_up(str(e))):
                raise
            start()
