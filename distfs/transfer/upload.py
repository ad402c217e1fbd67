"""The way in: a source of bytes -> blocks -> k+m cells -> storage nodes -> ONE MetaDB transaction.

Nothing of a request can be read before its transaction; leaving a session without a commit removes what was
written. Memory is bounded by the block pool, whatever the file's size.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from uuid import UUID, uuid4

from distfs.body.source import Source
from distfs.config.settings import StorageConfig
from distfs.deadline import Deadline
from distfs.errors import (
    Cancelled,
    DistfsError,
    Full,
    NodesLeft,
    NodeUnavailable,
    OutcomeUnknown,
    Unavailable,
)
from distfs.formats.coding import code_for
from distfs.formats.compression import packer
from distfs.meta import MetaDB
from distfs.model import NOBODYS, Compression, File, FragmentId, NewFile, Ownership, Policy, Slice
from distfs.peers.directory import NodeDirectory
from distfs.peers.versioned import all_take
from distfs.process.idle import Idle
from distfs.process.threads import Threads
from distfs.telemetry.tracing import traced
from distfs.transfer.blocks import Block, BlockPool
from distfs.transfer.discard import discard, finish
from distfs.transfer.file_upload import FileUpload, UploadResources, refusal
from distfs.transfer.placement import Placement
from distfs.transfer.rebuild import rebuild
from distfs.transfer.slice_plan import EXTENDED_SINCE, PACKED, FileIdentity, SlicePlan, moved
from distfs.transfer.slice_read import SliceReader
from distfs.transfer.slice_upload import write_small
from distfs.transfer.small_file import SMALL_BODY, Behind, hash_small, read_small

log = logging.getLogger("distfs.upload")

#: They take away what a committed file does not need; what they do not come to is left to the orphan sweep.
_THREADS_AFTER_COMMITS = 4
#: Nodes that were there so short a while ago are believed to be there when the file is committed.
_TRUSTED_S = 1.0
#: Between two looks for nodes that may come back.
_LOOK_S = 0.25
#: How often MetaDB may say at the commit that yet another node is leaving.
_COMMITS = 5


_idle = Idle()

#: See ``Uploader.begin``.
Collect = Callable[[int, bool], object]


class Uploader:
    """What all uploads of a service share. Thread-safe."""

    def __init__(
        self,
        meta: MetaDB,
        directory: NodeDirectory,
        placement: Placement,
        pool: BlockPool,
        config: StorageConfig,
        uploads: int,
    ) -> None:
        """``uploads``: how many may run at once; each finds the threads it needs free, so none waits."""
        self.meta, self.directory, self.placement = meta, directory, placement
        width = max(policy.width for policy in config.policies.values())
        threads = uploads * (1 + width * config.parallel_slices)
        executor = Threads(threads, thread_name_prefix="fragment")
        packers = Threads(len(os.sched_getaffinity(0)), thread_name_prefix="packer")
        self.resources = UploadResources(pool, executor, directory.client, config, packers)
        # What is taken away after a commit waits for nodes that hang; the threads above are the next upload's.
        self.after_commits = Threads(_THREADS_AFTER_COMMITS, thread_name_prefix="after-commit")

    def begin(
        self,
        deadline: Deadline,
        collect: Collect | None = None,
        most: int | None = None,
        whose: Ownership = NOBODYS,
    ) -> UploadSession:
        """A request's upload; use it as a context manager.

        ``collect``: called before memory is taken for the next so many bytes of its body, and (True) nodes; it waits
        for them when they had better be waited for without that. ``most``: bytes of the body; None: nobody knows.
        """
        session = UploadSession(self, deadline, collect or (lambda size, begins: None), whose)
        if most is not None and most <= self.resources.config.block_size:
            session.is_short, session.small = True, most if most <= SMALL_BODY else 0
        return session

    def close(self) -> None:
        for executor in (self.resources.executor, self.resources.packers, self.after_commits):
            executor.shutdown(wait=False, cancel_futures=True)


class UploadSession:
    """All files of one request: written as they come, committed together or not at all."""

    def __init__(self, uploader: Uploader, deadline: Deadline, collect: Collect, whose: Ownership) -> None:
        self._uploader, self._deadline, self.collect, self.whose = uploader, deadline, collect, whose
        self._files: list[tuple[FileIdentity, NewFile]] = []
        self._placed_at: float | None = None  # when the first slice was, on the monotonic clock
        self._ended: list[tuple[UUID, list[int], set[int]]] = []  # as plans have it
        self._restored: list[tuple[int, FragmentId]] = []
        self._failed_nodes: dict[int, DistfsError] = {}  # not tried again by this request
        self._unsettled: list[SlicePlan] = []  # their bytes count as in flight
        self.is_short = False  # all of it is in memory before a node is asked to take anything
        self.small = 0  # bytes of a body whose files need no block of the pool; 0: it is larger
        self._keep = self._committed = False
        self._saved: dict[UUID, int] = {}  # bytes of slices that were compressed
        self._made_anew = False  # a slice or a fragment, so that there may be more than is committed
        self._sent_at = 0.0  # the commit, on the monotonic clock

    def __enter__(self) -> UploadSession:
        return self

    def __exit__(self, *exc: object) -> None:
        for plan in list(self._unsettled):
            self._landed(plan)
        directory = self._uploader.directory
        if self._committed and self._made_anew:
            kept = {piece.id for _, file in self._files for piece in file.slices}
            discard(directory, self._unneeded(), self._uploader.after_commits, kept, self._sent_at)
        elif not self._keep:
            finish(discard(directory, self._stored, self._uploader.resources.executor))

    def add(
        self,
        source: Source,
        *,
        name: str,
        content_type: str,
        policy: Policy,
        size_hint: int | None = None,
        compression: Compression | None = None,
        id: UUID | None = None,
    ) -> NewFile:
        """Store one file's fragments durably; ``id``: None: a new one. Raises what the source raises, and
        Unavailable, Full, TooSlow."""
        config = self._uploader.resources.config
        block_size, how = config.block_size, compression or config.compression
        cluster = self._uploader.meta.cluster_id(self._deadline)
        code, packs = code_for(policy), packer(how, config.min_saving, _idle.share)
        identity = FileIdentity(cluster, id or uuid4(), name, content_type, code, block_size, packs)
        self.collect(config.slice_size, not self.is_short)
        small = None
        if self.small:
            small, source = read_small(source, self.small)
        if small is not None:
            digest, slices = self._add_small(identity, small)
        else:
            digest, slices = self._add_in_blocks(identity, source, size_hint)
        size = sum([piece.size for piece in slices])
        saved = sum([self._saved.get(piece.id, 0) for piece in slices]) if self._saved else 0
        stored = size - saved if saved else None
        said = identity.id, name, content_type, size, digest, policy, block_size, tuple(slices)
        file = NewFile(*said, stored=stored)
        self._files.append((identity, file))
        return file

    def commit(self) -> list[File]:
        """One transaction for all files. Raises Unavailable when what was safe is so no more, NodesLeft when node
        after node is drained, and OutcomeUnknown when MetaDB was lost in the middle of it."""
        if self._placed_at is not None and time.monotonic() - self._placed_at >= _TRUSTED_S:
            self._make_up_for_lost()
        for _ in range(_COMMITS - 1):
            try:
                return self._commit()
            except NodesLeft as e:
                log.info("not committed yet: %s", e)
                self._make_up_for_lost()
        return self._commit()

    def _commit(self) -> list[File]:
        self._keep = True  # whatever happens now, never remove what may have been committed
        self._sent_at = time.monotonic()
        try:
            files = self._uploader.meta.commit_files([f for _, f in self._files], self._deadline, self.whose)
            self._committed = True
            return files
        except OutcomeUnknown:
            raise
        except DistfsError:
            self._keep = False
            raise

    # --- what FileUpload asks of its request --------------------------------------------------------

    def plan(self, file: FileIdentity, ordinal: int, size_hint: int) -> SlicePlan:
        """Place a new slice, on fewer nodes than k+m if need be. Raises Unavailable when it would not be safe."""
        share = file.code.cell_size(size_hint)
        if self._placed_at is None:
            self._placed_at = time.monotonic()
        nodes = self._place_patiently(file, share)
        small = not ordinal and size_hint <= SMALL_BODY  # which saves little, and is to be quick
        extends = self._uploader.meta.all_know(EXTENDED_SINCE, self._deadline)
        packs = extends and file.packer is not None and not small
        plan = SlicePlan(file, ordinal, nodes, size_hint, file.packer if packs else None, extends)
        self._unsettled.append(plan)
        # Only now is anybody asked: whatever that raises, what was placed is given back.
        if packs and not all_take(PACKED, nodes, self._uploader.directory.store, self._deadline):
            plan.packer = None
        return plan

    def patient_until(self) -> float:
        """Until when nodes are waited for from now on, on the monotonic clock."""
        return time.monotonic() + self._uploader.directory.patience

    def again(self, plan: SlicePlan, failed: dict[int, DistfsError], until: float) -> bool:
        """Whether nodes that took nothing of a slice may only be restarting: then, after a moment, it is to be placed
        anew, and this plan is given up. Raises TooSlow, Cancelled."""
        directory = self._uploader.directory
        away = all(isinstance(e, NodeUnavailable) for e in failed.values())
        lately = directory.may_return(plan.nodes, self._deadline)
        if not away or lately < self._fewest(plan.file) or time.monotonic() >= until:
            return False
        self._landed(plan)
        self._made_anew = True
        log.info("an upload waits for storage nodes: %s", "; ".join(map(str, failed.values())))
        self._wait_for_nodes()
        return True

    def _landed(self, plan: SlicePlan) -> None:
        """The slice is stored, or given up."""
        self._unsettled.remove(plan)
        self._ended.append((plan.id, plan.nodes, plan.ended))
        self._uploader.placement.landed(plan.nodes, plan.file.code.cell_size(plan.size_hint))

    @property
    def _stored(self) -> list[tuple[int, FragmentId]]:
        """What to remove, and where, if there is no commit."""
        ended = [(nodes[i], FragmentId(id, i)) for id, nodes, which in self._ended for i in sorted(which)]
        return ended + self._restored

    def settle(self, plan: SlicePlan, failed: dict[int, DistfsError]) -> Slice:
        """A slice whose senders have ended -> its row. What failed is rebuilt on other nodes where there are any.

        Raises Unavailable when less than k + min_redundancy of it is safe in the end.
        """
        self._landed(plan)
        if plan.saved:
            self._saved[plan.id] = sum(plan.saved)
        if not failed and len(plan.nodes) == plan.file.code.policy.width:
            return plan.done()
        for error in failed.values():
            if isinstance(error, Cancelled):
                raise error  # the slice was given up: no node is to blame, and nothing is to be made anew
        for index, node in enumerate(plan.nodes):
            if index in failed:
                self._failed_nodes[node] = failed[index]
                log.warning("fragment %s.%d on node %d: %s", plan.id, index, node, failed[index])
        piece = plan.done(failed)
        piece = self._whole(plan.file, piece)
        until = self.patient_until()
        while self._waits_to_be_safe(plan.file, piece, until):
            piece = self._whole(plan.file, piece)
        told = f"{len(failed)} of {len(piece.nodes)} storage nodes failed while the file was written: "
        self._require_safe(plan.file, piece, refusal(failed.values(), told))
        return piece

    def _whole(self, file: FileIdentity, piece: Slice) -> Slice:
        """The slice with what is nowhere made anew, as far as there are nodes for it."""
        for index in [index for index, node in enumerate(piece.nodes) if not node]:
            piece = self._restore(file, piece, index)
        return piece

    def _waits_to_be_safe(self, file: FileIdentity, piece: Slice, until: float) -> bool:
        """Whether too little of a slice is safe, and nodes that may only be restarting can mend that: then, after a
        moment, they are to be tried once more. Raises TooSlow, Cancelled."""
        held, fewest = [node for node in piece.nodes if node], self._fewest(file)
        if not file.code.policy.k <= len(held) < fewest or time.monotonic() >= until:
            return False
        tried = self._failed_nodes.items()
        bad = {n: e for n, e in tried if isinstance(e, Full) or not isinstance(e, Unavailable)}
        if self._may_return(held, bad) < fewest:
            return False
        self._failed_nodes = bad
        log.info("an upload waits for storage nodes: %d of %d have slice %s", len(held), fewest, piece.id)
        self._wait_for_nodes()
        return True

    def _wait_for_nodes(self) -> None:
        """A moment, and look again. Raises TooSlow, Cancelled."""
        self._deadline.pause(_LOOK_S, "waiting for storage nodes to come back")
        self._uploader.directory.glance(self._deadline, _LOOK_S)

    def _may_return(self, held: Sequence[int], failed: Container[int]) -> int:
        """How many nodes that have a part of a slice, or could take one, are up or may only be restarting."""
        directory = self._uploader.directory
        able = [n.id for n in directory.nodes(self._deadline) if n.writable or not n.alive]
        return directory.may_return({*held, *(n for n in able if n not in failed)}, self._deadline)

    def _require_safe(self, file: FileIdentity, piece: Slice, error: DistfsError) -> None:
        """Raises ``error`` when less than k + min_redundancy of a slice is safe."""
        safe = sum(map(bool, piece.nodes))
        if safe < self._fewest(file):
            raise error
        if safe < len(piece.nodes):
            log.warning(
                "slice %s has %d of %d fragments; repair adds the rest", piece.id, safe, len(piece.nodes)
            )

    def _make_up_for_lost(self) -> None:
        """Slices that landed long ago may have lost nodes since: what one keeps that is down, forgotten or being
        drained is made anew on others.

        As well as is known: while MetaDB cannot be read, by the nodes it told of last. Who drains a node need not
        rely on it: MetaDB takes no commit that names one which is drained or forgotten.
        """
        nodes = self._uploader.directory.nodes(self._deadline, fresh=True)
        staying = {node.id for node in nodes if node.alive and node.state != "draining"}
        self._files = [
            (of, replace(f, slices=tuple(self._on_staying(of, piece, staying) for piece in f.slices)))
            for of, f in self._files
        ]

    def _on_staying(self, identity: FileIdentity, piece: Slice, staying: Container[int]) -> Slice:
        """The slice with what other nodes keep of it made anew. Raises Unavailable when too little is safe then."""
        leaving = [i for i, node in enumerate(piece.nodes) if node and node not in staying]
        for index in leaving:
            log.warning("fragment %s.%d: node %d is gone since", piece.id, index, piece.nodes[index])
            anew = self._restore(identity, piece, index)
            lost = anew.nodes[index] == piece.nodes[index]
            piece = moved(piece, index, 0) if lost else anew
        if leaving:
            text = "storage nodes were lost while the file was written, and nobody can take their part"
            self._require_safe(identity, piece, Unavailable(text))
        return piece

    def _fewest(self, file: FileIdentity) -> int:
        """How many fragments of a slice must be safe before it may be committed."""
        return self._uploader.resources.config.fewest(file.code.policy)

    @traced("place")
    def _place_patiently(self, file: FileIdentity, share: int) -> list[int]:
        """As ``_place``, for a new slice. Nodes that stopped and may only be restarting are waited for."""
        fewest, ends = self._fewest(file), 0.0
        while True:
            try:
                return self._place(file, share, (), fewest)
            except Full:
                raise
            except Unavailable as e:
                ends = ends or self.patient_until()
                if self._may_return((), self._failed_nodes) < fewest or time.monotonic() >= ends:
                    raise
                log.info("an upload waits for storage nodes: %s", e)
            self._deadline.pause(_LOOK_S, "waiting for storage nodes to come back")

    def _place(
        self, file: FileIdentity, share: int, taken: Sequence[int], fewest: int, width: int = 0
    ) -> list[int]:
        directory, failed = self._uploader.directory, self._failed_nodes
        wanted = width or file.code.policy.width

        def place(*, fresh: bool) -> list[int]:
            able = directory.nodes(self._deadline, fresh=fresh)
            if taken or failed:
                able = [n for n in able if n.id not in taken and n.id not in failed]
            return self._uploader.placement.place(directory.willing(able, wanted), wanted, share, fewest)

        try:
            return place(fresh=False)
        except Unavailable:  # perhaps the nodes that are missing have come since the list was read
            return place(fresh=True)

    def _restore(self, file: FileIdentity, piece: Slice, index: int) -> Slice:
        """The slice with fragment ``index`` rebuilt on a node of its own; as it was when that cannot be."""
        share = file.code.cell_size(piece.size)
        try:
            [target] = self._place(file, share, piece.nodes, 1, 1)
        except Unavailable:
            return piece
        try:
            whole = self._rebuilt(file, piece, index, target)
        finally:
            self._uploader.placement.landed([target], share)
        return moved(piece, index, target) if whole else piece

    def _rebuilt(self, file: FileIdentity, piece: Slice, index: int, target: int) -> bool:
        """Whether fragment ``index`` is on ``target`` now. Raises Cancelled, and Unavailable when MetaDB is away."""
        self._made_anew = True
        uploader, deadline = self._uploader, self._deadline
        up = {node.id for node in uploader.directory.nodes(deadline) if node.alive}
        held = [i for i, node in enumerate(piece.nodes) if node]
        order = sorted(held, key=lambda i: piece.nodes[i] not in up)
        span = 0, -(-piece.size // file.block_size)
        stores, fragment = uploader.directory.store, FragmentId(piece.id, index)
        reader = SliceReader(piece, file.block_size, file.code, stores, order, span, deadline)
        try:
            beside = file.beside
            with contextlib.closing(reader), uploader.resources.pool.lent(deadline, beside) as buffer:
                store = stores(target, deadline)
                rebuild(
                    file,
                    piece,
                    index,
                    reader,
                    store,
                    buffer,
                    deadline,
                    lambda: self._restored.append((target, fragment)),
                )
        except Cancelled:
            raise
        except DistfsError as e:
            self._failed_nodes[target] = e
            log.warning("fragment %s.%d could not be rebuilt on node %d: %s", piece.id, index, target, e)
            return False
        return True

    def _add_in_blocks(
        self, identity: FileIdentity, source: Source, size_hint: int | None
    ) -> tuple[bytes, list[Slice]]:
        resources, block_size = self._uploader.resources, identity.block_size
        first = resources.pool.take(self._deadline, beside=identity.beside)
        first.fill(source)
        rest = self._rest(first, source, size_hint, block_size)
        if rest is not None:
            return FileUpload(self, resources, identity, size_hint, self._deadline).run(first, rest)
        try:
            return self._add_small(identity, first.view)
        finally:
            first.release()

    @staticmethod
    def _rest(first: Block, source: Source, size_hint: int | None, block_size: int) -> Source | None:
        """What comes behind a file's first block; None: nothing, it need not be sent by threads."""
        if len(first.view) < block_size:
            return None
        if size_hint is not None and size_hint > len(first.view):
            return source
        more = bytearray(1)
        try:
            count = source.readinto(memoryview(more))
        except BaseException:
            first.release()
            raise
        return Behind(more, source) if count else None

    def _add_small(self, identity: FileIdentity, view: memoryview) -> tuple[bytes, list[Slice]]:
        """A file of no more than a block, from the request's own thread."""
        digest = hashlib.sha256()
        if not len(view):
            return digest.digest(), []
        beside: list[Callable[[], object]] = [lambda: hash_small(digest, view)]  # while the nodes write
        stores, until = self._uploader.resources.stores, 0.0
        while True:
            plan = self.plan(identity, 0, len(view))
            failed = write_small(plan, view, stores, self._deadline, beside)
            lost = failed and len(plan.nodes) - len(failed) < identity.code.policy.k
            if not (lost and self.again(plan, failed, until := until or self.patient_until())):
                return digest.digest(), [self.settle(plan, failed)]

    def _unneeded(self) -> list[tuple[int, FragmentId]]:
        """What was stored on nodes that answer and is not what was committed: of slices that were placed anew, and of
        fragments that were made anew elsewhere. Of one that nobody keeps any copy is welcome."""
        kept: set[tuple[int, FragmentId]] = set()
        nowhere: set[FragmentId] = set()
        for piece in (piece for _, file in self._files for piece in file.slices):
            places = [(node, FragmentId(piece.id, index)) for index, node in enumerate(piece.nodes)]
            kept.update(places)
            nowhere.update(fragment for node, fragment in places if not node)
        return [
            (node, fragment)
            for node, fragment in self._stored
            if (node, fragment) not in kept and fragment not in nowhere and node not in self._failed_nodes
        ]
