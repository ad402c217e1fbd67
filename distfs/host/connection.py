"""One client's connection. It belongs to the loop or to one worker thread, never to both.

The loop has it while nothing is said on it, while a head or a small body comes in, and while what is left of an
answer goes out. A worker has it from the moment a request is ready, answers it, and keeps the connection while
requests follow each other. Only the one who has it touches its state, so there is no lock. The loop gives it to
`Workers.run`, and a worker gives it back by arming it in the loop's epoll: no queue and no pipe on the way back.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from distfs.config.settings import KIB, MIB
from distfs.errors import BodyCutShort, ClientGone, DistfsError, Stopping
from distfs.host import handshake
from distfs.host.client_socket import FULL_CROWDED_S, FULL_S, Bytes, ClientSocket, beyond
from distfs.host.ending import Ending
from distfs.host.hang_up import CONTINUE, HangUp
from distfs.host.head import Head
from distfs.host.host import REST_FIRST_S, REST_MOST_S, Host
from distfs.host.http1 import Parser
from distfs.host.http1_events import End, Failed, OtherProtocol, Pause, State
from distfs.host.request import Request
from distfs.host.request_body import CUT_SHORT, StreamedBody
from distfs.host.response import Refusal, Response, Rewind, logger
from distfs.telemetry.context import leave_request
from distfs.tls.stream import AnySocket, TlsSocket

#: The most of an answer that is kept for a client that reads slowly: the host keeps no block for it.
REST = 64 * KIB
#: The most that is read of a client that still sends when its answer is complete.
LINGER_BYTES = 64 * MIB
#: What a worker receives at once of a head, and of the body behind it.
RECEIVE = 16 * KIB


class Connection:
    """See the module."""

    __slots__ = (
        *("_has_answered", "_has_turn", "_rested", "address", "answered", "answering", "began", "check_at"),
        *("ending", "fd", "full", "hang_up", "host", "loop", "parser", "request", "rests", "serving"),
        *("since", "socket", "thrown_away", "unsent", "waits", "with_worker"),
    )

    def __init__(self, loop: Host, sock: AnySocket, address: Any, host: str) -> None:
        self.loop, self.socket, self.address = loop, sock, address
        self.host = host  # of an IP socket's address; a Unix socket's has none
        self.fd = sock.fileno()
        self.parser: Parser | None = None  # while something has come and is not answered
        self.request: Request | None = None  # whose head is here
        self.answering: Response | None = None  # of which a part has left, and no thread waits
        self.full = False  # the socket takes no more of an answer for now
        self.unsent = b""  # of answers; at most REST, or one small answer
        self.with_worker = False
        self.serving = 0.0  # since when a request is ready or served, on the monotonic clock; 0: none is
        self.ending: Ending | None = None
        self.thrown_away = -1  # bytes; from 0 on, it lingers
        # The last byte, the first of a request, an answer.
        self.since = self.began = self.answered = time.monotonic()
        self.check_at = float("inf")  # when the loop looks at its time limits
        self._has_answered = self._has_turn = False
        self.rests = self._rested = 0.0  # seconds before more is read; how many the last time, if just now
        self.waits: ClientSocket | None = None
        self.hang_up: HangUp | None = None  # while something is done for its client

    @property
    def busy(self) -> bool:
        """A request is being received, served or answered on it, or its client still reads the last answer."""
        return bool(self.with_worker or self.unsent or self.request or self.thrown_away >= 0)

    @property
    def begun(self) -> bool:
        """A part of a request has come, or is to come behind a handshake."""
        if self.request is not None or (self.parser is not None and self.parser.begun):
            return True
        return self.shakes_hands

    @property
    def shakes_hands(self) -> bool:
        return isinstance(self.socket, TlsSocket) and not self.socket.established

    # --- the loop has it ------------------------------------------------------------------------

    def handle(self, scratch: memoryview) -> None:
        """Something came, or the socket takes more, or it has rested."""
        if self.unsent:
            self._handle_write()
        elif self.rests:  # which is over
            self._rested, self.rests = self.rests, 0.0
            self._go_on(self._next_ready())
        else:
            self._handle_read(scratch)

    def _handle_read(self, scratch: memoryview) -> None:
        try:
            count = self.socket.recv_into(scratch, len(scratch), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.loop.arm(self)
            return
        except OSError as e:
            handshake.broke(self, e)
            return
        if self.thrown_away >= 0:
            self.thrown_away += count
            if count and self.thrown_away <= LINGER_BYTES:
                self.loop.arm(self)
            else:
                self.loop.close(self)
        elif count:
            if not self.begun:
                self.began = time.monotonic()
            ready = self._received(bytes(scratch[:count]))
            if self.begun:  # empty lines do not count
                self.since = time.monotonic()
            self._go_on(ready)
        elif self.request:
            self.refuse(BodyCutShort(CUT_SHORT))
        else:
            self.loop.close(self)

    def _handle_write(self) -> None:
        try:
            sent = self.socket.send(self.unsent, socket.MSG_DONTWAIT)
            self.unsent, now = self.unsent[sent:], time.monotonic()
            if self.answering is not None:
                self.client.sent_by_loop(sent, now - self.since)
            self.since = now
        except BlockingIOError:
            pass
        except (OSError, ClientGone) as e:
            self.cut(str(e) if isinstance(e, ClientGone) else f"the client's connection broke: {e.strerror}")
            return
        ready = not (self.unsent or self.ending or self.rests) and (self.in_transit or self._next_ready())
        self._go_on(ready)

    def _go_on(self, ready: bool) -> None:
        """In the loop: with a worker, or as it is waited for."""
        if ready:
            self.loop.serve(self)
        else:
            self.park()

    def cut(self, why: str) -> None:
        """Its client takes nothing more."""
        self.ending = Ending.CUT
        self.give_up_answer(ClientGone(why))
        self.loop.close(self)

    def give_up_answer(self, error: DistfsError) -> None:
        """Of which a part has left."""
        answering, self.answering = self.answering, None
        if answering is not None:
            answering.take_up(error)

    def refuse(self, error: DistfsError) -> None:
        """What comes is not waited for any longer: a worker says so."""
        if self.request is None:
            self.request = Request(Head(), self._parser(), error)
        self.request.error = error
        self.loop.serve(self)

    def client_left(self) -> None:
        """Its connection was reset: what is done for it is given up."""
        if hang_up := self.hang_up:
            hang_up.cancel(ClientGone("the client hung up"))
        if self.with_worker:
            self.ending = Ending.CUT

    def stands_still(self) -> bool:
        """Bytes of a body came that nobody took since the last look: a FIN behind them would not be seen.

        Only of clients that said they expect a 100, and so know what to make of another.
        """
        request, waits, hang_up = self.request, self.waits, self.hang_up
        if request is None or waits is None or hang_up is None or not request.head.expects_continue:
            return False
        return hang_up.stands_still(waits.moved)

    def ask_client(self) -> None:
        if (hang_up := self.hang_up) is not None and not self.unsent:
            hang_up.ask(self.socket)

    def give_up(self) -> None:
        """The loop, when the service waits no longer: who still can be answered is told so by a worker, whose
        waits end. Those for the client, by ``loop.cut``; others by the scope."""
        stopping = Stopping(
            "this service stopped before the request was done: send it again, or to another one"
        )
        if hang_up := self.hang_up:
            hang_up.cancel(stopping)
        if not self.with_worker and self.request:
            self.refuse(stopping)

    def refuse_busy(self, error: DistfsError) -> None:
        """There is no worker for the request that is ready: the loop says so, and waits for nobody."""
        if self.request:
            self.request.error = error
        self.serve(patient=False)

    @property
    def answers_at_once(self) -> bool:
        """Nothing is waited for to answer the request that is ready, not even the rest of its body."""
        request = self.request
        if request is None or request.error:
            return True
        return not request.streamed and self.loop.answers_at_once(request.head.path)

    # --- whoever has it -------------------------------------------------------------------------

    def _parser(self) -> Parser:
        if self.parser is None:
            self.parser = Parser(self.loop.http)
        return self.parser

    def _received(self, data: bytes | bytearray, count: int | None = None) -> bool:
        """``data[:count]`` came, all of it for None; whether a request is ready."""
        parser = self.parser or self._parser()
        parser.receive(data, count)
        return self._parse(parser)

    def _parse(self, parser: Parser) -> bool:
        """Take what came until a request is ready to be served, or more is needed; whether one is ready."""
        while True:
            event = parser.next_event()
            if isinstance(event, Head):
                self.request = Request(event, parser)
                if self.request.choose_way(self.loop, self.host):
                    break
            elif isinstance(event, memoryview):
                if self.request and self.request.small:
                    self.request.small.add(event)
            elif isinstance(event, End):
                break
            elif isinstance(event, Failed):
                if self.request is None:
                    self.request = Request(event.head, parser)
                self.request.error = event.error
                break
            elif isinstance(event, OtherProtocol):
                self._speaks(event.name)
                return False
            elif self._needs_more(parser):
                return False
            else:
                break
        self._is_ready(time.monotonic())
        return True

    def _is_ready(self, now: float) -> None:
        self.serving = now
        if self.hang_up is None:
            self.hang_up = HangUp()
        self.hang_up.begin(self.request is not None and self.request.head.version == "1.1")

    def _needs_more(self, parser: Parser) -> bool:
        """Whether it is the loop that waits for it. A body that there is no memory for is left to a worker."""
        request = self.request
        if request is None:
            return True
        if request.small is None or request.small.borrow(parser.data_left):
            return True
        request.streamed = True
        return False

    def _speaks(self, name: str) -> None:
        who = self.host or "-"
        logger.info("a client at %s speaks %s on the port of HTTP: its connection is closed", who, name)
        # What follows an answer may be the rest of a body that was declared too short: a reset would take the
        # answer from the client.
        self.ending = Ending.LINGER if self._has_answered else Ending.CUT
        self.parser = None

    def _next_ready(self) -> bool:
        """An answer is out: whether the next request came with the one before."""
        parser = self.parser
        if parser is None:
            return False
        if not parser.has_more:
            self.parser = None
            return False
        self.began = time.monotonic()
        return self._parse(parser)

    def park(self) -> None:
        """Leave it to the loop. Afterwards it belongs to whoever takes it from there."""
        loop = self.loop
        if self.ending is Ending.LINGER and not self.unsent and self.thrown_away < 0:
            self.thrown_away, self.since = 0, time.monotonic()
            self.parser = None
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.ending = Ending.CLOSE
        self.with_worker = False
        if self.ending in (Ending.CUT, Ending.CLOSE):
            loop.close_soon(self)
        else:
            loop.arm(self)

    # --- a worker has it ------------------------------------------------------------------------

    def serve(self, *, patient: bool = True) -> None:
        """Serve the request that is ready, and those that follow it soon; then give the connection back.

        ``patient``: by a worker, with a turn. The loop waits for nobody, and serves one: others wait for it.
        """
        again, self._has_turn = False, patient
        try:
            again = self._serve_all() if patient else self._serve() and self._next_ready()
        except BaseException:
            self.ending = Ending.CUT
            raise
        finally:
            self._end_turn(done=True)
            if again and self.ending is None:
                self.loop.serve(self, in_line=True)  # at its end: others wait too
            else:
                if self.answering is None:
                    self.serving, self.hang_up = 0.0, None
                self.park()

    def _serve_all(self) -> bool:
        """Whether another request is ready, and others wait."""
        buffer, workers, waiting = bytearray(), self.loop.workers, self.loop.workers.waiting
        while True:
            if not self._serve():
                return False
            if self.answering is not None:
                return True
            if not self._next(buffer, not waiting):
                return False
            if not workers.next_turn(self):
                return True
            self._has_turn = True

    def _next(self, buffer: bytearray, patient: bool) -> bool:
        """Whether another request is ready, after a moment's patience."""
        parser = self.parser
        self.serving = 0.0
        if parser is not None and parser.has_more:
            self.began = time.monotonic()
            return self._parse(parser)
        buffer += bytes(RECEIVE - len(buffer))  # not before: whose first request takes long needs none
        try:  # as long as the socket's own time limit
            count = self.socket.recv_into(buffer, RECEIVE, 0 if patient else socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.since, self.parser = time.monotonic(), None
            return False
        except OSError:
            self.ending = Ending.CUT
            return False
        self.since = self.began = time.monotonic()
        if not count:
            self.ending = Ending.CLOSE
            return False
        if parser is None or (head := parser.again(buffer, count)) is None:
            return self._received(buffer, count)
        self.request = Request(head, parser)
        if self.loop.draining:  # of a request without a body the way is said by nothing else
            self.request.choose_way(self.loop, self.host)
        self._is_ready(self.began)
        return True

    def _serve(self) -> bool:
        """Whether another request may follow at once, or this one is to be gone on with."""
        request, answering = self.request, self.answering
        if request is None:
            self.ending = self.ending or Ending.CUT
            return False
        over = True
        try:
            if self.hang_up and isinstance(self.hang_up.reason, DistfsError):
                request.error = self.hang_up.reason
            if answering is not None:
                over = answering.take_up(request.error)
            else:
                if request.streamed and not request.error:
                    self._stream(request)
                answering = (
                    Refusal(self, request, request.error) if request.error else Response(self, request)
                )
                over = answering.go_on()
            if answering.ending is not None:
                self.ending = self.ending or answering.ending
                return False
            if not over:
                return not (self.ending or self.unsent)
            parser = request.parser  # all of the request was read: the next one may come
            while parser.state is not State.DONE and not isinstance(parser.next_event(), Pause):
                pass
            parser.next_request()
            if not self.rests:
                self._rested = 0.0
            return not (self.ending or self.unsent or self.rests)
        finally:
            if self._has_turn:
                self._has_turn = False
                self.loop.workers.end_turn(self, done=True)
            self.full = False
            self.since = self.answered = time.monotonic()
            self.answering = None if over else answering
            if over:
                self.request = self.waits = None
                request.close()
                self._has_answered = True
            leave_request()

    def _stream(self, request: Request) -> None:
        begun = request.small.value() if request.small else b""
        invite = self._invite if request.asks else None
        request.body = StreamedBody(
            self.client, request.parser, begun, invite, self.loop.put_aside, self._end_turn
        )

    def rest(self) -> None:
        """For the app: once this request is answered nothing is read for a while, for longer each time."""
        self.rests = min(2 * self._rested, REST_MOST_S) or REST_FIRST_S

    def _end_turn(self, *, done: bool = False) -> None:
        """It is answered (``done``), or waits for its client."""
        if self._has_turn:
            self._has_turn = False
            self.loop.workers.end_turn(self, done=done)

    @property
    def client(self) -> ClientSocket:
        """How the request that is served waits for its client."""
        if self.waits is None:
            limits = self.loop.http.client_stall_timeout, self.loop.http.client_min_rate
            self.waits = ClientSocket(self.socket, *limits, self.loop.cut)
        return self.waits

    def write(self, *buffers: Bytes, rewind: Rewind | None = None) -> int:
        """Send in order, after all that waits. ``buffers`` may be reused afterwards. Raises ClientGone.

        ``rewind``: takes back what a full socket does not take and is more than REST; -> how much that was.
        """
        if self._has_turn and rewind is not None:  # of many parts, which a client may take slowly
            self._end_turn()
        if self.hang_up is not None and self.hang_up.may_ask:
            self.unsent += self.hang_up.stop_asking()
        if self.unsent:
            buffers, self.unsent = (self.unsent, *buffers), b""
        try:
            sent = self.socket.sendmsg(buffers, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError as e:
            raise ClientGone(f"the client's connection broke: {e.strerror}") from e
        if sent == sum(map(len, buffers)):
            return 0
        return self._write_rest(beyond([memoryview(b) for b in buffers], sent), rewind)

    def _write_rest(self, views: list[memoryview], rewind: Rewind | None) -> int:
        """What the socket does not take at once."""
        if self._has_turn:
            self._end_turn()
        if sum(map(len, views)) > REST:
            seconds = FULL_CROWDED_S if self.loop.memory.crowded or self.others_wait else FULL_S
            views = self.client.send(views, full_after=seconds if rewind else None)
            self.full = bool(views)
        more = max(0, sum(map(len, views)) - REST)
        if rewind is None or not self.full:
            self.unsent = b"".join(views)
            return 0
        self.unsent = b"".join(views)[:REST]
        rewind(more)
        return more

    @property
    def in_transit(self) -> bool:
        return self.answering is not None

    @property
    def others_wait(self) -> bool:
        return bool(self.loop.workers.waiting)

    def who(self, request: Request) -> dict[str, str]:
        """Whose connection it is, as the access log says it."""
        return self.loop.who(self.host, request.head.header)

    def may_go_on(self, request: Request) -> bool:
        """Whether another request may follow on this connection once this one is answered."""
        if request.error or not request.head.goes_on or self.loop.closing or self.loop.draining:
            return False
        return request.body is None or request.body.look_ahead()

    def _invite(self) -> None:
        hang_up = self.hang_up or HangUp()
        waiting, self.unsent = self.unsent + hang_up.stop_asking() + CONTINUE, b""
        self.client.send([memoryview(waiting)])
        hang_up.may_ask = True
