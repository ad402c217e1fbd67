"""MetaDB: the only source of truth. What services and nodes ask of it, and how every statement is run.

``upkeep.db`` and ``limits.db`` run theirs through this, too. A statement is one transaction, and a method is
one statement; a second follows only where an earlier try may have done what the first was to do. Every statement may
be run again without harm (``sql/queries.sql``); on that rests what happens when a connection is lost: a read is run
once more on a new connection, a change is run again until MetaDB has said what became of it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from pg8000.native import DatabaseError

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import (
    Away,
    Busy,
    ConfigError,
    DistfsError,
    NotFound,
    OutcomeUnknown,
    Refused,
    SchemaBehind,
    TooSlow,
    Unavailable,
)
from distfs.metadb import ballast, embedded_postgres
from distfs.metadb import schema as meta_schema
from distfs.metadb.link import Link, translate
from distfs.metadb.pool import Pool
from distfs.metadb.url import MetaURL
from distfs.model import (
    MAX_NAME_BYTES,
    MAX_TYPE_BYTES,
    Address,
    File,
    NewFile,
    Node,
    NodeReport,
    Policy,
    Slice,
)
from distfs.quantity import counted

MAX_LISTED = 1000

#: A server that gives a statement up itself says why; it gets this much longer than its own limit to do so.
_GRACE_S = 0.5
_RETRY_FIRST_S, _RETRY_MOST_S = 0.02, 0.25
#: Nodes are heard of again within this after MetaDB was away.
_HEARD_AGAIN_S = 10.0
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

Rows = Sequence[Sequence[Any]]


def storable_name(name: str) -> str:
    """``name`` as MetaDB keeps it: what UTF-8 text cannot hold (NUL, lone surrogates) becomes U+FFFD.

    Raises Refused when it is longer than MAX_NAME_BYTES: the last line, since ``ingest`` has refused a client's
    before a byte of its file was read.
    """
    return _storable("file name", name, MAX_NAME_BYTES)


def storable_content_type(content_type: str) -> str:
    """The same for a media type, of at most MAX_TYPE_BYTES; of a client's, ``ingest`` takes no longer one."""
    return _storable("content type", content_type, MAX_TYPE_BYTES)


class Cluster(NamedTuple):
    """What a MetaDB is the MetaDB of."""

    id: UUID
    has_nodes: bool  # one has registered, at any time


#: Bytes of a file in the trash are erased only so long after MetaDB was told: a standby that is further behind than
#: this and takes over would bring back a file without them.
SETTLE_S = 60.0


class MetaDB:
    """Thread-safe; connects when it is first asked for something.

    Every method but ``migrate`` ends within ``statement_timeout`` + 0.5 s or at its deadline, whichever is
    sooner; while MetaDB is restarted, ``patience`` later. It raises Unavailable (503) with the reason while MetaDB is
    away, at once if that is for longer than ``patience``, and needs no restart after that.
    """

    def __init__(self, config: MetaDBConfig, down_after: float = 10.0) -> None:
        """``down_after``: seconds of silence after which a node is down. Raises ConfigError for the URL."""
        self._config = config
        self.down_after = down_after
        self._budget, self._patience = config.statement_timeout + _GRACE_S, config.patience
        self._cluster_id: UUID | None = None
        self._fixed = None if embedded_postgres.is_embedded(config.url) else MetaURL.of(config)
        limits = config.pool_size, config.connect_timeout, config.statement_timeout
        self._pool = Pool(self._where, *limits, trouble=self._trouble)

    def migrate(self) -> list[int]:
        """Bring the schema to this version's; -> the numbers of the migrations applied now.

        Safe to run at any time and by several at once. Raises Unavailable, ConfigError.
        """
        link = self._pool.connect(Deadline(self._budget), statement_timeout=0)
        try:
            link.raw._usock.settimeout(None)
            return meta_schema.apply_migrations(link.raw)
        except DatabaseError as e:
            raise translate(e) from e
        finally:
            link.close()

    def close(self) -> None:
        self._pool.close()

    # --- the cluster and its nodes ------------------------------------------------------------------

    @property
    def settles_after(self) -> float:
        """Seconds after which no fail-over loses a change. An embedded MetaDB has no standby: it never does."""
        return 0.0 if embedded_postgres.is_embedded(self._config.url) else SETTLE_S

    @property
    def is_restarting(self) -> bool:
        """Nobody could connect just now, and that may end soon."""
        return self._pool.may_be_back and 0 < self._pool.away_for() < self._patience

    @property
    def is_gone(self) -> bool:
        """Nobody can connect, for longer than a restart takes: nobody waits for it any more."""
        away = self._pool.away_for()
        return away > 0 and away >= self._patience

    @property
    def silence(self) -> float:
        """Seconds after which a node that says nothing is down."""
        return self.excused(self.down_after)

    def excused(self, silence: float) -> float:
        """``silence`` and the time that MetaDB was away just before: meanwhile no node could say anything, and all of
        them would look silent until their next heartbeat."""
        return silence + self._pool.was_away(_HEARD_AGAIN_S)

    def ping(self, deadline: Deadline) -> None:
        """Raises Unavailable, saying what is missing, unless MetaDB answers and has our schema."""
        [[version]] = self.read("schema_version", deadline)
        if version < meta_schema.latest():
            raise Unavailable(
                f"MetaDB is at migration {version}, not {meta_schema.latest()}: run `distfs migrate`"
            )

    @property
    def place(self) -> str:
        """Where it is, for people: without its password."""
        return str(self._fixed or self._config.url.partition("?")[0])

    def is_in(self, data: Path) -> bool:
        """Whether it is an embedded one that keeps its data in that folder."""
        folder = embedded_postgres.folder_of(self._config.url)
        return folder is not None and data.resolve() in folder.resolve().parents

    def known_cluster(self, deadline: Deadline) -> Cluster | None:
        """The cluster it is of; None: it was never migrated. Also of a MetaDB that another version has migrated."""
        try:
            [[id, has_nodes]] = self.read("cluster", deadline)
        except SchemaBehind:
            return None
        return Cluster(id, has_nodes)

    def cluster_id(self, deadline: Deadline) -> UUID:
        """The cluster's UUID, made by the first migration; asked for once."""
        known = self._cluster_id
        if known is None:
            [[known]] = self.read("cluster_id", deadline)
            self._cluster_id = known
        return known

    def settings(self, deadline: Deadline) -> dict[str, float]:
        """Times that the cluster agreed on, in seconds, by key of the configuration."""
        rows = self.read("settings", deadline)
        return {str(row[0]): float(row[1]) for row in rows}

    def propose_settings(self, times: Mapping[str, float], deadline: Deadline) -> None:
        """Agree on ``times``, for keys on which nobody said anything yet."""
        self.write("propose_settings", deadline, times=json.dumps(dict(times)))

    def adopt_settings(self, times: Mapping[str, float], deadline: Deadline) -> None:
        """Agree on ``times`` whatever was before."""
        self.write("adopt_settings", deadline, times=json.dumps(dict(times)))

    def nodes(self, deadline: Deadline) -> list[Node]:
        """Every node that ever registered, by id; whether it is alive is judged by the database's clock."""
        rows = self.read("nodes", deadline)
        silence = self.silence
        return [
            Node(
                id=number,
                uuid=uuid,
                address=Address.parse(address),
                zone=zone,
                capacity=capacity,
                free=free,
                state=state,
                alive=age < silence and not stopped and not given_up,
                heartbeat_age=age,
                used=used,
                disk=disk,
                unreachable=age < silence and not stopped and given_up,
            )
            for number, uuid, address, zone, capacity, free, state, age, used, stopped, disk, given_up in rows
        ]

    def heartbeat(self, report: NodeReport, deadline: Deadline, secret: bytes | None = None) -> int:
        """Say that a node is alive; -> its id. The first one registers it. 'draining' outlives heartbeats.

        ``secret``: 32 bytes that only the node knows; the first it names holds from then on. Raises Refused for
        another, and while another process is alive with the same UUID elsewhere, or another node at the same
        address; that ends by itself ``down_after`` seconds after that one's last heartbeat.
        """
        [[number]] = self.write(
            "node_heartbeat",
            deadline,
            uuid=report.uuid,
            address=str(report.address),
            zone=report.zone,
            capacity=report.capacity,
            used=report.used,
            free=report.free,
            state=report.state,
            down_after=self.down_after,
            disk=report.disk,
            secret=secret,
        )
        return int(number)

    def node_leave(
        self, uuid: UUID, address: Address, deadline: Deadline, secret: bytes | None = None
    ) -> None:
        """Say that a node stops: it is down at once, and may start again at another address.

        Nothing happens unless it is registered at ``address`` and with ``secret``. Its next heartbeat brings it back.
        """
        self.write("node_leave", deadline, uuid=uuid, address=str(address), secret=secret)

    # --- files --------------------------------------------------------------------------------------

    def commit_files(self, files: Sequence[NewFile], deadline: Deadline) -> list[File]:
        """Make files readable, all or none, in one statement; -> them in the same order.

        May be called again with the same files, for example after OutcomeUnknown (the only error after which
        their fragments must stay where they are). Raises Refused for a name or type that is too long, NodesLeft
        for a node that is being drained or was forgotten.
        """
        stored = [_checked(file) for file in files]
        if not stored:
            return []
        budget = self._budget_of(deadline)  # of both statements together
        files_json = json.dumps([_as_json(file) for file in stored])
        rows = self._write("commit_files", budget, None, {"files": files_json})
        created = {row[0]: row[1] for row in rows}
        if len(created) < len(stored):  # an earlier try, whose answer was lost, had committed them
            budget.uncancel()
            try:
                rows = self._read("committed", budget, {"ids": [file.id for file in stored]})
                created = {row[0]: row[1] for row in rows}
            except DistfsError as e:
                raise OutcomeUnknown(str(e), public=e.public) from e
        if len(created) < len(stored):
            raise OutcomeUnknown("a file was deleted while its commit was being confirmed")
        return [_committed(file, created[file.id]) for file in stored]

    def file(self, id: UUID, deadline: Deadline) -> File:
        """A file with all its slices, in order. Raises NotFound."""
        for row in self.read("file", deadline, id=id):
            return _file(row[:9], row[9])
        raise NotFound(f"no file {id}")

    def list_files(self, after: UUID | None, limit: int, deadline: Deadline) -> list[File]:
        """Up to ``limit`` (and MAX_LISTED) files with ids above ``after``, by id; without their slices."""
        after = UUID(int=0) if after is None else after
        rows = self.read("files_after", deadline, after=after, limit=max(0, min(limit, MAX_LISTED)))
        return [_file(row, []) for row in rows]

    def delete_file(self, id: UUID, deadline: Deadline) -> None:
        """Move a file to the trash: it cannot be read from now on, its fragments stay. Raises NotFound."""
        if not self.write("delete_file", deadline, id=id, again="is_trash"):
            raise NotFound(f"no file {id}")

    def undelete_file(self, id: UUID, deadline: Deadline) -> None:
        """Take a file back out of the trash. Raises NotFound when it is not there, or its end has begun."""
        if not self.write("undelete_file", deadline, id=id, again="is_file"):
            raise NotFound(f"no file {id} in the trash")

    # --- running statements: for the methods above, upkeep.db and limits.db ------------------------

    def connect(self, deadline: Deadline) -> Link:
        """A connection of the caller's own, who closes it. Raises Unavailable."""
        return self._pool.connect(deadline.sooner(self._budget), self._config.statement_timeout)

    def read(self, query: str, deadline: Deadline, **params: Any) -> Rows:
        """Until MetaDB has answered; also if it is restarted meanwhile. One that has been away for longer than that
        takes is not waited for."""
        return self._read(query, self._budget_of(deadline), params)

    def _read(self, query: str, budget: _Budget, params: dict[str, Any]) -> Rows:
        pause = _RETRY_FIRST_S
        error: DistfsError | None = None
        while True:
            lost = stale = False  # a connection broke; one that had been kept, as after a restart
            try:
                with self._pool.link(budget.left) as link:
                    try:
                        return link.run(query, budget.left, params)
                    finally:
                        lost, stale = link.broken, link.broken and link.reused
            except (Unavailable, Busy, OutcomeUnknown) as e:
                again = self._waits(e, budget) or lost
                if error is None or _has_time(budget.left):  # else what failed before says more
                    error = Unavailable(str(e), public=e.public) if isinstance(e, OutcomeUnknown) else e
                if not (again and _has_time(budget.left, pause)):
                    raise error from e
            if not stale:
                time.sleep(pause)
                pause = min(2 * pause, _RETRY_MOST_S)

    def write(self, query: str, deadline: Deadline, *, again: str | None = None, **params: Any) -> Rows:
        """Until MetaDB has answered or there is no time left. Cancelled only as long as nothing was sent.

        ``again``: the query that, after a try was lost, tells from an empty answer whether that try had
        already done it. Raises OutcomeUnknown when a try was lost and could not be settled, whatever the tries
        after it met: their error says nothing of that one.
        """
        return self._write(query, self._budget_of(deadline), again, params)

    def _write(self, query: str, budget: _Budget, again: str | None, params: dict[str, Any]) -> Rows:
        lost: OutcomeUnknown | None = None
        error: DistfsError | None = None
        pause = _RETRY_FIRST_S
        while True:
            try:
                whole = budget.left.uncancelled()
                limit = whole if lost else budget.left
                with self._pool.link(limit) as link:
                    limit.check_cancelled()
                    rows = link.run(query, whole, params)
                    if not rows and lost and again:
                        rows = link.run(again, whole, params)
                    return rows
            except OutcomeUnknown as e:
                lost = error = e
            except TooSlow as e:
                raise error or e from e  # what failed before says more
            except (Unavailable, Busy) as e:
                error = lost or e
                if not self._waits(e, budget) and lost is None and self.is_gone:
                    raise
            except DistfsError as e:
                if lost is None:
                    raise
                raise lost from e
            if not _has_time(budget.left.uncancelled(), pause):
                raise error
            time.sleep(pause)
            pause = min(2 * pause, _RETRY_MOST_S)

    def _budget_of(self, deadline: Deadline) -> _Budget:
        return _Budget(deadline, self._budget, self._patience)

    def _waits(self, error: DistfsError, budget: _Budget) -> bool:
        """Whether MetaDB is waited for after ``error``. While it is restarted that costs nothing of the time that its
        answer may take; for one that does not answer at all there is no more than that."""
        if isinstance(error, Away):
            return not self.is_gone and budget.begin_anew()
        return 0 < self._pool.away_for() < min(self._budget, self._patience)

    def _trouble(self) -> str:
        here = embedded_postgres.folder_of(self._config.url)
        return ballast.trouble(here) if here else ""

    def _where(self) -> MetaURL:
        if self._fixed is None:
            return MetaURL.parse(embedded_postgres.resolve(self._config.url))
        try:
            return MetaURL.of(self._config)  # its password may be another by now
        except ConfigError as e:  # and was right at the start: somebody is about to change it
            raise Unavailable(f"MetaDB cannot be used: {e}") from e


class _Budget:
    """What a call may take: so many ``seconds`` while MetaDB is there, and its restart in between."""

    def __init__(self, deadline: Deadline, seconds: float, patience: float) -> None:
        self._deadline, self._seconds = deadline, seconds
        self._until = time.monotonic() + patience
        self.left = deadline.sooner(seconds)

    def begin_anew(self) -> bool:
        """False: the restart takes longer than ``patience``."""
        patient = time.monotonic() < self._until
        if patient:
            self.left = self._deadline.sooner(self._seconds)
        return patient

    def uncancel(self) -> None:
        """From now on nobody cancels it."""
        self._deadline, self.left = self._deadline.uncancelled(), self.left.uncancelled()


def _has_time(deadline: Deadline, seconds: float = 0.0) -> bool:
    try:
        return deadline.remaining() > seconds
    except TooSlow:
        return False


def _storable(what: str, text: str, most: int) -> str:
    text = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    if len(text.encode()) > most:
        raise Refused(f"the {what} is longer than {counted(most, 'byte')} of UTF-8")
    return text


def _checked(file: NewFile) -> NewFile:
    """``file`` as it will be stored. Raises DistfsError when it could not be read back: a bug of ours."""
    whole = sum(piece.size for piece in file.slices) == file.size
    ordered = [piece.ordinal for piece in file.slices] == list(range(len(file.slices)))
    if not (whole and ordered and all(_placed(piece, file.policy) for piece in file.slices)):
        raise DistfsError(f"file {file.id} is not complete: it must not be committed")
    return NewFile(
        id=file.id,
        name=storable_name(file.name),
        content_type=storable_content_type(file.content_type),
        size=file.size,
        sha256=file.sha256,
        policy=file.policy,
        block_size=file.block_size,
        slices=file.slices,
    )


def _placed(piece: Slice, policy: Policy) -> bool:
    """Fragments on at least k nodes, all different."""
    holders = [node for node in piece.nodes if node != 0]
    return len(piece.nodes) == policy.width and len(holders) >= policy.k and len(set(holders)) == len(holders)


def _as_json(file: NewFile) -> dict[str, object]:
    return {
        "id": str(file.id),
        "name": file.name,
        "content_type": file.content_type,
        "size": file.size,
        "sha256": file.sha256.hex(),
        "k": file.policy.k,
        "m": file.policy.m,
        "block_size": file.block_size,
        "slices": [
            {
                "id": str(s.id),
                "ordinal": s.ordinal,
                "size": s.size,
                "digest": s.digest.hex(),
                "nodes": s.nodes,
            }
            for s in file.slices
        ],
    }


def _committed(file: NewFile, created_at: Any) -> File:
    return File(
        file.id,
        file.name,
        file.content_type,
        file.size,
        file.sha256,
        file.policy,
        file.block_size,
        file.slices,
        created_at,
    )


def _file(row: Sequence[Any], slices: list[Any]) -> File:
    file_id, name, content_type, size, sha256, k, m, block_size, created_at = row
    pieces = tuple(map(Slice.from_json, slices))
    return File(file_id, name, content_type, size, sha256, Policy(k, m), block_size, pieces, created_at)
