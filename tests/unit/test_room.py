"""How much fits: against a cluster that is filled byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.limits.room import FRAGMENT_OVERHEAD, Disk, fits, room, share_of, size_of, width_for

DISKS = st.lists(st.builds(Disk, st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=4)
DEMANDS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=2)


def each(*free: int) -> list[Disk]:
    """Nodes with a disk of their own."""
    return [Disk(one) for one in free]


@cache
def can_be_dealt(disks: tuple[Disk, ...], demands: tuple[tuple[int, int], ...]) -> bool:
    """Byte by byte, in every way there is: each demand's next byte goes to ``width`` different nodes."""
    open_demands = tuple((width, share) for width, share in demands if share)
    if not open_demands:
        return True
    (width, share), *others = open_demands
    after = ((width, share - 1), *others)
    return any(can_be_dealt(left, after) for left in set(dealt(disks, width)))


def dealt(disks: tuple[Disk, ...], width: int) -> Iterator[tuple[Disk, ...]]:
    """What is left of the disks after ``width`` of their nodes got a byte."""
    if not disks:
        if not width:
            yield ()
        return
    first, *others = disks
    for taken in range(min(first.free, first.nodes, width) + 1):
        for left in dealt(tuple(others), width - taken):
            yield tuple(sorted((Disk(first.free - taken, first.nodes), *left)))


@given(DISKS, DEMANDS)
def test_what_fits_is_what_can_be_dealt(disks: list[Disk], demands: list[tuple[int, int]]) -> None:
    assert fits(disks, demands) == can_be_dealt(tuple(sorted(disks)), tuple(demands))


@given(
    DISKS,
    st.dictionaries(st.integers(1, 5), st.integers(0, 5), max_size=2),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_room_is_the_largest_share_that_fits(
    disks: list[Disk], demands: dict[int, int], fewest: int, more: int
) -> None:
    width = fewest + more
    share = room(disks, demands, width, fewest)
    assert share == 0 or width_for(disks, demands, width, fewest, share) >= fewest
    assert not width_for(disks, demands, width, fewest, share + 1)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 3))
def test_what_is_promised_on_fewer_nodes_is_there_after_the_others_are_full(
    free: list[int], fewest: int, more: int
) -> None:
    """A service writes as many fragments as it finds nodes for: that must not eat what it promised."""
    width = fewest + more
    share = room(each(*free), {}, width, fewest)
    left = sorted(free)
    for _ in range(share):
        left.sort()
        able = min(width, sum(node > 0 for node in left))
        assert able >= fewest
        for i in range(len(left) - able, len(left)):
            left[i] -= 1


@pytest.mark.parametrize(
    ("disks", "width", "fewest", "share"),
    [
        (each(100, 100, 100), 2, 2, 150),
        (each(100, 1, 1), 2, 2, 2),
        (each(100), 2, 2, 0),
        ([], 2, 2, 0),
        (each(10, 10, 0), 3, 2, 10),
        (each(50, 50), 1, 1, 100),
        ([Disk(100, 3)], 2, 2, 50),
        ([Disk(100, 2), Disk(10)], 2, 2, 55),
        ([Disk(100, 2), Disk(10)], 3, 2, 50),
        ([Disk(100, 2), Disk(1000)], 2, 2, 100),
    ],
)
def test_two_copies_need_two_nodes(disks: list[Disk], width: int, fewest: int, share: int) -> None:
    assert room(disks, {}, width, fewest) == share


def test_what_is_promised_is_not_promised_again() -> None:
    disks = each(100, 100, 100)
    assert room(disks, {2: 100}, 2, 2) == 50
    assert room(disks, {2: 150}, 2, 2) == 0
    assert room(disks, {3: 50}, 2, 2) == 75
    assert room([Disk(300, 3)], {2: 100}, 2, 2) == 50


def test_a_promise_wider_than_the_nodes_that_are_left_still_counts() -> None:
    assert room(each(100, 100), {3: 60}, 2, 2) == 40


@given(st.integers(0, 10**12), st.integers(1, 8), st.integers(20, 30))
def test_the_size_that_is_said_to_fit_does(share: int, k: int, exponent: int) -> None:
    slice_size = 1 << exponent
    size = size_of(share, k, slice_size)
    assert size == 0 or share_of(size, k, slice_size) <= share
    assert size == 0 or share - share_of(size, k, slice_size) <= 2 * FRAGMENT_OVERHEAD
