"""What a run was asked for, what machine it ran on, and how its figures are shown and kept."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

from distfs.errors import DistfsError


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. See ``python -m bench --help``."""

    work: Path
    mb: int
    runs: int
    memory_mb: tuple[int, ...]
    seconds: int
    connections: int
    repair_mb: int
    idle_s: int
    slices: int
    batch: int
    lost: int
    slow: int
    slow_s: int
    idle: int


class GoalMissed(DistfsError):
    """What was measured is worse than it is to be; it is saved all the same."""

    def __init__(self, text: str, found: object) -> None:
        super().__init__(text)
        self.found = found


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and what it is to be. ``value`` None: it could not be measured, which misses the goal."""

    what: str
    value: float | None
    bound: float
    least: bool = True  # whether more is better
    unit: str = ""
    digits: int = 2

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.bound if self.least else self.value <= self.bound

    def row(self) -> list[str]:
        """For ``table``."""
        figure = "none" if self.value is None else f"{self.value:,.{self.digits}f}{self.unit}"
        wanted = f"at {'least' if self.least else 'most'} {self.bound:,g}{self.unit}"
        return [self.what, figure, wanted, "met" if self.met else "MISSED"]


def judge(goals: Sequence[Goal], found: object) -> None:
    """Print every goal with its figure. Raises GoalMissed, with ``found`` to be saved, when one is missed."""
    print(
        f"\ngoals; load of the last minute {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
    )
    table([["", "figure", "goal", ""], *(goal.row() for goal in goals)])
    if missed := [goal for goal in goals if not goal.met]:
        words = "; ".join(f"{what}: {figure}, {wanted}" for what, figure, wanted, _ in map(Goal.row, missed))
        raise GoalMissed(f"{len(missed)} of {len(goals)} goals missed: {words}", found)


def spread(values: Sequence[float], digits: int) -> str:
    """``"574 (370 to 610)"``: median, least and most."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns: the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print(("  " + "  ".join(cells)).rstrip())


def save(folder: Path, options: Options, results: dict[str, object]) -> Path:
    """Write what was measured, and on what, as JSON named by the time. -> its path."""
    now = datetime.now(UTC)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y%m%dT%H%M%SZ}.json"
    document = {
        "at": now.isoformat(timespec="seconds"),
        "machine": machine(options.work),
        "options": asdict(options),
        "results": results,
    }
    path.write_text(json.dumps(document, indent=1, default=_plain) + "\n", encoding="utf-8")
    return path


def machine(work: Path) -> dict[str, object]:
    """What a figure depends on besides the code: processor, memory, disk, versions, who else is busy."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("DISTFS_")}
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _field(Path("/proc/meminfo"), "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "curl": _first_line(["curl", "--version"]),
        "disk": _first_line(
            ["findmnt", "--noheadings", "--output", "SOURCE,FSTYPE,OPTIONS", "--target", str(work)]
        ),
        "commit": _first_line(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
        "load": os.getloadavg(),
        # Names only where the value could be a password.
        "settings": {name: "..." if "URL" in name else value for name, value in settings.items()},
        "command": sys.argv[1:],
    }


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _first_line(command: list[str]) -> str:
    """The first line a command prints; empty when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0]
