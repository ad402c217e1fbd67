"""A real TCP proxy between a service and one node, whose network can be made worse while it runs.

    with Proxy(node_address) as proxy:
        proxy.down.delay = 0.2          # what the node says arrives 200 ms later
        proxy.up.rate = 100_000         # bytes a second to the node
        proxy.down.hold()               # nothing arrives any more, nobody is told (release() ends it)
        proxy.down.at(5000, proxy.reset)  # after 5000 bytes more from the node, both sides are reset
        proxy.up.flip_at(100)           # one bit of the 101st byte from now is wrong
        proxy.down.end()                # the node's side of every connection looks closed

``up`` is towards the node, ``down`` towards the service. One thread a connection moves bytes both ways.

What is made worse has to be noticed by a byte or a connection before it is healed, or the test fails: see
``ledger.py``. Proxies that are given one ledger stand for each other.
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
from tests.faults.ledger import Ledger

_CHUNK, _QUEUED = 64 << 10, 8 << 20
_LOOK_S = 0.01  # how soon a change is noticed
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: closing resets


class Flow:
    """One direction of all connections. Attributes and methods may be used at any time, from any thread."""

    def __init__(self, name: str, ledger: Ledger) -> None:
        self._name, self._ledger = name, ledger
        self._delay = self._rate = 0.0
        self._held = ""  # how
        self.ended = False
        self.passed = 0  # bytes that arrived at the other side
        self._lock = threading.RLock()
        self._plan: tuple[int, Callable[[], object], str] | None = None
        self._flip = False

    @property
    def delay(self) -> float:
        """Seconds every byte arrives later."""
        return self._delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._delay = seconds
        if seconds:
            self._planned(f"a delay of {seconds} s")

    @property
    def rate(self) -> float:
        """Bytes a second and connection; 0: as fast as it goes."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._rate = rate
        if rate:
            self._planned(f"a rate of {rate}")

    @property
    def held(self) -> bool:
        return bool(self._held)

    def hold(self, how: str = "") -> None:
        """From now on nothing arrives, and nobody is told. ``how``: what the fault is called."""
        self._held = how or f"{self._name}: held"
        self._ledger.planned(self._held)

    def release(self) -> None:
        """What was held arrives now."""
        self._held = ""

    def end(self) -> None:
        """Half-close every connection, present and to come, in this direction."""
        self._planned("an end")
        self.ended = True

    def at(self, more: int, action: Callable[[], object], what: str = "an action") -> None:
        """Call ``action`` when so many bytes more have arrived, and no further one."""
        with self._lock:
            self._plan = self.passed + more, action, f"{what} after {more} bytes more"
            self._planned(self._plan[2])

    def flip_at(self, more: int) -> None:
        """Let one bit of the byte after so many more be wrong."""
        self.at(more, self.flip, "a flip")

    def flip(self) -> None:
        """Let one bit of the next byte be wrong."""
        self._planned("a flipped bit")
        self._flip = True

    def heal(self) -> None:
        """As if nothing had ever been wrong. Raises FaultMetNobody when something was to be, and was not."""
        try:
            self._ledger.settle()
        finally:
            self.mend()

    def mend(self) -> None:
        """``heal`` without looking back."""
        with self._lock:
            self._delay = self._rate = 0.0
            self._held = ""
            self._flip = self.ended = False
            self._plan = None

    def _planned(self, fault: str) -> None:
        self._ledger.planned(f"{self._name}: {fault}")

    def met(self, fault: str) -> None:
        self._ledger.met(f"{self._name}: {fault}")

    # --- used by connections ------------------------------------------------------------------------

    def send(self, target: socket.socket, data: memoryview) -> int:
        """Send what may go now of ``data``; -> how much did."""
        with self._lock:
            plan = self._plan
            if plan is not None and plan[0] <= self.passed:
                self._plan = None
                plan[1]()
                self.met(plan[2])
            if self.held:
                self.note_held()
                return 0
            most = len(data)
            if self._plan is not None:
                most = min(most, self._plan[0] - self.passed)
            if self.rate:
                self.met(f"a rate of {self.rate}")
                most = min(most, int(self.rate * _LOOK_S) + 1)
            return self._send(target, data[:most])

    def note_held(self) -> None:
        """There is a byte that would arrive now."""
        self._ledger.met(self._held)

    def _send(self, target: socket.socket, data: memoryview) -> int:
        if self._flip:
            data = memoryview(bytes([data[0] ^ 0x10]))
        try:
            sent = target.send(data)
        except BlockingIOError:
            return 0
        if self._flip:
            self.met("a flipped bit")
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
        due = bool(self._queue) and self._queue[0][0] <= now and now >= self._not_before
        if due and self.flow.held:
            self.flow.note_held()
            return False
        return due

    def read(self) -> None:
        data = self.source.recv(_CHUNK)
        if not data:
            self._read_to_end = True
            return
        self._queued += len(data)
        delay = self.flow.delay
        if delay:
            self.flow.met(f"a delay of {delay} s")
        self._queue.append((time.monotonic() + delay, memoryview(data)))
        if self.flow.held:
            self.flow.note_held()

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
            if self.flow.ended:
                self.flow.met("an end")
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

    def __init__(self, node: Address, ledger: Ledger | None = None) -> None:
        self.node = node
        self._ledger = ledger or Ledger()
        self.up, self.down = Flow("up", self._ledger), Flow("down", self._ledger)
        self._refuses = False
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
        if kind is None:
            self._ledger.settle()

    @property
    def refuses(self) -> bool:
        """New connections are reset at once."""
        return self._refuses

    @refuses.setter
    def refuses(self, refuses: bool) -> None:
        self._refuses = refuses
        if refuses:
            self._ledger.planned("a refusal")

    @property
    def connections(self) -> int:
        """Open ones."""
        return sum(link.is_alive() for link in self._links)

    def blackhole(self) -> None:
        """Neither side hears of the other any more."""
        for flow in (self.up, self.down):
            flow.hold("a black hole")

    def reset(self) -> None:
        """Every connection there is, on both sides."""
        for link in self._links:
            link.resets = True

    def refuse(self) -> None:
        """Reset every connection there is and comes."""
        self.refuses = True
        if self.connections:
            self._ledger.met("a refusal")
        self.reset()

    def heal(self) -> None:
        """Everything is well again. Raises FaultMetNobody when something was to be wrong, and was not."""
        try:
            self._ledger.settle()
        finally:
            self.up.mend()
            self.down.mend()
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
                self._ledger.met("a refusal")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.close()
                continue
            link = _Link(client, node, self.up, self.down)
            self._links.append(link)
            link.start()
