"""Trash: deleted files whose time is over lose their fragments, and then their rows."""

from __future__ import annotations

import logging

from distfs.config import UpkeepConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.model import FragmentId
from distfs.node_directory import NodeDirectory
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.model import TrashedFile
from distfs.upkeep.step import Step, paced

log = logging.getLogger("distfs.upkeep")

_FILES = 20
_DELETE_LIMIT_S = 10.0


class Trash:
    """A step ends a few files. MetaDB has marked them: they cannot be undeleted any more.

    Fragments on nodes that do not answer are left to the orphan sweep. A step that is killed half way is done
    again by the next: deleting what is gone does no harm.
    """

    name = "trash"

    def __init__(self, db: UpkeepDB, directory: NodeDirectory, config: UpkeepConfig) -> None:
        self._db, self._directory, self._config = db, directory, config
        self._files = self._fragments = 0

    def step(self, deadline: Deadline) -> Step:
        files = self._db.expired_trash(self._config.trash_ttl, _FILES, deadline)
        silent = {n.id for n in self._directory.nodes(deadline) if not n.alive}
        for file in files:
            self._delete_fragments(file, silent, deadline)
            if self._db.drop_trash(file.id, deadline):
                log.info("file %s is gone from the trash", file.id)
                self._files += 1
        return paced(0.0, len(files) == _FILES, {"files": self._files, "fragments": self._fragments})

    def _delete_fragments(self, file: TrashedFile, silent: set[int], deadline: Deadline) -> None:
        """``silent``: nodes not to be asked; grows by those that do not answer. Raises TooSlow."""
        for piece in file.slices:
            deadline.remaining("deleting the fragments of a file")
            for index, node in enumerate(piece.nodes):
                if node == 0 or node in silent:
                    continue
                id = FragmentId(piece.id, index)
                limit = deadline.sooner(_DELETE_LIMIT_S)
                try:
                    self._fragments += self._directory.store(node, limit).delete(id, limit)
                except DistfsError as e:
                    log.info("fragment %s on node %d is left to the orphan sweep: %s", id, node, e)
                    silent.add(node)
