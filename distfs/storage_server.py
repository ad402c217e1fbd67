"""A storage node: ``python -m distfs.storage_server --port 9001 --data data/s1``.

One thread a connection (``storage/connection.py``), and beside them the node's heartbeats and a look at its disk.
"""

from __future__ import annotations

import logging
import socketserver
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from distfs.config import file as configuration
from distfs.config.settings import Config, NodeConfig, Seconds, TlsConfig
from distfs.errors import ConfigError, DistfsError, NodeForgotten, Unavailable
from distfs.log_store import log_store
from distfs.meta import MetaDB
from distfs.metadb.embedded_postgres import folder_of
from distfs.model import Address
from distfs.process import descriptors, parent_watch
from distfs.process.dial import cannot_listen, to_listen
from distfs.process.output import DONE, PART_CODES, Parser, command, warner
from distfs.process.private import open_to_others
from distfs.process.signals import on_reload, on_stop, say_stop, wait_for
from distfs.process.threads import as_ours, start
from distfs.storage.connection import Connection
from distfs.storage.disk.home import make_home, read_identity
from distfs.storage.disk.store import DiskStore
from distfs.storage.disk.watch import DiskWatch
from distfs.storage.membership import Membership, await_keys, cluster_of
from distfs.storage.metrics_port import MetricsPort
from distfs.storage.strangers import Strangers
from distfs.telemetry import metrics, tracing
from distfs.telemetry.log_files import part_of
from distfs.telemetry.log_query import OwnFiles
from distfs.telemetry.logs import flush_log, setup_logging
from distfs.tls.contexts import Peers, is_not_own, peers

log = logging.getLogger("distfs.node")

MAX_CONNECTIONS = 1000  # at once, of peers that have proved who they are; each is a thread
#: A fragment is verified with a pause of this length before each cell while others move bytes.
VERIFY_PAUSE_S = 0.01
_DRAIN_POLL_S = 0.02


class StorageServer(socketserver.ThreadingTCPServer):
    """Serves one DiskStore. ``address`` is where it really listens."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        store: DiskStore,
        config: NodeConfig,
        stall_timeout: Seconds,
        tls: Peers | None = None,
    ) -> None:
        self.store, self.config, self.stall_timeout = store, config, stall_timeout
        self.address_family, address = to_listen(host, port)
        self.side = tls.to_service(store.cluster) if tls else None
        self._connections = self._requests = 0
        self._moving = 0  # of the requests, those with bytes of a fragment on their way
        self.strangers = Strangers()
        self.log_files: OwnFiles | None = None
        self.certificate = tls.certificate if tls else ""
        self._draining = False
        self._lock = threading.Lock()
        self._accept_trouble = descriptors.AcceptTrouble(log)
        super().__init__(address, Connection)

    @property
    def address(self) -> Address:
        return Address(str(self.server_address[0]), int(self.server_address[1]))

    def accept(self, failed: Callable[[DistfsError], object]) -> None:
        """Until ``shutdown``. ``failed`` is called when it ends otherwise: the node would only seem to live."""
        try:
            self.serve_forever()
        except BaseException as e:  # the thread's outermost edge
            log.exception("no connection is accepted any more")
            failed(as_ours(e))

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as e:
            if self._accept_trouble.pauses(e):
                time.sleep(descriptors.ACCEPT_PAUSE_S)
            raise

    def admit(self) -> DistfsError | None:
        """Count a connection whose peer has proved who he is; what to tell him if there are too many."""
        with self._lock:
            self._connections += 1
            full = self._connections > MAX_CONNECTIONS
        return Unavailable(f"this node has {MAX_CONNECTIONS} connections already") if full else None

    def leave(self) -> None:
        """One of those has ended."""
        with self._lock:
            self._connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.error("service %s: the connection could not be served: %s", client_address, sys.exc_info()[1])

    def begin_request(self, moves: bool) -> bool:
        """A request is served, until ``end_request``; False: it must not be, this node stops. ``moves``: bytes of a
        fragment are on their way to or from somebody."""
        with self._lock:
            if self._draining:
                return False
            self._requests += 1
            self._moving += moves
            return True

    def end_request(self, moves: bool) -> None:
        with self._lock:
            self._requests -= 1
            self._moving -= moves

    def drain(self, hurry: threading.Event) -> None:
        """Take no further request; return when none runs, after ``drain_timeout``, or when ``hurry`` is set."""
        with self._lock:
            self._draining = True
        until = time.monotonic() + self.config.drain_timeout
        while self._requests and time.monotonic() < until and not hurry.wait(_DRAIN_POLL_S):
            pass

    def yield_to_transfers(self) -> None:
        """Between two cells that are verified: whoever moves bytes has the disk first."""
        if self._moving:
            time.sleep(VERIFY_PAUSE_S)


class _Parser(Parser):
    def error(self, message: str) -> NoReturn:
        """One line, as for any other thing an operator must mend."""
        raise ConfigError(f"{message}; see --help")


def _arguments(argv: list[str], environ: Mapping[str, str] | None = None) -> tuple[Config, Namespace]:
    parser = _Parser(
        prog="python -m distfs.storage_server", description="A distfs storage node.", epilog=PART_CODES
    )
    parser.add_argument("--port", type=int, help="to listen on; 0: any free one")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--data", help="folder on the disk to keep fragments on; never shared by two nodes")
    parser.add_argument(
        "--init", action="store_true", help="make the folder a new node's if it is empty or missing"
    )
    parser.add_argument("--zone", help="fragments of a slice are spread over zones where there are several")
    parser.add_argument("--metadb", metavar="URL", help="where to register, for example postgresql://...")
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    parser.add_argument(parent_watch.FLAG, action="store_true", help=parent_watch.FLAG_HELP)
    given = parser.parse_args(argv)
    warn = warner("storage_server", of_parent=given.exit_with_parent)
    config = configuration.load(given.config, environ, warn)
    config = configuration.override(
        config, "node", port=given.port, host=given.host, data=given.data, zone=given.zone
    )
    return configuration.override(config, "metadb", url=given.metadb), given


def serve(config: Config, with_parent: bool = False, init: bool = False) -> None:
    """Run a node until SIGTERM or SIGINT, and the transfers that run then to their end; the second signal does
    not wait for them. ``init``: make an empty folder a new node's. Raises ConfigError for what an operator must
    mend, NotHome for a folder that is no node's, NodeForgotten."""
    stopping, hurry = threading.Event(), threading.Event()
    stop = partial(say_stop, stopping, hurry)
    on_stop(stop)
    descriptors.raise_limit()
    if with_parent:
        parent_watch.exit_with_parent()
    if config.node.host in ("0.0.0.0", "::", "") and not config.node.advertise:  # noqa: S104 - compared
        raise ConfigError(
            f"a node that listens on {config.node.host or 'every address'} must say where others reach it: "
            "set node.advertise to host:port"
        )
    advertised = Address.reachable(config.node.advertise) if config.node.advertise else None
    meta = MetaDB(config.metadb, config.node.down_after)
    folder = Path(config.node.data)
    if init and read_identity(folder) is None:
        make_home(folder)
    if read_identity(folder) is not None and (warning := open_to_others(folder)):
        log.warning("%s", warning)
    store = DiskStore(folder, cluster_of(folder, meta, stopping), config.node, folder_of(config.metadb.url))
    await_keys(store, meta, stopping)
    server = _listen(config, store, stop)
    failure: list[DistfsError] = []

    def refused(error: DistfsError) -> None:
        failure.append(error)
        stopping.set()

    address = advertised or server.address
    start(server.accept, "accept", refused)
    log.info("node %s of cluster %s serves %s on %s", store.node, store.cluster, folder, server.address)
    stop_telling = _tell_metrics(config.node, server)
    watch = DiskWatch(store, config.node.probe_interval)
    membership = Membership(store, meta, address, config.node, refused, server.strangers.lately)
    wait_for(stopping)
    watch.stop()
    leaving = start(membership.stop, "leave")  # first: nothing more is placed here; MetaDB may be away
    while leaving.is_alive() and not hurry.is_set():
        leaving.join(_DRAIN_POLL_S)
    server.drain(hurry)
    server.shutdown()
    server.server_close()
    stop_telling()
    store.close()
    meta.close()
    if failure:
        raise failure[0] if isinstance(failure[0], NodeForgotten) else ConfigError(str(failure[0]))


def _tell_metrics(config: NodeConfig, server: StorageServer) -> Callable[[], object]:
    """-> what ends it. That nobody can measure a node is no reason to keep its fragments from all."""
    try:
        if config.metrics_port:
            return MetricsPort(
                config.host, config.metrics_port, server.store, server.strangers, server.certificate
            ).close
    except OSError as e:
        log.warning("no metrics: port %d cannot be listened on: %s", config.metrics_port, e.strerror)
    return lambda: None


def _tls(config: TlsConfig, store: DiskStore, stop: Callable[[], object]) -> Peers | None:
    """Of this node; SIGHUP has its files looked at, or is a ``stop``. Raises ConfigError."""
    tls = peers(config)
    if tls is None:
        return None
    if wrong := is_not_own(config, store.cluster, store.node):
        raise ConfigError(f"{wrong}: `distfs tls node DIR` signs one, for --node {store.node}")
    later = "the certificates are not looked at now, but within seconds: %s"
    on_reload(tls.look, stop, lambda e: log.warning(later, e))
    return tls


def _listen(config: Config, store: DiskStore, stop: Callable[[], object]) -> StorageServer:
    """Raises ConfigError."""
    host, port = config.node.host, config.node.port
    try:
        stall, tls = config.peers.stall_timeout, _tls(config.tls, store, stop)
        server = StorageServer(host, port, store, config.node, stall, tls)
        if config.log.dir not in ("auto", "off"):
            server.log_files = OwnFiles(Path(config.log.dir), part_of(_name(config)))
        return server
    except OSError as e:
        another = "choose another with"
        raise cannot_listen(host, port, e, f"{another} --host", f"{another} --port") from e


def main(argv: list[str] | None = None) -> int:
    """The command; -> its exit code (``output``)."""
    return command("storage_server", lambda: _run(sys.argv[1:] if argv is None else argv))


def read(argv: list[str], environ: Mapping[str, str]) -> Callable[[], int]:
    """The command with the flags and settings that are read here. Raises ConfigError."""
    config, given = _arguments(argv, environ)
    return lambda: command("storage_server", lambda: _serve_as_told(config, given))


def _run(argv: list[str]) -> int:
    return _serve_as_told(*_arguments(argv))


def _serve_as_told(config: Config, given: Namespace) -> int:
    metrics.share()
    setup_logging(config.log, aside=config.log.elsewhere, file=_name(config), store=log_store(config))
    tracing.set_up(config.tracing, "-node")
    tracing.hold()
    try:
        serve(config, given.exit_with_parent, given.init)
    finally:
        tracing.close()
        flush_log()
    return DONE


def _name(config: Config) -> str:
    """What the files of its log are called."""
    return Path(config.node.data).absolute().name or "node"


if __name__ == "__main__":
    sys.exit(main())
