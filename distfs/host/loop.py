"""The loop: one thread with an epoll, which has the connections that nothing is done for.

Interest is registered once for each connection and armed anew each time it is left to the loop, by any thread; so a
connection that says nothing costs its descriptor and a few hundred bytes, and no round of the loop looks at it. Its
time limits are in a heap, by when to look.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from distfs.config.settings import KIB, HttpConfig
from distfs.errors import Busy, ClientGone, DistfsError
from distfs.host import host
from distfs.host.connection import Connection
from distfs.host.ending import RESET, Ending
from distfs.host.host import Host
from distfs.host.request_body import Memory, PutAside
from distfs.host.response import logger
from distfs.host.resting import Resting
from distfs.host.shared import Shared
from distfs.host.time_limits import check
from distfs.host.turned_away import TurnedAway
from distfs.host.workers import LATE_S
from distfs.process import descriptors
from distfs.process.dial import timeval
from distfs.telemetry.metrics import CONNECTION_STATES, CONNECTIONS_BY_STATE
from distfs.tls.contexts import FromFiles
from distfs.tls.stream import AnySocket, TlsSocket

RECEIVE = 64 * KIB  # the most the loop reads at once
LOOP_SECONDS = 1.0  # how often those who are served are looked after, at least
DRAIN_LOOK_S = 0.02  # how often it is looked whether all is done, when the service stops
ACCEPTS = 64  # connections taken at once, before others have their turn
#: So long a worker waits for the next request of a connection before it leaves that to the loop.
PATIENCE_S = 0.004
_PATIENCE = timeval(PATIENCE_S)

READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLONESHOT
WRITE = select.EPOLLOUT | select.EPOLLONESHOT


class Loop(Host):
    """The listening socket, the connections, and what they need."""

    def __init__(
        self,
        app: Any,
        http: HttpConfig,
        listener: socket.socket,
        memory: Memory,
        put_aside: PutAside,
        shared: Shared | None = None,
        tls: FromFiles[ssl.SSLContext] | None = None,
    ) -> None:
        super().__init__(app, http, listener.getsockname()[1], memory, put_aside)
        self._tls, self.scheme = tls, "https" if tls else "http"
        self.tick = min(LOOP_SECONDS, http.client_stall_timeout / 4, http.idle_timeout / 4)
        self.connections: dict[int, Connection] = {}
        self._listener: socket.socket | None = listener
        self._shared = shared
        self._accepting = False
        self._accept_after = 0.0
        self._accept_trouble = descriptors.AcceptTrouble(logger)
        self._turned_away = TurnedAway()
        self._times: list[tuple[float, int, Connection]] = []
        self._serial = itertools.count()
        self._to_close: deque[Connection] = deque()
        self._at_hand: deque[Connection] = deque()  # with bytes that the socket has given already
        self._resting = Resting()
        self._scratch = memoryview(bytearray(RECEIVE))
        self._looked = 0.0
        self._looks_soon = False  # for who is late
        self._ended = (
            threading.RLock()
        )  # held by who wakes, and by the end; a signal handler's thread may have it
        self._has_ended = False
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)

    # --- from any thread ------------------------------------------------------------------------

    def wake(self) -> None:
        with self._ended:
            if not self._has_ended:
                os.eventfd_write(self._wake, 1)

    def arm(self, connection: Connection) -> None:
        """The loop has it: tell when something comes, or when the socket takes what is unsent."""
        if self._has_ended:
            connection.socket.close()
            return
        if connection.rests and not connection.unsent:
            self._resting.add(connection)
            self.wake()
            return
        if not connection.unsent and isinstance(connection.socket, TlsSocket) and connection.socket.pending:
            self._at_hand.append(connection)
            self.wake()
            return
        with contextlib.suppress(OSError, ValueError):  # it, or the loop, ends in this moment
            self._epoll.modify(connection.fd, WRITE if connection.unsent else READ)

    @property
    def service_stops(self) -> bool:
        return self.draining and not (self._shared and self._shared.others_accept())

    def close_soon(self, connection: Connection) -> None:
        if self._has_ended:
            connection.socket.close()
        else:
            self._to_close.append(connection)
            self.wake()

    def serve(self, connection: Connection, *, in_line: bool = False) -> None:
        connection.with_worker = True
        try:
            if in_line or not (self.workers.all_busy and connection.answers_at_once):
                self.workers.run(connection)
                if in_line and not self._looks_soon and self.workers.others_wait:
                    self.wake()  # to look after those who wait
                return
        except Busy as e:
            connection.refuse_busy(e)
            return
        connection.serve(patient=False)

    # --- the loop's own thread --------------------------------------------------------------------

    def turn(self, seconds: float) -> None:
        """Wait at most so long for something to do, and do it."""
        now = time.monotonic()
        self._watch_listener(now)
        for fd, events in self._epoll.poll(self._idle_for(now, seconds), 256):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif (connection := self.connections.get(fd)) is not None:
                if events & select.EPOLLPRI:
                    self.close(connection)  # urgent data: HTTP has none
                elif not connection.with_worker:
                    self._handle(connection)
            elif self._listener is not None:
                self._accept(self._listener)
        self._handle_at_hand()
        while self._to_close:
            self.close(self._to_close.popleft())
        now = time.monotonic()
        if self.workers.others_wait:
            self.workers.pass_by_late(now)
        self._check_times(now)
        if now >= self._looked + self.tick:
            self._look_after(now)
            self._looked = now
            if self._shared is not None and self._accepting and self._listener is not None:
                # The one that was woken for a connection may have died of it, or stand still.
                self._epoll.unregister(self._listener)
                self._accepting = False

    def _idle_for(self, now: float, seconds: float) -> float:
        """How long it may wait for something to do: at most so many seconds."""
        until = min(now + seconds, self._looked + self.tick, self._resting.first())
        if now < self._accept_after:
            until = min(until, self._accept_after)
        if self._times:
            until = min(until, self._times[0][0])
        self._looks_soon = self.workers.others_wait
        if self._looks_soon:
            until = min(until, now + LATE_S / 2)
        return max(0.0, until - now)

    def _handle(self, connection: Connection) -> None:
        try:
            connection.handle(self._scratch)
        except Exception:  # noqa: BLE001 - one connection's fault must not end the loop
            logger.exception("a connection is cut, by a bug")
            connection.ending = Ending.CUT
            self.close(connection)
            return
        if connection.fd in self.connections:
            self._schedule(connection)

    def _handle_at_hand(self) -> None:
        """Those that have rested. And those that TLS has more of; each once, or one that sends without an end would
        have the loop to itself."""
        for rested in self._resting.rested(time.monotonic()):
            if self.connections.get(rested.fd) is rested:
                self._handle(rested)
        for _ in range(len(self._at_hand)):
            connection = self._at_hand.popleft()
            if self.connections.get(connection.fd) is connection and not connection.with_worker:
                self._handle(connection)

    def _schedule(self, connection: Connection) -> None:
        """Have its time limits looked at in time, whatever comes next on it."""
        idle = not connection.begun and not connection.busy
        at = time.monotonic() + (self.http.idle_timeout if idle else self.shortest)
        if at < connection.check_at:
            connection.check_at = at
            heapq.heappush(self._times, (at, next(self._serial), connection))

    def _check_times(self, now: float) -> None:
        while self._times and self._times[0][0] <= now:
            at, _, connection = heapq.heappop(self._times)
            if connection.check_at != at or self.connections.get(connection.fd) is not connection:
                continue
            connection.check_at = float("inf")
            again = check(connection, now)
            if self.connections.get(connection.fd) is connection:
                connection.check_at = max(again, now + self.tick / 4)
                heapq.heappush(self._times, (connection.check_at, next(self._serial), connection))

    def _watch_listener(self, now: float) -> None:
        """Accept while there is room for another connection, and a socket to be had."""
        if self._listener is None:
            return
        if self.draining and self._shared is not None and self._shared.others_accept():
            self._stop_listening()
            return
        wanted = self._room > 0 and now >= self._accept_after
        if wanted != self._accepting:
            self._accepting = wanted
            if wanted:
                # Of those that share it, one wakes: the one that has waited longest.
                only_one = select.EPOLLEXCLUSIVE if self._shared else 0
                self._epoll.register(self._listener, select.EPOLLIN | only_one)
            else:
                self._epoll.unregister(self._listener)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            if self._accepting:  # where it is shared, closing it does not end that
                self._epoll.unregister(listener)
            self._accepting = False
            listener.close()

    @property
    def _room(self) -> int:
        """For more connections; those that are turned away have none."""
        return self.http.max_connections - len(self.connections) + len(self._turned_away)

    def _accept(self, listener: socket.socket) -> None:
        most = ACCEPTS
        if self._shared is not None:  # the others have their turn
            self._epoll.unregister(listener)
            self._accepting, most = False, 1
        for _ in range(min(most, self._room)):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if self._accept_trouble.pauses(e):
                    self._accept_after = time.monotonic() + descriptors.ACCEPT_PAUSE_S
                return
            self._admit(sock, address)

    def _admit(self, sock: socket.socket, address: Any) -> None:
        """A connection that was accepted; unless it is one too many for its address."""
        whose, too_many = _host_of(address), None
        try:
            self.connected(whose)
        except DistfsError as e:
            too_many = e
            if not self._turned_away.may_linger(None if self._tls else sock, e):
                sock.close()
                return
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            connection = Connection(self, self._under_tls(sock), address, whose)
            self._epoll.register(sock, READ)
        except OSError:  # it was closed before we came to it
            sock.close()
            if not too_many:
                self.disconnected(whose)
            return
        self.connections[connection.fd] = connection
        if too_many:
            self._turned_away.linger(connection)
        self._schedule(connection)

    def _under_tls(self, sock: socket.socket) -> AnySocket:
        """Its handshake is done as its bytes come, in no more time than a head has. Pieces of a record hold a worker,
        or the loop, no longer than silence does."""
        if self._tls is None:
            return sock
        context, generation = self._tls.now()
        return TlsSocket(sock, context, server_side=True, generation=generation, record_s=PATIENCE_S)

    def close(self, connection: Connection) -> None:
        """Now; by Ending.CUT with a reset. Descriptors are closed in this thread only: nobody else ever finds the
        number of one given to another."""
        if self.connections.get(connection.fd) is not connection or connection.with_worker:
            return
        del self.connections[connection.fd]
        if not self._turned_away.forget(connection):
            self.disconnected(connection.host)
        connection.give_up_answer(ClientGone("its connection was closed"))
        if connection.request:
            connection.request.close()
        if connection.ending is Ending.CUT:
            with contextlib.suppress(OSError):
                connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.socket.close()

    def _look_after(self, now: float) -> None:
        """Those who wait for a worker for too long are told so. And while a request waits or is served, nobody else
        looks whether its client is still there: those that have come a while ago are looked at."""
        self.workers.measure()
        self._measure()
        self._refuse_waiting(now - (host.WAIT_LIMIT_S if self.workers.no_thread else host.TURN_LIMIT_S))
        poll, served = select.poll(), {}
        for connection in self.workers.busy():
            if 0 < connection.serving <= now - self.tick / 2:
                served[connection.fd] = connection
                poll.register(connection.fd, select.POLLRDHUP | select.POLLIN)
        for fd, events in poll.poll(0) if served else ():
            connection = served[fd]
            if events & ~(select.POLLRDHUP | select.POLLIN):
                connection.client_left()
                if self.workers.withdraw(connection):
                    connection.refuse_busy(ClientGone("the client hung up"))
            elif events & select.POLLRDHUP or connection.stands_still():
                connection.ask_client()

    def _measure(self) -> None:
        """Tell the metrics what the connections do."""
        counts = Counter(map(_state_of, self.connections.values()))
        for at, state in enumerate(CONNECTION_STATES):
            CONNECTIONS_BY_STATE.set(counts[state], at)

    def _refuse_waiting(self, since: float) -> None:
        """Those that have waited for a worker since then, or longer."""
        for late in self.workers.overdue(since):
            if late.answering is not None:
                self.serve(late, in_line=True)  # a part of it has left: it waits on
                continue
            late.refuse_busy(Busy("every worker is busy with other requests: try again soon"))

    # --- the end ----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Something is being received, served or answered, also by others that stop together with this process: as
        long as one of them listens, all do, or who was accepted last would be let down."""
        busy = any(connection.busy for connection in self.connections.values())
        if self._shared is None or self._shared.others_accept():
            return busy
        return self._shared.others_work(busy) or busy

    def shut_down(self, grace: float, cut_grace: float) -> None:
        """End everything, within these seconds: so long what runs may go on, and then be cut."""
        self.closing = True
        self._stop_listening()
        self._give_up(lambda each: not each.with_worker and each.answering is None)  # what still comes in
        self._until_free(grace)
        self.end_waits()
        self._give_up(lambda connection: True)
        self._refuse_waiting(time.monotonic())
        self._until_free(cut_grace)
        self.workers.close()
        with self._ended:
            self._has_ended = True
            os.close(self._wake)
        for connection in list(self.connections.values()):
            if connection.with_worker:  # it is not waited for; its socket is let go when it is done
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
            else:
                self.close(connection)
        self._epoll.close()
        if not self.connections:
            os.close(self.cut)

    def _give_up(self, which: Callable[[Connection], bool]) -> None:
        for connection in list(self.connections.values()):
            if which(connection):
                connection.give_up()

    def _until_free(self, seconds: float) -> None:
        """Go on with the connections that something comes in or goes out by, not with the idle ones."""
        until = time.monotonic() + seconds
        while True:
            for connection in list(self.connections.values()):
                if not connection.busy:
                    self.close(connection)
            left = until - time.monotonic()
            if not self.connections or left <= 0:
                return
            self.turn(min(left, DRAIN_LOOK_S))


def _state_of(connection: Connection) -> str:
    """As metrics call it."""
    if connection.with_worker:
        return "served"
    if connection.unsent:
        return "sending"
    return "handshake" if connection.shakes_hands else "receiving" if connection.begun else "idle"


def _host_of(address: Any) -> str:
    """Of an IP socket's address; a Unix socket's has none."""
    return str(address[0]) if address else ""
