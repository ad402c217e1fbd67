"""What a DiskStore puts aside: of one name there may be two, whose good cells may be different ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing, suppress

import pytest

from distfs.errors import Corrupt, NodeUnavailable, NotFound
from distfs.fragment_store import check_page
from distfs.model import FragmentId
from distfs.storage.disk.store import DiskStore
from tests.contract.samples import cut, header, put, random_bytes, soon, whole


def spoil(store: DiskStore, id: FragmentId, data: bytes) -> None:
    """Zeros where ``data`` begins."""
    path = store.path(id)
    path.write_bytes(path.read_bytes().replace(data[:100], bytes(100)))


def test_of_two_bad_fragments_that_were_replaced_in_place_neither_is_deleted(store: DiskStore) -> None:
    """Each may have what the other lacks."""
    head, data = header(), random_bytes(3 * header().block_size)
    first, _, last = blocks = cut(data, head.block_size)
    for bad in (first, last):
        id = put(store, head, data)
        spoil(store, id, bad)
        assert len(store.verify(id, soon())) == 1
    put(store, head, data)
    assert store.verify(id, soon()) == ()
    for number in (0, 1, 2):
        assert aside(store, id, number) == blocks[number]
    assert [f.id for f in store.list_quarantine("", 10, soon()).fragments] == [id]
    # In the end they go one after the other.
    assert store.discard(id, 0, soon())
    assert aside(store, id, 0) == first
    assert store.discard(id, 0, soon())
    with pytest.raises(NotFound):
        aside(store, id, 0)
    assert whole(store, id) == data


def test_of_two_that_are_aside_the_second_is_left_when_the_first_is_released(store: DiskStore) -> None:
    head, data = header(), random_bytes(2 * header().block_size)
    for _ in range(3):
        id = put(store, head, data)
    assert store.delete(id, soon())
    assert store.release(id, soon())
    assert whole(store, id) == data
    assert [f.id for f in store.list_quarantine("", 10, soon()).fragments] == [id]


def two_aside(store: DiskStore, first_bad: bool = False) -> tuple[FragmentId, bytes]:
    """One in use, and of its name two aside; and the bytes of each."""
    head, data = header(), random_bytes(2 * header().block_size)
    for number in range(3):
        id = put(store, head, data)
        if first_bad and not number:
            spoil(store, id, data)
    return id, data


def names_aside(store: DiskStore) -> list[FragmentId]:
    return [f.id for f in store.list_quarantine("", 10, soon()).fragments]


@pytest.mark.parametrize("end", ["discard", "release"])
def test_of_two_that_are_aside_one_is_left_wherever_the_disk_fails(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Whatever step is the last before a kill: the other can be listed, read, and deleted in its time."""
    steps, cut_at = 0, 0

    def failing(real: Callable[..., None]) -> Callable[..., None]:
        def step(*args: object) -> None:
            nonlocal steps
            steps += 1
            if steps == cut_at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(*args)

        return step

    for cut_at in range(1, 20):
        id, data = two_aside(store)
        if end == "release":
            assert store.delete(id, soon())
        steps = 0
        with monkeypatch.context() as patch:
            for name in ("rename", "utime", "fsync"):
                patch.setattr(os, name, failing(getattr(os, name)))
            with suppress(NodeUnavailable):
                assert store.discard(id, 0, soon()) if end == "discard" else store.release(id, soon())
        assert names_aside(store) == [id]
        assert aside(store, id, 0) == data[: header().block_size]
        while store.discard(id, 0, soon()):
            pass
        with pytest.raises(NotFound):
            aside(store, id, 0)
        if steps < cut_at:
            break
        if store.path(id).exists():
            assert store.delete(id, soon())
    assert 1 < cut_at < 19


def test_the_second_aside_does_not_take_the_place_of_a_first_that_is_too_young(store: DiskStore) -> None:
    id, data = two_aside(store)
    assert not store.discard(id, 3600, soon())
    assert store.discard(id, 0, soon())
    assert not store.discard(id, 3600, soon()), "its age begins anew"
    assert aside(store, id, 0) == data[: header().block_size]


def test_a_good_second_aside_comes_back_when_the_first_is_bad(store: DiskStore) -> None:
    id, data = two_aside(store, first_bad=True)
    assert store.delete(id, soon())
    assert store.release(id, soon())
    assert whole(store, id) == data
    assert names_aside(store) == [id], "the bad one stays"
    assert store.delete(id, soon())
    with pytest.raises(Corrupt):
        store.release(id, soon())


def test_a_bad_one_in_use_gives_way_to_a_good_second_aside(store: DiskStore) -> None:
    id, data = two_aside(store, first_bad=True)
    spoil(store, id, data)
    assert store.quarantine(id, 0, soon())
    assert store.release(id, soon())
    assert whole(store, id) == data


def test_pages_of_what_is_aside_have_everything_once(store: DiskStore) -> None:
    """Firsts, seconds of which the first came back, and both."""
    ids = []
    for number in range(9):
        id, _ = two_aside(store)
        ids.append(id)
        if number % 3:
            assert store.delete(id, soon())
            assert store.release(id, soon())  # the second is left alone
        if number % 3 == 2:
            assert store.quarantine(id, 0, soon())
    for limit in (1, 2, 4, 9, 10):
        cursor: str | None = ""
        seen: list[FragmentId] = []
        while cursor is not None:
            page = store.list_quarantine(cursor, limit, soon())
            check_page(page, cursor, limit)
            seen += [f.id for f in page.fragments]
            cursor = page.cursor
        assert seen == sorted(ids, key=str)


def aside(store: DiskStore, id: FragmentId, number: int) -> bytes:
    with closing(store.get(id, number, 1, soon(), aside=True)) as reader:
        view = memoryview(bytearray(reader.table.entries[number].length))
        reader.read_cell(view)
        return bytes(view)
