"""One hostile address has half of what there is, at most, and the others are served. Sockets of several addresses."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.callers import parse_network
from distfs.config.settings import Bytes, Config
from distfs.host import turned_away
from tests.contract.litter import eventually
from tests.forms import some_bytes
from tests.service import BLOCK, TestService, running_service, small_config

PATIENCE = 30
HOSTILE, OTHER = "127.0.0.66", "127.0.0.2"


@pytest.fixture
def serve(metadb_url: str, tmp_path: Path) -> Iterator[Callable[..., TestService]]:
    """-> a function: what http allows -> a service for which loopback is an address as any other."""
    with ExitStack() as stack:

        def start(proxies: str = "", **allowed: Any) -> TestService:
            config: Config = small_config(metadb_url)
            http = replace(config.http, stream_threshold=Bytes(BLOCK), **allowed)
            trusted = (parse_network(proxies),) if proxies else ()
            callers = replace(config.callers, exempt=(), trusted_proxies=trusted)
            return stack.enter_context(running_service(replace(config, http=http, callers=callers), tmp_path))

        yield start


class Client:
    """A connection from an address."""

    def __init__(self, service: TestService, address: str) -> None:
        self.sock = socket.create_connection((service.host, service.port), PATIENCE, (address, 0))
        self.stream = self.sock.makefile("rb")

    def send(self, *lines: str, body: bytes = b"") -> None:
        self.sock.sendall("\r\n".join([*lines, "Host: localhost", "", ""]).encode() + body)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.stream.readline().split()[1])
        headers = {}
        while (line := self.stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.stream.read(int(headers.get("content-length", 0)))

    def close(self) -> None:
        self.stream.close()
        self.sock.close()


@contextmanager
def clients(service: TestService, address: str, count: int) -> Iterator[list[Client]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Client(service, address))) for _ in range(count)]


def asks(client: Client, path: str = "/healthz") -> int:
    client.send(f"GET {path} HTTP/1.1")
    return client.answer()[0]


def test_connections_of_one_address_leave_room_for_others(serve: Callable[..., TestService]) -> None:
    service = serve(max_connections=20)
    with clients(service, HOSTILE, 10) as hostile:
        assert {asks(client) for client in hostile} == {200}
        with clients(service, HOSTILE, 5) as more:
            for client in more:
                status, headers, body = client.answer()
                assert (status, headers["connection"], headers["retry-after"]) == (429, "close", "5")
                assert body.decode() == (
                    f"{HOSTILE} has 10 connections, as many as one address may have (callers.address_share): "
                    "close some\n"
                )
                assert client.stream.read() == b""
        with clients(service, OTHER, 5) as others:
            assert {asks(client) for client in others} == {200}
        hostile[0].close()

        def served() -> bool:
            with clients(service, HOSTILE, 1) as [client]:
                return asks(client) == 200

        eventually(served, "what is closed is given back")
    held = service.app.services.admission.callers.tally
    eventually(lambda: not held.of("connections"), "nothing is left of them")


def test_a_connection_too_many_reads_why_though_it_sent_a_request(serve: Callable[..., TestService]) -> None:
    service = serve(max_connections=2)
    with clients(service, HOSTILE, 1) as [first], clients(service, HOSTILE, 1) as [second]:
        assert asks(first) == 200
        second.send("PUT /upload/x HTTP/1.1", "Content-Length: 3000000", body=bytes(200_000))
        assert second.answer()[0] == 429


def test_connections_turned_away_do_not_pile_up(
    serve: Callable[..., TestService], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turned_away, "LINGERING", 3)
    service = serve(max_connections=2)
    with clients(service, HOSTILE, 1) as [first], clients(service, HOSTILE, 20) as more:
        assert asks(first) == 200
        assert {client.answer()[0] for client in more} == {429}
        for client in more[3:]:
            assert client.stream.read() == b"", "it is closed"
        with clients(service, OTHER, 1) as [other]:
            assert asks(other) == 200


def test_slow_downloads_of_one_address_leave_workers_for_others(serve: Callable[..., TestService]) -> None:
    """Of more than all the sockets between hold."""
    service, data = serve(threads=4, max_file_size=30_000_000), some_bytes(25_000_000)
    uuid = service.ask("PUT", "/upload/x", data).text.strip()
    with clients(service, HOSTILE, 2) as hostile, clients(service, HOSTILE, 1) as [third]:
        for client in hostile:
            client.send(f"GET /download/{uuid} HTTP/1.1")
            assert client.stream.readline().split()[1] == b"200"
        third.send(f"GET /download/{uuid} HTTP/1.1")
        status, headers, body = third.answer()
        assert (status, headers["retry-after"], b"has 2 transfers" in body) == (429, "5", True)
        assert asks(third) == 200, "what moves no file is answered"
        with clients(service, OTHER, 2) as others:
            for client in others:
                client.send(f"GET /download/{uuid} HTTP/1.1")
            assert [client.answer()[2] == data for client in others] == [True, True]
    tally = service.app.services.admission.callers.tally
    eventually(lambda: not tally.of("transfers"), "what is cut is given back")


@pytest.mark.parametrize("limit", ["uploads", "bytes"])
def test_half_sent_uploads_of_one_address_leave_the_gate_open(
    serve: Callable[..., TestService], limit: str
) -> None:
    size = 2_000_000
    service = (
        serve(max_uploads=4) if limit == "uploads" else serve(max_bytes_in_flight=8_000_000)
    )  # two of it a half
    begun = ["PUT /upload/x HTTP/1.1", f"Content-Length: {size}"]
    with clients(service, HOSTILE, 2) as hostile, clients(service, HOSTILE, 1) as [third]:
        for client in hostile:
            client.send(*begun, body=bytes(1000))
        eventually(lambda: uploads(service) == 2, "they have begun")
        third.send(*begun, "Expect: 100-continue")
        status, headers, body = third.answer()
        assert (status, headers["retry-after"], b"callers.address_share" in body) == (429, "5", True)
        with clients(service, OTHER, 1) as [other]:
            other.send(*begun, body=bytes(size))
            assert other.answer()[0] == 201
        for client in hostile:
            client.sock.sendall(bytes(size - 1000))
            assert client.answer()[0] == 201
    eventually(lambda: not service.app.services.admission.callers.tally._held, "nothing is left")


def uploads(service: TestService) -> int:
    with clients(service, OTHER, 1) as [client]:
        client.send("GET /status HTTP/1.1")
        return int(json.loads(client.answer()[2])["uploads"]["large_uploads"])


def test_a_trusted_proxy_has_all_connections_and_its_clients_have_their_share(
    serve: Callable[..., TestService],
) -> None:
    service = serve(proxies=HOSTILE, max_connections=8, max_uploads=2)
    begun = ["PUT /upload/x HTTP/1.1", "Content-Length: 2000000"]
    with clients(service, HOSTILE, 6) as proxied:
        assert {asks(client) for client in proxied} == {200}
        proxied[0].send(*begun, "X-Forwarded-For: 198.51.100.7", body=b"some")
        eventually(lambda: uploads(service) == 1, "it has begun")
        proxied[1].send(*begun, "X-Forwarded-For: 198.51.100.7", "Expect: 100-continue")
        status, _, body = proxied[1].answer()
        assert (status, b"198.51.100.7 has 1 large upload," in body) == (429, True)
        proxied[2].send(*begun, "X-Forwarded-For: 198.51.100.8", body=bytes(2_000_000))
        assert proxied[2].answer()[0] == 201
