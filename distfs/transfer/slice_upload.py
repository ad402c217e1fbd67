"""One slice on its way to its k+m storage nodes, all at once."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.formats.fragment import CellEntry
from distfs.fragment_store import FragmentWriter
from distfs.model import Buffer
from distfs.peers.directory import Stores
from distfs.process.threads import as_ours
from distfs.telemetry import in_context
from distfs.transfer.blocks import Block
from distfs.transfer.slice_plan import SlicePlan

log = logging.getLogger("distfs.upload")


def write_small(
    plan: SlicePlan,
    block: memoryview,
    stores: Stores,
    deadline: Deadline,
    beside: list[Callable[[], object]] | None = None,
) -> dict[int, DistfsError]:
    """A slice of one block, without a thread: write to all nodes, then read all acknowledgements.

    ``beside``: what is to be done meanwhile, once: it is taken out. Returns what failed, by index; every other
    fragment is durable.
    """
    writers: dict[int, FragmentWriter] = {}
    failed: dict[int, DistfsError] = {}
    cells = plan.cells(block)
    try:
        for index in range(len(plan.nodes)):
            entry, cell = cells[index]
            try:
                writers[index] = plan.begin(index, stores, deadline)
                writers[index].write_cell(entry, memoryview(cell))
                writers[index].finish(plan.size, True)
                plan.ended.add(index)
            except DistfsError as e:
                failed[index] = e
        while beside:
            beside.pop()()
        for index in [index for index in writers if index not in failed]:
            try:
                writers[index].commit()
                del writers[index]
            except DistfsError as e:
                failed[index] = e
    finally:
        for writer in writers.values():
            writer.abort()
    return failed


@dataclass(frozen=True, slots=True)
class _Cell:
    entry: CellEntry
    data: Buffer
    block: Block


@dataclass(frozen=True, slots=True)
class _End:
    size: int
    last: bool


class _Abort:
    pass


class _FragmentSender:
    """The thread of one fragment: takes cells from its queue, sends them, waits for the acknowledgement.

    After a failure, whatever it was, it goes on taking, so that blocks come free and its siblings are not held up.
    Its queue is fed by the request's thread, each of whose waits has the request's deadline, and which always says
    the end.
    """

    def __init__(
        self, plan: SlicePlan, index: int, stores: Stores, deadline: Deadline, tell: Callable[[], object]
    ) -> None:
        """``tell`` is called after the beginning, and after the failure."""
        self._plan, self._index, self._stores, self._deadline = plan, index, stores, deadline
        self._tell = tell
        self.queue: queue.SimpleQueue[_Cell | _End | _Abort] = queue.SimpleQueue()
        self.error: DistfsError | None = None
        self.began = False  # its node took the beginning

    def run(self) -> None:
        writer: FragmentWriter | None = None
        try:
            try:
                writer = self._plan.begin(self._index, self._stores, self._deadline)
                self.began = True
                self._tell()
            except BaseException as e:  # noqa: BLE001 - as below
                self._fail(e)
            while True:
                item = self.queue.get()
                if isinstance(item, _Abort):
                    break
                if self.error is None and writer is not None:
                    try:
                        self._pass_on(item, writer)
                    except BaseException as e:  # noqa: BLE001 - the thread's outermost edge: others wait for what it holds
                        self._fail(e)
                if isinstance(item, _Cell):
                    item.block.release()
                else:
                    return
        finally:
            if writer is not None:
                writer.abort()  # nothing, when it was committed

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, DistfsError):
            log.error("fragment %s.%d is not sent on, by a bug", self._plan.id, self._index, exc_info=error)
        self.error = as_ours(error)
        self._tell()

    def _pass_on(self, item: _Cell | _End, writer: FragmentWriter) -> None:
        if isinstance(item, _Cell):
            writer.write_cell(item.entry, memoryview(item.data))
        else:
            writer.finish(item.size, item.last)
            self._plan.ended.add(self._index)
            writer.commit()


class SliceUpload:
    """A slice of several blocks: one thread of the executor a fragment, fed through queues."""

    def __init__(
        self,
        plan: SlicePlan,
        stores: Stores,
        executor: Executor,
        deadline: Deadline,
        lost: Callable[[dict[int, DistfsError]], object],
    ) -> None:
        """``lost`` is called with what failed when too few senders are left, perhaps more than once."""
        self.plan = plan
        self._lost = lost
        self._changed = threading.Condition()
        self._accepted = False
        self._senders = [
            _FragmentSender(plan, i, stores, deadline, self._look) for i in range(len(plan.nodes))
        ]
        self.ended = False
        self._futures: list[Future[None]] = []
        try:
            self._futures.extend(executor.submit(in_context(sender.run)) for sender in self._senders)
        except BaseException:
            self.abort()  # or those that run would wait for ever
            raise

    def begun(self, deadline: Deadline) -> bool:
        """Wait until k nodes took the beginning. False: fewer are left, and none has a byte of the slice.

        Raises TooSlow, Cancelled.
        """
        k = self.plan.file.code.policy.k
        with deadline.waking(self._changed), self._changed:
            while sum(s.began and s.error is None for s in self._senders) < k:
                if len(self._senders) - len(self.failed) < k:
                    return False
                self._changed.wait(deadline.remaining("waiting for storage nodes"))
        return True

    def accept(self) -> None:
        """Go on with the nodes there are: from now on ``lost`` is called when they are too few."""
        self._accepted = True
        self._look()

    def write(self, block: Block) -> None:
        """The next block of the slice; the caller keeps its own hold of it."""
        cells = [_Cell(entry, data, block) for entry, data in self.plan.cells(block.view)]
        for sender, cell in zip(self._senders, cells, strict=False):
            block.hold()
            sender.queue.put(cell)

    def finish(self, last: bool) -> None:
        """No more blocks."""
        self._end(_End(self.plan.size, last))

    def abort(self) -> None:
        """Give up: every sender ends, and what nodes have of unfinished fragments is removed."""
        self._end(_Abort())

    def _end(self, how: _End | _Abort) -> None:
        if not self.ended:
            self.ended = True
            for sender in self._senders:
                sender.queue.put(how)

    def _look(self) -> None:
        with self._changed:
            self._changed.notify_all()
        failed = self.failed
        if self._accepted and len(self._senders) - len(failed) < self.plan.file.code.policy.k:
            self._lost(failed)

    @property
    def failed(self) -> dict[int, DistfsError]:
        """What failed until now, by fragment index."""
        return {i: s.error for i, s in enumerate(self._senders) if s.error is not None}

    def wait(self) -> dict[int, DistfsError]:
        """Until every fragment is durable or failed, which is bounded by the nodes' time limits."""
        for future in self._futures:
            future.result()
        return self.failed
