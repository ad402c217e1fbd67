"""The threads that send a slice: how many there are, and that one fragment's failure is no other's."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID, uuid4

import pytest

from distfs.deadline import Deadline
from distfs.errors import NodeUnavailable
from distfs.formats.coding import code_for
from distfs.fragment_store import FragmentStore
from distfs.model import FragmentId, Policy
from distfs.process.threads import Threads
from distfs.telemetry import metrics
from distfs.transfer.blocks import BlockPool
from distfs.transfer.slice_plan import FileIdentity, SlicePlan
from distfs.transfer.slice_upload import SliceUpload
from tests.contract.faulty_store import FaultyStore, PlannedFaults
from tests.contract.memory_store import MemoryStore
from tests.contract.samples import CLUSTER, random_bytes, soon, whole

BLOCK = 4096
BLOCKS = [random_bytes(BLOCK, number) for number in range(5)]


def send(policy: Policy, nodes: Mapping[int, FragmentStore]) -> tuple[SlicePlan, dict[int, Exception], int]:
    """A slice of those blocks to those nodes; -> what failed, and by how many threads it was sent."""
    pool, executor = BlockPool(BLOCK, 8), Threads(20, "test")
    identity = FileIdentity(CLUSTER, uuid4(), "x", "text/x", code_for(policy), BLOCK)
    plan = SlicePlan(identity, 0, list(nodes), BLOCK * len(BLOCKS))

    def store(node: int, deadline: Deadline) -> FragmentStore:
        return nodes[node]

    upload = SliceUpload(plan, store, executor, executor, soon(), lambda failed: None)
    threads = len(upload._futures)
    assert upload.begun(soon())
    for data in BLOCKS:
        block = pool.take(soon())
        block.view[:] = data
        upload.write(block)
        block.release()
    upload.finish(True)
    failed = dict(upload.wait())
    executor.shutdown()
    usage = pool.usage()
    assert usage.blocks == 0, "every block came back"
    return plan, dict(failed), threads


def stores(count: int) -> dict[int, MemoryStore]:
    return {number: MemoryStore(UUID(int=number), CLUSTER) for number in range(1, count + 1)}


@pytest.mark.parametrize(("policy", "threads"), [(Policy(1, 1), 2), (Policy(1, 2), 3), (Policy(4, 2), 2)])
def test_a_copy_has_a_thread_and_the_fragments_of_a_code_share_two(policy: Policy, threads: int) -> None:
    nodes = stores(policy.width)
    plan, failed, used = send(policy, nodes)
    assert (failed, used) == ({}, threads)
    encoded = [code_for(policy).encode(memoryview(bytearray(block))) for block in BLOCKS]
    for index, node in enumerate(plan.nodes):
        cells = b"".join(bytes(cells[index]) for cells in encoded)
        assert whole(nodes[node], FragmentId(plan.id, index)) == cells
    assert plan.ended == set(range(policy.width))


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize(("call", "number"), [("put", 0), ("write_cell", 2), ("finish", 0), ("commit", 0)])
def test_a_fragment_that_fails_takes_none_with_it_of_those_that_share_its_thread(
    call: str, number: int, index: int
) -> None:
    kept = stores(6)
    faulty = FaultyStore(kept[index + 1], PlannedFaults(call, [number]))
    plan, failed, _ = send(Policy(4, 2), {**kept, index + 1: faulty})
    assert list(failed) == [index]
    assert isinstance(failed[index], NodeUnavailable)
    assert faulty.writers_open == 0
    there = {i for i, node in enumerate(plan.nodes) if FragmentId(plan.id, i) in kept[node].fragments}
    assert there == set(range(6)) - {index}


def test_a_fragment_that_has_to_go_to_another_node_is_counted() -> None:
    plan, failed, _ = send(Policy(1, 2), stores(3))
    before = metrics.RETRIES.value("write")
    assert plan.done(failed).nodes == (1, 2, 3)
    assert metrics.RETRIES.value("write") == before
    assert plan.done({0, 2}).nodes == (0, 2, 0)
    assert metrics.RETRIES.value("write") == before + 2
