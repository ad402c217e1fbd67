"""Nodes that heartbeat and do not answer: MetaDB hears of them, and nobody can read what they keep."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Executor

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.model import Node
from distfs.node_directory import NodeDirectory
from distfs.upkeep.step import all_of

_EVERY_S = 20.0
_PATIENCE_S = 2.0
_FAILURES = 2  # in a row: it is not a node that restarts, or a packet that was lost


class Reach:
    """Asks every node that is up how it is, now and then. Used by one thread."""

    def __init__(self, directory: NodeDirectory, executor: Executor, every: float = _EVERY_S) -> None:
        """``every``: seconds from one look to the next."""
        self._directory, self._executor, self._every = directory, executor, every
        self._looked_at = float("-inf")
        self._failures: Counter[int] = Counter()  # by node, in a row

    def unreachable(self, deadline: Deadline) -> list[int]:
        """Nodes that are up by their heartbeats, and did not answer this service when they were last asked."""
        alive = [node for node in self._directory.nodes(deadline) if node.alive]
        if time.monotonic() - self._looked_at >= self._every:
            self._looked_at = time.monotonic()
            answers = all_of(self._executor, lambda node: self._answers(node, deadline), alive)
            for node, answers_now in zip(alive, answers, strict=True):
                self._failures[node.id] = 0 if answers_now else self._failures[node.id] + 1
        return [node.id for node in alive if self._failures[node.id] >= _FAILURES]

    def _answers(self, node: Node, deadline: Deadline) -> bool:
        limit = deadline.sooner(_PATIENCE_S)
        try:
            self._directory.store(node.id, limit).info(limit)
        except Busy:
            pass  # it does, to others
        except DistfsError:
            return False
        return True
