"""``distfs up``'s MetaDB as a process: ``python -m distfs.local.metadb FOLDER``.

PostgreSQL knows nothing of a parent it should follow; this small process does (``--exit-with-parent``), and
keeps PostgreSQL running meanwhile. It writes one line on standard output when MetaDB takes connections.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable

from distfs.config import file as configuration
from distfs.deadline import Deadline
from distfs.errors import ConfigError, DistfsError
from distfs.metadb.ballast import LEAST_SEGMENTS, Ballast, is_for_want_of_room
from distfs.metadb.driver import DatabaseError
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.link import BROKEN, Link
from distfs.metadb.url import MetaURL
from distfs.process import parent_watch
from distfs.process.output import DONE, Parser, announce, command, warner
from distfs.process.signals import on_stop, set_soon
from distfs.telemetry import setup_logging

log = logging.getLogger("distfs.metadb")

#: Seconds; PostgreSQL's own stop is bounded by 20.
STOP_GRACE = 25.0
_LOOK_EVERY_S = 0.25
_LOG_NAME = 24  # hexadecimal digits
_LAY_LIMIT_S = 10.0


def serve(postgres: EmbeddedPostgres, stopping: threading.Event) -> None:
    """Run PostgreSQL until ``stopping`` is set. Raises ConfigError when it cannot be started (again)."""
    ballast = Ballast(postgres.folder)
    _with_room(postgres, postgres.start, ballast)
    try:
        announce("ready")
        _lay_log_ahead(postgres)
        while not stopping.wait(_LOOK_EVERY_S):
            ballast.look()
            if not postgres.running():
                log.warning("PostgreSQL died; starting it again")
                _with_room(postgres, postgres.ensure_running, ballast)
    finally:
        postgres.stop()


def _lay_log_ahead(postgres: EmbeddedPostgres) -> None:
    """Have as many files of the log (WAL) as it goes round in: checkpoints use the old ones again, so that PostgreSQL
    goes on where the disk has not a byte left. A new one has one file, and would make the next ones too late."""
    try:
        there = sum(len(file.name) == _LOG_NAME for file in (postgres.data / "pg_wal").iterdir())
        if there >= LEAST_SEGMENTS:
            return
        url = MetaURL.parse(postgres.url)
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


def _with_room(postgres: EmbeddedPostgres, start: Callable[[], object], ballast: Ballast) -> None:
    """Start PostgreSQL; when it finds no room, once more in that of the ballast."""
    ballast.look()
    ballast.before_a_start()
    try:
        start()
    except ConfigError as e:
        if not (is_for_want_of_room(str(e), postgres.folder) and ballast.give_up(str(e))):
            raise
        start()


def main(argv: list[str] | None = None) -> int:
    """The command; -> its exit code (``output``)."""
    return command("metadb", lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    parser = Parser(prog="python -m distfs.local.metadb", description=__doc__)
    parser.add_argument("folder", help="where PostgreSQL keeps its data; made when it is not there")
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    parser.add_argument(parent_watch.FLAG, action="store_true", help=parent_watch.FLAG_HELP)
    given = parser.parse_args(argv)
    stopping = threading.Event()
    on_stop(lambda: set_soon(stopping))
    if given.exit_with_parent:
        parent_watch.exit_with_parent(STOP_GRACE)
    warn = warner("metadb", of_parent=given.exit_with_parent)
    setup_logging(configuration.load(given.config, warn=warn).log)
    serve(EmbeddedPostgres(given.folder), stopping)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
