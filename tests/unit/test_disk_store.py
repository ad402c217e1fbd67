"""What only a DiskStore has: a folder of its own, with what others may have put or left there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from distfs.config.settings import Bytes
from distfs.errors import ConfigError, Corrupt, DistfsError, Full, NodeUnavailable
from distfs.formats.coding import code_for
from distfs.formats.fragment import FragmentHeader
from distfs.model import FragmentId, Policy
from distfs.storage.disk.home import read_identity
from distfs.storage.disk.store import DiskStore
from distfs.storage.disk.tree import FragmentTree
from tests.contract.litter import assert_no_litter, open_files
from tests.contract.nodes import NODE, new_store
from tests.contract.samples import (
    CLUSTER,
    MIB,
    entry_of,
    header,
    keep,
    listed,
    put,
    random_bytes,
    soon,
    whole,
)
from tests.small_disk import SMALL, readonly, small_disk


def test_a_folder_keeps_its_identity_and_its_fragments(tmp_path: Path) -> None:
    first = new_store(tmp_path, CLUSTER, NODE)
    fragment = put(first, header(), b"kept")
    first.close()
    again = new_store(tmp_path, CLUSTER, NODE)
    assert again.node == first.node
    assert whole(again, fragment) == b"kept"
    again.close()


def test_a_second_store_on_one_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = new_store(tmp_path, CLUSTER, NODE)
    with pytest.raises(ConfigError, match="in use by another storage node"):
        new_store(tmp_path, CLUSTER, NODE)
    first.close()
    new_store(tmp_path, CLUSTER, NODE).close()


def test_the_folder_of_another_cluster_is_refused_and_let_go(tmp_path: Path) -> None:
    new_store(tmp_path, CLUSTER, NODE).close()
    with pytest.raises(ConfigError, match="belongs to cluster"):
        new_store(tmp_path, uuid4(), NODE)
    new_store(tmp_path, CLUSTER, NODE).close()


@pytest.mark.parametrize("k", [1, 3, 4, 8])
def test_one_allocation_serves_all_of_a_fragment(
    tmp_path: Path, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table too, which has as many entries as the slice has blocks, whatever part of one a cell is."""
    allocated: list[int] = []
    allocate = os.posix_fallocate

    def noted(fd: int, offset: int, size: int) -> None:
        allocated.append(size)
        allocate(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", noted)
    config = replace(NODE, direct_io_threshold=Bytes(0), write_buffer=Bytes(4096))
    store = new_store(tmp_path, CLUSTER, config)
    head, blocks, code = header(policy=Policy(k, 1)), 4000, code_for(Policy(k, 1))
    cell = random_bytes(code.cell_size(head.block_size))
    writer = store.put(head, code.cell_size(blocks * head.block_size), soon())
    for _ in range(blocks):
        writer.write_cell(entry_of(cell), memoryview(cell))
    writer.finish(blocks * head.block_size, True)
    writer.commit()
    size = store.path(head.id).stat().st_size
    assert len(allocated) == 1
    assert size <= allocated[0] < size + 2 * 4096 + blocks
    store.close()


def test_what_an_earlier_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    store = new_store(tmp_path, CLUSTER, NODE)
    store.close()
    (tmp_path / "tmp" / f"{uuid4()}.0.17").write_bytes(b"half")
    new_store(tmp_path, CLUSTER, NODE).close()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_stray_folder_among_the_temp_files_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tmp" / "stray").mkdir(parents=True)
    with pytest.raises(ConfigError, match="data folder"):
        new_store(tmp_path, CLUSTER, NODE)
    (tmp_path / "tmp" / "stray").rmdir()
    new_store(tmp_path, CLUSTER, NODE).close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[]",
        "{}",
        '{"node": 1, "cluster": 2, "format": 1}',
        '{"node": "x", "cluster": "y", "format": 1}',
        json.dumps({"node": str(UUID(int=1)), "cluster": str(UUID(int=2)), "format": 9}),
    ],
)
def test_a_damaged_identity_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)
    with pytest.raises(ConfigError, match=r"node\.json"):
        new_store(tmp_path, CLUSTER, NODE)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    for folder in (tmp_path / "f", tmp_path / "f" / "below"):
        assert read_identity(folder) is None
        with pytest.raises(ConfigError, match="name a writable one with --data"):
            new_store(folder, CLUSTER, NODE)


def test_foreign_files_are_neither_listed_nor_touched(store: DiskStore) -> None:
    fragment = put(store, header(), b"mine")
    folder = store.path(fragment).parent
    name = str(uuid4())
    foreign = [
        *(
            folder / f"{name}{end}"
            for end in ("", ".", ".16", ".999", ".-1", ".+1", ".01", ".1 ", ".1~", ".x")
        ),
        folder / f"{{{name}}}.1",
        folder / f"{name.upper().replace('1', 'A')}.1",
        folder.parent / "a file",
        store.folder / "data" / "lost+found",
        store.folder / "data" / "notes.txt",
    ]
    for path in foreign:
        path.write_text("not ours")
    assert listed(store) == [fragment]
    assert all(path.read_text() == "not ours" for path in foreign)


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, header(), b"x")

    def refuse(_: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with pytest.raises(NodeUnavailable, match="Permission denied"):
            store.list("", 10, soon())


@pytest.mark.parametrize(
    "number",
    [
        errno.EIO,
        errno.EUCLEAN,
        errno.EBADMSG,
        errno.ENODATA,
        errno.EREMOTEIO,
        errno.EILSEQ,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
    ],
)
@pytest.mark.parametrize("call", ["open", "pread", "preadv"])
def test_what_the_file_system_cannot_read_is_damage(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    fragment = put(store, header(), b"x")
    real = getattr(os, call)

    def fail(what: object, *rest: object) -> object:
        if call != "open" or str(fragment) in str(what):
            raise OSError(number, os.strerror(number))
        return real(what, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(Corrupt, match=os.strerror(number)):
            whole(store, fragment)


def test_a_fragment_that_may_not_be_read_is_no_damage(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are good; `chmod` on the whole folder, by mistake, must not have the node rebuilt."""
    fragment = put(store, header(), b"x")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(NodeUnavailable, match="Permission denied"):
            whole(store, fragment)


def test_a_file_where_a_folder_should_be_is_damage_of_what_was_in_it(store: DiskStore) -> None:
    fragment = put(store, header(), b"x")
    folder = store.path(fragment).parent
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(Corrupt, match="Not a directory"):
        store.stat(fragment, soon())
    folder.unlink()


def test_a_fragment_under_anothers_name_is_corrupt(store: DiskStore) -> None:
    one, other = put(store, header(), b"one"), put(store, header(), b"other")
    store.path(one).rename(store.path(other))
    with pytest.raises(Corrupt, match="swapped"):
        store.stat(other, soon())
    assert open_files(store.folder) == []


def test_a_fragment_cut_short_anywhere_is_corrupt(store: DiskStore) -> None:
    fragment = put(store, header(), random_bytes(5000))
    path = store.path(fragment)
    data = path.read_bytes()
    for length in [*range(0, len(data), 211), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(Corrupt):
            store.stat(fragment, soon())
    assert open_files(store.folder) == []


def test_a_put_that_fails_at_its_header_leaves_nothing(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OverflowError("a bug")

    monkeypatch.setattr(FragmentHeader, "pack", fail)
    for hint in (100, 8 * MIB):
        with pytest.raises(OverflowError):
            store.put(header(), hint, soon())
        assert_no_litter(store)


def test_an_fsync_that_fails_is_no_success(store: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    for size in (10, 5 * MIB):
        head = header(block_size=MIB)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(NodeUnavailable, match="Input/output error"):
                put(store, head, random_bytes(size))
        assert_no_litter(store)
        assert listed(store) == []


@pytest.mark.parametrize(("way", "size"), [(put, 10), (put, 5 * MIB), (keep, 10), (keep, 60_000)])
def test_a_fragment_is_durable_before_it_has_its_name_and_its_name_before_the_commit_returns(
    store: DiskStore,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[DiskStore, FragmentHeader, bytes], FragmentId],
    size: int,
) -> None:
    fsync, rename = os.fsync, os.rename
    events: list[str] = []

    def noted_fsync(fd: int) -> None:
        fsync(fd)
        synced = str(Path(f"/proc/self/fd/{fd}").readlink())
        events.append("file" if "/tmp/" in synced.removeprefix(str(store.folder)) else f"folder {synced}")

    def noted_rename(path: str | Path, target: str | Path) -> None:
        events.append("rename")
        rename(path, target)

    head = header(block_size=MIB)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    way(store, head, random_bytes(size))
    folder = f"folder {store.path(head.id).parent}"
    steps = [event for event in events if event in ("file", "rename", folder)]
    assert steps == ["file", "rename", folder]
    assert whole(store, head.id) == random_bytes(size)


def test_a_disk_that_fills_up_takes_nothing_half_and_still_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder:
        store = new_store(folder / "node", CLUSTER, NODE)
        kept = put(store, header(block_size=MIB), random_bytes(5 * MIB))
        for hint in (0, MIB, 3 * MIB):  # a hint that is right is refused at once
            with pytest.raises(Full):
                put(store, header(block_size=MIB), random_bytes(SMALL), hint=hint)
            assert_no_litter(store)
        assert listed(store) == [kept]
        assert store.delete(kept, soon())
        store.close()


def test_a_read_only_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder:
        store = new_store(folder / "node", CLUSTER, NODE)
        fragment = put(store, header(), b"still here")
        with readonly(folder, monkeypatch):
            with pytest.raises(DistfsError):
                put(store, header(), b"x")
            assert whole(store, fragment) == b"still here"
            if os.statvfs(folder).f_flag & os.ST_RDONLY:
                assert store.info(soon()).state == "readonly"
        assert store.info(soon()).state == "active"
        put(store, header(), b"x")
        store.close()


def test_a_folder_made_by_another_thread_is_durable_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put may not be acknowledged in a folder whose own name another put has made but not yet synced."""
    tree = FragmentTree(tmp_path / "data")
    fragment = FragmentId(UUID(int=7), 0)
    made, go_on = threading.Event(), threading.Event()
    synced: dict[str, set[Path]] = {"first": set(), "second": set()}
    fsync = os.fsync

    def watched(fd: int) -> None:
        who = threading.current_thread().name
        if who == "first" and not made.is_set():  # the folders are made; nothing is synced yet
            made.set()
            go_on.wait(10)
        fsync(fd)
        synced[who].add(Path(f"/proc/self/fd/{fd}").readlink())

    monkeypatch.setattr(os, "fsync", watched)

    def take_in(who: str) -> None:
        source = tmp_path / who
        source.write_text(who)
        tree.take_in(source, fragment)

    threads = [threading.Thread(target=take_in, args=[who], name=who) for who in ("first", "second")]
    threads[0].start()
    assert made.wait(10)
    threads[1].start()
    threads[1].join()
    folder = tree.path(fragment).parent.resolve()
    seen = set(synced["second"])
    go_on.set()
    threads[0].join()
    assert {folder, folder.parent, folder.parent.parent} <= seen


def test_a_folder_for_files_that_another_thread_has_just_made_is_durable_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where those above it are known: it is found, and its name may be lost with the power all the same."""
    tree = FragmentTree(tmp_path / "data")
    take_in(tree, tmp_path, UUID(int=1 << 112))
    made, go_on = threading.Event(), threading.Event()
    synced: list[Path] = []
    fsync = os.fsync

    def watched(fd: int) -> None:
        if (
            threading.current_thread().name == "first" and not made.is_set()
        ):  # the folder is made, and not synced
            made.set()
            go_on.wait(10)
        fsync(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())

    monkeypatch.setattr(os, "fsync", watched)
    first = threading.Thread(target=take_in, args=[tree, tmp_path, UUID(int=1)], name="first")
    first.start()
    assert made.wait(10)
    path = take_in(tree, tmp_path, UUID(int=2))
    seen = list(synced)
    go_on.set()
    first.join()
    assert seen == [path.parent.parent, path.parent]


def test_folders_of_the_process_before_are_made_durable_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been killed before it had synced their names: a new one syncs these once, not for each folder."""
    folders = [UUID(int=0), UUID(int=1 << 112), UUID(int=2 << 112)]
    for slice_ in folders:
        take_in(FragmentTree(tmp_path / "data"), tmp_path, slice_)
    synced: list[Path] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())

    monkeypatch.setattr(os, "fsync", noted)
    tree = FragmentTree(tmp_path / "data")
    path = take_in(tree, tmp_path, folders[0], 1)
    assert {path.parent.parent.parent, path.parent.parent, path.parent} <= set(synced)
    for slice_ in folders[1:]:
        synced.clear()
        assert [take_in(tree, tmp_path, slice_, 1).parent] == synced


def take_in(tree: FragmentTree, folder: Path, slice_: UUID, index: int = 0) -> Path:
    """A file of that name is in the tree; -> where."""
    fragment = FragmentId(slice_, index)
    source = folder / f"to-be-{fragment}"
    source.write_text("a fragment")
    tree.take_in(source, fragment)
    return tree.path(fragment)


@pytest.mark.parametrize("blocks", [2, 4, 15])
def test_a_small_fragment_of_which_the_disk_gives_only_a_part_is_read_cell_by_cell(
    store: DiskStore, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    """A read that meets a bad page behind good ones gives these, and no error."""
    head, data = header(), random_bytes(blocks * header().block_size)
    id = put(store, head, data)
    bad_at = store.path(id).read_bytes().index(data[(blocks - 1) * head.block_size :])
    real, met = os.pread, []

    def short(fd: int, length: int, offset: int) -> bytes:
        if offset < bad_at < offset + length:
            met.append(offset)
            return real(fd, bad_at - offset, offset)
        return real(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", short)
        with closing(store.get(id, 0, 1, soon())) as reader:
            view = memoryview(bytearray(reader.table.entries[0].length))
            reader.read_cell(view)
    assert met == [0]
    assert view == data[: head.block_size]
