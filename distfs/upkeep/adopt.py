"""Strays: good fragments on a node that MetaDB does not have there, and that are lost where it has them.

A node that was silent for long comes back with what was made anew elsewhere meanwhile, and lost there since; a
MetaDB restored from a backup has forgotten what was moved after it. Either way the only good fragment left may be
one that no row names. It is taken where it is: that copies nothing, and works where there is nothing to copy from.
"""

from __future__ import annotations

import logging
import time

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NewerFormat, NotFound
from distfs.upkeep.maker import FragmentMaker
from distfs.upkeep.model import MoveTask

log = logging.getLogger("distfs.upkeep")


def adopt(maker: FragmentMaker, task: MoveTask, node: int, deadline: Deadline, *, aside: bool) -> bool:
    """Let ``node`` keep the fragment of ``task`` that is on its disk, or ``aside``: in its quarantine.

    Read in full, and checked against MetaDB's digest, before the row is switched by compare-and-set. The holder of
    before may have come back, or been made good in place, since ``task`` was asked for: then there are two good
    ones, and it does not matter which of them the row names. False: it is gone, another has its place, or repair
    was quicker; nothing is done then. Raises Corrupt, NewerFormat, and it is where it was.
    """
    id = task.fragment
    limit = maker.time_for(2 * task.fragment_size, deadline)
    store = maker.directory.store(node, limit)
    try:
        if aside and not store.release(id, limit):
            return False
        began = time.monotonic()
        try:
            maker.check(task, task.index, node, deadline)
        except (Corrupt, NewerFormat):
            if aside:
                store.quarantine(id, time.monotonic() - began, limit)
            raise
    except NotFound:
        return False
    old = task.piece.nodes[task.index]
    if not maker.db.move_fragment(id.slice, id.index, old, node, deadline, adopted=True):
        log.info("stray fragment %s on node %d is not needed any more", id, node)
        return False
    log.warning("fragment %s is lost on node %d; node %d has it, too, and keeps it now", id, old, node)
    return True
