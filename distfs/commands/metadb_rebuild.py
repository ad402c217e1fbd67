"""``distfs metadb rebuild --from-nodes``: a MetaDB that was lost, made anew from the storage nodes' disks."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from uuid import UUID

from distfs.commands.backup import running
from distfs.config import file as configuration
from distfs.config.settings import Config, Seconds
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Refused, Unavailable
from distfs.local.data_folder import cluster_in
from distfs.meta import MetaDB
from distfs.metadb import embedded_postgres
from distfs.model import Node, copied_at
from distfs.peers.directory import NodeDirectory
from distfs.process import output
from distfs.quantity import counted, size
from distfs.recovery.db import BEGIN_WITH_COPY, RecoveryDB
from distfs.recovery.judge import Judged
from distfs.recovery.kept import deletions, fetch_copy, kept
from distfs.recovery.rebuild import Made, Scanned, scan, write_files
from distfs.telemetry.logs import setup_logging
from distfs.tls.contexts import peers

_LIMIT_S = 60.0
_STATEMENT_S = 120.0
#: For the nodes to say that they live to a MetaDB that is just there.
_FIRST_WORD_S, _LOOK_S = 15.0, 0.1
_SHOWN_EVERY_S = 0.2

Given = argparse.Namespace


@dataclass(frozen=True, slots=True)
class _At:
    """Which MetaDB, and whose; ``ran``: before this command, so that nodes may be there already."""

    config: Config
    cluster: UUID
    where: str
    ran: bool


def _runs(config: Config) -> bool:
    if embedded_postgres.is_embedded(config.metadb.url):
        with suppress(Unavailable):
            return bool(embedded_postgres.resolve(config.metadb.url))
        return False
    return True


def rebuild(config: Config, given: Given) -> int:
    """-> 0: all that was found is in MetaDB; 1: something could not be read, or lacks something."""
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    ran = _runs(config)
    with running(config.metadb) as where, _asked(config) as meta:
        db = RecoveryDB(meta)
        if given.finish:
            return _finish(db, where)
        at = _At(config, _become(meta, db, config, given, where), where, ran)
        leaves_no_mark = (
            given.dry_run and not db.is_begun(Deadline(_LIMIT_S)) and db.has_files(Deadline(_LIMIT_S))
        )
        db.begin(Deadline(_LIMIT_S))
        try:
            return _add(meta, at, dry=given.dry_run)
        finally:
            if leaves_no_mark:  # or the upkeep of a MetaDB that is well would wait for `--finish`
                db.end(Deadline(_LIMIT_S))


def restore_from_nodes(config: Config, given: Given) -> int:
    """Take the newest copy that the nodes keep, and add what their disks have since. -> as ``rebuild``."""
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    ran = _runs(config)
    with running(config.metadb) as where, tempfile.TemporaryFile() as copy:
        with _asked(config) as meta:
            db = RecoveryDB(meta)
            at = _At(config, _become(meta, db, config, given, where), where, ran)
            loaded = db.copy_loaded(Deadline(_LIMIT_S))
            if loaded is None:
                since = _fetch(meta, at, copy)
                meta.load_copy(copy, anew=True, also=BEGIN_WITH_COPY)
        if loaded is None:
            then = datetime.fromtimestamp(since, UTC)
            output.tell(
                f"the MetaDB at {where} is as it was at {then:%Y-%m-%d %H:%M:%S} UTC; what came since is added"
            )
        with _asked(config) as meta:  # anew: what its connections knew of the schema is gone
            return _add(meta, at)


def _asked(config: Config) -> closing[MetaDB]:
    """MetaDB, for what takes its time."""
    patient = Seconds(max(config.metadb.statement_timeout, _STATEMENT_S))
    return closing(MetaDB(replace(config.metadb, statement_timeout=patient), config.node.down_after))


def _fetch(meta: MetaDB, at: _At, copy: IO[bytes]) -> float:
    """The newest copy that can be read, into ``copy``; -> when it was begun. Raises Refused."""
    db = RecoveryDB(meta)
    if db.has_files(Deadline(_LIMIT_S)):
        raise Refused(
            f"the MetaDB at {at.where} has files: name a new database, or a new folder, with --metadb; "
            "`distfs metadb rebuild --from-nodes` adds what the disks have to one that is there"
        )
    db.end(Deadline(_LIMIT_S))  # of an earlier run, by nodes that have other ids then
    db.begin(Deadline(_LIMIT_S))
    nodes = _nodes(meta, at)
    with closing(NodeDirectory(meta, at.config.peers, peers(at.config.tls))) as directory:
        scan(db, directory, at.cluster, nodes, _Counter("fragments read").more, copies=True)
        found = fetch_copy(directory, kept(db, Deadline(_LIMIT_S)), copy, output.tell)
    if found is None:
        raise Refused(
            "the nodes that answer keep no copy of MetaDB that can be read: "
            "`distfs metadb rebuild --from-nodes` makes MetaDB anew from the files themselves"
        )
    return copied_at(found.id)[0]


def _add(meta: MetaDB, at: _At, *, dry: bool = False) -> int:
    """All files that the disks have and MetaDB does not, but those that are known to have been deleted."""
    db = RecoveryDB(meta)
    nodes = _nodes(meta, at)
    with closing(NodeDirectory(meta, at.config.peers, peers(at.config.tls))) as directory:
        scanned = scan(db, directory, at.cluster, nodes, _Counter("fragments read").more)
        found = kept(db, Deadline(_LIMIT_S))
        deleted = deletions(directory, found, db.copy_loaded(Deadline(_LIMIT_S)), output.tell)
        if not dry:
            _delete_again(db, deleted)
            _tell_gone(db, meta, scanned)
        files = _Counter("files judged")
        made = write_files(db, directory, _tell, lambda _: files.more(1), dry=dry, deleted=deleted)
        unreadable = _tell_unreadable(db)
    return _report(scanned, made, unreadable, dry=dry)


def _delete_again(db: RecoveryDB, deleted: Collection[UUID]) -> None:
    """What a copy has and was deleted after it is in the trash again."""
    for id in deleted:
        if (name := db.delete(id, Deadline(_LIMIT_S))) is not None:
            output.tell(f"deleted: {id} {name!r}: it was deleted after the copy, and is in the trash again")


def _tell_gone(db: RecoveryDB, meta: MetaDB, scanned: Scanned) -> None:
    """Files that a copy has and the disks have not, if all disks were looked at."""
    silent = [str(node.id) for node in meta.nodes(Deadline(_LIMIT_S)) if node.id not in scanned.read]
    if silent:
        output.tell(f"not read: node {', '.join(silent)}: what they keep is not known")
        return
    for id, name in db.gone(Deadline(_LIMIT_S)):
        output.tell(f"gone: {id} {name!r}: it is not on the disks: it was deleted after the copy, or is lost")


def _finish(db: RecoveryDB, where: str) -> int:
    if not db.is_begun(Deadline(_LIMIT_S)):
        raise Refused(f"the MetaDB at {where} is not being rebuilt: there is nothing to finish")
    db.end(Deadline(_LIMIT_S))
    output.tell("upkeep puts aside what no file names, and deletes it upkeep.quarantine_ttl later")
    return output.DONE


# --- whose MetaDB it is to be -------------------------------------------------------------------------------


def _become(meta: MetaDB, db: RecoveryDB, config: Config, given: Given, where: str) -> UUID:
    """The MetaDB is the nodes' cluster's, made so if it is nobody's yet. Raises ConfigError, Refused.

    Its key may be a new one: nodes take what MetaDB says.
    """
    known = meta.known_cluster(Deadline(_LIMIT_S))
    cluster: UUID | None = given.cluster or cluster_in(Path(config.local.data))
    if cluster is None and known is not None and known.has_nodes:
        cluster = known.id
    if cluster is None:
        raise ConfigError(
            "whose MetaDB is it to be? Name the cluster of its storage nodes with --cluster: node.json in the folder "
            "of each has it, and its log"
        )
    meta.migrate(cluster=cluster)
    if meta.cluster_id(Deadline(_LIMIT_S)) != cluster and not db.take_identity(cluster, Deadline(_LIMIT_S)):
        raise Refused(
            f"the MetaDB at {where} is another cluster's than {cluster}, and in use: name an empty database, or a "
            "new folder, with --metadb"
        )
    return cluster


def _nodes(meta: MetaDB, at: _At) -> list[Node]:
    """Those that live, once they had the time to say so. Raises Refused when there are none."""
    until = time.monotonic() + (_FIRST_WORD_S if at.ran else 0.0)
    while not (nodes := _alive(meta)) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    if not nodes:
        raise Refused(
            f"the MetaDB at {at.where} is that of cluster {at.cluster} again, and no storage node has said that it "
            "lives: start them (`distfs up`, `python -m distfs.storage_server`), and run this again"
        )
    time.sleep(2 * at.config.node.heartbeat)
    return _alive(meta)


def _alive(meta: MetaDB) -> list[Node]:
    return [node for node in meta.nodes(Deadline(_LIMIT_S)) if node.alive]


# --- what is told -------------------------------------------------------------------------------------------


class _Counter:
    """A number on standard error that grows, where somebody watches."""

    def __init__(self, what: str) -> None:
        self._what, self._count, self._shown_at = what, 0, 0.0
        self._shows = output.is_watched()

    def more(self, count: int) -> None:
        self._count += count
        if self._shows and time.monotonic() - self._shown_at > _SHOWN_EVERY_S:
            self._shown_at = time.monotonic()
            output.show(f"\r\x1b[K{self._count:,} {self._what}\r")


def _tell(id: UUID, name: str, judged: Judged) -> None:
    kind = "disagrees" if judged.disagree else "deleted" if judged.deleted else "incomplete"
    output.tell(f"{kind}: {id} {name!r}: {judged.why}")


def _tell_unreadable(db: RecoveryDB) -> int:
    count = 0
    for fragment, node, wrong in db.unreadable(Deadline(_LIMIT_S)):
        output.tell(f"unreadable: fragment {fragment} on node {node}: {wrong}")
        count += 1
    return count


def _report(scanned: Scanned, made: Made, unreadable: int, *, dry: bool) -> int:
    for node, why in sorted(scanned.failed.items()):
        output.tell(f"not read: node {node}: {why}")
    are = "would be" if dry else "are"
    output.tell(
        f"read {counted(scanned.fragments, 'fragment')} on {counted(len(scanned.read), 'node')}; "
        f"{counted(made.files, 'file')} of {size(made.bytes)} {are} in MetaDB again"
    )
    if made.short:
        output.tell(f"of them, {made.short} lack fragments, which repair makes anew")
    if made.read:
        output.tell(
            f"of them, {made.read} say no sha-256: {'they would be' if dry else 'they were'} read whole"
        )
    if made.deleted:
        output.tell(f"not in MetaDB: {made.deleted} that were deleted")
    if made.incomplete or made.disagree or unreadable:
        output.tell(
            f"not in MetaDB: {made.incomplete} incomplete, {made.disagree} that disagree, "
            f"{counted(unreadable, 'fragment')} that cannot be read; start what nodes are missing, and run this again"
        )
    if not dry:
        output.tell(
            "A disk does not tell what was deleted lately, nor owners, tokens, links, new names, files of no bytes. "
            "Until `distfs metadb rebuild --from-nodes --finish` upkeep takes nothing for garbage"
        )
    whole = not (made.incomplete or made.disagree or unreadable or scanned.failed)
    return output.DONE if whole else output.FAILED
