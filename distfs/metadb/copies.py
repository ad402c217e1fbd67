"""A copy of MetaDB as one stream of bytes, written and read by the driver: without PostgreSQL's programs.

    magic · length of the header u32 · header, JSON · zlib stream of records · sha-256 of all before, 32 bytes

A record is a kind, a length u32, and so many bytes; integers are big-endian:

    T  JSON {table, columns}: of what the rows that follow are     D  rows, as COPY writes them
    S  JSON {name: [last value, whether it was given]}: sequences  E  JSON {table: rows}: the end

What is in it is of one moment (REPEATABLE READ). Tables stand in an order in which each comes after those that its
rows name. A schema is not in it, but its number: it is loaded into a MetaDB of just that schema, which is migrated
further afterwards. So a copy is loaded by any later distfs, into any PostgreSQL.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, cast
from uuid import UUID

import distfs
from distfs.errors import Corrupt, DistfsError, Refused
from distfs.metadb import schema
from distfs.metadb.driver import DatabaseError
from distfs.metadb.link import translate

FORMAT = 1
MAGIC = b"DFSMETA\n"
_LENGTH = struct.Struct(">I")
_RECORD = struct.Struct(">cI")
_MAX_HEADER = 4096
_MAX_RECORD = 1 << 30  # the longest row that PostgreSQL has
_PIECE = 1 << 18  # rows are gathered to records of about so many bytes
_DIGEST = 32
_DEADLOCK, _TRIES = "40P01", 20

#: Not copied: what is of no use later (promises to uploads, lines of the log), and what loading makes itself.
_TABLES = """
SELECT c.oid::integer, c.relname::text, ARRAY(
    SELECT a.attname::text FROM pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum
), ARRAY(
    SELECT DISTINCT f.confrelid::integer FROM pg_constraint f
    WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid
)
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relpersistence = 'p'
AND NOT c.relispartition AND c.relname <> 'migration'
AND c.relname NOT LIKE 'log\\_day\\_%' AND c.relname NOT LIKE 'rebuild\\_%'
AND (c.relname = ANY (:names) OR :ahead)
ORDER BY c.relname"""
_SEQUENCES = """
SELECT c.relname::text FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND (c.relname = ANY (:names) OR :ahead OR EXISTS (
    SELECT FROM pg_depend d JOIN pg_class o ON o.oid = d.refobjid WHERE d.objid = c.oid AND d.deptype IN ('a', 'i')
    AND d.refclassid = 'pg_class'::regclass AND o.relname = ANY (:names)
)) ORDER BY c.relname"""
_ABOUT = """
SELECT (SELECT id::text FROM cluster), (SELECT max(number) FROM migration), extract(epoch FROM now())::float8,
    (SELECT max(coalesce((to_jsonb(migration) ->> 'min_version')::integer, 0)) FROM migration)"""
_SECRET = {("token", "link_key"), ("token", "link_key_before")}
_SECRET_TABLES = {"cluster_key"}
#: What a MetaDB in use has rows of.
_IN_USE = ("file", "trash", "token")
#: In this order: a trigger goes with its table, and functions are named by neither then.
_OF_US = """
SELECT format('DROP TABLE IF EXISTS %s CASCADE', c.oid::regclass) FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
AND (c.relname = ANY (:names) OR c.relname LIKE 'rebuild\\_%' OR c.relname LIKE 'log\\_day\\_%')
UNION ALL
SELECT format('DROP SEQUENCE IF EXISTS %s CASCADE', c.oid::regclass) FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'S' AND c.relname = ANY (:names)
UNION ALL
SELECT format('DROP FUNCTION IF EXISTS %s CASCADE', p.oid::regprocedure) FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.prokind = 'f' AND p.proname = ANY (:names)"""


@dataclass(frozen=True, slots=True)
class Header:
    """What a copy says of itself, before its first row."""

    cluster: UUID
    schema: int  # the last migration
    taken_at: float  # seconds since 1970, by MetaDB's clock
    format: int = FORMAT
    distfs: str = distfs.__version__
    #: Migrations that a service must know to run with it; None: a copy of before does not say.
    min_version: int | None = None

    def pack(self) -> bytes:
        said = json.dumps(asdict(self), default=str).encode()
        return MAGIC + _LENGTH.pack(len(said)) + said

    @classmethod
    def read(cls, stream: IO[bytes]) -> Header:
        """From a copy's beginning. Raises Corrupt, Refused for what this distfs is too old for."""
        head = stream.read(len(MAGIC) + _LENGTH.size)
        if not head.startswith(MAGIC) or len(head) < len(MAGIC) + _LENGTH.size:
            raise Corrupt("it is no copy of a MetaDB")
        (length,) = _LENGTH.unpack_from(head, len(MAGIC))
        try:
            said = json.loads(stream.read(min(length, _MAX_HEADER)))
            if said["format"] > FORMAT:
                raise Refused(f"it is of format {said['format']}, this distfs reads {FORMAT}: upgrade distfs")
            needs = said.get("min_version")
            return cls(
                UUID(said["cluster"]),
                int(said["schema"]),
                float(said["taken_at"]),
                said["format"],
                min_version=None if needs is None else int(needs),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise Corrupt("its header cannot be read") from e


# --- writing ------------------------------------------------------------------------------------------------


def write(connection: Any, out: Callable[[bytes], object], *, secrets: bool = True) -> Header:
    """Copy the MetaDB of a pg8000 connection to ``out``; -> what it says of itself. Needs a piece of memory, however
    much there is. Without ``secrets`` it lacks what signs links and proves who is of the cluster: loading makes these
    anew. Raises Unavailable and what ``out`` raises; nothing of it is of use then."""
    try:
        connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        header = _write(connection, out, secrets)
        connection.run("ROLLBACK")  # after a failure the connection is of no use
    except DatabaseError as e:
        raise translate(e) from e
    return header


def _write(connection: Any, out: Callable[[bytes], object], secrets: bool) -> Header:
    [[cluster, number, taken_at, needs]] = connection.run(_ABOUT)
    header = Header(UUID(cluster), int(number), float(taken_at), min_version=int(needs))
    stream = _Writer(out)
    stream.begin(header)
    counts = {}
    for table, columns in _tables(connection):
        if not secrets:
            columns = [each for each in columns if (table, each) not in _SECRET]
            if table in _SECRET_TABLES:
                continue
        stream.record(b"T", _json({"table": table, "columns": columns}))
        rows = _Rows(stream)
        connection.run(f"COPY {table} ({', '.join(columns)}) TO STDOUT", stream=rows)
        rows.flush()
        counts[table] = rows.count
    stream.record(b"S", _json(_sequences(connection)))
    stream.record(b"E", _json(counts))
    stream.end()
    return header


def _tables(connection: Any) -> list[tuple[str, list[str]]]:
    """With their columns; each after those whose rows its own name."""
    left = {oid: (name, columns, set(needs)) for oid, name, columns, needs in _ours(connection, _TABLES)}
    found: list[tuple[str, list[str]]] = []
    while left:
        ready = [oid for oid, (_, _, needs) in left.items() if not needs & left.keys()]
        if not ready:
            raise DistfsError(f"tables that need each other: {', '.join(name for name, *_ in left.values())}")
        found += [left.pop(oid)[:2] for oid in ready]
    return found


def _ours(connection: Any, query: str) -> list[list[Any]]:
    """Rows without those of others, who may keep tables beside distfs's. Of a MetaDB that a newer distfs has migrated
    its own cannot be told from these."""
    [[number]] = connection.run("SELECT max(number) FROM migration")
    rows: list[list[Any]] = connection.run(
        query, names=sorted(schema.names()), ahead=number > schema.latest()
    )
    return rows


def _sequences(connection: Any) -> Mapping[str, Any]:
    names = [name for [name] in _ours(connection, _SEQUENCES)]
    return {name: connection.run(f"SELECT last_value, is_called FROM {name}")[0] for name in names}  # noqa: S608


def _json(what: Any) -> bytes:
    return json.dumps(what).encode()


class _Writer:
    """Records -> bytes, compressed, with the digest of all of them at the end."""

    def __init__(self, out: Callable[[bytes], object]) -> None:
        self._out, self._digest, self._zlib = out, hashlib.sha256(), zlib.compressobj(6)

    def begin(self, header: Header) -> None:
        self._write(header.pack())

    def record(self, kind: bytes, data: bytes) -> None:
        self._write(self._zlib.compress(_RECORD.pack(kind, len(data)) + data))

    def end(self) -> None:
        self._write(self._zlib.flush())
        self._out(self._digest.digest())

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        if data:
            self._out(data)


class _Rows(io.RawIOBase):
    """What the driver writes the rows of a table to, one at a time."""

    def __init__(self, stream: _Writer) -> None:
        super().__init__()
        self._stream, self._waiting, self.count = stream, bytearray(), 0

    def write(self, row: Any) -> int:
        self._waiting += row
        self.count += 1
        if len(self._waiting) >= _PIECE:
            self.flush()
        return len(row)

    def flush(self) -> None:
        if self._waiting:
            self._stream.record(b"D", bytes(self._waiting))
            self._waiting.clear()


# --- reading ------------------------------------------------------------------------------------------------


def check(copy: IO[bytes]) -> Header:
    """Read all of a copy, from its beginning to its digest; -> what it says of itself. Raises Corrupt unless it is
    whole, Refused for one of a newer distfs."""
    copy.seek(0)
    header = Header.read(copy)
    if header.schema > schema.latest():
        raise Refused(
            f"it is of a MetaDB at migration {header.schema}, this distfs knows {schema.latest()}: upgrade distfs"
        )
    size = copy.seek(0, io.SEEK_END) - _DIGEST
    copy.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (piece := copy.read(min(size, _PIECE))):
        digest.update(piece)
        size -= len(piece)
    if copy.read() != digest.digest():
        raise Corrupt("it is cut short, or was changed: its digest is another")
    return header


def load(connection: Any, copy: IO[bytes], also: Sequence[str] = ()) -> None:
    """Put a copy that was checked into a MetaDB of its schema that is not in use, in one transaction, with what is
    ``also`` to be done, given ``taken_at``.

    Raises Refused when it is in use, Corrupt, Unavailable; nothing has changed then.
    """
    copy.seek(0)
    header = Header.read(copy)

    def act() -> None:
        _load(connection, copy, header)
        if header.min_version is not None:
            schema.ask_of_services(connection, header.min_version)
        for each in also:
            connection.run(each, taken_at=header.taken_at)

    _in_transaction(connection, act)


def _in_transaction(connection: Any, act: Callable[[], object]) -> None:
    """Nodes go on saying that they live, each of which takes some of the tables: who is in each other's way tries
    again."""
    for left in reversed(range(_TRIES)):
        try:
            connection.run("BEGIN")
            try:
                act()
                connection.run("COMMIT")
                return
            except BaseException:
                connection.run("ROLLBACK")
                raise
        except DatabaseError as e:
            if not left or e.args[0].get("C") != _DEADLOCK:
                raise translate(e) from e


def _load(connection: Any, copy: IO[bytes], header: Header) -> None:
    here = dict(_tables(connection))
    connection.run(f"LOCK TABLE {', '.join(here)} IN ACCESS EXCLUSIVE MODE")
    _require_unused(connection)
    [[cluster, known]] = connection.run("SELECT id, EXISTS (SELECT FROM node) FROM cluster")
    if known and cluster != header.cluster:
        raise Refused(f"it is of cluster {header.cluster}, and this MetaDB of {cluster}: name a new database")
    connection.run("DELETE FROM node")  # those that live have said so already, and do again
    for table in here:
        connection.run(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    records = _Records(copy)
    for kind, data in records:
        said = _object(data)
        if kind == b"T":
            _load_table(connection, here, said, records)
        elif kind == b"S":
            _set_sequences(connection, said)
        elif kind == b"E":
            _check_counts(connection, said)
            break
        else:
            raise Corrupt(f"it has a record of an unknown kind, {kind!r}")
    else:
        raise Corrupt("it lacks its end")
    for table in here:
        connection.run(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def _object(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise Corrupt("a record of it cannot be read")
    return said


def _load_table(
    connection: Any, here: Mapping[str, list[str]], said: Mapping[str, Any], records: _Records
) -> None:
    table, columns = said.get("table"), said.get("columns")
    known = here.get(table) if isinstance(table, str) else None
    if known is None or not isinstance(columns, list) or not columns or any(c not in known for c in columns):
        raise Corrupt(f"it has a table that its schema lacks: {table!r:.100}")
    connection.run(f"DELETE FROM {table}")  # noqa: S608 - what migrations, and a service that looked in, wrote
    connection.run(f"COPY {table} ({', '.join(columns)}) FROM STDIN", stream=records.rows())


def _set_sequences(connection: Any, said: Mapping[str, Any]) -> None:
    known = {name for [name] in _ours(connection, _SEQUENCES)}
    for name, state in said.items():
        if name not in known or not isinstance(state, list) or [type(each) for each in state] != [int, bool]:
            raise Corrupt(f"it has a sequence that its schema lacks: {name!r:.100}")
        connection.run(
            "SELECT setval(CAST(:name AS text)::regclass, CAST(:last AS bigint), :given)",
            name=name,
            last=state[0],
            given=state[1],
        )


def wipe(connection: Any) -> None:
    """Drop all that is distfs's of a MetaDB that knows no file and no deletion. Raises Refused when it is in use."""

    def act() -> None:
        _require_unused(connection, ("file", "trash"))  # `distfs up` makes the first token at once
        for [each] in connection.run(_OF_US, names=sorted(schema.names())):
            connection.run(each)

    _in_transaction(connection, act)


def _require_unused(connection: Any, tables: Sequence[str] = _IN_USE) -> None:
    """Raises Refused for a MetaDB that has rows in these."""
    for table in tables:
        if connection.run(f"SELECT FROM {table} LIMIT 1"):
            raise Refused(
                f"MetaDB is not empty, it has rows in {table}: name a new database, or a new folder"
            )


def _check_counts(connection: Any, counts: Mapping[str, int]) -> None:
    here = dict(_tables(connection))
    if not here.keys() - _SECRET_TABLES <= counts.keys() <= here.keys():
        raise Corrupt("it lacks tables of its schema")
    for table, count in counts.items():
        [[found]] = connection.run(f"SELECT count(*) FROM {table}")  # noqa: S608
        if found != count:
            raise Corrupt(f"{found} rows of {table} were loaded, there are {count}")


class _Records:
    """The records of a copy, one at a time."""

    def __init__(self, copy: IO[bytes]) -> None:
        copy.seek(0)
        Header.read(copy)
        self._copy, self._zlib, self._have = copy, zlib.decompressobj(), bytearray()
        self._next: tuple[bytes, bytes] | None = None  # one that was read and not taken

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        while (record := self._take()) is not None:
            yield record

    def rows(self) -> Iterator[bytes]:
        """Those of the table whose T was just read."""
        while (record := self._take()) is not None:
            if record[0] != b"D":
                self._next = record
                return
            yield record[1]

    def _take(self) -> tuple[bytes, bytes] | None:
        waiting, self._next = self._next, None
        if waiting is not None:
            return waiting
        if not self._fill(_RECORD.size):
            return None
        kind, length = _RECORD.unpack_from(self._have)
        if length > _MAX_RECORD or not self._fill(_RECORD.size + length):
            raise Corrupt("a record of it is cut short")
        data = bytes(self._have[_RECORD.size : _RECORD.size + length])
        del self._have[: _RECORD.size + length]
        return cast(bytes, kind), data

    def _fill(self, count: int) -> bool:
        """Whether so many bytes are at hand; more is unpacked only as it is needed."""
        while len(self._have) < count:
            packed = self._zlib.unconsumed_tail or self._copy.read(_PIECE)
            if self._zlib.eof or not packed:
                return False
            try:
                self._have += self._zlib.decompress(packed, _PIECE)
            except zlib.error as e:
                raise Corrupt("it cannot be unpacked") from e
        return True
