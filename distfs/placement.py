"""Where the fragments of a new slice go: k+m different nodes, by free bytes. Pure.

Each draw gives every node a credit of the share of fragments that its free bytes entitle it to, and takes
the nodes with the most credit, with some noise so that the same nodes do not always meet. What a node got
and what it was due never drift apart by more than a few fragments, which weighted drawing does not promise.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

from distfs.errors import Full, Unavailable
from distfs.model import Node

K = TypeVar("K")  # nodes or zones

#: Credit noise: about one fragment. More spreads the pairs better, less spreads the bytes better.
_NOISE = 1.0


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


def zoned_shares(zones: Mapping[str, Mapping[int, float]], width: int) -> dict[int, float]:
    """How much of one slice each node is due, when ``choose`` spreads fragments over zones.

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
    return {node: due for zone in zones for node, due in shares(zones[zone], quota[zone]).items()}


def choose(
    nodes: Sequence[Node],
    width: int,
    credit: Mapping[int, float],
    random: Random,
) -> list[int]:
    """``width`` different node ids, those with the most credit first in zones not yet used.

    Zones repeat only when there are fewer zones than fragments.
    """
    noisy = {n.id: credit.get(n.id, 0.0) + random.random() * _NOISE for n in nodes}
    zone = {n.id: n.zone for n in nodes}
    ranked = sorted(noisy, key=lambda node: -noisy[node])
    chosen: list[int] = []
    while len(chosen) < width:
        crowd = {z: sum(zone[c] == z for c in chosen) for z in set(zone.values())}
        left = [node for node in ranked if node not in chosen]
        chosen.append(min(left, key=lambda node: crowd[zone[node]]))
    return chosen


class Placement:
    """One service's running placement: credits, and bytes it has placed that no heartbeat shows yet."""

    def __init__(self, random: Random | None = None) -> None:
        self._random = random or Random()
        self._lock = threading.Lock()
        self._credit: dict[int, float] = {}
        self._in_flight: dict[int, int] = {}

    def place(self, nodes: Sequence[Node], width: int, fragment_size: int, fewest: int) -> list[int]:
        """Node ids for a new slice's fragments: ``width``, or at least ``fewest`` when no more can take it.

        Count the bytes as in flight until ``landed``. Raises Unavailable, or Full, saying what is missing.
        """
        with self._lock:
            in_flight = Counter[str]()  # by disk
            for n in nodes:
                in_flight[n.disk_key] += self._in_flight.get(n.id, 0)
            left = {n.id: n.free - in_flight[n.disk_key] for n in nodes if n.writable}
            candidates = [n for n in nodes if left.get(n.id, 0) >= max(1, fragment_size)]
            sharing = Counter(n.disk_key for n in candidates)
            weights = {n.id: left[n.id] / sharing[n.disk_key] for n in candidates}
            width = min(width, len(weights))
            if width < fewest:
                able = sum(n.writable for n in nodes)
                missing = Full if able >= fewest else Unavailable  # the nodes are there, their room is not
                raise missing(shortage(fewest, len(weights), len(nodes), sum(n.alive for n in nodes)))
            zones: dict[str, dict[int, float]] = {}
            for n in candidates:
                zones.setdefault(n.zone, {})[n.id] = weights[n.id]
            for node, due in zoned_shares(zones, width).items():
                self._credit[node] = self._credit.get(node, 0.0) + due
            chosen = choose(candidates, width, self._credit, self._random)
            for node in chosen:
                self._credit[node] -= 1
                self._in_flight[node] = self._in_flight.get(node, 0) + fragment_size
            return chosen

    def landed(self, node: int, fragment_size: int) -> None:
        """A fragment placed on ``node`` is stored, or given up."""
        with self._lock:
            self._in_flight[node] = max(0, self._in_flight.get(node, 0) - fragment_size)


def shortage(fewest: int, able: int, known: int, up: int) -> str:
    """What is missing where ``able`` nodes can take a file and ``fewest`` must, with the remedy."""
    return (
        f"{fewest} storage nodes that can take the file are needed and {able} can "
        f"({known} known, {up} up); start more: python -m distfs.storage_server --port PORT --data DIR"
    )
