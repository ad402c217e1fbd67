"""One node's listing beside what MetaDB says of it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import Corrupt, NewerFormat, NotFound
from distfs.fragment_store import FragmentStore, Page
from distfs.model import FragmentId
from distfs.upkeep.db import UpkeepDB
from distfs.upkeep.decisions import absent
from distfs.upkeep.model import Kept

log = logging.getLogger("distfs.upkeep")

#: Fragments in one page of a listing, and asked of MetaDB at once.
PAGE = 500


def slice_of(cursor: str) -> UUID | None:
    """The slice that a listing's cursor stands at; None at the start."""
    return UUID(cursor.partition(".")[0]) if cursor else None


class Missing:
    """Finds and notes what a page of a listing should have shown. A few hundred fragments a ``step``.

    Absence from the page is only a suspicion: the fragment may have come or gone since. Its node is asked for
    it by name, and only a clear "not found" is one.
    """

    def __init__(self, db: UpkeepDB, store: FragmentStore, node: int, cursor: str, page: Page) -> None:
        """``cursor``: where the page begins."""
        self._db, self._store, self._node = db, store, node
        self._listed: Collection[FragmentId] = {f.id for f in page.fragments}
        self._after = slice_of(cursor)
        self._end = slice_of(page.cursor) if page.cursor is not None else None
        self.kept: dict[FragmentId, Kept] = {}  # of what the page does show
        self.noted = 0
        self.done = False

    def step(self, deadline: Deadline) -> None:
        """Look at the next few. Raises what MetaDB and the node raise."""
        expected = self._db.fragments_on(self._node, self._after, PAGE, deadline)
        self.kept.update((each.id, each) for each in expected if each.id in self._listed)
        for id in absent(self._listed, (each.id for each in expected), self._end):
            self.noted += look_for(id, self._db, self._store, self._node, deadline)
        self._after = expected[-1].id.slice if expected else self._after
        beyond = bool(expected) and self._end is not None and expected[-1].id.slice > self._end
        self.done = beyond or len(expected) < PAGE


def look_for(id: FragmentId, db: UpkeepDB, store: FragmentStore, node: int, deadline: Deadline) -> bool:
    """Ask a node for a fragment by name, in quarantine too; whether it was noted as missing or damaged."""
    reason = "missing"
    try:
        store.stat(id, deadline)
        return False
    except NewerFormat:  # it is there
        return False
    except NotFound:
        if not db.is_kept(
            id, node, deadline
        ):  # moved since; or put aside by the end of its file, which has begun
            return False
        try:
            if store.release(id, deadline):
                log.warning("fragment %s on node %d was in quarantine and is wanted", id, node)
                return False
        except NewerFormat:
            return False
        except Corrupt as e:
            reason = str(e)
    except Corrupt as e:
        reason = str(e)
    if not db.note_damage(id.slice, id.index, node, reason, deadline):
        return False
    log.warning("fragment %s on node %d: %s", id, node, reason)
    return True
