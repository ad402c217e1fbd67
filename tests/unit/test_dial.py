"""Connecting is bounded, names and all."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from distfs.errors import Busy, NodeUnavailable, TooSlow
from distfs.process.dial import dial
from distfs.wire_socket import WireSocket
from tests.starving import starved

REAL = socket.getaddrinfo


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def resolver(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """``a-name`` has these addresses."""

    def ask(host: str, port: int, **options: Any) -> object:
        if host != "a-name" or options.get("flags"):
            return REAL(host, port, **options)
        return [entry for address in addresses for entry in REAL(*address, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", ask)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_and_a_name_connect(listener: socket.socket, host: str) -> None:
    with dial(host, port_of(listener), 10) as sock:
        assert sock.getpeername() == listener.getsockname()


def test_an_address_is_tried_though_the_time_was_over_before(listener: socket.socket) -> None:
    """As on a machine so busy that this process was not let run."""
    with dial("127.0.0.1", port_of(listener), 1e-9) as sock:
        assert sock.getpeername() == listener.getsockname()


def test_the_next_address_of_a_name_is_tried(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver(monkeypatch, ("127.0.0.1", 1), ("127.0.0.1", port_of(listener)))
    with dial("a-name", 0, 10) as sock:
        assert sock.getpeername() == listener.getsockname()


def test_an_address_that_never_answers_leaves_time_for_the_next(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # more than its queue takes: the system drops what else comes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(silent.getsockname())
        with pytest.raises(TimeoutError):
            dial("127.0.0.1", port_of(silent), 0.1)
        answering = [("127.0.0.1", port_of(listener))] * 9
        resolver(monkeypatch, ("127.0.0.1", port_of(silent)), *answering)
        with dial("a-name", 0, 3) as sock:  # a tenth of it for the first
            assert sock.getpeername() == listener.getsockname()


def test_what_is_no_name_is_an_error() -> None:
    with pytest.raises(OSError, match="is no name of a host"):
        dial("a..b", 80, 10)


def test_what_the_last_address_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, ("127.0.0.1", 1))
    with pytest.raises(ConnectionRefusedError):
        dial("a-name", 0, 10)


def test_a_name_nobody_knows_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        dial("there-is-none.invalid", 80, 120)  # as long as a resolver that reaches nobody may take


def test_a_resolver_that_does_not_answer_costs_no_more_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = threading.Event()

    def ask(host: str, port: int, **options: Any) -> object:
        if not options.get("flags"):
            released.wait(60)
        return REAL(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    try:
        with pytest.raises(TimeoutError, match="the name a-name is not resolved within 0.05 s"):
            dial("a-name", 80, 0.05)
        with pytest.raises(TooSlow, match="node a-name: connect: no connection within 0.05 s"):
            WireSocket.connect("a-name", 80, "node a-name", 0.05, 1)
        assert not released.is_set()
    finally:
        released.set()


def test_a_resolver_without_descriptors_has_not_found_that_there_is_no_such_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    with starved(), pytest.raises(Busy, match="ulimit -Hn"):
        WireSocket.connect("a-name", 1, "node", 5, 5)
    with pytest.raises(NodeUnavailable, match="Temporary failure"):
        WireSocket.connect("a-name", 1, "node", 5, 5)
