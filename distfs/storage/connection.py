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
from typing import Any, Protocol, cast

import xxhash

from distfs.config.settings import Seconds
from distfs.deadline import Deadline
from distfs.errors import Corrupt, DistfsError, NodeUnavailable, ProtocolError, TooSlow, Unavailable
from distfs.formats import wire
from distfs.formats.features import PLAIN, Extra
from distfs.formats.fixed import STORED_BEGINS, Cells, End, Get, Put, Whole
from distfs.formats.fragment import CellEntry
from distfs.formats.hello import Reason, Unwelcome
from distfs.formats.wire import Frame, Type
from distfs.headers.traceparent import TraceParent, parse, unpack
from distfs.model import FragmentId
from distfs.storage import told_log
from distfs.storage.asked import astray, count, seconds, stranger
from distfs.storage.disk.heads import heads_page
from distfs.storage.disk.store import DiskStore, DiskWriter
from distfs.storage.greeting import examine, other_release
from distfs.storage.metrics_port import node_samples
from distfs.storage.strangers import Strangers, network_of
from distfs.telemetry import metrics, tracing
from distfs.telemetry.log_query import OwnFiles
from distfs.telemetry.logs import log_facts
from distfs.telemetry.metrics_told import rendered
from distfs.telemetry.tracing import Span
from distfs.tls.contexts import Side
from distfs.wire_socket import WireSocket

log = logging.getLogger("distfs.node")

IDLE_LIMIT_S = 300.0  # a connection without a request for this long is closed
MAX_DEADLINE_S = 86400.0  # the longest a caller may ask for
#: How far ahead of what is sent the disk is asked for what comes, and for how much at once.
READ_AHEAD, READ_STEP = 8 << 20, 2 << 20
#: Requests with bytes of a fragment, to or from somebody.
_MOVING = frozenset((Type.GET, Type.PUT, Type.WHOLE))
_NAMES = {type_: type_.name for type_ in Type}  # an enum takes two calls to say it
_RECEIVED, _DISK = (metrics.STORE_CHECKSUMS.index(where) for where in ("received", "disk"))
LINGER_S, LINGER_BYTES = 2.0, 64 << 20  # of a caller that is refused while it sends


#: A request, as far as it is understood.
Asked = dict[str, Any] | Get | Put | Whole


class NodeServer(Protocol):
    """What a connection asks of its node."""

    store: DiskStore
    stall_timeout: Seconds
    #: Of TLS; None: without.
    side: Side | None
    strangers: Strangers
    #: Of its log; None: it writes none.
    log_files: OwnFiles | None
    #: The file of its certificate; empty: it has none.
    certificate: str

    def admit(self) -> DistfsError | None:
        """Count a connection whose peer has proved who he is; what to tell him if there are too many."""

    def leave(self) -> None:
        """One of those has ended."""

    def begin_request(self, moves: bool) -> bool:
        """A request is served, until ``end_request``; False: it must not be, this node stops. ``moves``: bytes of a
        fragment are on their way to or from somebody."""

    def end_request(self, moves: bool) -> None: ...

    def yield_to_transfers(self) -> None:
        """Between two cells that are verified: whoever moves bytes has the disk first."""


class Connection(socketserver.BaseRequestHandler):
    """One client: requests in turn until it closes, idles or breaks the protocol."""

    span: Span | None = None  # of the request that is served, where that is recorded

    def setup(self) -> None:
        self.node = cast(NodeServer, self.server)

    def handle(self) -> None:
        peer = f"service {self.client_address[0]}:{self.client_address[1]}"
        self.store = self.node.store
        cluster, own = self.store.cluster, self.store.node
        self.names, self.to = (cluster.hex, own.hex), cluster.bytes + own.bytes
        try:
            self.sock = WireSocket(self.request, peer, self.node.stall_timeout)
            if not self._welcome():
                return
            self._serve_all()
        except DistfsError as e:
            log.info("%s: connection ended: %s", peer, e)
        except Exception:  # the thread's outermost edge
            log.exception("%s: connection ended by a bug", peer)

    def _welcome(self) -> bool:
        """Have the peer prove who it is; whether it is one of us."""
        address, store = network_of(str(self.client_address[0])), self.store
        deadline = Deadline(self.node.stall_timeout)
        try:
            with self.node.strangers.waiting(address, self.sock.interrupt) as was_cut:
                self._secure()
                known = store.keys.known
                welcome, agreed = examine(self.sock, known, store.cluster, store.node, deadline)
        except Unwelcome as e:
            reason, detail = (Reason.CROWDED, "") if was_cut() else (e.reason, e.detail)
            self.node.strangers.refused(address, reason, detail)
            return False
        # Said when it holds: who has been welcomed is cut for no stranger.
        self.sock.send(welcome, limit=deadline)
        self.sock.features = agreed.features
        return True

    def _secure(self) -> None:
        """TLS, where it is on. Raises Unwelcome."""
        if self.node.side is not None:
            try:
                self.sock.start_tls(self.node.side, self.node.stall_timeout)
            except DistfsError as e:
                raise Unwelcome(Reason.TLS, str(e).removeprefix(f"{self.sock.peer}: ")) from e

    def _serve_all(self) -> None:
        """Its requests in turn."""
        try:
            if error := self.node.admit():
                self._refuse(error)
                return
            while self._serve_one() and not self.sock.outdated:
                pass
        finally:
            self.node.leave()

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
        moves, began = frame.type in _MOVING, time.monotonic()
        if not moves and frame.type is Type.NAME:
            return self._named(frame)
        if self.node.begin_request(moves):
            try:
                return self._serve(frame)
            finally:
                trace = self._end_span(self.span) if self.span is not None else ""
                self.node.end_request(moves)
                seconds = time.monotonic() - began
                metrics.served(_NAMES[frame.type], seconds)
                if log.isEnabledFor(logging.DEBUG):
                    self._tell(frame, seconds, trace)
        self._refuse(Unavailable("this node is stopping"))
        return False

    def _named(self, frame: Frame) -> bool:
        """Of which release the caller is: what is said of him says so, if it is another than this."""
        self.sock.peer += other_release(frame)
        return True

    def _tell(self, frame: Frame, seconds: float, trace: str) -> None:
        """That it was served. Of each fragment of each request: nobody is to pay for it who does not want it."""
        fragment, request_id = _named(self.asked)
        slice_, _, index = fragment.partition(".")
        facts = {"type": _NAMES[frame.type], "slice": slice_, "index": index, "bytes": self.moved}
        facts |= {"duration": seconds} | ({"trace": trace} if trace else {})
        log_facts(log, "served", facts, logging.DEBUG, request_id)

    def _begin_span(self, type_: Type, parent: TraceParent | None) -> None:
        """Below that of whoever asks, if that one records."""
        if parent is not None:
            facts = {"client.address": self.client_address[0], "rpc.system": "distfs"}
            self.span = tracing.enter(_NAMES[type_], tracing.SERVER, parent, facts)

    def _end_span(self, span: Span) -> str:
        """-> its trace's id."""
        self.span = None
        fragment, request = _named(self.asked)
        about = {"distfs.fragment": fragment, "distfs.request_id": request}
        tracing.leave(span, self.failed, lambda: {**about, "distfs.node": str(self.store.node)})
        return span.trace.name

    def _serve(self, frame: Frame) -> bool:
        self.asked: Asked = {}  # what is known of the request
        self.moved = 0  # bytes of cells
        self.answering = False  # once an answer has begun, a failure can only cut the connection
        self.failed: DistfsError | None = None
        try:
            if frame.type is Type.GET:
                self.asked = get = Get.decode(frame.raw)
                if tracing.on:
                    self._begin_span(frame.type, unpack(get.trace))
                self._bound(get.to, get.deadline)
                self._get(get.id, get.first, get.many, get.aside)
            elif frame.type is Type.PUT:
                self.asked = put = Put.decode(frame.raw)
                if tracing.on:
                    self._begin_span(frame.type, unpack(put.trace))
                self._bound(put.to, put.deadline)
                return self._put(put, frame)
            elif frame.type is Type.WHOLE:
                self.asked = whole = Whole.decode(frame.raw)
                if tracing.on:
                    self._begin_span(frame.type, unpack(whole.trace))
                self._bound(whole.to, whole.deadline)
                return self._put_whole(whole, frame)
            else:
                self.asked = header = frame.header()
                if tracing.on:
                    self._begin_span(frame.type, parse(str(header.get("traceparent", ""))))
                self._check_addressee(header)
                self._answer(frame.type, header)
        except DistfsError as e:
            self._log_refusal(frame.type, e)
            if self.answering:
                return False
            if isinstance(e, ProtocolError):
                self._refuse(e)
                return False
            self.sock.send_error(e)
        return True

    def _check_addressee(self, header: dict[str, Any]) -> None:
        """As ``_bound``, by a header in JSON."""
        cluster, node = self.names
        if header.get("cluster") != cluster:
            raise stranger()
        if header.get("node") != node:
            raise astray()
        try:
            seconds = float(header["deadline"])
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ProtocolError("the request has no deadline") from e
        self._bound(self.to, seconds)

    def _bound(self, to: bytes, seconds: float) -> None:
        """The request is for us; it is bound by the time that the caller will still wait. Raises ProtocolError."""
        # A stranger who learned our ids could name them, and read and delete everything.
        if to != self.to:
            raise stranger() if to[:16] != self.to[:16] else astray()
        if not seconds > 0:  # no number is no time, too
            raise ProtocolError(f"the request's deadline is {seconds} s")
        seconds = min(seconds, MAX_DEADLINE_S)
        self.deadline = Deadline(seconds)
        self.sock.begin(seconds, seconds, None)

    def _answer(self, type_: Type, header: dict[str, Any]) -> None:
        match type_:
            case Type.STAT:
                self._get(wire.decode_id(header), 0, 0)
            case Type.DELETE:
                self._ok({"deleted": self.store.delete(wire.decode_id(header), self.deadline)})
            case Type.VERIFY:
                bad = self.store.verify(wire.decode_id(header), self.deadline, self._between)
                metrics.STORE_CHECKSUMS.add(len(bad), _DISK)
                self._ok({"bad": bad})
            case Type.QUARANTINE:
                age = seconds(header, "min_age")
                self._ok({"done": self.store.quarantine(wire.decode_id(header), age, self.deadline)})
            case Type.DISCARD:
                age = seconds(header, "min_age")
                self._ok({"done": self.store.discard(wire.decode_id(header), age, self.deadline)})
            case Type.RELEASE:
                self._ok({"done": self.store.release(wire.decode_id(header), self.deadline)})
            case Type.LIST:
                self._list(header)
            case Type.HEADS:
                self._heads(header)
            case Type.INFO:
                self._info()
            case Type.METRICS:
                looked_at = node_samples(self.store, self.node.strangers, self.node.certificate)
                kind, data = rendered(str(header.get("accept", "")), looked_at, metrics.NODE)
                self._ok({"type": kind}, data)
            case Type.TRACES | Type.LOGS:
                (self._want_traces if type_ is Type.TRACES else self._logs)(header)
            case _:
                raise ProtocolError(f"{type_.name} is not a request")

    def _ok(self, header: dict[str, Any], body: bytes = b"") -> None:
        self.answering = True
        self.sock.send(wire.encode(Type.OK, header, len(body)), body, limit=self.deadline)

    # --- PUT ----------------------------------------------------------------------------------------

    def _put(self, put: Put, frame: Frame) -> bool:
        writer = None
        self.heard = xxhash.xxh3_64(frame.raw)
        try:
            writer = self.store.put(put.fragment(), put.size_hint, self.deadline)
            with tracing.span("receive and write"):
                self._receive(writer)
            writer.commit(self._check_caller)
        except NodeUnavailable as e:
            if not self._abort(writer, e):
                self._refuse(e)
            return False
        except DistfsError as e:
            self._abort(writer, e)
            self._refuse(e)
            return False
        except BaseException:
            if writer is not None:
                writer.abort()
            raise
        self._stored(self.heard.digest())
        return True

    def _put_whole(self, whole: Whole, frame: Frame) -> bool:
        """What goes wrong when all of it has come is an answer like any other."""
        if whole.entry.length != frame.body_length:
            raise ProtocolError(f"WHOLE of {frame.body_length} bytes, its entry says {whole.entry.length}")
        cell: bytes | bytearray | None = self.sock.take_bytes(frame.body_length)
        if cell is None:  # not all of it came with its head
            cell = bytearray(frame.body_length)
            try:
                self.sock.receive_body(memoryview(cell), self.deadline)
            except DistfsError as e:
                if not self._abort(None, e):
                    self._refuse(e)
                return False
        metrics.STORE_RECEIVED.add(len(cell))
        self.moved = len(cell)
        fragment, entry, size = whole.fragment(), whole.entry, whole.slice_size
        self.store.keep(fragment, whole.packed, entry, cell, size, whole.last, self._check_caller)
        self._stored(xxhash.xxh3_64_digest(frame.raw))
        return True

    def _stored(self, heard: bytes) -> None:
        self.answering = True
        self.sock.send(STORED_BEGINS + heard, limit=self.deadline)

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
        writer.finish(*End.decode(frame.raw))

    def _receive_body(self, view: memoryview) -> None:
        self.sock.receive_body(view, self.deadline)
        metrics.STORE_RECEIVED.add(len(view))
        self.moved += len(view)

    def _abort(self, writer: DiskWriter | None, error: DistfsError) -> bool:
        """Leave nothing; whether the caller has gone, so that nobody is there to be told."""
        if writer is not None:
            writer.abort()
        self._log_refusal(Type.WHOLE if isinstance(self.asked, Whole) else Type.PUT, error)
        return self.sock.ended

    def _log_refusal(self, type_: Type, error: DistfsError) -> None:
        metrics.failed(error, metrics.SERVED_ERRORS)
        if isinstance(error, Corrupt):
            metrics.STORE_CHECKSUMS.add(at=_RECEIVED if type_ in (Type.PUT, Type.WHOLE) else _DISK)
        self.failed = error
        fragment, request = _named(self.asked)
        log.warning("%s %s for request %s: %s", type_.name, fragment, request, error)

    def _check_caller(self) -> None:
        """Nobody waits for the work of a caller who is gone. Raises NodeUnavailable."""
        if self.sock.ended:
            raise NodeUnavailable(f"{self.sock.peer}: gone before its request was done")

    def _between(self) -> None:
        """Two cells that are verified."""
        self._check_caller()
        self.deadline.remaining()
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

    def _get(self, id: FragmentId, first: int, count: int, aside: bool = False) -> None:
        reader = self.store.get(id, first, count, self.deadline, aside=aside)
        try:
            offset, length = reader.extent(first, count)
            table = reader.packed
            answer = Cells(reader.table.slice_size, reader.table.last, len(table))
            if reader.table.extra is not PLAIN:
                answer = self._with_extra(answer, reader.table.extra, count)
            head = wire.encode(Type.CELLS, answer.encode(), len(table) + length)
            self.answering = True
            metrics.STORE_SENT.add(length)
            self.moved = length
            if reader.all is not None:
                cells = memoryview(reader.all)[offset : offset + length]
                self.sock.send(head, table, cells, limit=self.deadline)
                return
            self.sock.send(head, table, more=length > 0, limit=self.deadline)
            self._send_cells(reader.fd, offset, length)
        finally:
            reader.close()

    def _with_extra(self, answer: Cells, extra: Extra, count: int) -> Cells:
        """Tell it to who asks for no cell and may know of it. Raises NewerFormat when cells are asked for by who
        does not know how to read them: he would take them for damaged."""
        agreed = self.sock.features
        if count:
            extra.features.check_readable(agreed >> wire.INCOMPAT_AT)
            return answer
        return answer._replace(extra=extra) if agreed & wire.Feature.EXTRA else answer

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
        limit = min(max(1, count(header, "limit")), wire.MAX_LISTED)
        listing = self.store.list_quarantine if header.get("quarantine") else self.store.list
        page = listing(str(header.get("cursor", "")), limit, self.deadline)
        pack = wire.LISTED.pack
        body = b"".join(pack(f.id.slice.bytes, f.id.index, f.size, f.age) for f in page.fragments)
        self._ok({"cursor": page.cursor}, body)

    def _heads(self, header: dict[str, Any]) -> None:
        limit = min(max(1, count(header, "limit")), wire.MAX_LISTED)
        cursor, body = heads_page(self.store, str(header.get("cursor", "")), limit, self.deadline)
        self._ok({"cursor": cursor}, body)

    def _want_traces(self, header: dict[str, Any]) -> None:
        try:
            wanted = [int(str(trace), 16) for trace in header["wanted"]]
        except (KeyError, TypeError, ValueError) as e:
            raise ProtocolError("the request does not say which traces are wanted") from e
        if tracing.held is not None:
            tracing.held.want(wanted)
        self._ok({})

    def _logs(self, header: dict[str, Any]) -> None:
        for piece, more in told_log.pieces(self.node.log_files, header.get("wanted"), self._between):
            self._ok({"more": more}, piece)

    def _info(self) -> None:
        info = self.store.info(self.deadline)
        facts = {"capacity": info.capacity, "used": info.used, "free": info.free, "clock": info.clock}
        self._ok({"node": info.node.hex, "cluster": info.cluster.hex, "state": info.state} | facts)


def _named(asked: Asked) -> tuple[str, str]:
    """The fragment, if it is about one, and the request."""
    if isinstance(asked, dict):
        fragment = f"{asked['slice']}.{asked.get('index')}" if "slice" in asked else "-"
        return fragment[:100], str(asked.get("request", "-"))[:100]
    return asked.name, asked.request.decode(errors="replace")
