"""What the control groups that this process is in let it have. See cgroups(7), the kernel's cgroup-v2.rst and, of the
older hierarchies, its cgroup-v1/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cores() -> Iterator[float]:
    """How many cores' time: in a container it may see all cores and have half of one."""
    for found in _settings("cpu.max", "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"):
        if len(found) == 2 and all(word.isdecimal() for word in found) and int(found[1]):
            yield int(found[0]) / int(found[1])


def most_tasks() -> int | None:
    """How many processes and threads there may be; None: they set no limit."""
    return _least(_settings("pids.max", "pids", "pids.max"))


def most_memory() -> int | None:
    """In bytes; None: they set no limit."""
    return _least(_settings("memory.max", "memory", "memory.limit_in_bytes"))


def _least(settings: Iterator[list[str]]) -> int | None:
    return min((int(word) for [word] in settings if word.isdecimal()), default=None)


def _settings(unified: str, controller: str, *older: str) -> Iterator[list[str]]:
    """The words of a setting in the process's own group and in each above it, for each of them is a limit: the file
    ``unified`` of version 2, or the files ``older`` of the controller's own hierarchy. Groups without are passed."""
    for line in _words(_PROC / "self/cgroup", "\n"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        files: tuple[str, ...] = (unified,)
        if hierarchy == "0":
            root = _CGROUPS
        elif controller in controllers.split(","):
            root, files = _CGROUPS / controller, older
        else:
            continue
        group = Path(path)
        for each in (group, *group.parents):
            if found := [word for file in files for word in _words(root / str(each).lstrip("/") / file)]:
                yield found


def _words(path: Path, end: str | None = None) -> list[str]:
    try:
        return path.read_text("utf-8").split(end)
    except (OSError, ValueError):
        return []
