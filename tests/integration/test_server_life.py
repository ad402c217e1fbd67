"""The server itself: starting, closing, what it holds and lets go, and that a worker's socket is the worker's."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import distfs.host.server
from distfs.config.settings import HostName, Seconds
from distfs.errors import ConfigError
from distfs.host import workers
from distfs.host.loop import Loop
from distfs.host.server import Server
from tests.contract.litter import eventually
from tests.integration.raw_http import (
    CONFIG,
    PATIENCE,
    THRESHOLD,
    Endless,
    Environ,
    Held,
    RawClient,
    echo,
    noise,
    open_files,
    put,
    put_chunked,
    request,
    serving,
)

LARGE = noise(3 * THRESHOLD)


def test_the_address_is_the_one_bound() -> None:
    with serving(echo) as server:
        host, port = server.address
        assert (host, port > 0) == ("127.0.0.1", True)


def test_a_busy_port_is_said_with_the_remedy() -> None:
    with serving(echo) as server:
        port = server.address[1]
        with pytest.raises(
            ConfigError, match=rf":{port}: another program listens there; .*http\.port"
        ) as raised:
            Server(echo, replace(CONFIG, port=port))
        assert "\n" not in str(raised.value)


def test_an_address_of_elsewhere_is_said_with_the_remedy() -> None:
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(ConfigError, match=r"http\.host"):
            Server(echo, replace(CONFIG, host=HostName(host)))


def test_a_spool_folder_that_is_not_there_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"http\.spool_dir"):
        Server(echo, replace(CONFIG, spool_dir=str(tmp_path / "missing")))


def test_a_server_that_never_ran_lets_its_port_go() -> None:
    server = Server(echo, CONFIG)
    server.close()
    server.close()
    socket.create_server(server.address).close()


def test_closing_waits_for_the_running_request_and_takes_no_other() -> None:
    app = Held()
    server = Server(app, CONFIG)
    loop = threading.Thread(target=server.run)
    loop.start()
    with RawClient(server) as client, RawClient(server) as idle, RawClient(server) as partial:
        for each in (idle, partial):
            each.send(put(b"x", path="/free"))
            assert each.answer().body == b"x"
        partial.send(put(LARGE[:10])[:-1])
        assert partial.is_silent()
        client.send(put(LARGE), put(b"pipelined"))
        assert app.called.acquire(timeout=PATIENCE)
        closer = threading.Thread(target=server.close)
        closer.start()
        assert idle.rest() == b""
        assert partial.rest().startswith(b"HTTP/1.1 503 "), "its body will not be waited for: it is told so"
        with pytest.raises(ConnectionRefusedError):
            RawClient(server)
        app.go.set()
        answer = client.answer()
        assert answer.body == LARGE
        assert answer.headers["connection"] == "close"
        loop.join(PATIENCE)
        closer.join(PATIENCE)
        assert not loop.is_alive()
        assert not closer.is_alive()


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_closing_cuts_a_transfer_that_does_not_end(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distfs.host.server, "CLOSE_GRACE", 0.1)
    app = Endless(way)
    server = Server(app, CONFIG)
    loop = threading.Thread(target=server.run)
    loop.start()
    with RawClient(server) as client:
        client.send(put(LARGE)[:-1])
        assert app.called.wait(PATIENCE)
        server.close()
        loop.join(PATIENCE)
        assert not loop.is_alive()
        assert app.ended.wait(PATIENCE)


def test_a_signal_handler_may_close_the_server_it_interrupts() -> None:
    program = """
import signal, sys
from distfs.config.settings import HttpConfig
from distfs.host.server import Server
server = Server(lambda environ, start_response: [], HttpConfig(port=0))
signal.signal(signal.SIGTERM, lambda *_: (server.close(), server.close()))
print("ready", flush=True)
server.run()
print("closed", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "closed\n"
    assert child.returncode == 0


def test_over_the_limit_connections_wait_for_one_to_close() -> None:
    with serving(echo, replace(CONFIG, max_connections=2)) as server:
        first, second, third = RawClient(server), RawClient(server), RawClient(server)
        for client in (first, second):
            client.send(put(b"x"))
            assert client.answer().body == b"x"
        third.send(put(b"third"))
        assert third.is_silent()
        first.socket.close()
        assert third.answer().body == b"third"
        second.socket.close()
        third.socket.close()


def test_more_clients_than_workers_are_all_served() -> None:
    with serving(echo) as server:
        clients = [RawClient(server) for _ in range(40)]
        for number, client in enumerate(clients):
            body = LARGE if number % 2 else b"%d" % number
            client.send(put_chunked(body, [3000]) if number % 3 else put(body))
        for number, client in enumerate(clients):
            assert client.answer().body == (LARGE if number % 2 else b"%d" % number)
            client.socket.close()


def test_the_loop_sleeps_while_a_worker_has_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither bytes that arrive, nor bytes the app leaves lying there, wake it."""
    rounds = 0
    turn = Loop.turn

    def counting(loop: Loop, seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        turn(loop, seconds)

    monkeypatch.setattr(Loop, "turn", counting)
    pieces = [bytes([number]) * 500 for number in range(200)]

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        nonlocal rounds
        start_response("200 OK", [])(b"")
        rounds = 0
        for piece in pieces:
            assert environ["wsgi.input"].read(len(piece)) == piece
            yield piece
        yield b"%d" % rounds

    body = b"".join(pieces)
    with serving(app) as server, RawClient(server) as client:
        client.send(request("PUT", "/", f"Content-Length: {len(body)}"))
        assert client.head().status == 200
        for piece in pieces:
            client.send(piece)
            assert int(client.read_line(), 16) == len(piece)
            assert client.read(len(piece) + 2) == piece + b"\r\n"
        size = int(client.read_line(), 16)
        assert int(client.read(size)) < len(pieces) / 4


def test_nothing_is_left_of_clients_that_went_in_any_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "IDLE_S", 0.1)
    config = replace(CONFIG, threads=3, spool_dir=str(tmp_path), client_stall_timeout=Seconds(2))

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            environ["wsgi.input"].read()
        start_response("200 OK", [])
        while True:
            yield bytes(100_000)

    states = [
        b"",
        b"GET / HT",
        put(b"small")[:-1],
        put(LARGE)[:-1],
        put(noise(300_000))[:-1],
        put_chunked(LARGE, [999])[:-1],
        put_chunked(LARGE, [999])[:-100],
        request(),
        put(LARGE),
        put(b"small") + put(LARGE)[:-1],
        b"nonsense\r\n\r\n" + LARGE,
    ]
    with serving(app, config) as server:
        threads, files = set(threading.enumerate()), open_files()
        for leave in (RawClient.reset, lambda client: client.socket.close(), RawClient.half_close):
            clients = [RawClient(server) for _ in range(2 * len(states))]
            for client, state in zip(clients, states * 2, strict=True):
                client.send(state)
            clients[0].is_silent()
            for client in clients:
                leave(client)
            for client in clients:
                client.socket.close()
        eventually(lambda: open_files() <= files, f"left open: {open_files() - files}")
        eventually(lambda: set(threading.enumerate()) <= threads, "a worker goes on")
        assert list(tmp_path.iterdir()) == []
        with RawClient(server) as client:
            client.send(request())
            assert client.head().status == 200


def test_a_signal_that_comes_when_all_has_ended_does_no_harm() -> None:
    server = Server(echo, CONFIG)
    thread = threading.Thread(target=server.run)
    thread.start()
    server.drain()
    thread.join(PATIENCE)
    server.drain()
    server.close()
