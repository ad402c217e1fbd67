"""Each tool that injects faults fails a test that they did not meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from uuid import uuid4

import pytest

from distfs.errors import NodeUnavailable
from tests.contract.faulty_store import FaultyStore, PlannedFaults
from tests.contract.memory_store import MemoryStore
from tests.contract.samples import CLUSTER, header, put, soon, whole
from tests.faults import ledger
from tests.faults.ledger import OF_THE_TEST, FaultMetNobody
from tests.faults.patch import Patch, unplanned
from tests.integration.byte_ways import Source
from tests.integration.scripted_node import answering, ok, scripted


def patch(asked: bool) -> None:
    owner = SimpleNamespace(answer=lambda: 1, alone=lambda: 1)
    with Patch.context() as patched:
        patched.setattr(owner, "answer", lambda: 2)
        patched.setattr(owner, "alone", unplanned(lambda: 3))
        assert not asked or owner.answer() == 2
    assert owner.answer() == 1


def source(asked: bool) -> None:
    came: list[int] = []
    given = Source(b"1234", {3: lambda: came.append(1)})
    given.readinto(memoryview(bytearray(4 if asked else 2)))
    assert came == [1] * asked


def script(asked: bool) -> None:
    with scripted(answering(ok({"cursor": None}))) as client:
        if asked:
            client.list("", 5, soon())


def failing_call(asked: bool) -> None:
    store = FaultyStore(MemoryStore(uuid4(), CLUSTER), PlannedFaults("list", [1]))
    for _ in range(1 + asked):
        with contextlib.suppress(NodeUnavailable):
            store.list("", 5, soon())


def flip(asked: bool) -> None:
    store = FaultyStore(MemoryStore(uuid4(), CLUSTER))
    fragment = put(store, header(), bytes(3 * 4096))
    store.faults = PlannedFaults(flips=[2])
    if asked:
        assert whole(store, fragment) != bytes(3 * 4096)


@pytest.mark.parametrize("tool", [patch, source, script, failing_call, flip])
def test_a_fault_of_each_tool_has_to_be_met(
    tool: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(True)
    OF_THE_TEST.settle()
    monkeypatch.setattr(ledger, "_PATIENCE_S", 0.1)
    tool(False)
    with pytest.raises(FaultMetNobody, match="never happened"):
        OF_THE_TEST.settle()
