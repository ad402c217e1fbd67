"""How commands speak to people: tables, quantities, and one line of progress."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distfs.process import output
from distfs.quantity import counted, size
from distfs.upkeep.model import COUNTED, Leaving

__all__ = ["Progress", "counted", "duration", "fragments_in_words", "leaving_in_words", "size", "table"]

_PROGRESS_EVERY_S = 0.2
_BAR = 24


def duration(seconds: float) -> str:
    """``90`` -> ``90 s``; ``7200`` -> ``2.0 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"


def leaving_in_words(leaving: Leaving) -> str:
    """Of a node that drains. Nothing else tells anybody that a node may be unplugged."""
    if leaving.safe:
        return "empty: safe to unplug"
    if leaving.fragments:
        return f"draining: {fragments_in_words(leaving.fragments)} left"
    return "draining: waiting for a change in MetaDB that began before"


def fragments_in_words(kept: int) -> str:
    """Of one node."""
    return ("about " if kept >= COUNTED else "") + counted(kept, "fragment")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, aligned; figures to the right. Ends without a line break."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    right = [bool(rows) and all(row[i][:1].isdigit() for row in rows) for i in range(len(heads))]
    padded = (
        [cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(*parts)]
        for parts in ((line, widths, right) for line in lines)
    )
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


class Progress:
    """One line on standard error that is overwritten; nothing at all unless that is a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shows = output.is_watched()
        self._shown_at = 0.0
        self._began = time.monotonic()

    def show(self, done: int, total: int) -> None:
        """``done`` of ``total``, in the same unit."""
        now = time.monotonic()
        if not self._shows or (now - self._shown_at < _PROGRESS_EVERY_S and done < total):
            return
        self._shown_at = now
        share = min(1.0, done / total) if total else 1.0
        bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
        spent = now - self._began
        left = f", {duration(spent / share - spent)} left" if 0 < share < 1 and spent > 2 else ""
        line = f"{self._what} [{bar}] {share:4.0%}  {done:,} of {total:,}{left}"
        output.show("\r\x1b[K" + line)

    def end(self) -> None:
        """Leave the line empty for what follows."""
        if self._shows and self._shown_at:
            output.show("\r\x1b[K")
