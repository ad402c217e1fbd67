"""What every command of an operator works with, and how an error of one ends it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

from distfs.agreement import with_times
from distfs.config import file as configuration
from distfs.config.settings import Config, Seconds
from distfs.deadline import Deadline
from distfs.errors import DistfsError, NotFound, Refused
from distfs.meta import MetaDB
from distfs.model import Node
from distfs.peers.directory import NodeDirectory
from distfs.process.output import FAILED, code_of, complain
from distfs.telemetry.logs import setup_logging
from distfs.tls.contexts import peers
from distfs.upkeep.db import UpkeepDB

#: An operator waits longer than a user's request would for what looks at every slice.
_STATEMENT_TIMEOUT_S = 60.0
#: Who types a command sees sooner what is the matter with a MetaDB than a user's request would, and can come again.
PATIENCE_S = 4.0
CALL_LIMIT_S = 90.0
_WALK_LIMIT_S = 3600.0
#: After MetaDB was started its nodes have said within this that they live.
_HEARD_AGAIN_S, _LOOK_S = 5.0, 0.1


@dataclass(frozen=True)
class Operator:
    """A cluster as commands see it: MetaDB, and the nodes through it. Thread-safe."""

    config: Config  # with the times that the cluster agreed on
    configured: Config  # as it was read
    meta: MetaDB
    db: UpkeepDB
    directory: NodeDirectory

    def deadline(self) -> Deadline:
        """For one question."""
        return Deadline(CALL_LIMIT_S)

    def walk(self) -> Deadline:
        """For what goes through millions of slices, in pages. A MetaDB that does not answer ends it sooner."""
        return Deadline(_WALK_LIMIT_S)

    def nodes(self) -> list[Node]:
        """Every node there is, by id."""
        return self.meta.nodes(self.deadline())

    def node(self, named: str) -> Node:
        """The node called by its id, UUID or address. Raises NotFound, Refused when there are several."""
        by_number = re.fullmatch(r"\d{1,9}", named, re.ASCII)
        found = [
            node
            for node in self.nodes()
            if (by_number and node.id == int(named))
            or named.lower() == str(node.uuid)
            or named == str(node.address)
        ]
        if len(found) > 1:
            ids = ", ".join(str(node.id) for node in found)
            raise Refused(f"nodes {ids} were all seen at {named}: name the one you mean by its id")
        if not found:
            raise NotFound(f"there is no node {named!r}: `distfs nodes` lists ids, UUIDs and addresses")
        return found[0]


@contextmanager
def operator(config: Config) -> Iterator[Operator]:
    """An Operator over a configuration, with the times of its cluster. Raises Unavailable."""
    patient = max(config.metadb.statement_timeout, _STATEMENT_TIMEOUT_S)
    metadb = replace(config.metadb, statement_timeout=Seconds(patient), patience=Seconds(PATIENCE_S))
    meta = MetaDB(metadb, config.node.down_after)
    with closing(meta):
        agreed = with_times(config, meta.settings(Deadline(CALL_LIMIT_S)))
        meta.down_after = agreed.node.down_after
        _hear_nodes(meta)
        with closing(NodeDirectory(meta, agreed.peers, peers(config.tls))) as directory:
            yield Operator(agreed, config, meta, UpkeepDB(meta), directory)


def _hear_nodes(meta: MetaDB) -> None:
    """Just after MetaDB was started, nodes that live look down, and what they keep looks lost: they could not say
    anything while it was away."""
    while any(not (node.alive or node.unreachable) for node in meta.nodes(Deadline(CALL_LIMIT_S))):
        [[seconds]] = meta.read("up_for", Deadline(CALL_LIMIT_S))
        if seconds > _HEARD_AGAIN_S:
            break
        time.sleep(_LOOK_S)


def run(config: Config, command: Callable[[Operator], int], failed: int = FAILED) -> int:
    """Run a command; -> its exit code. What refuses it becomes a line on standard error, and ``failed``.

    Raises what else ends it, for ``output.command``.
    """
    setup_logging(configuration.override(config, "log", level="ERROR").log)
    try:
        with operator(config) as one:
            return command(one)
    except DistfsError as e:
        if type(e) is DistfsError or code_of(e) != FAILED:
            raise
        complain(f"distfs: {e}")
        return failed


def uuid_of(text: str) -> UUID:
    """A file's id as an operator writes it. Raises Refused."""
    try:
        return UUID(text)
    except ValueError:
        raise Refused(f"{text!r} is not a file's id: an upload answers with one like {UUID(int=0)}") from None
