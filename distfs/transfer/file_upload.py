"""One file of more than one block on its way in: read here, hashed and sent by threads, several slices in flight."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from distfs.body.source import Source
from distfs.config.settings import StorageConfig
from distfs.deadline import Deadline
from distfs.errors import Cancelled, DistfsError, Full, Unavailable
from distfs.formats.features import PLAIN, file_record
from distfs.model import Slice
from distfs.peers.directory import Stores
from distfs.process.threads import Threads, as_ours
from distfs.quantity import counted
from distfs.transfer.blocks import Block, BlockPool
from distfs.transfer.slice_plan import FileIdentity, SlicePlan
from distfs.transfer.slice_upload import SliceUpload

log = logging.getLogger("distfs.upload")


class Slices(Protocol):
    """What a file asks of the request that it is part of."""

    def plan(self, file: FileIdentity, ordinal: int, size_hint: int) -> SlicePlan:
        """Place a new slice. Raises Unavailable when it would not be safe."""

    def collect(self, size: int, begins: bool, /) -> object:
        """Before memory is taken for the next ``size`` bytes; ``begins``: and nodes."""

    def patient_until(self) -> float:
        """Until when nodes are waited for from now on, on the monotonic clock."""

    def again(self, plan: SlicePlan, failed: dict[int, DistfsError], until: float) -> bool:
        """Whether to place a slice anew of which no node has anything; then its plan is given up."""

    def settle(self, plan: SlicePlan, failed: dict[int, DistfsError]) -> Slice:
        """A slice whose senders have ended -> its row. Raises Unavailable when too little of it is safe."""


@dataclass(frozen=True, slots=True)
class UploadResources:
    """What all uploads of a service share to move bytes."""

    pool: BlockPool
    executor: Threads
    stores: Stores
    config: StorageConfig
    packers: Threads  # compress blocks


def refusal(failed: Collection[DistfsError], saying: str = "") -> DistfsError:
    """The error for a slice that cannot be kept, with every reason; Full when nothing else was the matter; our bug
    when that was any of it. Who gave the request up is the reason before all others: no node is to blame."""
    for error in failed:
        if isinstance(error, Cancelled):
            return error
    kind: type[DistfsError] = Full if failed and all(isinstance(e, Full) for e in failed) else Unavailable
    if any(e.status == DistfsError.status for e in failed):
        kind = DistfsError
    if kind is Full:
        public = (
            "no room: the storage nodes that could take the file are full; delete files, or come back later"
        )
    else:
        public = "too few storage nodes took the file: send it again soon"
    return kind(saying + "; ".join(map(str, failed)), public=public)


class _Digest:
    """sha-256 of the whole file in a thread of its own, beside the sending (hashlib releases the GIL).

    After a failure it goes on taking, so that blocks come free.
    """

    def __init__(self, executor: Threads, failed: Callable[[DistfsError], object]) -> None:
        """``failed`` is called with what went wrong. Raises Busy when there is no thread for it."""
        self._failed = failed
        self._error: DistfsError | None = None
        self._queue: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._future: Future[bytes] = executor.submit(self._run)

    def add(self, block: Block) -> None:
        block.hold()
        self._queue.put(block)

    def finish(self) -> bytes:
        """When it is told all; each time the same. Raises what went wrong."""
        self._queue.put(None)
        digest = self._future.result()
        if self._error is not None:
            raise self._error
        return digest

    def _run(self) -> bytes:
        sha = hashlib.sha256()
        while (block := self._queue.get()) is not None:
            try:
                if self._error is None:
                    sha.update(block.view)
            except BaseException as e:  # the thread's outermost edge: others wait for what it holds
                log.exception("a file is not hashed, by a bug")
                self._error = as_ours(e)
                self._failed(self._error)
            finally:
                block.release()
        return sha.digest()


class FileUpload:
    """Reads a file to its end, with a bounded number of its blocks in memory."""

    def __init__(
        self,
        slices: Slices,
        resources: UploadResources,
        identity: FileIdentity,
        size_hint: int | None,
        deadline: Deadline,
    ) -> None:
        """``size_hint``: bytes the source has. Without it, whether a full slice is the file's last, which its nodes
        write down, is known only when more comes."""
        self._request, self._resources, self._identity, self._deadline = slices, resources, identity, deadline
        self._config = resources.config
        self._beside = identity.beside
        self._left = size_hint  # what of it has not come yet
        self._window = threading.Semaphore(self._config.window // self._config.block_size)
        self._flying: deque[SliceUpload] = deque()
        self._scope = deadline  # while it runs, a scope of its own: its slices are given up together
        self._slices: list[Slice] = []
        self._giving_up = threading.Lock()
        self._lost: Collection[DistfsError] = ()  # what failed of the first slice that cannot be saved

    def run(self, first: Block, source: Source) -> tuple[bytes, list[Slice]]:
        """The file's sha-256 and its slices, all durable. Takes over the hold of ``first``."""
        try:
            digest = _Digest(self._resources.executor, lambda error: self._give_up([error]))
        except BaseException:
            first.release()
            raise
        try:
            with self._deadline.scope() as self._scope:
                self._run(first, source, digest)
        except (Unavailable, Cancelled) as e:
            if not self._lost or self._deadline.cancelled:
                raise
            # Why the first slice was lost; all that came after was only given up.
            raise refusal(self._lost) from e
        finally:
            sha = digest.finish()
        return sha, self._slices

    def _run(self, first: Block, source: Source, digest: _Digest) -> None:
        try:
            block: Block | None = first
            while block is not None:
                sending = self._current(block)
                self._send(block, sending, digest)
                full = sending.plan.size >= self._config.slice_size
                if full and self._left:  # a client that pauses here holds nothing open
                    sending.finish(last=False)
                self._request.collect(self._config.slice_size if full else self._config.block_size, full)
                block = self._next(source)
                if not sending.ended and (full or block is None):
                    # The hash is all but there, since the nodes take longer; so each disk has it before the commit.
                    sending.finish(block is None, PLAIN if block else file_record(digest.finish()))
                elif block is None:
                    raise DistfsError(
                        f"the source ended {counted(self._left or 0, 'byte')} before the size it was said to have"
                    )
            while self._flying:
                self._land_oldest()
        except BaseException:
            # Whoever waits for a node that stalls is woken: what is written now is of no use any more.
            self._scope.cancel("another part of the upload failed")
            for flying in self._flying:
                flying.abort()
            for flying in self._flying:
                flying.wait()
            raise

    def _current(self, block: Block) -> SliceUpload:
        """The slice that ``block`` goes to; a new one when the last is full and few enough are in flight."""
        try:
            if self._flying and not self._flying[-1].ended:
                return self._flying[-1]
            while len(self._flying) >= self._config.parallel_slices:
                self._land_oldest()
            self._flying.append(self._begun(len(block.view)))
            return self._flying[-1]
        except BaseException:
            block.release()
            raise

    def _begun(self, least: int) -> SliceUpload:
        """A new slice, its nodes asked to take it; others, or the same ones once more, while none does."""
        size = self._config.slice_size if self._left is None else min(self._left, self._config.slice_size)
        ordinal = len(self._slices) + len(self._flying)
        shared = self._resources.stores, self._resources.executor, self._resources.packers, self._scope
        until = self._request.patient_until()
        while True:
            plan = self._request.plan(self._identity, ordinal, max(size, least))
            plan.tells = True
            sending = SliceUpload(plan, *shared, lambda failed: self._give_up(failed.values()))
            try:
                again = not sending.begun(self._scope) and self._request.again(plan, sending.failed, until)
            except BaseException:
                sending.abort()
                raise
            if not again:
                sending.accept()  # it may be lost
                return sending
            sending.abort()
            sending.wait()

    def _give_up(self, failed: Collection[DistfsError]) -> None:
        """The file cannot be saved: nobody waits any longer for a node that stalls. From any thread."""
        with self._giving_up:
            if not self._scope.cancelled:  # else nothing but that is the matter
                self._lost = failed
                self._scope.cancel("another part of the upload failed")

    def _send(self, block: Block, sending: SliceUpload, digest: _Digest) -> None:
        try:
            if len(sending.plan.nodes) - len(sending.failed) < self._identity.code.policy.k:
                # Do not read gigabytes more of a file that is lost already.
                raise refusal(sending.failed.values())
            self._scope.check_cancelled()
            digest.add(block)
            sending.write(block)
            if self._left is not None:
                self._left = max(0, self._left - len(block.view))
        finally:
            block.release()

    def _next(self, source: Source) -> Block | None:
        """The file's next block, None at its end. Waits while too many blocks are in flight."""
        deadline = self._deadline
        while not self._window.acquire(timeout=deadline.remaining("waiting for storage nodes")):
            pass  # until ``remaining`` raises
        try:
            block = self._resources.pool.take(deadline, self._window.release, self._beside)
        except BaseException:
            self._window.release()
            raise
        block.fill(source)
        if len(block.view):
            return block
        block.release()
        return None

    def _land_oldest(self) -> None:
        oldest = self._flying[0]
        failed = oldest.wait()
        self._flying.popleft()
        self._slices.append(self._request.settle(oldest.plan, failed))
