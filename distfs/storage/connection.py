"""One connection of a storage node: wire requests in, calls on a fragment store out.

PUT receives cells straight into the buffers that go to the disk, GET answers with ``sendfile``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import socketserver
import time
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import xxhash

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import DistfsError, NodeUnavailable, ProtocolError, TooSlow, Unavailable
from distfs.formats import wire
from distfs.formats.fragment import CellEntry
from distfs.formats.wire import Frame, Type
from distfs.storage.disk.store import DiskStore, DiskWriter
from distfs.wire_socket import WireSocket

log = logging.getLogger("distfs.node")

IDLE_LIMIT_S = 300.0  # a connection without a request for this long is closed
MAX_DEADLINE_S = 86400.0  # the longest a caller may ask for
MAX_AGE_S = 1e10  # of a fragment, in a request
#: How far ahead of what is sent the disk is asked for what comes, and for how much at once.
READ_AHEAD, READ_STEP = 8 << 20, 2 << 20
LINGER_S, LINGER_BYTES = 2.0, 64 << 20  # of a caller that is refused while it sends


class NodeServer(Protocol):
    """What a connection asks of its node."""

    store: DiskStore
    stall_timeout: Seconds

    def begin_request(self) -> bool:
        """A request is served, until ``end_request``; False: it must not be, this node stops."""

    def end_request(self) -> None: ...

    #: Held while bytes of a fragment are on their way to or from somebody.
    moving: AbstractContextManager[None]

    def yield_to_transfers(self) -> None:
        """Between two cells that are verified: whoever moves bytes has the disk first."""


class Connection(socketserver.BaseRequestHandler):
    """One client: requests in turn until it closes, idles or breaks the protocol."""

    def setup(self) -> None:
        self.node = cast(NodeServer, self.server)

    def handle(self) -> None:
        peer = f"service {self.client_address[0]}:{self.client_address[1]}"
        self.store = self.node.store
        self.cluster, self.own = self.store.cluster.hex, self.store.node.hex
        try:
            self.sock = WireSocket(self.request, peer, self.node.stall_timeout)
            while self._serve_one():
                pass
        except DistfsError as e:
            log.info("%s: connection ended: %s", peer, e)
        except Exception:  # the thread's outermost edge
            log.exception("%s: connection ended by a bug", peer)

    def _serve_one(self) -> bool:
        """One request; whether the connection may serve another."""
        try:
            frame = self.sock.receive_request(IDLE_LIMIT_S, self.node.stall_timeout)
        except (NodeUnavailable, TooSlow):
            return False  # closed, idle for too long, or a request that does not come to an end: none is news
        except ProtocolError as e:  # another version, above all: its operator should read why
            log.warning("%s: %s", self.sock.peer, e)
            self._refuse(e)
            return False
        if self.node.begin_request():
            try:
                return self._serve(frame)
            finally:
                self.node.end_request()
        self._refuse(Unavailable("this node is stopping"))
        return False

    def _serve(self, frame: Frame) -> bool:
        header: dict[str, Any] = {}
        self.answering = False  # once an answer has begun, a failure can only cut the connection
        try:
            header = frame.header()
            self._check_addressee(header)
            if frame.type is Type.PUT:
                with self.node.moving:
                    return self._put(header, frame)
            if frame.type is Type.GET:
                with self.node.moving:
                    self._get(header)
            else:
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
        # A stranger who learned our ids could name them, and read and delete everything.
        if cluster != self.cluster:
            raise ProtocolError(
                "this node is of another cluster than the request: is the service's MetaDB that of its nodes?"
            )
        if node != self.own:
            raise ProtocolError("the request is for another node than this one: has a port changed hands?")
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
        self.node.yield_to_transfers()

    def _refuse(self, error: DistfsError) -> None:
        """Tell the caller, who may still be sending: closing at once could destroy the answer on its way."""
        self.sock.send_error(error)
        self.sock.set_receive_stall(LINGER_S)
        ends, left = time.monotonic() + LINGER_S, LINGER_BYTES
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
        id, aside = wire.decode_id(header), bool(header.get("quarantine"))
        reader = self.store.get(id, first, count, self.deadline, aside=aside)
        try:
            offset, length = reader.extent(first, count)
            table = reader.packed
            answer = {"slice_size": reader.table.slice_size, "last": reader.table.last, "table": len(table)}
            head = wire.encode(Type.OK, answer, len(table) + length)
            self.answering = True
            if reader.all is not None:
                cells = memoryview(reader.all)[offset : offset + length]
                self.sock.send(head, table, cells, limit=self.deadline)
                return
            self.sock.send(head, table, more=length > 0, limit=self.deadline)
            self._send_cells(reader.fd, offset, length)
        finally:
            reader.close()

    def _send_cells(self, fd: int, offset: int, length: int) -> None:
        """A run of a file. The disk is asked for what comes meanwhile: by itself most systems read 128 KiB ahead."""
        asked, end = offset, offset + length
        while offset < end:
            while asked < min(end, offset + READ_AHEAD):
                os.posix_fadvise(fd, asked, min(READ_STEP, end - asked), os.POSIX_FADV_WILLNEED)
                asked += READ_STEP
            piece = min(READ_STEP, end - offset)
            self.sock.send_file(fd, offset, piece, self.deadline)
            offset += piece

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
