"""Thousands of kept connections without a request: what they cost, and whether others notice."""

from __future__ import annotations

import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from bench import processes, requests
from bench.report import Goal, Options, judge, spread
from bench.slow import paced, service_memory, within_descriptors
from bench.targets import Distfs, http_room, set_environment, workspace
from distfs.errors import Unavailable

SIZE = 4096
MEMORY_GOAL_MB, CPU_GOAL, LATENCY_GOAL = (
    100,
    2.0,
    1.1,
)  # over none; percent of a core; of the latency with none
_SPARE = 200
_LOOK_S = 2.0
_ASKED = 10  # requests in a row, again and again for as long


@dataclass(frozen=True, slots=True)
class Look:
    """The service for a few seconds."""

    cpu: float  # percent of a core
    latency_ms: float  # median of a 4 KiB GET
    memory: int  # bytes


@dataclass(slots=True)
class Idle:
    """Turn by turn: without the connections, and with them."""

    without: list[Look] = field(default_factory=list)
    beside: list[Look] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)  # connections that had their one answer
    still_open: list[int] = field(default_factory=list)  # of those, at the end of the turn

    def goals(self, count: int) -> list[Goal]:
        pairs = list(zip(self.beside, self.without, strict=True))
        cpu = statistics.median(beside.cpu - without.cpu for beside, without in pairs)
        latency = statistics.median(beside.latency_ms / without.latency_ms for beside, without in pairs)
        memory = (max(look.memory for look in self.beside) - self.without[0].memory) / 1e6
        return [
            Goal("connections still open", min(self.still_open), count, digits=0),
            Goal("memory over idle", memory, MEMORY_GOAL_MB, least=False, unit=" MB", digits=0),
            Goal("CPU more than without", cpu, CPU_GOAL, least=False, unit=" % of a core"),
            Goal("latency of a 4 KiB GET, to without", latency, LATENCY_GOAL, least=False),
        ]


def run(options: Options, cleanup: ExitStack) -> Idle:
    """``--idle`` connections, opened and closed as many times as ``--runs`` says. Raises GoalMissed."""
    count = within_descriptors(options.idle, _SPARE)
    folder = cleanup.enter_context(workspace(options.work))
    with set_environment(http_room("max_connections", count + _SPARE)):
        distfs = cleanup.enter_context(Distfs.running(folder))
    url, content = f"http://127.0.0.1:{distfs.port}", Random(SIZE).randbytes(SIZE)
    source = folder / "small.bin"
    source.write_bytes(content)
    [uuid], _ = requests.put(url, [content], 1)
    wanted = [(uuid, content)] * _ASKED
    requests.get(url, wanted, 1)  # warms up
    arguments = ["idle", str(distfs.port), str(count), "0", str(source), f"/download/{uuid}"]
    idle = Idle()
    for _ in range(options.runs):
        idle.without.append(_look(distfs, url, wanted))
        with paced(folder, arguments) as clients:
            assert clients.stdout is not None
            line = clients.stdout.readline()
            if not line:
                raise Unavailable("the idle clients did not start")
            idle.answered.append(json.loads(line)["complete"])
            idle.beside.append(_look(distfs, url, wanted))
            left, _ = clients.communicate()
            idle.still_open.append(int(left))
    _print(idle, count)
    judge(idle.goals(count), idle)
    return idle


def _look(distfs: Distfs, url: str, wanted: list[tuple[str, bytes]]) -> Look:
    latencies: list[float] = []
    start = time.monotonic()
    while not latencies or time.monotonic() - start < _LOOK_S:
        latencies.append(requests.get(url, wanted, 1).p50_ms)
    service = [process for process in distfs.processes() if process.role == "service"]
    before, start = processes.cpu_seconds(service), time.monotonic()
    time.sleep(_LOOK_S)
    used = processes.cpu_seconds(service)["service"] - before["service"]
    return Look(used / (time.monotonic() - start) * 100, statistics.median(latencies), service_memory(distfs))


def _print(idle: Idle, count: int) -> None:
    print(f"\n{count:,} connections without a request, {len(idle.beside)} turns")
    print(
        f"  answered once: {min(idle.answered):,} at least; open afterwards: {min(idle.still_open):,} at least"
    )
    for name, looks in {"without": idle.without, "with them": idle.beside}.items():
        cpu, latency = spread([look.cpu for look in looks], 1), spread([look.latency_ms for look in looks], 2)
        memory = spread([look.memory / 1e6 for look in looks], 0)
        print(f"  {name}: CPU % of a core {cpu}, 4 KiB GET ms {latency}, service MB {memory}")
