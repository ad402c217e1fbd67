"""Repair: fragments that are lost are made anew, those of the slices at the greatest risk first."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Executor
from dataclasses import replace

from distfs.config.settings import UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, NewerFormat, NotFound, ProtocolError, Unavailable
from distfs.model import FragmentId
from distfs.telemetry.tracing import traced
from distfs.upkeep.maker import FragmentMaker
from distfs.upkeep.model import RepairTask
from distfs.upkeep.queue import RepairQueue
from distfs.upkeep.rate import Backoff, Meter, TokenBucket
from distfs.upkeep.step import PARALLEL, Pace, Step, Tally, WakeUp, all_of, paced

log = logging.getLogger("distfs.upkeep")

_BATCH = 32
_BATCH_AGE_S = 10.0  # then it is asked again who is at the greatest risk now


class Repair:
    """A step makes the fragments of a few slices anew, at once."""

    name = "repair"

    def __init__(
        self, maker: FragmentMaker, config: UpkeepConfig, executor: Executor, parallel: int = PARALLEL
    ) -> None:
        self._maker, self._config, self._executor, self._parallel = maker, config, executor, parallel
        self._bucket = TokenBucket(config.repair_rate)
        self._meter = Meter()
        self._backoff = Backoff.of(config.interval)
        self._batch: list[RepairTask] = []
        self._batch_at = float("-inf")
        self._queue = RepairQueue(maker.db, config.repair_delay)
        self._tally = Tally("made", "proved_good")
        self._stuck = ""
        self._wake_up = WakeUp(maker.db, self.name)

    def step(self, deadline: Deadline) -> Step:
        wait = self._bucket.wait()
        if wait > 0:
            return Step(Pace.THROTTLED, self._detail(), wait)
        tasks = self._next(deadline)
        written = sum(all_of(self._executor, lambda task: self._repair_or_postpone(task, deadline), tasks))
        self._bucket.spend(written)
        self._meter.add(written)
        if not tasks and not self._backoff.waiting:
            self._stuck = ""
        return paced(self._bucket.wait(), bool(tasks), self._detail())

    def _detail(self) -> dict[str, object]:
        detail = self._tally.as_detail() | {"postponed": self._backoff.waiting}
        if rate := round(self._meter.rate()):
            detail["bytes_per_second"] = rate
        if self._stuck:
            detail["stuck"] = self._stuck
        return detail

    def _next(self, deadline: Deadline) -> list[RepairTask]:
        """The next few slices. Asks anew when those it was told are done or were told long ago."""
        if not self._batch or time.monotonic() - self._batch_at > _BATCH_AGE_S:
            if self._wake_up.came(deadline):
                self._backoff.clear()
                self._queue.look_anew()
            self._queue.give_back(self._batch)
            self._batch = self._queue.next(_BATCH, self._backoff.wait, deadline)
            self._batch_at = time.monotonic()
        chosen, self._batch = self._batch[: self._parallel], self._batch[self._parallel :]
        return chosen

    @traced("repair")
    def _repair_or_postpone(self, task: RepairTask, deadline: Deadline) -> int:
        """Bytes written for one slice. What cannot be done now is left alone for a while; others come first."""
        written = 0
        try:
            written, newer = self._repair(task, deadline)
            if newer is not None:
                raise newer
        except DistfsError as e:
            log.warning("slice %s of file %s is not repaired: %s", task.piece.id, task.file, e)
            self._stuck = str(e)
            self._backoff.failed(task.piece.id)
            return written
        self._backoff.succeeded(task.piece.id)
        return written

    def _repair(self, task: RepairTask, deadline: Deadline) -> tuple[int, NewerFormat | None]:
        """-> bytes written; what was said of a fragment that is not lost, and that only a newer distfs reads."""
        written, newer = 0, None
        for index in task.lost:
            try:
                good = self._proves_good(task, index, deadline)
            except NewerFormat as e:
                newer = e
                continue
            if good:
                node = task.piece.nodes[index]
                self._maker.db.move_fragment(task.piece.id, index, node, node, deadline)
                self._tally.add("proved_good")
                continue
            target = self._make(task, index, deadline)
            if target is None:  # somebody else moved it, the file is gone, or another target is to be found
                return written, newer
            written += task.fragment_size
            nodes = tuple(target if i == index else n for i, n in enumerate(task.piece.nodes))
            task = replace(task, piece=replace(task.piece, nodes=nodes))
        return written, newer

    def _proves_good(self, task: RepairTask, index: int, deadline: Deadline) -> bool:
        """Whether a fragment that was reported lost is there and right after all: its node came back, or what
        went wrong went wrong on the way. Perhaps it waits in quarantine. A node that cannot say proves nothing:
        it may heartbeat for ever without answering anybody, and meanwhile the others may go too."""
        node = self._maker.nodes(deadline).get(task.piece.nodes[index])
        if node is None or not node.alive:
            return False
        try:
            try:
                self._maker.check(task, index, node.id, deadline)
            except NotFound:
                limit = self._maker.time_for(task.fragment_size, deadline)
                store = self._maker.directory.store(node.id, limit)
                if not store.release(FragmentId(task.piece.id, index), limit):
                    return False
                self._maker.check(task, index, node.id, deadline)
        except NewerFormat:
            raise  # it is not lost, whoever said so: nothing is made in its place
        except (Corrupt, NotFound, ProtocolError, Unavailable) as e:
            log.info("fragment %s.%d on node %d is not proved good: %s", task.piece.id, index, node.id, e)
            return False
        return True

    def _make(self, task: RepairTask, index: int, deadline: Deadline) -> int | None:
        """Make a fragment anew -> the node that keeps it now; None: it was not wanted any more."""
        maker, piece = self._maker, task.piece
        began = time.monotonic()

        def write(target: int) -> None:
            maker.rebuild(task, index, task.lost, target, deadline)
            maker.confirm(task, index, target, deadline)

        old = piece.nodes[index]
        target = maker.place(task, index, write, maker.anywhere(task, index, deadline, own=True))
        if not maker.db.move_fragment(piece.id, index, old, target, deadline):
            what = "fragment %s.%d on node %d is not needed any more, or the node is being drained since"
            log.info(what, piece.id, index, target)
            return None
        log.info("fragment %s.%d made anew on node %d, was on node %d", piece.id, index, target, old)
        self._tally.add("made")
        if old not in (0, target):
            known = maker.nodes(deadline).get(old)
            if known is not None and known.alive:
                maker.put_aside(FragmentId(piece.id, index), old, began, deadline)
        return target
