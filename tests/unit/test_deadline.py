"""Deadlines: arithmetic on a clock."""

from __future__ import annotations

import threading

import pytest

from distfs.deadline import Deadline, Scope
from distfs.errors import Cancelled, TooSlow


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_remains_shrinks_until_it_is_too_slow() -> None:
    clock = Clock()
    deadline = Deadline(5, clock)
    assert deadline.remaining() == 5
    clock.now += 4.5
    assert deadline.remaining() == 0.5
    clock.now += 0.5
    with pytest.raises(TooSlow, match=r"reading a block passed its deadline of 5\.0 s"):
        deadline.remaining("reading a block")


def test_bound_is_the_smaller_of_both() -> None:
    clock = Clock()
    deadline = Deadline(5, clock)
    assert deadline.bound(3) == 3
    clock.now += 4
    assert deadline.bound(3) == 1
    clock.now += 1
    with pytest.raises(TooSlow):
        deadline.bound(3)


def test_a_child_never_outlives_its_parent() -> None:
    clock = Clock()
    parent = Deadline(5, clock)
    assert parent.sooner(3).remaining() == 3
    assert parent.sooner(30).remaining() == 5
    clock.now += 6
    child = parent.sooner(30)
    with pytest.raises(TooSlow):
        child.remaining()


def test_no_time_at_all_is_too_slow_at_once() -> None:
    with pytest.raises(TooSlow):
        Deadline(0, Clock()).remaining()


# --- cancelling -----------------------------------------------------------------------------------------------


def test_a_cancelled_scope_gives_no_more_time_to_its_children_and_leaves_its_parent_alone() -> None:
    parent = Deadline(5)
    with parent.scope() as scope:
        child = scope.sooner(3)
        assert child.remaining() > 0
        scope.cancel("the other half failed")
        for each in (scope, child, child.sooner(1)):
            assert each.cancelled
            with pytest.raises(Cancelled, match="the other half failed"):
                each.remaining()
    assert not parent.cancelled
    parent.remaining()


def test_cancelling_a_scope_cancels_those_within() -> None:
    with Deadline(5).scope() as outer, outer.scope() as inner:
        outer.cancel("gone")
        assert inner.cancelled


def test_a_scope_that_has_ended_hears_no_more() -> None:
    with Deadline(5).scope() as outer:
        with outer.scope() as inner:
            pass
        outer.cancel("gone")
        assert not inner.cancelled


def test_who_watches_is_woken_once_and_who_unwatched_never() -> None:
    woken: list[str] = []
    with Deadline(5).scope() as scope:
        scope.watch(lambda: woken.append("watching"))
        scope.watch(lambda: woken.append("unwatched"))()
        scope.cancel("now")
        scope.cancel("again")
        assert woken == ["watching"]
        scope.watch(lambda: woken.append("late"))
        assert woken == ["watching", "late"], "it is too late to begin to wait"


def test_who_unwatches_while_it_is_cancelled_waits_until_it_was_woken() -> None:
    """Else a connection that was given back meanwhile would be shut down under another request."""
    said: list[str] = []
    woken, go_on, scope = threading.Event(), threading.Event(), Scope()

    def wake() -> None:
        woken.set()
        go_on.wait(60)
        said.append("woken")

    def leave() -> None:
        unwatch()
        said.append("left")

    unwatch = scope.watch(wake)
    threads = [threading.Thread(target=scope.cancel, args=["now"]), threading.Thread(target=leave)]
    threads[0].start()
    assert woken.wait(60)
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for each in threads:
        each.join()
    assert said == ["woken", "left"]


def test_a_deadline_without_a_scope_cannot_be_cancelled() -> None:
    deadline = Deadline(5)
    deadline.cancel("nobody hears")
    deadline.watch(lambda: None)()
    assert not deadline.cancelled
    deadline.remaining()


def test_what_is_not_to_be_cancelled_ends_in_time_all_the_same() -> None:
    clock = Clock()
    with Deadline(5, clock).scope() as scope:
        uncancelled = scope.uncancelled()
        scope.cancel("gone")
        assert uncancelled.remaining() == 5
        clock.now += 6
        with pytest.raises(TooSlow):
            uncancelled.remaining()
