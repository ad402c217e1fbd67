"""The proxy does what it says: else tests that use it show nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from distfs.model import Address
from tests.contract.litter import eventually
from tests.faults import ledger
from tests.faults.proxy import Proxy


@contextmanager
def through() -> Iterator[tuple[Proxy, socket.socket, socket.socket]]:
    """A proxy, a client's socket, and the socket it is connected to."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Proxy(Address(*listener.getsockname())) as proxy:
        with socket.create_connection((proxy.address.host, proxy.address.port)) as client:
            server, _ = listener.accept()
            with server:
                client.settimeout(20)
                server.settimeout(20)
                yield proxy, client, server


def receive(sock: socket.socket, size: int) -> bytes:
    came = b""
    while len(came) < size and (data := sock.recv(size - len(came))):
        came += data
    return came


def test_bytes_pass_both_ways_and_so_does_the_end() -> None:
    with through() as (_, client, server):
        data = bytes(range(256)) * 4096
        threading.Thread(target=client.sendall, args=(data,)).start()
        assert receive(server, len(data)) == data
        server.sendall(b"answer")
        assert receive(client, 6) == b"answer"
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.sendall(b"still open")
        assert receive(client, 10) == b"still open"


def test_a_delay_is_one_way_and_a_delay_line() -> None:
    with through() as (proxy, client, server):
        proxy.down.delay = 0.3
        started = time.monotonic()
        server.sendall(b"a")
        time.sleep(0.2)
        server.sendall(b"b")
        assert receive(client, 1) == b"a"
        assert time.monotonic() - started >= 0.3
        assert receive(client, 1) == b"b"
        assert time.monotonic() - started >= 0.5


def test_a_rate_holds() -> None:
    with through() as (proxy, client, server):
        proxy.up.rate = 20_000
        started = time.monotonic()
        client.sendall(bytes(5000))
        assert len(receive(server, 5000)) == 5000
        assert time.monotonic() - started >= 0.2


def test_what_is_held_arrives_when_it_is_released() -> None:
    with through() as (proxy, client, server):
        proxy.up.at(3, proxy.up.hold)
        client.sendall(b"abcdef")
        assert receive(server, 3) == b"abc"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(1)
        server.settimeout(20)
        proxy.up.release()
        assert receive(server, 3) == b"def"


def test_a_reset_is_a_reset_on_both_sides() -> None:
    with through() as (proxy, client, server):
        client.sendall(b"x")
        assert receive(server, 1) == b"x"
        proxy.reset()
        for sock in (client, server):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        eventually(lambda: proxy.connections == 0, "the proxy has let go")


def test_one_bit_is_flipped_where_it_was_asked_for() -> None:
    with through() as (proxy, client, server):
        proxy.up.flip_at(2)
        client.sendall(b"abcdef")
        assert receive(server, 6) == bytes([*b"ab", ord("c") ^ 0x10, *b"def"])


FAULTS: dict[str, Callable[[Proxy], object]] = {
    "flip": lambda proxy: proxy.up.flip_at(6),
    "action": lambda proxy: proxy.up.at(6, proxy.reset),
    "delay": lambda proxy: setattr(proxy.down, "delay", 0.1),
    "rate": lambda proxy: setattr(proxy.down, "rate", 1000),
    "hold": lambda proxy: proxy.down.hold(),
    "refusal": lambda proxy: setattr(proxy, "refuses", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_met_nobody_fails_the_test(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six bytes go up; nothing comes down, and nobody connects."""
    monkeypatch.setattr(ledger, "_PATIENCE_S", 0.1)
    with through() as (proxy, client, server):
        for end in (proxy.heal, lambda: proxy.__exit__(None, None, None)):
            FAULTS[fault](proxy)
            client.sendall(b"abcdef")
            assert receive(server, 6) == b"abcdef"
            with pytest.raises(ledger.FaultMetNobody, match="never happened"):
                end()
            if end == proxy.heal:
                client.sendall(b"x")
                assert receive(server, 1) == b"x", "healed all the same"


def test_one_of_several_that_could_be_met_is_enough() -> None:
    with through() as (proxy, client, server), Proxy(proxy.node, proxy._ledger) as other:
        for each in (proxy, other):
            each.up.flip_at(0)
        client.sendall(b"a")
        assert receive(server, 1) != b"a"
        proxy.heal()


def test_half_a_connection_ends() -> None:
    with through() as (proxy, client, server):
        proxy.down.end()
        assert client.recv(1) == b""
        client.sendall(b"still heard")
        assert receive(server, 11) == b"still heard"
