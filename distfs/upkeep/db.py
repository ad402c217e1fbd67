"""What upkeep and the operator's commands ask of MetaDB; services ask ``meta``.

The same rules hold: one statement is one transaction and may be run again without harm; every time is the
database's clock. Most methods are one statement; others are several, with nothing that holds them together: no
statement goes through all slices of a node, of which there may be millions, but through a page. Nothing here trusts
that its caller still leads: what changes a slice compares first.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from distfs.deadline import Deadline
from distfs.errors import DistfsError, NotFound
from distfs.meta import MetaDB
from distfs.model import FragmentId, Policy, Slice
from distfs.telemetry.metrics import DAMAGE
from distfs.upkeep import in_pages
from distfs.upkeep.leadership import Leaders, Leadership
from distfs.upkeep.model import (
    COUNTED,
    Backlog,
    Claim,
    ClusterStatus,
    Deleted,
    FileHealth,
    Hurt,
    HurtCount,
    Kept,
    Leaving,
    MoveTask,
    RepairTask,
    ScrubState,
    ShortFile,
    TrashedFile,
    WorkerState,
)

_MAX_REASON_BYTES = 1000
_START = UUID(int=0)
_PAGE = 5000  # slices that one statement judges
_PARTS, _SAMPLED_PARTS = 256, 8  # of what a node keeps: slice_places in sql/schema.sql
_SAMPLE = 2000  # slices from whose sizes those of all are estimated
_UNNAMED_FOR_S = 600.0  # a forgotten node that no slice names is not looked for: that is 256 probes
_END_S = 10.0  # for what is taken back


class UpkeepDB:
    """Thread-safe, over a MetaDB. Raises what MetaDB raises: Unavailable (503) while it is away."""

    def __init__(self, meta: MetaDB) -> None:
        self._meta = meta
        self._leaders = Leaders(meta.connect)
        self._unnamed: dict[int, float] = {}  # by forgotten node: when no slice was found that names it

    # --- repair -------------------------------------------------------------------------------------

    def work_to_repair(self, repair_delay: float, limit: int, deadline: Deadline) -> list[RepairTask]:
        """Slices with a lost fragment: least redundancy left first, then the oldest file; the hopeless last. Looks at
        all that is lost: for people; repair has its ``RepairQueue``. Those in the trash come after those of files.

        Lost is what nobody keeps (0), what is noted as damage, and what is on a node that was forgotten, given
        up, or silent for ``repair_delay`` seconds. Fragments on draining nodes are not lost.
        """
        found: dict[UUID, Hurt] = {}
        nodes, _ = self.hurt_places(repair_delay, deadline)
        for place in (None, *nodes):
            after: UUID | None = _START
            while after is not None:
                hurt, after = self.hurt_page(place, after, _PAGE, repair_delay, deadline)
                found |= {each.id: each for each in hurt}
        ids = [each.id for each in heapq.nsmallest(limit, found.values())]
        pages = (ids[i : i + _PAGE] for i in range(0, len(ids), _PAGE))
        tasks = {t.piece.id: t for page in pages for t in self.hurt_among(page, repair_delay, deadline)}
        return [tasks[id] for id in ids if id in tasks]

    def hurt_places(
        self, silence: float, deadline: Deadline, *, stopped: bool = False
    ) -> tuple[list[int], datetime | None]:
        """The nodes with fragments that are lost, 0 (nobody) among them; and when damage was noted last.

        ``stopped``: also those that said they stop, whenever that was. A forgotten node that no slice names is looked
        for again after a while: a MetaDB that lost its last changes, or was restored, names it again. One that only
        registers at this moment looks forgotten, too, and is remembered so no longer than until it is listed.
        """
        now = time.monotonic()
        unnamed = sorted(node for node, at in list(self._unnamed.items()) if now - at < _UNNAMED_FOR_S)
        silence = self._meta.excused(silence)
        rows = self._meta.read("hurt_places", deadline, silence=silence, stopped=stopped, unnamed=unnamed)
        for node, named, listed, *_ in rows:
            self._unnamed[node] = float("-inf") if named or listed else now
        for node in rows[0][4]:
            self._unnamed[node] = float("-inf")
        return [node for node, named, *_ in rows if named], rows[0][3]

    def hurt_page(
        self, node: int | None, after: UUID | None, limit: int, repair_delay: float, deadline: Deadline
    ) -> tuple[list[Hurt], UUID | None]:
        """Of the next ``limit`` slices after ``after`` that ``node`` keeps a fragment of, or (None) that are noted
        as damaged, those that have a lost fragment; and where to go on, None: that was the last."""
        where: dict[str, Any] = {} if node is None else {"node": node}
        query = "hurt_by_damage" if node is None else "hurt_on"
        delay = self._meta.excused(repair_delay)
        params: dict[str, Any] = {"after": after or _START, "limit": limit, "repair_delay": delay}
        rows = self._meta.read(query, deadline, **where, **params)
        last, count = rows[0][:2]
        hurt = [Hurt(row[2] < 0, row[3], row[2], row[4], row[5]) for row in rows if row[5] is not None]
        return hurt, last if count == limit else None

    def hurt_among(self, ids: Sequence[UUID], repair_delay: float, deadline: Deadline) -> list[RepairTask]:
        """Those of the slices that still have a lost fragment; in no order."""
        delay = self._meta.excused(repair_delay)
        rows = self._meta.read("hurt_among", deadline, ids=list(ids), repair_delay=delay)
        return list(map(_repair_task, rows))

    def backlog(self, repair_delay: float, deadline: Deadline) -> Backlog:
        """How much ``work_to_repair`` would hand out in all, but for what is hopeless and in the trash."""
        return Backlog.of(self._hurt_counts(repair_delay, False, deadline))

    def hurt_counts(self, deadline: Deadline) -> list[HurtCount]:
        """Slices that lack a fragment now, whether or not repair has begun with them, by what is left of them."""
        return list(self._hurt_counts(self._meta.down_after, True, deadline))

    def _hurt_counts(self, silence: float, stopped: bool, deadline: Deadline) -> Iterator[HurtCount]:
        """Slices with a lost fragment, page by page: each in one count, by the first fragment that it lost."""
        nodes, _ = self.hurt_places(silence, deadline, stopped=stopped)
        silence = self._meta.excused(silence)
        for node in (None, *nodes):
            where: dict[str, Any] = {} if node is None else {"node": node}
            query = "hurt_count_by_damage" if node is None else "hurt_count_on"
            after: UUID | None = _START
            while after is not None:
                page: dict[str, Any] = {
                    "after": after,
                    "limit": _PAGE,
                    "silence": silence,
                    "stopped": stopped,
                }
                rows = self._meta.read(query, deadline, **where, **page)
                yield from (HurtCount(*row[2:]) for row in rows if row[5])
                after = rows[0][0] if rows[0][1] == _PAGE else None

    def move_fragment(
        self, slice_id: UUID, index: int, old: int, new: int, deadline: Deadline, *, adopted: bool = False
    ) -> bool:
        """Compare-and-set: node ``new`` keeps the fragment now, not ``old`` (0: nobody). Clears its damage.

        ``old == new`` is right after a fragment was made anew where it was. Works on slices in the trash too.
        False, and nothing changed: the position was not ``old`` any more, the slice is gone, ``new`` was
        forgotten, keeps another fragment of the slice, or is being drained, unless it has ``adopted`` the fragment.
        """
        params: dict[str, Any] = {"slice": slice_id, "index": index, "old": old, "new": new}
        moved = self._meta.write("move_fragment", deadline, again="is_moved", adopted=adopted, **params)
        return bool(moved)

    def note_damage(self, slice_id: UUID, index: int, node: int, reason: str, deadline: Deadline) -> bool:
        """A fragment is corrupt or missing on ``node``: repair is to make it anew.

        Works on slices in the trash too. False, and nothing noted: the slice is gone, or its end has begun, or the
        fragment is kept elsewhere now.
        """
        reason = (
            reason.replace("\0", "").encode("utf-8", "replace")[:_MAX_REASON_BYTES].decode("utf-8", "ignore")
        )
        params: dict[str, Any] = {"slice": slice_id, "index": index, "node": node}
        if self._meta.write("note_damage", deadline, reason=reason, **params):
            DAMAGE.add()
        return bool(self._meta.read("is_damage", deadline, **params))

    def damage_count(self, deadline: Deadline) -> int:
        """Fragments of files that can be read, noted as damaged and not repaired yet."""
        [[count]] = self._meta.read("damage_count", deadline)
        return int(count)

    def oldest_loss(self, deadline: Deadline) -> float:
        """Seconds since the first loss that is not repaired yet: a note of damage, or the last heartbeat of a node
        that is down and keeps something; 0: there is none. Of nodes that were forgotten nobody knows when."""
        [[age]] = self._meta.read("oldest_loss", deadline, silence=self._meta.silence)
        return float(age)

    def give_up_silent_nodes(self, deadline: Deadline) -> list[int]:
        """Let repair wait no longer for the nodes that are down now, or unreachable; -> their ids.

        The heartbeat of one that was down takes it back, and the answer of one that was unreachable.
        """
        rows = self._meta.write("give_up_silent_nodes", deadline, down_after=self._meta.silence)
        return sorted(row[0] for row in rows)

    def note_reach(
        self, answering: Sequence[int], silent: Sequence[int], repair_delay: float, deadline: Deadline
    ) -> list[int]:
        """Which nodes, of those that heartbeat, answered, and which did not; -> those that are given up now.

        Given up is what was ``silent`` for ``repair_delay`` seconds, without a break, whoever noted it: it counts
        as down from then on until it is ``answering``, registers anew, or is not noted for five minutes.
        """
        nodes: dict[str, Any] = {"answering": list(answering), "silent": list(silent)}
        rows = self._meta.write("note_reach", deadline, repair_delay=repair_delay, **nodes)
        return sorted(node for node, given_up in rows if given_up)

    # --- what is where ------------------------------------------------------------------------------

    def claims(self, node: int, ids: Sequence[FragmentId], deadline: Deadline) -> dict[FragmentId, Claim]:
        """For each id whether ``node`` is to keep it, and whether it might be missed. Answers for all of them."""
        params: dict[str, Any] = {"node": node, "down_after": self._meta.down_after}
        slices, indexes = [asked.slice for asked in ids], [asked.index for asked in ids]
        rows = self._meta.read("claims", deadline, slices=slices, indexes=indexes, **params)
        answer = {FragmentId(row[0], row[1]): Claim(*row[2:]) for row in rows}
        if len(answer) != len(set(ids)):
            raise DistfsError(f"MetaDB answered for {len(answer)} of {len(set(ids))} fragments")
        return answer

    def strays(
        self, node: int, ids: Sequence[FragmentId], repair_delay: float, deadline: Deadline
    ) -> list[MoveTask]:
        """Those of ``ids``, found on ``node``, that it is not to keep and that are lost where MetaDB has them: there
        is nobody, or the node is gone (silent for ``repair_delay`` seconds), or the fragment is damaged.

        In the trash too, until it is purged. Not those of slices of which ``node`` keeps another fragment.
        """
        params: dict[str, Any] = {"node": node, "repair_delay": self._meta.excused(repair_delay)}
        slices, indexes = [asked.slice for asked in ids], [asked.index for asked in ids]
        rows = self._meta.read("strays", deadline, slices=slices, indexes=indexes, **params)
        return [MoveTask(*_facts(row[:6]), _piece(row[6:11]), index=row[11], trashed=row[12]) for row in rows]

    def is_kept(self, fragment: FragmentId, node: int, deadline: Deadline) -> bool:
        """Whether a file that can be read or undeleted says that ``node`` keeps it: it has to be there."""
        params: dict[str, Any] = {"slice": fragment.slice, "index": fragment.index, "node": node}
        return bool(self._meta.read("is_kept", deadline, **params))

    def short_files(
        self, nodes: Sequence[int], bad: Sequence[FragmentId], deadline: Deadline
    ) -> list[ShortFile]:
        """Files that cannot be read without ``nodes``, the fragments ``bad`` and those noted as damaged.

        Those in the trash, as long as they can be undeleted, come last; else the oldest first.
        """
        return in_pages.short_files(self._meta, nodes, bad, deadline)

    def fragments_on(self, node: int, after: UUID | None, limit: int, deadline: Deadline) -> list[Kept]:
        """What MetaDB says a node keeps, trash included: up to ``limit``, of slices after ``after``, by slice id."""
        params: dict[str, Any] = {"node": node, "after": after or _START, "limit": limit}
        rows = self._meta.read("fragments_on", deadline, **params)
        return [Kept(FragmentId(row[0], row[1]), *row[2:]) for row in rows]

    def slices_on(self, node: int, after: UUID | None, limit: int, deadline: Deadline) -> list[MoveTask]:
        """The same with all that is needed to make each fragment anew elsewhere."""
        params: dict[str, Any] = {"node": node, "after": after or _START, "limit": limit}
        tasks = []
        for row in self._meta.read("slices_on", deadline, **params):
            piece = _piece(row[6:11])
            tasks.append(MoveTask(*_facts(row[:6]), piece, index=piece.nodes.index(node), trashed=row[11]))
        return tasks

    def crowded_slices(
        self, zones: Collection[str], after: UUID | None, scan: int, limit: int, deadline: Deadline
    ) -> tuple[list[MoveTask], UUID | None]:
        """Of the ``scan`` slices after ``after`` at most ``limit`` that one zone has two fragments more of than
        another of ``zones``; and where to go on, None: that was the last. The tasks' index is 0."""
        params: dict[str, Any] = {
            "after": after or _START,
            "scan": scan,
            "limit": limit,
            "zones": list(zones),
        }
        rows = self._meta.read("crowded_slices", deadline, **params)
        tasks = [
            MoveTask(*_facts(row[:6]), _piece(row[6:11]), index=0, trashed=False) for row in rows if row[6]
        ]
        return tasks, tasks[-1].piece.id if len(tasks) == limit else rows[0][11]

    def fragments_left(self, node: int, deadline: Deadline) -> int:
        """How many fragments a node keeps, trash included. From COUNTED on an estimate: ids are random, so the last
        parts tell how many those before them have. It falls with each that leaves the node in the order of ids."""
        query: dict[str, Any] = {"node": node, "part": 0, "enough": COUNTED}
        [[count, part]] = self._meta.read("kept_count", deadline, **query)
        if part < _PARTS:
            sample = max(part, _PARTS - _SAMPLED_PARTS)
            [[last, _]] = self._meta.read(
                "kept_count", deadline, **query | {"part": sample, "enough": 1 << 62}
            )
            count += last * (_PARTS - part) // (_PARTS - sample)
        return int(count)

    def leaving(self, node: int, deadline: Deadline) -> Leaving:
        """How far a node that drains is; one that does not is never safe to unplug."""
        fragments = self.fragments_left(node, deadline)
        safe = not fragments and self._meta.read("safe_to_unplug", deadline, node=node) == [[True]]
        return Leaving(fragments, safe)

    def bytes_kept(self, node: int, deadline: Deadline) -> int:
        """Plain bytes of the fragments a node keeps, trash included; of many an estimate."""
        [[count, size]] = self._meta.read("bytes_kept", deadline, node=node, limit=_SAMPLE)
        return int(size if count < _SAMPLE else size * self.fragments_left(node, deadline) / count)

    def unknown_nodes(self, deadline: Deadline) -> list[int]:
        """Ids that slices name and no node has: it was forgotten while they were written."""
        return [row[0] for row in self._meta.read("unknown_nodes", deadline)]

    # --- trash --------------------------------------------------------------------------------------

    def expired_trash(self, ttl: float, limit: int, deadline: Deadline) -> list[TrashedFile]:
        """Files deleted more than ``ttl`` seconds ago, oldest first. From now on they cannot be undeleted."""
        rows = self._meta.write("expired_trash", deadline, ttl=ttl, limit=limit)
        return [TrashedFile(row[0], tuple(map(Slice.from_json, row[1])), for_good=row[2]) for row in rows]

    def trash_after(self, after: Deleted | None, limit: int, deadline: Deadline) -> list[Deleted]:
        """Files in the trash, those deleted first first; ``after``: the last of the page before."""
        at, id = (after.deleted_at, after.id) if after else (None, UUID(int=0))
        rows = self._meta.read("trash_after", deadline, after_at=at, after_id=id, limit=limit)
        return [
            Deleted(file, name, size, stored, Policy(k, m), at, age, ending)
            for file, name, size, stored, k, m, at, age, ending in rows
        ]

    def empty_trash(self, id: UUID | None, deadline: Deadline) -> tuple[int, int]:
        """Have a file in the trash, or all of them, erased; -> how many, and their bytes on all nodes.

        They cannot be undeleted from now on. Their bytes go when MetaDB cannot lose that word any more.
        """
        [[files, size]] = self._meta.write("empty_trash", deadline, id=id, settle=self._meta.settles_after)
        return files, size

    def trash_to_erase(self, deadline: Deadline) -> int:
        """How many files are still to be erased."""
        [[files]] = self._meta.read("trash_to_erase", deadline)
        return int(files)

    def drop_trash(self, id: UUID, deadline: Deadline) -> bool:
        """Forget a file of ``expired_trash``, after its fragments. False: it was forgotten already."""
        return bool(self._meta.write("drop_trash", deadline, again="is_dropped", id=id))

    # --- nodes --------------------------------------------------------------------------------------

    def set_node_state(self, node: int, state: str, deadline: Deadline) -> None:
        """``'draining'``: takes nothing new, and is emptied; ``'active'``: takes part again. Raises NotFound."""
        if state not in ("active", "draining"):
            raise DistfsError(f"an operator does not set a node to {state!r}")
        if not self._meta.write("set_node_state", deadline, node=node, state=state):
            raise NotFound(f"no node {node}")

    def trust_node(self, node: int, deadline: Deadline) -> None:
        """Forget a node's secret: the next that its process names holds. Raises NotFound."""
        if not self._meta.write("trust_node", deadline, node=node):
            raise NotFound(f"no node {node}")

    def forget_node(
        self, node: int, deadline: Deadline, seen: Callable[[int], object] = lambda slices: None
    ) -> None:
        """Take a node's row away, for good: its process is refused from then on, and its fragments count as lost.
        Does nothing for an unknown node. Meanwhile it is draining: nothing new names it. ``seen``: is told how many
        of its slices were gone through.

        Raises Refused, in words, while it heartbeats, or when a slice would be left with fewer than k fragments that
        are healthy and on nodes that are up.
        """
        params: dict[str, Any] = {"node": node, "down_after": self._meta.silence}
        try:
            [[word]] = self._meta.write("begin_forget", deadline, **params)
            if word is not None:
                in_pages.require_spare(self._meta, node, deadline, seen)
                self._meta.write("forget_node", deadline, word=word, **params)
        except BaseException as e:
            self._end_forget(node, e)
            raise

    def _end_forget(self, node: int, why: BaseException) -> None:
        """Give a node back the state that it had. Where that fails ``why`` says so, too."""
        try:
            self._meta.write("end_forget", Deadline(_END_S), node=node)
        except DistfsError:
            why.args = (f"{why}; node {node} may be left draining: `distfs undrain {node}` ends that",)

    def undo_forget(self, node: int | UUID, deadline: Deadline) -> int:
        """Let what was forgotten register again, as a new node; -> the id it had. Raises NotFound."""
        number, uuid = (None, node) if isinstance(node, UUID) else (node, None)
        for [known] in self._meta.write("undo_forget", deadline, node=number, uuid=uuid):
            return int(known)
        raise NotFound(f"no node {node} was forgotten")

    # --- scrub and the workers ----------------------------------------------------------------------

    def scrub_state(self, node: int, deadline: Deadline) -> ScrubState:
        """How far the scrub of a node is. Raises NotFound."""
        for row in self._meta.read("scrub_states", deadline, node=node):
            return ScrubState(*row)
        raise NotFound(f"no node {node}")

    def begin_scrub(self, node: int, deadline: Deadline) -> ScrubState:
        """Start a round from the beginning, unless one is running; -> its state. Raises NotFound."""
        self._meta.write("begin_scrub", deadline, node=node)
        return self.scrub_state(node, deadline)

    def save_scrub(self, node: int, cursor: str | None, checked: int, bad: int, deadline: Deadline) -> None:
        """Note how far the running round is. ``cursor`` None: it is complete.

        ``checked`` and ``bad``: fragments of the round so far.
        """
        if cursor is None:
            self._meta.write("end_scrub", deadline, node=node, checked=checked, bad=bad)
        else:
            self._meta.write("save_scrub", deadline, node=node, cursor=cursor, checked=checked, bad=bad)

    def save_worker(self, name: str, state: str, detail: Mapping[str, object], deadline: Deadline) -> None:
        """Make a worker's last result, of this process, visible to all. ``detail``: what JSON can say.

        Commands show every key as it is, and know four: ``bytes_per_second``, what the worker lately moved or read,
        and ``bytes_left``, of the round that runs, from which they estimate the time left; ``stuck``, why it cannot
        go on, in words; and ``unreachable``, ids of nodes that heartbeat and do not answer.
        """
        params: dict[str, Any] = {"name": name, "state": state, "detail": json.dumps(dict(detail))}
        self._meta.write("save_worker", deadline, host=socket.gethostname(), pid=os.getpid(), **params)

    def workers(self, deadline: Deadline) -> list[WorkerState]:
        """The last result of every worker, by name."""
        return [WorkerState(*row) for row in self._meta.read("workers", deadline)]

    def backup_age(self, deadline: Deadline) -> float:
        """Seconds since ``distfs backup`` saved that it was done, as a worker does; infinite: it never did."""
        return next((float(age) for [age] in self._meta.read("backup_age", deadline)), math.inf)

    def is_rebuilding(self, deadline: Deadline) -> bool:
        return self._meta.is_rebuilding(deadline)

    def wake_worker(self, name: str, deadline: Deadline) -> None:
        """Ask a worker to try at once what it has postponed; it looks at ``woken_at`` now and then."""
        self._meta.write("wake_worker", deadline, name=name)

    def woken_at(self, name: str, deadline: Deadline) -> datetime | None:
        """When an operator last woke a worker."""
        rows = self._meta.read("woken_at", deadline, name=name)
        return rows[0][0] if rows else None

    def leadership(self, name: str, deadline: Deadline) -> Leadership | None:
        """Lead the worker ``name``; None: another does. Release it when done. Raises Unavailable."""
        key = int.from_bytes(hashlib.sha256(f"distfs upkeep {name}".encode()).digest()[:8], signed=True)
        return self._leaders.lead(key, deadline)

    def clock(self, deadline: Deadline) -> float:
        """The database's clock, in seconds since 1970."""
        [[seconds]] = self._meta.read("clock", deadline)
        return float(seconds)

    # --- how the cluster is ---------------------------------------------------------------------------

    def status(self, deadline: Deadline) -> ClusterStatus:
        """Everything at a glance. Looks at all that is lost: for people."""
        totals = in_pages.totals(self._meta, deadline)
        slices = totals.slices
        hurt = list(self._hurt_counts(self._meta.down_after, True, deadline))
        for each in hurt:
            if not each.trashed:
                slices[each.m] -= each.slices
                slices[max(each.redundancy_left, -1)] += each.slices
        return ClusterStatus(
            files=totals.files,
            bytes=totals.bytes,
            stored=totals.stored,
            slices=dict(sorted((+slices).items())),
            lacking=Backlog.of(hurt),
            damaged=self.damage_count(deadline),
            trash_files=totals.trash_files,
            trash_bytes=totals.trash_bytes,
            trash_stored=totals.trash_stored,
            nodes=tuple(self._meta.nodes(deadline)),
            workers=tuple(self.workers(deadline)),
        )

    def health(self, file: UUID, deadline: Deadline) -> FileHealth:
        """How safe a file is now. One without bytes has nothing to lose: m, no nodes. Raises NotFound."""
        for row in self._meta.read("health", deadline, id=file, down_after=self._meta.silence):
            m, created_at, left, nodes, missing, verified = row
            return FileHealth(
                m if left is None else left, missing, tuple(sorted(nodes)), verified or created_at
            )
        raise NotFound(f"no file {file}")


def _facts(row: Sequence[Any]) -> tuple[UUID, str, str, Policy, int]:
    file, name, content_type, k, m, block_size = row
    return file, name, content_type, Policy(k, m), block_size


def _repair_task(row: Sequence[Any]) -> RepairTask:
    return RepairTask(*_facts(row[:6]), _piece(row[6:11]), tuple(row[11]), row[12], trashed=row[13])


def _piece(row: Sequence[Any]) -> Slice:
    slice_id, ordinal, size, digest, nodes = row
    return Slice(slice_id, ordinal, size, digest, tuple(nodes))
