"""Fragments made anew on other nodes: what repair, drain and rebalance have in common.

The order never varies: write, read it back from the disk and check it, switch MetaDB's row by compare-and-set,
and only then put the old one aside. A step that comes too late, from a service that no longer leads, loses the
comparison and has done nothing; what it wrote stays for the orphan sweep, since deleting it could hit the very
fragment that the winner wrote at the same place.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

from distfs.config.settings import PeersConfig
from distfs.deadline import Deadline
from distfs.errors import (
    Cancelled,
    Corrupt,
    DistfsError,
    Full,
    NewerFormat,
    NodeUnavailable,
    NotFound,
    ProtocolError,
    TooSlow,
    Unavailable,
)
from distfs.formats.coding import code_for
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fragment import MAX_CELLS, checksum
from distfs.fragment_store import committed, fault
from distfs.meta import MetaDB
from distfs.model import FragmentId, Node
from distfs.peers.directory import NodeDirectory
from distfs.peers.versioned import fitting
from distfs.quantity import size as readable
from distfs.telemetry.metrics import CHECKSUMS
from distfs.transfer.blocks import BlockPool
from distfs.transfer.rebuild import rebuild
from distfs.transfer.remains import Remains, search_of
from distfs.transfer.slice_plan import FileIdentity
from distfs.transfer.slice_read import NoteDamage, SliceReader
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import choose_target
from distfs.upkeep.model import SliceTask

log = logging.getLogger("distfs.upkeep")

#: How many nodes are tried for one fragment before the slice waits its turn again.
_MOST_TARGETS = 4
_REPAIR = CHECKSUMS.index("repair")

#: Errors that say something of the node written to, and nothing of those read from.
_TARGETS_FAULT = (NodeUnavailable, TooSlow, Full, ProtocolError)


class SourceUnreadable(Unavailable):
    """The node copied from does not give the fragment now; the others may do. It proves nothing bad."""


class FragmentMaker:
    """Thread-safe. ``note_damage`` hears of what proved bad while it was read."""

    def __init__(
        self,
        meta: MetaDB,
        db: UpkeepDB,
        directory: NodeDirectory,
        config: PeersConfig,
        pool: BlockPool,
        note_damage: NoteDamage,
    ) -> None:
        self.db, self.directory = db, directory
        self._meta, self._config, self._pool, self._note_damage = meta, config, pool, note_damage
        self._random = Random()

    def nodes(self, deadline: Deadline) -> dict[int, Node]:
        """Every node by id."""
        return {node.id: node for node in self.directory.nodes(deadline)}

    def time_for(self, size: int, deadline: Deadline) -> Deadline:
        """Enough for ``size`` bytes of one fragment, within ``deadline``."""
        return deadline.sooner(self._config.base_timeout + size / self._config.min_rate)

    def check(self, task: SliceTask, index: int, node: int, deadline: Deadline) -> None:
        """Read a fragment on its node's disk. Raises NotFound, Corrupt (also when it is another slice's)."""
        deadline = self.time_for(task.fragment_size, deadline)
        store = self.directory.store(node, deadline)
        id = FragmentId(task.piece.id, index)
        if reason := fault(store, id, task.piece.digest, task.block_size, deadline):
            CHECKSUMS.add(at=_REPAIR)
            raise Corrupt(reason)

    def confirm(self, task: SliceTask, index: int, node: int, deadline: Deadline) -> None:
        """``check`` a fragment just written. What is wrong with it is the node's fault: raises NodeUnavailable."""
        try:
            self.check(task, index, node, deadline)
        except (Corrupt, NotFound) as e:
            raise NodeUnavailable(f"node {node} did not keep what it was given: {e}") from e

    def rebuild(
        self, task: SliceTask, index: int, lost: Sequence[int], target: int, deadline: Deadline
    ) -> None:
        """Fragment ``index`` on ``target``, from the others. Those ``lost`` are read last, cell by cell."""
        deadline = deadline.sooner(2 * self._config.base_timeout + task.piece.size / self._config.min_rate)
        alive = {n.id for n in self.directory.nodes(deadline) if n.alive}
        held = [i for i, node in enumerate(task.piece.nodes) if node]
        order = sorted(held, key=lambda i: (i in lost, task.piece.nodes[i] not in alive))
        extra = self._extra_of_others(task, order, alive, deadline)
        code = code_for(task.policy)
        identity = self._identity(task, deadline)
        span = 0, -(-task.piece.size // task.block_size)
        stores = self.directory.store
        shape = task.piece, task.block_size, code
        remains = Remains(search_of(self.directory), task.piece, last_resort=True)
        reader = SliceReader(*shape, stores, order, span, deadline, self._note_damage, remains=remains)
        size = min(task.block_size, task.piece.size)
        with self._pool.lent(deadline, code.beside(size), size) as buffer, contextlib.closing(reader):
            rebuild(
                identity,
                task.piece,
                index,
                reader,
                stores(target, deadline),
                buffer,
                deadline,
                extra=extra,
            )

    def copy(self, task: SliceTask, index: int, source: int, target: int, deadline: Deadline) -> None:
        """The very cells of fragment ``index`` from one node to another.

        Raises of the source NotFound, Corrupt, SourceUnreadable; of the target what writing raises.
        """
        deadline = deadline.sooner(2 * self._config.base_timeout + task.fragment_size / self._config.min_rate)
        id = FragmentId(task.piece.id, index)
        size = code_for(task.policy).cell_size(min(task.block_size, task.piece.size))
        with contextlib.ExitStack() as held:
            buffer = held.enter_context(self._pool.lent(deadline, size=size))
            extra = self._extra(id, source, deadline)
            with _reading(id, source):
                opened = self.directory.store(source, deadline).get(id, 0, MAX_CELLS, deadline)
            reader = held.enter_context(contextlib.closing(opened))
            reader.table.check(task.piece.digest, task.block_size)
            entries = reader.table.entries
            store = self.directory.store(target, deadline)
            header = self._identity(task, deadline).header(task.piece.id, task.piece.ordinal, index)
            header = replace(header, extra=fitting(extra, store, deadline))
            writer = store.put(header, sum(e.length for e in entries), deadline)
            with committed(writer):
                for entry in entries:
                    cell = buffer[: entry.length]
                    with _reading(id, source):
                        reader.read_cell(cell)
                    if checksum(cell) != entry.checksum:
                        CHECKSUMS.add(at=_REPAIR)
                        raise Corrupt(f"fragment {id} on node {source} fails a checksum")
                    writer.write_cell(entry, cell)
                writer.finish(reader.table.slice_size, reader.table.last)

    def _extra_of_others(
        self, task: SliceTask, order: Sequence[int], alive: set[int], deadline: Deadline
    ) -> Extra:
        """What the first fragment that answers has beside its cells, for one that is made of all. Raises NewerFormat
        when any has what one made here would lack. One that takes a newer distfs to read gives nothing to it."""
        found: Extra | None = None
        for index in order:
            if found is not None and task.piece.nodes[index] not in alive:
                continue
            limit = deadline.sooner(self._config.stall_timeout)
            try:
                store = self.directory.store(task.piece.nodes[index], limit)
                table = store.stat(FragmentId(task.piece.id, index), limit)
            except Cancelled:
                raise
            except DistfsError:  # it is not read, or its reader says why not
                continue
            table.extra.features.check_changeable()
            table.extra.check_room()
            found = table.extra if found is None else found
        return PLAIN if found is None else found

    def _extra(self, id: FragmentId, source: int, deadline: Deadline) -> Extra:
        """What a fragment has beside its cells, for one that is made of it. Raises NewerFormat when that must not be
        made here, and as ``copy`` does."""
        with _reading(id, source):
            table = self.directory.store(source, deadline).stat(id, deadline)
        table.check_changeable()
        table.extra.check_room()
        return table.extra

    def place(
        self,
        task: SliceTask,
        index: int,
        write: Callable[[int], None],
        choose: Callable[[set[int]], int | None],
    ) -> int:
        """Write a fragment to the first node that ``choose`` names and that takes it.

        ``choose`` is told whom not to name again. Raises Unavailable when it has nobody to name any more, and
        what reading raises.
        """
        refused: set[int] = set()
        reason: DistfsError | None = None
        for _ in range(_MOST_TARGETS):
            target = choose(refused)
            if target is None:
                break
            try:
                write(target)
                return target
            except _TARGETS_FAULT as e:
                log.warning("fragment %s.%d: node %d cannot take it: %s", task.piece.id, index, target, e)
                refused.add(target)
                reason = e
        raise Unavailable(
            f"no node can take fragment {task.piece.id}.{index} of {readable(task.fragment_size)}"
            + (f": {reason}" if reason else ": start another storage node")
        )

    def anywhere(
        self, task: SliceTask, index: int, deadline: Deadline, own: bool
    ) -> Callable[[set[int]], int | None]:
        """For ``place``: by free bytes and zones. ``own``: the fragment's own node may be named, too."""
        nodes = self.directory.nodes(deadline)
        held = task.piece.nodes

        def choose(refused: set[int]) -> int | None:
            kept_out = refused if own else refused | {held[index]}
            return choose_target(nodes, held, index, task.fragment_size, kept_out, self._random)

        return choose

    def put_aside(self, id: FragmentId, node: int, since: float, deadline: Deadline) -> None:
        """Take the old fragment away after the switch; a node that does not answer is left to the orphan sweep.

        It is not deleted: a MetaDB that fails over and loses its last commits names it again. The orphan sweep
        deletes it when ``quarantine_ttl`` is over. ``since``: a time.monotonic() before the switch. What was
        written later is another's, and stays.
        """
        try:
            store = self.directory.store(node, deadline)
            if not store.quarantine(id, time.monotonic() - since, deadline):
                log.info(
                    "fragment %s on node %d is not put aside: it is gone, or was written since", id, node
                )
        except DistfsError as e:
            log.info("fragment %s on node %d is left to the orphan sweep: %s", id, node, e)

    def _identity(self, task: SliceTask, deadline: Deadline) -> FileIdentity:
        cluster = self._meta.cluster_id(deadline)
        return FileIdentity(
            cluster, task.file, task.name, task.content_type, code_for(task.policy), task.block_size
        )


@contextlib.contextmanager
def _reading(id: FragmentId, source: int) -> Iterator[None]:
    """What the source cannot do must not look as if the target could not: the error says whose it is."""
    try:
        yield
    except NewerFormat:
        raise
    except (Unavailable, ProtocolError) as e:
        raise SourceUnreadable(f"fragment {id} on node {source} cannot be read now: {e}") from e
