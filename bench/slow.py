"""Many slow clients at once: are they all served, what do they cost, and does a fast one beside them notice?"""

from __future__ import annotations

import http.client
import json
import resource
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import curl, noise, processes
from bench.clock import rate
from bench.curl import Content
from bench.report import Goal, Options, judge, spread
from bench.targets import Distfs, http_room, need_room, python, reap, set_environment, workspace
from distfs.errors import Unavailable

RATES = {"down": 100_000, "up": 50_000}  # bytes a second of each client
FIRST_GOAL_S, MEMORY_GOAL_MB, FAST_GOAL, HEALTH_GOAL_MS = 1.0, 200, 0.7, 100
COPIES = 2
_SPARE = 200  # connections of those that are not slow
_CHECKED = 5  # uploads that are read back
_LOOK_S = 0.5
_ASK_S = 0.05
_PATIENCE_S = 60


@dataclass(slots=True)
class Beside:
    """What others saw while the slow clients were at it."""

    health_ms: list[float] = field(default_factory=list)
    health_failed: int = 0
    memory: list[int] = field(default_factory=list)  # bytes of the service, all its processes


@dataclass(slots=True)
class Crowd:
    """One direction."""

    verb: str
    idle: int  # bytes of the service, before
    alone: list[float]  # MB/s of the fast download: before, and again afterwards
    beside: list[float]  # the same while slow clients were there
    seen: Beside
    clients: dict[str, Any]  # as bench/paced.py tells it

    def goals(self) -> list[Goal]:
        name, health = self.verb, sorted(self.seen.health_ms)
        p99 = health[int(len(health) * 0.99)] if health and not self.seen.health_failed else None
        ratio = statistics.median(self.beside) / statistics.median(self.alone) if self.beside else None
        more = (max(self.seen.memory) - self.idle) / 1e6 if self.seen.memory else None
        return [
            Goal(f"{name}: complete", self.clients["complete"], self.clients["clients"], digits=0),
            Goal(f"{name}: {FIRST[name]}", self.clients["first_p50_s"], FIRST_GOAL_S, least=False, unit=" s"),
            Goal(f"{name}: memory over idle", more, MEMORY_GOAL_MB, least=False, unit=" MB", digits=0),
            Goal(f"{name}: fast download beside, to alone", ratio, FAST_GOAL),
            Goal(f"{name}: /healthz, 99 %", p99, HEALTH_GOAL_MS, least=False, unit=" ms", digits=0),
        ]


FIRST = {"down": "first byte, median", "up": "answer after the last byte, median"}


def run(options: Options, cleanup: ExitStack) -> list[Crowd]:
    """``--slow`` downloads, then as many uploads. Raises Corrupt on a wrong byte, GoalMissed."""
    count = within_descriptors(options.slow, _SPARE)
    fast = options.mb * 10**6
    sizes = {verb: rate * options.slow_s for verb, rate in RATES.items()}
    folder = cleanup.enter_context(workspace(options.work))
    need_room(folder, (1 + COPIES) * (fast + sizes["down"]) + COPIES * sizes["up"] * count)
    room = http_room("max_connections", count + _SPARE) | http_room("max_uploads", count + _SPARE)
    if room:
        print(f"  set for this run: {', '.join(f'{name}={value}' for name, value in room.items())}")
    with set_environment(room):
        distfs = cleanup.enter_context(Distfs.running(folder))
    source = folder / "fast.bin"
    noise.write_file(source, fast)
    url = distfs.download_url(curl.put(distfs.put_url, source))
    crowds = []
    for verb, size in sizes.items():
        source = folder / f"{verb}.bin"
        content = Content(size, noise.write_file(source, size))
        path = "/upload/x" if verb == "up" else f"/download/{curl.put(distfs.put_url, source)}"
        arguments = [verb, str(distfs.port), str(count), str(RATES[verb]), str(source), path]
        crowd = _crowd(distfs, arguments, (url, fast), options)
        for uuid in crowd.clients["answers"][:_CHECKED]:
            curl.fetch(distfs.download_url(uuid), size).expect(content, f"distfs file {uuid}")
        _print(crowd, size)
        crowds.append(crowd)
    judge([goal for crowd in crowds for goal in crowd.goals()], crowds)
    return crowds


def within_descriptors(count: int, spare: int) -> int:
    """Raise this process's limit, and so that of what it starts -> as many clients as it allows; says when fewer."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if count + spare <= most:
        return count
    print(f"  only {most - spare} clients: this system allows {most} descriptors a process (ulimit -Hn)")
    return max(1, most - spare)


def _crowd(distfs: Distfs, arguments: list[str], fast: tuple[str, int], options: Options) -> Crowd:
    """Slow clients, and a fast download before, beside and after them."""
    _rate(*fast)
    alone = [_rate(*fast) for _ in range(options.runs)]
    idle = service_memory(distfs)
    beside: list[float] = []
    with _watched(distfs) as seen, paced(distfs.data, arguments) as clients:
        while clients.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                clients.wait(options.slow_s / (options.runs + 1))
            if clients.poll() is None:
                rate = _tried(*fast)
                if clients.poll() is None:
                    beside.append(rate)
        output, _ = clients.communicate()
    alone += [_rate(*fast) for _ in range(options.runs)]
    if clients.returncode:
        raise Unavailable(f"the slow clients ended with {clients.returncode}")
    return Crowd(arguments[0], idle, alone, beside, seen, json.loads(output))


def _rate(url: str, size: int) -> float:
    """MB/s of a download."""
    return rate(size, lambda: curl.discard(url, size))


def _tried(url: str, size: int) -> float:
    """The same; one that is refused has no speed at all."""
    try:
        return _rate(url, size)
    except Unavailable:
        return 0.0


@contextmanager
def paced(folder: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """``bench/paced.py`` at work."""
    child = python(["-m", "bench.paced", *arguments], folder, subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        reap(child)


def service_memory(distfs: Distfs) -> int:
    """Bytes of the service, all its processes together."""
    return sum(
        processes.proportional_memory(each for each in distfs.processes() if each.role == "service").values()
    )


@contextmanager
def _watched(distfs: Distfs) -> Iterator[Beside]:
    """Ask /healthz on a new connection, as a probe does, and look at the memory, while the block runs."""
    seen, over = Beside(), threading.Event()

    def ask() -> None:
        while not over.wait(_ASK_S):
            began = time.perf_counter()
            connection = http.client.HTTPConnection("127.0.0.1", distfs.port, timeout=_PATIENCE_S)
            try:
                connection.request("GET", "/healthz")
                good = connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                good = False
            finally:
                connection.close()
            seen.health_ms.append((time.perf_counter() - began) * 1e3)
            seen.health_failed += not good

    def look() -> None:
        while not over.wait(_LOOK_S):
            seen.memory.append(service_memory(distfs))

    threads = [threading.Thread(target=each, daemon=True) for each in (ask, look)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _print(crowd: Crowd, size: int) -> None:
    told = crowd.clients
    print(f"\n{told['clients']} x {crowd.verb}, {size / 1e6:g} MB each at {RATES[crowd.verb] / 1e3:g} kB/s")
    print(
        f"  complete {told['complete']}; others: {told['problems'] or 'none'}; median {told['lasted_p50_s']:.1f} s; "
        f"they took {told['cores']:.2f} of a core themselves"
    )
    firsts = [told[f"first_{which}_s"] for which in ("p50", "p99", "max")]
    if None not in firsts:
        print(f"  {FIRST[crowd.verb]} {firsts[0]:.2f} s, 99 % {firsts[1]:.2f}, longest {firsts[2]:.2f}")
    beside = spread(crowd.beside, 0) if crowd.beside else "none that ended before the slow ones"
    print(f"  fast download MB/s: alone {spread(crowd.alone, 0)}, beside {beside}")
    if crowd.seen.health_ms:
        failed = f", {crowd.seen.health_failed} failed"
        print(f"  /healthz ms: {spread(crowd.seen.health_ms, 1)} of {len(crowd.seen.health_ms)}{failed}")
