"""How many processes a service has, and which part of its limits each of them."""

from __future__ import annotations

import math
import os
from dataclasses import replace

from distfs.config.settings import AUTO, MOST_PROCESSES, Bytes, Config
from distfs.process import control_groups


def count_of(config: Config) -> int:
    """As many as configured; AUTO: one a core that this process may use, as far as the limits can be divided."""
    if config.http.processes != AUTO:
        return config.http.processes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([cores, *map(math.ceil, control_groups.cores())])
    storage, http = config.storage, config.http
    budget = storage.memory_budget // storage.window
    most = min(
        budget, config.metadb.pool_size, http.max_connections, http.threads, config.peers.max_connections
    )
    return max(1, min(cores, most, MOST_PROCESSES))


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
