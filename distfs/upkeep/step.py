"""A worker's step: bounded work and an answer that says how to go on. The shape is Garage's background worker."""

from __future__ import annotations

import enum
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from distfs.deadline import Deadline
from distfs.telemetry import tracing
from distfs.telemetry.context import in_context
from distfs.upkeep.db import UpkeepDB

#: How many fragments one worker moves, or nodes it reads, at once.
PARALLEL = 4

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Pace(enum.Enum):
    """How a worker wants to go on."""

    BUSY = "busy"  # there is more to do
    IDLE = "idle"  # nothing to do, or nothing that can be done now
    THROTTLED = "throttled"  # there is more, and the rate allows it later


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one step. ``detail`` is what JSON can say; everybody sees it in ``distfs status``."""

    pace: Pace
    detail: Mapping[str, object]
    pause: float = 0.0  # seconds until the next step, when it is throttled


class Worker(Protocol):
    """One kind of upkeep. Holds nothing that its successor in another service could not find out again."""

    name: str

    def step(self, deadline: Deadline) -> Step:
        """Do one bounded piece of work. Used by one thread; raises what MetaDB and the nodes raise."""


class Tally:
    """What a worker did since it leads, counted by many threads."""

    def __init__(self, *names: str) -> None:
        self._lock = threading.Lock()
        self._counts = Counter(dict.fromkeys(names, 0))

    def add(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counts[name] += amount

    def as_detail(self) -> dict[str, object]:
        """For ``Step.detail``."""
        with self._lock:
            return dict(self._counts)


class WakeUp:
    """An operator's word to one worker to try at once what it postponed. Asked by one thread."""

    def __init__(self, db: UpkeepDB, worker: str) -> None:
        self._db, self._worker = db, worker
        self._woken_at: datetime | None = None

    def came(self, deadline: Deadline) -> bool:
        """Whether it came since this was last asked."""
        before, self._woken_at = self._woken_at, self._db.woken_at(self._worker, deadline)
        return self._woken_at != before


def paced(wait: float, more: bool, detail: Mapping[str, object]) -> Step:
    """After work: throttled for ``wait`` seconds, or busy; with nothing ``more`` to do, idle."""
    if not more:
        return Step(Pace.IDLE, detail)
    return Step(Pace.THROTTLED, detail, wait) if wait > 0 else Step(Pace.BUSY, detail)


def traced_step(worker: Worker, deadline: Deadline) -> Step:
    """A step as a trace of its own. One that found nothing to do is not drawn by lot."""
    with tracing.root(f"upkeep {worker.name}") as span:
        step = worker.step(deadline)
        if span is not None and step.pace is Pace.IDLE:
            span.trace.sampled = False
        return step


def all_of(executor: Executor, do: Callable[[Asked], Answer], items: Iterable[Asked]) -> list[Answer]:
    """``do`` each of ``items`` at once; waits for all of them, also when one raises."""
    futures: list[Future[Answer]] = []
    try:
        futures.extend(executor.submit(in_context(do), item) for item in items)
    finally:
        wait(futures)
    return [future.result() for future in futures]
