"""What is left of a slice, wherever it is: fragments that no row of MetaDB names, or that were put aside.

A slice whose named fragments do not give it back is read from these, too, block by block: two copies with different
bad cells are one whole slice. Nothing is kept of where they are; the nodes are asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.model import MAX_K, MAX_M, Slice
from distfs.node_directory import NodeDirectory

log = logging.getLogger("distfs.download")

_LIMIT_S = 10.0  # for all nodes
_NODE_LIMIT_S = 2.0


class Remnant(NamedTuple):
    """A fragment of a slice that a node has."""

    number: int  # the fragment's index
    node: int
    aside: bool  # in quarantine


#: How to look for all that is left of a slice.
Search = Callable[[Slice, Deadline], list[Remnant]]


def search_of(directory: NodeDirectory) -> Search:
    """Asks every node that is up for what it has of a slice. A node that does not answer has nothing."""

    def search(piece: Slice, deadline: Deadline) -> list[Remnant]:
        found: list[Remnant] = []
        limit = deadline.sooner(_LIMIT_S)
        for node in directory.known(deadline):
            if not node.alive:
                continue
            try:
                found += _on_node(directory, node.id, piece, limit.sooner(_NODE_LIMIT_S))
            except DistfsError as e:
                deadline.check_cancelled()
                log.info("node %d does not say what it has of slice %s: %s", node.id, piece.id, e)
        log.warning("slice %s: %d fragments of it are left, wherever they are", piece.id, len(found))
        return found

    return search


def _on_node(directory: NodeDirectory, node: int, piece: Slice, deadline: Deadline) -> list[Remnant]:
    store = directory.store(node, deadline)
    return [
        Remnant(listed.id.index, node, aside)
        for aside, listing in ((False, store.list), (True, store.list_quarantine))
        for listed in listing(str(piece.id), MAX_K + MAX_M, deadline).fragments
        if listed.id.slice == piece.id
    ]
