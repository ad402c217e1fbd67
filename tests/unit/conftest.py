"""What unit tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.storage.disk.store import DiskStore
from tests.contract.litter import assert_no_litter
from tests.contract.nodes import NODE, new_store
from tests.contract.samples import CLUSTER


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = new_store(tmp_path / "node", CLUSTER, NODE)
    yield store
    assert_no_litter(store)
    store.close()
