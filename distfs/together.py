"""What the processes of one service know of each other: shared counts, and what each says of itself."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any
from uuid import UUID

from distfs.access.failures import Failures
from distfs.config.settings import Config
from distfs.process.notice_board import NoticeBoard
from distfs.process.shared_table import SharedTable
from distfs.process.threads import start

log = logging.getLogger("distfs.processes")

#: So often each says anew how it is; what one says of all is as old, for the part of the others.
EVERY_S = 0.5

Status = Mapping[str, Any]

#: What is the service's already, whoever says it.
_OF_ALL = ("large_uploads", "declared_bytes", "uploads_by_rule")
#: Of figures that are no amounts the worst counts.
_WORST = ("latency_ms", "latency_p95_ms", "age_s", "at_most_s")
_BREAKER = ("closed", "probing", "open")


@dataclass(frozen=True)
class Together:
    """As one of the processes has it."""

    number: int
    count: int
    config: Config  # of all of them
    table: SharedTable  # what is held
    paces: SharedTable  # how much may go when
    board: NoticeBoard
    failures: Failures  # who shows wrong tokens, and how often
    service: UUID  # this process, as MetaDB knows it
    before: tuple[UUID, ...]  # those that had its place, which are gone

    def keep_saying(self, status: Callable[[], Status]) -> None:
        """``status`` again and again, as long as the process lives."""
        start(self._say, "status", status)

    def _say(self, status: Callable[[], Status]) -> None:
        pause = threading.Event()
        while True:
            try:
                self.board.post(self.number, json.dumps({"pid": os.getpid(), **status()}).encode())
            except Exception:  # the thread's outermost edge
                log.exception("what this process holds cannot be told, by a bug")
            pause.wait(EVERY_S)

    def status(self, mine: Status) -> Status:
        """Of all: of this process as it is now, of others as they were a moment ago."""
        others = {
            number: json.loads(said) for number, said in self.board.read().items() if number != self.number
        }
        pids = sorted([os.getpid(), *(int(said.pop("pid")) for said in others.values())])
        return {**merged([mine, *others.values()]), "processes": {"pids": pids}}


def merged(said: Sequence[Status]) -> dict[str, Any]:
    """Several as if one process had said it; of what they do not agree on the first counts."""
    return dict(reduce(_merged, said))


def _merged(first: Any, second: Any, key: str = "") -> Any:
    if key in _OF_ALL or second is None:
        return first
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {**second, **{k: _merged(v, second[k], k) if k in second else v for k, v in first.items()}}
    if isinstance(first, bool):
        return first or bool(second)
    if key in _WORST or first is None:
        return second if first is None else max(first, second)
    if isinstance(first, int | float) and isinstance(second, int | float):
        return first + second
    return max(first, second, key=_BREAKER.index) if first in _BREAKER and second in _BREAKER else first
