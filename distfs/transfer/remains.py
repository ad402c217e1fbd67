"""What is left of a slice, wherever it is: fragments that no row of MetaDB names, or that were put aside.

A slice whose named fragments do not give it back is read from these, too, block by block: two copies with different
bad cells are one whole slice. Nothing is kept of where they are; the nodes are asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

from distfs.deadline import Deadline
from distfs.errors import Busy, Cancelled, Corrupt, DistfsError, NewerFormat, NotFound
from distfs.model import MAX_K, MAX_M, Slice
from distfs.peers.directory import NodeDirectory
from distfs.process.threads import Threads

log = logging.getLogger("distfs.download")

_LIMIT_S = 10.0  # for all nodes
_NODE_LIMIT_S = 2.0
_AT_ONCE = 16  # nodes


class Remnant(NamedTuple):
    """A fragment of a slice that a node has."""

    number: int  # the fragment's index
    node: int
    aside: bool  # in quarantine


#: How to look for all that is left of a slice.
Search = Callable[[Slice, Deadline], list[Remnant]]


class Remains:
    """What is left of one slice, for one read of it: looked for when that may help, and remembered over its tries.

    Nodes that only cannot be reached may be back soon, and are waited for first: what is left on others is looked for
    when something proved bad or missing, or as the ``last_resort``.
    """

    def __init__(self, search: Search, piece: Slice, *, last_resort: bool) -> None:
        self._search, self._piece, self._last_resort = search, piece, last_resort
        self._found: list[Remnant] | None = None  # None: not looked for

    def after(self, errors: Iterable[DistfsError], deadline: Deadline) -> list[Remnant] | None:
        """Those that may give what the fragments that MetaDB names did not, for these reasons; None: not yet."""
        wanted = self._last_resort or any(isinstance(e, Corrupt | NotFound | NewerFormat) for e in errors)
        if self._found is None and wanted:
            self._found = self._search(self._piece, deadline)
        return None if self._found is None else list(self._found)

    def begin_last_resort(self) -> bool:
        """From now on whatever the reason is. False: so it was already."""
        first, self._last_resort = not self._last_resort, True
        if first:
            self._found = None
        return first


def search_of(directory: NodeDirectory) -> Search:
    """Asks every node that is up for what it has of a slice, side by side. One that does not answer has nothing."""

    def search(piece: Slice, deadline: Deadline) -> list[Remnant]:
        limit = deadline.sooner(_LIMIT_S)

        def ask(node: int) -> list[Remnant]:
            try:
                return _on_node(directory, node, piece, limit.sooner(_NODE_LIMIT_S))
            except Cancelled:
                raise
            except DistfsError as e:
                log.info("node %d does not say what it has of slice %s: %s", node, piece.id, e)
                return []

        nodes = [node.id for node in directory.known(deadline) if node.alive]
        found = [each for some in _side_by_side(ask, nodes) for each in some]
        log.warning("slice %s: %d fragments of it are left, wherever they are", piece.id, len(found))
        return found

    return search


def _side_by_side(ask: Callable[[int], list[Remnant]], nodes: list[int]) -> list[list[Remnant]]:
    with Threads(_AT_ONCE, thread_name_prefix="remains") as threads:
        try:
            asked = [threads.submit(ask, node) for node in nodes]
        except Busy:  # no thread to be had: one after the other
            return [ask(node) for node in nodes]
        return [each.result() for each in asked]


def _on_node(directory: NodeDirectory, node: int, piece: Slice, deadline: Deadline) -> list[Remnant]:
    store = directory.store(node, deadline)
    return [
        Remnant(listed.id.index, node, aside)
        for aside, listing in ((False, store.list), (True, store.list_quarantine))
        for listed in listing(str(piece.id), MAX_K + MAX_M, deadline).fragments
        if listed.id.slice == piece.id
    ]
