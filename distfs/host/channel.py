"""One client's connection. It belongs to the loop or to one worker thread, never to both.

The loop has it while a request's header, or a body that is received whole, comes in, and while what is left
of an answer goes out. A worker has it from the moment a request is ready until its answer is written; the
loop then neither reads, writes, polls nor times it. Only the one who has it touches its state, so there is
no lock. It is handed over in `_to_worker` and back in `service`.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import struct
import threading
import time
from typing import Any

from waitress.channel import HTTPChannel

from distfs.config.settings import KIB, MIB, HttpConfig
from distfs.deadline import Scope
from distfs.errors import BodyCutShort, Busy, ClientGone, DistfsError, RequestTooSlow, Stopping, Unavailable
from distfs.host.client_socket import Bytes, ClientSocket
from distfs.host.dispatcher import Lane
from distfs.host.head import Head
from distfs.host.http1 import End, Failed, OtherProtocol, Parser, Pause
from distfs.host.request import Request
from distfs.host.request_body import CUT_SHORT, Spool, StreamedBody
from distfs.host.response import Refusal, Response, logger
from distfs.quantity import size as readable
from distfs.telemetry import enter_request, leave_request

#: From here on an answer's bytes are written by the worker straight to the socket; fewer may wait for the loop.
DIRECT = 64 * KIB
#: A client that still sends when its answer is complete is read for so long and so much before the close:
#: closing with unread bytes would reset the connection, and take the answer from it.
LINGER_SECONDS = 5.0
LINGER_BYTES = 64 * MIB
#: How often a client is asked whether it is still there, at most.
ASK_AGAIN_SECONDS = 5.0

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: With this, closing a socket resets the connection: nobody takes it for the end of an answer.
RESET = struct.pack("ii", 1, 0)


class Ending(enum.Enum):
    """How a connection ends."""

    LINGER = enum.auto()  # no more is sent; what comes is thrown away, within bounds
    CUT = enum.auto()  # at once


class Channel(HTTPChannel):  # type: ignore[misc]
    """See the module. ``server`` is a Host; ``requests`` holds at most the one that a worker serves."""

    request: Request | None  # whose head is here, and whose body comes in
    requests: list[Request]
    socket: Any  # None once it is closed

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        self.http: HttpConfig = adj.http
        self.unsent = b""  # of answers; below DIRECT
        self.parser = Parser(self.http)  # has what was received and not yet looked at
        self.with_worker = False
        self.ending: Ending | None = None
        self.thrown_away = -1  # bytes; from 0 on, it lingers
        self.since = time.monotonic()  # the last byte, or change of what is waited for
        self.began = 0.0  # the request's first byte; 0: there is none yet
        self.answered = self.since  # the last answer was given, though some of it may be unsent
        self._has_answered = False
        self._client: ClientSocket | None = None
        self.hang_up = Scope()  # what is done for its client
        self._asking = threading.Lock()  # the one thing that the loop may send while a worker has it
        self._may_ask = False  # from a request's beginning to its answer's
        self._ask_from = 0.0  # not before, on the monotonic clock
        self._moved = -1  # bytes, at the last look
        super().__init__(server, sock, addr, adj, map)

    @property
    def lane(self) -> Lane:
        """Which workers may serve the request that is ready."""
        [request] = self.requests
        if request.error or self.server.answers_at_once(request.path):
            return Lane.AT_ONCE
        long = request.streamed or self.server.takes_long(request.command, request.path)
        return Lane.LONG if long else Lane.SHORT

    def refuse_busy(self) -> None:
        """The request that is ready has waited for a worker for too long."""
        self.requests[0].error = Busy("every worker is busy with other requests: try again soon")

    @property
    def gone(self) -> bool:
        """Nobody waits for the answer any more."""
        return self.hang_up.reason is not None

    @property
    def busy(self) -> bool:
        """A request is being received, served or answered on it, or its client still reads the last answer."""
        receiving = self.request is not None
        return bool(self.with_worker or self.unsent or receiving or self.thrown_away >= 0)

    # --- the loop has it ------------------------------------------------------------------------

    def readable(self) -> bool:
        if self.with_worker or self.unsent:
            return False
        return self.ending is None or self.thrown_away >= 0

    def writable(self) -> bool:
        return bool(self.unsent) and not self.with_worker

    def handle_read(self) -> None:
        if self.with_worker or self.socket is None:
            return
        scratch: memoryview = self.server.scratch
        try:
            count = self.socket.recv_into(scratch, self._most_to_read(len(scratch)))
        except BlockingIOError:
            return
        except OSError:
            self.handle_close()
            return
        if self.thrown_away >= 0:
            self.thrown_away += count
            if not count or self.thrown_away > LINGER_BYTES:
                self.handle_close()
        elif count:
            self.parser.receive(bytes(scratch[:count]))
            ready = self._parse()
            if self.began or ready:  # empty lines do not count
                self.since = time.monotonic()
            if ready:
                self._to_worker()
            self.settle()
        elif self.request:
            self._refuse(self.request, BodyCutShort(CUT_SHORT))
        else:
            self.handle_close()

    def _most_to_read(self, most: int) -> int:
        """Little beyond what is known to come: it would wait in memory while a worker has the connection."""
        if self.thrown_away >= 0:
            return most
        return min(most, self.http.max_header + self.parser.data_left)

    def handle_write(self) -> None:
        if self.with_worker:
            return
        before = len(self.unsent)
        self._flush()
        if len(self.unsent) < before:
            self.since = time.monotonic()
        if not self.unsent and self.ending is None and self._parse():
            self._to_worker()  # it had sent more than one request
        self.settle()

    def handle_expt(self) -> None:
        self.handle_close()  # urgent data: HTTP has none

    def handle_close(self) -> None:
        """Close it now; or, while a worker has it, as soon as that gives it back."""
        if self.with_worker:
            self.ending = Ending.CUT
            return
        if self.request:
            self.request.close()
            self.request = None
        super().handle_close()

    def client_left(self) -> None:
        """Its connection was reset: what is done for it is given up."""
        self.hang_up.cancel(ClientGone("the client hung up"))
        self.handle_close()

    def stands_still(self) -> bool:
        """Bytes of a body came that nobody took since the last look: a FIN behind them would not be seen.

        Only of clients that said they expect a 100, and so know what to make of another.
        """
        request, client = next(iter(self.requests), None), self._client
        if request is None or client is None or not request.expect_continue:
            return False
        before, self._moved = self._moved, client.moved
        return before == self._moved

    def ask_client(self) -> None:
        """Is it gone, or does it wait for its answer? It may have closed only its sending side, having said all.

        The two look the same until something is sent: TCP answers with a reset when nobody is there. A 100 is what
        every client of HTTP/1.1 has to overlook (RFC 9110, 15.2).
        """
        with self._asking:
            now = time.monotonic()
            if self._may_ask and not self.unsent and now >= self._ask_from:
                self._ask_from = now + ASK_AGAIN_SECONDS
                self.unsent = CONTINUE
                self._flush()

    def settle(self) -> None:
        """Take the connection's end one step further, if it is to end."""
        if self.with_worker or self.socket is None or self.ending is None:
            return
        if self.ending is Ending.CUT:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.handle_close()
        elif not self.unsent and self.thrown_away < 0:
            self.thrown_away, self.since = 0, time.monotonic()
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.handle_close()

    def check_time(self, now: float) -> None:
        """End what takes too long; ``now`` is monotonic."""
        if self.with_worker:
            return
        quiet = now - self.since
        if self.thrown_away >= 0:
            if quiet > LINGER_SECONDS:
                self.handle_close()
        elif self.unsent:
            stall = self.http.client_stall_timeout
            if quiet > stall or now - self.answered > stall + DIRECT / self.http.client_min_rate:
                self.ending = Ending.CUT
                self.settle()
        elif not self.began:
            if quiet > self.http.idle_timeout:
                self.handle_close()
        elif late := self._late(self.request, now):
            self._refuse(self.request or Request(Head()), RequestTooSlow(late))

    def _late(self, request: Request | None, now: float) -> str:
        """What of the request takes too long; empty: nothing."""
        stall, rate, age = self.http.client_stall_timeout, self.http.client_min_rate, now - self.began
        if request is None:
            if age > stall:
                return f"the request's headers took more than {stall:g} s: send them at once"
        elif now - self.since > stall:
            return f"no byte of the body came for {stall:g} s: send it again"
        elif age > stall and request.spool is not None and len(request.spool) < rate * age:
            return f"the body came slower than {readable(rate)}/s (http.client_min_rate)"
        return ""

    def _refuse(self, request: Request, error: DistfsError) -> None:
        request.error = error
        self.requests.append(request)
        self.request = None
        self._to_worker()

    def _to_worker(self) -> None:
        self.with_worker = True
        self.server.task_dispatcher.claim()
        self.server.add_task(self)

    # --- whoever has it -------------------------------------------------------------------------

    def _parse(self) -> bool:
        """Take a request out of what was received; whether one is ready to be served, in ``requests``."""
        while True:
            event = self.parser.next_event()
            request = self.request
            if isinstance(event, Head):
                request = self.request = Request(event)
                self.began = self.began or time.monotonic()
                self._choose_way(request)
            elif isinstance(event, memoryview) and request and request.spool is not None:
                self._keep(event, request, request.spool)
            elif isinstance(event, Failed):
                request = self.request or Request(event.head)
                request.error = request.error or event.error
            elif isinstance(event, OtherProtocol):
                self._send_away(event.name)
                return False
            elif isinstance(event, Pause):
                if self.parser.begun:
                    self.began = self.began or time.monotonic()
                return False
            if request and (isinstance(event, End) or request.error or request.streamed):
                return self._is_ready(request)

    def _is_ready(self, request: Request) -> bool:
        request.ended()
        self.request, self.began = None, 0.0
        self.requests.append(request)
        self._may_ask, self._ask_from = request.version == "1.1", 0.0
        return True

    def _keep(self, data: memoryview, request: Request, spool: Spool) -> None:
        try:
            spool.write(data, self.parser.data_left)
        except DistfsError as e:
            request.error = e

    def _send_away(self, protocol: str) -> None:
        """What follows an answer may be the rest of a body that was declared too short: a reset would take the answer
        from the client."""
        who = self.addr[0] if self.addr else "-"
        logger.info("a client at %s speaks %s on the port of HTTP: its connection is closed", who, protocol)
        self.ending = Ending.LINGER if self._has_answered else Ending.CUT

    def _choose_way(self, request: Request) -> None:
        """How the body comes in, if there is one."""
        if self.server.draining and not self.server.answers_while_draining(request.path):
            # Its head is complete only now: others may serve it. Who asks how we are is told.
            request.error = Unavailable("this service is stopping: ask another one, or try again soon")
        elif request.has_body:
            try:
                self._open_way(request)
            except DistfsError as e:
                request.error = e

    def _open_way(self, request: Request) -> None:
        """Chunked bodies are streamed from their first byte: how large they become is unknown, most are pipes of
        something large, and the way cannot change once chunks were decoded.
        """
        request.check_size(self.http)
        if request.chunked and request.declared:
            self.parser.limit_body(request.declared)
        large = request.chunked or request.declared > self.http.stream_threshold
        asks = (
            request.expect_continue and not self.parser.has_more
        )  # the app may refuse before a byte is sent
        # At a pace, what is not at hand anyway is left in the socket, so that the client feels it.
        paced = self.parser.data_left > self.http.max_header and self.server.paces_bodies()
        if large:
            request.ticket = self.server.gate.enter(request.declared)
        if (large or asks or paced) and self.server.task_dispatcher.may_stream(claimed=self.with_worker):
            request.streamed = True
            return
        self.server.check_body(self._address, request.header, request.declared)
        request.spool = self.server.spooler.spool(self.parser.data_left)
        if request.expect_continue and not self.parser.has_more:
            self.unsent += CONTINUE
            self._flush()

    def _flush(self) -> None:
        """Send what is unsent as far as the socket takes it now."""
        if self.socket is None:  # the server has ended without waiting for this worker
            self.unsent, self.ending = b"", Ending.CUT
            return
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent, self.ending = b"", Ending.CUT

    # --- a worker has it ------------------------------------------------------------------------

    def service(self) -> None:
        """Serve the request that is ready, then give the connection back."""
        self._has_answered = True
        ready = False
        ending: Ending | None = Ending.CUT
        try:
            wanted = self._serve(self.requests[0])
            if wanted is None and self.ending is None and not self.unsent:
                ready = self._parse()  # else when the client has read its answers: it may never do
            ending = wanted
        finally:
            self.ending = self.ending or ending
            self.server.task_dispatcher.end_task(self)
            if ready:
                self.server.add_task(self)  # at the end of the queue: others wait too
            else:
                self.server.task_dispatcher.release()
                self.since = self.answered = time.monotonic()
                self.with_worker = False
                self.server.pull_trigger(self.settle)

    def _serve(self, request: Request) -> Ending | None:
        """How the connection ends after this request; None: it goes on."""
        try:
            if isinstance(self.hang_up.reason, DistfsError):
                request.error = self.hang_up.reason
            if request.streamed and not request.error:
                self._open_body(request)
            ending = self._answer(request)
            if ending is None:
                self.parser.next_request()
            return ending
        finally:
            self.requests.clear()
            request.close()
            if self._client:
                self._client.close()
                self._client = None
            leave_request()

    def _open_body(self, request: Request) -> None:
        invite = self._invite if request.expect_continue else None
        try:
            request.body = StreamedBody(self.client, self.parser, invite)
        except DistfsError as e:
            request.error = e

    def _answer(self, request: Request) -> Ending | None:
        response = Refusal(self, request, request.error) if request.error else Response(self, request)
        try:
            response.service()
        except ClientGone as e:
            enter_request(response.request_id)
            logger.info("%s %s: %s", request.command, request.path, e)
            return Ending.CUT
        except Exception as e:  # noqa: BLE001 - the outermost edge of a request: nobody above could answer or log it
            return self._answer_failure(response, e)
        return Ending.LINGER if response.close_on_finish else None

    def _answer_failure(self, failed: Response, error: Exception) -> Ending:
        """Answer with the error while that is still possible; else cut the answer that is on its way."""
        request_id = enter_request(failed.request_id)
        if failed.wrote_header:
            expected = isinstance(error, Stopping)  # what the app made of it is in the access log
            logger.error("the answer was cut short: %s", error, exc_info=None if expected else error)
            return Ending.CUT
        if not isinstance(error, DistfsError):
            logger.error("the app failed", exc_info=error)
            error = DistfsError(f"internal error: tell the operator the request's id, {request_id}")
        refusal = Refusal(self, failed.request, error)
        refusal.response_headers = [("X-Request-Id", request_id)]
        refusal.close_on_finish = True
        try:
            refusal.service()
        except ClientGone:
            return Ending.CUT
        return Ending.LINGER

    @property
    def client(self) -> ClientSocket:
        """The worker's own end of the connection, open until the request is served."""
        if self._client is None:
            http = self.http
            self._client = ClientSocket(
                self.socket, http.client_stall_timeout, http.client_min_rate, self.server.cut
            )
        return self._client

    def write(self, *buffers: Bytes) -> None:
        """Send in order, after all that waits. ``buffers`` may be reused afterwards. Raises ClientGone; Busy,
        and then nothing was sent."""
        self._ask_no_more()
        if len(self.unsent) + sum(map(len, buffers)) < DIRECT:
            self.unsent = b"".join((self.unsent, *buffers))
            self._flush()
        else:
            client = self.client  # without one, nothing was sent
            waiting, self.unsent = self.unsent, b""
            client.send(waiting, *buffers)
        if self.ending is Ending.CUT:
            raise ClientGone("the client closed the connection")

    def who(self, request: Request) -> dict[str, str]:
        """Whose connection it is, as the access log says it."""
        facts: dict[str, str] = self.server.who(self._address, request.header)
        return facts

    @property
    def _address(self) -> str:
        return self.addr[0] if self.addr else ""

    def may_go_on(self, request: Request) -> bool:
        """Whether another request may follow on this connection once this one is answered."""
        if request.error or request.connection_close or self.server.closing or self.server.draining:
            return False
        return request.body is None or request.body.look_ahead()

    def _ask_no_more(self) -> None:
        """Now only the worker sends. What it sends asks as well."""
        if self._may_ask:
            with self._asking:
                self._may_ask = False

    def _invite(self) -> None:
        self._ask_no_more()
        waiting, self.unsent = self.unsent, b""
        self.client.send(waiting, CONTINUE)
        self._may_ask = True

    def give_up(self) -> None:
        """The loop, when the service waits no longer: who still can be answered is told so by a worker, whose
        waits end. Those for the client, by ``server.cut``; others by the scope."""
        stopping = Stopping(
            "this service stopped before the request was done: send it again, or to another one"
        )
        self.hang_up.cancel(stopping)
        if not self.with_worker and self.request:
            self._refuse(self.request, stopping)

    def cancel(self) -> None:
        """The dispatcher gives up a task it will never run."""
        self.with_worker = False
        self.ending = Ending.CUT
