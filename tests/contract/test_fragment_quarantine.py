"""Putting fragments aside, as every FragmentStore promises it."""

from __future__ import annotations

import contextlib

import pytest

from distfs.errors import Corrupt, NotFound
from distfs.fragment_store import FragmentStore
from distfs.model import FragmentId
from tests.contract.samples import header, listed, put, random_bytes, soon, whole
from tests.contract.subjects import Subject, damage


def aside(store: FragmentStore) -> list[FragmentId]:
    return [f.id for f in store.list_quarantine("", 100, soon()).fragments]


def test_a_fragment_put_aside_is_neither_read_nor_listed_and_comes_back(store: FragmentStore) -> None:
    data = random_bytes(10_000)
    fragment = put(store, header(), data)
    assert store.quarantine(fragment, 0, soon())
    assert (listed(store), aside(store)) == ([], [fragment])
    for ask in (store.stat, store.verify, lambda f, d: store.get(f, 0, 1, d)):
        with pytest.raises(NotFound):
            ask(fragment, soon())
    assert not store.delete(fragment, soon())
    assert store.release(fragment, soon())
    assert (listed(store), aside(store)) == ([fragment], [])
    assert whole(store, fragment) == data


def test_what_is_not_there_is_neither_put_aside_nor_brought_back(store: FragmentStore) -> None:
    head = header()
    assert not store.quarantine(head.id, 0, soon())
    assert not store.release(head.id, soon())
    assert not store.discard(head.id, 0, soon())


def test_what_is_younger_than_was_decided_about_stays(store: FragmentStore) -> None:
    fragment = put(store, header(), b"young")
    assert not store.quarantine(fragment, 3600, soon())
    assert whole(store, fragment) == b"young"
    assert store.quarantine(fragment, 0, soon())
    assert not store.discard(fragment, 3600, soon())
    assert aside(store) == [fragment]
    assert store.discard(fragment, 0, soon())
    assert aside(store) == []


def test_a_new_fragment_does_not_give_way_to_the_one_put_aside(store: FragmentStore) -> None:
    head = header()
    put(store, head, b"old")
    assert store.quarantine(head.id, 0, soon())
    put(store, head, b"new")
    assert not store.release(head.id, soon())
    assert whole(store, head.id) == b"new"
    assert store.quarantine(head.id, 0, soon())
    assert aside(store) == [head.id]
    assert store.release(head.id, soon())
    assert whole(store, head.id) == b"new"


@pytest.mark.parametrize("offset", [-400, -1, 3], ids=["cell", "footer", "header"])
def test_a_bad_fragment_does_not_take_the_place_of_a_good_one_aside(subject: Subject, offset: int) -> None:
    store, head = subject.store, header()
    data = random_bytes(9000)
    put(store, head, data)
    assert store.quarantine(head.id, 0, soon())
    put(store, head, data)
    damage(subject, head.id, offset)
    assert not store.quarantine(head.id, 3600, soon()), "it is too young"
    assert store.quarantine(head.id, 0, soon())
    assert (listed(store), aside(store)) == ([], [head.id])
    assert store.release(head.id, soon())
    assert whole(store, head.id) == data


def test_of_two_bad_ones_none_is_deleted(subject: Subject) -> None:
    """Each may have what the other lacks."""
    store, head = subject.store, header()
    for _ in range(2):
        put(store, head, random_bytes(9000))
        damage(subject, head.id, -400)
        done = store.quarantine(head.id, 0, soon())
    assert not done
    assert (listed(store), aside(store)) == ([head.id], [head.id])


def test_what_is_aside_is_read_when_it_is_asked_for(store: FragmentStore) -> None:
    data = random_bytes(9000)
    id = put(store, header(), data)
    assert store.quarantine(id, 0, soon())
    with pytest.raises(NotFound):
        store.get(id, 0, 1, soon())
    with contextlib.closing(store.get(id, 0, 1, soon(), aside=True)) as reader:
        view = memoryview(bytearray(reader.table.entries[0].length))
        reader.read_cell(view)
    assert data.startswith(bytes(view))


def test_a_damaged_fragment_stays_aside(subject: Subject) -> None:
    store = subject.store
    fragment = put(store, header(), random_bytes(9000))
    damage(subject, fragment, -400)
    assert store.quarantine(fragment, 0, soon())
    with pytest.raises(Corrupt):
        store.release(fragment, soon())
    assert aside(store) == [fragment]
