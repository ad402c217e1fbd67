"""How much the cluster can still take: exact for fragments that must lie on different nodes. Pure.

A demand (width, share) is a file to come: at every moment of its writing ``width`` different nodes receive, in
the end ``share`` bytes on as many nodes each, and not always the same ones. The total of free bytes says little:
with two copies, three nodes of 100, 1 and 1 free bytes hold 2, not 51; and three nodes on one disk of 100, 50.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Demand = tuple[int, int]

#: Of a fragment beside its cells: header, table, footer, and the file system's own rounding.
FRAGMENT_OVERHEAD = 8192


class Disk(NamedTuple):
    """What ``nodes`` nodes, which may be only one, can still take together: ``free`` bytes."""

    free: int
    nodes: int = 1


def fits(disks: Sequence[Disk], demands: Iterable[Demand]) -> bool:
    """Whether the nodes of ``disks`` can take all demands, each on different nodes.

    A node gets at most one byte at a time of what is written in ``at`` steps. So the widest demands, which take
    ``at`` steps together, need width x share bytes of what the disks can give in so many: that is also enough
    (Gale and Ryser, 1957; with several nodes a disk, by max-flow min-cut).
    """
    at = needed = 0
    for width, share in sorted(demands, reverse=True):
        at += share
        needed += width * share
        if needed > sum(min(disk.free, disk.nodes * at) for disk in disks):
            return False
    return True


def width_for(disks: Sequence[Disk], demands: Mapping[int, int], width: int, fewest: int, share: int) -> int:
    """On how many nodes a file of ``share`` bytes a fragment can be kept: ``width``, or at least ``fewest``;
    0: it does not fit. ``demands``: what is promised already, share by width.

    Narrower than ``width`` only what the nodes with the most room can take is counted: the others are filled first.
    """
    there = sum(disk.nodes for disk in disks)
    for narrower in range(min(width, there), fewest - 1, -1):
        count, used = (there, disks) if narrower == width else (narrower, _richest(disks, narrower))
        promised = [(min(each, count), size) for each, size in demands.items()]
        if fits(used, [*promised, (narrower, share)]):
            return narrower
    return 0


def _richest(disks: Sequence[Disk], count: int) -> list[Disk]:
    """The ``count`` nodes that can take the most when each gets the same: a disk's second node has half of it."""
    parts = sorted(((disk.free / n, at) for at, disk in enumerate(disks) for n in range(1, disk.nodes + 1)))
    chosen = Counter(at for _, at in parts[-count:])
    return [Disk(disks[at].free, nodes) for at, nodes in chosen.items()]


def room(disks: Sequence[Disk], demands: Mapping[int, int], width: int, fewest: int) -> int:
    """The largest ``share`` for which width_for is not 0."""
    low, high = 0, sum(disk.free for disk in disks)
    while low < high:
        middle = (low + high + 1) // 2
        if width_for(disks, demands, width, fewest, middle):
            low = middle
        else:
            high = middle - 1
    return low


def share_of(size: int, k: int, slice_size: int) -> int:
    """Bytes of a file of ``size`` on each node that keeps a fragment of all its slices."""
    return -(-size // k) + -(-size // slice_size) * FRAGMENT_OVERHEAD


def size_of(share: int, k: int, slice_size: int) -> int:
    """The largest file of which each node gets ``share`` bytes; the opposite of ``share_of``, or a little less."""
    slices = share * k // (slice_size + k * FRAGMENT_OVERHEAD) + 1
    return max(0, share - slices * FRAGMENT_OVERHEAD) * k
