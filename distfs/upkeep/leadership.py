"""Who leads a worker: one service of all that run it, for as long as its connection to MetaDB lives."""

from __future__ import annotations

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.metadb.link import Link

#: A leader that does not speak for so long (frozen, or its machine is gone) is one no more.
LEADER_SILENCE_S = 120


class Leadership:
    """The right to run one worker, for as long as its connection to MetaDB lives. Used by one thread."""

    def __init__(self, link: Link, key: int) -> None:
        self._link: Link | None = link
        self._key = key

    def held(self, deadline: Deadline) -> bool:
        """Ask before every step, at least every LEADER_SILENCE_S. Once False it stays False."""
        if self._link is None:
            return False
        try:
            [[held]] = self._link.run("still_leads", deadline, {"key": self._key})
        except DistfsError:
            held = False
        if not held:
            self.release()
        return bool(held)

    def release(self) -> None:
        """Let another lead. May be called again."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
