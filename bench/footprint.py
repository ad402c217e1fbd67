"""What ``distfs up`` costs: the memory of all its parts with nothing to do, and their CPU time for a large file."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench import curl, noise, processes
from bench.curl import Content
from bench.report import Goal, Options, judge, spread, table
from bench.targets import Distfs, need_room, workspace

MEMORY_GOAL_MB = 100
CPU_GOALS = {"up": 2.5, "down": 1.5}  # seconds a GB, all parts together; curl is none of them
COPIES = 2
_LOOKS = 3


@dataclass(slots=True)
class Footprint:
    """Proportional memory (each shared page dealt out to those that share it) and CPU time, by role."""

    memory: list[dict[str, int]] = field(default_factory=list)  # bytes, look by look
    cpu: dict[str, list[dict[str, float]]] = field(default_factory=dict)  # s/GB by direction, run by run

    @property
    def total_mb(self) -> float:
        return statistics.median(sum(look.values()) for look in self.memory) / 1e6


def run(options: Options, cleanup: ExitStack) -> Footprint:
    """``--runs`` transfers each way after one. Raises Corrupt when a byte differs, GoalMissed."""
    size = options.mb * 10**6
    folder = cleanup.enter_context(workspace(options.work))
    need_room(folder, size * (1 + COPIES * (options.runs + 1)))
    source = folder / "noise.bin"
    content = Content(size, noise.write_file(source, size))
    distfs = cleanup.enter_context(Distfs.running(folder))
    time.sleep(options.idle_s)  # what the start needed, such as connections to MetaDB, is given back
    found = Footprint()
    for _ in range(_LOOKS):
        found.memory.append(processes.proportional_memory(distfs.processes()))
        time.sleep(1)
    url = distfs.download_url(curl.put(distfs.put_url, source))
    curl.fetch(url, size).expect(content, url)
    ways: dict[str, Callable[[], object]] = {
        "up": lambda: curl.put(distfs.put_url, source),
        "down": lambda: curl.discard(url, size),
    }
    for _ in range(options.runs):
        for way, transfer in ways.items():
            before = processes.cpu_seconds(distfs.processes())
            transfer()
            after = processes.cpu_seconds(distfs.processes())
            costs = {role: (used - before.get(role, 0.0)) * 1e9 / size for role, used in after.items()}
            found.cpu.setdefault(way, []).append(costs)
    _print(options, found)
    goals = [
        Goal("memory of all parts, idle", found.total_mb, MEMORY_GOAL_MB, least=False, unit=" MB", digits=0)
    ]
    for way, most in CPU_GOALS.items():
        each = statistics.median(sum(costs.values()) for costs in found.cpu[way])
        goals.append(Goal(f"CPU of all parts, {way}", each, most, least=False, unit=" s/GB"))
    judge(goals, found)
    return found


def _print(options: Options, found: Footprint) -> None:
    parts = ", ".join(f"{role} {size / 1e6:.0f}" for role, size in found.memory[-1].items())
    print(f"\nproportional memory with nothing to do, MB: {parts}; together {found.total_mb:.0f}")
    headings = [f"CPU s/GB, {options.mb} MB, {options.runs} runs", *CPU_GOALS]
    table([headings, *([role, *_costs(found, role)] for role in found.memory[-1])])


def _costs(found: Footprint, role: str) -> list[str]:
    return [spread([costs.get(role, 0.0) for costs in found.cpu[way]], 2) for way in CPU_GOALS]
