"""A request and its answer in one go each, and all that goes otherwise and is read on."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from distfs.errors import NodeUnavailable
from distfs.formats import wire
from distfs.formats.fixed import Cells, answer_to_small, encode_get, frame_of_small
from distfs.formats.fragment import ENTRY_SIZE
from distfs.formats.wire import Type
from distfs.model import FragmentId
from distfs.wire_socket import ANSWERED, LATE, OTHERWISE, UNSENT, WireSocket
from tests.contract.samples import random_bytes

REQUEST, BODY = b"what is asked", random_bytes(ENTRY_SIZE + 50)
BEGINS = answer_to_small(50)
ANSWER = BEGINS + BODY


@pytest.fixture
def ends() -> Iterator[tuple[WireSocket, socket.socket]]:
    """Ours, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = WireSocket(socket.create_connection(listener.getsockname()), "peer", 60)
        peer, _ = listener.accept()
    with peer:
        yield ours, peer
        ours.close()


def asked(ours: WireSocket, notice: float = 60) -> int:
    return ours.ask(REQUEST, BEGINS, len(ANSWER), 60, notice)


def read_on(ours: WireSocket) -> bytes:
    frame = ours.receive_frame()
    body = bytearray(frame.body_length)
    ours.receive_body(memoryview(body))
    return wire.encode(frame.type, frame.raw, frame.body_length) + bytes(body)


def test_it_is_what_the_frames_are_that_others_send() -> None:
    id, to = FragmentId(uuid4(), 3), random_bytes(32)
    for request in (b"", b"abc", b"r" * 100):
        whole = wire.encode(Type.GET, encode_get(to, 2.5, id, 0, 1, False, request))
        assert frame_of_small(to, 2.5, id, request) == whole
    head = Cells(50, True, ENTRY_SIZE).encode()
    assert wire.encode(Type.CELLS, head, ENTRY_SIZE + 50) == BEGINS


def test_an_answer_that_comes_at_once_is_whole(ends: tuple[WireSocket, socket.socket]) -> None:
    ours, peer = ends
    for _ in range(2):
        peer.sendall(ANSWER)
        assert asked(ours) == ANSWERED
        assert ours.scratch[len(BEGINS) : len(ANSWER)] == BODY
        assert ours.heard
        assert ours.reusable
        assert peer.recv(100) == REQUEST


OTHER: dict[str, bytes] = {
    "an error": wire.encode(Type.ERROR, {"kind": "not_found", "message": "gone"}),
    "another size": answer_to_small(51) + BODY + b"x",
    "as long, and another": wire.encode(Type.CELLS, Cells(49, True, ENTRY_SIZE).encode(), len(BODY)) + BODY,
}


@pytest.mark.parametrize("other", OTHER)
def test_another_answer_is_read_on(ends: tuple[WireSocket, socket.socket], other: str) -> None:
    ours, peer = ends
    peer.sendall(OTHER[other])
    assert asked(ours) == OTHERWISE
    assert ours.heard
    assert read_on(ours) == OTHER[other]


@pytest.mark.parametrize("cut", [1, 10, len(BEGINS), len(BEGINS) + 9, len(ANSWER) - 1])
def test_what_comes_in_pieces_is_read_on(ends: tuple[WireSocket, socket.socket], cut: int) -> None:
    ours, peer = ends
    peer.sendall(ANSWER[:cut])
    assert asked(ours) == OTHERWISE
    peer.sendall(ANSWER[cut:])
    assert read_on(ours) == ANSWER


def test_more_than_was_asked_for_is_not_thrown_away(ends: tuple[WireSocket, socket.socket]) -> None:
    ours, peer = ends
    peer.sendall(ANSWER + b"stray")
    assert asked(ours) == OTHERWISE
    assert read_on(ours) == ANSWER
    assert not ours.reusable


def test_silence_is_late_and_what_comes_then_is_read(ends: tuple[WireSocket, socket.socket]) -> None:
    ours, peer = ends
    assert asked(ours, notice=0.02) == LATE
    assert not ours.heard
    peer.sendall(ANSWER)
    assert read_on(ours) == ANSWER


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()


@pytest.mark.parametrize("end", [lambda peer: peer.shutdown(socket.SHUT_WR), reset])
def test_the_end_of_a_connection_is_said_by_who_reads_on(
    ends: tuple[WireSocket, socket.socket], end: Callable[[socket.socket], object]
) -> None:
    ours, peer = ends
    end(peer)
    while (outcome := asked(ours)) == OTHERWISE:  # of a reset, one of both hears
        assert not ours.heard
        with pytest.raises(NodeUnavailable):
            ours.receive_frame()
        if end is not reset:
            return
    assert outcome == UNSENT
