"""``distfs backup`` and ``distfs restore``: MetaDB as one file of SQL, by PostgreSQL's own programs.

The file can be loaded by any psql, into any PostgreSQL from the one that distfs needs on: it begins with the roles
that the rest speaks of, names no owner, and is one transaction.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import ConfigError, DistfsError, Refused, Unavailable
from distfs.meta import MetaDB
from distfs.metadb import embedded_postgres
from distfs.metadb.copies import MAGIC
from distfs.metadb.embedded_postgres import EmbeddedPostgres
from distfs.metadb.url import MetaURL
from distfs.process import output
from distfs.process.descriptors import in_words
from distfs.quantity import size
from distfs.upkeep.db import UpkeepDB

_NOTE_LIMIT_S = 10.0

#: Roles have no owner in a dump, and rights are granted to them: they must be there first.
_ROLE = """\
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN CREATE ROLE "{name}" {login}; END IF;
END $$;
"""
_ROLES = """
SELECT rolname || ' ' || rolcanlogin FROM pg_roles WHERE rolname NOT LIKE 'pg\\_%' AND oid IN (
    SELECT (aclexplode(relacl)).grantee FROM pg_class
    UNION SELECT (aclexplode(proacl)).grantee FROM pg_proc
    UNION SELECT (aclexplode(nspacl)).grantee FROM pg_namespace
) ORDER BY 1"""
_TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"


def backup(config: MetaDBConfig, file: str) -> None:
    """Write MetaDB to ``file``, as it is at one moment; everything may run meanwhile.

    A regular file is there whole or not at all; what else has that name, a device or a pipe (``-``: standard output),
    is written to as it is. Raises Unavailable with PostgreSQL's reason, Refused when the file cannot be written,
    OutputLost when standard output cannot.
    """
    require_one(config.url)
    place = Path(file)
    straight = file in STDOUT or (place.exists() and not place.is_file())
    try:
        with _server(config) as server:
            if server.ask(_TABLES) == "0":
                raise Refused(f"the MetaDB at {server.place} is empty: name the one you mean with --metadb")
            if straight:
                with open(os.dup(1) if file in STDOUT else place, "wb") as out:
                    _write(server, out)
            else:
                _write_whole(server, place.resolve())
            note(config)
    except OSError as e:
        raise not_written(file, e) from e
    if not straight:
        written = size(place.stat().st_size)
        output.tell(f"MetaDB is in {file}, {written}; the files' bytes are on the storage nodes alone")


def not_written(file: str, error: OSError) -> Exception:
    """What to raise when a backup could not be."""
    if file in STDOUT:
        return output.OutputLost(in_words(error))
    return Refused(f"cannot write {file}: {error.strerror}; name a file elsewhere")


def note(config: MetaDBConfig) -> None:
    """By it metrics and alerts know how old the last backup is. One that was not noted is one nevertheless."""
    try:
        with contextlib.closing(MetaDB(config)) as meta:
            UpkeepDB(meta).save_worker("backup", "done", {}, Deadline(_NOTE_LIMIT_S))
    except DistfsError as e:
        output.complain(f"distfs: the backup is written, but MetaDB could not note that there is one: {e}")


def require_one(url: str) -> None:
    """Raises Refused where no embedded one ever was: to back up is not to make one."""
    folder = embedded_postgres.folder_of(url)
    if folder is not None and not (folder / "postgres" / "PG_VERSION").exists():
        raise Refused(f"there is no MetaDB in {folder.absolute()}: name the one you mean with --metadb")


def _write_whole(server: _Server, place: Path) -> None:
    fresh = place.with_name(f"{place.name}.partial")
    try:
        with open(fresh, "wb", opener=_private) as out:
            _write(server, out)
            os.fsync(out.fileno())
        fresh.replace(place)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)


def _write(server: _Server, out: IO[bytes]) -> None:
    roles = [line.rsplit(" ", 1) for line in server.ask(_ROLES).splitlines()]
    out.write(b"".join(map(_role, roles)))
    server.dump(out)
    out.flush()


def restore(config: MetaDBConfig, file: str) -> None:
    """Load ``file`` into the MetaDB of the configuration, which has to be empty, all or nothing.

    Raises Refused, Unavailable with PostgreSQL's reason.
    """
    _check_whole(Path(file))
    with _server(config) as server:
        if server.ask(_TABLES) != "0":
            raise Refused(
                f"the MetaDB at {server.place} is not empty: restore into a new database, or a new folder"
            )
        server.run("psql", "--no-psqlrc", "--quiet", "--single-transaction", *_STRICT, "--file", file)
        with contextlib.closing(MetaDB(config)) as meta:
            applied = meta.migrate()
    more = f"; applied migrations {', '.join(map(str, applied))}" if applied else ""
    output.tell(f"MetaDB at {server.place} is as it was when {file} was written{more}")


def _role(row: Sequence[str]) -> bytes:
    name, can_login = row
    return _ROLE.format(name=name, login="LOGIN" if can_login == "true" else "NOLOGIN").encode()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _check_whole(file: Path) -> None:
    """psql takes a file's end for the end of the rows it reads: half a backup would be restored without a word."""
    try:
        with file.open("rb") as stream:
            is_copy = stream.read(len(MAGIC)) == MAGIC
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            whole = _LAST_WORDS in stream.read()
    except OSError as e:
        raise Refused(f"cannot read {file}: {e.strerror}; name a file that `distfs backup` wrote") from e
    if is_copy:
        raise Refused(f"{file} is a copy of a MetaDB, not SQL: load it with `distfs metadb restore {file}`")
    if not whole:
        raise Refused(f"{file} is not the whole of a backup: it lacks its end; take an earlier one")


def is_sql(stream: IO[bytes]) -> bool:
    """Whether a file is a backup in SQL, whole or not."""
    if not stream.seekable():
        return False
    stream.seek(0)
    head = stream.read(_HEAD_BYTES)
    return head.startswith(_ROLE[:11].encode()) or b"-- PostgreSQL database dump" in head


#: pg_dump's own, near the file's end.
_LAST_WORDS, _TAIL_BYTES = b"-- PostgreSQL database dump complete", 4096
#: A setting that pg_dump 17 and later makes at a dump's beginning, and that an older server does not know.
_NEW_IN_17, _HEAD_BYTES = b"SET transaction_timeout = 0;\n", 4096
#: Written to where it stands, whatever it leads to.
STDOUT = ("-", "/dev/stdout")
_STRICT = ("--set", "ON_ERROR_STOP=1", "--output", os.devnull)


class _Server:
    """PostgreSQL's programs, for one database."""

    def __init__(self, url: MetaURL, data: Path | None) -> None:
        """``data``: where an embedded one keeps it, which its own programs fit; None: it is another."""
        self.place = str(url)
        self._data = data
        self._environ = {**os.environ, **_for_libpq(url)}

    def ask(self, sql: str) -> str:
        """What one query answers, a row a line."""
        return self.run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", sql).strip()

    def run(self, program: str, *args: str) -> str:
        """-> what it wrote on standard output. Raises Unavailable, with the last thing it complained of."""
        done = subprocess.run(
            [self._find(program), *args], env=self._environ, capture_output=True, text=True, check=False
        )
        _check(program, done.returncode, done.stderr)
        return done.stdout

    def dump(self, out: IO[bytes]) -> None:
        """All of the database as SQL. Raises as ``run`` does."""
        with (
            tempfile.TemporaryFile("w+") as complaints,
            subprocess.Popen(
                [self._find_dump(), "--no-owner", "--exclude-table-data=log_day_*"],
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=complaints,
            ) as running,
        ):
            if running.stdout is None:
                raise Unavailable("pg_dump has no output")
            out.write(running.stdout.read(_HEAD_BYTES).replace(_NEW_IN_17, b""))
            shutil.copyfileobj(running.stdout, out, 1 << 20)
            code = running.wait()
            complaints.seek(0)
            _check("pg_dump", code, complaints.read())

    def _find(self, program: str) -> Path:
        """An embedded server's own; for another, the system's, which can do TLS, or else the wheel's."""
        if self._data is None and (found := shutil.which(program)):
            return Path(found)
        return embedded_postgres.binary(program, self._data)

    def _find_dump(self) -> Path:
        """pg_dump of no older a PostgreSQL than the server. Raises ConfigError when there is none."""
        found = self._find("pg_dump")
        if self._data is not None:
            return found
        needed = int(self.ask("SHOW server_version_num")) // 10_000
        if embedded_postgres.version(found) >= needed:
            return found
        with contextlib.suppress(ConfigError):
            if embedded_postgres.version(found := embedded_postgres.binary("pg_dump")) >= needed:
                return found
        raise ConfigError(f"MetaDB is PostgreSQL {needed}: install its pg_dump (postgresql-client-{needed})")


def _check(program: str, code: int, complaints: str) -> None:
    if code != 0:
        lines = [line for line in complaints.splitlines() if line.strip()]
        raise Unavailable(f"{program}: {lines[-1] if lines else 'it failed and said nothing'}")


@contextlib.contextmanager
def _server(config: MetaDBConfig) -> Iterator[_Server]:
    """The server of ``metadb.url``. An embedded one that does not run is started for the while."""
    url = config.url
    folder = embedded_postgres.folder_of(url)
    if folder is None:
        yield _Server(MetaURL.of(config), None)
        return
    with contextlib.ExitStack() as stack:
        try:
            found = embedded_postgres.resolve(url)
        except Unavailable:
            postgres = EmbeddedPostgres(folder)
            postgres.start()
            stack.callback(postgres.stop)
            found = postgres.url
        yield _Server(MetaURL.parse(found), folder / "postgres")


@contextlib.contextmanager
def running(config: MetaDBConfig) -> Iterator[str]:
    """MetaDB there to be asked; -> where, for people. An embedded one that does not run is started for the while, and
    ends with it."""
    with _server(config) as server:
        yield server.place


def _for_libpq(url: MetaURL) -> Mapping[str, str]:
    """A URL as libpq's variables: a password on a command line would be in `ps`."""
    modes = [
        url.mode_to(host) for host in url.hosts
    ]  # not libpq's own default, which falls back to plain text
    found = {
        "PGHOST": ",".join(host.name for host in url.hosts),
        "PGPORT": ",".join(str(host.port) for host in url.hosts),
        "PGUSER": url.user,
        "PGDATABASE": url.database,
        "PGTARGETSESSIONATTRS": "read-write",
        "PGPASSWORD": url.password,
        "PGSSLMODE": next((mode for mode in modes if mode != "disable"), "disable"),
        "PGSSLROOTCERT": url.sslrootcert or "system" * ("verify-full" in modes),
        "PGSSLCERT": url.sslcert,
        "PGSSLKEY": url.sslkey,
        "PGSSLCRL": url.sslcrl,
    }
    return {key: value for key, value in found.items() if value}
