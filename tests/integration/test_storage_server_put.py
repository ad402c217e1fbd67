"""Puts that go wrong, over raw sockets: refused in words, and nothing is left."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from distfs.errors import (
    Corrupt,
    DistfsError,
    Full,
    NodeUnavailable,
    ProtocolError,
    TooSlow,
)
from distfs.formats import wire
from distfs.formats.wire import Type
from tests.contract.litter import assert_no_litter, eventually
from tests.contract.nodes import KillableServer, serving
from tests.contract.samples import MIB, entry_of, header, listed, put, random_bytes
from tests.integration.raw_wire import Raw, assert_serves, handlers
from tests.small_disk import small_disk

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
    raw.cell(b"y" * 4096, entry_of(b"z" * 4096))
    refuse(raw, Corrupt)


@pytest.mark.parametrize("size", [0, 4096, 8193])
def test_a_count_of_cells_that_does_not_fit_the_size_is_refused(raw: Raw, size: int) -> None:
    raw.begin_put(header())
    raw.cell(b"x" * 4096)
    raw.cell(b"x" * 4096)
    raw.end(size)
    refuse(raw, Corrupt)


@pytest.mark.parametrize("end", [{}, {"slice_size": -1}, {"slice_size": "4"}, {"slice_size": 1 << 63}])
def test_an_end_without_a_size_is_refused(raw: Raw, end: dict[str, Any]) -> None:
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
    raw.begin_put(header(), policy=[99, 1])
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
            raw.ask(Type.GET, **wire.encode_id(fragment), first=0, count=1)
    assert raw.ask(Type.GET, **wire.encode_id(fragment), first=0, count=1)[1].endswith(b"data")


def test_a_disk_error_in_a_put_is_answered_in_words(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise NodeUnavailable("put: Input/output error")

    monkeypatch.setattr(raw.server.store, "put", broken)
    raw.begin_put(header())
    raw.cell(b"x" * 4096)
    assert "Input/output error" in str(raw.error())
