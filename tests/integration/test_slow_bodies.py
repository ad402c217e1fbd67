"""Bodies that come slowly: their threads wake seldom, and hold next to nothing while they wait."""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from distfs.host import client_socket, request_body
from distfs.host.client_socket import GATHERED, ClientSocket
from tests.contract.litter import eventually
from tests.integration.raw_http import CONFIG, PATIENCE, Environ, RawClient, echo, noise, put, serving

KIB = 1 << 10


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, ClientSocket]]:
    """A client's end, and the service's."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        client = stack.enter_context(socket.create_connection(listener.getsockname(), PATIENCE))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours = stack.enter_context(listener.accept()[0])
        cut = os.eventfd(0)
        stack.callback(os.close, cut)
        yield client, ClientSocket(ours, PATIENCE, 0, cut)


def gathers(ours: ClientSocket) -> bool:
    """Whether it waits for more than one byte."""
    assert isinstance(ours._socket, socket.socket)
    return ours._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) > 1


def holds(ours: ClientSocket, count: int) -> bool:
    return ours.waiting() == count


@pytest.mark.parametrize("coming", [10_000, GATHERED, 10 * GATHERED])
def test_a_thread_is_woken_for_many_bytes_at_once(
    ends: tuple[socket.socket, ClientSocket], coming: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "GATHER_S", PATIENCE)
    client, ours = ends
    buffer, enough = memoryview(bytearray(coming)), min(coming, GATHERED)
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(ours.receive_into, buffer, coming)
        eventually(lambda: gathers(ours), "it waits")
        sent = 0
        while sent < enough:
            assert ours.waiting() == sent, "nothing was taken"
            sent += client.send(noise(min(4000, enough - sent)))
            if sent < enough:
                eventually(partial(holds, ours, sent), "it came")
        assert received.result(PATIENCE) == enough


def test_few_bytes_are_taken_when_no_more_come_in_a_while(
    ends: tuple[socket.socket, ClientSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "GATHER_S", 0.01)
    client, ours = ends
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(ours.receive_into, memoryview(bytearray(GATHERED)), GATHERED)
        client.send(b"few")
        assert received.result(PATIENCE) <= 3


def test_a_client_that_ends_is_noticed_at_once(
    ends: tuple[socket.socket, ClientSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_socket, "GATHER_S", 10 * PATIENCE)
    client, ours = ends
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(ours.receive_into, memoryview(bytearray(GATHERED)), GATHERED)
        client.shutdown(socket.SHUT_WR)
        assert received.result(PATIENCE) == 0


def test_bodies_that_are_put_aside_hold_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer for what has not come, none for what came with the head, none for the next request."""
    monkeypatch.setattr(request_body, "DIRECT", 0)
    count, body = 30, noise(200_000)

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        environ["distfs.collect"](len(body), True)
        return echo(environ, start_response)

    with serving(app, replace(CONFIG, threads=count)) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server)) for _ in range(count)]
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        for client in clients:
            client.send(put(body)[:60_000])
        eventually(lambda: len(server._loop.workers.busy()) == count, "each has a worker")
        eventually(lambda: tracemalloc.get_traced_memory()[0] < count * 16 * KIB, "they hold little")
        for client in clients:
            client.send(put(body)[60_000:])
        assert [client.answer().body == body for client in clients] == [True] * count
