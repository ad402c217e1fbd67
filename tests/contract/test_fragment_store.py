"""Every promise of FragmentStore, kept by each of them: in memory, on disk both ways, over the wire, wrapped."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from distfs.errors import Corrupt, Full, NodeUnavailable, NotFound
from distfs.formats.features import PLAIN, Extra, Features, pack_records, read_records
from distfs.formats.fragment import CellEntry, FragmentHeader, checksum
from distfs.fragment_store import FragmentStore, FragmentWriter, fault
from distfs.model import MAX_NAME_BYTES, FragmentId, Policy
from tests.contract.litter import eventually, temp_files
from tests.contract.samples import (
    CLUSTER,
    MIB,
    cut,
    entry_of,
    get,
    header,
    listed,
    put,
    random_bytes,
    soon,
    whole,
)
from tests.contract.subjects import Subject, damage

# --- what is put can be got -----------------------------------------------------------------------

SIZES = [0, 1, 4095, 4096, 4097, 8191, 8192, 65_536, 200_001]


@pytest.mark.parametrize("size", SIZES)
def test_a_committed_fragment_is_read_back(store: FragmentStore, size: int) -> None:
    data = random_bytes(size)
    fragment = put(store, header(block_size=4096), data)
    assert get(store, fragment) == cut(data, 4096)
    assert store.verify(fragment, soon()) == ()


@pytest.mark.parametrize("size", [4 * MIB - 4097, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 123])
def test_a_fragment_around_the_write_buffers_size_is_read_back(store: FragmentStore, size: int) -> None:
    data = random_bytes(size)
    fragment = put(store, header(block_size=MIB), data)
    assert whole(store, fragment) == data


@pytest.mark.parametrize("hint", [0, 1, 1000, 40_000, 10 * MIB])
def test_a_wrong_size_hint_does_no_harm(store: FragmentStore, hint: int) -> None:
    data = random_bytes(40_000)
    assert whole(store, put(store, header(), data, hint=hint)) == data


def test_what_a_fragment_has_beside_its_cells_is_told(store: FragmentStore) -> None:
    """Known at its beginning, or only at its end; of one that has nothing, nothing."""
    begin, end = Extra(Features(compat=1 << 30), pack_records({900: b"begin"})), pack_records({901: b"end"})
    head, data = replace(header(), extra=begin), random_bytes(100)
    writer = store.put(head, len(data), soon())
    writer.write_cell(entry_of(data), memoryview(data))
    writer.finish(len(data), True, Extra(Features(compat=1 << 29), end))
    writer.commit()
    told = store.stat(head.id, soon()).extra
    assert told.features == Features(compat=3 << 29)
    assert read_records(told.records) == {900: b"begin", 901: b"end"}
    assert whole(store, head.id) == data
    assert store.stat(put(store, header(), data), soon()).extra is PLAIN


def test_cells_of_a_coded_fragment_may_be_shorter_than_their_blocks(store: FragmentStore) -> None:
    cells = [random_bytes(1366, seed) for seed in range(5)] + [b""]
    head = header(policy=Policy(3, 2), index=4, block_size=4096)
    writer = store.put(head, 8000, soon())
    for number, cell in enumerate(cells):
        entry = CellEntry(len(cell), 0, checksum(cell), number)
        writer.write_cell(entry, memoryview(cell))
    writer.finish(5 * 4096 + 100, False)
    writer.commit()
    assert get(store, head.id) == cells
    table = store.stat(head.id, soon())
    assert [e.plain for e in table.entries] == list(range(6))
    assert store.verify(head.id, soon()) == ()


def test_the_table_says_what_was_written(store: FragmentStore) -> None:
    data = random_bytes(10_000)
    fragment = put(store, header(), data)
    with contextlib.closing(store.get(fragment, 1, 1, soon())) as reader:
        table = reader.table
    assert table == store.stat(fragment, soon())
    assert table.entries == tuple(entry_of(block) for block in cut(data, 4096))
    assert (table.slice_size, table.last) == (10_000, True)


@pytest.mark.parametrize(
    ("first", "count"),
    [(0, 1), (0, 3), (1, 1), (2, 3), (4, 1), (4, 9), (0, 5), (5, 1), (9, 2), (0, 0), (3, 0)],
)
def test_any_run_of_cells_can_be_read(store: FragmentStore, first: int, count: int) -> None:
    data = random_bytes(4 * 4096 + 77)
    fragment = put(store, header(), data)
    assert get(store, fragment, first, count) == cut(data, 4096)[first : first + count]


def test_a_reader_may_be_closed_in_the_middle_and_twice(subject: Subject) -> None:
    store = subject.store
    fragment = put(store, header(), random_bytes(30_000))
    reader = store.get(fragment, 0, 8, soon())
    reader.read_cell(memoryview(bytearray(4096)))
    reader.close()
    reader.close()
    subject.assert_clean()
    assert len(get(store, fragment)) == 8


def test_many_readers_read_the_same_fragment(store: FragmentStore) -> None:
    data = random_bytes(50_000)
    fragment = put(store, header(), data)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: whole(store, fragment), range(24))) == {data}


@pytest.mark.parametrize("index", [0, 1, 2, 9, 10, 15])
def test_a_fragment_of_every_index_is_kept_apart(store: FragmentStore, index: int) -> None:
    slice_id = uuid4()
    policy = Policy(8, 8)
    mine = put(store, header(slice_id, index, policy=policy), b"mine")
    other = put(store, header(slice_id, (index + 1) % 16, policy=policy), b"other")
    assert (whole(store, mine), whole(store, other)) == (b"mine", b"other")
    assert store.delete(other, soon())
    assert listed(store) == [mine]


@pytest.mark.parametrize(
    "name", ["", "x" * MAX_NAME_BYTES, "é" * 600, "🐘" * 20_000, "a\ud800b", "../../etc/x\n\0"]
)
def test_any_file_name_may_stand_in_the_header(subject: Subject, name: str) -> None:
    head = header(name=name, content_type="t" * 400)
    fragment = put(subject.store, head, b"data")
    assert whole(subject.store, fragment) == b"data"
    if subject.disk is not None:
        kept, _ = FragmentHeader.unpack(subject.disk.path(fragment).read_bytes())
        assert kept.name == name[: len(kept.name)].replace("\ud800", "?")
        assert len(kept.name.encode()) > min(len(name.encode("utf-8", "replace")), MAX_NAME_BYTES) - 4


def test_putting_an_id_again_replaces_the_fragment(store: FragmentStore) -> None:
    head = header()
    put(store, head, random_bytes(10_000, 1))
    put(store, head, b"new")
    assert whole(store, head.id) == b"new"
    assert listed(store) == [head.id]


def test_a_replacement_that_is_aborted_leaves_the_old_fragment(store: FragmentStore) -> None:
    head = header()
    put(store, head, b"old")
    writer = store.put(head, 3, soon())
    writer.write_cell(entry_of(b"new"), memoryview(b"new"))
    writer.abort()
    assert whole(store, head.id) == b"old"


def test_fragments_put_at_once_do_not_disturb_each_other(store: FragmentStore) -> None:
    data = {seed: random_bytes(5000 * seed, seed) for seed in range(12)}
    with ThreadPoolExecutor(12) as pool:
        ids = dict(zip(data, pool.map(lambda s: put(store, header(), data[s]), data), strict=True))
    assert {seed: whole(store, ids[seed]) for seed in data} == data
    assert set(listed(store)) == set(ids.values())


def test_the_same_id_put_at_once_ends_as_one_of_them(store: FragmentStore) -> None:
    head = header()
    versions = [bytes([n]) * 9000 for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda data: put(store, head, data), versions))
    assert whole(store, head.id) in versions
    assert store.verify(head.id, soon()) == ()


# --- nothing before the commit, nothing after an abort -----------------------------------------------


def test_nothing_can_be_read_before_the_commit(store: FragmentStore) -> None:
    head = header()
    writer = store.put(head, 5000, soon())
    writer.write_cell(entry_of(b"x" * 4096), memoryview(b"x" * 4096))
    with pytest.raises(NotFound):
        store.get(head.id, 0, 1, soon())
    with pytest.raises(NotFound):
        store.stat(head.id, soon())
    assert listed(store) == []
    writer.write_cell(entry_of(b"y"), memoryview(b"y"))
    writer.finish(4097, True)
    writer.commit()
    assert whole(store, head.id) == b"x" * 4096 + b"y"


@pytest.mark.parametrize("cells", [0, 1, 5, 1200])
def test_an_aborted_fragment_leaves_nothing(subject: Subject, cells: int) -> None:
    head, block = header(), random_bytes(4096)
    writer = subject.store.put(head, cells * 4096, soon())
    for _ in range(cells):
        writer.write_cell(entry_of(block), memoryview(block))
    writer.abort()
    writer.abort()
    subject.assert_clean()
    assert listed(subject.store) == []
    with pytest.raises(NotFound):
        subject.store.get(head.id, 0, 1, soon())


def test_an_abort_after_the_commit_does_nothing(subject: Subject) -> None:
    head = header()
    writer = subject.store.put(head, 3, soon())
    writer.write_cell(entry_of(b"abc"), memoryview(b"abc"))
    writer.finish(3, True)
    writer.commit()
    writer.abort()
    assert whole(subject.store, head.id) == b"abc"


def write(writer: FragmentWriter, cells: list[tuple[CellEntry, bytes]], slice_size: int) -> None:
    """All of a fragment; its writer is aborted when that fails, as every caller does."""
    try:
        for entry, data in cells:
            writer.write_cell(entry, memoryview(data))
        writer.finish(slice_size, True)
        writer.commit()
    finally:
        writer.abort()


def refused(subject: Subject, cells: list[tuple[CellEntry, bytes]], slice_size: int) -> None:
    """Cells and a size that a store must not take; nothing of them is left."""
    head = header(block_size=4096)
    writer = subject.store.put(head, 8192, soon())
    with pytest.raises(Corrupt):
        write(writer, cells, slice_size)
    subject.assert_clean()
    assert listed(subject.store) == []
    assert whole(subject.store, put(subject.store, head, b"good")) == b"good"
    subject.store.delete(head.id, soon())


def test_a_cell_that_is_not_what_its_entry_says_is_refused(subject: Subject) -> None:
    good = entry_of(b"cell")
    refused(subject, [(good, b"cold")], 4)
    refused(subject, [(good, b"cell"), (good._replace(checksum=good.checksum ^ 1), b"cell")], 5000)


@pytest.mark.parametrize("length", [0, 3, 5, 4096])
def test_a_cell_of_another_length_than_its_entrys_is_refused(subject: Subject, length: int) -> None:
    data = b"cell"
    refused(subject, [(entry_of(data)._replace(length=length), data)], 4)


@pytest.mark.parametrize("slice_size", [0, 1, 4096, 8193, 100_000])
def test_a_slice_size_that_does_not_fit_the_cells_is_refused(subject: Subject, slice_size: int) -> None:
    block = random_bytes(4096)
    refused(subject, [(entry_of(block), block)] * 2, slice_size)


def test_a_refusal_is_corrupt_and_says_which_cell(store: FragmentStore) -> None:
    block = b"z" * 4096
    with pytest.raises(Corrupt, match="cell 1"):
        write(
            store.put(header(), 8192, soon()),
            [(entry_of(block), block), (entry_of(b"other"), b"thing")],
            4101,
        )


# --- what is not there, or not right ------------------------------------------------------------------


def test_an_unknown_fragment_is_not_found(store: FragmentStore) -> None:
    put(store, header(), b"another")
    unknown = FragmentId(uuid4(), 0)
    for ask in (store.stat, store.verify, lambda f, d: store.get(f, 0, 1, d)):
        with pytest.raises(NotFound):
            ask(unknown, soon())
    assert not store.delete(unknown, soon())


def test_another_index_of_the_same_slice_is_not_found(store: FragmentStore) -> None:
    fragment = put(store, header(index=0), b"x")
    with pytest.raises(NotFound):
        store.stat(FragmentId(fragment.slice, 1), soon())


def test_a_deleted_fragment_is_gone(store: FragmentStore) -> None:
    fragment = put(store, header(), b"x")
    assert store.delete(fragment, soon())
    assert not store.delete(fragment, soon())
    assert listed(store) == []
    with pytest.raises(NotFound):
        store.get(fragment, 0, 1, soon())


def test_a_fragment_deleted_while_it_is_written_never_appears(subject: Subject) -> None:
    """Whoever gives an upload up deletes what a node may just be finishing."""
    store, head, data = subject.store, header(policy=Policy(8, 4)), random_bytes(4096)
    writer = store.put(replace(head, index=1), len(data), soon())
    other = store.put(replace(head, index=10), len(data), soon())
    for each in (writer, other):
        each.write_cell(entry_of(data), memoryview(data))
    if subject.disk is not None:
        folder = subject.disk.folder
        eventually(lambda: len(temp_files(folder)) == 2, "both have begun")
    assert not store.delete(FragmentId(head.slice, 1), soon())
    for each in (writer, other):
        each.finish(len(data), True)
    with pytest.raises(NodeUnavailable, match="deleted while it was written"):
        writer.commit()
    writer.abort()
    other.commit()
    assert listed(store) == [FragmentId(head.slice, 10)]


def test_a_reader_goes_on_after_its_fragment_is_deleted(store: FragmentStore) -> None:
    data = random_bytes(3 * MIB)
    fragment = put(store, header(block_size=MIB), data)
    with contextlib.closing(store.get(fragment, 0, 3, soon())) as reader:
        first = bytearray(MIB)
        reader.read_cell(memoryview(first))
        store.delete(fragment, soon())
        rest = [bytearray(MIB), bytearray(MIB)]
        for view in rest:
            reader.read_cell(memoryview(view))
    assert first + rest[0] + rest[1] == data


@pytest.mark.parametrize("offset", [0, 60, -1, -40, -100])
def test_a_damaged_header_table_or_footer_is_corrupt(subject: Subject, offset: int) -> None:
    fragment = put(subject.store, header(), random_bytes(9000))
    damage(subject, fragment, offset)
    for ask in (subject.store.stat, subject.store.verify, lambda f, d: subject.store.get(f, 0, 1, d)):
        with pytest.raises(Corrupt):
            ask(fragment, soon())
    assert subject.store.delete(fragment, soon())


def test_what_is_wrong_with_a_fragment_is_told_in_the_same_words_for_all(subject: Subject) -> None:
    count = 12
    fragment = put(subject.store, header(), random_bytes(count * 4096))
    digest = subject.store.stat(fragment, soon()).digest(4096)
    assert fault(subject.store, fragment, digest, 4096, soon()) == ""
    assert fault(subject.store, fragment, None, 4096, soon()) == ""
    with pytest.raises(Corrupt, match=r"^its table is not the slice's$"):
        fault(subject.store, fragment, bytes(16), 4096, soon())
    first = -(count * 4096 + count * 21 + 54)
    damage(subject, fragment, first + 2 * 4096)
    assert fault(subject.store, fragment, digest, 4096, soon()) == "cells 2 fail their checksums"
    for cell in set(range(count)) - {2}:
        damage(subject, fragment, first + cell * 4096)
    said = "cells 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... fail their checksums"
    assert fault(subject.store, fragment, digest, 4096, soon()) == said


def test_verify_names_the_damaged_cells(subject: Subject) -> None:
    fragment = put(subject.store, header(), random_bytes(5 * 4096))
    start = -(5 * 4096 + 5 * 21 + 54)  # cells, table, footer
    damage(subject, fragment, start)
    damage(subject, fragment, start + 3 * 4096 + 17)
    assert subject.store.verify(fragment, soon()) == (0, 3)


# --- listing and room ------------------------------------------------------------------------------------


def test_a_listing_is_complete_ordered_and_says_sizes(store: FragmentStore) -> None:
    ids = [put(store, header(index=n % 3, policy=Policy(1, 2)), b"x" * n) for n in range(25)]
    assert listed(store) == sorted(ids, key=str)
    for limit in (1, 7, 24, 25, 26):
        assert listed(store, limit) == sorted(ids, key=str)
    page = store.list("", 100, soon())
    assert page.cursor is None
    sizes = {f.id: f.size for f in page.fragments}
    assert sizes[ids[24]] - sizes[ids[4]] == 20
    assert all(-1 < f.age < 3600 for f in page.fragments)


def test_an_empty_store_lists_nothing(store: FragmentStore) -> None:
    page = store.list("", 10, soon())
    assert (page.fragments, page.cursor) == ((), None)


def test_a_listing_starts_after_any_cursor(store: FragmentStore) -> None:
    ids = [put(store, header(UUID(int=n << 120)), b"x") for n in range(1, 12)]
    for fragment in ids:
        after = store.list(str(fragment), 100, soon()).fragments
        assert [f.id for f in after] == ids[ids.index(fragment) + 1 :]
    assert store.list("zzzz", 10, soon()).fragments == ()
    assert [f.id for f in store.list("05", 1, soon()).fragments] == [ids[4]]


def test_a_listing_that_runs_while_fragments_come_and_go_has_all_that_stayed(store: FragmentStore) -> None:
    stay = {put(store, header(), b"x") for _ in range(30)}
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            store.delete(put(store, header(), b"y"), soon())

    with ThreadPoolExecutor(2) as pool:
        churning = [pool.submit(churn) for _ in range(2)]
        try:
            listings = [listed(store, 4) for _ in range(5)]
        finally:
            ended.set()
        for each in churning:
            each.result()
    for found in listings:
        assert stay <= set(found)
        assert list(found) == sorted(found, key=str)
        assert len(found) == len(set(found))


def test_info_says_who_it_is_and_how_much_room_there_is(subject: Subject) -> None:
    info = subject.store.info(soon())
    assert info.cluster == CLUSTER
    assert 0 < info.free <= info.capacity
    assert 0 <= info.used <= info.capacity
    assert info.state == "active"
    if subject.disk is not None:
        assert info.node == subject.disk.node


def test_more_than_fits_is_refused_before_it_is_sent(subject: Subject) -> None:
    free = subject.store.info(soon()).free
    with pytest.raises(Full):
        write(subject.store.put(header(), free + (1 << 40), soon()), [], 0)
    subject.assert_clean()
    assert listed(subject.store) == []
