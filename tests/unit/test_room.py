"""How much fits: against a cluster that is filled byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distfs.room import FRAGMENT_OVERHEAD, fits, room, share_of, size_of, width_for

FREE = st.lists(st.integers(0, 6), min_size=1, max_size=6)
DEMANDS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=3)


def can_be_dealt(free: list[int], demands: list[tuple[int, int]]) -> bool:
    """Byte by byte, the widest demands first, to the nodes with the most room: if this fails nothing works."""
    left = sorted(free)
    for width, share in sorted(demands, reverse=True):
        for _ in range(share):
            left.sort()
            if width > len(left) or left[-width] == 0:
                return False
            for i in range(len(left) - width, len(left)):
                left[i] -= 1
    return True


@given(FREE, DEMANDS)
def test_what_fits_is_what_can_be_dealt(free: list[int], demands: list[tuple[int, int]]) -> None:
    assert fits(free, demands) == can_be_dealt(free, demands)


@given(
    FREE,
    st.dictionaries(st.integers(1, 5), st.integers(0, 5), max_size=2),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_room_is_the_largest_share_that_fits(
    free: list[int], demands: dict[int, int], fewest: int, more: int
) -> None:
    width = fewest + more
    share = room(free, demands, width, fewest)
    assert share == 0 or width_for(free, demands, width, fewest, share) >= fewest
    assert not width_for(free, demands, width, fewest, share + 1)


@given(FREE, st.integers(1, 4), st.integers(0, 3))
def test_what_is_promised_on_fewer_nodes_is_there_after_the_others_are_full(
    free: list[int], fewest: int, more: int
) -> None:
    """A service writes as many fragments as it finds nodes for: that must not eat what it promised."""
    width = fewest + more
    share = room(free, {}, width, fewest)
    left = sorted(free)
    for _ in range(share):
        left.sort()
        able = min(width, sum(node > 0 for node in left))
        assert able >= fewest
        for i in range(len(left) - able, len(left)):
            left[i] -= 1


@pytest.mark.parametrize(
    ("free", "width", "fewest", "share"),
    [
        ([100, 100, 100], 2, 2, 150),
        ([100, 1, 1], 2, 2, 2),
        ([100], 2, 2, 0),
        ([], 2, 2, 0),
        ([10, 10, 0], 3, 2, 10),
        ([50, 50], 1, 1, 100),
    ],
)
def test_two_copies_need_two_nodes(free: list[int], width: int, fewest: int, share: int) -> None:
    assert room(free, {}, width, fewest) == share


def test_what_is_promised_is_not_promised_again() -> None:
    free = [100, 100, 100]
    assert room(free, {2: 100}, 2, 2) == 50
    assert room(free, {2: 150}, 2, 2) == 0
    assert room(free, {3: 50}, 2, 2) == 75


def test_a_promise_wider_than_the_nodes_that_are_left_still_counts() -> None:
    assert room([100, 100], {3: 60}, 2, 2) == 40


@given(st.integers(0, 10**12), st.integers(1, 8), st.integers(20, 30))
def test_the_size_that_is_said_to_fit_does(share: int, k: int, exponent: int) -> None:
    slice_size = 1 << exponent
    size = size_of(share, k, slice_size)
    assert size == 0 or share_of(size, k, slice_size) <= share
    assert size == 0 or share - share_of(size, k, slice_size) <= 2 * FRAGMENT_OVERHEAD
