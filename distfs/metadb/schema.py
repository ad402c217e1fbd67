"""The files of ``sql/``: the named queries, and the migrations with the way they are applied.

``sql/`` is a folder of its own in a checkout and ``distfs/sql`` where distfs is installed.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from distfs import __version__
from distfs.errors import ConfigError, Unavailable
from distfs.metadb.roles import make_roles

_log = logging.getLogger(__name__)

#: pg_advisory_lock key of a running migration: "distfs" as a number, the same for every version.
_LOCK = int.from_bytes(b"distfs")
_LOCK_WAIT_S = 60
_LOCK_POLL_S = 0.1

#: So begins a migration that is no transaction, but statements one by one. To make an index of a large table in a
#: transaction would stop uploads until it is made; CONCURRENTLY does not. Cut short, it is run again from its first
#: statement on, so each may be repeated: an index is dropped, whole or half made, before it is made. They wait for
#: transactions that began before, such as a backup, and nobody waits behind them: so there is no limit.
_ONE_BY_ONE = "-- No transaction"

_MADE = re.compile(
    r"^\s*CREATE (?:OR REPLACE )?(?:UNLOGGED )?(?:TABLE|SEQUENCE|FUNCTION) (?:IF NOT EXISTS )?(?:public\.)?(\w+)",
    re.MULTILINE,
)
_MIN_VERSION = re.compile(r"^-- min_version: (\d+)$", re.MULTILINE)

#: The first PostgreSQL with idle_session_timeout, which ends a leader of upkeep that is frozen, and that tells each
#: connection whether it takes writes.
OLDEST_POSTGRES = 14

#: The PostgreSQL role for storage nodes, which may do nothing but report (sql/node_role.sql).
NODE_ROLE = "distfs_node"

_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    sha256 bytea NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


@cache
def sql_folder() -> Path:
    """Where the SQL files are. Raises ConfigError when the installation lacks them."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "sql", package.parent / "sql"):
        if (folder / "queries.sql").is_file():
            return folder
    raise ConfigError(f"the SQL files of distfs are missing beside {package}; install it again")


@cache
def queries() -> Mapping[str, str]:
    """What ``sql/`` holds beside migrations, by name: each query follows a line ``-- name: <name>``."""
    found: dict[str, str] = {}
    for file in ("queries.sql", "upkeep.sql", "admission.sql", "access.sql", "recovery.sql"):
        text = (sql_folder() / file).read_text("utf-8")
        parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)[1:]
        found |= {name: sql.strip().rstrip(";") for name, sql in zip(parts[::2], parts[1::2], strict=True)}
    return found


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema. Once released its file never changes: a later one corrects it."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.sql.encode()).digest()

    @property
    def min_version(self) -> int:
        """The migration that every service must know before this one is applied; 0: those of before go on with it.

        ``-- min_version: N`` in a file that takes something away. What comes new asks nothing.
        """
        said = _MIN_VERSION.search(self.sql)
        return int(said[1]) if said else 0

    @property
    def one_by_one(self) -> list[str]:
        """Its statements, where it is not one transaction: each ends a line, and is no function. Empty: it is one."""
        if not self.sql.startswith(_ONE_BY_ONE):
            return []
        return [each.strip() for each in re.split(r";\s*$", self.sql, flags=re.MULTILINE) if each.strip()]


@cache
def migrations() -> tuple[Migration, ...]:
    """All of ``sql/migrations``, in the order in which they are applied; numbers are 1, 2, 3 and so on."""
    paths = sorted((sql_folder() / "migrations").glob("*.sql"))
    found = tuple(Migration(int(p.name[:4]), p.stem[5:], p.read_text("utf-8")) for p in paths)
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise ConfigError(f"sql/migrations is not numbered without a gap: {', '.join(p.name for p in paths)}")
    return found


@cache
def names() -> frozenset[str]:
    """Tables, sequences and functions that migrations make, also those that a later one takes away."""
    found = (name for step in migrations() for name in _MADE.findall(step.sql))
    return frozenset(found) | {"migration"}


def latest() -> int:
    """The number of the last migration this distfs knows."""
    return len(migrations())


def apply_migrations(
    connection: Any, roles: Path | None = None, upto: int | None = None, cluster: UUID | None = None
) -> list[int]:
    """Bring MetaDB to ``latest()``; -> the numbers applied now. Each migration is one transaction, or as good as one.

    ``roles``: make those of a cluster's parts, with the passwords in that folder. ``upto``: no further than this one.
    ``cluster``: whose MetaDB an empty one becomes, from its first transaction on: nodes that see another's id end.
    ``connection`` is a pg8000 native connection that is closed afterwards (which frees the lock). Of several
    that migrate at once, one does and the others wait for it. A MetaDB that a newer distfs has migrated stays as it
    is, as long as it takes services as old as this. Raises ConfigError when it does not, when a migration was
    changed, or PostgreSQL is older than OLDEST_POSTGRES; Unavailable while another migrates.
    """
    _check_server(connection)
    connection.run("SET enable_seqscan = on")  # what a migration changes is often all of a table
    _limit_locks(connection, _LOCK_WAIT_S)
    _lock(connection)
    connection.run(_BOOKKEEPING)
    applied = _applied(connection)
    now: list[int] = []
    if _check_applied(applied):
        return now
    for step in migrations()[len(applied) : upto]:
        if step.one_by_one:
            _run_one_by_one(connection, step)
        connection.run("BEGIN")
        if not step.one_by_one:
            connection.run(step.sql)
        if step.number == 1 and cluster is not None:
            connection.run("UPDATE cluster SET id = :id", id=cluster)
        connection.run(
            "INSERT INTO migration (number, name, sha256) VALUES (:number, :name, :sha256)",
            number=step.number,
            name=step.name,
            sha256=step.sha256,
        )
        if step.min_version:
            _require_of_services(connection, step.number, step.min_version)
        connection.run("COMMIT")
        _log.info("MetaDB: applied migration %04d %s", step.number, step.name)
        now.append(step.number)
    if not applied and upto in (None, latest()):  # nobody older can be there
        _require_of_services(connection, latest(), latest())
    if roles is not None:
        make_roles(connection, roles)
    for rights in ("roles.sql", "node_role.sql") if upto is None else ():  # which name what later ones make
        _grant(connection, rights)
    return now


def finish(connection: Any) -> None:
    """From now on no service may run that knows less than ``latest()``, which MetaDB is at. Raises ConfigError."""
    applied = _applied(connection)
    if _check_applied(applied) or len(applied) < latest():
        raise ConfigError(
            f"MetaDB is at migration {len(applied)}, this distfs is of {latest()}: "
            + ("finish with the newest release" if len(applied) > latest() else "run `distfs migrate` first")
        )
    _require_of_services(connection, latest(), latest())


def pending(connection: Any) -> tuple[list[Migration], int]:
    """-> what ``apply_migrations`` would apply, and how many MetaDB has that this distfs does not know; nothing is
    changed. Raises ConfigError as that does."""
    _check_server(connection)
    [[there]] = connection.run("SELECT to_regclass('migration') IS NOT NULL")
    applied = _applied(connection) if there else []
    ahead = _check_applied(applied)
    return list(migrations()[len(applied) :]), ahead


def too_old(needs: int) -> str:
    """Why a service as old as this one may not run; empty: it may. ``needs``: the highest ``min_version``."""
    if needs <= latest():
        return ""
    return (
        f"MetaDB takes no service that knows fewer than {needs} migrations, distfs {__version__} knows {latest()}: "
        "upgrade distfs"
    )


def _applied(connection: Any) -> list[list[Any]]:
    """Number, name, sha256 and min_version of each; the last is a column that came later."""
    rows: list[list[Any]] = connection.run(
        "SELECT number, name, sha256, coalesce((to_jsonb(migration) ->> 'min_version')::integer, 0) "
        "FROM migration ORDER BY number"
    )
    return rows


def ask_of_services(connection: Any, version: int) -> None:
    """Just ``version`` migrations must be known, no more and no fewer: as it was in the MetaDB that a copy is of."""
    if version or connection.run("SELECT FROM migration WHERE to_jsonb(migration) ? 'min_version' LIMIT 1"):
        connection.run("UPDATE migration SET min_version = 0 WHERE min_version <> 0")
        connection.run(
            "UPDATE migration SET min_version = :version WHERE number = (SELECT max(number) FROM migration)",
            version=version,
        )


def _require_of_services(connection: Any, number: int, version: int) -> None:
    connection.run(
        "UPDATE migration SET min_version = greatest(min_version, :version) WHERE number = :number",
        version=version,
        number=number,
    )


def _run_one_by_one(connection: Any, step: Migration) -> None:
    _log.info(
        "MetaDB: migration %04d waits for every transaction that began before it, such as a backup "
        "(pg_stat_activity shows them); uploads go on meanwhile",
        step.number,
    )
    _limit_locks(connection, 0)
    for statement in step.one_by_one:
        connection.run(statement)
    _limit_locks(connection, _LOCK_WAIT_S)


def _limit_locks(connection: Any, seconds: int) -> None:
    """How long a statement may wait for a lock; 0: without a limit."""
    connection.run("SELECT set_config('lock_timeout', :wait, false)", wait=f"{seconds}s")


def _lock(connection: Any) -> None:
    """Asked for again and again, not waited for in the server: an index that is built CONCURRENTLY waits for every
    statement that began before, and so for the one that would wait for the lock."""
    until = time.monotonic() + _LOCK_WAIT_S
    while connection.run("SELECT pg_try_advisory_lock(:key)", key=_LOCK) != [[True]]:
        if time.monotonic() > until:
            raise Unavailable(
                f"another process has been migrating MetaDB for {_LOCK_WAIT_S} s: wait until it is done "
                "(pg_stat_activity shows what it waits for), then run `distfs migrate`"
            )
        time.sleep(_LOCK_POLL_S)


def _check_server(connection: Any) -> None:
    [[number, version]] = connection.run(
        "SELECT current_setting('server_version_num')::integer, current_setting('server_version')"
    )
    if number < OLDEST_POSTGRES * 10_000:
        raise ConfigError(
            f"MetaDB is PostgreSQL {version}; distfs needs {OLDEST_POSTGRES} or later: upgrade it, or name another "
            "server in metadb.url"
        )


def _check_applied(applied: list[list[Any]]) -> int:
    """-> how many there are that this distfs does not know. Raises ConfigError when it must not run with them, or is
    of another series."""
    known = migrations()
    for (number, name, digest, _), step in zip(applied, known, strict=False):
        if number != step.number or digest != step.sha256:
            raise ConfigError(
                f"migration {number:04d} {name} was changed after it was applied to MetaDB: restore its "
                "file, and put the change into a new migration"
            )
    if why := too_old(max((row[3] for row in applied), default=0)):
        raise ConfigError(why)
    return max(0, len(applied) - len(known))


def _grant(connection: Any, rights: str) -> None:
    connection.notices.clear()
    connection.run((sql_folder() / rights).read_text("utf-8"))
    for notice in connection.notices:
        _log.warning("MetaDB: %s", notice[b"M"].decode("utf-8", "replace"))
