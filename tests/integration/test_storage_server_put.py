"""Puts that go wrong, over raw sockets: refused in words, and nothing is left."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from xxhash import xxh3_64_digest

from distfs.errors import (
    Corrupt,
    DistfsError,
    Full,
    NodeUnavailable,
    ProtocolError,
    TooSlow,
)
from distfs.formats import wire
from distfs.formats.fixed import End
from distfs.formats.fragment import Outline
from distfs.formats.wire import Type
from distfs.model import FragmentId, Policy
from distfs.peers.remote_fragment import RemoteWriter
from distfs.storage.disk.store import DiskStore
from distfs.telemetry import metrics
from tests.contract.litter import assert_no_litter, eventually
from tests.contract.nodes import KillableServer, client_of, serving
from tests.contract.samples import MIB, entry_of, header, listed, put, random_bytes, soon, whole
from tests.faults.patch import unplanned
from tests.integration.raw_wire import Raw, assert_serves, handlers
from tests.small_disk import SMALL, small_disk

# --- puts that go wrong -------------------------------------------------------------------------------------


def refuse(raw: Raw, kind: type[DistfsError]) -> None:
    """What was begun is refused as ``kind`` and nothing is left."""
    error = raw.error()
    assert type(error) is kind, error
    assert raw.is_closed()
    assert_no_litter(raw.server.store)
    assert listed(raw.server.store) == []
    assert_serves(raw.server)


def test_a_cell_frame_of_another_length_than_its_entry_is_refused(raw: Raw) -> None:
    raw.begin_put(header())
    raw.cell(b"12345", entry_of(b"12345")._replace(length=4))
    refuse(raw, ProtocolError)


def test_a_damaged_cell_is_refused(raw: Raw) -> None:
    raw.begin_put(header(), 10 * MIB)
    raw.cell(b"x" * 4096)
    before = metrics.STORE_CHECKSUMS.value("received")
    raw.cell(b"y" * 4096, entry_of(b"z" * 4096))
    refuse(raw, Corrupt)
    assert metrics.STORE_CHECKSUMS.value("received") == before + 1


@pytest.mark.parametrize("size", [0, 4096, 8193])
def test_a_count_of_cells_that_does_not_fit_the_size_is_refused(raw: Raw, size: int) -> None:
    raw.begin_put(header())
    raw.cell(b"x" * 4096)
    raw.cell(b"x" * 4096)
    raw.end(size)
    refuse(raw, Corrupt)


@pytest.mark.parametrize("end", [b"", b"{}", bytes(8), bytes(10), End(1 << 63, True).encode()])
def test_an_end_without_a_size_is_refused(raw: Raw, end: bytes) -> None:
    raw.begin_put(header())
    raw.cell(b"four")
    raw.sock.sendall(wire.encode(Type.END, end))
    refuse(raw, ProtocolError)


@pytest.mark.parametrize("kind", [Type.PUT, Type.GET, Type.INFO, Type.OK])
def test_another_frame_in_the_middle_of_a_put_is_refused(raw: Raw, kind: Type) -> None:
    raw.begin_put(header())
    raw.cell(b"four")
    raw.sock.sendall(wire.encode(kind, raw.request()))
    refuse(raw, ProtocolError)


def test_a_put_of_a_policy_no_node_knows_is_refused(raw: Raw) -> None:
    raw.begin_put(replace(header(), policy=Policy(99, 1)))
    refuse(raw, ProtocolError)


def test_a_put_that_takes_longer_than_its_deadline_is_refused(raw: Raw) -> None:
    raw.begin_put(header(), deadline=0.05)
    raw.cell(b"x" * 4096)
    refuse(raw, TooSlow)


def test_a_bug_in_the_store_leaves_nothing_either(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(raw.server.store, "publish", bug)
        raw.begin_put(header(), 5 * MIB)
        raw.cell(b"four")
        raw.end(4)
        assert raw.is_closed()
        assert_no_litter(raw.server.store)
    assert_serves(raw.server)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("sent", ["header", "half a frame", "half a cell", "all but the end", "nothing"])
def test_a_client_that_goes_in_the_middle_leaves_nothing(
    raw: Raw, server: KillableServer, sent: str, reset: bool
) -> None:
    whole_cell = wire.encode(Type.CELL, entry_of(b"x" * 4096).pack(), 4096) + b"x" * 4096
    if sent != "nothing":
        raw.begin_put(header(block_size=4096), 5 * MIB)
        rest = {"header": 0, "half a frame": 10, "half a cell": 3000, "all but the end": len(whole_cell)}
        raw.sock.sendall(whole_cell[: rest[sent]])
        eventually(lambda: list((server.store.folder / "tmp").iterdir()), "the put has begun")
    if reset:
        raw.reset()
    else:
        raw.sock.close()
    eventually(lambda: handlers(server) == 0, "its thread has ended")
    assert_no_litter(server.store)
    assert listed(server.store) == []


def test_a_client_that_stays_silent_in_the_middle_is_let_go_at_its_deadline(
    raw: Raw, server: KillableServer
) -> None:
    raw.begin_put(header(), 5 * MIB, deadline=0.1)
    raw.sock.sendall(wire.encode(Type.CELL, entry_of(b"x" * 4096).pack(), 4096) + b"x" * 1000)
    assert isinstance(raw.error(), TooSlow)
    raw.sock.close()
    eventually(lambda: handlers(server) == 0, "its thread has ended")
    assert_no_litter(server.store)


def test_a_disk_that_fills_up_is_told_while_the_client_still_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder, serving(folder / "node") as server:
        raw = Raw(server)
        raw.begin_put(header(block_size=MIB))
        block = random_bytes(MIB)
        sending = threading.Thread(target=_send_until_cut, args=[raw, block, 40])
        sending.start()
        assert isinstance(raw.error(), Full)
        raw.sock.close()
        sending.join()
        assert_no_litter(server.store)
        assert_serves(server)


def _send_until_cut(raw: Raw, block: bytes, count: int) -> None:
    try:
        for _ in range(count):
            raw.cell(block)
    except OSError:
        pass


def test_more_than_the_disk_has_is_refused_before_the_first_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder, serving(folder / "node") as server:
        raw = Raw(server)
        raw.begin_put(header(), 1 << 50)
        assert isinstance(raw.error(), Full)
        raw.sock.close()


def test_a_disk_error_is_answered_in_words_and_the_connection_goes_on(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragment = put(raw.server.store, header(), b"data")

    def broken(*_: object, **__: object) -> None:
        raise NodeUnavailable("read: Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(raw.server.store, "get", broken)
        with pytest.raises(NodeUnavailable, match="Input/output error"):
            raw.cells(fragment, 0, 1)
    assert raw.cells(fragment, 0, 1) == b"data"


def test_a_disk_error_in_a_put_is_answered_in_words(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise NodeUnavailable("put: Input/output error")

    monkeypatch.setattr(raw.server.store, "put", broken)
    raw.begin_put(header())
    raw.cell(b"x" * 4096)
    assert "Input/output error" in str(raw.error())


# --- a fragment of one cell, in one frame ---------------------------------------------------------------------


def test_a_fragment_in_one_frame_is_the_file_that_it_is_in_several(raw: Raw) -> None:
    store, head = raw.server.store, header()
    for data in (b"x", random_bytes(4095), random_bytes(4096)):
        raw.begin_put(head)
        raw.cell(data)
        raw.end(len(data))
        raw.stored()
        several = store.path(head.id).read_bytes()
        store.delete(head.id, soon())
        frame = raw.whole(head, data)
        raw.sock.sendall(frame)
        said = frame[wire.PREFIX_SIZE : len(frame) - len(data)]
        assert raw.stored() == xxh3_64_digest(said)
        assert store.path(head.id).read_bytes() == several
    assert_no_litter(store)


def test_a_fragment_in_one_frame_that_comes_a_byte_at_a_time_is_stored(raw: Raw) -> None:
    head, data = header(block_size=MIB), random_bytes(200)
    for byte in raw.whole(head, data):
        raw.sock.sendall(bytes([byte]))
    raw.stored()
    assert raw.cells(head.id, 0, 1) == data


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"entry": entry_of(b"FOUR")}, "fails its checksum"),
        ({"slice_size": 0}, "some were lost"),
        ({"slice_size": 4097}, "some were lost"),
        ({"packed": header().pack()[:-1] + b"x"}, "header"),
    ],
)
def test_a_damaged_fragment_in_one_frame_is_refused_and_the_connection_goes_on(
    raw: Raw, other: dict[str, Any], words: str
) -> None:
    raw.sock.sendall(raw.whole(header(), b"four", **other))
    error = raw.error()
    assert isinstance(error, Corrupt)
    assert words in str(error)
    assert listed(raw.server.store) == []
    assert_no_litter(raw.server.store)
    head = header()
    raw.sock.sendall(raw.whole(head, b"four"))
    raw.stored()
    assert raw.cells(head.id, 0, 1) == b"four"


def test_a_fragment_in_one_frame_of_another_length_than_its_entry_is_refused(raw: Raw) -> None:
    raw.sock.sendall(raw.whole(header(), b"12345", entry_of(b"12345")._replace(length=4)))
    refuse(raw, ProtocolError)


def test_a_frame_that_is_longer_than_a_small_fragment_is_refused(raw: Raw) -> None:
    raw.sock.sendall(raw.whole(header(block_size=MIB), bytes(wire.MAX_WHOLE + 1)))
    refuse(raw, ProtocolError)


def test_a_fragment_in_one_frame_that_does_not_come_by_its_deadline_is_refused(raw: Raw) -> None:
    data = b"x" * 4096
    raw.sock.sendall(raw.whole(header(), data, deadline=0.05)[:-1])
    refuse(raw, TooSlow)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_client_that_goes_in_the_middle_of_one_frame_leaves_nothing(raw: Raw, reset: bool) -> None:
    raw.sock.sendall(raw.whole(header(), b"x" * 4096)[:-1])
    if reset:
        raw.reset()
    else:
        raw.sock.close()
    eventually(lambda: handlers(raw.server) == 0, "its thread has ended")
    assert_no_litter(raw.server.store)
    assert listed(raw.server.store) == []


@pytest.mark.parametrize("frames", ["one", "several"])
def test_a_client_that_goes_while_its_fragment_is_written_leaves_nothing(
    raw: Raw, frames: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has gone has it removed wherever it can be: it must not be there afterwards."""
    head, gone, fsync = header(), threading.Event(), os.fsync
    said = {
        "one": raw.whole(head, b"four"),
        "several": raw.put(head)
        + wire.encode(Type.CELL, entry_of(b"four").pack(), 4)
        + b"four"
        + wire.encode(Type.END, End(4, True).encode()),
    }

    def goes(fd: int) -> None:
        raw.sock.close()
        gone.set()
        fsync(fd)

    monkeypatch.setattr(os, "fsync", unplanned(goes))
    raw.sock.sendall(said[frames])
    assert gone.wait(10)
    eventually(lambda: handlers(raw.server) == 0, "its thread has ended")
    assert_no_litter(raw.server.store)
    assert listed(raw.server.store) == []


def test_a_disk_that_is_full_says_so_of_a_fragment_in_one_frame_and_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", monkeypatch) as folder, serving(folder / "node") as server:
        raw = Raw(server)
        error: DistfsError | None = None
        for _ in range(2 * SMALL // wire.MAX_WHOLE):
            raw.sock.sendall(raw.whole(header(block_size=MIB), bytes(wire.MAX_WHOLE)))
            answer = raw.wire.receive_frame()
            if answer.type is Type.ERROR:
                error = wire.decode_error(answer.header(), "node")
                break
        assert isinstance(error, Full)
        assert_no_litter(server.store)
        raw.sock.close()


def test_a_small_fragment_is_sent_in_one_frame_and_a_larger_one_in_several(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[FragmentId] = []
    keep = DiskStore.keep

    def noted(store: DiskStore, head: Outline, *rest: Any) -> None:
        kept.append(head.id)
        keep(store, head, *rest)

    monkeypatch.setattr(DiskStore, "keep", noted)
    with client_of(server) as client:
        sizes = [0, 1, 4095, 4096, 4097, 8191]
        small = [put(client, header(), random_bytes(size)) for size in sizes]
        mib = [put(client, header(block_size=MIB), random_bytes(n)) for n in (4096, 65535, 65536, MIB + 5)]
        assert kept == [small[1], small[2], mib[0], mib[1]]
        assert [len(whole(client, id)) for id in small] == sizes
        assert [len(whole(client, id)) for id in mib] == [4096, 65535, 65536, MIB + 5]


def test_cells_that_are_all_short_are_not_gathered_in_memory(server: KillableServer) -> None:
    """Those of a code are a part of their block."""
    head = header(policy=Policy(4, 2), block_size=MIB)
    with client_of(server) as client:
        writer = cast(RemoteWriter, client.put(head, 0, soon()))
        for number in range(20):
            cell = random_bytes(1000, number)
            writer.write_cell(entry_of(cell), memoryview(cell))
            assert len(writer._unsent) + sum(len(data) for _, data in filter(None, [writer._held])) <= 1000
        writer.finish(20 * MIB, True)
        writer.commit()
        assert whole(client, head.id) == b"".join(random_bytes(1000, number) for number in range(20))
