"""What upkeep and the operator's commands are told by MetaDB, as immutable values. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from distfs.model import FragmentId, Node, Policy, Slice

#: Fragments of one node that are counted; more are estimated.
COUNTED = 10_000


@dataclass(frozen=True, slots=True)
class SliceTask:
    """A slice with all that its fragments say of their file: enough to make any of them anew."""

    file: UUID
    name: str
    content_type: str
    policy: Policy
    block_size: int
    piece: Slice

    @property
    def fragment_size(self) -> int:
        """Plain bytes of one fragment: the slice's k-th part."""
        return -(-self.piece.size // self.policy.k)


@dataclass(frozen=True, slots=True)
class RepairTask(SliceTask):
    """A slice with lost fragments."""

    lost: tuple[int, ...]  # fragment indexes: nobody keeps it, it is damaged, or its node is gone
    redundancy_left: int  # healthy fragments - k; below 0 the slice cannot be read
    trashed: bool = False  # its file is in the trash, and can be undeleted


class Hurt(NamedTuple):
    """A slice with lost fragments, by what is repaired first: that compares as less."""

    hopeless: bool  # it cannot be read, and there is little to be done for it
    trashed: bool
    redundancy_left: int
    created_at: datetime
    id: UUID

    @property
    def urgent(self) -> bool:
        """Nothing comes before it but what is as urgent: it can be read, and one loss more would end that."""
        return self.redundancy_left == 0 and not self.trashed


class HurtCount(NamedTuple):
    """How many slices have lost something, of those that are alike."""

    trashed: bool
    m: int
    redundancy_left: int
    slices: int
    fragments: int  # to be made anew
    bytes: int  # of these fragments


@dataclass(frozen=True, slots=True)
class MoveTask(SliceTask):
    """A slice of which a node has fragment ``index`` on its disk."""

    index: int
    trashed: bool  # its file is in the trash

    @property
    def fragment(self) -> FragmentId:
        return FragmentId(self.piece.id, self.index)


@dataclass(frozen=True, slots=True)
class Claim:
    """What MetaDB says of one fragment that is on some node's disk."""

    here: bool  # a slice that can still be wanted says that this node keeps it
    short: bool  # its slice can still be wanted, and lacks some fragment now: all there is may be needed
    keeper: int  # the node that is to keep it; 0: nobody, or no slice that can still be wanted

    @property
    def unwanted(self) -> bool:
        """Nobody would miss it here, as far as MetaDB knows."""
        return not self.here and not self.short


@dataclass(frozen=True, slots=True)
class Kept:
    """A fragment that a node should have, and what tells whether it is the right one."""

    id: FragmentId
    digest: bytes  # of its slice: what its table must give
    block_size: int
    size: int  # plain bytes of the fragment


@dataclass(frozen=True, slots=True)
class TrashedFile:
    """A deleted file whose time is over. Nobody can undelete it any more."""

    id: UUID
    slices: tuple[Slice, ...]
    for_good: bool = False  # its room is needed now


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file in the trash."""

    id: UUID
    name: str
    size: int
    stored: int  # after compression
    policy: Policy
    deleted_at: datetime
    age: float  # seconds since
    ending: bool  # it cannot be undeleted any more

    @property
    def bytes(self) -> int:
        """On all nodes together."""
        return self.stored * self.policy.width // self.policy.k


@dataclass(frozen=True, slots=True)
class ShortFile:
    """A file with slices of which fewer than k fragments are left."""

    id: UUID
    name: str
    trashed: bool
    slices: int  # such slices


@dataclass(frozen=True, slots=True)
class Backlog:
    """What repair has before it."""

    slices: int
    fragments: int  # to be made anew
    bytes: int  # of these fragments
    hopeless: int  # slices among them with fewer than k fragments left: they cannot be made anew

    @classmethod
    def of(cls, counts: Iterable[HurtCount]) -> Backlog:
        """Without what is in the trash and hopeless: nobody is to wait for it, or to delete it once more."""
        each = [count for count in counts if not count.trashed or count.redundancy_left >= 0]
        return cls(
            slices=sum(count.slices for count in each),
            fragments=sum(count.fragments for count in each),
            bytes=sum(count.bytes for count in each),
            hopeless=sum(count.slices for count in each if count.redundancy_left < 0),
        )


@dataclass(frozen=True, slots=True)
class Leaving:
    """How far a node that drains is from being empty."""

    fragments: int  # it still keeps, trash included
    safe: bool  # to unplug: it keeps none, and no change that began before it drained can name it any more


@dataclass(frozen=True, slots=True)
class ScrubState:
    """How far the scrub of one node is. Ages in seconds by the database's clock; None: there was none."""

    node: int
    cursor: str  # where to go on listing; "" is the start
    checked: int  # fragments of the running round, or of the last
    bad: int
    round_age: float | None  # since the running round began; None: none is running
    last_round_age: float | None  # since the last complete round began


@dataclass(frozen=True, slots=True)
class WorkerState:
    """The last result of one worker, whichever service ran it."""

    name: str
    host: str
    pid: int
    state: str
    detail: Mapping[str, object]
    age: float  # seconds since, by the database's clock


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster at one moment. A fragment on a node that is down counts as lost here."""

    files: int
    bytes: int
    stored: int  # of these bytes, after compression: what is kept of them, but for redundancy
    slices: Mapping[int, int]  # redundancy left -> how many slices; -1: those that cannot be read
    lacking: Backlog  # what has fewer fragments than it should, whether or not repair has begun with it
    damaged: int  # fragments
    trash_files: int
    trash_bytes: int
    trash_stored: int
    nodes: tuple[Node, ...]
    workers: tuple[WorkerState, ...]


@dataclass(frozen=True, slots=True)
class FileHealth:
    """How safe one file is at this moment."""

    redundancy_left: int  # the least over its slices; below 0: it cannot be read as a whole
    missing: int  # fragments that nobody keeps, are damaged, or are on nodes that are down
    nodes: tuple[int, ...]  # ids of all that keep a fragment of it
    last_verified: datetime  # every fragment was written, or read again and checked, at this time or later
