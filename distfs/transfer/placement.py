"""Where the fragments of a new slice go: k+m different nodes, by free bytes. Pure.

Each draw gives every node a credit of the share of fragments that its free bytes entitle it to, and takes
the nodes with the most credit, with some noise so that the same nodes do not always meet. What a node got
and what it was due never drift apart by more than a few fragments, which weighted drawing does not promise.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import TypeVar

from distfs.errors import Full, Unavailable
from distfs.model import Node

K = TypeVar("K")  # nodes or zones

#: Credit noise: about one fragment. More spreads the pairs better, less spreads the bytes better.
_NOISE = 1.0
#: Who is due how much is worked out anew when the room on some disk has changed by this part of it.
_DRIFT = 0.01


def shares(weights: Mapping[K, float], width: float) -> dict[K, float]:
    """How much of ``width`` fragments each is due: by weight, at most one, all of them together.

    What exceeds one fragment is dealt to the others in proportion again. Needs at least ``width`` of them.
    """
    due: dict[K, float] = {}
    rest, left = dict(weights), float(width)
    while rest:
        total = sum(rest.values())
        if total <= 0:
            return due | {node: left / len(rest) for node in rest}
        full = [node for node, weight in rest.items() if weight * left >= total]
        if not full:
            return due | {node: weight * left / total for node, weight in rest.items()}
        for node in full:
            due[node] = 1.0
            del rest[node]
        left = width - len(due)
    return due


def zoned_shares(zones: Mapping[str, Mapping[int, float]], width: int) -> dict[str, dict[int, float]]:
    """How much of one slice each node of each zone is due, when ``choose`` spreads fragments over zones.

    ``zones``: the weights of each zone's nodes. Every zone gets a first fragment before any gets a second.
    """
    quota = dict.fromkeys(zones, 0.0)
    left, deal = width, 1
    while left:
        able = {zone: sum(inside.values()) for zone, inside in zones.items() if len(inside) >= deal}
        now = min(left, len(able))
        for zone, share in shares(able, now).items():
            quota[zone] += share
        left, deal = left - now, deal + 1
    return {zone: shares(inside, quota[zone]) for zone, inside in zones.items()}


def choose(zones: Mapping[str, Mapping[int, float]], width: int) -> list[int]:
    """``width`` different nodes, those with the most credit first, in zones not yet used.

    ``zones``: the credit of each zone's nodes. Zones repeat only when there are fewer zones than fragments.
    """
    if len(zones) == 1:
        [credit] = zones.values()
        return sorted(credit, key=credit.__getitem__, reverse=True)[:width]
    offers = (  # of each zone its best, then its second, which counts for less than any zone's best ...
        (-turn, credit[node], node)
        for credit in zones.values()
        for turn, node in enumerate(sorted(credit, key=credit.__getitem__, reverse=True)[:width])
    )
    return [node for _, _, node in sorted(offers, reverse=True)[:width]]


class _Deal:
    """Who is due how much of every slice. It holds while the nodes and, nearly, their room stay as they are."""

    def __init__(
        self, nodes: Sequence[Node], width: int, fragment_size: int, in_flight: Mapping[int, int]
    ) -> None:
        """``in_flight``: bytes by node that ``Node.free`` does not show yet."""
        self._nodes, self._width = list(nodes), width
        self._disk = {n.id: n.disk_key for n in nodes}
        self._moved: dict[str, int] = {}  # bytes by disk, since
        moving = Counter[str]()
        for n in nodes:
            moving[n.disk_key] += in_flight.get(n.id, 0)
        left = {n.id: n.free - moving[n.disk_key] for n in nodes if n.writable}
        self._may_move: dict[str, float] = {}
        for node, bytes_left in left.items():
            disk = self._disk[node]
            self._may_move[disk] = min(max(0, bytes_left) * _DRIFT, self._may_move.get(disk, math.inf))
        able = [n for n in nodes if left.get(n.id, 0) >= max(1, fragment_size)]
        sharing = Counter(n.disk_key for n in able)
        weights: dict[str, dict[int, float]] = {}
        for n in able:
            weights.setdefault(n.zone, {})[n.id] = left[n.id] / sharing[n.disk_key]
        self.width = min(width, len(able))  # of the slices that can be placed
        self.due = zoned_shares(weights, self.width)
        self.slices = 0  # placed so far
        self._holds = True
        # A fragment between these sizes fits on the same nodes, however much of what may move has moved.
        fit = {n.id for n in able}
        self._more_than = max((left[n] for n in left.keys() - fit), default=0) * (1 + _DRIFT)
        self._at_most = min((left[n] for n in fit), default=0) * (1 - _DRIFT)

    def is_for(self, nodes: Sequence[Node], width: int, fragment_size: int) -> bool:
        """Whether such a slice can be dealt by it."""
        fits = self._more_than < max(1, fragment_size) <= self._at_most
        return self._holds and fits and width == self._width and nodes == self._nodes

    def moved(self, nodes: Iterable[int], size: int) -> None:
        """So many bytes more, or fewer, are in flight to each of the nodes."""
        for node in nodes:
            if (disk := self._disk.get(node)) in self._may_move:
                moved = self._moved[disk] = self._moved.get(disk, 0) + size
                self._holds &= -self._may_move[disk] <= moved <= self._may_move[disk]


class Placement:
    """One service's running placement: credits, and bytes it has placed that no heartbeat shows yet."""

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()
        self._lock = threading.Lock()
        self._credit: dict[int, float] = {}  # without what ``_deal`` gave
        self._deal: _Deal | None = None
        self._in_flight: dict[int, int] = {}

    def place(self, nodes: Sequence[Node], width: int, fragment_size: int, fewest: int) -> list[int]:
        """Node ids for a new slice's fragments: ``width``, or at least ``fewest`` when no more can take it.

        Count the bytes as in flight until ``landed``. Raises Unavailable, or Full, saying what is missing.
        """
        with self._lock:
            deal = self._deal
            if deal is None or not deal.is_for(nodes, width, fragment_size):
                deal = self._deal_anew(nodes, width, fragment_size)
            if deal.width < fewest:
                able = sum(n.writable for n in nodes)
                missing = Full if able >= fewest else Unavailable  # the nodes are there, their room is not
                raise missing(shortage(fewest, deal.width, len(nodes), sum(n.alive for n in nodes)))
            deal.slices += 1
            chosen = choose(self._noisy_credit(deal), deal.width)
            for node in chosen:
                self._credit[node] = self._credit.get(node, 0.0) - 1
                self._in_flight[node] = self._in_flight.get(node, 0) + fragment_size
            deal.moved(chosen, fragment_size)
            return chosen

    def landed(self, nodes: Sequence[int], fragment_size: int) -> None:
        """The fragments placed on ``nodes`` are stored, or given up."""
        with self._lock:
            for node in nodes:
                has = self._in_flight.get(node, 0)
                moved = min(has, fragment_size)
                self._in_flight[node] = has - moved
                if moved != fragment_size and self._deal:  # it was placed before this service began to count
                    self._deal.moved((node,), fragment_size - moved)
            if self._deal:
                self._deal.moved(nodes, -fragment_size)

    def _deal_anew(self, nodes: Sequence[Node], width: int, fragment_size: int) -> _Deal:
        if (before := self._deal) and before.slices:
            for inside in before.due.values():
                for node, due in inside.items():
                    self._credit[node] = self._credit.get(node, 0.0) + due * before.slices
        self._deal = _Deal(nodes, width, fragment_size, self._in_flight)
        return self._deal

    def _noisy_credit(self, deal: _Deal) -> dict[str, dict[int, float]]:
        credit, slices, noise = self._credit.get, deal.slices, self._random.random
        return {
            zone: {node: credit(node, 0.0) + due * slices + noise() * _NOISE for node, due in inside.items()}
            for zone, inside in deal.due.items()
        }


def shortage(fewest: int, able: int, known: int, up: int) -> str:
    """What is missing where ``able`` nodes can take a file and ``fewest`` must, with the remedy."""
    some_are_down = "those that are down, or " if up < known else ""
    return (
        f"{fewest} storage nodes that can take the file are needed and {able} can "
        f"({known} known, {up} up); start {some_are_down}more: "
        "python -m distfs.storage_server --init --port PORT --data DIR"
    )
