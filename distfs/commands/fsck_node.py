"""One node against MetaDB, both ways: its listing and the list of what it is to keep, walked side by side.

Both are in id order and are read a page at a time, so that memory does not grow with the node. They are never
read at the same moment: whatever looks wrong is asked about again, of the node and of MetaDB, before it is said.
**Unknown is never missing**: an error ends the walk, and nothing is concluded from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

from distfs.commands.operator import Operator
from distfs.deadline import Deadline
from distfs.errors import Corrupt, NewerFormat, NotFound
from distfs.fragment_store import FragmentStore, Listed, fault
from distfs.model import FragmentId, Node
from distfs.quantity import counted
from distfs.upkeep.model import Claim, MoveTask

_PAGE = 1000
_AFTER_ALL = UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fragment that is not as it should be. ``file`` None: no file needs it here."""

    fragment: FragmentId
    node: int  # where MetaDB says it is, or where it was found; 0: nobody keeps it
    reason: str
    file: UUID | None = None
    name: str = ""
    deleted: bool = False  # the file is in the trash, and can be undeleted

    @classmethod
    def of(cls, task: MoveTask, fragment: FragmentId, node: int, reason: str) -> Finding:
        """About a fragment of the slice of ``task``."""
        return cls(fragment, node, reason, task.file, task.name, task.trashed)


@dataclass
class NodeFindings:
    """What the walk over one node found."""

    node: Node
    checked: int = 0  # fragments a file needs, in the trash or not, that were looked at
    missing: list[Finding] = field(default_factory=list)
    corrupt: list[Finding] = field(default_factory=list)
    newer: list[Finding] = field(default_factory=list)  # whether they are good cannot be told
    unknown: list[Finding] = field(default_factory=list)  # kept by the node, and not by MetaDB's word
    recent: int = 0  # the same, but so young that an upload may be about to need them


class NodeCheck:
    """``deep``: the node re-reads every fragment. ``young``: seconds for which nobody's fragment is no finding."""

    def __init__(
        self,
        operator: Operator,
        found: NodeFindings,
        *,
        deep: bool,
        young: float,
        advanced: Callable[[int], None],
    ) -> None:
        """``found`` is filled as the walk goes; ``advanced`` is told how many fragments more were checked."""
        self._operator, self._found, self._node = operator, found, found.node.id
        self._deep, self._young, self._advanced = deep, young, advanced
        self._store = self._open()
        self._missing: list[MoveTask] = []  # to be asked about again
        self._surplus: list[Listed] = []

    def run(self) -> None:
        """Raises Unavailable, Busy, ProtocolError when the node cannot be asked (any more)."""
        self._store.info(self._operator.deadline())
        listed, kept = self._listed(), kept_by(self._operator, self._node)
        there, wanted = next(listed, None), next(kept, None)
        while there or wanted:
            at, due = _place(there.id if there else None), _place(wanted.fragment if wanted else None)
            if there and at < due:
                self._suspect_surplus(there)
                there = next(listed, None)
            elif wanted and due < at:
                self._check(wanted, listed=False)
                wanted = next(kept, None)
            else:
                if wanted:
                    self._check(wanted, listed=True)
                there, wanted = next(listed, None), next(kept, None)
        self._settle_missing()
        self._settle_surplus()

    # --- the two lists ----------------------------------------------------------------------------------

    def _open(self) -> FragmentStore:
        return self._operator.directory.store(self._node, self._operator.deadline())

    def _listed(self) -> Iterator[Listed]:
        """What the node says it has, by id."""
        cursor: str | None = ""
        while cursor is not None:
            page = self._store.list(cursor, _PAGE, self._operator.deadline())
            yield from page.fragments
            cursor = page.cursor

    # --- one fragment -----------------------------------------------------------------------------------

    def _check(self, task: MoveTask, *, listed: bool) -> None:
        """A fragment that is to be there: also a deleted file's, which can be undeleted."""
        self._found.checked += 1
        self._advanced(1)
        if not listed:
            self._suspect_missing(task)
        elif self._deep:
            try:
                self._verify(task)
            except NotFound:
                self._suspect_missing(task)
            except NewerFormat as e:
                self._report(self._found.newer, task, str(e))
            except Corrupt as e:
                self._report(self._found.corrupt, task, str(e))

    def _verify(self, task: MoveTask) -> None:
        """Raises Corrupt, NotFound."""
        limits = self._operator.config.peers
        reading = Deadline(limits.base_timeout + task.fragment_size / limits.min_rate)
        if reason := fault(self._store, task.fragment, task.piece.digest, task.block_size, reading):
            raise Corrupt(reason)

    def _suspect_missing(self, task: MoveTask) -> None:
        self._missing.append(task)
        if len(self._missing) >= _PAGE:
            self._settle_missing()

    def _settle_missing(self) -> None:
        """Ask the node for each again. It may have come since the listing, or have been moved or deleted since."""
        for task in self._missing:
            try:
                self._store.stat(task.fragment, self._operator.deadline())
            except NotFound as e:
                self._report(self._found.missing, task, str(e))
            except NewerFormat as e:
                self._report(self._found.newer, task, str(e))
            except Corrupt as e:
                self._report(self._found.corrupt, task, str(e))
        self._missing.clear()

    def _report(self, findings: list[Finding], task: MoveTask, reason: str) -> None:
        """Unless MetaDB now says that the fragment is elsewhere, or not needed any more, or on its way out."""
        if self._operator.db.is_kept(task.fragment, self._node, self._operator.deadline()):
            findings.append(Finding.of(task, task.fragment, self._node, reason))

    def _suspect_surplus(self, listed: Listed) -> None:
        self._surplus.append(listed)
        if len(self._surplus) >= _PAGE:
            self._settle_surplus()

    def _settle_surplus(self) -> None:
        """What MetaDB does not have here even after the listing. While its slice lacks one it may yet be needed."""
        db, ids = self._operator.db, [listed.id for listed in self._surplus]
        claims = db.claims(self._node, ids, self._operator.deadline())
        short = [id for id in ids if claims[id].short and not claims[id].here]
        delay = self._operator.config.upkeep.repair_delay
        strays = db.strays(self._node, short, delay, self._operator.deadline()) if short else []
        lost = {task.fragment: task for task in strays}
        for listed in self._surplus:
            claim = claims[listed.id]
            if claim.here:
                continue
            if listed.age < self._young:
                self._found.recent += 1
            else:
                self._found.unknown.append(self._surplus_is(listed, claim, lost.get(listed.id)))
        self._surplus.clear()

    def _surplus_is(self, listed: Listed, claim: Claim, lost: MoveTask | None) -> Finding:
        """What becomes of a fragment that is not to be here, as the orphan sweep decides it."""
        id, size = listed.id, f"({counted(listed.size, 'byte')})"
        if lost:
            reason = f"lost where MetaDB has it: upkeep takes this one in if it is good {size}"
            return Finding.of(lost, id, self._node, reason)
        reason = "upkeep leaves it while its slice lacks a fragment" if claim.short else "no file needs it"
        return Finding(id, self._node, f"{reason} {size}")


def kept_by(operator: Operator, node: int) -> Iterator[MoveTask]:
    """What MetaDB says a node keeps, by id; the trash included."""
    after: UUID | None = None
    while page := operator.db.slices_on(node, after, _PAGE, operator.deadline()):
        yield from page
        after = page[-1].piece.id


def _place(fragment: FragmentId | None) -> tuple[UUID, int]:
    """For comparing; the end of a list comes after everything."""
    return (fragment.slice, fragment.index) if fragment else (_AFTER_ALL, 0)
