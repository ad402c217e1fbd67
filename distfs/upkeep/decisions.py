"""What upkeep decides, as functions of values: no I/O, no clock, no chance but the one that is passed in."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
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

#: Of the emptiest nodes of a zone, so many more than a slice has fragments are looked at for room.
_LOOKED_AT = 4


# --- zones --------------------------------------------------------------------------------------------


def crowding(zones: Mapping[int, str], held: Iterable[int]) -> Counter[str]:
    """How many of a slice's fragments each zone has. ``held``: who keeps them; who has no zone counts nowhere."""
    return Counter(zones[n] for n in held if n in zones)


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
    spreads: bool = False  # for the sake of zones, not of free bytes


@dataclass(frozen=True, slots=True)
class Spreadable:
    """A slice whose fragments might be spread over zones: ``held`` says where they are."""

    id: UUID
    held: tuple[int, ...]
    size: int  # bytes of one fragment


@dataclass(frozen=True, slots=True)
class Stay:
    """One fragment that is to leave its node and that no other can take."""

    id: FragmentId
    size: int  # bytes
    reason: str


class Spread:
    """Fragments of slices that are crowded in a zone, and who takes them in another that has fewer of the slice.

    A fragment moves only where the zone it comes to has no more of the slice than the one it left keeps. So each move
    makes the sum of the squares of a slice's counts smaller, and no move of ``Balance`` makes it larger: between them
    nothing goes round in a circle.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = {n.id: n for n in nodes}
        self._zones = {n.id: n.zone for n in nodes}
        self._free = {n.disk_key: n.free for n in nodes}  # less what was booked
        self._takers: dict[str, list[tuple[float, int]]] = {}  # by zone, the emptiest node first
        for n in nodes:
            if n.writable and n.capacity > 0:
                self._takers.setdefault(n.zone, []).append((fullness(n), n.id))
        for takers in self._takers.values():
            takers.sort()

    @property
    def possible(self) -> bool:
        """Whether there is a choice of zones at all."""
        return bool(self._takers) and len(set(self._zones.values())) > 1

    @property
    def zones(self) -> Collection[str]:
        """Those with nodes that take anything."""
        return self._takers

    def moves(self, piece: Spreadable) -> list[Move]:
        """Every move that a slice needs, booked. No fragment moves twice."""
        held, moves = list(piece.held), list[Move]()
        while move := self._move(piece, held, {m.id.index for m in moves}):
            held[move.id.index] = move.target
            moves.append(move)
        return moves

    def _move(self, piece: Spreadable, held: Sequence[int], moved: Collection[int]) -> Move | None:
        crowd = crowding(self._zones, held)
        most = max(crowd.values(), default=0)
        if most < 2 or all(crowd[zone] > most - 2 for zone in self._takers):
            return None
        for source, index in self._sources(crowd, held, moved):
            target = self._taker(crowd, crowd[self._zones[source]] - 2, held, piece.size)
            if target is not None:
                return Move(FragmentId(piece.id, index), source, target, piece.size, spreads=True)
        return None

    def _sources(
        self, crowd: Mapping[str, int], held: Sequence[int], moved: Collection[int]
    ) -> list[tuple[int, int]]:
        """Nodes and indexes of fragments that can be moved now: of the most crowded zone first, off the fullest node.

        What drains is moved off as it is, and what is down is repair's.
        """
        able = []
        for index, node in enumerate(held):
            n = self._nodes.get(node)
            if n and n.alive and n.state != "draining" and index not in moved and crowd[n.zone] >= 2:
                able.append((crowd[n.zone], fullness(n), node, index))
        return [(node, index) for _, _, node, index in sorted(able, reverse=True)]

    def _taker(self, crowd: Mapping[str, int], most: int, held: Sequence[int], size: int) -> int | None:
        """The emptiest node of the zones with the fewest of a slice, and no more than ``most``; it is booked."""
        for count in range(most + 1):
            zones = (takers for zone, takers in self._takers.items() if crowd.get(zone, 0) == count)
            found = [best for takers in zones if (best := self._emptiest(takers, held, size))]
            if found:
                best = min(found)
                self._book(best, size)
                return best[1]
        return None

    def _book(self, entry: tuple[float, int], size: int) -> None:
        node = self._nodes[entry[1]]
        takers = self._takers[node.zone]
        del takers[bisect_left(takers, entry)]
        self._free[node.disk_key] -= size
        insort(takers, (1 - self._free[node.disk_key] / node.capacity, node.id))

    def _emptiest(
        self, takers: list[tuple[float, int]], held: Sequence[int], size: int
    ) -> tuple[float, int] | None:
        """Looks at a few of the emptiest only: in a full zone it would look at all, for every slice."""
        few = takers[: len(held) + _LOOKED_AT]
        able = (e for e in few if e[1] not in held and self._free[self._nodes[e[1]].disk_key] >= size)
        return next(able, None)


class Balance:
    """One round of rebalancing: who gives how many bytes, who takes how many.

    Nodes only give or only take, so nothing is moved twice. When everything asked for was moved, the fullest
    and the emptiest node differ by less than ``threshold``. Of all ways to get there it takes the one that
    moves least: the fullest are lowered to one level, the emptiest raised to another.
    """

    def __init__(self, nodes: Sequence[Node], threshold: float) -> None:
        self._nodes = {n.id: n for n in nodes if n.capacity > 0}
        self._zones = {n.id: n.zone for n in nodes}
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


def plan_moves(
    nodes: Sequence[Node],
    threshold: float,
    fragments_on: Callable[[int], Iterable[Candidate]],
    slices: Iterable[Spreadable] = (),
) -> Iterator[Move]:
    """Every move of a round of rebalancing: ``slices`` are spread over zones, and then bytes over nodes, the fullest
    node's first. ``fragments_on``: what a node keeps. Nothing is moved twice."""
    moved: dict[UUID, tuple[int, ...]] = {}  # where the fragments of a slice are after the moves so far
    spread, settled, amounts = Spread(nodes), set[FragmentId](), Counter[tuple[int, int]]()
    for piece in slices if spread.possible else ():
        for move in spread.moves(piece):
            moved[piece.id] = _after(move, moved.get(piece.id, piece.held))
            settled.add(move.id)
            amounts[move.source, move.target] += move.size
            yield move
    balance = Balance(after_moves(nodes, amounts), threshold)
    spent: set[int] = set()
    while not balance.done and (source := balance.giver(spent)) is not None:
        spent.add(source)  # each node's fragments are gone through once
        for candidate in fragments_on(source):
            if balance.surplus[source] <= 0:
                break
            if candidate.id in settled:
                continue
            held = moved.get(candidate.id.slice, candidate.held)
            target = balance.taker(replace(candidate, held=held), source)
            if target is not None:
                move = Move(candidate.id, source, target, candidate.size)
                moved[candidate.id.slice] = _after(move, held)
                yield move


def _after(move: Move, held: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(move.target if n == move.source else n for n in held)


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
