"""A storage node: ``python -m distfs.storage_server --port 9001 --data data/s1``.

Wire requests in, calls on a fragment store out. One thread a connection; PUT receives cells straight into the
buffers that go to the disk, GET answers with ``sendfile``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import xxhash

from distfs import config_file as configuration
from distfs import descriptors, parent_watch, wire
from distfs.config import Config, NodeConfig
from distfs.deadline import Deadline
from distfs.dial import cannot_listen
from distfs.disk.store import DiskStore, DiskWriter
from distfs.disk.watch import DiskWatch
from distfs.errors import (
    ConfigError,
    DistfsError,
    NodeUnavailable,
    ProtocolError,
    TooSlow,
    Unavailable,
)
from distfs.fragment import CellEntry
from distfs.membership import Membership, cluster_of
from distfs.meta import MetaDB
from distfs.model import Address
from distfs.node.wire_socket import WireSocket
from distfs.signals import on_stop, say_stop, wait_for
from distfs.telemetry import setup_logging
from distfs.wire import Frame, Type

log = logging.getLogger("distfs.node")

MAX_CONNECTIONS = 1000  # at once; each is a thread
IDLE_LIMIT_S = 300.0  # a connection without a request for this long is closed
MAX_DEADLINE_S = 86400.0  # the longest a caller may ask for
MAX_AGE_S = 1e10  # of a fragment, in a request
#: A fragment is verified with a pause of this length before each cell while others move bytes.
VERIFY_PAUSE_S = 0.01
_DRAIN_POLL_S = 0.02
_LINGER_S, _LINGER_BYTES = 2.0, 64 << 20


class StorageServer(socketserver.ThreadingTCPServer):
    """Serves one DiskStore. ``address`` is where it really listens."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, store: DiskStore, config: NodeConfig) -> None:
        self.store, self.config = store, config
        if ":" in host:
            self.address_family = socket.AF_INET6
        self._transfers = self._connections = self._requests = 0
        self._draining = False
        self._lock = threading.Lock()
        self._accept_trouble = descriptors.AcceptTrouble(log)
        super().__init__((host, port), _Connection)

    @property
    def address(self) -> Address:
        return Address(str(self.server_address[0]), int(self.server_address[1]))

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as e:
            if self._accept_trouble.pauses(e):
                time.sleep(descriptors.ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a new connection, unless there are too many already."""
        with self._lock:
            full = self._connections >= MAX_CONNECTIONS
            self._connections += not full
        if full:
            error = Unavailable(f"this node has {MAX_CONNECTIONS} connections already")
            with contextlib.suppress(DistfsError):
                WireSocket(request, f"service {client_address}", _LINGER_S).send_error(error)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had
            self._forget_connection()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget_connection()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.error("service %s: the connection could not be served: %s", client_address, sys.exc_info()[1])

    def _forget_connection(self) -> None:
        with self._lock:
            self._connections -= 1

    @contextlib.contextmanager
    def request(self) -> Iterator[bool]:
        """A request is served; False: it must not be, this node stops."""
        with self._lock:
            taken = not self._draining
            self._requests += taken
        try:
            yield taken
        finally:
            with self._lock:
                self._requests -= taken

    def drain(self, hurry: threading.Event) -> None:
        """Take no further request; return when none runs, after ``drain_timeout``, or when ``hurry`` is set."""
        with self._lock:
            self._draining = True
        until = time.monotonic() + self.config.drain_timeout
        while self._requests and time.monotonic() < until and not hurry.wait(_DRAIN_POLL_S):
            pass

    @contextlib.contextmanager
    def transfer(self) -> Iterator[None]:
        """Bytes of a fragment are on their way to or from somebody."""
        with self._lock:
            self._transfers += 1
        try:
            yield
        finally:
            with self._lock:
                self._transfers -= 1

    def yield_to_transfers(self) -> None:
        """Between two cells that are verified: whoever moves bytes has the disk first."""
        if self._transfers:
            time.sleep(VERIFY_PAUSE_S)


class _Connection(socketserver.BaseRequestHandler):
    """One client: requests in turn until it closes, idles or breaks the protocol."""

    server: StorageServer

    def handle(self) -> None:
        peer = f"service {self.client_address[0]}:{self.client_address[1]}"
        self.store = self.server.store
        try:
            self.sock = WireSocket(self.request, peer, self.server.config.stall_timeout)
            while self._serve_one():
                pass
        except DistfsError as e:
            log.info("%s: connection ended: %s", peer, e)
        except Exception:  # the thread's outermost edge
            log.exception("%s: connection ended by a bug", peer)

    def _serve_one(self) -> bool:
        """One request; whether the connection may serve another."""
        try:
            frame = self.sock.receive_request(IDLE_LIMIT_S, self.server.config.stall_timeout)
        except (NodeUnavailable, TooSlow):
            return False  # closed, idle for too long, or a request that does not come to an end: none is news
        except ProtocolError as e:  # another version, above all: its operator should read why
            log.warning("%s: %s", self.sock.peer, e)
            self._refuse(e)
            return False
        with self.server.request() as taken:
            if taken:
                return self._serve(frame)
        self._refuse(Unavailable("this node is stopping"))
        return False

    def _serve(self, frame: Frame) -> bool:
        header: dict[str, Any] = {}
        self.answering = False  # once an answer has begun, a failure can only cut the connection
        try:
            header = frame.header()
            self._check_addressee(header)
            if frame.type is Type.PUT:
                with self.server.transfer():
                    return self._put(header, frame)
            self._answer(frame.type, header)
        except DistfsError as e:
            _log_refusal(frame.type, header, e)
            if self.answering:
                return False
            if isinstance(e, ProtocolError):
                self._refuse(e)
                return False
            self.sock.send_error(e)
        return True

    def _check_addressee(self, header: dict[str, Any]) -> None:
        cluster, node = header.get("cluster"), header.get("node")
        if cluster != self.store.cluster.hex:
            raise ProtocolError(f"this node is of cluster {self.store.cluster}, the request is for {cluster}")
        if node != self.store.node.hex:
            raise ProtocolError(f"this is node {self.store.node}, the request is for {node}")
        try:
            seconds = min(float(header["deadline"]), MAX_DEADLINE_S)
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ProtocolError("the request has no deadline") from e
        if not seconds > 0:  # no number is no time, too
            raise ProtocolError(f"the request's deadline is {seconds} s")
        self.deadline = Deadline(seconds)
        self.sock.set_receive_stall(seconds)
        self.sock.set_send_stall(seconds)

    def _answer(self, type_: Type, header: dict[str, Any]) -> None:
        match type_:
            case Type.GET:
                with self.server.transfer():
                    self._get(header)
            case Type.STAT:
                self._get(header | {"first": 0, "count": 0})
            case Type.DELETE:
                self._ok({"deleted": self.store.delete(wire.decode_id(header), self.deadline)})
            case Type.VERIFY:
                self._ok({"bad": self.store.verify(wire.decode_id(header), self.deadline, self._between)})
            case Type.QUARANTINE:
                age = _seconds(header, "min_age")
                self._ok({"done": self.store.quarantine(wire.decode_id(header), age, self.deadline)})
            case Type.DISCARD:
                age = _seconds(header, "min_age")
                self._ok({"done": self.store.discard(wire.decode_id(header), age, self.deadline)})
            case Type.RELEASE:
                self._ok({"done": self.store.release(wire.decode_id(header), self.deadline)})
            case Type.LIST:
                self._list(header)
            case Type.INFO:
                self._info()
            case _:
                raise ProtocolError(f"{type_.name} is not a request")

    def _ok(self, header: dict[str, Any], body: bytes = b"") -> None:
        self.answering = True
        self.sock.send(wire.encode(Type.OK, header, len(body)), body, limit=self.deadline)

    # --- PUT ----------------------------------------------------------------------------------------

    def _put(self, header: dict[str, Any], frame: Frame) -> bool:
        writer = None
        self.heard = xxhash.xxh3_64(frame.raw)
        try:
            fragment = wire.decode_fragment(header, self.store.cluster)
            writer = self.store.put(fragment, _count(header, "size_hint"), self.deadline)
            self._receive(writer)
            writer.commit(self._check_caller)
        except NodeUnavailable as e:
            if not self._abort(writer, header, e):
                self._refuse(e)
            return False
        except DistfsError as e:
            self._abort(writer, header, e)
            self._refuse(e)
            return False
        except BaseException:
            if writer is not None:
                writer.abort()
            raise
        self._ok({"heard": self.heard.hexdigest()})
        return True

    def _receive(self, writer: DiskWriter) -> None:
        while (frame := self.sock.receive_frame(self.deadline)).type is Type.CELL:
            entry = CellEntry.unpack(frame.raw)
            if entry.length != frame.body_length:
                raise ProtocolError(f"CELL of {frame.body_length} bytes, its entry says {entry.length}")
            writer.receive_cell(entry, self._receive_body)
            self.heard.update(frame.raw)
        if frame.type is not Type.END:
            raise ProtocolError(f"a {frame.type.name} frame in the middle of PUT")
        self.heard.update(frame.raw)
        end = frame.header()
        writer.finish(_count(end, "slice_size"), bool(end.get("last")))

    def _receive_body(self, view: memoryview) -> None:
        self.sock.receive_body(view, self.deadline)

    def _abort(self, writer: DiskWriter | None, header: dict[str, Any], error: DistfsError) -> bool:
        """Leave nothing; whether the caller has gone, so that nobody is there to be told."""
        if writer is not None:
            writer.abort()
        _log_refusal(Type.PUT, header, error)
        return self.sock.ended

    def _check_caller(self) -> None:
        """Nobody waits for the work of a caller who is gone. Raises NodeUnavailable."""
        if self.sock.ended:
            raise NodeUnavailable(f"{self.sock.peer}: gone before its request was done")

    def _between(self) -> None:
        """Two cells that are verified."""
        self._check_caller()
        self.server.yield_to_transfers()

    def _refuse(self, error: DistfsError) -> None:
        """Tell the caller, who may still be sending: closing at once could destroy the answer on its way."""
        self.sock.send_error(error)
        self.sock.set_receive_stall(_LINGER_S)
        ends, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
        scratch = bytearray(256 << 10)
        with contextlib.suppress(OSError):
            self.sock.sock.shutdown(socket.SHUT_WR)
            while left > 0 and time.monotonic() < ends:
                n = self.sock.sock.recv_into(scratch)
                if not n:
                    break
                left -= n

    # --- reading --------------------------------------------------------------------------------------

    def _get(self, header: dict[str, Any]) -> None:
        first, count = _count(header, "first"), _count(header, "count")
        with contextlib.closing(
            self.store.get(wire.decode_id(header), first, count, self.deadline)
        ) as reader:
            offset, length = reader.extent(first, count)
            table = reader.table.pack()
            answer = {"slice_size": reader.table.slice_size, "last": reader.table.last, "table": len(table)}
            head = wire.encode(Type.OK, answer, len(table) + length)
            self.answering = True
            self.sock.send(head, table, more=length > 0, limit=self.deadline)
            self.sock.send_file(reader.fd, offset, length, self.deadline)

    def _list(self, header: dict[str, Any]) -> None:
        limit = min(max(1, _count(header, "limit")), wire.MAX_LISTED)
        listing = self.store.list_quarantine if header.get("quarantine") else self.store.list
        page = listing(str(header.get("cursor", "")), limit, self.deadline)
        pack = wire.LISTED.pack
        body = b"".join(pack(f.id.slice.bytes, f.id.index, f.size, f.age) for f in page.fragments)
        self._ok({"cursor": page.cursor}, body)

    def _info(self) -> None:
        info = self.store.info(self.deadline)
        facts = {"capacity": info.capacity, "used": info.used, "free": info.free, "clock": info.clock}
        self._ok({"node": info.node.hex, "cluster": info.cluster.hex, "state": info.state} | facts)


def _count(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ProtocolError(f"the request's {key} is not a count: {value!r}")
    return value


def _seconds(header: dict[str, Any], key: str) -> float:
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_AGE_S:
        raise ProtocolError(f"the request's {key} is not a time in seconds: {value!r}")
    return float(value)


def _log_refusal(type_: Type, header: dict[str, Any], error: DistfsError) -> None:
    fragment = f"{header.get('slice')}.{header.get('index')}"[:100]
    request = str(header.get("request", "-"))[:100]
    log.warning("%s %s for request %s: %s", type_.name, fragment, request, error)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for any other thing an operator must mend."""
        raise ConfigError(f"{message}; see --help")


def _arguments(argv: list[str]) -> tuple[Config, bool]:
    parser = _Parser(prog="python -m distfs.storage_server", description="A distfs storage node.")
    parser.add_argument("--port", type=int, help="to listen on; 0: any free one")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--data", help="folder on the disk to keep fragments on; never shared by two nodes")
    parser.add_argument("--zone", help="fragments of a slice are spread over zones where there are several")
    parser.add_argument("--metadb", metavar="URL", help="where to register, for example postgresql://...")
    parser.add_argument("--config", metavar="FILE", help="default: ./config.yml, if there is one")
    parser.add_argument(parent_watch.FLAG, action="store_true", help=parent_watch.FLAG_HELP)
    given = parser.parse_args(argv)
    config = configuration.load(given.config)
    config = configuration.override(
        config, "node", port=given.port, host=given.host, data=given.data, zone=given.zone
    )
    return configuration.override(config, "metadb", url=given.metadb), given.exit_with_parent


def serve(config: Config, with_parent: bool = False) -> None:
    """Run a node until SIGTERM or SIGINT, and the transfers that run then to their end; the second signal does
    not wait for them. Raises ConfigError for what an operator must mend."""
    stopping, hurry = threading.Event(), threading.Event()
    on_stop(lambda: say_stop(stopping, hurry))
    descriptors.raise_limit()
    if with_parent:
        parent_watch.exit_with_parent()
    if config.node.host in ("0.0.0.0", "::", "") and not config.node.advertise:  # noqa: S104 - compared
        raise ConfigError(
            f"a node that listens on {config.node.host or 'every address'} must say where others reach it: "
            "set node.advertise to host:port"
        )
    meta = MetaDB(config.metadb, config.node.down_after)
    folder = Path(config.node.data)
    store = DiskStore(folder, cluster_of(folder, meta, stopping), config.node)
    try:
        server = StorageServer(config.node.host, config.node.port, store, config.node)
    except OSError as e:
        host, port, another = config.node.host, config.node.port, "choose another with"
        raise cannot_listen(host, port, e, f"{another} --host", f"{another} --port") from e
    failure: list[DistfsError] = []

    def refused(error: DistfsError) -> None:
        failure.append(error)
        stopping.set()

    address = Address.parse(config.node.advertise) if config.node.advertise else server.address
    threading.Thread(target=server.serve_forever, name="accept", daemon=True).start()
    log.info("node %s of cluster %s serves %s on %s", store.node, store.cluster, folder, server.address)
    watch = DiskWatch(store, config.node.probe_interval)
    membership = Membership(store, meta, address, config.node, refused)
    wait_for(stopping)
    watch.stop()
    leaving = threading.Thread(target=membership.stop, name="leave", daemon=True)
    leaving.start()  # first: nothing more is placed here; MetaDB may be away
    while leaving.is_alive() and not hurry.is_set():
        leaving.join(_DRAIN_POLL_S)
    server.drain(hurry)
    server.shutdown()
    server.server_close()
    store.close()
    meta.close()
    if failure:
        raise ConfigError(str(failure[0]))


def main(argv: list[str] | None = None) -> int:
    """The command. One line on stderr and 1 for what an operator must mend."""
    try:
        config, with_parent = _arguments(sys.argv[1:] if argv is None else argv)
        setup_logging(config.log)
        serve(config, with_parent)
    except (ConfigError, Unavailable) as e:
        sys.stderr.write(f"storage_server: {e}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
