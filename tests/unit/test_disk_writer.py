"""Sinks: every byte in its place, whatever the size; nothing left after a failure, whenever it comes."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from distfs.storage.disk import writer as disk_writer
from distfs.storage.disk.writer import BufferPool, DirectSink, PlainSink, ShortSink, Sink, open_sink
from tests.contract.litter import eventually, open_files, writer_threads
from tests.contract.samples import random_bytes
from tests.small_disk import SMALL, disk_without_direct_io, small_disk

SIZE = 16 << 10  # of a write buffer here


@pytest.fixture
def pool() -> Iterator[BufferPool]:
    pool = BufferPool(SIZE, limit=6)
    yield pool
    assert pool.in_use == 0
    eventually(lambda: writer_threads() == [], "no thread is left, of other tests neither")


def fill(sink: Sink, data: bytes, step: int = 1 << 30) -> None:
    at = 0
    while at < len(data):
        view = sink.space(min(step, len(data) - at))
        view[:] = data[at : at + len(view)]
        sink.advance(len(view))
        at += len(view)


def test_what_others_wrote_is_in_no_file_of_anybody(
    pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for a moment: a crash may come at any."""
    written: list[bytes] = []
    write_all = disk_writer._write_all

    def noted(fd: int, view: memoryview) -> None:
        written.extend([bytes(view)] if view else [])
        write_all(fd, view)

    monkeypatch.setattr(disk_writer, "_write_all", noted)
    for number, size in enumerate((SIZE, 1, 4097)):
        sink = open_sink(tmp_path / str(number), size, pool)
        assert isinstance(sink, ShortSink)
        fill(sink, b"%d" % number * size)
        sink.close()
    assert written == [b"0" * SIZE, b"1", b"2" * 4096, b"2"]


def test_to_write_a_short_file_nothing_is_read_from_the_disk(pool: BufferPool, tmp_path: Path) -> None:
    def read_for(number: int) -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
        sink = open_sink(tmp_path / str(number), 5000, pool)
        assert isinstance(sink, ShortSink)
        fill(sink, random_bytes(5000))
        sink.close()
        return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock - before

    assert min(map(read_for, range(10))) == 0  # the file system may read a page of its own now and then


EDGES = [0, 1, 4095, 4096, 4097, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE, 3 * SIZE + 1, 7 * SIZE + 4096, 200_001]


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("hint", ["right", "none", "small", "large"])
def test_a_direct_sink_writes_what_it_is_given(
    pool: BufferPool, tmp_path: Path, size: int, hint: str
) -> None:
    data, path = random_bytes(size), tmp_path / "f"
    hints = {"right": size, "none": 0, "small": size // 2, "large": 2 * size + 50_000}
    sink = open_sink(path, hints[hint], pool)
    assert isinstance(sink, ShortSink if 0 < hints[hint] <= SIZE else DirectSink)
    fill(sink, data)
    assert sink.close() == size
    assert path.read_bytes() == data
    sink.discard()


@pytest.mark.parametrize("size", [*EDGES, 256 << 10, (256 << 10) + 1])
@pytest.mark.parametrize("hint", [0, 1, 300_000])
def test_a_plain_sink_writes_what_it_is_given(tmp_path: Path, size: int, hint: int) -> None:
    data, path = random_bytes(size), tmp_path / "f"
    sink = open_sink(path, hint, None)
    assert isinstance(sink, PlainSink)
    fill(sink, data)
    assert sink.close() == size
    assert path.read_bytes() == data
    sink.discard()


@pytest.mark.parametrize("step", [1, 7, 4096, 5000, SIZE])
def test_bytes_may_come_in_any_portions(pool: BufferPool, tmp_path: Path, step: int) -> None:
    data = random_bytes(3 * SIZE + 17)
    for number, chosen in enumerate([pool, None]):
        path = tmp_path / str(number)
        sink = open_sink(path, len(data), chosen)
        fill(sink, data, step)
        assert sink.close() == len(data)
        assert path.read_bytes() == data


@pytest.mark.parametrize("size", [0, 5, SIZE, 5 * SIZE])
def test_a_discarded_sink_gives_everything_back(pool: BufferPool, tmp_path: Path, size: int) -> None:
    for number, chosen in enumerate([pool, None]):
        sink = open_sink(tmp_path / str(number), size, chosen)
        fill(sink, random_bytes(size))
        sink.discard()
        sink.discard()
    assert (open_files(tmp_path), pool.in_use) == ([], 0)  # and no thread: see the fixture


def test_without_free_buffers_a_sink_is_plain(pool: BufferPool, tmp_path: Path) -> None:
    taken = pool.take(6)
    assert taken is not None
    sink = open_sink(tmp_path / "f", 100, pool)
    assert isinstance(sink, PlainSink)
    sink.discard()
    pool.give_back(taken)


def test_short_sinks_leave_enough_for_a_large_one(pool: BufferPool, tmp_path: Path) -> None:
    short = [open_sink(tmp_path / str(number), SIZE, pool) for number in range(5)]
    large = open_sink(tmp_path / "large", 10 * SIZE, pool)
    kinds = [type(sink) for sink in (*short, large)]
    for sink in (*short, large):
        sink.discard()
    assert kinds == [ShortSink] * 3 + [PlainSink] * 2 + [DirectSink]


def test_the_pool_never_gives_more_than_its_limit(pool: BufferPool) -> None:
    first, second = pool.take(3), pool.take(3)
    assert first is not None
    assert second is not None
    assert pool.take(1) is None
    pool.give_back(first)
    again = pool.take(2)
    assert again is not None
    assert {id(b) for b in again} <= {id(b) for b in first}
    pool.give_back(again)
    pool.give_back(second)


def test_a_file_system_without_direct_io_is_written_plainly(
    pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with disk_without_direct_io(tmp_path / "disk", monkeypatch) as folder:
        data = random_bytes(3 * SIZE + 5)
        sink = open_sink(folder / "f", len(data), pool)
        assert isinstance(sink, PlainSink)
        assert pool.in_use == 0
        fill(sink, data)
        sink.close()
        assert (folder / "f").read_bytes() == data


def test_a_full_disk_is_told_and_leaves_nothing(
    pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder:
        for number, (chosen, hint) in enumerate([(pool, 0), (pool, SIZE), (None, 0)]):
            path = folder / str(number)
            sink = open_sink(path, hint, chosen)
            data = random_bytes(SMALL + SIZE)
            with pytest.raises(OSError, match="No space left") as caught:
                _fill_and_close(sink, data)
            assert caught.value.errno == errno.ENOSPC
            sink.discard()
            path.unlink()
        assert open_files(folder) == []


def _fill_and_close(sink: Sink, data: bytes) -> None:
    fill(sink, data)
    sink.close()


def test_a_disk_that_is_full_already_is_told_before_the_first_byte(
    pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="No space left"):
        open_sink(tmp_path / "f", SIZE + 1, pool)
    assert list(tmp_path.iterdir()) == []
    assert open_files(tmp_path) == []


def test_a_write_that_fails_in_the_thread_is_raised_where_bytes_come_from(
    pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, view: memoryview) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk_writer, "_write_all", broken)
    for size in (SIZE, 2 * SIZE, 50 * SIZE):
        sink = open_sink(tmp_path / str(size), size, pool)
        with pytest.raises(OSError, match="Input/output"):
            _fill_and_close(sink, bytes(size))
        sink.discard()
    assert open_files(tmp_path) == []


def test_an_existing_file_is_never_written_over(pool: BufferPool, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"mine")
    for chosen in (pool, None):
        with pytest.raises(FileExistsError):
            open_sink(path, SIZE, chosen)
    assert path.read_bytes() == b"mine"


def test_a_bug_in_the_writing_thread_is_raised_by_the_one_that_fills(
    pool: BufferPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    sink = open_sink(tmp_path / "f", 0, pool)
    monkeypatch.setattr(disk_writer, "_write_all", fails)
    filling = threading.Thread(target=_fill_in_vain, args=(sink,), daemon=True)
    filling.start()
    filling.join(10)
    assert not filling.is_alive(), "it waits for a buffer that nobody empties"
    sink.discard()


def _fill_in_vain(sink: Sink) -> None:
    with pytest.raises(ZeroDivisionError):
        fill(sink, random_bytes(20 * SIZE), SIZE)
