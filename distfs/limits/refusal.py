"""What is said to an upload for which there is no room: figures that add up, and what helps. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distfs.config.settings import StorageConfig
from distfs.errors import Busy, Full
from distfs.limits.db import AdmissionState, TrashRoom
from distfs.limits.room import room, share_of, size_of
from distfs.metadb.ballast import reserve
from distfs.model import Policy
from distfs.quantity import compared, counted
from distfs.quantity import size as readable

_SOON_S = 5
_OF_ROOT = 20  # ext4 keeps as much, a twentieth, for root


@dataclass(frozen=True, slots=True)
class Wish:
    """An upload that does not fit."""

    size: int
    policy: Policy
    fewest: int  # nodes it must be safe on
    slice_size: int
    small: int  # bytes a node of small files on their way here
    margin: int  # bytes a node that a small file must leave


class NoRoom(Full):
    """What a refusal will be about, as long as room may still be made."""

    def __init__(self, state: AdmissionState, wish: Wish) -> None:
        super().__init__("no room")
        self.state, self.wish = state, wish

    @property
    def missing(self) -> int:
        """Bytes on all nodes."""
        wish, policy = self.wish, self.wish.policy
        needed = share_of(wish.size, policy.k, wish.slice_size) + wish.margin + wish.small
        return (needed - room(self.state.disks, self.state.demands, policy.width, wish.fewest)) * policy.width


def largest(state: AdmissionState, wish: Wish, *, promised: bool = True) -> int:
    """Of a file that fits now; without ``promised``: if nothing were promised to anybody."""
    demands = state.demands if promised else {}
    share = room(state.disks, demands, wish.policy.width, wish.fewest)
    share -= wish.margin + (wish.small if promised else 0)
    return size_of(max(0, share), wish.policy.k, wish.slice_size)


def refusal(refused: NoRoom, trash: TrashRoom, *, gives_way: bool, settles_after: float) -> Full:
    """``gives_way``: the trash does, by itself; what is said has been waited for in vain."""
    state, wish = refused.state, refused.wish
    want, fits = compared(wish.size, largest(state, wish))
    taken = ", ".join(_taken(state, wish)) or "none is promised to others"
    free = readable(sum(disk.free for disk in state.disks))
    text = (
        f"no room for {want} as {wish.policy}: at most {fits} fit now; the nodes have {free} free above their "
        f"reserve, of which {taken}{_not_offered(state)}"
    )
    later = wish.size <= largest(state, wish, promised=False) or (
        gives_way and refused.missing <= trash.bytes
    )
    error = Full(f"{text}; {_remedy(trash, later, gives_way, settles_after)}")
    if trash.going:
        error.retry_after = round(settles_after) + _SOON_S
    elif later:  # what is promised may not be used
        error.retry_after = Busy.retry_after
    return error


def full(
    state: AdmissionState,
    trash: Callable[[], TrashRoom],
    storage: StorageConfig,
    *,
    gives_way: bool,
    settles_after: float,
) -> str:
    """What a file of one byte is told, as one for which there is no room; empty: there is, or the nodes are too few.

    ``trash``: asked only when it matters.
    """
    policy = storage.policy
    wish = Wish(1, policy, storage.fewest(policy), storage.slice_size, 0, storage.block_size)
    refused = NoRoom(state, wish)
    if refused.missing <= 0 or sum(disk.nodes for disk in state.disks) < wish.fewest:
        return ""
    waste = trash()
    if gives_way and refused.missing <= waste.bytes:
        return ""
    return str(refusal(refused, waste, gives_way=gives_way, settles_after=settles_after))


def _taken(state: AdmissionState, wish: Wish) -> list[str]:
    """Where the free bytes are that this upload cannot have, as bytes on all nodes."""
    promised = sum(width * share for width, share in state.demands.items())
    written = promised - state.running_bytes
    width = wish.policy.width
    left = sum(disk.free for disk in state.disks)  # what is written shows in some reports already
    parts = (
        (state.running_bytes, f"promised to {counted(state.running, 'upload')} under way"),
        (written, "written a moment ago and not in the nodes' reports yet"),
        (wish.small * width, "for small files under way"),
        (wish.margin * width, "kept as a margin for small files that come to other services"),
    )
    told = []
    for size, what in parts:
        if (counts := min(size, left)) > 0:
            told.append(f"{readable(counts)} {what}")
            left -= counts
    return told


def _not_offered(state: AdmissionState) -> str:
    """Of disks that take nothing though they have more bytes than a reserve explains, with what only root may use."""
    left = [
        capacity - used
        for capacity, used in state.full
        if capacity - used > reserve(capacity) + capacity // _OF_ROOT
    ]
    if not left:
        return ""
    return (
        f"; {counted(len(left), 'disk')} with {readable(sum(left))} free beside: no inodes are left there for new "
        "files (its node's log says so), or node.reserve is large"
    )


def _remedy(trash: TrashRoom, later: bool, gives_way: bool, settles_after: float) -> str:
    if trash.going:
        when = "in a minute" if settles_after else "soon"
        return f"{readable(trash.going)} of the trash are being erased to make room: try again {when}"
    if later:
        return "try again soon"
    if trash.bytes and not gives_way:
        return (
            f"the trash holds {readable(trash.bytes)}: `distfs trash empty` frees them; or add storage nodes"
        )
    if trash.bytes:
        return f"the {readable(trash.bytes)} in the trash are too few: delete files, or add storage nodes"
    if gives_way:
        return "delete files, or add storage nodes"
    return "delete files and run `distfs trash empty`, or add storage nodes"
