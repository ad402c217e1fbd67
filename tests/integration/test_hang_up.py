"""Clients that go while their request waits: what is done for them is given up, whatever it waits for."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import BandwidthConfig, Bytes, BytesPerSecond, Config, MetaDBConfig, Seconds
from distfs.deadline import Deadline
from distfs.host import request_body
from distfs.host.request_body import FAST
from distfs.http_app import HttpApp
from tests.contract.litter import eventually
from tests.faults.proxied import PATIENT, proxied
from tests.forms import some_bytes
from tests.integration.meta_proxy import Cut, Proxy, proxied_url
from tests.integration.raw_http import (
    CONFIG,
    PATIENCE,
    Environ,
    Held,
    RawClient,
    open_files,
    put,
    request,
    serving,
)
from tests.postgres import run_sql
from tests.service import BLOCK, HttpAddress, TestService, listening, running_service, small_config

#: The server looks at its clients a few times a second.
OFTEN = replace(CONFIG, idle_timeout=Seconds(0.8))
LARGE = 2_000_000  # bytes of a body that its worker reads
#: Longer than any test: what ends in time did not wait for it.
NEVER = Seconds(600)


def reset(sock: socket.socket) -> None:
    """The system tells the server at once: the process was killed with bytes unread, or the network says so."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def close(sock: socket.socket) -> None:
    """As a process that is killed, or a browser's tab that is closed: to the server it looks like a half-close."""
    sock.close()


WAYS = [reset, close]
Leave = Callable[[socket.socket], None]


@pytest.fixture
def config(proxy: Proxy, metadb_url: str) -> Config:
    """Two blocks of memory for all, next to no bandwidth out, one connection to a MetaDB that is waited for."""
    config = small_config(metadb_url)
    url = proxied_url(proxy, metadb_url)
    return replace(
        config,
        http=replace(config.http, idle_timeout=OFTEN.idle_timeout),
        storage=replace(config.storage, memory_budget=Bytes(2 * BLOCK)),
        metadb=MetaDBConfig(url=url, statement_timeout=NEVER, pool_size=1),
        bandwidth=BandwidthConfig(cap_out=BytesPerSecond(1)),
        peers=replace(config.peers, base_timeout=NEVER),
    )


@pytest.fixture
def service(config: Config, tmp_path: Path) -> Iterator[TestService]:
    with running_service(config, tmp_path) as running:
        yield running


def send(service: HttpAddress, *parts: bytes) -> socket.socket:
    sock = socket.create_connection((service.host, service.port), timeout=PATIENCE)
    sock.sendall(b"".join(parts))
    return sock


def begin_upload(service: TestService, size: int, sent: bytes = bytes(FAST)) -> socket.socket:
    """By a client that is quick at first, and then pauses."""
    return send(service, request("PUT", "/upload/x", f"Content-Length: {size}"), sent)


def waiting(service: TestService) -> dict[str, int]:
    """How many requests wait for what, or hold it."""
    services = service.app.services
    usage = services.pool.usage()
    return {
        "for a block": usage.waiting,
        "for bandwidth": services.bandwidth.waiting("out"),
        "promises": services.admission.usage()["reservations"],
        "large uploads": services.admission.usage()["large_uploads"],
        "blocks": usage.blocks // BLOCK,
    }


@contextmanager
def memory_used_up(service: TestService) -> Iterator[None]:
    pool = service.app.services.pool
    blocks = [pool.take(Deadline(PATIENCE)) for _ in range(2)]
    try:
        yield
    finally:
        for block in blocks:
            block.release()


#: What is waited for and held when the memory is used up.
LEFT = {"for a block": 0, "for bandwidth": 0, "promises": 0, "large uploads": 0, "blocks": 2}


def promised(service: TestService) -> list[list[object]]:
    return run_sql(
        service.config.metadb.url,
        "SELECT count(*) FROM reservation WHERE ended_at IS NULL AND expires_at > now()",
    )


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", "distfs.access")
    return caplog


def gone(log: pytest.LogCaptureFixture) -> int:
    """How many requests the access log says were given up."""
    return sum(getattr(line, "status", 0) == 499 for line in log.records)


# --- what a request waits for -------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", WAYS)
def test_who_waits_for_memory_that_another_has_gives_everything_back(
    service: TestService, leave: Leave, access: pytest.LogCaptureFixture
) -> None:
    with memory_used_up(service):
        client = begin_upload(service, LARGE)
        eventually(lambda: waiting(service)["for a block"] == 1, "it waits for memory")
        assert waiting(service)["promises"] == 1
        leave(client)
        eventually(lambda: waiting(service) == LEFT, "it is gone")
        eventually(lambda: promised(service) == [[0]], "MetaDB knows it")
    eventually(lambda: gone(access) == 1, "its line is in the access log")


@pytest.mark.parametrize("leave", WAYS)
def test_who_goes_while_his_body_is_put_aside_gives_everything_back(
    service: TestService, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_body, "DIRECT", 0)
    with memory_used_up(service):
        client = begin_upload(service, LARGE, b"some")
        eventually(lambda: waiting(service)["promises"] == 1, "it is admitted")
        leave(client)
        eventually(lambda: waiting(service) == LEFT, "it is gone")


def fill(sock: socket.socket, data: bytes) -> int:
    """Send what the sockets hold though nobody reads it; -> how much that was."""
    sock.settimeout(0.3)
    sent = 0
    with suppress(TimeoutError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + BLOCK])
    sock.settimeout(PATIENCE)
    return sent


def status_after_100s(sock: socket.socket) -> int:
    """Of the answer, after any number of 100s."""
    with sock.makefile("rb") as stream:
        while (status := int(stream.readline().split()[1])) == 100:
            assert stream.readline() == b"\r\n"
        return status


def test_who_is_killed_with_much_of_his_body_under_way_is_asked_if_he_expects_a_100(
    service: TestService,
) -> None:
    """A FIN behind bytes that nobody reads is not seen. Others who wait like him are asked too, and go on."""
    body = bytes(LARGE)
    expecting = request("PUT", "/upload/x", f"Content-Length: {LARGE}", "Expect: 100-continue")
    with ExitStack() as memory:
        memory.enter_context(memory_used_up(service))
        killed, waits = (send(service, expecting, body[:FAST]) for _ in range(2))
        eventually(lambda: waiting(service)["for a block"] == 2, "two wait for it")
        assert fill(killed, body) > BLOCK
        sent = FAST + fill(waits, body[FAST:])
        close(killed)
        eventually(lambda: waiting(service)["for a block"] == 1, "one is gone")
        memory.close()
        with closing(waits):
            waits.sendall(body[sent:])
            assert status_after_100s(waits) == 201


@pytest.mark.parametrize("leave", WAYS)
@pytest.mark.parametrize("reads", [True, False], ids=["midway", "before the first byte"])
def test_who_waits_for_bandwidth_leaves_his_place(service: TestService, reads: bool, leave: Leave) -> None:
    uuid = service.ask("PUT", "/upload/x", some_bytes(BLOCK // 2)).text.strip()
    client = send(service, request("GET", f"/download/{uuid}"))
    if reads:
        client.recv(1)
    eventually(lambda: waiting(service)["for bandwidth"] == 1, "it waits for its turn")
    leave(client)
    eventually(lambda: not any(waiting(service).values()), "its place is free")


def let_go(service: TestService) -> None:
    """Wait until nothing is held, and close the nodes' connections that are kept for the next request."""
    eventually(lambda: not any(waiting(service).values()), "nothing is held")
    service.app.services.directory.close()


def busy_threads() -> int:
    """Without those that wait for the next request or fragment: how many a burst calls for is chance."""
    return sum(not thread.name.startswith(("fragment", "worker")) for thread in threading.enumerate())


@contextmanager
def hanging(proxy: Proxy, needle: str) -> Iterator[threading.Event]:
    """MetaDB never gets the next message with ``needle``, and nobody is told; -> set when it is so."""
    hangs, heals = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        heals.wait(PATIENCE)

    proxy.cut(needle, Cut.BEFORE, then=hang)
    try:
        yield hangs
    finally:
        heals.set()


@pytest.mark.parametrize("leave", WAYS)
def test_who_waits_for_metadb_waits_no_longer(
    service: TestService, proxy: Proxy, leave: Leave, access: pytest.LogCaptureFixture
) -> None:
    uuid = service.ask("PUT", "/upload/x", b"small").text.strip()
    with hanging(proxy, uuid) as hangs:
        client = send(service, request("GET", f"/files/{uuid}"))
        assert hangs.wait(PATIENCE)
        leave(client)
        eventually(lambda: gone(access) == 1, "nobody waits for MetaDB's answer")
    assert service.ask("GET", f"/files/{uuid}").status == 200


def test_who_waits_for_others_to_be_admitted_is_in_line_no_more(
    service: TestService, proxy: Proxy, access: pytest.LogCaptureFixture
) -> None:
    with hanging(proxy, "reservation") as hangs, closing(begin_upload(service, LARGE)):
        assert hangs.wait(PATIENCE)
        second = begin_upload(service, LARGE)
        eventually(lambda: waiting(service)["large uploads"] == 2, "it is in line")
        close(second)
        eventually(lambda: gone(access) == 1, "it is gone")
        eventually(lambda: waiting(service)["large uploads"] == 1, "it is in line no more")


@pytest.mark.parametrize("leave", WAYS)
def test_who_waits_for_nodes_that_stall_waits_no_longer(
    metadb_url: str, tmp_path: Path, leave: Leave, access: pytest.LogCaptureFixture
) -> None:
    with proxied(metadb_url, tmp_path, count=2, **PATIENT, breaker_failures=1) as ways:
        config = replace(ways.services.config, http=OFTEN)
        with listening(HttpApp(ways.services), config) as address:
            host = HttpAddress(*address)
            uuid = host.ask("PUT", "/upload/x", b"small").text.strip()
            for proxy in ways.proxies.values():
                proxy.down.hold()
            before = [proxy.up.passed for proxy in ways.proxies.values()]
            client = send(host, request("GET", f"/download/{uuid}"))
            eventually(lambda: [p.up.passed for p in ways.proxies.values()] != before, "a node is asked")
            leave(client)
            eventually(lambda: gone(access) == 1, "nobody waits for the nodes")
            assert all(ways.client(node).trusted for node in ways.proxies), "none is to blame"
            ways.heal()
            assert host.ask("GET", f"/download/{uuid}").body == b"small"


def test_what_was_written_of_an_upload_is_removed(service: TestService) -> None:
    """Its client goes while it waits for bandwidth: the fragments of its first slices are on the disks."""
    slow = BandwidthConfig(cap_in=BytesPerSecond(4 * BLOCK))
    service.app.services.reconfigure(replace(service.config, bandwidth=slow))
    client = begin_upload(service, LARGE, bytes(24 * BLOCK))
    eventually(lambda: bool(service.fragments()), "something of it is stored")
    service.app.services.reconfigure(
        replace(service.config, bandwidth=BandwidthConfig(cap_in=BytesPerSecond(1)))
    )
    eventually(lambda: service.app.services.bandwidth.waiting("in") == 1, "it waits")
    reset(client)
    eventually(lambda: service.fragments() == [], "and is removed")
    eventually(lambda: not any(waiting(service).values()), "nothing is held")


def test_a_commit_that_is_under_way_is_not_given_up(service: TestService, proxy: Proxy) -> None:
    """Its client goes when it is done and before anybody knows: the file is there, and so are its bytes."""
    body = some_bytes(3 * BLOCK)
    client = send(service)
    pause = threading.Event()

    def leave() -> None:
        reset(client)
        pause.wait(1)  # the server has noticed

    proxy.cut("commit-me", Cut.AFTER, then=leave)
    client.sendall(put(body, path="/upload/commit-me"))
    eventually(lambda: proxy.has_cut, "it is committed")
    eventually(lambda: not any(waiting(service).values()), "it has ended")
    [file] = json.loads(service.ask("GET", "/files").body)["files"]
    service.app.services.reconfigure(replace(service.config, bandwidth=BandwidthConfig()))
    assert service.ask("GET", f"/download/{file['uuid']}").body == body


# --- nothing is left ----------------------------------------------------------------------------------------


def test_nothing_is_left_of_clients_that_went_while_they_waited(
    service: TestService,
) -> None:
    uuid = service.ask("PUT", "/upload/x", some_bytes(10)).text.strip()
    for _ in range(2):
        assert (
            service.ask("PUT", "/upload/y", some_bytes(LARGE)).status == 201
        )  # its threads stay for the next
    stored = service.fragments()
    let_go(service)
    files, threads = open_files(), busy_threads()
    with memory_used_up(service):
        for leave in WAYS:
            clients = [begin_upload(service, LARGE) for _ in range(6)]
            clients += [send(service, request("GET", f"/download/{uuid}")) for _ in range(6)]
            eventually(lambda: waiting(service)["for a block"] == 12, "all of them wait")
            for client in clients:
                leave(client)
            eventually(lambda: waiting(service) == LEFT, "all of them are given up")
    let_go(service)
    eventually(lambda: promised(service) == [[0]], "nothing is promised")
    eventually(lambda: len(open_files()) <= len(files), "a file is left open")
    eventually(lambda: busy_threads() <= threads, "no thread is left")
    assert service.fragments() == stored
    assert service.ask("PUT", "/upload/x", some_bytes(3 * BLOCK)).status == 201


# --- the host, with any app ---------------------------------------------------------------------------------


@pytest.mark.parametrize("leave", WAYS)
def test_a_request_that_waits_for_a_worker_is_dropped(leave: Leave, access: pytest.LogCaptureFixture) -> None:
    app = Held()
    config = replace(OFTEN, threads=1)
    with serving(app, config) as server, RawClient(server) as first, RawClient(server) as third:
        first.send(put(b"first"))
        assert app.called.acquire(timeout=PATIENCE)
        second = RawClient(server)
        second.send(put(b"second"))
        eventually(lambda: server._loop.workers.others_wait, "it waits for the worker")
        leave(second.socket)
        eventually(lambda: gone(access) == 1, "it is dropped while the worker is still busy")
        third.send(put(b"third"))
        app.go.set()
        assert (first.answer().body, third.answer().body) == (b"first", b"third")
        assert app.called.acquire(blocking=False), "the third"
        assert not app.called.acquire(blocking=False), "the second was never run"


def test_who_only_closes_his_sending_side_is_asked_and_answered() -> None:
    """Whether he is gone shows when something is sent: he gets a 100, which says nothing, and then his answer."""
    app = Held()
    seldom = replace(OFTEN, idle_timeout=Seconds(5))  # again only when this has long been looked at
    with serving(app, seldom) as server, RawClient(server) as client:
        client.send(put(b"one"), put(b"two"))
        client.half_close()
        assert client.head().status == 100
        assert client.is_silent(), "he is not asked again for a while"
        app.go.set()
        assert [client.answer().body, client.answer().body] == [b"one", b"two"]
        assert client.rest() == b""


def test_who_speaks_http_1_0_is_not_asked() -> None:
    app = Held()
    with serving(app, OFTEN) as server, RawClient(server) as client:
        client.send(request("PUT", "/", "Content-Length: 3", version="1.0"), b"one")
        client.half_close()
        for _ in range(5):  # the server looks twice in that time
            assert client.is_silent()
        app.go.set()
        assert client.answer().body == b"one"


def test_an_answer_that_has_begun_is_not_broken_by_a_question() -> None:
    go = threading.Event()

    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "6")])
        yield b"one"
        go.wait(PATIENCE)
        yield b"two"

    with serving(app, OFTEN) as server, RawClient(server) as client:
        client.send(request())
        client.half_close()
        assert client.head().status == 200
        assert client.read(3) == b"one"
        for _ in range(5):
            assert client.is_silent()
        go.set()
        assert client.rest() == b"two"
