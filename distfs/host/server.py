"""distfs's own WSGI host: one thread has a connection, from a request to its answer, and keeps it for the next.

`loop` has the connections that nothing is done for, and reads heads and small bodies; `workers` are the threads;
`connection` is what both share, `http1` the parser, `response` the answers, `request_body` the bodies. Any WSGI app
runs on it; ours also uses what `environ` then promises:

- ``wsgi.input.readinto(view)`` as Source says;
- ``distfs.writes_views``: the answer's iterable may give memoryviews that are valid only until the next one is
  asked for. If it has ``rewind(count)``, that is called when the client takes no more for a moment: the last
  ``count`` bytes it gave were not sent, what it holds is to be let go, and it gives them again when it is next asked;
- if that iterable has ``whole()``, what it gives, unless it is None, is all of an answer of a known length, and is
  taken instead of iterating; when it is with the kernel, ``ended`` is set;
- ``distfs.collect(size, begins)``: before memory is taken for so many bytes of a body, and nodes if that ``begins``,
  have them put aside if they come slowly and others need that;
- ``distfs.trailers()``: what came behind a chunked body, by names in small letters, once it was read to its end.

And ours says of itself which answers never wait, which are given to the end, what it has against a body or one more
connection, whether it reads bodies at a pace of its own, and whom a request is from: see ``HttpApp``.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any

from distfs.config.settings import MIB, HttpConfig
from distfs.host.loop import DRAIN_LOOK_S, LOOP_SECONDS, Loop
from distfs.host.request_body import Memory, OwnMemory, PutAside
from distfs.host.shared import Shared
from distfs.process.dial import cannot_listen, to_listen
from distfs.tls.contexts import FromFiles

#: Running requests get so long to end when the server closes (after drain(): drain_timeout); then they are cut.
CLOSE_GRACE = 5.0
CUT_GRACE = 2.0
BACKLOG = 1024
#: Without a service's memory, small bodies share so much memory.
OWN_MEMORY = 64 * MIB


class Server:
    """Serves ``app``. Listens from the beginning; answers from ``run`` on."""

    def __init__(
        self,
        app: Any,
        config: HttpConfig,
        memory: Memory | None = None,
        listener: socket.socket | None = None,
        shared: Shared | None = None,
        tls: FromFiles[ssl.SSLContext] | None = None,
    ) -> None:
        """``memory``: what spooled bodies share with whatever else is in flight; None: they have some of their own.
        ``listener``: one that it has already, and ``shared`` if others accept from it, too. ``tls``: it speaks HTTPS.

        Raises ConfigError, one line, when it cannot listen at ``config.host:port`` or has no room for temp files.
        """
        memory = memory or OwnMemory(OWN_MEMORY)
        put_aside = PutAside(config, memory)
        listener = listener or listen(config)
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._loop = Loop(app, config, listener, memory, put_aside, shared, tls)
        self._drain_timeout = config.drain_timeout
        self._drain_until = 0.0
        self._closing = False
        self._ending = threading.Lock()
        self._closed = threading.Event()
        self._runner: int | None = None

    def run(self) -> None:
        """Serve until close() or drain() is called; then end running requests, within bounds. Once only."""
        self._runner = threading.get_ident()
        loop = self._loop
        try:
            while not self._closing and not self._drained():
                loop.turn(DRAIN_LOOK_S if loop.draining else LOOP_SECONDS)
        finally:
            self._shut_down()

    def drain(self) -> None:
        """Let running requests end, refuse others with 503, then make run() return. For a signal handler.

        After ``drain_timeout`` seconds, or at once when it is called again, what still runs is cut.
        """
        self._drain_until = 0.0 if self._loop.draining else time.monotonic() + self._drain_timeout
        self._loop.draining = True
        self._loop.wake()

    def _drained(self) -> bool:
        """Whether draining has come to its end, good or not."""
        if not self._loop.draining:
            return False
        return time.monotonic() >= self._drain_until or not self._loop.busy

    def close(self) -> None:
        """Stop accepting and make run() return. From any thread, or a signal handler, once or more often.

        Waits for run() to end, where that is another thread's: at most CLOSE_GRACE + CUT_GRACE seconds and
        a little. A second call meanwhile returns at once.
        """
        if self._closing:
            return
        self._closing = True
        if self._runner is None:
            self._shut_down()
            return
        self._loop.wake()
        if self._runner != threading.get_ident():
            self._closed.wait(CLOSE_GRACE + CUT_GRACE + 3)

    def _shut_down(self) -> None:
        self._closing = True
        if self._ending.acquire(blocking=False):  # once
            self._loop.shut_down(0 if self._loop.draining else CLOSE_GRACE, CUT_GRACE)
            self._closed.set()


def listen(config: HttpConfig) -> socket.socket:
    """Connections wait there from now on. Raises ConfigError: the port, what is wrong, the remedy."""
    listener: socket.socket | None = None
    try:
        family, address = to_listen(config.host, config.port)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as e:
        if listener is not None:
            listener.close()
        other_host, other_port = "set http.host to an address of here", "set http.port to another (0: any)"
        raise cannot_listen(config.host, config.port, e, other_host, other_port) from e
    return listener
