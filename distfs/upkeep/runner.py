"""Runs the workers: a thread each, in every service; one service at a time leads a worker and does its work."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from distfs.config.settings import Config, Seconds
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.meta import MetaDB
from distfs.peers.directory import NodeDirectory
from distfs.process.threads import Threads, begin
from distfs.transfer.blocks import BlockPool
from distfs.transfer.slice_read import NoteDamage
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.leadership import LEADER_SILENCE_S, Leadership
from distfs.upkeep.maker import FragmentMaker
from distfs.upkeep.orphans import Orphans
from distfs.upkeep.rebalance import Rebalance
from distfs.upkeep.repair import Repair
from distfs.upkeep.scrub import Scrub
from distfs.upkeep.step import PARALLEL, Pace, Step, Worker, traced_step
from distfs.upkeep.trash import Trash

log = logging.getLogger("distfs.upkeep")

#: A step that takes longer is ended; but a slice gets the time it needs at the least rate.
STEP_LIMIT_S = 0.75 * LEADER_SILENCE_S
#: What looks at every slice of a dead node may take longer than a user's request.
_STATEMENT_TIMEOUT_S = 30.0
_CALL_LIMIT_S = 10.0
_STANDBY_INTERVALS = 3  # how often, in intervals, a service that does not lead asks whether it may
_SHOW_AGAIN_S = 30.0
_AFTER_BUG_S = 60.0
_STOP_LIMIT_S = 5.0

MakeWorker = Callable[[], Worker]
#: Raises DistfsError, with the reason, while this process must do no upkeep.
Allowed = Callable[[Deadline], None]

#: Connections to MetaDB for all workers together; beside these is the one on which they lead.
_POOL_SIZE = 4


class Upkeep:
    """All workers of one service. ``start`` and ``close`` once each."""

    def __init__(
        self,
        config: Config,
        directory: NodeDirectory,
        pool: BlockPool,
        note_damage: NoteDamage,
        allowed: Allowed,
        more: Mapping[str, Callable[[UpkeepDB], Worker]] | None = None,
    ) -> None:
        """Connects to nothing. ``directory``, ``pool``: the service's own; ``note_damage``: as the downloads' is.
        ``more``: workers beside those of upkeep, by name."""
        own = replace(
            config.metadb,
            pool_size=min(config.metadb.pool_size, _POOL_SIZE),
            statement_timeout=Seconds(max(config.metadb.statement_timeout, _STATEMENT_TIMEOUT_S)),
        )
        self._meta = MetaDB(own, config.node.down_after)
        self.db = UpkeepDB(self._meta)
        self._config = config.upkeep
        self._executor = Threads(3 * PARALLEL, thread_name_prefix="upkeep")
        maker = FragmentMaker(self._meta, self.db, directory, config.peers, pool, note_damage)
        db, upkeep, executor = self.db, config.upkeep, self._executor
        workers: dict[str, MakeWorker] = {
            Repair.name: lambda: Repair(maker, upkeep, executor),
            Scrub.name: lambda: Scrub(db, directory, upkeep, config.peers, executor),
            Orphans.name: lambda: Orphans(maker, upkeep),
            Trash.name: lambda: Trash(db, directory, upkeep),
            Rebalance.name: lambda: Rebalance(maker, upkeep, config.node.heartbeat, executor),
        }
        workers |= {name: partial(make, db) for name, make in (more or {}).items()}
        self._stopping = threading.Event()
        slice_limit = 2 * config.peers.base_timeout + config.storage.slice_size / config.peers.min_rate
        limits = upkeep.interval, max(STEP_LIMIT_S, slice_limit)
        self._runners = [
            Runner(name, make, db, *limits, self._stopping, allowed, share=number / len(workers))
            for number, (name, make) in enumerate(workers.items())
        ]

    def start(self) -> None:
        """Begin. Does nothing when ``upkeep.enabled`` is off."""
        if self._config.enabled:
            for runner in self._runners:
                begin(runner)

    def close(self) -> None:
        """End, within a bound; a step in the middle is given up and done again by whoever leads next."""
        self._stopping.set()
        ends = time.monotonic() + _STOP_LIMIT_S
        for runner in self._runners:
            if runner.ident is not None:
                runner.join(max(0.0, ends - time.monotonic()))
        for runner in self._runners:
            runner.give_up()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._meta.close()


def until_turn(now: float, interval: float, share: float) -> float:
    """Seconds, no more than ``interval``, until a worker's turn in it comes round. Idle ones that all look at once
    need a connection each, and MetaDB a process of some MB for each; one after another they share one."""
    return interval - (now - share * interval) % interval


class Runner(threading.Thread):
    """One worker's thread: waits to lead, then steps for as long as it does."""

    def __init__(
        self,
        name: str,
        make: MakeWorker,
        db: UpkeepDB,
        interval: float,
        step_limit: float,
        stopping: threading.Event,
        allowed: Allowed,
        share: float = 0.0,
    ) -> None:
        """``make``: a fresh worker, made whenever this thread comes to lead. ``allowed``: asked before each step.
        ``share``: at which part of the interval an idle one looks, 0 to 1."""
        super().__init__(name=f"upkeep-{name}", daemon=True)
        self._worker_name, self._make, self._db = name, make, db
        self._allowed = allowed
        self._interval, self._step_limit, self._stopping = interval, step_limit, stopping
        self._share = share
        self._lead: Leadership | None = None
        self._worker: Worker | None = None
        self._step: Deadline | None = None  # of the step that runs
        self._trouble = ""
        self._shown: tuple[str, Mapping[str, object]] = "", {}
        self._shown_at = 0.0

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    pause = self._turn_or_failed()
                except Exception:  # the thread's outermost edge
                    log.exception("upkeep %s stumbled over a bug; it begins anew", self._worker_name)
                    self._worker = None
                    pause = _AFTER_BUG_S
                self._stopping.wait(pause)
        finally:  # whatever ended it: another service may lead
            if self._lead is not None:
                self._lead.release()

    def give_up(self) -> None:
        """Wake the step that runs: a thread that waits for a silent node would hold up the end of the process."""
        if self._step is not None:
            self._step.cancel("upkeep stops")

    def _turn_or_failed(self) -> float:
        try:
            pause = self._turn()
        except DistfsError as e:
            return self._failed(e)
        self._trouble = ""
        return pause

    def _turn(self) -> float:
        """One step if this thread leads; -> how long to wait before the next turn."""
        if self._lead is not None and not self._lead.held(Deadline(_CALL_LIMIT_S)):
            log.info("upkeep %s: another service may lead now", self._worker_name)
            self._lead = self._worker = None
        if self._lead is None:
            self._lead = self._db.leadership(self._worker_name, Deadline(_CALL_LIMIT_S))
            if self._lead is None:
                return self._interval * _STANDBY_INTERVALS
            log.info("upkeep %s: this service leads", self._worker_name)
        self._allowed(Deadline(_CALL_LIMIT_S))
        self._worker = self._worker or self._make()
        with Deadline(self._step_limit).scope() as self._step:
            step = traced_step(self._worker, self._step)
            self._step.check_cancelled()  # MetaDB is gone then, too
        self._show(step)
        match step.pace:
            case Pace.BUSY:
                return 0.0
            case Pace.THROTTLED:
                return min(step.pause, LEADER_SILENCE_S / 4)
            case Pace.IDLE:
                return until_turn(time.monotonic(), self._interval, self._share)

    def _show(self, step: Step) -> None:
        """Tell everybody: at once what an idle worker has to say, else now and then."""
        state = "idle" if step.pace is Pace.IDLE else "busy"
        news = (state, step.detail) != self._shown
        at_once = state == "idle" or state != self._shown[0]
        silent = time.monotonic() - self._shown_at
        if (news and at_once) or silent >= (self._interval if news else _SHOW_AGAIN_S):
            self._db.save_worker(self._worker_name, state, step.detail, Deadline(_CALL_LIMIT_S))
            self._shown, self._shown_at = (state, step.detail), time.monotonic()

    def _failed(self, error: DistfsError) -> float:
        """A node or MetaDB does not answer: say so once, and try again after a while."""
        if self._stopping.is_set():
            return 0.0
        if str(error) != self._trouble:
            log.warning("upkeep %s: %s", self._worker_name, error)
            self._trouble = str(error)
            with contextlib.suppress(DistfsError):
                detail = {"stuck": str(error)}
                self._db.save_worker(self._worker_name, "failing", detail, Deadline(_CALL_LIMIT_S))
        self._shown = "", {}
        return self._interval
