"""What upkeep decides, as functions of values: no I/O, no clock, no chance but the one that is passed in."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from uuid import UUID

from distfs.model import FragmentId, Node
from distfs.upkeep.model import RepairTask, ScrubState

#: Clocks of a node and of MetaDB that are further apart make every age doubtful.
CLOCK_LIMIT_S = 60.0

#: Rebalancing ends this share of the threshold away from it, so that it does not begin again at once.
_MARGIN = 0.2
_LEAST_THRESHOLD = 0.01


def crowding(zones: Mapping[int, str], held: Iterable[int]) -> Counter[str]:
    """How many of a slice's fragments each zone has. ``zones``: by node; ``held``: the nodes, 0 for nobody."""
    return Counter(zones[node] for node in held if node in zones)


# --- repair -----------------------------------------------------------------------------------------


def by_risk(tasks: Iterable[RepairTask]) -> list[RepairTask]:
    """Those that one loss more would destroy first; those in the trash after those that can be read; those that are
    beyond repair now, last. Else as they came."""
    return sorted(tasks, key=lambda task: (task.redundancy_left < 0, task.trashed, task.redundancy_left))


def choose_target(
    nodes: Sequence[Node],
    held: Sequence[int],
    index: int,
    size: int,
    refused: Collection[int],
    random: Random,
) -> int | None:
    """Which node is to keep fragment ``index`` of a slice whose fragments are on ``held``; None: no node can.

    Never a node that keeps another fragment of it. Zones with the fewest of the others first, then by free
    bytes; the node that keeps the fragment itself (where it may be made anew in place) after its equals.
    """
    others = {node for i, node in enumerate(held) if i != index}
    able = [n for n in nodes if n.writable and n.free >= size and n.id not in others and n.id not in refused]
    if not able:
        return None
    crowd = crowding({n.id: n.zone for n in nodes if n.id in others}, others)
    best = min((crowd[n.zone], n.id == held[index]) for n in able)
    equals = [n for n in able if (crowd[n.zone], n.id == held[index]) == best]
    return random.choices(equals, [max(n.free, 1) for n in equals])[0].id


# --- rebalance ----------------------------------------------------------------------------------------


def fullness(node: Node) -> float:
    """0 to 1: what a node cannot take any more, of what its disk has."""
    return 1 - node.free / node.capacity if node.capacity > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fragment that might be moved: ``held`` says where its slice's fragments are, itself included."""

    id: FragmentId
    held: tuple[int, ...]
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Move:
    """One fragment to be moved from one node to another."""

    id: FragmentId
    source: int
    target: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Stay:
    """One fragment that is to leave its node and that no other can take."""

    id: FragmentId
    size: int  # bytes
    reason: str


class Balance:
    """One round of rebalancing: who gives how many bytes, who takes how many.

    Nodes only give or only take, so nothing is moved twice. When everything asked for was moved, the fullest
    and the emptiest node differ by less than ``threshold``. Of all ways to get there it takes the one that
    moves least: the fullest are lowered to one level, the emptiest raised to another.
    """

    def __init__(self, nodes: Sequence[Node], threshold: float) -> None:
        self._nodes = {n.id: n for n in nodes if n.capacity > 0}
        self._zones = {n.id: n.zone for n in self._nodes.values()}
        self.surplus: dict[int, float] = {}  # bytes each giver is still to give
        self.room: dict[int, float] = {}  # bytes each taker is still to take
        threshold = max(threshold, _LEAST_THRESHOLD)
        parts = [n for n in self._nodes.values() if n.writable]
        full = {n.id: fullness(n) for n in parts}
        if not parts or max(full.values()) - min(full.values()) <= threshold:
            self._queue: list[tuple[float, int]] = []
            return
        sharing = Counter(n.disk_key for n in parts)
        weight = {n.id: n.capacity / sharing[n.disk_key] for n in parts}
        mean = sum(full[n] * weight[n] for n in full) / sum(weight.values())
        half = threshold * (1 - _MARGIN) / 2
        too_much = sum(max(0.0, full[n] - mean - half) * weight[n] for n in full)
        too_little = sum(max(0.0, mean - half - full[n]) * weight[n] for n in full)
        amount = max(too_much, too_little)
        low = {n: -full[n] for n in full}
        self.surplus = _above(_level(full, weight, amount), full, weight)
        self.room = _above(_level(low, weight, amount), low, weight)
        self._queue = [(-room / weight[n], n) for n, room in self.room.items()]
        heapq.heapify(self._queue)

    @property
    def done(self) -> bool:
        """Whether nobody has anything left to give, or nobody to take it."""
        return not any(v > 0 for v in self.surplus.values()) or not any(v > 0 for v in self.room.values())

    @property
    def left(self) -> int:
        """Bytes still to be moved."""
        return int(sum(v for v in self.surplus.values() if v > 0))

    def giver(self, excluded: Collection[int] = ()) -> int | None:
        """The node with the most to give."""
        able = [(left, n) for n, left in self.surplus.items() if left > 0 and n not in excluded]
        return max(able)[1] if able else None

    def taker(self, candidate: Candidate, source: int) -> int | None:
        """Who is to take a fragment from ``source``, and book it; None: it had better stay.

        The taker with the most room for its size that keeps no fragment of the slice, has room for at least
        half of it, and crowds no zone more than it is now.
        """
        if 2 * self.surplus.get(source, 0.0) < candidate.size:
            return None
        others = [n for n in candidate.held if n not in (0, source)]
        crowd = crowding(self._zones, others)
        most = crowd[self._zones[source]]
        passed: list[tuple[float, int]] = []
        chosen = None
        while self._queue and chosen is None:
            entry = heapq.heappop(self._queue)
            node = entry[1]
            fits = 2 * self.room[node] >= candidate.size and self._nodes[node].free >= candidate.size
            if fits and node not in others and crowd[self._zones[node]] <= most:
                chosen = node
            else:
                passed.append(entry)
        for entry in passed:
            heapq.heappush(self._queue, entry)
        if chosen is not None:
            self._book(source, chosen, candidate.size)
        return chosen

    def unbook(self, source: int, target: int, size: int) -> None:
        """A move that was booked did not come about; the target is asked no more in this round."""
        self.surplus[source] = self.surplus.get(source, 0.0) + size
        self.room[target] = 0.0
        self._queue = [entry for entry in self._queue if entry[1] != target]
        heapq.heapify(self._queue)

    def _book(self, source: int, target: int, size: int) -> None:
        self.surplus[source] -= size
        self.room[target] -= size
        heapq.heappush(self._queue, (-self.room[target] / self._nodes[target].capacity, target))


def spread(nodes: Sequence[Node], held: Sequence[int], size: int, random: Random) -> tuple[int, int] | None:
    """A move that makes the zones of a slice more even: fragment index and target; None: they are as even as may be.

    The most crowded zone gives, the fullest of its nodes; ``choose_target`` says who takes. Each such move makes
    the squares of the zones' counts smaller, and no move of ``Balance`` makes them larger: so both come to rest.
    """
    by_id = {n.id: n for n in nodes}
    zones = {n.id: n.zone for n in nodes}
    crowd = crowding(zones, held)
    readable = [i for i, node in enumerate(held) if node in by_id and by_id[node].alive]
    if not readable or max(crowd.values()) < 2:
        return None
    index = max(readable, key=lambda i: (crowd[zones[held[i]]], fullness(by_id[held[i]]), -i))
    target = choose_target(nodes, held, index, size, {held[index]}, random)
    if target is None or crowd[zones[target]] + 1 >= crowd[zones[held[index]]]:
        return None
    return index, target


def plan_spread(nodes: Sequence[Node], crowded: Iterable[Candidate], random: Random) -> Iterator[Move]:
    """Every move that makes the zones of ``crowded`` slices, one candidate each, as even as they can be."""
    for each in crowded:
        held = each.held
        while (found := spread(nodes, held, each.size, random)) is not None:
            index, target = found
            move = Move(FragmentId(each.id.slice, index), held[index], target, each.size)
            nodes = after_moves(nodes, {(move.source, target): each.size})
            held = (*held[:index], target, *held[index + 1 :])
            yield move


def plan_moves(
    nodes: Sequence[Node],
    threshold: float,
    fragments_on: Callable[[int], Iterable[Candidate]],
    stay: Collection[UUID] = (),
) -> Iterator[Move]:
    """Every move of a round of rebalancing, the fullest node's first. ``fragments_on``: what a node keeps;
    ``stay``: slices of which nothing is moved."""
    balance = Balance(nodes, threshold)
    spent: set[int] = set()
    moved: dict[UUID, tuple[int, ...]] = {}  # where the fragments of a slice are after the moves so far
    while not balance.done and (source := balance.giver(spent)) is not None:
        spent.add(source)  # each node's fragments are gone through once
        for candidate in fragments_on(source):
            if balance.surplus[source] <= 0:
                break
            if candidate.id.slice in stay:
                continue
            held = moved.get(candidate.id.slice, candidate.held)
            target = balance.taker(replace(candidate, held=held), source)
            if target is not None:
                moved[candidate.id.slice] = tuple(target if n == source else n for n in held)
                yield Move(candidate.id, source, target, candidate.size)


def plan_drain(
    nodes: Sequence[Node], source: int, fragments: Iterable[Candidate], random: Random
) -> Iterator[Move | Stay]:
    """Where each of a node's ``fragments`` would go if it were to become empty, as ``choose_target`` has it."""
    for each in fragments:
        index = each.id.index
        target = choose_target(nodes, each.held, index, each.size, {source}, random)
        if target is None:
            yield Stay(each.id, each.size, _why_it_stays(nodes, each, source))
        else:
            nodes = after_moves(nodes, {(source, target): each.size})
            yield Move(each.id, source, target, each.size)


def _why_it_stays(nodes: Sequence[Node], candidate: Candidate, source: int) -> str:
    able = [n for n in nodes if n.writable and n.id != source]
    if not able:
        return "no other node takes anything"
    if all(n.id in candidate.held for n in able):
        return "every other node that takes anything keeps a fragment of the same slice"
    return "no node that may keep it has the room"


def after_moves(nodes: Sequence[Node], moved: Mapping[tuple[int, int], int]) -> list[Node]:
    """The nodes once so many bytes were ``moved`` from one to another. Those on one disk share its bytes."""
    disk = {n.id: n.disk_key for n in nodes}
    freed: Counter[str] = Counter()
    for (source, target), size in moved.items():
        freed[disk[source]] += size
        freed[disk[target]] -= size
    return [
        replace(n, free=min(max(n.free + freed[n.disk_key], 0), n.capacity)) if freed[n.disk_key] else n
        for n in nodes
    ]


def _level(value: Mapping[int, float], weight: Mapping[int, float], amount: float) -> float:
    """The level down to which cutting off what is above it takes ``amount``, by halving."""
    low, high = min(value.values()), max(value.values())
    for _ in range(60):
        middle = (low + high) / 2
        above = sum(max(0.0, value[n] - middle) * weight[n] for n in value)
        low, high = (middle, high) if above > amount else (low, middle)
    return (low + high) / 2


def _above(level: float, value: Mapping[int, float], weight: Mapping[int, float]) -> dict[int, float]:
    return {n: (v - level) * weight[n] for n, v in value.items() if v > level}


# --- scrub, reach, orphans ----------------------------------------------------------------------------


def scrub_due_in(state: ScrubState, period: float) -> float:
    """Seconds until a node's next round is to begin, or to go on; 0: now."""
    if state.round_age is not None or state.last_round_age is None:
        return 0.0
    return max(0.0, period - state.last_round_age)


def cut_off(asked: int, silent: int) -> bool:
    """Whether who asked so many nodes, and had no answer of the ``silent``, is itself more probably out of reach."""
    return 2 * silent >= asked


def clock_in_doubt(node: float, before: float, after: float) -> bool:
    """Whether a node's clock disagrees with MetaDB's, which was read ``before`` and ``after`` it."""
    return not before - CLOCK_LIMIT_S <= node <= after + CLOCK_LIMIT_S


def absent(
    listed: Collection[FragmentId], expected: Iterable[FragmentId], end: UUID | None
) -> list[FragmentId]:
    """What MetaDB expects, up to slice ``end`` (None: all), and a listing of that range does not show."""
    return [id for id in expected if (end is None or id.slice <= end) and id not in listed]


#: A round that has all month still moves: bytes a second.
LEAST_SCRUB_RATE = 256 << 10


def scrub_pace(used: int, period: float, cap: float) -> float:
    """Bytes a second at which a node's round takes half of ``period`` seconds, within ``cap``; 0: no limit.

    Reading as fast as the cap allows, and resting for the rest of the month, would take the disk from users
    just when they have filled it.
    """
    return min(cap, max(2 * used / period, LEAST_SCRUB_RATE))
