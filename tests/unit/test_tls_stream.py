"""A socket under TLS is called as one without: against Python's own, over buffers that are nearly always full."""

from __future__ import annotations

import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from distfs.errors import ClientGone
from distfs.host.client_socket import ClientSocket
from distfs.tls.contexts import _https
from distfs.tls.stream import PIECE, PlainText, TlsSocket, waiting_in
from tests.certificates import Certificates

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def context(certificates: Certificates) -> ssl.SSLContext:
    return _https([certificates.service()])


@dataclass
class Pair:
    ours: TlsSocket
    theirs: ssl.SSLSocket


def soon() -> float:
    return time.monotonic() + 30


def joined(certificates: Certificates, context: ssl.SSLContext, version: ssl.TLSVersion) -> Pair:
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    ours = TlsSocket(left, context, server_side=True)
    client = certificates.client(version)
    with ThreadPoolExecutor(1) as threads:
        theirs = threads.submit(client.wrap_socket, right, server_hostname="localhost")
        ours.shake(soon())
        pair = Pair(ours, theirs.result(30))
    ours.setblocking(True)
    return pair


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def pair(
    certificates: Certificates, context: ssl.SSLContext, request: pytest.FixtureRequest
) -> Iterator[Pair]:
    pair = joined(certificates, context, request.param)
    yield pair
    pair.ours.close()
    pair.theirs.close()


def send_all(sock: TlsSocket, data: bytes, seed: int) -> int:
    """In pieces of all sizes, never waiting in a call; -> how often the socket was full."""
    draw, full, at = random.Random(seed), 0, 0
    while at < len(data):
        end = min(len(data), at + draw.choice([1, 100, PIECE - 1, PIECE, PIECE + 1, 300_000]))
        cut = draw.randint(at, end)
        views = [memoryview(data)[at:cut], memoryview(data)[cut:end]]
        try:
            at += sock.sendmsg(views, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            full += 1
            select.select([], [sock], [], 30)
    return full


def test_what_a_full_socket_did_not_take_is_given_again_and_arrives_once(pair: Pair) -> None:
    data = random.Random(1).randbytes(5 << 20)

    def read() -> bytes:
        got = bytearray()
        while len(got) < len(data):
            got += pair.theirs.recv(70_000)
        return bytes(got)

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        assert send_all(pair.ours, data, 2) > 0
        assert reading.result(60) == data


def test_what_comes_is_received_with_every_flag(pair: Pair) -> None:
    data, draw, got = random.Random(3).randbytes(5 << 20), random.Random(4), bytearray()
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(pair.theirs.sendall, data)
        while len(got) < len(data):
            view = memoryview(bytearray(min(draw.choice([1, 100, 16384, 300_000]), len(data) - len(got))))
            flags = draw.choice([0, socket.MSG_DONTWAIT, socket.MSG_WAITALL])
            if draw.random() < 0.2:
                first = pair.ours.recv(1, socket.MSG_PEEK)
                assert first == data[len(got) : len(got) + 1]
            try:
                count = pair.ours.recv_into(view, len(view), flags)
            except BlockingIOError:
                assert flags == socket.MSG_DONTWAIT
                select.select([pair.ours], [], [], 30)
                continue
            assert count > 0
            got += view[:count]
        sending.result(30)
    assert got == data


def test_both_ways_at_once(pair: Pair) -> None:
    data = random.Random(5).randbytes(3 << 20)
    back = bytearray()

    def echo() -> None:
        done = 0
        while done < len(data):
            piece = pair.theirs.recv(20_000)
            pair.theirs.sendall(piece)
            done += len(piece)

    def receive() -> None:
        view = memoryview(bytearray(50_000))
        while len(back) < len(data):
            back.extend(view[: pair.ours.recv_into(view)])

    threads = [threading.Thread(target=each) for each in (echo, receive)]
    for thread in threads:
        thread.start()
    send_all(pair.ours, data, 6)
    for thread in threads:
        thread.join(60)
    assert back == data


def test_bytes_that_no_poll_shows_are_pending(pair: Pair) -> None:
    pair.theirs.sendall(b"x" * 1000)
    view = memoryview(bytearray(10))
    assert pair.ours.recv_into(view) == 10
    assert not select.select([pair.ours], [], [], 0)[0]
    assert pair.ours.pending
    assert pair.ours.waiting() >= 990
    rest = bytearray(990)
    assert pair.ours.recv_into(rest, 990) == 990
    with pytest.raises(BlockingIOError):
        pair.ours.recv_into(view, 10, socket.MSG_DONTWAIT)
    assert not pair.ours.pending


def test_a_goodbye_is_the_end_both_ways(pair: Pair) -> None:
    pair.ours.shutdown(socket.SHUT_WR)
    assert pair.theirs.recv(10) == b""
    pair.theirs.close()
    while pair.ours.recv(100):  # what TLS itself still says
        pass


def test_an_end_without_a_goodbye_is_an_end(pair: Pair) -> None:
    pair.ours.send(b"x")
    assert pair.theirs.recv(1) == b"x"  # and what TLS says before it, or closing it would be a reset
    socket.socket(fileno=pair.theirs.detach()).close()
    assert pair.ours.recv(10) == b""
    assert pair.ours.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""


def test_a_byte_that_was_changed_on_the_way_is_an_error(pair: Pair) -> None:
    raw = socket.socket(fileno=pair.theirs.detach())
    raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(ssl.SSLError):
        pair.ours.recv(10)
    raw.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"\x00\x01", b"SSH-2.0-x\r\n"])
def test_who_speaks_no_tls_is_told_apart(context: ssl.SSLContext, said: bytes) -> None:
    left, right = socket.socketpair()
    with left, right:
        right.sendall(said)
        with pytest.raises(PlainText) as caught:
            TlsSocket(left, context, server_side=True).recv(10)
        assert caught.value.said == said


@dataclass
class InPieces:
    """A client whose bytes of TLS go when, and as, the test says."""

    ours: TlsSocket
    raw: socket.socket
    tls: ssl.SSLObject
    out: ssl.MemoryBIO

    def record(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.out.read()


@pytest.fixture
def in_pieces(certificates: Certificates, context: ssl.SSLContext) -> Iterator[InPieces]:
    left, right = socket.socketpair()
    ours = TlsSocket(left, context, server_side=True, record_s=0.0)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = certificates.client().wrap_bio(into, out, server_hostname="localhost")
    with left, right, ThreadPoolExecutor(1) as threads:
        shaking = threads.submit(ours.shake, soon())
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                right.sendall(out.read())
                into.write(right.recv(100_000))
        right.sendall(out.read())
        shaking.result(30)
        ours.setblocking(True)
        yield InPieces(ours, right, tls, out)


def test_the_end_of_a_record_that_came_too_slowly_is_not_left_where_no_poll_shows_it(
    in_pieces: InPieces,
) -> None:
    record, buffer = in_pieces.record(b"whole"), bytearray(10)
    in_pieces.raw.sendall(record[:7])
    with ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(in_pieces.ours.recv_into, buffer)
        while waiting_in(in_pieces.ours.raw):  # until the first piece was taken
            time.sleep(0.001)
        in_pieces.raw.sendall(record[7:])
        try:
            count = receiving.result(30)
        except BlockingIOError:  # it looked between the two
            assert select.select([in_pieces.ours], [], [], 30)[0], "the end is shown by a poll"
            count = in_pieces.ours.recv_into(buffer)
    assert buffer[:count] == b"whole"


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_a_record_that_trickles_is_as_slow_as_it_is(in_pieces: InPieces, way: str) -> None:
    """Each piece of it ends a wait. A client that is too slow is let go of before its record is whole."""
    never, cut = socket.socketpair()
    gone = threading.Event()
    client = ClientSocket(in_pieces.ours, 1.0, 1 << 20, cut.fileno())
    in_pieces.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def trickle() -> None:
        for at in range(len(record)):
            if gone.wait(0.02):
                return
            if way == "reading":
                in_pieces.raw.sendall(record[at : at + 1])
            else:
                in_pieces.raw.recv(1024)

    def move() -> None:
        if way == "reading":
            client.receive_into(memoryview(bytearray(100)))
        else:
            client.send([memoryview(bytes(16 << 20))])

    record = in_pieces.record(bytes(16_000))[:500]  # its end does not come
    with never, cut, ThreadPoolExecutor(1) as threads:
        trickling = threads.submit(trickle)
        try:
            with pytest.raises(ClientGone, match="slower than"):
                move()
            assert client.moved == 0
        finally:
            gone.set()
            in_pieces.ours.close()
        trickling.result(30)


def test_a_handshake_that_trickles_ends_in_time(context: ssl.SSLContext) -> None:
    left, right = socket.socketpair()
    with left, right:
        right.sendall(b"\x16\x03\x01\x02\x00\x01")
        with pytest.raises(TimeoutError):
            TlsSocket(left, context, server_side=True).shake(time.monotonic() + 0.2)


def test_who_says_nothing_costs_no_tls(context: ssl.SSLContext) -> None:
    left, right = socket.socketpair()
    with left, right:
        ours = TlsSocket(left, context, server_side=True)
        with pytest.raises(BlockingIOError):
            ours.recv(1, socket.MSG_DONTWAIT)
        assert ours._tls is None
