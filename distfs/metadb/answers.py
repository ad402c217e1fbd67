"""What was made of MetaDB's answers about files, so that the same words are not read again.

MetaDB is asked each time. Of a file that is asked for again it mostly says what it said before, to the byte, and to
compare that takes a hundredth of the time that it takes to make Python's values of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

Rows = Sequence[Sequence[Any]]

#: Files, and bytes of an answer about one: a few MB in all. One of many slices says more.
MOST, LONGEST = 2048, 1024


class Answers:
    """By the parameter ``id`` of what was asked: all statements that share it have the same columns. Thread-safe."""

    def __init__(self, make: Callable[[UUID, Rows], Rows]) -> None:
        """``make``: of the rows that came, what is given instead of them, to all who ask: it must never change."""
        self._make = make
        self._kept: dict[int, tuple[bytes, Rows]] = {}
        self._lock = threading.Lock()

    def known(self, params: Mapping[str, Any], said: bytes) -> Rows | None:
        """What was made of the same answer; None: it is another, or the first."""
        kept = self._kept.get(params["id"].int)
        return kept[1] if kept is not None and kept[0] == said else None

    def made(self, params: Mapping[str, Any], rows: Rows, said: bytes | None) -> Rows:
        """``said``: all of the answer, if it was rows and nothing else. No row is no file, and nothing to keep."""
        if not rows:
            return rows
        id: UUID = params["id"]
        made = self._make(id, rows)
        if said is not None and len(said) <= LONGEST:
            with self._lock:
                self._kept.pop(id.int, None)
                while len(self._kept) >= MOST:
                    del self._kept[next(iter(self._kept))]  # the first that came
                self._kept[id.int] = said, made
        return made
