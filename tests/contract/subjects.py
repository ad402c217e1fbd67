"""Every kind of fragment store, for the tests of what they all promise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from distfs.config.settings import Bytes, NodeConfig
from distfs.fragment_store import FragmentStore
from distfs.model import FragmentId
from distfs.storage.disk.store import DiskStore
from tests.contract.faulty_store import FaultyStore
from tests.contract.litter import assert_no_litter
from tests.contract.memory_store import MemoryStore
from tests.contract.nodes import NODE, client_of, new_store, serving
from tests.contract.samples import CLUSTER

PLAIN = replace(NODE, direct_io="off")
#: Everything with O_DIRECT, in the smallest buffers: every fragment has edges in it.
TINY_DIRECT = replace(NODE, direct_io_threshold=Bytes(0), write_buffer=Bytes(4096))
#: The same, each fragment in one buffer.
SHORT_DIRECT = replace(NODE, direct_io_threshold=Bytes(0), write_buffer=Bytes(64 << 20))

STORES: dict[str, NodeConfig | None] = {
    "memory": None,
    "faulty": None,
    "disk-plain": PLAIN,
    "disk-direct": NODE,
    "disk-tiny-direct": TINY_DIRECT,
    "disk-short-direct": SHORT_DIRECT,
    "node": NODE,
    "node-tiny-direct": TINY_DIRECT,
}


@dataclass
class Subject:
    """A store, and the disk below it where there is one."""

    store: FragmentStore
    disk: DiskStore | None

    def assert_clean(self) -> None:
        if self.disk is not None:
            assert_no_litter(self.disk)


@pytest.fixture(params=list(STORES))
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    config = STORES[request.param]
    with contextlib.ExitStack() as stack:
        if config is None:
            memory = MemoryStore(uuid4(), CLUSTER)
            found = Subject(FaultyStore(memory) if request.param == "faulty" else memory, None)
        elif request.param.startswith("node"):
            server = stack.enter_context(serving(tmp_path / "node", config))
            found = Subject(stack.enter_context(client_of(server)), server.store)
        else:
            disk = new_store(tmp_path / "node", CLUSTER, config)
            stack.callback(disk.close)
            found = Subject(disk, disk)
        yield found
        found.assert_clean()


@pytest.fixture
def store(subject: Subject) -> FragmentStore:
    return subject.store


def damage(subject: Subject, fragment: FragmentId, offset: int) -> None:
    """Flip a bit of the stored fragment; offsets from the end are negative."""
    if subject.disk is not None:
        path = subject.disk.path(fragment)
        data = bytearray(path.read_bytes())
        data[offset] ^= 4
        path.write_bytes(data)
        return
    memory = subject.store.inner if isinstance(subject.store, FaultyStore) else subject.store
    assert isinstance(memory, MemoryStore)
    memory.fragments[fragment][0][offset] ^= 4
