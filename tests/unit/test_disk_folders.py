"""Folders of a node that somebody removes while it runs: what it once saw there is not there for ever."""

from __future__ import annotations

import shutil

import pytest

from distfs.errors import NodeUnavailable
from distfs.storage.disk.store import DiskStore
from tests.contract.samples import MIB, header, listed, put, random_bytes, soon, whole

SMALL, DIRECT = b"small", random_bytes(5 * MIB)  # one through the page cache, one past it


@pytest.mark.parametrize("data", [SMALL, DIRECT], ids=["small", "direct"])
@pytest.mark.parametrize("levels", [1, 2, 3], ids=["ab/cd", "ab", "data"])
def test_a_fragments_folder_that_was_removed_is_made_again(
    store: DiskStore, levels: int, data: bytes
) -> None:
    head = header()
    fragment = put(store, head, SMALL)
    shutil.rmtree(store.path(fragment).parents[levels - 1])
    assert put(store, head, data) == fragment
    assert whole(store, fragment) == data


@pytest.mark.parametrize("data", [SMALL, DIRECT], ids=["small", "direct"])
def test_a_temp_folder_that_was_removed_is_made_again(store: DiskStore, data: bytes) -> None:
    shutil.rmtree(store.folder / "tmp")
    assert whole(store, put(store, header(), data)) == data


def test_a_quarantine_that_was_removed_takes_fragments_again_and_gives_them_back(store: DiskStore) -> None:
    first, second = (put(store, header(), SMALL) for _ in range(2))
    assert store.quarantine(first, 0.0, soon())
    for levels in (1, 2, 3):
        shutil.rmtree(store._aside.path(second).parents[levels - 1], ignore_errors=True)
        assert store.quarantine(second, 0.0, soon())
        assert [f.id for f in store.list_quarantine("", 10, soon()).fragments].count(second) == 1
        shutil.rmtree(store.path(second).parents[levels - 1], ignore_errors=True)
        assert store.release(second, soon())
        assert whole(store, second) == SMALL


def test_a_delete_without_a_temp_folder_deletes(store: DiskStore) -> None:
    fragment = put(store, header(), SMALL)
    shutil.rmtree(store.folder / "tmp")
    assert store.delete(fragment, soon())
    assert not listed(store)
    assert not store.delete(fragment, soon())
    put(store, header(), SMALL)


def test_the_disk_is_probed_without_a_temp_folder(store: DiskStore) -> None:
    store.health.lost("gone for a while")
    shutil.rmtree(store.folder / "tmp")
    for _ in range(3):
        store.probe()
    assert not store.health.trouble


def test_no_folder_is_made_where_the_nodes_disk_is_not(store: DiskStore) -> None:
    """An empty mount point: writing there would fill the disk below."""
    writer = store.put(header(), 0, soon())
    for folder in ("data", "tmp", "quarantine"):
        shutil.rmtree(store.folder / folder, ignore_errors=True)
    (store.folder / "node.json").rename(store.folder.parent / "node.json")
    with pytest.raises(NodeUnavailable, match="is its disk mounted"):
        put(store, header(), SMALL)
    writer.abort()
    assert not {p.name for p in store.folder.iterdir()} & {"data", "tmp", "quarantine"}
    (store.folder.parent / "node.json").rename(store.folder / "node.json")
    assert whole(store, put(store, header(), SMALL)) == SMALL
