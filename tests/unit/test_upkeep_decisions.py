"""What upkeep decides, on a thousand nodes and a hundred thousand slices that exist only here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.model import Address, FragmentId, Node, Policy, Slice
from distfs.upkeep.decisions import (
    CLOCK_LIMIT_S,
    LEAST_SCRUB_RATE,
    Balance,
    Candidate,
    Move,
    Spread,
    Spreadable,
    Stay,
    absent,
    after_moves,
    by_risk,
    choose_target,
    clock_in_doubt,
    cut_off,
    fullness,
    plan_drain,
    plan_moves,
    scrub_due_in,
    scrub_pace,
)
from distfs.upkeep.model import RepairTask, ScrubState

GIB = 1 << 30
SIZE = 32 << 20


def node(
    number: int, free: int = 50 * GIB, capacity: int = 100 * GIB, zone: str = "", **more: object
) -> Node:
    facts: dict[str, object] = {"state": "active", "alive": True} | more
    return Node(
        id=number,
        uuid=UUID(int=number),
        address=Address("127.0.0.1", 9000 + number),
        zone=zone,
        capacity=capacity,
        free=free,
        state=str(facts["state"]),
        alive=bool(facts["alive"]),
        heartbeat_age=1.0,
        disk=str(facts.get("disk", "")),
    )


# --- who is to keep a fragment ------------------------------------------------------------------------


def targets(
    nodes: Sequence[Node], held: tuple[int, ...], index: int = 0, size: int = SIZE
) -> set[int | None]:
    """Everybody who may be named."""
    return {choose_target(nodes, held, index, size, (), Random(seed)) for seed in range(200)}


def test_a_fragment_never_goes_to_a_node_that_keeps_another_of_its_slice() -> None:
    nodes = [node(n) for n in range(1, 6)]
    assert targets(nodes, (0, 2, 3)) == {1, 4, 5}


def test_only_nodes_that_take_something_are_named() -> None:
    nodes = [
        node(1, state="draining"),
        node(2, state="readonly"),
        node(3, alive=False),
        node(4, free=SIZE - 1),
        node(5, free=SIZE),
    ]
    assert targets(nodes, (0, 9)) == {5}
    assert choose_target(nodes, (0, 9), 0, SIZE, {5}, Random(1)) is None


def test_a_zone_that_has_none_of_the_slice_comes_first() -> None:
    nodes = [node(1, zone="a"), node(2, zone="b"), node(3, zone="a"), node(4, zone="c", free=SIZE)]
    assert targets(nodes, (0, 1, 2)) == {4}
    assert targets(nodes[:3], (0, 1, 2)) == {3}


def test_a_fragment_is_made_anew_in_place_only_when_nobody_else_is_as_good() -> None:
    nodes = [node(1), node(2), node(3)]
    assert targets(nodes, (1, 2)) == {3}
    assert targets(nodes[:2], (1, 2)) == {1}
    apart = [node(1, zone="a"), node(2, zone="b"), node(3, zone="b")]
    assert targets(apart, (1, 2)) == {1}


def test_emptier_nodes_are_named_more_often() -> None:
    nodes = [node(1, free=10 * GIB), node(2, free=30 * GIB)]
    random = Random(5)
    named = Counter(choose_target(nodes, (0, 9), 0, SIZE, (), random) for _ in range(4000))
    assert named[2] / named[1] == pytest.approx(3, rel=0.15)


def test_a_thousand_nodes_share_what_a_lost_one_had_by_their_free_bytes() -> None:
    random = Random(7)
    nodes = [node(n, free=random.randrange(20, 80) * GIB, zone=f"z{n % 7}") for n in range(1, 1001)]
    got: Counter[int] = Counter()
    for _ in range(6_000):
        other = random.randrange(1, 1001)
        target = choose_target(nodes[:200], (0, other), 0, SIZE, (), random)
        assert target not in (None, other)
        got[target or 0] += 1
    assert len(got) == 200
    heavy = sum(got[n.id] for n in nodes[:200] if n.free > 50 * GIB)
    weight = sum(n.free for n in nodes[:200] if n.free > 50 * GIB) / sum(n.free for n in nodes[:200])
    assert heavy / 6_000 == pytest.approx(weight, rel=0.1)


# --- repair -------------------------------------------------------------------------------------------


def task(left: int, number: int = 0) -> RepairTask:
    piece = Slice(UUID(int=number), 0, SIZE, b"", (0,) * 6)
    return RepairTask(UUID(int=1), "a", "b/c", Policy(4, 2), 1 << 20, piece, lost=(0,), redundancy_left=left)


def test_repair_orders_a_hundred_thousand_slices_by_risk() -> None:
    random = Random(3)
    tasks = [task(random.randrange(-3, 5), n) for n in range(100_000)]
    ordered = by_risk(tasks)
    lefts = [t.redundancy_left for t in ordered]
    saved = [left for left in lefts if left >= 0]
    assert lefts[: len(saved)] == sorted(saved), "what cannot be saved comes last"
    assert Counter(t.piece.id for t in ordered) == Counter(t.piece.id for t in tasks)
    ones = [t.piece.id for t in ordered if t.redundancy_left == 1]
    assert ones == [t.piece.id for t in tasks if t.redundancy_left == 1], (
        "else as MetaDB ordered them: by age"
    )


# --- rebalance ----------------------------------------------------------------------------------------


class Cluster:
    """Nodes with fragments on them; moves are done at once."""

    def __init__(self, nodes: Sequence[Node], base: dict[int, int]) -> None:
        """``base``: bytes on a node that are not fragments."""
        self.nodes = {n.id: n for n in nodes}
        self.zones = {n.zone for n in nodes}
        self.held: dict[int, list[int]] = {}  # slice -> its nodes
        self.on: dict[int, set[tuple[int, int]]] = defaultdict(set)
        self.used = {n.id: base.get(n.id, 0) for n in nodes}

    def put(self, number: int, nodes: Sequence[int]) -> None:
        self.held[number] = list(nodes)
        for index, each in enumerate(nodes):
            self.on[each].add((number, index))
            self.used[each] += SIZE

    def now(self) -> list[Node]:
        return [replace(n, free=n.capacity - self.used[n.id]) for n in self.nodes.values()]

    def fragments_on(self, number: int) -> list[Candidate]:
        return [
            Candidate(FragmentId(UUID(int=s + 1), i), tuple(self.held[s]), SIZE)
            for s, i in sorted(self.on[number])
        ]

    def slices(self) -> list[Spreadable]:
        return [Spreadable(UUID(int=s + 1), tuple(held), SIZE) for s, held in self.held.items()]

    def crowds(self, number: int) -> dict[str, int]:
        """How many fragments of a slice each zone has, also those that have none."""
        crowds = dict.fromkeys(self.zones, 0)
        for each in self.held[number]:
            crowds[self.nodes[each].zone] += 1
        return crowds

    def move(self, move: Move) -> None:
        number, index = move.id.slice.int - 1, move.id.index
        assert self.held[number][index] == move.source
        assert move.target not in self.held[number]
        self.held[number][index] = move.target
        self.on[move.source].remove((number, index))
        self.on[move.target].add((number, index))
        self.used[move.source] -= SIZE
        self.used[move.target] += SIZE

    def spread(self) -> float:
        full = [fullness(n) for n in self.now()]
        return max(full) - min(full)


def filled(
    nodes: Sequence[Node], slices: int, width: int, random: Random, weights: Sequence[float]
) -> Cluster:
    cluster = Cluster(nodes, {})
    numbers, sums = [n.id for n in nodes], list(accumulate(weights))
    for number in range(slices):
        chosen: set[int] = set()
        while len(chosen) < width:
            chosen.add(random.choices(numbers, cum_weights=sums)[0])
        cluster.put(number, sorted(chosen, key=lambda _: random.random()))
    return cluster


def test_a_thousand_unequal_nodes_with_a_hundred_thousand_slices_become_equally_full() -> None:
    random = Random(11)
    nodes = [node(n, capacity=random.choice((10, 20, 40)) * GIB, zone=f"z{n % 5}") for n in range(1, 1001)]
    weights = [random.choice((0.0, 0.3, 1, 1, 2)) * n.capacity for n in nodes]  # some are new and empty
    cluster = filled(nodes, 100_000, 2, random, weights)
    assert cluster.spread() > 0.3
    before = cluster.now()
    moves = list(plan_moves(before, 0.05, cluster.fragments_on))
    for move in moves:
        cluster.move(move)
    assert cluster.spread() <= 0.05
    assert len({m.id for m in moves}) == len(moves), "nothing is moved twice"
    assert not {m.source for m in moves} & {m.target for m in moves}, "who gives does not take"
    for held in cluster.held.values():
        assert len(set(held)) == len(held)
    assert list(plan_moves(cluster.now(), 0.05, cluster.fragments_on)) == [], "and then it rests"
    mean = sum(cluster.used.values()) / sum(n.capacity for n in nodes)
    least = sum(max(0, n.capacity - n.free - (mean + 0.025) * n.capacity) for n in before)
    assert sum(m.size for m in moves) < 1.25 * least, "not much more is moved than must be"


def test_one_new_node_among_many_full_ones_is_filled() -> None:
    nodes = [node(n, capacity=20 * GIB) for n in range(1, 41)]
    cluster = Cluster(nodes, {})
    for number in range(6000):
        cluster.put(number, (number % 39 + 1, (number + 7) % 39 + 1))
    for move in plan_moves(cluster.now(), 0.05, cluster.fragments_on):
        assert move.target == 40
        cluster.move(move)
    assert cluster.spread() <= 0.05


def test_nodes_on_one_disk_take_together_what_its_bytes_ask_for() -> None:
    full, empty = node(1, free=20 * GIB), [node(n, free=60 * GIB, disk="one") for n in (2, 3)]
    balance = Balance([full, *empty], 0.02)
    assert balance.surplus[1] == pytest.approx(20 * GIB, rel=0.1), "two disks meet in the middle"
    assert sum(balance.room.values()) == pytest.approx(20 * GIB, rel=0.1)
    assert Balance(empty, 0.02).done


def test_what_is_balanced_enough_is_left_alone() -> None:
    nodes = [node(n, free=(50 + n) * GIB) for n in range(5)]
    assert Balance(nodes, 0.05).done
    assert not Balance(nodes, 0.03).done


def test_zones_are_crowded_no_more_than_before() -> None:
    random = Random(4)
    nodes = [node(n, capacity=20 * GIB, zone="ab"[n % 2]) for n in range(1, 13)]
    cluster = Cluster(nodes, {})
    for number in range(3000):
        pair = [random.choice((1, 3, 5, 7, 9, 11)), random.choice((2, 4, 6))]
        cluster.put(number, pair)
    for move in plan_moves(cluster.now(), 0.05, cluster.fragments_on):
        cluster.move(move)
    assert all(a % 2 != b % 2 for a, b in cluster.held.values())
    assert cluster.used[8] > 0


# --- zones --------------------------------------------------------------------------------------------


def test_of_a_hundred_thousand_slices_the_crowded_ones_are_spread_and_no_other() -> None:
    random = Random(12)
    nodes = [node(n, capacity=40 * GIB, zone=f"z{n % 8}") for n in range(1, 1001)]
    cluster = filled(nodes, 100_000, 2, random, [1.0] * 1000)
    zones = {n.id: n.zone for n in nodes}
    crowded = {UUID(int=s + 1) for s, (one, two) in cluster.held.items() if zones[one] == zones[two]}
    assert len(crowded) > 10_000
    moves = list(plan_moves(cluster.now(), 1.0, cluster.fragments_on, cluster.slices()))
    for move in moves:
        cluster.move(move)
    assert {m.id.slice for m in moves} == crowded
    assert len(moves) == len(crowded), "one fragment of each, once"
    assert all(zones[one] != zones[two] for one, two in cluster.held.values())
    assert cluster.spread() < 0.1, "the emptiest nodes take them"
    assert not list(plan_moves(cluster.now(), 1.0, cluster.fragments_on, cluster.slices()))


def test_no_zone_keeps_two_fragments_more_than_one_that_has_room() -> None:
    nodes = [node(n, zone="abc"[n % 3]) for n in range(1, 19)]
    cluster = Cluster(nodes, {})
    cluster.put(0, (3, 6, 9, 12, 15, 18))
    cluster.put(1, (3, 6, 9, 12, 1, 2))
    cluster.put(2, (3, 1, 4, 2, 5, 6))
    moves = [move for piece in cluster.slices() for move in Spread(cluster.now()).moves(piece)]
    for move in moves:
        cluster.move(move)
    assert [sum(m.id.slice.int == s + 1 for m in moves) for s in range(3)] == [4, 2, 0]
    assert all(set(cluster.crowds(s).values()) == {2} for s in range(3))


@pytest.mark.parametrize(
    "other",
    [
        {"zone": "a"},
        {"zone": "b", "free": SIZE - 1},
        {"zone": "b", "state": "readonly"},
        {"zone": "b", "alive": False},
    ],
    ids=str,
)
def test_what_no_other_zone_can_take_stays(other: dict[str, object]) -> None:
    nodes = [node(1, zone="a"), node(2, zone="a"), node(3, **other)]  # type: ignore[arg-type]
    assert Spread(nodes).moves(Spreadable(UUID(int=1), (1, 2), SIZE)) == []


def test_what_drains_or_is_down_is_not_moved_for_its_zone() -> None:
    piece = Spreadable(UUID(int=1), (1, 2), SIZE)
    for away in ({"state": "draining"}, {"alive": False}):
        nodes = [node(1, zone="a", **away), node(2, zone="a"), node(3, zone="b")]
        assert [m.source for m in Spread(nodes).moves(piece)] == [2]
        nodes[1] = node(2, zone="a", **away)
        assert Spread(nodes).moves(piece) == []


def test_nothing_moves_between_zones_that_would_only_change_places() -> None:
    """Nothing can leave the most crowded zone; from the next it would go to and fro."""
    crowded = [node(n, zone="a", state="draining") for n in (1, 2, 3)]
    nodes = [*crowded, *(node(n, zone="b") for n in (4, 5)), *(node(n, zone="c") for n in (6, 7))]
    piece = Spreadable(UUID(int=1), (1, 2, 3, 4, 5, 6), SIZE)
    assert Spread(nodes).moves(piece) == []
    assert [m.target for m in Spread([*nodes, node(8, zone="d")]).moves(piece)] == [8]


def test_room_is_booked() -> None:
    nodes = [node(1, zone="a"), node(2, zone="a"), node(3, zone="b", free=SIZE), node(4, zone="b", free=SIZE)]
    spread = Spread(nodes)
    took = [m.target for n in range(3) for m in spread.moves(Spreadable(UUID(int=n), (1, 2), SIZE))]
    assert sorted(took) == [3, 4]


@pytest.mark.parametrize("seed", range(8))
def test_spreading_and_balancing_come_to_rest_together(seed: int) -> None:
    """Zones of unequal size and room, slices of unequal width; rounds as the worker runs them, until none moves."""
    random = Random(seed)
    nodes = [node(n, capacity=random.choice((8, 16, 32)) * GIB, zone="aaabbc"[n % 6]) for n in range(1, 31)]
    cluster = Cluster(nodes, {})
    old = [n.id for n in nodes if n.zone == "a"]
    for number in range(1000):
        cluster.put(number, random.sample(old, random.choice((2, 3, 6))))
    often, squares = Counter[FragmentId](), sum_of_squares(cluster)
    for _ in range(6):
        moves = list(plan_moves(cluster.now(), 0.05, cluster.fragments_on, cluster.slices()))
        assert len({m.id for m in moves}) == len(moves), "nothing is moved twice in a round"
        for move in moves:
            cluster.move(move)
            assert cluster.used[move.target] <= cluster.nodes[move.target].capacity
        often.update(m.id for m in moves)
        before, squares = squares, sum_of_squares(cluster)
        assert squares <= before - 2 * sum(m.spreads for m in moves), "balancing crowds no zone again"
        if not moves:
            break
    assert not moves, "it comes to rest"
    assert max(often.values()) <= 2
    for number in cluster.held:
        crowds = cluster.crowds(number)
        assert max(crowds.values()) - min(crowds.values()) <= 1


def sum_of_squares(cluster: Cluster) -> int:
    return sum(count**2 for number in cluster.held for count in cluster.crowds(number).values())


def test_nodes_that_take_no_part_neither_give_nor_take() -> None:
    nodes = [
        node(1, free=0),
        node(2, free=100 * GIB, state="readonly"),
        node(3, free=100 * GIB, alive=False),
        node(4, free=50 * GIB, state="draining"),
    ]
    assert Balance(nodes, 0.05).done


def test_a_fragment_whose_takers_all_keep_its_slice_stays() -> None:
    nodes = [node(1, free=0), node(2, free=100 * GIB)]
    balance = Balance(nodes, 0.05)
    there = Candidate(FragmentId(UUID(int=1), 0), (1, 2), SIZE)
    assert balance.taker(there, 1) is None
    assert balance.taker(replace(there, held=(1, 7)), 1) == 2


def test_a_move_that_failed_is_booked_back_and_its_target_not_asked_again() -> None:
    nodes = [node(1, free=0), node(2, free=90 * GIB), node(3, free=100 * GIB)]
    balance = Balance(nodes, 0.05)
    left = balance.left
    free = Candidate(FragmentId(UUID(int=1), 0), (1, 0), SIZE)
    target = balance.taker(free, 1)
    assert target == 3
    assert balance.left == left - SIZE
    balance.unbook(1, 3, SIZE)
    assert balance.left == left
    assert balance.taker(free, 1) == 2


def test_a_plan_to_drain_counts_the_room_it_takes_and_says_why_the_rest_stays() -> None:
    nodes = [node(1), node(2, free=2 * SIZE), node(3, free=0), node(4, alive=False)]
    fragments = [
        Candidate(FragmentId(UUID(int=n), 0), held, SIZE) for n, held in enumerate([(1, 3)] * 3 + [(1, 2)])
    ]
    plan = list(plan_drain(nodes, 1, fragments, Random(1)))
    assert [step.target for step in plan if isinstance(step, Move)] == [2, 2]
    assert {step.reason for step in plan if isinstance(step, Stay)} == {
        "no node that may keep it has the room"
    }
    assert [step.id for step in plan] == [fragment.id for fragment in fragments]
    [kept] = plan_drain(nodes, 1, [Candidate(FragmentId(UUID(int=1), 0), (1, 2, 3), SIZE)], Random(1))
    assert isinstance(kept, Stay)
    assert kept.reason == "every other node that takes anything keeps a fragment of the same slice"
    [alone] = plan_drain(nodes[:1], 1, fragments[:1], Random(1))
    assert isinstance(alone, Stay)
    assert alone.reason == "no other node takes anything"


def test_what_moves_within_one_disk_makes_it_no_fuller() -> None:
    nodes = [node(1, disk="one"), node(2, disk="one"), node(3)]
    assert after_moves(nodes, {(1, 2): GIB}) == nodes
    assert [n.free for n in after_moves(nodes, {(1, 3): GIB})] == [51 * GIB, 51 * GIB, 49 * GIB]
    assert [n.free for n in after_moves(nodes, {(1, 3): 80 * GIB})] == [100 * GIB, 100 * GIB, 0]


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(0, 1)), min_size=2, max_size=30),
    st.floats(0.02, 0.3),
)
def test_what_is_given_is_what_is_taken_and_ends_within_the_threshold(
    facts: list[tuple[int, float]], threshold: float
) -> None:
    nodes = [node(n, int(size * GIB * free), size * GIB) for n, (size, free) in enumerate(facts)]
    balance = Balance(nodes, threshold)
    given_, taken = sum(balance.surplus.values()), sum(balance.room.values())
    assert given_ == pytest.approx(taken, rel=1e-3, abs=10)
    after = [
        fullness(n) + (balance.room.get(n.id, 0) - balance.surplus.get(n.id, 0)) / n.capacity for n in nodes
    ]
    assert max(after) - min(after) <= threshold + 1e-6
    assert not balance.surplus.keys() & balance.room.keys()


# --- scrub, orphans -----------------------------------------------------------------------------------


def state(**ages: float) -> ScrubState:
    return ScrubState(1, "", 0, 0, ages.get("round_age"), ages.get("last_round_age"))


def test_a_round_of_scrub_begins_a_period_after_the_last_one_began() -> None:
    assert scrub_due_in(state(), 100) == 0
    assert scrub_due_in(state(last_round_age=30.0), 100) == 70
    assert scrub_due_in(state(last_round_age=130.0), 100) == 0
    assert scrub_due_in(state(round_age=1.0, last_round_age=30.0), 100) == 0


def test_who_hears_nothing_of_half_the_nodes_is_cut_off_itself() -> None:
    assert not cut_off(3, 1)
    assert not cut_off(1000, 499)
    assert all(cut_off(asked, silent) for asked, silent in ((1, 1), (2, 1), (4, 2)))


def test_a_clock_is_in_doubt_beyond_a_minute() -> None:
    assert not clock_in_doubt(1000, 1000, 1001)
    assert not clock_in_doubt(1000 - CLOCK_LIMIT_S, 1000, 1001)
    assert not clock_in_doubt(1001 + CLOCK_LIMIT_S, 1000, 1001)
    assert clock_in_doubt(1000 - CLOCK_LIMIT_S - 1, 1000, 1001)
    assert clock_in_doubt(1002 + CLOCK_LIMIT_S, 1000, 1001)


def test_only_what_the_page_covers_can_be_absent_from_it() -> None:
    ids = [FragmentId(UUID(int=n), 0) for n in range(6)]
    assert absent({ids[0], ids[2]}, ids, UUID(int=3)) == [ids[1], ids[3]]
    assert absent({ids[0], ids[2]}, ids, None) == [ids[1], ids[3], ids[4], ids[5]]
    assert absent({ids[1]}, [FragmentId(ids[1].slice, 4)], None) == [FragmentId(ids[1].slice, 4)]


def test_a_scrub_takes_half_its_period_within_its_cap() -> None:
    assert scrub_pace(used=10**12, period=10**6, cap=10**9) == 2 * 10**6
    assert scrub_pace(used=10**12, period=10**6, cap=10**6) == 10**6
    assert scrub_pace(used=0, period=10**6, cap=10**9) == LEAST_SCRUB_RATE
    assert scrub_pace(used=10**12, period=10**6, cap=0) == 0, "no limit stays none"
