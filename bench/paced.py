"""Many clients in one process, as slow as telephones: sockets that never block, epoll, and a clock for each client.

    python -m bench.paced down PORT COUNT BYTES_PER_S FILE PATH   each GETs PATH, and it has to be what is in FILE
    python -m bench.paced up PORT COUNT BYTES_PER_S FILE PATH     each PUTs FILE to PATH
    python -m bench.paced idle PORT COUNT 0 FILE PATH             each GETs PATH, then says no more

All begin at once (of ``idle`` ``AT_ONCE``) and print what came of it as one line of JSON. ``idle`` then waits for the
end of its standard input, and prints how many of its connections are still open.

Each client has an address of its own in 127.0.0.0/8: what a service grants to one address is not what is measured.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import json
import math
import resource
import select
import socket
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVERY_S = 0.2  # how often a client takes or gives its share
PATIENCE_S = 60.0  # without a byte: it gives up
OPENED_WITHIN_S = 60.0  # ``idle``: those that have no answer by then count as failed
AT_ONCE = 200  # handshakes of ``idle``: more than a listener's queue would only measure TCP's repeats
SOCKET_BUFFER = 32 << 10  # of the kernel, for each: what a client does not take has to stay with the service
READ, WRITE = select.EPOLLIN, select.EPOLLOUT

#: A client yields what it waits for: events of its socket, or a time of the monotonic clock.
Course = Generator[int | float, None, None]


@dataclass(slots=True)
class Outcome:
    """What became of one client."""

    sock: socket.socket
    first_s: float | None = (
        None  # from the connect, or from an upload's last byte, to the answer's first byte
    )
    problem: str = "not finished"  # empty: all is well
    lasted_s: float = 0.0
    answer: str = ""


def get(port: int, path: str, expected: bytes, rate: float, out: Outcome) -> Course:
    """A download no faster than ``rate`` bytes a second; as fast as it comes with 0."""
    began = time.monotonic()
    yield from _connect(port, out)
    out.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    length, data = yield from _head(out, began)
    if length != len(expected):
        raise ConnectionError(f"{length} bytes instead of {len(expected)}")
    step = int(rate * EVERY_S) or length
    began, got = time.monotonic(), 0
    while True:
        if not expected.startswith(data, got):
            raise ConnectionError("wrong bytes")
        got += len(data)
        if got == length:
            return
        if rate and (due := began + got / rate) > time.monotonic():
            yield due
        data = yield from _receive(out.sock, min(step, length - got))


def put(port: int, path: str, body: bytes, rate: float, out: Outcome) -> Course:
    """An upload no faster than ``rate`` bytes a second."""
    yield from _connect(port, out)
    out.sock.sendall(
        f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    step, view = int(rate * EVERY_S), memoryview(body)
    began, sent = time.monotonic(), 0
    while sent < len(body):
        if (due := began + sent / rate) > time.monotonic():
            yield due
        try:
            sent += out.sock.send(view[sent : sent + step])
        except BlockingIOError:
            yield WRITE
        except OSError:  # it has closed; what it said before is the reason
            break
    length, answer = yield from _head(out, time.monotonic())
    while len(answer) < length:
        answer += yield from _receive(out.sock, length - len(answer))
    out.answer = answer.decode().strip()


def _connect(port: int, out: Outcome) -> Course:
    out.sock.connect_ex(("127.0.0.1", port))
    yield WRITE
    if number := out.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(number, "cannot connect")


def _head(out: Outcome, since: float) -> Generator[int | float, None, tuple[int, bytes]]:
    """-> Content-Length, and the bytes of the body that came along. Raises ConnectionError for 400 and up."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += yield from _receive(out.sock, 4096)
        if out.first_s is None:
            out.first_s = time.monotonic() - since
    head, _, rest = head.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    if status.split()[1] >= "400":
        raise ConnectionError(f"answered {status.split()[1]}")
    fields = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["content-length"]), rest


def _receive(sock: socket.socket, most: int) -> Generator[int | float, None, bytes]:
    while True:
        try:
            data = sock.recv(most)
        except BlockingIOError:
            yield READ
            continue
        if not data:
            raise ConnectionError("closed by the service")
        return data


def opened(number: int) -> Outcome:
    """A socket with an address of its own."""
    sock = socket.socket()
    sock.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    sock.bind((f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", 0))
    return Outcome(sock)


class Clients:
    """Drives them all, all at once; those that ``keep`` their connection a few at a time."""

    def __init__(self, start: Callable[[Outcome], Course], count: int, keep: bool) -> None:
        self.outcomes: list[Outcome] = []
        self._start, self._count, self._keep = start, count, keep
        self._at_once = AT_ONCE if keep else count
        self._epoll = select.epoll()
        self._courses: dict[int, tuple[Course, Outcome]] = {}  # by descriptor; those that go on
        self._begun: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._due: list[tuple[float, int, int]] = []
        self._order = itertools.count()  # a descriptor's number comes again: the latest entry holds

    def run(self) -> None:
        look = time.monotonic() + 1
        end = time.monotonic() + OPENED_WITHIN_S if self._keep else math.inf
        while len(self.outcomes) < self._count or self._courses:
            if time.monotonic() > end:
                for fd in list(self._courses):
                    self._end(fd, f"no answer within {OPENED_WITHIN_S:g} s")
                return
            while len(self.outcomes) < self._count and len(self._courses) < self._at_once:
                self._begin()
            now = time.monotonic()
            patience = min(self._due[0][0] if self._due else look, look) - now
            for fd, _ in self._epoll.poll(max(0.0, patience)):
                self._advance(fd)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                self._advance(heapq.heappop(self._due)[2])
            if now >= look:
                look = now + 1
                for fd in [fd for fd, heard in self._heard.items() if now - heard > PATIENCE_S]:
                    self._end(fd, f"no byte for {PATIENCE_S:g} s")

    def _begin(self) -> None:
        out = opened(len(self.outcomes))
        self.outcomes.append(out)
        fd = out.sock.fileno()
        self._epoll.register(fd, select.EPOLLONESHOT)
        self._courses[fd] = self._start(out), out
        self._begun[fd] = time.monotonic()
        self._advance(fd)

    def _advance(self, fd: int) -> None:
        if fd not in self._courses:
            return  # it has ended, and an event of it was on its way
        self._heard[fd] = time.monotonic()
        try:
            wanted = next(self._courses[fd][0])
        except StopIteration:
            self._end(fd, "")
        except (OSError, ValueError, KeyError, IndexError) as e:
            self._end(fd, str(e) or repr(e))
        else:
            if isinstance(wanted, float):
                heapq.heappush(self._due, (wanted, next(self._order), fd))
            else:
                self._epoll.modify(fd, wanted | select.EPOLLONESHOT)

    def _end(self, fd: int, problem: str) -> None:
        _, out = self._courses.pop(fd)
        out.problem, out.lasted_s = problem, time.monotonic() - self._begun.pop(fd)
        del self._heard[fd]
        self._epoll.unregister(fd)
        if problem or not self._keep:
            out.sock.close()


def figures(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    listed = list(outcomes)
    firsts = sorted(out.first_s for out in listed if out.first_s is not None)
    problems = collections.Counter(out.problem for out in listed if out.problem)
    return {
        "clients": len(listed),
        "complete": sum(not out.problem for out in listed),
        "problems": dict(problems.most_common(5)),
        "first_p50_s": statistics.median(firsts) if firsts else None,
        "first_p99_s": firsts[int(len(firsts) * 0.99)] if firsts else None,
        "first_max_s": firsts[-1] if firsts else None,
        "lasted_p50_s": statistics.median(out.lasted_s for out in listed),
        "answers": [out.answer for out in listed if out.answer],
    }


def _is_open(sock: socket.socket) -> bool:
    """Whether neither side has closed it."""
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def main(verb: str, port: str, count: str, rate: str, file: str, path: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    content = Path(file).read_bytes()
    ask = put if verb == "up" else get

    def start(out: Outcome) -> Course:
        return ask(int(port), path, content, float(rate), out)

    clients = Clients(start, int(count), keep=verb == "idle")
    began = time.monotonic()
    clients.run()
    cores = time.process_time() / (time.monotonic() - began)
    print(json.dumps(figures(clients.outcomes) | {"cores": cores}), flush=True)
    if verb == "idle":
        sys.stdin.read()
        print(sum(_is_open(out.sock) for out in clients.outcomes), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
