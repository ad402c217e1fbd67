"""How often links were used that may be used only so often: a row of MetaDB each, so it is exact over all services.

Each use has an id: to take it or to give it back twice, since an answer of MetaDB was lost, makes no difference.
"""

from __future__ import annotations

import logging
from uuid import UUID, uuid4

from distfs.deadline import Deadline
from distfs.errors import Busy, Forbidden, OutcomeUnknown, Unavailable
from distfs.meta import MetaDB

log = logging.getLogger("distfs.access")

_USED_UP = "this link was used as often as it may be: ask for a new one"


class Uses:
    """Thread-safe."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta

    def take(self, link: UUID, deadline: Deadline) -> UUID:
        """One less is left. -> its id. Raises Forbidden when none is."""
        use = uuid4()
        try:
            taken = self._meta.write("take_link", deadline, again="has_taken_link", id=link, use=use)
        except OutcomeUnknown:
            self.give_back(link, use, deadline)
            raise
        if not taken:
            raise Forbidden(_USED_UP)
        return use

    def give_back(self, link: UUID, use: UUID, deadline: Deadline) -> None:
        """It came to nothing. If MetaDB cannot be told, it counts."""
        try:
            self._meta.write("give_back_link", deadline, id=link, use=use)
        except (Unavailable, Busy, OutcomeUnknown) as e:
            log.warning("a use of link %s that came to nothing counts all the same: %s", link, e)

    def require_left(self, link: UUID, deadline: Deadline) -> None:
        """Raises Forbidden when none is."""
        if not self._meta.read("link_is_left", deadline, id=link):
            raise Forbidden(_USED_UP)
