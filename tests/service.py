"""A whole service inside the test's process: real MetaDB, real storage nodes, our own HTTP server, real sockets."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from distfs.config.settings import (
    AllowedHost,
    Bytes,
    Config,
    Fraction,
    HttpConfig,
    LogConfig,
    MetaDBConfig,
    NodeConfig,
    StorageConfig,
    TlsConfig,
)
from distfs.deadline import Deadline
from distfs.errors import DistfsError
from distfs.host.server import Server
from distfs.http_app import HttpApp, create_app
from distfs.meta import MetaDB
from distfs.storage.membership import Membership
from distfs.storage_server import StorageServer
from distfs.tls.contexts import peers
from tests.contract.nodes import new_store

BLOCK, SLICE = 64 * 1024, 256 * 1024
MAX_FILE = 3_000_000
#: What it may be called, beside addresses and localhost.
NAMES = (AllowedHost("files"), AllowedHost("*.example"))


def small_config(url: str) -> Config:
    """Blocks and slices so small that a file of a megabyte has several."""
    return Config(
        http=HttpConfig(port=0, threads=64, max_file_size=Bytes(MAX_FILE), allowed_hosts=NAMES),
        storage=StorageConfig(
            slice_size=Bytes(SLICE),
            block_size=Bytes(BLOCK),
            window=Bytes(8 * BLOCK),
            memory_budget=Bytes(64 * BLOCK),
        ),
        metadb=MetaDBConfig(url=url),
        node=NodeConfig(reserve=Fraction(0)),
        log=LogConfig(level="ERROR"),
    )


@dataclass(frozen=True)
class Answer:
    """What came back. ``body`` is all that came before the connection ended; ``whole``: it was all."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    whole: bool = True

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class HttpAddress:
    """A service that listens."""

    host: str
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=60)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own. A body that is not bytes goes out in chunks."""
        connection = self.connect()
        try:
            chunked = body is not None and not isinstance(body, bytes)
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before it was sent: read why
                connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            response = connection.getresponse()
            data, whole = _read(response)
            return Answer(response.status, response.headers, data, whole)
        finally:
            connection.close()


def _read(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    """What came of a body, and whether it was all."""
    expected = response.length
    data = b""
    try:
        while piece := response.read1(1 << 20):
            data += piece
    except (ConnectionResetError, http.client.IncompleteRead):
        return data, False
    return data, expected is None or len(data) == expected


@dataclass(frozen=True)
class TestService(HttpAddress):
    """The service of a test; ``folders``: where its nodes keep their data."""

    __test__ = False

    app: HttpApp
    config: Config
    folders: tuple[Path, ...]

    def fragments(self) -> list[Path]:
        """Every fragment file on every node's disk."""
        return sorted(p for folder in self.folders for p in (folder / "data").rglob("*") if p.is_file())


@contextmanager
def running_node(
    folder: Path, config: Config, certify: Callable[[UUID], TlsConfig] | None = None
) -> Iterator[StorageServer]:
    """A storage node in threads of this process, registered in MetaDB; ``certify``: with TLS, by its UUID."""
    meta = MetaDB(config.metadb)
    store = new_store(folder, meta.cluster_id(Deadline(10)), config.node)
    tls = peers(certify(store.node)) if certify else None
    server = StorageServer("127.0.0.1", 0, store, config.node, config.peers.stall_timeout, tls)
    refusals: list[DistfsError] = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    membership = Membership(store, meta, server.address, config.node, refusals.append)
    try:
        yield server
    finally:
        membership.stop()
        server.shutdown()
        server.server_close()
        thread.join()
        store.close()
        meta.close()
    assert not refusals


@contextmanager
def listening(app: HttpApp, config: Config) -> Iterator[tuple[str, int]]:
    """``app`` under our own server."""
    server = Server(app, replace(config.http, port=0), app.services.pool, tls=app.services.https)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.address
    finally:
        server.close()
        thread.join()


@contextmanager
def running_service(
    config: Config, folder: Path, nodes: int = 3, certify: Callable[[UUID], TlsConfig] | None = None
) -> Iterator[TestService]:
    """MetaDB is there already, migrated; everything else is started here and stopped again."""
    folders = tuple(folder / f"node{i}" for i in range(nodes))
    with ExitStack() as stack:
        for each in folders:
            stack.enter_context(running_node(each, config, certify))
        app = create_app(config)
        stack.callback(app.close)
        _wait_for_nodes(config, nodes)
        host, port = stack.enter_context(listening(app, config))
        yield TestService(host, port, app, config, folders)


def _wait_for_nodes(config: Config, count: int) -> None:
    meta = MetaDB(config.metadb)
    deadline = Deadline(60)
    pause = threading.Event()
    try:
        while sum(node.writable for node in meta.nodes(deadline)) < count:
            deadline.remaining("waiting for the nodes to register")
            pause.wait(0.02)
    finally:
        meta.close()
