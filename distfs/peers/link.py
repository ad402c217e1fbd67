"""What a service knows of one node: its connections, how quick it is, whether it fails; and one request to it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from distfs.config.settings import PeersConfig
from distfs.deadline import Deadline
from distfs.errors import Cancelled, DistfsError, NodeUnavailable, ProtocolError, TooSlow
from distfs.formats.wire import Frame, Type, decode_error
from distfs.model import Address, Buffer, FragmentId
from distfs.peers.breaker import Breaker
from distfs.peers.greeting import NodeSocket
from distfs.peers.hedge import LatencyHistory
from distfs.process.connection_pool import ConnectionPool, Limits
from distfs.telemetry import tracing
from distfs.telemetry.metrics import NODE_FAILURES, NODE_SENT, RETRIES, node_at
from distfs.telemetry.tracing import Span
from distfs.tls.contexts import Side

#: What was sent on a reused connection is kept up to this size, to be sent again when that one was stale; a WholePut
#: keeps what it has, which is its caller's block.
REPLAY_MOST = 64 << 10
_REQUEST = RETRIES.index("request")
_REFUSAL_WAIT_S = 1.0  # for the rest of an answer that has begun to come


class NodeLink:
    """Thread-safe; shared by all requests of a service to one node."""

    def __init__(
        self,
        address: Address,
        config: PeersConfig,
        greet: Callable[[NodeSocket, Deadline], object],
        side: Side | None = None,
        number: int = 0,
    ) -> None:
        """``greet`` begins each connection, both prove who they are; ``side``: of TLS; None: without; ``number``: the
        node's id."""
        self.series = node_at(number)  # of what is counted by node
        self.peer, self.address, self.config = f"node {address}", address, config
        self._greet, self._side = greet, side
        self.disk_phase = f"{self.peer}: waiting for its disk"
        limits = Limits(
            config.max_connections,
            config.connections,
            config.connection_idle,
            config.connection_age,
            "peers.max_connections",
        )
        self.pool: ConnectionPool[NodeSocket] = ConnectionPool(self.peer, self._connect, limits)
        self.breaker = Breaker(config.breaker_failures, config.breaker_pause)
        self.latency = LatencyHistory()

    @property
    def hedge_delay(self) -> float:
        """Seconds of silence after which this node is late."""
        usual, least, most = self.latency.p95, self.config.hedge_min, self.config.stall_timeout
        if usual <= least:
            return least
        return min(usual, most)

    def account(self, error: DistfsError, deadline: Deadline) -> None:
        """A request ended with an error: is the node to blame?"""
        if isinstance(error, Cancelled):
            return  # nobody waited for its answer any more
        if not isinstance(error, NodeUnavailable | TooSlow | ProtocolError):
            self.breaker.succeeded()  # it answered
            return
        with contextlib.suppress(DistfsError):
            deadline.remaining()  # a request that ran out of time, or was cancelled, says nothing of the node
            NODE_FAILURES.add(at=self.series)
            self.breaker.failed()

    def _connect(self, deadline: Deadline) -> NodeSocket:
        timeout = deadline.bound(self.config.connect_timeout, f"{self.peer}: connect")
        try:
            host, port = self.address.host, self.address.port
            sock = NodeSocket.connect(host, port, self.peer, timeout, self.config.stall_timeout)
            if self._side is not None:
                self._secure(sock, self._side, deadline)
            try:
                self._greet(sock, deadline)
            except BaseException:
                sock.close()
                raise
            return sock
        except TooSlow:
            if timeout >= self.config.connect_timeout:
                self.breaker.failed()
            raise
        except NodeUnavailable:
            self.breaker.failed()
            raise

    def _secure(self, sock: NodeSocket, side: Side, deadline: Deadline) -> None:
        unwatch = deadline.watch(sock.interrupt)
        try:
            sock.start_tls(side, deadline.bound(self.config.stall_timeout, f"{self.peer}: TLS"))
        except BaseException:
            sock.close()
            deadline.check_cancelled()
            raise
        finally:
            unwatch()


class WaitBudget:
    """How long one transfer may wait for its node, in all: ``base_timeout + bytes / min_rate``.

    Only waiting counts: an upload or download may pause for its client for as long as its deadline lets it.
    """

    def __init__(self, config: PeersConfig, deadline: Deadline) -> None:
        self._rate, self._deadline = config.min_rate, deadline
        self.left = self._bound = float(config.base_timeout)
        self.started = 0.0

    def spend(self, seconds: float) -> None:
        """So long was waited already."""
        self.left -= seconds

    def waiting(self, size: int) -> WaitBudget:
        """``size`` bytes more are to be moved: wait for them within ``with``, which gives the limit."""
        self.left += size / self._rate
        self._bound += size / self._rate
        return self

    def rest(self, phase: str) -> float:
        """All that is left, before it is waited. Raises as ``remaining``."""
        self.started = time.monotonic()
        return self.remaining(phase)

    def __enter__(self) -> WaitBudget:
        self.started = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self.left -= time.monotonic() - self.started

    def remaining(self, phase: str) -> float:
        """As Deadline's, while it is waited. An error names the whole bound, not what the last bytes had left."""
        left = self.left - (time.monotonic() - self.started)
        if left <= 0:
            self._deadline.check_cancelled()
            raise TooSlow(f"{phase} passed its deadline of {self._bound:.1f} s")
        return min(left, self._deadline.remaining(phase))


def span_of(link: NodeLink, what: str, of: object) -> Span | None:
    """Of a request to a node; None: nothing is recorded here."""
    where = {"server.address": link.address.host, "server.port": link.address.port}
    about = {"rpc.system": "distfs", "rpc.method": what, "distfs.node": link.peer, "distfs.fragment": of}
    return tracing.begin(what, tracing.CLIENT, {**where, **about})


class Exchange:
    """One request on a connection of the pool. Ends by ``done``, or the connection is closed.

    A reused connection that proves stale, closed by the node before a byte of the answer came, is replaced by
    a fresh one, once, as long as all that was sent is still at hand.
    """

    span: Span | None = None  # of it; ``trace``: what the node is told of that
    trace = b""

    def __init__(
        self,
        link: NodeLink,
        deadline: Deadline,
        *,
        notice: float | None = None,
        connect_within: float | None = None,
        patient: bool = False,
        replayable: bool = False,
        for_disk: bool = False,
        what: str = "",
        of: FragmentId | None = None,
        left: float | None = None,
    ) -> None:
        """``notice``: silence after which ``_or_late`` calls return; ``connect_within``: seconds to connect in;
        ``patient``: the node works for long before it answers, so that only the deadline bounds its silence;
        ``replayable``: all that is sent will be at hand until the answer comes; ``for_disk``: the node writes before
        it answers, and may be silent for as long as the budget lasts; ``what``, ``of``: what is asked for, to trace;
        ``left``: of the deadline, if somebody has just looked.

        Raises Busy, NodeUnavailable, TooSlow.
        """
        self.link, self.deadline = link, deadline
        self.budget = WaitBudget(link.config, deadline)
        self._notice, self._patient, self._for_disk = notice, patient, for_disk
        self._kept: list[Buffer] | None = []
        self._size = 0
        self.heard_at = 0.0  # when the last wait for a frame ended, by the monotonic clock
        self._ended = False
        if tracing.on and (span := span_of(link, what, of)) is not None:
            self.span, self.trace = span, span.carried.pack()
        sock = link.pool.lend() if replayable else None
        self._reused = sock is not None
        if sock is None:
            wait = link.config.stall_timeout if connect_within is None else connect_within
            sock = self._connected(wait)
        self.sock = sock
        self._unsent: Sequence[Buffer] = ()  # until the greeting is over
        self._prepare(left if self._reused else None)
        if notice is None:
            self._greet()

    @classmethod
    def going_on(
        cls, link: NodeLink, sock: NodeSocket, deadline: Deadline, sent: bytes, notice: float
    ) -> Exchange:
        """One of which ``sent`` has left, on a connection that the pool has lent; an answer may have come."""
        self = cls.__new__(cls)
        self.link, self.sock, self.deadline = link, sock, deadline
        self.budget = WaitBudget(link.config, deadline)
        self._notice, self._patient, self._for_disk = notice, False, False
        self._reused, self._ended, self._unsent = True, False, ()
        self._kept, self._size, self.heard_at = [sent], len(sent), 0.0
        self._unwatch = deadline.watch(sock.interrupt)
        return self

    def _connected(self, wait: float) -> NodeSocket:
        try:
            sock, self._reused = self.link.pool.take(self.deadline.sooner(wait))
        except BaseException as e:
            if self.span is not None:
                self.span.end(e)
            raise
        return sock

    def send(self, *buffers: Buffer, more: bool = False) -> None:
        """Raises what the node said, if it hung up with a reason; else NodeUnavailable, TooSlow."""
        if self.sock.greeting is not None:  # a request alone, which is small: its answer is waited for
            self._unsent = buffers
            return
        size = sum(map(len, buffers))
        try:
            try:
                if size <= REPLAY_MOST:  # nobody has to wait until a socket takes so little
                    self.sock.send(*buffers, more=more, limit=self.deadline)
                else:
                    with self.budget.waiting(size) as limit:
                        self.sock.send(*buffers, more=more, limit=limit)
            except (NodeUnavailable, TooSlow) as e:
                self._send_again(e, *buffers)
        except BaseException as e:
            self._fail(e)
            raise
        self._size += size
        if self._kept is not None:
            if self._reused and self._size <= REPLAY_MOST:
                self._kept += map(bytes, buffers)
            else:
                self._kept = None

    def check_refusal(self) -> None:
        """A node that cannot go on says so at once: do not push the rest at it."""
        with self:
            if not self.sock.idle:
                self._raise_refusal()
                raise NodeUnavailable(f"{self.sock.peer}: closed the connection")

    def answer(self, due: Type) -> Frame:
        """The frame that answers. An ERROR frame is raised as the error it names."""
        if self._for_disk and self._size > REPLAY_MOST:  # the budget has grown with what was sent
            with self:
                self.sock.set_receive_stall(self.budget.rest(self.link.disk_phase))
        while (frame := self.frame_or_late()) is None:
            pass
        return frame if frame.type is due else self.accept(frame, due)

    def frame_or_late(self, now: float | None = None) -> Frame | None:
        """The frame that answers; None after a silence of ``notice``. ``now``: by the clock, if it was asked."""
        budget = self.budget
        try:
            budget.started = time.monotonic() if now is None else now
            try:
                limit = self.deadline if self._patient else budget
                if self.sock.greeting is not None:
                    if not self.sock.greeting.go_on(limit):
                        return None
                    self.sock.send(*self._unsent, limit=limit)
                try:
                    return self.sock.receive_frame_or_late(limit)
                except NodeUnavailable as e:
                    if not self._is_stale(e):
                        raise
                    self._renew()
                    return self.sock.receive_frame_or_late(limit)
            finally:
                self.heard_at = time.monotonic()
                budget.left -= self.heard_at - budget.started
        except BaseException as e:
            self._fail(e)
            raise

    def accept(self, frame: Frame, due: Type) -> Frame:
        """Raises the error that it names, or that it is not what is due."""
        try:
            return self.sock.accept_answer(frame, due)
        except BaseException as e:
            self._fail(e)
            raise

    def receive_or_late(self, view: memoryview, done: int) -> int:
        """Body bytes into ``view`` from ``done`` on; -> where it came to: less than all after a silence."""
        if not done and self.sock.take(view):
            return len(view)
        with self, self.budget.waiting(0 if done else len(view)) as limit:
            return self.sock.receive_body_or_late(view, done, limit)

    def receive(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done = self.receive_or_late(view, done)

    def waited(self, seconds: float) -> None:
        """Silence that was waited for elsewhere. Raises TooSlow."""
        with self:
            self.budget.spend(seconds)
            self.sock.count_silence(seconds)

    def protocol_error(self, text: str) -> ProtocolError:
        """The answer makes no sense: ends the exchange, and is held against the node; -> what to raise."""
        error = ProtocolError(f"{self.sock.peer}: {text}")
        self.link.account(error, self.deadline)
        if self.span is not None:
            self.span.end(error)
        self.close()
        return error

    def done(self, understood: bool = True) -> None:
        """The answer was read to its end; ``understood`` False: whether it makes sense is still to be seen."""
        if self._ended:
            return
        self._ended = True
        if self.span is not None:
            self.span.facts["distfs.sent_bytes"] = self._size
            self.span.end()
        NODE_SENT.add(self._size, self.link.series)
        self._unwatch()
        link = self.link
        if understood:
            link.breaker.succeeded()
        if self.sock.reusable:
            link.pool.give_back(self.sock)
        else:  # more came than was asked for: nobody is to take that for an answer
            link.pool.discard(self.sock)

    def close(self) -> None:
        """Give up; nothing after ``done``. It is nobody's fault."""
        if not self._ended:
            self._ended = True
            if self.span is not None and not self.span.ended:
                self.span.facts["distfs.given_up"] = True
                self.span.end()
            self._unwatch()
            self.link.pool.discard(self.sock)

    # --- how it ends ----------------------------------------------------------------------------------

    # A connection is reused only after an answer that was read to its end: what fails ends it, whether by `_fail` or
    # within `with self`, which is the same and takes longer.

    def _fail(self, error: BaseException) -> None:
        """Raises Cancelled when that is why."""
        if isinstance(error, DistfsError) and not self._ended:
            self.link.account(error, self.deadline)
        if self.span is not None:
            self.span.end(error)
        self.close()
        if isinstance(error, DistfsError):
            self.deadline.check_cancelled()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._fail(error)

    # --- a stale connection ---------------------------------------------------------------------------

    def _prepare(self, left: float | None = None) -> None:
        self._unwatch = self.deadline.watch(self.sock.interrupt)
        try:
            config = self.link.config
            if left is None:
                left = self.deadline.remaining(self.link.peer)
            silence = config.base_timeout if self._for_disk else config.stall_timeout
            self.sock.begin(
                config.stall_timeout, left if self._patient or left < silence else silence, self._notice
            )
        except BaseException as e:
            self._fail(e)
            raise

    def _greet(self) -> None:
        """Have both sides prove who they are, if they have not yet."""
        if self.sock.greeting is not None:
            with self, self.budget.waiting(0) as limit:
                while not self.sock.greeting.go_on(limit):
                    pass

    def _send_again(self, error: DistfsError, *buffers: Buffer) -> None:
        """What was not sent for ``error``, on a fresh connection. Raises what the node said before it hung up, or
        ``error``."""
        self._raise_refusal()
        if not self._is_stale(error):
            raise error
        self._renew(*buffers)

    def _is_stale(self, error: DistfsError) -> bool:
        at_hand = self._reused and self._kept is not None and not self.sock.heard
        return at_hand and isinstance(error, NodeUnavailable) and not self.deadline.cancelled

    def _renew(self, *buffers: Buffer) -> None:
        """The same once more on a fresh connection."""
        RETRIES.add(at=_REQUEST)
        self._unwatch()
        self._reused = False
        try:
            self.sock = self.link.pool.replace(self.sock, self.deadline)
        except DistfsError as e:
            self._ended = True  # connecting has told the breaker: it is one failure
            if self.span is not None:
                self.span.end(e)
            raise
        self._prepare()
        self._greet()
        with self.budget.waiting(0) as limit:
            self.sock.send(*(self._kept or ()), *buffers, limit=limit)

    def _raise_refusal(self) -> None:
        """What the node said before it hung up, if it did."""
        if self.sock.idle:
            return
        self.sock.set_receive_stall(_REFUSAL_WAIT_S)
        try:
            frame = self.sock.receive_frame(Deadline(_REFUSAL_WAIT_S))
        except (NodeUnavailable, TooSlow):
            if self.sock.heard:
                raise
            return  # it said nothing
        if frame.type is Type.ERROR:
            raise decode_error(frame.header(), self.sock.peer)
        raise ProtocolError(f"{self.sock.peer}: an answer before the end of the request")
