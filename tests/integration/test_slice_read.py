"""Reading one slice from stores that break on purpose: the right bytes or an error, never a wrong byte."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from random import Random
from uuid import uuid4

import pytest

from distfs.deadline import Deadline
from distfs.errors import Cancelled, Corrupt, DistfsError, NodeUnavailable, NotFound, TooSlow, Unavailable
from distfs.formats.coding import code_for
from distfs.fragment_store import FragmentStore
from distfs.model import FragmentId, Policy, Slice
from distfs.transfer.rebuild import rebuild
from distfs.transfer.slice_plan import FileIdentity, SlicePlan
from distfs.transfer.slice_read import SliceReader
from distfs.transfer.slice_upload import write_small
from tests.contract.faulty_store import Faults, FaultyStore, NoFaults, PlannedFaults, SeededFaults
from tests.contract.memory_store import MemoryStore
from tests.contract.samples import CLUSTER, FILE, cut, random_bytes, soon

BLOCK = 4096
POLICIES = [Policy(1, 1), Policy(1, 2), Policy(2, 1), Policy(3, 2), Policy(4, 2)]


class Stored:
    """A slice in memory, each fragment in a store of its own that may break."""

    def __init__(self, policy: Policy, size: int, seed: int = 1) -> None:
        self.data = random_bytes(size, seed)
        self.code = code_for(policy)
        self.identity = FileIdentity(CLUSTER, FILE, "name", "text/plain", self.code, BLOCK)
        self.stores = {n: FaultyStore(MemoryStore(uuid4(), CLUSTER)) for n in range(1, policy.width + 1)}
        plan = SlicePlan(self.identity, 0, list(self.stores), size)
        blocks = cut(self.data, BLOCK)
        cells = [plan.cells(memoryview(block)) for block in blocks]
        for index in range(policy.width):
            writer = plan.begin(index, self.store, soon())
            for each in cells:
                entry, cell = each[index]
                writer.write_cell(entry, memoryview(cell))
            writer.finish(size, True)
            writer.commit()
        self.piece: Slice = plan.done()
        self.blocks = blocks

    def store(self, node: int, deadline: Deadline) -> FragmentStore:
        return self.stores[node]

    def break_(self, faults: Mapping[int, Faults]) -> None:
        """By fragment index; from now on. The others are well."""
        for index, store in enumerate(self.stores.values()):
            store.faults = faults.get(index, NoFaults())
            store.calls.clear()

    def reader(self, span: tuple[int, int] | None = None, deadline: Deadline | None = None) -> SliceReader:
        order = range(len(self.stores))
        shape = self.piece, BLOCK, self.code, self.store
        return SliceReader(*shape, order, span or (0, len(self.blocks)), deadline or soon())

    def read(self, span: tuple[int, int] | None = None, ahead: bool = True) -> bytes:
        """All of it, or what an error leaves of it is lost; no reader stays open."""
        buffer = memoryview(bytearray(BLOCK))
        try:
            with contextlib.closing(self.reader(span)) as reader:
                if ahead:
                    reader.open()
                came = b""
                for view in reader.blocks(buffer):
                    came += bytes(view)
                    assert self.data[(span or (0, 0))[0] * BLOCK :].startswith(came), "a wrong byte"
                return came
        finally:
            assert all(store.readers_open == 0 for store in self.stores.values())

    def gets(self, index: int) -> list[tuple[int, int]]:
        """What was asked of a fragment: first cell and count."""
        return [(call[2], call[3]) for call in self.stores[index + 1].calls if call[0] == "get"]


def gone(
    numbers: Collection[int], call: str = "get", kind: type[DistfsError] = NodeUnavailable
) -> PlannedFaults:
    """The calls of these numbers fail."""
    return PlannedFaults(call, numbers, kind)


ALWAYS = range(100)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 6 * BLOCK, 6 * BLOCK + 7])
def test_a_whole_slice_is_read_with_one_request_a_fragment(policy: Policy, size: int) -> None:
    stored = Stored(policy, size)
    stored.break_({})
    assert stored.read() == stored.data
    for index in range(policy.width):
        count = len(stored.blocks)
        assert stored.gets(index) == ([(0, count)] if index < policy.k else [])


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_span_asks_only_for_its_blocks(policy: Policy) -> None:
    stored = Stored(policy, 6 * BLOCK + 7)
    for first in range(7):
        for stop in range(first + 1, 8):
            stored.break_({})
            assert stored.read((first, stop)) == stored.data[first * BLOCK : stop * BLOCK]
            assert stored.gets(0) == [(first, stop - first)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_only_a_bad_cell_is_read_again(policy: Policy) -> None:
    stored = Stored(policy, 6 * BLOCK)
    stored.break_({0: PlannedFaults(flips={2, 4})})
    assert stored.read() == stored.data
    assert stored.gets(0) == [(0, 6)], "the stream goes on after a bad cell"
    assert stored.gets(policy.k) == [(2, 1), (4, 1)]


@pytest.mark.parametrize("policy", [p for p in POLICIES if p.m > 1], ids=str)
def test_as_many_bad_cells_of_a_block_as_there_is_parity(policy: Policy) -> None:
    stored = Stored(policy, 5 * BLOCK + 1)
    stored.break_({index: PlannedFaults(flips={1, 3}) for index in range(policy.m)})
    assert stored.read() == stored.data


@pytest.mark.parametrize("kind", [NodeUnavailable, TooSlow, Corrupt, NotFound])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_fragment_that_cannot_be_had_is_replaced_for_the_slice(
    policy: Policy, kind: type[DistfsError]
) -> None:
    stored = Stored(policy, 6 * BLOCK)
    stored.break_({0: gone(ALWAYS, kind=kind)})
    assert stored.read() == stored.data
    assert stored.gets(policy.k) == [(0, 6)]
    assert len(stored.gets(0)) <= 2, "it is not asked for every block"


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_stream_that_breaks_in_the_middle_is_taken_up_by_another(policy: Policy, at: int) -> None:
    stored = Stored(policy, 6 * BLOCK)
    stored.break_({0: gone(range(at, 100), call="read_cell")})
    assert stored.read() == stored.data
    assert stored.gets(policy.k) == [(at, 6 - at)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_wrong_table_is_an_erasure(policy: Policy) -> None:
    """Whole and valid, but of other bytes than MetaDB's digest vouches for."""
    stored, other = Stored(policy, 6 * BLOCK), Stored(policy, 6 * BLOCK, seed=2)
    wrong = other.stores[1].inner
    assert isinstance(wrong, MemoryStore)
    for index in range(policy.width):
        mine = stored.stores[index + 1].inner
        assert isinstance(mine, MemoryStore)
        mine.fragments[FragmentId(stored.piece.id, index)] = wrong.fragments[FragmentId(other.piece.id, 0)]
        if index < policy.m:
            assert stored.read() == stored.data
            assert stored.read(ahead=False) == stored.data
    with pytest.raises(Corrupt):
        stored.read()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_too_few_good_cells_are_corrupt(policy: Policy) -> None:
    stored = Stored(policy, 4 * BLOCK)
    stored.break_({i: PlannedFaults(flips=ALWAYS) for i in range(policy.m + 1)})
    with pytest.raises(Corrupt, match=str(stored.piece.id)):
        stored.read()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_too_few_fragments_left_are_corrupt_but_unknown_ones_are_unavailable(policy: Policy) -> None:
    for kinds, expected in (
        ([NotFound] * 8, Corrupt),
        ([NodeUnavailable] * 8, Unavailable),
        ([NodeUnavailable] + [NotFound] * 7, Unavailable),
        ([TooSlow] + [Corrupt] * 7, Unavailable),
    ):
        stored = Stored(policy, 3 * BLOCK)
        faults = {i: gone(ALWAYS, kind=kinds[i]) for i in range(policy.m + 1)}
        stored.break_(faults)
        with pytest.raises(expected) as caught:
            stored.read()
        assert type(caught.value) is expected


def test_a_node_that_fails_once_is_tried_once_more_when_there_is_no_other() -> None:
    stored = Stored(Policy(1, 0), 3 * BLOCK)
    stored.break_({0: gone([0])})
    assert stored.read() == stored.data


def test_a_reader_whose_time_is_over_is_unavailable_at_once() -> None:
    stored = Stored(Policy(1, 1), 3 * BLOCK)

    def late(node: int, deadline: Deadline) -> FragmentStore:
        deadline.remaining()
        return stored.stores[node]

    reader = SliceReader(stored.piece, BLOCK, stored.code, late, (0, 1), (0, 3), Deadline(0))
    reader.open()
    with pytest.raises(Unavailable):
        next(iter(reader.blocks(memoryview(bytearray(BLOCK)))))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_any_loss_within_the_policy_gives_every_byte(policy: Policy, seed: int) -> None:
    """m fragments that fail and damage as they like."""
    random, met = Random(seed), list[int]()
    stored = Stored(policy, random.randint(1, 9 * BLOCK))
    while not met:  # where only parity is bad, nobody may come by
        bad = random.sample(range(policy.width), policy.m)
        at_will = {i: SeededFaults(random.random(), 0.4, 0.4, lambda: met.append(1)) for i in bad}
        stored.break_(at_will)
        assert stored.read(ahead=bool(seed % 2)) == stored.data


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("seed", range(1, 12))
def test_any_loss_at_all_gives_no_wrong_byte(policy: Policy, seed: int) -> None:
    """Every fragment fails and damages: the right bytes, or an error after some of them."""
    stored = Stored(policy, 9 * BLOCK + seed)
    rate = seed / 30
    random, met = Random(seed), list[int]()
    for _ in range(10):
        met.clear()
        while not met:
            faults = [SeededFaults(random.random(), rate, rate, lambda: met.append(1)) for _ in stored.stores]
            stored.break_(dict(enumerate(faults)))
            with contextlib.suppress(Corrupt, Unavailable):
                assert stored.read() == stored.data


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_fragment_can_be_rebuilt_from_the_others(policy: Policy) -> None:
    stored = Stored(policy, 5 * BLOCK + 99)
    for index in range(policy.width):
        fragment = FragmentId(stored.piece.id, index)
        original = stored.stores[index + 1].stat(fragment, soon())
        target = FaultyStore(MemoryStore(uuid4(), CLUSTER))
        order = [i for i in range(policy.width) if i != index]
        shape = stored.piece, BLOCK, stored.code, stored.store
        with contextlib.closing(SliceReader(*shape, order, (0, 6), soon())) as reader:
            buffer = memoryview(bytearray(BLOCK))
            rebuild(stored.identity, stored.piece, index, reader, target, buffer, soon())
        assert target.stat(fragment, soon()) == original
        assert target.verify(fragment, soon()) == ()


def test_a_rebuild_that_fails_leaves_nothing() -> None:
    stored = Stored(Policy(1, 1), 4 * BLOCK)
    stored.break_({0: gone(range(2, 100), call="read_cell")})
    target = FaultyStore(MemoryStore(uuid4(), CLUSTER))
    shape = stored.piece, BLOCK, stored.code, stored.store
    with contextlib.closing(SliceReader(*shape, [0], (0, 4), soon())) as reader:
        buffer = memoryview(bytearray(BLOCK))
        with pytest.raises(Unavailable):
            rebuild(stored.identity, stored.piece, 1, reader, target, buffer, soon())
    assert target.list("", 10, soon()).fragments == ()


@pytest.mark.parametrize("call", ["put", "write_cell", "finish", "commit"])
def test_a_small_slice_tells_which_fragment_failed_and_keeps_the_others(call: str) -> None:
    code = code_for(Policy(1, 2))
    identity = FileIdentity(CLUSTER, FILE, "n", "t", code, BLOCK)
    stores = {n: FaultyStore(MemoryStore(uuid4(), CLUSTER)) for n in (1, 2, 3)}
    stores[2].faults = gone([0], call=call)
    plan = SlicePlan(identity, 0, [1, 2, 3], 100)
    failed = write_small(plan, memoryview(random_bytes(100)), lambda node, _: stores[node], soon())
    assert list(failed) == [1]
    assert plan.done(failed).nodes == (1, 0, 3)
    assert all(store.writers_open == 0 for store in stores.values())
    for node, store in stores.items():
        kept = store.list("", 10, soon()).fragments
        assert [f.id for f in kept] == ([] if node == 2 else [FragmentId(plan.id, node - 1)])


def test_who_is_cancelled_while_it_asks_leaves_no_reader_open_and_asks_nobody_else() -> None:
    stored = Stored(Policy(2, 1), BLOCK)
    stored.break_({1: gone(ALWAYS)})
    with soon().scope() as scope:
        scope.cancel("the client hung up")
        with pytest.raises(Cancelled):
            stored.reader(deadline=scope).open()
    assert [len(stored.gets(index)) for index in range(3)] == [1, 1, 0]
    assert all(store.readers_open == 0 for store in stored.stores.values())
