"""A node's /metrics, for Prometheus: HTTP on a port of its own, for a few at a time and each for a few seconds."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.process.dial import to_listen
from distfs.process.threads import start
from distfs.storage.disk.store import DiskStore
from distfs.storage.strangers import Strangers
from distfs.telemetry import metrics
from distfs.telemetry.metrics import NODE, Sample
from distfs.telemetry.metrics_told import rendered
from distfs.tls.contexts import first_end

MOST_AT_ONCE, LIMIT_S = 8, 5.0


class MetricsPort(ThreadingHTTPServer):
    """Listens from the beginning, until ``close``."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self, host: str, port: int, store: DiskStore, strangers: Strangers, certificate: str = ""
    ) -> None:
        """``certificate``: its file. Raises OSError."""
        self.looks = partial(node_samples, store, strangers, certificate)
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.address_family, address = to_listen(host, port)
        super().__init__(address, _Scrape)
        start(self.serve_forever, "metrics")

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whoever comes when there are too many is told nothing."""
        return self._places.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        cut = threading.Timer(LIMIT_S, _cut, [request])  # however slowly it asks or reads
        cut.daemon = True
        try:
            cut.start()
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: whoever went away asks again."""


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Scrape(BaseHTTPRequestHandler):
    server_version, sys_version = "distfs", ""
    timeout = LIMIT_S

    def do_GET(self) -> None:
        server = cast(MetricsPort, self.server)
        status, kind = 200, "text/plain; charset=utf-8"
        if self.path != "/metrics":
            status, data = 404, b"there is nothing at this path: GET /metrics\n"
        else:
            try:
                kind, data = rendered(self.headers.get("Accept", ""), server.looks(), NODE)
            except DistfsError as e:
                status, data = e.status, f"{e}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who scrapes comes often."""


def node_samples(store: DiskStore, strangers: Strangers, certificate: str = "") -> Iterator[Sample]:
    """What a node holds at this moment. A disk that cannot be asked is one in trouble, and no more is told of it."""
    yield Sample(metrics.THREADS, threading.active_count())
    for reason, count in strangers.counts.items():
        yield Sample(metrics.STRANGERS, count, (reason.value,))
    if certificate and (ends := first_end([certificate])) is not None:
        yield Sample(metrics.NODE_CERTIFICATE, ends)
    yield Sample(metrics.DISK_TROUBLE, bool(store.trouble))
    try:
        info = store.info(Deadline(LIMIT_S))
    except DistfsError:
        return
    yield Sample(metrics.DISK_SIZE, info.capacity)
    yield Sample(metrics.DISK_USED, info.used)
    yield Sample(metrics.DISK_FREE, info.free)
