"""MetaDB: the only source of truth. What services and nodes ask of it.

``upkeep.db`` and ``limits.db`` run theirs through this, too. A statement is one transaction, and a method is
one statement; a second follows only where an earlier try may have done what the first was to do. How they are run is
in ``metadb.transactions``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID

from distfs.config.settings import MetaDBConfig
from distfs.deadline import Deadline
from distfs.errors import (
    Busy,
    DistfsError,
    NotFound,
    OutcomeUnknown,
    Outdated,
    Refused,
    SchemaBehind,
    Unavailable,
)
from distfs.formats.hello import Key
from distfs.metadb import copies, embedded_postgres
from distfs.metadb import schema as meta_schema
from distfs.metadb.answers import Answers, Rows
from distfs.metadb.driver import DatabaseError
from distfs.metadb.link import BROKEN, translate
from distfs.metadb.transactions import Transactions
from distfs.model import (
    MAX_NAME_BYTES,
    MAX_TYPE_BYTES,
    NOBODYS,
    Address,
    File,
    NewFile,
    Node,
    NodeReport,
    Ownership,
    Policy,
    Slice,
    Strangers,
)
from distfs.quantity import counted
from distfs.telemetry.tracing import traced

MAX_LISTED = 1000

_OF_FILE = 11  # columns of a row of a file and a slice

_LOOK_AGAIN_S = 10.0  # whether older services may run
_SLICE_ID, _SLICE_SIZE, _SLICE_NODES = attrgetter("id"), attrgetter("size"), attrgetter("nodes")
_DIGEST = '"\\\\x%s"'
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


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


class MetaDB(Transactions):
    """What is asked, by name; every method but ``migrate`` ends as ``Transactions`` says."""

    def __init__(self, config: MetaDBConfig, down_after: float = 10.0) -> None:
        """``down_after``: seconds of silence after which a node is down. Raises ConfigError for the URL."""
        super().__init__(config)
        self.down_after = down_after
        self._cluster_id: UUID | None = None
        self._asked_of_services, self._looked_at = 0, float("-inf")  # the highest min_version, and since when
        self._answers = Answers(_whole_file)

    def migrate(self, roles: Path | None = None, cluster: UUID | None = None) -> list[int]:
        """Bring the schema to this version's; -> the numbers of the migrations applied now. ``roles``: make those of
        a cluster's parts first, with the passwords in that folder. ``cluster``: whose MetaDB an empty one becomes.

        Safe to run at any time and by several at once. Raises Unavailable, ConfigError.
        """
        with self._unhurried() as connection:
            return meta_schema.apply_migrations(connection, roles, cluster=cluster)

    def finish(self) -> None:
        """No service of a release before may run from now on. Raises Unavailable, ConfigError."""
        with self._unhurried() as connection:
            meta_schema.finish(connection)

    def pending(self) -> tuple[list[meta_schema.Migration], int]:
        """What ``migrate`` would do, and how many migrations MetaDB has that this distfs does not know. Raises
        ConfigError when it must not run with it; Unavailable."""
        with self._unhurried() as connection:
            return meta_schema.pending(connection)

    def copy_to(self, out: Callable[[bytes], object], *, secrets: bool = True) -> copies.Header:
        """Write all of it, as it is at one moment; everything may run meanwhile. Raises Unavailable, and what ``out``
        raises."""
        with self._unhurried() as connection:
            return copies.write(connection, out, secrets=secrets)

    def load_copy(
        self, copy: IO[bytes], *, anew: bool = False, also: Sequence[str] = ()
    ) -> tuple[copies.Header, list[int]]:
        """Become what a copy is of, all or nothing; -> what that says of itself, and the migrations applied to it.
        ``anew``: what this MetaDB knows of nodes gives way, and tokens where there is no file. ``also``: queries, by
        name, of the same transaction; they are given ``taken_at``.

        Raises Refused when this MetaDB is in use, Corrupt for no whole copy, Unavailable.
        """
        header = copies.check(copy)
        with self._unhurried() as connection:  # which holds the lock of migrations until it is closed
            if anew:
                copies.wipe(connection)
            meta_schema.apply_migrations(connection, upto=header.schema, cluster=header.cluster)
            [[number]] = connection.run("SELECT max(number) FROM migration")
            if number != header.schema:
                raise Refused(
                    f"MetaDB is at migration {number} already, the copy is of {header.schema}: name a new database, "
                    "or a new folder"
                )
            copies.load(connection, copy, [meta_schema.queries()[name] for name in also])
        return header, self.migrate()

    @contextmanager
    def _unhurried(self) -> Iterator[Any]:
        """A connection for what takes its time. Raises Unavailable, ConfigError."""
        link = self._pool.connect(Deadline(self._budget), statement_timeout=0)
        try:
            link.raw._usock.settimeout(None)
            yield link.raw
        except DatabaseError as e:
            raise translate(e) from e
        except BROKEN as e:
            raise Unavailable(f"the connection to MetaDB was lost: {e}") from e
        finally:
            link.close()

    # --- the cluster and its nodes ------------------------------------------------------------------

    @property
    def settles_after(self) -> float:
        """Seconds after which no fail-over loses a change. An embedded MetaDB has no standby: it never does."""
        return 0.0 if embedded_postgres.is_embedded(self._config.url) else SETTLE_S

    @property
    def silence(self) -> float:
        """Seconds after which a node that says nothing is down."""
        return self.excused(self.down_after)

    def ping(self, deadline: Deadline) -> None:
        """Raises Unavailable, saying what is missing, unless MetaDB answers and has our schema."""
        version = self.check_release(deadline)
        if version < meta_schema.latest():
            raise Unavailable(
                f"MetaDB is at migration {version}, not {meta_schema.latest()}: run `distfs migrate`"
            )

    def check_release(self, deadline: Deadline) -> int:
        """-> at which migration MetaDB is. Raises Outdated when it takes no service as old as this one."""
        [[version, needs]] = self.read("schema_version", deadline)
        self._asked_of_services, self._looked_at = needs, time.monotonic()
        if why := meta_schema.too_old(needs):
            raise Outdated(why)
        return int(version)

    def all_know(self, migration: int, deadline: Deadline) -> bool:
        """Whether no service may run that does not know it: what came with it can be read by all. No, as long as it
        cannot be told."""
        if self._asked_of_services < migration and time.monotonic() - self._looked_at > _LOOK_AGAIN_S:
            self._looked_at = time.monotonic()
            with suppress(Unavailable, Busy, OutcomeUnknown):
                self.check_release(deadline)
        return self._asked_of_services >= migration

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

    def is_rebuilding(self, deadline: Deadline) -> bool:
        """Whether it is being made anew from the nodes: what no row names yet may be all there is of a file."""
        [[begun]] = self.read("is_rebuilding", deadline)
        return bool(begun)

    def cluster_id(self, deadline: Deadline) -> UUID:
        """The cluster's UUID, made by the first migration; asked for once."""
        known = self._cluster_id
        if known is None:
            [[known]] = self.read("cluster_id", deadline)
            self._cluster_id = known
        return known

    def cluster_keys(self, deadline: Deadline) -> tuple[Key, ...]:
        """By which services and nodes know each other, the newest first."""
        return tuple(Key(bytes(secret)) for [secret] in self.read("cluster_keys", deadline))

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

    def node_holds_keys(
        self, uuid: UUID, keys: Sequence[Key], deadline: Deadline, secret: bytes | None
    ) -> None:
        """Say which of the cluster's keys a node takes. Nothing happens without its ``secret``."""
        ids = ",".join(map(str, keys))
        self.write("node_holds_keys", deadline, uuid=uuid, ids=ids, secret=secret)

    def node_refused(
        self, uuid: UUID, strangers: int, address: str, deadline: Deadline, secret: bytes | None
    ) -> None:
        """Say how many strangers a node refused in the last hour, and from where the last one came. Nothing happens
        without its ``secret``."""
        self.write("node_refused", deadline, uuid=uuid, strangers=strangers, address=address, secret=secret)

    def strangers(self, deadline: Deadline) -> list[Strangers]:
        """Of each node that refused somebody within the last hour."""
        return [Strangers(*row) for row in self.read("strangers", deadline)]

    # --- files --------------------------------------------------------------------------------------

    @traced("commit")
    def commit_files(
        self, files: Sequence[NewFile], deadline: Deadline, whose: Ownership = NOBODYS
    ) -> list[File]:
        """Make files readable, all or none, in one statement; -> them in the same order.

        May be called again with the same files, for example after OutcomeUnknown (the only error after which
        their fragments must stay where they are). Raises Refused for a name or type that is too long, NodesLeft
        for a node that is being drained or was forgotten, OverQuota.
        """
        stored = [_checked(file) for file in files]
        if not stored:
            return []
        owned: dict[str, Any] = {"owner": whose.owner, "visibility": whose.visibility, "quota": whose.quota}
        if len(stored) == 1:
            [[since]] = self.repeat("commit_file", deadline, **_facts(stored[0]), **owned)
            created = {stored[0].id: since}
        else:
            facts = json.dumps([_facts(file) for file in stored])
            rows = self.write("commit_files", deadline, files=facts, **owned)
            created = {row[0]: row[1] for row in rows}
        if None in created.values():
            raise OutcomeUnknown("a file was deleted while its commit was being confirmed")
        return [_committed(file, created[file.id], whose) for file in stored]

    def file(self, id: UUID, deadline: Deadline, seen_by: str | None = None) -> File:
        """A file with all its slices, in order; ``seen_by``: no other than an owner's, and those that were opened.

        Raises NotFound.
        """
        if seen_by is None:
            rows = self.read("file", deadline, answers=self._answers, id=id)
        else:
            rows = self.read("file_seen", deadline, answers=self._answers, id=id, owner=seen_by)
        if not rows:
            raise NotFound(f"no file {id}")
        found: File = rows[0][0]
        return found

    def list_files(
        self, after: UUID | None, limit: int, deadline: Deadline, seen_by: str | None = None
    ) -> list[File]:
        """Up to ``limit`` (and MAX_LISTED) files with ids above ``after``, by id; without their slices. ``seen_by``:
        only those of an owner, and public ones."""
        page: dict[str, Any] = {
            "after": UUID(int=0) if after is None else after,
            "limit": max(0, min(limit, MAX_LISTED)),
        }
        if seen_by is None:
            rows = self.read("files_after", deadline, **page)
        else:
            rows = self.read("files_seen_after", deadline, **page, owner=seen_by)
        return [_file(row, []) for row in rows]

    def change_file(
        self, id: UUID, deadline: Deadline, *, visibility: str | None = None, name: str | None = None
    ) -> tuple[str, str]:
        """What is not None is so from now on. -> both. Raises NotFound, Refused for a name that is too long."""
        name = None if name is None else storable_name(name)
        rows = self.write("change_file", deadline, id=id, visibility=visibility, name=name)
        if not rows:
            raise NotFound(f"no file {id}")
        [[visibility_now, name_now]] = rows
        return visibility_now, name_now

    def delete_file(self, id: UUID, deadline: Deadline) -> None:
        """Move a file to the trash: it cannot be read from now on, its fragments stay. Raises NotFound."""
        if not self.write("delete_file", deadline, id=id, again="is_trash"):
            raise NotFound(f"no file {id}")

    def undelete_file(self, id: UUID, deadline: Deadline) -> None:
        """Take a file back out of the trash. Raises NotFound when it is not there, or its end has begun."""
        if not self.write("undelete_file", deadline, id=id, again="is_file"):
            raise NotFound(f"no file {id} in the trash")


def _storable(what: str, text: str, most: int) -> str:
    if text.isascii() and "\0" not in text and len(text) <= most:  # as most are
        return text
    text = _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    if len(text.encode()) > most:
        raise Refused(f"the {what} is longer than {counted(most, 'byte')} of UTF-8")
    return text


def _checked(file: NewFile) -> NewFile:
    """``file`` as it will be stored. Raises DistfsError when it could not be read back: a bug of ours."""
    left = file.size
    good = True
    for ordinal, piece in enumerate(file.slices):
        left -= piece.size
        good = good and piece.ordinal == ordinal and _placed(piece, file.policy)
    if left or not good:
        raise DistfsError(f"file {file.id} is not complete: it must not be committed")
    name, content_type = storable_name(file.name), storable_content_type(file.content_type)
    if name == file.name and content_type == file.content_type:
        return file
    return replace(file, name=name, content_type=content_type)


def _placed(piece: Slice, policy: Policy) -> bool:
    """Fragments on at least k nodes, all different."""
    holders, nobody = set(piece.nodes), piece.nodes.count(0)
    kept = len(piece.nodes) - nobody
    return len(piece.nodes) == policy.width and kept >= policy.k and len(holders - {0}) == kept


def _facts(file: NewFile) -> dict[str, Any]:
    """What ``commit_file`` takes (sql/functions.sql), as PostgreSQL writes it: so nobody has to look what it is."""
    return {
        "id": str(file.id),
        "name": file.name,
        "content_type": file.content_type,
        "size": str(file.size),
        "sha256": f"\\x{file.sha256.hex()}",
        "k": str(file.policy.k),
        "m": str(file.policy.m),
        "block_size": str(file.block_size),
        "slices": f"{{{','.join(map(str, map(_SLICE_ID, file.slices)))}}}",
        "sizes": f"{{{','.join(map(str, map(_SLICE_SIZE, file.slices)))}}}",
        "digests": f"{{{','.join([_DIGEST % piece.digest.hex() for piece in file.slices])}}}",
        "nodes": f"{{{','.join(map(str, chain.from_iterable(map(_SLICE_NODES, file.slices))))}}}",
        "stored": None if file.stored is None else str(file.stored),
    }


def _committed(file: NewFile, created_at: Any, whose: Ownership) -> File:
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
        whose.owner,
        whose.visibility,
        stored=file.stored,
    )


def _whole_file(id: UUID, rows: Rows) -> Rows:
    """The file of which these rows are: one for each slice, or one for none."""
    slices = [row[_OF_FILE:] for row in rows if row[_OF_FILE] is not None]
    slices.sort(key=itemgetter(1))  # their ordinals
    return ((_file((id, *rows[0][:_OF_FILE]), slices),),)


def _file(row: Sequence[Any], slices: Iterable[Sequence[Any]]) -> File:
    file_id, name, content_type, size, sha256, k, m, block_size, *rest, stored = row
    pieces = tuple(
        Slice(slice_id, ordinal, size, digest, tuple(nodes))
        for slice_id, ordinal, size, digest, nodes in slices
    )
    shape = Policy(k, m), block_size, pieces
    return File(file_id, name, content_type, size, sha256, *shape, *rest, stored=stored)
