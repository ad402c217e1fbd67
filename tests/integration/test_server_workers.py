"""Whatever some clients do to keep workers busy, a health check finds one, and so do those who want little."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import BandwidthConfig, Bytes, BytesPerSecond, Config, Seconds
from distfs.host import request_body
from distfs.host.connection import REST
from distfs.host.server import Server
from tests.contract.litter import eventually
from tests.forms import some_bytes
from tests.integration.raw_http import CONFIG, PATIENCE, Environ, Held, RawClient, put, request, serving
from tests.service import TestService, running_service, small_config

THREADS = 6
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def config(metadb_url: str) -> Config:
    config = small_config(metadb_url)
    http = replace(
        config.http,
        threads=THREADS,
        max_file_size=Bytes(40 * MIB),
        client_stall_timeout=Seconds(30),
    )
    return replace(config, http=http)


@pytest.fixture
def serve(metadb_url: str, tmp_path: Path) -> Iterator[Callable[[Config], TestService]]:
    """-> a function: config -> a service on ``metadb_url``, which outlives it."""
    with ExitStack() as stack:
        yield lambda config: stack.enter_context(running_service(config, tmp_path))


def soon(service: TestService, path: str) -> int:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=10)
    with closing(connection):
        connection.request("GET", path)
        return connection.getresponse().status


def large_answers(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
    """As much as is left to the loop; ``/small`` is answered with little."""
    start_response("200 OK", [])
    return [b"x" * (10 if environ["PATH_INFO"] == "/small" else REST - 4 * KIB)]


def test_clients_that_ask_on_and_read_nothing_keep_no_worker() -> None:
    ask, count = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n", 200  # more than sockets hold the answers of
    config = replace(CONFIG, client_stall_timeout=Seconds(PATIENCE * 2))
    with serving(large_answers, config) as server, ExitStack() as stack:
        deaf = [stack.enter_context(RawClient(server)) for _ in range(2 * config.threads)]
        for client in deaf:
            client.send(ask * count)
        served = 0
        while served < 50:  # by then their sockets are full, whoever they are served by
            with RawClient(server) as other:
                other.send(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")
                assert other.answer().body == b"x" * 10
            served += 1
            threading.Event().wait(0.02)
        for client in deaf:
            for _ in range(count):
                assert len(client.answer().body) == REST - 4 * KIB


def test_small_uploads_that_wait_for_bandwidth_leave_a_worker_for_health_checks(
    serve: Callable[[Config], TestService], config: Config
) -> None:
    service = serve(replace(config, bandwidth=BandwidthConfig(cap_in=BytesPerSecond(10 * KIB))))
    body = some_bytes(100 * KIB)  # ten seconds each
    head = f"PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(2 * THREADS):
            sock = stack.enter_context(socket.create_connection((service.host, service.port)))
            sock.sendall(head + body)
        for _ in range(5):
            assert soon(service, "/healthz") == 200
        service.app.services.reconfigure(replace(config, bandwidth=BandwidthConfig()))
        eventually(lambda: soon(service, "/readyz") == 200, "all of them are served")


def test_under_a_cap_a_small_upload_waits_in_the_clients_socket_and_not_in_a_spool(
    serve: Callable[[Config], TestService], config: Config
) -> None:
    config = replace(config, http=replace(config.http, stream_threshold=Bytes(16 * MIB)))
    service = serve(replace(config, bandwidth=BandwidthConfig(cap_in=BytesPerSecond(10 * KIB))))
    body = some_bytes(8 * MIB)
    with socket.create_connection((service.host, service.port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
        sock.sendall(
            f"PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):  # after what the sockets hold
            sock.sendall(body)
    service.app.services.reconfigure(replace(config, bandwidth=BandwidthConfig()))
    eventually(lambda: service.app.services.bandwidth.waiting("in") == 0, "nobody waits for bandwidth")


def test_an_upload_that_is_cut_is_in_nobodys_order_any_more(
    serve: Callable[[Config], TestService], config: Config
) -> None:
    rate = BytesPerSecond(100 * MIB)
    service = serve(replace(config, bandwidth=BandwidthConfig(cap_in=rate, mode="batch")))
    discipline = service.app.services.bandwidth._shapers["in"].discipline
    assert discipline
    schedule = discipline.schedule
    with socket.create_connection((service.host, service.port)) as sock:
        head = f"PUT /upload/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {4 * MIB}\r\n\r\n"
        sock.sendall(head.encode() + bytes(2 * MIB))
        eventually(lambda: any(transfer.taken > MIB for transfer in schedule._live), "it is under way")
    eventually(lambda: not schedule._live, "it has no place")


class Checked(Held):
    """``/free`` waits for nothing, and reads no body; then the client's next request is there already."""

    def __init__(self) -> None:
        super().__init__()
        self.restless: RawClient | None = None  # it asks again before it is answered

    @staticmethod
    def answers_at_once(path: str) -> bool:
        return path == "/free"

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] != "/free":
            return super().__call__(environ, start_response)
        if (restless := self.restless) and environ["QUERY_STRING"] == "again":
            with suppress(OSError):  # it has just had enough
                restless.send(AGAIN)
        start_response("200 OK", [])
        return [b"free"]


FREE, AGAIN = request(path="/free"), request(path="/free?again")


@contextmanager
def all_turns_taken() -> Iterator[tuple[Checked, Server]]:
    app = Checked()
    with serving(app, replace(CONFIG, threads=1)) as server, RawClient(server) as busy:
        busy.send(put(b"busy"))
        assert app.called.acquire(timeout=PATIENCE)
        try:
            yield app, server
        finally:
            app.restless = None
            app.go.set()
        assert busy.answer().body == b"busy"


def assert_others_are_answered(server: Server) -> None:
    for _ in range(3):
        with RawClient(server) as other:
            other.send(FREE)
            assert other.answer().body == b"free"


def test_who_asks_on_and_on_how_the_service_is_keeps_nobody_from_being_answered() -> None:
    with all_turns_taken() as (app, server), RawClient(server) as restless:
        app.restless = restless
        restless.send(AGAIN)
        for _ in range(50):
            assert restless.answer().body == b"free"
        read = threading.Thread(target=read_on, args=[restless])
        read.start()
        try:
            assert_others_are_answered(server)
        finally:
            app.restless = None
            restless.half_close()
            read.join(PATIENCE)


def read_on(client: RawClient) -> None:
    with suppress(EOFError):
        while client.answer().body == b"free":
            pass


def test_of_health_checks_that_come_at_once_the_first_is_answered_and_the_others_have_their_turn() -> None:
    with all_turns_taken() as (app, server), RawClient(server) as client:
        client.send(FREE * 3)
        assert client.answer().body == b"free"
        assert_others_are_answered(server)
        app.go.set()
        for _ in range(2):
            assert client.answer().body == b"free"
        client.send(FREE)
        assert client.answer().body == b"free"


def test_a_health_check_whose_body_does_not_come_is_waited_for_by_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_body, "LOOK_AHEAD_SECONDS", 2 * PATIENCE)
    with all_turns_taken() as (app, server), RawClient(server) as client:
        client.send(request("GET", "/free", "Transfer-Encoding: chunked"))
        assert_others_are_answered(server)
        client.send(b"0\r\n\r\n")
        app.go.set()
        assert client.answer().body == b"free"
        client.send(FREE)
        assert client.answer().body == b"free", "the connection goes on"
