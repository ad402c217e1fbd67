"""What Linux knows of our processes: who they are, the CPU time they used, the most memory they held.

Everything here is read from ``/proc`` (proc(5)); nothing is sampled, so nothing is missed between samples.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK = 1 / os.sysconf("SC_CLK_TCK")
_KIB = 1 << 10
_USER, _SYSTEM = (11, 13), (12, 14)  # in _stat: the process's own, and its ended children's
_LISTED = 4  # processes of one role whose memory is listed one by one


@dataclass(frozen=True, slots=True)
class Process:
    """One process. ``started`` (clock ticks after boot) tells it from a later one with the same pid."""

    pid: int
    started: int
    role: str  # 'service', 'node', 'PostgreSQL' ...: what figures are added up by
    label: str  # the role, numbered where there are several

    @property
    def alive(self) -> bool:
        stat = _stat(self.pid)
        return stat is not None and int(stat[19]) == self.started and stat[0] != "Z"

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def identify(pids_by_role: Mapping[str, Iterable[int]]) -> list[Process]:
    """Roles and their pids -> processes, those already gone left out; labels count from 1 in pid order."""
    found = []
    for role, pids in pids_by_role.items():
        alive = [(pid, stat) for pid in sorted(pids) if (stat := _stat(pid)) is not None]
        for number, (pid, stat) in enumerate(alive, 1):
            label = f"{role} {number}" if len(alive) > 1 else role
            found.append(Process(pid, int(stat[19]), role, label))
    return found


def descendants(pid: int) -> list[int]:
    """``pid`` and every process below it, by one look at the whole table."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal() and (stat := _stat(int(entry.name))) is not None:
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:  # grows as it is walked
        found.extend(children.get(parent, ()))
    return found


def command_line(pid: int) -> list[str]:
    """The words it was started with, or shows instead, cut at blanks; empty when it is gone."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    except OSError:
        return []


def cpu_seconds(processes: Iterable[Process]) -> dict[str, float]:
    """CPU seconds since their start, by role: user and system, those of children that ended included.

    Children count when their parent has waited for them, so a backend that PostgreSQL started and ended
    between two calls is not lost.
    """
    return _seconds(processes, _USER + _SYSTEM)


def system_seconds(processes: Iterable[Process]) -> dict[str, float]:
    """The part of ``cpu_seconds`` that was spent inside the kernel."""
    return _seconds(processes, _SYSTEM)


def _seconds(processes: Iterable[Process], fields: tuple[int, ...]) -> dict[str, float]:
    used: dict[str, float] = {}
    for process in processes:
        stat = _stat(process.pid)
        ticks = sum(int(stat[field]) for field in fields) if stat is not None else 0
        used[process.role] = used.get(process.role, 0.0) + ticks * _TICK
    return used


def peak_memory(processes: Iterable[Process]) -> dict[str, int]:
    """Label -> the most resident memory in bytes (VmHWM) since the start or the last ``reset_peaks``."""
    found = ((process.label, _size(process, "status", "VmHWM:")) for process in processes)
    return {label: size for label, size in found if size is not None}


def proportional_memory(processes: Iterable[Process]) -> dict[str, int]:
    """Role -> resident bytes, each shared page dealt out to those that share it: what they cost together.

    Read from ``smaps_rollup``, which the kernel shows to the process's own account and to root.
    """
    sizes: dict[str, int] = {}
    for process in processes:
        if (size := _size(process, "smaps_rollup", "Pss:")) is not None:
            sizes[process.role] = sizes.get(process.role, 0) + size
    return sizes


def _size(process: Process, file: str, field: str) -> int | None:
    """Bytes; None: it is gone, or does not show them."""
    with contextlib.suppress(OSError):
        for line in (_PROC / str(process.pid) / file).read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * _KIB
    return None


def summary(peaks: Mapping[str, int]) -> str:
    """Label -> bytes, as one line in MB; a role with many processes by its largest."""
    by_role: dict[str, list[int]] = {}
    for label, peak in peaks.items():
        by_role.setdefault(label.rstrip("0123456789 "), []).append(round(peak / 1e6))
    words = []
    for role, sizes in by_role.items():
        many = len(sizes) > _LISTED
        words.append(f"{role} {max(sizes)} (largest of {len(sizes)})" if many else f"{role} {_joined(sizes)}")
    return ", ".join(words)


def reset_peaks(processes: Iterable[Process]) -> None:
    """Make the present resident memory the peak: proc(5), ``clear_refs``, value 5."""
    for process in processes:
        with contextlib.suppress(OSError):
            (_PROC / str(process.pid) / "clear_refs").write_text("5")


def stop(processes: Iterable[Process], patience: float) -> list[Process]:
    """SIGTERM, then after ``patience`` seconds SIGKILL. Returns those that needed the latter."""
    listed = list(processes)
    for process in listed:
        process.signal(signal.SIGTERM)
    late = wait_gone(listed, patience)
    for process in late:
        process.signal(signal.SIGKILL)
    wait_gone(late, patience)
    return late


def wait_gone(processes: Iterable[Process], patience: float) -> list[Process]:
    """Wait until none is left or ``patience`` seconds passed. Returns those that are left."""
    end = time.monotonic() + patience
    left = [process for process in processes if process.alive]
    while left and time.monotonic() < end:
        time.sleep(0.02)
        left = [process for process in left if process.alive]
    return left


def _joined(sizes: Iterable[int]) -> str:
    return "/".join(map(str, sizes))


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name: [0] state, [1] parent ...; None: it is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()
