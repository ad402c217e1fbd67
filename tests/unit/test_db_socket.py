"""A statement's message out and its answer in, without a look at the clock when there is time enough."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from distfs.deadline import Deadline
from distfs.metadb.db_socket import DBSocket, Stream

LARGE = bytes(range(256)) * 16384  # more than sockets take


@pytest.fixture
def ends() -> Iterator[tuple[Stream, DBSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    sock = DBSocket(fileno=ours.detach())
    with contextlib.closing(sock), contextlib.closing(theirs):
        yield Stream(sock), sock, theirs


def asked(stream: Stream, sock: DBSocket, data: bytes, seconds: float) -> bytes:
    sock.limit = Deadline(seconds)
    return stream.ask(data, sock.limit.remaining())


def echo(theirs: socket.socket, count: int) -> bytearray:
    """Take so many bytes, then say `ok`."""
    got = bytearray()
    while len(got) < count:
        got += theirs.recv(1 << 20)
    theirs.sendall(b"ok")
    return got


@pytest.mark.parametrize("data", [b"one", LARGE], ids=["small", "large"])
def test_all_of_it_goes_out_whether_or_not_the_clock_was_looked_at(
    ends: tuple[Stream, DBSocket, socket.socket], data: bytes
) -> None:
    stream, sock, theirs = ends
    for _ in range(3):
        got: list[bytearray] = []
        peer = threading.Thread(target=lambda got=got: got.append(echo(theirs, len(data))))
        peer.start()
        assert asked(stream, sock, data, 60) == b"ok"
        peer.join()
        assert got == [data]


@pytest.mark.parametrize("data", [b"one", LARGE], ids=["silent", "full"])
def test_who_says_nothing_is_waited_for_until_the_limit(
    ends: tuple[Stream, DBSocket, socket.socket], data: bytes
) -> None:
    stream, sock, theirs = ends
    for seconds in (0.4, 0.4):
        threading.Thread(target=echo, args=(theirs, 3)).start()
        assert asked(stream, sock, b"one", seconds) == b"ok"
    with pytest.raises(TimeoutError):
        asked(stream, sock, data, 0.4)


def test_what_came_before_is_taken_first(ends: tuple[Stream, DBSocket, socket.socket]) -> None:
    stream, sock, theirs = ends
    theirs.sendall(b"12345")
    assert asked(stream, sock, b"one", 60) == b"12345"
    theirs.sendall(b"6789")
    sock.limit = Deadline(60)
    assert stream.read(2) == b"67"
    assert asked(stream, sock, b"two", 60) == b"89"
