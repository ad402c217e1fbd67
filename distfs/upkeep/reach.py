"""Nodes that heartbeat and do not answer: MetaDB hears of them, and nobody can read what they keep.

One that did not answer for ``repair_delay`` is given up, as if it were silent: repair makes anew what it keeps. When
it answers again it counts again. It is one service's word, so nothing is decided while at least half of the nodes do
not answer: then it is rather that service which is cut off.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor

from distfs.deadline import Deadline
from distfs.errors import Busy, DistfsError
from distfs.model import Node
from distfs.peers.directory import NodeDirectory
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import cut_off
from distfs.upkeep.step import all_of

log = logging.getLogger("distfs.upkeep")

_EVERY_S = 20.0
_PATIENCE_S = 2.0
_FAILURES = 2  # in a row: it is not a node that restarts, or a packet that was lost


class Reach:
    """Asks every node that heartbeats how it is, now and then. Used by one thread."""

    def __init__(
        self,
        db: UpkeepDB,
        directory: NodeDirectory,
        executor: Executor,
        repair_delay: float,
        every: float = _EVERY_S,
    ) -> None:
        """``repair_delay``: seconds of no answer after which a node is given up; ``every``: from look to look."""
        self._db, self._directory, self._executor = db, directory, executor
        self._repair_delay, self._every = repair_delay, every
        self._looked_at = float("-inf")
        self._failures: Counter[int] = Counter()  # by node, in a row
        self._given_up: set[int] = set()
        self._cut_off = False

    def unreachable(self, deadline: Deadline) -> list[int]:
        """Nodes that heartbeat, and did not answer this service when they were last asked."""
        beating = [node for node in self._directory.nodes(deadline) if node.alive or node.unreachable]
        if time.monotonic() - self._looked_at >= self._every:
            self._looked_at = time.monotonic()
            answers = all_of(self._executor, lambda node: self._answers(node, deadline), beating)
            for node, answers_now in zip(beating, answers, strict=True):
                self._failures[node.id] = 0 if answers_now else self._failures[node.id] + 1
            self._note(beating, deadline)
        return self._silent(beating)

    def _silent(self, nodes: Sequence[Node]) -> list[int]:
        return [node.id for node in nodes if self._failures[node.id] >= _FAILURES]

    def _note(self, nodes: Sequence[Node], deadline: Deadline) -> None:
        """Of a node that failed once nothing is said: it may be the first look of a service that leads since."""
        silent = self._silent(nodes)
        answering = [node.id for node in nodes if not self._failures[node.id]]
        before, self._cut_off = self._cut_off, bool(silent) and cut_off(len(nodes), len(silent))
        if self._cut_off:
            if not before:
                log.warning(
                    "%d of %d nodes that heartbeat do not answer here: none is given up",
                    len(silent),
                    len(nodes),
                )
            silent, answering = [], [node.id for node in nodes]
        given_up = set(self._db.note_reach(answering, silent, self._repair_delay, deadline))
        for node in sorted(given_up - self._given_up):
            log.warning("node %d heartbeats and does not answer: what it keeps counts as lost", node)
        self._given_up = given_up

    def _answers(self, node: Node, deadline: Deadline) -> bool:
        limit = deadline.sooner(_PATIENCE_S)
        try:
            self._directory.store(node.id, limit).info(limit)
        except Busy:
            pass  # it does, to others
        except DistfsError:
            return False
        return True
