"""Waiting for what a worker of a service does: with progress, and until it is plain that it is stuck."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from distfs.commands.display import Progress
from distfs.commands.operator import Operator
from distfs.commands.status import is_running
from distfs.errors import Refused
from distfs.upkeep.model import COUNTED, WorkerState

_POLL_S = 0.5
_REST = 4  # times as long as looking took


def wait_until_none(
    operator: Operator, worker: str, what: str, left: Callable[[], int], patience: float
) -> str:
    """Return "" when nothing is ``left``; else, after ``patience`` seconds without any progress, the reason."""
    total, fewest = 0, math.inf
    progress = Progress(what)
    moved_at = time.monotonic()
    try:
        while True:
            began = time.monotonic()
            if (now_left := left()) <= 0:
                break
            looked = time.monotonic() - began
            total = max(total, now_left)
            if now_left < fewest:
                fewest, moved_at = now_left, time.monotonic()
            if time.monotonic() - moved_at > patience and not (
                now_left >= COUNTED and _moves(operator, worker)
            ):
                return why_stuck(operator, worker, patience)
            progress.show(total - now_left, total)
            time.sleep(max(min(_POLL_S, max(patience, 0.01)), _REST * looked))
    finally:
        progress.end()
    return ""


def _moves(operator: Operator, worker: str) -> bool:
    """Whether a worker moves something, though an estimate of what is left does not show it."""
    states = operator.db.workers(operator.deadline())
    return any(s.name == worker and is_running(s) and s.detail.get("bytes_per_second") for s in states)


def why_stuck(operator: Operator, worker: str, patience: float) -> str:
    """What holds a worker up, in words."""
    try:
        state = running(operator, worker)
    except Refused as e:
        return str(e)
    if reason := state.detail.get("stuck"):
        return str(reason)
    return f"nothing moved for {patience:.0f} s; the worker {worker!r} says it is {state.state}"


def running(operator: Operator, worker: str) -> WorkerState:
    """What a worker said last. Raises Refused when no service runs it."""
    for state in operator.db.workers(operator.deadline()):
        if state.name == worker and is_running(state):
            return state
    raise Refused(f"no service runs the worker {worker!r}: start one (`distfs serve`) with upkeep.enabled")
