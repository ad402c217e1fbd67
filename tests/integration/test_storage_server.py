"""A storage node over raw sockets: what it answers to those who speak its wire well, badly, slowly, or not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from distfs import storage_server
from distfs.config.settings import Seconds
from distfs.errors import (
    Corrupt,
    NodeUnavailable,
    NotFound,
    ProtocolError,
    Unavailable,
)
from distfs.formats import hello, wire
from distfs.formats.fixed import End, Get, Put, Whole
from distfs.formats.fragment import CellEntry
from distfs.formats.wire import Type
from distfs.model import FragmentId
from distfs.storage import connection as node_connection
from tests.contract.litter import assert_no_litter, eventually
from tests.contract.nodes import NODE, PEERS, KillableServer, client_of, serving
from tests.contract.samples import MIB, cut, entry_of, header, put, random_bytes, soon, whole
from tests.integration.raw_wire import Raw, assert_serves, handlers

# --- who may ask what ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cluster": uuid4().hex}, "this node is of another cluster than the request"),
        ({"cluster": None}, "this node is of another cluster than the request"),
        ({"node": uuid4().hex}, "the request is for another node than this one"),
        ({"node": 5}, "the request is for another node than this one"),
        ({"deadline": None}, "no deadline"),
        ({"deadline": "soon"}, "no deadline"),
        ({"deadline": [1]}, "no deadline"),
        ({"deadline": 0}, "deadline is"),
        ({"deadline": -3}, "deadline is"),
        ({"deadline": float("nan")}, "deadline is"),
        ({"deadline": 10**400}, "no deadline"),
    ],
)
def test_a_request_that_is_not_for_this_node_is_refused_in_words(
    raw: Raw, fields: dict[str, Any], words: str
) -> None:
    raw.sock.sendall(wire.encode(Type.INFO, raw.request(**fields)) + b"x" * 100_000)
    error = raw.error()
    assert isinstance(error, ProtocolError)
    assert words in str(error)
    assert raw.is_closed()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("cluster", "this node is of another cluster than the request"),
        ("node", "the request is for another node than this one"),
        (0.0, "deadline is"),
        (-3.0, "deadline is"),
        (float("nan"), "deadline is"),
    ],
)
@pytest.mark.parametrize("kind", [Type.PUT, Type.GET, Type.WHOLE])
def test_a_move_that_is_not_for_this_node_is_refused_in_words(
    raw: Raw, kind: Type, wrong: str | float, words: str
) -> None:
    cluster = uuid4() if wrong == "cluster" else raw.server.store.cluster
    node = uuid4() if wrong == "node" else raw.server.store.node
    to, deadline = cluster.bytes + node.bytes, wrong if isinstance(wrong, float) else 30.0
    head = replace(header(), cluster=cluster)
    said: dict[Type, Get | Put | Whole] = {
        Type.GET: Get(to, deadline, head.id, 0, 1, False, b"t"),
        Type.PUT: Put(to, deadline, 5, head.pack(), b"t"),
        Type.WHOLE: Whole(to, deadline, 5, True, entry_of(b"hello"), head.pack(), b"t"),
    }
    body = 5 if kind is Type.WHOLE else 0
    raw.sock.sendall(wire.encode(kind, said[kind].encode(), body) + b"hello" + b"x" * 100_000)
    error = raw.error()
    assert isinstance(error, ProtocolError)
    assert words in str(error)
    assert raw.is_closed()
    assert_no_litter(raw.server.store)


def everything_it_says(server: KillableServer, data: bytes) -> bytes:
    """Until the node ends the connection, or waits for more of what was sent."""
    with socket.create_connection((server.address.host, server.address.port), 60) as sock:
        sock.sendall(data)
        with contextlib.suppress(OSError):  # it has read nothing and ended the connection already
            sock.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(1 << 16):
                said += piece
    return said


@pytest.mark.parametrize("kind", list(Type))
@pytest.mark.parametrize("knows", ["nothing", "the cluster", "the node", "both"])
def test_a_stranger_is_told_only_that_he_is_not_welcome(
    server: KillableServer, kind: Type, knows: str
) -> None:
    """Also one who has learned the ids: they are no secrets."""
    store = server.store
    fragment = put(store, header(), b"somebody's")
    header_ = {
        "cluster": (store.cluster if knows in ("the cluster", "both") else uuid4()).hex,
        "node": (store.node if knows in ("the node", "both") else uuid4()).hex,
        "deadline": 30,
        **wire.encode_id(fragment),
    }
    to = UUID(header_["cluster"]).bytes + UUID(header_["node"]).bytes
    strange = [
        wire.encode(kind, header_),
        wire.encode(kind, Get(to, 30, fragment, 0, 1, False, b"").encode()),
        wire.encode(kind, Put(to, 30, 5, header().pack(), b"").encode()),
        wire.encode(kind, Whole(to, 30, 5, True, entry_of(b"hello"), header().pack(), b"").encode()),
        wire.encode(kind, {}),
        wire.encode(kind, b"[]"),
        struct.pack(">4sBBHIQ", b"DFSW", 9, kind, 0, 2, 0) + b"{}",
        b"GET / HTTP/1.0\r\nHost: node\r\n\r\n",
    ]
    for data in strange:
        assert everything_it_says(server, data) in (b"", hello.REFUSED)  # nothing: it was reset
    assert whole(store, fragment) == b"somebody's"


def test_a_node_that_is_full_of_connections_or_stops_tells_no_stranger(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = wire.encode(Type.INFO, {})
    monkeypatch.setattr(storage_server, "MAX_CONNECTIONS", 0)
    with pytest.raises(Unavailable, match="connections already"), client_of(server) as client:
        client.info(soon())
    said = [everything_it_says(server, request)]
    monkeypatch.undo()
    server.drain(threading.Event())
    said.append(everything_it_says(server, request))
    assert set(said) <= {b"", hello.REFUSED}


def test_another_version_is_told_both_versions(raw: Raw) -> None:
    raw.sock.sendall(struct.pack(">4sBBHIQ", b"DFSW", 1, Type.INFO, 0, 2, 0) + b"{}" + b"y" * 300_000)
    assert "version 1, this distfs 2" in str(raw.error())
    assert raw.is_closed()
    assert_serves(raw.server)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /download/x HTTP/1.1\r\nHost: node\r\n\r\n",
        bytes(64),
        b"\xff" * 5000,
        struct.pack(">4sBBHIQ", b"DFSW", 2, 99, 0, 2, 0) + b"{}",
        struct.pack(">4sBBHIQ", b"DFSW", 2, Type.INFO, 0, 2, 5) + b"{}12345",
        struct.pack(">4sBBHIQ", b"DFSW", 2, Type.GET, 0, 2, 2**63) + b"{}",
        struct.pack(">4sBBHIQ", b"DFSW", 2, Type.INFO, 0, 2**32 - 1, 0),
        wire.encode(Type.INFO, b"[1]"),
        wire.encode(Type.INFO, b"[" * 50_000),
        wire.encode(Type.INFO, b"not json"),
        wire.encode(Type.CELL, CellEntry(0, 0, 0, 0).pack()),
        wire.encode(Type.OK, {}),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(raw: Raw, data: bytes) -> None:
    raw.sock.sendall(data)
    assert isinstance(raw.error(), ProtocolError)
    assert raw.is_closed()
    assert_serves(raw.server)


@pytest.mark.parametrize("kind", [Type.CELL, Type.END, Type.OK, Type.ERROR, Type.STORED, Type.CELLS])
def test_what_only_an_answer_or_a_put_may_hold_is_no_request(raw: Raw, kind: Type) -> None:
    raw.sock.sendall(wire.encode(kind, raw.request()))
    assert "is not a request" in str(raw.error())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Type.STAT, {}),
        (Type.DELETE, {"slice": uuid4().hex}),
        (Type.DELETE, {"slice": uuid4().hex, "index": float("inf")}),
        (Type.VERIFY, {"slice": uuid4().hex, "index": 99}),
        (Type.LIST, {"cursor": ""}),
        (Type.LIST, {"cursor": "", "limit": "many"}),
        (Type.QUARANTINE, {"slice": uuid4().hex, "index": 0}),
        (Type.DISCARD, {"slice": uuid4().hex, "index": 0, "min_age": float("nan")}),
        (Type.PUT, {"size_hint": 0}),
        (Type.GET, {"slice": uuid4().hex, "index": 0, "first": 0, "count": 1}),
        (Type.WHOLE, {}),
    ],
)
def test_a_request_with_missing_or_wrong_fields_is_refused(
    raw: Raw, kind: Type, fields: dict[str, Any]
) -> None:
    raw.sock.sendall(wire.encode(kind, raw.request(**fields)))
    assert isinstance(raw.error(), ProtocolError)
    assert_serves(raw.server)


def test_many_requests_are_served_on_one_connection(raw: Raw) -> None:
    for number in range(40):
        head = header()
        data = random_bytes(number * 500)
        raw.begin_put(head)
        for block in cut(data, 4096):
            raw.cell(block)
        raw.end(len(data))
        raw.stored()
        fields = wire.encode_id(head.id)
        assert raw.cells(head.id, 0, 99) == data
        with pytest.raises(NotFound):
            raw.cells(header().id, 0, 1)
        assert raw.ask(Type.VERIFY, **fields)[0] == {"bad": []}
        assert raw.ask(Type.DELETE, **fields)[0] == {"deleted": True}
    assert raw.ask(Type.LIST, cursor="", limit=10) == ({"cursor": None}, b"")
    assert len(raw.server.connections) == 1


def test_requests_may_be_sent_before_the_answers_are_read(raw: Raw) -> None:
    raw.sock.sendall(wire.encode(Type.INFO, raw.request()) * 50)
    for _ in range(50):
        assert raw.answer()[0]["node"] == raw.server.store.node.hex


def test_a_whole_put_in_one_segment_is_stored(raw: Raw) -> None:
    head = header()
    cell = wire.encode(Type.CELL, entry_of(b"hello").pack(), 5) + b"hello"
    raw.sock.sendall(raw.put(head, 5) + cell + wire.encode(Type.END, End(5, True).encode()))
    raw.stored()
    assert whole(raw.server.store, head.id) == b"hello"


def test_a_client_that_sends_a_byte_at_a_time_is_served(raw: Raw) -> None:
    head = header()
    data = b"slow but good"
    stream = (
        raw.put(head)
        + wire.encode(Type.CELL, entry_of(data).pack(), len(data))
        + data
        + wire.encode(Type.END, End(len(data), True).encode())
    )
    for at in range(len(stream)):
        raw.sock.sendall(stream[at : at + 1])
    raw.stored()
    assert whole(raw.server.store, head.id) == data


# --- reading ------------------------------------------------------------------------------------------------


def test_a_corrupt_fragment_is_told_and_the_connection_goes_on(raw: Raw) -> None:
    store = raw.server.store
    fragment = put(store, header(), random_bytes(9000))
    path = store.path(fragment)
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        raw.cells(fragment, 0, 3)
    for kind in (Type.STAT, Type.VERIFY):
        with pytest.raises(Corrupt):
            raw.ask(kind, **wire.encode_id(fragment))
    assert raw.ask(Type.INFO)[0]["state"] == "active"


def test_a_fragment_cut_short_while_it_is_sent_ends_the_connection(raw: Raw) -> None:
    store = raw.server.store
    fragment = put(store, header(block_size=MIB), random_bytes(16 * MIB))
    raw.sock.sendall(raw.get(fragment, 0, 16))
    length = raw.wire.receive_frame().body_length  # the rest waits for us in the sockets' buffers, mostly
    with open(store.path(fragment), "r+b") as f:
        f.truncate(10 * MIB)
    body = bytearray(length)
    with pytest.raises(NodeUnavailable):
        raw.wire.receive_body(memoryview(body))
    assert_serves(raw.server)


def test_the_disk_is_asked_for_what_comes_while_cells_are_sent_and_for_no_more(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself most systems read 128 KiB ahead."""
    asked: list[tuple[int, int]] = []

    def noted(fd: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((offset, length))

    fragment = put(raw.server.store, header(block_size=MIB), random_bytes(24 * MIB))
    monkeypatch.setattr(os, "posix_fadvise", noted)
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    raw.sock.sendall(raw.get(fragment, 2, 20))
    length = raw.wire.receive_frame().body_length
    assert asked
    assert sum(size for _, size in asked) < 20 * MIB, "of the last ones it is soon enough later"
    raw.wire.receive_body(memoryview(bytearray(length)))
    assert raw.ask(Type.INFO)[0]  # so the one before has ended
    assert sum(size for _, size in asked) == 20 * MIB
    ends = [offset + size for offset, size in asked]
    assert ends[:-1] == [offset for offset, _ in asked[1:]]


def test_a_reader_that_goes_in_the_middle_leaves_nothing(raw: Raw, server: KillableServer) -> None:
    fragment = put(server.store, header(block_size=MIB), random_bytes(16 * MIB))
    raw.sock.sendall(raw.get(fragment, 0, 16))
    raw.sock.recv(1000)
    raw.reset()
    eventually(lambda: handlers(server) == 0, "its thread has ended")
    assert_no_litter(server.store)


def test_a_reader_that_takes_nothing_is_let_go_at_its_deadline(raw: Raw, server: KillableServer) -> None:
    fragment = put(server.store, header(block_size=MIB), random_bytes(16 * MIB))
    raw.sock.sendall(raw.get(fragment, 0, 16, 0.3))
    eventually(lambda: handlers(server) == 0, "its thread has ended")
    assert_no_litter(server.store)


def test_a_reader_that_takes_a_little_now_and_then_is_let_go_soon_after_its_deadline(
    raw: Raw, server: KillableServer
) -> None:
    raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fragment = put(server.store, header(block_size=MIB), random_bytes(16 * MIB))
    raw.sock.sendall(raw.get(fragment, 0, 16, 0.3))
    ends = time.monotonic() + 60
    while handlers(server):
        assert time.monotonic() < ends, "it holds a thread of the node"
        with contextlib.suppress(OSError):
            raw.sock.recv(4096)
        time.sleep(0.01)
    assert_no_litter(server.store)


def test_a_listing_is_paged_on_the_wire(raw: Raw) -> None:
    ids = sorted((put(raw.server.store, header(), b"x") for _ in range(7)), key=str)
    answer, body = raw.ask(Type.LIST, cursor="", limit=3)
    assert _listed(body) == ids[:3]
    assert answer["cursor"] == str(ids[2])
    answer, body = raw.ask(Type.LIST, cursor=answer["cursor"], limit=10**9)
    assert _listed(body) == ids[3:]
    assert answer["cursor"] is None
    assert len(_listed(raw.ask(Type.LIST, cursor="", limit=0)[1])) == 1


def _listed(body: bytes) -> list[FragmentId]:
    return [FragmentId(UUID(bytes=s), i) for s, i, _, _ in wire.LISTED.iter_unpack(body)]


# --- connections ----------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed_quietly(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_connection, "IDLE_LIMIT_S", 0.05)
    raw = Raw(server)
    assert raw.sock.recv(100) == b""
    raw.sock.close()
    eventually(lambda: handlers(server) == 0, "its thread has ended")


@pytest.mark.parametrize("ahead", [0, wire.PREFIX_SIZE, 100])
def test_a_request_that_comes_a_byte_now_and_then_holds_no_thread(tmp_path: Path, ahead: int) -> None:
    """``ahead``: so much of it came with the one before. Its header has as long as the stall limit, in all."""
    with serving(tmp_path / "node", stall_timeout=Seconds(0.3)) as server:
        raw = Raw(server)
        header = wire.encode(Type.INFO, raw.request(request="x" * 10_000))
        raw.sock.sendall(wire.encode(Type.INFO, raw.request()) + header[:ahead])
        raw.answer()
        ends = time.monotonic() + 60
        with contextlib.suppress(OSError):
            for at in range(ahead, len(header)):
                raw.sock.sendall(header[at : at + 1])
                time.sleep(0.03)
                if not handlers(server):
                    break
                assert time.monotonic() < ends, "it holds a thread of the node"
        eventually(lambda: handlers(server) == 0, "its thread has ended")
        raw.sock.close()


def test_too_many_connections_are_refused_in_words_and_room_comes_back(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_server, "MAX_CONNECTIONS", 3)
    held = [Raw(server) for _ in range(3)]
    for each in held:
        each.ask(Type.INFO)
    refused = Raw(server)
    error = refused.error()
    assert type(error) is Unavailable
    assert "3 connections" in str(error)
    assert refused.is_closed()
    held[0].sock.close()
    eventually(lambda: handlers(server) == 2, "a connection has ended")
    again = Raw(server)
    again.ask(Type.INFO)
    for each in (*held, refused, again):
        each.sock.close()


def test_connections_that_cannot_have_a_thread_are_closed(
    server: KillableServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith("(process_request_thread)"):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NodeUnavailable, match="closed the connection"), client_of(server) as client:
            client.info(soon())
    assert handlers(server) == 0
    assert_serves(server)


def test_a_busy_port_is_an_error_that_leaves_nothing(server: KillableServer, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        storage_server.StorageServer(
            server.address.host, server.address.port, server.store, NODE, PEERS.stall_timeout
        )
    assert_serves(server)


def test_errors_are_named_so_that_any_version_understands_them(raw: Raw) -> None:
    raw.sock.sendall(wire.encode(Type.STAT, raw.request(**wire.encode_id(header().id))))
    frame = raw.wire.receive_frame()
    assert frame.type is Type.ERROR
    assert json.loads(frame.raw)["kind"] == "not_found"
