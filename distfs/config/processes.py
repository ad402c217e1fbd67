"""How many processes a service has, and which part of its limits each of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from distfs.config.settings import AUTO, MOST_PROCESSES, Bytes, Config

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def count_of(config: Config) -> int:
    """As many as configured; AUTO: one a core that this process may use, as far as the limits can be divided."""
    if config.http.processes != AUTO:
        return config.http.processes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([cores, *map(math.ceil, _quotas())])
    storage, http = config.storage, config.http
    budget = storage.memory_budget // storage.window
    most = min(
        budget, config.metadb.pool_size, http.max_connections, http.threads, config.peers.max_connections
    )
    return max(1, min(cores, most, MOST_PROCESSES))


def _quotas() -> Iterator[float]:
    """How many cores' time the control groups that this process is in let it have, as far as they say: in a container
    it may see all cores and have half of one. See cgroups(7) and cpu.max in the kernel's cgroup-v2.rst."""
    for line in _words(_PROC / "self/cgroup", "\n"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        files: tuple[str, ...] = ("cpu.max",)
        if hierarchy == "0":
            root = _CGROUPS
        elif "cpu" in controllers.split(","):
            root, files = _CGROUPS / "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        group = Path(path)
        for each in (group, *group.parents):  # each of them is a limit
            found = [word for file in files for word in _words(root / str(each).lstrip("/") / file)]
            if len(found) == 2 and all(word.isdecimal() for word in found) and int(found[1]):
                yield int(found[0]) / int(found[1])


def _words(path: Path, end: str | None = None) -> list[str]:
    try:
        return path.read_text().split(end)
    except (OSError, ValueError):
        return []


def part_of(config: Config, count: int) -> Config:
    """What each of ``count`` processes may have, of what is counted in each of them alone.

    Rounded down where a service must never have more, up where it is only for a burst.
    """
    if count == 1:
        return config
    http, storage, metadb, peers = config.http, config.storage, config.metadb, config.peers
    return replace(
        config,
        http=replace(http, threads=-(-http.threads // count), max_connections=http.max_connections // count),
        storage=replace(storage, memory_budget=Bytes(storage.memory_budget // count)),
        metadb=replace(metadb, pool_size=metadb.pool_size // count),
        peers=replace(
            peers, connections=-(-peers.connections // count), max_connections=peers.max_connections // count
        ),
    )
