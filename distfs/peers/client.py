"""A storage node elsewhere as a fragment store: the wire, over a pool of connections."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from distfs.config.settings import PeersConfig
from distfs.deadline import Deadline
from distfs.errors import DistfsError, ProtocolError, Refused, TooSlow, Unavailable
from distfs.formats import heads, wire
from distfs.formats.fixed import Put, encode_get
from distfs.formats.fragment import CellEntry, FragmentHeader, FragmentTable
from distfs.formats.heads import HeadPage
from distfs.formats.hello import Agreed
from distfs.formats.wire import Type
from distfs.fragment_store import (
    FragmentReader,
    FragmentWriter,
    Listed,
    Page,
    StoreInfo,
    check_page,
    parse_name,
)
from distfs.model import Address, Buffer, FragmentId
from distfs.peers.breaker import State
from distfs.peers.greeting import Greeting, KnownKeys, NodeSocket
from distfs.peers.late_read import AsksAhead
from distfs.peers.link import REPLAY_MOST, Exchange, NodeLink
from distfs.peers.remote_fragment import RemoteReader, RemoteWriter
from distfs.peers.remote_log import RemoteLog
from distfs.peers.versioned import Versioned
from distfs.peers.whole_put import TakesWhole, send_whole
from distfs.telemetry.context import current_request_id
from distfs.telemetry.log_search import Wanted
from distfs.tls.contexts import Peers


class NodeClient(AsksAhead, TakesWhole, Versioned):
    """FragmentStore over the wire. Thread-safe."""

    def __init__(
        self,
        node: UUID,
        address: Address,
        cluster: UUID,
        config: PeersConfig,
        keys: KnownKeys,
        tls: Peers | None = None,
        number: int = 0,
    ) -> None:
        """``number``: the node's id, by which it is measured."""
        self.node, self.address = node, address
        self.agreed: Agreed | None = None  # with the node, when a connection was last made
        self.software = ""  # of which release it is

        def begin(sock: NodeSocket, deadline: Deadline) -> None:
            Greeting(sock, keys(deadline), cluster, node, self._agree)

        self.link = NodeLink(address, config, begin, tls.to_node(cluster, node) if tls else None, number)
        self._names = {"cluster": cluster.hex, "node": node.hex}  # whom a request is for, in JSON
        self.to = cluster.bytes + node.bytes  # and elsewhere

    def close(self) -> None:
        self.link.pool.close()

    def _agree(self, agreed: Agreed, software: str) -> None:
        self.agreed, self.software = agreed, software

    def features(self, deadline: Deadline) -> int:
        if self.agreed is None:
            self.info(deadline)
        return self.agreed.features if self.agreed is not None else 0

    def snapshot(self) -> dict[str, Any]:
        """What is known of the node, for people to look at."""
        link = self.link
        return {
            "address": str(self.address),
            "software": self.software,
            "connections": link.pool.snapshot().as_dict(),
            "breaker": link.breaker.state.value,
            "breaker_opened": link.breaker.opened,
            "latency_p95_ms": round(link.latency.p95 * 1e3, 1),
            "latency_ms": round(link.latency.typical * 1e3, 1),
        }

    def probe(self, within: float) -> None:
        """See whether it is well again; ``within``: seconds after which it is not. Never raises."""
        try:
            self.info(Deadline(within))
        except DistfsError:
            self.link.latency.add(within)
            self.link.breaker.failed()

    @property
    def hedge_delay(self) -> float:
        """Seconds of silence after which it is late."""
        return self.link.hedge_delay

    @property
    def trusted(self) -> bool:
        """False while it is left alone for having failed again and again."""
        return self.link.breaker.state is State.CLOSED

    # --- FragmentStore --------------------------------------------------------------------------

    def put(self, header: FragmentHeader, size_hint: int, deadline: Deadline) -> FragmentWriter:
        # With its heads. In a larger file, an upload waits for nodes that have ended before a slice begins: look.
        replayable = header.ordinal == 0 and 0 < size_hint <= REPLAY_MOST // 2
        left = deadline.remaining(self.link.peer)
        exchange = Exchange(
            self.link, deadline, replayable=replayable, for_disk=True, what="PUT", of=header.id
        )
        id, packed = current_request_id().encode(), header.pack()
        begin = Put(self.to, left, size_hint, packed, id, exchange.trace)
        return RemoteWriter(exchange, begin, header.block_size)

    def send_whole(
        self, packed: bytes, entry: CellEntry, cell: Buffer, slice_size: int, deadline: Deadline
    ) -> FragmentWriter | None:
        return send_whole(self.link, self.to, packed, entry, cell, slice_size, deadline)

    def ask(
        self,
        id: FragmentId,
        first: int,
        count: int,
        deadline: Deadline,
        connect_within: float | None = None,
        aside: bool = False,
        late: float | None = None,
    ) -> RemoteReader:
        """``get`` without waiting for the answer: its reader says when the node is late.

        ``connect_within``: seconds after which a connection that is still not there is late already; ``late``:
        ``hedge_delay``, of who has looked.
        """
        left = deadline.remaining(self.link.peer)
        try:
            exchange = Exchange(
                self.link,
                deadline,
                notice=self.link.hedge_delay if late is None else late,
                connect_within=connect_within,
                replayable=True,
                left=left,
                what="GET",
                of=id,
            )
        except TooSlow:
            if connect_within is not None:
                self.link.latency.add(connect_within)
            raise
        about = id, first, count, aside, current_request_id().encode(), exchange.trace
        exchange.send(wire.encode(Type.GET, encode_get(self.to, left, *about)))
        return RemoteReader(exchange, time.monotonic())

    def get(
        self, id: FragmentId, first: int, count: int, deadline: Deadline, *, aside: bool = False
    ) -> FragmentReader:
        reader = self.ask(id, first, count, deadline, aside=aside)
        reader.start()
        return reader

    def stat(self, id: FragmentId, deadline: Deadline) -> FragmentTable:
        exchange = Exchange(self.link, deadline, what="STAT", of=id)
        with exchange:
            request = self._request(Type.STAT, wire.encode_id(id), exchange)
        exchange.send(request)
        reader = RemoteReader(exchange, time.monotonic())
        with contextlib.closing(reader):
            reader.start()
        return reader.table

    def verify(self, id: FragmentId, deadline: Deadline) -> tuple[int, ...]:
        answer, _ = self._call(Type.VERIFY, wire.encode_id(id), deadline, patient=True)
        with self._understood():
            return tuple(int(number) for number in answer["bad"])

    def delete(self, id: FragmentId, deadline: Deadline) -> bool:
        answer, _ = self._call(Type.DELETE, wire.encode_id(id), deadline)
        with self._understood():
            return bool(answer["deleted"])

    def list(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        return self._list(cursor, limit, {}, deadline)

    def quarantine(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        return self._done(Type.QUARANTINE, wire.encode_id(id) | {"min_age": min_age}, deadline)

    def release(self, id: FragmentId, deadline: Deadline) -> bool:
        return self._done(Type.RELEASE, wire.encode_id(id), deadline)

    def discard(self, id: FragmentId, min_age: float, deadline: Deadline) -> bool:
        return self._done(Type.DISCARD, wire.encode_id(id) | {"min_age": min_age}, deadline)

    def list_quarantine(self, cursor: str, limit: int, deadline: Deadline) -> Page:
        return self._list(cursor, limit, {"quarantine": True}, deadline)

    def info(self, deadline: Deadline) -> StoreInfo:
        started = time.monotonic()
        a, _ = self._call(Type.INFO, {}, deadline)
        self.link.latency.add(time.monotonic() - started)
        with self._understood():
            sizes = int(a["capacity"]), int(a["used"]), int(a["free"])
            ids = UUID(a["node"]), UUID(a["cluster"])
            return StoreInfo(*ids, *sizes, str(a["state"]), float(a["clock"]))

    def heads(self, cursor: str, limit: int, deadline: Deadline) -> HeadPage:
        """What at most ``limit`` fragments after ``cursor`` ("" is the start) say of themselves; also those that
        cannot be read."""
        if not self.features(deadline) & wire.Feature.HEADS:
            raise Refused(
                f"{self.link.peer} is of an earlier release, which does not tell what it keeps: upgrade it"
            )
        answer, body = self._call(Type.HEADS, {"cursor": cursor, "limit": limit}, deadline, patient=True)
        with self._understood():
            after = None if answer["cursor"] is None else str(answer["cursor"])
            page = HeadPage(tuple(heads.decode(bytes(body))), after)
            listed = tuple(Listed(each.id, each.stored, each.age) for each in page.fragments)
            # What was deleted meanwhile is left out, so a page may have fewer, or none, and yet not be the last.
            check_page(Page(listed, after if listed else None), cursor, limit)
            if after is not None and not listed and (parse_name(after) is None or after <= cursor):
                raise ProtocolError(f"a cursor that does not go on: {after[:100]!r}")
        return page

    def metrics(self, accept: str, deadline: Deadline) -> tuple[str, bytes]:
        """What the node is measured by: its type, and the text. Raises Unsupported where it has no library for it."""
        answer, body = self._call(Type.METRICS, {"accept": accept}, deadline)
        with self._understood():
            return str(answer["type"]), bytes(body)

    def want_traces(self, traces: Sequence[str], deadline: Deadline) -> None:
        """Have it send its spans of these, by their ids; one that is older does not know how."""
        if self.features(deadline) & wire.Feature.TRACES:
            self._call(Type.TRACES, {"wanted": traces}, deadline)
            self.link.breaker.succeeded()

    def log(self, wanted: Wanted, deadline: Deadline) -> RemoteLog:
        """Ask for lines of its log; they are waited for when they are taken. Raises as any request."""
        if not self.features(deadline) & wire.Feature.LOGS:
            raise Unavailable(
                f"{self.link.peer} is of an older distfs, which tells nobody its log: upgrade it"
            )
        exchange = Exchange(self.link, deadline, patient=True, what="LOGS")
        with exchange:
            request = self._request(Type.LOGS, {"wanted": asdict(wanted)}, exchange)
        exchange.send(request)
        return RemoteLog(exchange, wanted)

    # --- requests ---------------------------------------------------------------------------------

    def _done(self, type_: Type, fields: dict[str, Any], deadline: Deadline) -> bool:
        answer, _ = self._call(type_, fields, deadline, patient=True)
        with self._understood():
            return bool(answer["done"])

    def _list(self, cursor: str, limit: int, more: dict[str, Any], deadline: Deadline) -> Page:
        answer, body = self._call(Type.LIST, {"cursor": cursor, "limit": limit} | more, deadline)
        with self._understood():
            found = tuple(wire.LISTED.iter_unpack(body))
            after = None if answer["cursor"] is None else str(answer["cursor"])
            listed = (Listed(FragmentId(UUID(bytes=s), i), size, age) for s, i, size, age in found)
            page = Page(tuple(listed), after)
            check_page(page, cursor, limit)
        return page

    def _request(self, type_: Type, fields: dict[str, Any], exchange: Exchange) -> bytes:
        left = exchange.deadline.remaining(self.link.peer)
        about = {"deadline": round(left, 3), "request": current_request_id()}
        if exchange.span is not None:
            about["traceparent"] = str(exchange.span.carried)
        return wire.encode(type_, self._names | about | fields)

    def _call(
        self, type_: Type, fields: dict[str, Any], deadline: Deadline, patient: bool = False
    ) -> tuple[dict[str, Any], bytearray]:
        """A request that may be repeated and whose whole answer is wanted: its header and body.

        ``patient``: the node reads a whole fragment before it answers, so that only the deadline bounds the silence.
        """
        exchange = Exchange(self.link, deadline, patient=patient, what=type_.name)
        with exchange:
            request = self._request(type_, fields, exchange)
        exchange.send(request)
        frame = exchange.answer(Type.OK)
        body = bytearray(frame.body_length)
        exchange.receive(memoryview(body))
        with exchange:
            answer = frame.header()
        exchange.done(understood=False)
        return answer, body

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """A peer's answer is no more to be trusted than a request."""
        try:
            yield
            self.link.breaker.succeeded()
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as e:
            self.link.breaker.failed()
            raise ProtocolError(f"{self.link.peer}: an answer that lacks what was asked for: {e}") from e
        except ProtocolError as e:
            self.link.breaker.failed()
            raise ProtocolError(f"{self.link.peer}: a listing that cannot be: {e}") from e
