"""Decisions of upkeep and placement on a large cluster that exists only here: how long each takes, no I/O at all."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from uuid import UUID

from bench.report import Options, spread, table
from distfs.config.settings import MIB
from distfs.model import Address, FragmentId, Node, Policy, Slice
from distfs.transfer.placement import Placement
from distfs.upkeep.decisions import Candidate, Spreadable, by_risk, choose_target, plan_moves
from distfs.upkeep.model import RepairTask

SLICES_ON_NODE = 100
SAMPLE = 10  # one slice in so many is placed, and has a target chosen: on every upload, at every repair
FEWEST_NODES = 20
ZONES = 5
POLICY = Policy(4, 2)
SLICE = 32 * MIB
FRAGMENT = SLICE // POLICY.k
THRESHOLD = 0.1


@dataclass(slots=True)
class Decision:
    """One function, called for all at once or once for each."""

    name: str
    count: int  # tasks, fragments or slices it decided about
    outcome: str
    seconds: list[float]  # of each turn


def run(options: Options, cleanup: ExitStack) -> list[Decision]:
    """Seconds of each decision on ``--slices`` slices.

    What decides of all at once has as many turns as ``--runs`` says; what is asked for each slice has one.
    """
    cluster = _Cluster(options.slices)
    some = options.slices // SAMPLE
    decisions = []
    for name, count, turns, decide in (
        ("order of repair", options.slices, options.runs, cluster.order),
        ("plan of a rebalancing", options.slices, options.runs, cluster.plan),
        ("plan of spreading over zones", options.slices, options.runs, cluster.spread_out),
        ("targets of repair", some, 1, lambda: cluster.targets(some)),
        ("placement of new slices", some, 1, lambda: cluster.place(some)),
    ):
        seconds = []
        for _ in range(turns):
            began = time.perf_counter()
            outcome = decide()
            seconds.append(time.perf_counter() - began)
        decisions.append(Decision(name, count, outcome, seconds))
    _print(len(cluster.nodes), decisions)
    return decisions


class _Cluster:
    """Nodes, some of them new and empty, and what MetaDB would say of them; the same every time."""

    def __init__(self, slices: int) -> None:
        random = Random(1)
        count = max(FEWEST_NODES, slices // SLICES_ON_NODE)
        on = {n: int(random.choice((0.0, 0.5, 1, 2)) * SLICES_ON_NODE) for n in range(1, count + 1)}
        self.nodes = [_node(n, 4 * SLICES_ON_NODE * FRAGMENT, on[n] * FRAGMENT) for n in on]
        numbers = list(on)
        self.held = [tuple(random.sample(numbers, POLICY.width)) for _ in range(slices)]
        self.tasks = [_task(n, held, random) for n, held in enumerate(self.held)]
        self.kept = _deal(on, slices, random)

    def order(self) -> str:
        first = by_risk(self.tasks)[0]
        return f"begins at redundancy {first.redundancy_left}"

    def plan(self) -> str:
        moves = sum(1 for _ in plan_moves(self.nodes, THRESHOLD, self._fragments_on))
        return f"{moves:,} moves"

    def spread_out(self) -> str:
        slices = (Spreadable(UUID(int=n), held, FRAGMENT) for n, held in enumerate(self.held))
        return f"{sum(1 for _ in plan_moves(self.nodes, 1.0, self._fragments_on, slices)):,} moves"

    def targets(self, slices: int) -> str:
        random = Random(2)
        found = (choose_target(self.nodes, held, 0, FRAGMENT, (), random) for held in self.held[:slices])
        return f"{sum(target is not None for target in found):,} found"

    def place(self, slices: int) -> str:
        placement, width = Placement(Random(3)), POLICY.width
        placed = 0
        for _ in range(slices):
            for node in placement.place(self.nodes, width, FRAGMENT, width):
                placement.landed([node], FRAGMENT)
                placed += 1
        return f"{placed:,} fragments"

    def _fragments_on(self, node: int) -> Iterable[Candidate]:
        return self.kept[node]


def _node(number: int, capacity: int, used: int) -> Node:
    return Node(
        id=number,
        uuid=UUID(int=number),
        address=Address("127.0.0.1", 9000),
        zone=f"z{number % ZONES}",
        capacity=capacity,
        free=capacity - used,
        state="active",
        alive=True,
        heartbeat_age=1.0,
        used=used,
    )


def _task(number: int, held: tuple[int, ...], random: Random) -> RepairTask:
    piece = Slice(UUID(int=number), 0, SLICE, b"", held)
    left = random.randrange(-1, POLICY.m)
    return RepairTask(UUID(int=number), "a", "b/c", POLICY, MIB, piece, (0,), left, trashed=number % 9 == 0)


def _deal(on: dict[int, int], fragments: int, random: Random) -> dict[int, list[Candidate]]:
    """As many fragments as there are slices, in proportion to what each node is to keep."""
    numbers = list(on)
    kept: dict[int, list[Candidate]] = {n: [] for n in numbers}
    holders = random.choices(numbers, [max(count, 1) for count in on.values()], k=fragments)
    for number, holder in enumerate(holders):
        others = random.sample(numbers, POLICY.width - 1)
        held = (holder, *(n for n in others if n != holder))
        kept[holder].append(Candidate(FragmentId(UUID(int=number), 0), held, FRAGMENT))
    return kept


def _print(nodes: int, decisions: list[Decision]) -> None:
    print(f"\n{nodes:,} nodes in {ZONES} zones, {POLICY.k}+{POLICY.m}; medians, least and most")
    rows = [["", "of", "ms in all", "us for each", "outcome"]]
    for one in decisions:
        each = [seconds / one.count * 1e6 for seconds in one.seconds]
        in_all = [seconds * 1e3 for seconds in one.seconds]
        rows.append([one.name, f"{one.count:,}", spread(in_all, 1), spread(each, 1), one.outcome])
    table(rows)
