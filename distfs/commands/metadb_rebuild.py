"""``distfs metadb rebuild --from-nodes``: a MetaDB that was lost, made anew from the storage nodes' disks."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from distfs.commands.backup import running
from distfs.config import file as configuration
from distfs.config.settings import Config, Seconds
from distfs.deadline import Deadline
from distfs.errors import ConfigError, Refused
from distfs.local.data_folder import cluster_in
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.peers.directory import NodeDirectory
from distfs.process import output
from distfs.quantity import counted, size
from distfs.recovery.db import RecoveryDB
from distfs.recovery.judge import Judged
from distfs.recovery.rebuild import Made, Scanned, scan, write_files
from distfs.telemetry.logs import setup_logging
from distfs.tls.contexts import peers

_LIMIT_S = 60.0
_STATEMENT_S = 120.0
#: For the nodes to say that they live to a MetaDB that is just there.
_FIRST_WORD_S, _LOOK_S = 15.0, 0.1
_SHOWN_EVERY_S = 0.2

Given = argparse.Namespace


def rebuild(config: Config, given: Given) -> int:
    """-> 0: all that was found is in MetaDB; 1: something could not be read, or lacks something."""
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    with running(config.metadb) as where:
        patient = max(config.metadb.statement_timeout, _STATEMENT_S)
        metadb = replace(config.metadb, statement_timeout=Seconds(patient))
        with closing(MetaDB(metadb, config.node.down_after)) as meta:
            db = RecoveryDB(meta)
            if given.finish:
                return _finish(db, where)
            cluster = _become(meta, db, config, given, where)
            db.begin(Deadline(_LIMIT_S))
            nodes = _nodes(meta, config)
            if not nodes:
                raise Refused(
                    f"the MetaDB at {where} is that of cluster {cluster} again, and no storage node has said that it "
                    "lives: start them (`distfs up`, `python -m distfs.storage_server`), and run this again"
                )
            with closing(NodeDirectory(meta, config.peers, peers(config.tls))) as directory:
                scanned = scan(db, directory, cluster, nodes, _Counter("fragments read").more)
                files = _Counter("files judged")
                made = write_files(db, directory, _tell, lambda _: files.more(1), dry=given.dry_run)
                unreadable = _tell_unreadable(db)
    return _report(scanned, made, unreadable, dry=given.dry_run)


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


def _nodes(meta: MetaDB, config: Config) -> list[Node]:
    """Those that live, once they had the time to say so."""
    until = time.monotonic() + _FIRST_WORD_S
    while not (nodes := _alive(meta)) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    if nodes:
        time.sleep(2 * config.node.heartbeat)
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
    kind = "disagrees" if judged.disagree else "incomplete"
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
        f"read {counted(scanned.fragments, 'fragment')} on {counted(scanned.nodes, 'node')}; "
        f"{counted(made.files, 'file')} of {size(made.bytes)} {are} in MetaDB again"
    )
    if made.short:
        output.tell(f"of them, {made.short} lack fragments, which repair makes anew")
    if made.read:
        output.tell(
            f"of them, {made.read} say no sha-256: {'they would be' if dry else 'they were'} read whole"
        )
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
