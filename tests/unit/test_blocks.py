"""Blocks: counted, shared, given back once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from distfs.deadline import Deadline
from distfs.errors import Cancelled, DistfsError, TooSlow, Unavailable
from distfs.transfer.blocks import BlockPool, PoolUsage


def test_no_more_blocks_are_out_than_the_limit() -> None:
    pool = BlockPool(16, 2)
    first, second = pool.take(Deadline(5)), pool.take(Deadline(5))
    assert len(first.view) == len(second.view) == 16
    with pytest.raises((Unavailable, TooSlow)):
        pool.take(Deadline(0.02))
    first.release()
    third = pool.take(Deadline(5))
    assert third.view.obj is first.view.obj, "buffers are reused"
    third.release()
    second.release()


def test_a_block_of_another_size_is_counted_by_its_bytes_and_not_kept() -> None:
    pool = BlockPool(16, 3)
    odd = pool.take(Deadline(5), size=40)
    assert len(odd.view) == 40
    with pytest.raises((Unavailable, TooSlow)):
        pool.take(Deadline(0.01))
    odd.release()
    usage = pool.usage()
    assert (usage.blocks, usage.idle) == (0, 0)
    huge = pool.take(Deadline(5), size=100)  # alone it gets it
    huge.release()
    blocks = [pool.take(Deadline(5)) for _ in range(3)]
    assert {len(block.view) for block in blocks} == {16}
    for block in blocks:
        block.release()


def test_a_deadline_that_has_passed_is_told() -> None:
    pool = BlockPool(16, 1)
    block = pool.take(Deadline(5))
    with pytest.raises(TooSlow):
        pool.take(Deadline(0))
    block.release()


def test_the_last_holder_gives_the_block_back() -> None:
    pool = BlockPool(16, 1)
    freed: list[int] = []
    block = pool.take(Deadline(5), lambda: freed.append(1))
    block.hold(2)
    for _ in range(2):
        block.release()
        assert freed == []
        with pytest.raises(DistfsError):
            pool.take(Deadline(0.005))
    block.release()
    assert freed == [1]
    pool.take(Deadline(5)).release()


def test_a_block_is_cut_to_its_bytes_and_whole_again_for_the_next() -> None:
    pool = BlockPool(16, 1)
    block = pool.take(Deadline(5))
    block.cut(3)
    assert len(block.view) == 3
    block.release()
    again = pool.take(Deadline(5))
    assert len(again.view) == 16
    again.release()


def test_who_waits_gets_the_block_that_comes_free() -> None:
    pool = BlockPool(16, 1)
    block = pool.take(Deadline(5))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.take, Deadline(30))
        while not pool.usage().waiting:
            assert not waiting.done()
        assert pool.usage().waiting == 1
        block.release()
        taken = waiting.result()
    assert taken.view.obj is block.view.obj
    taken.release()


def test_who_gives_up_just_as_a_block_comes_free_does_not_lose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wake-up of a waiter whose time is over was another's: it takes the block rather than forget it."""
    pool = BlockPool(16, 1)
    block = pool.take(Deadline(5))
    waits = pool._condition.wait

    def wait_in_vain(_: float) -> bool:
        """Its time passes; before it has the lock again, a block comes free."""
        assert not waits(0.001)
        pool._free.append(block._buffer)
        return False

    monkeypatch.setattr(pool._condition, "wait", wait_in_vain)
    taken = pool.take(Deadline(30))
    assert taken.view.obj is block.view.obj


def test_many_threads_share_few_blocks() -> None:
    pool = BlockPool(8, 3)
    out, most = 0, 0
    lock = threading.Lock()

    def use(_: int) -> None:
        nonlocal out, most
        block = pool.take(Deadline(30))
        with lock:
            out += 1
            most = max(most, out)
        block.hold()
        block.release()
        with lock:
            out -= 1
        block.release()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(use, range(400)))
    assert 1 <= most <= 3
    assert out == 0


def test_a_lent_buffer_comes_back() -> None:
    pool = BlockPool(16, 1)
    with pool.lent(Deadline(5)) as view:
        assert len(view) == 16
    with pytest.raises(RuntimeError), pool.lent(Deadline(5)):
        raise RuntimeError
    pool.take(Deadline(5)).release()


# --- spools borrow from the same bytes --------------------------------------------------------------


def test_spools_get_half_of_the_pool_and_blocks_the_rest() -> None:
    pool = BlockPool(16, 4)
    assert pool.borrow(32)
    assert not pool.borrow(1), "the other half is for blocks: a spool's upload needs some to end"
    blocks = [pool.take(Deadline(5)) for _ in range(2)]
    with pytest.raises((Unavailable, TooSlow)):
        pool.take(Deadline(0.02))
    assert pool.usage() == PoolUsage(limit=64, blocks=32, idle=0, spooled=32, most=64, waiting=0)
    for block in blocks:
        block.release()


def test_a_spool_takes_the_memory_of_blocks_that_nobody_uses() -> None:
    pool = BlockPool(16, 2)
    blocks = [pool.take(Deadline(5)) for _ in range(2)]
    assert not pool.borrow(1), "all of it is in use"
    for block in blocks:
        block.release()
    assert pool.borrow(10)
    usage = pool.usage()
    assert (usage.blocks, usage.idle, usage.spooled) == (0, 16, 10), "one block made way, one is kept"
    pool.repay(10)
    assert pool.usage().spooled == 0


def test_who_waits_for_a_block_gets_what_a_spool_gives_back() -> None:
    pool = BlockPool(16, 2)
    assert pool.borrow(16)
    held = pool.take(Deadline(5))
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(pool.take, Deadline(20))
        while not pool.usage().waiting:
            assert not waiting.done()
        pool.repay(16)
        waiting.result().release()
    held.release()
    assert pool.usage().waiting == 0


def test_who_came_first_is_served_first_and_nobody_passes_by() -> None:
    pool, order = BlockPool(16, 1), list[int]()
    held = pool.take(Deadline(30))

    def wait(number: int) -> None:
        block = pool.take(Deadline(30))
        order.append(number)
        block.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while pool.usage().waiting <= number:
            threading.Event().wait(0.001)
    held.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_what_cells_take_beside_their_block_counts_as_long_as_it_is_held() -> None:
    pool = BlockPool(16, 4)
    first = pool.take(Deadline(5), beside=24)
    assert pool.usage().blocks == 40
    assert not pool.borrow(25)
    with pytest.raises((Unavailable, TooSlow)):
        pool.take(Deadline(0.02), beside=16)
    second = pool.take(Deadline(5), beside=8)
    first.release()
    third = pool.take(Deadline(5), beside=16)
    second.release()
    third.release()
    assert pool.usage().blocks == 0
    huge = pool.take(Deadline(5), beside=1000)
    huge.release()
    assert pool.usage().blocks == 0


def test_who_is_cancelled_leaves_the_line_at_once_and_the_next_gets_the_block() -> None:
    pool = BlockPool(16, 1)
    held = pool.take(Deadline(5))
    with ThreadPoolExecutor(2) as threads, Deadline(60).scope() as scope:
        cancelled = threads.submit(pool.take, scope)
        while pool.usage().waiting < 1:
            threading.Event().wait(0.001)
        behind = threads.submit(pool.take, Deadline(60))
        while pool.usage().waiting < 2:
            threading.Event().wait(0.001)
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled):
            cancelled.result(10)
        assert not behind.done()
        held.release()
        behind.result(10).release()
    assert (pool.usage().waiting, pool.usage().blocks) == (0, 0)
