"""distfs's own WSGI host: waitress, with large bodies read and large answers written by the worker threads.

The loop (`run`) accepts, reads headers and small bodies; `channel` has the connections, `response` the
answers, `request_body` the bodies. Any WSGI app runs on it; ours also uses what `environ` then promises:
``wsgi.input.readinto(view)`` as Source says, and ``distfs.writes_views``: the answer's iterable may give
memoryviews that are valid only until the next one is asked for; ``distfs.trailers()``: what came behind a chunked
body, by names in small letters, once it was read to its end. And ours says of itself which answers
may take long, which never wait, which are given to the end, what it has against a body, whether it reads bodies
at a pace of its own, and whom a request is from: see ``HttpApp``.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer

from distfs.config.settings import MIB, HttpConfig
from distfs.host.channel import Channel
from distfs.host.dispatcher import Dispatcher
from distfs.host.request_body import Spooler
from distfs.host.response import logger
from distfs.limits.gate import Gate
from distfs.process import descriptors
from distfs.process.dial import cannot_listen
from distfs.transfer.blocks import BlockPool

RECEIVE = MIB  # the most the loop reads at once
LOOP_SECONDS = 1.0  # how often time limits are looked at, at least
#: Running requests get so long to end when the server closes (after drain(): drain_timeout); then they are cut.
CLOSE_GRACE = 5.0
CUT_GRACE = 2.0

#: An app's word against a body before any of it came: from whom, its headers by name, bytes (0: not said).
CheckBody = Callable[[str, Callable[[str], str | None], int], None]
#: An app's word for the access log on whom a request is from: address, its headers by name -> facts.
Who = Callable[[str, Callable[[str], str | None]], dict[str, str]]


class Server:
    """Serves ``app``. Listens from the beginning; answers from ``run`` on."""

    def __init__(
        self, app: Any, config: HttpConfig, pool: BlockPool | None = None, gate: Gate | None = None
    ) -> None:
        """``pool``: the memory that spooled bodies share with whatever else is in flight; None: some of their own.
        ``gate``: counts large bodies; None: they are not.

        Raises ConfigError, one line, when it cannot listen at ``config.host:port`` or spool.
        """
        spooler = Spooler(config, pool)
        listener = _listen(config)
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._host = Host(app, config, listener, spooler, gate or Gate())
        self._closed = threading.Event()
        self._runner: int | None = None

    def run(self) -> None:
        """Serve until close() or drain() is called; then end running requests, within bounds. Once only."""
        self._runner = threading.get_ident()
        try:
            self._host.serve()
        finally:
            self._host.shut_down()
            self._closed.set()

    def drain(self) -> None:
        """Let running requests end, refuse others with 503, then make run() return. For a signal handler.

        After ``drain_timeout`` seconds, or at once when it is called again, what still runs is cut.
        """
        self._host.drain()

    def close(self) -> None:
        """Stop accepting and make run() return. From any thread, or a signal handler, once or more often.

        Waits for run() to end, where that is another thread's: at most CLOSE_GRACE + CUT_GRACE seconds and
        a little. A second call meanwhile returns at once.
        """
        if self._host.closing:
            return
        self._host.closing = True
        if self._runner is None:
            self._host.shut_down()
            self._closed.set()
            return
        self._host.pull_trigger()
        if self._runner != threading.get_ident():
            self._closed.wait(CLOSE_GRACE + CUT_GRACE + 3)


class Host(TcpWSGIServer):  # type: ignore[misc]
    """waitress's server: the listening socket, the map of channels, the loop."""

    channel_class = Channel

    def __init__(
        self, app: Any, config: HttpConfig, listener: socket.socket, spooler: Spooler, gate: Gate
    ) -> None:
        self.closing = False
        self.draining = False
        self._drain_until = 0.0
        self._drain_timeout = config.drain_timeout
        self.spooler, self.gate = spooler, gate
        self.takes_long: Callable[[str, str], bool] = getattr(app, "takes_long", lambda method, path: False)
        self.answers_at_once: Callable[[str], bool] = getattr(app, "answers_at_once", lambda path: False)
        self.answers_while_draining: Callable[[str], bool] = getattr(
            app, "answers_while_draining", lambda path: False
        )
        self.cut, self._cutter = os.pipe()  # readable once nobody is to wait for a client any more
        self.check_body: CheckBody = getattr(app, "check_body", lambda address, header, size: None)
        self.who: Who = getattr(app, "who", lambda address, header: {"client": address or "-"})
        self.paces_bodies: Callable[[], bool] = getattr(app, "paces_bodies", lambda: False)
        self.scratch = memoryview(bytearray(RECEIVE))  # the loop's, for what it receives
        self._accept_after = 0.0
        self._accept_trouble = descriptors.AcceptTrouble(logger)
        self._ending = False
        self._gone = False
        self._trigger_lock = threading.RLock()  # a signal handler may find its own thread has it
        dispatcher = Dispatcher(config.threads, config.reserve_threads)
        address = listener.getsockname()
        super().__init__(
            app,
            map={},
            _sock=listener,
            dispatcher=dispatcher,
            adj=_adjustments(config, listener),
            bind_socket=False,
            sockinfo=(listener.family, listener.type, listener.proto, address),
        )

    def serve(self) -> None:
        while not self.closing and not self._drained():
            wasyncore.poll2(self.adj.asyncore_loop_timeout, self._map)

    def drain(self) -> None:
        self._drain_until = 0.0 if self.draining else time.monotonic() + self._drain_timeout
        self.draining = True
        self.pull_trigger()

    def _drained(self) -> bool:
        """Whether draining has come to its end, good or not."""
        if not self.draining:
            return False
        late = time.monotonic() >= self._drain_until
        return late or not any(channel.busy for channel in self.active_channels.values())

    def readable(self) -> bool:
        return bool(super().readable()) and time.monotonic() >= self._accept_after

    def handle_accept(self) -> None:
        try:
            connection, address = self.socket.accept()
        except OSError as e:
            if self._accept_trouble.pauses(e):
                self._accept_after = time.monotonic() + descriptors.ACCEPT_PAUSE_S
            return
        try:
            self.set_socket_options(connection)
        except OSError:  # it was closed before we came to it
            connection.close()
            return
        self.channel_class(self, connection, address, self.adj, map=self._map)

    def maintenance(self, now: float) -> None:
        """waitress calls it from the loop, every cleanup_interval."""
        self._look_for_hang_ups()
        self.task_dispatcher.end_waits(time.monotonic())
        for channel in list(self.active_channels.values()):
            channel.check_time(time.monotonic())

    def _look_for_hang_ups(self) -> None:
        """While a request waits or is served, nobody else looks whether its client is still there."""
        poll = select.poll()
        served = {c.socket.fileno(): c for c in self.active_channels.values() if c.with_worker}
        for number in served:
            poll.register(number, select.POLLRDHUP | select.POLLIN)
        for number, events in poll.poll(0) if served else ():
            if events & ~(select.POLLRDHUP | select.POLLIN):
                served[number].client_left()
            elif events & select.POLLRDHUP or served[number].stands_still():
                served[number].ask_client()

    def pull_trigger(self, thunk: Callable[[], None] | None = None) -> None:
        """Wake the loop, to run ``thunk``. After the loop's end, nothing: its pipe is closed."""
        with self._trigger_lock:
            if not self._gone:
                self.trigger.pull_trigger(thunk)

    def shut_down(self) -> None:
        """End everything, within CLOSE_GRACE + CUT_GRACE and a little. From the loop's thread."""
        with self._trigger_lock:
            self.closing, again, self._ending = True, self._ending, True
        if again:
            return
        self.accepting = False
        self.del_channel()
        self.socket.close()
        self._give_up(lambda channel: not channel.with_worker)  # what still comes in
        self._poll_until_free(0 if self.draining else CLOSE_GRACE)
        os.close(self._cutter)
        self._give_up(lambda channel: True)
        self.task_dispatcher.end_waits(time.monotonic())
        self._poll_until_free(CUT_GRACE)
        self.task_dispatcher.shutdown(timeout=1)
        with self._trigger_lock:
            self._gone = True
            self.trigger.close()
        wasyncore.close_all(self._map, ignore_all=True)
        os.close(self.cut)

    def _give_up(self, which: Callable[[Channel], bool]) -> None:
        for channel in list(self.active_channels.values()):
            if which(channel):
                channel.give_up()

    def _poll_until_free(self, seconds: float) -> None:
        """Go on with the channels that something comes in or goes out by, not with the idle ones."""
        until = time.monotonic() + seconds
        while True:
            for channel in list(self.active_channels.values()):
                if not channel.busy:
                    channel.handle_close()
            left = until - time.monotonic()
            if not self.active_channels or left <= 0:
                return
            wasyncore.poll2(min(left, LOOP_SECONDS), self._map)


def _listen(config: HttpConfig) -> socket.socket:
    """Raises ConfigError: the port, what is wrong, the remedy."""
    listener: socket.socket | None = None
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            config.host or None, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as e:
        if listener is not None:
            listener.close()
        other_host, other_port = "set http.host to an address of here", "set http.port to another (0: any)"
        raise cannot_listen(config.host, config.port, e, other_host, other_port) from e
    return listener


def _adjustments(config: HttpConfig, listener: socket.socket) -> Adjustments:
    """waitress's settings. Its own limits on bodies and outbufs never apply; ours are in `http`."""
    adj = Adjustments(
        sockets=[listener],
        threads=config.threads,
        backlog=1024,
        recv_bytes=RECEIVE,
        outbuf_overflow=RECEIVE,
        outbuf_high_watermark=16 * RECEIVE,
        connection_limit=config.max_connections + 2,  # the map also holds the listener and the trigger
        max_request_body_size=sys.maxsize,
        log_socket_errors=False,
        clear_untrusted_proxy_headers=False,  # whom to believe is callers.trusted_proxies' to say
        asyncore_use_poll=True,
        ident="distfs",
        server_name=config.host or "localhost",
    )
    adj.http = config
    tick = min(LOOP_SECONDS, config.client_stall_timeout / 4, config.idle_timeout / 4)
    adj.asyncore_loop_timeout = tick
    adj.cleanup_interval = tick
    adj.channel_timeout = config.idle_timeout
    return adj
