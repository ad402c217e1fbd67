"""Clients that are many, or slow, or both: they cost a descriptor or a thread, and nobody else's turn."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.body.source import Source
from distfs.config.settings import Bytes, Config, Seconds
from distfs.deadline import Deadline
from distfs.errors import Corrupt
from distfs.host import host, request_body
from distfs.host.server import Server
from distfs.host.workers import TURNS
from distfs.transfer.blocks import BlockPool
from distfs.transfer.download import Downloader
from distfs.transfer.upload import UploadSession
from tests.contract.litter import eventually
from tests.forms import some_bytes
from tests.integration.raw_http import (
    CONFIG,
    PATIENCE,
    WHOLE,
    Environ,
    Held,
    RawClient,
    echo,
    noise,
    open_files,
    put,
    request,
    serving,
)
from tests.service import BLOCK, TestService, running_service, small_config
from tests.starving import no_threads

KIB, MIB = 1 << 10, 1 << 20
LARGE = 3_500_000


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
def config(metadb_url: str, spool: Path) -> Config:
    config = small_config(metadb_url)
    http = replace(
        config.http,
        threads=1000,
        max_file_size=Bytes(LARGE),
        stream_threshold=Bytes(BLOCK),
        client_stall_timeout=Seconds(5 * PATIENCE),
        spool_dir=str(spool),
    )
    return replace(config, http=http)


@pytest.fixture
def service(config: Config, tmp_path: Path) -> Iterator[TestService]:
    with running_service(config, tmp_path) as running:
        yield running


@contextmanager
def with_small_sockets(app: Any, config: Any, pool: Any = None) -> Iterator[Server]:
    """A server whose sockets hold little of what it sends."""
    with serving(app, replace(config, port=0), pool) as server:
        listener = server._loop._listener
        assert listener is not None
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 128 * KIB)
        yield server


def slow_client(server: Server, sent: bytes) -> socket.socket:
    """One that reads nothing yet."""
    sock = socket.create_connection(server.address, PATIENCE)
    sock.sendall(sent)
    return sock


def answer_of(sock: socket.socket) -> tuple[int, bytes]:
    """An answer that ends with the connection."""
    with sock.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        while stream.readline() != b"\r\n":
            pass
        return status, stream.read()


def held(service: TestService) -> int:
    """Blocks of memory in use."""
    return service.app.services.pool.usage().blocks // BLOCK


# --- slow readers -------------------------------------------------------------------------------------------


def test_clients_that_read_nothing_hold_no_memory_and_their_bytes_are_right_in_the_end(
    service: TestService,
) -> None:
    """More of them than there are blocks. Some want all, some several ranges."""
    data = some_bytes(LARGE)
    uuid = service.ask("PUT", "/upload/x", data).text.strip()
    get = request("GET", f"/download/{uuid}", "Connection: close")
    ranges = request(
        "GET", f"/download/{uuid}", "Connection: close", "Range: bytes=7-1500000,1500010-3000000"
    )
    app = service.app
    with (
        with_small_sockets(app, service.config.http, app.services.pool) as server,
        ExitStack() as stack,
    ):
        whole = [stack.enter_context(closing(slow_client(server, get))) for _ in range(60)]
        parts = [stack.enter_context(closing(slow_client(server, ranges))) for _ in range(10)]
        for each in whole + parts:
            assert each.recv(1, socket.MSG_PEEK), "it has begun"
        eventually(lambda: held(service) == 0, "they hold no memory")
        eventually(lambda: not server._loop.workers.busy(), "nor a thread")
        with closing(slow_client(server, get)) as quick:
            assert answer_of(quick) == (200, data), "who reads is served beside them"
        with ThreadPoolExecutor(10) as readers:
            for status, body in readers.map(answer_of, parts):
                assert status == 206
                assert data[7:1500001] in body
                assert data[1500010:3000001] in body
            for answer in readers.map(answer_of, whole):
                assert answer == (200, data)
    eventually(lambda: held(service) == 0, "nothing is held")


def test_a_rewound_answer_goes_on_where_the_client_is() -> None:
    """The host asks for what it could not send, and keeps little of it. The app's memory is its own meanwhile."""
    data, size = noise(2 * MIB), 256 * KIB
    rewound: list[int] = []

    class Body:
        at = 0
        buffer = bytearray(size)

        def __iter__(self) -> Iterator[memoryview]:
            return self

        def __next__(self) -> memoryview:
            piece = data[self.at : self.at + size]
            if not piece:
                raise StopIteration
            self.buffer[: len(piece)] = piece
            self.at += len(piece)
            return memoryview(self.buffer)[: len(piece)]

        def rewind(self, count: int) -> None:
            rewound.append(count)
            self.at -= count
            self.buffer[:] = b"\xff" * size

    def app(environ: Environ, start_response: Callable[..., Any]) -> Body:
        start_response("200 OK", [("Content-Length", str(len(data)))])
        return Body()

    with with_small_sockets(app, CONFIG) as server:
        with closing(slow_client(server, request("GET", "/", "Connection: close"))) as sock:
            eventually(lambda: any(rewound), "it is asked to take back what is not sent")
            assert answer_of(sock) == (200, data)
    assert all(0 <= count < size for count in rewound)


def test_who_asks_a_thousand_times_and_reads_slowly_keeps_no_worker() -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode() * 500]

    with with_small_sockets(app, CONFIG) as server, RawClient(server) as other:
        with closing(slow_client(server, b"")) as sock:
            asking = b"".join(request("GET", f"/{number}") for number in range(1000))
            sender = threading.Thread(target=sock.sendall, args=[asking])
            sender.start()
            assert sock.recv(1, socket.MSG_PEEK)
            eventually(lambda: not server._loop.workers.busy(), "what waits for its client has no worker")
            other.send(request("GET", "/other"))
            assert other.answer().body == b"/other" * 500
            with sock.makefile("rb") as stream:
                for number in range(1000):
                    assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
                    while stream.readline() != b"\r\n":
                        pass
                    body = f"/{number}".encode() * 500
                    assert stream.read(len(body)) == body
            sender.join()


# --- slow senders -------------------------------------------------------------------------------------------


def test_half_sent_uploads_keep_nobody_out_and_are_stored_in_the_end(service: TestService) -> None:
    """Small ones, large ones, and of unknown length."""
    small, large = some_bytes(40_000), some_bytes(3 * BLOCK + 1)
    uuid = service.ask("PUT", "/upload/x", large).text.strip()
    with ExitStack() as stack:
        clients = []
        for number in range(150):
            sock = stack.enter_context(socket.create_connection((service.host, service.port), PATIENCE))
            body = (small, large, large)[number % 3]
            if number % 3 == 2:
                lines, framed = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            else:
                lines, framed = f"Content-Length: {len(body)}", body
            sock.sendall(
                request("PUT", "/upload/slow", lines, "Connection: close") + framed[: len(framed) // 2]
            )
            clients.append((sock, framed[len(framed) // 2 :]))
        assert service.ask("GET", f"/download/{uuid}").body == large
        assert service.ask("PUT", "/upload/y", large).status == 201

        def finish(client: tuple[socket.socket, bytes]) -> int:
            client[0].sendall(client[1])
            return answer_of(client[0])[0]

        with ThreadPoolExecutor(10) as senders:
            assert set(senders.map(finish, clients)) == {201}
    eventually(lambda: held(service) == 0, "nothing is held")


@pytest.mark.parametrize(
    ("direct", "first"),
    [(0, 1000), (1000, BLOCK + 1000), (1000, 1000)],
    ids=["too many", "little memory", "from the beginning"],
)
def test_bodies_that_come_slowly_are_put_aside(
    service: TestService, spool: Path, direct: int, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then they hold no memory while they come, and are stored like others."""
    monkeypatch.setattr(request_body, "DIRECT", direct)
    pool, data = service.app.services.pool, some_bytes(6 * BLOCK + 5)
    blocks = [pool.take(Deadline(PATIENCE)) for _ in range(16)]

    def put_aside() -> int:
        return sum(name.startswith(str(spool)) for name in open_files())

    with ExitStack() as stack:
        head = request("PUT", "/upload/slow", f"Content-Length: {len(data)}", "Connection: close")
        clients = [
            stack.enter_context(socket.create_connection((service.host, service.port), PATIENCE))
            for _ in range(20)
        ]
        for sock in clients:
            sock.sendall(head + data[:first])
        eventually(lambda: put_aside() == len(clients), "all are put aside")
        for sock in clients:
            sock.sendall(data[first : first + 9000])
        eventually(lambda: held(service) == len(blocks), "they hold no memory")
        assert service.ask("PUT", "/upload/y", data).status == 201
        for sock in clients:
            sock.sendall(data[first + 9000 :])
        answers = [answer_of(sock) for sock in clients]
    assert {status for status, _ in answers} == {201}
    for _, uuid in answers:
        assert service.ask("GET", f"/download/{uuid.decode().strip()}").body == data
    for block in blocks:
        block.release()
    eventually(lambda: put_aside() == 0, "no temp file is left")


@pytest.mark.parametrize("begins", [False, True], ids=["one block", "more"])
def test_what_was_put_aside_is_stored_when_it_is_its_turn(
    begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small it is: a thousand that end in the same second are not stored all at once."""
    monkeypatch.setattr(request_body, "DIRECT", 0)
    monkeypatch.setattr(request_body, "FAST_S", -1.0)
    collected, pool = threading.Semaphore(0), BlockPool(64 * KIB, 16)
    assert pool.borrow(pool.most_spooled)
    assert pool.crowded

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        environ["distfs.collect"](100_000, begins)
        collected.release()
        return echo(environ, start_response)

    body = noise(50_000)
    with serving(app, CONFIG, pool) as server, RawClient(server) as client:
        storing = server._loop.put_aside.storing
        for _ in range(request_body.STORING):
            storing.acquire()
        client.send(put(body)[:-1])
        eventually(lambda: bool(server._loop.workers.busy()), "it is being received")
        client.send(body[-1:])
        assert not collected.acquire(timeout=1), "others are stored"
        storing.release()
        assert client.answer().body == body
        assert storing.acquire(timeout=PATIENCE), "its place is given back"


def test_heads_that_come_byte_by_byte_have_no_thread() -> None:
    message = put(b"few")
    with serving(echo, CONFIG) as server, ExitStack() as stack, RawClient(server) as other:
        clients = [stack.enter_context(RawClient(server)) for _ in range(300)]
        for at in range(0, len(message) - 1, 12):
            for client in clients:
                client.send(message[at : min(at + 12, len(message) - 1)])
            other.send(put(b"other"))
            assert other.answer().body == b"other"
        eventually(lambda: not server._loop.workers.busy(), "none of them has a worker")
        for client in clients:
            client.send(message[-1:])
        for client in clients:
            assert client.answer().body == b"few"


# --- workers that cannot be had, or die ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "cause", [SystemExit(1), MemoryError(), KeyboardInterrupt(), GeneratorExit(), ZeroDivisionError("a bug")]
)
@pytest.mark.parametrize("begun", [False, True], ids=["before its answer", "in its answer"])
def test_whatever_ends_a_request_its_connection_and_place_are_given_back(
    cause: BaseException, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        if environ["PATH_INFO"] == "/free":
            yield from echo(environ, start_response)
            return
        if begun:
            start_response("200 OK", [("Content-Length", "100000")])
            yield bytes(1000)
        raise cause

    with serving(app, replace(WHOLE, threads=1)) as server:
        for _ in range(3):
            with RawClient(server) as client:
                client.send(put(noise(100_000)))
                if begun:
                    with pytest.raises(ConnectionResetError):
                        client.answer()
                else:
                    assert client.answer().status == 500
                    assert client.rest() == b""
            with RawClient(server) as client:
                client.send(put(b"x", path="/free"))
                assert client.answer().body == b"x", "the one worker goes on"
        assert isinstance(server._loop.memory, request_body.OwnMemory)
        assert server._loop.memory.used == 0
    assert "the app failed" in caplog.text or "the answer was cut short" in caplog.text


@pytest.mark.parametrize("cause", [SystemExit(1), MemoryError(), RuntimeError("can't start new thread")])
def test_whatever_ends_a_transfer_what_was_counted_for_it_is_given_back(
    cause: BaseException, service: TestService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place at the gate and of its address, its promised room, its memory; in the middle of the bytes."""
    services, data, met = service.app.services, some_bytes(LARGE - 100_000), []
    uuid = service.ask("PUT", "/upload/x", data).text.strip()

    def dying(self: object, source: Source, **given: object) -> None:
        met.append(source.readinto(memoryview(bytearray(1000))))
        raise cause

    def dying_later(*given: Any) -> Iterator[memoryview]:
        yield memoryview(data[:BLOCK])
        met.append(BLOCK)
        raise cause

    with monkeypatch.context() as patched:
        patched.setattr(UploadSession, "add", dying)
        patched.setattr(Downloader, "read", dying_later)
        for _ in range(3):
            assert service.ask("PUT", "/upload/y", data).status in (500, 503)
            assert not service.ask("GET", f"/download/{uuid}").whole
    assert len(met) == 6
    admission = services.admission
    eventually(lambda: not admission.callers.tally.of("transfers"), "no transfer is counted")
    eventually(lambda: admission.usage() == dict.fromkeys(admission.usage(), 0), "the gate is open")
    eventually(lambda: held(service) == 0, "no memory is held")
    assert service.ask("GET", f"/download/{uuid}").body == data


def test_an_answer_cut_for_a_reason_of_ours_is_logged_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: Environ, start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "100000")])
        yield bytes(1000)
        raise Corrupt("slice 1 block 2 cannot be read")

    with serving(app, replace(WHOLE, threads=1)) as server, RawClient(server) as client:
        client.send(put(b"x"))
        with pytest.raises(ConnectionResetError):
            client.answer()
    [told] = [r for r in caplog.records if "cut short: slice 1 block 2 cannot be read" in r.getMessage()]
    assert not told.exc_info


def test_a_request_that_no_thread_can_be_started_for_is_told_so_and_others_are_served() -> None:
    app = Held()
    with serving(app, CONFIG) as server, RawClient(server) as busy:
        busy.send(put(b"busy"))
        assert app.called.acquire(timeout=PATIENCE)
        with no_threads(), RawClient(server) as client:
            client.send(put(b"x", path="/free"))
            answer = client.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert b"cannot be started" in answer.body
            assert client.rest() == b""
        with RawClient(server) as client:
            client.send(put(b"x", path="/free"))
            assert client.answer().body == b"x"
        app.go.set()
        assert busy.answer().body == b"busy"


def test_a_burst_waits_in_line_without_threads() -> None:
    class App(Held):
        @staticmethod
        def answers_at_once(path: str) -> bool:
            return path == "/free"

    app, count = App(), 3 * TURNS
    with serving(app, replace(CONFIG, threads=count)) as server, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(server)) for _ in range(count)]
        for number, client in enumerate(clients):
            client.send(put(b"burst %d" % number))
        eventually(lambda: len(server._loop.workers.busy()) == count, "all of them have come")
        eventually(
            lambda: sum(thread.name == "worker" for thread in threading.enumerate()) == TURNS, "threads"
        )
        with RawClient(server) as other:
            other.send(put(b"x", path="/free"))
            assert other.answer().body == b"x", "what waits for nothing is answered"
        app.go.set()
        for number, client in enumerate(clients):
            assert client.answer().body == b"burst %d" % number


def test_who_waits_for_a_worker_for_too_long_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "WAIT_LIMIT_S", 0.5)
    app = Held()
    with serving(app, replace(CONFIG, threads=1)) as server, RawClient(server) as busy:
        busy.send(put(b"busy"))
        assert app.called.acquire(timeout=PATIENCE)
        with RawClient(server) as client:
            client.send(put(b"x", path="/free"))
            answer = client.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        app.go.set()
        assert busy.answer().body == b"busy"


def test_what_waits_for_nothing_is_answered_though_all_workers_are_busy() -> None:
    class App(Held):
        @staticmethod
        def answers_at_once(path: str) -> bool:
            return path == "/free"

    app = App()
    with serving(app, replace(CONFIG, threads=1)) as server, RawClient(server) as busy:
        busy.send(put(b"busy"))
        assert app.called.acquire(timeout=PATIENCE)
        with RawClient(server) as client:
            for _ in range(3):
                client.send(put(b"x", path="/free"))
                assert client.answer().body == b"x"
        app.go.set()
        assert busy.answer().body == b"busy"
