"""A disk that takes only so many bytes a second from some processes, by the kernel's own limit. Wants root."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distfs.errors import ConfigError

_ROOT = Path("/sys/fs/cgroup")
_NAME = f"distfs-bench-{os.getpid()}"


@contextmanager
def capped(folder: Path, pids: Iterable[int], rate: int) -> Iterator[None]:
    """While within, what ``pids`` write to the disk of ``folder`` is ``rate`` bytes a second, all together. Raises
    ConfigError where that cannot be."""
    older = _ROOT / "blkio"
    home = older if older.is_dir() else _ROOT
    group, device = home / _NAME, _disk_of(folder)
    try:
        if home is _ROOT:
            with suppress(OSError):  # it may be so already
                (_ROOT / "cgroup.subtree_control").write_text("+io")
        group.mkdir()
    except OSError as e:
        raise ConfigError(f"no control group for a capped disk can be made: {e.strerror}") from e
    try:
        try:
            if home is older:
                (group / "blkio.throttle.write_bps_device").write_text(f"{device} {rate}")
            else:
                (group / "io.max").write_text(f"{device} wbps={rate}")
            _move(pids, group)
        except OSError as e:
            raise ConfigError(f"a control group that caps the disk is not to be had: {e.strerror}") from e
        yield
    finally:
        _move((int(pid) for pid in (group / "cgroup.procs").read_text().split()), home)
        group.rmdir()


def _move(pids: Iterable[int], group: Path) -> None:
    for pid in pids:
        (group / "cgroup.procs").write_text(str(pid))


def _disk_of(folder: Path) -> str:
    """Major and minor number of the whole disk, as its partitions have no limit of their own."""
    device = folder.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    known = Path("/sys/dev/block") / name
    if (known / "partition").exists():
        return (known.resolve().parent / "dev").read_text().strip()
    return name
