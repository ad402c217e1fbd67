"""A real TCP proxy between a service and one node, whose network can be made worse while it runs.

    with Proxy(node_address) as proxy:
        proxy.down.delay = 0.2          # what the node says arrives 200 ms later
        proxy.up.rate = 100_000         # bytes a second to the node
        proxy.down.hold()               # nothing arrives any more, nobody is told (release() ends it)
        proxy.down.at(5000, proxy.reset)  # after 5000 bytes more from the node, both sides are reset
        proxy.up.flip_at(100)           # one bit of the 101st byte from now is wrong
        proxy.down.end()                # the node's side of every connection looks closed

``up`` is towards the node, ``down`` towards the service. One thread a connection moves bytes both ways.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from distfs.model import Address

_CHUNK, _QUEUED = 64 << 10, 8 << 20
_LOOK_S = 0.01  # how soon a change is noticed
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: closing resets


class Flow:
    """One direction of all connections. Attributes and methods may be used at any time, from any thread."""

    def __init__(self) -> None:
        self.delay = 0.0  # seconds every byte arrives later
        self.rate = 0.0  # bytes a second and connection; 0: as fast as it goes
        self.held = False
        self.ended = False
        self.passed = 0  # bytes that arrived at the other side
        self._lock = threading.RLock()
        self._plan: tuple[int, Callable[[], object]] | None = None
        self._flip = False

    def hold(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        self.held = True

    def release(self) -> None:
        """What was held arrives now."""
        self.held = False

    def end(self) -> None:
        """Half-close every connection, present and to come, in this direction."""
        self.ended = True

    def at(self, more: int, action: Callable[[], object]) -> None:
        """Call ``action`` when so many bytes more have arrived, and no further one."""
        with self._lock:
            self._plan = self.passed + more, action

    def flip_at(self, more: int) -> None:
        """Let one bit of the byte after so many more be wrong."""
        self.at(more, self._flip_next)

    def heal(self) -> None:
        """As if nothing had ever been wrong."""
        with self._lock:
            self.delay = self.rate = 0.0
            self.held = self.ended = self._flip = False
            self._plan = None

    def _flip_next(self) -> None:
        self._flip = True

    # --- used by connections ------------------------------------------------------------------------

    def send(self, target: socket.socket, data: memoryview) -> int:
        """Send what may go now of ``data``; -> how much did."""
        with self._lock:
            plan = self._plan
            if plan is not None and plan[0] <= self.passed:
                self._plan = None
                plan[1]()
            if self.held:
                return 0
            most = len(data)
            if self._plan is not None:
                most = min(most, self._plan[0] - self.passed)
            if self.rate:
                most = min(most, int(self.rate * _LOOK_S) + 1)
            return self._send(target, data[:most])

    def _send(self, target: socket.socket, data: memoryview) -> int:
        if self._flip:
            data = memoryview(bytes([data[0] ^ 0x10]))
        try:
            sent = target.send(data)
        except BlockingIOError:
            return 0
        self._flip = False
        self.passed += sent
        return sent


class _Half:
    """What one connection has under way in one direction."""

    def __init__(self, flow: Flow, source: socket.socket, target: socket.socket) -> None:
        self.flow, self.source, self.target = flow, source, target
        self._queue: deque[tuple[float, memoryview]] = deque()  # when it may arrive, and what
        self._queued = 0
        self._not_before = 0.0
        self._read_to_end = self.over = False

    def wants_read(self) -> bool:
        return not self._read_to_end and self._queued < _QUEUED

    def wants_write(self, now: float) -> bool:
        due = self._queue and self._queue[0][0] <= now and now >= self._not_before
        return bool(due) and not self.flow.held

    def read(self) -> None:
        data = self.source.recv(_CHUNK)
        if not data:
            self._read_to_end = True
            return
        self._queued += len(data)
        self._queue.append((time.monotonic() + self.flow.delay, memoryview(data)))

    def write(self, now: float) -> None:
        due, data = self._queue[0]
        sent = self.flow.send(self.target, data)
        self._queued -= sent
        if self.flow.rate:
            self._not_before = now + sent / self.flow.rate
        if sent == len(data):
            self._queue.popleft()
        else:
            self._queue[0] = due, data[sent:]

    def finish_if_due(self) -> None:
        """Pass the end of the stream on, once."""
        ends = self.flow.ended or (self._read_to_end and not self._queue and not self.flow.held)
        if ends and not self.over:
            self.over = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)


class _Link(threading.Thread):
    """One connection and its continuation."""

    def __init__(self, client: socket.socket, node: socket.socket, up: Flow, down: Flow) -> None:
        super().__init__(name="proxy-link", daemon=True)
        self._sockets = client, node
        for each in self._sockets:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._halves = _Half(up, client, node), _Half(down, node, client)
        self.resets = self.closes = False

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while not (self.resets or self.closes or all(half.over for half in self._halves)):
                self._move()
        for each in self._sockets:
            if self.resets:
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            each.close()

    def _move(self) -> None:
        now = time.monotonic()
        poll = select.poll()
        masks: dict[int, int] = {}
        for half in self._halves:
            half.finish_if_due()
            if half.wants_read():
                masks[half.source.fileno()] = masks.get(half.source.fileno(), 0) | select.POLLIN
            if half.wants_write(now) and not half.over:
                masks[half.target.fileno()] = masks.get(half.target.fileno(), 0) | select.POLLOUT
        for fd, mask in masks.items():
            poll.register(fd, mask)
        ready = dict(poll.poll(_LOOK_S * 1000))
        for half in self._halves:
            if ready.get(half.source.fileno(), 0) & (select.POLLIN | select.POLLHUP) and half.wants_read():
                half.read()
            if ready.get(half.target.fileno(), 0) & select.POLLOUT and half.wants_write(now):
                half.write(now)


class Proxy:
    """Listens on a port of its own on 127.0.0.1 and passes on to ``node``. Use it as a context manager."""

    def __init__(self, node: Address) -> None:
        self.node = node
        self.up, self.down = Flow(), Flow()
        self.refuses = False  # new connections are reset at once
        self._links: list[_Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = Address(*self._listener.getsockname())
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._closing = False

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self._thread.join()
        self._listener.close()
        for link in self._links:
            link.closes = True
        for link in self._links:
            link.join()

    @property
    def connections(self) -> int:
        """Open ones."""
        return sum(link.is_alive() for link in self._links)

    def blackhole(self) -> None:
        """Neither side hears of the other any more."""
        self.up.hold()
        self.down.hold()

    def reset(self) -> None:
        """Every connection there is, on both sides."""
        for link in self._links:
            link.resets = True

    def refuse(self) -> None:
        """Reset every connection there is and comes."""
        self.refuses = True
        self.reset()

    def heal(self) -> None:
        self.up.heal()
        self.down.heal()
        self.refuses = False

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._closing:
            if not poll.poll(_LOOK_S * 1000):
                continue
            client, _ = self._listener.accept()
            try:
                node = None if self.refuses else socket.create_connection((self.node.host, self.node.port), 5)
            except OSError:
                node = None
            if node is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            link = _Link(client, node, self.up, self.down)
            self._links.append(link)
            link.start()
