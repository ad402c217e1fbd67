"""``distfs up``'s MetaDB as a process: ``python -m distfs.local_metadb FOLDER``.

PostgreSQL knows nothing of a parent it should follow; this small process does (``--exit-with-parent``), and
keeps PostgreSQL running meanwhile. It writes one line on standard output when MetaDB takes connections.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading

from distfs import config_file as configuration
from distfs import parent_watch
from distfs.errors import ConfigError
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.signals import on_stop, set_soon
from distfs.telemetry import setup_logging

log = logging.getLogger("distfs.metadb")

#: Seconds; PostgreSQL's own stop is bounded by 20.
STOP_GRACE = 25.0
_LOOK_EVERY_S = 0.25


def serve(postgres: EmbeddedPostgres, stopping: threading.Event) -> None:
    """Run PostgreSQL until ``stopping`` is set. Raises ConfigError when it cannot be started (again)."""
    postgres.start()
    try:
        print("ready", flush=True)
        while not stopping.wait(_LOOK_EVERY_S):
            if not postgres.running():
                log.warning("PostgreSQL died; starting it again")
                postgres.ensure_running()
    finally:
        postgres.stop()


def main(argv: list[str] | None = None) -> int:
    """The command. One line on stderr and 1 for what an operator must mend."""
    parser = argparse.ArgumentParser(prog="python -m distfs.local_metadb", description=__doc__)
    parser.add_argument("folder", help="where PostgreSQL keeps its data; made when it is not there")
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    parser.add_argument(parent_watch.FLAG, action="store_true", help=parent_watch.FLAG_HELP)
    given = parser.parse_args(argv)
    stopping = threading.Event()
    on_stop(lambda: set_soon(stopping))
    if given.exit_with_parent:
        parent_watch.exit_with_parent(STOP_GRACE)
    try:
        setup_logging(configuration.load(given.config).log)
        serve(EmbeddedPostgres(given.folder), stopping)
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
