"""An answer whose client reads slowly: no thread waits for it, and whoever goes on with it works for its request."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distfs.config.settings import Bytes, Config, Seconds
from distfs.host import server as host_server
from distfs.host.ending import RESET
from distfs.telemetry import tracing
from distfs.telemetry.context import current_request_id, enter_request
from tests.contract.litter import eventually
from tests.forms import some_bytes
from tests.integration.raw_http import CONFIG, PATIENCE, Environ, RawClient, echo, put, request, serving
from tests.integration.test_many_clients import LARGE, answer_of, slow_client, with_small_sockets
from tests.service import TestService, running_service, small_config


@pytest.fixture
def config(metadb_url: str) -> Config:
    config = small_config(metadb_url)
    return replace(config, http=replace(config.http, max_file_size=Bytes(LARGE)))


@pytest.fixture
def service(config: Config, tmp_path: Path) -> Iterator[TestService]:
    with running_service(config, tmp_path) as running:
        yield running


@pytest.mark.parametrize("way", ["reset", "stall", "stop"])
def test_who_goes_while_the_rest_of_his_answer_waits_for_him_gives_everything_back(
    way: str, service: TestService, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "distfs")
    ids: list[str] = []
    monkeypatch.setattr(host_server, "CLOSE_GRACE", 0.1)
    uuid = service.ask("PUT", "/upload/x", some_bytes(LARGE)).text.strip()
    get = request("GET", f"/download/{uuid}", "X-Request-Id: the-one-that-goes")
    app, http = service.app, service.config.http
    caplog.handler.addFilter(lambda record: _noted(record, ids))
    if way == "stall":
        http = replace(http, client_stall_timeout=Seconds(1))
    with with_small_sockets(app, http, app.services.pool) as server:
        with closing(slow_client(server, get)) as sock:
            assert sock.recv(1, socket.MSG_PEEK)
            [connection] = server._loop.connections.values()
            eventually(lambda: connection.answering is not None and not connection.with_worker, "it waits")
            if way == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
            elif way == "stop":
                server.close()
            eventually(lambda: connection.answering is None, "it is given up")
    told = [r.__dict__ for r in caplog.records if r.name == "distfs.access" and uuid in r.__dict__["path"]]
    assert [each["outcome"] for each in told] == ["cut"]
    assert ids == ["the-one-that-goes"]


def _noted(record: logging.LogRecord, ids: list[str]) -> bool:
    """For which request its thread says it, of a download: the line of the upload before it may come late."""
    if record.name == "distfs.access" and record.__dict__.get("path", "").startswith("/download/"):
        ids.append(current_request_id())
    return True


class Parts:
    """Three, the first when the other has asked."""

    def __init__(self, asked: threading.Event, happened: list[str]) -> None:
        self.asked, self.happened = asked, happened
        self.given = 0
        self.span = tracing.enter("long", tracing.SERVER, None, {})
        self.id = current_request_id()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self.given == 3:
            raise StopIteration
        assert self.asked.wait(PATIENCE)
        self.given += 1
        assert (current_request_id(), tracing.current()) == (self.id, self.span)
        self.happened.append(f"long {self.given}")
        return b"x" * 1000

    def rewind(self, count: int) -> None:
        assert not count
        self.happened.append("rewound")

    def close(self) -> None:
        tracing.leave(self.span)


def test_a_second_part_comes_after_the_first_of_who_waits_and_belongs_to_its_request() -> None:
    happened: list[str] = []
    asked = threading.Event()

    def app(environ: Environ, start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] != "/long":
            happened.append("short")
            assert tracing.current() is None
            return echo(environ, start_response)
        enter_request("long")
        start_response("200 OK", [("Content-Length", "3000")])
        return Parts(asked, happened)

    with (
        serving(app, replace(CONFIG, threads=1)) as server,
        RawClient(server) as long,
        RawClient(server) as short,
    ):
        long.send(request("GET", "/long"))
        eventually(lambda: bool(server._loop.workers.busy()), "it is served")
        short.send(put(b"short"))
        eventually(lambda: server._loop.workers.others_wait, "the other is in line")
        asked.set()
        assert short.answer().body == b"short"
        assert long.answer().body == b"x" * 3000
    assert happened == ["long 1", "rewound", "short", "long 2", "long 3"]


def test_an_answer_that_waits_for_its_client_is_completed_while_the_service_stops(
    service: TestService,
) -> None:
    data = some_bytes(LARGE)
    uuid = service.ask("PUT", "/upload/x", data).text.strip()
    app = service.app
    with with_small_sockets(app, service.config.http, app.services.pool) as server:
        with closing(slow_client(server, request("GET", f"/download/{uuid}"))) as sock:
            assert sock.recv(1, socket.MSG_PEEK)
            [connection] = server._loop.connections.values()
            eventually(lambda: connection.answering is not None and not connection.with_worker, "it waits")
            ending = threading.Thread(target=server.close)
            ending.start()
            eventually(lambda: server._loop.closing or server._loop.draining, "it stops")
            assert answer_of(sock) == (200, data)
            ending.join()
