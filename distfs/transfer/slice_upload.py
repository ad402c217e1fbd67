"""One slice on its way to its k+m storage nodes, all at once."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fragment import CellEntry
from distfs.fragment_store import FragmentWriter
from distfs.model import Buffer
from distfs.peers.directory import Stores
from distfs.peers.whole_put import TakesWhole
from distfs.process.threads import as_ours
from distfs.telemetry.context import in_context
from distfs.transfer.blocks import Block
from distfs.transfer.slice_plan import SlicePlan

log = logging.getLogger("distfs.upload")

#: Threads that send a slice's cells, of a code.
_CODED_SENDERS = 2


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
    cells = plan.cells_at_once(block)
    heads = plan.packed_headers()
    try:
        for index in range(len(plan.nodes)):
            entry, cell = cells[index]
            try:
                store = stores(plan.nodes[index], deadline)
                whole = None
                if isinstance(store, TakesWhole):
                    whole = store.send_whole(heads[index], entry, cell, plan.size, deadline)
                if whole is not None:
                    writers[index] = whole
                else:
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


_Coded = list[tuple[CellEntry, Buffer]]


@dataclass(frozen=True, slots=True)
class _Cells:
    """Of one block, of all fragments; or who makes them just now."""

    made: _Coded | Future[_Coded]
    block: Block

    def of(self, index: int) -> tuple[CellEntry, Buffer]:
        """Waits for them. Raises what went wrong when they were made."""
        made = self.made.result() if isinstance(self.made, Future) else self.made
        return made[index]


@dataclass(frozen=True, slots=True)
class _End:
    size: int
    last: bool
    of_file: Extra


class _Abort:
    pass


class _Fragment:
    """One of a sender's, and what became of it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.began = False  # its node took the beginning
        self.error: DistfsError | None = None


class _Sender:
    """The thread of one or a few fragments: takes cells from its queue, sends them, waits for the acknowledgements.

    After a failure of a fragment, whatever it was, it goes on taking, so that blocks come free and the others are not
    held up. Its queue is fed by the request's thread, each of whose waits has the request's deadline, and which
    always says the end.
    """

    def __init__(
        self,
        plan: SlicePlan,
        fragments: Sequence[_Fragment],
        stores: Stores,
        deadline: Deadline,
        tell: Callable[[], object],
    ) -> None:
        """``tell`` is called after each beginning, and after each failure."""
        self._plan, self.fragments, self._stores, self._deadline = plan, fragments, stores, deadline
        self._tell = tell
        self._writers: dict[_Fragment, FragmentWriter] = {}
        self.queue: queue.SimpleQueue[_Cells | _End | _Abort] = queue.SimpleQueue()

    def run(self) -> None:
        try:
            self._each(self._begin)
            while not isinstance(item := self.queue.get(), _Abort):
                if isinstance(item, _End):
                    self._end(item)
                    return
                self._write(item)
                item.block.release()
        finally:
            for writer in self._writers.values():
                writer.abort()  # nothing, when it was committed

    def _each(self, step: Callable[[_Fragment], object]) -> None:
        """With each fragment that has not failed."""
        for fragment in self.fragments:
            if fragment.error is None:
                try:
                    step(fragment)
                except BaseException as e:  # noqa: BLE001 - the thread's outermost edge: others wait for what it holds
                    self._fail(fragment, e)

    def _begin(self, fragment: _Fragment) -> None:
        self._writers[fragment] = self._plan.begin(fragment.index, self._stores, self._deadline)
        fragment.began = True
        self._tell()

    def _write(self, item: _Cells) -> None:
        def write(fragment: _Fragment) -> None:
            entry, data = item.of(fragment.index)
            self._writers[fragment].write_cell(entry, memoryview(data))

        self._each(write)

    def _end(self, end: _End) -> None:
        """All nodes are told before one is waited for: they make it durable at once."""

        def finish(fragment: _Fragment) -> None:
            of_file = end.of_file if fragment.index in self._plan.telling else PLAIN
            self._writers[fragment].finish(end.size, end.last, of_file)
            self._plan.ended.add(fragment.index)

        self._each(finish)
        self._each(lambda fragment: self._writers[fragment].commit())

    def _fail(self, fragment: _Fragment, error: BaseException) -> None:
        if not isinstance(error, DistfsError):
            log.error(
                "fragment %s.%d is not sent on, by a bug", self._plan.id, fragment.index, exc_info=error
            )
        fragment.error = as_ours(error)
        self._tell()


class SliceUpload:
    """A slice of several blocks, sent by threads of the executor, fed through queues.

    A copy has a thread of its own. The cells of a code are a part of a block each, and to wake a thread for each of
    them costs more than to send it: two threads share them. A node that is slow holds up those beside it sooner so,
    but it would anyway: blocks in flight are few, and each is held until all have its cells.
    """

    def __init__(
        self,
        plan: SlicePlan,
        stores: Stores,
        executor: Executor,
        packers: Executor,
        deadline: Deadline,
        lost: Callable[[dict[int, DistfsError]], object],
    ) -> None:
        """``lost`` is called with what failed when too few senders are left, perhaps more than once. ``packers``:
        threads that compress."""
        self.plan = plan
        self._lost, self._packers = lost, packers
        self._changed = threading.Condition()
        self._accepted = False
        self._fragments = [_Fragment(index) for index in range(len(plan.nodes))]
        a_thread = 1 if plan.file.code.policy.k == 1 else -(-len(plan.nodes) // _CODED_SENDERS)
        self._senders = [
            _Sender(plan, self._fragments[at : at + a_thread], stores, deadline, self._look)
            for at in range(0, len(plan.nodes), a_thread)
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
            while sum(f.began and f.error is None for f in self._fragments) < k:
                if len(self._fragments) - len(self.failed) < k:
                    return False
                self._changed.wait(deadline.remaining("waiting for storage nodes"))
        return True

    def accept(self) -> None:
        """Go on with the nodes there are: from now on ``lost`` is called when they are too few."""
        self._accepted = True
        self._look()

    def write(self, block: Block) -> None:
        """The next block of the slice; the caller keeps its own hold of it."""
        cells = _Cells(self._coded(block), block)
        block.hold(len(self._senders))
        for sender in self._senders:
            sender.queue.put(cells)

    def _coded(self, block: Block) -> _Coded | Future[_Coded]:
        """Its cells. Another thread compresses it, if there is one: the next block is received meanwhile."""
        plan, packer = self.plan, self.plan.packer
        if packer is None or not packer.worth(block.view):
            return plan.cells(block.view)
        asked = block.view, plan.take(block.view), packer
        try:
            made = self._packers.submit(plan.packed_cells, *asked)
        except Busy:
            return plan.packed_cells(*asked)
        block.hold()
        made.add_done_callback(lambda _: block.release())
        return made

    def finish(self, last: bool, of_file: Extra = PLAIN) -> None:
        """No more blocks. ``of_file``: what the last slice tells of it."""
        self._end(_End(self.plan.size, last, of_file))

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
        if self._accepted and len(self._fragments) - len(failed) < self.plan.file.code.policy.k:
            self._lost(failed)

    @property
    def failed(self) -> dict[int, DistfsError]:
        """What failed until now, by fragment index."""
        return {f.index: f.error for f in self._fragments if f.error is not None}

    def wait(self) -> dict[int, DistfsError]:
        """Until every fragment is durable or failed, which is bounded by the nodes' time limits."""
        for future in self._futures:
            future.result()
        return self.failed
