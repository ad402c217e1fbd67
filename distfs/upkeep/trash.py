"""Trash: fragments of deleted files whose time is over are put aside, and then their rows go."""

from __future__ import annotations

import logging

from distfs.config.settings import UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError, NewerFormat
from distfs.model import FragmentId
from distfs.peers.directory import NodeDirectory
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import TrashedFile
from distfs.upkeep.step import Step, paced

log = logging.getLogger("distfs.upkeep")

_FILES = 20
_ASK_LIMIT_S = 10.0


class Trash:
    """A step ends a few files. MetaDB has marked them: they cannot be undeleted any more.

    A step that is killed half way is done again by the next: putting aside what is aside does no harm.
    """

    name = "trash"

    def __init__(self, db: UpkeepDB, directory: NodeDirectory, config: UpkeepConfig) -> None:
        self._db, self._directory, self._config = db, directory, config
        self._files = self._fragments = 0

    def step(self, deadline: Deadline) -> Step:
        files = self._db.expired_trash(self._config.trash_ttl, _FILES, deadline)
        silent = {n.id for n in self._directory.nodes(deadline) if not n.alive}
        for file in files:
            self._fragments += purge(self._directory, file, silent, deadline, for_good=file.for_good)
            if self._db.drop_trash(file.id, deadline):
                log.info("file %s is %s", file.id, "erased" if file.for_good else "gone from the trash")
                self._files += 1
        return paced(0.0, len(files) == _FILES, {"files": self._files, "fragments": self._fragments})


def purge(
    directory: NodeDirectory, file: TrashedFile, silent: set[int], deadline: Deadline, *, for_good: bool
) -> int:
    """Take away the fragments of a file that MetaDB has marked, before its rows are dropped; -> how many.

    They are put aside: a MetaDB that fails over may lose the mark and let the file be undeleted. The orphan sweep
    deletes them when ``quarantine_ttl`` is over. ``for_good``: they are deleted at once, for who needs the room now;
    nothing brings them back then. ``silent``: nodes not to be asked; grows by those that do not answer. What these
    keep is left to the orphan sweep. Raises TooSlow.
    """
    taken = 0
    for piece in file.slices:
        deadline.remaining("taking away the fragments of a file")
        for index, node in enumerate(piece.nodes):
            if node == 0 or node in silent:
                continue
            id = FragmentId(piece.id, index)
            limit = deadline.sooner(_ASK_LIMIT_S)
            try:
                store = directory.store(node, limit)
                if for_good:
                    # What was aside already, by a step that was killed, goes too.
                    taken += store.delete(id, limit) | store.discard(id, 0.0, limit)
                else:
                    taken += store.quarantine(id, 0.0, limit)
            except DistfsError as e:
                log.info("fragment %s on node %d is left to the orphan sweep: %s", id, node, e)
                if not isinstance(e, NewerFormat):
                    silent.add(node)
    return taken
