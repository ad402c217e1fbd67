"""A bounded pool of connections: reuse, order, ages, and nothing broken lent twice."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import pytest

from distfs.deadline import Deadline
from distfs.errors import Busy, Cancelled, NodeUnavailable
from distfs.process.connection_pool import JUST_S, ConnectionPool, Limits
from tests.contract.litter import eventually

LIMITS = Limits(most=2, idle=2, idle_s=60, age_s=600, setting="peers.max_connections")


@dataclass(eq=False)
class Line:
    """A connection that is as it is told to be."""

    idle: bool = True
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


@dataclass
class Maker:
    """Makes them, and keeps the clock. ``errors`` are raised in turn, first."""

    now: float = 0.0
    made: list[Line] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def connect(self, deadline: Deadline) -> Line:
        if self.errors:
            raise self.errors.pop(0)
        self.made.append(Line())
        return self.made[-1]

    def pool(self, **limits: float) -> ConnectionPool[Line]:
        return ConnectionPool("peer", self.connect, replace(LIMITS, **limits), lambda: self.now)  # type: ignore[arg-type]


def soon() -> Deadline:
    return Deadline(20)


def waiting(pool: ConnectionPool[Line], count: int) -> None:
    eventually(lambda: pool.snapshot().waiting == count, f"{count} wait")


class Taker(threading.Thread):
    """Takes one from a thread of its own."""

    def __init__(self, pool: ConnectionPool[Line], deadline: Deadline | None = None) -> None:
        super().__init__()
        self._pool, self._deadline = pool, deadline or soon()
        self.got: tuple[Line, bool] | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.got = self._pool.take(self._deadline)
        except Exception as e:  # noqa: BLE001 - shown to the test
            self.error = e


def test_what_is_given_back_is_lent_again_the_last_first() -> None:
    maker = Maker()
    pool = maker.pool()
    one, used = pool.take(soon())
    two, _ = pool.take(soon())
    assert not used
    pool.give_back(one)
    pool.give_back(two)
    assert pool.take(soon()) == (two, True)
    assert pool.take(soon()) == (one, True)
    assert len(maker.made) == 2
    assert pool.snapshot().reused == 2


def test_a_stale_one_is_closed_and_a_fresh_one_made() -> None:
    maker = Maker()
    pool = maker.pool()
    old, _ = pool.take(soon())
    pool.give_back(old)
    old.idle = False  # the peer's goodbye can be read
    new, used = pool.take(soon())
    assert (new is old, used) == (False, False)
    assert old.closed
    state = pool.snapshot()
    assert (state.stale, state.lent, state.idle) == (1, 1, 0)


def test_one_that_was_just_used_is_lent_without_a_look() -> None:
    maker = Maker()
    pool = maker.pool()
    assert pool.lend() is None
    line, _ = pool.take(soon())
    assert pool.lend() is None
    pool.give_back(line)
    line.idle = False  # who asks so can do without it
    assert pool.lend() is line
    state = pool.snapshot()
    assert (state.lent, state.reused, state.stale) == (1, 1, 0)
    pool.give_back(line)
    maker.now += JUST_S
    assert pool.lend() is None
    assert pool.take(soon())[0] is not line, "it was looked at"


def test_one_that_is_too_old_is_not_lent_though_it_was_just_used() -> None:
    maker = Maker()
    pool = maker.pool(age_s=10)
    line, _ = pool.take(soon())
    maker.now = 9.99
    pool.give_back(line)
    maker.now = 10.0
    assert pool.lend() is None


def test_one_that_proves_stale_in_use_keeps_its_place() -> None:
    maker = Maker()
    pool = maker.pool(most=1)
    old, _ = pool.take(soon())
    new = pool.replace(old, soon())
    assert old.closed
    assert pool.snapshot().lent == 1
    pool.give_back(new)
    assert pool.take(soon()) == (new, True)


@pytest.mark.parametrize(("passes", "age"), [(61.0, 600), (11.0, 10)])
def test_one_too_long_idle_or_too_old_is_not_lent_again(passes: float, age: float) -> None:
    maker = Maker()
    pool = maker.pool(age_s=age)
    old, _ = pool.take(soon())
    pool.give_back(old)
    maker.now += passes
    new, used = pool.take(soon())
    assert not used
    assert old.closed
    assert pool.snapshot().expired == 1
    assert new is not old


def test_one_that_comes_back_too_old_is_closed() -> None:
    maker = Maker()
    pool = maker.pool(age_s=10)
    old, _ = pool.take(soon())
    maker.now += 11
    pool.give_back(old)
    assert old.closed
    assert pool.snapshot() == replace(pool.snapshot(), lent=0, idle=0, expired=1)


def test_tidying_closes_what_nobody_asks_for() -> None:
    maker = Maker()
    pool = maker.pool()
    line, _ = pool.take(soon())
    pool.give_back(line)
    pool.tidy()
    assert line.closed == 0
    maker.now += 61
    pool.tidy()
    assert line.closed
    assert pool.snapshot().idle == 0


def test_no_more_are_kept_idle_than_allowed() -> None:
    maker = Maker()
    pool = maker.pool(most=5, idle=1)
    lines = [pool.take(soon())[0] for _ in range(3)]
    for line in lines:
        pool.give_back(line)
    assert [line.closed for line in lines] == [0, 1, 1]
    assert pool.snapshot().idle == 1


def test_those_who_wait_are_served_in_order() -> None:
    maker = Maker()
    pool = maker.pool(most=1)
    line, _ = pool.take(soon())
    takers = []
    for number in range(1, 5):
        takers.append(Taker(pool))
        waiting(pool, number)
    for number, taker in enumerate(takers):
        pool.give_back(line)
        taker.join()
        assert taker.got == (line, True)
        waiting(pool, 3 - number)
    assert len(maker.made) == 1
    assert pool.snapshot().waited == 4


def test_a_discarded_one_makes_room_for_who_waits() -> None:
    maker = Maker()
    pool = maker.pool(most=1)
    line, _ = pool.take(soon())
    taker = Taker(pool)
    waiting(pool, 1)
    pool.discard(line)
    taker.join()
    assert taker.got == (maker.made[1], False)
    assert line.closed
    assert pool.snapshot().lent == 1


def test_a_failed_connect_makes_room_for_who_waits() -> None:
    maker = Maker()
    pool = maker.pool(most=1)
    line, _ = pool.take(soon())
    first, second = Taker(pool), None
    waiting(pool, 1)
    second = Taker(pool)
    waiting(pool, 2)
    maker.errors.append(NodeUnavailable("refused"))
    pool.discard(line)
    first.join()
    second.join()
    assert isinstance(first.error, NodeUnavailable)
    assert second.got is not None
    assert pool.snapshot().lent == 1


def test_who_waits_in_vain_is_told_what_to_change_and_leaves_the_line() -> None:
    maker = Maker()
    pool = maker.pool(most=1)
    line, _ = pool.take(soon())
    with pytest.raises(Busy, match="max_connections"):
        pool.take(Deadline(0.01))
    state = pool.snapshot()
    assert (state.waiting, state.waited, state.gave_up) == (0, 1, 1)
    pool.give_back(line)
    assert pool.take(soon()) == (line, True)


def test_a_cancelled_request_leaves_the_line_at_once() -> None:
    maker = Maker()
    pool = maker.pool(most=1)
    line, _ = pool.take(soon())
    with soon().scope() as scope:
        taker = Taker(pool, scope)
        waiting(pool, 1)
        scope.cancel("given up")
        taker.join()
    assert isinstance(taker.error, Cancelled)
    waiting(pool, 0)
    pool.give_back(line)
    assert pool.snapshot().idle == 1


def test_a_broken_one_is_never_lent_again() -> None:
    maker = Maker()
    pool = maker.pool()
    line, _ = pool.take(soon())
    pool.discard(line)
    pool.give_back(line)  # a mistake of the caller's
    pool.discard(line)
    assert pool.snapshot() == replace(pool.snapshot(), lent=0, idle=0, broken=1)
    assert pool.take(soon())[0] is not line


def test_a_closed_pool_keeps_nothing() -> None:
    maker = Maker()
    pool = maker.pool()
    lent, _ = pool.take(soon())
    idle, _ = pool.take(soon())
    pool.give_back(idle)
    pool.close()
    assert idle.closed
    assert lent.closed == 0
    pool.give_back(lent)
    assert lent.closed
    assert pool.snapshot() == replace(pool.snapshot(), lent=0, idle=0)


def test_many_threads_never_have_more_than_allowed_nor_the_same_one() -> None:
    maker = Maker()
    pool = maker.pool(most=3, idle=1)
    lock = threading.Lock()
    out: set[Line] = set()
    most = 0

    def work(number: int) -> None:
        nonlocal most
        for turn in range(200):
            line, _ = pool.take(soon())
            with lock:
                assert line not in out
                assert not line.closed
                out.add(line)
                most = max(most, len(out))
            with lock:
                out.remove(line)
            if (number + turn) % 7:
                pool.give_back(line)
            else:
                pool.discard(line)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = pool.snapshot()
    assert most <= 3
    assert (state.lent, state.waiting) == (0, 0)
    assert state.made + state.reused == 1600
    assert sum(not line.closed for line in maker.made) == state.idle
