"""A process that can open no file and no socket more, or start no thread; and whether one has nothing to do."""

from __future__ import annotations

import itertools
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.contract.litter import eventually

_LOOKS = 5  # what one look found open may be closed a moment later, and its number is not to be had either
_CALM = 0.2  # of a processor; a loop that spins takes all it can get


@contextmanager
def starved(pid: int = 0) -> Iterator[None]:
    """Within it, every open(2), socket(2) and accept(2) of the process fails with EMFILE. 0: of this one.

    Unless it closes something: then it may open as many again.
    """
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    lowest = before[0]
    try:
        for _ in range(_LOOKS):
            lowest = min(lowest, _lowest_free(pid, lowest))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, before[1]))
            time.sleep(0.02)
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def no_threads() -> Iterator[None]:
    """Within it, every start of a thread of this process fails: its stack would not fit into what memory is left."""
    left = 256 << 20
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before, stack = resource.getrlimit(resource.RLIMIT_AS), threading.stack_size(2 * left)
    resource.setrlimit(resource.RLIMIT_AS, (size + left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        threading.stack_size(stack)


def _lowest_free(pid: int, limit: int) -> int:
    """The number that the process's next descriptor will have; ``limit`` when it may have no other."""
    if not pid:
        try:
            os.close(free := os.dup(0))
        except OSError:
            return limit
        return free
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in itertools.count() if number not in taken)


def wait_until_calm(pid: int) -> None:
    """Until a process has used next to no processor time for a second."""

    def calm() -> bool:
        before = _processor_s(pid)
        time.sleep(1)
        return _processor_s(pid) - before < _CALM

    eventually(calm, f"process {pid} has nothing to do", 30)


def _processor_s(pid: int) -> float:
    """proc_pid_stat(5): utime and stime, after a name that may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
