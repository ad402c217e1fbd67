"""Placement: pure arithmetic, so tested with many seeds and shapes of cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.errors import Full, Unavailable
from distfs.model import Address, Node
from distfs.transfer.placement import Placement, shares, zoned_shares

GIB = 1 << 30
MIB = 1 << 20


def node(number: int, free: int = 100 * GIB, zone: str = "", disk: str = "") -> Node:
    address = Address("127.0.0.1", 9000 + number)
    return Node(number, UUID(int=number), address, zone, 1 << 50, free, "active", True, 0.5, disk=disk)


def place_many(placement: Placement, nodes: list[Node], count: int, width: int = 2) -> Counter[int]:
    """How many fragments each node got; each is stored before the next slice."""
    got: Counter[int] = Counter()
    for _ in range(count):
        chosen = placement.place(nodes, width, 32 * MIB, width)
        assert len(set(chosen)) == width, "never two fragments of a slice on one node"
        got.update(chosen)
        for each in chosen:
            placement.landed([each], 32 * MIB)
    return got


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("seed", range(25))
def test_equal_nodes_differ_by_less_than_a_tenth_after_300_slices(seed: int, width: int) -> None:
    nodes = [node(n) for n in (1, 2, 3)]
    got = place_many(Placement(Random(seed)), nodes, 300, width)
    assert max(got.values()) - min(got.values()) < 0.1 * max(got.values()), got


@pytest.mark.parametrize("seed", range(10))
def test_an_emptier_node_gets_more_in_proportion(seed: int) -> None:
    nodes = [node(1, 100 * GIB), node(2, 200 * GIB), node(3, 300 * GIB), node(4, 400 * GIB)]
    got = place_many(Placement(Random(seed)), nodes, 500, 1)
    for number in (1, 2, 3, 4):
        assert abs(got[number] - 50 * number) <= 10, got


@pytest.mark.parametrize("seed", range(5))
def test_two_nodes_on_one_disk_get_together_what_another_disk_gets(seed: int) -> None:
    nodes = [node(1, disk="a"), node(2, disk="a"), node(3), node(4)]
    got = place_many(Placement(Random(seed)), nodes, 300, 1)
    assert abs(got[1] + got[2] - 100) <= 10, got
    assert abs(got[3] - 100) <= 10, got


def test_bytes_in_flight_to_a_disk_count_for_all_its_nodes() -> None:
    nodes = [node(n, 100 * MIB, disk="a") for n in (1, 2, 3)]
    placement = Placement()
    placement.place(nodes, 2, 40 * MIB, 2)
    with pytest.raises(Full):
        placement.place(nodes, 2, 40 * MIB, 2)


@pytest.mark.parametrize("seed", range(5))
def test_a_node_larger_than_all_others_gets_one_fragment_of_every_slice(seed: int) -> None:
    nodes = [node(1, 900 * GIB), node(2, 10 * GIB), node(3, 10 * GIB)]
    got = place_many(Placement(Random(seed)), nodes, 200)
    assert got[1] >= 198
    assert abs(got[2] - got[3]) <= 10


@pytest.mark.parametrize("seed", range(5))
def test_different_pairs_of_nodes_meet(seed: int) -> None:
    """So that the loss of one node is repaired from many."""
    nodes = [node(n) for n in range(1, 7)]
    placement = Placement(Random(seed))
    pairs = Counter(tuple(sorted(placement.place(nodes, 2, MIB, 2))) for _ in range(600))
    assert len(pairs) == 15


@pytest.mark.parametrize("seed", range(5))
def test_fragments_are_spread_over_zones(seed: int) -> None:
    nodes = [node(n, zone="abc"[n % 3]) for n in range(1, 10)]
    zone = {n.id: n.zone for n in nodes}
    placement = Placement(Random(seed))
    for width, most in ((2, 1), (3, 1), (6, 2), (8, 3)):
        for _ in range(50):
            chosen = placement.place(nodes, width, MIB, width)
            assert len(set(chosen)) == width
            assert max(Counter(zone[c] for c in chosen).values()) <= most


def test_zones_of_different_sizes_are_used_as_far_as_they_go() -> None:
    nodes = [node(1, zone="a"), *(node(n, zone="b") for n in (2, 3, 4))]
    chosen = Placement(Random(1)).place(nodes, 4, MIB, 4)
    assert sorted(chosen) == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(5))
def test_a_new_node_in_a_crowded_zone_is_used_at_once(seed: int) -> None:
    """What the others in its zone were due and never got, since the other zone is small, is not owed to them."""
    placement = Placement(Random(seed))
    nodes = [node(1, zone="a"), node(2, zone="b"), node(3, zone="b")]
    place_many(placement, nodes, 2000)
    nodes.append(node(4, zone="b"))
    got = place_many(placement, nodes, 300)
    assert got[1] == 300
    for number in (2, 3, 4):
        assert abs(got[number] - 100) < 15, got


@pytest.mark.parametrize("seed", range(5))
def test_shares_within_a_zone_follow_free_bytes(seed: int) -> None:
    nodes = [node(1, zone="a"), node(2, 300 * GIB, "b"), node(3, 100 * GIB, "b"), node(4, zone="c")]
    got = place_many(Placement(Random(seed)), nodes, 400, 3)
    assert got[1] == got[4] == 400
    assert abs(got[2] - 300) < 15, got


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.sampled_from(["", "a", "b", "c"])), min_size=1, max_size=10),
    st.integers(1, 6),
    st.integers(0, 1 << 32),
)
def test_what_a_node_got_and_what_it_was_due_never_drift_apart(
    shape: list[tuple[int, str]], width: int, seed: int
) -> None:
    random = Random(seed)
    nodes = [node(n, free * GIB, zone) for n, (free, zone) in enumerate(shape, 1)]
    weights: dict[str, dict[int, float]] = {}
    for each in nodes:
        weights.setdefault(each.zone, {})[each.id] = each.free
    width = min(width, len(nodes))
    due = {each: share for inside in zoned_shares(weights, width).values() for each, share in inside.items()}
    placement, got = Placement(random), Counter[int]()
    for count in range(1, 121):
        got.update(placement.place(nodes, width, 0, width))
        if random.random() < 0.1:  # the list was read again
            nodes = [replace(each, heartbeat_age=count) for each in nodes]
    assert max(abs(got[each] - 120 * due[each]) for each in due) < 4, (got, due)


# --- who may be chosen --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"alive": False}, {"state": "draining"}, {"state": "readonly"}, {"free": MIB - 1}, {"free": 0}]
)
def test_a_node_that_cannot_take_it_is_never_chosen(change: dict[str, object]) -> None:
    nodes = [node(1), node(2), replace(node(3), **change)]  # type: ignore[arg-type]
    placement = Placement(Random(1))
    for _ in range(30):
        assert sorted(placement.place(nodes, 2, MIB, 2)) == [1, 2]


def test_too_few_nodes_are_told_in_words() -> None:
    nodes = [node(1), replace(node(2), alive=False), node(3, free=10)]
    with pytest.raises(Unavailable) as caught:
        Placement().place(nodes, 2, MIB, 2)
    for words in (
        "2 storage nodes",
        "1 can",
        "3 known",
        "2 up",
        "start those that are down, or more: python -m distfs.storage_server",
    ):
        assert words in str(caught.value)
    with pytest.raises(Unavailable, match="0 known"):
        Placement().place([], 2, MIB, 2)


def test_a_refused_slice_counts_for_nothing() -> None:
    placement = Placement(Random(1))
    for _ in range(10):
        with pytest.raises(Unavailable):
            placement.place([node(1)], 2, MIB, 2)
    assert placement._in_flight == {}
    assert placement._credit == {}


def test_fewer_nodes_than_fragments_are_enough_when_the_caller_says_so() -> None:
    nodes = [node(1), node(2), node(3)]
    assert sorted(Placement().place(nodes, 6, MIB, 3)) == [1, 2, 3]
    with pytest.raises(Unavailable, match="5 storage nodes"):
        Placement().place(nodes, 6, MIB, 5)


def test_bytes_in_flight_count_until_they_landed() -> None:
    placement = Placement(Random(1))
    nodes = [node(1, free=10 * MIB), node(2, free=10 * MIB)]
    for _ in range(10):
        placement.place(nodes, 2, MIB, 2)
    with pytest.raises(Unavailable):
        placement.place(nodes, 2, MIB, 2)
    for number in (1, 2):
        placement.landed([number], MIB)
    placement.place(nodes, 2, MIB, 2)
    with pytest.raises(Unavailable):
        placement.place(nodes, 2, MIB, 2)


def test_bytes_in_flight_steer_the_next_slices_elsewhere() -> None:
    placement = Placement(Random(1))
    nodes = [node(1, free=100 * MIB), node(2, free=100 * MIB), node(3, free=100 * MIB)]
    placement.place(nodes[:2], 2, 60 * MIB, 2)
    got = place_many(placement, [replace(n, free=n.free) for n in nodes], 60)
    assert got[3] > got[1]
    assert got[3] > got[2]


@given(
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from("xyz")), min_size=1, max_size=6),
    st.integers(0, 1 << 32),
)
def test_every_node_is_given_what_it_has_room_for_and_no_more(
    shape: list[tuple[int, str]], seed: int
) -> None:
    """Whatever was placed and landed before, and of whatever sizes."""
    random = Random(seed)
    nodes = [node(n, free, disk=disk if free % 2 else "") for n, (free, disk) in enumerate(shape, 1)]
    disk = {n.id: n.disk_key for n in nodes}
    placement = Placement(random)
    in_flight: list[tuple[int, int]] = []
    for _ in range(60):
        if in_flight and random.random() < 0.5:
            id, size = in_flight.pop(random.randrange(len(in_flight)))
            placement.landed([id], size)
            continue
        size, width = random.randrange(30), random.randint(1, 3)
        taken = Counter[str]()
        for id, bytes_there in in_flight:
            taken[disk[id]] += bytes_there
        able = {n.id for n in nodes if n.free - taken[n.disk_key] >= max(1, size)}
        if not able:
            with pytest.raises(Unavailable):
                placement.place(nodes, width, size, 1)
            continue
        chosen = placement.place(nodes, width, size, 1)
        assert len(chosen) == min(width, len(able))
        assert set(chosen) <= able
        in_flight.extend((id, size) for id in chosen)


def test_what_landed_twice_is_not_counted_below_nothing() -> None:
    placement = Placement(Random(1))
    nodes = [node(1, free=2 * MIB)]
    placement.landed([1], 5 * MIB)
    placement.place(nodes, 1, 2 * MIB, 1)
    with pytest.raises(Unavailable):
        placement.place(nodes, 1, MIB, 1)


def test_a_fragment_of_no_bytes_is_placed_too() -> None:
    assert Placement(Random(1)).place([node(1, free=1)], 1, 0, 1) == [1]
    with pytest.raises(Unavailable):
        Placement(Random(1)).place([node(1, free=0)], 1, 0, 1)


# --- shares ---------------------------------------------------------------------------------------------------

weights = st.dictionaries(st.integers(1, 50), st.floats(0, 1e15), min_size=1, max_size=12)


@given(weights, st.data())
def test_shares_sum_to_the_width_and_none_is_over_one(
    given_weights: dict[int, float], data: st.DataObject
) -> None:
    width = data.draw(st.integers(1, len(given_weights)))
    due = shares(given_weights, width)
    assert set(due) == set(given_weights)
    assert sum(due.values()) == pytest.approx(width)
    assert all(-1e-9 <= each <= 1 + 1e-9 for each in due.values())


@given(weights, st.data())
def test_who_has_more_is_never_due_less(given_weights: dict[int, float], data: st.DataObject) -> None:
    width = data.draw(st.integers(1, len(given_weights)))
    due = shares(given_weights, width)
    ranked = sorted(given_weights, key=lambda each: given_weights[each])
    for less, more in pairwise(ranked):
        assert due[less] <= due[more] + 1e-9


def test_what_exceeds_one_fragment_goes_to_the_others_in_proportion() -> None:
    assert shares({1: 900.0, 2: 30.0, 3: 10.0}, 2) == pytest.approx({1: 1.0, 2: 0.75, 3: 0.25})
    assert shares({1: 1.0, 2: 1.0, 3: 1.0}, 2) == pytest.approx({1: 2 / 3, 2: 2 / 3, 3: 2 / 3})
    assert shares({1: 5.0, 2: 1.0}, 2) == {1: 1.0, 2: 1.0}
    assert shares({1: 0.0, 2: 0.0}, 1) == {1: 0.5, 2: 0.5}
