"""Small fragments on a disk: written in one go, read in one go."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from distfs.errors import Corrupt, Full, NodeUnavailable
from distfs.storage.disk.reader import DiskReader
from distfs.storage.disk.space import Space
from distfs.storage.disk.store import DiskStore
from tests.contract.litter import assert_no_litter
from tests.contract.samples import MIB, header, keep, listed, put, random_bytes, soon, whole
from tests.faults.patch import unplanned


@pytest.mark.parametrize("call", ["fsync", "rename", "write"])
def test_a_fragment_in_one_go_that_fails_at_any_step_leaves_nothing(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    head = header(block_size=MIB)
    keep(store, replace(head, slice=UUID(int=head.slice.int ^ 1)), b"so the folder is there")

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(NodeUnavailable, match="Input/output error"):
            keep(store, head, b"some")
    assert_no_litter(store)
    assert head.id not in listed(store)
    keep(store, head, b"some")
    assert whole(store, head.id) == b"some"


def test_a_fragment_in_one_go_is_not_written_where_the_disk_is_not(store: DiskStore) -> None:
    """The folder of a disk that was unmounted, below: nothing is made there."""
    away = store.folder.rename(store.folder.with_name("away"))
    store.folder.mkdir()
    with pytest.raises(NodeUnavailable, match="is its disk mounted"):
        keep(store, header(block_size=MIB), b"some")
    assert list(store.folder.iterdir()) == []
    store.folder.rmdir()
    away.rename(store.folder)
    keep(store, header(block_size=MIB), b"some")


def test_a_small_fragment_is_opened_read_once_and_closed(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(4096)
    id, calls = put(store, header(), data), []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            calls.append(name)
            return real(*given, **named)

        return call

    for name in ("open", "stat", "fstat", "lseek", "read", "pread", "preadv", "close"):
        monkeypatch.setattr(os, name, unplanned(noted(name)))
    with closing(store.get(id, 0, 1, soon())) as reader:
        offset, length = reader.extent(0, 1)
        assert reader.all is not None
        assert reader.all[offset : offset + length] == data
    assert calls == ["open", "pread", "close"]


@pytest.mark.parametrize("size", [100, 16 << 10, 60_000])
def test_a_damaged_fragment_is_the_same_read_in_one_go_or_in_parts(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    id = put(store, header(block_size=MIB), random_bytes(size))
    path = store.path(id)
    good = path.read_bytes()

    def is_read() -> object:
        try:
            with closing(store.get(id, 0, 1, soon())) as reader:
                offset, length = reader.extent(0, 1)
                found = reader.all or path.read_bytes()
                return reader.table, reader.packed, found[offset : offset + length]
        except Corrupt as e:
            return str(e)

    edges = [*range(0, 200, 3), *range(len(good) - 150, len(good))]
    damaged = [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in edges]
    cut = [good[:at] for at in (0, 1, 90, size // 2, len(good) - 1)]
    for data in [good, good + b"x", good + bytes(70_000), *damaged, *cut]:
        path.write_bytes(data)
        at_once = is_read()
        with monkeypatch.context() as patch:
            patch.setattr(DiskReader, "_read_small", unplanned(lambda: None))
            assert is_read() == at_once


@pytest.mark.parametrize(
    ("left", "files", "looks"),
    [
        (1 << 40, None, 1),
        (1 << 40, 1 << 20, 1),
        (1 << 40, 100, 8),
        ((1 << 30) + 20_000, None, 2),  # four of them, and what is beside their cells
        (1 << 30, None, 8),
    ],
)
def test_the_room_on_the_disk_is_looked_at_each_time_only_where_it_is_scarce(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, left: int, files: int | None, looks: int
) -> None:
    seen: list[int] = []

    def look() -> Space:
        seen.append(left)
        return Space(1 << 41, 0, left, reserve=0, files=files, metadb=False)

    monkeypatch.setattr(store, "_space", look)
    monkeypatch.setattr("distfs.storage.disk.store._SPARE_S", float("inf"))
    for _ in range(8):
        keep(store, header(block_size=MIB), random_bytes(4096))
    assert len(seen) == looks


def test_a_disk_that_fills_up_is_seen_when_the_last_look_is_old(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1 << 40]
    monkeypatch.setattr(
        store, "_space", lambda: Space(1 << 41, 0, left[0], reserve=0, files=None, metadb=False)
    )
    keep(store, header(block_size=MIB), b"some")
    left[0] = 0
    monkeypatch.setattr(store, "_spare_until", 0.0)
    with pytest.raises(Full):
        keep(store, header(block_size=MIB), b"some")
    assert_no_litter(store)
